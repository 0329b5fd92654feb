package pack

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// dir makes a directory of texts.
func dir(files map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte(text), Mode: 0o644}
	}
	return m
}

var fooFiles = map[string]string{
	"control":              post,
	"install.sql":          "CREATE FUNCTION @extschema:bar@.f() RETURNS int LANGUAGE sql AS 'SELECT 1';",
	"upgrade/0.9--1.0.sql": "SELECT 1;",
	"uninstall.sql":        "DROP FUNCTION f();",
	"foo.conf":             "foo.a = 1\n",
	"objects.json":         `[{"type": "function", "names": ["@extschema@", "f"], "args": []}]`,
	"lib/foo.so":           "\x7fELF",
	"doc/foo.md":           "# foo",
	"LICENSE":              "PostgreSQL",
	"README.md":            "not part of it",
	".git/config":          "nor this",
}

func TestReadDir(t *testing.T) {
	t.Parallel()
	p, err := Read(dir(fooFiles))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.Versions(), p.Edges(), len(p.Scripts), len(p.Conf), p.Objects, string(p.Uninstall)); got != "[1.0] [{0.9 1.0}] 2 1 [{function [@extschema@ f] []}]DROP FUNCTION f();" {
		t.Error(got)
	}
	var files []string
	for _, f := range p.Files {
		files = append(files, f.Path)
	}
	if fmt.Sprint(files) != "[doc/LICENSE doc/foo.md lib/foo.so]" {
		t.Error(files)
	}
	native, err := p.Native()
	if err != nil {
		t.Fatal(err)
	}
	want := "default_version = '1.0'\nrelocatable = false\nsuperuser = true\nrequires = 'bar, baz'\n#@depends bar (>= 1.1), baz\n#@conflicts bla (< 0.8)\n#@custom_variable_classes 'foo'\n"
	if string(native["foo.control"]) != want || string(native["foo--1.0.sql"]) != fooFiles["install.sql"] || len(native) != 3 || native["foo--0.9--1.0.sql"] == nil {
		t.Errorf("%s\n%v", native["foo.control"], native)
	}
	// And back.
	files2 := fstest.MapFS{}
	for name, data := range native {
		files2[name] = &fstest.MapFile{Data: data}
	}
	back, err := ReadNative(files2, "foo")
	if err != nil {
		t.Fatal(err)
	}
	b, a := *back.Control, *p.Control
	b.Text, a.Text = nil, nil
	if !reflect.DeepEqual(a, b) {
		t.Errorf("through native files:\n%+v\nfirst\n%+v", b, a)
	}
}

func TestReadDirErrors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		why, file, text, want string
	}{
		{"no control", "control", "", "control: no control file"},
		{"no script", "install.sql", "", "install.sql: file is missing"},
		{"a script with another name", "instal.sql", "x", `instal.sql: unknown file: did you mean "install.sql"?`},
		{"a script of nothing", "more.sql", "x", "more.sql: unknown file: scripts are install.sql"},
		{"a folder with another name", "upgrades/1--2.sql", "x", `upgrades: unknown folder: did you mean "upgrade"?`},
		{"upgrade of one version", "upgrade/1.0.sql", "x", "upgrade/1.0.sql: the name of an upgrade must be FROM--TO.sql"},
		{"upgrade to itself", "upgrade/1.0--1.0.sql", "x", "to itself"},
		{"upgrade twice", "upgrade/foo--0.9--1.0.sql", "x", "is the same upgrade as"},
		{"settings of another", "bar.conf", "x = 1", "bar.conf: settings of package \"foo\" must be in foo.conf"},
		{"settings with another prefix", "foo.conf", "bar.x = 1", "foo.conf:1:1:"},
		{"objects", "objects.json", "[\n{]", "objects.json:2:"},
		{"objects with more", "objects.json", "[] []", "objects.json: something stands behind"},
		{"objects of another kind", "objects.json", `[{"typ": "x"}]`, "objects.json: "},
		{"script that commits", "install.sql", "SELECT 1;\nCOMMIT;", "install.sql:2:1: COMMIT: transaction control"},
		{"script with a library that is not named", "install.sql", "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'MODULE_PATHNAME'", "install.sql:1:48: nothing stands for MODULE_PATHNAME"},
		{"script that is cut off", "upgrade/0.9--1.0.sql", "SELECT 'a", "upgrade/0.9--1.0.sql:1:8: quoted string is not terminated"},
		{"script that names a schema of what it does not depend on", "install.sql", "SELECT @extschema:bla@.x()", `install.sql:1:8: @extschema:bla@ names an extension that is not required: "bla"`},
		{"script of another encoding", "install.sql", "SELECT 'é', '\xe9'", "install.sql:1:14: byte 0xe9 is not UTF-8"},
		{"uninstall of what it does not depend on", "uninstall.sql", "SELECT 1;\nDROP FUNCTION @extschema:bla@.x()", `uninstall.sql:2:15: @extschema:bla@`},
		{"uninstall with psql", "uninstall.sql", "\\i x", "uninstall.sql:1:1: psql command"},
	} {
		t.Run(tc.why, func(t *testing.T) {
			files := dir(fooFiles)
			files[tc.file] = &fstest.MapFile{Data: []byte(tc.text), Mode: 0o644}
			if tc.text == "" {
				delete(files, tc.file)
			}
			if _, err := Read(files); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

// All that is wrong with a directory is said at once, each thing once, and in an
// order that does not change: control file, scripts, settings, other files.
func TestAllErrors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		why   string
		files map[string]string
		want  []string
	}{
		{"the post's layout", map[string]string{
			"control":              "name = foo\nversoin = 1.0\nrelocatable = maybe\ndepends = bar (>= )\n",
			"install.sql":          "SELECT @extschema:bar@.x();\nCOMMIT;\nSELECT 1;",
			"instal.sql":           "SELECT 1;",
			"more.sql":             "SELECT 1;",
			"uninstall.sql":        "\\i x",
			"upgrade/1.0.sql":      "SELECT 1;",
			"upgrade/0.8--0.9.sql": "SELECT '\xe9'",
			"upgrade/0.9--1.0.sql": "SELECT 'a",
			"upgrades/a.sql":       "", "upgrades/b.sql": "",
			"foo.conf":     "bar.x = 1\nfoo.y =\n",
			"fo.conf":      "x = 1",
			"objects.json": "[\n{]",
		}, []string{
			`control:2:1: unknown parameter "versoin": did you mean "version"?`,
			`control:3:15: parameter "relocatable" must be true or false, not "maybe"`,
			`control:4:`,
			`upgrade/1.0.sql: the name of an upgrade must be FROM--TO.sql`,
			`install.sql:2:1: COMMIT: transaction control`,
			`upgrade/0.8--0.9.sql:1:9: byte 0xe9 is not UTF-8`,
			`upgrade/0.9--1.0.sql:1:8: quoted string is not terminated`,
			`uninstall.sql:1:1: psql command`,
			`fo.conf: settings of package "foo" must be in foo.conf`,
			`foo.conf:2:8: syntax error near the end of the line`,
			`instal.sql: unknown file: did you mean "install.sql"?`,
			`more.sql: unknown file: scripts are install.sql`,
			`upgrades: unknown folder: did you mean "upgrade"?`,
			`objects.json:2:`,
		}},
		{"no name, no script", map[string]string{"control": "version = 1\n", "foo.conf": "foo.x =\n", "upgrade/0--1.sql": "SELECT 'a"}, []string{
			`control:1:1: parameter "name" is missing`,
			`install.sql: file is missing`,
			`upgrade/0--1.sql:1:8: quoted string is not terminated`,
			`foo.conf:1:8: syntax error near the end of the line`,
		}},
		{"the server's layout", map[string]string{
			"foo.control":       "default_version = '1.0'\nrelocatable = maybe\ncoment = 'x'\n",
			"foo--1.0.sql":      "SELECT 1;\nCOMMIT;",
			"sql/foo--1.0.sql":  "SELECT 2;",
			"foo--1.0--1.1.sql": "SELECT 'a",
			"foo--1.1.control":  "x = 1\n",
			"foo.conf":          "foo.y =\n",
		}, []string{
			`foo.control:2:15: parameter "relocatable" must be true or false, not "maybe"`,
			`foo.control:3:1: unknown parameter "coment": did you mean "comment"?`,
			`sql/foo--1.0.sql: is the same script as foo--1.0.sql, and differs`,
			`foo--1.0.sql:2:1: COMMIT: transaction control`,
			`foo--1.0--1.1.sql:1:8: quoted string is not terminated`,
			`foo.conf:1:8: syntax error near the end of the line`,
		}},
		{"the server's layout, and its control file is as it should be", map[string]string{
			"foo.control": "default_version = '1.0'\n", "foo--1.0.sql": "COMMIT;",
			"foo--1.1.control": "x = 1\n", "foo--1.2.control": "y = 1\n", "foo.conf": "foo.y =\n",
		}, []string{
			`foo--1.1.control:1:1: unknown parameter "x"`,
			`foo--1.2.control:1:1: unknown parameter "y"`,
			`foo--1.0.sql:1:1: COMMIT: transaction control`,
			`foo.conf:1:8: syntax error near the end of the line`,
		}},
	} {
		t.Run(tc.why, func(t *testing.T) {
			fsys := fstest.MapFS{}
			for name, text := range tc.files {
				fsys[name] = &fstest.MapFile{Data: []byte(text), Mode: 0o644}
			}
			var first string
			for range 20 { // maps have another order each time
				p, err := Read(fsys)
				if err == nil || p != nil {
					t.Fatalf("read %+v, %v", p, err)
				}
				if first != "" && err.Error() != first {
					t.Fatalf("first\n%s\nthen\n%s", first, err)
				}
				first = err.Error()
			}
			got := strings.Split(first, "\n")
			for i := range max(len(got), len(tc.want)) {
				if i >= len(got) || i >= len(tc.want) || !strings.HasPrefix(got[i], tc.want[i]) {
					t.Fatalf("got\n%s\nwant\n%s", first, strings.Join(tc.want, "\n"))
				}
			}
		})
	}
}

func archive(t testing.TB, p *Package) ([]byte, string) {
	t.Helper()
	var b bytes.Buffer
	sum, err := p.WriteArchive(&b)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), sum
}

func TestArchive(t *testing.T) {
	t.Parallel()
	nativeFiles := map[string]string{
		"foo.control": "default_version = '1.1'\n#@conflicts bla\n", "foo--1.1.control": "requires = 'baz'", "sql/foo--1.0.sql": "SELECT 1;", "foo--1.0--1.1.sql": "SELECT 2;",
		"foo--1.1.sql": "SELECT 3;", "META.json": `{"meta-spec": {"version": "1.0.0"}, "version": "1.1.0", "provides": {"foo": {"version": "1.1.0"}}}`, "Makefile": "EXTENSION = foo",
	}
	for name, files := range map[string]map[string]string{"post": fooFiles, "native": nativeFiles} {
		p, err := Read(dir(files))
		if err != nil {
			t.Fatal(err)
		}
		data, sum := archive(t, p)
		if is := sha256.Sum256(data); hex.EncodeToString(is[:]) != sum {
			t.Errorf("%s: wrong sum", name)
		}
		if again, _ := archive(t, p); !bytes.Equal(data, again) {
			t.Errorf("%s: the same package makes two archives", name)
		}
		back, err := ReadArchive(bytes.NewReader(data))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if back.SHA256 != sum {
			t.Errorf("%s: read %s, wrote %s", name, back.SHA256, sum)
		}
		if again, _ := archive(t, back); !bytes.Equal(data, again) {
			t.Errorf("%s: the archive changes when it is read and written", name)
		}
		back.SHA256 = ""
		for i := range back.Scripts {
			back.Scripts[i].File = p.Scripts[i].File
		}
		if fmt.Sprintf("%+v", *back.Control) != fmt.Sprintf("%+v", *p.Control) || fmt.Sprint(back.Scripts, back.Files, back.Conf) != fmt.Sprint(p.Scripts, p.Files, p.Conf) {
			t.Errorf("%s: read back\n%+v\nfirst\n%+v", name, back, p)
		}
	}
}

// tarGz packs entries as they are given.
func tarGz(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range entries {
		data := fooFiles[h.Name]
		if h.PAXRecords["text"] != "" {
			data = h.PAXRecords["text"]
		}
		h.PAXRecords = nil
		if h.Typeflag == tar.TypeReg && h.Size == 0 {
			h.Size = int64(len(data))
		}
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestArchiveRefused(t *testing.T) {
	t.Parallel()
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	good := []tar.Header{file("control"), file("install.sql")}
	with := func(h ...tar.Header) []byte { return tarGz(t, append(slices.Clone(good), h...)...) }
	if _, err := ReadArchive(bytes.NewReader(with())); err != nil {
		t.Fatal(err)
	}
	// Limits are lowered for these, to spare the machine.
	const total, perFile, entries = 4 << 20, 2 << 20, 50
	bomb := func(files int, size int64, behind int) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		for i := range files {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("lib/%d.so", i), Size: size}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(make([]byte, behind)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	huge := func() []byte { // says that it is large, and is not
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if err := tar.NewWriter(z).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "lib/a.so", Size: 1 << 40}); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for _, tc := range []struct {
		why  string
		data []byte
		want string
	}{
		{"not gzip", []byte("hello world"), "could not read archive"},
		{"empty", nil, "could not read archive"},
		{"cut off", with()[:200], "could not read archive"},
		{"a byte changed", func() []byte { d := with(); d[len(d)-6] ^= 1; return d }(), "could not read archive"},
		{"something behind it", append(with(), 0), "something stands behind its end"},
		{"an archive behind it", append(with(), with()...), "something stands behind its end"},
		{"parent", with(file("../x")), `path "../x" is refused`},
		{"hidden parent", with(file("lib/../../x")), "is refused"},
		{"absolute", with(file("/etc/passwd")), "is refused"},
		{"unclean", with(file("lib//x")), "is refused"},
		{"backslash", with(file(`lib\x`)), "is refused"},
		{"control character", with(file("lib/a\nb")), "is refused"},
		{"long", with(file("lib/" + strings.Repeat("x", 300))), "is refused"},
		{"deep", with(file("lib/" + strings.Repeat("x/", 20) + "x")), "is refused"},
		{"symbolic link", with(tar.Header{Typeflag: tar.TypeSymlink, Name: "lib/x", Linkname: "/etc"}), "is not a regular file"},
		{"hard link", with(tar.Header{Typeflag: tar.TypeLink, Name: "lib/x", Linkname: "control"}), "is not a regular file"},
		{"device", with(tar.Header{Typeflag: tar.TypeChar, Name: "lib/x"}), "is not a regular file"},
		{"folder", with(tar.Header{Typeflag: tar.TypeDir, Name: "lib/"}), "is not a regular file"},
		{"twice", with(file("control")), `it has "control" twice`},
		{"file and folder", with(file("lib/x"), file("lib/x/y")), `"lib/x" is a file and a folder`},
		{"no part", with(file("README.md")), `"README.md" is no part of a package`},
		{"no part, hidden", with(file(".profile")), `".profile" is no part of a package`},
		{"two packages", with(file("bar.control")), "unknown file"},
		{"no control", tarGz(t, file("install.sql")), "no control file"},
		{"bad script", tarGz(t, file("control"), tar.Header{Typeflag: tar.TypeReg, Name: "install.sql", PAXRecords: map[string]string{"text": "COMMIT"}}), "transaction control"},
		{"large control", tarGz(t, tar.Header{Typeflag: tar.TypeReg, Name: "control", PAXRecords: map[string]string{"text": strings.Repeat("#", maxText+1)}}), "control: file is larger than"},
		{"bomb of many files", bomb(6, perFile/2, 0), "lib/4.so: package is larger than 4194304 bytes"},
		{"bomb of one file", bomb(1, perFile+1, 0), `"lib/0.so" is larger than 2097152 bytes`},
		{"bomb behind the files", bomb(1, 1, total+entries*4096), "archive is refused: it is larger than 4194304 bytes"},
		{"large as it is", append(with(), make([]byte, total)...), "archive is refused: "},
		{"says it is huge", huge(), `"lib/a.so" is larger than`},
	} {
		t.Run(tc.why, func(t *testing.T) {
			if p, err := readArchive(bytes.NewReader(tc.data), &limit{total: total, file: perFile, entries: entries}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, %v, want %s", p, err, tc.want)
			}
		})
	}
}

func FuzzReadArchive(f *testing.F) {
	for _, files := range []map[string]string{fooFiles, {"foo.control": "default_version='1'", "foo--1.sql": "SELECT 1", "foo--1--2.sql": "", "META.json": "{}"}} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for name, text := range files {
			if name[0] == '.' {
				continue
			}
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(text)), Mode: 0o644}); err != nil {
				f.Fatal(err)
			}
			if _, err := io.WriteString(w, text); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes(), true)
		f.Add(b.Bytes(), false)
	}
	f.Fuzz(func(t *testing.T, data []byte, compress bool) {
		if compress { // else the fuzzer must find gzip's checksum
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			if _, err := z.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			data = b.Bytes()
		}
		p, err := ReadArchive(bytes.NewReader(data))
		if err != nil {
			return
		}
		written, sum := archive(t, p)
		again, err := ReadArchive(bytes.NewReader(written))
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if rewritten, _ := archive(t, again); !bytes.Equal(written, rewritten) || again.SHA256 != sum {
			t.Fatal("an archive changes when it is read and written")
		}
	})
}

func TestMeta(t *testing.T) {
	t.Parallel()
	base := map[string]string{
		"pair.control": "default_version = '1.2'\nrequires = 'hstore'\n", "sql/pair.sql": "SELECT 1;", "sql/pair--1.1--1.2.sql": "SELECT 2;",
		"test/sql/pair--1.2.sql": "test", "Makefile": `
EXTENSION    = pair
EXTVERSION   = $(shell grep default_version $(EXTENSION).control | cut -d "'" -f 2)
MODULES      = $(patsubst %.c,%,$(wildcard src/*.c))
DATA         = $(wildcard sql/*--*.sql) sql/$(EXTENSION)--$(EXTVERSION).sql
all: sql/$(EXTENSION)--$(EXTVERSION).sql
sql/$(EXTENSION)--$(EXTVERSION).sql: sql/$(EXTENSION).sql
	cp $< $@
`,
		"META.json": `{"name": "pair", "version": "1.2.3", "abstract": "A pair", "license": ["mit", "postgresql"], "meta-spec": {"version": "1.0.0"},
 "provides": {"pair": {"file": "sql/pair.sql", "version": "1.2.0"}},
 "prereqs": {"runtime": {"requires": {"PostgreSQL": ">= 13.0.0, < 19.0.0", "hstore": "1.4.0", "plpgsql": 0}, "recommends": {"ip4r": "!= 2.0.0"}, "conflicts": {"pear": "< 2.0.0"}},
  "test": {"requires": {"pgTAP": "1.0.0"}}}}`,
	}
	zipped := func(top string, files map[string]string) *bytes.Reader {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		for name, text := range files {
			f, err := w.Create(top + name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(f, text); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return bytes.NewReader(b.Bytes())
	}
	change := func(changes map[string]string) map[string]string {
		files := map[string]string{}
		for name, text := range base {
			files[name] = text
		}
		for name, text := range changes {
			if files[name] = text; text == "" {
				delete(files, name)
			}
		}
		return files
	}
	describe := func(p *Package) string {
		c := p.Control
		return fmt.Sprintf("%s %s (%s) [%s] [%s] [%s] [%s] %q %q %v %v", c.Name, c.Version, c.ExtVersion, c.Postgres, c.Depends, c.Recommends, c.Conflicts, c.Comment, c.License, c.OSDepends, p.Versions())
	}
	const v1 = `pair 1.2.0 (1.2) [>= 13, < 19] [hstore (>= 1.4.0), plpgsql] [ip4r (!= 2.0.0)] [pear (< 2.0.0)] "A pair" "mit, postgresql" [] [1.2]`
	const v2 = `{"name": "pair", "version": "1.3.0", "abstract": "A pair", "license": "PostgreSQL", "meta-spec": {"version": "2.0.0"},
 "contents": {"extensions": {"pair": {"control": "src/pair.control", "sql": "sql/pair.sql"}}},
 "dependencies": {"postgres": {"version": "14.0"}, "packages": {"run": {"requires": {"pkg:postgres/hstore": 0, "pkg:pgxn/ip4r": ">= 2.4.0", "pkg:generic/zlib": 0}}, "test": {"requires": {"pkg:pgxn/pgtap": "1.1.0"}}}}}`
	for _, tc := range []struct {
		why   string
		files map[string]string
		want  string
	}{
		{"version 1", base, v1},
		{"version 2", change(map[string]string{"META.json": v2, "pair.control": "", "src/pair.control": base["pair.control"]}),
			`pair 1.3.0 (1.2) [>= 14] [ip4r (>= 2.4.0), hstore] [] [] "A pair" "PostgreSQL" [zlib] [1.2]`},
		{"what the control file says goes first", change(map[string]string{"pair.control": base["pair.control"] + "#@depends hstore (>= 1.8)\n#@version 9\n#@postgres >= 16\ncomment = 'c'"}),
			`pair 9 (1.2) [>= 16] [hstore (>= 1.8), plpgsql] [ip4r (!= 2.0.0)] [pear (< 2.0.0)] "c" "mit, postgresql" [] [1.2]`},
		{"no META.json", change(map[string]string{"META.json": ""}), `pair 1.2 (1.2) [] [hstore] [] [] "" "" [] [1.2]`},
		{"C", change(map[string]string{"src/pair.c": "int x;"}), `ERROR extension "pair" must be built before it can be packed: Makefile says MODULES`},
		{"C by name", change(map[string]string{"Makefile": "MODULE_big = pair\nOBJS = pair.o"}), `ERROR extension "pair" must be built before it can be packed: Makefile says MODULE_big = pair, which needs a compiler`},
		{"C that has been built", change(map[string]string{"Makefile": base["Makefile"] + "MODULE_big = pair\n", "lib/pair.so": "x"}), v1},
		{"Rust", change(map[string]string{"Cargo.toml": "x"}), `ERROR extension "pair" must be built before it can be packed: it is written in Rust`},
		{"a generated script", change(map[string]string{"Makefile": "sql/$(EXTENSION)--$(EXTVERSION).sql: sql/$(EXTENSION).sql\n\tsed s/a/b/ $< > $@\n"}), "ERROR extension \"pair\" must be built before it can be packed: Makefile makes sql/$(EXTENSION)--$(EXTVERSION).sql"},
		{"a script of many", change(map[string]string{"Makefile": "pair--1.2.sql: sql/*.sql\n\tcat $^ > $@\n"}), "ERROR extension \"pair\" must be built before it can be packed: Makefile makes pair--1.2.sql"},
		{"no rule", change(map[string]string{"Makefile": "EXTENSION = pair\n"}), `ERROR extension "pair" must be built before it can be packed: there is no script for version "1.2"`},
		{"two scripts that differ", change(map[string]string{"pair--1.1--1.2.sql": "SELECT 3;"}), "ERROR sql/pair--1.1--1.2.sql: is the same script as pair--1.1--1.2.sql, and differs"},
		{"a specification to come", change(map[string]string{"META.json": `{"meta-spec": {"version": "3.0.0"}}`}), `ERROR META.json: version "3.0.0" of PGXN's specification is not known`},
		{"a range that is none", change(map[string]string{"META.json": strings.Replace(base["META.json"], "1.4.0", ">= >= 1", 1)}), `ERROR META.json: requires of "hstore": range`},
		{"no JSON", change(map[string]string{"META.json": "{\n\"a\": }"}), "ERROR META.json:2:"},
		{"a parameter that servers refuse", change(map[string]string{"pair.control": "default_version = '1.2'\ndepends = 'x'"}), "ERROR pair.control:2:1: unknown parameter \"depends\": the server would refuse the file; write it as a comment, #@depends"},
		{"a comment with nothing in it", change(map[string]string{"pair.control": "default_version = '1.2'\n#@depends\n#@ of somebody else, 'or"}), "ERROR pair.control:2:3: parameter \"depends\" has no value"},
		{"a comment with a slip", change(map[string]string{"pair.control": "default_version = '1.2'\n#@depend x"}), "ERROR pair.control:2:3: unknown parameter #@depend: did you mean #@depends?"},
	} {
		t.Run(tc.why, func(t *testing.T) {
			z := zipped("pair-1.2.3/", tc.files)
			list, err := ReadZip(z, z.Size())
			one, errOne := Read(dir(tc.files))
			if fmt.Sprint(err) != fmt.Sprint(errOne) {
				t.Errorf("zip: %v; directory: %v", err, errOne)
			}
			if want, isError := strings.CutPrefix(tc.want, "ERROR "); isError {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %s", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(list[0]); len(list) != 1 || got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if got := describe(one); got != tc.want {
				t.Errorf("directory: %s", got)
			}
			data, _ := archive(t, one)
			back, err := ReadArchive(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(back); got != tc.want {
				t.Errorf("archive: %s", got)
			}
		})
	}
	two := zipped("pair-1.2.3/", change(map[string]string{"other.control": "default_version = '1'", "other--1.sql": "SELECT 1"}))
	if list, err := ReadZip(two, two.Size()); err != nil || len(list) != 2 || list[0].Control.Name != "other" {
		t.Errorf("%v, %v", list, err)
	}
	for why, z := range map[string]*bytes.Reader{"no folder": zipped("", base), "parent": zipped("../pair/", base), "absolute": zipped("/pair/", base)} {
		if _, err := ReadZip(z, z.Size()); err == nil {
			t.Errorf("%s: read", why)
		}
	}
}

// A control file can have its scripts in another folder of the share directory,
// or by an absolute path; what is written from it has them beside it.
func TestDirectory(t *testing.T) {
	t.Parallel()
	elsewhere := t.TempDir()
	for name, text := range map[string]string{"far--1.sql": "SELECT 'far';", "far--2.control": "superuser = false\n", "far--1--2.sql": "SELECT 2;"} {
		if err := os.WriteFile(filepath.Join(elsewhere, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	share := dir(map[string]string{
		"postgres.bki":                 "",
		"extension/plain.control":      "default_version = '1'\n",
		"extension/plain--1.sql":       "SELECT 'plain';",
		"extension/same.control":       "default_version = '1'\ndirectory = 'extension'\n",
		"extension/same--1.sql":        "SELECT 'same';",
		"extension/pgmp.control":       "# as Debian has it\ndefault_version = '1.1' # newest\ndirectory = 'pgmp/./'\nrelocatable = true\n",
		"extension/pgmp--1.1.sql":      "SELECT 'not this one';",
		"extension/pgmp--1.1.control":  "comment = 'nor this'\n",
		"pgmp/pgmp--1.1.sql":           "SELECT 'this one';",
		"pgmp/pgmp--1.0--1.1.sql":      "SELECT 'upgrade';",
		"pgmp/pgmp--1.1.control":       "comment = 'beside the scripts'\n",
		"extension/far.control":        "default_version = '2'\ndirectory = '" + filepath.ToSlash(elsewhere) + "'\n",
		"extension/outside.control":    "default_version = '1'\ndirectory = '../x'\n",
		"extension/nowhere.control":    "default_version = '1'\ndirectory = 'nowhere'\n",
		"extension/fincore.control":    "default_version = '1'\ndirectory = fincore\n",
		"fincore/fincore--2.sql":       "SELECT 2;",
		"fincore/other--1.sql":         "SELECT 1;",
		"extension/empty.control":      "default_version = '1'\ndirectory = void\n",
		"void/other--1.sql":            "SELECT 1;",
		"extension/folder.control/x":   "",
		"extension/damaged.control":    "directory 'x\n",
		"extension/extension/x.config": "",
	})
	for name, want := range map[string]string{"plain": "SELECT 'plain';", "same": "SELECT 'same';", "pgmp": "SELECT 'this one';", "far": "SELECT 'far';"} {
		p, err := ReadNative(share, name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, _ := p.Path("", p.Control.ExtVersion); len(got) == 0 || string(got[0].SQL) != want {
			t.Errorf("%s is installed by %+v, want %s", name, got, want)
		}
		files, err := p.Native()
		if err != nil {
			t.Fatal(err)
		}
		flat := fstest.MapFS{"another.control": {}}
		for file, data := range files {
			flat[file] = &fstest.MapFile{Data: data}
		}
		again, err := ReadNative(flat, name)
		if err != nil {
			t.Errorf("%s, written: %v", name, err)
			continue
		}
		if !reflect.DeepEqual(again, p) {
			t.Errorf("%s, written and read:\n%+v\nfirst\n%+v", name, again, p)
		}
		n := native{}
		if err := n.parse(name, files[name+".control"], false); err != nil || n.directory != "" {
			t.Errorf("%s, written, has its scripts in %q, %v", name, n.directory, err)
		}
	}
	if p, err := ReadNative(share, "pgmp"); err != nil || p.Control.Comment != "beside the scripts" || len(p.Scripts) != 2 {
		t.Errorf("%+v, %v", p, err)
	} else if text := string(p.Control.Text); text != "# as Debian has it\ndefault_version = '1.1' # newest\n#directory = 'pgmp/./'\nrelocatable = true\n" {
		t.Errorf("the control file has become\n%s", text)
	}
	if p, err := ReadNative(share, "far"); err != nil || p.Control.Superuser {
		t.Errorf("the secondary control file was not found: %+v, %v", p, err)
	}

	// The folder of the control files alone will do for those that have all there.
	alone, err := fs.Sub(share, "extension")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain", "same"} {
		if _, err := ReadNative(alone, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, tt := range []struct {
		fsys  fs.FS
		name  string
		words string
	}{
		{alone, "fincore", `fincore.control: its scripts are not here but in folder "fincore" of the server's share directory`},
		{dir(map[string]string{"one.control": "default_version = '1'\ndirectory = 'd'\n"}), "one", `in folder "d"`},
		{share, "outside", `in folder "../x", outside of the share directory`},
		{share, "nowhere", `could not read the folder of the scripts of nowhere.control, "nowhere"`},
		{share, "empty", `in folder "void"`},
		{share, "fincore", `no installation script nor update path for version "1"`},
		{share, "folder", "is a folder"},
		{share, "damaged", "damaged.control:1"},
		{share, "missing", "missing.control: file is missing"},
	} {
		if _, err := ReadNative(tt.fsys, tt.name); err == nil || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.words)
		}
	}
}
