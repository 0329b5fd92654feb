package extension

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"rideau/extension/resolve"
	"rideau/internal/pgtest"
)

// thePost is the example of 2010: foo 1.0 depends on bar (>= 1.1) and baz, and
// conflicts with bla (< 0.8). Around it the versions with which every outcome
// can be had.
const thePost = `
-- foo-1.0/control --
name = foo
version = 1.0
custom_variable_classes = 'foo'
depends = bar (>= 1.1), baz
conflicts = bla (< 0.8)
-- foo-1.0/install.sql --
CREATE FUNCTION foo() RETURNS text LANGUAGE sql AS $$ SELECT 'foo ' || bar() || ' ' || baz() $$;
CREATE TABLE foo_log (at timestamptz DEFAULT now(), what text);
-- foo-1.1/control --
name = foo
version = 1.1
depends = bar (>= 1.1), baz
conflicts = bla (< 0.8)
-- foo-1.1/install.sql --
CREATE FUNCTION foo() RETURNS text LANGUAGE sql AS $$ SELECT 'foo 1.1 ' || bar() || ' ' || baz() $$;
CREATE TABLE foo_log (at timestamptz DEFAULT now(), what text, who name);
-- foo-1.1/upgrade/1.0--1.1.sql --
CREATE OR REPLACE FUNCTION foo() RETURNS text LANGUAGE sql AS $$ SELECT 'foo 1.1 ' || bar() || ' ' || baz() $$;
ALTER TABLE foo_log ADD who name;
-- bar-1.0/control --
name = bar
version = 1.0
-- bar-1.0/install.sql --
CREATE FUNCTION bar() RETURNS text LANGUAGE sql AS $$ SELECT 'bar 1.0' $$;
-- bar-1.1/control --
name = bar
version = 1.1
-- bar-1.1/install.sql --
CREATE FUNCTION bar() RETURNS text LANGUAGE sql AS $$ SELECT 'bar 1.1' $$;
-- bar-1.1/upgrade/1.0--1.1.sql --
CREATE OR REPLACE FUNCTION bar() RETURNS text LANGUAGE sql AS $$ SELECT 'bar 1.1' $$;
-- baz/control --
name = baz
version = 0.3
-- baz/install.sql --
CREATE FUNCTION baz() RETURNS text LANGUAGE sql AS $$ SELECT 'baz' $$;
-- bla-0.7/control --
name = bla
version = 0.7
-- bla-0.7/install.sql --
CREATE FUNCTION bla() RETURNS text LANGUAGE sql AS $$ SELECT 'bla 0.7' $$;
-- bla-0.8/control --
name = bla
version = 0.8
-- bla-0.8/install.sql --
CREATE FUNCTION bla() RETURNS text LANGUAGE sql AS $$ SELECT 'bla 0.8' $$;
-- bla-0.8/upgrade/0.7--0.8.sql --
CREATE OR REPLACE FUNCTION bla() RETURNS text LANGUAGE sql AS $$ SELECT 'bla 0.8' $$;
`

// part leaves only some of the packages of a text.
func part(text string, dirs ...string) string {
	var b strings.Builder
	keep := false
	for line := range strings.Lines(text) {
		if inner, ok := strings.CutPrefix(line, "-- "); ok && strings.HasSuffix(strings.TrimSpace(line), " --") {
			dir, _, _ := strings.Cut(inner, "/")
			keep = slices.Contains(dirs, dir)
		}
		if keep {
			b.WriteString(line)
		}
	}
	return b.String()
}

// The post's example, every outcome, as a plain owner of a database.
func TestThePost(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	all := []string{"foo-1.0", "bar-1.0", "bar-1.1", "baz", "bla-0.7", "bla-0.8"}
	without := func(names ...string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(names, s) })
	}
	tests := []struct {
		why     string
		before  Request
		known   []string
		request Request
		want    []string // installed then
		refused []string // parts of the explanation
	}{
		{"everything is there", install(), all, install("foo"),
			[]string{"bar 1.1 module public", "baz 0.3 module public", "foo 1.0 module public"}, nil},
		{"bar is there, and too old: it is upgraded", install("bar=1.0"), all, install("foo"),
			[]string{"bar 1.1 module public", "baz 0.3 module public", "foo 1.0 module public"}, nil},
		{"bla is there, and new enough", install("bla"), all, install("foo"),
			[]string{"bar 1.1 module public", "baz 0.3 module public", "bla 0.8 module public", "foo 1.0 module public"}, nil},
		{"bla is there, and too old: it is upgraded", install("bla=0.7"), all, install("foo"),
			[]string{"bar 1.1 module public", "baz 0.3 module public", "bla 0.8 module public", "foo 1.0 module public"}, nil},
		{"bla is there, too old, and held", install("bla=0.7"), all, Request{Install: install("foo").Install, Held: map[string]string{"bla": "--hold"}},
			[]string{"bla 0.7 module public"}, []string{"bla", "(< 0.8)", "0.7"}},
		{"bla is there, too old, and there is no newer", install("bla=0.7"), without("bla-0.8"), install("foo"),
			[]string{"bla 0.7 module public"}, []string{"bla (< 0.8)"}},
		{"bar is known, and too old", install(), without("bar-1.1"), install("foo"),
			nil, []string{"bar (>= 1.1)", "1.0"}},
		{"nobody knows baz", install(), without("baz"), install("foo"),
			nil, []string{"baz"}},
		{"foo and an old bla at once", install(), all, install("foo", "bla<0.8"),
			nil, []string{"bla (< 0.8)"}},
		{"foo, then an old bla", install("foo=1.0"), without("bla-0.8"), install("bla"),
			[]string{"bar 1.1 module public", "baz 0.3 module public", "foo 1.0 module public"}, []string{"bla (< 0.8)"}},
	}
	for i, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			conninfo := owner(t, server.For(t), fmt.Sprintf("post%d", i))
			before := connected(t, Config{Shelves: shelves(packages(t, thePost))}, conninfo)
			if len(tt.before.Install) > 0 {
				do(t, before, tt.before)
			}
			s := connected(t, Config{Shelves: shelves(packages(t, part(thePost, tt.known...)))}, conninfo)
			_, err := try(t.Context(), s, tt.request, false)
			if tt.refused == nil && err != nil {
				t.Fatal(err)
			}
			if got := installed(t, s); !slices.Equal(got, tt.want) {
				t.Errorf("installed are %q, want %q", got, tt.want)
			}
			if tt.refused == nil {
				if got, want := value(t, s, "SET search_path = public; SELECT foo()"), "foo bar 1.1 baz"; got != want {
					t.Errorf("foo() is %q, want %q", got, want)
				}
				return
			}
			var unsolvable *resolve.Unsolvable
			if !errors.As(err, &unsolvable) {
				t.Fatalf("error %v, want that it cannot be", err)
			}
			text := unsolvable.Explain()
			t.Logf("%s", text)
			for _, want := range tt.refused {
				if !strings.Contains(text, want) {
					t.Errorf("the explanation does not say %q:\n%s", want, text)
				}
			}
		})
	}
}

// A module's life, as a plain owner, on every version: install, upgrade, dump,
// restore elsewhere, status, what was changed by hand is seen, uninstall.
func TestModule(t *testing.T) {
	t.Parallel()
	for _, major := range pgtest.Some {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			server := pgtest.Start(t, pgtest.Options{Major: major})
			conninfo := owner(t, server, "app")
			s := connected(t, Config{Shelves: shelves(packages(t, thePost))}, conninfo)
			schema := func(name string) string { // before 15 everybody may create in public
				if major < 15 {
					return name
				}
				return "public"
			}
			report := do(t, s, install("foo=1.0"))
			if len(report.Steps) != 3 || report.Steps[2].Name != "foo" || report.Steps[2].Objects != 2+btoi(major < 15) {
				t.Errorf("report %+v", report)
			}
			do(t, s, upgrade("foo"))
			if got, want := installed(t, s), []string{"bar 1.1 module " + schema("bar"), "baz 0.3 module " + schema("baz"), "foo 1.1 module " + schema("foo")}; !slices.Equal(got, want) {
				t.Fatalf("installed are %q, want %q", got, want)
			}
			if got, want := value(t, s, fmt.Sprintf("SET search_path = %s, %s, %s; SELECT foo()", schema("foo"), schema("bar"), schema("baz"))), "foo 1.1 bar 1.1 baz"; got != want {
				t.Errorf("foo() is %q, want %q", got, want)
			}
			if got := value(t, s, fmt.Sprintf("SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_catalog.pg_attribute WHERE attrelid = '%s.foo_log'::pg_catalog.regclass AND attnum > 0", schema("foo"))); got != "at what who" {
				t.Errorf("foo_log has columns %q after the upgrade", got)
			}

			// As pg_dump sees it these are ordinary objects.
			dump := pgtest.Run(t, major, "pg_dump", "-d", conninfo)
			server.Exec("CREATE DATABASE restored OWNER app")
			again := server.Conninfo("user=app dbname=restored")
			restore(t, major, again, dump)
			s = connected(t, Config{Shelves: shelves(packages(t, thePost))}, again)
			st, err := s.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range st.Extensions {
				if e.Name == "foo" && (e.Version != "1.1" || len(e.Missing) > 0 || len(e.Modified) > 0) {
					t.Errorf("after a restore: %+v", e)
				}
			}
			value(t, s, fmt.Sprintf("CREATE OR REPLACE FUNCTION %s.bar() RETURNS text LANGUAGE sql AS 'SELECT ''mine''::text'; SELECT 1", schema("bar")))
			if st, err = s.Status(t.Context()); err != nil {
				t.Fatal(err)
			}
			if at := slices.IndexFunc(st.Extensions, func(e ExtensionStatus) bool { return len(e.Modified) > 0 }); at < 0 || st.Extensions[at].Name != "bar" {
				t.Errorf("a function of bar was replaced by hand, and status says %+v", st.Extensions)
			}

			// Who depends on it keeps it; who uses it keeps it too.
			_, err = try(t.Context(), s, Request{Uninstall: []string{"bar"}}, false)
			var dependents *DependentsError
			if !errors.As(err, &dependents) || !slices.Equal(dependents.Dependents, []string{"foo"}) {
				t.Errorf("uninstall bar: error %v, want that foo needs it", err)
			}
			value(t, s, fmt.Sprintf("CREATE VIEW public.public_view AS SELECT * FROM %s.foo_log; SELECT 1", schema("foo")))
			if _, err = try(t.Context(), s, Request{Uninstall: []string{"foo"}}, false); err == nil || !strings.Contains(err.Error(), "depend") {
				t.Errorf("uninstall foo: error %v, want that a view depends on it", err)
			}
			if got := len(installed(t, s)); got != 3 {
				t.Errorf("%d are installed after a refused uninstall, want 3", got)
			}
			value(t, s, "DROP VIEW public.public_view; SELECT 1")
			var modified *ModifiedError
			if _, err := try(t.Context(), s, Request{Uninstall: []string{"bar"}, Cascade: true}, false); !errors.As(err, &modified) {
				t.Errorf("error %v, want that bar() was changed by hand", err)
			}
			do(t, s, Request{Uninstall: []string{"bar"}, Cascade: true, Modified: true})
			if got, want := installed(t, s), []string{"baz 0.3 module " + schema("baz")}; !slices.Equal(got, want) {
				t.Errorf("installed are %q, want %q", got, want)
			}
			if got := value(t, s, "SELECT count(*) FROM pg_catalog.pg_proc WHERE proname IN ('foo', 'bar')"); got != "0" {
				t.Errorf("%s functions of foo and bar are left", got)
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// What the server has files of: create, update along a path, drop, all in one
// transaction with what they require.
func TestNative(t *testing.T) {
	t.Parallel()
	for _, major := range pgtest.Some {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			server := pgtest.Start(t, pgtest.Options{Major: major})
			s := connected(t, Config{}, server.Conninfo(""))
			do(t, s, install("earthdistance", "hstore=1.4"))
			got := installed(t, s)
			if len(got) != 3 || !strings.HasPrefix(got[0], "cube ") || got[2] != "hstore 1.4 native public" {
				t.Fatalf("installed are %q, want cube, earthdistance and hstore 1.4", got)
			}
			if server.QueryValue("SELECT to_regnamespace('extension') IS NULL") != "t" {
				t.Error("schema extension was made, and nothing had to be recorded")
			}
			do(t, s, upgrade("hstore"))
			if got := installed(t, s); got[2] == "hstore 1.4 native public" {
				t.Errorf("installed are %q after an upgrade", got)
			}
			_, err := try(t.Context(), s, Request{Uninstall: []string{"cube"}}, false)
			var dependents *DependentsError
			if !errors.As(err, &dependents) {
				t.Errorf("uninstall cube: error %v, want that earthdistance needs it", err)
			}
			do(t, s, Request{Uninstall: []string{"cube", "earthdistance", "hstore"}})
			if got := installed(t, s); len(got) != 0 {
				t.Errorf("installed are %q, want nothing", got)
			}
			// A plain owner gets what is trusted, and a reason for what is not.
			plain := connected(t, Config{}, owner(t, server, "app"))
			do(t, plain, install("hstore"))
			_, err = try(t.Context(), plain, install("pageinspect"), false)
			var mode *ModeError
			if !errors.As(err, &mode) || !strings.Contains(mode.Reasons[0], "wants a superuser") {
				t.Errorf("pageinspect as a plain owner: error %v, want that it takes a superuser", err)
			}
		})
	}
}

// One statement fails, and nothing of three extensions is left.
func TestAllOrNothing(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	s := connected(t, Config{Shelves: shelves(packages(t, part(thePost, "bar-1.1", "baz")+`
-- bad/control --
name = bad
version = 1.0
depends = bar, baz, hstore
-- bad/install.sql --
CREATE TABLE bad_table (a int);

CREATE FUNCTION bad() RETURNS int LANGUAGE sql
AS $$ SELECT 1 $$;
SELECT 1 / 0;
`))}, server.Conninfo(""))
	_, err := try(t.Context(), s, install("bad"), false)
	var failed *ScriptError
	if !errors.As(err, &failed) || failed.Line != 5 || !strings.HasSuffix(failed.File, "install.sql") || !strings.Contains(err.Error(), "division by zero") {
		t.Errorf("error %v, want a division by zero in line 5 of install.sql", err)
	}
	if got := installed(t, s); len(got) != 0 {
		t.Errorf("installed are %q, want nothing", got)
	}
	if got := server.QueryValue("SELECT count(*) FROM pg_class WHERE relname = 'bad_table'"); got != "0" {
		t.Error("the table of the failed script is there")
	}
}

// A dry run says what would be done and what would be locked, and leaves nothing.
func TestDryRun(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	server.Exec("CREATE TABLE busy (a int)")
	s := connected(t, Config{Shelves: shelves(packages(t, `
-- watch/control --
name = watch
version = 1.0
-- watch/install.sql --
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER watch BEFORE INSERT ON public.busy FOR EACH ROW EXECUTE FUNCTION watch();
`))}, server.Conninfo(""))
	report, err := try(t.Context(), s, install("watch"), true)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(report.Locks, Lock{"public.busy", "ShareRowExclusiveLock"}) {
		t.Errorf("locks are %v, want one on busy", report.Locks)
	}
	if got := installed(t, s); len(got) != 0 || server.QueryValue("SELECT count(*) FROM pg_trigger WHERE tgname = 'watch'") != "0" {
		t.Errorf("after a dry run %q are installed", got)
	}

	// Somebody works with the table: the script waits for a moment, gives up, tries
	// again, and says so. Nobody waits behind it for longer.
	holder, err := server.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close(t.Context())
	if _, err := holder.Exec(t.Context(), "BEGIN; LOCK TABLE busy IN ROW EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	s.cfg.LockTimeout, s.cfg.Tries = 50e6, 2
	_, err = try(t.Context(), s, install("watch"), false)
	var locked *LockedError
	if !errors.As(err, &locked) || locked.Tries != 2 {
		t.Errorf("error %v, want that it was locked in 2 tries", err)
	}
	if _, err := holder.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	do(t, s, install("watch"))
}

// What was planned is not done when the database is not as it was.
func TestMoved(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	s := connected(t, Config{}, server.Conninfo(""))
	p, err := s.Plan(t.Context(), install("hstore"))
	if err != nil {
		t.Fatal(err)
	}
	server.Exec("CREATE EXTENSION cube")
	_, err = s.Apply(t.Context(), p, false)
	var moved *MovedError
	if !errors.As(err, &moved) {
		t.Errorf("error %v, want that the database has moved", err)
	}
	if got := installed(t, s); len(got) != 1 {
		t.Errorf("installed are %q, want cube alone", got)
	}
}
