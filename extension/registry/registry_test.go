package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// TestRoundTrip publishes and reads in every kind of place.
func TestRoundTrip(t *testing.T) {
	setS3Environment(t)

	places := []struct {
		name string
		make func(*testing.T, *lab) (writeTo, readFrom string)
	}{
		{"directory", func(_ *testing.T, l *lab) (string, string) { return l.dir, l.dir }},
		{"HTTP", func(t *testing.T, l *lab) (string, string) {
			server := httptest.NewServer(http.StripPrefix("/ext", http.FileServer(http.Dir(l.dir))))
			t.Cleanup(server.Close)
			return l.dir, server.URL + "/ext/"
		}},
		{"S3", func(t *testing.T, _ *lab) (string, string) {
			location := fakeS3(t)
			return location, location
		}},
		{"gocloud's files", func(t *testing.T, l *lab) (string, string) {
			if err := os.MkdirAll(l.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			location := "file://" + filepath.ToSlash(l.dir) + "?no_tmp_dir=true&metadata=skip"
			return location, location
		}},
	}
	for _, place := range places {
		t.Run(place.name, func(t *testing.T) {
			ctx := context.Background()
			l := emptyLab(t)
			writeTo, readFrom := place.make(t, l)
			if err := Init(ctx, writeTo, l.policy(), l.options, l.keys()...); err != nil {
				t.Fatal(err)
			}
			if err := Init(ctx, writeTo, l.policy(), l.options, l.keys()...); err == nil {
				t.Error("a registry was made where there is one")
			}
			for _, p := range []struct{ name, version, more string }{
				{"foo", "1.10", "depends = bar (>= 1.1), baz\nconflicts = bla (< 0.8)"},
				{"foo", "1.9", "depends = bar"},
				{"foo", "1.10-rc1", "provides = quux (= 2)"},
				{"bar", "1.1", "comment = 'holds foo up'"},
			} {
				w := l.writerAt(writeTo)
				a := archive(t, p.name, p.version, p.more)
				for range 2 { // the second time is no change
					r, err := w.Publish(ctx, a, l.keys()...)
					if err != nil {
						t.Fatal(err)
					}
					if r.Name != p.name || r.Version != p.version || r.Size != int64(len(a)) {
						t.Errorf("published %+v", r)
					}
				}
			}

			r, err := l.openAt(readFrom)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.from.(*tree).timestamp.Version; got != 5 {
				t.Errorf("timestamp %d after four changes, want 5", got)
			}
			if !r.Signed() || r.Name() != "acme" || fmt.Sprint(r.Names()) != "[bar foo]" {
				t.Errorf("signed %t, name %q, packages %v", r.Signed(), r.Name(), r.Names())
			}
			if e, ok := r.Entry("foo"); !ok || e.Latest != "1.10" || fmt.Sprint(e.Versions) != "[1.9 1.10-rc1 1.10]" {
				t.Errorf("entry %+v", e)
			}
			if got := r.Providers("quux"); fmt.Sprint(got) != "[foo]" {
				t.Errorf("providers %v", got)
			}
			var found []string
			for _, m := range r.Search("foo") {
				found = append(found, m.Name)
			}
			if fmt.Sprint(found) != "[foo bar]" { // bar has it in its comment
				t.Errorf("found %v", found)
			}
			versions, err := r.Versions(ctx, "foo")
			if err != nil {
				t.Fatal(err)
			}
			last := versions[len(versions)-1]
			if last.Version != "1.10" || last.Depends.String() != "bar (>= 1.1), baz" || last.Conflicts.String() != "bla (< 0.8)" || !last.Superuser || last.Registry != "acme" ||
				fmt.Sprint(last.Signers) != fmt.Sprint([]string{KeyID(public(l.alice))}) {
				t.Errorf("release %+v", last)
			}
			if o := Order(versions); o.Compare("1.9", "1.10-rc1") >= 0 || o.Compare("1.10-rc1", "1.10") >= 0 {
				t.Error("wrong order of versions")
			}
			want := archive(t, "foo", "1.10", "depends = bar (>= 1.1), baz\nconflicts = bla (< 0.8)")
			for _, version := range []string{"1.10", ""} {
				p, err := r.Fetch(ctx, "foo", version)
				if err != nil {
					t.Fatal(err)
				}
				if p.Control.Name != "foo" || p.Control.Version != "1.10" || len(p.Scripts) != 1 || p.SHA256 != refOf(want).SHA256.String() {
					t.Errorf("fetched %+v", p)
				}
			}
			if got, err := r.Archive(ctx, "foo", "1.10"); err != nil || !bytes.Equal(got, want) {
				t.Errorf("archive of %d bytes, %v", len(got), err)
			}
			var none *NotFound
			if _, err := r.Fetch(ctx, "foo", "2"); !errors.As(err, &none) || none.Version != "2" {
				t.Errorf("a version that is not there: %v", err)
			}
			if _, err := r.Versions(ctx, "nosuch"); !errors.As(err, &none) || none.Version != "" {
				t.Errorf("a package that is not there: %v", err)
			}
			checkMode(t, l.options.State, 0o600)
		})
	}
}

// setS3Environment gives the AWS SDK its credentials, which come from the
// environment; a test that does so cannot run in parallel.
func setS3Environment(t *testing.T) {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

// fakeS3 serves S3 on loopback and returns the URL of a prefix in a bucket.
func fakeS3(t *testing.T) string {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(gofakes3.New(backend).Server())
	t.Cleanup(server.Close)
	return "s3://bucket/some/prefix?region=us-east-1&use_path_style=true&endpoint=" + server.URL
}

func checkMode(t *testing.T, dir string, want os.FileMode) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range list {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		n++
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", e.Name(), info.Mode().Perm(), want)
		}
	}
	if n == 0 {
		t.Errorf("nothing is in %s", dir)
	}
}

// Every signature of a registry can be verified with head, tail and minisign: the
// four lines, and all that follows.
func TestSignaturesAreMinisigns(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	text := string(l.get("timestamp"))
	lines := strings.SplitAfterN(text, "\n", 5)
	if !strings.HasPrefix(lines[4], `{"type":"timestamp"`) {
		t.Fatalf("line 5 begins with %.40q", lines[4])
	}
	got := signers([][]byte{[]byte(strings.Join(lines[:4], ""))}, []byte(lines[4]), pubs(l.index, l.stamp))
	if len(got) != 1 || !sameKey(got[0], public(l.stamp)) {
		t.Errorf("signed by %v", got)
	}
	for i := range len(text) {
		// One bit anywhere but in the untrusted comment, and it is worth nothing. Of
		// the last digit of base64 not all bits count.
		if text[i] != '\n' && i+1 < len(text) && text[i+1] == '=' {
			continue
		}
		bad := []byte(text)
		bad[i] ^= 1
		s, payload, err := splitSigned(bad)
		if err != nil || i < strings.Index(text, "\n") {
			continue
		}
		if len(signers(s, payload, pubs(l.stamp))) > 0 {
			t.Fatalf("byte %d (%q) can be changed", i, text[i])
		}
	}
}

// The words of a search must all be there; names count more than comments.
func TestSearchRanks(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for name, comment := range map[string]string{
		"pg_cron":  "runs jobs",
		"pg_jobs":  "a queue of work, with cron syntax",
		"pg_acron": "something else",
		"pg_rest":  "macronutrients",
	} {
		l.publish(name, "1", "comment = '"+comment+"'")
	}
	l.publish("foo", "1", "provides = cron")
	r := l.mustOpen()
	for _, tt := range []struct{ query, want string }{
		{"pg_cron", "pg_cron"},
		{"cron", "foo pg_acron pg_cron pg_jobs pg_rest"},
		{"CRON syntax", "pg_jobs"},
		{"jobs", "pg_jobs pg_cron"},
		{"", "foo pg_acron pg_cron pg_jobs pg_rest"},
		{"nothing", ""},
	} {
		var names []string
		for _, m := range r.Search(tt.query) {
			names = append(names, m.Name)
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("search %q found %q, want %q", tt.query, got, tt.want)
		}
	}
}

// A name that two registries have must be qualified.
func TestSetNamesMustBeClear(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	one, two := newLab(t), newLab(t)
	one.publish("foo", "1")
	one.publish("bar", "1")
	two.publish("foo", "2")
	two.options.Name = "other"
	r1, r2 := one.mustOpen(), two.mustOpen()
	set := Set{r1, r2}

	if r, name, err := set.Find(ctx, "bar"); err != nil || r != r1 || name != "bar" {
		t.Errorf("bar: %v, %q, %v", r, name, err)
	}
	var both *Ambiguous
	if _, _, err := set.Find(ctx, "foo"); !errors.As(err, &both) || fmt.Sprint(both.Registries) != "[acme other]" || !strings.Contains(err.Error(), `"acme/foo" or "other/foo"`) {
		t.Errorf("foo: %v", err)
	}
	if r, name, err := set.Find(ctx, "other/foo"); err != nil || r != r2 || name != "foo" {
		t.Errorf("other/foo: %v, %q, %v", r, name, err)
	}
	var none *NotFound
	if _, _, err := set.Find(ctx, "other/bar"); !errors.As(err, &none) {
		t.Errorf("other/bar: %v", err)
	}
	if _, _, err := set.Find(ctx, "baz"); !errors.As(err, &none) || fmt.Sprint(none.Where) != "[acme other]" {
		t.Errorf("baz: %v", err)
	}
	if _, _, err := set.Find(ctx, "third/foo"); err == nil {
		t.Error("a registry that is not there has foo")
	}
	if _, _, err := (Set{r1, r1}).Find(ctx, "acme/foo"); err == nil {
		t.Error("two registries of one name are told apart")
	}
	if got := len(set.Search("foo")); got != 2 {
		t.Errorf("found %d, want one from each", got)
	}
}

// Two publishers at once: both are in the index, whoever was first. In a
// directory and in object storage.
func TestPublishersAtOnce(t *testing.T) {
	setS3Environment(t)
	for _, place := range []string{"directory", "S3"} {
		t.Run(place, func(t *testing.T) {
			ctx := context.Background()
			l := emptyLab(t)
			location := l.dir
			if place == "S3" {
				location = fakeS3(t)
			}
			if err := Init(ctx, location, l.policy(), l.options, l.keys()...); err != nil {
				t.Fatal(err)
			}
			const publishers, each = 4, 3
			var all sync.WaitGroup
			errs := make(chan error, publishers*each)
			for i := range publishers {
				name := fmt.Sprintf("pg_%d", i/2) // two of them share a package
				var archives [][]byte
				for v := range each {
					archives = append(archives, archive(t, name, fmt.Sprintf("%d.%d", i, v)))
				}
				all.Go(func() {
					o := l.options
					o.State = filepath.Join(o.State, fmt.Sprint(i))
					w, err := OpenWriter(ctx, location, l.trust, o)
					if err != nil {
						errs <- err
						return
					}
					defer w.Close()
					for _, a := range archives {
						if _, err := w.Publish(ctx, a, l.keys()...); err != nil {
							errs <- err
						}
					}
				})
			}
			all.Wait()
			close(errs)
			for err := range errs {
				t.Error(err)
			}
			r, err := l.openAt(location)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, name := range r.Names() {
				e, _ := r.Entry(name)
				n += len(e.Versions)
				for _, v := range e.Versions {
					if _, err := r.Fetch(ctx, name, v); err != nil {
						t.Error(err)
					}
				}
			}
			if n != publishers*each {
				t.Errorf("%d versions were published and %d are there", publishers*each, n)
			}
			if ts := r.from.(*tree).timestamp; ts.Version != 1+publishers*each {
				t.Errorf("timestamp %d, want %d", ts.Version, 1+publishers*each)
			}
		})
	}
}

// A writer that is slow replaces the file that names the newest timestamp after
// a faster one did: readers are not led back.
func TestSlowWriterLeadsNobodyBack(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.publish("foo", "1")
	old := l.get("timestamp")
	l.publish("foo", "2")
	l.publish("bar", "1")
	l.mustOpen()
	l.put("timestamp", old)
	r := l.mustOpen()
	if e, _ := r.Entry("foo"); e.Latest != "2" || fmt.Sprint(r.Names()) != "[bar foo]" {
		t.Errorf("latest is %s of %v", e.Latest, r.Names())
	}
	l.publish("foo", "3")
	if e, _ := l.mustOpen().Entry("foo"); fmt.Sprint(e.Versions) != "[1 2 3]" {
		t.Errorf("versions %v", e.Versions)
	}
}

// A version never changes; it can be withdrawn, and what nobody needs removed.
func TestVersionsDoNotChange(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLab(t)
	l.publish("foo", "1")
	l.publish("foo", "2")
	w := l.writer()
	before := files(t, l.dir)
	if r, err := w.Publish(ctx, archive(t, "foo", "1"), l.keys()...); err != nil || !r.Already || !maps.Equal(files(t, l.dir), before) {
		t.Errorf("version 1 again: %+v, %v", r, err)
	}
	if _, err := w.Publish(ctx, archive(t, "foo", "1", "comment = 'another'"), l.keys()...); err == nil || !strings.Contains(err.Error(), "published already") {
		t.Errorf("version 1 with other content: %v", err)
	}
	r := l.mustOpen()
	if err := w.Withdraw(ctx, "foo", "2", l.keys()...); err != nil {
		t.Fatal(err)
	}
	if e, _ := l.mustOpen().Entry("foo"); fmt.Sprint(e.Versions) != "[1]" || e.Latest != "1" {
		t.Errorf("versions %v, latest %s", e.Versions, e.Latest)
	}
	// Who opened it before reads on.
	if _, err := r.Fetch(ctx, "foo", "2"); err != nil {
		t.Error(err)
	}
	var none *NotFound
	if err := w.Withdraw(ctx, "foo", "2", l.keys()...); !errors.As(err, &none) {
		t.Errorf("withdrawn twice: %v", err)
	}
	if err := w.Withdraw(ctx, "foo", "1", l.keys()...); err != nil {
		t.Fatal(err)
	}
	if names := l.mustOpen().Names(); len(names) != 0 {
		t.Errorf("packages %v", names)
	}
	l.publish("bar", "1")

	l.put("README", []byte("ours"))
	before = files(t, l.dir)
	future := time.Now().Add(time.Hour)
	if gone, err := w.Prune(ctx, time.Now().Add(-time.Hour), true); err != nil || len(gone) != 0 {
		t.Errorf("removed %v, written a moment ago: %v", gone, err)
	}
	gone, err := w.Prune(ctx, future, false)
	if err != nil {
		t.Fatal(err)
	}
	if after := files(t, l.dir); !reflect.DeepEqual(before, after) {
		t.Error("something was removed without being told to")
	}
	again, err := w.Prune(ctx, future, true)
	if err != nil || !reflect.DeepEqual(gone, again) {
		t.Errorf("removed %v, announced %v, %v", again, gone, err)
	}
	left := files(t, l.dir)
	if len(left)+len(gone) != len(before) {
		t.Errorf("%d files before, %d after %d were removed", len(before), len(left), len(gone))
	}
	// The root, two timestamps, the index, statements and archive of bar, README.
	if len(left) != 7 || left["README"] == "" || left["1.root"] == "" {
		t.Errorf("%d files are left", len(left))
	}
	l.forget()
	if _, err := l.mustOpen().Fetch(ctx, "bar", "1"); err != nil {
		t.Error(err)
	}
}

// Publisher and registry can be two people: one signs a statement, the other has
// the index.
func TestStatementFromElsewhere(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLab(t)
	a := archive(t, "foo", "1")
	statement, err := Describe(a)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Sign(statement, l.alice)
	if err != nil {
		t.Fatal(err)
	}
	w := l.writer()
	if _, err := w.Add(ctx, a, signed, l.index, l.stamp); err != nil {
		t.Fatal(err)
	}
	if _, err := l.mustOpen().Fetch(ctx, "foo", "1"); err != nil {
		t.Error(err)
	}

	other := archive(t, "foo", "2")
	if _, err := w.Add(ctx, other, signed, l.index, l.stamp); err == nil {
		t.Error("a statement on another archive was taken")
	} else {
		refused(t, err, Mismatch, "was signed")
	}
	byBob, err := Sign(statement, l.bob)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Add(ctx, a, byBob, l.index, l.stamp)
	refused(t, err, NotDelegated, KeyID(public(l.bob)))
	if _, err := w.Publish(ctx, other, l.bob, l.index, l.stamp); err == nil {
		t.Error("bob published foo")
	} else {
		refused(t, err, NotDelegated, `"foo"`)
	}
	if _, err := w.Publish(ctx, other, l.alice, l.stamp); err == nil || !strings.Contains(err.Error(), "the index") {
		t.Errorf("published without the index's key: %v", err)
	}
	if e, _ := l.mustOpen().Entry("foo"); fmt.Sprint(e.Versions) != "[1]" {
		t.Errorf("versions %v", e.Versions)
	}
	// A key signs nothing that its holder cannot know.
	for _, text := range []string{`{"type":"timestamp","format":1}`, `{"type":"index"}`, "DROP TABLE t", ""} {
		if _, err := Sign([]byte(text), l.alice); err == nil {
			t.Errorf("signed %q", text)
		}
	}
}

// What expires can be renewed, also when it is too late.
func TestRefresh(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLab(t)
	l.publish("foo", "1")
	l.now = l.now.Add(29 * day)
	_, err := l.open()
	refused(t, err, Expired, "timestamp")
	if err := l.writer().Refresh(ctx, l.stamp); err != nil {
		t.Fatal(err)
	}
	r := l.mustOpen()
	if x := r.from.(*tree).index.Version; x != 2 || r.Expires() != l.now.Add(28*day) {
		t.Errorf("index %d, expires %s", x, r.Expires())
	}
	l.now = l.now.Add(160 * day)
	if err := l.writer().Refresh(ctx, l.stamp); err != nil {
		t.Fatal(err)
	}
	_, err = l.open()
	refused(t, err, Expired, "blobs/")
	if err := l.writer().Refresh(ctx, l.index); err == nil {
		t.Error("refreshed without the key of the timestamp")
	}
	if err := l.writer().Refresh(ctx, l.index, l.stamp); err != nil {
		t.Fatal(err)
	}
	if x := l.mustOpen().from.(*tree).index.Version; x != 3 {
		t.Errorf("index %d, want 3", x)
	}
}
