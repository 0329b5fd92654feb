package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// testStore is the contract: what each Store must do. Each of its tests gets an
// empty one.
func testStore(t *testing.T, empty func(t *testing.T) Store) {
	ctx := context.Background()
	put := func(t *testing.T, s Store, name, content string) {
		t.Helper()
		if err := s.Put(ctx, name, strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("what was put is opened", func(t *testing.T) {
		s := empty(t)
		random := make([]byte, 3<<20+17)
		rand.NewChaCha8([32]byte{}).Read(random)
		for name, content := range map[string]string{"nothing": "", "little": "x", "much": string(random)} {
			put(t, s, name, content)
			if got := mustRead(t, s, name); got != content {
				t.Errorf("%q: got %d bytes that are not the %d put", name, len(got), len(content))
			}
		}
	})
	t.Run("Put replaces", func(t *testing.T) {
		s := empty(t)
		put(t, s, "a", "longer than what follows")
		put(t, s, "a", "short")
		if got := mustRead(t, s, "a"); got != "short" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("who has it open is not disturbed", func(t *testing.T) {
		s := empty(t)
		put(t, s, "a", "old")
		r, _, err := s.Open(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		put(t, s, "a", "new")
		if got, err := io.ReadAll(r); err != nil || string(got) != "old" {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("a Put that fails changes nothing", func(t *testing.T) {
		s := empty(t)
		put(t, s, "a", "old")
		broken := errors.New("the source broke")
		for _, name := range []string{"a", "b"} {
			err := s.Put(ctx, name, io.MultiReader(strings.NewReader("new"), failing{broken}))
			if !errors.Is(err, broken) {
				t.Errorf("Put returned %v, want the source's error", err)
			}
		}
		if got := mustRead(t, s, "a"); got != "old" {
			t.Errorf("got %q", got)
		}
		if got := list(t, s, ""); got != "a:3" {
			t.Errorf("listed %s", got)
		}
	})
	t.Run("a Put that is cancelled changes nothing", func(t *testing.T) {
		s := empty(t)
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if err := s.Put(ctx, "a", strings.NewReader("new")); !errors.Is(err, context.Canceled) {
			t.Errorf("Put returned %v", err)
		}
		if got := list(t, s, ""); got != "" {
			t.Errorf("listed %s", got)
		}
	})
	t.Run("nobody sees half of a Put", func(t *testing.T) {
		s := empty(t)
		seen := make(chan string)
		// The content is read while it is put, and looks at the Store.
		content := io.MultiReader(strings.NewReader("half"), readerFunc(func([]byte) (int, error) {
			seen <- list(t, s, "")
			return 0, io.EOF
		}))
		done := make(chan error)
		go func() { done <- s.Put(ctx, "a", content) }()
		if got := <-seen; got != "" {
			t.Errorf("listed %s", got)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := list(t, s, ""); got != "a:4" {
			t.Errorf("listed %s", got)
		}
	})
	t.Run("what is not there is fs.ErrNotExist", func(t *testing.T) {
		s := empty(t)
		put(t, s, "a", "x")
		if _, _, err := s.Open(ctx, "b"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open returned %v", err)
		}
	})
	t.Run("List is ordered by bytes and begins after", func(t *testing.T) {
		s := empty(t)
		for _, name := range []string{"b", "a.partial", "B", "a", "a0", "10", "9"} {
			put(t, s, name, name)
		}
		for after, want := range map[string]string{
			"":   "10:2 9:1 B:1 a:1 a.partial:9 a0:2 b:1",
			"a":  "a.partial:9 a0:2 b:1",
			"A":  "B:1 a:1 a.partial:9 a0:2 b:1",
			"b":  "",
			"a/": "a0:2 b:1", // between names
		} {
			if got := list(t, s, after); got != want {
				t.Errorf("after %q: listed %s, want %s", after, got, want)
			}
		}
	})
	t.Run("List can be left", func(t *testing.T) {
		s := empty(t)
		put(t, s, "a", "x")
		put(t, s, "b", "x")
		for o, err := range s.List(ctx, "") {
			if err != nil || o.Name != "a" {
				t.Errorf("got %v, %v", o, err)
			}
			break
		}
	})
	t.Run("List says when", func(t *testing.T) {
		s := empty(t)
		put(t, s, "a", "x")
		for o, err := range s.List(ctx, "") {
			if age := time.Since(o.Modified); err != nil || age < -time.Minute || age > time.Minute {
				t.Errorf("modified %v ago, %v", age, err)
			}
		}
	})
	t.Run("what was removed is gone, and may be removed again", func(t *testing.T) {
		s := empty(t)
		put(t, s, "a", "x")
		put(t, s, "b", "x")
		for range 2 {
			if err := s.Remove(ctx, "a"); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := s.Open(ctx, "a"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open returned %v", err)
		}
		if got := list(t, s, ""); got != "b:1" {
			t.Errorf("listed %s", got)
		}
	})
	t.Run("names that are not those of files", func(t *testing.T) {
		s := empty(t)
		for _, name := range []string{"", ".", "..", ".hidden", "a/b", "../a", "/a", "a\x00b"} {
			if err := s.Put(ctx, name, strings.NewReader("x")); err == nil {
				t.Errorf("Put(%q) was done", name)
			}
			if _, _, err := s.Open(ctx, name); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open(%q) returned %v, want an error that is not fs.ErrNotExist", name, err)
			}
			if err := s.Remove(ctx, name); err == nil {
				t.Errorf("Remove(%q) was done", name)
			}
		}
	})
	t.Run("all at the same time", func(t *testing.T) {
		s := empty(t)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 20 {
					name := fmt.Sprintf("%d", (i+j)%5)
					content := strings.Repeat(name, 1+i*100)
					if err := s.Put(ctx, name, strings.NewReader(content)); err != nil {
						t.Error(err)
					}
					r, size, err := s.Open(ctx, name)
					if errors.Is(err, fs.ErrNotExist) {
						continue // another removed it
					}
					if err != nil {
						t.Error(err)
						continue
					}
					got, err := io.ReadAll(r)
					if err != nil || int64(len(got)) != size || strings.Trim(string(got), name) != "" {
						t.Errorf("%s: %d of %d bytes, %v", name, len(got), size, err)
					}
					r.Close()
					for _, err := range s.List(ctx, "") {
						if err != nil {
							t.Error(err)
						}
					}
					if err := s.Remove(ctx, name); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestDir(t *testing.T) {
	testStore(t, func(t *testing.T) Store { return Dir(t.TempDir()) })
}

// What is in the directory and is not the Store's.
func TestDirIgnores(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".lock", ".a.123.tmp", "a"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "archive_status"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := Dir(dir)
	if got := list(t, s, ""); got != "a:1" {
		t.Errorf("listed %s", got)
	}
	if _, _, err := s.Open(context.Background(), "archive_status"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of a directory returned %v", err)
	}
}

// A directory that is not there, as of a file system that is not mounted, says
// nothing of what is in it.
func TestDirMissing(t *testing.T) {
	s := Dir(filepath.Join(t.TempDir(), "none"))
	if _, _, err := s.Open(context.Background(), "a"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open returned %v, want an error that is not fs.ErrNotExist", err)
	}
	for _, err := range s.List(context.Background(), "") {
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("List returned %v, want an error that is not fs.ErrNotExist", err)
		}
	}
}

// memory is a Store for tests that need one to fail.
type memory struct {
	mu    sync.Mutex
	files map[string]Object
	text  map[string]string
	fail  func(op, name string) error // nil never fails
}

func newMemory() *memory {
	return &memory{files: map[string]Object{}, text: map[string]string{}, fail: func(string, string) error { return nil }}
}

func TestMemory(t *testing.T) {
	testStore(t, func(*testing.T) Store { return newMemory() })
}

func (m *memory) check(op, name string) error {
	if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("invalid file name %q", name)
	}
	return m.fail(op, name)
}

func (m *memory) Open(_ context.Context, name string) (io.ReadCloser, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("open", name); err != nil {
		return nil, 0, err
	}
	text, ok := m.text[name]
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	// Not seekable, as a bucket's content is not.
	return io.NopCloser(io.MultiReader(strings.NewReader(text))), int64(len(text)), nil
}

func (m *memory) Put(ctx context.Context, name string, content io.Reader) error {
	if err := m.check("put", name); err != nil {
		return err
	}
	text, err := io.ReadAll(content)
	if err := errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.text[name] = string(text)
	m.files[name] = Object{Name: name, Size: int64(len(text)), Modified: time.Now()}
	return nil
}

func (m *memory) List(_ context.Context, after string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		m.mu.Lock()
		names := slices.Sorted(maps.Keys(m.files))
		files := maps.Clone(m.files)
		m.mu.Unlock()
		for _, name := range names {
			if name <= after {
				continue
			}
			if err := m.fail("list", name); err != nil {
				yield(Object{}, err)
				return
			}
			if !yield(files[name], nil) {
				return
			}
		}
	}
}

func (m *memory) Remove(_ context.Context, name string) error {
	if err := m.check("remove", name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.files, name)
	delete(m.text, name)
	return nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func mustRead(t *testing.T, s Store, name string) string {
	t.Helper()
	r, size, err := s.Open(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var b bytes.Buffer
	if n, err := b.ReadFrom(r); err != nil || n != size {
		t.Fatalf("%q: read %d of %d bytes, %v", name, n, size, err)
	}
	return b.String()
}

// list answers names and sizes: "a:1 b:20".
func list(t *testing.T, s Store, after string) string {
	t.Helper()
	var files []string
	for o, err := range s.List(context.Background(), after) {
		if err != nil {
			t.Error(err)
			break
		}
		files = append(files, fmt.Sprintf("%s:%d", o.Name, o.Size))
	}
	return strings.Join(files, " ")
}
