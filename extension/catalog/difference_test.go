package catalog_test

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"rideau/extension/catalog"
	"rideau/internal/pgtest"
)

// setup is what was there before each row of TestDifference, made by app except
// where it says so.
const setup = `
CREATE SCHEMA s;
CREATE TABLE s.t (a int PRIMARY KEY, b int);
CREATE TABLE s.p (k int) PARTITION BY LIST (k);
CREATE INDEX pk ON s.p (k);
CREATE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TYPE s.e AS ENUM ('a');
CREATE DOMAIN s.d AS int;
CREATE VIEW s.v AS SELECT 1 AS a;
CREATE SEQUENCE s.q;
CREATE TABLE s.idle (a int);`

// What a script does, and what is seen of it.
func TestDifference(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, sql, want string }{
		{"nothing", `SELECT 1`, ``},
		{"created in a savepoint", `SAVEPOINT a; CREATE FUNCTION s.g() RETURNS int LANGUAGE sql AS 'SELECT 1'; RELEASE a`, `created function s.g()`},
		{"created in a savepoint within a block", `DO $$BEGIN BEGIN CREATE TABLE s.n (); EXCEPTION WHEN OTHERS THEN NULL; END; END$$`, `created table s.n`},
		{"undone by a savepoint", `SAVEPOINT a; CREATE TABLE s.n (); ROLLBACK TO a`, ``},
		{"created and dropped", `CREATE TABLE s.n (); DROP TABLE s.n`, ``},
		{"replaced", `CREATE OR REPLACE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 2'`, `changed function s.f(): definition`},
		{"replaced in a savepoint", `SAVEPOINT a; CREATE OR REPLACE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 2'; RELEASE a`, `changed function s.f(): definition`},
		{"replaced by one that is the same", `CREATE OR REPLACE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 1'`, `changed function s.f(): definition`},
		{"view replaced", `CREATE OR REPLACE VIEW s.v AS SELECT 2 AS a`, `changed view s.v: flags, query`},
		{"skipped", `CREATE TABLE IF NOT EXISTS s.t (a int)`, ``},
		{"dropped", `DROP FUNCTION s.f()`, `dropped function s.f()`},
		{"dropped and created again", `DROP FUNCTION s.f(); CREATE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 1'`, `created function s.f(); dropped function s.f()`},
		{"renamed", `ALTER FUNCTION s.f() RENAME TO g`, `changed function s.g(): definition`},
		{"moved", `ALTER FUNCTION s.f() SET SCHEMA public`, `changed function public.f(): definition`},
		{"commented", `COMMENT ON FUNCTION s.f() IS 'x'`, `changed function s.f(): comment`},
		{"column commented", `COMMENT ON COLUMN s.t.a IS 'x'`, `changed table s.t: comment`},
		{"granted", `GRANT EXECUTE ON FUNCTION s.f() TO postgres`, `changed function s.f(): definition`},
		{"column granted", `GRANT SELECT (a) ON s.t TO postgres`, `changed table s.t: column a`},
		{"column added", `ALTER TABLE s.t ADD c int`, `changed table s.t: column c, definition`},
		{"column that needs TOAST added", `ALTER TABLE s.t ADD c text`, `changed table s.t: column c, definition`},
		{"column default", `ALTER TABLE s.t ALTER a SET DEFAULT 1`, `created default value for s.t.a; changed table s.t: column a, column default`},
		{"index on a table that was there", `CREATE INDEX i ON s.t (b)`, `created index s.i`},
		{"trigger on a table that was there", `CREATE TRIGGER g BEFORE UPDATE ON s.t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()`,
			`created trigger g on s.t; changed table s.t: flags`},
		{"foreign key to a table that was there", `CREATE TABLE s.n (a int REFERENCES s.t)`, `created table s.n; changed table s.t: flags`},
		{"child of a table that was there", `CREATE TABLE s.n () INHERITS (s.idle)`, `created table s.n; changed table s.idle: flags`},
		{"partition of a table that was there", `CREATE TABLE s.p1 PARTITION OF s.p FOR VALUES IN (1)`, `created table s.p1; changed index s.pk: flags; changed table s.p: flags`},
		{"rule", `CREATE RULE r AS ON DELETE TO s.t DO NOTHING`, `created rule r on s.t; changed table s.t: flags`},
		{"policy", `CREATE POLICY p ON s.t`, `created policy p on s.t`},
		{"row security", `ALTER TABLE s.t ENABLE ROW LEVEL SECURITY`, `changed table s.t: definition`},
		{"enum label", `ALTER TYPE s.e ADD VALUE 'b'`, `changed type s.e: enum label`},
		{"domain constraint", `ALTER DOMAIN s.d ADD CONSTRAINT c CHECK (VALUE > 0)`, `created domain constraint c on s.d`},
		{"sequence", `ALTER SEQUENCE s.q CYCLE`, `changed sequence s.q: definition, sequence`},
		{"table with all its parts", `CREATE TABLE s.n (a serial PRIMARY KEY, b text UNIQUE, c int GENERATED ALWAYS AS IDENTITY, d s.e[])`, `created table s.n`},
		{"partitions", `CREATE TABLE s.n (a int PRIMARY KEY) PARTITION BY LIST (a); CREATE TABLE s.n1 PARTITION OF s.n FOR VALUES IN (1)`, `created table s.n`},
		{"types", `CREATE TYPE s.c AS (a int); CREATE TYPE s.r AS RANGE (SUBTYPE = int)`, `created type s.c; created type s.r`},
		{"schema and owner", `CREATE SCHEMA n; ALTER SCHEMA s OWNER TO CURRENT_USER`, `created schema n`},
		{"temporary", `CREATE TEMP TABLE n (a text PRIMARY KEY); CREATE TEMP VIEW w AS SELECT 1`, `temporary schema pg_temp; temporary schema pg_toast_temp; temporary table pg_temp.n; temporary view pg_temp.w`},
		{"truncated", `TRUNCATE s.t`, `changed index s.t_pkey: definition; changed table s.t: definition`},
		{"analyzed", `ANALYZE s.t`, ``},
		{"data", `INSERT INTO s.t VALUES (1, 1); SELECT nextval('s.q')`, ``},
		{"default privileges", `ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC`, `created default acl for role app on tables`},
		{"large object", `SELECT lo_create(4711)`, `created large object 4711`},
		{"setting of the database", `ALTER DATABASE app SET work_mem = '1MB'`, `shared database app: settings`},
		{"extension", `CREATE EXTENSION citext`, `created extension citext; created all members of citext`},
	}
	eachMajor(t, func(t *testing.T, s *pgtest.Server) {
		ctx := context.Background()
		s.Exec(`CREATE ROLE app LOGIN`)
		s.Exec(`CREATE DATABASE app OWNER app`)
		exec(t, connect(t, s, "app", ""), `GRANT ALL ON SCHEMA public TO app`)
		exec(t, connect(t, s, "app", "app"), setup)
		other := begin(t, connect(t, s, "app", "app")) // does not see what the tests do
		conn := connect(t, s, "app", "app")
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				tx := begin(t, conn)
				before := capture(t, tx)
				exec(t, tx, tt.sql)
				d := difference(t, tx, before)
				dropped, err := catalog.Describe(ctx, other, d.Dropped)
				if err != nil {
					t.Fatal(err)
				}
				got := render(d, dropped)
				want := strings.Split(tt.want, "; ")
				slices.Sort(want)
				if want := strings.Join(want, "; "); got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				if slices.Contains(pgtest.Some, s.Major) {
					if again := render(difference(t, tx, before), dropped); again != got {
						t.Errorf("asked again: %s", again)
					}
				}
				var path string
				if err := tx.QueryRow(ctx, `SHOW search_path`).Scan(&path); err != nil || path != `"$user", public` {
					t.Errorf("search_path is %s afterwards (%v)", path, err)
				}
			})
		}
	})
}

// render writes a difference as a sentence. Parts of numbers that differ from
// session to session are left out.
func render(d *catalog.Difference, dropped []catalog.Object) string {
	var list []string
	members := map[string]bool{}
	for _, o := range d.Created {
		if o.Extension != "" {
			members[o.Extension] = true
			continue
		}
		list = append(list, "created "+o.String())
	}
	for extension := range members {
		list = append(list, "created all members of "+extension) // how many, TestMembers knows
	}
	for _, c := range d.Changed {
		list = append(list, "changed "+c.String()+": "+strings.Join(c.Parts, ", "))
	}
	for _, c := range d.Shared {
		list = append(list, "shared "+c.String()+": "+strings.Join(c.Parts, ", "))
	}
	for _, o := range dropped {
		list = append(list, "dropped "+o.String())
	}
	for _, o := range d.Temporary {
		list = append(list, "temporary "+o.String())
	}
	slices.Sort(list)
	return tempNumber.ReplaceAllString(strings.Join(list, "; "), "$1")
}

var tempNumber = regexp.MustCompile(`(pg_temp|pg_toast_temp)_\d+`)

// What the transaction did itself before Capture, and then does again to the
// same rows, is a change; what it does not touch again is none.
func TestCaptureAfterOwnWork(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		tx := begin(t, connect(t, s, "", ""))
		exec(t, tx, setup)
		before := capture(t, tx)
		if got := render(difference(t, tx, before), nil); got != "" {
			t.Errorf("without doing anything: %s", got)
		}
		exec(t, tx, `CREATE OR REPLACE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 2'; COMMENT ON TABLE s.t IS 'x'; ALTER TABLE s.idle ADD b int`)
		want := "changed function s.f(): definition; changed table s.idle: column b, definition; changed table s.t: comment"
		if got := render(difference(t, tx, before), nil); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}

// Others' work, committed while the script runs, is not the script's.
func TestOthersCommit(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		exec(t, connect(t, s, "", ""), setup)
		tx := begin(t, connect(t, s, "", ""))
		before := capture(t, tx)
		s.Exec(`CREATE TABLE others ()`)
		s.Exec(`CREATE OR REPLACE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 3'`)
		s.Exec(`ALTER TABLE s.t ADD c int`)
		s.Exec(`DROP SEQUENCE s.q`)
		s.Exec(`CREATE ROLE attacker`)
		s.Exec(`CREATE FUNCTION s.trap() RETURNS int LANGUAGE sql AS 'SELECT 666'`)
		s.Exec(`ALTER FUNCTION s.trap() OWNER TO attacker`)
		exec(t, tx, `CREATE OR REPLACE FUNCTION s.trap() RETURNS int LANGUAGE sql AS 'SELECT 1'`)
		d := difference(t, tx, before)
		if got, want := render(d, nil), "created function s.trap()"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		} else if owner := d.Created[0].Owner; owner != "attacker" {
			t.Errorf("owner %q gives nothing away", owner)
		}
	})
}

// The owner of what was replaced is shown.
func TestChangedOwner(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	s.Exec(`CREATE ROLE attacker`)
	exec(t, connect(t, s, "", ""), setup+`; ALTER FUNCTION s.f() OWNER TO attacker`)
	tx := begin(t, connect(t, s, "", ""))
	before := capture(t, tx)
	exec(t, tx, `CREATE OR REPLACE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 2'`)
	d := difference(t, tx, before)
	if len(d.Changed) != 1 || d.Changed[0].Owner != "attacker" || d.Changed[0].Harmless() {
		t.Errorf("changed: %+v", d.Changed)
	}
}

// Operators and functions that somebody put before pg_catalog are not used.
func TestSearchPath(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		conn := connect(t, s, "", "")
		exec(t, conn, setup+`;
CREATE SCHEMA trap;
CREATE FUNCTION trap.set_config(text, text, boolean) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END';
CREATE FUNCTION trap.age(xid) RETURNS int LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END';
CREATE FUNCTION trap.oideq(oid, oid) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END';
CREATE OPERATOR trap.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = trap.oideq);
CREATE FUNCTION trap.int4le(int, int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END';
CREATE OPERATOR trap.<= (LEFTARG = int, RIGHTARG = int, FUNCTION = trap.int4le);
CREATE FUNCTION trap.nameeq(name, name) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END';
CREATE OPERATOR trap.= (LEFTARG = name, RIGHTARG = name, FUNCTION = trap.nameeq);
CREATE FUNCTION trap.nameeq(name, text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''trapped''; END';
CREATE OPERATOR trap.= (LEFTARG = name, RIGHTARG = text, FUNCTION = trap.nameeq);
CREATE DOMAIN trap.text AS int; CREATE DOMAIN trap.oid AS int;
CREATE TABLE trap.pg_class (); CREATE TABLE trap.pg_depend (); CREATE TABLE trap.pg_extension ();
SET search_path = trap, pg_catalog, public`)
		ctx := context.Background()
		tx := begin(t, conn)
		before := capture(t, tx)
		exec(t, tx, `CREATE TABLE public.n (a pg_catalog.int4)`)
		d := difference(t, tx, before)
		if got := render(d, nil); got != "created table public.n" {
			t.Errorf("got %s", got)
		}
		found, err := catalog.Lookup(ctx, tx, d.Created)
		if err != nil || found[0].OID != d.Created[0].OID {
			t.Errorf("Lookup: %v, %v", found, err)
		}
		if _, err := catalog.DropOrder(ctx, tx, found); err != nil {
			t.Error(err)
		}
		if _, err := catalog.Members(ctx, tx, "plpgsql"); err != nil {
			t.Error(err)
		}
	})
}

// A view of the user's on a member stops the drop, and nothing has changed.
func TestRestrict(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		ctx := context.Background()
		conn := connect(t, s, "", "")
		tx := begin(t, conn)
		before := capture(t, tx)
		exec(t, tx, `CREATE SCHEMA s;
CREATE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE s.t (a int);
CREATE FUNCTION s.g(s.t) RETURNS int LANGUAGE sql AS 'SELECT 1';
ALTER TABLE s.t ADD CHECK (s.g(t) > 0)`)
		created := difference(t, tx, before).Created
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		for _, mine := range []string{`CREATE VIEW public.mine AS SELECT s.f()`, `CREATE VIEW public.mine AS SELECT a FROM s.t`, `CREATE VIEW public.mine AS SELECT s.g(NULL)`,
			`CREATE TABLE public.mine (t s.t)`} {
			exec(t, conn, mine)
			before := dump(t, s, "postgres")
			err := dropAll(ctx, conn, created)
			if err == nil || !strings.Contains(err.Error(), "2BP01") {
				t.Errorf("%s: dropped: %v", mine, err)
			}
			if dump(t, s, "postgres") != before {
				t.Errorf("%s: something was changed", mine)
			}
			exec(t, conn, `DROP `+strings.Join(strings.Fields(mine)[1:3], " "))
		}
		if err := dropAll(ctx, conn, created); err != nil {
			t.Error(err)
		}
	})
}

// dropAll drops the objects in one transaction.
func dropAll(ctx context.Context, conn *pgx.Conn, objects []catalog.Object) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		order, err := catalog.DropOrder(ctx, tx, objects)
		if err != nil {
			return err
		}
		for _, o := range order {
			sql, err := catalog.DropSQL(o)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
}

// Rules of use that are refused when broken.
func TestRefused(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	ctx := context.Background()
	conn := connect(t, s, "", "")
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := catalog.Capture(ctx, tx); err == nil || !strings.Contains(err.Error(), "read committed") {
		t.Errorf("Capture in read committed: %v", err)
	}
	if _, err := catalog.Members(ctx, tx, "nothing"); err == nil || !strings.Contains(err.Error(), `extension "nothing" does not exist`) {
		t.Errorf("Members of nothing: %v", err)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if members, err := catalog.Members(ctx, conn, "plpgsql"); err != nil || len(members) != 4 {
		t.Errorf("Members without a transaction: %v, %v", members, err)
	}
	if _, err := catalog.Members(ctx, conn, "nothing"); err == nil {
		t.Error("Members of nothing without a transaction")
	}
	var path string
	if err := conn.QueryRow(ctx, `SHOW search_path`).Scan(&path); err != nil || path != `"$user", public` {
		t.Errorf("search_path is %s afterwards (%v)", path, err)
	}
	if _, err := catalog.Lookup(ctx, begin(t, conn), []catalog.Object{{Type: "unheard of"}}); err == nil {
		t.Error("Lookup of a type that does not exist")
	}
	for _, o := range []catalog.Object{{Type: "unheard of"}, {Type: "cast"}, {Type: "trigger", Names: []string{"a"}}, {Type: "toast table", Names: []string{"a"}}, {Type: "operator"}, {Type: "table"},
		{Type: "default acl", Names: []string{"a"}, Args: []string{"?"}}} {
		if sql, err := catalog.DropSQL(o); err == nil {
			t.Errorf("DropSQL(%v) = %s", o, sql)
		}
	}
}
