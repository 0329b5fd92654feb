package catalog_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"rideau/extension/catalog"
	"rideau/internal/pgtest"
)

// eachMajor runs a test on a server of each version of [pgtest.Some].
func eachMajor(t *testing.T, f func(t *testing.T, s *pgtest.Server)) {
	onEach(t, pgtest.Some, f)
}

// someMajors is eachMajor for what versions are not known to do differently.
func someMajors(t *testing.T, f func(t *testing.T, s *pgtest.Server)) {
	onEach(t, pgtest.Some, f)
}

func onEach(t *testing.T, majors []int, f func(t *testing.T, s *pgtest.Server)) {
	for _, major := range majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			f(t, pgtest.Start(t, pgtest.Options{Major: major}))
		})
	}
}

// connect connects to a database as a role; empty means postgres.
func connect(t *testing.T, s *pgtest.Server, database, role string) *pgx.Conn {
	t.Helper()
	conninfo := "dbname=" + cmpOr(database, "postgres") + " user=" + cmpOr(role, "postgres")
	conn, err := pgx.Connect(context.Background(), s.Conninfo(conninfo))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// exec runs SQL, of several commands too.
func exec(t *testing.T, q catalog.Querier, sql string) {
	t.Helper()
	if _, err := q.Exec(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// begin begins a transaction that is rolled back with the test.
func begin(t *testing.T, conn *pgx.Conn) pgx.Tx {
	t.Helper()
	tx, err := conn.BeginTx(context.Background(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback(context.Background()) })
	return tx
}

func capture(t *testing.T, q catalog.Querier) *catalog.Snapshot {
	t.Helper()
	s, err := catalog.Capture(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func difference(t *testing.T, q catalog.Querier, s *catalog.Snapshot) *catalog.Difference {
	t.Helper()
	d, err := s.Difference(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func names(objects []catalog.Object) (list []string) {
	for _, o := range objects {
		list = append(list, o.String())
	}
	slices.Sort(list)
	return list
}

// What CREATE EXTENSION creates is what the server records as its members, for
// every extension that comes with the server. 15 has many more than PostgreSQL's.
func TestMembers(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		ctx := context.Background()
		conn := connect(t, s, "", "")
		extensions := s.Query(`SELECT name FROM pg_available_extensions WHERE installed_version IS NULL ORDER BY 1`)
		if len(extensions) < 20 {
			t.Fatalf("the server has only %d extensions to try", len(extensions))
		}
		tried := 0
		for _, row := range extensions {
			extension := row[0]
			tx := begin(t, conn)
			before := capture(t, tx)
			if _, err := tx.Exec(ctx, `CREATE EXTENSION `+pgx.Identifier{extension}.Sanitize()+` CASCADE`); err != nil {
				t.Logf("%s: %v", extension, err) // built without what it needs
			} else {
				tried++
				d := difference(t, tx, before)
				members, err := catalog.Members(ctx, tx, extension)
				if err != nil {
					t.Fatal(err)
				}
				// CREATE EXTENSION makes the schemas that control files fix, and
				// these are not members.
				var made []string
				if err := tx.QueryRow(ctx, `SELECT array_agg(DISTINCT n.nspname::text) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace`).Scan(&made); err != nil {
					t.Fatal(err)
				}
				created := slices.DeleteFunc(slices.Clone(d.Created), func(o catalog.Object) bool {
					return o.Type == "extension" || o.Extension != "" && o.Extension != extension || // CASCADE
						o.Type == "schema" && o.Extension == "" && slices.Contains(made, o.Names[0])
				})
				if got, want := names(created), names(members); !slices.Equal(got, want) {
					t.Errorf("%s: %d created, %d members\nonly created: %q\nonly members: %q", extension, len(got), len(want), without(got, want), without(want, got))
				}
				if len(d.Changed)+len(d.Dropped) > 0 {
					t.Errorf("%s: changed %v, dropped %v", extension, d.Changed, d.Dropped)
				}
				if len(d.Shared) > 0 {
					t.Logf("%s: shared %v", extension, d.Shared) // some create roles
				}
			}
			tx.Rollback(ctx)
		}
		t.Logf("%d of %d extensions", tried, len(extensions))
	})
}

func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}
