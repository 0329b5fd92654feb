package extension

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"rideau/extension/registry"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
)

// aLibrary makes a package with a library of what a server has: contrib's isn
// under another name, as an extension from elsewhere would come.
func aLibrary(t *testing.T, server *pgtest.Server) *registry.Registry {
	t.Helper()
	lib := server.QueryValue("SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'")
	share := server.QueryValue("SELECT setting FROM pg_config WHERE name = 'SHAREDIR'")
	data, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(server.QueryValue("SELECT encode(pg_read_binary_file($1), 'base64')", lib+"/isn.so"), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeTree(t, dir, `
-- numbers/control --
name = numbers
version = 1.1
comment = 'international product numbers'
module_pathname = '$libdir/numbers'
relocatable = true
-- numbers/install.sql --
`+server.QueryValue("SELECT pg_read_file($1)", share+"/extension/isn--1.1.sql")+`
-- numbers/upgrade/1.1--1.2.sql --
`+server.QueryValue("SELECT pg_read_file($1)", share+"/extension/isn--1.1--1.2.sql"))
	if err := os.MkdirAll(filepath.Join(dir, "numbers/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "numbers/lib/numbers.so"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	// 1.2 as a release of its own.
	if out, err := exec.Command("cp", "-r", filepath.Join(dir, "numbers"), filepath.Join(dir, "numbers-1.2")).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	for name, edit := range map[string][2]string{"control": {"version = 1.1", "version = 1.2"}} {
		file := filepath.Join(dir, "numbers-1.2", name)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(strings.Replace(string(text), edit[0], edit[1], 1)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Its install.sql is that of 1.1 and the update, as upstream would ship it.
	install, err := os.ReadFile(filepath.Join(dir, "numbers/install.sql"))
	if err != nil {
		t.Fatal(err)
	}
	update, err := os.ReadFile(filepath.Join(dir, "numbers/upgrade/1.1--1.2.sql"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "numbers-1.2/install.sql"), append(install, update...), 0o644); err != nil {
		t.Fatal(err)
	}
	return directory(t, dir)
}

// modeFor is how a library gets onto a server of that version.
func modeFor(major int) Mode {
	if major >= 18 {
		return Path
	}
	return Graft
}

// A library, on servers whose own folders cannot be written to: brought over one
// SQL connection, with as many members as CREATE EXTENSION gives it, upgraded,
// dumped, restored, dropped.
func TestLibrary(t *testing.T) {
	t.Parallel()
	for _, major := range []int{13, 17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			server := pgtest.Start(t, pgtest.Options{Major: major})
			shelf := aLibrary(t, server)
			s := connected(t, Config{Shelves: shelves(shelf)}, server.Conninfo(""))

			// A rehearsal brings what it needs, and takes it away again.
			req := install("numbers=1.1")
			req.Mode = modeFor(major)
			if _, err := try(t.Context(), s, req, true); err != nil {
				t.Fatal(err)
			}
			if got := server.QueryValue("SELECT coalesce(string_agg(d, ' '), '') FROM pg_ls_dir('.') d WHERE d ~ '^rideau(-|$)'"); got != "" || len(installed(t, s)) != 0 {
				t.Errorf("after a dry run there are folders %q and %q", got, installed(t, s))
			}

			do(t, s, req)
			if got, want := installed(t, s), []string{fmt.Sprintf("numbers 1.1 %s numbers", modeFor(major))}; !slices.Equal(got, want) &&
				!slices.Equal(got, []string{fmt.Sprintf("numbers 1.1 %s public", modeFor(major))}) {
				t.Fatalf("installed are %q, want %q", got, want)
			}
			schema := s.Observed().Installed[0].Schema
			if got := value(t, s, fmt.Sprintf("SET search_path = %s; SELECT isbn('978-0-393-04002-9')::text", schema)); got != "0-393-04002-X" {
				t.Errorf("isbn is %q", got)
			}
			server.Exec("CREATE DATABASE native")
			native := connected(t, Config{}, server.Conninfo("dbname=native"))
			value(t, native, "CREATE SCHEMA o; CREATE EXTENSION isn SCHEMA o VERSION '1.1'; SELECT 1")
			members := "SELECT count(*) FROM pg_catalog.pg_depend WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_catalog.pg_extension WHERE extname = '%s')"
			if got, want := value(t, s, fmt.Sprintf(members, "numbers")), value(t, native, fmt.Sprintf(members, "isn")); got != want {
				kinds := "SELECT string_agg(k || ' ' || n, ', ' ORDER BY k) FROM (SELECT pg_catalog.pg_describe_object(classid, 0, 0) IS NULL, (SELECT relname FROM pg_catalog.pg_class c WHERE c.oid = classid) || coalesce((SELECT ' ' || typcategory::text FROM pg_catalog.pg_type y WHERE y.oid = objid AND classid = 'pg_catalog.pg_type'::pg_catalog.regclass), '') AS k, count(*) AS n FROM pg_catalog.pg_depend WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_catalog.pg_extension WHERE extname = '%s') GROUP BY 1, 2) x"
				t.Errorf("%s members, and CREATE EXTENSION makes %s:\n%s\n%s", got, want, value(t, s, fmt.Sprintf(kinds, "numbers")), value(t, native, fmt.Sprintf(kinds, "isn")))
			}
			up := upgrade("numbers")
			up.Mode = modeFor(major)
			do(t, s, up)
			if got := installed(t, s); !strings.HasPrefix(got[0], "numbers 1.2 ") {
				t.Errorf("installed are %q after the upgrade", got)
			}

			// The server starts again and still finds the library.
			server.Stop(pgserver.Fast)
			server.Start()
			s = connected(t, Config{Shelves: shelves(shelf)}, server.Conninfo(""))
			if got := value(t, s, fmt.Sprintf("SET search_path = %s; SELECT isbn('978-0-393-04002-9')::text", schema)); got != "0-393-04002-X" {
				t.Errorf("isbn is %q after a restart", got)
			}
			value(t, s, fmt.Sprintf("CREATE TABLE public.books (i %s.isbn); SELECT 1", schema))
			if _, err := try(t.Context(), s, Request{Uninstall: []string{"numbers"}}, false); err == nil {
				t.Error("numbers was uninstalled under a table that uses it")
			}
			// Nobody restores a graft without files; path has them where it was installed.
			if major >= 18 {
				dump := pgtest.Run(t, major, "pg_dump", "-d", server.Conninfo(""))
				server.Exec("CREATE DATABASE restored")
				restore(t, major, server.Conninfo("dbname=restored"), dump)
			}
			value(t, s, "DROP TABLE public.books; SELECT 1")
			do(t, s, Request{Uninstall: []string{"numbers"}})
			if got := installed(t, s); len(got) != 0 {
				t.Errorf("installed are %q, want nothing", got)
			}
			if got := server.QueryValue("SELECT count(*) FROM pg_type WHERE typname = 'isbn'"); got != "0" {
				t.Error("types of numbers are left")
			}
		})
	}
}

// A primary with two standbys: libraries get everywhere before any row refers to
// them; a standby is promoted, and it still works.
func TestPool(t *testing.T) {
	t.Parallel()
	for _, major := range []int{15, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			primary := pgtest.Start(t, pgtest.Options{Major: major})
			var nodes []*pgtest.Server
			conninfos := []string{primary.Conninfo("")}
			for i := range 2 {
				standby := primary.Standby(pgtest.Options{Name: "s" + strconv.Itoa(i)}, primary.Conninfo(""))
				standby.Start()
				nodes = append(nodes, standby)
				conninfos = append(conninfos, standby.Conninfo(""))
			}
			s := connected(t, Config{Shelves: shelves(aLibrary(t, primary))}, conninfos[1], conninfos[0], conninfos[2])
			req := install("numbers", "hstore")
			req.Mode = Auto
			req.Install[0].Mode = modeFor(major)
			p, err := s.Plan(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			libs := 0
			for _, f := range p.Files {
				if strings.HasSuffix(f.Path, "numbers.so") {
					libs++
				}
			}
			if libs != 3 || len(p.Standbys) != 2 {
				t.Errorf("the plan has the library for %d of 3 nodes, standbys %v", libs, p.Standbys)
			}
			if _, err := s.Apply(t.Context(), p, false); err != nil {
				t.Fatal(err)
			}
			schema := "public"
			if err := s.refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			if in, ok := s.Observed().Find("numbers"); ok {
				schema = in.Schema
			}
			isbn := fmt.Sprintf("SELECT %s.isbn('978-0-393-04002-9')::text", schema)
			for _, n := range nodes {
				if got := n.QueryValue(isbn); got != "0-393-04002-X" {
					t.Errorf("%s: isbn is %q", n, got)
				}
			}
			x, err := s.Doctor(t.Context(), DoctorOptions{})
			if err != nil || !x.Healthy() {
				t.Errorf("doctor: %+v, %v", x, err)
			}
			// The primary dies; one standby takes over.
			primary.Kill()
			nodes[0].Promote()
			after := connected(t, Config{Shelves: s.cfg.Shelves}, conninfos[1])
			nodes[0].Exec(fmt.Sprintf("CREATE TABLE books (i %s.isbn); INSERT INTO books VALUES ('978-0-393-04002-9')", schema))
			if got := nodes[0].QueryValue("SELECT i::text FROM books"); got != "0-393-04002-X" {
				t.Errorf("after the promotion isbn is %q", got)
			}
			nodes[0].Exec("DROP TABLE books")
			do(t, after, Request{Uninstall: []string{"numbers"}})
			do(t, after, install("cube"))
		})
	}
}

// A standby whose files differ: seen before anything is changed, and either
// brought there or refused with the name of the file.
func TestSkew(t *testing.T) {
	t.Parallel()
	const major = 16 // its tree stands alone, and can be copied
	primary := pgtest.Start(t, pgtest.Options{Major: major})
	standby := primary.Standby(pgtest.Options{Name: "other"}, primary.Conninfo(""))
	tree := pgtest.Dir(t)
	if out, err := exec.Command("cp", "-rL", filepath.Dir(standby.BinDir)+"/.", tree).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	standby.Server.BinDir = filepath.Join(tree, "bin")
	standby.Start()
	s := connected(t, Config{}, primary.Conninfo(""), standby.Conninfo(""))
	lib := standby.QueryValue("SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'")
	if !strings.HasPrefix(lib, tree) {
		t.Fatalf("the standby has its libraries in %s, want them below %s", lib, tree)
	}
	hstore := filepath.Join(lib, "hstore.so")
	whole, err := os.ReadFile(hstore)
	if err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(hstore, append(whole, 0), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = try(t.Context(), s, install("hstore"), false)
	var skew *SkewError
	if !errors.As(err, &skew) || len(skew.Problems) != 1 || skew.Problems[0].File != hstore || !strings.Contains(skew.Error(), "differs") {
		t.Errorf("error %v, want that %s differs", err, hstore)
	}
	if got := installed(t, s); len(got) != 0 {
		t.Errorf("installed are %q after a refusal", got)
	}

	// Missing where the server may not write: refused, with the place.
	if err := os.Remove(hstore); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(lib, 0o555); err != nil {
		t.Fatal(err)
	}
	_, err = try(t.Context(), s, install("hstore"), false)
	if !errors.As(err, &skew) || !strings.Contains(skew.Error(), hstore) || !strings.Contains(skew.Error(), "copy it from") {
		t.Errorf("error %v, want that %s is to be copied", err, hstore)
	}

	// Missing where it may: brought over SQL, before the primary is touched.
	if err := os.Chmod(lib, 0o777); err != nil {
		t.Fatal(err)
	}
	do(t, s, install("hstore"))
	if got := standby.QueryValue(`SELECT 'a=>1'::hstore -> 'a'`); got != "1" {
		t.Errorf("hstore on the standby says %q", got)
	}
	x, err := s.Doctor(t.Context(), DoctorOptions{})
	if err != nil || !x.Healthy() {
		t.Errorf("doctor: %+v, %v", x, err)
	}
	if err := os.Remove(hstore); err != nil {
		t.Fatal(err)
	}
	again := connected(t, Config{}, primary.Conninfo(""), standby.Conninfo(""))
	if x, err = again.Doctor(t.Context(), DoctorOptions{}); err != nil || x.Healthy() {
		t.Errorf("doctor does not see that the library is gone: %+v, %v", x, err)
	}
}

// Before pg_upgrade: what the new server lacks.
func TestDoctorTarget(t *testing.T) {
	t.Parallel()
	old := pgtest.Start(t, pgtest.Options{Major: 16})
	old.Exec("CREATE EXTENSION adminpack; CREATE EXTENSION hstore VERSION '1.4'")
	target := pgtest.Start(t, pgtest.Options{Major: 17})
	s := connected(t, Config{}, old.Conninfo(""))
	x, err := s.Doctor(t.Context(), DoctorOptions{Target: target.Conninfo("")})
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, f := range x.Findings {
		said = append(said, string(f.Verdict)+" "+f.What)
	}
	all := strings.Join(said, "\n")
	for _, want := range []string{"no files of adminpack", "hstore is 1.4 here and 1.8"} {
		if !strings.Contains(all, want) {
			t.Errorf("the doctor does not say %q:\n%s", want, all)
		}
	}
	if x.Healthy() {
		t.Errorf("an upgrade that would stop is healthy:\n%s", all)
	}
	if _, err := s.Doctor(t.Context(), DoctorOptions{Target: old.Conninfo("")}); err == nil {
		t.Error("the server itself was accepted as its own upgrade")
	}
}
