// Package pgtest gives tests real PostgreSQL servers, and ways to hurt them.
//
//	func TestReplay(t *testing.T) {
//		for _, major := range pgtest.Majors {
//			t.Run(fmt.Sprint(major), func(t *testing.T) {
//				t.Parallel()
//				primary := pgtest.Start(t, pgtest.Options{Major: major})
//				proxy := pgtest.NewProxy(t, primary.Addr())
//				standby := primary.Standby(pgtest.Options{Name: "s1"}, proxy.Conninfo(primary))
//				standby.Start()
//				primary.Exec("CREATE TABLE t ()")
//				standby.WaitLSN(primary.LSN())
//				proxy.Cut()
//				...
//
// It is a thin layer over package pgserver, whose rules hold here too: who
// servers run as, how they end, that they keep their ports. What it adds is that
// helpers fail the test themselves and name what they waited for, that servers
// are removed with the test and their logs shown if it failed, and that a server
// version that is not installed is a failure, never a skip.
//
// Helpers that wait give up after [Patience]. All of the package is safe in
// parallel tests, and in packages tested in parallel.
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rideau/internal/pgserver"
	"rideau/wal"
)

// Majors lists the major versions that Rideau supports.
var Majors = pgserver.Majors

// Some are the oldest, one in the middle and the newest of Majors, Ends the
// oldest and the newest: for tests that take long, of what the versions in
// between are not known to do differently. Both are all of them if
// RIDEAU_ALL_MAJORS is set.
var (
	Some = unlessAll(Majors[0], 15, Majors[len(Majors)-1])
	Ends = unlessAll(Majors[0], Majors[len(Majors)-1])
)

func unlessAll(majors ...int) []int {
	if os.Getenv("RIDEAU_ALL_MAJORS") != "" {
		return Majors
	}
	return majors
}

// Options are pgserver's.
type Options = pgserver.Options

// Patience is how long helpers wait for what should take moments, on a machine
// that may be busy with other tests.
const Patience = 60 * time.Second

// A Server is a server that belongs to a test. Methods with the name of one of
// pgserver's do the same and fail the test instead of returning an error; the
// embedded one is there for those that are expected to fail. They end the test
// (Fatal), so goroutines other than the test's must use the embedded server.
type Server struct {
	*pgserver.Server
	t testing.TB
}

// New makes a server and does not start it.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	s, err := pgserver.New(ctx, o)
	return adopt(t, s, err)
}

// Start makes a server and starts it.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := New(t, o)
	s.Start()
	return s
}

// Open takes over a data directory that exists, see pgserver.Open.
func Open(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := pgserver.Open(o)
	return adopt(t, s, err)
}

func adopt(t testing.TB, s *pgserver.Server, err error) *Server {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", s, s.Log(30))
		}
		if err := s.Remove(); err != nil {
			t.Errorf("could not remove %s: %v", s, err)
		}
	})
	return &Server{s, t}
}

// Standby makes a standby of s and does not start it.
func (s *Server) Standby(o Options, primaryConninfo string) *Server {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), Patience)
	defer cancel()
	standby, err := s.Server.Standby(ctx, o, primaryConninfo)
	return adopt(s.t, standby, err)
}

// For returns the same server for use by a subtest, which must end before the
// test that the server belongs to.
func (s *Server) For(t testing.TB) *Server { return &Server{s.Server, t} }

func (s *Server) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.t.Context(), Patience)
}

func (s *Server) Start() {
	s.t.Helper()
	ctx, cancel := s.ctx()
	defer cancel()
	s.check(s.Server.Start(ctx))
}

func (s *Server) Stop(mode pgserver.StopMode) {
	s.t.Helper()
	s.check(s.Server.Stop(mode))
}

// Restart is a fast stop and a start.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop(pgserver.Fast)
	s.Start()
}

func (s *Server) Kill() {
	s.t.Helper()
	s.check(s.Server.Kill())
}

func (s *Server) Pause() {
	s.t.Helper()
	s.check(s.Server.Pause())
}

func (s *Server) Resume() {
	s.t.Helper()
	s.check(s.Server.Resume())
}

func (s *Server) Reload() {
	s.t.Helper()
	s.check(s.Server.Reload())
}

func (s *Server) Set(settings map[string]string) {
	s.t.Helper()
	s.check(s.Server.Set(settings))
}

func (s *Server) Promote() {
	s.t.Helper()
	ctx, cancel := s.ctx()
	defer cancel()
	s.check(s.Server.Promote(ctx))
}

// Query returns the rows as text.
func (s *Server) Query(sql string, args ...any) [][]string {
	s.t.Helper()
	ctx, cancel := s.ctx()
	defer cancel()
	rows, err := s.Server.Query(ctx, sql, args...)
	if err != nil {
		s.t.Fatalf("on %s: %v\n%s", s, err, sql)
	}
	return rows
}

// Exec runs sql for what it does.
func (s *Server) Exec(sql string, args ...any) {
	s.t.Helper()
	s.Query(sql, args...)
}

// QueryValue returns the one value that sql yields.
func (s *Server) QueryValue(sql string, args ...any) string {
	s.t.Helper()
	ctx, cancel := s.ctx()
	defer cancel()
	v, err := s.Server.QueryValue(ctx, sql, args...)
	if err != nil {
		s.t.Fatalf("on %s: %v\n%s", s, err, sql)
	}
	return v
}

// LSN is the end of a primary's flushed WAL, or of what a standby has replayed.
func (s *Server) LSN() wal.LSN {
	s.t.Helper()
	ctx, cancel := s.ctx()
	defer cancel()
	lsn, err := s.Server.LSN(ctx)
	s.check(err)
	return lsn
}

// WaitLSN waits until a primary has flushed, or a standby replayed, up to lsn.
func (s *Server) WaitLSN(lsn wal.LSN) {
	s.t.Helper()
	ctx, cancel := s.ctx()
	defer cancel()
	if err := s.Server.WaitLSN(ctx, lsn); err != nil {
		s.t.Fatalf("%v\nthe end of its log:\n%s", err, s.Log(20))
	}
}

// WaitQuery waits until sql yields one row with one value, and that is want.
func (s *Server) WaitQuery(want, sql string, args ...any) {
	s.t.Helper()
	ctx, cancel := s.ctx()
	defer cancel()
	got := "nothing yet"
	Wait(s.t, fmt.Sprintf("%s to answer %q", s, want), func() (bool, string) {
		v, err := s.Server.QueryValue(ctx, sql, args...)
		if err != nil {
			got = err.Error()
		} else {
			got = strconv.Quote(v)
		}
		return err == nil && v == want, "it answers " + got + " to " + sql
	})
}

// Wait calls done until it is true. If it takes longer than Patience the test
// ends, with what was waited for and how things stood.
func Wait(t testing.TB, what string, done func() (ok bool, state string)) {
	t.Helper()
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, state := done()
		if ok {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("waited %v for %s: %s", Patience, what, state)
		case <-t.Context().Done():
			t.Fatalf("the test ended while waiting for %s: %s", what, state)
		case <-tick.C:
		}
	}
}

// Dir makes a folder that servers and tools can write to, whoever they run as;
// t.TempDir's cannot be entered by others than its owner. It is removed with
// the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, remove, err := pgserver.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := remove(); err != nil {
			t.Errorf("could not remove %q: %v", dir, err)
		}
	})
	return dir
}

// FreePort reserves a port of 127.0.0.1 for as long as the test runs.
func FreePort(t testing.TB) int {
	t.Helper()
	port, release, err := pgserver.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return port
}

// Command prepares a client program for a server of the major version, see
// pgserver.Command. It is killed when the test ends.
func Command(t testing.TB, major int, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd, err := pgserver.Command(t.Context(), major, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return cmd
}

// Run runs a client program to its end and returns its standard output. That it
// fails, fails the test with what it said.
func Run(t testing.TB, major int, name string, args ...string) string {
	t.Helper()
	cmd := Command(t, major, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// A Process is a program that runs beside the test.
type Process struct {
	Cmd  *exec.Cmd
	t    testing.TB
	out  buffer
	done chan struct{}
	err  error // valid once done is closed
}

// Go starts a client program beside the test: pg_receivewal, pgbench. It is
// killed when the test ends; what it said is shown if the test failed.
func Go(t testing.TB, major int, name string, args ...string) *Process {
	t.Helper()
	p := &Process{Cmd: Command(t, major, name, args...), t: t, done: make(chan struct{})}
	p.Cmd.Stdout, p.Cmd.Stderr = &p.out, &p.out
	started := make(chan error)
	go func() {
		err := p.Cmd.Start()
		started <- err
		if err == nil {
			p.err = p.Cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%s said:\n%s", name, p.Output())
		}
	})
	return p
}

// Output is what the program has said so far.
func (p *Process) Output() string { return p.out.String() }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits until the program has ended and returns how.
func (p *Process) Wait() error {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(Patience):
		p.t.Fatalf("waited %v for %s to end; it said:\n%s", Patience, p.Cmd.Args[0], p.Output())
	}
	return p.err
}

// Stop sends the signal and waits until the program has ended. It returns how,
// which after most signals is an error.
func (p *Process) Stop(sig syscall.Signal) error {
	p.t.Helper()
	if err := p.Cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
	return p.Wait()
}

// A buffer may be read while a program writes to it.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// BenchInit fills the tables of pgbench at the scale, on a server that runs.
func (s *Server) BenchInit(scale int) {
	s.t.Helper()
	Run(s.t, s.Major, "pgbench", append([]string{"-i", "-q", "-s", strconv.Itoa(scale)}, s.toolArgs()...)...)
}

// Bench starts pgbench on the server. Without args it runs until the test ends
// or its Process is stopped.
func (s *Server) Bench(args ...string) *Process {
	s.t.Helper()
	if len(args) == 0 {
		args = []string{"-N", "-c", "4", "-T", "86400"}
	}
	return Go(s.t, s.Major, "pgbench", append(append([]string{"-n"}, args...), s.toolArgs()...)...)
}

// Load writes to the server until the test ends or its Process is stopped: with
// pgbench, whose tables are there, and so slowly (loadRate) that others get most of
// the machine.
func (s *Server) Load() *Process {
	s.t.Helper()
	return s.Bench("-c", "2", "-R", loadRate, "-T", "86400")
}

// loadRate is transactions a second. As fast as it can, pgbench and what serves
// it take both processors of a small machine, and every other test waits.
const loadRate = "300"

func (s *Server) toolArgs() []string {
	return []string{"-h", "127.0.0.1", "-p", strconv.Itoa(s.Port), "-U", s.User, "postgres"}
}

// hostPort splits an address that we made ourselves.
func hostPort(addr string) (host, port string) {
	host, port, _ = net.SplitHostPort(addr)
	return host, port
}

// Conninfo is the server's connection string, by way of the proxy.
func (p *Proxy) Conninfo(s *Server) string {
	host, port := hostPort(p.Addr())
	return strings.TrimSpace(s.Server.Conninfo("host=" + host + " port=" + port))
}
