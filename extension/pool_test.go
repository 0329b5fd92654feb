package extension

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"rideau/extension/registry"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
)

// twoVersions is a package without libraries, and its successor.
const twoVersions = `
-- p-1/control --
name = p
version = 1.0
-- p-1/install.sql --
CREATE TABLE p();
-- p-2/control --
name = p
version = 2.0
-- p-2/install.sql --
CREATE TABLE p(a int);
-- p-2/upgrade/1.0--2.0.sql --
ALTER TABLE p ADD a int;
`

// pool starts a primary with one standby.
func pool(t *testing.T, major int, settings map[string]string) (primary, standby *pgtest.Server) {
	t.Helper()
	primary = pgtest.Start(t, pgtest.Options{Major: major})
	standby = primary.Standby(pgtest.Options{Name: "s1", Settings: settings}, primary.Conninfo(""))
	standby.Start()
	return primary, standby
}

func autoConf(s *pgtest.Server) string {
	return s.QueryValue("SELECT pg_read_file('postgresql.auto.conf')")
}

// preloaded makes a package whose library the server must load when it starts:
// auto_explain under another name, or none at all.
func preloaded(t *testing.T, server *pgtest.Server, withLibrary bool) *registry.Registry {
	t.Helper()
	dir := t.TempDir()
	writeTree(t, dir, `
-- pre/control --
name = pre
version = 1.0
preload = shared
-- pre/install.sql --
CREATE TABLE pre();
`)
	if withLibrary {
		lib := server.QueryValue("SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'")
		text := server.QueryValue("SELECT encode(pg_read_binary_file($1), 'base64')", lib+"/auto_explain.so")
		data, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(text, "\n", ""))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, "pre/lib"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "pre/lib/pre.so"), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return directory(t, dir)
}

// A library that the next start is to load is there before it is asked for: every
// node starts again.
func TestPreloadFindable(t *testing.T) {
	t.Parallel()
	primary, standby := pool(t, 18, nil)
	shelf := preloaded(t, primary, true)
	s := connected(t, Config{Shelves: shelves(shelf)}, primary.Conninfo(""), standby.Conninfo(""))
	_, err := try(t.Context(), s, install("pre"), false)
	var restart *RestartError
	if !errors.As(err, &restart) || len(restart.Nodes) != 2 {
		t.Fatalf("error %v, want that two nodes must be restarted", err)
	}
	for _, n := range []*pgtest.Server{standby, primary} {
		n.Stop(pgserver.Fast)
		n.Start()
		if got := n.QueryValue("SHOW shared_preload_libraries"); got != "pre" {
			t.Errorf("%s has loaded %q, want pre", n, got)
		}
	}
	s = connected(t, Config{Shelves: shelves(shelf)}, primary.Conninfo(""), standby.Conninfo(""))
	do(t, s, install("pre"))
}

// One that no node has is refused, before the setting is made.
func TestPreloadNothing(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17})
	s := connected(t, Config{Shelves: shelves(preloaded(t, server, false), packages(t, `
-- conf/control --
name = conf
version = 1.0
-- conf/install.sql --
CREATE TABLE conf();
-- conf/conf.conf --
#@scope system
shared_preload_libraries = 'nowhere'
`))}, server.Conninfo(""))
	for name, lib := range map[string]string{"pre": "pre", "conf": "nowhere"} {
		_, err := try(t.Context(), s, install(name), false)
		var missing *PreloadError
		if !errors.As(err, &missing) || missing.Library != lib {
			t.Errorf("error %v, want that %s cannot be loaded", err, lib)
		}
	}
	if got := autoConf(server); strings.Contains(got, "preload") {
		t.Errorf("it was set:\n%s", got)
	}
	if got := installed(t, s); len(got) != 0 {
		t.Errorf("installed are %q", got)
	}
	server.Stop(pgserver.Fast)
	server.Start()
}

// Two of us, in two databases, do not change one server at once; who holds a lock
// is named.
func TestServerLock(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17})
	server.Exec("CREATE DATABASE two")
	server.Exec("CREATE ROLE low LOGIN")
	one := connected(t, Config{}, server.Conninfo(""))
	cfg := Config{LockTimeout: 20 * time.Millisecond, Tries: 2, Shelves: shelves(packages(t, `
-- l/control --
name = l
version = 1.0
-- l/install.sql --
CREATE TABLE l();
-- l/l.conf --
#@scope system
work_mem = '7MB'
`))}
	two := connected(t, cfg, server.Conninfo("dbname=two"))
	unlock, err := one.lockServer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var locked *LockedError
	if _, err := try(t.Context(), two, install("l"), false); !errors.As(err, &locked) || !strings.Contains(err.Error(), applicationName) || !strings.Contains(err.Error(), "postgres") {
		t.Errorf("error %v, want that the server is locked, and by whom", err)
	}
	if _, err := try(t.Context(), two, install("l"), true); err != nil {
		t.Errorf("a dry run, which changes nothing of the server: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	low := connected(t, Config{}, server.Conninfo("user=low dbname=two application_name=mine"))
	if unlock, err = low.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := try(t.Context(), two, install("l"), false); !errors.As(err, &locked) || !strings.Contains(err.Error(), "role low, application 'mine'") {
		t.Errorf("error %v, want that low holds the lock", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	do(t, two, install("l"))

	// A lock that is gone is not passed over in silence.
	if unlock, err = one.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	value(t, one, "SELECT pg_advisory_unlock_all()::text")
	if err := unlock(); err == nil {
		t.Error("a lock that was lost was given back")
	}
	if unlock, err = one.lockServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Exec("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'pg_shseclabel'::regclass AND mode = 'ShareUpdateExclusiveLock'")
	server.WaitQuery("0", "SELECT count(*) FROM pg_locks WHERE relation = 'pg_shseclabel'::regclass AND mode = 'ShareUpdateExclusiveLock'")
	if err := unlock(); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("error %v, want that the lock was lost", err)
	}
}

// Lists of the server that two databases add to at once have both.
func TestTwoDatabases(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17})
	for i := range 5 {
		server.Exec("ALTER SYSTEM RESET shared_preload_libraries")
		var group sync.WaitGroup
		for _, lib := range []string{"auto_explain", "pg_prewarm"} {
			database := fmt.Sprintf("%s%d", lib, i)
			server.Exec("CREATE DATABASE " + database)
			s := connected(t, Config{Shelves: shelves(packages(t, "-- x/control --\nname = x\nversion = 1.0\npreload = shared\n-- x/install.sql --\nCREATE TABLE x();\n"+
				"-- x/x.conf --\n#@scope system\nshared_preload_libraries = '"+lib+"'\n"))}, server.Conninfo("dbname="+database))
			p, err := s.Plan(t.Context(), install("x"))
			if err != nil {
				t.Fatal(err)
			}
			group.Go(func() {
				var restart *RestartError
				if _, err := s.Apply(t.Context(), p, false); !errors.As(err, &restart) {
					t.Errorf("error %v, want that a restart is needed", err)
				}
			})
		}
		group.Wait()
		got := server.QueryValue("SELECT setting FROM pg_file_settings WHERE name = 'shared_preload_libraries'")
		if !strings.Contains(got, "auto_explain") || !strings.Contains(got, "pg_prewarm") {
			t.Errorf("the next start loads %q, want both", got)
		}
	}
}

// Dry runs in two databases of one server do not take each other's files away.
func TestTwoRehearsals(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 18})
	var group sync.WaitGroup
	for _, database := range []string{"one", "two"} {
		server.Exec("CREATE DATABASE " + database)
		s := connected(t, Config{Shelves: shelves(packages(t, twoVersions))}, server.Conninfo("dbname="+database))
		p, err := s.Plan(t.Context(), install("p"))
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			for range 8 {
				if _, err := s.Apply(t.Context(), p, true); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if got := server.QueryValue("SELECT count(*) FROM pg_ls_dir('.') d WHERE d ~ '^rideau(-|$)'"); got != "0" {
		t.Errorf("%s folders are left", got)
	}
}

// onMessage is a log whose every line calls a function.
type onMessage struct {
	slog.Handler
	do func(text string)
}

func (h onMessage) Enabled(context.Context, slog.Level) bool { return true }
func (h onMessage) Handle(_ context.Context, r slog.Record) error {
	h.do(r.Message)
	return nil
}

// A dry run that is cancelled while files are brought leaves none of them.
func TestCancelledRehearsal(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 18})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	brought := 0
	log := slog.New(onMessage{slog.DiscardHandler, func(text string) {
		if text == "file to node" {
			if brought++; brought == 2 {
				cancel()
			}
		}
	}})
	s := connected(t, Config{Shelves: shelves(packages(t, twoVersions)), Log: log}, server.Conninfo(""))
	p, err := s.Plan(t.Context(), install("p"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(ctx, p, true); !errors.Is(err, context.Canceled) || brought != 2 {
		t.Errorf("error %v after %d files, want that it was cancelled at the second", err, brought)
	} else if strings.Contains(err.Error(), "could not bring") {
		t.Errorf("error %v: a file was torn off", err)
	}
	if got := server.QueryValue("SELECT count(*) FROM pg_ls_dir('.') d WHERE d ~ '^rideau(-|$)'"); got != "0" {
		t.Errorf("%s folders are left", got)
	}
	// Neither does one whose session is gone.
	if s.primary.rehearsal, err = newRehearsal(t.Context(), s.primary.conn); err != nil {
		t.Fatal(err)
	}
	if err := s.primary.write(t.Context(), s.primary.store(true)+"/a", []byte("a")); err != nil {
		t.Fatal(err)
	}
	if err := s.primary.conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.removeRehearsal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := server.QueryValue("SELECT count(*) FROM pg_ls_dir('.') d WHERE d ~ '^rideau(-|$)'"); got != "0" {
		t.Errorf("%s folders are left", got)
	}
}

// withSettings has one setting that is tried before, and one that cannot be.
const withSettings = `
-- l/control --
name = l
version = 1.0
-- l/install.sql --
CREATE TABLE l();
-- l/l.conf --
#@scope system
archive_timeout = %s
maintenance_work_mem = %s
`

// A setting that the server does not take keeps neither others from being made
// nor is it forgotten.
func TestAfterCommit(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 15})
	open := func(text string) *Session {
		return connected(t, Config{Shelves: shelves(packages(t, text))}, server.Conninfo(""))
	}
	s := open(fmt.Sprintf(withSettings, "'1min'", "'banana'"))
	if _, err := try(t.Context(), s, install("l"), false); err == nil || !strings.Contains(err.Error(), "maintenance_work_mem") {
		t.Errorf("error %v, want one about maintenance_work_mem", err)
	}
	if got := installed(t, s); len(got) != 0 {
		t.Fatalf("installed are %q, before the settings were tried", got)
	}

	s = open(fmt.Sprintf(withSettings, "'banana'", "'99MB'"))
	report, err := try(t.Context(), s, install("l"), false)
	var unfinished *UnfinishedError
	if !errors.As(err, &unfinished) || report == nil || len(unfinished.Failed) != 1 || len(unfinished.Done) != 1 || !slices.Equal(report.Set, unfinished.Done) {
		t.Fatalf("error %v and report %+v, want one setting that failed and one that was made", err, report)
	}
	if got := autoConf(server); !strings.Contains(got, "maintenance_work_mem = '99MB'") || strings.Contains(got, "banana") {
		t.Errorf("settings:\n%s", got)
	}
	planned := func(s *Session) (names []string, notes string) {
		t.Helper()
		if err := s.refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		p, err := s.Plan(t.Context(), install("l"))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range p.System {
			names = append(names, c.Name)
		}
		return names, strings.Join(p.Notes, "\n")
	}
	if got, _ := planned(s); !slices.Equal(got, []string{"archive_timeout"}) {
		t.Errorf("planned are settings %q, want archive_timeout again", got)
	}
	do(t, s, Request{Uninstall: []string{"l"}})
	server.Exec("ALTER SYSTEM RESET ALL")

	s = open(fmt.Sprintf(withSettings, "'1min'", "'99MB'"))
	do(t, s, install("l"))
	if got, _ := planned(s); len(got) != 0 {
		t.Errorf("planned are settings %q of what is installed, and all were made", got)
	}
	server.Exec("ALTER SYSTEM RESET archive_timeout")
	server.Exec("ALTER SYSTEM SET maintenance_work_mem = '5MB'")
	if got, notes := planned(s); !slices.Equal(got, []string{"archive_timeout"}) || !strings.Contains(notes, `maintenance_work_mem is "5MB"`) {
		t.Errorf("planned are settings %q, notes %q; want archive_timeout, and that somebody has set the other", got, notes)
	}
	do(t, s, install("l"))
	if got := autoConf(server); !strings.Contains(got, "archive_timeout = '1min'") || !strings.Contains(got, "maintenance_work_mem = '5MB'") {
		t.Errorf("settings:\n%s", got)
	}
}

// A standby that has died does not keep the primary from its settings.
func TestDeadStandby(t *testing.T) {
	t.Parallel()
	primary, standby := pool(t, 17, nil)
	s := connected(t, Config{}, primary.Conninfo(""), standby.Conninfo(""))
	set := func(value string) (*Report, error) {
		report := &Report{}
		return report, s.afterCommit(t.Context(), &Plan{Database: "postgres", System: []SystemChange{{Name: "work_mem", Values: []string{value}, For: "l"}}}, report)
	}
	report, err := set("66MB")
	if want := []string{"work_mem at " + s.primary.o.Node, "work_mem at " + s.standbys[0].o.Node}; err != nil || !slices.Equal(report.Set, want) {
		t.Errorf("set were %q, %v; want %q, the primary first", report.Set, err, want)
	}
	standby.Kill()
	report, err = set("77MB")
	var unfinished *UnfinishedError
	if !errors.As(err, &unfinished) || len(unfinished.Failed) == 0 || len(report.Set) != 1 || !strings.HasSuffix(report.Set[0], s.primary.o.Node) {
		t.Errorf("error %v, report %+v; want that it was set at the primary, and not at the standby", err, report)
	}
	primary.WaitQuery("77MB", "SHOW work_mem")
}

// What a plan was made for is looked at again, on every node.
func TestPoolMoved(t *testing.T) {
	t.Parallel()
	primary, standby := pool(t, 18, nil)
	s := connected(t, Config{Shelves: shelves(packages(t, twoVersions))}, primary.Conninfo(""), standby.Conninfo(""))
	p, err := s.Plan(t.Context(), install("p"))
	if err != nil {
		t.Fatal(err)
	}
	standby.Exec("ALTER SYSTEM SET extension_control_path = '$system:/elsewhere'")
	standby.Reload()
	standby.WaitQuery("$system:/elsewhere", "SHOW extension_control_path")
	var moved *MovedError
	if _, err := s.Apply(t.Context(), p, false); !errors.As(err, &moved) {
		t.Errorf("error %v, want that the standby has changed", err)
	}
	// That it replays what others do meanwhile is no such change.
	if err := s.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	was := s.poolFingerprint()
	primary.Exec("CREATE SCHEMA another")
	standby.WaitQuery("1", "SELECT count(*) FROM pg_namespace WHERE nspname = 'another'")
	if err := s.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.poolFingerprint() != was {
		t.Error("a schema that was replayed is a change of the standby")
	}
	if p, err = s.Plan(t.Context(), install("p")); err != nil {
		t.Fatal(err)
	}
	standby.Promote()
	if _, err := s.Apply(t.Context(), p, false); err == nil || !strings.Contains(err.Error(), "two of the nodes are primaries") {
		t.Errorf("error %v, want that there are two primaries", err)
	}
	if got := primary.QueryValue("SELECT count(*) FROM pg_extension WHERE extname = 'p'"); got != "0" {
		t.Error("it was installed all the same")
	}
	if _, err := Open(t.Context(), Config{Nodes: []string{primary.Conninfo(""), primary.Conninfo("")}}); err == nil || !strings.Contains(err.Error(), "lead to one server") {
		t.Errorf("error %v, want that one server was named twice", err)
	}
}

// A standby that replays late is no failure of what is installed.
func TestLateStandby(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]map[string]string{"delayed": {"recovery_min_apply_delay": "1h"}, "paused": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			primary, standby := pool(t, 17, settings)
			if name == "paused" {
				standby.Exec("SELECT pg_wal_replay_pause()")
			}
			s := connected(t, Config{Shelves: shelves(packages(t, twoVersions))}, primary.Conninfo(""), standby.Conninfo(""))
			report := do(t, s, install("p"))
			if notes := strings.Join(report.Notes, "\n"); !strings.Contains(notes, "was not tried") || !strings.Contains(notes, s.standbys[0].o.Node) {
				t.Errorf("notes %q, want that the standby was not tried", notes)
			}
			if report := do(t, s, Request{Uninstall: []string{"p"}}); says(report.Notes, "was installed") {
				t.Errorf("notes %q of an uninstallation", report.Notes)
			}
		})
	}
}

// What the server has only from our store is compared between nodes as well.
func TestStoreSkew(t *testing.T) {
	t.Parallel()
	primary, standby := pool(t, 18, nil)
	one := connected(t, Config{Shelves: shelves(aLibrary(t, primary))}, primary.Conninfo(""))
	req := install("numbers=1.1")
	req.Mode = Path
	do(t, one, req)
	primary.Exec("CREATE DATABASE two")
	standby.WaitLSN(primary.LSN())
	s := connected(t, Config{}, primary.Conninfo(""), standby.Conninfo(""))
	x, err := s.Doctor(t.Context(), DoctorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(x.Findings, func(f Finding) bool {
		return f.Verdict == No && strings.Contains(f.What, "numbers.so of numbers is missing at "+s.standbys[0].o.Node)
	}) {
		t.Errorf("the doctor does not miss the library: %+v", x.Findings)
	}

	two := connected(t, Config{}, primary.Conninfo("dbname=two"), standby.Conninfo("dbname=two"))
	do(t, two, install("numbers=1.1"))
	if got := standby.QueryValue("SELECT encode(sha256(pg_read_binary_file('rideau/lib/numbers.so')), 'hex')"); got != primary.QueryValue("SELECT encode(sha256(pg_read_binary_file('rideau/lib/numbers.so')), 'hex')") {
		t.Error("the standby has another library")
	}
	alike := func() {
		t.Helper()
		want, got := store(t, primary), store(t, standby)
		delete(want, manifestPath("numbers")) // it may know of which package
		delete(got, manifestPath("numbers"))
		if len(want) < 3 || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the standby has %v, want %v", got, want)
		}
	}
	alike()
	if got := standby.QueryValue("SELECT count(*) FROM pg_available_extension_versions WHERE name = 'numbers' AND version = '1.1'"); got != "1" {
		t.Error("after a failover numbers could not be updated")
	}
	if p := plan(t, two, install("numbers")); !p.Empty() {
		t.Errorf("something is left to do: %+v", p)
	}
	// An older program brought the library only.
	n := two.standbys[0]
	all := n.o.Store.find("numbers")
	only := *all
	only.Files = []StoredFile{*all.find("lib/numbers.so")}
	var rest []string
	for _, f := range all.Files {
		if strings.HasPrefix(f.Path, storeControls+"/") {
			rest = append(rest, n.store(false)+"/"+f.Path)
		}
	}
	if err := errors.Join(n.write(t.Context(), n.store(false)+"/"+manifestPath("numbers"), only.text()), n.removeStored(t.Context(), rest)); err != nil {
		t.Fatal(err)
	}
	if x, err = two.Doctor(t.Context(), DoctorOptions{}); err != nil || !finds(x, Note, "rideau extension install numbers", "has no control file", n.o.Node) {
		t.Errorf("doctor: %+v, %v", x, err)
	}
	do(t, two, install("numbers"))
	alike()
	if x, err = s.Doctor(t.Context(), DoctorOptions{}); err != nil || !x.Healthy() {
		t.Errorf("doctor: %+v, %v", x, err)
	}

	// Its files gone, the extension is only half there.
	primary.Exec("ALTER SYSTEM RESET extension_control_path")
	primary.Reload()
	primary.WaitQuery("$system", "SHOW extension_control_path")
	if x, err = s.Doctor(t.Context(), DoctorOptions{}); err != nil || !slices.ContainsFunc(x.Findings, func(f Finding) bool {
		return f.Verdict == No && strings.Contains(f.What, "numbers 1.1 is installed, and the server has no files of it")
	}) {
		t.Errorf("the doctor does not miss the files: %+v, %v", x, err)
	}
}

// An answer to COMMIT that does not come leaves no doubt where there need be none.
func TestCommitUnknown(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17})
	s := connected(t, Config{Shelves: shelves(packages(t, twoVersions))}, server.Conninfo(""))
	p, err := s.Plan(t.Context(), install("p"))
	if err != nil {
		t.Fatal(err)
	}
	server.Exec("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	server.Reload()
	server.WaitQuery("nobody", "SHOW synchronous_standby_names")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() {
		_, err := s.Apply(ctx, p, false)
		done <- err
	}()
	server.WaitQuery("1", "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
	cancel()
	var unknown *CommitError
	if err := <-done; !errors.As(err, &unknown) || unknown.Status != "committed" {
		t.Errorf("error %v, want that it is committed", err)
	}
	if got := server.QueryValue("SELECT count(*) FROM extension.installed"); got != "1" {
		t.Errorf("%s are installed", got)
	}

	// One that was never written is known to be undone.
	tx, err := connected(t, Config{}, server.Conninfo("")).primary.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var xid string
	if err := tx.QueryRow(t.Context(), "SELECT pg_current_xact_id()::text").Scan(&xid); err != nil {
		t.Fatal(err)
	}
	if err := tx.Conn().Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := connected(t, Config{}, server.Conninfo(""))
	if err := other.primary.notCommitted(t.Context(), p, xid, io.ErrUnexpectedEOF); errors.As(err, &unknown) {
		t.Errorf("error %v, want that it could not be committed", err)
	}
	// And if nobody can be asked, it is not known.
	server.Exec("ALTER SYSTEM RESET synchronous_standby_names")
	server.Stop(pgserver.Fast)
	if err := other.primary.notCommitted(t.Context(), p, xid, io.ErrUnexpectedEOF); !errors.As(err, &unknown) || unknown.Status != "" || unknown.Look == nil {
		t.Errorf("error %v, want that it is not known", err)
	}
}

// A connection string may name several servers; we stay with the one that we met.
func TestManyHosts(t *testing.T) {
	t.Parallel()
	primary, standby := pool(t, 17, nil)
	port := func(s *pgtest.Server) string { return s.QueryValue("SHOW port") }
	many := fmt.Sprintf("host=127.0.0.1,127.0.0.1,localhost port=%d,%s,%s user=postgres dbname=postgres target_session_attrs=",
		pgtest.FreePort(t), port(standby), port(primary))
	s := connected(t, Config{Shelves: shelves(packages(t, twoVersions))}, many+"read-write", many+"standby")
	if got, want := s.primary.o.Node, "localhost:"+port(primary); got != want {
		t.Errorf("the primary is called %s, want %s", got, want)
	}
	if got, want := s.standbys[0].o.Node, "127.0.0.1:"+port(standby); got != want {
		t.Errorf("the standby is called %s, want %s", got, want)
	}
	either := connected(t, Config{}, many+"any")
	if got, want := either.primary.o.Node, "127.0.0.1:"+port(standby); got != want {
		t.Errorf("the node is called %s, want %s", got, want)
	}
	// The standby is another now, and has its name and address.
	if got := s.primary.config.Port; fmt.Sprint(got) != port(primary) || len(s.primary.config.Fallbacks) > 1 {
		t.Errorf("later sessions go to port %d, or %d others", got, len(s.primary.config.Fallbacks))
	}
	do(t, s, install("p"))
	standby.Promote()
	conn, err := s.standbys[0].dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var at string
	if err := conn.QueryRow(t.Context(), "SHOW port").Scan(&at); err != nil || at != port(standby) {
		t.Errorf("a later session came to port %s, %v", at, err)
	}
}

// What an administrator limits sessions with is not for ours.
func TestSessionLimits(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17})
	server.Exec("ALTER DATABASE postgres SET idle_session_timeout = '1h'")
	server.Exec("ALTER DATABASE postgres SET transaction_timeout = '1h'")
	server.Exec("ALTER DATABASE postgres SET default_transaction_read_only = on")
	s := connected(t, Config{Shelves: shelves(packages(t, twoVersions))}, server.Conninfo(""))
	for name, want := range map[string]string{"idle_session_timeout": "0", "transaction_timeout": "0", "default_transaction_read_only": "off"} {
		if got := value(t, s, "SHOW "+name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	do(t, s, install("p"))
}

// The doctor and status see what is there now, and leave no trace in the session.
func TestDoctorAfterwards(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17})
	cfg := Config{Shelves: shelves(packages(t, twoVersions))}
	s := connected(t, cfg, server.Conninfo(""))
	p, err := s.Plan(t.Context(), install("p"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Doctor(t.Context(), DoctorOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(t.Context(), p, false); err != nil {
		t.Errorf("after the doctor: %v", err)
	}
	other := connected(t, cfg, server.Conninfo(""))
	do(t, other, install("hstore"))
	st, err := s.Status(t.Context())
	if err != nil || !slices.ContainsFunc(st.Extensions, func(e ExtensionStatus) bool { return e.Name == "hstore" }) {
		t.Errorf("status does not know hstore: %+v, %v", st, err)
	}
	do(t, other, install("cube"))
	x, err := s.Doctor(t.Context(), DoctorOptions{})
	if err != nil || !slices.ContainsFunc(x.Findings, func(f Finding) bool { return strings.Contains(f.What, "(4)") }) {
		t.Errorf("the doctor does not see all four: %+v, %v", x, err)
	}
}

// Search paths keep what they mean: an empty one the server's own folder, one of
// a role what it is to that role only.
func TestSearchPaths(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 18})
	server.Exec("ALTER SYSTEM SET extension_control_path = ''")
	server.Exec("ALTER SYSTEM SET dynamic_library_path = ''")
	server.Reload()
	server.WaitQuery("", "SHOW extension_control_path")
	s := connected(t, Config{Shelves: shelves(aLibrary(t, server))}, server.Conninfo(""))
	req := install("numbers=1.1")
	req.Mode = Path
	do(t, s, req)
	data := server.QueryValue("SHOW data_directory")
	for name, want := range map[string]string{"extension_control_path": "$system:" + data + "/rideau", "dynamic_library_path": "$libdir:" + data + "/rideau/lib"} {
		if got := server.QueryValue("SHOW " + name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := server.QueryValue("SELECT count(*) FROM pg_available_extensions WHERE name IN ('hstore', 'numbers')"); got != "2" {
		t.Errorf("the server has files of %s of two extensions", got)
	}

	server.Exec("ALTER SYSTEM RESET extension_control_path")
	server.Exec("ALTER SYSTEM RESET dynamic_library_path")
	server.Reload()
	server.WaitQuery("$system", "SHOW extension_control_path")
	server.Exec("CREATE DATABASE two")
	server.Exec("ALTER ROLE postgres SET extension_control_path = '$system:/nowhere'")
	server.Exec("ALTER DATABASE two SET dynamic_library_path = '$libdir:/nowhere'")
	two := connected(t, Config{Shelves: s.cfg.Shelves}, server.Conninfo("dbname=two"))
	report := do(t, two, req)
	for name, want := range map[string]string{"extension_control_path": "$system:" + data + "/rideau", "dynamic_library_path": "$libdir:" + data + "/rideau/lib"} {
		if got := server.QueryValue("SELECT setting FROM pg_file_settings WHERE name = $1 AND applied", name); got != want {
			t.Errorf("%s of the server is %q, want %q", name, got, want)
		}
		if !slices.ContainsFunc(report.Notes, func(note string) bool { return strings.HasPrefix(note, name+" is set for role") }) {
			t.Errorf("notes %q do not say that %s is hidden", report.Notes, name)
		}
	}
}

// Definitions are written otherwise by every version of PostgreSQL: they are not
// compared with those of another.
func TestOtherMajor(t *testing.T) {
	t.Parallel()
	text := `
-- m/control --
name = m
version = 1.0
schema = m
-- m/install.sql --
CREATE TABLE t (a int PRIMARY KEY, b text NOT NULL DEFAULT 'x'::text, d timestamptz DEFAULT now());
CREATE VIEW v AS SELECT t.a, extract(year FROM t.d) AS y FROM t JOIN t u USING (a, b) WHERE t.a IN (1, 2);
`
	older, newer := pgtest.Start(t, pgtest.Options{Major: 13}), pgtest.Start(t, pgtest.Options{Major: 18})
	s := connected(t, Config{Shelves: shelves(packages(t, text))}, older.Conninfo(""))
	req := install("m")
	req.Mode = Module
	do(t, s, req)
	restore(t, 18, newer.Conninfo(""), pgtest.Run(t, 18, "pg_dump", "-d", older.Conninfo("")))
	s = connected(t, Config{}, newer.Conninfo(""))
	x, err := s.Doctor(t.Context(), DoctorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	said := fmt.Sprint(x.Findings)
	if strings.Contains(said, "not as its package made it") || !strings.Contains(said, "recorded on PostgreSQL 13") {
		t.Errorf("the doctor says %s", said)
	}
	st, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range st.Extensions {
		if e.Name == "m" && (e.Recorded != 13 || len(e.Modified) > 0) {
			t.Errorf("status of m: recorded on %d, modified %q", e.Recorded, e.Modified)
		}
	}
	// What was recorded here is compared.
	value(t, s, "UPDATE extension.installed SET relations = relations || '{\"major\": 18}'; SELECT 1")
	if x, err = s.Doctor(t.Context(), DoctorOptions{}); err != nil || strings.Contains(fmt.Sprint(x.Findings), "cannot be compared") {
		t.Errorf("the doctor says %v, %v", x, err)
	}
}

// The shell's part of writing a file: whole or not at all, and new folders there
// after a crash.
func TestWriteProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synced := filepath.Join(dir, "synced")
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/sync"), []byte("#!/bin/sh\nprintf '%s\\n' \"$@\" >> '"+synced+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "it's new/rideau/lib/a.so")
	for i, piece := range []string{"hello, ", "world"} {
		cmd := exec.Command("sh", "-c", writeProgram(name, name+".tmp", i == 0, i == 1))
		cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
		cmd.Stdin = strings.NewReader(base64.StdEncoding.EncodeToString([]byte(piece)))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if _, err := os.Stat(name); (err == nil) != (i == 1) {
			t.Errorf("after piece %d: %v", i, err)
		}
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "hello, world" {
		t.Errorf("the file has %q, %v", got, err)
	}
	got, err := os.ReadFile(synced)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{dir, dir + "/it's new", dir + "/it's new/rideau", filepath.Dir(name), name + ".tmp"} {
		if !slices.Contains(strings.Split(string(got), "\n"), want) {
			t.Errorf("%s was not synced:\n%s", want, got)
		}
	}
}

// A pooler stands before a server and gives its sessions to whoever needs one:
// for a transaction, or for as long as he stays.
type pooler struct {
	listener net.Listener
	free     chan *pgconn.HijackedConn
	sessions bool
}

func startPooler(t *testing.T, server *pgtest.Server, sessions bool) string {
	t.Helper()
	p := &pooler{free: make(chan *pgconn.HijackedConn, 3), sessions: sessions}
	for range cap(p.free) {
		conn, err := pgconn.Connect(t.Context(), server.Conninfo(""))
		if err != nil {
			t.Fatal(err)
		}
		h, err := conn.Hijack()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Conn.Close() })
		p.free <- h
	}
	var err error
	if p.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.listener.Close() })
	go func() {
		for {
			client, err := p.listener.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	host, port, err := net.SplitHostPort(p.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return server.Conninfo("sslmode=disable host=" + host + " port=" + port)
}

func (p *pooler) serve(client net.Conn) {
	defer client.Close()
	b := pgproto3.NewBackend(client, client)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return
	}
	b.Send(&pgproto3.AuthenticationOk{})
	for name, value := range map[string]string{"server_version": "17.0", "client_encoding": "UTF8", "standard_conforming_strings": "on"} {
		b.Send(&pgproto3.ParameterStatus{Name: name, Value: value})
	}
	b.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	var mine *pgconn.HijackedConn
	defer func() {
		if mine != nil {
			p.free <- mine
		}
	}()
	for b.Flush() == nil {
		m, err := b.Receive()
		if _, end := m.(*pgproto3.Terminate); err != nil || end {
			return
		}
		if mine == nil {
			mine = <-p.free
		}
		mine.Frontend.Send(m)
		switch m.(type) {
		case *pgproto3.Query, *pgproto3.Sync:
		default:
			continue
		}
		if mine.Frontend.Flush() != nil {
			return
		}
		for ready := false; !ready; {
			m, err := mine.Frontend.Receive()
			if err != nil {
				return
			}
			b.Send(m)
			var r *pgproto3.ReadyForQuery
			if r, ready = m.(*pgproto3.ReadyForQuery); ready && r.TxStatus == 'I' && !p.sessions {
				p.free <- mine
				mine = nil
			}
		}
	}
}

// A pooler that shares sessions between transactions is known, and refused; one
// that does not is none of our business.
func TestPooler(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17})
	s, err := Open(t.Context(), Config{Nodes: []string{startPooler(t, server, false)}})
	var refused *PoolerError
	if !errors.As(err, &refused) {
		t.Errorf("error %v, want that it is a pooler", err)
	}
	if s != nil {
		t.Error("and yet there is a session")
	}
	s = connected(t, Config{Shelves: shelves(packages(t, twoVersions))}, startPooler(t, server, true))
	do(t, s, install("p"))
}

// On a network that swallows everything nothing is waited for without end.
func TestDeadNetwork(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17})
	proxy := pgtest.NewProxy(t, server.Addr())
	s, err := Open(t.Context(), Config{Nodes: []string{proxy.Conninfo(server)}})
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tx, err := s.primary.conn.BeginTx(t.Context(), pgx.TxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	proxy.Freeze(pgtest.Both)
	begun := time.Now()
	if err := rollback(t.Context(), tx); err != nil {
		t.Errorf("rollback: %v", err)
	}
	if err := unlock(); err != nil {
		t.Errorf("unlock: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if took := time.Since(begun); took > 3*patience {
		t.Errorf("it took %v to give up", took)
	}
}

// A list of libraries that was taken out of the configuration is not what the next
// start loads, although the server has loaded it: nothing of it is put back.
func TestPreloadReset(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 18})
	server.Exec("ALTER SYSTEM SET shared_preload_libraries = 'auto_explain'")
	server.Stop(pgserver.Fast)
	server.Start()
	server.Exec("ALTER SYSTEM RESET shared_preload_libraries")
	s := connected(t, Config{Shelves: shelves(preloaded(t, server, true))}, server.Conninfo(""))
	if list, err := s.primary.nextLibraries(t.Context(), sharedPreload); err != nil || len(list) > 0 {
		t.Errorf("the next start loads %q (%v), want nothing", list, err)
	}
	_, err := try(t.Context(), s, install("pre"), false)
	var restart *RestartError
	if !errors.As(err, &restart) {
		t.Fatalf("error %v, want that the server must be restarted", err)
	}
	if conf := autoConf(server); strings.Contains(conf, "auto_explain") || !strings.Contains(conf, "shared_preload_libraries = 'pre'") {
		t.Errorf("want only pre in\n%s", conf)
	}
}

// A library that the server has loaded when it started is the old one until it is
// started again, in new sessions, too: the plan says so.
func TestPreloadReplaced(t *testing.T) {
	t.Parallel()
	server, s := withRnd(t)
	if p := plan(t, s, upgrade("rnd=1.1")); len(p.Restart) > 0 {
		t.Errorf("restarts %q, want none: nobody preloads it", p.Restart)
	}
	server.Exec("ALTER SYSTEM SET shared_preload_libraries = 'rnd'")
	server.Stop(pgserver.Fast)
	server.Start()
	s = connected(t, Config{Shelves: shelves(rnd(t, server))}, server.Conninfo(""))
	if p := plan(t, s, upgrade("rnd=1.1")); !says(p.Restart, "rnd.so", s.primary.o.Node) {
		t.Errorf("restarts %q, want that the library is loaded", p.Restart)
	}
}

// What was brought to one node and not to the other is brought by us, and not to be
// copied by hand: doctor says by which command, and that does it.
func TestDoctorBringsAgain(t *testing.T) {
	t.Parallel()
	primary, standby := pool(t, 18, nil)
	shelf := rnd(t, primary)
	do(t, connected(t, Config{Shelves: shelves(shelf)}, primary.Conninfo("")), byPath("rnd=1.0"))
	s := connected(t, Config{Shelves: shelves(shelf)}, primary.Conninfo(""), standby.Conninfo(""))
	lsn, err := s.insertLSN(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if late, err := s.standbys[0].replayed(t.Context(), lsn); err != nil || late != "" {
		t.Fatal(late, err)
	}
	x, err := s.Doctor(t.Context(), DoctorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !finds(x, No, "rideau extension install rnd", "cannot load") || !finds(x, No, "rideau extension install rnd", "rnd.so of rnd is missing") {
		t.Errorf("found %+v", x.Findings)
	}
	do(t, s, install("rnd"))
	if err := s.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if x, err = s.Doctor(t.Context(), DoctorOptions{}); err != nil || finds(x, No, "") {
		t.Errorf("found %+v (%v)", x.Findings, err)
	}
}
