package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"rideau/basebackup"
	"rideau/internal/pgserver"
)

// backupRefresh measures what a backup costs that is there already, after one
// block in a hundred of the largest table has changed, beside a full one. What
// was refreshed is verified each time: it is what a full one would be.
func (b *bench) backupRefresh(ctx context.Context) (err error) {
	// Pages have room for another version of a row: no other block changes.
	s, err := b.filled(ctx, "backuprefresh", b.cfg.BackupScale, "-F", "90")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	kept, _, err := b.dir()
	if err != nil {
		return err
	}
	full := b.rideauBackup(s, "full", s.Conninfo(""))
	refresh := b.rideauBackup(s, "refresh", s.Conninfo(""))
	if _, err := full.run(ctx, kept); err != nil {
		return err
	}
	if err := readAll(s.Dir); err != nil {
		return err
	}
	for round := range b.cfg.Rounds {
		// Another block of each hundred in each round.
		_, err := s.Query(ctx, fmt.Sprintf(`UPDATE pgbench_accounts SET abalance = abalance + 1
			WHERE ctid = ANY (ARRAY(SELECT format('(%%s,1)', i)::tid
				FROM generate_series(%d, pg_relation_size('pgbench_accounts') / 8192 - 1, 100) i))`, round%100))
		if err != nil {
			return err
		}
		for _, c := range rotate([]copyist{refresh, full}, round) {
			b.logf("backuprefresh: round %d, %s", round+1, c.name)
			dir := kept
			if c.name == "full" {
				if dir, _, err = b.dir(); err != nil { // removed in the end, see turns
					return err
				}
			}
			settle()
			got, err := c.run(ctx, dir)
			if err == nil {
				err = b.verifyBackup(ctx, s, dir)
			}
			if err == nil && c.name == "full" {
				err = emptyFiles(dir)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if round == 0 {
				b.logf("backuprefresh: %s by %s: %s", c.name, got.report.Method, got.report.Reason)
			}
			b.results.add("backup, 1 % changed, time", c.name, "s", got.took.Seconds())
			b.results.add("backup, 1 % changed, received", c.name, "MB", float64(got.report.Received)/1e6)
			b.results.add("backup, 1 % changed, server's CPU", c.name, "s", got.server.Seconds())
		}
	}
	for _, figure := range []string{"time", "received", "server's CPU"} {
		b.results.compareLess("backup, 1 % changed, "+figure, "refresh", "full")
	}
	return nil
}

const backupListFigure = "backup, listing"

// backupList measures how long the server's files take to be listed, up to the
// first byte that is copied, and what many of them take of memory: small ones,
// a thousand in a directory. It has no peer: pg_basebackup syncs each file, and
// was not done with 200,000 within two minutes.
func (b *bench) backupList(ctx context.Context) (err error) {
	s, err := b.server(ctx, "backuplist", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	b.logf("backuplist: making %d files", b.cfg.Files)
	for i := range b.cfg.Files {
		dir := filepath.Join(s.Dir, "extra", fmt.Sprint(i/1000))
		if i%1000 == 0 {
			// The server reads them, as whoever it is.
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("one line of text\n"), 0o644); err != nil {
			return err
		}
	}
	for range b.cfg.Rounds {
		dir, remove, err := b.dir()
		if err != nil {
			return err
		}
		settle()
		took, err := listingTime(ctx, basebackup.Config{Conninfo: s.Conninfo(""), Dir: dir})
		if err := errors.Join(err, remove()); err != nil {
			return err
		}
		b.results.add(backupListFigure, "rideau", "s", took.Seconds())
	}
	list := []copyist{b.rideauBackup(s, "rideau", s.Conninfo(""))}
	err = b.turns(ctx, "backuplist", s, list, func(who string, c copied) {
		b.results.add(backupListFigure+" and copying", who, "files/s", float64(b.cfg.Files)/c.took.Seconds())
		b.results.add(backupListFigure+", memory", who, "MB", float64(c.memory)/1e6)
	})
	if err != nil {
		return err
	}
	b.results.limit(backupListFigure, "rideau", 10)
	b.results.limit(backupListFigure+", memory", "rideau", maxBackupMemory)
	return nil
}

// listingTime begins a backup in this process and ends it when it has listed.
func listingTime(ctx context.Context, cfg basebackup.Config) (time.Duration, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var begun, ended time.Time
	cfg.Progress = func(p basebackup.Progress) {
		switch now := time.Now(); {
		case p.Phase == basebackup.Listing && begun.IsZero():
			begun = now
		case p.Phase == basebackup.Copying && ended.IsZero():
			ended = now
			stop()
		}
	}
	_, err := basebackup.Take(ctx, cfg)
	if ended.IsZero() {
		return 0, errors.Join(errors.New("the files were never listed"), err)
	}
	return ended.Sub(begun), nil
}

// profileBackup takes the backup once more, in this process, and leaves a CPU
// profile.
func (b *bench) profileBackup(ctx context.Context, s *pgserver.Server) (err error) {
	dir, remove, err := b.dir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if err := os.MkdirAll(b.cfg.profile, 0o755); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(b.cfg.profile, "backup.prof"))
	if err != nil {
		return err
	}
	defer out.Close()
	settle()
	stop, err := startProfile(out)
	if err != nil {
		return err
	}
	report, err := basebackup.Take(ctx, basebackup.Config{Conninfo: s.Conninfo(""), Dir: dir})
	stop()
	if err == nil {
		b.logf("%s: %s", out.Name(), report.Elapsed.Round(time.Millisecond))
	}
	return err
}
