package basebackup_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"rideau/basebackup"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
)

// copied is cp, which knows what of links and owners is to be kept.
func copied(t *testing.T, how, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", how, from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp %s: %v: %s", how, err, out)
	}
}

// linkTo puts a symbolic link to target into the place of what is at name, which
// goes to target first if that is not there.
func linkTo(t *testing.T, name, target string) {
	t.Helper()
	if _, err := os.Lstat(target); errors.Is(err, fs.ErrNotExist) {
		copied(t, "-a", name, target)
	}
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

// bytesOf is the modes and the content of all files below dir.
func bytesOf(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(name)
		fmt.Fprintf(&b, "%s %v %x\n", name, info.Mode(), sha256.Sum256(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// unlike are the lines of one text that are not in the other.
func unlike(a, b string) (lines []string) {
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		other := strings.Split(pair[1], "\n")
		slices.Sort(other)
		for line := range strings.SplitSeq(pair[0], "\n") {
			if _, ok := slices.BinarySearch(other, line); !ok {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// bigTable makes a table of two extents, of which every page has room for new
// versions of its rows. Its file is the largest, so it is the first to travel.
func bigTable(s *pgtest.Server, space string) {
	s.Exec(fmt.Sprintf(`CREATE TABLE big WITH (fillfactor = 50, autovacuum_enabled = off) %s
AS SELECT n, 0 AS v, repeat('x', 400) AS filler FROM generate_series(1, 28000) n`, space))
	s.Exec("VACUUM big")
}

// cut takes a backup that is ended once so many bytes are copied: as after a
// power cut, but for what is in the journal.
func cut(t *testing.T, cfg basebackup.Config, at int64) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	cfg.Jobs = 1
	cfg.Progress = func(p basebackup.Progress) {
		if p.Phase == basebackup.Copying && p.Bytes >= at {
			stop()
		}
	}
	if _, err := basebackup.Take(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Fatalf("the backup was to be cut off after %d bytes: %v", at, err)
	}
	unstartable(t, cfg.Dir)
}

// The first extent of the big table is there when a backup is cut off here.
const firstExtent = 18 << 20

// pauseReplay makes a standby one that lags, from now on.
func pauseReplay(s *pgtest.Server) {
	s.Query("SELECT pg_wal_replay_pause()")
	s.WaitQuery("paused", "SELECT pg_get_wal_replay_pause_state()")
}

// The server's pg_wal is on a disk of its own, and DIR is a copy of its data
// directory, made while it was down: files are DIR's, but pg_wal leads to where
// the server writes at this moment. A backup empties pg_wal.
func TestWalOfTheLiveServer(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Major: 18})
	conninfo := backupRole(s)
	s.Exec("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n")
	s.Stop(pgserver.Fast)
	own := pgtest.Dir(t)
	wal, dir := filepath.Join(own, "wal"), filepath.Join(own, "copy")
	linkTo(t, filepath.Join(s.Dir, "pg_wal"), wal)
	copied(t, "-a", s.Dir, dir)
	s.Start()
	s.Exec("INSERT INTO t SELECT n FROM generate_series(1, 100000) n") // only in WAL
	segments := func() (names []string) {
		entries, err := os.ReadDir(wal)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	before, was := segments(), bytesOf(t, dir)

	_, err := basebackup.Take(t.Context(), basebackup.Config{Conninfo: conninfo, Dir: dir})
	var live *basebackup.LiveError
	if !errors.As(err, &live) || live.Dir != filepath.Join(dir, "pg_wal") {
		t.Errorf("the error is %v", err)
	}
	if after := segments(); !slices.Equal(after, before) {
		t.Errorf("the server's pg_wal had %v, and has %v", before, after)
	}
	if lines := unlike(was, bytesOf(t, dir)); lines != nil {
		t.Errorf("DIR was touched: %s", lines)
	}
	s.Kill()
	s.Start() // needs all WAL since the last checkpoint
	if got := s.QueryValue("SELECT count(*) FROM t"); got != "101000" {
		t.Errorf("after the crash the table has %s rows", got)
	}
}

// A balancer connects to one server after the other.
type balancer struct {
	port int
	met  []atomic.Int64 // connections of each server
}

func newBalancer(t *testing.T, servers ...*pgtest.Server) *balancer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b := &balancer{port: l.Addr().(*net.TCPAddr).Port, met: make([]atomic.Int64, len(servers))}
	go func() {
		for n := 0; ; n++ {
			down, err := l.Accept()
			if err != nil {
				return
			}
			k := n % len(servers)
			up, err := net.Dial("tcp", servers[k].Addr())
			if err != nil {
				down.Close()
				continue
			}
			b.met[k].Add(1)
			go func() { io.Copy(up, down); up.Close() }()
			go func() { io.Copy(down, up); down.Close() }()
		}
	}()
	return b
}

// One address, and every second connection to it is to a standby that lags. A
// file from here and one from there would make a backup of no moment at all.
func TestBalancerInBetween(t *testing.T) {
	t.Parallel()
	p := pgtest.Start(t, pgtest.Options{Major: 15})
	p.BenchInit(1)
	backupRole(p)
	s := p.Standby(pgtest.Options{Name: "s"}, p.Conninfo("user=postgres"))
	s.Start()
	s.WaitLSN(p.LSN())
	pauseReplay(s)
	p.Exec("UPDATE pgbench_accounts SET abalance = 7 WHERE aid % 10 = 0")
	p.Exec("CREATE TABLE later AS SELECT n FROM generate_series(1, 1000) n")
	p.Exec("CHECKPOINT") // from now on only files have it

	b := newBalancer(t, p, s)
	dir := filepath.Join(pgtest.Dir(t), "backup")
	_, err := basebackup.Take(t.Context(), basebackup.Config{Dir: dir, Jobs: 2,
		// Another try without TLS would be a connection more.
		Conninfo: fmt.Sprintf("host=127.0.0.1 port=%d user=bk dbname=postgres sslmode=disable", b.port)})
	if b.met[0].Load() == 0 || b.met[1].Load() == 0 {
		t.Errorf("connections to the primary and to the standby: %d and %d", b.met[0].Load(), b.met[1].Load())
	}
	if err != nil {
		t.Logf("refused: %v", err)
		unstartable(t, dir)
		return
	}
	same(t, p, proven(t, p, dir))
}

// A backup of the primary is cut off, goes on from a standby that lags, is cut
// off again, and ends with the primary. What the first attempt had copied is
// still in the journal, but the second has written older pages over it.
func TestLaggingStandbyBetween(t *testing.T) {
	t.Parallel()
	p := pgtest.Start(t, pgtest.Options{Major: 15, Settings: map[string]string{"autovacuum": "off"}})
	bigTable(p, "")
	conninfo := backupRole(p)
	s := p.Standby(pgtest.Options{Name: "s"}, p.Conninfo("user=postgres"))
	s.Start()
	p.Exec("CHECKPOINT")
	s.WaitLSN(p.LSN())
	s.Exec("CHECKPOINT")
	pauseReplay(s)
	p.Exec("UPDATE big SET v = 1 WHERE n % 5 = 0") // a row of every page
	p.Exec("CHECKPOINT")
	p.Exec("SELECT pg_switch_wal()")
	file := p.QueryValue("SELECT pg_relation_filepath('big')")

	dir := filepath.Join(pgtest.Dir(t), "backup")
	cut(t, basebackup.Config{Conninfo: conninfo, Dir: dir, MaxRate: 30 << 20}, firstExtent)
	if n := olderPages(t, dir, p.Dir, file); n != 0 {
		t.Fatalf("the first attempt has copied %d pages that are not the primary's", n)
	}
	// It asks for the digests of the extent that is there first, but before it asks
	// for what differs comes all of the other, of 9 MB.
	cut(t, basebackup.Config{Conninfo: asRole(s), Dir: dir, MaxRate: 12 << 20}, 11<<20)
	if n := olderPages(t, dir, p.Dir, file); n < 50 {
		t.Fatalf("the second attempt has put back %d pages: this tests nothing", n)
	}
	report := take(t, basebackup.Config{Conninfo: conninfo, Dir: dir})
	if !report.Resumed {
		t.Errorf("it did not go on: %+v", report)
	}
	c := proven(t, p, dir)
	same(t, p, c)
}

// olderPages is how many pages of a file's first extent have a lower LSN in the
// one directory than in the other.
func olderPages(t *testing.T, dir, than, file string) (n int) {
	t.Helper()
	ours, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(filepath.Join(than, file))
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < min(16<<20, len(ours), len(theirs)); at += 8192 {
		if lsnOfPage(ours[at:]) < lsnOfPage(theirs[at:]) {
			n++
		}
	}
	return n
}

// The first attempt puts a tablespace on one disk. It is full, so the second is
// told of another. What the journal knows of the tablespace is not there.
func TestTablespaceElsewhereNow(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Major: 18, Settings: map[string]string{"autovacuum": "off", "summarize_wal": "on"}})
	space := location(t, s)
	s.Exec(fmt.Sprintf("CREATE TABLESPACE space LOCATION '%s'", space))
	bigTable(s, "TABLESPACE space")
	own := pgtest.Dir(t)
	first, second := filepath.Join(own, "first"), filepath.Join(own, "second")
	cfg := basebackup.Config{Conninfo: backupRole(s), Dir: filepath.Join(own, "backup"), Tablespaces: map[string]string{space: first}, MaxRate: 30 << 20}
	cut(t, cfg, firstExtent)
	s.Exec("UPDATE big SET v = 1 WHERE n % 2000 = 0")
	s.Exec("CHECKPOINT")
	was := bytesOf(t, first)

	cfg.MaxRate, cfg.Tablespaces = 0, map[string]string{space: second}
	report := take(t, cfg)
	if !report.Resumed || !strings.Contains(report.Method, "summaries") {
		t.Errorf("the method is %q, because %s: this tests nothing", report.Method, report.Reason)
	}
	if lines := unlike(was, bytesOf(t, first)); lines != nil {
		t.Errorf("the first place was written to: %s", lines)
	}
	want := contents(t, s)
	s.Stop(pgserver.Fast) // the files are to belong to its account
	give(t, s, own)
	verified(t, s, cfg.Dir)
	c := open(t, s, cfg.Dir, nil)
	if got := contents(t, c); got != want {
		t.Errorf("the backup has\n%sand the server\n%s", got, want)
	}
}

// The power goes when the backup is complete, and the state of its attempts has
// not gone yet. Somebody starts the backup and changes it. The state still says
// that what is there was copied, and pages' LSNs would say so too.
func TestStateOfABackupThatWasStarted(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Major: 15, Settings: map[string]string{"autovacuum": "off"}})
	bigTable(s, "")
	own := pgtest.Dir(t)
	cfg := basebackup.Config{Conninfo: backupRole(s), Dir: filepath.Join(own, "backup"), MaxRate: 30 << 20}
	state, saved := filepath.Join(cfg.Dir, "rideau-basebackup"), filepath.Join(own, "state")
	cut(t, cfg, firstExtent)
	copied(t, "-a", state, saved)
	cfg.MaxRate = 0
	take(t, cfg)
	copied(t, "-a", saved, state)

	c := open(t, s, cfg.Dir, nil)
	c.Exec("UPDATE big SET v = 666 WHERE n % 7 = 0")
	c.Stop(pgserver.Fast)
	for range 20 { // the transaction that it had is one of the server's, too
		s.Exec("SELECT pg_current_xact_id()")
	}
	report := take(t, cfg)
	if report.Resumed || report.Method != "content" {
		t.Errorf("resumed %t by %q, because %s", report.Resumed, report.Method, report.Reason)
	}
	c = proven(t, s, cfg.Dir)
	same(t, s, c)
}

// Yesterday's backup is kept as hard links, which cost nothing: cp -al. Today's
// refresh must leave the files that both have as they were yesterday.
func TestRefreshBesideHardLinks(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Major: 18})
	s.BenchInit(1)
	own := pgtest.Dir(t)
	cfg := basebackup.Config{Conninfo: backupRole(s), Dir: filepath.Join(own, "backup")}
	take(t, cfg)
	yesterday := filepath.Join(own, "yesterday")
	copied(t, "-al", cfg.Dir, yesterday)
	was := bytesOf(t, yesterday)

	s.Exec("UPDATE pgbench_accounts SET abalance = 7 WHERE aid % 10 = 0")
	s.Exec("CREATE TABLE later AS SELECT n FROM generate_series(1, 1000) n")
	take(t, cfg)
	if lines := unlike(was, bytesOf(t, yesterday)); lines != nil {
		t.Errorf("yesterday's backup has changed: %s", lines)
	}
	verified(t, s, yesterday)
	c := proven(t, s, cfg.Dir)
	same(t, s, c)
}

// Some of what DIR should have is elsewhere, and only links to it are here. A
// refresh makes files of them, and leaves what is elsewhere alone. Only pg_wal,
// for which initdb has an option, may stay where it is.
func TestRefreshWhereLinksAre(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Major: 18})
	s.BenchInit(1)
	own := pgtest.Dir(t)
	dir, outside, wal := filepath.Join(own, "backup"), filepath.Join(own, "outside"), filepath.Join(own, "wal")
	cfg := basebackup.Config{Conninfo: backupRole(s), Dir: dir}
	take(t, cfg)
	if err := os.Mkdir(outside, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{
		"postgresql.conf",
		"PG_VERSION",
		"global/pg_filenode.map",
		s.QueryValue("SELECT pg_relation_filepath('pgbench_accounts')"),
		s.QueryValue("SELECT pg_relation_filepath('pgbench_accounts')") + "_vm",
		"pg_xact",
		"pg_multixact/offsets",
		filepath.Dir(s.QueryValue("SELECT pg_relation_filepath('pg_class')")),
	} {
		linkTo(t, filepath.Join(dir, name), filepath.Join(outside, fmt.Sprint(i)))
	}
	// The server has nothing of these names.
	linkTo(t, filepath.Join(dir, "notes"), outside)
	linkTo(t, filepath.Join(dir, "base/1/99999"), filepath.Join(outside, "0"))
	linkTo(t, filepath.Join(dir, "rideau-basebackup"), outside)
	linkTo(t, filepath.Join(dir, "pg_wal"), wal)
	was := bytesOf(t, outside)

	s.Exec("UPDATE pgbench_accounts SET abalance = 7 WHERE aid % 10 = 0")
	s.Exec("VACUUM pgbench_accounts")
	take(t, cfg)
	if lines := unlike(was, bytesOf(t, outside)); lines != nil {
		t.Errorf("what is outside of DIR has changed: %s", lines)
	}
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.Type()&fs.ModeSymlink != 0 && name != filepath.Join(dir, "pg_wal") {
			t.Errorf("%s is still a link", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(filepath.Join(dir, "pg_wal")); err != nil || target != wal {
		t.Errorf("pg_wal leads to %q, %v", target, err)
	}
	give(t, s, wal)
	c := proven(t, s, dir)
	same(t, s, c)
}
