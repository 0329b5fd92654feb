package relay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"rideau/internal/pgtest"
	"rideau/relay"
	"rideau/wal"
)

// TestMain lets the test binary be a relay, so that a test can kill one.
func TestMain(m *testing.M) {
	if text := os.Getenv("RIDEAU_TEST_RELAY"); text != "" {
		if err := childMain(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A childConfig is what a relay in a process of its own is told.
type childConfig struct {
	Upstream, Dir, Listen, Slot string
	Status                      string // address of its status
}

func childMain(text string) error {
	var c childConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	r, err := relay.New(relay.Config{
		Upstream: c.Upstream, Dir: c.Dir, Listen: []string{c.Listen}, Slot: c.Slot,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	http.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(r.Status())
	})
	go http.ListenAndServe(c.Status, nil)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return r.Run(ctx)
}

// A childRelay is a relay in a process of its own.
type childRelay struct {
	t    *testing.T
	c    childConfig
	port int
	cmd  *exec.Cmd
	log  *syncBuffer
}

// startChild starts one that follows upstream, in a new directory, with a slot.
func startChild(t *testing.T, upstream string) *childRelay {
	t.Helper()
	r := &childRelay{t: t, port: pgtest.FreePort(t), log: &syncBuffer{}}
	r.c = childConfig{
		Upstream: upstream, Dir: t.TempDir(), Slot: "rideau",
		Listen: fmt.Sprintf("127.0.0.1:%d", r.port),
		Status: fmt.Sprintf("127.0.0.1:%d", pgtest.FreePort(t)),
	}
	r.start()
	t.Cleanup(func() {
		r.kill()
		if t.Failed() {
			t.Logf("log of the relay:\n%s", r.log)
		}
	})
	return r
}

func (r *childRelay) start() {
	r.t.Helper()
	text, err := json.Marshal(r.c)
	if err != nil {
		r.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	r.cmd = exec.Command(exe, "-test.run=^$")
	r.cmd.Env = append(os.Environ(), "RIDEAU_TEST_RELAY="+string(text))
	r.cmd.Stderr = r.log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *childRelay) kill() {
	if r.cmd == nil {
		return
	}
	r.cmd.Process.Kill()
	r.cmd.Wait()
	r.cmd = nil
}

func (r *childRelay) conninfo() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", r.port)
}

// status asks the relay; false while it does not answer.
func (r *childRelay) status() (relay.Status, bool) {
	var st relay.Status
	resp, err := http.Get("http://" + r.c.Status + "/status")
	if err != nil {
		return st, false
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return st, err == nil && json.Unmarshal(text, &st) == nil && st.Position.TLI != 0
}

func envInt(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// Whatever is killed, and whenever: a commit that the primary acknowledged,
// with the relay as its only synchronous member, is in what can be rebuilt
// from the relay alone. Set RIDEAU_TORTURE_ROUNDS for more rounds, and
// RIDEAU_TORTURE_SEED to repeat one.
func TestTorture(t *testing.T) {
	rounds := envInt("RIDEAU_TORTURE_ROUNDS", 3)
	seed := uint64(envInt("RIDEAU_TORTURE_SEED", int(time.Now().UnixNano()%1e9)))
	for i := range rounds {
		seed := seed + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			if i < 4 {
				t.Parallel()
			}
			torture(t, seed)
		})
	}
}

func torture(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	major := pgtest.Majors[rnd.IntN(len(pgtest.Majors))]
	var initdb []string
	if rnd.IntN(2) == 0 {
		initdb = []string{"--wal-segsize=1"} // segments end often
	}
	t.Logf("seed %d: PostgreSQL %d, initdb %q", seed, major, initdb)
	primary := pgtest.Start(t, pgtest.Options{Major: major, InitdbArgs: initdb, Settings: map[string]string{
		"synchronous_standby_names": "rideau",
	}})
	primary.Exec("SET synchronous_commit = local; CREATE TABLE ledger (client int, n int, filler text)")
	r := startChild(t, primary.Conninfo(""))
	primary.WaitQuery("rideau", "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")
	standby := primary.Standby(pgtest.Options{Name: "s"}, r.conninfo())

	// Clients write, and write down what was acknowledged.
	const clients = 6
	var acked [clients]atomic.Int64
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for c := range clients {
		wg.Go(func() {
			conn, err := primary.Connect(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close(context.Background())
			big := c == 0 // records of many pages and, at times, of many segments
			for n := int64(1); ; n++ {
				filler := 10
				if big {
					filler = int(n%7) * 300_000
				}
				_, err := conn.Exec(ctx, "INSERT INTO ledger SELECT $1, $2, string_agg(md5(i::text), '') FROM generate_series(0, $3::int / 32) i", c, n, filler)
				if err != nil {
					return // the primary is dead
				}
				acked[c].Store(n)
			}
		})
	}
	total := func() (sum int64) {
		for c := range acked {
			sum += acked[c].Load()
		}
		return sum
	}

	// The relay dies at moments that depend on how far the clients are, and
	// then the primary; or both, in either order.
	kills := rnd.IntN(6)
	for range kills {
		at := total() + rnd.Int64N(150)
		pgtest.Wait(t, fmt.Sprintf("%d commits", at), func() (bool, string) { return total() >= at, fmt.Sprint(total()) })
		r.kill()
		r.start()
	}
	at := total() + rnd.Int64N(150)
	pgtest.Wait(t, fmt.Sprintf("%d commits", at), func() (bool, string) { return total() >= at, fmt.Sprint(total()) })
	switch rnd.IntN(3) {
	case 0:
		primary.Kill()
	case 1:
		primary.Kill()
		r.kill()
		r.start()
	case 2:
		r.kill()
		primary.Kill()
		r.start()
	}
	cancel()
	wg.Wait()

	// Rebuild, from the relay only.
	standby.Start()
	pgtest.Wait(t, "the standby to have all that the relay has", func() (bool, string) {
		st, ok := r.status()
		if !ok {
			return false, "the relay does not answer"
		}
		got := standby.QueryValue("SELECT coalesce(pg_last_wal_replay_lsn()::text, '0/0')")
		lsn, err := wal.ParseLSN(got)
		return err == nil && lsn >= st.Position.Complete, fmt.Sprintf("relay %+v, standby %s", st.Position, got)
	})
	standby.Promote()
	rows := 0
	for c := range acked {
		want := acked[c].Load()
		rows += int(want)
		got := standby.QueryValue("SELECT count(DISTINCT n) FROM ledger WHERE client = $1 AND n <= $2", c, want)
		if got != fmt.Sprint(want) {
			t.Errorf("seed %d: client %d: %d commits were acknowledged, %s are there", seed, c, want, got)
		}
	}
	t.Logf("seed %d: %d kills of the relay; %d acknowledged commits, none lost", seed, kills, rows)
}
