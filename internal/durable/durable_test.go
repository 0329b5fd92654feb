package durable_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rideau/internal/durable"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, e := range entries {
		s = append(s, e.Name())
	}
	return strings.Join(s, " ")
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	for _, content := range []string{"first", "second, longer", ""} {
		if err := durable.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		if got := read(t, path); got != content {
			t.Errorf("file holds %q, want %q", got, content)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o640 {
		t.Errorf("mode is %o, want 640", got)
	}
	if got := names(t, dir); got != "state" {
		t.Errorf("directory holds %q, want only the file", got)
	}
}

// A relative name without a directory is in the current one.
func TestWriteFileHere(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := durable.WriteFile("here", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := names(t, "."); got != "here" {
		t.Errorf("directory holds %q", got)
	}
}

// Whatever fails, the old file is whole and nothing else is left.
func TestWriteFileFails(t *testing.T) {
	limitFileSize(t, 1<<16)
	tests := []struct {
		name    string
		prepare func(dir string) error
		data    []byte
		want    error
		left    string
	}{
		{"the write is cut short", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "state"), []byte("old"), 0o600)
		}, make([]byte, 1<<17), syscall.EFBIG, "state"},
		{"a directory is in the way", func(dir string) error {
			return os.Mkdir(filepath.Join(dir, "state"), 0o700)
		}, []byte("new"), syscall.EEXIST, "state"},
		{"there is no directory", os.Remove, []byte("new"), fs.ErrNotExist, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "dir")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := tt.prepare(dir); err != nil {
				t.Fatal(err)
			}
			err := durable.WriteFile(filepath.Join(dir, "state"), tt.data, 0o600)
			if !errors.Is(err, tt.want) {
				t.Errorf("WriteFile returned %v, want %v", err, tt.want)
			}
			if tt.left == "" {
				return
			}
			if got := names(t, dir); got != tt.left {
				t.Errorf("directory holds %q, want %q", got, tt.left)
			}
			if info, _ := os.Stat(filepath.Join(dir, "state")); info.Mode().IsRegular() {
				if got := read(t, filepath.Join(dir, "state")); got != "old" {
					t.Errorf("file holds %q, want what it held before", got)
				}
			}
		})
	}
}

// limitFileSize makes every write past size fail, as on a full disk.
func limitFileSize(t *testing.T, size uint64) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	// The default for SIGXFSZ is to die; ignored, the write returns EFBIG.
	signal.Ignore(syscall.SIGXFSZ)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
			t.Fatal(err)
		}
		signal.Reset(syscall.SIGXFSZ)
	})
}

func TestFileNotCommitted(t *testing.T) {
	dir := t.TempDir()
	f, err := durable.Create(filepath.Join(dir, "segment"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if tmp := names(t, dir); !durable.IsTemp(tmp) {
		t.Errorf("IsTemp(%q) = false for a file in the making", tmp)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); got != "" {
		t.Errorf("directory holds %q after Close without Commit", got)
	}
	if err := f.Commit(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Commit after Close returned %v", err)
	}
}

func TestFileCommitted(t *testing.T) {
	dir := t.TempDir()
	f, err := durable.Create(filepath.Join(dir, "segment"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close after Commit returned %v", err)
	}
	if got := names(t, dir); got != "segment" {
		t.Errorf("directory holds %q", got)
	}
}

func TestRename(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "aside"), 0o700); err != nil {
		t.Fatal(err)
	}
	old, new := filepath.Join(dir, "x.partial"), filepath.Join(dir, "aside", "x")
	if err := os.WriteFile(old, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.Rename(old, new); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); got != "aside" {
		t.Errorf("directory holds %q", got)
	}
	if err := durable.Rename(old, new); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("second Rename returned %v", err)
	}
	if err := durable.SyncDir(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SyncDir of nothing returned %v", err)
	}
}

func TestPreallocate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "segment.partial")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("WAL"); err != nil {
		t.Fatal(err)
	}
	if err := durable.Preallocate(f, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := durable.Preallocate(f, 1<<10); err != nil { // never shrinks
		t.Fatal(err)
	}
	if err := durable.Fdatasync(f); err != nil {
		t.Fatal(err)
	}
	want := append([]byte("WAL"), make([]byte, 1<<20-3)...)
	if got := read(t, path); !bytes.Equal([]byte(got), want) {
		t.Errorf("file of %d bytes is not what was written and zeros up to 1 MB", len(got))
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Sys().(*syscall.Stat_t).Blocks * 512; got < 1<<20 {
		t.Errorf("only %d bytes are allocated", got)
	}

	limitFileSize(t, 1<<16)
	small, err := os.Create(filepath.Join(t.TempDir(), "too large"))
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	if err := durable.Preallocate(small, 1<<20); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("Preallocate past the limit returned %v, want EFBIG", err)
	}
}

func TestFdatasyncFails(t *testing.T) {
	r, w, err := os.Pipe() // cannot be synced
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var path *fs.PathError
	if err := durable.Fdatasync(w); !errors.As(err, &path) {
		t.Errorf("Fdatasync of a pipe returned %v, want a PathError", err)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	lock, err := durable.LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = durable.LockDir(dir)
	var locked *durable.LockedError
	if !errors.As(err, &locked) || locked.Dir != dir || locked.PID != os.Getpid() {
		t.Errorf("second LockDir returned %v, want a LockedError naming process %d", err, os.Getpid())
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	lock, err = durable.LockDir(dir)
	if err != nil {
		t.Fatalf("LockDir after Close: %v", err)
	}
	lock.Close()
	if _, err := durable.LockDir(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LockDir of nothing returned %v", err)
	}
}

// A process that is killed leaves its lock file and no lock.
func TestLockOfKilledProcess(t *testing.T) {
	if dir := os.Getenv("DURABLE_TEST_LOCK"); dir != "" {
		lock, err := durable.LockDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		os.Stdout.WriteString("locked\n")
		os.Stdin.Read(make([]byte, 1)) // until we are killed
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestLockOfKilledProcess$")
	cmd.Env = append(os.Environ(), "DURABLE_TEST_LOCK="+dir)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 7)
	if _, err := out.Read(buf); err != nil || string(buf) != "locked\n" {
		t.Fatalf("child said %q, %v", buf, err)
	}
	_, err = durable.LockDir(dir)
	var locked *durable.LockedError
	if !errors.As(err, &locked) || locked.PID != cmd.Process.Pid {
		t.Errorf("LockDir returned %v, want a LockedError naming process %d", err, cmd.Process.Pid)
	}
	cmd.Process.Kill()
	cmd.Wait()
	lock, err := durable.LockDir(dir)
	if err != nil {
		t.Fatalf("LockDir after the holder was killed: %v", err)
	}
	lock.Close()
}
