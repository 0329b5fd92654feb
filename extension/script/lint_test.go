package script

import (
	"fmt"
	"strings"
	"testing"
)

func TestLint(t *testing.T) {
	t.Parallel()
	const fn = "CREATE FUNCTION @extschema@.f() RETURNS int LANGUAGE "
	for _, tc := range []struct {
		why, sql string
		want     string // rules with lines
	}{
		{"operator", "SELECT 1,\n a + b", "PS001:2"},
		{"operator with its schema", "SELECT a OPERATOR(pg_catalog.+) b, count.*, -1", ""},
		{"operator in a safe path", "SET search_path = pg_catalog, pg_temp; SELECT a + b, f() FROM t", ""},
		{"operator in a path with others", "SET search_path TO pg_catalog, public; SELECT a + b", "PS001:1"},
		{"pg_temp before others", "SET search_path = pg_temp, pg_catalog; SELECT a + b", "PS001:1"},
		{"path by function", "SELECT pg_catalog.set_config('search_path', '', false); SELECT a + b", ""},
		{"path in a schema of the script", "CREATE SCHEMA mine; SET search_path = mine, pg_catalog; CREATE OR REPLACE VIEW v AS SELECT f() FROM t", ""},
		{"path back", "SET search_path = pg_catalog; SET search_path = DEFAULT; SELECT a + b", "PS001:1"},
		{"stars and assignments", "UPDATE s.t SET a = 1, b = s.f(x => 2) RETURNING *; SELECT pg_catalog.count(*) FROM s.t", ""},
		{"comparison after an assignment", "UPDATE s.t SET a = 1 WHERE\n b = 2", "PS001:2"},
		{"LIKE", "SELECT a LIKE 'x'", "PS001:1"},
		{"replaced function", "CREATE OR REPLACE FUNCTION public.f() RETURNS int LANGUAGE sql SET search_path = pg_catalog AS 'SELECT 1'", "PS002:1"},
		{"replaced function in the target schema", "CREATE OR REPLACE FUNCTION @extschema@.f() RETURNS int LANGUAGE c AS 'MODULE_PATHNAME'", "PS002:1"},
		{"replaced function in a schema of the script", "CREATE SCHEMA mine; CREATE OR REPLACE FUNCTION mine.f() RETURNS int LANGUAGE c AS 'MODULE_PATHNAME'", ""},
		{"replaced function in a schema that may be another's", "CREATE SCHEMA IF NOT EXISTS mine; CREATE OR REPLACE FUNCTION mine.f() RETURNS int LANGUAGE c AS 'x'", "PS010:1 PS002:1"},
		{"definer without path", fn + "c\nSECURITY DEFINER AS 'x'", "PS003:2"},
		{"definer with unsafe path", fn + "c\nSECURITY DEFINER SET search_path = public, pg_catalog AS 'x'", "PS004:2"},
		{"definer with safe path", fn + "sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'SELECT a + b FROM t'", ""},
		{"no path, and what follows from it", fn + "sql AS $$\n SELECT a OPERATOR(pg_catalog.+)\n g() FROM t $$", "PS005:1 PS016:3 PS017:3"},
		{"in a string", fn + "sql AS 'SELECT\n f()'", "PS005:1 PS016:2"},
		{"in a string with quotes", fn + "sql AS\n'SELECT\n ''x'', f()'", "PS005:1 PS016:2"},
		{"in SQL", fn + "sql\nBEGIN ATOMIC SELECT 1 + 1; END", "PS001:2"},
		{"PL/pgSQL", fn + "plpgsql AS $$ DECLARE x int = 1; y s.t%ROWTYPE; BEGIN <<a>> x = 2; x := 3; y.a = 4; IF x\n = 5 THEN x = 6; END IF; RETURN s.f(x); END $$", "PS005:1 PS001:2"},
		{"RAISE", "DO $$ BEGIN RAISE EXCEPTION 'x' USING HINT = 'y', DETAIL = 'z'; END $$", ""},
		{"DO", "DO $$ BEGIN\n PERFORM f(); END $$", "PS016:2"},
		{"replaced transform", "CREATE OR REPLACE TRANSFORM FOR t LANGUAGE sql (FROM SQL WITH FUNCTION f(internal))", "PS006:1"},
		{"replaced aggregate", "CREATE OR REPLACE AGGREGATE public.a (int) (sfunc = s.f, stype = int)", "PS007:1"},
		{"CASE", "SELECT CASE a WHEN 1 THEN 2 END, CASE WHEN b THEN 1 END", "PS009:1"},
		{"sequence", "CREATE SEQUENCE IF NOT EXISTS public.s", "PS011:1"},
		{"table", "CREATE UNLOGGED TABLE IF NOT EXISTS public.t (a int DEFAULT f())", "PS012:1"},
		{"temporary table", "CREATE TEMP TABLE IF NOT EXISTS t (a int)", ""},
		{"server", "CREATE SERVER IF NOT EXISTS s FOREIGN DATA WRAPPER w", "PS013:1"},
		{"index", "CREATE SCHEMA mine; CREATE UNIQUE INDEX IF NOT EXISTS i ON mine.t (a)", "PS014:1"},
		{"view", "CREATE OR REPLACE VIEW public.v AS SELECT pg_catalog.now()", "PS015:1"},
		{"function", "SELECT s.f(a, coalesce(b, 1)),\n left(a), x::numeric(3) FROM s.t", "PS016:2"},
		{"function that is none", "INSERT INTO s.t (a) VALUES (1) ON CONFLICT (a) DO NOTHING", ""},
		{"tables", "SELECT 1 FROM a JOIN\n b USING (c); INSERT INTO\n c VALUES (1); UPDATE d SET a = 1; DELETE FROM ONLY s.e", "PS017:1 PS017:2 PS017:3 PS017:3"},
		{"tables that are none", "WITH x AS (SELECT 1), y AS (SELECT 2) SELECT extract(year FROM z), a IS DISTINCT FROM b FROM x JOIN y ON true FOR UPDATE", ""},
		{"nothing to see", "COMMENT ON FUNCTION f() IS 'a + b'; GRANT SELECT ON t TO public", ""},
	} {
		t.Run(tc.why, func(t *testing.T) {
			list, err := Split("f.sql", []byte(tc.sql))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range Lint(list) {
				got = append(got, fmt.Sprintf("%s:%d", f.Rule, f.Line))
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("%s\n got %v\nwant %s", tc.sql, Lint(list), tc.want)
			}
		})
	}
	list, err := Split("f.sql", []byte("SELECT 1;\n  SELECT f()"))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(Lint(list)); got != "[f.sql:2:10: PS016: function f is looked up in search_path: write its schema, or set the path]" {
		t.Error(got)
	}
}

func FuzzLint(f *testing.F) {
	f.Add("CREATE OR REPLACE FUNCTION @extschema@.f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN x = 1; RETURN a + b FROM t; END $$")
	f.Add("WITH x AS (SELECT 1) UPDATE t SET a = OPERATOR(pg_catalog.+), b.c = CASE a WHEN 1 THEN left(1) END")
	f.Add("SET search_path = a, 'b'; SELECT set_config('search_path', 'x', true); CREATE SCHEMA a; CREATE")
	f.Fuzz(func(t *testing.T, sql string) {
		list, err := Split("f", []byte(sql))
		if err != nil {
			return
		}
		lines := strings.Count(sql, "\n") + 1
		for _, f := range Lint(list) {
			if f.Line < 1 || f.Line > lines || f.Column < 1 || f.Rule == "" {
				t.Fatalf("%+v", f)
			}
		}
	})
}
