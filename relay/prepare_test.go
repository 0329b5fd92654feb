package relay

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"rideau/wal"
)

// A segment that was prepared is zeros of the right size under its new name;
// what was prepared and not used does not stay.
func TestPreparer(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, preparedFile)
	if err := os.WriteFile(stale, []byte("of an earlier run"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPreparer(dir)
	if f := p.take(filepath.Join(dir, "early")); f != nil {
		t.Error("took a file that nobody has made")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { p.run(ctx); close(done) }()

	const size = wal.SegmentSize(1 << 20)
	p.ask(size)
	f := <-p.ready
	p.ready <- f // it is still there to be taken
	name := filepath.Join(dir, "segment.partial")
	if f = p.take(name); f == nil {
		t.Fatal("took nothing where a file was ready")
	}
	defer f.Close()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(content) != int(size) {
		t.Errorf("the file has %d bytes, want %d", len(content), size)
	}
	for i, b := range content {
		if b != 0 {
			t.Fatalf("byte %d is %d, want 0", i, b)
		}
	}
	// What is written to the file that was taken is in the file with the name.
	if _, err := f.WriteAt([]byte("WAL"), 0); err != nil {
		t.Fatal(err)
	}
	named, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer named.Close()
	var head [3]byte
	if _, err := io.ReadFull(named, head[:]); err != nil || string(head[:]) != "WAL" {
		t.Errorf("the named file begins with %q, %v", head, err)
	}

	p.ask(size)
	again := <-p.ready
	p.ready <- again
	cancel()
	<-done
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("a prepared file is left: %v", err)
	}
}
