package pack_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"rideau/extension/depend"
	"rideau/extension/pack"
	"rideau/extension/script"
	"rideau/internal/pgtest"
)

func example(t *testing.T, folder string) *pack.Package {
	t.Helper()
	p, err := pack.Read(os.DirFS(filepath.Join("..", "..", "examples", folder)))
	if err != nil {
		t.Fatalf("examples/%s: %v", folder, err)
	}
	return p
}

// run runs a script in schema s, one statement at a time.
func run(ctx context.Context, conn *pgx.Conn, p *pack.Package, file string, sql []byte) error {
	sub := script.Substitution{File: file, Schema: "my schema", Owner: "postgres", Required: map[string]string{}, Strict: true}
	for _, a := range p.Control.Depends {
		sub.Required[a[0].Name] = "my schema"
	}
	sql, err := script.Substitute(sql, sub)
	if err != nil {
		return err
	}
	list, err := script.Split(file, sql)
	if err != nil {
		return err
	}
	for _, s := range list {
		if _, err := conn.PgConn().ExecParams(ctx, s.SQL, nil, nil, nil, nil).Close(); err != nil {
			return fmt.Errorf("%s:%d: %w", s.File, s.Line, err)
		}
	}
	return nil
}

// TestExamples plays what examples/README.md tells, without a resolver.
func TestExamples(t *testing.T) {
	t.Parallel()
	foo, bar10, bar11, baz, bla07, bla08 := example(t, "foo"), example(t, "bar-1.0"), example(t, "bar-1.1"), example(t, "baz"), example(t, "bla-0.7"), example(t, "bla-0.8")
	if got := fmt.Sprint(foo.Control.Name, " ", foo.Control.Version, ": ", foo.Control.Depends, "; ", foo.Control.Conflicts); got != "foo 1.0: bar (>= 1.1), baz; bla (< 0.8)" {
		t.Error(got)
	}
	for _, p := range []*pack.Package{foo, bar10, bar11, baz, bla07, bla08} {
		for _, s := range append(p.Scripts, pack.Script{File: "uninstall.sql", SQL: p.Uninstall}) {
			list, err := script.Split(s.File, s.SQL)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range script.Lint(list) {
				t.Errorf("%s %s teaches what is not good: %s", p.Control.Name, p.Control.Version, f)
			}
		}
	}
	needs, conflict := foo.Control.Depends[0][0].Range, foo.Control.Conflicts[0][0].Range
	for p, want := range map[*pack.Package]bool{bar10: needs.Allows("1.0", nil), bar11: !needs.Allows("1.1", nil), bla07: !conflict.Allows("0.7", nil), bla08: conflict.Allows("0.8", nil)} {
		if want {
			t.Errorf("%s %s is on the wrong side", p.Control.Name, p.Control.Version)
		}
	}
	if e := bar11.Edges(); len(e) != 1 || e[0] != (depend.Edge{From: "1.0", To: "1.1"}) {
		t.Error(e)
	}
	for _, major := range pgtest.Some {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			server := pgtest.Start(t, pgtest.Options{Major: major})
			conn, err := server.Connect(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.WithoutCancel(ctx))
			do := func(p *pack.Package, from, to string) {
				t.Helper()
				path, err := p.Path(from, to)
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range path {
					if err := run(ctx, conn, p, s.File, s.SQL); err != nil {
						t.Fatalf("%s: %v", p.Control.Name, err)
					}
				}
			}
			value := func(sql string) string {
				t.Helper()
				var s string
				if err := conn.QueryRow(ctx, sql).Scan(&s); err != nil {
					t.Fatal(err)
				}
				return s
			}
			if _, err := conn.Exec(ctx, `CREATE SCHEMA "my schema"; SET search_path = "my schema"`); err != nil {
				t.Fatal(err)
			}
			do(bar10, "", "1.0")
			before := value("SELECT string_agg(p.oid::regprocedure::text, ' ') FROM pg_proc p WHERE pronamespace = '\"my schema\"'::regnamespace")
			if before != "bar_add(integer,integer)" {
				t.Error(before)
			}
			do(bar11, "1.0", "1.1")
			do(baz, "", "2.3")
			do(bla07, "", "0.7")
			// What the conflict is about.
			var same *pgconn.PgError
			if err := run(ctx, conn, foo, "install.sql", foo.Scripts[0].SQL); !errors.As(err, &same) || same.Code != "42723" {
				t.Errorf("foo beside bla 0.7: %v", err)
			}
			if _, err := conn.Exec(ctx, "DROP TABLE foo_result"); err != nil {
				t.Fatal(err)
			}
			do(bla08, "0.7", "0.8")
			do(foo, "", "1.0")
			if got := value("SELECT foo_total(1, 2, 3)::text || ' ' || bla_count(1, 2)::text"); got != "6 2" {
				t.Error(got)
			}
			if _, err := conn.Exec(ctx, "SELECT set_config($1, $2, false)", foo.Conf[0].Name, "7"); err != nil {
				t.Fatal(err)
			}
			if got := value("SELECT foo_remember(50, 1, 2)::text"); got != "1" {
				t.Error(got)
			}
			if got := value("SELECT total::text FROM foo_result"); got != "21" {
				t.Error(got)
			}
			if err := run(ctx, conn, foo, "uninstall.sql", foo.Uninstall); err == nil || !strings.Contains(err.Error(), "foo has results") {
				t.Errorf("uninstalled with results: %v", err)
			}
			if _, err := conn.Exec(ctx, "DELETE FROM foo_result"); err != nil {
				t.Fatal(err)
			}
			if err := run(ctx, conn, foo, "uninstall.sql", foo.Uninstall); err != nil {
				t.Error(err)
			}
			if got := value("SELECT count(*)::text FROM pg_proc WHERE proname LIKE 'foo%'"); got != "0" {
				t.Errorf("%s functions of foo are left", got)
			}
			// Installed at once, bar is what its upgrade made of it.
			upgraded := value("SELECT string_agg(pg_get_functiondef(oid), ' ' ORDER BY proname) FROM pg_proc WHERE proname LIKE 'bar%'")
			if _, err := conn.Exec(ctx, "DROP FUNCTION bar_add, bar_sum, bla_count"); err != nil {
				t.Fatal(err)
			}
			do(bar11, "", "1.1")
			do(bla08, "", "0.8")
			if got := value("SELECT string_agg(pg_get_functiondef(oid), ' ' ORDER BY proname) FROM pg_proc WHERE proname LIKE 'bar%'"); got != upgraded {
				t.Errorf("bar 1.1 installed:\n%s\nupgraded:\n%s", got, upgraded)
			}
		})
	}
}
