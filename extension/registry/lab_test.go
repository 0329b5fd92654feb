package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"aead.dev/minisign"

	"rideau/extension/pack"
)

// A lab is a registry in a directory, with its keys, and a user who trusts it.
//
//	root1, root2, root3   two of them make a root
//	index, stamp          sign the index and the timestamp
//	alice                 publishes foo and what begins with pg_
//	bob                   publishes bar
//	mallory               is nobody
type lab struct {
	t   testing.TB
	dir string // the registry's
	now time.Time

	root1, root2, root3, index, stamp, alice, bob, mallory SecretKey

	trust   *Trust
	options Options
}

func newKey(t testing.TB) SecretKey {
	t.Helper()
	_, k, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func pubs(keys ...SecretKey) []PublicKey {
	var list []PublicKey
	for _, k := range keys {
		list = append(list, public(k))
	}
	return list
}

func newLab(t testing.TB) *lab {
	t.Helper()
	l := emptyLab(t)
	if err := Init(context.Background(), l.dir, l.policy(), l.options, l.keys()...); err != nil {
		t.Fatal(err)
	}
	return l
}

// emptyLab is a lab whose registry is yet to be made.
func emptyLab(t testing.TB) *lab {
	t.Helper()
	tmp := t.TempDir()
	l := &lab{t: t, dir: filepath.Join(tmp, "registry"), now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	for _, k := range []*SecretKey{&l.root1, &l.root2, &l.root3, &l.index, &l.stamp, &l.alice, &l.bob, &l.mallory} {
		*k = newKey(t)
	}
	l.options = Options{
		State: filepath.Join(tmp, "state"),
		Cache: filepath.Join(tmp, "cache"),
		Now:   func() time.Time { return l.now },
	}
	var err error
	if l.trust, err = OpenTrust(filepath.Join(tmp, "trust")); err != nil {
		t.Fatal(err)
	}
	if err := l.trust.Add("acme", public(l.root1)); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lab) policy() Policy {
	return Policy{
		Name:      "acme",
		Root:      Role{Keys: pubs(l.root1, l.root2, l.root3), Threshold: 2},
		Index:     Role{Keys: pubs(l.index)},
		Timestamp: Role{Keys: pubs(l.stamp)},
		Publishers: []Delegation{
			{pubs(l.alice), []string{"foo", "pg_*"}},
			{pubs(l.bob), []string{"bar"}},
		},
	}
}

// keys are those of whoever runs the registry, and of both publishers.
func (l *lab) keys() []SecretKey {
	return []SecretKey{l.root1, l.root2, l.index, l.stamp, l.alice, l.bob}
}

func (l *lab) writer() *Writer {
	l.t.Helper()
	return l.writerAt(l.dir)
}

func (l *lab) writerAt(location string) *Writer {
	l.t.Helper()
	w, err := OpenWriter(context.Background(), location, l.trust, l.options)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { w.Close() })
	return w
}

func (l *lab) publish(name, version string, more ...string) {
	l.t.Helper()
	r, err := l.writer().Publish(context.Background(), archive(l.t, name, version, more...), l.keys()...)
	if err != nil {
		l.t.Fatal(err)
	}
	if r.Already {
		l.t.Fatalf("%s %s was there already", name, version)
	}
}

func (l *lab) open() (*Registry, error) { return l.openAt(l.dir) }

func (l *lab) openAt(location string) (*Registry, error) {
	r, err := Open(context.Background(), location, l.trust, l.options)
	if err == nil {
		l.t.Cleanup(func() { r.Close() })
	}
	return r, err
}

func (l *lab) mustOpen() *Registry {
	l.t.Helper()
	r, err := l.open()
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// forget makes the user a new one, who has seen nothing yet.
func (l *lab) forget() {
	l.t.Helper()
	for _, dir := range []string{l.options.State, l.options.Cache} {
		if err := os.RemoveAll(dir); err != nil {
			l.t.Fatal(err)
		}
	}
}

// tree is what somebody sees who verifies nothing.
func (l *lab) tree() *tree {
	l.t.Helper()
	o := l.options
	o.State, o.Cache = l.t.TempDir(), ""
	t, err := openTree(context.Background(), l.dir, l.trust, o)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := t.load(context.Background(), true); err != nil {
		l.t.Fatal(err)
	}
	return t
}

// put writes a file of the registry, as its host could.
func (l *lab) put(name string, data []byte) {
	l.t.Helper()
	if err := dirStore(l.dir).put(context.Background(), name, data); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) get(name string) []byte {
	l.t.Helper()
	data, err := os.ReadFile(filepath.Join(l.dir, filepath.FromSlash(name)))
	if err != nil {
		l.t.Fatal(err)
	}
	return data
}

// signText signs whatever it is.
func (l *lab) signText(text []byte, keys ...SecretKey) []byte {
	l.t.Helper()
	var err error
	for _, k := range keys {
		if text, err = sign(text, k, l.now); err != nil {
			l.t.Fatal(err)
		}
	}
	return text
}

// stampWith replaces the timestamp by one that edit changed, signed by keys, and
// removes the numbered ones behind it.
func (l *lab) stampWith(edit func(*timestamp), keys ...SecretKey) {
	l.t.Helper()
	ts := *l.tree().timestamp
	edit(&ts)
	text, err := encodeTimestamp(&ts)
	if err != nil {
		l.t.Fatal(err)
	}
	l.put(currentName, l.signText(text, keys...))
}

// indexWith replaces the index by one that edit changed, signed by key, under a
// timestamp that is right.
func (l *lab) indexWith(edit func(*index), key SecretKey) {
	l.t.Helper()
	x := *l.tree().index
	x.Entries = slices.Clone(x.Entries)
	edit(&x)
	text, err := x.encode()
	if err != nil {
		l.t.Fatal(err)
	}
	l.indexText(text, x.Version, key)
}

func (l *lab) indexText(text []byte, version int64, key SecretKey) {
	l.t.Helper()
	text = l.signText(text, key)
	r := refOf(text)
	l.put(blobName(r.SHA256), text)
	l.stampWith(func(ts *timestamp) {
		ts.Version++
		ts.Index.Version, ts.Index.ref = version, r
	}, l.stamp)
}

// statementsWith replaces what publishers say of a package; index and timestamp
// are right about it.
func (l *lab) statementsWith(name string, text []byte, versions ...string) {
	l.t.Helper()
	r := refOf(text)
	l.put(blobName(r.SHA256), text)
	l.indexWith(func(x *index) {
		x.Version++
		e := Entry{Name: name, Latest: versions[len(versions)-1], Versions: versions, releases: r}
		for i := range x.Entries {
			if x.Entries[i].Name == name {
				x.Entries[i] = e
				return
			}
		}
		x.Entries = append(x.Entries, e)
		slices.SortFunc(x.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	}, l.index)
}

// archive is a package with a table in it. More are lines of its control file.
func archive(t testing.TB, name, version string, more ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := packageOf(t, name, version, more...).WriteArchive(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packageFiles(name, version string, more ...string) fstest.MapFS {
	control := fmt.Sprintf("name = %s\nversion = %s\n%s\n", name, version, strings.Join(more, "\n"))
	if !strings.Contains(control, "comment") {
		control += fmt.Sprintf("comment = 'the %s extension'\n", name)
	}
	return fstest.MapFS{
		"control":     {Data: []byte(control)},
		"install.sql": {Data: []byte(fmt.Sprintf("CREATE TABLE t (version text DEFAULT '%s');\n", version))},
	}
}

func packageOf(t testing.TB, name, version string, more ...string) *pack.Package {
	t.Helper()
	p, err := pack.ReadDir(packageFiles(name, version, more...))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// refused checks that err says that something was refused, and why.
func refused(t testing.TB, err error, want Reason, words string) {
	t.Helper()
	var r *Refused
	if !errors.As(err, &r) {
		t.Fatalf("error %v, want something to be refused: %s", err, want)
	}
	if r.Reason != want || !strings.Contains(err.Error(), words) {
		t.Fatalf("refused as %q: %v\nwant %q, with %q", r.Reason, err, want, words)
	}
}

// files returns what is in a directory, by name.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for it, err := range dirStore(dir).list(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(it.name)))
		if err != nil {
			t.Fatal(err)
		}
		all[it.name] = string(data)
	}
	return all
}
