package relay_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
	"rideau/relay"
)

// toolMajors are the versions whose client tools can be had; a tool serves
// servers of its own version and older.
var toolMajors = []int{13, 15, 17, 18}

// Stock tools, pointed at the relay's port, take it for the server.
func TestTools(t *testing.T) {
	for _, major := range toolMajors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			primary := pgtest.Start(t, pgtest.Options{Major: major})
			primary.Exec("CREATE TABLE t AS SELECT generate_series(1, 10000) n")
			r := startRelay(t, relay.Config{
				Upstream: primary.Conninfo(""), Slot: "rideau", ForwardSQL: true,
			})
			r.waitComplete(1, primary.LSN())

			t.Run("psql", func(t *testing.T) {
				out := pgtest.Run(t, major, "psql", "-XAtc", "IDENTIFY_SYSTEM", r.conninfo()+" replication=true")
				if want := primary.QueryValue("SELECT system_identifier FROM pg_control_system()") + "|1|"; !strings.HasPrefix(out, want) {
					t.Errorf("IDENTIFY_SYSTEM says %q, want %q...", out, want)
				}
				out = pgtest.Run(t, major, "psql", "-XAtc", "SHOW wal_segment_size", r.conninfo()+" replication=true")
				if strings.TrimSpace(out) != "16MB" {
					t.Errorf("wal_segment_size is %q", out)
				}
				out = pgtest.Run(t, major, "psql", "-XAtc", "SELECT count(*) FROM t", r.conninfo()+" dbname=postgres")
				if strings.TrimSpace(out) != "10000" {
					t.Errorf("a query passed on to the primary says %q", out)
				}
			})

			t.Run("pg_basebackup", func(t *testing.T) {
				dir := filepath.Join(pgtest.Dir(t), "b")
				pgtest.Run(t, major, "pg_basebackup", "-d", r.conninfo(), "-D", dir, "-X", "stream", "-R", "-c", "fast")
				b := pgtest.Open(t, pgtest.Options{Major: major, Dir: dir, Name: "b"})
				b.Start()
				primary.Exec("INSERT INTO t VALUES (0)")
				b.WaitLSN(primary.LSN())
				if got := b.QueryValue("SELECT sender_port FROM pg_stat_wal_receiver"); got != fmt.Sprint(r.port()) {
					t.Errorf("the standby that pg_basebackup -R made streams from port %s, want the relay's %d", got, r.port())
				}
			})

			t.Run("pg_receivewal", func(t *testing.T) {
				dir := pgtest.Dir(t)
				pgtest.Run(t, major, "pg_receivewal", "-d", r.conninfo(), "--slot", "recv", "--create-slot")
				p := pgtest.Go(t, major, "pg_receivewal", "-d", r.conninfo(), "-D", dir, "--slot", "recv", "--synchronous")
				primary.Exec("INSERT INTO t VALUES (0)")
				want := primary.LSN()
				pgtest.Wait(t, "the slot to follow pg_receivewal", func() (bool, string) {
					for _, s := range r.Status().Slots {
						if s.Name == "recv" {
							return s.Active && s.Restart >= want, fmt.Sprintf("%+v", s)
						}
					}
					return false, "no slot"
				})
				if err := p.Stop(syscall.SIGINT); err != nil {
					t.Errorf("pg_receivewal: %v\n%s", err, p.Output())
				}
				files, _ := filepath.Glob(filepath.Join(dir, "*.partial"))
				if len(files) != 1 {
					t.Fatalf("pg_receivewal left %q", files)
				}
				got, err := os.ReadFile(files[0])
				if err != nil {
					t.Fatal(err)
				}
				ours, err := os.ReadFile(filepath.Join(r.cfg.Dir, filepath.Base(files[0])))
				if err != nil {
					t.Fatal(err)
				}
				if len(got) != len(ours) {
					t.Errorf("pg_receivewal's segment has %d bytes, ours %d", len(got), len(ours))
				}
				pgtest.Run(t, major, "pg_receivewal", "-d", r.conninfo(), "--slot", "recv", "--drop-slot")
			})

			t.Run("pg_rewind", func(t *testing.T) {
				// A standby is promoted by mistake, written to, and rewound.
				primary.Set(map[string]string{"wal_log_hints": "on"})
				s := primary.Standby(pgtest.Options{Name: "s"}, r.conninfo())
				s.Start()
				s.WaitLSN(primary.LSN())
				s.Promote()
				s.Exec("CREATE TABLE mistake ()")
				s.Restart() // a clean shutdown, which pg_rewind wants
				s.Stop(pgserver.Fast)
				pgtest.Run(t, major, "pg_rewind", "-D", s.Dir, "--source-server", r.conninfo()+" dbname=postgres", "--no-sync")
				// What it leaves for the next start: where to replay from.
				if _, err := os.Stat(filepath.Join(s.Dir, "backup_label")); err != nil {
					t.Errorf("pg_rewind did not rewind: %v", err)
				}
			})
		})
	}
}
