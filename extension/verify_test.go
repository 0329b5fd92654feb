package extension

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"rideau/extension/pack"
	"rideau/internal/pgtest"
)

// Two packages that make the same function are seen before one of them fails, by
// what they say that they make.
func TestUndeclared(t *testing.T) {
	f := func(name string) pack.Object {
		return pack.Object{Type: "function", Names: []string{"@extschema@", name}, Args: []string{"integer"}}
	}
	step := func(name, schema string, objects []pack.Object, files ...pack.File) Step {
		return Step{Action: Install, Name: name, Schema: schema, pkg: &pack.Package{Control: &pack.Control{Name: name}, Objects: objects, Files: files}}
	}
	lib := func(data string) pack.File { return pack.File{Path: "lib/x.so", Data: []byte(data)} }
	for _, tt := range []struct {
		why   string
		steps []Step
		want  string
	}{
		{"different functions", []Step{step("a", "public", []pack.Object{f("x")}), step("b", "public", []pack.Object{f("y")})}, ""},
		{"the same in different schemas", []Step{step("a", "one", []pack.Object{f("x")}), step("b", "two", []pack.Object{f("x")})}, ""},
		{"the same", []Step{step("a", "public", []pack.Object{f("x")}), step("b", "public", []pack.Object{f("x")})}, "function public.x(integer)"},
		{"the same library", []Step{step("a", "public", nil, lib("1")), step("b", "public", nil, lib("1"))}, ""},
		{"another library of that name", []Step{step("a", "public", nil, lib("1")), step("b", "public", nil, lib("2"))}, "the file lib/x.so"},
	} {
		err := undeclared(tt.steps)
		var conflict *UndeclaredError
		if tt.want == "" && err != nil || tt.want != "" && (!errors.As(err, &conflict) || !slices.Equal(conflict.What, []string{tt.want}) || conflict.Files != strings.HasPrefix(tt.want, "the file ")) {
			t.Errorf("%s: error %v, want %q", tt.why, err, tt.want)
		}
	}
}

// An upgrade that forgets something is seen by whoever makes the package.
func TestVerifyUpgrades(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	s := connected(t, Config{}, owner(t, server, "app"))
	shelf := packages(t, `
-- shop-1.0/control --
name = shop
version = 1.0
-- shop-1.0/install.sql --
CREATE FUNCTION a() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION old() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE t (a int);
-- shop/control --
name = shop
version = 2.0
-- shop/install.sql --
CREATE FUNCTION a() RETURNS int LANGUAGE sql AS 'SELECT 2';
CREATE FUNCTION b() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE t (a int, b text);
-- shop/upgrade/1.0--2.0.sql --
CREATE FUNCTION b() RETURNS int LANGUAGE sql AS 'SELECT 1';
ALTER TABLE t ADD b text;
`)
	var pkgs []*pack.Package
	for _, version := range []string{"2.0", "1.0"} {
		pkg, err := shelf.Fetch(t.Context(), "shop", version)
		if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, pkg)
	}
	pkg := pkgs[0]
	proofs, err := s.VerifyUpgrades(t.Context(), pkg, pkgs[1])
	if err != nil {
		t.Fatal(err)
	}
	if len(proofs) != 1 || proofs[0].Same() || !slices.Equal(proofs[0].Differ, []string{"function @extschema@.a()"}) || !slices.Equal(proofs[0].Extra, []string{"function @extschema@.old()"}) || len(proofs[0].Missing) != 0 {
		t.Errorf("proofs %+v, want that a() differs and old() is left", proofs)
	}
	for i := range pkg.Scripts {
		if pkg.Scripts[i].From == "1.0" {
			pkg.Scripts[i].SQL = append(pkg.Scripts[i].SQL, "DROP FUNCTION old(); CREATE OR REPLACE FUNCTION a() RETURNS int LANGUAGE sql AS 'SELECT 2';"...)
		}
	}
	proofs, err = s.VerifyUpgrades(t.Context(), pkg, pkgs[1])
	if err != nil || len(proofs) != 1 || !proofs[0].Same() {
		t.Errorf("proofs %+v, %v, want that all is the same", proofs, err)
	}
	if got := value(t, s, "SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname LIKE 'rideau%'"); got != "0" {
		t.Error("a schema of the trial is left")
	}
	if strings.Contains(joinSome([]string{"a", "b", "c"}, 2), "c") {
		t.Error("a long list is not cut")
	}
}
