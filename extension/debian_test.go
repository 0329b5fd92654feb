package extension

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rideau/extension/pack"
	"rideau/internal/pgtest"
)

// debian is what scripts/servers installs beside PostgreSQL 15: extensions by the
// name of their package, without "postgresql-15-".
var debian = map[string][]string{
	"asn1oid":                {"asn1oid"},
	"cron":                   {"pg_cron"},
	"debversion":             {"debversion"},
	"dirtyread":              {"pg_dirtyread"},
	"extra-window-functions": {"extra_window_functions"},
	"first-last-agg":         {"first_last_agg"},
	"hll":                    {"hll"},
	"hypopg":                 {"hypopg"},
	"icu-ext":                {"icu_ext"},
	"ip4r":                   {"ip4r"},
	"jsquery":                {"jsquery"},
	"mimeo":                  {"mimeo"},
	"numeral":                {"numeral"},
	"orafce":                 {"orafce"},
	"partman":                {"pg_partman"},
	"periods":                {"periods"},
	"pg-fact-loader":         {"pg_fact_loader"},
	"pg-qualstats":           {"pg_qualstats"},
	"pg-stat-kcache":         {"pg_stat_kcache"},
	"pg-track-settings":      {"pg_track_settings"},
	"pg-wait-sampling":       {"pg_wait_sampling"},
	"pgaudit":                {"pgaudit"},
	"pgfincore":              {"pgfincore"},
	"pgl-ddl-deploy":         {"pgl_ddl_deploy"},
	"pglogical":              {"pglogical", "pglogical_origin"},
	"pgmp":                   {"pgmp"},
	"pgpcre":                 {"pgpcre"},
	"pgq-node":               {"pgq_node"},
	"pgq3":                   {"pgq"},
	"pgtap":                  {"pgtap"},
	"pldebugger":             {"pldbgapi"},
	"plpgsql-check":          {"plpgsql_check"},
	"plprofiler":             {"plprofiler"},
	"plproxy":                {"plproxy"},
	"plsh":                   {"plsh"},
	"powa":                   {"powa"},
	"prefix":                 {"prefix"},
	"preprepare":             {"pre_prepare"},
	"prioritize":             {"prioritize"},
	"q3c":                    {"q3c"},
	"rational":               {"pg_rational"},
	"semver":                 {"semver"},
	"set-user":               {"set_user"},
	"similarity":             {"pg_similarity"},
	"tablelog":               {"table_log"},
	"tdigest":                {"tdigest"},
	"toastinfo":              {"toastinfo"},
	"unit":                   {"unit"},
}

// debianPackage returns the package that an extension comes in, or "".
func debianPackage(extension string) string {
	for pkg, list := range debian {
		if slices.Contains(list, extension) {
			return "postgresql-15-" + pkg
		}
	}
	return ""
}

// debianServer starts a server that has Debian's extensions, or fails with what is
// not there. It has loaded the libraries that refuse to be created otherwise.
func debianServer(t *testing.T) *pgtest.Server {
	t.Helper()
	settings := maps.Clone(roomForLocks)
	settings["shared_preload_libraries"] = "pg_stat_statements,pg_stat_kcache,pgaudit,pg_cron,pglogical"
	settings["cron.database_name"] = "app" // pg_cron can be in one database only
	server := pgtest.Start(t, pgtest.Options{Major: 15, Settings: settings})
	available := server.Query("SELECT name FROM pg_available_extensions")
	for _, pkg := range names(debian) {
		for _, name := range debian[pkg] {
			if !slices.ContainsFunc(available, func(row []string) bool { return row[0] == name }) {
				t.Errorf("PostgreSQL 15 has no extension %s: it is in package postgresql-15-%s, which scripts/servers installs from Debian; try scripts/servers --again 15", name, pkg)
			}
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	return server
}

// Extensions as their authors and Debian's packagers have made them, in one
// database.
func TestDebian(t *testing.T) {
	t.Parallel()
	l := life{
		server: debianServer(t),
		// Not in a database made anew of the same server: once pg_cron or pglogical
		// have been in one, their workers keep DROP DATABASE waiting.
		other:    debianServer(t),
		database: "app",
		// pgl_ddl_deploy makes a view of tables of pglogical's.
		first: []string{"pglogical"},
		// Both have a function check_name_length(), and their authors advise to give
		// them a schema each.
		schemas: map[string]string{"mimeo": "mimeo", "pg_partman": "partman"},
		oldest: map[string]string{
			"pglogical": "2.2.0", // 1 has other tables than pgl_ddl_deploy 1.0 wants
			"powa":      "4.1.0", // see TestDebianBroken
			"unit":      "2",     // likewise
		},
		empty: []string{"pglogical_origin"}, // it was for 9.4
		// hll's control file has stayed at 2.16, and so does what is restored.
		newest: map[string]string{"hll": "2.16"},
		differ: map[string][]string{
			// 2.4.1 gave it one more argument, and no update script does.
			"pglogical": {
				"- function pglogical.create_subscription(pg_catalog.name,pg_catalog.text,pg_catalog.text[],boolean,boolean,pg_catalog.text[],interval,boolean)",
				"+ function pglogical.create_subscription(pg_catalog.name,pg_catalog.text,pg_catalog.text[],boolean,boolean,pg_catalog.text[],interval)",
			},
		},
		// Two are ours. The others are in control files: CREATE EXTENSION makes such a
		// schema and does not make it a member.
		left: []string{"mimeo", "partman", "fact_loader", "pgl_ddl_deploy", "pglogical", "pglogical_origin"},
		// powa has an event trigger that registers extensions when they are created,
		// and dumps what it has registered: a restore has it twice.
		registers: []string{"0\tpg_qualstats\t", "0\tpg_stat_kcache\t", "0\tpg_track_settings\t", "0\tpg_wait_sampling\t"},
		use: `
SET search_path = public;
CREATE TABLE hosts (
  name text, address ip4r PRIMARY KEY, runs semver, has debversion, code prefix_range, length unit DEFAULT '1 km',
  visitors hll DEFAULT hll_empty(), facts jsonb, part rational,
  EXCLUDE USING gist (address WITH &&)
);
CREATE INDEX ON hosts USING gist (code);
CREATE INDEX ON hosts USING gin (facts jsonb_path_value_ops);
CREATE INDEX ON hosts (q3c_ang2ipix(1.5, 2.5 + length(name)));
INSERT INTO hosts VALUES ('a', '192.0.2.0/24', '1.2.3', '1:2-3~4', '33[1-2]', '3 m', hll_add(hll_empty(), hll_hash_integer(1)), '{"a": 1}', '1/3')`,
		unuse: "DROP TABLE public.hosts",
	}
	for _, list := range debian {
		l.names = append(l.names, list...)
	}
	slices.Sort(l.names)
	if len(l.names) < 25 {
		t.Errorf("only %d extensions", len(l.names))
	}
	l.run(t)
}

// Update scripts of their authors that cannot work: nothing changes, and not what
// was to be done in the same breath either.
func TestDebianBroken(t *testing.T) {
	t.Parallel()
	s := connected(t, Config{}, debianServer(t).Conninfo(""))
	for _, broken := range []struct{ name, version, want string }{
		{"powa", "4.0.0", `cannot change name of input parameter "_extname"`},
		{"unit", "1", `function "unit_accum" already exists`},
	} {
		do(t, s, install(broken.name+"="+broken.version, "hll=2.15"))
		before := installed(t, s)
		if _, err := try(t.Context(), s, upgrade("hll", broken.name), false); err == nil || !strings.Contains(err.Error(), broken.want) {
			t.Errorf("upgrade %s from %s: error %v, want %q", broken.name, broken.version, err, broken.want)
		}
		if got := installed(t, s); !slices.Equal(got, before) {
			t.Errorf("after an upgrade of %s that failed there are %q, before it %q", broken.name, got, before)
		}
		do(t, s, Request{Uninstall: []string{broken.name, "hll"}})
	}
}

// Extensions that are nothing but SQL, as modules of somebody who owns a database
// and nothing else: their scripts were written for CREATE EXTENSION.
func TestDebianModule(t *testing.T) {
	t.Parallel()
	server := debianServer(t)
	share := server.QueryValue("SELECT setting FROM pg_config WHERE name = 'SHAREDIR'")
	dir := t.TempDir()
	for _, name := range []string{"pgtap", "pg_partman", "pg_track_settings"} {
		pkg, err := pack.ReadNative(os.DirFS(filepath.Join(share, "extension")), name)
		if err != nil {
			t.Fatal(err)
		}
		pkg.Control.Name = "my_" + name // the server has files of the other name
		files, err := pkg.Native()
		if err != nil {
			t.Fatal(err)
		}
		for file, text := range files {
			writeTree(t, dir, "-- "+pkg.Control.Name+"/"+file+" --\n"+string(text))
		}
	}
	shelf := directory(t, dir)
	conninfo := owner(t, server, "plain")
	s := connected(t, Config{Shelves: shelves(shelf)}, conninfo)
	all := Request{Install: []Wish{{Name: "my_pgtap", Schema: "tap"}, {Name: "my_pg_partman", Schema: "partman"}, {Name: "my_pg_track_settings"}}}
	gone := Request{Uninstall: []string{"my_pgtap", "my_pg_partman", "my_pg_track_settings"}}
	do(t, s, install("my_pg_track_settings"))
	do(t, s, Request{Uninstall: []string{"my_pg_track_settings"}})
	before := census(t, s) // with schema "extension", which stays

	do(t, s, all)
	list := installed(t, s)
	if want := []string{"my_pg_partman 4.7.2 module partman", "my_pg_track_settings 2.1.0 module public", "my_pgtap 1.2.0 module tap"}; !slices.Equal(list, want) {
		t.Errorf("installed are %q, want %q", list, want)
	}
	psql := func(conninfo, sql string) string {
		return strings.TrimSpace(pgtest.Run(t, 15, "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", conninfo, "-c", sql))
	}
	for _, database := range []string{"plain", "again"} {
		conninfo := server.Conninfo("user=plain dbname=" + database)
		if database == "again" {
			server.Exec("CREATE DATABASE again OWNER plain")
			restore(t, 15, conninfo, pgtest.Run(t, 15, "pg_dump", "-d", server.Conninfo("user=plain dbname=plain")))
			s = connected(t, Config{Shelves: shelves(shelf)}, conninfo)
			if got := installed(t, s); !slices.Equal(got, list) {
				t.Errorf("after a restore there are %q, want %q", got, list)
			}
			st, err := s.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range st.Extensions {
				if e.Mode == Module && (len(e.Missing) > 0 || len(e.Modified) > 0) {
					t.Errorf("after a restore: %+v", e)
				}
			}
		} else {
			psql(conninfo, `
CREATE TABLE public.events (at timestamptz NOT NULL) PARTITION BY RANGE (at);
SELECT partman.create_parent('public.events', 'at', 'native', 'daily', p_premake := 7)`)
		}
		// What they do, they do here, too.
		if got := psql(conninfo, "SET search_path = tap; SELECT plan(1); SELECT is(1 + 1, 2, 'sum'); SELECT * FROM finish()"); got != "1..1\nok 1 - sum" {
			t.Errorf("%s: pgTAP says %q", database, got)
		}
		const partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'public.events'::regclass"
		had := psql(conninfo, partitions)
		psql(conninfo, "INSERT INTO public.events VALUES (now()); UPDATE partman.part_config SET premake = premake + 3; SELECT partman.run_maintenance()")
		if got := psql(conninfo, partitions); len(got) < len(had) || got <= had {
			t.Errorf("%s: pg_partman has made %s partitions of %s", database, got, had)
		}
		if got := psql(conninfo, "SET search_path = public; SELECT pg_track_settings_snapshot(); SELECT count(*) > 100 FROM pg_track_settings()"); got != "t\nt" {
			t.Errorf("%s: pg_track_settings says %q", database, got)
		}
	}
	for _, database := range []string{"plain", "again"} {
		psql(server.Conninfo("user=plain dbname="+database), "DROP TABLE public.events, partman.template_public_events")
		s := connected(t, Config{}, server.Conninfo("user=plain dbname="+database))
		do(t, s, gone)
		if diff := changes(before, census(t, s)); len(diff) > 0 {
			t.Errorf("%s: after all were uninstalled the catalogs have\n%s", database, strings.Join(diff, "\n"))
		}
	}
}
