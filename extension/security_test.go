package extension

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"rideau/extension/registry"
	"rideau/extension/script"
	"rideau/internal/pgtest"
)

// trap is what somebody who may create objects puts where a superuser's script
// may find it: it takes varchar, which fits the call better than pg_catalog's.
const trap = `CREATE FUNCTION %s.lower(varchar) RETURNS text LANGUAGE plpgsql AS
$$ BEGIN EXECUTE 'ALTER ROLE mallory SUPERUSER'; RETURN 'gotcha'; EXCEPTION WHEN insufficient_privilege THEN RETURN 'denied'; END $$`

// innocent is a script that calls a function as everybody does.
const innocent = `
-- innocent/control --
name = innocent
version = 1.0
-- innocent/install.sql --
CREATE TABLE innocent AS SELECT lower('ABC'::varchar) AS a;
`

// attacked starts a server on which mallory may log in, and create in public.
func attacked(t *testing.T, major int) *pgtest.Server {
	server := pgtest.Start(t, pgtest.Options{Major: major})
	server.Exec("CREATE ROLE mallory LOGIN")
	server.Exec("GRANT CREATE ON SCHEMA public TO PUBLIC")
	return server
}

func asMallory(t *testing.T, server *pgtest.Server, sql string) {
	t.Helper()
	s := connected(t, Config{}, server.Conninfo("user=mallory"))
	value(t, s, sql+"; SELECT 1")
}

func malloryWon(server *pgtest.Server) bool {
	return server.QueryValue("SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'") == "t"
}

// Each rule is tried twice: with it the attack fails, without it the attack
// succeeds. A rule that nothing needs would show here.
func TestRules(t *testing.T) {
	t.Parallel()
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			server := attacked(t, major)
			asMallory(t, server, fmt.Sprintf(trap, "public"))

			t.Run("search_path", func(t *testing.T) {
				server := server.For(t)
				req := Request{Install: []Wish{{Name: "innocent", Schema: "innocent"}}, Mode: Module}
				attack(t, server, innocent, req, SearchPath, nil, func() bool { return malloryWon(server) }, false)
				server.Exec("ALTER ROLE mallory NOSUPERUSER")
				s := connected(t, Config{}, server.Conninfo(""))
				do(t, s, Request{Uninstall: []string{"innocent"}})
			})
			t.Run("open schema", func(t *testing.T) {
				server := server.For(t)
				s := connected(t, Config{Shelves: shelves(packages(t, innocent))}, server.Conninfo(""))
				req := Request{Install: []Wish{{Name: "innocent", Schema: "public"}}, Mode: Module}
				_, err := try(t.Context(), s, req, false)
				var open *OpenSchemaError
				if !errors.As(err, &open) || !slices.Equal(open.Who, []string{"PUBLIC"}) || malloryWon(server) {
					t.Errorf("error %v, mallory won: %v; want a refusal because of PUBLIC", err, malloryWon(server))
				}
				req.AllowOpen = true
				do(t, s, req)
				if !malloryWon(server) {
					t.Error("the attack would not have worked without the rule")
				}
				server.Exec("ALTER ROLE mallory NOSUPERUSER")
				do(t, s, Request{Uninstall: []string{"innocent"}})
				// A schema that mallory alone may create in is as bad.
				server.Exec("CREATE SCHEMA hers; GRANT CREATE ON SCHEMA hers TO mallory")
				_, err = try(t.Context(), s, Request{Install: []Wish{{Name: "innocent", Schema: "hers"}}, Mode: Module}, false)
				if !errors.As(err, &open) || !slices.Equal(open.Who, []string{"mallory"}) {
					t.Errorf("error %v, want a refusal because of mallory", err)
				}
			})
			t.Run("replaced", func(t *testing.T) {
				server := server.For(t)
				server.Exec("CREATE SCHEMA shop; GRANT USAGE, CREATE ON SCHEMA shop TO mallory")
				asMallory(t, server, "CREATE FUNCTION shop.price() RETURNS int LANGUAGE sql AS 'SELECT 1'")
				server.Exec("REVOKE CREATE ON SCHEMA shop FROM mallory")
				text := `
-- shop/control --
name = shop
version = 1.0
-- shop/install.sql --
CREATE OR REPLACE FUNCTION price() RETURNS int LANGUAGE sql AS 'SELECT 42';
CREATE VIEW prices AS SELECT price();
`
				req := Request{Install: []Wish{{Name: "shop", Schema: "shop"}}, Mode: Module}
				attack(t, server, text, req, Replaced, new(RuleError), func() bool {
					return server.QueryValue("SELECT proowner::regrole::text FROM pg_proc WHERE oid = 'shop.price()'::regprocedure AND prosrc LIKE '%42%' UNION ALL SELECT '' LIMIT 1") == "mallory"
				}, true)
			})
			t.Run("manifest", func(t *testing.T) {
				server := server.For(t)
				server.Exec("CREATE SCHEMA conf; GRANT USAGE, CREATE ON SCHEMA conf TO mallory")
				asMallory(t, server, "CREATE TABLE conf.conf (a int)")
				server.Exec("REVOKE CREATE ON SCHEMA conf FROM mallory")
				text := `
-- conf/control --
name = conf
version = 1.0
-- conf/objects.json --
[{"type": "table", "names": ["@extschema@", "conf"], "args": []}, {"type": "type", "names": ["@extschema@.conf"], "args": []}]
-- conf/install.sql --
CREATE TABLE IF NOT EXISTS conf (a int);
`
				req := Request{Install: []Wish{{Name: "conf", Schema: "conf"}}, Mode: Module}
				attack(t, server, text, req, Manifest, new(RuleError), func() bool {
					return server.QueryValue("SELECT relowner::regrole::text FROM pg_class WHERE oid = 'conf.conf'::regclass") == "mallory" &&
						server.QueryValue("SELECT count(*) FROM extension.installed WHERE name = 'conf'") == "1"
				}, true)
			})
			t.Run("substitution", func(t *testing.T) {
				server := server.For(t)
				// What it would be to replace a placeholder without looking.
				const body = "DO $do$ BEGIN PERFORM '@extschema@'; END $do$"
				evil := quoteIdent("x'; ALTER ROLE mallory SUPERUSER; PERFORM '")
				server.Exec(strings.ReplaceAll(body, "@extschema@", evil))
				if !malloryWon(server) {
					t.Error("without the rule the attack does not succeed, so this test shows nothing")
				}
				server.Exec("ALTER ROLE mallory NOSUPERUSER")
				s := connected(t, Config{Shelves: shelves(packages(t, "-- quoter/control --\nname = quoter\nversion = 1.0\n-- quoter/install.sql --\n"+body+";\n"))}, server.Conninfo(""))
				_, err := try(t.Context(), s, Request{Install: []Wish{{Name: "quoter", Schema: "x'; ALTER ROLE mallory SUPERUSER; PERFORM '"}}, Mode: Module}, false)
				if err == nil || malloryWon(server) {
					t.Errorf("error %v, mallory won: %v", err, malloryWon(server))
				}
				for i, schema := range []string{`it's`, `do$$lar`, `back\slash`, `dou"ble`} {
					text := fmt.Sprintf(`
-- subst/control --
name = subst%d
version = 1.0
-- subst/install.sql --
DO $$ BEGIN PERFORM '@extschema@'; END $$;
`, i)
					s := connected(t, Config{Shelves: shelves(packages(t, text))}, server.Conninfo(""))
					_, err := try(t.Context(), s, Request{Install: []Wish{{Name: fmt.Sprintf("subst%d", i), Schema: schema}}, Mode: Module}, false)
					if err == nil {
						t.Errorf("schema %q was put into a script", schema)
					}
				}
			})
			t.Run("transaction", func(t *testing.T) {
				server := server.For(t)
				text := "CREATE TABLE half (a int);\nCOMMIT;\nSELECT 1 / 0;\n"
				dir := t.TempDir()
				writeTree(t, dir, "-- halves/control --\nname = halves\nversion = 1.0\n-- halves/install.sql --\n"+text)
				if _, err := registry.OpenDirectory(dir); err == nil || !strings.Contains(err.Error(), "install.sql:2:1") {
					t.Errorf("error %v, want that line 2 ends the transaction", err)
				}
				// What would happen if nobody had read it before.
				statements, err := script.Split("install.sql", []byte(text))
				if err != nil {
					t.Fatal(err)
				}
				s := connected(t, Config{Shelves: shelves(packages(t, innocent)), off: []Rule{Transaction}}, server.Conninfo(""))
				p, err := s.Plan(t.Context(), Request{Install: []Wish{{Name: "innocent", Schema: "halves"}}, Mode: Module})
				if err != nil {
					t.Fatal(err)
				}
				p.Steps[0].scripts[0].statements = statements
				if _, err := s.Apply(t.Context(), p, false); err == nil {
					t.Error("1 / 0 is no error")
				}
				if server.QueryValue("SELECT to_regclass('halves.half') IS NOT NULL") != "t" {
					t.Error("without the rule half of it would not have stayed, so this test shows nothing")
				}
			})
			t.Run("how the rest is read", func(t *testing.T) {
				server := server.For(t)
				text := `
-- reader/control --
name = reader
version = 1.0
-- reader/install.sql --
SELECT pg_catalog.set_config('standard_conforming_strings', 'off', false);
SELECT 'a\'; CREATE ROLE sneaked; --';
`
				s := connected(t, Config{Shelves: shelves(packages(t, text))}, server.Conninfo(""))
				_, err := try(t.Context(), s, Request{Install: []Wish{{Name: "reader", Schema: "reader"}}, Mode: Module}, false)
				var rule *RuleError
				if !errors.As(err, &rule) || rule.Rule != Transaction {
					t.Errorf("error %v, want that the script changes how it is read", err)
				}
			})
			t.Run("name", func(t *testing.T) {
				server := server.For(t)
				text := `
-- hstore/control --
name = hstore
version = 99.0
-- hstore/install.sql --
ALTER ROLE mallory SUPERUSER;
`
				s := connected(t, Config{Shelves: shelves(packages(t, text))}, server.Conninfo(""))
				do(t, s, install("hstore"))
				if in, _ := s.Observed().Find("hstore"); malloryWon(server) || in != nil && in.Version == "99.0" {
					t.Error("the unsigned package was used")
				}
				do(t, s, Request{Uninstall: []string{"hstore"}})
				for _, mode := range []Mode{Module, Graft} {
					if _, err := try(t.Context(), s, Request{Install: install("hstore").Install, Mode: mode}, false); err == nil || malloryWon(server) {
						t.Errorf("mode %s: error %v, mallory won: %v", mode, err, malloryWon(server))
					}
				}
				s = connected(t, Config{Shelves: shelves(packages(t, text)), off: []Rule{Name}}, server.Conninfo(""))
				_, err := try(t.Context(), s, Request{Install: []Wish{{Name: "hstore", Schema: "hers2"}}, Mode: Module}, false)
				if !malloryWon(server) {
					t.Errorf("without the rule the attack does not succeed (%v), so this test shows nothing", err)
				}
			})
		})
	}
}

// attack installs a package with the rule in force, when it must not succeed, and
// then without it, in another database for what the first left, when it must.
// Where refused, the installation with the rule is an error.
func attack(t *testing.T, server *pgtest.Server, text string, req Request, rule Rule, want *RuleError, won func() bool, refused bool) {
	t.Helper()
	shelf := packages(t, text)
	s := connected(t, Config{Shelves: shelves(shelf)}, server.Conninfo(""))
	_, err := try(t.Context(), s, req, false)
	switch {
	case refused && err == nil:
		t.Error("the installation was not refused")
	case !refused && err != nil:
		t.Errorf("the installation is harmless with the rule: %v", err)
	case want != nil && (!errors.As(err, &want) || want.Rule != rule):
		t.Errorf("error %v, want that of rule %s", err, rule)
	}
	if won() {
		t.Fatalf("the attack succeeded with the rule %s", rule)
	}
	if err == nil {
		var gone []string
		for _, w := range req.Install {
			gone = append(gone, w.Name)
		}
		do(t, s, Request{Uninstall: gone})
	}
	s = connected(t, Config{Shelves: shelves(shelf), off: []Rule{rule}}, server.Conninfo(""))
	_, err = try(t.Context(), s, req, false)
	if !won() {
		t.Errorf("without rule %s the attack does not succeed (%v), so this test shows nothing", rule, err)
	}
}
