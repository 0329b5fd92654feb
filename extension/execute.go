package extension

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"rideau/extension/catalog"
	"rideau/extension/ledger"
	"rideau/extension/pack"
	"rideau/extension/script"
)

// A runner carries out steps in one transaction.
type runner struct {
	s         *Session
	tx        pgx.Tx
	role      string // who we are in the step
	allowOpen bool   // scripts may see schemas in which others create
	become    string // SQL that makes us that, to be said after afterScript
	root      string // where files were brought
	report    Report
}

// runner is one that does as this session's role, in a transaction of it.
func (s *Session) runner(tx pgx.Tx) *runner {
	return &runner{s: s, tx: tx, role: s.primary.o.Role.Name}
}

func (r *runner) step(ctx context.Context, s *Step) (*StepReport, error) {
	done := &StepReport{Action: s.Action, Name: s.Name, From: s.From, To: s.To, Mode: s.Mode, Schema: s.Schema}
	o := r.s.primary.o
	r.role, r.become = o.Role.Name, ""
	if as := o.actAs(); s.Mode == Module && as != "" {
		r.role, r.become = as, "; SET LOCAL ROLE "+quoteIdent(as)
	}
	if err := r.exec(ctx, s, afterScript+r.become); err != nil {
		return nil, err
	}
	var err error
	switch {
	case s.Action == Uninstall:
		err = r.uninstall(ctx, s, done)
	case s.Action == Adopt:
		err = r.adopt(ctx, s, done)
	case s.Mode == Native || s.Mode == Path:
		err = r.native(ctx, s, done)
	default:
		err = r.scripted(ctx, s, done)
	}
	if err != nil {
		return nil, err
	}
	if err := r.exec(ctx, s, afterScript); err != nil {
		return nil, err
	}
	for _, set := range s.Settings {
		if err := r.exec(ctx, s, settingSQL(r.s.primary.o.Database, set)); err != nil {
			return nil, err
		}
	}
	for _, sql := range s.resets {
		if err := r.exec(ctx, s, sql); err != nil {
			return nil, err
		}
	}
	return done, nil
}

// actAs is the role in whose name modules are installed and uninstalled, if not
// in ours. What a ledger says is carried out with the rights of whoever could
// have written it; and what a member of an owner role installs is the role's, so
// that its other members can go on with it.
func (o *Observed) actAs() string {
	switch {
	case o.Ledger.Owner != "":
		if !o.Ledger.Trusted {
			return o.Ledger.Owner
		}
	case !o.Role.Superuser && o.Role.Owner && o.Role.Name != o.Role.OwnerRole:
		return o.Role.OwnerRole
	}
	return ""
}

// exec executes a statement of our own.
func (r *runner) exec(ctx context.Context, s *Step, sql string) error {
	if _, err := r.tx.Conn().PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	return nil
}

// asPeople executes what people would have typed, with the search_path that they
// have: PostgreSQL pins its own for an extension's script, but event triggers are
// called with it, and many (powa's) find their tables no other way.
func (r *runner) asPeople(ctx context.Context, s *Step, statements []string) error {
	for _, sql := range statements {
		if err := r.exec(ctx, s, "SET LOCAL search_path TO DEFAULT; "+sql+"; SET LOCAL search_path = pg_catalog, pg_temp"); err != nil {
			return err
		}
	}
	return nil
}

// native has PostgreSQL do it.
func (r *runner) native(ctx context.Context, s *Step, done *StepReport) error {
	if s.Mode == Path && s.pkg != nil {
		schemas := r.requiredSchemas(s)
		if !s.MakeSchema {
			schemas = append(schemas, s.Schema)
		}
		if err := r.closed(ctx, s, schemas); err != nil {
			return err
		}
		if err := r.exec(ctx, s, "SET LOCAL extension_control_path = "+quoteLiteral(withElement(r.s.primary.o.ControlPath, ownControls, r.root))); err != nil {
			return err
		}
	}
	if err := r.libraryPath(ctx, s); err != nil {
		return err
	}
	if err := r.asPeople(ctx, s, s.ddl); err != nil {
		return s.inScript(err)
	}
	var err error
	if done.Objects, err = r.memberCount(ctx, s); err != nil {
		return err
	}
	made, err := r.madeSchema(ctx, s)
	if err != nil {
		return err
	}
	if s.pkg == nil {
		if s.in == nil || s.in.Entry == nil {
			return nil
		}
		entry := *s.in.Entry // what it depends on is what the last package said
		entry.Version = s.To
		return ledger.Record(ctx, r.tx, entry, made)
	}
	if s.Action == Install && s.pkg.Objects != nil && s.To == sqlVersion(s.pkg.Control) && r.s.cfg.enforced(Manifest) {
		members, err := catalog.Members(ctx, r.tx, s.Name)
		if err != nil {
			return err
		}
		if what := compareManifest(s.pkg.Objects, s.Schema, members); len(what) > 0 {
			return &RuleError{Name: s.Name, Version: s.To, Rule: Manifest, What: what}
		}
	}
	return r.record(ctx, s, made)
}

// memberCount is how many members an extension has.
func (r *runner) memberCount(ctx context.Context, s *Step) (n int, err error) {
	err = r.tx.QueryRow(ctx, `
SELECT count(DISTINCT (d.classid, d.objid)) FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
WHERE d.refclassid OPERATOR(pg_catalog.=) 3079 AND d.deptype OPERATOR(pg_catalog.=) 'e' AND e.extname OPERATOR(pg_catalog.=) $1`, s.Name).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("%s: could not count its members: %w", s.Name, err)
	}
	return n, nil
}

// madeSchema is the schema that was made for an extension, now or when it was
// installed, as the ledger is to have it: it goes with the extension. What mode
// native makes is not recorded anywhere.
func (r *runner) madeSchema(ctx context.Context, s *Step) ([]catalog.Object, error) {
	var made []catalog.Object
	switch {
	case s.Action == Install && s.MakeSchema && s.Mode != Native:
		found, err := catalog.Lookup(ctx, r.tx, []catalog.Object{{Type: "schema", Names: []string{s.Schema}}})
		if err != nil {
			return nil, err
		}
		made = found
	case s.in != nil && s.in.Entry != nil:
		var err error
		if made, err = r.moduleObjects(ctx, s.Name); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(made, func(o catalog.Object) bool { return o.Type != "schema" || o.OID == 0 }), nil
}

// inScript says where in a script of ours CREATE EXTENSION has failed, if it did:
// the server names the file and, from 18 on, the line in the error's context, in
// its own language.
func (s *Step) inScript(err error) error {
	var server *pgconn.PgError
	if s.Mode != Path || s.pkg == nil || !errors.As(err, &server) {
		return err
	}
	files, filesErr := s.pkg.Path(s.From, s.To)
	if filesErr != nil {
		return err
	}
	for _, sc := range files {
		called := s.Name + "--" + strings.TrimPrefix(sc.From+"--"+sc.To, "--") + ".sql"
		_, rest, ok := strings.Cut(server.Where, called)
		if !ok {
			continue
		}
		var line int
		if at := strings.IndexAny(rest, "0123456789"); at >= 0 {
			if _, scanErr := fmt.Sscan(rest[at:], &line); scanErr != nil {
				line = 0
			}
		}
		st := script.Statement{SQL: strings.TrimSpace(server.InternalQuery), File: called, Line: max(line, 1), Column: 1}
		if statements, splitErr := script.Split(called, sc.SQL); splitErr == nil {
			for _, one := range statements {
				if one.Line <= line { // the last that begins there or before
					st.SQL, st.Line, st.Column = one.SQL, one.Line, one.Column
				}
			}
		}
		e := &ScriptError{Name: s.Name, File: sc.File, Line: st.Line, Column: st.Column, Statement: beginning(st.SQL), Err: server}
		if server.InternalPosition > 0 && strings.Contains(st.SQL, strings.TrimSuffix(strings.TrimSpace(server.InternalQuery), ";")) {
			e.Line, e.Column = script.Position(st, int(server.InternalPosition))
		}
		return e
	}
	return err
}

// libraryPath leads to the libraries that were brought for a step.
func (r *runner) libraryPath(ctx context.Context, s *Step) error {
	if !s.hasLibraries() {
		return nil
	}
	return r.exec(ctx, s, "SET LOCAL dynamic_library_path = "+quoteLiteral(withElement(r.s.primary.o.LibraryPath, ownLibraries, r.root+"/lib")))
}

// scripted executes the package's script, as pg_execute_from_file would have,
// and finds out what it did.
func (r *runner) scripted(ctx context.Context, s *Step, done *StepReport) error {
	if err := ledger.Ensure(ctx, r.tx); err != nil {
		return err
	}
	own, err := r.members(ctx, s)
	if err != nil {
		return err
	}
	parts, err := catalog.Parts(ctx, r.tx, own)
	if err != nil {
		return err
	}
	if err := r.libraryPath(ctx, s); err != nil {
		return err
	}
	before, err := catalog.Capture(ctx, r.tx)
	if err != nil {
		return err
	}
	if s.MakeSchema {
		if err := r.exec(ctx, s, "CREATE SCHEMA "+quoteIdent(s.Schema)); err != nil {
			return err
		}
	}
	var dumped []configDump
	for _, sc := range s.scripts {
		d, err := r.run(ctx, s, sc)
		if err != nil {
			return err
		}
		dumped = append(dumped, d...)
	}
	diff, err := before.Difference(ctx, r.tx)
	if err != nil {
		return err
	}
	if err := judge(s, r.role, diff, parts, r.s.cfg.enforced); err != nil {
		return err
	}
	if err := r.onlyOwnDropped(ctx, s, s.To, diff, parts); err != nil {
		return err
	}
	for _, t := range diff.Temporary {
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("%s made %s, which is temporary and not a part of it", s.Name, t))
	}
	for _, shared := range diff.Shared {
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("%s made or changed %s, which no extension can own: it stays when %s goes", s.Name, shared.Object, s.Name))
	}
	objects := without(own, diff.Dropped)
	objects = append(objects, diff.Created...)
	done.Objects = len(objects)
	for _, o := range diff.Created {
		done.Created = append(done.Created, o.String())
	}
	for _, o := range own {
		if !slices.ContainsFunc(objects, func(left catalog.Object) bool { return left.ClassID == o.ClassID && left.OID == o.OID }) {
			done.Dropped = append(done.Dropped, o.String())
		}
	}
	if s.Mode == Graft {
		if err := r.graft(ctx, s, diff.Created, dumped); err != nil {
			return err
		}
		made, err := r.madeSchema(ctx, s)
		if err != nil {
			return err
		}
		return r.record(ctx, s, made)
	}
	// What was changed has another definition now.
	if objects, err = catalog.Describe(ctx, r.tx, objects); err != nil {
		return err
	}
	return r.record(ctx, s, objects)
}

// members are the objects that the extension has before the step.
func (r *runner) members(ctx context.Context, s *Step) ([]catalog.Object, error) {
	switch {
	case s.From == "":
		return nil, nil
	case s.Mode == Graft:
		return catalog.Members(ctx, r.tx, s.Name)
	}
	return r.moduleObjects(ctx, s.Name)
}

// moduleObjects are the objects of a module that are still there.
func (r *runner) moduleObjects(ctx context.Context, name string) ([]catalog.Object, error) {
	recorded, err := ledger.Objects(ctx, r.tx, name)
	if err != nil {
		return nil, err
	}
	found, err := catalog.Lookup(ctx, r.tx, recorded)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(o catalog.Object) bool { return o.OID == 0 }), nil
}

func without(list, gone []catalog.Object) []catalog.Object {
	return slices.DeleteFunc(slices.Clone(list), func(o catalog.Object) bool {
		return slices.ContainsFunc(gone, func(g catalog.Object) bool { return g.ClassID == o.ClassID && g.OID == o.OID })
	})
}

// A configDump is one call of pg_extension_config_dump in a script: rows of a
// table that are the user's, and dumped.
type configDump struct{ relation, condition string }

var (
	configDumpCall = regexp.MustCompile(`(?is)^SELECT\s+(?:pg_catalog\s*\.\s*)?pg_extension_config_dump\s*\(\s*'((?:[^']|'')*)'\s*(?:::\s*(?:pg_catalog\.)?regclass\s*)?,\s*'((?:[^']|'')*)'\s*\)$`)
	aboutExtension = regexp.MustCompile(`(?is)^(?:ALTER|COMMENT\s+ON)\s+EXTENSION\s+(?:"((?:[^"]|"")*)"|([^\s"]+))\s+(\w+)`)
)

// run executes one file of a script.
func (r *runner) run(ctx context.Context, s *Step, sc stepScript) (dumped []configDump, err error) {
	settings, err := r.settings(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.scriptSettings(ctx, s); err != nil {
		return nil, err
	}
	pc := r.tx.Conn().PgConn()
	var before string
	if err := r.tx.QueryRow(ctx, "SELECT pg_current_xact_id()::text").Scan(&before); err != nil {
		return nil, err
	}
	for _, st := range sc.statements {
		if m := configDumpCall.FindStringSubmatch(st.SQL); m != nil {
			// Core refuses the call outside of its own CREATE EXTENSION.
			dumped = append(dumped, configDump{strings.ReplaceAll(m[1], "''", "'"), strings.ReplaceAll(m[2], "''", "'")})
			continue
		}
		if skip, err := r.aboutItself(s, st); err != nil {
			return nil, err
		} else if skip {
			continue
		}
		// By the extended protocol, in which one statement cannot be two.
		if err := pc.ExecParams(ctx, st.SQL, nil, nil, nil, nil).Read().Err; err != nil {
			return nil, scriptError(s, st, err)
		}
		if !r.s.cfg.enforced(Transaction) {
			continue
		}
		if pc.TxStatus() != 'T' || pc.ParameterStatus("standard_conforming_strings") != "on" || pc.ParameterStatus("client_encoding") != "UTF8" {
			return nil, &RuleError{Name: s.Name, Version: s.To, Rule: Transaction, What: []string{fmt.Sprintf("%s:%d", st.File, st.Line)}}
		}
	}
	var after string
	if err := r.tx.QueryRow(ctx, "SELECT pg_catalog.pg_current_xact_id()::text").Scan(&after); err != nil {
		return nil, err
	}
	if before != after && r.s.cfg.enforced(Transaction) {
		return nil, &RuleError{Name: s.Name, Version: s.To, Rule: Transaction, What: []string{sc.file}}
	}
	return dumped, r.restore(ctx, s, settings)
}

// A parameter is one that a session can set.
type parameter struct {
	value string
	bySet bool // by SET, not by a configuration or as its default
}

// settings are all parameters that a session can set.
func (r *runner) settings(ctx context.Context) (map[string]parameter, error) {
	rows, err := r.tx.Query(ctx, `
SELECT name, setting, source OPERATOR(pg_catalog.=) 'session' FROM pg_catalog.pg_settings
WHERE context OPERATOR(pg_catalog.=) ANY ('{user,superuser}')`)
	if err != nil {
		return nil, err
	}
	settings := map[string]parameter{}
	var name string
	var p parameter
	_, err = pgx.ForEachRow(rows, []any{&name, &p.value, &p.bySet}, func() error { settings[name] = p; return nil })
	return settings, err
}

// restore undoes what a script has set, as CREATE EXTENSION does: a plain SET
// would hold for the next script, and for our own queries after the commit.
func (r *runner) restore(ctx context.Context, s *Step, was map[string]parameter) error {
	if err := r.exec(ctx, s, afterScript); err != nil {
		return err
	}
	now, err := r.settings(ctx)
	if err != nil {
		return err
	}
	for _, name := range names(now) {
		before, known := was[name]
		if name == "role" || name == "session_authorization" || !now[name].bySet || known && before.value == now[name].value {
			continue
		}
		if !known { // of a library that was not loaded before, or made up
			if err := r.exec(ctx, s, "RESET "+quoteSetting(name)); err != nil {
				return err
			}
		} else if _, err := r.tx.Exec(ctx, "SELECT pg_catalog.set_config($1, $2, false)", name, before.value); err != nil {
			return fmt.Errorf("%s: could not restore %s, which its script has set: %w", s.Name, name, err)
		}
	}
	if r.become != "" {
		return r.exec(ctx, s, strings.TrimPrefix(r.become, "; "))
	}
	return nil
}

// afterScript undoes what a script may have set.
const afterScript = `RESET SESSION AUTHORIZATION; RESET ROLE; SET search_path = pg_catalog, pg_temp;
SET client_min_messages = warning; SET check_function_bodies = on`

// scriptSettings are those that CREATE EXTENSION executes scripts with.
func (r *runner) scriptSettings(ctx context.Context, s *Step) error {
	sql := "SET LOCAL check_function_bodies = off; SET LOCAL client_min_messages = warning"
	if r.s.cfg.enforced(SearchPath) {
		schemas := append([]string{s.Schema}, r.requiredSchemas(s)...)
		if err := r.closed(ctx, s, schemas); err != nil {
			return err
		}
		var path []string
		for _, schema := range schemas {
			path = append(path, quoteIdent(schema))
		}
		sql += "; SET LOCAL search_path = " + strings.Join(append(path, "pg_temp"), ", ")
	} else {
		sql += "; SET LOCAL search_path TO DEFAULT"
	}
	return r.exec(ctx, s, sql)
}

// closed is rule OpenSchema for every schema that a script sees, as they are now.
// The plan has looked at the target before; somebody may have opened it since.
func (r *runner) closed(ctx context.Context, s *Step, schemas []string) error {
	if r.allowOpen || !r.s.cfg.enforced(OpenSchema) {
		return nil
	}
	for _, schema := range schemas {
		var open []string
		err := r.tx.QueryRow(ctx, "SELECT "+openTo+" FROM pg_catalog.pg_namespace n WHERE n.nspname = $1", schema).Scan(&open)
		if err != nil {
			return fmt.Errorf("%s: could not ask who may create in schema %q: %w", s.Name, schema, err)
		}
		if len(open) > 0 {
			return &OpenSchemaError{Name: s.Name, Schema: schema, Who: open}
		}
	}
	return nil
}

// requiredSchemas are those of the extensions that the package depends on.
func (r *runner) requiredSchemas(s *Step) []string {
	var schemas []string
	for _, alternatives := range s.pkg.Control.Depends {
		for _, rel := range alternatives {
			schema := ""
			if in, ok := r.s.primary.o.Find(rel.Name); ok {
				schema = in.Schema
			}
			for _, done := range r.report.Steps {
				if done.Name == rel.Name {
					schema = done.Schema
				}
			}
			if schema != "" && schema != s.Schema && schema != "pg_catalog" && !slices.Contains(schemas, schema) {
				schemas = append(schemas, schema)
			}
		}
	}
	return schemas
}

// aboutItself says whether a statement is about the extension as one of
// pg_extension, which a module is not, and a graft not yet.
func (r *runner) aboutItself(s *Step, st script.Statement) (skip bool, err error) {
	m := aboutExtension.FindStringSubmatch(st.SQL)
	if m == nil || s.Mode == Graft && s.Action == Upgrade {
		return false, nil
	}
	name := strings.ReplaceAll(m[1], `""`, `"`)
	if name == "" {
		name = strings.ToLower(m[2])
	}
	if name != s.Name {
		return false, nil
	}
	switch word := strings.ToUpper(m[3]); {
	case strings.HasPrefix(strings.ToUpper(st.SQL), "COMMENT"), word == "DROP":
		return true, nil // what is dropped next is seen to be gone
	default:
		return false, scriptError(s, st, fmt.Errorf("ALTER EXTENSION ... %s means nothing in mode %s", word, s.Mode))
	}
}

// scriptError says where in its file a statement failed.
func scriptError(s *Step, st script.Statement, err error) error {
	e := &ScriptError{Name: s.Name, File: st.File, Line: st.Line, Column: st.Column, Statement: beginning(st.SQL), Err: err}
	var server *pgconn.PgError
	if errors.As(err, &server) && server.Position > 0 {
		e.Line, e.Column = script.Position(st, int(server.Position))
	}
	return e
}

// beginning is enough of a statement to recognise it.
func beginning(sql string) string {
	line, _, more := strings.Cut(sql, "\n")
	if len(line) > 80 {
		line, more = strings.ToValidUTF8(line[:80], ""), true
	}
	if more {
		line += " ..."
	}
	return line
}

// graft writes what CREATE EXTENSION would have written into the catalogs.
func (r *runner) graft(ctx context.Context, s *Step, created []catalog.Object, dumped []configDump) error {
	if s.Action == Install {
		var required []string
		for _, alternatives := range s.pkg.Control.Depends {
			for _, rel := range alternatives {
				required = append(required, rel.Name)
			}
		}
		const insert = `
WITH new AS (
  INSERT INTO pg_catalog.pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
  SELECT pg_catalog.pg_nextoid('pg_catalog.pg_extension', 'oid', 'pg_catalog.pg_extension_oid_index'),
         $1::name, r.oid, n.oid, $2::bool, $3::text
  FROM pg_catalog.pg_roles r, pg_catalog.pg_namespace n WHERE r.rolname = current_user AND n.nspname = $4::name
  RETURNING oid, extowner, extnamespace
), dependencies AS (
  INSERT INTO pg_catalog.pg_depend (classid, objid, objsubid, refclassid, refobjid, refobjsubid, deptype)
  SELECT 'pg_catalog.pg_extension'::regclass, new.oid, 0, 'pg_catalog.pg_namespace'::regclass, new.extnamespace, 0, 'n'::"char" FROM new
  UNION ALL
  SELECT 'pg_catalog.pg_extension'::regclass, new.oid, 0, 'pg_catalog.pg_extension'::regclass, e.oid, 0, 'n'::"char"
  FROM new, pg_catalog.pg_extension e WHERE e.extname = ANY ($5::text[])
)
INSERT INTO pg_catalog.pg_shdepend (dbid, classid, objid, objsubid, refclassid, refobjid, deptype)
SELECT d.oid, 'pg_catalog.pg_extension'::regclass, new.oid, 0, 'pg_catalog.pg_authid'::regclass, new.extowner, 'o'::"char"
FROM new, pg_catalog.pg_database d WHERE d.datname = current_database()
AND new.extowner >= 16384` // pinned roles have no dependencies recorded
		if _, err := r.tx.Exec(ctx, insert, s.Name, s.pkg.Control.Relocatable, s.To, s.Schema, required); err != nil {
			return fmt.Errorf("%s: could not write pg_extension: %w", s.Name, err)
		}
		if c := s.pkg.Control.Comment; c != "" {
			if err := r.exec(ctx, s, fmt.Sprintf("COMMENT ON EXTENSION %s IS %s", quoteIdent(s.Name), quoteLiteral(c))); err != nil {
				return err
			}
		}
	} else if _, err := r.tx.Exec(ctx, "UPDATE pg_catalog.pg_extension SET extversion = $2 WHERE extname = $1", s.Name, s.To); err != nil {
		return fmt.Errorf("%s: could not write pg_extension: %w", s.Name, err)
	}
	for _, o := range created {
		if o.Extension != "" || o.Type == "schema" && s.MakeSchema && o.Names[0] == s.Schema {
			continue
		}
		if _, err := r.tx.Exec(ctx, `
INSERT INTO pg_catalog.pg_depend (classid, objid, objsubid, refclassid, refobjid, refobjsubid, deptype)
SELECT $1::oid, $2::oid, 0, 'pg_catalog.pg_extension'::regclass, e.oid, 0, 'e'::"char" FROM pg_catalog.pg_extension e WHERE e.extname = $3`,
			o.ClassID, o.OID, s.Name); err != nil {
			return fmt.Errorf("%s: could not make %s a member: %w", s.Name, o, err)
		}
	}
	// An operator class is not dropped by itself but with its family, and is a
	// member all the same.
	if _, err := r.tx.Exec(ctx, `
INSERT INTO pg_catalog.pg_depend (classid, objid, objsubid, refclassid, refobjid, refobjsubid, deptype)
SELECT 'pg_catalog.pg_opclass'::regclass, c.oid, 0, 'pg_catalog.pg_extension'::regclass, e.oid, 0, 'e'::"char"
FROM pg_catalog.pg_extension e
JOIN pg_catalog.pg_depend f ON f.refclassid = 'pg_catalog.pg_extension'::regclass AND f.refobjid = e.oid AND f.deptype = 'e' AND f.classid = 'pg_catalog.pg_opfamily'::regclass
JOIN pg_catalog.pg_opclass c ON c.opcfamily = f.objid
WHERE e.extname = $1 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_opclass'::regclass AND d.objid = c.oid AND d.deptype = 'e')`, s.Name); err != nil {
		return fmt.Errorf("%s: could not make operator classes members: %w", s.Name, err)
	}
	if r.s.primary.o.Major() >= 17 {
		// From 17 on row types, array types and multiranges are members as well
		// (GenerateTypeDependencies in pg_type.c).
		if _, err := r.tx.Exec(ctx, `
WITH RECURSIVE member (classid, objid) AS (
  SELECT d.classid, d.objid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
  WHERE d.refclassid = 'pg_catalog.pg_extension'::regclass AND d.deptype = 'e' AND e.extname = $1
  UNION
  SELECT d.classid, d.objid FROM member JOIN pg_catalog.pg_depend d ON d.refclassid = member.classid AND d.refobjid = member.objid
  WHERE d.deptype = 'i' AND d.classid = 'pg_catalog.pg_type'::regclass
)
INSERT INTO pg_catalog.pg_depend (classid, objid, objsubid, refclassid, refobjid, refobjsubid, deptype)
SELECT m.classid, m.objid, 0, 'pg_catalog.pg_extension'::regclass, e.oid, 0, 'e'::"char" FROM member m, pg_catalog.pg_extension e
WHERE e.extname = $1 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = m.classid AND d.objid = m.objid AND d.deptype = 'e')`, s.Name); err != nil {
			return fmt.Errorf("%s: could not make dependent types members: %w", s.Name, err)
		}
	}
	for _, d := range dumped {
		if _, err := r.tx.Exec(ctx, `
UPDATE pg_catalog.pg_extension SET
  extconfig = coalesce(extconfig, '{}') || pg_catalog.to_regclass($2)::oid,
  extcondition = coalesce(extcondition, '{}') || $3::text
WHERE extname = $1 AND pg_catalog.to_regclass($2) IS NOT NULL AND NOT coalesce(pg_catalog.to_regclass($2)::oid = ANY (extconfig), false)`,
			s.Name, qualified(d.relation, s.Schema), d.condition); err != nil {
			return fmt.Errorf("%s: could not record that the rows of %s are dumped: %w", s.Name, d.relation, err)
		}
	}
	return nil
}

// qualified puts the target schema before a name that has none: the script's
// search_path is not ours any more.
func qualified(relation, schema string) string {
	if strings.Contains(relation, ".") {
		return relation
	}
	return quoteIdent(schema) + "." + relation
}

// record writes what was done into the ledger. Objects are those of a module;
// others have theirs in pg_depend.
func (r *runner) record(ctx context.Context, s *Step, objects []catalog.Object) error {
	if err := ledger.Ensure(ctx, r.tx); err != nil {
		return err
	}
	c := s.pkg.Control
	return ledger.Record(ctx, r.tx, ledger.Entry{
		Name: s.Name, Version: s.To, Mode: string(s.Mode), Schema: s.Schema, Control: c.Text,
		Depends: c.Depends, Conflicts: slices.Concat(c.Conflicts, c.Breaks), Provides: c.Provides,
		SHA256: s.SHA256, Settings: s.recorded, Uninstall: s.pkg.Uninstall,
	}, objects)
}

// uninstall removes an extension.
func (r *runner) uninstall(ctx context.Context, s *Step, done *StepReport) error {
	if s.Mode != Module {
		return r.uninstallNative(ctx, s, done)
	}
	objects, err := r.moduleObjects(ctx, s.Name)
	if err != nil {
		return err
	}
	done.Objects = len(objects)
	parts, err := catalog.Parts(ctx, r.tx, objects)
	if err != nil {
		return err
	}
	before, err := catalog.Capture(ctx, r.tx)
	if err != nil {
		return err
	}
	var schema *catalog.Object
	for _, o := range objects {
		done.Dropped = append(done.Dropped, o.String())
	}
	objects = slices.DeleteFunc(objects, func(o catalog.Object) bool {
		if o.Type == "schema" && o.Names[0] == s.Schema {
			schema = &o
			return true
		}
		return false
	})
	missing, err := r.unchanged(ctx, s, objects)
	if err != nil {
		return err
	}
	if missing && len(s.scripts) > 0 {
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("the uninstall.sql of %s was not executed: what it drops is not all there; the rest was dropped without it", s.Name))
		s.scripts = nil
	}
	for _, sc := range s.scripts {
		s.pkg = &pack.Package{Control: &pack.Control{Depends: s.in.Depends}}
		if _, err := r.run(ctx, s, sc); err != nil {
			return err
		}
	}
	left, err := catalog.Lookup(ctx, r.tx, objects)
	if err != nil {
		return err
	}
	left = slices.DeleteFunc(left, func(o catalog.Object) bool { return o.OID == 0 })
	if len(left) > 0 && len(s.scripts) > 0 {
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("the uninstall.sql of %s left %d of its objects, which were dropped too", s.Name, len(left)))
	}
	if err := r.drop(ctx, s, left); err != nil {
		return err
	}
	diff, err := before.Difference(ctx, r.tx)
	if err != nil {
		return err
	}
	s.To = s.From // what errors are about
	if s.cascade {
		diff.Changed = nil // what depended on it has lost something
		if err := r.sayDropped(ctx, s, done, before, parts); err != nil {
			return err
		}
	} else if err := r.onlyOwnDropped(ctx, s, s.From, diff, parts); err != nil {
		return err
	}
	if err := judge(s, r.role, diff, parts, r.s.cfg.enforced); err != nil {
		return err
	}
	if len(diff.Created) > 0 && r.s.cfg.enforced(Replaced) {
		rule := &RuleError{Name: s.Name, Version: s.From, Rule: Replaced}
		for _, o := range diff.Created {
			rule.What = append(rule.What, o.String()+" (created by its uninstall.sql)")
		}
		return rule
	}
	s.To = ""
	if schema != nil {
		if err := r.dropSchema(ctx, s); err != nil {
			return err
		}
	}
	if err := ledger.Forget(ctx, r.tx, s.Name); err != nil {
		return err
	}
	if err := r.exec(ctx, s, afterScript); err != nil {
		return err
	}
	for _, sql := range resetSettings(r.s.primary.o, s.in, nil) {
		if err := r.exec(ctx, s, sql); err != nil {
			return err
		}
	}
	return nil
}

// onlyOwnDropped is rule Replaced for what was dropped.
func (r *runner) onlyOwnDropped(ctx context.Context, s *Step, version string, d *catalog.Difference, own []catalog.Object) error {
	foreign := without(d.Dropped, own)
	if len(foreign) == 0 || !r.s.cfg.enforced(Replaced) {
		return nil
	}
	what, err := r.s.nameDropped(ctx, foreign)
	if err != nil {
		return err
	}
	return &RuleError{Name: s.Name, Version: version, Rule: Replaced, What: what}
}

// nameDropped names objects that the transaction has dropped, as those see them
// who are not in it.
func (s *Session) nameDropped(ctx context.Context, dropped []catalog.Object) ([]string, error) {
	conn, err := s.primary.dial(ctx)
	if err != nil {
		return nil, err
	}
	named, err := catalog.Describe(ctx, conn, dropped)
	if err := errors.Join(err, hangUp(ctx, conn)); err != nil {
		return nil, err
	}
	what := make([]string, len(named))
	for i, o := range named {
		what[i] = o.String() + " (dropped)"
	}
	return what, nil
}

// uninstallNative drops an extension, and says what else a CASCADE has dropped.
func (r *runner) uninstallNative(ctx context.Context, s *Step, done *StepReport) error {
	var members []catalog.Object
	var before *catalog.Snapshot
	var err error
	if done.Objects, err = r.memberCount(ctx, s); err != nil {
		return err
	}
	if s.cascade {
		if members, err = catalog.Members(ctx, r.tx, s.Name); err != nil {
			return err
		}
		if members, err = catalog.Parts(ctx, r.tx, members); err != nil {
			return err
		}
		if before, err = catalog.Capture(ctx, r.tx); err != nil {
			return err
		}
	}
	if err := r.asPeople(ctx, s, s.SQL); err != nil {
		return err
	}
	if s.cascade {
		if err := r.sayDropped(ctx, s, done, before, members); err != nil {
			return err
		}
	}
	if s.in.Entry == nil {
		return r.emptySchema(ctx, s)
	}
	made, err := r.madeSchema(ctx, s)
	if err != nil {
		return err
	}
	o := r.s.primary.o
	if len(made) > 0 && made[0].Names[0] == s.Schema && (o.Ledger.Trusted || o.Ledger.Owner == o.Role.Name) {
		err = r.dropSchema(ctx, s)
	} else {
		err = r.emptySchema(ctx, s)
	}
	if err != nil {
		return err
	}
	return ledger.Forget(ctx, r.tx, s.Name)
}

// emptySchema says that a schema is left with nothing in it: it may have been made
// for what was dropped, and nobody has written that down.
func (r *runner) emptySchema(ctx context.Context, s *Step) error {
	if s.Schema == "public" || s.Schema == "pg_catalog" {
		return nil
	}
	var empty bool
	err := r.tx.QueryRow(ctx, `
SELECT NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.refclassid OPERATOR(pg_catalog.=) 2615 AND d.refobjid OPERATOR(pg_catalog.=) n.oid)
FROM pg_catalog.pg_namespace n WHERE n.nspname OPERATOR(pg_catalog.=) $1`, s.Schema).Scan(&empty)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err == nil && empty {
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("schema %q is empty now, and stays; if it was for %s only: DROP SCHEMA %s", s.Schema, s.Name, quoteIdent(s.Schema)))
	}
	return err
}

// sayDropped reports what went with an extension and was not a part of it.
func (r *runner) sayDropped(ctx context.Context, s *Step, done *StepReport, before *catalog.Snapshot, own []catalog.Object) error {
	diff, err := before.Difference(ctx, r.tx)
	if err != nil {
		return err
	}
	named, err := r.s.nameDropped(ctx, without(diff.Dropped, own))
	for _, what := range named {
		if !strings.HasPrefix(what, "extension "+s.Name+" ") {
			done.Others = append(done.Others, strings.TrimSuffix(what, " (dropped)"))
		}
	}
	return err
}

// unchanged refuses to drop what is not as it was installed: it may be
// somebody's own by now, with data of his. It says whether some of it is gone.
func (r *runner) unchanged(ctx context.Context, s *Step, objects []catalog.Object) (missing bool, err error) {
	recorded, err := ledger.Objects(ctx, r.tx, s.Name)
	if err != nil {
		return false, err
	}
	e := &ModifiedError{Name: s.Name}
	for _, was := range recorded {
		at := slices.IndexFunc(objects, func(o catalog.Object) bool {
			return o.Type == was.Type && slices.Equal(o.Names, was.Names) && slices.Equal(o.Args, was.Args)
		})
		switch {
		case at < 0:
			missing = true
			r.report.Notes = append(r.report.Notes, fmt.Sprintf("%s of %s was not found: it was dropped or renamed by hand", was, s.Name))
		case s.in.Entry.Major != r.s.primary.o.Major(): // another version writes definitions in other words
		case was.MD5 != "" && objects[at].MD5 != was.MD5:
			e.Objects = append(e.Objects, was.String())
		}
	}
	if len(e.Objects) > 0 && !s.modified {
		return false, e
	}
	return missing, nil
}

// drop drops objects, those that others need last.
func (r *runner) drop(ctx context.Context, s *Step, objects []catalog.Object) error {
	ordered, err := catalog.DropOrder(ctx, r.tx, objects)
	if err != nil {
		return err
	}
	for _, o := range ordered {
		sql, err := catalog.DropSQL(o)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		if restrict, ok := strings.CutSuffix(sql, " RESTRICT"); ok && s.cascade {
			sql = restrict + " CASCADE"
		}
		if _, err := r.tx.Conn().PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			return fmt.Errorf("cannot uninstall %s: %w", s.Name, err)
		}
	}
	return nil
}

// dropSchema drops the schema that was made for a module, unless somebody has
// put something else into it by now.
func (r *runner) dropSchema(ctx context.Context, s *Step) error {
	err := pgx.BeginFunc(ctx, r.tx, func(inner pgx.Tx) error {
		_, err := inner.Conn().PgConn().Exec(ctx, "DROP SCHEMA "+quoteIdent(s.Schema)+" RESTRICT").ReadAll()
		return err
	})
	var server *pgconn.PgError
	if errors.As(err, &server) && server.Code == "2BP01" { // dependent_objects_still_exist
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("schema %q was made for %s and stays: there is more in it", s.Schema, s.Name))
		return nil
	}
	return err
}
