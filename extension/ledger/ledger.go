// Package ledger is the database's own record of what was installed in it, and
// the way to install from SQL.
//
//	schema "extension", owned by whoever installs:
//
//	  meta ── installed ── object        what is there        Record, Forget ▶ Read, Objects
//	  package ── path ── statement       what can be had      Upload
//	  install() upgrade() uninstall() available() installed()  Bootstrap
//
// It consists of ordinary tables and functions, so pg_dump dumps it and a restored
// database knows what it has. Objects are recorded by identity, not by oid.
//
// In SQL nothing is parsed: Upload cuts scripts into statements and relations into
// rows. Where SQL cannot judge (relations to the whole server, versions whose
// scripts contradict their order, an installed extension that would have to be
// upgraded) it refuses and names the command that can. What it does decide it
// checks whole: all depends and conflicts of all that would then be installed.
//
// # Invariants
//
//   - Only the owner of the schema writes, and whom the owner grants it: what is
//     recorded decides what an uninstallation drops, and scripts of packages run
//     with the rights of whoever installs them. A schema "extension" of somebody
//     else is refused.
//   - One installs at a time: whoever writes holds the advisory lock (LockClass,
//     LockKey) of the database.
//   - The functions have the caller's rights, never the owner's.
//   - A script in SQL runs under the rules of one over the wire: search_path is
//     the target schema, those of what it requires, and pg_temp; a target schema
//     in which others may create is refused, and so are values that could end a
//     string, and changes to objects that were there before.
//
// Everything else is the caller's transaction: what it rolls back did not happen.
package ledger

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"rideau/extension/catalog"
	"rideau/extension/depend"
	"rideau/extension/pack"
)

// LockClass and LockKey are the advisory lock that whoever installs or
// uninstalls in a database holds. They spell "RIDE" and "EXT".
const (
	LockClass = 0x52494445
	LockKey   = 0x45585400
)

// Format is the format of the schema that this program writes.
const Format = 2

//go:embed *.sql
var sqlFiles embed.FS

// A Querier is a pgx.Tx or a *pgx.Conn.
type Querier = catalog.Querier

// An Entry is one extension of the database.
type Entry struct {
	Name      string
	Version   string // of the SQL
	Mode      string
	Schema    string // the target schema
	Control   []byte // as read
	Depends   depend.List
	Conflicts depend.List // with what it breaks
	Provides  []pack.Provide
	SHA256    string         // of the package
	Settings  []pack.Setting // that were made for it
	Uninstall []byte         // the package's own script; nil for none

	// Major is the server's version that the definitions of its objects were
	// recorded on; another one writes them otherwise. Set by Read, 0 if not known.
	Major       int
	InstalledAt time.Time // set by Read
	InstalledBy string    // set by Read
}

// A State is what the ledger has.
type State struct {
	Format    int
	Owner     string
	Installed []Entry // by name
}

// Find returns the entry of a name.
func (s *State) Find(name string) (*Entry, bool) {
	for i := range s.Installed {
		if s.Installed[i].Name == name {
			return &s.Installed[i], true
		}
	}
	return nil, false
}

// A NotOursError says that there is a schema "extension" that cannot be used.
type NotOursError struct {
	Owner string
	Why   string
}

func (e *NotOursError) Error() string {
	return fmt.Sprintf(`schema "extension", of role %q, cannot be used as the ledger: %s`, e.Owner, e.Why)
}

// A FormatError says that the ledger was written by a newer program.
type FormatError struct{ Format int }

func (e *FormatError) Error() string {
	return fmt.Sprintf(`schema "extension" has format %d, and this program knows no format above %d`, e.Format, Format)
}

// look is what can be seen of the schema without reading from its tables.
type look struct {
	owner   string
	mayUse  bool   // the owner is us, or a role we belong to
	ours    bool   // it has the table meta, with the right columns
	strange string // a table that is not as we make it
}

// lookAtSchema returns nil if there is no schema.
//
// Tables of somebody else's may have triggers, views may call functions: all
// that runs code is looked for before anything is read or written.
func lookAtSchema(ctx context.Context, q Querier) (*look, error) {
	var l look
	err := q.QueryRow(ctx, `
SELECT pg_catalog.pg_get_userbyid(n.nspowner)::pg_catalog.text,
	pg_catalog.pg_has_role(n.nspowner, 'USAGE'),
	EXISTS (SELECT FROM pg_catalog.pg_class c
		JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid AND NOT a.attisdropped
		WHERE c.relnamespace OPERATOR(pg_catalog.=) n.oid AND c.relname OPERATOR(pg_catalog.=) 'meta'
		AND a.attname OPERATOR(pg_catalog.=) 'product' AND a.atttypid OPERATOR(pg_catalog.=) 25),
	coalesce((SELECT pg_catalog.min(c.relname::pg_catalog.text) FROM pg_catalog.pg_class c
		WHERE c.relnamespace OPERATOR(pg_catalog.=) n.oid
		AND c.relname OPERATOR(pg_catalog.=) ANY ('{meta,installed,object,package,path,statement}'::pg_catalog.name[])
		AND (c.relkind OPERATOR(pg_catalog.<>) 'r' OR c.relrowsecurity OR c.relowner OPERATOR(pg_catalog.<>) n.nspowner
			OR EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid OPERATOR(pg_catalog.=) c.oid)
			OR EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class OPERATOR(pg_catalog.=) c.oid)
			OR EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhrelid OPERATOR(pg_catalog.=) c.oid OR h.inhparent OPERATOR(pg_catalog.=) c.oid)
			OR EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND NOT i.indisprimary)
			OR EXISTS (SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) a.atttypid
				WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
				AND (t.typnamespace OPERATOR(pg_catalog.<>) 11 OR t.typtype OPERATOR(pg_catalog.<>) 'b'))
			OR EXISTS (SELECT FROM pg_catalog.pg_depend d
				JOIN pg_catalog.pg_depend f ON f.classid OPERATOR(pg_catalog.=) d.classid AND f.objid OPERATOR(pg_catalog.=) d.objid
				WHERE d.refclassid OPERATOR(pg_catalog.=) 1259 AND d.refobjid OPERATOR(pg_catalog.=) c.oid
				AND d.classid OPERATOR(pg_catalog.=) ANY ('{2604,2606}') AND f.refclassid OPERATOR(pg_catalog.=) ANY ('{1255,2617}')))), '')
FROM pg_catalog.pg_namespace n WHERE n.nspname OPERATOR(pg_catalog.=) 'extension'`).Scan(&l.owner, &l.mayUse, &l.ours, &l.strange)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return &l, err
}

// format returns the format of the ledger, 0 if there is none.
func format(ctx context.Context, q Querier) (n int, l *look, err error) {
	if l, err = lookAtSchema(ctx, q); err != nil || l == nil || !l.ours {
		return 0, l, err
	}
	if l.strange != "" {
		return 0, l, &NotOursError{l.owner, fmt.Sprintf("its table %q is not as this program makes it, and might run code", l.strange)}
	}
	if err := q.QueryRow(ctx, `SELECT format FROM extension.meta`).Scan(&n); err != nil {
		return 0, l, err
	}
	if n > Format {
		return n, l, &FormatError{n}
	}
	return n, l, nil
}

// Ensure makes the ledger, or brings an older one to this program's format.
// Nothing happens if it is there already. A schema "extension" of somebody else's
// is a *NotOursError, one of a newer program a *FormatError.
func Ensure(ctx context.Context, q Querier) error {
	if err := ensure(ctx, q); err != nil {
		return fmt.Errorf("could not make the ledger: %w", err)
	}
	return nil
}

func ensure(ctx context.Context, q Querier) error {
	n, l, err := format(ctx, q)
	switch {
	case err != nil:
		return err
	case l != nil && !l.ours:
		return &NotOursError{l.owner, "this program did not make it"}
	case l != nil && !l.mayUse:
		return &NotOursError{l.owner, "it belongs to another role"}
	}
	for n++; n <= Format; n++ {
		sql, err := sqlFiles.ReadFile(fmt.Sprintf("format%d.sql", n))
		if err != nil {
			return err
		}
		if err := execPinned(ctx, q, string(sql)); err != nil {
			return fmt.Errorf("format %d: %w", n, err)
		}
	}
	return nil
}

// execPinned executes commands of ours where no search_path can misdirect them,
// and leaves what they made to the owner of the schema.
func execPinned(ctx context.Context, q Querier, sql string) error {
	owner, err := sqlFiles.ReadFile("owner.sql")
	if err != nil {
		return err
	}
	var path string
	if err := q.QueryRow(ctx, `SELECT pg_catalog.quote_literal(pg_catalog.current_setting('search_path'))`).Scan(&path); err != nil {
		return err
	}
	// Without arguments it is one message, and so one transaction if there is none.
	_, err = q.Exec(ctx, "SET LOCAL search_path = pg_catalog, pg_temp;\n"+sql+"\n"+string(owner)+
		"SELECT pg_catalog.set_config('search_path', "+path+", true)")
	return err
}

// Read returns what the ledger has, nil if the database has none. A schema
// "extension" that is something else is none.
func Read(ctx context.Context, q Querier) (*State, error) {
	s, err := read(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("could not read the ledger: %w", err)
	}
	return s, nil
}

func read(ctx context.Context, q Querier) (*State, error) {
	n, l, err := format(ctx, q)
	if err != nil || n == 0 {
		return nil, err
	}
	s := &State{Format: n, Owner: l.owner}
	provides, major := `'[]'::pg_catalog.jsonb`, `0`
	if n >= 2 {
		provides = `relations OPERATOR(pg_catalog.->) 'provides'`
		major = `coalesce((relations OPERATOR(pg_catalog.->>) 'major')::pg_catalog.int4, 0)`
	}
	rows, err := q.Query(ctx, `
SELECT name, version, mode, schema, control, depends, conflicts, sha256, settings, uninstall, `+provides+`, `+major+`, installed_at, installed_by
FROM extension.installed ORDER BY name COLLATE pg_catalog."C"`)
	if err != nil {
		return nil, err
	}
	s.Installed, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (e Entry, err error) {
		var depends, conflicts string
		var settings, provides []byte
		err = row.Scan(&e.Name, &e.Version, &e.Mode, &e.Schema, &e.Control, &depends, &conflicts, &e.SHA256, &settings, &e.Uninstall, &provides, &e.Major, &e.InstalledAt, &e.InstalledBy)
		if err != nil {
			return e, err
		}
		for _, part := range []struct {
			what string
			read func() error
		}{
			{"depends", func() (err error) { e.Depends, err = depend.ParseList(depends); return err }},
			{"conflicts", func() (err error) { e.Conflicts, err = depend.ParseList(conflicts); return err }},
			{"settings", func() error { return json.Unmarshal(settings, &e.Settings) }},
			{"provides", func() error { return json.Unmarshal(provides, &e.Provides) }},
		} {
			if err := part.read(); err != nil {
				return e, fmt.Errorf("%s of %s: %w", part.what, e.Name, err)
			}
		}
		return e, nil
	})
	return s, err
}

// Record writes that an extension is installed, or now is another version, and
// which objects a module consists of. When it was first installed, and by whom,
// is kept.
func Record(ctx context.Context, q Querier, e Entry, objects []catalog.Object) error {
	if err := record(ctx, q, e, objects); err != nil {
		return fmt.Errorf("could not record %s in the ledger: %w", e.Name, err)
	}
	return nil
}

func record(ctx context.Context, q Querier, e Entry, objects []catalog.Object) error {
	if err := mustHave(ctx, q); err != nil {
		return err
	}
	settings, err := json.Marshal(e.Settings)
	if err != nil {
		return err
	}
	if e.Settings == nil {
		settings = []byte("[]")
	}
	relations, err := relationsJSON(e.Depends, e.Conflicts, e.Provides)
	if err != nil {
		return err
	}
	control := e.Control
	if control == nil {
		control = []byte{}
	}
	_, err = q.Exec(ctx, `
INSERT INTO extension.installed (name, version, mode, schema, control, depends, conflicts, sha256, settings, uninstall, relations)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::pg_catalog.jsonb OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object('major',
	pg_catalog.current_setting('server_version_num')::pg_catalog.int4 OPERATOR(pg_catalog./) 10000))
ON CONFLICT (name) DO UPDATE SET (version, mode, schema, control, depends, conflicts, sha256, settings, uninstall, relations) =
	(EXCLUDED.version, EXCLUDED.mode, EXCLUDED.schema, EXCLUDED.control, EXCLUDED.depends, EXCLUDED.conflicts, EXCLUDED.sha256, EXCLUDED.settings, EXCLUDED.uninstall, EXCLUDED.relations)`,
		e.Name, e.Version, e.Mode, e.Schema, control, e.Depends.String(), e.Conflicts.String(), e.SHA256, settings, e.Uninstall, relations)
	if err != nil {
		return err
	}
	if _, err := q.Exec(ctx, `DELETE FROM extension.object WHERE name OPERATOR(pg_catalog.=) $1`, e.Name); err != nil {
		return err
	}
	// All in one statement: a module may have thousands.
	type row struct {
		Seq      int      `json:"seq"`
		Type     string   `json:"type"`
		Names    []string `json:"object_names"`
		Args     []string `json:"object_args"`
		Identity string   `json:"identity"`
		MD5      string   `json:"definition_md5"`
	}
	list := make([]row, len(objects))
	for i, o := range objects {
		list[i] = row{i + 1, o.Type, nonNil(o.Names), nonNil(o.Args), o.Identity, o.MD5}
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	_, err = q.Exec(ctx, `
INSERT INTO extension.object (name, seq, type, object_names, object_args, identity, definition_md5)
SELECT $1, o.seq, o.type, o.object_names, o.object_args, o.identity, o.definition_md5
FROM pg_catalog.jsonb_to_recordset($2::pg_catalog.jsonb) AS o(seq pg_catalog.int4, type pg_catalog.text,
	object_names pg_catalog.text[], object_args pg_catalog.text[], identity pg_catalog.text, definition_md5 pg_catalog.text)`, e.Name, text)
	return err
}

func nonNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// mustHave checks that there is a ledger of this format to write to.
func mustHave(ctx context.Context, q Querier) error {
	n, l, err := format(ctx, q)
	switch {
	case err != nil:
		return err
	case l != nil && !l.mayUse:
		return &NotOursError{l.owner, "it belongs to another role"}
	case n < Format:
		return fmt.Errorf("the ledger has format %d, and has to be brought to %d before", n, Format)
	}
	return nil
}

// Forget removes what was recorded of an extension. That there is nothing is no
// error.
func Forget(ctx context.Context, q Querier, name string) error {
	err := mustHave(ctx, q)
	for _, table := range []string{"object", "installed"} {
		if err == nil {
			_, err = q.Exec(ctx, `DELETE FROM extension.`+table+` WHERE name OPERATOR(pg_catalog.=) $1`, name)
		}
	}
	if err != nil {
		return fmt.Errorf("could not remove %s from the ledger: %w", name, err)
	}
	return nil
}

// Objects returns what was recorded of the objects of a module, in the order in
// which they were recorded: Type, Names, Args, Identity and MD5, for
// catalog.Lookup to find.
func Objects(ctx context.Context, q Querier, name string) ([]catalog.Object, error) {
	objects, err := readObjects(ctx, q, name)
	if err != nil {
		return nil, fmt.Errorf("could not read the objects of %s from the ledger: %w", name, err)
	}
	return objects, nil
}

func readObjects(ctx context.Context, q Querier, name string) ([]catalog.Object, error) {
	if n, _, err := format(ctx, q); err != nil || n == 0 {
		return nil, err
	}
	rows, err := q.Query(ctx, `
SELECT type, object_names, object_args, identity, definition_md5 FROM extension.object
WHERE name OPERATOR(pg_catalog.=) $1 ORDER BY seq`, name)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (o catalog.Object, err error) {
		err = row.Scan(&o.Type, &o.Names, &o.Args, &o.Identity, &o.MD5)
		return o, err
	})
}

// relationsJSON is what SQL reads instead of lists of relations:
//
//	{"depends": [[{"name": "bar", "scope": "", "feature": "", "text": "bar (>= 1.1)",
//	               "range": [{"op": ">=", "version": "1.1"}]}], …], "conflicts": …, "provides": …}
//
// "~>" becomes the two bounds that it means.
func relationsJSON(depends, conflicts depend.List, provides []pack.Provide) ([]byte, error) {
	type constraint struct {
		Op      string `json:"op"`
		Version string `json:"version"`
	}
	type relation struct {
		Name    string       `json:"name"`
		Scope   string       `json:"scope"`
		Feature string       `json:"feature"`
		Text    string       `json:"text"`
		Range   []constraint `json:"range"`
	}
	convert := func(l depend.List) [][]relation {
		all := [][]relation{}
		for _, alternatives := range l {
			var list []relation
			for _, r := range alternatives {
				c := relation{Name: r.Name, Scope: string(r.Scope), Feature: r.Feature, Text: r.String(), Range: []constraint{}}
				for _, k := range r.Range {
					if k.Op == depend.Pessimistic {
						c.Range = append(c.Range, constraint{">=", k.Version}, constraint{"<", pessimisticBound(k.Version)})
					} else {
						c.Range = append(c.Range, constraint{string(k.Op), k.Version})
					}
				}
				list = append(list, c)
			}
			all = append(all, list)
		}
		return all
	}
	if provides == nil {
		provides = []pack.Provide{}
	}
	return json.Marshal(map[string]any{"depends": convert(depends), "conflicts": convert(conflicts), "provides": provides})
}

// pessimisticBound is the first version that "~> v" does not allow: the last of
// its leading numbers dropped, the one before raised by one, before all of its
// pre-releases.
func pessimisticBound(v string) string {
	epoch := ""
	if before, after, ok := strings.Cut(v, ":"); ok && before != "" && strings.Trim(before, "0123456789") == "" {
		epoch, v = before+":", after
	}
	var parts []string
	for {
		end := 0
		for end < len(v) && '0' <= v[end] && v[end] <= '9' {
			end++
		}
		if end == 0 {
			break
		}
		parts = append(parts, v[:end])
		if end == len(v) || v[end] != '.' {
			break
		}
		v = v[end+1:]
	}
	if len(parts) > 1 {
		parts = parts[:len(parts)-1]
	}
	if len(parts) > 0 {
		last := []byte("0" + parts[len(parts)-1])
		i := len(last) - 1
		for ; last[i] == '9'; i-- {
			last[i] = '0'
		}
		last[i]++
		parts[len(parts)-1] = string(last)
	}
	return epoch + strings.Join(parts, ".") + "~~~"
}
