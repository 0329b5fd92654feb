package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"rideau/extension/catalog"
	"rideau/extension/depend"
	"rideau/extension/ledger"
	"rideau/extension/pack"
	"rideau/internal/pgtest"
)

// files are those of a package, by path.
type files map[string]string

func read(t *testing.T, f files) *pack.Package {
	t.Helper()
	fsys := fstest.MapFS{}
	for name, text := range f {
		fsys[name] = &fstest.MapFile{Data: []byte(text), Mode: 0o644}
	}
	p, err := pack.ReadDir(fsys)
	check(t, err)
	return p
}

// module is a package with a function of its name, in the target schema.
func module(name, version, more string) files {
	return files{
		"control":     fmt.Sprintf("name = %s\nversion = %s\nsuperuser = false\n%s\n", name, version, more),
		"install.sql": fmt.Sprintf("CREATE FUNCTION %q() RETURNS text LANGUAGE sql AS $$SELECT '%s'$$;\n", name, version),
	}
}

// shop is a database with the functions in it, and packages uploaded by app.
func shop(t *testing.T, s *pgtest.Server, packages ...files) *pgx.Conn {
	t.Helper()
	ctx := context.Background()
	exec(t, connect(t, s, "app", "postgres"), `REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT ALL ON SCHEMA public TO app; ALTER SCHEMA public OWNER TO app`)
	conn := connect(t, s, "app", "app")
	check(t, ledger.Bootstrap(ctx, conn))
	for _, p := range packages {
		check(t, ledger.Upload(ctx, conn, read(t, p), ""))
	}
	return conn
}

// say runs SQL and returns its rows, or the error: message, detail and hint.
func say(t *testing.T, conn *pgx.Conn, sql string) string {
	t.Helper()
	rows, err := conn.Query(context.Background(), sql)
	check(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	var server *pgconn.PgError
	if errors.As(err, &server) {
		return fmt.Sprintf("ERROR %s: %s | %s | %s", server.Code, server.Message, server.Detail, server.Hint)
	}
	check(t, err)
	return strings.Join(lines, "; ")
}

// expect is say with what it should begin with, or contain after "...".
func expect(t *testing.T, conn *pgx.Conn, sql, want string) {
	t.Helper()
	got := say(t, conn, sql)
	if part, ok := strings.CutPrefix(want, "..."); ok && strings.Contains(got, part) || !ok && got == want {
		return
	}
	t.Errorf("%s\ngot  %s\nwant %s", sql, got, want)
}

// The order of versions in SQL is that of package depend.
func TestVersionCompare(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	pieces := []string{"0", "1", "2", "9", "10", "007", "00", ".", "-", "_", "~", "+", ":", "a", "b", "rc", "RC1", "alpha", "Beta", "dev", "devel", "pre", "x", "Z", "ß", "é", "日", ".0", "1.", "-1", "~~", "alphabet", "a1", "b.2", "18446744073709551616"}
	random := func() string {
		var b strings.Builder
		for range 1 + r.IntN(7) {
			b.WriteString(pieces[r.IntN(len(pieces))])
		}
		return b.String()
	}
	var left, right []string
	for range 3000 {
		a := random()
		b := random()
		if r.IntN(3) == 0 { // nearly the same
			at := r.IntN(len(a) + 1)
			b = strings.ToValidUTF8(a[:at]+pieces[r.IntN(len(pieces))]+a[at:], "")
		}
		left, right = append(left, a), append(right, b)
	}
	for _, v := range []string{"1.0", "1.00", "1.0-beta", "1.0~", "", "1:0", "0.1.0a4", "19devel", "19beta1", "19rc1", "19"} {
		for _, w := range []string{"1.0", "1.00", "1.0-beta", "1.0~", "", "1:0", "0.1.0a4", "19devel", "19beta1", "19rc1", "19"} {
			left, right = append(left, v), append(right, w)
		}
	}
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		conn := connect(t, s, "app", "app")
		ctx := context.Background()
		check(t, ledger.Bootstrap(ctx, conn))
		rows, err := conn.Query(ctx, `SELECT extension.version_compare(a, b) FROM unnest($1::text[], $2::text[]) WITH ORDINALITY u(a, b, i) ORDER BY i`, left, right)
		check(t, err)
		got, err := pgx.CollectRows(rows, pgx.RowTo[int])
		check(t, err)
		bad := 0
		for i := range left {
			if want := depend.Compare(left[i], right[i]); got[i] != want && bad < 10 {
				bad++
				t.Errorf("%q and %q: %d in SQL, %d", left[i], right[i], got[i], want)
			}
		}
	})
}

// The post's example: foo 1.0 depends on bar (>= 1.1) and baz, and conflicts with
// bla (< 0.8).
func TestPost(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		ctx := context.Background()
		conn := shop(t, s,
			files{"control": "name = foo\nversion = 1.0\nsuperuser = false\ncustom_variable_classes = 'foo'\ndepends = bar (>= 1.1), baz\nconflicts = bla (< 0.8)\n",
				"install.sql": "CREATE FUNCTION foo() RETURNS text LANGUAGE sql AS $$SELECT bar() || baz()$$;\nCREATE TABLE footable (a serial PRIMARY KEY);\n"},
			module("bar", "1.0", ""), module("bar", "1.1", ""), module("baz", "2.0", ""), module("bla", "0.7", ""), module("bla", "0.8", ""))
		expect(t, conn, `SELECT extension.install('foo')`, "installed bar 1.1; installed baz 2.0; installed foo 1.0")
		expect(t, conn, `SELECT foo()`, "1.12.0")
		expect(t, conn, `SELECT extension.install('foo')`, "foo 1.0 is installed already")
		expect(t, conn, `SELECT extension.install('bla', '0.7')`, "...foo 1.0 conflicts with bla (< 0.8), and there is bla 0.7")
		expect(t, conn, `SELECT extension.install('bla')`, "installed bla 0.8")
		expect(t, conn, `SELECT extension.uninstall('bar')`, "...foo 1.0 depends on bar (>= 1.1), which would not be there")
		expect(t, conn, `SELECT string_agg(name || ' ' || version || ' ' || mode || ' ' || objects, ', ') FROM extension.installed()`,
			"bar 1.1 module 1, baz 2.0 module 1, bla 0.8 module 1, foo 1.0 module 2, plpgsql 1.0 native 4")
		expect(t, conn, `SELECT string_agg(name || ' ' || version || coalesce(' has ' || installed, ''), ', ' ORDER BY name, version) FROM extension.available() WHERE source = 'package'`,
			"bar 1.0 has 1.1, bar 1.1 has 1.1, baz 2.0 has 2.0, bla 0.7 has 0.8, bla 0.8 has 0.8, foo 1.0 has 1.0")

		// What SQL has recorded, the program finds, unchanged.
		state, err := ledger.Read(ctx, conn)
		check(t, err)
		e, ok := state.Find("foo")
		if !ok || e.Depends.String() != "bar (>= 1.1), baz" || e.Conflicts.String() != "bla (< 0.8)" || e.Mode != "module" || e.InstalledBy != "app" {
			t.Errorf("%+v", e)
		}
		recorded, err := ledger.Objects(ctx, conn, "foo")
		check(t, err)
		found, err := catalog.Lookup(ctx, conn, recorded)
		check(t, err)
		for i, o := range found {
			if o.OID == 0 || o.MD5 != recorded[i].MD5 {
				t.Errorf("%s: definition %q, recorded %q", o, o.MD5, recorded[i].MD5)
			}
		}

		// A restored database goes on with it.
		restore(t, s, "restored")
		exec(t, connect(t, s, "restored", "postgres"), `REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT ALL ON SCHEMA public TO app`) // before 15, a new database has another schema public
		restored := connect(t, s, "restored", "app")
		for _, conn := range []*pgx.Conn{conn, restored} {
			expect(t, conn, `SELECT extension.uninstall('foo')`, "uninstalled foo 1.0")
			expect(t, conn, `SELECT extension.uninstall('bar')`, "uninstalled bar 1.1")
			expect(t, conn, `SELECT extension.install('bar', '1.0')`, "installed bar 1.0")
			expect(t, conn, `SELECT extension.install('foo')`, "...foo 1.0 depends on bar (>= 1.1), and there is bar 1.0, which would have to be another version")
		}
	})
}

// Who comes before is kept: what is installed is not upgraded for another, and
// when no version of a dependency goes, an older version of what is wanted does.
func TestSolve(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	s.Exec(`CREATE ROLE app LOGIN`)
	s.Exec(`CREATE DATABASE app OWNER app`)
	conn := shop(t, s,
		module("app", "2", "depends = lib (~> 2.0)"), module("app", "1", "depends = lib (~> 1.4)"),
		module("lib", "1.4.1", ""), module("lib", "1.9", "conflicts = old"), module("lib", "2.0", "depends = nowhere"),
		module("old", "1", ""), module("virtual-user", "1", "depends = thing (>= 2)"), module("impl", "1", "provides = thing (= 3)"),
		module("choice", "1", "depends = nowhere | lib (< 1.5)"), module("whole", "1", "depends = qux@server"),
		module("newer", "1", "postgres = '>= 99'"), module("ring", "1", "depends = gnir"), module("gnir", "1", "depends = ring"),
		files{"control": "name = odd\nversion = 1.1\nsuperuser = false\n", "install.sql": "SELECT 1;", "upgrade/1.06--1.1.sql": "SELECT 1;"},
		module("odd-user", "1", "depends = odd (>= 1.1)"))
	for _, tt := range []struct{ sql, want string }{
		{`SELECT extension.install('app')`, "installed lib 1.9; installed app 1"},
		{`SELECT extension.install('old')`, "...lib 1.9 conflicts with old, and there is old 1"},
		{`SELECT extension.install('app', '2')`, "...SELECT extension.upgrade('app', '2');"},
		{`SELECT extension.upgrade('app')`, "app 1 is the newest"},
		{`SELECT extension.install('choice')`, "...choice 1 depends on lib (< 1.5), and there is lib 1.9"},
		{`SELECT extension.uninstall('app')`, "uninstalled app 1"},
		{`SELECT extension.uninstall('lib')`, "uninstalled lib 1.9"},
		{`SELECT extension.install('old')`, "installed old 1"},
		{`SELECT extension.install('app')`, "installed lib 1.4.1; installed app 1"},
		{`SELECT extension.install('choice')`, "installed choice 1"},
		{`SELECT extension.install('virtual-user')`, "installed impl 1; installed virtual-user 1"},
		{`SELECT extension.install('whole')`, "...cannot be judged in SQL"},
		{`SELECT extension.install('newer')`, "...its package 1 is for PostgreSQL >= 99, and this is "},
		{`SELECT extension.install('ring')`, "...depend on each other in a circle: gnir, ring"},
		{`SELECT extension.install('odd-user')`, "...the order of the versions of odd cannot be told in SQL"},
		{`SELECT extension.install('nothing')`, "...there is no extension 'nothing'"},
		{`SELECT extension.install('postgresql')`, "...is installed already"},
		{`SELECT extension.uninstall('nothing')`, "...nothing is not installed"},
	} {
		expect(t, conn, tt.sql, tt.want)
	}
}

// A package that needs one of the server's own extensions has it created, if the
// role may.
func TestNative(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		conn := shop(t, s,
			files{"control": "name = user\nversion = 1\nsuperuser = false\ndepends = citext (>= 1.0)\n",
				"install.sql": "CREATE TABLE t (a citext, b @extschema:citext@.citext);"},
			module("needs-superuser", "1", "depends = file_fdw"), module("citext", "99", ""))
		exec(t, conn, `CREATE SCHEMA mine`)
		got := say(t, conn, `SELECT extension.install('user', NULL, 'mine')`)
		if !strings.HasPrefix(got, "installed citext 1.") || !strings.HasSuffix(got, "; installed user 1") {
			t.Error(got)
		}
		expect(t, conn, `SELECT string_agg(DISTINCT schema, ',') FROM extension.installed() WHERE name IN ('user', 'citext')`, "mine")
		expect(t, conn, `SELECT extension.uninstall('citext')`, "...user 1 depends on citext (>= 1.0)")
		expect(t, conn, `SELECT extension.uninstall('user')`, "uninstalled user 1")
		if got := say(t, conn, `SELECT extension.uninstall('citext')`); !strings.HasPrefix(got, "uninstalled citext") {
			t.Error(got)
		}
		expect(t, conn, `SELECT extension.install('needs-superuser')`, "...needs-superuser 1 depends on file_fdw")
	})
}

// Upgrades follow the scripts, change what is the module's own, and take with
// them what they newly depend on.
func TestUpgradeInSQL(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		ctx := context.Background()
		conn := shop(t, s, files{"control": "name = foo\nversion = 1.0\nsuperuser = false\n",
			"install.sql": "CREATE TABLE t (a int PRIMARY KEY);\nCREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';\nCREATE VIEW v AS SELECT a FROM t;\nCREATE FUNCTION gone() RETURNS int LANGUAGE sql AS 'SELECT 1';"})
		expect(t, conn, `SELECT extension.install('foo')`, "installed foo 1.0")
		check(t, ledger.Upload(ctx, conn, read(t, files{"control": "name = foo\nversion = 2.0\nsuperuser = false\ndepends = bar\n", "install.sql": "SELECT 1;",
			"upgrade/1.0--1.5.sql": "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2';\nALTER TABLE t ALTER a TYPE bigint USING a;",
			"upgrade/1.5--2.0.sql": "CREATE OR REPLACE VIEW v AS SELECT a, bar() FROM t;\nDROP FUNCTION gone();\nCREATE INDEX i ON t (a);"}), ""))
		expect(t, conn, `SELECT extension.upgrade('foo')`, "...foo 2.0 depends on bar, and nothing that can be installed here is that")
		check(t, ledger.Upload(ctx, conn, read(t, module("bar", "1", "")), ""))
		got := say(t, conn, `SELECT extension.upgrade('foo')`)
		if !strings.Contains(got, "cannot alter type of a column used by a view") || !strings.Contains(got, "upgrade/1.0--1.5.sql:2") && !strings.Contains(got, "1.0--1.5.sql:2") {
			t.Errorf("an error in the script: %s", got)
		}
		check(t, ledger.Upload(ctx, conn, read(t, files{"control": "name = foo\nversion = 2.0\nsuperuser = false\ndepends = bar\n", "install.sql": "SELECT 1;",
			"upgrade/1.0--1.5.sql": "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2';\nALTER TABLE t ADD b int DEFAULT 3;",
			"upgrade/1.5--2.0.sql": "CREATE OR REPLACE VIEW v AS SELECT a, bar() FROM t;\nDROP FUNCTION gone();\nCREATE INDEX i ON t (a);"}), ""))
		expect(t, conn, `SELECT extension.upgrade('foo')`, "installed bar 1; upgraded foo from 1.0 to 2.0")
		expect(t, conn, `SELECT string_agg(identity, ', ' ORDER BY identity) FROM extension.object WHERE name = 'foo'`, "for public.t.b, public.f(), public.i, public.t, public.v")
		expect(t, conn, `SELECT extension.upgrade('foo')`, "foo 2.0 is the newest")
		expect(t, conn, `SELECT extension.upgrade('foo', '9')`, "...no scripts lead from foo 2.0 to 9")
		exec(t, conn, `CREATE VIEW mine AS SELECT f()`)
		expect(t, conn, `SELECT extension.uninstall('foo')`, "...cannot drop function public.f() because other objects depend on it | view public.mine depends on function public.f()")
		expect(t, conn, `SELECT count(*)::text FROM v`, "0")
		exec(t, conn, `DROP VIEW mine`)
		expect(t, conn, `SELECT extension.uninstall('foo')`, "uninstalled foo 2.0")
		expect(t, conn, `SELECT count(*)::text FROM pg_class WHERE relname IN ('t', 'v', 'i')`, "0")
	})
}

// The security rules, each with a script that would get through without it.
func TestRules(t *testing.T) {
	t.Parallel()
	script := func(name, sql string) files {
		return files{"control": "name = " + name + "\nversion = 1\nsuperuser = false\n", "install.sql": sql}
	}
	eachMajor(t, func(t *testing.T, s *pgtest.Server) {
		ctx := context.Background()
		conn := shop(t, s,
			script("replaces", "CREATE OR REPLACE FUNCTION theirs() RETURNS int LANGUAGE sql AS 'SELECT 2';"),
			script("savepoint", "DO $$BEGIN BEGIN CREATE OR REPLACE FUNCTION theirs() RETURNS int LANGUAGE sql AS 'SELECT 2'; EXCEPTION WHEN division_by_zero THEN NULL; END; END$$;"),
			script("drops", "DROP FUNCTION theirs();"), script("alters", "ALTER TABLE theirtable ADD x int;"),
			script("comments", "COMMENT ON TABLE theirtable IS 'x';"), script("refers", "CREATE TABLE refers (a int REFERENCES theirtable);"),
			script("path", "SELECT set_config('search_path', 'public', false);\nCREATE TABLE path AS SELECT 1 AS a WHERE current_setting('search_path') = 'mine, pg_temp';"),
			script("bodies", "CREATE FUNCTION bodies() RETURNS int LANGUAGE sql AS 'SELECT notyet()';\nCREATE FUNCTION notyet() RETURNS int LANGUAGE sql AS 'SELECT 1';"),
			script("schema", "CREATE FUNCTION @extschema@.schema() RETURNS text LANGUAGE sql AS $$SELECT '@extowner@ @extschema@'$$;"),
			script("error", "SELECT 1;\n\n-- here\nSELECT 1/0;"),
			script("temporary", "CREATE TEMP TABLE temporary (a int); CREATE TABLE lasting (a int);"),
			files{"control": "name = fixed\nversion = 1\nsuperuser = false\nschema = fixed\n", "install.sql": "CREATE TABLE a (); CREATE TABLE b ();"},
			files{"control": "name = cycle\nversion = 1\nsuperuser = false\n", "install.sql": "CREATE TABLE c (a int); CREATE FUNCTION c(c) RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER TABLE c ADD CHECK (c(c) > 0);"},
			files{"control": "name = cleans\nversion = 1\nsuperuser = false\n", "install.sql": "CREATE TABLE cleaned (a int);", "uninstall.sql": "DROP TABLE cleaned;"},
			files{"control": "name = cleanstoomuch\nversion = 1\nsuperuser = false\n", "install.sql": "CREATE TABLE cleaned (a int);", "uninstall.sql": "DROP TABLE cleaned; DROP TABLE theirtable;"})
		exec(t, conn, `CREATE FUNCTION theirs() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE TABLE theirtable (a int PRIMARY KEY);
			CREATE SCHEMA mine; CREATE SCHEMA open; GRANT CREATE ON SCHEMA open TO other; CREATE SCHEMA "a$b"; CREATE SCHEMA "Quoted One"; SET extra_float_digits = 1`)
		for _, tt := range []struct{ sql, want string }{
			{`SELECT extension.install('replaces')`, "...function public.theirs() (definition)"},
			{`SELECT extension.install('savepoint')`, "...function public.theirs() (definition)"},
			{`SELECT extension.install('drops')`, "...of pg_proc (dropped)"},
			{`SELECT extension.install('alters')`, "...table public.theirtable (column, definition)"},
			{`SELECT extension.install('comments')`, "...table public.theirtable (comment)"},
			{`SELECT extension.install('refers')`, "installed refers 1"},
			{`SELECT extension.uninstall('refers')`, "uninstalled refers 1"},
			{`SELECT extension.install('path', NULL, 'mine')`, "installed path 1"},
			{`SELECT count(*)::text FROM mine.path`, "1"},
			{`SHOW search_path`, `"$user", public`},
			{`SHOW check_function_bodies`, `on`},
			{`SELECT extension.install('bodies')`, "installed bodies 1"},
			{`SELECT extension.install('schema', NULL, 'open')`, "...cannot install into schema open, where others may create"},
			{`SELECT extension.install('schema', NULL, 'pg_catalog')`, "...cannot install into schema pg_catalog"},
			{`SELECT extension.install('schema', NULL, 'missing')`, "...cannot install into schema"},
			{`SELECT extension.install('schema', NULL, 'a$b')`, "...invalid character in extension \"schema\" schema"},
			{`SELECT extension.install('schema', NULL, 'Quoted One')`, "installed schema 1"},
			{`SELECT "Quoted One".schema()`, `app "Quoted One"`},
			{`SELECT extension.install('error')`, "...error: install.sql:4: division by zero"},
			{`SELECT extension.install('temporary')`, "installed temporary 1"},
			{`SELECT string_agg(identity, ' ') FROM extension.object WHERE name = 'temporary'`, "public.lasting"},
			{`SELECT extension.install('fixed')`, "installed fixed 1"},
			{`SELECT string_agg(identity, ' ' ORDER BY identity) FROM extension.object WHERE name = 'fixed'`, "fixed fixed.a fixed.b"},
			{`SELECT extension.uninstall('fixed')`, "uninstalled fixed 1"},
			{`SELECT count(*)::text FROM pg_namespace WHERE nspname = 'fixed'`, "0"},
			{`SELECT extension.install('cycle')`, "installed cycle 1"},
			{`SELECT extension.uninstall('cycle')`, `..."rideau extension uninstall"`},
			{`SELECT extension.install('cleans')`, "installed cleans 1"},
			{`SELECT extension.uninstall('cleans')`, "uninstalled cleans 1"},
			{`SELECT extension.install('cleanstoomuch')`, "installed cleanstoomuch 1"},
			{`SELECT extension.uninstall('cleanstoomuch')`, "...the uninstall.sql of cleanstoomuch changed what is not a part of it"},
		} {
			expect(t, conn, tt.sql, tt.want)
		}

		// In a transaction of the user's, whatever its isolation, and undone with it.
		for _, level := range []string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
			exec(t, conn, `BEGIN ISOLATION LEVEL `+level+`; CREATE TABLE users (a int); SAVEPOINT a`)
			expect(t, conn, `SELECT extension.install('path', NULL, 'mine')`, "path 1 is installed already")
			expect(t, conn, `SELECT extension.uninstall('path')`, "uninstalled path 1")
			expect(t, conn, `SELECT extension.install('path', NULL, 'mine')`, "installed path 1")
			expect(t, conn, `SELECT string_agg(identity, ' ') FROM extension.object WHERE name = 'path'`, "mine.path")
			exec(t, conn, `ROLLBACK`)
		}

		// Others have no business there until the owner lets them.
		other := connect(t, s, "app", "other")
		expect(t, other, `SELECT extension.install('bodies')`, "...permission denied for function install")
		expect(t, other, `SELECT count(*)::text FROM extension.installed()`, say(t, conn, `SELECT count(*)::text FROM extension.installed()`))
		if err := ledger.Upload(ctx, other, read(t, module("evil", "1", "")), ""); err == nil {
			t.Error("another role may upload")
		}
		exec(t, conn, `GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA extension TO other; GRANT INSERT, UPDATE, DELETE ON extension.installed, extension.object TO other; GRANT CREATE ON DATABASE app TO other`)
		exec(t, other, `CREATE SCHEMA others`)
		expect(t, other, `SELECT extension.uninstall('bodies')`, "...must be owner of routine")
		exec(t, conn, `SELECT extension.uninstall('bodies')`)
		expect(t, other, `SELECT extension.install('bodies', NULL, 'others')`, "installed bodies 1")
	})
}

// What others commit while a script runs is not the script's; what they put
// there for it to fall over is seen.
func TestOthers(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		// The script waits for a lock, and the others are done when it gets it.
		conn := shop(t, s, files{"control": "name = waits\nversion = 1\nsuperuser = false\n",
			"install.sql": "CREATE TABLE before ();\nDO 'BEGIN PERFORM pg_advisory_xact_lock(42); END';\nCREATE TABLE after ();"},
			files{"control": "name = falls\nversion = 1\nsuperuser = false\n", "install.sql": "DO 'BEGIN PERFORM pg_advisory_xact_lock(42); END';\nCREATE OR REPLACE FUNCTION public.trap() RETURNS int LANGUAGE sql AS 'SELECT 1';"})
		exec(t, conn, `CREATE TABLE replaced (); CREATE TABLE dropped (); CREATE FUNCTION replaced() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE SCHEMA mine`)
		run := func(sql, others string) string {
			holder := connect(t, s, "app", "postgres")
			exec(t, holder, `SELECT pg_advisory_lock(42)`)
			result := make(chan string)
			go func() {
				var text string
				err := conn.QueryRow(context.Background(), `SELECT string_agg(i, '; ') FROM `+sql+` i`).Scan(&text)
				var server *pgconn.PgError
				if errors.As(err, &server) {
					text = server.Message + " | " + server.Detail
				} else if err != nil {
					text = err.Error()
				}
				result <- text
			}()
			s.For(t).WaitQuery("1", `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`)
			exec(t, holder, others)
			exec(t, holder, `SELECT pg_advisory_unlock(42)`)
			return <-result
		}
		got := run(`extension.install('waits', NULL, 'mine')`, `CREATE TABLE public.others (); COMMENT ON TABLE public.replaced IS 'x'; DROP TABLE public.dropped;
			CREATE OR REPLACE FUNCTION public.replaced() RETURNS int LANGUAGE sql AS 'SELECT 2'`)
		if got != "installed waits 1" {
			t.Error(got)
		}
		expect(t, conn, `SELECT string_agg(identity, ' ' ORDER BY seq) FROM extension.object WHERE name = 'waits'`, "mine.before mine.after")
		got = run(`extension.install('falls', NULL, 'mine')`, `GRANT ALL ON SCHEMA public TO other; GRANT other TO app; SET ROLE other;
			CREATE FUNCTION public.trap() RETURNS int LANGUAGE sql AS 'SELECT 666'; RESET ROLE`)
		if !strings.Contains(got, "function public.trap() (belongs to other)") {
			t.Error(got)
		}
	})
}

// What cannot be a module is refused when it is uploaded.
func TestUploadRefused(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	s.Exec(`CREATE ROLE app LOGIN`)
	s.Exec(`CREATE DATABASE app OWNER app`)
	conn := shop(t, s)
	ctx := context.Background()
	for why, f := range map[string]files{
		"lib/foo.so":              {"control": "name = foo\nversion = 1\n", "install.sql": "SELECT 1;", "lib/foo.so": "x"},
		"must be preloaded":       {"control": "name = foo\nversion = 1\npreload = shared\n", "install.sql": "SELECT 1;"},
		"ALTER EXTENSION ... ADD": {"control": "name = foo\nversion = 1\n", "install.sql": "ALTER EXTENSION foo ADD FUNCTION f();"},
		"is made of files":        {"control": "name = foo\nversion = 1\nkind = library\n", "lib/foo.so": "x"},
	} {
		if err := ledger.Upload(ctx, conn, read(t, f), ""); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", why, err)
		}
	}
	check(t, ledger.Upload(ctx, conn, read(t, module("foo", "1", "")), "key"))
	check(t, ledger.Upload(ctx, conn, read(t, module("foo", "1", "")), "another"))
	list, err := ledger.Uploaded(ctx, conn)
	check(t, err)
	if len(list) != 1 || list[0].SignedBy != "another" {
		t.Errorf("%+v", list)
	}
}
