package extension

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"rideau/extension/registry"
	"rideau/internal/pgtest"
)

// rnd makes packages with a library, contrib's tablefunc under another name, in
// three builds, of which the last has a script that fails; another that brings one
// of that name too, and two that share one.
func rnd(t *testing.T, server *pgtest.Server) *registry.Registry {
	t.Helper()
	lib := server.QueryValue("SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'")
	data, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(server.QueryValue("SELECT encode(pg_read_binary_file($1), 'base64')", lib+"/tablefunc.so"), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	const function = "CREATE FUNCTION rnd(int4, float8, float8) RETURNS SETOF float8 LANGUAGE C AS 'MODULE_PATHNAME', 'normal_rand';\n"
	control := func(name, version, more string) string {
		return fmt.Sprintf("name = %s\nversion = %s\nmodule_pathname = '$libdir/rnd'\n%s", name, version, more)
	}
	dir := t.TempDir()
	writeTree(t, dir, `
-- rnd-1.0/control --
`+control("rnd", "1.0", "comment = 'it''s random'\n")+`
-- rnd-1.0/install.sql --
`+function+`
-- rnd-1.1/control --
`+control("rnd", "1.1", "")+`
-- rnd-1.1/install.sql --
`+function+`
CREATE TABLE rnd();
-- rnd-1.1/upgrade/1.0--1.1.sql --
CREATE TABLE rnd();
-- rnd-1.2/control --
`+control("rnd", "1.2", "")+`
-- rnd-1.2/install.sql --
`+function+`

SELECT 1;
SELECT nothing;
-- rnd-1.2/upgrade/1.1--1.2.sql --
SELECT 1;
SELECT nothing;
-- thief/control --
`+control("thief", "1.0", "")+`
-- thief/install.sql --
`+function+`
-- trusted/control --
`+strings.Replace(control("trusted", "1.0", "trusted = true\n"), "$libdir/rnd", "$libdir/trusted", 1)+`
-- trusted/install.sql --
`+function+`
-- twin/control --
`+strings.Replace(control("twin", "1.0", ""), "$libdir/rnd", "$libdir/trusted", 1)+`
-- twin/install.sql --
`+strings.Replace(function, "rnd(", "twin(", 1))
	for place, build := range map[string]string{
		"rnd-1.0/lib/rnd.so": "0", "rnd-1.1/lib/rnd.so": "1", "rnd-1.2/lib/rnd.so": "2", "thief/lib/rnd.so": "thief",
		"trusted/lib/trusted.so": "both", "twin/lib/trusted.so": "both",
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(place)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, place), append(slices.Clone(data), build...), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return directory(t, dir)
}

// withRnd is a server that has rnd 1.0 in its store, and a session there.
func withRnd(t *testing.T) (*pgtest.Server, *Session) {
	t.Helper()
	server := pgtest.Start(t, pgtest.Options{Major: 18})
	s := connected(t, Config{Shelves: shelves(rnd(t, server))}, server.Conninfo(""))
	do(t, s, byPath("rnd=1.0"))
	return server, s
}

func byPath(wishes ...string) Request {
	req := install(wishes...)
	req.Mode = Path
	return req
}

// store lists what is in the store of a server, with the sha256 of each file.
func store(t *testing.T, s *pgtest.Server) map[string]string {
	t.Helper()
	list := map[string]string{}
	for _, dir := range []string{storeControls, storeLibraries, storeManifests} {
		for _, row := range s.Query("SELECT f, encode(sha256(pg_read_binary_file('rideau/' || $1::text || '/' || f)), 'hex') FROM pg_ls_dir('rideau/' || $1::text, true, false) f", dir) {
			list[dir+"/"+row[0]] = row[1]
		}
	}
	return list
}

func plan(t *testing.T, s *Session, req Request) *Plan {
	t.Helper()
	if err := s.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := s.Plan(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func says(list []string, words ...string) bool {
	return slices.ContainsFunc(list, func(text string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
	})
}

func finds(x *Examination, v Verdict, fix string, words ...string) bool {
	return slices.ContainsFunc(x.Findings, func(f Finding) bool {
		return f.Verdict == v && says([]string{f.What}, words...) && (fix == "" || says(f.Fix, fix))
	})
}

// Files that were brought are there as long as a database needs them, on every
// node; whoever changes them for others says so.
func TestStore(t *testing.T) {
	t.Parallel()
	primary, standby := pool(t, 18, nil)
	nodes := []*pgtest.Server{primary, standby}
	shelf := rnd(t, primary)
	primary.Exec("CREATE DATABASE two")
	open := func(database string, shelves ...*registry.Registry) *Session {
		standby.WaitLSN(primary.LSN())
		return connected(t, Config{Shelves: shelves}, primary.Conninfo("dbname="+database), standby.Conninfo("dbname="+database))
	}
	s := open("postgres", shelf)
	req := byPath("rnd=1.0")
	req.Install[0].Schema = "r"
	p, err := s.Plan(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Paths) != 4 || !strings.Contains(p.Paths[0].SQL(), `ALTER SYSTEM SET "extension_control_path" = '$system:/`) {
		t.Errorf("the plan has search paths %+v, want two of each node", p.Paths)
	}
	report, err := s.Apply(t.Context(), p, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Set) != 4 || !says(report.Set, "dynamic_library_path at "+s.standbys[0].o.Node) {
		t.Errorf("reported as set are %q", report.Set)
	}
	for _, n := range nodes {
		if got := names(store(t, n)); !slices.Equal(got, []string{"extension/rnd--1.0.sql", "extension/rnd.control", "lib/rnd.so", "packages/rnd.json"}) {
			t.Errorf("%s has %q", n, got)
		}
	}
	if got := primary.QueryValue("SELECT comment FROM pg_available_extensions WHERE name = 'rnd'"); got != "it's random "+broughtMark {
		t.Errorf("the comment is %q", got)
	}

	// For another database nothing needs to be brought; another version replaces
	// what is there.
	two := open("two", shelf)
	if p = plan(t, two, byPath("rnd=1.0")); len(p.Files)+len(p.Paths) > 0 || len(p.Steps) != 1 {
		t.Errorf("the plan brings %d files, and sets %+v", len(p.Files), p.Paths)
	}
	if p = plan(t, two, byPath("rnd=1.1")); len(p.Files) != 2*5 {
		t.Errorf("the plan brings %d files, want 5 to each node", len(p.Files))
	}
	report = do(t, two, byPath("rnd=1.1"))
	if !says(report.Notes, "lib/rnd.so", "is replaced", `database "postgres" has rnd 1.0`, "until they end") ||
		!says(report.Notes, "extension/rnd.control", "default version", `database "postgres" has rnd 1.0`) {
		t.Errorf("notes %q do not say that rnd is replaced for the other database", report.Notes)
	}
	var taken *TakenError
	if _, err := try(t.Context(), two, byPath("thief"), false); !errors.As(err, &taken) || taken.Other != "rnd" || !slices.Equal(taken.Files, []string{"lib/rnd.so"}) {
		t.Errorf("error %v, want that the library is rnd's", err)
	}

	uninstall := Request{Uninstall: []string{"rnd"}}
	report = do(t, two, uninstall)
	if !says(report.Notes, "stay", `database "postgres" has rnd 1.0`) || len(report.Removed) > 0 {
		t.Errorf("notes %q, removed %q; want that the files stay", report.Notes, report.Removed)
	}
	if got := len(store(t, standby)); got != 6 {
		t.Errorf("%d files are there, want those of both versions: %q", got, names(store(t, standby)))
	}
	// That another has it by now is seen after the commit as well.
	if p = plan(t, s, uninstall); len(p.Remove) != 2 {
		t.Fatalf("the plan removes %+v, notes %q", p.Remove, p.Notes)
	}
	primary.Exec("CREATE DATABASE three")
	three := connected(t, Config{}, primary.Conninfo("dbname=three"))
	value(t, three, "CREATE EXTENSION rnd SCHEMA public; SELECT 1")
	if err := three.Close(); err != nil {
		t.Fatal(err)
	}
	if report, err = s.Apply(t.Context(), p, false); err != nil || len(report.Removed) > 0 || !says(report.Notes, "stay", `database "three" has rnd 1.1`) {
		t.Errorf("report %+v, %v; want that the files stay for three", report, err)
	}
	if got := primary.QueryValue("SELECT count(*) FROM pg_namespace WHERE nspname = 'r'"); got != "0" {
		t.Error("the schema that was made for rnd is left")
	}
	// One that cannot be asked may have it.
	primary.Exec("ALTER DATABASE three ALLOW_CONNECTIONS false")
	s = open("postgres")
	x, err := s.Doctor(t.Context(), DoctorOptions{})
	if err != nil || !finds(x, Note, "", "whether anybody needs the files of rnd", `database "three"`) {
		t.Errorf("the doctor says %+v, %v", x, err)
	}
	if p = plan(t, s, uninstall); !p.Empty() {
		t.Errorf("the plan removes %+v", p.Remove)
	}
	report = do(t, s, uninstall)
	if !says(report.Notes, "stay", `database "three" cannot be asked`) || len(report.Removed) > 0 {
		t.Errorf("notes %q, removed %q; want that the files stay because of three", report.Notes, report.Removed)
	}
	primary.Exec("DROP DATABASE three")
	if x, err = s.Doctor(t.Context(), DoctorOptions{}); err != nil || !finds(x, Note, "rideau extension uninstall rnd", "the files of rnd 1.1", s.standbys[0].o.Node) {
		t.Errorf("the doctor says %+v, %v", x, err)
	}

	// Until a standby has replayed that rnd is gone, it may need its files.
	standby.Exec("SELECT pg_wal_replay_pause()")
	standby.WaitQuery("paused", "SELECT pg_get_wal_replay_pause_state()")
	primary.Exec("CREATE SCHEMA more")
	if err := s.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	p = &Plan{Database: "postgres", Remove: []Removal{{Node: s.standbys[0].o.Node, Extension: "rnd"}}}
	report = &Report{}
	if failed := s.remove(t.Context(), p, report); len(failed) > 0 || len(report.Removed) > 0 || !says(report.Notes, "the files of rnd stay at "+s.standbys[0].o.Node, "paused") {
		t.Errorf("failed %v, removed %q, notes %q; want that the standby is not ready", failed, report.Removed, report.Notes)
	}
	standby.Exec("SELECT pg_wal_replay_resume()")

	// Without its library the standby would let nobody in.
	standby.Exec("ALTER SYSTEM SET session_preload_libraries = '$libdir/rnd'")
	report = do(t, s, uninstall)
	if !says(report.Notes, "lib/rnd.so stays at "+s.standbys[0].o.Node, sessionPreload) || len(report.Removed) != 2 {
		t.Errorf("notes %q, removed %q; want that one library stays", report.Notes, report.Removed)
	}
	if got := names(store(t, standby)); !slices.Equal(got, []string{"lib/rnd.so", "packages/rnd.json"}) {
		t.Errorf("the standby has %q", got)
	}
	standby.Exec("ALTER SYSTEM RESET session_preload_libraries")
	do(t, s, uninstall)
	for _, n := range nodes {
		if got := n.QueryValue("SELECT count(*) FROM pg_ls_dir('.') d WHERE d = 'rideau'"); got != "0" {
			t.Errorf("the store of %s is left, with %q", n, names(store(t, n)))
		}
	}
	var absent *NotInstalledError
	if _, err := try(t.Context(), s, uninstall, false); !errors.As(err, &absent) {
		t.Errorf("error %v, want that it is not there", err)
	}
}

// A removal that fails is not forgotten.
func TestRemovalAgain(t *testing.T) {
	t.Parallel()
	server, s := withRnd(t)
	lib := filepath.Join(server.QueryValue("SHOW data_directory"), "rideau/lib")
	if err := os.Chmod(lib, 0o555); err != nil {
		t.Fatal(err)
	}
	uninstall := Request{Uninstall: []string{"rnd"}}
	var unfinished *UnfinishedError
	if _, err := try(t.Context(), s, uninstall, false); !errors.As(err, &unfinished) || !strings.Contains(err.Error(), "files of rnd at "+s.primary.o.Node) {
		t.Errorf("error %v, want that files are left", err)
	}
	if got := installed(t, s); len(got) != 0 {
		t.Errorf("installed are %q", got)
	}
	if err := os.Chmod(lib, 0o755); err != nil {
		t.Fatal(err)
	}
	if report := do(t, s, uninstall); len(report.Removed) != 1 || len(store(t, server)) != 0 {
		t.Errorf("removed are %q, left %q", report.Removed, store(t, server))
	}
	// A library that two have brought goes with the second.
	do(t, s, byPath("trusted", "twin"))
	do(t, s, Request{Uninstall: []string{"twin"}})
	if got := names(store(t, server)); !slices.Equal(got, []string{"extension/trusted--1.0.sql", "extension/trusted.control", "lib/trusted.so", "packages/trusted.json"}) {
		t.Errorf("without twin there are %q", got)
	}
	do(t, s, Request{Uninstall: []string{"trusted"}})
	if got := names(store(t, server)); len(got) != 0 {
		t.Errorf("left are %q", got)
	}

	// What an older program brought is left alone, and said.
	do(t, s, byPath("rnd=1.0"))
	server.Exec("COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; rm rideau/packages/rnd.json'")
	if x, err := s.Doctor(t.Context(), DoctorOptions{}); err != nil || !finds(x, Note, "", "the files of rnd", "without a list") {
		t.Errorf("the doctor says %+v, %v", x, err)
	}
	if report := do(t, s, uninstall); !says(report.Notes, "the files of rnd stay", "left no list") || len(store(t, server)) != 3 {
		t.Errorf("notes %q, left %q", report.Notes, names(store(t, server)))
	}
}

// What a manifest may name is in the store, and nowhere else.
func TestManifestOutside(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"/etc/passwd", "lib/../../postgresql.conf", "../PG_VERSION", "packages/other.json", "lib", "lib/./x", ""} {
		if inStore(file) {
			t.Errorf("%q is in the store", file)
		}
		m := StoredPackage{Format: manifestFormat, Name: "foo", Files: []StoredFile{{Path: file}}}
		if _, err := readManifest(manifestPath("foo"), m.text()); err == nil {
			t.Errorf("a manifest with %q was read", file)
		}
	}
	good := StoredPackage{Format: manifestFormat, Name: "foo", Files: []StoredFile{{Path: "lib/foo.so"}}}
	if _, err := readManifest(manifestPath("foo"), good.text()); err != nil {
		t.Error(err)
	}
	if _, err := readManifest(manifestPath("bar"), good.text()); err == nil {
		t.Error("foo's manifest is bar's")
	}
	n := &node{o: &Observed{DataDir: "/data"}}
	for _, file := range []string{"/data/postgresql.conf", "/data/rideau/../PG_VERSION", "/data/rideau2/x"} {
		if err := n.removeStored(t.Context(), []string{file}); err == nil {
			t.Errorf("%q was removed", file)
		}
	}
}

// A control file with the mark is read by the server as it was, whatever its
// comment.
func TestMark(t *testing.T) {
	t.Parallel()
	for comment, want := range map[string]string{
		"":                       "comment = '" + broughtMark + "'\n",
		`it's a "\"`:             `comment = 'it''s a "\\" ` + broughtMark + "'\n",
		"already " + broughtMark: "",
	} {
		if got := string(marked([]byte("superuser = true"), comment)); got != "superuser = true\n"+want && (want != "" || got != "superuser = true") {
			t.Errorf("%q is marked as %q", comment, got)
		}
	}
}

// After a failure before or in the transaction all is as it was, or it is said
// what is not.
func TestPathUndone(t *testing.T) {
	t.Parallel()
	primary, standby := pool(t, 18, nil)
	nodes := []*pgtest.Server{primary, standby}
	primary.Exec("ALTER SYSTEM SET extension_control_path = '$system:/elsewhere'")
	primary.Reload()
	primary.WaitQuery("$system:/elsewhere", "SHOW extension_control_path")
	cfg := Config{Shelves: shelves(rnd(t, primary))}
	s := connected(t, cfg, primary.Conninfo(""), standby.Conninfo(""))
	type state struct {
		auto, control, library string
		files                  map[string]string
	}
	states := func() (list []string) {
		for _, n := range nodes {
			list = append(list, fmt.Sprintf("%+v", state{
				strings.Join(slices.Sorted(strings.Lines(autoConf(n))), ""), n.QueryValue("SHOW extension_control_path"), n.QueryValue("SHOW dynamic_library_path"), store(t, n),
			}), n.QueryValue("SELECT count(*) FROM pg_ls_dir('.') d WHERE d = 'rideau'"))
		}
		return list
	}
	same := func(what string, was []string) {
		t.Helper()
		if now := states(); !slices.Equal(was, now) {
			t.Errorf("%s: it was\n%s\nand is\n%s", what, strings.Join(was, "\n"), strings.Join(now, "\n"))
		}
	}
	failing := func(what, file string, line int, req Request) {
		t.Helper()
		was := states()
		_, err := try(t.Context(), s, req, false)
		var script *ScriptError
		if !errors.As(err, &script) || script.File != file || script.Line != line || script.Column != 8 || !strings.HasPrefix(script.Statement, "SELECT nothing") {
			t.Errorf("%s: error %+v, want one in line %d of %s", what, err, line, file)
		}
		same(what, was)
	}
	failing("an installation", "install.sql", 5, byPath("rnd=1.2"))
	do(t, s, byPath("rnd=1.1"))
	req := upgrade("rnd=1.2")
	req.Mode = Path
	failing("an upgrade", "upgrade/1.1--1.2.sql", 2, req)
	do(t, s, Request{Uninstall: []string{"rnd"}})

	// Given up between two nodes.
	for _, n := range nodes {
		n.Exec("ALTER SYSTEM RESET dynamic_library_path")
		n.Reload()
		n.WaitQuery("$libdir", "SHOW dynamic_library_path")
	}
	was := states()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log := cfg
	log.Log = slog.New(onMessage{slog.DiscardHandler, func(text string) {
		if text == "setting" {
			cancel()
		}
	}})
	given := connected(t, log, primary.Conninfo(""), standby.Conninfo(""))
	if _, err := try(ctx, given, byPath("rnd=1.0"), false); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that it was cancelled", err)
	}
	same("a cancellation", was)

	// What cannot be undone is said.
	lib := filepath.Join(standby.QueryValue("SHOW data_directory"), "rideau/lib")
	log.Log = slog.New(onMessage{slog.DiscardHandler, func(text string) {
		if text == "install" {
			if err := os.Chmod(lib, 0o555); err != nil {
				t.Error(err)
			}
		}
	}})
	s = connected(t, log, primary.Conninfo(""), standby.Conninfo(""))
	_, err := try(t.Context(), s, byPath("rnd=1.2"), false)
	var left *LeftError
	var script *ScriptError
	if !errors.As(err, &left) || errors.As(err, &script) || len(left.Left) != 1 || !says(left.Left, lib, "at "+s.standbys[0].o.Node) || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("error %v, want that files at the standby are left", err)
	}
	if err := os.Chmod(lib, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := store(t, primary); len(got) != 0 {
		t.Errorf("the primary has %q", names(got))
	}
}

// What a superuser has brought for one database is no reason to refuse the owner
// of another one his package.
func TestOwnerBesidePath(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 18})
	text := strings.ReplaceAll(thePost, "name = baz\n", "name = baz\nsuperuser = false\n")
	shelf := packages(t, text)
	libs := rnd(t, server)
	super := connected(t, Config{Shelves: shelves(shelf, libs)}, server.Conninfo(""))
	do(t, super, byPath("foo", "trusted"))
	low := connected(t, Config{Shelves: shelves(shelf)}, owner(t, server, "low"))
	if got := low.Observed().Stored; !slices.Contains(got, "foo") || !slices.Contains(got, "baz") {
		t.Errorf("an owner sees that we have brought %q", got)
	}
	p, err := low.Plan(t.Context(), install("foo"))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range p.Steps {
		if step.Mode != Module {
			t.Errorf("%s is installed as %s, want a module", step.Name, step.Mode)
		}
	}
	if _, err := low.Apply(t.Context(), p, false); err != nil {
		t.Fatal(err)
	}
	// A library that the server trusts: by its files, which no module can have.
	also := connected(t, Config{Shelves: shelves(libs)}, server.Conninfo("user=low dbname=low"))
	do(t, also, install("trusted"))
	if in, ok := also.Observed().Find("trusted"); ok && in.Mode != Native {
		t.Errorf("trusted is %+v", in)
	}
	report := do(t, also, Request{Uninstall: []string{"trusted"}})
	if !says(report.Notes, "the files of trusted stay", "superuser") {
		t.Errorf("notes %q do not say that files stay", report.Notes)
	}
	// The server's own are as protected as ever.
	if p, err := connected(t, Config{Shelves: shelves(packages(t, "-- hstore/control --\nname = hstore\nversion = 99\n-- hstore/install.sql --\nSELECT 1;\n"))}, server.Conninfo("user=low dbname=low")).Plan(t.Context(), install("hstore")); err != nil || p.Steps[0].To == "99" {
		t.Errorf("hstore: %+v, %v", p, err)
	}
}

// What was brought and is gone is found, and brought again.
func TestFilesLost(t *testing.T) {
	t.Parallel()
	primary, standby := pool(t, 18, nil)
	shelf := rnd(t, primary)
	conninfo := []string{primary.Conninfo(""), standby.Conninfo("")}
	s := connected(t, Config{Shelves: shelves(shelf)}, conninfo...)
	do(t, s, byPath("rnd=1.0"))
	want := store(t, primary)
	whole := func(what string) {
		t.Helper()
		for _, n := range []*pgtest.Server{primary, standby} {
			if got := store(t, n); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %s has %v, want %v", what, n, got, want)
			}
		}
		if p := plan(t, s, install("rnd")); !p.Empty() {
			t.Errorf("%s: something is left to do: %+v, notes %q", what, p.Steps, p.Notes)
		}
	}
	whole("at first")
	lose := func(what string, nodes ...*pgtest.Server) {
		for _, n := range nodes {
			if err := os.RemoveAll(filepath.Join(n.QueryValue("SHOW data_directory"), "rideau", what)); err != nil {
				t.Fatal(err)
			}
		}
	}
	lose("lib/rnd.so", standby)
	x, err := s.Doctor(t.Context(), DoctorOptions{})
	if err != nil || x.Healthy() || !finds(x, No, "rideau extension install rnd", "rideau/lib/rnd.so at "+s.standbys[0].o.Node, "is gone") {
		t.Errorf("the doctor says %+v, %v", x, err)
	}
	do(t, s, install("rnd=1.0"))
	whole("from the package")
	lose("lib/rnd.so", standby)
	lose("extension/rnd--1.0.sql", standby)
	do(t, connected(t, Config{}, conninfo...), install("rnd=1.0"))
	whole("from the other node")
	lose("", standby)
	do(t, s, install("rnd=1.0"))
	whole("a whole store")
	lose("lib/rnd.so", primary, standby)
	bare := connected(t, Config{}, conninfo...)
	if p := plan(t, bare, install("rnd")); !says(p.Notes, "lib/rnd.so", "cannot be brought again") {
		t.Errorf("notes %q", p.Notes)
	}
	do(t, s, install("rnd=1.0"))
	whole("both libraries")
	lose("", primary, standby)
	do(t, s, byPath("rnd=1.0"))
	whole("everything")
	standby.Exec("ALTER SYSTEM RESET dynamic_library_path")
	standby.Reload()
	standby.WaitQuery("$libdir", "SHOW dynamic_library_path")
	do(t, s, install("rnd=1.0"))
	if got := standby.QueryValue("SHOW dynamic_library_path"); !strings.HasSuffix(got, "/rideau/lib") {
		t.Errorf("the search path is %q", got)
	}
	if x, err := s.Doctor(t.Context(), DoctorOptions{}); err != nil || !x.Healthy() {
		t.Errorf("the doctor says %+v, %v", x, err)
	}
}

// What an uninstallation leaves is named, and what was made for an extension goes
// with it.
func TestLeftBehind(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17})
	server.Exec("ALTER SYSTEM SET shared_preload_libraries = pg_stat_statements, auto_explain")
	s := connected(t, Config{Shelves: shelves(aLibrary(t, server), packages(t, fmt.Sprintf(withSettings, "'1min'", "'99MB'")))}, server.Conninfo(""))
	req := install("hstore", "numbers=1.1", "pg_stat_statements")
	req.Install[0].Schema, req.Install[1].Schema, req.Install[1].Mode = "h", "n", Graft
	report := do(t, s, req)
	if says(report.Notes, "speaks of") && !says(report.Notes, "pg_stat_statements") {
		t.Errorf("notes %q", report.Notes)
	}
	do(t, s, Request{Install: install("l").Install, Mode: Module})
	server.Exec("ALTER SYSTEM RESET archive_timeout")
	up := upgrade("numbers=1.2")
	up.Mode = Graft
	do(t, s, up)
	report = do(t, s, Request{Uninstall: []string{"hstore", "numbers", "pg_stat_statements", "l"}})
	if !says(report.Notes, `schema "h" is empty now`, "DROP SCHEMA") {
		t.Errorf("notes %q do not name the schema of hstore", report.Notes)
	}
	if !says(report.Notes, "maintenance_work_mem", "foo.conf of l", "ALTER SYSTEM RESET") || says(report.Notes, "archive_timeout") {
		t.Errorf("notes %q, want that one setting stays", report.Notes)
	}
	if !says(report.Notes, "the library of pg_stat_statements stays", s.primary.o.Node, `ALTER SYSTEM SET "shared_preload_libraries" = 'auto_explain'`) {
		t.Errorf("notes %q do not name the library", report.Notes)
	}
	if got := server.QueryValue("SELECT coalesce(string_agg(nspname, ' ' ORDER BY 1), '') FROM pg_namespace WHERE nspname IN ('h', 'n')"); got != "h" {
		t.Errorf("schemas %q are left, want h", got)
	}
	if got := store(t, server); len(got) != 0 {
		t.Errorf("left are %q", names(got))
	}
}

// A library that says that it must be preloaded is known.
func TestSpeaksOfPreload(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			server := pgtest.Start(t, pgtest.Options{Major: major})
			s := connected(t, Config{}, server.Conninfo(""))
			report := do(t, s, install("pg_stat_statements", "hstore"))
			if !says(report.Notes, "pg_stat_statements", "is not in it at "+s.primary.o.Node) || says(report.Notes, "hstore", "speaks") {
				t.Errorf("notes %q, want one about pg_stat_statements", report.Notes)
			}
			do(t, s, Request{Uninstall: []string{"pg_stat_statements"}})
			server.Exec("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
			server.Restart()
			s = connected(t, Config{}, server.Conninfo(""))
			if report = do(t, s, install("pg_stat_statements")); says(report.Notes, "speaks") {
				t.Errorf("notes %q of a library that is preloaded", report.Notes)
			}
		})
	}
}

// What a dry run has left that was killed goes, and that of another does not.
func TestStaleRehearsal(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 18})
	s := connected(t, Config{Shelves: shelves(packages(t, twoVersions))}, server.Conninfo(""))
	other := connected(t, Config{}, server.Conninfo(""))
	live, err := newRehearsal(t.Context(), other.primary.conn)
	if err != nil {
		t.Fatal(err)
	}
	data := server.QueryValue("SHOW data_directory")
	stale, old := "rideau-rehearsal-1-64fa", "rideau-rehearsal-abcdefghijklmnopqrstuvwxyz"
	for _, name := range []string{live, stale, old} {
		if err := s.primary.write(t.Context(), filepath.Join(data, name, "lib/a"), []byte("a")); err != nil {
			t.Fatal(err)
		}
	}
	left := func() []string {
		return strings.Fields(server.QueryValue("SELECT coalesce(string_agg(d, ' ' ORDER BY d), '') FROM pg_ls_dir('.') d WHERE d ~ '^rideau-'"))
	}
	x, err := s.Doctor(t.Context(), DoctorOptions{})
	if err != nil || !finds(x, Note, "", stale, "killed") || !finds(x, Note, "", old) || finds(x, Note, "", live) {
		t.Errorf("the doctor says %+v, %v", x, err)
	}
	do(t, s, install("p=1.0"))
	want := []string{live, old}
	slices.Sort(want)
	if got := left(); !slices.Equal(got, want) {
		t.Errorf("left are %q, want %q", got, want)
	}
	n := s.primary
	for _, dir := range []string{data, data + "/base", data + "/rideau", "/tmp/rideau-rehearsal-1-1", data + "/rideau-rehearsal-1-1/.."} {
		if err := n.removeFolder(t.Context(), n.conn, dir); err == nil {
			t.Fatalf("%s was removed", dir)
		}
	}
}

// The lock of the database is waited for as long as those of tables.
func TestLockWait(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17})
	unlock, err := connected(t, Config{}, server.Conninfo("")).lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := connected(t, Config{LockTimeout: 200 * time.Millisecond, Tries: 3}, server.Conninfo(""))
	begun := time.Now()
	var locked *LockedError
	if _, err := s.lock(t.Context()); !errors.As(err, &locked) || locked.Tries != 3 {
		t.Errorf("error %v, want that it is locked", err)
	}
	if took := time.Since(begun); took < 600*time.Millisecond || took > 3*time.Second {
		t.Errorf("the lock was waited for for %v, want 3 times 200 ms", took)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
}

// A library is refused if the server would find another of its name first.
func TestShadowed(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 18})
	dir := t.TempDir()
	writeTree(t, dir, `
-- mine/control --
name = mine
version = 1.0
module_pathname = '$libdir/tablefunc'
-- mine/install.sql --
CREATE FUNCTION rnd(int4, float8, float8) RETURNS SETOF float8 LANGUAGE C AS 'MODULE_PATHNAME', 'normal_rand';
-- mine/lib/tablefunc.so --
not that of the server
`)
	s := connected(t, Config{Shelves: shelves(directory(t, dir))}, server.Conninfo(""))
	var shadowed *ShadowedError
	if _, err := s.Plan(t.Context(), byPath("mine")); !errors.As(err, &shadowed) || shadowed.Library != "tablefunc.so" {
		t.Errorf("error %v, want that the server has another tablefunc.so", err)
	}
}

// What is recorded of an extension that somebody has dropped goes with the next
// uninstallation, whether there are still files of it or not, and doctor is content.
func TestForgotten(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 18})
	server.Exec("CREATE DATABASE two")
	shelf := rnd(t, server)
	s := connected(t, Config{Shelves: shelves(shelf)}, server.Conninfo(""))
	two := connected(t, Config{Shelves: shelves(shelf)}, server.Conninfo("dbname=two"))
	byHand := func(x *Examination) bool { return finds(x, Note, "rideau extension uninstall rnd", "dropped by hand") }
	examine := func() *Examination {
		t.Helper()
		if err := s.refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		x, err := s.Doctor(t.Context(), DoctorOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	for _, kept := range []bool{true, false} { // by the other database
		do(t, s, byPath("rnd=1.0"))
		if kept {
			do(t, two, byPath("rnd=1.0"))
		}
		server.Exec("DROP EXTENSION rnd")
		if !byHand(examine()) {
			t.Errorf("doctor does not say that it was dropped")
		}
		do(t, s, Request{Uninstall: []string{"rnd"}})
		if byHand(examine()) {
			t.Errorf("it is recorded still")
		}
		if _, there := store(t, server)["lib/rnd.so"]; there != kept {
			t.Errorf("its files are there: %v, want %v", there, kept)
		}
		if kept {
			do(t, two, Request{Uninstall: []string{"rnd"}})
		}
		var absent *NotInstalledError
		if _, err := try(t.Context(), s, Request{Uninstall: []string{"rnd"}}, false); !errors.As(err, &absent) {
			t.Errorf("error %v, want that it is not installed", err)
		}
	}
}

// A file that was to be replaced, and was not, is as it was: nothing is left to say
// of it, also where nothing can be written.
func TestNotReplaced(t *testing.T) {
	t.Parallel()
	server, s := withRnd(t)
	n := s.primary
	name := n.store(false) + "/" + manifestPath("rnd")
	was, err := n.readFile(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	j := &journal{files: []broughtFile{{n: n, path: name, had: true, was: was}}}
	server.Exec("COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; chmod 500 rideau/packages'")
	cause := errors.New("the cause")
	if err := j.undo(t.Context(), cause); err != cause {
		t.Errorf("error %v, want the cause alone", err)
	}
	j.files[0].was = []byte("other")
	var left *LeftError
	if err := j.undo(t.Context(), cause); !errors.As(err, &left) || len(left.Left) != 1 {
		t.Errorf("error %v, want what is left", err)
	}
	server.Exec("COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; chmod 700 rideau/packages'")
}
