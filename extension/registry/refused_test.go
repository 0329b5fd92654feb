package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"
)

// What a host, a stolen key or a mistake can do to a registry, and what a user
// sees of it. Each begins with foo 1, signed by alice, which the user has read.
func TestRefused(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const (
		open = iota // when Open says so
		versions
		fetch
	)
	release := func(l *lab, edit func(*Release), keys ...SecretKey) []byte {
		a := archive(l.t, "foo", "1")
		statement, err := Describe(a)
		if err != nil {
			l.t.Fatal(err)
		}
		r, err := parseRelease(statement)
		if err != nil {
			l.t.Fatal(err)
		}
		edit(r)
		if statement, err = r.encode(); err != nil {
			l.t.Fatal(err)
		}
		return l.signText(statement, keys...)
	}
	same := func(*Release) {}
	tests := []struct {
		name   string
		do     func(l *lab)
		when   int
		reason Reason
		words  string
		anew   bool // the user has seen nothing before
	}{
		// Blobs, changed by the host.
		{"an archive is changed", func(l *lab) { l.flip(l.archiveName("foo"), -1) }, fetch, Mismatch, "SHA-256", false},
		{"an archive is cut off", func(l *lab) { l.cut(l.archiveName("foo"), 10) }, fetch, Mismatch, "it ends after", false},
		{"an archive is empty", func(l *lab) { l.cut(l.archiveName("foo"), 1<<30) }, fetch, Mismatch, "it ends after 0", false},
		{"an archive is longer", func(l *lab) { l.grow(l.archiveName("foo")) }, fetch, Oversized, "longer", false},
		{"statements are changed", func(l *lab) { l.flip(l.statementsName("foo"), -3) }, versions, Mismatch, "SHA-256", false},
		{"statements are longer", func(l *lab) { l.grow(l.statementsName("foo")) }, versions, Oversized, "longer", false},
		{"the index is changed", func(l *lab) { l.flip(l.indexName(), -3) }, open, Mismatch, "SHA-256", false},
		{"the index is longer", func(l *lab) { l.grow(l.indexName()) }, open, Oversized, "longer", false},
		{"the timestamp is changed", func(l *lab) { l.flip(currentName, -20) }, open, BadSignature, idOf(l0.stamp), false},
		{"the timestamp is without end", func(l *lab) { l.put(currentName, bytes.Repeat([]byte("x"), maxTimestamp+1)) }, open, Oversized, "timestamp", false},
		{"the timestamp is not signed", func(l *lab) {
			_, payload, err := splitSigned(l.get(currentName))
			l.must(err)
			l.put(currentName, payload)
		}, open, Malformed, "does not begin with a signature", false},
		{"the root is without end", func(l *lab) { l.put("1.root", bytes.Repeat([]byte("x"), maxRoot+1)) }, open, Oversized, "1.root", true},
		{"the root is changed", func(l *lab) { l.replace("1.root", `"threshold": 2`, `"threshold": 1`) }, open, BadSignature, "0 of the 1", true},
		{"the root has one signature", func(l *lab) {
			_, payload, err := splitSigned(l.get("1.root"))
			l.must(err)
			l.put("1.root", l.signText(payload, l.root1))
		}, open, BadSignature, "1 of the 2", true},
		{"the root has one signature twice", func(l *lab) {
			s, payload, err := splitSigned(l.get("1.root"))
			l.must(err)
			l.put("1.root", append(append(bytes.Clone(s[0]), s[0]...), payload...))
		}, open, BadSignature, "1 of the 2", true},
		{"the root is signed by a key that it does not list", func(l *lab) {
			_, payload, err := splitSigned(l.get("1.root"))
			l.must(err)
			l.put("1.root", l.signText(payload, l.root1, l.mallory))
		}, open, BadSignature, "1 of the 2", true},
		{"another registry is put in its place", func(l *lab) {
			l.must(os.RemoveAll(l.dir))
			l.must(Init(ctx, l.dir, Policy{Name: "acme", Root: Role{Keys: pubs(l.mallory)}, Index: Role{Keys: pubs(l.mallory)}}, l.options, l.mallory))
		}, open, Untrusted, "root 1 by ", true},
		{"another registry claims the trusted key", func(l *lab) {
			l.must(os.RemoveAll(l.dir))
			r := &root{ID: strings.Repeat("ab", 16), Version: 1, Expires: l.now.Add(day), Policy: Policy{
				Name: "acme", Root: Role{Keys: pubs(l.mallory, l.root1)}, Index: Role{Keys: pubs(l.mallory)}}}
			r.Policy.fill()
			text, err := r.encode()
			l.must(err)
			l.put("1.root", l.signText(text, l.mallory))
		}, open, Untrusted, "root 1 by ", true},
		{"another registry that a trusted key signed and is not listed in", func(l *lab) {
			l.must(os.RemoveAll(l.dir))
			r := &root{ID: strings.Repeat("ab", 16), Version: 1, Expires: l.now.Add(day), Policy: Policy{
				Name: "acme", Root: Role{Keys: pubs(l.mallory)}, Index: Role{Keys: pubs(l.mallory)}}}
			r.Policy.fill()
			text, err := r.encode()
			l.must(err)
			l.put("1.root", l.signText(text, l.mallory, l.root1))
		}, open, Untrusted, "root 1 by ", true},

		// Keys that may sign something else.
		{"the timestamp by the key of the index", func(l *lab) { l.stampWith(func(ts *timestamp) { ts.Version++ }, l.index) }, open, BadSignature, "0 of the 1", false},
		{"the timestamp by nobody's key", func(l *lab) { l.stampWith(func(ts *timestamp) { ts.Version++ }, l.mallory) }, open, BadSignature, "0 of the 1", false},
		{"the index by the key of the timestamp", func(l *lab) { l.indexWith(func(x *index) { x.Version++ }, l.stamp) }, open, BadSignature, "0 of the 1", false},
		{"the index by a publisher", func(l *lab) { l.indexWith(func(x *index) { x.Version++ }, l.alice) }, open, BadSignature, "0 of the 1", false},
		{"an index as a timestamp", func(l *lab) {
			_, payload, err := splitSigned(l.get(l.indexName()))
			l.must(err)
			l.put(currentName, l.signText(payload, l.stamp))
		}, open, Malformed, `type "index"`, false},
		{"a package by another publisher", func(l *lab) {
			l.statementsWith("foo", release(l, same, l.bob), "1")
		}, versions, NotDelegated, idOf(l0.bob), false},
		{"a package by nobody", func(l *lab) {
			l.statementsWith("foo", release(l, same, l.mallory), "1")
		}, versions, BadSignature, idOf(l0.mallory), false},
		{"a package by the key of the index", func(l *lab) {
			l.statementsWith("foo", release(l, same, l.index), "1")
		}, versions, BadSignature, "those who may", false},
		{"a package that nobody may sign", func(l *lab) {
			l.statementsWith("foo", release(l, func(r *Release) { r.Name = "baz" }, l.alice), "1")
		}, versions, Malformed, `package "baz" stands where "foo" belongs`, false},
		{"one of two versions by another", func(l *lab) {
			l.statementsWith("foo", append(release(l, same, l.alice), release(l, func(r *Release) { r.Version = "2" }, l.bob)...), "1", "2")
		}, versions, NotDelegated, "foo", false},

		// Freezing and rolling back.
		{"the root has expired", func(l *lab) { l.now = l.now.Add(730 * day) }, open, Expired, "1.root", false},
		{"the timestamp has expired", func(l *lab) { l.now = l.now.Add(28 * day) }, open, Expired, "timestamp", false},
		{"the index has expired", func(l *lab) {
			l.indexWith(func(x *index) { x.Version++; x.Expires = l.now }, l.index)
		}, open, Expired, "blobs/", false},
		{"an old timestamp", func(l *lab) {
			old := l.get(currentName)
			l.publish("foo", "2")
			l.mustOpen()
			l.put(currentName, old)
			l.must(os.Remove(filepath.Join(l.dir, "3.timestamp")))
		}, open, RolledBack, "it is timestamp 2, and 3 was seen", false},
		{"an old timestamp of the same index", func(l *lab) {
			old := l.get(currentName)
			l.must(l.writer().Refresh(ctx, l.stamp))
			l.mustOpen()
			l.put(currentName, old)
			l.must(os.Remove(filepath.Join(l.dir, "3.timestamp")))
		}, open, RolledBack, "it is timestamp 2, and 3 was seen", false},
		{"an old index under a new timestamp", func(l *lab) {
			old := *l.tree().timestamp
			l.publish("foo", "2")
			l.mustOpen()
			l.stampWith(func(ts *timestamp) { ts.Version++; ts.Index = old.Index }, l.stamp)
		}, open, RolledBack, "names index 2, and 3", false},
		{"another timestamp of the same number", func(l *lab) {
			l.stampWith(func(ts *timestamp) { ts.Expires = ts.Expires.Add(time.Hour) }, l.stamp)
		}, open, RolledBack, "another timestamp 2", false},
		{"a numbered timestamp of another number", func(l *lab) {
			l.put("3.timestamp", l.get(currentName))
		}, open, RolledBack, "it is timestamp 2", false},
		{"an index that is not the one named", func(l *lab) {
			l.stampWith(func(ts *timestamp) { ts.Version++; ts.Index.Version = 7 }, l.stamp)
		}, open, RolledBack, "names 7", false},
		{"a root is hidden", func(l *lab) {
			l.stampWith(func(ts *timestamp) { ts.Version++; ts.Root = 2 }, l.stamp)
		}, open, RolledBack, "under root 2", false},
		{"an old root under another number", func(l *lab) { l.put("2.root", l.get("1.root")) }, open, RolledBack, "it is root 1", false},
		{"a timestamp of another registry", func(l *lab) {
			l.stampWith(func(ts *timestamp) { ts.Version++; ts.ID = strings.Repeat("ab", 16) }, l.stamp)
		}, open, BadSignature, "another registry", false},
		{"an index of another registry", func(l *lab) {
			l.indexWith(func(x *index) { x.ID = strings.Repeat("ab", 16) }, l.index)
		}, open, BadSignature, "another registry", false},

		// Signed nonsense, by a publisher or an index's key that was stolen.
		{"a name that leads elsewhere", func(l *lab) {
			l.indexWith(func(x *index) { x.Entries[0].Name = "../../etc/passwd" }, l.index)
		}, open, Malformed, "../../etc/passwd", false},
		{"a version that leads elsewhere", func(l *lab) {
			l.indexWith(func(x *index) { x.Entries[0].Versions = []string{"../1"}; x.Entries[0].Latest = "../1" }, l.index)
		}, open, Malformed, "../1", false},
		{"a digest that leads elsewhere", func(l *lab) {
			text := strings.Replace(string(l.indexPayload()), `"sha256":"`, `"sha256":"../..`, 1)
			l.indexText([]byte(text), 2, l.index)
		}, open, Malformed, "not a SHA-256", false},
		{"a size below zero", func(l *lab) {
			l.indexWith(func(x *index) { x.Entries[0].releases.Size = -1 }, l.index)
		}, open, Malformed, "a size of -1", false},
		{"a size without end", func(l *lab) {
			l.indexWith(func(x *index) { x.Entries[0].releases.Size = 1 << 50 }, l.index)
		}, open, Malformed, "the most is", false},
		{"an index of a size without end", func(l *lab) {
			l.replace(currentName, `"size":`, `"size":1000000000`)
			_, payload, err := splitSigned(l.get(currentName))
			l.must(err)
			l.put(currentName, l.signText(payload, l.stamp))
			l.must(os.Remove(filepath.Join(l.dir, "2.timestamp")))
		}, open, Malformed, "the most is", true},
		{"a package twice", func(l *lab) {
			l.indexWith(func(x *index) { x.Entries = append(x.Entries, x.Entries[0]) }, l.index)
		}, open, Malformed, "does not belong after", false},
		{"a version twice", func(l *lab) {
			l.indexWith(func(x *index) { x.Entries[0].Versions = []string{"1", "1"} }, l.index)
		}, open, Malformed, "twice", false},
		{"a version that nobody published", func(l *lab) {
			l.indexWith(func(x *index) { x.Entries[0].Versions = []string{"1", "2"} }, l.index)
		}, versions, Malformed, "the index 2", false},
		{"a version that is not listed", func(l *lab) {
			l.indexWith(func(x *index) { x.Entries[0].Versions = []string{"9"}; x.Entries[0].Latest = "9" }, l.index)
		}, versions, Malformed, "not what the index lists", false},
		{"a later format", func(l *lab) {
			l.indexText([]byte(strings.Replace(string(l.indexPayload()), `"format":1`, `"format":2`, 1)), 2, l.index)
		}, open, Malformed, "format 2", false},
		{"an index that ends too early", func(l *lab) {
			p := l.indexPayload()
			l.indexText(p[:len(p)-3], 2, l.index)
		}, open, Malformed, "too early", false},
		{"a control file that says something else", func(l *lab) {
			l.statementsWith("foo", release(l, func(r *Release) { r.Depends = nil; r.ExtVersion = "7" }, l.alice), "1")
		}, fetch, Malformed, `"7" was signed`, false},
		{"an archive that is none", func(l *lab) {
			rubbish := []byte("rubbish")
			l.put(blobName(refOf(rubbish).SHA256), rubbish)
			l.statementsWith("foo", release(l, func(r *Release) {
				r.SHA256, r.Size = refOf(rubbish).SHA256.String(), int64(len(rubbish))
			}, l.alice), "1")
		}, fetch, Malformed, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := labOf(t, l0)
			l.publish("foo", "1")
			if _, err := l.mustOpen().Fetch(ctx, "foo", "1"); err != nil {
				t.Fatal(err)
			}
			tt.do(l)
			if tt.anew {
				l.forget() // who has seen root 1 does not read it again
			}
			l.options.Cache = t.TempDir() // what the user has already is not on trial
			r, err := l.open()
			if tt.when > open {
				if err != nil {
					t.Fatal(err)
				}
				var list []Release
				list, err = r.Versions(ctx, "foo")
				if tt.when > versions {
					if err != nil || len(list) == 0 {
						t.Fatal(err)
					}
					_, err = r.Fetch(ctx, "foo", "1")
				}
			}
			refused(t, err, tt.reason, tt.words)
			if !strings.Contains(err.Error(), l.dir) {
				t.Errorf("it is not said where: %v", err)
			}
		})
	}
}

// l0 has keys that the table can name.
var l0 = func() *lab {
	l := &lab{}
	for _, k := range []*SecretKey{&l.root1, &l.root2, &l.root3, &l.index, &l.stamp, &l.alice, &l.bob, &l.mallory} {
		_, key, err := minisign.GenerateKey(nil)
		if err != nil {
			panic(err)
		}
		*k = key
	}
	return l
}()

func idOf(k SecretKey) string { return KeyID(public(k)) }

// labOf is a lab with the keys of another.
func labOf(t testing.TB, keys *lab) *lab {
	l := emptyLab(t)
	l.root1, l.root2, l.root3, l.index, l.stamp, l.alice, l.bob, l.mallory = keys.root1, keys.root2, keys.root3, keys.index, keys.stamp, keys.alice, keys.bob, keys.mallory
	l.must(l.trust.Remove("acme"))
	l.must(l.trust.Add("acme", public(l.root1)))
	l.must(Init(context.Background(), l.dir, l.policy(), l.options, l.keys()...))
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) indexName() string { return blobName(l.tree().timestamp.Index.SHA256) }

func (l *lab) indexPayload() []byte {
	_, payload, err := splitSigned(l.get(l.indexName()))
	l.must(err)
	return payload
}

func (l *lab) statementsName(name string) string {
	return blobName(l.tree().index.find(name).releases.SHA256)
}

func (l *lab) archiveName(name string) string {
	all, err := l.tree().releases(context.Background(), name)
	l.must(err)
	var d digest
	l.must(d.UnmarshalText([]byte(all[0].SHA256)))
	return blobName(d)
}

// flip changes a bit, counted from the end.
func (l *lab) flip(name string, at int) {
	data := l.get(name)
	data[len(data)+at] ^= 1
	l.put(name, data)
}

func (l *lab) cut(name string, n int) {
	data := l.get(name)
	l.put(name, data[:max(0, len(data)-n)])
}

func (l *lab) grow(name string) { l.put(name, append(l.get(name), 'x')) }

func (l *lab) replace(name, old, new string) {
	text := string(l.get(name))
	if !strings.Contains(text, old) {
		l.t.Fatalf("%s has no %q", name, old)
	}
	l.put(name, []byte(strings.Replace(text, old, new, 1)))
}

// No key comes into the trust store but by Add.
func TestNoTrustOnFirstUse(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.must(l.trust.Remove("acme"))
	_, err := l.open()
	refused(t, err, Untrusted, "no key is trusted yet")
	if _, err := os.Stat(l.options.State); err == nil {
		t.Error("something was remembered of a registry that is not trusted")
	}
	l.must(l.trust.Add("other", public(l.mallory)))
	_, err = l.open()
	refused(t, err, Untrusted, KeyID(public(l.root2)))
	l.must(l.trust.Add("acme", public(l.root2)))
	l.mustOpen()
	// Trust that is taken back ends, also for who has been there.
	l.must(l.trust.Remove("acme"))
	_, err = l.open()
	refused(t, err, Untrusted, "none of the trusted keys")

	if _, err := Open(context.Background(), l.dir, nil, l.options); err == nil {
		t.Error("opened without keys")
	}
	if _, err := Open(context.Background(), l.dir, l.trust, Options{}); err == nil {
		t.Error("opened without a place to remember in")
	}
	l.must(os.WriteFile(filepath.Join(l.trust.dir, "rubbish.pub"), []byte("rubbish"), 0o600))
	if _, err := l.open(); err == nil || !strings.Contains(err.Error(), "rubbish.pub") {
		t.Errorf("a trusted key that is none: %v", err)
	}
}

// A registry that was made anew is not the one that was seen, until the user says
// so.
func TestForget(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLab(t)
	l.mustOpen()
	l.must(os.RemoveAll(l.dir))
	l.must(Init(ctx, l.dir, l.policy(), l.options, l.keys()...))
	_, err := l.open()
	refused(t, err, BadSignature, "another registry")
	remembered := func(location string, want bool) {
		t.Helper()
		if got, err := Remembered(ctx, location, l.options); got != want || err != nil {
			t.Errorf("remembered %s: %v, %v", location, got, err)
		}
	}
	remembered(l.dir, true)
	remembered(l.dir+"/", true)
	remembered(t.TempDir(), false)
	l.must(Forget(ctx, l.dir, l.options))
	remembered(l.dir, false)
	l.mustOpen()
	if err := Forget(ctx, t.TempDir(), l.options); err == nil || !strings.Contains(err.Error(), "nothing is remembered") {
		t.Errorf("forgot what was not known: %v", err)
	}
}

// Of two clients at once, the one that saw the older state does not undo what the
// other remembers.
func TestMemoryOnlyGrows(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLab(t)
	l.publish("foo", "1")
	l.mustOpen()
	m := memories{l.options.State}
	newer, err := m.recall(l.dir)
	l.must(err)
	if newer.Timestamp != 2 || newer.Index != 2 {
		t.Fatalf("remembered %+v", newer)
	}
	older := newer
	older.Timestamp, older.Index, older.SHA256 = 1, 1, digest{1}
	l.must(m.keep(ctx, older, 1))
	if got, err := m.recall(l.dir); err != nil || got.Timestamp != 2 || got.Index != 2 || got.SHA256 != newer.SHA256 {
		t.Errorf("remembered %+v, %v", got, err)
	}
}

// A memory that is damaged is no fresh start.
func TestMemoryIsNotLostInSilence(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.mustOpen()
	list, err := filepath.Glob(filepath.Join(l.options.State, "*.json"))
	if err != nil || len(list) != 1 {
		t.Fatalf("state %v, %v", list, err)
	}
	l.must(os.WriteFile(list[0], []byte("{"), 0o600))
	if _, err := l.open(); err == nil || !strings.Contains(err.Error(), "remembered") {
		t.Errorf("opened with a damaged memory: %v", err)
	}
}

// Roots follow each other by the signatures of both.
func TestRootRotation(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	rotate := func(l *lab, p Policy, signers []SecretKey, keys ...SecretKey) error {
		w := l.writer()
		draft, err := w.DraftRoot(p)
		l.must(err)
		for _, k := range signers {
			draft, err = Sign(draft, k)
			l.must(err)
		}
		return w.PutRoot(ctx, draft, keys...)
	}
	t.Run("right", func(t *testing.T) {
		l := newLab(t)
		l.publish("foo", "1")
		r := l.mustOpen()
		new1, new2, newIndex, newStamp := newKey(t), newKey(t), newKey(t), newKey(t)
		p := l.policy()
		p.Root = Role{Keys: pubs(new1, new2, l.root3), Threshold: 2}
		p.Index, p.Timestamp = Role{Keys: pubs(newIndex)}, Role{Keys: pubs(newStamp)}
		l.must(rotate(l, p, []SecretKey{l.root1, l.root2, new1, new2}, l.index, l.stamp, newIndex, newStamp))
		// Who was there, who comes anew and trusts the first key, and who is told to
		// trust one that only the second root has.
		for _, who := range []string{"was there", "is new", "trusts a new key"} {
			if who != "was there" {
				l.forget()
			}
			if who == "trusts a new key" {
				l.must(l.trust.Remove("acme"))
				l.must(l.trust.Add("acme", public(new1)))
			}
			r := l.mustOpen()
			if tr := r.from.(*tree); tr.root.Version != 2 || tr.timestamp.Root != 2 {
				t.Errorf("%s: root %d, timestamp under root %d", who, tr.root.Version, tr.timestamp.Root)
			}
			if _, err := r.Fetch(ctx, "foo", "1"); err != nil {
				t.Errorf("%s: %v", who, err)
			}
		}
		if _, err := r.Fetch(ctx, "foo", "1"); err != nil {
			t.Errorf("opened before: %v", err)
		}
		w := l.writer()
		if _, err := w.Publish(ctx, archive(t, "foo", "2"), l.alice, l.index, l.stamp); err == nil {
			t.Error("published with keys of before")
		}
		if _, err := w.Publish(ctx, archive(t, "foo", "2"), l.alice, newIndex, newStamp); err != nil {
			t.Error(err)
		}
		// The keys of root 1 make no root 3.
		err := rotate(l, l.policy(), []SecretKey{l.root1, l.root2, l.root3}, newIndex, newStamp)
		refused(t, err, BadSignature, "1 of the 2 signatures that root 2")
		// A forged one is refused by readers, who stay with what they have seen.
		forged := &root{ID: w.t.root.ID, Version: 3, Expires: l.now.Add(day), Policy: l.policy()}
		forged.Policy.fill()
		text, err := forged.encode()
		l.must(err)
		l.put("3.root", l.signText(text, l.root1, l.root2))
		_, err = l.open()
		refused(t, err, BadSignature, "root 2 asks for")
		l.must(os.Remove(filepath.Join(l.dir, "3.root")))
		l.must(os.Remove(filepath.Join(l.dir, "2.root")))
		l.must(os.Remove(filepath.Join(l.dir, "1.root")))
		l.mustOpen() // it remembers root 2
	})
	t.Run("signed by too few", func(t *testing.T) {
		l := newLab(t)
		p := l.policy()
		p.Root = Role{Keys: pubs(l.root1, l.mallory), Threshold: 1}
		refused(t, rotate(l, p, []SecretKey{l.root1, l.mallory}, l.index, l.stamp), BadSignature, "1 of the 2 signatures that root 1")
		p.Root = Role{Keys: pubs(l.mallory)}
		refused(t, rotate(l, p, []SecretKey{l.root1, l.root2}, l.index, l.stamp), BadSignature, "0 of the 1 signatures that it asks for itself")
		if _, err := os.Stat(filepath.Join(l.dir, "2.root")); !errors.Is(err, fs.ErrNotExist) {
			t.Error("a root was written that does not count")
		}
		l.mustOpen()
	})
	t.Run("with a stolen key removed", func(t *testing.T) {
		// The index's key was stolen and is not there to sign once more.
		l := newLab(t)
		l.publish("foo", "1")
		fresh := newKey(t)
		p := l.policy()
		p.Index = Role{Keys: pubs(fresh)}
		if err := rotate(l, p, []SecretKey{l.root1, l.root2}, l.stamp); err == nil || !strings.Contains(err.Error(), "not enough") {
			t.Errorf("without the new key of the index: %v", err)
		}
		l.must(rotate(l, p, []SecretKey{l.root1, l.root2}, fresh, l.stamp))
		if _, err := l.mustOpen().Fetch(ctx, "foo", "1"); err != nil {
			t.Error(err)
		}
		l.indexWith(func(x *index) { x.Version += 2 }, l.index)
		_, err := l.open()
		refused(t, err, BadSignature, KeyID(public(l.index)))
	})
	t.Run("and the one who did it got no further", func(t *testing.T) {
		l := newLab(t)
		l.publish("foo", "1")
		fresh := newKey(t)
		p := l.policy()
		p.Index, p.Timestamp = Role{Keys: pubs(fresh)}, Role{Keys: pubs(fresh)}
		draft, err := l.writer().DraftRoot(p)
		l.must(err)
		l.put("2.root", l.signText(draft, l.root1, l.root2))
		_, err = l.open()
		refused(t, err, BadSignature, "timestamp")
		l.must(l.writer().Refresh(ctx, fresh))
		if _, err := l.mustOpen().Fetch(ctx, "foo", "1"); err != nil {
			t.Error(err)
		}
	})
	t.Run("with a publisher removed", func(t *testing.T) {
		l := newLab(t)
		l.publish("foo", "1")
		l.publish("bar", "1")
		p := l.policy()
		p.Publishers = p.Publishers[1:]
		l.must(rotate(l, p, []SecretKey{l.root1, l.root2}, l.index, l.stamp))
		r := l.mustOpen()
		_, err := r.Versions(ctx, "foo")
		refused(t, err, BadSignature, "those who may are nobody")
		if _, err := r.Fetch(ctx, "bar", "1"); err != nil {
			t.Error(err)
		}
		l.must(l.writer().Withdraw(ctx, "foo", "1", l.index, l.stamp))
		if names := l.mustOpen().Names(); fmt.Sprint(names) != "[bar]" {
			t.Errorf("packages %v", names)
		}
	})
	t.Run("after it expired", func(t *testing.T) {
		l := newLab(t)
		l.publish("foo", "1")
		l.now = l.now.Add(800 * day)
		if _, err := l.writer().Publish(ctx, archive(t, "foo", "2"), l.keys()...); err == nil {
			t.Error("published under a root that has expired")
		}
		l.must(rotate(l, l.policy(), []SecretKey{l.root1, l.root2}, l.index, l.stamp))
		if _, err := l.mustOpen().Fetch(ctx, "foo", "1"); err != nil {
			t.Error(err)
		}
	})
}

// Two labels on one key are one key.
func TestOneKeyIsNotTwo(t *testing.T) {
	t.Parallel()
	l := emptyLab(t)
	raw, err := base64.StdEncoding.DecodeString(encodeKey(public(l.root1)))
	l.must(err)
	raw[4] ^= 3 // in the id
	twin, err := ParsePublicKey(base64.StdEncoding.EncodeToString(raw))
	l.must(err)
	if KeyID(twin) == KeyID(public(l.root1)) || !sameKey(twin, public(l.root1)) {
		t.Fatal("the twin is none")
	}
	p := l.policy()
	p.Root = Role{Keys: []PublicKey{public(l.root1), twin}, Threshold: 2}
	if err := Init(context.Background(), l.dir, p, l.options, l.keys()...); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("made with one key under two names: %v", err)
	}
	// The same signature under both ids.
	payload := []byte("{}\n")
	signatures, _, err := splitSigned(l.signText(payload, l.root1))
	l.must(err)
	lines := strings.SplitAfter(string(signatures[0]), "\n")
	sig, err := base64.StdEncoding.DecodeString(strings.TrimSpace(lines[1]))
	l.must(err)
	sig[4] ^= 3
	lines[1] = base64.StdEncoding.EncodeToString(sig) + "\n"
	both := append(signatures, []byte(strings.Join(lines, "")))
	for _, keys := range [][]PublicKey{{public(l.root1)}, {twin}, {public(l.root1), twin}, {twin, twin}} {
		if got := signers(both, payload, keys); len(got) != 1 {
			t.Errorf("%d signers of one key", len(got))
		}
	}
}
