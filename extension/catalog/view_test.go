package catalog_test

import (
	"context"
	"testing"

	"rideau/extension/catalog"
	"rideau/internal/pgtest"
)

// The server writes a view with a constant in the second SELECT of a UNION with
// one alias more when it was made from what the server wrote before, as in a
// restore. (pg_partman's table_privs is such a one.) It is the same view; one with
// another column name or another condition is not.
func TestViewAliases(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		conn := connect(t, s, "", "")
		exec(t, conn, `CREATE VIEW v AS
SELECT r.rolname AS who FROM (SELECT oid, rolname FROM pg_roles UNION ALL SELECT 0::oid, 'PUBLIC') AS r (oid, rolname) WHERE r.oid > 0`)
		md5 := func() string {
			found, err := catalog.Lookup(context.Background(), conn, []catalog.Object{{Type: "view", Names: []string{"public", "v"}}})
			if err != nil {
				t.Fatal(err)
			}
			if found[0].MD5 == "" {
				t.Fatal("the view has no MD5")
			}
			return found[0].MD5
		}
		was, text := md5(), s.QueryValue("SELECT pg_get_viewdef('v'::regclass)")
		exec(t, conn, "DROP VIEW v; CREATE VIEW v AS "+text)
		if got := s.QueryValue("SELECT pg_get_viewdef('v'::regclass)"); got == text {
			t.Error("the server writes the view as before: this test shows nothing")
		}
		if got := md5(); got != was {
			t.Errorf("the restored view has MD5 %s, want %s", got, was)
		}
		exec(t, conn, "ALTER VIEW v RENAME COLUMN who TO whom")
		renamed := md5()
		if renamed == was {
			t.Error("a renamed column is not seen")
		}
		exec(t, conn, "CREATE OR REPLACE VIEW v AS SELECT rolname AS whom FROM pg_roles")
		if md5() == renamed {
			t.Error("another query is not seen")
		}
	})
}
