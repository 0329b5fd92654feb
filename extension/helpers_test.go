package extension

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rideau/extension/registry"
	"rideau/internal/pgtest"
)

// packages writes package directories from a text and opens them as a registry:
//
//	-- foo-1.0/control --
//	name = foo
//	...
func packages(t testing.TB, text string) *registry.Registry {
	t.Helper()
	dir := t.TempDir()
	writeTree(t, dir, text)
	return directory(t, dir)
}

// directory opens a directory of packages for as long as the test.
func directory(t testing.TB, dir string) *registry.Registry {
	t.Helper()
	r, err := registry.OpenDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func writeTree(t testing.TB, dir, text string) {
	t.Helper()
	var name string
	var body strings.Builder
	flush := func() {
		if name == "" {
			return
		}
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(body.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		body.Reset()
	}
	for line := range strings.Lines(text) {
		if inner, ok := strings.CutPrefix(strings.TrimSpace(line), "-- "); ok && strings.HasSuffix(inner, " --") && strings.Contains(inner, "/") {
			flush()
			name = strings.TrimSuffix(inner, " --")
			continue
		}
		body.WriteString(line)
	}
	flush()
}

// connected opens a session to a database of a server as a role.
func connected(t testing.TB, cfg Config, conninfo ...string) *Session {
	t.Helper()
	cfg.Nodes = conninfo
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// do plans and applies.
func do(t testing.TB, s *Session, req Request) *Report {
	t.Helper()
	report, err := try(t.Context(), s, req, false)
	if err != nil {
		t.Fatalf("%+v: %v", req, err)
	}
	return report
}

func try(ctx context.Context, s *Session, req Request, dry bool) (*Report, error) {
	if err := s.refresh(ctx); err != nil {
		return nil, err
	}
	p, err := s.Plan(ctx, req)
	if err != nil {
		return nil, err
	}
	return s.Apply(ctx, p, dry)
}

// install is a request for these.
func install(wishes ...string) Request {
	var req Request
	for _, text := range wishes {
		w, err := ParseWish(text)
		if err != nil {
			panic(err)
		}
		req.Install = append(req.Install, w)
	}
	return req
}

func upgrade(wishes ...string) Request { return Request{Upgrade: install(wishes...).Install} }

// owner makes a role that owns a database of its own, and nothing else. It
// returns the connection string.
func owner(t testing.TB, s *pgtest.Server, name string) string {
	t.Helper()
	s.Exec(fmt.Sprintf("CREATE ROLE %s LOGIN", name))
	s.Exec(fmt.Sprintf("CREATE DATABASE %s OWNER %s", name, name))
	return s.Conninfo(fmt.Sprintf("user=%s dbname=%s", name, name))
}

// installed lists what a database has, as "name version mode schema".
func installed(t testing.TB, s *Session) []string {
	t.Helper()
	if err := s.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, in := range s.Observed().Installed {
		if in.Name != "plpgsql" {
			list = append(list, fmt.Sprintf("%s %s %s %s", in.Name, in.Version, in.Mode, in.Schema))
		}
	}
	return list
}

// value runs a query in the session and returns its one value as text.
func value(t testing.TB, s *Session, sql string) string {
	t.Helper()
	results, err := s.primary.conn.PgConn().Exec(t.Context(), sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	last := results[len(results)-1]
	if len(last.Rows) != 1 || len(last.Rows[0]) != 1 {
		t.Fatalf("%s: %d rows, want one value", sql, len(last.Rows))
	}
	return string(last.Rows[0][0])
}

func shelves(list ...*registry.Registry) []*registry.Registry { return list }

// restore runs a dump of pg_dump as the role of conninfo.
func restore(t testing.TB, major int, conninfo, dump string) {
	t.Helper()
	cmd := pgtest.Command(t, major, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", conninfo)
	// A newer pg_dump sets what an older server does not know.
	cmd.Stdin = strings.NewReader(strings.Replace(dump, "SET transaction_timeout = 0;\n", "", 1))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("restore: %v\n%s", err, out)
	}
}
