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

// The name that the file was opened with is another's by now: that is not touched.
func TestWriteZerosRenamed(t *testing.T) {
	dir := t.TempDir()
	path, moved := filepath.Join(dir, "next"), filepath.Join(dir, "segment")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	other := bytes.Repeat([]byte("WAL"), 4096)
	if err := os.WriteFile(path, other, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteZeros(f, 1<<20); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, other) {
		t.Errorf("the file that has the name now was written to: %v", err)
	}
	if got, err := os.ReadFile(moved); err != nil || !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Errorf("%d bytes instead of zeros: %v", len(got), err)
	}
}
