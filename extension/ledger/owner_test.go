package ledger_test

import (
	"strings"
	"testing"

	"rideau/extension/ledger"
	"rideau/internal/pgtest"
)

// A superuser who installs into a schema of somebody else's would call what that
// one has put there: public belongs to the database's owner, from 15 on.
func TestOwnerOfSchema(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		s.Exec("CREATE ROLE mallory LOGIN")
		s.Exec("CREATE DATABASE hers OWNER mallory")
		conn := connect(t, s, "hers", "postgres")
		check(t, ledger.Bootstrap(t.Context(), conn))
		check(t, ledger.Upload(t.Context(), conn, read(t, files{"control": "name = vic\nversion = 1\nsuperuser = false\n",
			"install.sql": "CREATE TABLE vic AS SELECT lower('ABC'::varchar) AS a;"}), ""))
		mallory := connect(t, s, "hers", "mallory")
		exec(t, conn, "CREATE SCHEMA theirs AUTHORIZATION mallory; CREATE SCHEMA ours")
		const trap = `CREATE FUNCTION %.lower(varchar) RETURNS text LANGUAGE plpgsql AS 'BEGIN ALTER ROLE mallory SUPERUSER; RETURN ''x''; END'`
		exec(t, mallory, trapIn(trap, "theirs"))
		expect(t, conn, `SELECT extension.install('vic', NULL, 'theirs')`, "...cannot install into schema theirs, where others may create")
		if s.QueryValue("SHOW server_version_num") >= "150000" {
			exec(t, mallory, trapIn(trap, "public"))
			expect(t, conn, `SELECT extension.install('vic', NULL, 'public')`, "...cannot install into schema public, where others may create")
		}
		expect(t, conn, `SELECT extension.install('vic', NULL, 'ours')`, "installed vic 1")
		if s.QueryValue("SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'") == "t" {
			t.Error("mallory is a superuser")
		}
	})
}

func trapIn(sql, schema string) string { return strings.Replace(sql, "%", schema, 1) }
