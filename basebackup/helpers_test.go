package basebackup_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"rideau/basebackup"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
)

// takeVariable makes this test binary a program that takes one backup, so that a
// test can kill it: its value is the Config, as JSON.
const takeVariable = "RIDEAU_TEST_TAKE"

func TestMain(m *testing.M) {
	if text := os.Getenv(takeVariable); text != "" {
		os.Exit(takeProgram(text))
	}
	os.Exit(m.Run())
}

// takeConfig is what the program needs of a Config; the others do not go into
// JSON.
type takeConfig struct {
	Conninfo, Dir string
	Jobs          int
	MaxRate       int64
}

// takeProgram tells on standard error how far it is, a line at a time.
func takeProgram(text string) int {
	var c takeConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	_, err := basebackup.Take(ctx, basebackup.Config{Conninfo: c.Conninfo, Dir: c.Dir, Jobs: c.Jobs, MaxRate: c.MaxRate,
		Progress: func(p basebackup.Progress) { fmt.Fprintf(os.Stderr, "%s: %d\n", p.Phase, p.Bytes) }})
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1
	}
	return 0
}

// takeCommand is the program, ready to run.
func takeCommand(t *testing.T, c takeConfig) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), takeVariable+"="+string(text))
	return cmd
}

// A phaseWatch is a Config.Progress that tests can wait on.
type phaseWatch struct {
	mu   sync.Mutex
	last basebackup.Progress
	seen map[basebackup.Phase]bool
}

func (w *phaseWatch) progress(p basebackup.Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen == nil {
		w.seen = map[basebackup.Phase]bool{}
	}
	w.last, w.seen[p.Phase] = p, true
}

// wait waits until the phase was come to, and so many bytes were copied.
func (w *phaseWatch) wait(t *testing.T, phase basebackup.Phase, bytes int64) {
	t.Helper()
	pgtest.Wait(t, fmt.Sprintf("phase %q and %d bytes", phase, bytes), func() (bool, string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.seen[phase] && w.last.Bytes >= bytes, fmt.Sprintf("%+v", w.last)
	})
}

// A running backup is one beside the test.
type running struct {
	watch  phaseWatch
	done   chan struct{}
	report *basebackup.Report
	err    error
}

func takeBeside(t *testing.T, cfg basebackup.Config) *running {
	r := &running{done: make(chan struct{})}
	cfg.Progress = r.watch.progress
	ctx := t.Context()
	go func() {
		defer close(r.done)
		r.report, r.err = basebackup.Take(ctx, cfg)
	}()
	return r
}

// end waits for the end of the backup.
func (r *running) end(t *testing.T) (*basebackup.Report, error) {
	t.Helper()
	pgtest.Wait(t, "the end of the backup", func() (bool, string) {
		select {
		case <-r.done:
			return true, ""
		default:
			r.watch.mu.Lock()
			defer r.watch.mu.Unlock()
			return false, fmt.Sprintf("%+v", r.watch.last)
		}
	})
	return r.report, r.err
}

// open starts a server in dir itself.
func open(t *testing.T, s *pgtest.Server, dir string, settings map[string]string) *pgtest.Server {
	t.Helper()
	give(t, s, dir)
	c := pgtest.Open(t, pgtest.Options{Major: s.Major, Dir: dir, Settings: settings})
	c.Start()
	return c
}

// in asks in another database.
func in(t *testing.T, s *pgtest.Server, database, sql string) [][]string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.Conninfo("user=postgres dbname="+database))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	results, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	var out [][]string
	for _, row := range results[len(results)-1].Rows {
		fields := make([]string, len(row))
		for i, f := range row {
			fields[i] = string(f)
		}
		out = append(out, fields)
	}
	return out
}

// balanced is that no transaction of pgbench's is there by half.
func balanced(t *testing.T, s *pgtest.Server) {
	t.Helper()
	r := s.Query(`SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
(SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)`)[0]
	if r[0] != r[1] || r[0] != r[2] || r[0] != r[3] {
		t.Errorf("accounts, branches, tellers and history have %v", r)
	}
}

// sound is that the indexes of all databases fit their tables, and, where the
// version can tell, that the tables are whole.
func sound(t *testing.T, s *pgtest.Server) {
	t.Helper()
	// What DROP DATABASE was at when it was canceled has a limit of -2.
	for _, db := range s.Query("SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2") {
		in(t, s, db[0], "CREATE EXTENSION IF NOT EXISTS amcheck")
		in(t, s, db[0], `SELECT bt_index_check(i.indexrelid, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND i.indisvalid AND c.relpersistence = 'p'`)
		if s.Major < 14 {
			continue
		}
		for _, r := range in(t, s, db[0], `SELECT c.oid::regclass, v.blkno, v.offnum, v.msg FROM pg_class c, LATERAL verify_heapam(c.oid) v
WHERE c.relkind IN ('r', 't', 'm') AND c.relpersistence = 'p'`) {
			t.Errorf("database %s: %v", db[0], r)
		}
	}
}

// stopsSound is that after a clean stop all pages on disk have their checksums.
func stopsSound(t *testing.T, s *pgtest.Server) {
	t.Helper()
	s.Stop(pgserver.Fast)
	if s.Major == 14 || s.Major == 16 { // there is no pg_checksums of these here
		v, err := basebackup.Verify(t.Context(), basebackup.VerifyConfig{Dir: s.Dir})
		if err != nil {
			t.Fatal(err)
		}
		if !v.Checksums || v.Pages == 0 || len(v.Problems) > 0 {
			t.Errorf("after its stop: %+v", v)
		}
		return
	}
	if out := pgtest.Run(t, s.Major, "pg_checksums", "--check", "-D", s.Dir); !regexp.MustCompile(`Bad checksums: +0\n`).MatchString(out) {
		t.Errorf("pg_checksums: %s", out)
	}
}

// contents is a line for each table of the database postgres: its rows and a sum
// of their hashes. Of temporary tables and the system's own there are none.
func contents(t *testing.T, s *pgtest.Server) string {
	t.Helper()
	var b strings.Builder
	for _, r := range s.Query("SELECT oid::regclass FROM pg_class WHERE relkind = 'r' AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace ORDER BY 1") {
		row := s.Query(fmt.Sprintf("SELECT count(*), coalesce(sum(hashtextextended(whole_row::text, 0)), 0) FROM %s whole_row", r[0]))[0]
		fmt.Fprintf(&b, "%s %s %s\n", r[0], row[0], row[1])
	}
	return b.String()
}

// same is that a copy has what the server has.
func same(t *testing.T, server, copied *pgtest.Server) {
	t.Helper()
	if want, got := contents(t, server), contents(t, copied); got != want {
		t.Errorf("the copy has\n%sand the server\n%s", got, want)
	}
}

// mustBeEmpty are directories that a start needs, and that no backup fills.
var mustBeEmpty = []string{"pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans",
	"pg_commit_ts", "pg_twophase", "pg_logical/snapshots", "pg_logical/mappings"}

// neverCopied are names that no backup has, wherever.
var neverCopied = regexp.MustCompile(`^(postmaster\.(pid|opts)|tablespace_map|pgsql_tmp.+|pg_internal\.init.*|t[0-9]+_[0-9]+.*|.*\.(signal|tmp)|rideau-basebackup|\.rideau.*)$`)

// clean is that a backup that nobody has started has what a start needs and
// nothing that belonged to the running server.
func clean(t *testing.T, s *pgtest.Server, dir string) {
	t.Helper()
	empty := slices.Clone(mustBeEmpty)
	if s.Major >= 17 {
		empty = append(empty, "pg_wal/summaries")
	}
	for _, d := range empty {
		entries, err := os.ReadDir(filepath.Join(dir, d))
		if err != nil {
			t.Errorf("an empty directory is missing: %v", err)
		}
		for _, e := range entries {
			// A server keeps the state of replication in files of these two.
			if d != "pg_logical/snapshots" && d != "pg_logical/mappings" {
				t.Errorf("%s/%s was copied", d, e.Name())
			}
		}
	}
	// The WAL that came along need not be archived again.
	status, err := os.ReadDir(filepath.Join(dir, "pg_wal", "archive_status"))
	if err != nil {
		t.Error(err)
	}
	for _, e := range status {
		if !strings.HasSuffix(e.Name(), ".done") {
			t.Errorf("pg_wal/archive_status/%s was copied", e.Name())
		}
	}
	unlogged := map[string]bool{}
	var names []string
	err = filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		if e.Type()&fs.ModeSymlink != 0 && filepath.Dir(rel) == "pg_tblspc" {
			target, err := filepath.EvalSymlinks(name)
			if err != nil {
				return err
			}
			return filepath.WalkDir(target, func(inside string, e fs.DirEntry, err error) error {
				below, _ := filepath.Rel(target, inside)
				names = append(names, path.Join(filepath.ToSlash(rel), filepath.ToSlash(below)))
				return err
			})
		}
		names = append(names, filepath.ToSlash(rel))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if neverCopied.MatchString(path.Base(name)) {
			t.Errorf("%s was copied", name)
		}
		if relation, ok := strings.CutSuffix(name, "_init"); ok {
			unlogged[relation] = true
		}
	}
	for _, name := range names {
		relation, fork, _ := strings.Cut(path.Base(name), "_")
		relation, _, _ = strings.Cut(relation, ".")
		if unlogged[path.Join(path.Dir(name), relation)] && fork != "init" {
			t.Errorf("%s is of an unlogged relation and was copied", name)
		}
	}
	if !slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, "_init") }) {
		t.Error("the init forks of unlogged relations are missing")
	}
}

// unstartable is that a directory cannot be started by accident.
func unstartable(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, "global", "pg_control")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the backup is not complete and has a pg_control (%v)", err)
	}
}

// fingerprint is the names, sizes and times of all that is in dir.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %d %v %v\n", name, info.Size(), info.Mode(), info.ModTime())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// location makes an empty directory for a tablespace of the server's.
func location(t *testing.T, s *pgtest.Server) string {
	t.Helper()
	dir := filepath.Join(pgtest.Dir(t), "space")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	give(t, s, dir)
	return dir
}
