package pack_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"

	"rideau/extension/pack"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
)

// TestAgainstServers reads every extension that servers have, and compares with
// what they say themselves. 15 has many that are not of PostgreSQL's own, some
// with their scripts elsewhere.
func TestAgainstServers(t *testing.T) {
	t.Parallel()
	for _, major := range pgtest.Some {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			server := pgtest.Start(t, pgtest.Options{Major: major})
			share := server.QueryValue("SELECT setting FROM pg_config WHERE name = 'SHAREDIR'")
			fsys := os.DirFS(share)
			controls, err := filepath.Glob(filepath.Join(share, "extension", "*.control"))
			if err != nil || len(controls) < 40 {
				t.Fatalf("%d control files in %s, %v: is contrib installed?", len(controls), share, err)
			}
			packages := map[string]*pack.Package{}
			for _, file := range controls {
				name := strings.TrimSuffix(filepath.Base(file), ".control")
				p, err := pack.ReadNative(fsys, name)
				if err != nil {
					t.Error(err)
					continue
				}
				packages[name] = p
				if err := p.Check(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			// One row for each extension and version, as the server sees it.
			var want, got []string
			for _, row := range server.Query(`SELECT v.name, v.version, e.default_version, v.superuser, v.trusted, v.relocatable, coalesce(v.schema, ''), coalesce(v.requires::text[], '{}'), coalesce(v.comment, '')
				FROM pg_available_extension_versions v JOIN pg_available_extensions e USING (name)`) {
				want = append(want, strings.Join(row, " "))
			}
			for name, p := range packages {
				for _, version := range p.Versions() {
					c := p.ControlOf(version)
					var requires []string
					for _, a := range c.Depends {
						requires = append(requires, a[0].Name)
					}
					got = append(got, fmt.Sprint(name, " ", version, " ", c.ExtVersion, " ", letter(c.Superuser), " ", letter(c.Trusted), " ", letter(c.Relocatable), " ", c.Schema, " {", strings.Join(requires, ","), "} ", c.Comment))
				}
			}
			compare(t, want, got)
			paths := server.Query("SELECT name, source, target, coalesce(path, '') FROM pg_available_extensions, pg_extension_update_paths(name)")
			for _, row := range paths {
				name, from, to := row[0], row[1], row[2]
				p := packages[name]
				if p == nil {
					continue // an error above
				}
				if is := pathText(t, p, from, to); is != row[3] {
					t.Errorf("%s from %s to %s: path %q, the server's is %q", name, from, to, is, row[3])
				}
			}
			t.Logf("%d extensions, %d versions, %d pairs of versions", len(packages), len(got), len(paths))

			// What we render for a server is read as the same extension.
			for name, p := range packages {
				p.Control.Text = nil
				files, err := p.Native()
				if err != nil {
					t.Error(err)
					continue
				}
				folder := fstest.MapFS{}
				for file, data := range files {
					folder[file] = &fstest.MapFile{Data: data, Mode: 0o644}
				}
				again, err := pack.ReadNative(folder, name)
				if err != nil {
					t.Error(err)
					continue
				}
				again.Control.Text = nil
				if a, b := fmt.Sprintf("%+v", *again.Control), fmt.Sprintf("%+v", *p.Control); a != b {
					t.Errorf("%s: rendered and read\n%s\nfirst\n%s", name, a, b)
				}
			}
		})
	}
}

// pathText is the path as pg_extension_update_paths has it, or empty.
func pathText(t *testing.T, p *pack.Package, from, to string) string {
	t.Helper()
	scripts, err := p.Path(from, to)
	var none *pack.NoPathError
	if errors.As(err, &none) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	text := from
	for i, s := range scripts {
		if i > 0 && s.From != scripts[i-1].To || i == 0 && s.From != from {
			t.Errorf("path has a gap before %s--%s", s.From, s.To)
		}
		text += "--" + s.To
	}
	return text
}

// letter is how a server writes a Boolean.
func letter(b bool) string { return fmt.Sprint(b)[:1] }

func compare(t *testing.T, want, got []string) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("the server has %s, we do not", w)
		}
	}
	for _, g := range got {
		if !slices.Contains(want, g) {
			t.Errorf("we have %s, the server does not", g)
		}
	}
}

// TestRandomPaths makes extensions with many versions, random scripts between
// them and many ways that are as short, and lets a server choose its way, which
// its scripts write down.
func TestRandomPaths(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	store := pgtest.Dir(t)
	folder := filepath.Join(store, "extension")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	server := pgtest.Start(t, pgtest.Options{Major: 18, Settings: map[string]string{"extension_control_path": "$system:" + store}})
	for i := range 12 {
		name := fmt.Sprintf("random%d", i)
		files := map[string]string{name + ".control": "relocatable = true\n"}
		step := `CREATE TABLE "%s" ();`
		n := 4 + random.IntN(7)
		for a := range n {
			if random.IntN(4) == 0 || a == 0 {
				files[fmt.Sprintf("%s--v%d.sql", name, a)] = fmt.Sprintf(step, fmt.Sprintf("--v%d", a))
			}
			for b := range n {
				if a != b && random.IntN(3) == 0 {
					files[fmt.Sprintf("%s--v%d--v%d.sql", name, a, b)] = fmt.Sprintf(step, fmt.Sprintf("v%d--v%d", a, b))
				}
			}
		}
		for file, text := range files {
			if err := os.WriteFile(filepath.Join(folder, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		p, err := pack.ReadNative(os.DirFS(folder), name)
		if err != nil {
			t.Fatal(err)
		}
		var versions []string
		for _, row := range server.Query("SELECT version FROM pg_available_extension_versions WHERE name = $1", name) {
			versions = append(versions, row[0])
		}
		ours := p.Versions()
		slices.Sort(versions)
		slices.Sort(ours)
		if !slices.Equal(versions, ours) {
			t.Errorf("%s: versions %v, the server has %v", name, ours, versions)
		}
		for _, row := range server.Query("SELECT source, target, coalesce(path, '') FROM pg_extension_update_paths($1)", name) {
			if is := pathText(t, p, row[0], row[1]); is != row[2] {
				t.Errorf("%s from %s to %s: path %q, the server's is %q", name, row[0], row[1], is, row[2])
			}
		}
		for _, version := range versions {
			want := server.QueryValue(fmt.Sprintf(`CREATE EXTENSION %s VERSION '%s';
				SELECT string_agg(relname, ' ' ORDER BY oid) FROM pg_class WHERE relkind = 'r' AND oid >= 16384`, name, version))
			server.Exec("DROP EXTENSION " + name)
			path, err := p.Path("", version)
			if err != nil {
				t.Errorf("%s %s: %v", name, version, err)
				continue
			}
			var steps []string
			for _, s := range path {
				steps = append(steps, s.From+"--"+s.To)
			}
			if got := strings.Join(steps, " "); got != want {
				t.Errorf("%s %s: installed by %s, the server by %s", name, version, got, want)
			}
		}
	}
}

// TestServerAcceptsRendered lets a server read what we write for it.
func TestServerAcceptsRendered(t *testing.T) {
	t.Parallel()
	store := pgtest.Dir(t)
	folder := filepath.Join(store, "extension")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	c, err := pack.ParseControl("control", []byte(`name = 'odd ext'
version = 2
extversion = 1.0~rc1
comment = 'it''s a \'test\' \\ of é'
superuser = false
schema = 'My "schema"'
depends = plpgsql (>= 1.0), hstore | citext, x@server
conflicts = bla (< 0.8)
no_relocate = plpgsql
custom_variable_classes = odd
`))
	if err != nil {
		t.Fatal(err)
	}
	p := &pack.Package{Control: c, Scripts: []pack.Script{{To: c.ExtVersion, SQL: []byte("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';")}}}
	files, err := p.Native()
	if err != nil {
		t.Fatal(err)
	}
	for file, data := range files {
		if err := os.WriteFile(filepath.Join(folder, file), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	server := pgtest.Start(t, pgtest.Options{Major: pgserver.Majors[len(pgserver.Majors)-1], Settings: map[string]string{"extension_control_path": "$system:" + store}})
	server.Exec(`CREATE EXTENSION "odd ext"`)
	got := server.QueryValue(`SELECT concat_ws('|', version, superuser, schema, requires, comment) FROM pg_available_extension_versions WHERE name = 'odd ext' AND installed`)
	if want := `1.0~rc1|f|My "schema"|{plpgsql}|it's a 'test' \ of é`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestControlFilesAsTheServerReadsThem makes control files of odd characters,
// and compares what we and a server make of them.
func TestControlFilesAsTheServerReadsThem(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	store := pgtest.Dir(t)
	folder := filepath.Join(store, "extension")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "odd--1.sql"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	server := pgtest.Start(t, pgtest.Options{Major: 18, Settings: map[string]string{"extension_control_path": "$system:" + store}})
	conn, err := server.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	pieces := []string{"'", "'", "''", "\\", "\\1", "\\n", "a", "e", "E", "0", "x", "7", "1", ".", "-", "+", "_", ":", "/", " ", "\t", "=", "#", "\"", "é", ",", ";", "\r", "\n", "comment"}
	const rounds = 800
	accepted := 0
	for i := range rounds {
		line := "comment = "
		if i%3 == 0 {
			line += "'"
		}
		for range 1 + random.IntN(7) {
			line += pieces[random.IntN(len(pieces))]
		}
		if i%3 == 0 {
			line += "'"
		}
		text := "default_version = '1'\n" + line + "\nrelocatable = true\n"
		if err := os.WriteFile(filepath.Join(folder, "odd.control"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		var want *string
		err := conn.QueryRow(t.Context(), "CREATE EXTENSION odd").Scan()
		if errors.Is(err, pgx.ErrNoRows) {
			err = nil
		}
		if err == nil {
			if err := conn.QueryRow(t.Context(), "SELECT obj_description(oid, 'pg_extension') FROM pg_extension WHERE extname = 'odd'").Scan(&want); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Exec(t.Context(), "DROP EXTENSION odd"); err != nil {
				t.Fatal(err)
			}
			accepted++
		}
		p, ours := pack.ReadNative(os.DirFS(folder), "odd")
		if ours != nil && strings.Contains(ours.Error(), "is not UTF-8 text") {
			continue // the server takes what is before a zero byte, and any byte
		}
		if (err == nil) != (ours == nil) {
			t.Errorf("%q: the server says %v, we say %v", line, err, ours)
			continue
		}
		if err == nil && want != nil && p.Control.Comment != *want {
			t.Errorf("%q: the server reads %q, we read %q", line, *want, p.Control.Comment)
		}
	}
	t.Logf("%d of %d accepted", accepted, rounds)
	if accepted < rounds/8 || accepted > rounds*7/8 {
		t.Errorf("%d of %d accepted: the test has become easy", accepted, rounds)
	}
}
