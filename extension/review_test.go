package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"rideau/internal/pgtest"
)

// What a review found, each once.

// A ledger is its owner's to write to. What is in it is not carried out with a
// superuser's rights, and does not overrule the catalogs.
func TestForgedLedger(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	conninfo := owner(t, server, "app")
	app := connected(t, Config{Shelves: shelves(packages(t, shop))}, conninfo)
	do(t, app, install("shop=2.0"))
	super := server.Conninfo("dbname=app")
	root := connected(t, Config{}, super)
	value(t, root, "CREATE SCHEMA ours; CREATE TABLE ours.precious (a int); CREATE EXTENSION hstore; ALTER ROLE postgres SET work_mem = '9MB'; SELECT 1")
	value(t, app, `UPDATE extension.installed SET uninstall = 'RESET ROLE; ALTER ROLE app SUPERUSER',
		settings = '[{"scope": "role", "role": "postgres", "name": "work_mem", "value": "9MB"}]' WHERE name = 'shop'; SELECT 1`)
	value(t, app, `INSERT INTO extension.installed (name, version, mode, schema, control, depends, conflicts, sha256, settings, relations)
		SELECT 'hstore', '1.8', 'module', 'public', '', '', '', '', '[]', relations FROM extension.installed WHERE name = 'shop';
		INSERT INTO extension.object (name, seq, type, object_names, object_args, identity, definition_md5) VALUES ('shop', 99, 'table', '{ours,precious}', '{}', 'ours.precious', ''); SELECT 1`)

	root = connected(t, Config{}, super)
	if in, ok := root.Observed().Find("hstore"); !ok || in.Mode != Native {
		t.Errorf("hstore is %+v, and the ledger must not make it a module", in)
	}
	_, err := try(t.Context(), root, Request{Uninstall: []string{"shop"}}, false)
	if server.QueryValue("SELECT rolsuper FROM pg_roles WHERE rolname = 'app'") == "t" {
		t.Fatal("app is a superuser")
	}
	if err == nil || value(t, root, "SELECT count(*) FROM pg_catalog.pg_class WHERE relname = 'precious'") != "1" {
		t.Errorf("error %v, want that role app may not drop precious", err)
	}
	value(t, app, "DELETE FROM extension.object WHERE seq = 99; SELECT 1")
	do(t, root, Request{Uninstall: []string{"shop"}})
	if server.QueryValue("SELECT rolsuper FROM pg_roles WHERE rolname = 'app'") == "t" || server.QueryValue("SELECT rolconfig IS NULL FROM pg_roles WHERE rolname = 'postgres'") == "t" {
		t.Error("what app wrote into the ledger was carried out by a superuser")
	}
	if got := value(t, root, "SELECT count(*) FROM pg_catalog.pg_class WHERE relname = 'goods'"); got != "0" {
		t.Error("shop is not gone")
	}
	// What a superuser installs as a module beside app's is app's.
	root = connected(t, Config{Shelves: shelves(packages(t, shop))}, super)
	req := install("shop=2.0")
	req.Mode = Module
	do(t, root, req)
	if got := value(t, root, "SELECT pg_catalog.pg_get_userbyid(relowner) FROM pg_catalog.pg_class WHERE relname = 'goods'"); got != "app" {
		t.Errorf("goods belong to %q, want app", got)
	}
	do(t, connected(t, Config{}, conninfo), Request{Uninstall: []string{"shop"}})
}

// Members of the role that owns a database go on with what another installed.
func TestOwnerRole(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	server.Exec("CREATE ROLE team; CREATE ROLE alice LOGIN IN ROLE team; CREATE ROLE bob LOGIN IN ROLE team")
	server.Exec("CREATE DATABASE team OWNER team")
	shelf := packages(t, thePost)
	alice := connected(t, Config{Shelves: shelves(shelf)}, server.Conninfo("user=alice dbname=team"))
	do(t, alice, install("foo=1.0"))
	bob := connected(t, Config{Shelves: shelves(shelf)}, server.Conninfo("user=bob dbname=team"))
	do(t, bob, upgrade("foo"))
	do(t, bob, Request{Uninstall: []string{"foo", "bar", "baz"}})
}

// The owner of a schema can set traps in it too; so can others in the schemas of
// what is required, and in an open schema at an upgrade.
func TestOpenElsewhere(t *testing.T) {
	t.Parallel()
	for _, major := range []int{14, 17} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			server := attacked(t, major)
			server.Exec("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
			server.Exec("CREATE SCHEMA hers AUTHORIZATION mallory")
			asMallory(t, server, fmt.Sprintf(trap, "hers"))
			s := connected(t, Config{Shelves: shelves(packages(t, innocent+`
-- innocent-2.0/control --
name = innocent
version = 2.0
-- innocent-2.0/install.sql --
SELECT 1;
-- innocent-2.0/upgrade/1.0--2.0.sql --
SELECT lower('ABC'::varchar);
-- needy/control --
name = needy
version = 1.0
depends = hstore
-- needy/install.sql --
CREATE TABLE needy AS SELECT lower('ABC'::varchar) AS a;
`))}, server.Conninfo(""))
			refused := func(what string, req Request) {
				t.Helper()
				req.Mode = Module
				_, err := try(t.Context(), s, req, false)
				var open *OpenSchemaError
				if !errors.As(err, &open) || !slices.Contains(open.Who, "mallory") {
					t.Errorf("%s: error %v, want a refusal because of mallory", what, err)
				}
				if malloryWon(server) {
					t.Fatalf("%s: mallory is a superuser", what)
				}
			}
			refused("a schema of hers", Request{Install: []Wish{{Name: "innocent", Schema: "hers", Range: install("x=1.0").Install[0].Range}}})
			server.Exec("CREATE EXTENSION hstore SCHEMA hers")
			refused("a required schema of hers", Request{Install: []Wish{{Name: "needy", Schema: "needy"}}})
			req := Request{Install: []Wish{{Name: "innocent", Schema: "mine", Range: install("x=1.0").Install[0].Range}}, Mode: Module}
			do(t, s, req)
			server.Exec("GRANT USAGE, CREATE ON SCHEMA mine TO mallory")
			asMallory(t, server, fmt.Sprintf(trap, "mine"))
			refused("an upgrade", upgrade("innocent"))
		})
	}
}

// What a script sets ends with it: for the next script, and for us.
func TestScriptSettings(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	s := connected(t, Config{Shelves: shelves(packages(t, `
-- setter/control --
name = setter
version = 1.0
-- setter/install.sql --
SET search_path = public, pg_catalog;
SET session_replication_role = replica;
SET lock_timeout = 0;
SET setter.made_up = 'x';
SELECT set_config('work_mem', '77MB', false);
-- watcher/control --
name = watcher
version = 1.0
depends = setter
-- watcher/install.sql --
CREATE TABLE seen AS SELECT name, setting FROM pg_settings WHERE name IN ('search_path', 'session_replication_role', 'lock_timeout', 'work_mem');
`))}, server.Conninfo(""))
	before := value(t, s, "SELECT pg_catalog.string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_catalog.pg_settings WHERE context IN ('user', 'superuser') AND name !~ '^(plpgsql|lock_timeout)'")
	req := install("watcher")
	req.Mode = Module
	do(t, s, req)
	if got, want := value(t, s, "SELECT string_agg(setting, ' ' ORDER BY name) FROM public.seen"), `5000 public, pg_temp origin 4096`; got != want {
		t.Errorf("the second script saw %q, want %q", got, want)
	}
	after := value(t, s, "SELECT pg_catalog.string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_catalog.pg_settings WHERE context IN ('user', 'superuser') AND name !~ '^(plpgsql|lock_timeout)'")
	if before != after {
		t.Errorf("settings of the session were\n%s\nand are\n%s", before, after)
	}
}

// An uninstall.sql does what it is there for, and nothing else.
func TestUninstallScript(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	conninfo := owner(t, server, "app")
	for i, bad := range []string{
		"CREATE OR REPLACE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 2'",
		"ALTER TABLE public.users ADD b int",
		"CREATE TABLE public.left_over ()",
		"DROP TABLE public.users",
	} {
		s := connected(t, Config{Shelves: shelves(packages(t, fmt.Sprintf(`
-- rude/control --
name = rude%d
version = 1.0
-- rude/install.sql --
CREATE FUNCTION rude%d() RETURNS int LANGUAGE sql AS 'SELECT 1';
-- rude/uninstall.sql --
DROP FUNCTION rude%d();
%s;
`, i, i, i, bad)))}, conninfo)
		value(t, s, "CREATE TABLE IF NOT EXISTS public.users (a int); CREATE OR REPLACE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'; SELECT 1")
		do(t, s, install(fmt.Sprintf("rude%d", i)))
		_, err := try(t.Context(), s, Request{Uninstall: []string{fmt.Sprintf("rude%d", i)}}, false)
		var rule *RuleError
		if !errors.As(err, &rule) || rule.Rule != Replaced {
			t.Errorf("%s: error %v, want rule %s", bad, err, Replaced)
		}
	}
}

// An object may be called as its schema is.
func TestManifestOfNamesake(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 14})
	text := `
-- foo/control --
name = foo
version = 1.0
-- foo/install.sql --
CREATE TYPE foo AS (foo int);
CREATE FUNCTION foo(foo) RETURNS foo LANGUAGE sql AS 'SELECT $1';
CREATE OPERATOR CLASS foo FOR TYPE int4 USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 btint4cmp(int4, int4);
CREATE CAST (foo AS text) WITH INOUT;
`
	s := connected(t, Config{Shelves: shelves(packages(t, text))}, server.Conninfo(""))
	pkg, err := s.cfg.Shelves[0].Fetch(t.Context(), "foo", "1.0")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := s.Manifest(t.Context(), pkg)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Plan(t.Context(), Request{Install: install("foo").Install, Mode: Module})
	if err != nil {
		t.Fatal(err)
	}
	if p.Steps[0].Schema != "foo" {
		t.Fatalf("foo goes to schema %q, want foo", p.Steps[0].Schema)
	}
	p.Steps[0].pkg.Objects = objects
	if _, err := s.Apply(t.Context(), p, false); err != nil {
		t.Errorf("with a manifest of %v: %v", objects, err)
	}
}

// What a role or a database had set, and what two extensions have set.
func TestSettingsOfOthers(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	text := `
-- one-1.0/control --
name = one
version = 1.0
-- one-1.0/one.conf --
work_mem = '7MB'
maintenance_work_mem = '70MB'
session_preload_libraries = 'auto_explain'
-- one-1.0/install.sql --
SELECT 1;
-- one-2.0/control --
name = one
version = 2.0
-- one-2.0/one.conf --
work_mem = '7MB'
-- one-2.0/install.sql --
SELECT 1;
-- one-2.0/upgrade/1.0--2.0.sql --
SELECT 1;
-- two/control --
name = two
version = 1.0
-- two/two.conf --
work_mem = '7MB'
#@scope system
search_path = '"$user", public, two'
-- two/install.sql --
SELECT 1;
`
	server.Exec("CREATE DATABASE d")
	server.Exec("ALTER DATABASE d SET work_mem = '1GB'")
	server.Exec("ALTER DATABASE d SET session_preload_libraries = 'pg_prewarm'")
	s := connected(t, Config{Shelves: shelves(packages(t, text))}, server.Conninfo("dbname=d"))
	settings := func() string {
		return value(t, s, "SELECT pg_catalog.array_to_string(setconfig, '; ') FROM pg_catalog.pg_db_role_setting")
	}
	module := func(req Request) Request { req.Mode = Module; return req }
	p, err := s.Plan(t.Context(), module(install("one=1.0")))
	if err != nil || !slices.ContainsFunc(p.Notes, func(n string) bool { return strings.Contains(n, "1GB") }) {
		t.Errorf("the plan does not say that 1GB is overwritten: %+v, %v", p, err)
	}
	do(t, s, module(install("one=1.0", "two")))
	if got := settings(); !strings.Contains(got, `session_preload_libraries=pg_prewarm, auto_explain`) && !strings.Contains(got, `session_preload_libraries="pg_prewarm", "auto_explain"`) {
		t.Errorf("settings are %s, want that the list was added to", got)
	}
	if got := server.QueryValue("SELECT setting FROM pg_file_settings WHERE name = 'search_path' ORDER BY seqno DESC LIMIT 1"); got != `"$user", public, two` {
		t.Errorf("search_path for the server is %s", got)
	}
	do(t, s, module(upgrade("one")))
	if got := settings(); strings.Contains(got, "maintenance_work_mem") || !strings.Contains(got, "work_mem=7MB") {
		t.Errorf("after an upgrade that does not set it settings are %s", got)
	}
	do(t, s, Request{Uninstall: []string{"one"}})
	if got := settings(); !strings.Contains(got, "work_mem=7MB") {
		t.Errorf("two still wants work_mem, and settings are %s", got)
	}
	s2 := connected(t, Config{}, server.Conninfo("dbname=d"))
	value(t, s2, "ALTER DATABASE d SET work_mem = '8MB'; SELECT 1")
	do(t, s, Request{Uninstall: []string{"two"}})
	if got := settings(); !strings.Contains(got, "work_mem=8MB") {
		t.Errorf("somebody has set work_mem since, and settings are %s", got)
	}
}

// Who may create in the database and not in public has a schema of his own.
func TestCreateOnly(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 16})
	server.Exec("CREATE ROLE guest LOGIN; GRANT CREATE ON DATABASE postgres TO guest")
	s := connected(t, Config{Shelves: shelves(packages(t, thePost))}, server.Conninfo("user=guest"))
	do(t, s, install("baz"))
	if got := installed(t, s); !slices.Equal(got, []string{"baz 0.3 module baz"}) {
		t.Errorf("installed are %q", got)
	}
}

// To hold what is not there yet is no reason not to install it.
func TestHoldAtFirst(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	s := connected(t, Config{Shelves: shelves(packages(t, thePost))}, owner(t, server, "app"))
	req := install("bar=1.0")
	req.Held = map[string]string{"bar": "extensions.toml says hold"}
	do(t, s, req)
	req = Request{Install: install("foo").Install, Held: req.Held}
	if _, err := try(t.Context(), s, req, false); err == nil {
		t.Error("bar was moved, and it is held")
	}
}

// The server's own files do not get the settings of an unsigned package.
func TestNativeWithoutConf(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	s := connected(t, Config{Shelves: shelves(packages(t, `
-- hstore/control --
name = hstore
version = 1.8
-- hstore/hstore.conf --
#@scope system
archive_command = 'touch /tmp/pwned'
-- hstore/install.sql --
SELECT 1;
`))}, server.Conninfo(""))
	for _, mode := range []Mode{Auto, Native} {
		p, err := s.Plan(t.Context(), Request{Install: install("hstore").Install, Mode: mode})
		if err != nil || len(p.System) > 0 {
			t.Errorf("mode %s: the plan has %+v, %v", mode, p.System, err)
		}
	}
	if p, err := s.Plan(t.Context(), Request{Install: install("hstore").Install, Mode: Path}); err == nil {
		t.Errorf("mode path: %+v", p)
	}
}

// Only what is one's own, and what fits, can be adopted.
func TestAdoptOthers(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	conninfo := owner(t, server, "app")
	shelf := packages(t, thePost+`
-- copy/control --
name = copy
version = 1.0
-- copy/install.sql --
CREATE FUNCTION baz() RETURNS text LANGUAGE sql AS $$ SELECT 'baz' $$;
`)
	s := connected(t, Config{Shelves: shelves(shelf)}, conninfo)
	do(t, s, install("baz"))
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
	if err := adopt("copy"); err == nil || !strings.Contains(err.Error(), "is a part of baz") {
		t.Errorf("error %v, want that baz() is baz's", err)
	}
	root := connected(t, Config{}, server.Conninfo("dbname=app"))
	value(t, root, "CREATE FUNCTION public.bla() RETURNS text LANGUAGE sql AS 'SELECT ''bla''::text'; SELECT 1")
	if err := adopt("bla"); err == nil || !strings.Contains(err.Error(), "belongs to role") {
		t.Errorf("error %v, want that bla() is the superuser's", err)
	}
	value(t, s, "SET search_path = public; CREATE FUNCTION foo() RETURNS text LANGUAGE sql AS 'SELECT ''x''::text'; CREATE TABLE foo_log (a int); SELECT 1")
	if err := adopt("foo=1.0"); err == nil || !strings.Contains(err.Error(), "bar (>= 1.1)") {
		t.Errorf("error %v, want that foo needs bar", err)
	}
}

// Whoever gives up leaves no statement behind, nor its locks.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	s, err := Open(t.Context(), Config{Nodes: []string{server.Conninfo("")}, Shelves: shelves(packages(t, `
-- slow/control --
name = slow
version = 1.0
-- slow/install.sql --
SELECT pg_sleep(1000);
`))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, err := s.Plan(t.Context(), Request{Install: install("slow").Install, Mode: Module})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := s.Apply(ctx, p, false); ended <- err }()
	const sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(1000)%' AND state = 'active' AND pid <> pg_backend_pid()"
	pgtest.Wait(t, "the script to sleep", func() (bool, string) { got := server.QueryValue(sleeping); return got == "1", got })
	cancel()
	if err := <-ended; err == nil {
		t.Error("the installation was not interrupted")
	}
	pgtest.Wait(t, "the server to stop as well", func() (bool, string) {
		got := server.QueryValue(sleeping) + server.QueryValue("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
		return got == "00", got
	})
}

// A lock file has what was wished for, with what that needs, and the libraries.
func TestLockedVersions(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	s := connected(t, Config{Shelves: shelves(packages(t, thePost))}, server.Conninfo(""))
	req := install("hstore", "bla")
	req.Mode = Auto
	do(t, s, req)
	do(t, s, install("bar"))
	locked, err := s.Lock(t.Context(), install("foo=1.0", "hstore"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range locked {
		got = append(got, l.Name+" "+l.Version)
		if l.Name == "hstore" && (len(l.Libraries) != 1 || len(l.Libraries[0]) != len("hstore.so=")+64) {
			t.Errorf("libraries of hstore are %q, want its sha256", l.Libraries)
		}
	}
	if len(got) != 4 || got[0] != "bar 1.1" || got[1] != "baz 0.3" || got[2] != "foo 1.0" || !strings.HasPrefix(got[3], "hstore ") {
		t.Errorf("locked are %q, want foo with what it needs, and hstore", got)
	}
}

// An uninstall.sql that drops what is not there any more is no reason to keep the
// rest.
func TestUninstallRest(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	s := connected(t, Config{Shelves: shelves(packages(t, shop))}, owner(t, server, "app"))
	do(t, s, install("shop=2.0"))
	value(t, s, "DROP FUNCTION public.price(int); SELECT 1")
	do(t, s, Request{Uninstall: []string{"shop"}})
	if got := value(t, s, "SELECT count(*) FROM pg_catalog.pg_class WHERE relname = 'goods'"); got != "0" {
		t.Error("goods are left")
	}
}
