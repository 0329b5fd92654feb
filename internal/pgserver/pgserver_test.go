package pgserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rideau/internal/pgserver"
)

// The life of servers of every version: a primary, a standby that streams from
// it, a power cut, recovery, a promotion.
func TestLife(t *testing.T) {
	for _, major := range pgserver.Majors {
		t.Run(strconv.Itoa(major), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			value := func(s *pgserver.Server, sql string) string {
				t.Helper()
				v, err := s.QueryValue(ctx, sql)
				check(err)
				return v
			}

			primary := create(t, pgserver.Options{Major: major, Name: "p"})
			check(primary.Start(ctx))
			if got := value(primary, "SHOW server_version_num"); !strings.HasPrefix(got, strconv.Itoa(major)) {
				t.Errorf("server_version_num is %s, want that of %d", got, major)
			}
			_, err := primary.Query(ctx, "CREATE TABLE t (i int); INSERT INTO t SELECT generate_series(1, 1000)")
			check(err)

			standby, err := primary.Standby(ctx, pgserver.Options{Name: "s"}, primary.Conninfo(""))
			check(err)
			remove(t, standby)
			check(standby.Start(ctx))
			_, err = primary.Query(ctx, "INSERT INTO t SELECT generate_series(1001, 2000)")
			check(err)
			lsn, err := primary.LSN(ctx)
			check(err)
			check(standby.WaitLSN(ctx, lsn))
			if got := value(standby, "SELECT count(*) FROM t"); got != "2000" {
				t.Errorf("the standby has %s rows, want 2000", got)
			}
			if got := value(primary, "SELECT application_name FROM pg_stat_replication"); got != "s" {
				t.Errorf("the standby streams as %q, want its name", got)
			}

			check(primary.Kill())
			if primary.Running() {
				t.Error("the primary says that it runs after Kill")
			}
			check(standby.Promote(ctx))
			_, err = standby.Query(ctx, "INSERT INTO t VALUES (2001)")
			check(err)

			// Killed, it recovers at its next start, on the same port.
			check(primary.Start(ctx))
			if got := value(primary, "SELECT count(*) FROM t"); got != "2000" {
				t.Errorf("after recovery the primary has %s rows, want 2000", got)
			}
			check(primary.Stop(pgserver.Fast))
			if log := primary.Log(50); !strings.Contains(log, "database system is shut down") {
				t.Errorf("the log does not say that the server shut down:\n%s", log)
			}
		})
	}
}

// Kill leaves no process, not even one that has left the postmaster's process
// group, as all its children do, or that a child has started.
func TestKillTakesAll(t *testing.T) {
	s := create(t, pgserver.Options{Settings: map[string]string{
		"archive_mode":    "on",
		"archive_command": "sleep 1000", // a grandchild, by way of a shell
	}})
	ctx := t.Context()
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Query(ctx, "SELECT pg_switch_wal()"); err != nil {
		t.Fatal(err)
	}
	before := waitFor(t, s, "sleep")
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range before {
		if name := command(pid); name != "" {
			t.Errorf("process %d (%s) has survived", pid, name)
		}
	}
}

// A paused server accepts what the kernel accepts for it and answers nothing;
// resumed, it goes on.
func TestPause(t *testing.T) {
	s := create(t, pgserver.Options{})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.Query(ctx, "SELECT 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a query on a paused server returned %v, want that its time was up", err)
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	if got, err := s.QueryValue(t.Context(), "SELECT 1"); err != nil || got != "1" {
		t.Errorf("a query on a resumed server returned %q, %v", got, err)
	}
}

// Servers copied from one template must not be taken for one another.
func TestSystemIdentifiersDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 2 {
		s := create(t, pgserver.Options{InitdbArgs: []string{"--wal-segsize=1"}})
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		id, err := s.QueryValue(t.Context(), "SELECT system_identifier FROM pg_control_system()")
		if err != nil {
			t.Fatal(err)
		}
		if seen[id] {
			t.Errorf("two servers have system identifier %s", id)
		}
		seen[id] = true
	}
}

// What the server says is in the error when it does not start.
func TestStartFails(t *testing.T) {
	s := create(t, pgserver.Options{Settings: map[string]string{"shared_buffers": "a lot"}})
	err := s.Start(t.Context())
	if err == nil {
		t.Fatal("the server started with nonsense in its configuration")
	}
	for _, want := range []string{"it ended: exit status 1", `invalid value for parameter "shared_buffers": "a lot"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
}

// Data directories that others made can be run too.
func TestOpen(t *testing.T) {
	primary := create(t, pgserver.Options{Major: 17})
	if err := primary.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir, removeDir, err := pgserver.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeDir() })
	dir = filepath.Join(dir, "copy")
	cmd, err := pgserver.Command(t.Context(), 17, "pg_basebackup", "-D", dir, "-R", "-c", "fast", "-d", primary.Conninfo(""))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s, err := pgserver.Open(pgserver.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	remove(t, s)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := s.QueryValue(t.Context(), "SELECT pg_is_in_recovery()"); got != "t" {
		t.Errorf("pg_is_in_recovery() returned %q, %v, want t", got, err)
	}
	if err := s.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "PG_VERSION")); err != nil {
		t.Errorf("Remove has removed a data directory that it did not make: %v", err)
	}
}

func TestFreePortIsReserved(t *testing.T) {
	seen := map[int]bool{}
	for range 50 {
		port, release, err := pgserver.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		if seen[port] {
			t.Errorf("port %d was given twice", port)
		}
		seen[port] = true
	}
}

func TestFindSaysWhatIsMissing(t *testing.T) {
	_, err := pgserver.Find(12)
	if err == nil || !strings.Contains(err.Error(), `PostgreSQL 12 is not installed`) {
		t.Errorf("Find(12) returned %v", err)
	}
}

// A process that is killed takes its servers along, a paused one too, and the
// next process removes their data directories.
func TestServersDieWithTheirProcess(t *testing.T) {
	if os.Getenv("PGSERVER_TEST_CHILD") != "" {
		for _, pause := range []bool{false, true} {
			s, err := pgserver.New(t.Context(), pgserver.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if pause {
				if err := s.Pause(); err != nil {
					t.Fatal(err)
				}
			}
			fmt.Println("server", s.PID(), s.Dir)
		}
		fmt.Println("ready")
		select {}
	}

	child := exec.Command(os.Args[0], "-test.run=^TestServersDieWithTheirProcess$")
	child.Env = append(os.Environ(), "PGSERVER_TEST_CHILD=1")
	// The kernel wakes a stopped process whose parent dies only if it then has
	// nobody in its session who might; we adopt orphans, and would count.
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	var dirs []string
	for in := bufio.NewScanner(stdout); in.Scan() && in.Text() != "ready"; {
		var pid int
		var dir string
		if _, err := fmt.Sscanf(in.Text(), "server %d %s", &pid, &dir); err == nil {
			pids, dirs = append(pids, below(pid)...), append(dirs, dir)
		}
	}
	child.Process.Kill()
	child.Wait()
	if len(dirs) != 2 {
		t.Fatalf("the child has started %d servers, want 2", len(dirs))
	}

	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, pid := range pids {
		for command(pid) != "" {
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatalf("process %d (%s) has outlived its owner", pid, command(pid))
			}
		}
	}
	next := exec.Command(os.Args[0], "-test.run=^TestSystemIdentifiersDiffer$")
	if out, err := next.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the next process has left %q: %v", dir, err)
		}
	}
}

func create(t *testing.T, o pgserver.Options) *pgserver.Server {
	t.Helper()
	s, err := pgserver.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	remove(t, s)
	return s
}

func remove(t *testing.T, s *pgserver.Server) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of %s:\n%s", s, s.Log(30))
		}
		if err := s.Remove(); err != nil {
			t.Error(err)
		}
	})
}

// waitFor waits until a process below the server's postmaster runs the command,
// and returns all that are there then.
func waitFor(t *testing.T, s *pgserver.Server, name string) []int {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		pids := below(s.PID())
		for _, pid := range pids {
			if command(pid) == name {
				return pids
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("no %s below process %d", name, s.PID())
		}
	}
}

// below lists a process and its descendants, by the kernel's own lists.
func below(pid int) []int {
	all := []int{pid}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, f := range strings.Fields(string(b)) {
		child, _ := strconv.Atoi(f)
		all = append(all, below(child)...)
	}
	return all
}

// command is the name of a process that lives, else empty.
func command(pid int) string {
	if syscall.Kill(pid, 0) != nil {
		return ""
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if i := strings.LastIndexByte(string(stat), ')'); i > 0 && strings.HasPrefix(string(stat[i:]), ") Z") {
		return "" // dead, and not yet reaped by whoever must
	}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(b))
}
