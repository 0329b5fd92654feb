package extension

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"rideau/internal/pgtest"
)

// toBeAdopted has what definitions can differ in. Its schema is in the bodies of
// functions, in a default, in a setting of a function and in a view.
const toBeAdopted = `
-- kit/control --
name = kit
version = 1.0
-- kit/install.sql --
CREATE TYPE @extschema@.mood AS ENUM ('sad', 'ok');
CREATE TABLE @extschema@.t (id serial PRIMARY KEY, m @extschema@.mood NOT NULL DEFAULT 'ok', CHECK (id > 0));
CREATE FUNCTION @extschema@.f(m @extschema@.mood) RETURNS bigint LANGUAGE sql STABLE SET search_path = @extschema@ AS 'SELECT count(*) FROM @extschema@.t WHERE m = $1';
CREATE VIEW @extschema@.v AS SELECT id, @extschema@.f(m) AS n FROM @extschema@.t;
-- kit2/control --
name = kit2
version = 1.0
schema = kit2
-- kit2/objects.json --
[{"type": "function", "names": ["kit2", "g"], "args": ["integer"]}]
-- kit2/install.sql --
CREATE FUNCTION kit2.g(i integer) RETURNS integer LANGUAGE sql AS 'SELECT i';
`

// Adoption compares what is there with what the package would have made: not only
// that there is something of that name.
func TestAdoptDefinitions(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 18} {
		server := pgtest.Start(t, pgtest.Options{Major: major})
		shelf := packages(t, toBeAdopted)
		s := connected(t, Config{Shelves: shelves(shelf)}, owner(t, server, "app"))
		pkg, err := shelf.Fetch(t.Context(), "kit", "1.0")
		if err != nil {
			t.Fatal(err)
		}
		by := func(schema string) string { // hand
			value(t, s, "CREATE SCHEMA "+schema+"; SELECT 1")
			return strings.ReplaceAll(string(pkg.Scripts[0].SQL), "@extschema@", schema)
		}
		adopt := func(name, schema string, modified bool) (*Report, error) {
			if err := s.refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			p, err := s.PlanAdopt(t.Context(), Request{Install: []Wish{{Name: name, Schema: schema}}, Modified: modified})
			if err != nil {
				t.Fatal(err)
			}
			return s.Apply(t.Context(), p, false)
		}

		// All in it is as it should be, in a schema with a name that must be quoted.
		value(t, s, by(`"My Kit"`)+"; SELECT 1")
		report, err := adopt("kit", "My Kit", false)
		if err != nil || len(report.Notes) > 0 {
			t.Fatalf("PostgreSQL %d: error %v, report %+v, want that it is adopted without a word", major, err, report)
		}
		do(t, s, Request{Uninstall: []string{"kit"}})

		// One thing of each kind is another.
		value(t, s, strings.NewReplacer("'sad', 'ok'", "'sad', 'ok', 'glad'", "id > 0", "id > 1", "STABLE", "VOLATILE").Replace(by("mine"))+"; SELECT 1")
		_, err = adopt("kit", "mine", false)
		var differs *AdoptError
		if !errors.As(err, &differs) || len(differs.Missing) > 0 {
			t.Fatalf("PostgreSQL %d: error %v, want that definitions differ", major, err)
		}
		slices.Sort(differs.Differ)
		want := []string{"function mine.f(mine.mood)", "table mine.t", "type mine.mood"}
		if !slices.Equal(differs.Differ, want) {
			t.Errorf("PostgreSQL %d: %q differ, want %q", major, differs.Differ, want)
		}
		if got := installed(t, s); len(got) > 0 {
			t.Errorf("PostgreSQL %d: %q is recorded", major, got)
		}

		// As it is, if that was said: then that is what it should be from now on.
		report, err = adopt("kit", "mine", true)
		if err != nil || len(report.Notes) != 3 {
			t.Fatalf("PostgreSQL %d: error %v, report %+v, want a note for each", major, err, report)
		}
		st, err := s.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if e := st.Extensions[slices.IndexFunc(st.Extensions, func(e ExtensionStatus) bool { return e.Name == "kit" })]; len(e.Modified)+len(e.Missing) > 0 {
			t.Errorf("PostgreSQL %d: status %+v, want that all is as it was adopted", major, e)
		}

		// A script that says where its objects are cannot be tried beside them.
		value(t, s, "CREATE SCHEMA kit2; CREATE FUNCTION kit2.g(i integer) RETURNS integer LANGUAGE sql AS 'SELECT 2'; SELECT 1")
		report, err = adopt("kit2", "", false)
		if err != nil || len(report.Notes) != 1 || !strings.HasPrefix(report.Notes[0], "kit2: only names and owners were compared, not definitions") {
			t.Errorf("PostgreSQL %d: error %v, report %+v, want a note that it could not be compared", major, err, report)
		}
		if got := value(t, s, "SELECT count(*) FROM pg_catalog.pg_namespace WHERE nspname LIKE 'rideau%'"); got != "0" {
			t.Errorf("PostgreSQL %d: a schema of the trial is left", major)
		}
	}
}

// Indexes, triggers, rules, policies and statistics are parts of a table, and not
// listed by themselves: adoption misses them all the same. More of them are no
// difference.
func TestAdoptParts(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 18} {
		server := pgtest.Start(t, pgtest.Options{Major: major})
		shelf := packages(t, `
-- parts/control --
name = parts
version = 1.0
-- parts/install.sql --
CREATE TABLE big (a int PRIMARY KEY, b text, c text UNIQUE DEFERRABLE);
CREATE TABLE small (a int REFERENCES big);
CREATE VIEW v AS SELECT a FROM big;
CREATE FUNCTION tf() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER tr BEFORE INSERT ON big FOR EACH ROW EXECUTE FUNCTION tf();
CREATE UNIQUE INDEX i ON big (b);
CREATE RULE ru AS ON DELETE TO small DO INSTEAD NOTHING;
CREATE POLICY po ON big USING (a > 0);
CREATE STATISTICS st ON a, b FROM big;
`)
		s := connected(t, Config{Shelves: shelves(shelf)}, owner(t, server, "app"))
		pkg, err := shelf.Fetch(t.Context(), "parts", "1.0")
		if err != nil {
			t.Fatal(err)
		}
		value(t, s, "CREATE SCHEMA x; SET search_path = x; "+string(pkg.Scripts[0].SQL)+"; CREATE INDEX more ON big (c); RESET search_path; SELECT 1")
		adopt := func(modified bool) (*Report, error) {
			if err := s.refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			p, err := s.PlanAdopt(t.Context(), Request{Install: []Wish{{Name: "parts", Schema: "x"}}, Modified: modified})
			if err != nil {
				t.Fatal(err)
			}
			return s.Apply(t.Context(), p, true)
		}
		if _, err := adopt(false); err != nil {
			t.Fatalf("%d: %v", major, err)
		}
		for change, part := range map[string]string{
			"DROP INDEX x.i": "index x.i",
			"DROP INDEX x.i; CREATE INDEX i ON x.big (b)":             "index x.i",
			"DROP TRIGGER tr ON x.big":                                "trigger x.big.tr",
			"ALTER TABLE x.big DISABLE TRIGGER tr":                    "trigger x.big.tr",
			"DROP RULE ru ON x.small":                                 "rule x.small.ru",
			"DROP POLICY po ON x.big":                                 "policy x.big.po",
			"DROP STATISTICS x.st":                                    "statistics object x.st",
			"ALTER POLICY po ON x.big USING (a > 1)":                  "policy x.big.po",
			"DROP INDEX x.i; CREATE UNIQUE INDEX i ON x.big ((b||a))": "index x.i",
		} {
			value(t, s, "DROP SCHEMA x CASCADE; CREATE SCHEMA x; SET search_path = x; "+string(pkg.Scripts[0].SQL)+"; RESET search_path; "+change+"; SELECT 1")
			var differs *AdoptError
			if _, err := adopt(false); !errors.As(err, &differs) || len(differs.Differ) != 1 || !strings.HasPrefix(differs.Differ[0], part) {
				t.Errorf("%d: after %s: error %v, want that %s differs", major, change, err, part)
			}
			if report, err := adopt(true); err != nil || !says(report.Notes, part) {
				t.Errorf("%d: after %s: %v, %v, want a note of %s", major, change, report, err, part)
			}
		}
	}
}
