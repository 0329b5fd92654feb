package relay_test

import (
	"fmt"
	"testing"

	"rideau/internal/pgtest"
	"rideau/relay"
)

// The story of the relay, on each version: two standbys that know only the
// relay stream from it, survive its restart, and follow a promotion through
// it without being restarted or told anything.
func TestStandbysFollow(t *testing.T) {
	for _, major := range pgtest.Majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			primary := pgtest.Start(t, pgtest.Options{Major: major, Settings: map[string]string{
				"synchronous_standby_names": "rideau",
			}})
			primary.Exec("SET synchronous_commit = local; CREATE TABLE t (n int)")
			port := pgtest.FreePort(t)
			relayConninfo := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", port)
			aPort := pgtest.FreePort(t)
			r := startRelay(t, relay.Config{
				Upstream: fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=postgres", primary.Port, aPort),
				Slot:     "rideau",
				Listen:   []string{fmt.Sprintf("127.0.0.1:%d", port)},
			})
			primary.WaitQuery("rideau|sync", "SELECT application_name || '|' || sync_state FROM pg_stat_replication")
			a := primary.Standby(pgtest.Options{Name: "a", Port: aPort}, relayConninfo)
			b := primary.Standby(pgtest.Options{Name: "b"}, relayConninfo)
			a.Start()
			b.Start()
			primary.Exec("INSERT INTO t SELECT generate_series(1, 1000)")
			a.WaitLSN(primary.LSN())
			b.WaitLSN(primary.LSN())
			r.waitStandbys(2)

			// What standbys have applied reaches the primary.
			primary.Exec("SET synchronous_commit = remote_apply; INSERT INTO t VALUES (1001)")
			if got := b.QueryValue("SELECT max(n) FROM t"); got != "1001" {
				t.Errorf("a commit was applied nowhere before it was acknowledged: standby has %s", got)
			}

			if err := r.halt(); err != nil {
				t.Fatal(err)
			}
			r.start()
			primary.Exec("INSERT INTO t SELECT generate_series(1002, 2000)")
			a.WaitLSN(primary.LSN())
			b.WaitLSN(primary.LSN())

			// The primary dies; a has all that the relay has, and takes over.
			acked := primary.LSN()
			primary.Kill()
			r.waitComplete(1, acked)
			a.WaitLSN(acked)
			a.Promote()
			a.Exec("SET synchronous_commit = local; INSERT INTO t VALUES (3000)")
			r.waitComplete(2, a.LSN())
			b.WaitLSN(a.LSN())
			if got := b.QueryValue("SELECT count(*) || ' ' || max(n) FROM t"); got != "2001 3000" {
				t.Errorf("standby b has %s, want 2001 3000", got)
			}
			if got := b.QueryValue("SELECT received_tli FROM pg_stat_wal_receiver"); got != "2" {
				t.Errorf("standby b receives timeline %s, want 2", got)
			}
		})
	}
}
