package catalog_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"rideau/extension/catalog"
	"rideau/internal/pgtest"
)

// script reads a file of testdata and puts in the names.
func script(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer("$N", `"N""a.m é$"`, "$S", `"S""c.h é$"`, "$T", `"T""c.h é$"`, "$I", `"I""d.x é$"`).Replace(string(text))
}

// dump is the database as pg_dump writes it, without what differs at each run,
// and what a newer pg_dump than the server writes for newer servers.
func dump(t *testing.T, s *pgtest.Server, database string) string {
	t.Helper()
	text := pgtest.Run(t, s.Major, "pg_dump", "-d", s.Conninfo("dbname="+database+" user=postgres"))
	return regexp.MustCompile(`(?m)^(\\(un)?restrict .*|SET transaction_timeout = 0;)\n`).ReplaceAllString(text, "")
}

const theirs = `
CREATE TABLE theirs (a int, b int);
CREATE DOMAIN theirdomain AS int;
CREATE PUBLICATION theirpub;
CREATE OPERATOR FAMILY theirfamily USING btree;
ALTER TABLE theirs OWNER TO app; ALTER DOMAIN theirdomain OWNER TO app; ALTER PUBLICATION theirpub OWNER TO app`

// everything creates one of everything, as the database's owner and as
// superuser, and returns what was created.
func everything(t *testing.T, s *pgtest.Server) (created []catalog.Object) {
	t.Helper()
	s.Exec(`CREATE ROLE app LOGIN`)
	s.Exec(`CREATE ROLE "Role.1"`)
	s.Exec(`CREATE DATABASE app OWNER app`)
	exec(t, connect(t, s, "app", ""), theirs)

	scripts := []struct{ role, text string }{{"app", script(t, "owner.sql")}, {"postgres", script(t, "superuser.sql")}}
	if s.Major == 13 {
		scripts = append(scripts, struct{ role, text string }{"postgres", script(t, "13.sql")})
	}
	for major, file := range map[int]string{14: "14.sql", 15: "15.sql", 18: "18.sql"} {
		if s.Major >= major {
			scripts = append(scripts, struct{ role, text string }{"postgres", script(t, file)})
		}
	}
	for _, sc := range scripts {
		tx := begin(t, connect(t, s, "app", sc.role))
		before := capture(t, tx)
		for line := range strings.Lines(sc.text) {
			exec(t, tx, line)
		}
		d := difference(t, tx, before)
		if len(d.Dropped)+len(d.Shared)+len(d.Temporary) > 0 {
			t.Errorf("dropped %v, shared %v, temporary %v", d.Dropped, d.Shared, d.Temporary)
		}
		for _, c := range d.Changed {
			switch c.String() {
			case "table public.theirs", "type public.theirdomain", "operator family public.theirfamily USING btree", "publication theirpub":
			default:
				if !strings.HasPrefix(c.Identity, "public.theirs") {
					t.Errorf("changed: %s: %v", c, c.Parts)
				}
			}
		}
		created = append(created, d.Created...)
		if err := tx.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	return created
}

// One of everything, with names that must be quoted, is created, found by its
// identity, dropped in order with RESTRICT, and the database is as before; the
// same after a dump and restore into another database.
func TestEverything(t *testing.T) {
	t.Parallel()
	eachMajor(t, func(t *testing.T, s *pgtest.Server) {
		created := everything(t, s)
		exec(t, connect(t, s, "", ""), `CREATE DATABASE empty OWNER app`)
		exec(t, connect(t, s, "empty", ""), theirs)
		empty := dump(t, s, "empty")

		file := filepath.Join(pgtest.Dir(t), "dump.sql")
		if err := os.WriteFile(file, []byte(dump(t, s, "app")), 0o644); err != nil {
			t.Fatal(err)
		}
		exec(t, connect(t, s, "", ""), `CREATE DATABASE restored OWNER app`)
		pgtest.Run(t, s.Major, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", file, "-d", s.Conninfo("dbname=restored user=postgres"))

		for _, database := range []string{"app", "restored"} {
			// What is known of an object elsewhere is this, and no more.
			var wanted []catalog.Object
			for _, o := range created {
				wanted = append(wanted, catalog.Object{Type: o.Type, Names: o.Names, Args: o.Args, Identity: o.Identity})
			}
			drop(t, s, database, wanted, created)
			if got := dump(t, s, database); got != empty {
				t.Errorf("database %s is not as before:\n%s", database, got)
			}
		}
	})
}

// drop looks up and drops objects that have to be as they were.
func drop(t *testing.T, s *pgtest.Server, database string, wanted, were []catalog.Object) {
	t.Helper()
	ctx := context.Background()
	tx, err := connect(t, s, database, "").Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(ctx)
	found, err := catalog.Lookup(ctx, tx, wanted)
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range found {
		switch {
		case o.OID == 0:
			t.Errorf("%s: %s was not found", database, o)
		case o.MD5 != were[i].MD5:
			t.Errorf("%s: %s has another definition", database, o)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	order, err := catalog.DropOrder(ctx, tx, found)
	if err != nil {
		t.Fatal(err)
	}
	if cascades := slices.DeleteFunc(slices.Clone(order), func(o catalog.Object) bool { return !o.Cascade }); len(cascades) > 4 {
		t.Errorf("too many with CASCADE: %q", names(cascades))
	}
	for _, o := range order {
		sql, err := catalog.DropSQL(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %s: %v", database, sql, err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
}
