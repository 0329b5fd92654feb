package pgtest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"rideau/internal/pgtest"
)

// The tools that the tests of other packages use, against every version: the
// version's own, or where it has none those of a newer one.
func TestTools(t *testing.T) {
	for _, major := range pgtest.Majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major})
			dir := pgtest.Dir(t)

			s.BenchInit(1)
			receiver := pgtest.Go(t, major, "pg_receivewal", "-D", dir, "-d", s.Conninfo(""), "--synchronous", "--no-loop")
			s.WaitQuery("1", "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pg_receivewal' AND state = 'streaming'")
			if err := s.Bench("-N", "-c", "2", "-t", "100").Wait(); err != nil {
				t.Errorf("pgbench: %v", err)
			}
			if got := s.QueryValue("SELECT count(*) FROM pgbench_history"); got != "200" {
				t.Errorf("pgbench made %s rows, want 200", got)
			}
			lsn := s.LSN()
			s.WaitQuery("t", "SELECT flush_lsn >= $1::pg_lsn FROM pg_stat_replication", lsn.String())
			receiver.Stop(syscall.SIGINT)
			if files, err := os.ReadDir(dir); err != nil || len(files) == 0 {
				t.Errorf("pg_receivewal has left %d files, %v", len(files), err)
			}

			backup := filepath.Join(pgtest.Dir(t), "backup")
			pgtest.Run(t, major, "pg_basebackup", "-D", backup, "-c", "fast", "-X", "stream", "-R", "-d", s.Conninfo(""))
			standby := pgtest.Open(t, pgtest.Options{
				Dir: backup, Name: "copy",
				// -R of 17 writes options that libpq of 16 does not know.
				Settings: map[string]string{"primary_conninfo": s.Conninfo("")},
			})
			standby.Start()
			s.Exec("CREATE TABLE after_backup ()")
			standby.WaitLSN(s.LSN())
			standby.Exec("SELECT * FROM after_backup")

			out := pgtest.Run(t, major, "psql", "-XAtd", s.Conninfo("replication=true"), "-c", "IDENTIFY_SYSTEM")
			if id := s.QueryValue("SELECT system_identifier FROM pg_control_system()"); !strings.HasPrefix(out, id+"|1|") {
				t.Errorf("IDENTIFY_SYSTEM says %q, want system identifier %s, timeline 1", out, id)
			}
		})
	}
}

// Versions with their own full set of programs, which alone can read what that
// version writes.
func TestToolsThatNeedTheirOwnVersion(t *testing.T) {
	for _, major := range []int{13, 15, 17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major})
			s.Exec("CREATE EXTENSION pg_stat_statements; CREATE EXTENSION pageinspect") // contrib
			standby := s.Standby(pgtest.Options{Name: "s"}, s.Conninfo(""))
			standby.Start()
			s.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
			standby.WaitLSN(s.LSN())
			standby.Promote()
			s.Exec("INSERT INTO t VALUES (-1)")
			standby.Exec("INSERT INTO t VALUES (-2); CHECKPOINT")
			segment := s.QueryValue("SELECT pg_walfile_name(pg_current_wal_lsn())")
			s.Stop(0)

			if out := pgtest.Run(t, major, "pg_waldump", "-n", "5", filepath.Join(s.Dir, "pg_wal", segment)); !strings.Contains(out, "rmgr:") {
				t.Errorf("pg_waldump printed no records:\n%s", out)
			}
			pgtest.Run(t, major, "pg_rewind", "-D", s.Dir, "--source-server", standby.Conninfo(""))
			if err := os.WriteFile(filepath.Join(s.Dir, "standby.signal"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			s = pgtest.Open(t, pgtest.Options{Dir: s.Dir, Settings: map[string]string{"primary_conninfo": standby.Conninfo("")}})
			s.Start()
			s.WaitLSN(standby.LSN())
			if got := s.QueryValue("SELECT string_agg(i::text, ' ') FROM t WHERE i < 0"); got != "-2" {
				t.Errorf("after pg_rewind the old primary has rows %q, want those of the new one", got)
			}

			backup := filepath.Join(pgtest.Dir(t), "backup")
			pgtest.Run(t, major, "pg_basebackup", "-D", backup, "-c", "fast", "-d", standby.Conninfo(""))
			pgtest.Run(t, major, "pg_verifybackup", backup)
		})
	}
}

func TestSmallFS(t *testing.T) {
	dir := pgtest.SmallFS(t, 1<<20)
	name := filepath.Join(dir, "f")
	err := os.WriteFile(name, make([]byte, 2<<20), 0o600)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("writing 2 MB into 1 MB returned %v, want ENOSPC", err)
	}
	pgtest.Grow(t, dir, 4<<20)
	if err := os.WriteFile(name, make([]byte, 2<<20), 0o600); err != nil {
		t.Errorf("after Grow: %v", err)
	}
}

// Whoever servers run as can use a folder of Dir, and nothing is left of it.
func TestDir(t *testing.T) {
	var dir string
	t.Run("a test", func(t *testing.T) {
		dir = pgtest.Dir(t)
		pgtest.Run(t, 15, "psql", "-Xqc", "\\echo x", "-o", filepath.Join(dir, "out"), "-d", pgtest.Start(t, pgtest.Options{}).Conninfo(""))
		if _, err := os.Stat(filepath.Join(dir, "out")); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the test its folder is still there: %v", err)
	}
}

// A Proxy before a server that sends back what it gets.
func TestProxy(t *testing.T) {
	const moment = 100 * time.Millisecond // in which loopback would surely have delivered

	// start returns a proxy and a connection through it.
	start := func(t *testing.T) (*pgtest.Proxy, net.Conn) {
		p := pgtest.NewProxy(t, echo(t))
		c, err := net.Dial("tcp", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		say(t, c, "hello")
		hear(t, c, "hello")
		return p, c
	}

	t.Run("Cut", func(t *testing.T) {
		t.Parallel()
		p, c := start(t)
		p.Cut()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a cut connection reads %v, want a reset", err)
		}
		again, err := net.Dial("tcp", p.Addr())
		if err == nil {
			defer again.Close()
			_, err = again.Read(make([]byte, 1))
		}
		if err == nil {
			t.Error("a new connection is served while the proxy is cut")
		}
		p.Heal()
		healed, err := net.Dial("tcp", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer healed.Close()
		say(t, healed, "again")
		hear(t, healed, "again")
	})

	for _, d := range []pgtest.Direction{pgtest.Up, pgtest.Down, pgtest.Both} {
		t.Run("Freeze "+d.String(), func(t *testing.T) {
			t.Parallel()
			p, c := start(t)
			up := p.Carried(pgtest.Up)
			p.Freeze(d)
			say(t, c, "anyone?")
			silent(t, c, moment)
			if arrived := p.Carried(pgtest.Up) > up; arrived != (d == pgtest.Down) {
				t.Errorf("with %v frozen, that the server got the bytes is %v", d, arrived)
			}
			p.Heal()
			hear(t, c, "anyone?")
		})
	}

	t.Run("cut while frozen", func(t *testing.T) {
		t.Parallel()
		p, c := start(t)
		p.Freeze(pgtest.Both)
		say(t, c, "lost")
		p.Cut()
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a cut connection has delivered bytes")
		}
		pgtest.Wait(t, "the proxy to let go of the connection", func() (bool, string) {
			return p.Connections() == 0, fmt.Sprintf("it has %d", p.Connections())
		})
	})

	t.Run("Delay takes time and no bandwidth", func(t *testing.T) {
		t.Parallel()
		p, c := start(t)
		p.Delay(pgtest.Up, moment)
		p.Delay(pgtest.Down, moment)
		begun := time.Now()
		text := strings.Repeat("x", 1<<20)
		go io.WriteString(c, text)
		hear(t, c, text)
		took := time.Since(begun)
		if took < 2*moment {
			t.Errorf("there and back took %v, want at least %v", took, 2*moment)
		}
		if took > 20*moment {
			t.Errorf("1 MB took %v: the delay was paid more than once", took)
		}
	})

	t.Run("Rate", func(t *testing.T) {
		t.Parallel()
		p, c := start(t)
		p.Rate(1 << 20)
		begun := time.Now()
		text := strings.Repeat("x", 256<<10)
		go io.WriteString(c, text)
		hear(t, c, text)
		if took := time.Since(begun); took < 200*time.Millisecond || took > 5*time.Second {
			t.Errorf("256 kB at 1 MB/s took %v", took)
		}
		p.Rate(0)
		say(t, c, "free")
		hear(t, c, "free")
	})

	t.Run("RateAll", func(t *testing.T) {
		t.Parallel()
		p, c := start(t)
		other, err := net.Dial("tcp", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		p.RateAll(1 << 20)
		begun := time.Now()
		text := strings.Repeat("x", 128<<10)
		go io.WriteString(c, text)
		go io.WriteString(other, text)
		hear(t, c, text)
		hear(t, other, text)
		if took := time.Since(begun); took < 200*time.Millisecond || took > 5*time.Second {
			t.Errorf("twice 128 kB at 1 MB/s for both took %v", took)
		}
		p.RateAll(0)
		say(t, c, "free")
		hear(t, c, "free")
	})

	t.Run("half-closed connections go on", func(t *testing.T) {
		t.Parallel()
		_, c := start(t)
		say(t, c, "last words")
		c.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(c)
		if string(got) != "last words" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

// A standby is cut off and finds its way back.
func TestProxyBeforeServer(t *testing.T) {
	primary := pgtest.Start(t, pgtest.Options{})
	proxy := pgtest.NewProxy(t, primary.Addr())
	standby := primary.Standby(pgtest.Options{Name: "s"}, proxy.Conninfo(primary))
	standby.Start()
	primary.Exec("CREATE TABLE t ()")
	standby.WaitLSN(primary.LSN())

	proxy.Cut()
	primary.WaitQuery("0", "SELECT count(*) FROM pg_stat_replication")
	primary.Exec("INSERT INTO t DEFAULT VALUES")
	proxy.Heal()
	standby.WaitLSN(primary.LSN())
	if got := standby.QueryValue("SELECT count(*) FROM t"); got != "1" {
		t.Errorf("the standby has %s rows, want 1", got)
	}
}

// Helpers fail the test and say what they waited for; cleaning up fails nothing.
func TestHelpersFail(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	tests := []struct {
		name string
		f    func(*pgtest.Server)
		want string
	}{
		{"what the server said", func(s *pgtest.Server) { s.Exec("SELECT nonsense") }, `column "nonsense" does not exist`},
		{"what cannot be done", func(s *pgtest.Server) { s.Stop(0); s.Pause() }, "it is not running"},
	}
	for _, tt := range tests {
		f := &fake{TB: t}
		done := make(chan struct{})
		go func() { // Fatal ends the goroutine
			defer close(done)
			tt.f(s.For(f))
		}()
		<-done
		if !strings.Contains(f.said, tt.want) {
			t.Errorf("%s: the test failed with %q, want %q", tt.name, f.said, tt.want)
		}
	}
}

// A fake test records how it failed.
type fake struct {
	testing.TB
	said string
}

func (f *fake) Helper()           {}
func (f *fake) Fatal(args ...any) { f.said = fmt.Sprint(args...); runtime.Goexit() }
func (f *fake) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// echo starts a server that sends back what it gets, and returns its address.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, c net.Conn, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(pgtest.Patience))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, []byte(want)) {
		t.Fatalf("heard %d bytes, %v; want the %d that were said", n, err, len(want))
	}
}

func silent(t *testing.T, c net.Conn, d time.Duration) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(d))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v, from a frozen connection", n, err)
	}
}
