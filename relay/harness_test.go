package relay_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"rideau/internal/pgtest"
	"rideau/relay"
	"rideau/wal"
)

// A testRelay is a relay that runs in the test's own process, and can be
// stopped and started again in its directory.
type testRelay struct {
	*relay.Relay
	t    *testing.T
	cfg  relay.Config
	stop context.CancelFunc
	done chan error
	log  *syncBuffer
}

// startRelay runs a relay on a port that it keeps across restarts.
func startRelay(t *testing.T, cfg relay.Config) *testRelay {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Listen == nil {
		cfg.Listen = []string{fmt.Sprintf("127.0.0.1:%d", pgtest.FreePort(t))}
	}
	r := &testRelay{t: t, cfg: cfg, log: &syncBuffer{}}
	r.cfg.Log = slog.New(slog.NewTextHandler(r.log, nil))
	r.start()
	t.Cleanup(func() {
		if r.stop != nil {
			if err := r.halt(); err != nil {
				t.Errorf("relay: %v", err)
			}
		}
		if t.Failed() {
			t.Logf("log of the relay:\n%s", r.log)
		}
	})
	return r
}

// start tries again while its port is in use: a program that another test starts
// has, for a moment, the socket that the relay of before listened on.
func (r *testRelay) start() {
	r.t.Helper()
	pgtest.Wait(r.t, "the relay to listen", func() (bool, string) {
		err := r.begin()
		if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			r.t.Fatalf("relay: %v", err)
		}
		return err == nil, fmt.Sprint(err)
	})
}

func (r *testRelay) begin() error {
	var err error
	if r.Relay, err = relay.New(r.cfg); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop, r.done = cancel, make(chan error, 1)
	go func() { r.done <- r.Relay.Run(ctx) }()
	select {
	case <-r.Ready():
		return nil
	case err := <-r.done:
		r.stop = nil
		cancel()
		return err
	}
}

// halt stops the relay in good order and returns what Run did.
func (r *testRelay) halt() error {
	r.t.Helper()
	r.stop()
	r.stop = nil
	select {
	case err := <-r.done:
		return err
	case <-time.After(pgtest.Patience):
		r.t.Fatalf("the relay does not stop\n%s", r.log)
		return nil
	}
}

// conninfo is how clients reach the relay.
func (r *testRelay) conninfo() string {
	host, port, _ := net.SplitHostPort(r.cfg.Listen[0])
	return fmt.Sprintf("host=%s port=%s user=postgres", host, port)
}

func (r *testRelay) port() int {
	_, port, _ := net.SplitHostPort(r.cfg.Listen[0])
	n, _ := strconv.Atoi(port)
	return n
}

// waitComplete waits until the relay has every record below lsn on disk.
func (r *testRelay) waitComplete(tli wal.TLI, lsn wal.LSN) {
	r.t.Helper()
	pgtest.Wait(r.t, fmt.Sprintf("the relay to reach %s on timeline %d", lsn, tli), func() (bool, string) {
		pos, _ := r.Position()
		return pos.TLI == tli && pos.Complete >= lsn, fmt.Sprintf("%+v, upstream %+v", pos, r.Status().Upstream)
	})
}

// waitStandbys waits until n standbys stream.
func (r *testRelay) waitStandbys(n int) {
	r.t.Helper()
	pgtest.Wait(r.t, fmt.Sprintf("%d standbys to stream", n), func() (bool, string) {
		streaming := 0
		st := r.Status()
		for _, s := range st.Standbys {
			if s.State == "streaming" {
				streaming++
			}
		}
		return streaming == n, fmt.Sprintf("%+v", st.Standbys)
	})
}

type syncBuffer struct {
	mu  sync.Mutex
	buf []byte
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, p...)
	return len(p), nil
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.buf)
}
