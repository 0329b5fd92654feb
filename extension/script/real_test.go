package script_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"rideau/extension/script"
	"rideau/internal/pgtest"
)

// objects lists what is in a database and was not there after initdb, with
// enough of the definition to see a difference.
const objects = `
SELECT i.type || ' ' || i.identity || ' ' || o.definition
  FROM (SELECT 'pg_proc'::regclass AS class, oid,
               CASE WHEN prokind = 'a' THEN '' ELSE md5(pg_get_functiondef(oid)) END AS definition FROM pg_proc
 UNION ALL SELECT 'pg_type', oid, md5(concat_ws(' ', typinput, typoutput, typreceive, typsend, typlen, typalign, typstorage, typdefault)) FROM pg_type
 UNION ALL SELECT 'pg_class', oid, CASE WHEN relkind IN ('v', 'm') THEN md5(pg_get_viewdef(oid)) ELSE relkind::text END FROM pg_class WHERE relkind <> 't' AND relnamespace <> 'pg_toast'::regnamespace
 UNION ALL SELECT 'pg_operator', oid, md5(concat_ws(' ', oprcode, oprrest, oprjoin, oprcom::regoperator, oprnegate::regoperator, oprcanhash, oprcanmerge)) FROM pg_operator
 UNION ALL SELECT 'pg_cast', oid, castcontext::text || castmethod::text FROM pg_cast
 UNION ALL SELECT 'pg_opclass', oid, opcdefault::text FROM pg_opclass
 UNION ALL SELECT 'pg_opfamily', oid, '' FROM pg_opfamily
 UNION ALL SELECT 'pg_amop', oid, amoppurpose::text FROM pg_amop
 UNION ALL SELECT 'pg_amproc', oid, amproc::text FROM pg_amproc
 UNION ALL SELECT 'pg_am', oid, amhandler::text FROM pg_am
 UNION ALL SELECT 'pg_language', oid, '' FROM pg_language
 UNION ALL SELECT 'pg_transform', oid, '' FROM pg_transform
 UNION ALL SELECT 'pg_ts_dict', oid, coalesce(dictinitoption, '') FROM pg_ts_dict
 UNION ALL SELECT 'pg_ts_template', oid, '' FROM pg_ts_template
 UNION ALL SELECT 'pg_ts_parser', oid, '' FROM pg_ts_parser
 UNION ALL SELECT 'pg_ts_config', oid, '' FROM pg_ts_config
 UNION ALL SELECT 'pg_foreign_data_wrapper', oid, '' FROM pg_foreign_data_wrapper
 UNION ALL SELECT 'pg_event_trigger', oid, '' FROM pg_event_trigger
 UNION ALL SELECT 'pg_rewrite', oid, md5(pg_get_ruledef(oid)) FROM pg_rewrite
 UNION ALL SELECT 'pg_constraint', oid, md5(pg_get_constraintdef(oid)) FROM pg_constraint
 UNION ALL SELECT 'pg_namespace', oid, '' FROM pg_namespace WHERE nspname NOT LIKE 'pg\_%'
       ) o, pg_identify_object(o.class, o.oid, 0) i
 WHERE o.oid >= 16384`

// TestAgainstServers runs the install scripts of every extension that a server
// has, one statement at a time, and compares what that makes with what CREATE
// EXTENSION makes. 15 has many that are not of PostgreSQL's own.
func TestAgainstServers(t *testing.T) {
	t.Parallel()
	for _, major := range pgtest.Some {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			server := pgtest.Start(t, pgtest.Options{Major: major})
			conn, err := server.Connect(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.WithoutCancel(ctx))
			share := server.QueryValue("SELECT setting FROM pg_config WHERE name = 'SHAREDIR'")
			n, statements := 0, 0
			for _, row := range server.Query("SELECT name, default_version FROM pg_available_extensions WHERE installed_version IS NULL ORDER BY 1") {
				e := &installable{share: share, name: row[0], version: row[1]}
				want, err := e.native(ctx, conn)
				if err != nil {
					// Built with what this machine lacks (plpython without
					// Python), or to be preloaded: the server's own word is no
					// difference.
					t.Logf("%s: the server cannot create it: %v", e.name, err)
					continue
				}
				got, err := e.byStatement(ctx, conn)
				if err != nil {
					t.Errorf("%s %s: %v", e.name, e.version, err)
					continue
				}
				n++
				statements += e.statements
				for object := range want {
					if !got[object] {
						t.Errorf("%s: CREATE EXTENSION makes %s, its statements do not", e.name, object)
					}
				}
				for object := range got {
					if !want[object] {
						t.Errorf("%s: its statements make %s, CREATE EXTENSION does not", e.name, object)
					}
				}
			}
			t.Logf("%d extensions, %d statements", n, statements)
			if n < 30 {
				t.Errorf("only %d extensions compared: is contrib installed?", n)
			}
		})
	}
}

// An installable is an extension that a server has.
type installable struct {
	share, name, version string // share is the server's directory
	statements           int
}

const target = "Target schema"

// begin makes the target schema, and what the extension requires.
func (e *installable) begin(ctx context.Context, conn *pgx.Conn) (tx pgx.Tx, schema string, required map[string]string, relocatable bool, err error) {
	var fixed *string
	var requires []string
	err = conn.QueryRow(ctx, "SELECT schema, requires::text[], relocatable FROM pg_available_extension_versions WHERE name = $1 AND version = $2",
		e.name, e.version).Scan(&fixed, &requires, &relocatable)
	if err != nil {
		return nil, "", nil, false, err
	}
	if tx, err = conn.Begin(ctx); err != nil {
		return nil, "", nil, false, err
	}
	schema, required = target, map[string]string{}
	sql := `CREATE SCHEMA "` + target + `"; CREATE SCHEMA other; SET LOCAL client_min_messages = warning;`
	if fixed != nil {
		schema = *fixed
		if !strings.HasPrefix(schema, "pg_") { // else it is there, or nobody may make it
			sql += "CREATE SCHEMA IF NOT EXISTS " + pgx.Identifier{schema}.Sanitize() + ";"
		}
	}
	for _, r := range requires {
		sql += `CREATE EXTENSION IF NOT EXISTS "` + r + `" SCHEMA other CASCADE;`
		required[r] = "other"
	}
	_, err = tx.Exec(ctx, sql)
	if err != nil && strings.Contains(err.Error(), "must be installed in schema") {
		return tx, "", nil, false, errors.New("requires what has a schema of its own")
	}
	return tx, schema, required, relocatable, err
}

func created(ctx context.Context, tx pgx.Tx, run func() error) (map[string]bool, error) {
	list := func() (map[string]bool, error) {
		rows, err := tx.Query(ctx, objects)
		if err != nil {
			return nil, err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		set := map[string]bool{}
		for _, n := range names {
			set[n] = true
		}
		return set, err
	}
	before, err := list()
	if err != nil {
		return nil, err
	}
	if err := run(); err != nil {
		return nil, err
	}
	// Definitions print names as the path lets them.
	if _, err := tx.Exec(ctx, "SET LOCAL search_path = pg_catalog"); err != nil {
		return nil, err
	}
	after, err := list()
	maps.DeleteFunc(after, func(n string, _ bool) bool { return before[n] })
	return after, err
}

func (e *installable) native(ctx context.Context, conn *pgx.Conn) (map[string]bool, error) {
	tx, schema, _, _, err := e.begin(ctx, conn)
	if tx != nil {
		defer tx.Rollback(ctx)
	}
	if err != nil {
		return nil, err
	}
	return created(ctx, tx, func() error {
		_, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL search_path = pg_catalog; CREATE EXTENSION %q SCHEMA %q`, e.name, schema))
		return err
	})
}

var (
	modulePathname = regexp.MustCompile(`(?m)^module_pathname\s*=\s*'(.*)'`)
	directory      = regexp.MustCompile(`(?m)^directory\s*=\s*'?(\w+)`)

	// Statements that a server takes in CREATE EXTENSION only, and that make no
	// object: whoever runs scripts otherwise leaves them out.
	ofExtension = regexp.MustCompile(`(?is)^(?:ALTER|COMMENT\s+ON)\s+EXTENSION\s|^SELECT\s+(?:pg_catalog\s*\.\s*)?pg_extension_config_dump\s*\(\s*'(?:[^']|'')*'\s*(?:::\s*(?:pg_catalog\.)?regclass\s*)?,\s*'(?:[^']|'')*'\s*\)$`)
)

func (e *installable) byStatement(ctx context.Context, conn *pgx.Conn) (map[string]bool, error) {
	control, err := os.ReadFile(filepath.Join(e.share, "extension", e.name+".control"))
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(e.share, "extension")
	if m := directory.FindSubmatch(control); m != nil {
		folder = filepath.Join(e.share, string(m[1]))
	}
	tx, schema, required, relocatable, err := e.begin(ctx, conn)
	if tx != nil {
		defer tx.Rollback(ctx)
	}
	if err != nil {
		return nil, err
	}
	files, err := e.files(ctx, tx, folder)
	if err != nil {
		return nil, err
	}
	return created(ctx, tx, func() error {
		path := []string{pgx.Identifier{schema}.Sanitize()}
		for _, r := range slices.Sorted(maps.Values(required)) {
			path = append(path, pgx.Identifier{r}.Sanitize())
		}
		if _, err := tx.Exec(ctx, "SET LOCAL check_function_bodies = off; SET LOCAL search_path = "+strings.Join(append(path, "pg_temp"), ", ")); err != nil {
			return err
		}
		s := script.Substitution{Schema: schema, Relocatable: relocatable, Owner: "postgres", Required: required, Strict: true}
		if m := modulePathname.FindSubmatch(control); m != nil {
			s.ModulePathname = string(m[1])
		}
		for _, file := range files {
			s.File = file
			sql, err := os.ReadFile(filepath.Join(folder, file))
			if err == nil {
				sql, err = script.Substitute(sql, s)
			}
			if err != nil {
				return err
			}
			list, err := script.Split(file, sql)
			if err == nil {
				err = script.CheckTransaction(list)
			}
			if err != nil {
				return err
			}
			for _, statement := range list {
				if ofExtension.MatchString(statement.SQL) {
					continue
				}
				e.statements++
				// The extended protocol refuses more than one statement.
				if _, err := tx.Conn().PgConn().ExecParams(ctx, statement.SQL, nil, nil, nil, nil).Close(); err != nil {
					return fmt.Errorf("%s:%d: %w", statement.File, statement.Line, err)
				}
			}
		}
		return nil
	})
}

// files are the scripts by which the default version is installed.
func (e *installable) files(ctx context.Context, tx pgx.Tx, folder string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(folder, e.name+"--"+e.version+".sql")); err == nil {
		return []string{e.name + "--" + e.version + ".sql"}, nil
	}
	rows, err := tx.Query(ctx, "SELECT path FROM pg_extension_update_paths($1) WHERE target = $2 AND path IS NOT NULL ORDER BY length(path)", e.name, e.version)
	if err != nil {
		return nil, err
	}
	paths, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		versions := strings.Split(path, "--")
		files := []string{e.name + "--" + versions[0] + ".sql"}
		if _, err := os.Stat(filepath.Join(folder, files[0])); err != nil {
			continue
		}
		for i := range versions[1:] {
			files = append(files, e.name+"--"+versions[i]+"--"+versions[i+1]+".sql")
		}
		return files, nil
	}
	return nil, fmt.Errorf("no scripts of %s install %s", e.name, e.version)
}

// TestQuoting asks servers which names they would quote: none of them may be
// substituted without quotes.
func TestQuoting(t *testing.T) {
	t.Parallel()
	for _, major := range pgtest.Some {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			server := pgtest.Start(t, pgtest.Options{Major: major})
			names := server.Query(`SELECT n, quote_ident(n) FROM (SELECT word AS n FROM pg_get_keywords() UNION ALL VALUES ('a'), ('_a1'), ('A'), ('1a'), ('a b'), ('a-b'), ('é')) v`)
			for _, row := range names {
				got, err := script.Substitute([]byte("@extschema@"), script.Substitution{Schema: row[0]})
				if err != nil {
					t.Fatal(err)
				}
				// A keyword of a newer server is quoted for an older one too.
				if string(got) != row[1] && (row[0] != row[1] || string(got) != `"`+row[0]+`"`) {
					t.Errorf("%s is substituted as %s, the server has %s", row[0], got, row[1])
				}
			}
		})
	}
}

// TestSplitAsTheServerDoes makes scripts of odd strings, identifiers and
// comments. What a server does with a script as a whole it must do with its
// statements one by one: the same rows, or an error.
func TestSplitAsTheServerDoes(t *testing.T) {
	t.Parallel()
	for _, major := range pgtest.Some {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			server := pgtest.Start(t, pgtest.Options{Major: major})
			conn, err := server.Connect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.WithoutCancel(t.Context()))
			accepted, several := 0, 0
			const rounds = 1200
			for range rounds {
				sql := oddScript(random)
				whole, errWhole := rows(conn.PgConn().Exec(t.Context(), sql))
				var single [][]byte
				list, errSingle := script.Split("f", []byte(sql))
				for _, s := range list {
					r := conn.PgConn().ExecParams(t.Context(), s.SQL, nil, nil, nil, nil).Read()
					if errSingle = r.Err; errSingle != nil {
						break
					}
					single = append(single, bytes.Join(r.Rows[0], []byte("|")))
				}
				if (errWhole == nil) != (errSingle == nil) || errWhole == nil && !slices.EqualFunc(whole, single, bytes.Equal) {
					t.Errorf("%q\n the server makes %q, %v\none by one it makes %q, %v", sql, whole, errWhole, single, errSingle)
				}
				if errWhole == nil {
					accepted++
					if len(whole) > 1 {
						several++
					}
				}
			}
			t.Logf("%d of %d scripts are right, %d with several statements", accepted, rounds, several)
			if several < rounds/20 {
				t.Error("too few scripts of several statements were right")
			}
		})
	}
}

// oddScript makes statements that return what they consist of.
func oddScript(random *rand.Rand) string {
	pieces := []string{"'", "''", "\\", "\\'", "\"", "$$", "$a$", "$", ";", "--", "\n", "\r", "/*", "*/", "a", "E", " ", "(", ")", "é", "1"}
	soup := func() string {
		var b strings.Builder
		for range random.IntN(4) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		return b.String()
	}
	var b strings.Builder
	for range 1 + random.IntN(3) {
		b.WriteString("SELECT ")
		for i := range 1 + random.IntN(3) {
			if i > 0 {
				b.WriteString(", ")
			}
			switch random.IntN(9) {
			case 0:
				b.WriteString("'" + soup() + "'")
			case 1:
				b.WriteString("E'" + soup() + "'")
			case 2:
				b.WriteString("e'" + soup() + "' --" + soup() + "\n '" + soup() + "'")
			case 3:
				b.WriteString("'" + soup() + "'\n'" + soup() + "'")
			case 4:
				b.WriteString("$$" + soup() + "$$")
			case 5:
				b.WriteString("$a$" + soup() + "$a$")
			case 6:
				b.WriteString("U&'" + soup() + "'")
			case 7:
				b.WriteString("1 AS \"" + soup() + "x\"")
			case 8:
				b.WriteString("1 /*" + soup() + "*/ -- " + soup() + "\n + 1")
			}
		}
		if random.IntN(3) == 0 {
			b.WriteString(soup())
		}
		b.WriteString(";")
	}
	return b.String()
}

// rows are the rows of all statements of a script.
func rows(m *pgconn.MultiResultReader) (list [][]byte, err error) {
	results, err := m.ReadAll()
	for _, r := range results {
		if len(r.Rows) == 1 {
			list = append(list, bytes.Join(r.Rows[0], []byte("|")))
		}
	}
	return list, err
}
