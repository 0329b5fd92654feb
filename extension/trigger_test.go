package extension

import (
	"testing"

	"rideau/internal/pgtest"
)

// Event triggers run in the middle of CREATE, ALTER and DROP EXTENSION, and find
// what they find for everybody else. We ourselves see pg_catalog again afterwards.
func TestEventTrigger(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{})
	server.Exec("CREATE TABLE ddl (tag text)")
	server.Exec("CREATE FUNCTION remember() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO ddl VALUES (tg_tag); END'")
	server.Exec("CREATE EVENT TRIGGER remember ON ddl_command_end WHEN TAG IN ('CREATE EXTENSION', 'ALTER EXTENSION', 'DROP EXTENSION') EXECUTE FUNCTION remember()")
	s := connected(t, Config{}, server.Conninfo(""))
	do(t, s, install("hstore=1.4"))
	do(t, s, upgrade("hstore"))
	do(t, s, Request{Uninstall: []string{"hstore"}})
	if got, want := server.QueryValue("SELECT string_agg(tag, ', ') FROM ddl"), "CREATE EXTENSION, ALTER EXTENSION, DROP EXTENSION"; got != want {
		t.Errorf("the event trigger saw %q, want %q", got, want)
	}
	if got, want := value(t, s, "SHOW search_path"), "pg_catalog, pg_temp"; got != want {
		t.Errorf("search_path is %q afterwards, want %q", got, want)
	}
}
