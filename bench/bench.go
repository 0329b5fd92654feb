package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"rideau/internal/pgserver"
	"rideau/wal"
)

// A bench is one run of this program.
type bench struct {
	cfg     config
	log     io.Writer // what is being done
	results results
	program string // absolute path of rideau
	dirs    []func() error
	shared  *backlog // made by the first part that needs it
}

// run measures the parts that were asked for, prints them, and removes all that
// it made.
func run(ctx context.Context, cfg config, stdout, stderr io.Writer) (err error) {
	program, err := filepath.Abs(cfg.program)
	if err != nil {
		return err
	}
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("%w (make build makes it)", err)
	}
	b := &bench{cfg: cfg, log: stderr, program: program}
	defer func() { err = errors.Join(err, b.close()) }()
	b.results = results{Started: time.Now(), Config: cfg}
	if b.results.Machine, err = b.describeMachine(ctx); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s\n\n", b.results.Machine)
	for _, p := range parts {
		if !slices.Contains(cfg.Parts, p.name) {
			continue
		}
		first := len(b.results.Series)
		begun := time.Now()
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		b.logf("%s took %s", p.name, time.Since(begun).Round(time.Second))
		b.results.printSeries(stdout, first)
	}
	b.results.Took = time.Since(b.results.Started).Seconds()
	b.results.printComparisons(stdout)
	if cfg.out == "" {
		return nil
	}
	name, err := b.results.write(cfg.out)
	if err == nil {
		b.logf("all values are in %s", name)
	}
	return err
}

func (b *bench) close() error {
	var err error
	if b.shared != nil {
		err = b.shared.server.Remove()
	}
	for _, remove := range slices.Backward(b.dirs) {
		err = errors.Join(err, remove())
	}
	return err
}

func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(b.log, "bench: "+format+"\n", args...)
}

// dir makes a folder on the disk that is measured, which the account that
// servers run as may write to. It is removed at the end, or earlier by remove.
func (b *bench) dir() (dir string, remove func() error, err error) {
	dir, remove, err = b.dirIn(os.TempDir())
	if err != nil {
		return "", nil, err
	}
	return dir, remove, onDisk(dir)
}

// dirIn is dir anywhere.
func (b *bench) dirIn(root string) (dir string, remove func() error, err error) {
	dir, removeDir, err := pgserver.TempDirIn(root)
	if err != nil {
		return "", nil, err
	}
	gone := false
	remove = func() error {
		if gone {
			return nil
		}
		gone = true
		return removeDir()
	}
	b.dirs = append(b.dirs, remove)
	return dir, remove, nil
}

// server makes and starts a primary that does nothing by itself while others
// are measured: no checkpoints by the clock, no autovacuum.
func (b *bench) server(ctx context.Context, name string, settings map[string]string) (*pgserver.Server, error) {
	dir, _, err := b.dir()
	if err != nil {
		return nil, err
	}
	all := map[string]string{
		"fsync":                    "on",
		"shared_buffers":           "512MB",
		"autovacuum":               "off",
		"checkpoint_timeout":       "1d",
		"max_wal_size":             "64GB",
		"wal_keep_size":            "0",
		"max_wal_senders":          "80",
		"max_replication_slots":    "80",
		"log_replication_commands": "off",
	}
	for k, v := range settings {
		all[k] = v
	}
	s, err := pgserver.New(ctx, pgserver.Options{
		Major: b.cfg.Major, Name: name, Dir: filepath.Join(dir, "data"), Settings: all,
	})
	if err != nil {
		return nil, err
	}
	if err := s.Start(ctx); err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

// pgbench runs pgbench at the server's socket.
func (b *bench) pgbench(ctx context.Context, s *pgserver.Server, args ...string) (string, error) {
	args = append([]string{"-h", s.SocketDir, "-p", fmt.Sprint(s.Port), "-U", s.User}, args...)
	return b.tool(ctx, "pgbench", append(args, "postgres")...)
}

// createSlot makes a slot that holds WAL from now on.
func createSlot(ctx context.Context, s *pgserver.Server, name string) error {
	_, err := s.Query(ctx, fmt.Sprintf("SELECT pg_create_physical_replication_slot('%s', true)", name))
	return err
}

// dropSlot removes a slot, once the server has noticed that nobody uses it.
func dropSlot(ctx context.Context, s *pgserver.Server, name string) error {
	err := eventually(ctx, "slot "+name+" to be free", func() (bool, error) {
		n, err := s.QueryValue(ctx, fmt.Sprintf("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '%s' AND active", name))
		return n == "0", err
	})
	if err != nil {
		return err
	}
	_, err = s.Query(ctx, fmt.Sprintf("SELECT pg_drop_replication_slot('%s')", name))
	return err
}

// patience bounds every wait for something that should take moments, or for
// WAL to arrive.
const patience = 5 * time.Minute

// eventually calls done every few milliseconds until it is true.
func eventually(ctx context.Context, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}

// settle writes out what earlier runs have left to be written.
func settle() { syscall.Sync() }

// rotate is list as its turn in a round has it.
func rotate[T any](list []T, round int) []T {
	n := round % len(list)
	return slices.Concat(list[n:], list[:n])
}

// A backlog is WAL that a server holds for a slot.
type backlog struct {
	server *pgserver.Server
	from   wal.LSN // the beginning of the slot's segment
	whole  wal.LSN // the end of the last whole segment
	end    wal.LSN // the end of the last record, a little behind whole
	n      int     // slots copied
}

const backlogSlot = "backlog"

// What initdb makes, and nobody is promoted here.
const (
	segmentSize wal.SegmentSize = 16 << 20
	timeline    wal.TLI         = 1
)

// bytes is how much there is to send.
func (l *backlog) bytes() int64 { return int64(l.end - l.from) }

// theBacklog returns the backlog that parts share: what pgbench leaves when it
// fills its tables and then updates rows at random, with a checkpoint now and
// then, so that most of it is images of pages, as behind a real checkpoint.
func (b *bench) theBacklog(ctx context.Context) (*backlog, error) {
	if b.shared != nil {
		return b.shared, nil
	}
	b.logf("making %d MB of WAL", b.cfg.BacklogMB)
	s, err := b.server(ctx, "backlog", map[string]string{"synchronous_commit": "off"})
	if err != nil {
		return nil, err
	}
	l := &backlog{server: s}
	b.shared = l // close removes it from here on
	if _, err := s.Query(ctx, "SELECT pg_switch_wal()"); err != nil {
		return nil, err
	}
	if err := createSlot(ctx, s, backlogSlot); err != nil {
		return nil, err
	}
	text, err := s.QueryValue(ctx, "SELECT restart_lsn FROM pg_replication_slots")
	if err != nil {
		return nil, err
	}
	restart, err := wal.ParseLSN(text)
	if err != nil {
		return nil, err
	}
	l.from = segmentSize.Start(restart)
	if _, err := b.pgbench(ctx, s, "-i", "-q", "-s", fmt.Sprint(b.cfg.Scale)); err != nil {
		return nil, err
	}
	for at := l.from; int64(at-l.from) < int64(b.cfg.BacklogMB)<<20; {
		if _, err := s.Query(ctx, "CHECKPOINT"); err != nil {
			return nil, err
		}
		if _, err := b.pgbench(ctx, s, "-n", "-N", "-c", "8", "-j", "2", "-t", "3000"); err != nil {
			return nil, err
		}
		if at, err = s.LSN(ctx); err != nil {
			return nil, err
		}
	}
	if _, err := s.Query(ctx, "SELECT pg_switch_wal()"); err != nil {
		return nil, err
	}
	if _, err := s.Query(ctx, "CHECKPOINT"); err != nil {
		return nil, err
	}
	if l.end, err = s.LSN(ctx); err != nil {
		return nil, err
	}
	l.whole = segmentSize.Start(l.end)
	return l, nil
}

// slot makes a slot at the beginning of the backlog.
func (l *backlog) slot(ctx context.Context) (string, error) {
	l.n++
	name := fmt.Sprintf("run%d", l.n)
	_, err := l.server.Query(ctx, fmt.Sprintf("SELECT pg_copy_physical_replication_slot('%s', '%s')", backlogSlot, name))
	return name, err
}

// emit makes a server write so many MB of WAL, in records of 8 kB, and returns
// where it ends.
func emit(ctx context.Context, s *pgserver.Server, mb int) (wal.LSN, error) {
	// Not transactional: a message is no more than its record. The bytes are
	// different in each run, for what that may be worth to a file system.
	_, err := s.Query(ctx, fmt.Sprintf(
		"SELECT count(pg_logical_emit_message(false, 'bench', repeat('%08x', 1000))) FROM generate_series(1, %d)",
		rand.Uint32(), mb<<20/8000))
	if err != nil {
		return 0, err
	}
	// A message alone is not flushed; a commit is.
	if _, err := s.Query(ctx, "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'bench', '')"); err != nil {
		return 0, err
	}
	return s.LSN(ctx)
}

// A machine is where and when the numbers were taken.
type machine struct {
	System     string `json:"system"`
	CPU        string `json:"cpu"`
	CPUs       int    `json:"cpus"`
	Memory     string `json:"memory"`
	FileSystem string `json:"file_system"`
	PostgreSQL string `json:"postgresql"`
	Go         string `json:"go"`
	Commit     string `json:"commit,omitempty"`
	Load       string `json:"load_when_begun"`
}

func (m machine) String() string {
	return fmt.Sprintf("%s, %d x %s, %s, %s\n%s, %s, rideau %s, load when begun: %s",
		m.System, m.CPUs, m.CPU, m.Memory, m.FileSystem, m.PostgreSQL, m.Go, m.Commit, m.Load)
}

// describeMachine asks around. What cannot be learnt stays unsaid, except for
// the server, without which there is nothing to measure.
func (b *bench) describeMachine(ctx context.Context) (machine, error) {
	said := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).Output()
		if err != nil {
			return "?"
		}
		return strings.TrimSpace(string(out))
	}
	field := func(file, key string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			return "?"
		}
		for line := range bytes.Lines(text) {
			if k, v, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(k) == key {
				return strings.TrimSpace(v)
			}
		}
		return "?"
	}
	m := machine{
		System: said("uname", "-sr"), CPU: field("/proc/cpuinfo", "model name"), CPUs: runtime.NumCPU(),
		Memory: field("/proc/meminfo", "MemTotal"), Go: runtime.Version(),
		Commit: said("git", "describe", "--always", "--dirty"), Load: "?",
	}
	df := strings.Fields(said("df", "--output=fstype", os.TempDir()))
	m.FileSystem = df[len(df)-1]
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.Join(strings.Fields(string(text))[:3], " ")
	}
	out, err := b.tool(ctx, "pg_waldump", "--version")
	m.PostgreSQL = strings.TrimSpace(strings.ReplaceAll(out, "pg_waldump (PostgreSQL)", "PostgreSQL"))
	return m, err
}
