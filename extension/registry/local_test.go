package registry

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rideau/extension/pack"
)

func writePackage(t *testing.T, dir, name, version string, more ...string) {
	t.Helper()
	for file, f := range packageFiles(name, version, more...) {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// A plain directory: packages as directories, as archives, and what is neither.
func TestOpenDirectory(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	writePackage(t, filepath.Join(dir, "foo"), "foo", "1.1", "depends = bar (>= 1.1)")
	writePackage(t, filepath.Join(dir, ".git"), "no", "1")
	a := archive(t, "foo", "1.0")
	for name, data := range map[string][]byte{
		"foo-1.0.tar.gz":            a,
		"README":                    []byte("hello"),
		"docs/index.html":           []byte("hello"),
		"native/bar.control":        []byte("default_version = '1.2'\ncomment = 'native bar'\n"),
		"native/bar--1.2.sql":       []byte("CREATE TABLE t ();\n"),
		"native/bar--1.1--1.2.sql":  []byte("SELECT 1;\n"),
		"unrelated/pg_control.conf": nil,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := OpenDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	if r.Signed() || r.Name() != filepath.Base(dir) || fmt.Sprint(r.Names()) != "[bar foo]" || !r.Expires().IsZero() || r.Policy().Name != "" {
		t.Errorf("signed %t, name %q, packages %v", r.Signed(), r.Name(), r.Names())
	}
	versions, err := r.Versions(ctx, "foo")
	if err != nil || len(versions) != 2 || versions[1].Depends.String() != "bar (>= 1.1)" || versions[0].Signers != nil || versions[0].SHA256 != refOf(a).SHA256.String() {
		t.Errorf("versions %+v, %v", versions, err)
	}
	if p, err := r.Fetch(ctx, "foo", ""); err != nil || p.Control.Version != "1.1" {
		t.Errorf("fetched %+v, %v", p, err)
	}
	if p, err := r.Fetch(ctx, "bar", "1.2"); err != nil || len(p.Scripts) != 2 {
		t.Errorf("fetched %+v, %v", p, err)
	}
	if got, err := r.Archive(ctx, "foo", "1.0"); err != nil || !bytes.Equal(got, a) {
		t.Errorf("archive of %d bytes, %v", len(got), err)
	}
	got, err := r.Archive(ctx, "foo", "1.1")
	if err != nil {
		t.Fatal(err)
	}
	if p, err := readArchive(got); err != nil || p.Control.Version != "1.1" {
		t.Errorf("archive has %+v, %v", p, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "foo-1.0.tar.gz"), archive(t, "foo", "1.0", "relocatable = true"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Archive(ctx, "foo", "1.0"); err == nil || !strings.Contains(err.Error(), "has changed") {
		t.Errorf("an archive that changed: %v", err)
	}

	// A directory that is a package.
	one, err := OpenDirectory(filepath.Join(dir, "foo"))
	if err != nil || fmt.Sprint(one.Names()) != "[foo]" {
		t.Errorf("one package: %v, %v", one, err)
	}

	writePackage(t, filepath.Join(dir, "again"), "foo", "1.1")
	if _, err := OpenDirectory(dir); err == nil || !strings.Contains(err.Error(), `"1.1" twice`) {
		t.Errorf("a version twice: %v", err)
	}
	writePackage(t, filepath.Join(dir, "again"), "foo", "1.3", "dependz = bar")
	writePackage(t, filepath.Join(dir, "third"), "foo", "1.4", "depends = bar (")
	if _, err := OpenDirectory(dir); err == nil || !strings.Contains(err.Error(), "dependz") || !strings.Contains(err.Error(), "third") {
		t.Errorf("packages that are none: %v", err)
	}
	if _, err := OpenDirectory(filepath.Join(dir, "nosuch")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// pgxnMirror makes a mirror with two distributions: pair, and one in C.
func pgxnMirror(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, data []byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("index.json", []byte(`{
		"download": "/dist/{dist}/{version}/{dist}-{version}.zip",
		"meta": "/dist/{dist}/{version}/META.json",
		"dist": "/dist/{dist}.json",
		"extension": "/extension/{extension}.json",
		"mirrors": "/meta/mirrors.json",
		"spec": "/meta/spec.{format}"}`))
	dist := func(dist, version string, files map[string]string) {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		for name, text := range files {
			w, err := z.Create(dist + "-" + version + "/" + name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		at := "dist/" + strings.ToLower(dist) + "/" + version + "/"
		put(at+strings.ToLower(dist)+"-"+version+".zip", b.Bytes())
		put(at+"META.json", fmt.Appendf(nil, `{"name":%q,"version":%q,"sha1":"%x","provides":{},"release_status":"stable"}`, dist, version, sha1.Sum(b.Bytes())))
	}
	for _, v := range []string{"0.1.1", "0.1.2"} {
		dist("PAIR", v, map[string]string{
			"META.json":               fmt.Sprintf(`{"name":"PAIR","version":%q,"abstract":"key and value","license":"postgresql","meta-spec":{"version":"1.0.0"},"provides":{"pair":{"file":"sql/pair.sql","version":%q}},"prereqs":{"runtime":{"requires":{"hstore":"1.0","PostgreSQL":"9.1.0"}}}}`, v, v),
			"pair.control":            "default_version = '" + v + "'\nrelocatable = true\n",
			"sql/pair--" + v + ".sql": "CREATE TYPE pair AS (k text, v text);\n",
		})
	}
	dist("inC", "1.0.0", map[string]string{
		"META.json":   `{"name":"inC","version":"1.0.0","meta-spec":{"version":"1.0.0"},"provides":{"inc":{"file":"inc.sql","version":"1.0.0"}}}`,
		"inc.control": "default_version = '1.0.0'\nmodule_pathname = '$libdir/inc'\n", "inc--1.0.0.sql": "SELECT 1;\n",
		"Makefile": "MODULES = inc\n", "inc.c": "int x;\n",
	})
	put("extension/pair.json", []byte(`{"extension":"pair","latest":"stable","stable":{"dist":"PAIR","version":"0.1.2","sha1":"x"},
		"versions":{"0.1.1":[{"dist":"PAIR","version":"0.1.1","date":"2010-10-19T03:59:54Z"}],"0.1.2":[{"dist":"PAIR","version":"0.1.2"}]}}`))
	put("extension/inc.json", []byte(`{"extension":"inc","latest":"stable","versions":{"1.0.0":[{"dist":"inC","version":"1.0.0"}]}}`))
	return dir
}

func TestOpenPGXN(t *testing.T) {
	ctx := context.Background()
	dir := pgxnMirror(t)
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	for _, location := range []string{dir, server.URL} {
		r, err := OpenPGXN(ctx, location, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Signed() || r.Name() != "pgxn" {
			t.Errorf("signed %t, name %q", r.Signed(), r.Name())
		}
		if location == dir && fmt.Sprint(r.Names()) != "[inc pair]" {
			t.Errorf("packages %v", r.Names())
		}
		versions, err := r.Versions(ctx, "pair")
		if err != nil || len(versions) != 2 || versions[1].Version != "0.1.2" {
			t.Errorf("versions %+v, %v", versions, err)
		}
		p, err := r.Fetch(ctx, "pair", "")
		if err != nil {
			t.Fatal(err)
		}
		if c := p.Control; c.Name != "pair" || c.Version != "0.1.2" || c.Depends.String() != "hstore (>= 1.0)" || len(p.Scripts) != 1 {
			t.Errorf("fetched %+v", c)
		}
		data, err := r.Archive(ctx, "pair", "0.1.1")
		if err != nil {
			t.Fatal(err)
		}
		if p, err := readArchive(data); err != nil || p.Control.Version != "0.1.1" {
			t.Errorf("archive has %+v, %v", p, err)
		}
		var build *pack.BuildError
		if _, err := r.Fetch(ctx, "inc", "1.0.0"); !errors.As(err, &build) {
			t.Errorf("what has to be built: %v", err)
		}
		var none *NotFound
		if _, err := r.Versions(ctx, "nosuch"); !errors.As(err, &none) {
			t.Errorf("what is not there: %v", err)
		}
		for _, name := range []string{"../pair", "a/b", "a%2fb", "", ".", "a?b", `a\b`} {
			if _, err := r.Versions(ctx, name); err == nil {
				t.Errorf("there is an extension %q", name)
			}
		}
		found, name, err := Set{r}.Find(ctx, "pair")
		if err != nil || found != r || name != "pair" {
			t.Errorf("found %v, %q, %v", found, name, err)
		}
		if _, _, err := (Set{r}).Find(ctx, "nosuch"); !errors.As(err, &none) {
			t.Errorf("found what is not there: %v", err)
		}
		if err := Mirror(ctx, r, t.TempDir(), Options{}); err == nil {
			t.Error("mirrored what is not signed")
		}
		r.Close()
	}

	// The host is not trusted with much, but not with paths either.
	l := &lab{t: t, dir: dir}
	l.flip("dist/pair/0.1.2/pair-0.1.2.zip", -1)
	r, err := OpenPGXN(ctx, dir, Options{})
	l.must(err)
	_, err = r.Fetch(ctx, "pair", "0.1.2")
	refused(t, err, Mismatch, "SHA-1")
	if _, err := r.Fetch(ctx, "pair", "0.1.1"); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct{ file, old, new, words string }{
		{"extension/pair.json", `"dist":"PAIR","version":"0.1.1","date"`, `"dist":"../../etc","version":"0.1.1","date"`, "part of a path"},
		{"index.json", `"/dist/{dist}/{version}/META.json"`, `"/../{dist}/{version}/META.json"`, "cannot use the template"},
		{"index.json", `"/../{dist}/{version}/META.json"`, `"https://example.com/{dist}"`, "cannot use the template"},
		{"index.json", `"https://example.com/{dist}"`, `"/{user}/META.json"`, "cannot use the template"},
	} {
		l.replace(tt.file, tt.old, tt.new)
		r, err := OpenPGXN(ctx, dir, Options{})
		l.must(err)
		_, err = r.Fetch(ctx, "pair", "0.1.1")
		refused(t, err, Malformed, tt.words)
		if tt.file == "extension/pair.json" {
			l.replace(tt.file, tt.new, tt.old)
		}
	}
	l.put("index.json", []byte(`{"meta":"/x"}`))
	_, err = OpenPGXN(ctx, dir, Options{})
	refused(t, err, Malformed, "no template")
	l.put("index.json", bytes.Repeat([]byte(" "), maxPGXNDocument+1))
	_, err = OpenPGXN(ctx, dir, Options{})
	refused(t, err, Oversized, "index.json")
}
