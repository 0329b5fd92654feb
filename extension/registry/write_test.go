package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A frail store stops at the n-th write: before it, or just after.
type frail struct {
	writable
	left  int
	after bool // the write is done, and said not to be
	wrote []string
}

var errPower = errors.New("the power went")

func (f *frail) write(name string, do func() error) error {
	if f.left == 0 && !f.after {
		return errPower
	}
	if f.left < 0 {
		return errPower
	}
	f.left--
	f.wrote = append(f.wrote, name)
	if err := do(); err != nil {
		return err
	}
	if f.left < 0 {
		return errPower
	}
	return nil
}

func (f *frail) put(ctx context.Context, name string, data []byte) error {
	return f.write(name, func() error { return f.writable.put(ctx, name, data) })
}

func (f *frail) create(ctx context.Context, name string, data []byte) error {
	return f.write(name, func() error { return f.writable.create(ctx, name, data) })
}

// Every prefix of what a change writes leaves a registry that can be read, as it
// was before or after, and that can be changed further.
func TestCrashBetweenWrites(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	fresh := newKey(t)
	changes := []struct {
		name string
		do   func(*lab, *Writer) error
		want func(*Registry) bool // the change counts
	}{
		{"publish", func(l *lab, w *Writer) error {
			_, err := w.Publish(ctx, archive(t, "foo", "2"), l.keys()...)
			return err
		}, func(r *Registry) bool { e, _ := r.Entry("foo"); return e.Latest == "2" }},
		{"publish a new package", func(l *lab, w *Writer) error {
			_, err := w.Publish(ctx, archive(t, "pg_new", "2"), l.keys()...)
			return err
		}, func(r *Registry) bool { _, ok := r.Entry("pg_new"); return ok }},
		{"withdraw", func(l *lab, w *Writer) error {
			return w.Withdraw(ctx, "foo", "0.9", l.keys()...)
		}, func(r *Registry) bool { e, _ := r.Entry("foo"); return len(e.Versions) == 1 }},
		{"refresh", func(l *lab, w *Writer) error {
			return w.Refresh(ctx, l.keys()...)
		}, func(r *Registry) bool { return r.from.(*tree).timestamp.Version == 4 }},
		{"replace the root", func(l *lab, w *Writer) error {
			p := l.policy()
			p.Index, p.Timestamp = Role{Keys: pubs(fresh)}, Role{Keys: pubs(fresh)}
			draft, err := w.DraftRoot(p)
			if err != nil {
				return err
			}
			if w.t.root.Version == 2 {
				return nil // done before the power went
			}
			return w.PutRoot(ctx, l.signText(draft, l.root1, l.root2), append(l.keys(), fresh)...)
		}, func(r *Registry) bool { return r.from.(*tree).root.Version == 2 }},
	}
	for _, change := range changes {
		t.Run(change.name, func(t *testing.T) {
			t.Parallel()
			base := newLab(t)
			base.publish("foo", "0.9")
			base.publish("foo", "1")
			before := files(t, base.dir)
			steps := 0
			for n := 0; ; n++ {
				done := false
				for _, after := range []bool{false, true} {
					l := *base
					l.t, l.dir = t, filepath.Join(t.TempDir(), "registry")
					l.options.State, l.options.Cache = t.TempDir(), t.TempDir()
					for name, text := range before {
						l.put(name, []byte(text))
					}
					l.mustOpen() // a reader who has seen the registry before
					w := l.writer()
					store := &frail{writable: w.st, left: n, after: after}
					w.st = store
					err := change.do(&l, w)
					if err == nil {
						done = true
						steps = len(store.wrote)
						break
					}
					if !errors.Is(err, errPower) {
						t.Fatalf("write %d: %v", n, err)
					}
					r, err := l.open()
					if err != nil {
						t.Fatalf("after %q: %v", store.wrote, err)
					}
					for _, name := range r.Names() {
						e, _ := r.Entry(name)
						for _, v := range e.Versions {
							if _, err := r.Fetch(ctx, name, v); err != nil {
								t.Fatalf("after %q: %v", store.wrote, err)
							}
						}
					}
					counted := change.want(r)
					if counted && !slices.ContainsFunc(store.wrote, func(s string) bool {
						return strings.HasSuffix(s, "4.timestamp") || s == "2.root"
					}) {
						t.Errorf("counts after %q", store.wrote)
					}
					// And again, to the end.
					err = change.do(&l, l.writer())
					var none *NotFound
					if err != nil && !(counted && errors.As(err, &none)) {
						t.Fatalf("again after %q: %v", store.wrote, err)
					}
					if r, err := l.open(); err != nil || !change.want(r) && change.name != "refresh" {
						t.Errorf("again after %q: %v", store.wrote, err)
					}
				}
				if done {
					break
				}
			}
			if steps < 3 {
				t.Errorf("%d writes, too few to have tried anything", steps)
			}
		})
	}
}

// A registry that was begun and not finished is not taken for one.
func TestCrashInInit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := emptyLab(t)
	for n := range 5 { // root, and again, index, both timestamps
		l.dir = filepath.Join(t.TempDir(), "registry")
		store := &frail{writable: dirStore(l.dir), left: n}
		p := l.policy()
		p.fill()
		err := initTree(ctx, store, l.dir, p, l.options, l.keys())
		if !errors.Is(err, errPower) {
			t.Fatalf("%d: %v", n, err)
		}
		_, err = l.open()
		if err == nil {
			t.Errorf("%d: opened", n)
		}
		if err := Init(ctx, l.dir, p, l.options, l.keys()...); n == 0 != (err == nil) || n > 0 && !strings.Contains(err.Error(), "begun") {
			t.Errorf("%d: again: %v", n, err)
		}
	}
}

// A mirror has the same bytes, and is verified with the same keys.
func TestMirror(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLab(t)
	l.publish("foo", "1")
	l.publish("foo", "2")
	l.publish("bar", "1")
	server := httptest.NewServer(http.FileServer(http.Dir(l.dir)))
	t.Cleanup(server.Close)
	from, err := l.openAt(server.URL)
	l.must(err)
	to := filepath.Join(t.TempDir(), "mirror")
	l.must(Mirror(ctx, from, to, Options{}))
	compare := func(want int) {
		t.Helper()
		original, mirror := files(t, l.dir), files(t, to)
		for name, text := range mirror {
			if original[name] != text {
				t.Errorf("%q is not that of the original", name)
			}
		}
		if len(mirror) != want {
			t.Errorf("the mirror has %d files, want %d: %q", len(mirror), want, slices.Sorted(maps.Keys(mirror)))
		}
	}
	// root, two timestamps, index, two statements, three archives
	compare(9)
	m, err := l.openAt(to)
	l.must(err)
	for _, v := range []string{"1", "2"} {
		if _, err := m.Fetch(ctx, "foo", v); err != nil {
			t.Error(err)
		}
	}
	old := l.mustOpen()

	// It follows, also when the root is replaced.
	w := l.writer()
	draft, err := w.DraftRoot(l.policy())
	l.must(err)
	l.must(w.PutRoot(ctx, l.signText(draft, l.root2, l.root3), l.index, l.stamp))
	l.publish("foo", "3")
	l.must(Mirror(ctx, l.mustOpen(), to, Options{}))
	l.forget()
	m, err = l.openAt(to)
	l.must(err)
	if _, err := m.Fetch(ctx, "foo", "3"); err != nil {
		t.Error(err)
	}
	if err := Mirror(ctx, old, to, Options{}); err == nil || !strings.Contains(err.Error(), "only 4") {
		t.Errorf("led back: %v", err)
	}
	if err := Mirror(ctx, newLab(t).mustOpen(), to, Options{}); err == nil || !strings.Contains(err.Error(), "another registry") {
		t.Errorf("another registry: %v", err)
	}

	// Some packages only.
	to = filepath.Join(t.TempDir(), "some")
	l.must(Mirror(ctx, l.mustOpen(), to, Options{}, "bar"))
	compare(7) // two roots, two timestamps, index, statement, archive
	m, err = l.openAt(to)
	l.must(err)
	if _, err := m.Fetch(ctx, "bar", "1"); err != nil {
		t.Error(err)
	}
	l.forget()
	m, err = l.openAt(to)
	l.must(err)
	if _, err := m.Fetch(ctx, "foo", "1"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), `"foo"`) {
		t.Errorf("what is not there: %v", err)
	}
	var none *NotFound
	if err := Mirror(ctx, m, t.TempDir(), Options{}, "nosuch"); !errors.As(err, &none) {
		t.Errorf("mirrored nothing: %v", err)
	}

	// What does not verify is not copied, and the mirror stays as it was.
	l.publish("bar", "2")
	r := l.mustOpen()
	l.flip(l.archiveName("bar"), -1)
	l.options.Cache = t.TempDir()
	l.must(os.RemoveAll(to))
	refused(t, Mirror(ctx, r, to, Options{}), Mismatch, "bar")
	if _, err := os.Stat(filepath.Join(to, currentName)); err == nil {
		t.Error("a mirror without its archives has a timestamp")
	}
}

// What of a copy is damaged is copied again, whatever its name says.
func TestMirrorIsMended(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLab(t)
	l.publish("foo", "1")
	index := blobName(l.tree().timestamp.Index.SHA256)
	statements := blobName(l.tree().index.find("foo").releases.SHA256)
	for _, kind := range []string{"", "file://"} {
		to := filepath.Join(t.TempDir(), "mirror")
		l.must(os.Mkdir(to, 0o755))
		location := kind + to
		if kind != "" {
			location += "?metadata=skip&no_tmp_dir=true"
		}
		for _, name := range []string{index, statements, l.archiveName("foo")} {
			for what, damage := range map[string]func([]byte) []byte{
				"a bit":      func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
				"its end":    func(b []byte) []byte { return b[:len(b)-1] },
				"all of it":  func(b []byte) []byte { return nil },
				"one behind": func(b []byte) []byte { return append(b, 'x') },
			} {
				l.must(Mirror(ctx, l.mustOpen(), location, Options{}))
				path := filepath.Join(to, filepath.FromSlash(name))
				good, err := os.ReadFile(path)
				l.must(err)
				l.must(os.WriteFile(path, damage(slices.Clone(good)), 0o644))
				l.must(Mirror(ctx, l.mustOpen(), location, Options{}))
				got, err := os.ReadFile(path)
				l.must(err)
				// Object storage is asked for sizes only: package doc, Copying.
				if mended := bytes.Equal(got, good); mended != (kind == "" || what != "a bit") {
					t.Errorf("%s%s without %s: mended %v", kind, name, what, mended)
				}
				l.must(os.WriteFile(path, good, 0o644))
			}
		}
	}
}

// A mirror that is interrupted stays readable.
func TestCrashInMirror(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLab(t)
	l.publish("foo", "1")
	first := l.mustOpen()
	l.publish("foo", "2")
	l.publish("bar", "1")
	second := l.mustOpen()
	for n := 0; ; n++ {
		to := filepath.Join(t.TempDir(), "mirror")
		l.must(Mirror(ctx, first, to, Options{}))
		store := &frail{writable: dirStore(to), left: n}
		err := second.from.(*tree).mirror(ctx, store, to, second.Names())
		if err != nil && !errors.Is(err, errPower) {
			t.Fatal(err)
		}
		l.options.State = t.TempDir()
		l.options.Cache = ""
		r, err2 := l.openAt(to)
		l.must(err2)
		if _, err := r.Fetch(ctx, "foo", ""); err != nil {
			t.Errorf("after %q: %v", store.wrote, err)
		}
		if got, want := len(r.Names()), 1; err != nil && got != want && !slices.Contains(store.wrote, "4.timestamp") {
			t.Errorf("%d packages after %q", got, store.wrote)
		}
		if err == nil {
			if n < 6 {
				t.Errorf("only %d writes", n)
			}
			break
		}
	}
	if err := Mirror(ctx, &Registry{from: &local{}}, t.TempDir(), Options{}); err == nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("mirrored what is not signed: %v", err)
	}
}

// Init and a new root refuse a policy that cannot work.
func TestPolicies(t *testing.T) {
	t.Parallel()
	l := emptyLab(t)
	for _, tt := range []struct {
		name, words string
		edit        func(*Policy)
	}{
		{"no name", "invalid name", func(p *Policy) { p.Name = "" }},
		{"a name that is a path", "invalid name", func(p *Policy) { p.Name = "a/b" }},
		{"no root", `role "root" needs 1`, func(p *Policy) { p.Root = Role{} }},
		{"a threshold that cannot be met", "needs 4 signatures and has 3", func(p *Policy) { p.Root.Threshold = 4 }},
		{"a threshold below zero", "needs -1", func(p *Policy) { p.Index.Threshold = -1 }},
		{"a key twice", "twice", func(p *Policy) { p.Index.Keys = pubs(l.index, l.index) }},
		{"a pattern that is none", "invalid pattern", func(p *Policy) { p.Publishers[0].Names = []string{"[a"} }},
		{"nobody publishes something", "no keys", func(p *Policy) { p.Publishers[0].Keys = nil }},
		{"an hour", "whole days", func(p *Policy) { p.TimestampLifetime = 1 }},
		{"eternity", "a hundred years", func(p *Policy) { p.RootLifetime = 200 * 365 * day }},
	} {
		p := l.policy()
		tt.edit(&p)
		if err := Init(context.Background(), l.dir, p, l.options, l.keys()...); err == nil || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	err := Init(context.Background(), l.dir, l.policy(), l.options, l.root1, l.index, l.stamp)
	if err == nil || !strings.Contains(err.Error(), "1 of the 2 keys needed") {
		t.Errorf("with one key of two: %v", err)
	}
	if _, err := os.Stat(filepath.Join(l.dir, "1.root")); err == nil {
		t.Error("something was written")
	}
	p := l.policy()
	if got := fmt.Sprint(len(p.PublishersOf("pg_x")), len(p.PublishersOf("pgx")), len(p.PublishersOf("foo")), len(p.PublishersOf("bar"))); got != "1 0 1 1" {
		t.Errorf("publishers %s", got)
	}
}
