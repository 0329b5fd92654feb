package durable

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Where there is no fallocate, Preallocate writes: after what is there.
func TestWriteZeros(t *testing.T) {
	path := filepath.Join(t.TempDir(), "segment.partial")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("WAL"); err != nil {
		t.Fatal(err)
	}
	const size = 3<<20 + 5 // not a multiple of what is written at once
	for range 2 {
		if err := WriteZeros(f, size); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := append([]byte("WAL"), make([]byte, size-3)...); !bytes.Equal(got, want) {
		t.Errorf("file of %d bytes is not what was written and zeros up to %d", len(got), size)
	}
}
