package basebackup_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"rideau/basebackup"
	"rideau/internal/durable"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
)

// slowly makes a backup of a small server last a few seconds.
const slowly = 8 << 20

// unchecked is a server without page checksums, and without wal_log_hints: what
// pg_rewind refuses.
func unchecked(t *testing.T, major int) *pgtest.Server {
	t.Helper()
	s := pgtest.Start(t, pgtest.Options{Major: major, InitdbArgs: []string{"--no-data-checksums"}})
	if got := s.QueryValue("SELECT current_setting('data_checksums') || current_setting('wal_log_hints')"); got != "offoff" {
		t.Fatalf("data_checksums and wal_log_hints are %s", got)
	}
	return s
}

// streams is that c is a standby of s that has all of it and gets what comes.
func streams(t *testing.T, c, s *pgtest.Server) {
	t.Helper()
	if got := c.QueryValue("SELECT pg_is_in_recovery()"); got != "t" {
		t.Fatalf("it is no standby: %s", got)
	}
	s.Exec("CREATE TABLE streamed AS SELECT n FROM generate_series(1, 100) n")
	c.WaitLSN(s.LSN())
	c.WaitQuery("streaming", "SELECT status FROM pg_stat_wal_receiver")
	same(t, s, c)
}

// A primary died, its standby took over, and the old one was started and
// written to all the same. It becomes a standby of the new one.
func TestResyncDiverged(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			p := unchecked(t, major)
			p.BenchInit(3)
			backupRole(p)
			s := p.Standby(pgtest.Options{Name: "s"}, p.Conninfo("user=postgres"))
			s.Start()
			bench := p.Load()
			p.WaitQuery("t", "SELECT count(*) > 50 FROM pgbench_history")
			p.Kill()
			bench.Wait()
			s.Promote()
			s.Exec("CREATE TABLE only_new AS SELECT n FROM generate_series(1, 3000) n; DROP TABLE pgbench_tellers")
			s.Exec("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= 3000")
			p.Start()
			p.Exec("CREATE TABLE only_old AS SELECT n FROM generate_series(1, 3000) n")
			p.Exec("CREATE DATABASE only_old")
			p.Exec("UPDATE pgbench_accounts SET abalance = abalance - 1 WHERE aid BETWEEN 9000 AND 12000")
			p.Exec("CHECKPOINT")
			p.Exec("DELETE FROM pgbench_branches")
			p.Kill()

			report := take(t, basebackup.Config{Conninfo: asRole(s), Dir: p.Dir, Standby: true, Relay: s.Conninfo("user=postgres")})
			if report.Method != "content" {
				t.Errorf("method is %q, because %s", report.Method, report.Reason)
			}
			if report.Received > report.Bytes/2 {
				t.Errorf("received %d of %d bytes", report.Received, report.Bytes)
			}
			c := open(t, s, p.Dir, nil)
			streams(t, c, s)
			if got := c.QueryValue("SELECT count(*) FROM pg_database WHERE datname = 'only_old'"); got != "0" {
				t.Error("the old primary's own database is still there")
			}
			c.Promote()
			sound(t, c)
		})
	}
}

// A standby that was stopped long ago gets what has changed since, and no more.
func TestRefreshStaleStandby(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			p := pgtest.Start(t, pgtest.Options{Major: major})
			p.BenchInit(3)
			backupRole(p)
			stale := p.Standby(pgtest.Options{Name: "stale"}, p.Conninfo("user=postgres"))
			stale.Start()
			p.Exec("CHECKPOINT")
			stale.WaitLSN(p.LSN())
			stale.Exec("CHECKPOINT")
			stale.Stop(pgserver.Fast)
			if err := p.Bench("-c", "2", "-t", "200").Wait(); err != nil {
				t.Fatal(err)
			}
			p.Exec("CREATE TABLE later AS SELECT n FROM generate_series(1, 3000) n")
			p.Exec("VACUUM pgbench_accounts")
			report := take(t, basebackup.Config{Conninfo: asRole(p), Dir: stale.Dir, Standby: true, Relay: p.Conninfo("user=postgres")})
			if report.Method != "page LSN" {
				t.Errorf("method is %q, because %s", report.Method, report.Reason)
			}
			verified(t, p, stale.Dir)
			c := open(t, p, stale.Dir, nil)
			streams(t, c, p)
			c.Promote()
			balanced(t, c)
			sound(t, c)
			stopsSound(t, c)
		})
	}
}

// A backup that was started as a test has pages of its own with any LSN.
func TestRefreshStarted(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major})
			s.BenchInit(2)
			cfg := basebackup.Config{Conninfo: backupRole(s), Dir: filepath.Join(pgtest.Dir(t), "backup")}
			take(t, cfg)
			c := open(t, s, cfg.Dir, nil)
			c.Exec("UPDATE pgbench_accounts SET abalance = 77 WHERE aid % 20 = 0; CREATE TABLE own ()")
			c.Stop(pgserver.Fast)
			if err := s.Bench("-c", "2", "-t", "50").Wait(); err != nil {
				t.Fatal(err)
			}
			if report := take(t, cfg); report.Method != "content" {
				t.Errorf("method is %q, because %s", report.Method, report.Reason)
			}
			c = proven(t, s, cfg.Dir)
			same(t, s, c)
			balanced(t, c)
			sound(t, c)
			stopsSound(t, c)
		})
	}
}

// Killed or told to stop at any moment, while everything changes: what is there
// cannot be started until it is whole, and each run goes on from the last.
func TestKilledAtAnyMoment(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			if text := os.Getenv("RIDEAU_SEED"); text != "" {
				fmt.Sscan(text, &seed)
			}
			t.Logf("RIDEAU_SEED=%d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			s := pgtest.Start(t, pgtest.Options{Major: major})
			s.BenchInit(2)
			cfg := takeConfig{Conninfo: backupRole(s), Dir: filepath.Join(pgtest.Dir(t), "backup"), MaxRate: 60 << 20}
			bench := s.Load()
			churn := startChurn(t, s, []string{"pg_default"}, "none")

			completed := 0
			for i := range 3 {
				phases := []basebackup.Phase{basebackup.Checkpoint, basebackup.Listing, basebackup.Copying, basebackup.Copying,
					basebackup.Copying, basebackup.Stopping, basebackup.WaitingWAL, basebackup.Syncing}
				phase := phases[random.IntN(len(phases))]
				bytes := int64(0)
				if phase == basebackup.Copying {
					bytes = random.Int64N(80 << 20)
				}
				sig := []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[random.IntN(2)]
				done := killAt(t, cfg, phase, bytes, sig)
				t.Logf("%d: %v in phase %q after %d bytes: complete %t", i, sig, phase, bytes, done)
				if done || complete(t, cfg.Dir) {
					completed++
					continue
				}
				unstartable(t, cfg.Dir)
			}
			if completed > 6 {
				t.Errorf("%d of the runs came to their end: this tests nothing", completed)
			}
			report := take(t, basebackup.Config{Conninfo: cfg.Conninfo, Dir: cfg.Dir})
			t.Logf("%s, %s; received %d of %d bytes", report.Method, report.Reason, report.Received, report.Bytes)
			churn.stop(t)
			bench.Stop(syscall.SIGTERM)
			clean(t, s, cfg.Dir)
			verified(t, s, cfg.Dir)
			c := open(t, s, cfg.Dir, nil)
			survived(t, c)
			stopsSound(t, c)
		})
	}
}

// killAt runs the program and ends it once it has come to the phase and so many
// bytes, or earlier; done is that it was complete before.
func killAt(t *testing.T, cfg takeConfig, phase basebackup.Phase, bytes int64, sig syscall.Signal) (done bool) {
	t.Helper()
	cmd := takeCommand(t, cfg)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	signaled := false
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		name, text, _ := strings.Cut(lines.Text(), ": ")
		var n int64
		fmt.Sscan(text, &n)
		if !signaled && basebackup.Phase(name) == phase && n >= bytes {
			signaled = true
			cmd.Process.Signal(sig)
		}
		said = append(said, lines.Text())
	}
	err = cmd.Wait()
	if err == nil {
		return true
	}
	if !signaled {
		t.Errorf("a run that nobody ended failed: %v: %s", err, said[max(0, len(said)-3):])
	}
	return false
}

// complete is that the control file is there, and then all that comes before it.
func complete(t *testing.T, dir string) bool {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "global", "pg_control")); err != nil {
		return false
	}
	for _, name := range []string{"backup_manifest", "backup_label", "PG_VERSION"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("there is a pg_control, but: %v", err)
		}
	}
	return true
}

// Connections that copy may be lost.
func TestWorkerTerminated(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	s.BenchInit(3)
	dir := filepath.Join(pgtest.Dir(t), "backup")
	r := takeBeside(t, basebackup.Config{Conninfo: backupRole(s), Dir: dir, MaxRate: slowly})
	for i := range 3 {
		r.watch.wait(t, basebackup.Copying, int64(i)*10<<20)
		pgtest.Wait(t, "a worker to end", func() (bool, string) {
			got := s.QueryValue(`SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
WHERE application_name LIKE 'rideau basebackup%' AND query LIKE 'COPY%' AND state = 'active' LIMIT 1) p`)
			return got == "1", got
		})
	}
	if _, err := r.end(t); err != nil {
		t.Fatal(err)
	}
	balanced(t, proven(t, s, dir))
}

// The session that began the backup may not.
func TestControlTerminated(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	s.BenchInit(3)
	cfg := basebackup.Config{Conninfo: backupRole(s), Dir: filepath.Join(pgtest.Dir(t), "backup"), MaxRate: slowly}
	r := takeBeside(t, cfg)
	r.watch.wait(t, basebackup.Copying, 40<<20)
	// It is the one that began first.
	s.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'rideau basebackup%' ORDER BY backend_start LIMIT 1")
	_, err := r.end(t)
	var control *basebackup.ControlError
	if !errors.As(err, &control) {
		t.Fatalf("the error is %v", err)
	}
	unstartable(t, cfg.Dir)
	cfg.MaxRate = 0
	report := take(t, cfg)
	// How much of it was in whole extents depends on how the workers shared it.
	if !report.Resumed || report.Received > report.Bytes-4<<20 {
		t.Errorf("it did not go on: %+v", report)
	}
	balanced(t, proven(t, s, cfg.Dir))
}

// A server that dies takes the backup with it, and not what was copied.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Major: 18})
	s.BenchInit(3)
	cfg := basebackup.Config{Conninfo: backupRole(s), Dir: filepath.Join(pgtest.Dir(t), "backup"), MaxRate: slowly}
	r := takeBeside(t, cfg)
	r.watch.wait(t, basebackup.Copying, 20<<20)
	s.Kill()
	_, err := r.end(t)
	if err == nil || !strings.Contains(err.Error(), s.Addr()) {
		t.Fatalf("the error does not name the server: %v", err)
	}
	unstartable(t, cfg.Dir)
	if _, err := basebackup.Take(t.Context(), cfg); !errors.As(err, new(*basebackup.ConnectError)) {
		t.Errorf("while the server is down: %v", err)
	}
	s.Start()
	cfg.MaxRate = 0
	if report := take(t, cfg); !report.Resumed {
		t.Errorf("it did not go on: %+v", report)
	}
	balanced(t, proven(t, s, cfg.Dir))
}

// A standby that becomes a primary meanwhile voids the backup.
func TestPromotedMeanwhile(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			p := pgtest.Start(t, pgtest.Options{Major: major})
			p.BenchInit(3)
			backupRole(p)
			s := p.Standby(pgtest.Options{Name: "s"}, p.Conninfo("user=postgres"))
			s.Start()
			s.WaitLSN(p.LSN())
			cfg := basebackup.Config{Conninfo: asRole(s), Dir: filepath.Join(pgtest.Dir(t), "backup"), MaxRate: slowly}
			r := takeBeside(t, cfg)
			r.watch.wait(t, basebackup.Copying, 10<<20)
			s.Promote()
			_, err := r.end(t)
			var promoted *basebackup.PromotedError
			if !errors.As(err, &promoted) {
				t.Fatalf("the error is %v", err)
			}
			unstartable(t, cfg.Dir)
			// The same again, of what is a primary now, on another timeline.
			s.Exec("UPDATE pgbench_accounts SET filler = 'new' WHERE aid % 30 = 0")
			cfg.MaxRate = 0
			report := take(t, cfg)
			t.Logf("%s: %s", report.Method, report.Reason)
			same(t, s, proven(t, s, cfg.Dir))
		})
	}
}

// A disk that is full, and has room again.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	s.BenchInit(3)
	small := pgtest.SmallFS(t, 30<<20)
	cfg := basebackup.Config{Conninfo: backupRole(s), Dir: filepath.Join(small, "backup")}
	// At once: a disk does not come back as a connection does.
	soon, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := basebackup.Take(soon, cfg)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), cfg.Dir) {
		t.Fatalf("the error is %v", err)
	}
	unstartable(t, cfg.Dir)
	pgtest.Grow(t, small, 400<<20)
	if report := take(t, cfg); !report.Resumed {
		t.Errorf("it did not go on: %+v", report)
	}
	balanced(t, proven(t, s, cfg.Dir))
}

// What an administrator has set for the role, so that nobody stays too long, is
// not for a backup.
func TestTimeoutsOfTheRole(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major})
			s.BenchInit(2)
			conninfo := backupRole(s)
			names := []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"}
			if major >= 14 {
				names = append(names, "idle_session_timeout")
			}
			if major >= 17 {
				names = append(names, "transaction_timeout")
			}
			for _, name := range names {
				s.Exec(fmt.Sprintf("ALTER ROLE bk SET %s = '500ms'", name))
			}
			s.Exec("ALTER ROLE bk SET search_path = public; ALTER ROLE bk SET DateStyle = 'German'; ALTER ROLE bk SET bytea_output = 'escape'")
			dir := filepath.Join(pgtest.Dir(t), "backup")
			report := take(t, basebackup.Config{Conninfo: conninfo, Dir: dir, MaxRate: 12 << 20})
			if report.Elapsed < 2*time.Second {
				t.Errorf("it took only %s: no timeout was put to the test", report.Elapsed)
			}
			verified(t, s, dir)
		})
	}
}

// Damage on the server is told, all of it, and the backup is made all the same.
func TestDamagedOnServer(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"autovacuum": "off"}})
	s.BenchInit(2)
	conninfo := backupRole(s)
	accounts := s.QueryValue("SELECT pg_relation_filepath('pgbench_accounts')")
	index := s.QueryValue("SELECT pg_relation_filepath('pgbench_accounts_pkey')")
	s.Stop(pgserver.Fast)
	damage(t, filepath.Join(s.Dir, accounts), 7*8192+4000, bytes.Repeat([]byte{0xA5}, 300)) // garbage
	damage(t, filepath.Join(s.Dir, accounts), 2500*8192+5000, nil)                          // one bit, in another extent
	damage(t, filepath.Join(s.Dir, index), 3*8192+4096, make([]byte, 4096))                 // half of it never written
	s.Start()

	dir := filepath.Join(pgtest.Dir(t), "backup")
	report, err := basebackup.Take(t.Context(), basebackup.Config{Conninfo: conninfo, Dir: dir})
	var corrupt *basebackup.CorruptError
	if !errors.As(err, &corrupt) || report == nil {
		t.Fatalf("the error is %v", err)
	}
	want := map[string]bool{fmt.Sprint(accounts, 7): true, fmt.Sprint(accounts, 2500): true, fmt.Sprint(index, 3): true}
	for _, p := range report.Corrupt {
		if !want[fmt.Sprint(p.Path, p.Block)] || p.Detail == "" {
			t.Errorf("reported: %+v", p)
		}
		delete(want, fmt.Sprint(p.Path, p.Block))
	}
	if len(want) > 0 || corrupt.Pages != 3 || report.CorruptAll != 3 {
		t.Errorf("not reported: %v, of %d pages", want, corrupt.Pages)
	}
	// It is complete: it starts, and all that is not damaged can be read.
	c := proven(t, s, dir)
	if got := c.QueryValue("SELECT count(*) FROM pgbench_tellers"); got != "20" {
		t.Errorf("there are %s tellers", got)
	}
	// The damage does not go away by a refresh, nor is it forgotten.
	report, err = basebackup.Take(t.Context(), basebackup.Config{Conninfo: conninfo, Dir: dir})
	if !errors.As(err, &corrupt) || report.CorruptAll != 3 {
		t.Errorf("a refresh (%+v) answers %v", report, err)
	}
}

// damage writes b into a file, or flips a bit if it is nil.
func damage(t *testing.T, name string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b == nil {
		b = make([]byte, 1)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 0x10
	}
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// Two backups do not write to one directory.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	s.BenchInit(2)
	cfg := basebackup.Config{Conninfo: backupRole(s), Dir: filepath.Join(pgtest.Dir(t), "backup"), MaxRate: slowly}
	r := takeBeside(t, cfg)
	r.watch.wait(t, basebackup.Copying, 5<<20)
	_, err := basebackup.Take(t.Context(), cfg)
	var locked *durable.LockedError
	if !errors.As(err, &locked) {
		t.Errorf("the second's error is %v", err)
	}
	if _, err := r.end(t); err != nil {
		t.Fatal(err)
	}
	verified(t, s, cfg.Dir)
}

// What is not ours to replace is not touched.
func TestRefusedUntouched(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	other := pgtest.Start(t, pgtest.Options{})
	conninfo := backupRole(s)
	refuse := func(t *testing.T, dir string, as any) {
		t.Helper()
		before := fingerprint(t, dir)
		_, err := basebackup.Take(t.Context(), basebackup.Config{Conninfo: conninfo, Dir: dir})
		if err == nil || !errors.As(err, as) {
			t.Errorf("the error is %v, not a %T", err, as)
		}
		if after := fingerprint(t, dir); after != before {
			t.Errorf("it was\n%s\nand is\n%s", before, after)
		}
	}
	t.Run("somebody's files", func(t *testing.T) {
		dir := pgtest.Dir(t)
		if err := os.WriteFile(filepath.Join(dir, "letter.txt"), []byte("dear"), 0o600); err != nil {
			t.Fatal(err)
		}
		refuse(t, dir, new(*basebackup.ForeignError))
	})
	t.Run("another system's backup", func(t *testing.T) {
		dir := filepath.Join(pgtest.Dir(t), "backup")
		take(t, basebackup.Config{Conninfo: backupRole(other.For(t)), Dir: dir})
		refuse(t, dir, new(*basebackup.MismatchError))
	})
	t.Run("another system's server", func(t *testing.T) {
		other.Server.Stop(pgserver.Fast)
		refuse(t, other.Dir, new(*basebackup.MismatchError))
	})
	// The server itself writes meanwhile, so not all can be the same.
	intact := func(t *testing.T) {
		t.Helper()
		if _, err := os.Stat(filepath.Join(s.Dir, "rideau-basebackup")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the server's directory was written to (%v)", err)
		}
		s := s.For(t)
		s.Restart()
		if got := s.QueryValue("SELECT 1"); got != "1" {
			t.Error(got)
		}
	}
	t.Run("the server's own", func(t *testing.T) {
		_, err := basebackup.Take(t.Context(), basebackup.Config{Conninfo: conninfo, Dir: s.Dir})
		var running *basebackup.RunningError
		if !errors.As(err, &running) || running.PID != s.PID() {
			t.Errorf("the error is %v", err)
		}
		intact(t)
	})
	t.Run("the server's own, from another machine", func(t *testing.T) {
		// A process that is not seen from here, as in a volume that is shared:
		// the first line of postmaster.pid names one that is not there.
		name := filepath.Join(s.Dir, "postmaster.pid")
		old, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := bytes.Cut(old, []byte("\n"))
		if err := os.WriteFile(name, append([]byte("99999999\n"), rest...), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = basebackup.Take(t.Context(), basebackup.Config{Conninfo: conninfo, Dir: s.Dir})
		if err := os.WriteFile(name, old, 0o600); err != nil {
			t.Fatal(err)
		}
		if !errors.As(err, new(*basebackup.LiveError)) {
			t.Errorf("the error is %v", err)
		}
		intact(t)
	})
	t.Run("a tablespace's location in use", func(t *testing.T) {
		s := s.For(t)
		where, taken := location(t, s), location(t, s)
		s.Exec(fmt.Sprintf("CREATE TABLESPACE there LOCATION '%s'", where))
		defer s.Server.Query(context.Background(), "DROP TABLE t; DROP TABLESPACE there")
		s.Exec("CREATE TABLE t TABLESPACE there AS SELECT 1")
		if err := os.WriteFile(filepath.Join(taken, "letter.txt"), []byte("dear"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			mapping map[string]string
			as      any
			dir     string
		}{
			{nil, new(*basebackup.LiveError), where}, // it would be where the server has it
			{map[string]string{where: where}, new(*basebackup.LiveError), where},
			{map[string]string{where: taken}, new(*basebackup.TablespaceError), taken},
			{map[string]string{where: "relative"}, new(*basebackup.ConfigError), where},
			{map[string]string{where: taken, "/nowhere": "/else"}, new(*basebackup.MappingError), taken},
		} {
			before := fingerprint(t, test.dir)
			dir := filepath.Join(pgtest.Dir(t), "backup")
			_, err := basebackup.Take(t.Context(), basebackup.Config{Conninfo: conninfo, Dir: dir, Tablespaces: test.mapping})
			if err == nil || !errors.As(err, test.as) {
				t.Errorf("with %v the error is %v, not a %T", test.mapping, err, test.as)
			}
			if after := fingerprint(t, test.dir); after != before {
				t.Errorf("with %v it was\n%s\nand is\n%s", test.mapping, before, after)
			}
		}
	})
}
