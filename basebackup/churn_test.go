package basebackup_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"rideau/basebackup"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
	"rideau/wal"
)

// A churn is a session that makes, moves and drops whatever can be made, moved
// and dropped, over and over. After each of its statements these hold, and so
// they must in every backup: kept has 5,000 rows, swapped has 1,000, each with
// an index; scratch is unlogged.
type churn struct {
	rounds atomic.Int64
	hop    atomic.Bool // tablespaces may come and go

	s      *pgtest.Server
	spaces []string // two SQL names of tablespaces that kept moves between
	where  string   // of the tablespace that comes and goes; "none": there is none
	cancel context.CancelFunc
	ended  chan error
}

// startChurn makes its tables, and begins. Another session has a temporary table
// and a sort on disk for as long as the churn goes on.
func startChurn(t *testing.T, s *pgtest.Server, spaces []string, where string) *churn {
	t.Helper()
	s.Exec(`CREATE TABLE kept AS SELECT n, repeat(md5(n::text), 3) AS text FROM generate_series(1, 5000) n;
CREATE INDEX kept_n ON kept (n);
CREATE TABLE swapped AS SELECT n, md5(n::text) AS text FROM generate_series(1, 1000) n;
CREATE INDEX swapped_n ON swapped (n);
CREATE UNLOGGED TABLE scratch AS SELECT n, repeat(md5(n::text), 3) AS text FROM generate_series(1, 5000) n;
CREATE INDEX scratch_n ON scratch (n);
CREATE TABLE dropped ()`)
	ctx, cancel := context.WithCancel(t.Context())
	c := &churn{s: s, spaces: spaces, where: where, cancel: cancel, ended: make(chan error, 1)}
	conn, err := s.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	temporary, err := s.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = temporary.Exec(ctx, `CREATE TEMP TABLE passing AS SELECT n FROM generate_series(1, 1000) n;
CREATE INDEX ON passing (n);
BEGIN; SET work_mem = '64kB'; DECLARE sorted CURSOR FOR SELECT * FROM pgbench_accounts ORDER BY md5(aid::text); FETCH 1 FROM sorted`)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer temporary.Close(context.Background())
		defer conn.Close(context.Background())
		c.ended <- c.run(ctx, conn)
	}()
	t.Cleanup(cancel)
	return c
}

func (c *churn) run(ctx context.Context, conn *pgx.Conn) error {
	for i := 0; ; i++ {
		for _, sql := range c.round(i) {
			if _, err := conn.Exec(ctx, sql); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		c.rounds.Add(1)
	}
}

func (c *churn) round(i int) []string {
	strategy := ""
	if c.s.Major >= 15 && i%2 == 1 {
		strategy = "STRATEGY file_copy"
	}
	list := []string{
		"BEGIN; DROP TABLE dropped; CREATE TABLE dropped AS SELECT n, md5(n::text) AS text FROM generate_series(1, 2000) n; COMMIT",
		"CREATE INDEX dropped_text ON dropped (text)",
		"BEGIN; TRUNCATE swapped; INSERT INTO swapped SELECT n, md5(n::text) FROM generate_series(1, 1000) n; COMMIT",
		"VACUUM FULL kept",
		fmt.Sprintf("ALTER TABLE kept SET TABLESPACE %s", c.spaces[i%len(c.spaces)]),
		"DROP INDEX kept_n; CREATE INDEX kept_n ON kept (n)",
		"CREATE UNLOGGED TABLE u AS SELECT n FROM generate_series(1, 1000) n",
		"CREATE TEMP TABLE temp AS SELECT n FROM generate_series(1, 1000) n",
		"CREATE DATABASE passing TEMPLATE template1 " + strategy,
		"DROP DATABASE passing",
		"DROP TABLE u; DROP TABLE temp",
	}
	if c.where != "none" && c.hop.Load() {
		list = append(list, fmt.Sprintf("CREATE TABLESPACE hop LOCATION '%s'", c.where),
			"CREATE TABLE hop TABLESPACE hop AS SELECT n FROM generate_series(1, 1000) n", "CREATE INDEX hop_n ON hop (n) TABLESPACE hop",
			"DROP TABLE hop", "DROP TABLESPACE hop")
	}
	return list
}

// stop ends the churn, which must not have failed.
func (c *churn) stop(t *testing.T) {
	t.Helper()
	c.cancel()
	if err := <-c.ended; err != nil {
		t.Error(err)
	}
}

// survived is what holds in a backup that was taken under churn.
func survived(t *testing.T, c *pgtest.Server) {
	t.Helper()
	balanced(t, c)
	for _, table := range []struct{ name, rows string }{{"kept", "5000"}, {"swapped", "1000"}, {"scratch", "0"}} {
		for _, how := range []string{"on", "off"} {
			sql := fmt.Sprintf("SET enable_seqscan = %s; SELECT count(*) FROM %s WHERE n BETWEEN 1 AND 5000", how, table.name)
			if got := c.QueryValue(sql); got != table.rows {
				t.Errorf("%s has %s rows, not %s (enable_seqscan %s)", table.name, got, table.rows, how)
			}
		}
	}
	sound(t, c)
}

// inPlace lets tablespaces be inside the data directory: a standby on the
// machine of its primary cannot have others.
var inPlace = map[string]string{"allow_in_place_tablespaces": "on"}

// A backup of a primary on which everything changes.
func TestChurnPrimary(t *testing.T) {
	for _, major := range pgtest.Some {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major})
			s.BenchInit(2)
			fixed := location(t, s)
			s.Exec(fmt.Sprintf("CREATE TABLESPACE fixed LOCATION '%s'", fixed))
			conninfo := backupRole(s)
			bench := s.Load()
			churn := startChurn(t, s, []string{"fixed", "pg_default"}, location(t, s))

			own := pgtest.Dir(t)
			dir, space := filepath.Join(own, "backup"), filepath.Join(own, "space")
			report := take(t, basebackup.Config{Conninfo: conninfo, Dir: dir, MaxRate: 12 << 20,
				Tablespaces: map[string]string{fixed: space},
				Progress: func(p basebackup.Progress) {
					if p.Phase == basebackup.Listing {
						churn.hop.Store(true) // one that is there before would have to be mapped
					}
				}})
			if n := churn.rounds.Load(); n < 2 {
				t.Errorf("the churn went round %d times: the backup did not see it", n)
			}
			churn.stop(t)
			bench.Stop(syscall.SIGTERM)
			// What replays the churn's tablespaces does so where they were.
			s.Stop(pgserver.Fast)

			clean(t, s, dir)
			give(t, s, own)
			verified(t, s, dir)
			t.Logf("%d files, %d vanished, %d churns", report.Files, report.Vanished, churn.rounds.Load())
			c := open(t, s, dir, nil)
			survived(t, c)
			stopsSound(t, c)
		})
	}
}

// A backup of a standby, of whose primary everything changes.
func TestChurnStandby(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			var settings map[string]string
			spaces, where := []string{"pg_default"}, "none"
			if major >= 15 {
				settings, spaces, where = inPlace, []string{"fixed", "pg_default"}, ""
			}
			p := pgtest.Start(t, pgtest.Options{Major: major, Settings: settings})
			p.BenchInit(2)
			if major >= 15 {
				p.Exec("CREATE TABLESPACE fixed LOCATION ''")
			}
			backupRole(p)
			s := p.Standby(pgtest.Options{Name: "standby"}, p.Conninfo("user=postgres"))
			s.Start()
			bench := p.Load()
			churn := startChurn(t, p, spaces, where)
			s.WaitLSN(p.LSN())

			dir := filepath.Join(pgtest.Dir(t), "backup")
			report := take(t, basebackup.Config{Conninfo: asRole(s), Dir: dir, MaxRate: 12 << 20,
				Progress: func(p basebackup.Progress) {
					if p.Phase == basebackup.Listing {
						churn.hop.Store(true)
					}
				}})
			if !report.Standby {
				t.Error("the report does not say that it was a standby")
			}
			if n := churn.rounds.Load(); n < 2 {
				t.Errorf("the churn went round %d times: the backup did not see it", n)
			}
			churn.stop(t)
			bench.Stop(syscall.SIGTERM)
			clean(t, s, dir)
			verified(t, s, dir)
			t.Logf("%d files, %d vanished, %d churns", report.Files, report.Vanished, churn.rounds.Load())
			c := open(t, s, dir, settings)
			survived(t, c)
			stopsSound(t, c)
		})
	}
}

// A tablespace that is made while the backup begins. Nothing in the WAL of the
// backup makes it if that was before the start; all of it is there if it was
// after, and then what makes it must find nothing in its way.
func TestTablespaceMadeMeanwhile(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major})
			conninfo := backupRole(s)
			// In Progress, which the backup waits for.
			makeAt := func(phase basebackup.Phase, name, where string) func(basebackup.Progress) {
				made := false
				return func(p basebackup.Progress) {
					if p.Phase == phase && !made {
						made = true
						for _, sql := range []string{
							fmt.Sprintf("CREATE TABLESPACE %s LOCATION '%s'", name, where),
							fmt.Sprintf("CREATE TABLE %s TABLESPACE %s AS SELECT n FROM generate_series(1, 1000) n", name, name)} {
							if _, err := s.Server.Query(context.Background(), sql); err != nil {
								t.Errorf("%s: %v", sql, err)
							}
						}
					}
				}
			}
			own := pgtest.Dir(t)
			dir := filepath.Join(own, "backup")
			before, after := location(t, s), location(t, s)
			_, err := basebackup.Take(t.Context(), basebackup.Config{Conninfo: conninfo, Dir: dir, Progress: makeAt(basebackup.Checkpoint, "before", before)})
			if err == nil {
				t.Error("a tablespace that was made before the start, and is in use here, is not refused")
			}
			unstartable(t, dir)

			space := filepath.Join(own, "space")
			take(t, basebackup.Config{Conninfo: conninfo, Dir: dir, Tablespaces: map[string]string{before: space},
				Progress: makeAt(basebackup.Listing, "after", after)})
			s.Stop(pgserver.Fast)
			give(t, s, own)
			verified(t, s, dir)
			c := open(t, s, dir, nil)
			for _, table := range []string{"before", "after"} {
				if got := c.QueryValue("SELECT count(*) FROM " + table); got != "1000" {
					t.Errorf("table %q has %s rows", table, got)
				}
			}
		})
	}
}

// Of a large table of which little has changed, little travels.
func TestRefresh(t *testing.T) {
	for _, test := range []struct {
		major    int
		method   string
		settings map[string]string
	}{
		{13, "page LSN", nil},
		{18, "page LSN", map[string]string{"summarize_wal": "off"}},
		{18, "summaries", map[string]string{"summarize_wal": "on"}},
	} {
		t.Run(fmt.Sprintf("%d by %s", test.major, test.method), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: test.major, Settings: test.settings})
			s.BenchInit(8)
			s.Exec("CHECKPOINT")
			cfg := basebackup.Config{Conninfo: backupRole(s), Dir: filepath.Join(pgtest.Dir(t), "backup")}
			first := take(t, cfg)
			if first.Method != "copy" || first.Received < first.Bytes {
				t.Errorf("first: %+v", first)
			}
			// Each of these changes a page of the table, and one of its index.
			if err := s.Bench("-c", "1", "-t", "100").Wait(); err != nil {
				t.Fatal(err)
			}
			second := take(t, cfg)
			if second.Method != test.method {
				t.Errorf("method is %q: %s", second.Method, second.Reason)
			}
			t.Logf("received %d of %d bytes", second.Received, second.Bytes)
			if second.Received > second.Bytes*5/100 || second.Received < 100*8192 {
				t.Errorf("received %d bytes of %d", second.Received, second.Bytes)
			}
			want := contents(t, s)
			c := proven(t, s, cfg.Dir)
			if got := contents(t, c); got != want {
				t.Errorf("the refreshed backup has\n%sand the server\n%s", got, want)
			}
			balanced(t, c)
			sound(t, c)
			stopsSound(t, c)
		})
	}
}

// A bit of the visibility map is cleared by a record that names the heap's page
// only, and the map's page keeps its LSN. A backup that trusts either has rows
// that are gone.
func TestRefreshClearsVisibility(t *testing.T) {
	for _, test := range []struct {
		major     int
		summarize string
	}{{13, ""}, {15, ""}, {18, "off"}, {18, "on"}} {
		t.Run(fmt.Sprint(test.major, test.summarize), func(t *testing.T) {
			t.Parallel()
			settings := map[string]string{"autovacuum": "off"}
			if test.summarize != "" {
				settings["summarize_wal"] = test.summarize
			}
			s := pgtest.Start(t, pgtest.Options{Major: test.major, Settings: settings})
			s.Exec(`CREATE EXTENSION pg_visibility;
CREATE TABLE seen AS SELECT n, repeat('x', 100) AS text FROM generate_series(1, 10000) n;
CREATE INDEX seen_n ON seen (n)`)
			s.Exec("VACUUM (FREEZE) seen")
			s.Exec("CHECKPOINT")
			cfg := basebackup.Config{Conninfo: backupRole(s), Dir: filepath.Join(pgtest.Dir(t), "backup")}
			take(t, cfg)
			vm := s.QueryValue("SELECT pg_relation_filepath('seen')") + "_vm"
			old, err := os.ReadFile(filepath.Join(cfg.Dir, vm))
			if err != nil {
				t.Fatal(err)
			}

			s.Exec("DELETE FROM seen WHERE n IN (1, 5000)")
			s.Exec("CHECKPOINT") // so that the second backup's WAL does not have it
			report := take(t, cfg)
			if report.Method == "copy" || report.Method == "content" {
				t.Errorf("method is %q: %s", report.Method, report.Reason)
			}
			server, err := os.ReadFile(filepath.Join(s.Dir, vm))
			if err != nil {
				t.Fatal(err)
			}
			copied, err := os.ReadFile(filepath.Join(cfg.Dir, vm))
			if err != nil {
				t.Fatal(err)
			}
			if string(server) == string(old) {
				t.Fatal("the visibility map has not changed: there is nothing to see")
			}
			if lsnOfPage(server) != lsnOfPage(old) {
				t.Log("this version moves the map's LSN")
			}
			if string(copied) != string(server) {
				t.Error("the visibility map is not the server's")
			}
			c := proven(t, s, cfg.Dir)
			if got := c.QueryValue("SELECT count(*) FROM pg_check_visible('seen')"); got != "0" {
				t.Errorf("%s rows are marked as visible to all, and are not", got)
			}
			const indexOnly = "SET enable_seqscan = off; SET enable_bitmapscan = off; "
			plan := ""
			for _, r := range c.Query(indexOnly + "EXPLAIN SELECT n FROM seen WHERE n = 5000") {
				plan += r[0] + "\n"
			}
			if !strings.Contains(plan, "Index Only Scan") {
				t.Fatalf("the plan does not look at the visibility map: %s", plan)
			}
			if rows := c.Query(indexOnly + "SELECT n FROM seen WHERE n = 5000"); len(rows) != 0 {
				t.Errorf("a row that was deleted is back: %v", rows)
			}
		})
	}
}

// lsnOfPage is pd_lsn of the first page.
func lsnOfPage(b []byte) wal.LSN {
	word := func(b []byte) wal.LSN {
		return wal.LSN(b[0]) | wal.LSN(b[1])<<8 | wal.LSN(b[2])<<16 | wal.LSN(b[3])<<24
	}
	return word(b)<<32 | word(b[4:])
}
