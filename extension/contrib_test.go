package extension

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"rideau/internal/pgtest"
)

// language is in the names of procedural languages that have an interpreter of
// their own, and of what contrib has for them.
var language = regexp.MustCompile(`pl(perl|python|tcl)`)

// Every extension that a server comes with, from 13 to 18.
func TestContrib(t *testing.T) {
	t.Parallel()
	for _, major := range pgtest.Some {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			server := pgtest.Start(t, pgtest.Options{Major: major, Settings: roomForLocks})
			s := connected(t, Config{}, server.Conninfo(""))
			l := life{server: server, database: "app", use: useContrib, unuse: "DROP TABLE public.users"}
			without := map[string]error{} // languages whose interpreter this machine has not
			for _, row := range server.Query("SELECT name FROM pg_available_extensions ORDER BY name LIKE '%\\_%', name") {
				name := row[0]
				if name == "plpgsql" || debianPackage(name) != "" && major == 15 { // see TestDebian
					continue
				}
				if language.MatchString(name) {
					if err := lacks(t, s, name, without); err != nil {
						without[name] = err
						continue
					}
				}
				l.names = append(l.names, name)
			}
			for _, name := range names(without) {
				t.Logf("without %s: %v", name, without[name])
			}
			slices.Sort(l.names)
			if len(l.names) < 40 { // 13 has 47, 18 has 46 or more
				t.Errorf("there are only %d extensions: %v", len(l.names), l.names)
			}
			l.run(t)
		})
	}
}

// lacks returns why something for a procedural language cannot be created: the
// servers come from elsewhere, and want an interpreter that is not on this
// machine. Any other reason is a failure.
func lacks(t *testing.T, s *Session, name string, without map[string]error) error {
	t.Helper()
	for _, a := range s.Observed().Available[name] {
		for _, required := range a.Requires {
			if err := without[required]; err != nil {
				return fmt.Errorf("without %s", required)
			}
			if language.MatchString(required) && len(s.Observed().Available[required]) == 0 {
				return fmt.Errorf("there is no %s", required)
			}
		}
	}
	if strings.Contains(name, "_") {
		return nil
	}
	_, err := try(t.Context(), s, install(name), true)
	if err != nil && !strings.Contains(err.Error(), "could not load library") {
		t.Errorf("%s: %v", name, err)
	}
	return err
}

// roomForLocks: an extension is dropped with a lock on each of its objects, and
// some have a thousand.
var roomForLocks = map[string]string{"max_locks_per_transaction": "1024"}

// A user's table with types, operator classes and functions of extensions.
const useContrib = `
SET search_path = public;
CREATE TABLE users (
  name citext PRIMARY KEY, about hstore DEFAULT 'a=>1', at cube, place ltree,
  EXCLUDE USING gist (at WITH &&)
);
CREATE INDEX ON users USING gin (about);
CREATE INDEX ON users USING gin ((name::text) gin_trgm_ops);
CREATE INDEX ON users USING gist (place);
INSERT INTO users VALUES ('A', 'b=>2', '(1,2),(3,4)', 'x.y.z')`
