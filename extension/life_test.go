package extension

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"rideau/extension/ledger"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
)

const withConf = `
-- tuned/control --
name = tuned
version = 1.0
custom_variable_classes = 'tuned'
-- tuned/foo.conf --
tuned.level = 'it''s high'
work_mem = '7MB'
#@scope role app
statement_timeout = '5min'
#@scope system
log_min_duration_statement = '1h'
-- tuned/install.sql --
CREATE FUNCTION level() RETURNS text LANGUAGE sql AS $$ SELECT current_setting('tuned.level') $$;
`

// foo.conf is applied in its scopes, and what it set goes with the extension.
func TestConf(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			server := pgtest.Start(t, pgtest.Options{Major: major})
			text := strings.ReplaceAll(withConf, "foo.conf", "tuned.conf")
			plain := connected(t, Config{Shelves: shelves(packages(t, text))}, owner(t, server, "app"))
			_, err := try(t.Context(), plain, install("tuned"), false)
			var setting *SettingError
			if !errors.As(err, &setting) || !strings.Contains(setting.SQL, "tuned") {
				t.Errorf("as a plain owner: error %v, want that he may not set tuned.level", err)
			}
			if major >= 15 { // what the error says helps
				server.Exec(setting.SQL)
				if _, err := try(t.Context(), plain, install("tuned"), true); errors.As(err, &setting) && setting.Setting == "tuned.level" {
					t.Errorf("after %s: %v", setting.SQL, err)
				}
			}
			req := install("tuned")
			req.NoConf = true
			do(t, plain, req)
			do(t, plain, Request{Uninstall: []string{"tuned"}})

			server.Exec("CREATE DATABASE other")
			s := connected(t, Config{Shelves: shelves(packages(t, text))}, server.Conninfo("dbname=other"))
			req = install("tuned")
			req.Mode = Module
			do(t, s, req)
			fresh := connected(t, Config{}, server.Conninfo("dbname=other"))
			for name, want := range map[string]string{"tuned.level": "it's high", "work_mem": "7MB", "log_min_duration_statement": "1h"} {
				pgtest.Wait(t, name+" to be "+want, func() (bool, string) {
					got := value(t, fresh, fmt.Sprintf("SELECT pg_catalog.current_setting('%s')", name))
					return got == want, got
				})
			}
			if got := server.QueryValue("SELECT rolconfig::text FROM pg_roles WHERE rolname = 'app'"); !strings.Contains(got, "statement_timeout=5min") {
				t.Errorf("settings of role app are %s", got)
			}
			do(t, s, Request{Uninstall: []string{"tuned"}})
			if got := server.QueryValue("SELECT count(*) FROM pg_db_role_setting"); got != "0" {
				t.Errorf("%s settings of databases and roles are left", got)
			}
		})
	}
}

// What the server must load when it starts: said before anything is done, merged
// with what somebody else wrote there, and gone on with after the restart.
func TestPreload(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"shared_preload_libraries": "auto_explain"}})
	// Somebody has added one since the server was started.
	server.Exec("ALTER SYSTEM SET shared_preload_libraries = 'auto_explain', 'pg_prewarm'")
	server.Reload()
	text := `
-- watcher/control --
name = watcher
version = 1.0
preload = shared
custom_variable_classes = 'pg_stat_statements'
-- watcher/watcher.conf --
#@scope system
shared_preload_libraries = 'pg_stat_statements'
-- watcher/install.sql --
CREATE FUNCTION watched() RETURNS text LANGUAGE sql AS $$ SELECT current_setting('pg_stat_statements.max') $$;
`
	shelf := packages(t, text)
	s := connected(t, Config{Shelves: shelves(shelf)}, server.Conninfo(""))
	p, err := s.Plan(t.Context(), install("watcher"))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Restart) == 0 || !slices.Equal(p.Preload, []string{"pg_stat_statements"}) {
		t.Errorf("the plan says preload %q, restart %q", p.Preload, p.Restart)
	}
	_, err = s.Apply(t.Context(), p, false)
	var restart *RestartError
	if !errors.As(err, &restart) {
		t.Fatalf("error %v, want that a restart is needed", err)
	}
	if got := installed(t, s); len(got) != 0 {
		t.Errorf("installed are %q before the restart", got)
	}
	server.Stop(pgserver.Fast)
	server.Start()
	if got, want := server.QueryValue("SHOW shared_preload_libraries"), "auto_explain, pg_prewarm, pg_stat_statements"; got != want {
		t.Errorf("after the restart shared_preload_libraries is %q, want %q", got, want)
	}
	s = connected(t, Config{Shelves: shelves(shelf)}, server.Conninfo(""))
	do(t, s, install("watcher"))
	if got := installed(t, s); len(got) != 1 {
		t.Errorf("installed are %q, want watcher", got)
	}
}

// The doctor sees the list that was written as one name.
func TestDoctorPreload(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	server.Exec("ALTER SYSTEM SET shared_preload_libraries TO 'auto_explain,pg_prewarm'")
	server.Reload()
	s := connected(t, Config{}, server.Conninfo(""))
	pgtest.Wait(t, "the doctor to see it", func() (bool, string) {
		x, err := s.Doctor(t.Context(), DoctorOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return !x.Healthy(), fmt.Sprintf("%+v", x.Findings)
	})
}

const shop = `
-- shop-1.0/control --
name = shop
version = 1.0
-- shop-1.0/install.sql --
CREATE TYPE colour AS ENUM ('red', 'green');
CREATE TABLE goods (id serial PRIMARY KEY, what text, c colour);
CREATE TABLE old_prices (id int REFERENCES goods, price numeric);
CREATE FUNCTION price(int) RETURNS numeric LANGUAGE sql AS $$ SELECT price FROM old_prices WHERE id = $1 $$;
CREATE VIEW cheap AS SELECT id FROM old_prices WHERE price < 10;
-- shop-2.0/control --
name = shop
version = 2.0
-- shop-2.0/install.sql --
CREATE TYPE colour AS ENUM ('red', 'green', 'blue');
CREATE TABLE goods (id serial PRIMARY KEY, what text, c colour, price numeric);
CREATE FUNCTION price(int) RETURNS numeric LANGUAGE sql AS $$ SELECT price FROM goods WHERE id = $1 $$;
-- shop-2.0/uninstall.sql --
DO $$ BEGIN PERFORM 1; END $$; -- loads plpgsql, which brings parameters
DROP FUNCTION @extschema@.price(int);
DROP TABLE goods;
DROP TYPE colour;
-- shop-2.0/upgrade/1.0--2.0.sql --
ALTER EXTENSION shop DROP VIEW cheap;
DROP VIEW cheap;
ALTER TABLE goods ADD price numeric;
CREATE OR REPLACE FUNCTION price(int) RETURNS numeric LANGUAGE sql AS $$ SELECT price FROM goods WHERE id = $1 $$;
DROP TABLE old_prices;
ALTER TYPE colour ADD VALUE 'blue';
`

// An upgrade may drop and change what is the extension's own, and only that; what
// is left can be uninstalled by its own script.
func TestUpgradeDrops(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	conninfo := owner(t, server, "app")
	shelf := packages(t, shop)
	s := connected(t, Config{Shelves: shelves(shelf)}, conninfo)
	do(t, s, install("shop=1.0"))
	value(t, s, "INSERT INTO public.goods (what, c) VALUES ('apple', 'red'); SELECT 1")
	r := do(t, s, upgrade("shop"))
	if !slices.Contains(r.Steps[0].Dropped, "table public.old_prices") || !slices.Contains(r.Steps[0].Dropped, "view public.cheap") {
		t.Errorf("dropped are %q", r.Steps[0].Dropped)
	}
	if got := value(t, s, "SELECT what FROM public.goods"); got != "apple" {
		t.Errorf("goods have %q after the upgrade", got)
	}
	st, err := s.Status(t.Context())
	if err != nil || len(st.Extensions) != 2 || len(st.Extensions[1].Missing)+len(st.Extensions[1].Modified) != 0 {
		t.Errorf("status after the upgrade: %+v, %v", st, err)
	}
	do(t, s, Request{Uninstall: []string{"shop"}})
	if got := value(t, s, "SELECT count(*) FROM pg_catalog.pg_class WHERE relnamespace = 'public'::pg_catalog.regnamespace"); got != "0" {
		t.Errorf("%s relations are left", got)
	}

	// An upgrade that drops somebody else's table.
	bad := packages(t, part(shop, "shop-1.0")+`
-- shop-3.0/control --
name = shop
version = 3.0
-- shop-3.0/install.sql --
SELECT 1;
-- shop-3.0/upgrade/1.0--3.0.sql --
DROP TABLE public.precious;
`)
	s = connected(t, Config{Shelves: shelves(bad)}, conninfo)
	value(t, s, "CREATE TABLE public.precious (a int); SELECT 1")
	do(t, s, install("shop=1.0"))
	_, err = try(t.Context(), s, upgrade("shop"), false)
	var rule *RuleError
	if !errors.As(err, &rule) || rule.Rule != Replaced || !slices.Contains(rule.What, "table public.precious (dropped)") {
		t.Errorf("error %v, want that it drops precious", err)
	}
	if got := value(t, s, "SELECT count(*) FROM public.precious"); got != "0" {
		t.Errorf("precious has %s rows", got)
	}
}

// What was installed by hand, with psql as people do.
func TestAdopt(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	s := connected(t, Config{Shelves: shelves(packages(t, thePost))}, owner(t, server, "app"))
	adopt := func(name string) error {
		if err := s.refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		p, err := s.PlanAdopt(t.Context(), install(name))
		if err != nil {
			return err
		}
		_, err = s.Apply(t.Context(), p, false)
		return err
	}
	var missing *AdoptError
	if err := adopt("baz"); !errors.As(err, &missing) || !slices.Equal(missing.Missing, []string{"function public.baz()"}) {
		t.Errorf("error %v, want that baz() is missing", err)
	}
	value(t, s, `SET search_path = public; CREATE FUNCTION baz() RETURNS text LANGUAGE sql AS $$ SELECT 'baz' $$; SELECT 1`)
	if err := adopt("baz"); err != nil {
		t.Fatal(err)
	}
	if got := installed(t, s); !slices.Equal(got, []string{"baz 0.3 module public"}) {
		t.Errorf("installed are %q", got)
	}
	if got := value(t, s, "SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname LIKE 'rideau%'"); got != "0" {
		t.Error("the schema in which the script was tried is left")
	}
	do(t, s, install("foo=1.0"))
	do(t, s, Request{Uninstall: []string{"baz"}, Cascade: true})
	if got := value(t, s, "SELECT count(*) FROM pg_catalog.pg_proc WHERE proname = 'baz'"); got != "0" {
		t.Error("baz() is left")
	}
}

// One at a time in a database.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	other, err := server.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(t.Context())
	if _, err := other.Exec(t.Context(), "SELECT pg_advisory_lock($1::int, $2::int)", ledger.LockClass, ledger.LockKey); err != nil {
		t.Fatal(err)
	}
	s := connected(t, Config{LockTimeout: 200 * time.Millisecond, Tries: 2}, server.Conninfo(""))
	_, err = try(t.Context(), s, install("hstore"), false)
	var locked *LockedError
	if !errors.As(err, &locked) {
		t.Errorf("error %v, want that somebody else installs", err)
	}
	if _, err := other.Exec(t.Context(), "SELECT pg_advisory_unlock_all()"); err != nil {
		t.Fatal(err)
	}
	do(t, s, install("hstore"))
	if got := server.QueryValue("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"); got != "0" {
		t.Errorf("%s advisory locks are left", got)
	}
}

// A conflict with what is in another database of the same server.
func TestServerScope(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	server.Exec("CREATE DATABASE other")
	s := connected(t, Config{Shelves: shelves(packages(t, `
-- lonely/control --
name = lonely
version = 1.0
conflicts = hstore@server
-- lonely/install.sql --
CREATE FUNCTION lonely() RETURNS int LANGUAGE sql AS 'SELECT 1';
`))}, server.Conninfo(""))
	elsewhere := connected(t, Config{}, server.Conninfo("dbname=other"))
	do(t, elsewhere, install("hstore"))
	_, err := try(t.Context(), s, install("lonely"), false)
	var unsolvable *UnsolvableError
	if !errors.As(err, &unsolvable) || !strings.Contains(unsolvable.Explain(), `database "other"`) {
		t.Errorf("error %v, want a conflict with what is in the other database", err)
	}
	do(t, elsewhere, Request{Uninstall: []string{"hstore"}})
	do(t, s, install("lonely"))
}

// Kept where it is unless asked: an upgrade of one does not touch another.
func TestUpgradePath(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	s := connected(t, Config{}, server.Conninfo(""))
	do(t, s, install("hstore=1.4", "pg_trgm=1.3"))
	do(t, s, upgrade("hstore=1.6"))
	if got, want := installed(t, s), []string{"hstore 1.6 native public", "pg_trgm 1.3 native public"}; !slices.Equal(got, want) {
		t.Errorf("installed are %q, want %q", got, want)
	}
	if _, err := try(t.Context(), s, upgrade("hstore=1.5"), false); err == nil {
		t.Error("hstore went back to 1.5")
	}
	p, err := s.Plan(t.Context(), install("hstore"))
	if err != nil || !p.Empty() || !slices.Contains(p.Kept, "hstore") {
		t.Errorf("what is there is installed again: %+v, %v", p, err)
	}
}

// What the command has installed of a package that is not signed, SQL can uninstall
// by the uninstall.sql of the same package when that was uploaded.
func TestUploadedUninstall(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17})
	shelf := packages(t, `
-- u/control --
name = u
version = 1.0
superuser = false
-- u/install.sql --
CREATE TABLE u();
-- u/uninstall.sql --
DROP TABLE u;
`)
	s := connected(t, Config{Shelves: shelves(shelf)}, server.Conninfo(""))
	req := install("u")
	req.Mode = Module
	do(t, s, req)
	pkg, err := shelf.Fetch(t.Context(), "u", "1.0")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ledger.Bootstrap(t.Context(), s.primary.conn), ledger.Upload(t.Context(), s.primary.conn, pkg, "")); err != nil {
		t.Fatal(err)
	}
	value(t, s, "SELECT extension.uninstall('u')")
	if got := value(t, s, "SELECT coalesce(to_regclass('public.u')::text, 'gone')"); got != "gone" {
		t.Errorf("u is %s", got)
	}
}

// A rehearsal finds what only COMMIT would refuse.
func TestDeferredConstraint(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17})
	s := connected(t, Config{Shelves: shelves(packages(t, `
-- late/control --
name = late
version = 1.0
-- late/install.sql --
CREATE TABLE parent(a int PRIMARY KEY);
CREATE TABLE child(a int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
INSERT INTO child VALUES (1);
`))}, server.Conninfo(""))
	for _, dry := range []bool{true, false} {
		var undone *UncommittedError
		if _, err := try(t.Context(), s, install("late"), dry); !errors.As(err, &undone) || !slices.Equal(undone.Names, []string{"late"}) {
			t.Errorf("dry run %v: error %v, want that late could not be committed", dry, err)
		}
	}
	if got := installed(t, s); len(got) != 0 {
		t.Errorf("installed are %q", got)
	}
}
