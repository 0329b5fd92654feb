package relay_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rideau/internal/pgtest"
	"rideau/relay"
	"rideau/wal"
)

// A server's own directories are not touched: it would recycle the relay's WAL,
// and find files that it did not write.
func TestServerDirectory(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	data := primary.QueryValue("SHOW data_directory")
	for _, dir := range []string{data, filepath.Join(data, "pg_wal")} {
		var own *relay.ServerDirError
		if err := runOnce(t, relay.Config{Upstream: primary.Conninfo(""), Dir: dir}); !errors.As(err, &own) {
			t.Errorf("in %q: %v, want a ServerDirError", dir, err)
		}
		if ours, _ := filepath.Glob(filepath.Join(dir, "rideau*.json")); len(ours) > 0 {
			t.Errorf("files were left: %q", ours)
		}
		if _, err := os.Stat(filepath.Join(dir, ".lock")); err == nil {
			t.Error("a lock was left")
		}
	}
}

// What is wrong in the directory is said at the start, before a standby falls
// over it.
func TestDirectoryInDisorder(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{InitdbArgs: []string{"--wal-segsize=1"}})
	r := startRelay(t, relay.Config{Upstream: primary.Conninfo("")})
	for range 5 {
		primary.Exec("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 900000))")
	}
	r.waitComplete(1, primary.LSN())
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	if log := r.log.String(); strings.Contains(log, "WAL is missing") {
		t.Errorf("WAL is said to be missing where none is:\n%s", log)
	}

	segments, _ := filepath.Glob(filepath.Join(r.cfg.Dir, "00000001????????????????"))
	slices.Sort(segments)
	if err := os.Remove(segments[1]); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.waitComplete(1, primary.LSN())
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	_, from, err := wal.SegmentSize(1 << 20).ParseFileName(filepath.Base(segments[1]))
	if err != nil {
		t.Fatal(err)
	}
	if log := r.log.String(); !strings.Contains(log, "WAL is missing in the directory") || !strings.Contains(log, "from="+from.String()) {
		t.Errorf("nothing is said of the missing segment %q:\n%s", segments[1], log)
	}

	for name, slots := range map[string]bool{"rideau.json": false, "rideau-slots.json": true} {
		path := filepath.Join(r.cfg.Dir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			good = []byte("[]")
		}
		if err := os.WriteFile(path, []byte("{gar"), 0o600); err != nil {
			t.Fatal(err)
		}
		var state *relay.StateError
		if err := runOnce(t, relay.Config{Upstream: primary.Conninfo(""), Dir: r.cfg.Dir}); !errors.As(err, &state) || state.Path != path || state.Slots != slots {
			t.Errorf("with garbage in %s: %v, want a StateError", name, err)
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	// What the hint says works: without it, the WAL itself tells.
	if err := os.Remove(filepath.Join(r.cfg.Dir, "rideau.json")); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.waitComplete(1, primary.LSN())
}
