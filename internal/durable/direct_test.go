package durable

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestDirect(t *testing.T) {
	const n = 3 << 12
	p := Aligned(n)
	if len(p) != n || cap(p) != n || !isAligned(p, 8192) {
		t.Fatalf("%d bytes with room for %d, aligned: %t", len(p), cap(p), isAligned(p, 8192))
	}
	if isAligned(p[512:], 0) || isAligned(p[:n-512], 0) || isAligned(p, 512) {
		t.Error("what is not a multiple of a page is aligned")
	}
	for i := range p {
		p[i] = byte(i * 7)
	}
	path := filepath.Join(t.TempDir(), "segment.partial")
	if err := os.WriteFile(path, []byte("what was there is read by way of the cache"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	there, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	f, err := OpenDirect(there, path)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		t.Logf("not here: %v", err)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, p) {
		t.Error("who reads does not see what was written")
	}
	if err := os.Rename(path, path+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := OpenDirect(there, path); err == nil {
		f.Close()
		t.Error("another file of the name is opened in its place")
	}
}
