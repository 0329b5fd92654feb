package registry

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// What is read before or after a signature was checked comes from others: nothing
// panics on it, and what is accepted can be written and read again.

func FuzzSplitSigned(f *testing.F) {
	l := newLab(f)
	l.publish("foo", "1")
	for _, name := range []string{"1.root", "timestamp", l.indexName(), l.statementsName("foo")} {
		f.Add(l.get(name))
	}
	f.Add([]byte(untrusted + "\n\n\n\n{"))
	keys := pubs(l.root1, l.root2, l.index, l.stamp, l.alice)
	f.Fuzz(func(t *testing.T, text []byte) {
		signatures, payload, err := splitSigned(text)
		if err == nil {
			if got := append(bytes.Join(signatures, nil), payload...); !bytes.Equal(got, text) {
				t.Fatalf("taken apart and put together: %q", got)
			}
			if n := len(signers(signatures, payload, keys)); n > len(signatures) {
				t.Fatalf("%d signatures of %d keys", len(signatures), n)
			}
		}
		all, err := splitStatements(text)
		if err == nil {
			var whole []byte
			for _, s := range all {
				whole = append(whole, s.whole...)
			}
			if !bytes.Equal(whole, text) {
				t.Fatalf("taken apart and put together: %q", whole)
			}
		}
	})
}

func FuzzRoot(f *testing.F) {
	l := newLab(f)
	_, payload, err := splitSigned(l.get("1.root"))
	l.must(err)
	f.Add(payload)
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, err := parseRoot(payload)
		if err != nil {
			return
		}
		text, err := r.encode()
		if err != nil {
			t.Fatalf("read and could not be written: %v", err)
		}
		again, err := parseRoot(text)
		if err != nil {
			t.Fatalf("written and could not be read: %v\n%s", err, text)
		}
		again.Expires, r.Expires = time.Time{}, time.Time{}
		// A nil list and an empty one are one.
		if fmt.Sprintf("%+v", again) != fmt.Sprintf("%+v", r) {
			t.Fatalf("written as\n%+v\nread as\n%+v", r, again)
		}
	})
}

func FuzzTimestamp(f *testing.F) {
	l := newLab(f)
	_, payload, err := splitSigned(l.get("timestamp"))
	l.must(err)
	f.Add(payload)
	f.Fuzz(func(t *testing.T, payload []byte) {
		ts, err := parseTimestamp(payload)
		if err != nil {
			return
		}
		text, err := encodeTimestamp(ts)
		if err != nil {
			if y := ts.Expires.Year(); y < 0 || y > 9999 || strings.Contains(err.Error(), "timezone") {
				return // JSON has no such times
			}
			t.Fatal(err)
		}
		again, err := parseTimestamp(text)
		if err != nil || again.Index != ts.Index || again.Version != ts.Version {
			t.Fatalf("%v\n%+v\n%+v", err, ts, again)
		}
	})
}

func FuzzIndex(f *testing.F) {
	l := newLab(f)
	l.publish("foo", "1", "provides = x")
	l.publish("bar", "1")
	f.Add(l.indexPayload())
	f.Add([]byte(`{"type":"index","format":1,"packages":[{"name":"a","latest":"1","versions":["1"]}],"packages":[]}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		x, err := parseIndex(payload)
		if err != nil {
			return
		}
		text, err := x.encode()
		if err != nil {
			return // a time that JSON does not have
		}
		again, err := parseIndex(text)
		if err != nil {
			t.Fatalf("written and could not be read: %v\n%s", err, text)
		}
		for i := range x.Entries {
			a, b := x.Entries[i], again.Entries[i]
			if a.Name != b.Name || a.releases != b.releases || !reflect.DeepEqual(a.Versions, b.Versions) {
				t.Fatalf("written as %+v, read as %+v", a, b)
			}
			if x.find(a.Name) != &x.Entries[i] {
				t.Fatalf("package %q is not found", a.Name)
			}
		}
		r := &Registry{from: &local{index: *x}}
		r.Search("a b")
		r.Providers("x")
	})
}

func FuzzRelease(f *testing.F) {
	statement, err := Describe(archive(f, "foo", "1", "depends = bar (>= 1.1, < 2), baz | qux[x]@server", "conflicts = bla (< 0.8)", "provides = a (= 1), b", "postgres = >= 13", "os_depends = libc"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(statement)
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, err := parseRelease(payload)
		if err != nil {
			return
		}
		line, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Count(line, []byte("\n")) != 1 {
			t.Fatalf("a release takes one line: %q", line)
		}
		again, err := parseRelease(line)
		if err != nil {
			t.Fatalf("written and could not be read: %v\n%s", err, line)
		}
		twice, err := again.encode()
		if err != nil || !bytes.Equal(twice, line) {
			t.Fatalf("%s\n%s", line, twice)
		}
		if again.Depends.String() != r.Depends.String() || again.Name != r.Name || again.SHA256 != r.SHA256 {
			t.Fatalf("%+v\n%+v", r, again)
		}
	})
}
