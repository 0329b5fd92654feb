package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"rideau/archive"
	"rideau/console"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
	"rideau/wal"
)

// installRideau makes this test binary a program that a server can run as its
// restore_command, whoever the server runs as.
func installRideau(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	path := filepath.Join(pgtest.Dir(t), "rideau") // TestMain answers to the name
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	return path
}

// A lostServer is gone, and has left a base backup and an archive that
// pg_receivewal made of its WAL.
type lostServer struct {
	major   int
	rideau  string
	archive string
	backup  *pgserver.Server // as a standby that was never started
	whole   string           // rows that are in completed segments
	all     string           // rows that were flushed
	last    string           // the last completed segment
}

func loseServer(t *testing.T, major int) *lostServer {
	l := &lostServer{major: major, rideau: installRideau(t), archive: pgtest.Dir(t)}
	primary := pgtest.Start(t, pgtest.Options{Major: major, InitdbArgs: []string{"--wal-segsize=1"}})
	receiver := pgtest.Go(t, major, "pg_receivewal", "--no-loop", "--no-password", "--status-interval=1", "-D", l.archive, "-d", primary.Conninfo(""))
	primary.WaitQuery("1", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")

	backup := primary.Standby(pgtest.Options{Name: "restored", Settings: map[string]string{"primary_conninfo": ""}}, "")
	l.backup = backup.Server

	primary.Exec("CREATE TABLE t AS SELECT g, repeat('x', 500) AS x FROM generate_series(1, 5000) g")
	l.whole = primary.QueryValue("SELECT count(*) FROM t")
	end := primary.QueryValue("SELECT pg_walfile_name(pg_switch_wal())")
	l.last = end
	pgtest.Wait(t, "pg_receivewal to complete "+end, func() (bool, string) {
		_, err := os.Stat(filepath.Join(l.archive, end))
		return err == nil, receiver.Output()
	})
	primary.Exec("INSERT INTO t SELECT g, '' FROM generate_series(1, 7) g")
	l.all = primary.QueryValue("SELECT count(*) FROM t")
	lsn := primary.LSN()
	primary.WaitQuery("t", fmt.Sprintf("SELECT bool_and(write_lsn >= '%s') FROM pg_stat_replication", lsn))
	primary.Kill()
	receiver.Wait()
	return l
}

// recover makes the backup a server in recovery to the end of the archive.
func (l *lostServer) recover(t *testing.T, fetch string, signal string) *pgserver.Server {
	t.Helper()
	restored := l.backup
	if err := os.Rename(filepath.Join(restored.Dir, "standby.signal"), filepath.Join(restored.Dir, signal)); err != nil && signal != "standby.signal" {
		t.Fatal(err)
	}
	err := restored.Set(map[string]string{"restore_command": l.rideau + " wal fetch " + fetch, "hot_standby": "on"})
	if err != nil {
		t.Fatal(err)
	}
	return restored
}

func serverLog(t *testing.T, s *pgserver.Server) string {
	t.Helper()
	text, err := os.ReadFile(s.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// serveArchive is what a relay's console does with its archive, between the
// answers that spoil names.
func serveArchive(t *testing.T, dir string, spoil func(name string) bool) string {
	t.Helper()
	c, err := console.Listen(console.Config{Addr: "localhost:0", Status: func() any { return nil }, WAL: archive.New(archive.Dir(dir))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	target, err := url.Parse("http://" + c.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if spoil(filepath.Base(r.URL.Path)) {
			panic(http.ErrAbortHandler)
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		s.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s.URL
}

var recoveryMajors = []int{15, 17, 18}

func eachRecovery(t *testing.T, test func(t *testing.T, l *lostServer)) {
	for _, major := range recoveryMajors {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			test(t, loseServer(t, major))
		})
	}
}

// promoted waits until s has ended recovery, and answers how many rows it has.
func promoted(t *testing.T, s *pgserver.Server) string {
	t.Helper()
	pgtest.Wait(t, "the server to open for writing", func() (bool, string) {
		value, err := s.QueryValue(t.Context(), "SELECT pg_is_in_recovery()")
		return err == nil && value == "f", fmt.Sprint(value, err)
	})
	rows, err := s.QueryValue(t.Context(), "SELECT count(*) FROM t")
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// Recovery replays all whole segments of the archive, finds its end, and the
// server opens for writing on a new timeline.
func TestRecoveryFromDirectory(t *testing.T) {
	eachRecovery(t, func(t *testing.T, l *lostServer) {
		s := l.recover(t, l.archive+` %f "%p"`, "recovery.signal")
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := promoted(t, s); got != l.whole {
			t.Errorf("%s rows, want the %s of the whole segments", got, l.whole)
		}
		if strings.Contains(serverLog(t, s), "rideau wal fetch:") {
			t.Errorf("rideau spoke:\n%s", s.Log(100))
		}
		checkAndDump(t, l)
	})
}

// With the partial segment nothing that the receiver wrote is lost.
func TestRecoveryWithPartial(t *testing.T) {
	eachRecovery(t, func(t *testing.T, l *lostServer) {
		s := l.recover(t, "--partial "+l.archive+` %f "%p"`, "recovery.signal")
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := promoted(t, s); got != l.all {
			t.Errorf("%s rows, want all %s", got, l.all)
		}
	})
}

func TestRecoveryFromRelay(t *testing.T) {
	eachRecovery(t, func(t *testing.T, l *lostServer) {
		var asked sync.Map
		address := serveArchive(t, l.archive, func(name string) bool {
			_, again := asked.LoadOrStore(name, true)
			return !again // each first answer is cut off: it is asked for again
		})
		s := l.recover(t, address+` %f "%p"`, "recovery.signal")
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := promoted(t, s); got != l.whole {
			t.Errorf("%s rows, want the %s of the whole segments", got, l.whole)
		}
	})
}

// A source that fails in the middle stops recovery. The server does not
// promote; once the source is back it goes on, and has everything.
func TestRecoveryStopsWhereSourceFails(t *testing.T) {
	eachRecovery(t, func(t *testing.T, l *lostServer) {
		var failing atomic.Bool
		failing.Store(true)
		address := serveArchive(t, l.archive, func(name string) bool { return failing.Load() && name == l.last })
		s := l.recover(t, "--timeout 1s "+address+` %f "%p"`, "recovery.signal")
		if err := s.Start(t.Context()); err == nil {
			pgtest.Wait(t, "the server to give up", func() (bool, string) { return !s.Running(), s.Log(20) })
		}
		log := serverLog(t, s)
		for _, want := range []string{"could not get WAL from", "could not restore file \"" + l.last + "\" from archive", "exit code 255"} {
			if !strings.Contains(log, want) {
				t.Errorf("the log does not say %q:\n%s", want, log)
			}
		}
		if strings.Contains(log, "selected new timeline") {
			t.Errorf("the server was promoted:\n%s", log)
		}

		failing.Store(false)
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := promoted(t, s); got != l.whole {
			t.Errorf("%s rows, want the %s of the whole segments", got, l.whole)
		}
	})
}

// A server that is told to stop while its restore_command waits for a relay
// stops, and finds nothing to complain about.
func TestRecoveryInterrupted(t *testing.T) {
	l := loseServer(t, 17)
	asked := make(chan struct{}, 1000)
	address := serveArchive(t, l.archive, func(name string) bool {
		if name == l.last {
			asked <- struct{}{}
		}
		return name == l.last
	})
	s := l.recover(t, "--timeout 10min "+address+` %f "%p"`, "recovery.signal")
	started := make(chan error, 1)
	go func() { started <- s.Start(t.Context()) }()
	<-asked
	<-asked // it is trying again
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(pgserver.Fast); err != nil {
		t.Fatal(err)
	}
	log := serverLog(t, s)
	if !strings.Contains(log, "database system is shut down") || strings.Contains(log, "FATAL:  could not restore") {
		t.Errorf("the server did not stop in order:\n%s", log)
	}
}

// A standby whose archive cannot be reached stays up, and streams.
func TestStandbyWithoutArchive(t *testing.T) {
	rideau := installRideau(t)
	primary := pgtest.Start(t, pgtest.Options{Major: 17})
	standby := primary.Standby(pgtest.Options{Name: "s1", Settings: map[string]string{
		"restore_command": rideau + ` wal fetch http://127.0.0.1:1 %f "%p"`,
	}}, primary.Conninfo(""))
	standby.Start()
	primary.Exec("CREATE TABLE t ()")
	standby.WaitLSN(primary.LSN())
	if log := serverLog(t, standby.Server); !strings.Contains(log, "rideau wal fetch: could not get WAL from") {
		t.Errorf("restore_command was not asked, or did not say why it has nothing:\n%s", log)
	}
}

// SIGTERM while waiting for a relay: the status that PostgreSQL takes for its
// own doing, at once and without a word.
func TestFetchSIGTERM(t *testing.T) {
	asked := make(chan struct{}, 1000)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		panic(http.ErrAbortHandler)
	}))
	defer s.Close()
	for signal, want := range map[syscall.Signal]int{syscall.SIGTERM: 143, syscall.SIGINT: 130} {
		var stderr strings.Builder
		cmd := exec.Command(installRideau(t), "wal", "fetch", s.URL, "000000010000000000000001", "x")
		cmd.Dir = t.TempDir()
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-asked
		<-asked
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != want || stderr.Len() > 0 {
			t.Errorf("%v: exit status %d and %q, want %d", signal, got, stderr.String(), want)
		}
	}
}

// checkAndDump looks at the archive as a person would, and with pg_waldump.
func checkAndDump(t *testing.T, l *lostServer) {
	t.Helper()
	status := func(args ...string) (stdout, stderr string, status int) {
		t.Helper()
		cmd := exec.Command(l.rideau, args...)
		var out, complaints strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &complaints
		cmd.Run()
		return out.String(), complaints.String(), cmd.ProcessState.ExitCode()
	}
	run := func(args ...string) string {
		t.Helper()
		out, complaints, code := status(args...)
		if complaints != "" || code != 0 {
			t.Errorf("rideau %s: exit status %d, %s", strings.Join(args, " "), code, complaints)
		}
		return out
	}
	if out := run("wal", "check", "--deep", l.archive); !strings.Contains(out, "Whole, and every record verified: from ") {
		t.Errorf("check:\n%s", out)
	}
	theirs := pgtest.Run(t, l.major, "pg_waldump", filepath.Join(l.archive, l.last))
	ours := run("wal", "dump", filepath.Join(l.archive, l.last))
	if got, want := lsns(ours), lsns(theirs); got != want || got == "" {
		t.Errorf("dump has records at\n%s\npg_waldump at\n%s", got, want)
	}
	first, _, _ := strings.Cut(lsns(ours), "\n")
	short := mustParse(t, first).String()
	if out := run("wal", "dump", "--json", "--limit", "1", "--start", first, l.archive); !strings.HasPrefix(out, `{"lsn":"`+short+`"`) || strings.Count(out, "\n") != 1 {
		t.Errorf("dump from %s:\n%s", first, out)
	}
	if out := run("wal", "dump", "--start", first, "--end", first, l.archive); out != "" {
		t.Errorf("dump from %s to there:\n%s", first, out)
	}
	if out := run("wal", "dump", "--stats", "--rmgr", "transaction", l.archive); !strings.Contains(out, "Transaction/COMMIT") || strings.Contains(out, "Heap/") {
		t.Errorf("stats:\n%s", out)
	}
	if out := run("wal", "dump", "--stats", "--json", l.archive); !strings.HasPrefix(out, `{"kinds":[{"kind":"Heap/INSERT`) {
		t.Errorf("stats:\n%s", out)
	}
	all := lsns(run("wal", "dump", l.archive))

	// Now it is damaged: what can be read is read, and the rest is named.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(l.archive)); err != nil {
		t.Fatal(err)
	}
	_, end, err := wal.MinSegmentSize.ParseFileName(l.last)
	if err != nil {
		t.Fatal(err)
	}
	torn := wal.MinSegmentSize.FileName(1, end-2*wal.LSN(wal.MinSegmentSize))
	text, err := os.ReadFile(filepath.Join(dir, torn))
	if err != nil {
		t.Fatal(err)
	}
	text[700_000] ^= 1
	if err := os.WriteFile(filepath.Join(dir, torn), text, 0o600); err != nil {
		t.Fatal(err)
	}
	report, complaints, code := status("wal", "check", "--deep", dir)
	if code != 1 || complaints != "" || !strings.Contains(report, "corrupt   "+torn+" at ") || !strings.HasSuffix(report, "Not whole: 1 segment corrupt.\n") {
		t.Errorf("check of a corrupt segment: status %d, %s\n%s", code, complaints, report)
	}
	compareDamaged := func(what, complaint string) {
		t.Helper()
		out, complaints, code := status("wal", "dump", dir)
		if code != 1 || !strings.Contains(complaints, complaint) || strings.Count(complaints, "\n") != 1 {
			t.Errorf("dump %s: status %d, %s", what, code, complaints)
		}
		some := lsns(out)
		same := 0
		for same < min(len(some), len(all)) && some[same] == all[same] {
			same++
		}
		if len(some) >= len(all) || !strings.HasSuffix(all, some[strings.LastIndex(some[:same], "\n")+1:]) {
			t.Errorf("dump %s has not the records before and after it", what)
		}
	}
	compareDamaged("with a corrupt record", "rideau wal dump: invalid WAL at ")
	if err := os.Remove(filepath.Join(dir, torn)); err != nil {
		t.Fatal(err)
	}
	compareDamaged("with a hole", fmt.Sprintf("WAL is missing from %s to %s", wal.MinSegmentSize.Start(end-2*wal.LSN(wal.MinSegmentSize)), end-wal.LSN(wal.MinSegmentSize)))
}

func mustParse(t *testing.T, s string) wal.LSN {
	t.Helper()
	lsn, err := wal.ParseLSN(s)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

// lsns are where the records begin that a dump shows.
func lsns(dump string) string {
	var b strings.Builder
	for line := range strings.Lines(dump) {
		if _, rest, ok := strings.Cut(line, "lsn: "); ok {
			lsn, _, _ := strings.Cut(rest, ",")
			b.WriteString(lsn + "\n")
		}
	}
	return b.String()
}
