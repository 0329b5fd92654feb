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
