package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rideau/internal/pgserver"
	"rideau/relay"
	"rideau/wal"
)

// A relayChild is "rideau relay" running, with all of its defaults: it checks
// every record, and syncs before it reports.
type relayChild struct {
	*child
	port   int
	status string // URL
	free   []func()
}

// rideau is a command of the program that is measured.
func (b *bench) rideau(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.program, args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "PG") })
	// In a process group of its own an interrupt typed at our terminal does not
	// reach it: we decide how it ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithUs(cmd.SysProcAttr)
	return cmd
}

// beginRelay starts a relay, and does not wait for it to do anything.
func (b *bench) beginRelay(ctx context.Context, conninfo, dir, slot, name string) (_ *relayChild, err error) {
	r := &relayChild{}
	defer func() {
		if err != nil {
			r.release()
		}
	}()
	var ports [2]int
	for i := range ports {
		port, release, err := pgserver.FreePort()
		if err != nil {
			return nil, err
		}
		ports[i], r.free = port, append(r.free, release)
	}
	r.port = ports[0]
	r.status = fmt.Sprintf("http://127.0.0.1:%d/status", ports[1])
	cmd := b.rideau(ctx, "relay", conninfo, dir, "--slot", slot, "--name", name, "--log-level", "warn",
		"--listen", fmt.Sprintf("127.0.0.1:%d", ports[0]), "--http", fmt.Sprintf("127.0.0.1:%d", ports[1]))
	if r.child, err = begin(cmd); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *relayChild) release() {
	for _, free := range r.free {
		free()
	}
	r.free = nil
}

// stop ends the relay in good order.
func (r *relayChild) stop() {
	r.child.stop(syscall.SIGTERM)
	r.release()
}

// conninfo is how receivers reach it.
func (r *relayChild) conninfo() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", r.port)
}

// No proxy of the environment.
var statusClient = &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}

// position asks the relay how far it has got; nothing while it is coming up.
func (r *relayChild) position(ctx context.Context) (relay.Position, error) {
	var st struct {
		Position relay.Position `json:"position"`
	}
	if err := r.ended(); err != nil {
		return st.Position, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.status, nil)
	if err != nil {
		return st.Position, err
	}
	resp, err := statusClient.Do(req)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return st.Position, nil
	}
	if err != nil {
		return st.Position, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return st.Position, nil
	}
	return st.Position, json.NewDecoder(resp.Body).Decode(&st)
}

// syncs asks the relay how often it has made WAL durable, and how long each
// took on average.
func (r *relayChild) syncs(ctx context.Context) (n int, mean time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(r.status, "status")+"metrics", nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := statusClient.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, 0, err
	}
	values := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			values[name] = v
		}
	}
	count := values["rideau_fsync_seconds_count"]
	if count == 0 {
		return 0, 0, errors.New("the relay does not say how often it synced")
	}
	return int(count), time.Duration(values["rideau_fsync_seconds_sum"] / count * float64(time.Second)), nil
}

// waitFlushed waits until the relay has all records below lsn on its disk.
func (r *relayChild) waitFlushed(ctx context.Context, lsn wal.LSN) error {
	return eventually(ctx, fmt.Sprintf("the relay to reach %s", lsn), func() (bool, error) {
		pos, err := r.position(ctx)
		return pos.Complete >= lsn, err
	})
}

// checkCopy compares the whole segments of a backlog that a receiver has left
// in dir with the server's own, byte by byte.
func (l *backlog) checkCopy(dir string) error {
	for at := l.from; at < l.whole; at += wal.LSN(segmentSize) {
		name := segmentSize.FileName(timeline, at)
		theirs, err := os.ReadFile(filepath.Join(l.server.Dir, "pg_wal", name))
		if err != nil {
			return err
		}
		ours, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if !bytes.Equal(theirs, ours) {
			return fmt.Errorf("segment %s in %q is not the server's", name, dir)
		}
	}
	return nil
}
