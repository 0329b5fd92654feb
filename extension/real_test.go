package extension

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"rideau/extension/depend"
	"rideau/internal/pgtest"
)

// A life is what extensions that a server has files of go through, all of them in
// one database, in a few transactions:
//
//	install the oldest ─▶ upgrade ─▶ uninstall ─▶ install the newest ─▶ dump ─▶ restore
//	                         │            │               │                        │
//	                         │            └ nothing left  │                        │
//	                         └─ the members are the same ─┴─ the members are the same
type life struct {
	server   *pgtest.Server
	database string
	names    []string // sorted
	// first are those that others need, whose control files do not say so.
	first []string
	// schemas are for those that cannot share "public" with others.
	schemas map[string]string
	// oldest replaces the oldest version that has a path to the newest; "" where
	// there is no use in any.
	oldest map[string]string
	// differ lists what an upgraded extension has otherwise than a fresh one:
	// "- " what it lacks, "+ " what it has beside.
	differ map[string][]string
	// empty are those without any object.
	empty []string
	// newest replaces the newest version.
	newest map[string]string
	// left lists schemas that stay, empty, when all are gone.
	left []string
	// registers are the first words of lines that an extension adds to its own
	// tables while it is restored.
	registers []string
	// other is the server that the dump is restored in; nil for the same, in a
	// database that is made anew.
	other *pgtest.Server
	// use makes objects of a user's, and unuse drops them.
	use, unuse string
}

func (l life) run(t *testing.T) {
	t.Helper()
	l.server.Exec("CREATE DATABASE " + l.database)
	conninfo := l.server.Conninfo("dbname=" + l.database)
	s := connected(t, Config{}, conninfo)
	before := census(t, s)
	oldest := l.oldestVersions(t, s)
	t.Logf("%d extensions, %d of them with an upgrade path", len(l.names), len(oldest))

	l.install(t, s, oldest)
	l.check(t, s, "the installation of old versions", oldest)
	var newer []string
	for _, name := range slices.Sorted(maps.Keys(oldest)) {
		if v := l.newest[name]; v != "" {
			name += "=" + v
		}
		newer = append(newer, name)
	}
	if len(newer) > 0 {
		do(t, s, upgrade(newer...))
	}
	l.check(t, s, "the upgrade", nil)
	upgraded := l.members(t, s)

	l.uninstall(t, s, before)

	l.install(t, s, nil)
	l.check(t, s, "the installation", nil)
	fresh := l.members(t, s)
	for _, name := range l.names {
		if got, want := changes(fresh[name], upgraded[name]), l.differ[name]; !slices.Equal(got, want) {
			t.Errorf("%s upgraded from %s is not as a fresh one: differences\n%s\nwant\n%s", name, oldest[name], strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	list := installed(t, s)

	if l.use != "" {
		value(t, s, l.use+"; SELECT 1")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	dump := pgtest.Run(t, l.server.Major, "pg_dump", "-d", conninfo)
	if l.other == nil {
		l.server.Exec("DROP DATABASE " + l.database)
		l.other = l.server
	}
	l.other.Exec("CREATE DATABASE " + l.database + " TEMPLATE template0")
	conninfo = l.other.Conninfo("dbname=" + l.database)
	restore(t, l.server.Major, conninfo, dump)
	s = connected(t, Config{}, conninfo)
	if got := installed(t, s); !slices.Equal(got, list) {
		t.Errorf("after a restore there are\n%s\nbefore it\n%s", strings.Join(got, "\n"), strings.Join(list, "\n"))
	}
	restored := l.members(t, s)
	for _, name := range l.names {
		if diff := changes(fresh[name], restored[name]); len(diff) > 0 {
			t.Errorf("%s is not the same after a restore:\n%s", name, strings.Join(diff, "\n"))
		}
	}
	again := pgtest.Run(t, l.server.Major, "pg_dump", "-d", conninfo)
	diff := slices.DeleteFunc(changes(lines(dump), lines(again)), func(line string) bool {
		return slices.ContainsFunc(l.registers, func(words string) bool { return strings.HasPrefix(line, "+ "+words) })
	})
	if len(diff) > 0 {
		t.Errorf("the dump of what was restored is another:\n%s", strings.Join(diff, "\n"))
	}

	// What is used stays.
	if l.use != "" {
		if _, err := try(t.Context(), s, Request{Uninstall: l.names}, false); err == nil || !strings.Contains(err.Error(), "depend") {
			t.Errorf("uninstall: error %v, want that something depends on them", err)
		}
		value(t, s, l.unuse+"; SELECT 1")
	}
	l.uninstall(t, s, before)
}

// uninstall removes all, with what was installed because they need it.
func (l life) uninstall(t *testing.T, s *Session, before map[string]int) {
	t.Helper()
	var all []string
	for _, line := range installed(t, s) {
		name, _, _ := strings.Cut(line, " ")
		all = append(all, name)
	}
	do(t, s, Request{Uninstall: all})
	if got := installed(t, s); len(got) > 0 {
		t.Errorf("installed are %q after all were uninstalled", got)
	}
	for _, schema := range l.left {
		value(t, s, "DROP SCHEMA "+quoteIdent(schema)+" RESTRICT; SELECT 1")
	}
	if got := changes(before, census(t, s)); len(got) > 0 {
		t.Errorf("after all were uninstalled the catalogs have\n%s\nschemas are %s", strings.Join(got, "\n"), value(t, s, "SELECT string_agg(nspname, ' ') FROM pg_namespace"))
	}
}

// lines counts the lines of a dump, but the ones that are others each time.
func lines(dump string) map[string]int {
	count := map[string]int{}
	for line := range strings.Lines(dump) {
		if !strings.HasPrefix(line, `\restrict `) && !strings.HasPrefix(line, `\unrestrict `) {
			count[strings.TrimSuffix(line, "\n")]++
		}
	}
	return count
}

// install installs all, at the versions given or the newest.
func (l life) install(t *testing.T, s *Session, versions map[string]string) {
	t.Helper()
	for _, list := range [][]string{l.first, l.names} {
		var req Request
		for _, name := range list {
			w := Wish{Name: name, Schema: l.schemas[name]}
			if v := cmp.Or(versions[name], l.newest[name]); v != "" {
				w.Range = depend.Range{{Op: "=", Version: v}}
			}
			req.Install = append(req.Install, w)
		}
		if len(list) > 0 {
			do(t, s, req)
		}
	}
}

// oldestVersions are those that can be installed and upgraded to the default one.
func (l life) oldestVersions(t *testing.T, s *Session) map[string]string {
	t.Helper()
	oldest := map[string]string{}
	for _, name := range l.names {
		if v, ok := l.oldest[name]; ok {
			if v != "" {
				oldest[name] = v
			}
			continue
		}
		var newest string
		var versions []string
		for _, a := range s.Observed().Available[name] {
			versions = append(versions, a.Version)
			if a.Default {
				newest = a.Version
			}
		}
		if len(versions) < 2 {
			continue
		}
		p, err := serverPaths(s.primary.conn)(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range depend.NewOrder(versions, p.edges).Sorted() {
			if v != newest && slices.Contains(versions, v) && p.leads(v, newest) {
				oldest[name] = v
				break
			}
		}
	}
	return oldest
}

// check says whether all are there, as native ones, at the versions given or else
// the server's default.
func (l life) check(t *testing.T, s *Session, after string, versions map[string]string) {
	t.Helper()
	if err := s.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range l.names {
		var want string
		for _, a := range s.Observed().Available[name] {
			if a.Default {
				want = a.Version
			}
		}
		want = cmp.Or(versions[name], want)
		in, ok := s.Observed().Find(name)
		if !ok {
			t.Errorf("after %s: %s is not there", after, name)
		} else if in.Version != want || in.Mode != Native {
			t.Errorf("after %s: %s is at %s in mode %s, want %s", after, name, in.Version, in.Mode, want)
		}
	}
}

// members are the identities of the objects of each extension.
func (l life) members(t *testing.T, s *Session) map[string]map[string]int {
	t.Helper()
	rows, err := s.primary.conn.Query(t.Context(), `
SELECT e.extname::text, i.type || ' ' || i.identity
FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e',
pg_identify_object(d.classid, d.objid, d.objsubid) i`)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[string]int{}
	var name, object string
	if _, err := pgx.ForEachRow(rows, []any{&name, &object}, func() error {
		if all[name] == nil {
			all[name] = map[string]int{}
		}
		all[name][object]++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range l.names {
		if len(all[name]) == 0 != slices.Contains(l.empty, name) {
			t.Errorf("%s has %d members", name, len(all[name]))
		}
	}
	return all
}

// census counts the rows of every catalog of a database, except statistics.
func census(t *testing.T, s *Session) map[string]int {
	t.Helper()
	query := value(t, s, `
SELECT string_agg(format('SELECT %L, count(*) FROM pg_catalog.%I AS c', relname, relname) ||
  CASE relname WHEN 'pg_namespace' THEN $$ WHERE nspname !~ '^pg_(toast_)?temp_'$$ ELSE '' END, ' UNION ALL ')
FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared
AND relname NOT IN ('pg_statistic', 'pg_statistic_ext_data') AND has_table_privilege(oid, 'SELECT')`)
	rows, err := s.primary.conn.Query(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int{}
	var name string
	var count int
	if _, err := pgx.ForEachRow(rows, []any{&name, &count}, func() error { all[name] = count; return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// changes lists what one has less (-) or more (+) of than the other.
func changes(was, is map[string]int) []string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(was)) {
		if n := is[key] - was[key]; n < -1 {
			list = append(list, fmt.Sprintf("- %s (%d)", key, -n))
		} else if n < 0 {
			list = append(list, "- "+key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(is)) {
		if n := is[key] - was[key]; n > 1 {
			list = append(list, fmt.Sprintf("+ %s (%d)", key, n))
		} else if n > 0 {
			list = append(list, "+ "+key)
		}
	}
	return list
}
