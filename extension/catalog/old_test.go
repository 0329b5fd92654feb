package catalog_test

import (
	"context"
	"fmt"
	"testing"

	"rideau/extension/catalog"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
)

// On a server that has given out more than two billion transaction ids, frozen
// rows keep the ids of long ago, which now look newer than ours. They are neither
// created nor changed.
func TestOldServer(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 15, 17, 18} { // the others' pg_resetwal is not everywhere
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			oldServer(t, pgtest.Start(t, pgtest.Options{Major: major}))
		})
	}
}

func oldServer(t *testing.T, s *pgtest.Server) {
	exec(t, connect(t, s, "", ""), setup)
	for _, database := range []string{"postgres", "template1"} {
		exec(t, connect(t, s, database, ""), `VACUUM FREEZE`)
	}
	exec(t, connect(t, s, "", ""), `ALTER DATABASE template0 ALLOW_CONNECTIONS true`)
	exec(t, connect(t, s, "template0", ""), `VACUUM FREEZE`)
	// Twice 1.2 billion, with all frozen between, as a server gets there. The numbers
	// begin a segment of the commit log, so that none has to be made up.
	for _, next := range []string{"1258291200", "2516582400"} {
		s.Stop(pgserver.Fast)
		pgtest.Run(t, s.Major, "pg_resetwal", "-x", next, s.Dir)
		s.Start()
		for _, database := range []string{"postgres", "template1", "template0"} {
			exec(t, connect(t, s, database, ""), `VACUUM FREEZE`)
		}
	}
	ctx := context.Background()
	tx := begin(t, connect(t, s, "", ""))
	var future int
	exec(t, tx, `SELECT pg_current_xact_id()`)
	if err := tx.QueryRow(ctx, `SELECT count(*) FROM pg_proc WHERE age(xmin) < 0`).Scan(&future); err != nil {
		t.Fatal(err)
	}
	if future == 0 {
		t.Fatal("no row looks as if it were of the future, so this proves nothing")
	}
	before := capture(t, tx)
	exec(t, tx, `CREATE TABLE s.n (); COMMENT ON TABLE s.t IS 'x'; CREATE OR REPLACE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 2'`)
	want := "changed function s.f(): definition; changed table s.t: comment; created table s.n"
	if got := render(difference(t, tx, before), nil); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := catalog.Members(ctx, tx, "plpgsql"); err != nil {
		t.Error(err)
	}
}
