package ledger_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"rideau/extension/ledger"
	"rideau/internal/pgtest"
)

// What people get to read: what is the matter, and what to say instead.
func TestWords(t *testing.T) {
	t.Parallel()
	eachMajor(t, func(t *testing.T, s *pgtest.Server) {
		conn := shop(t, s, module("foo", "1.0", ""), module("foo", "1.1", ""), module("user", "1", "depends = pageinspect"),
			module("newer", "1", "postgres = '>= 99'"), module("needs-newer", "1", "depends = foo (>= 2)"), module("citext", "9", ""),
			files{"control": "name = inside\nversion = 1\nsuperuser = false\n", "install.sql": "SELECT 1;\nDO $$\nBEGIN\n  RAISE 'no %', 'good';\nEND $$;"},
			files{"control": "name = plain\nversion = 1\nsuperuser = false\n", "install.sql": "SELECT 1;\n\nSELECT nothing;"})
		exec(t, conn, `SET search_path = pg_catalog, public; CREATE SCHEMA mine; SET search_path = "$user", public`)
		for _, tt := range []struct{ sql, want string }{
			{`SELECT extension.install('pageinspect')`, `ERROR 42501: cannot install pageinspect: the server has its files, and wants a superuser to create it; role "app" is none |  | Have a superuser say: CREATE EXTENSION pageinspect;`},
			{`SELECT extension.install('user')`, `...user 1 depends on pageinspect, and the server has its files, and wants a superuser to create it; role "app" is none`},
			{`SELECT extension.install('nothing')`, `ERROR 42704: there is no extension 'nothing' | No package of that name was uploaded, and the server has no files of it. | To bring a package: rideau extension upload nothing`},
			{`SELECT extension.install('fooo')`, `...Did you mean 'foo'? To bring a package: rideau extension upload fooo`},
			{`SELECT extension.install('page_inspect')`, `...Did you mean 'pageinspect'? `},
			{`SELECT extension.install('it''s')`, `...there is no extension 'it''s'`},
			{`SELECT extension.install(NULL)`, `ERROR 22004: the name of the extension is NULL |  | Name it, for instance: SELECT extension.install('foo'). To see what there is: SELECT * FROM extension.available().`},
			{`SELECT extension.install('')`, `...the name of the extension is empty`},
			{`SELECT extension.install('foo=1.0')`, `ERROR 42602: 'foo=1.0' is not the name of an extension | A version is an argument of its own: one version, not a range. | The newest: SELECT extension.install('foo'). That version: SELECT extension.install('foo', '1.0').`},
			{`SELECT extension.install('foo (>= 1)')`, `...That version: SELECT extension.install('foo', '1').`},
			{`SELECT extension.install('foo (~> 1.1~rc1, < 2)')`, `...That version: SELECT extension.install('foo', '1.1~rc1').`},
			{`SELECT extension.upgrade('foo>1')`, `...SELECT extension.upgrade('foo', '1').`},
			{`SELECT extension.uninstall('foo=1.0')`, `...It goes in whatever version it is: SELECT extension.uninstall('foo').`},
			{`SELECT extension.uninstall(NULL)`, `...SELECT extension.uninstall('foo'). To see what there is: SELECT * FROM extension.installed().`},
			{`SELECT extension.install('foo', '>= 1')`, `ERROR 22023: '>= 1' is not a version of foo | The second argument is one version, not a range. | For the newest leave it out, or NULL: SELECT extension.install('foo').`},
			{`SELECT extension.install('foo', '')`, `...'' is not a version of foo`},
			{`SELECT extension.install('foo', '9')`, `ERROR 42704: there is no version '9' of foo | What can be installed here: 1.0, 1.1. | To bring it: rideau extension upload 'foo=9'`},
			{`SELECT extension.install('newer')`, `...cannot install newer: its package 1 is for PostgreSQL >= 99, and this is ` + strings.Fields(s.QueryValue("SHOW server_version"))[0]},
			{`SELECT extension.install('needs-newer')`, `...needs-newer 1 depends on foo (>= 2), and of foo only 1.0, 1.1 can be installed here`},
			{`SELECT extension.install('foo', NULL, 'missing')`, `ERROR 3F000: cannot install into schema missing: it does not exist |  | Make it first: CREATE SCHEMA missing. Or name another as the third argument.`},
			{`SELECT extension.install('foo', NULL, 'pg_catalog')`, `...cannot install into schema pg_catalog: it is the server's own`},
			{`SELECT extension.uninstall('plgsql')`, `ERROR 42704: plgsql is not installed |  | Did you mean 'plpgsql'? To see what is: SELECT * FROM extension.installed()`},
			// The script's own context is kept, and there is none of ours but a line.
			{`SELECT extension.install('inside')`, "...ERROR P0001: inside: install.sql:2: no good | PL/pgSQL function inline_code_block line 3 at RAISE | The statement begins with: DO $$"},
			{`SELECT extension.install('plain')`, "...plain: install.sql:3: column \"nothing\" does not exist |  | The statement begins with: SELECT nothing"},
		} {
			expect(t, conn, tt.sql, tt.want)
			if c := contextOf(t, conn, tt.sql); strings.Count(c, "\n") > 0 || !strings.Contains(c, " at RAISE") {
				t.Errorf("%s: context %q", tt.sql, c)
			}
		}
		exec(t, conn, `SET search_path = nowhere`)
		expect(t, conn, `SELECT extension.install('foo')`, `ERROR 3F000: there is no schema to install into | None was named, and no schema of search_path is there. | Name one as the third argument, or set search_path.`)
		exec(t, connect(t, s, "app", "postgres"), `ALTER DATABASE app OWNER TO postgres; REVOKE CREATE ON DATABASE app FROM app`)
		expect(t, conn, `SELECT extension.install('citext')`, `...cannot install citext: the server has its files, and role "app" has no CREATE on database "app"; an unsigned package was uploaded, which may not take the name of what the server has files of |  | Have the owner of the database say: GRANT CREATE ON DATABASE app TO app;`)
	})
}

// contextOf is the CONTEXT of the error that a statement ends with.
func contextOf(t *testing.T, conn *pgx.Conn, sql string) string {
	t.Helper()
	_, err := conn.Exec(context.Background(), sql)
	var server *pgconn.PgError
	if !errors.As(err, &server) {
		t.Fatalf("%s: %v", sql, err)
	}
	return server.Where
}

// What another role must be granted to install, and what it then may not.
func TestGrants(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		conn := shop(t, s, module("foo", "1", ""), module("bar", "1", ""),
			files{"control": "name = own\nversion = 1\nsuperuser = false\nschema = own\n", "install.sql": "CREATE TABLE own ();"},
			files{"control": "name = sets\nversion = 1\nsuperuser = false\ncustom_variable_classes = sets\n", "install.sql": "CREATE TABLE sets ();", "sets.conf": "sets.a = 1\n"})
		exec(t, conn, `GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA extension TO other; GRANT INSERT, UPDATE, DELETE ON extension.installed, extension.object TO other`)
		other := connect(t, s, "app", "other")
		exec(t, conn, `CREATE SCHEMA lent; GRANT ALL ON SCHEMA lent TO other`)
		expect(t, other, `SELECT extension.install('foo', NULL, 'lent')`, `...cannot install into schema lent, where others may create | These may create in it: app.`)
		expect(t, other, `SELECT extension.install('citext')`, `...role "other" has no CREATE on database "app"`)
		expect(t, other, `SELECT extension.install('own')`, `...permission denied for database app`)

		// A schema that it owns is enough for what is put into one.
		exec(t, connect(t, s, "app", "postgres"), `CREATE SCHEMA other AUTHORIZATION other`)
		expect(t, other, `SELECT extension.install('foo')`, "installed foo 1")
		expect(t, conn, `SELECT schema FROM extension.installed() WHERE name = 'foo'`, "other")

		// CREATE on the database is enough for all but settings of the database.
		exec(t, conn, `GRANT CREATE ON DATABASE app TO other`)
		expect(t, other, `SELECT extension.install('own')`, "installed own 1")
		expect(t, other, `SELECT left(extension.install('citext'), 16)`, "installed citext")
		expect(t, other, `SELECT extension.install('sets')`, `ERROR 42501: sets sets sets.a, which role "other" may not | must be owner of database app | Without its settings: rideau extension install sets --no-conf`)
		hint := `Have a superuser say: GRANT SET ON PARAMETER sets.a TO app;`
		if s.Major < 15 {
			hint = `Without its settings: rideau extension install sets --no-conf`
		}
		expect(t, conn, `SELECT extension.install('sets')`, `ERROR 42501: sets sets sets.a, which role "app" may not | permission denied to set parameter "sets.a" | `+hint)
		expect(t, other, `SELECT extension.uninstall('foo')`, "uninstalled foo 1")

		// What a newer program adds can be called by whom the owner let before.
		exec(t, conn, `DROP FUNCTION extension._did_you_mean(text, text[]), extension._distance(text, text)`)
		check(t, ledger.Bootstrap(t.Context(), conn))
		expect(t, other, `SELECT extension.install('barr')`, "...Did you mean 'bar'?")
	})
}
