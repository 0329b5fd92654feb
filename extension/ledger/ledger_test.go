package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"rideau/extension/catalog"
	"rideau/extension/depend"
	"rideau/extension/ledger"
	"rideau/extension/pack"
	"rideau/internal/pgtest"
)

// eachMajor runs a test on a server of each version of [pgtest.Some], with a database app that
// belongs to a plain role app.
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
			s := pgtest.Start(t, pgtest.Options{Major: major})
			s.Exec(`CREATE ROLE app LOGIN`)
			s.Exec(`CREATE ROLE other LOGIN`)
			s.Exec(`CREATE DATABASE app OWNER app`)
			f(t, s)
		})
	}
}

func connect(t *testing.T, s *pgtest.Server, database, role string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), s.Conninfo("dbname="+database+" user="+role))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func exec(t *testing.T, q ledger.Querier, sql string) {
	t.Helper()
	if _, err := q.Exec(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, text string) depend.List {
	t.Helper()
	l, err := depend.ParseList(text)
	check(t, err)
	return l
}

// restore dumps database app and restores it into another.
func restore(t *testing.T, s *pgtest.Server, database string) {
	t.Helper()
	exec(t, connect(t, s, "postgres", "postgres"), `CREATE DATABASE `+database+` OWNER app`)
	text := pgtest.Run(t, s.Major, "pg_dump", "-d", s.Conninfo("dbname=app user=postgres"))
	text = strings.ReplaceAll(text, "SET transaction_timeout = 0;", "") // of a newer pg_dump
	file := filepath.Join(pgtest.Dir(t), "dump.sql")
	check(t, os.WriteFile(file, []byte(text), 0o644))
	pgtest.Run(t, s.Major, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", file, "-d", s.Conninfo("dbname="+database+" user=postgres"))
}

// What is recorded is read again, by the owner, by others, and in a restored
// database.
func TestRecord(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		ctx := context.Background()
		conn := connect(t, s, "app", "app")
		if state, err := ledger.Read(ctx, conn); state != nil || err != nil {
			t.Fatalf("before: %v, %v", state, err)
		}
		check(t, ledger.Ensure(ctx, conn))
		check(t, ledger.Ensure(ctx, conn))
		entry := ledger.Entry{
			Name: "foo", Version: "1.0", Mode: "module", Schema: `a "schema"`, Control: []byte("name = foo\xff\n"),
			Depends: list(t, "bar (>= 1.1), baz | qux@server"), Conflicts: list(t, "bla (< 0.8)"),
			Provides: []pack.Provide{{Name: "fu", Version: "2"}}, SHA256: "abc",
			Settings: []pack.Setting{{Scope: pack.ScopeRole, Role: "app", Name: "foo.bar", Value: "1", Line: 3}}, Uninstall: []byte("DROP"),
		}
		objects := []catalog.Object{
			{Type: "function", Names: []string{"s", `f"`}, Args: []string{"integer"}, Identity: `s."f"""(integer)`, MD5: "x"},
			{Type: "schema", Names: []string{"s"}},
		}
		check(t, ledger.Record(ctx, conn, entry, objects))
		entry.Version = "1.1"
		check(t, ledger.Record(ctx, conn, entry, objects))
		check(t, ledger.Record(ctx, conn, ledger.Entry{Name: "another", Version: "1", Mode: "native"}, nil))

		restore(t, s, "restored")
		for _, q := range []*pgx.Conn{conn, connect(t, s, "app", "other"), connect(t, s, "restored", "app")} {
			state, err := ledger.Read(ctx, q)
			check(t, err)
			got, ok := state.Find("foo")
			if !ok || len(state.Installed) != 2 || state.Owner != "app" || state.Format != ledger.Format {
				t.Fatalf("%+v", state)
			}
			if got.InstalledBy != "app" || got.InstalledAt.IsZero() {
				t.Errorf("installed by %q at %s", got.InstalledBy, got.InstalledAt)
			}
			want := entry
			want.InstalledAt, want.InstalledBy, want.Major = got.InstalledAt, got.InstalledBy, s.Major
			if !reflect.DeepEqual(*got, want) {
				t.Errorf("got  %+v\nwant %+v", *got, want)
			}
			recorded, err := ledger.Objects(ctx, q, "foo")
			check(t, err)
			if len(recorded) != 2 || recorded[0].String() != objects[0].String() || recorded[0].MD5 != "x" || !reflect.DeepEqual(recorded[1].Names, objects[1].Names) {
				t.Errorf("objects: %+v", recorded)
			}
		}
		if err := ledger.Record(ctx, connect(t, s, "app", "other"), entry, nil); err == nil {
			t.Error("another role may write")
		}
		check(t, ledger.Forget(ctx, conn, "foo"))
		state, err := ledger.Read(ctx, conn)
		check(t, err)
		if _, ok := state.Find("foo"); ok || len(state.Installed) != 1 {
			t.Errorf("after Forget: %+v", state)
		}
	})
}

// A ledger of an older program is brought to this one's format with what it has.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		ctx := context.Background()
		conn := connect(t, s, "app", "app")
		first, err := os.ReadFile("format1.sql")
		check(t, err)
		exec(t, conn, string(first))
		exec(t, conn, `INSERT INTO extension.installed (name, version, mode, schema, control, depends, conflicts, sha256, settings)
			VALUES ('foo', '1.0', 'module', 'public', '', 'bar (>= 1.1)', '', '', '[]')`)
		state, err := ledger.Read(ctx, conn)
		check(t, err)
		if state.Format != 1 || len(state.Installed) != 1 {
			t.Fatalf("%+v", state)
		}
		if err := ledger.Record(ctx, conn, ledger.Entry{Name: "bar"}, nil); err == nil {
			t.Error("an old format is written to")
		}
		check(t, ledger.Ensure(ctx, conn))
		state, err = ledger.Read(ctx, conn)
		check(t, err)
		if state.Format != ledger.Format || state.Installed[0].Depends.String() != "bar (>= 1.1)" || time.Since(state.Installed[0].InstalledAt) > time.Hour {
			t.Errorf("%+v", state)
		}
		exec(t, conn, `UPDATE extension.meta SET format = 99`)
		var newer *ledger.FormatError
		if _, err := ledger.Read(ctx, conn); !errors.As(err, &newer) || newer.Format != 99 {
			t.Errorf("a newer format: %v", err)
		}
		if err := ledger.Ensure(ctx, conn); !errors.As(err, &newer) {
			t.Errorf("a newer format: %v", err)
		}
	})
}

// A superuser who brings somebody's ledger up to date leaves it to the owner.
func TestSuperuser(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		ctx := context.Background()
		first, err := os.ReadFile("format1.sql")
		check(t, err)
		conn := connect(t, s, "app", "app")
		exec(t, conn, string(first))
		super := connect(t, s, "app", "postgres")
		exec(t, super, `CREATE SCHEMA trap; CREATE DOMAIN trap.text AS int; SET search_path = trap, pg_catalog`)
		tx, err := super.Begin(ctx)
		check(t, err)
		check(t, ledger.Ensure(ctx, tx))
		check(t, ledger.Bootstrap(ctx, tx))
		check(t, ledger.Record(ctx, tx, ledger.Entry{Name: "foo", Version: "1", Mode: "native"}, nil))
		expect(t, tx.Conn(), `SELECT pg_catalog.current_setting('search_path')`, "trap, pg_catalog")
		check(t, tx.Commit(ctx))
		check(t, ledger.Bootstrap(ctx, super))
		check(t, ledger.Bootstrap(ctx, conn))
		check(t, ledger.Record(ctx, conn, ledger.Entry{Name: "bar", Version: "1", Mode: "native"}, nil))
		expect(t, conn, `SELECT DISTINCT pg_get_userbyid(proowner)::text FROM pg_proc WHERE pronamespace = 'extension'::regnamespace`, "app")
		expect(t, conn, `SHOW search_path`, `"$user", public`)
	})
}

// A schema of that name that is not ours is left alone, and one that somebody
// else prepared is not trusted, above all by a superuser.
func TestNotOurs(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, as, sql string // done by role other, who may create in the database
		readable      bool
	}{
		{"a schema for other things", "app", `CREATE SCHEMA extension; CREATE TABLE extension.meta (a int)`, true},
		{"of another role", "app", `%`, true},
		{"a trigger", "postgres", `%; CREATE FUNCTION extension.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
			CREATE TRIGGER t BEFORE INSERT ON extension.installed FOR EACH ROW EXECUTE FUNCTION extension.f()`, false},
		{"a rule", "postgres", `%; CREATE RULE r AS ON INSERT TO extension.object DO ALSO NOTHING`, false},
		{"a view", "postgres", `%; ALTER TABLE extension.installed RENAME TO i; CREATE VIEW extension.installed AS SELECT * FROM extension.i`, false},
		{"a default", "postgres", `%; CREATE FUNCTION extension.f() RETURNS text LANGUAGE sql AS 'SELECT '''''; ALTER TABLE extension.installed ALTER installed_by SET DEFAULT extension.f()`, false},
		{"a check", "postgres", `%; CREATE FUNCTION extension.f() RETURNS boolean LANGUAGE sql AS 'SELECT true'; ALTER TABLE extension.object ADD CHECK (extension.f())`, false},
		{"an index", "postgres", `%; CREATE FUNCTION extension.f(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1'; CREATE INDEX ON extension.object (extension.f(name))`, false},
		{"a policy", "postgres", `%; ALTER TABLE extension.object ENABLE ROW LEVEL SECURITY`, false},
		{"a domain", "postgres", `%; CREATE DOMAIN extension.d AS text; ALTER TABLE extension.object ALTER identity TYPE extension.d`, false},
		{"a child", "postgres", `%; CREATE TABLE extension.child () INHERITS (extension.installed)`, false},
	}
	s := pgtest.Start(t, pgtest.Options{})
	ctx := context.Background()
	s.Exec(`CREATE ROLE app LOGIN`)
	s.Exec(`CREATE ROLE other LOGIN`)
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			database := fmt.Sprintf("db%d", i)
			exec(t, connect(t, s, "postgres", "postgres"), `CREATE DATABASE `+database+` OWNER app`)
			exec(t, connect(t, s, "postgres", "postgres"), `GRANT CREATE ON DATABASE `+database+` TO other`)
			other := connect(t, s, database, "other")
			sql, prepared := strings.CutPrefix(tt.sql, "%")
			if prepared {
				check(t, ledger.Ensure(ctx, other))
			}
			exec(t, other, sql)
			conn := connect(t, s, database, tt.as)
			var notOurs *ledger.NotOursError
			if err := ledger.Ensure(ctx, conn); !errors.As(err, &notOurs) || notOurs.Owner != "other" {
				t.Errorf("Ensure: %v", err)
			}
			if err := ledger.Record(ctx, conn, ledger.Entry{Name: "a"}, nil); err == nil {
				t.Error("Record writes there")
			}
			if _, err := ledger.Read(ctx, conn); (err == nil) != tt.readable {
				t.Errorf("Read: %v", err)
			}
		})
	}
}
