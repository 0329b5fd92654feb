package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"rideau/basebackup"
	"rideau/internal/pgserver"
)

// A copied is what one backup took.
type copied struct {
	took   time.Duration // of its process, from start to end
	cpu    time.Duration // of its process, and of its children
	server time.Duration // of the server processes that served it
	memory int64         // the most that it had resident
	report basebackup.Report
}

// A copyist makes one backup of a server in an empty folder, and returns when
// it is on disk.
type copyist struct {
	name string
	run  func(ctx context.Context, dir string) (copied, error)
}

// rideauBackup is rideau basebackup of who is at conninfo.
func (b *bench) rideauBackup(s *pgserver.Server, name, conninfo string, args ...string) copyist {
	return copyist{name, func(ctx context.Context, dir string) (copied, error) {
		args := append([]string{"basebackup", conninfo, dir, "--json", "--progress", "none"}, args...)
		var out strings.Builder
		cmd := b.rideau(ctx, args...)
		cmd.Stdout = &out
		c, err := b.paid(ctx, s, cmd)
		if err != nil {
			return c, err
		}
		return c, json.Unmarshal([]byte(out.String()), &c.report)
	}}
}

// pgBasebackup is pg_basebackup with its own defaults, which are ours: WAL comes
// along, there is a manifest, all is synced. It has the checkpoint at once.
func (b *bench) pgBasebackup(s *pgserver.Server, conninfo string) copyist {
	return copyist{"pg_basebackup", func(ctx context.Context, dir string) (copied, error) {
		cmd, err := pgserver.Command(ctx, b.cfg.Major, "pg_basebackup", "-d", conninfo, "-D", dir, "-X", "stream", "-c", "fast")
		if err != nil {
			return copied{}, err
		}
		// Should we be interrupted, its child, who has the WAL, outlives it with
		// our pipe in hand.
		cmd.WaitDelay = 5 * time.Second
		return b.paid(ctx, s, cmd)
	}}
}

// cp copies the data directory of the running server, which makes no backup, but
// is the least that anybody must do: no server reads, nothing is checked.
func (b *bench) cp(s *pgserver.Server) copyist {
	return copyist{"cp -r", func(ctx context.Context, dir string) (copied, error) {
		return b.paid(ctx, s, exec.CommandContext(ctx, "sh", "-c", `cp -r "$0"/. "$1" && sync -f "$1"`, s.Dir, dir))
	}}
}

// paid runs a program to its end, and counts what it and the server took.
func (b *bench) paid(ctx context.Context, s *pgserver.Server, cmd *exec.Cmd) (c copied, err error) {
	before, err := b.served(ctx, s)
	if err != nil {
		return c, err
	}
	begun := time.Now()
	child, err := begin(cmd)
	if err != nil {
		return c, err
	}
	c.memory = child.watchMemory()
	if err := child.wait(); err != nil {
		return c, err
	}
	c.took, c.cpu = time.Since(begun), child.cpu()
	after, err := b.served(ctx, s)
	c.server = after - before
	return c, err
}

// watchMemory waits for the end, and returns the most that was resident before
// the last moments. (What wait4 tells of that is never less than what we had
// when we forked.)
func (c *child) watchMemory() (most int64) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if n, err := peakMemory(c.cmd.Process.Pid); err == nil {
			most = max(most, n)
		}
		select {
		case <-c.done:
			return most
		case <-tick.C:
		}
	}
}

// served is what the server's processes that have ended have used; it waits
// until all are gone that serve somebody.
func (b *bench) served(ctx context.Context, s *pgserver.Server) (time.Duration, error) {
	conn, err := s.Connect(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = eventually(ctx, "the server to be left alone", func() (alone bool, err error) {
		err = conn.QueryRow(ctx, `SELECT count(*) = 0 FROM pg_stat_activity
			WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid()`).Scan(&alone)
		return alone, err
	})
	if err != nil {
		return 0, err
	}
	return cpuOfChildren(s.PID())
}

// turns lets copyists take turns, each into a fresh folder. In the first round
// pg_verifybackup judges what they made, if it has a manifest.
//
// What was made is emptied at once, but removed only after the last round: for
// some minutes ext4 does not use the inodes of files that were deleted, and
// looks at all of them for each file that is made (recently_deleted in
// fs/ext4/ialloc.c), so each would pay for the one before.
func (b *bench) turns(ctx context.Context, part string, s *pgserver.Server, list []copyist, add func(who string, c copied)) (err error) {
	var removes []func() error
	defer func() {
		for _, remove := range removes {
			err = errors.Join(err, remove())
		}
	}()
	if err := readAll(s.Dir); err != nil {
		return err
	}
	for round := range b.cfg.Rounds {
		for _, c := range rotate(list, round) {
			b.logf("%s: round %d, %s", part, round+1, c.name)
			dir, remove, err := b.dir()
			if err != nil {
				return err
			}
			settle()
			got, err := c.run(ctx, dir)
			if err == nil && round == 0 {
				err = b.verifyBackup(ctx, s, dir)
			}
			removes = append(removes, remove)
			if err := errors.Join(err, emptyFiles(dir)); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			add(c.name, got)
		}
	}
	return nil
}

// verifyBackup has pg_verifybackup check a backup: files, checksums, WAL.
func (b *bench) verifyBackup(ctx context.Context, s *pgserver.Server, dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "backup_manifest")); errors.Is(err, fs.ErrNotExist) {
		return nil // cp's
	}
	// It may have to run as the account that servers run as.
	info, err := os.Stat(s.Dir)
	if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		err = filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(name, int(owner.Uid), int(owner.Gid)))
		})
		if err != nil {
			return err
		}
	}
	_, err = b.tool(ctx, "pg_verifybackup", "-q", dir)
	return err
}

// emptyFiles gives back what the files below dir take of the disk.
func emptyFiles(dir string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		return os.Truncate(name, 0)
	})
}

// readAll brings the files below dir into memory.
func readAll(dir string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return nil // a server's directory: what was there may be gone
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, f)
		return err
	})
}

// quiet restarts a server that has been filled, so that its buffers are empty,
// its files are on disk, and its WAL is as little as it can be: cp copies that
// too.
func (b *bench) quiet(ctx context.Context, s *pgserver.Server) error {
	if err := s.Stop(pgserver.Fast); err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	for range 2 {
		for _, sql := range []string{"SELECT pg_switch_wal()", "CHECKPOINT"} {
			if _, err := s.Query(ctx, sql); err != nil {
				return err
			}
		}
	}
	return nil
}

// filled is a server with the tables of pgbench.
func (b *bench) filled(ctx context.Context, name string, scale int, args ...string) (*pgserver.Server, error) {
	s, err := b.server(ctx, name, map[string]string{"synchronous_commit": "off"})
	if err != nil {
		return nil, err
	}
	b.logf("%s: making tables of scale %d", name, scale)
	_, err = b.pgbench(ctx, s, append([]string{"-i", "-q", "-s", fmt.Sprint(scale)}, args...)...)
	if err == nil {
		err = b.quiet(ctx, s)
	}
	if err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

// dataMB is how much there is to copy: the files of the data directory without
// its WAL.
func dataMB(s *pgserver.Server) (mb float64, files int, err error) {
	err = filepath.WalkDir(s.Dir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if filepath.Base(filepath.Dir(name)) == "pg_wal" {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		files++
		mb += float64(info.Size()) / 1e6
		return nil
	})
	return mb, files, err
}

const maxBackupMemory = 150 // MB

const backupFigure = "backup"

// backup measures how fast a server's data directory gets to the disk of a
// backup: "rideau basebackup" beside "pg_basebackup -X stream -c fast", from the
// start of the process to its end, when each says that all of it is on disk.
// Both have a manifest, and the WAL of the backup. The server does nothing
// else, and its files are in memory. rideau looks at every page's checksum on
// its way; of pg_basebackup the server does. "cp -r" is what files alone take.
//
// CPU is of the client's process, and apart from it of the server's processes
// that served it.
func (b *bench) backup(ctx context.Context) (err error) {
	s, err := b.filled(ctx, "backup", b.cfg.BackupScale)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	mb, files, err := dataMB(s)
	if err != nil {
		return err
	}
	b.logf("backup: %.0f MB in %d files", mb, files)
	list := []copyist{
		b.rideauBackup(s, "rideau", s.Conninfo("")),
		b.rideauBackup(s, "rideau -j 2", s.Conninfo(""), "-j", "2"),
		b.pgBasebackup(s, s.Conninfo("")),
		b.cp(s),
	}
	err = b.turns(ctx, "backup", s, list, func(who string, c copied) {
		r := &b.results
		r.add(backupFigure, who, "MB/s", mb/c.took.Seconds())
		r.add(backupFigure+", CPU a GB", who, "s", c.cpu.Seconds()/mb*1000)
		if who != "cp -r" {
			r.add(backupFigure+", server's CPU a GB", who, "s", c.server.Seconds()/mb*1000)
			r.add(backupFigure+", memory", who, "MB", float64(c.memory)/1e6)
		}
	})
	if err != nil {
		return err
	}
	b.results.compare(backupFigure, "rideau", "pg_basebackup", 1.3)
	b.results.compare(backupFigure, "rideau -j 2", "pg_basebackup", 1.3)
	b.results.compare(backupFigure, "rideau", "cp -r", 0)
	b.results.compareLess(backupFigure+", CPU a GB", "rideau", "pg_basebackup")
	b.results.compareLess(backupFigure+", server's CPU a GB", "rideau", "pg_basebackup")
	b.results.limit(backupFigure+", memory", "rideau", maxBackupMemory)
	if b.cfg.profile != "" {
		return b.profileBackup(ctx, s)
	}
	return nil
}

const backupManyFigure = "backup of small relations"

// backupMany is backup of many relations, half of them with one row, the others
// empty. What they cost is not their bytes.
func (b *bench) backupMany(ctx context.Context) (err error) {
	s, err := b.server(ctx, "backupmany", map[string]string{"synchronous_commit": "off", "max_locks_per_transaction": "1024"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	b.logf("backupmany: making %d relations", b.cfg.Relations)
	_, err = s.Query(ctx, fmt.Sprintf(`DO $$ BEGIN
		FOR i IN 1..%d LOOP
			EXECUTE format('CREATE TABLE r%%s (a int)', i);
			IF i %% 2 = 0 THEN EXECUTE format('INSERT INTO r%%s VALUES (1)', i); END IF;
			IF i %% 500 = 0 THEN COMMIT; END IF;
		END LOOP;
	END $$`, b.cfg.Relations))
	if err != nil {
		return err
	}
	if err := b.quiet(ctx, s); err != nil {
		return err
	}
	mb, files, err := dataMB(s)
	if err != nil {
		return err
	}
	b.logf("backupmany: %.0f MB in %d files", mb, files)
	list := []copyist{
		b.rideauBackup(s, "rideau", s.Conninfo("")),
		b.pgBasebackup(s, s.Conninfo("")),
		b.cp(s),
	}
	err = b.turns(ctx, "backupmany", s, list, func(who string, c copied) {
		r, thousands := &b.results, float64(files)/1000
		r.add(backupManyFigure, who, "files/s", float64(files)/c.took.Seconds())
		r.add(backupManyFigure+", CPU a 1000", who, "s", c.cpu.Seconds()/thousands)
		if who != "cp -r" {
			r.add(backupManyFigure+", server's CPU a 1000", who, "s", c.server.Seconds()/thousands)
			r.add(backupManyFigure+", memory", who, "MB", float64(c.memory)/1e6)
		}
	})
	if err != nil {
		return err
	}
	b.results.compare(backupManyFigure, "rideau", "pg_basebackup", 1.5)
	b.results.compare(backupManyFigure, "rideau", "cp -r", 0)
	b.results.compareLess(backupManyFigure+", CPU a 1000", "rideau", "pg_basebackup")
	b.results.compareLess(backupManyFigure+", server's CPU a 1000", "rideau", "pg_basebackup")
	b.results.limit(backupManyFigure+", memory", "rideau", maxBackupMemory)
	return nil
}
