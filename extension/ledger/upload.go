package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"rideau/extension/catalog"
	"rideau/extension/depend"
	"rideau/extension/pack"
	"rideau/extension/script"
)

// Bootstrap makes the functions by which extensions are installed from SQL, or
// brings them to this program's state; the ledger, too. Who may call them, beside
// the owner, is up to the owner, see bootstrap.sql.
func Bootstrap(ctx context.Context, q Querier) error {
	err := bootstrap(ctx, q)
	if err != nil {
		return fmt.Errorf("could not make the functions to install from SQL: %w", err)
	}
	return nil
}

func bootstrap(ctx context.Context, q Querier) error {
	if err := ensure(ctx, q); err != nil {
		return err
	}
	text, err := sqlFiles.ReadFile("bootstrap.sql")
	if err != nil {
		return err
	}
	again, err := sqlFiles.ReadFile("again.sql")
	if err != nil {
		return err
	}
	return execPinned(ctx, q, strings.NewReplacer("$describe$", catalog.DescribeSQL(), "$again$", string(again)).Replace(string(text)))
}

// An UploadError says why a package cannot be installed from SQL.
type UploadError struct{ Name, Version, Why string }

func (e *UploadError) Error() string {
	return fmt.Sprintf("%s %s cannot be installed from SQL: %s", e.Name, e.Version, e.Why)
}

// Upload stores a package for extension.install to find. signedBy names the key
// whose signature was checked; it is empty for a package that is not signed, which
// cannot take the name of an extension that the server has files of. A release
// that was uploaded before is replaced. What cannot be a module is refused with an
// *UploadError.
func Upload(ctx context.Context, q Querier, p *pack.Package, signedBy string) error {
	if err := upload(ctx, q, p, signedBy); err != nil {
		return fmt.Errorf("could not upload the package %s: %w", p.Control.Name, err)
	}
	return nil
}

// A statementRow is a row of table statement.
type statementRow struct {
	From string `json:"from_version"`
	To   string `json:"to_version"`
	Seq  int    `json:"seq"`
	File string `json:"file"`
	Line int    `json:"line"`
	SQL  string `json:"sql"`
}

// A pathRow is a row of table path.
type pathRow struct {
	From  string   `json:"from_version"`
	Steps []string `json:"steps"`
}

func upload(ctx context.Context, q Querier, p *pack.Package, signedBy string) error {
	if err := mustHave(ctx, q); err != nil {
		return err
	}
	c := p.Control
	target := c.ExtVersion
	if target == "" {
		target = c.Version
	}
	refuse := func(format string, args ...any) error {
		return &UploadError{c.Name, c.Version, fmt.Sprintf(format, args...)}
	}
	if c.Kind == pack.KindLibrary {
		return refuse("it is made of files for the server")
	}
	for _, f := range p.Files {
		if strings.HasPrefix(f.Path, "lib/") || strings.HasPrefix(f.Path, "share/") {
			return refuse("the server must have its file %s", f.Path)
		}
	}
	if c.Preload == pack.PreloadShared || c.Preload == pack.PreloadSession {
		return refuse("it must be preloaded")
	}
	if c.Encoding != "" && !strings.EqualFold(strings.ReplaceAll(c.Encoding, "-", ""), "utf8") {
		return refuse("its scripts are in encoding %s", c.Encoding)
	}
	at := p.ControlOf(target)
	if at.Kind == "" {
		at = c
	}

	var statements []statementRow
	add := func(from, to, file string, sql []byte) error {
		rows, err := cut(c.Name, file, sql)
		for i := range rows {
			rows[i].From, rows[i].To = from, to
		}
		statements = append(statements, rows...)
		return err
	}
	for _, s := range p.Scripts {
		if err := add(s.From, s.To, s.File, s.SQL); err != nil {
			return err
		}
	}
	if p.Uninstall != nil {
		if err := add(target, "", "uninstall.sql", p.Uninstall); err != nil {
			return err
		}
	}
	paths, err := pathsTo(p, target)
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return refuse("no scripts lead to its version %s", target)
	}

	conflicts := slices.Concat(at.Conflicts, at.Breaks)
	relations, err := packageRelations(at, conflicts)
	if err != nil {
		return err
	}
	settings := []byte("[]")
	if len(p.Conf) > 0 {
		if settings, err = json.Marshal(p.Conf); err != nil {
			return err
		}
	}
	control := c.Text
	if control == nil {
		control = []byte{}
	}
	// By it a module that the command has installed is known to be of this package.
	digest := p.SHA256
	if digest == "" {
		if digest, err = p.WriteArchive(io.Discard); err != nil {
			return err
		}
	}
	for _, table := range []string{"statement", "path", "package"} {
		if _, err := q.Exec(ctx, `DELETE FROM extension.`+table+` WHERE name OPERATOR(pg_catalog.=) $1 AND version OPERATOR(pg_catalog.=) $2`, c.Name, c.Version); err != nil {
			return err
		}
	}
	if _, err := q.Exec(ctx, `
INSERT INTO extension.package (name, version, extversion, kind, comment, schema, relocatable, relations, odd_order, settings, control, depends, conflicts, uninstall, sha256, signed_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
		c.Name, c.Version, target, c.Kind, c.Comment, at.Schema, at.Relocatable, relations, oddOrder(p.Edges()), settings, control,
		at.Depends.String(), conflicts.String(), p.Uninstall, digest, signedBy); err != nil {
		return err
	}
	return errors.Join(
		insertRows(ctx, q, `
INSERT INTO extension.path (name, version, from_version, steps)
SELECT $1, $2, r.from_version, r.steps
FROM pg_catalog.jsonb_to_recordset($3::pg_catalog.jsonb) AS r(from_version pg_catalog.text, steps pg_catalog.text[])`, c, paths),
		insertRows(ctx, q, `
INSERT INTO extension.statement (name, version, from_version, to_version, seq, file, line, sql)
SELECT $1, $2, r.from_version, r.to_version, r.seq, r.file, r.line, r.sql
FROM pg_catalog.jsonb_to_recordset($3::pg_catalog.jsonb) AS r(from_version pg_catalog.text, to_version pg_catalog.text,
	seq pg_catalog.int4, file pg_catalog.text, line pg_catalog.int4, sql pg_catalog.text)`, c, statements))
}

func insertRows[T any](ctx context.Context, q Querier, sql string, c *pack.Control, rows []T) error {
	if len(rows) == 0 {
		return nil
	}
	text, err := json.Marshal(rows)
	if err != nil {
		return err
	}
	_, err = q.Exec(ctx, sql, c.Name, c.Version, text)
	return err
}

var (
	configDump = regexp.MustCompile(`(?is)^SELECT\s+(?:pg_catalog\s*\.\s*)?pg_extension_config_dump\s*\(`)
	aboutSelf  = regexp.MustCompile(`(?is)^(?:ALTER|COMMENT\s+ON)\s+EXTENSION\s+(?:"((?:[^"]|"")*)"|([^\s"]+))\s+(\w+)`)
)

// cut makes rows of a script. What is about the extension as one of pg_extension
// is left out where it means nothing for a module, and refused where it would.
func cut(name, file string, sql []byte) ([]statementRow, error) {
	if !utf8.Valid(sql) {
		return nil, fmt.Errorf("%s is not in UTF-8", file)
	}
	list, err := script.Split(file, sql)
	if err == nil {
		err = script.CheckTransaction(list)
	}
	if err != nil {
		return nil, err
	}
	var rows []statementRow
	for _, s := range list {
		if configDump.MatchString(s.SQL) {
			continue // a module's tables are dumped whole
		}
		if m := aboutSelf.FindStringSubmatch(s.SQL); m != nil {
			who := strings.ReplaceAll(m[1], `""`, `"`)
			if who == "" {
				who = strings.ToLower(m[2])
			}
			switch {
			case who != name:
			case strings.HasPrefix(strings.ToUpper(s.SQL), "COMMENT"), strings.EqualFold(m[3], "DROP"):
				continue
			default:
				return nil, fmt.Errorf("%s:%d: ALTER EXTENSION ... %s means nothing for a module", s.File, s.Line, strings.ToUpper(m[3]))
			}
		}
		rows = append(rows, statementRow{Seq: len(rows) + 1, File: s.File, Line: s.Line, SQL: s.SQL})
	}
	return rows, nil
}

// pathsTo are the ways to a version: from nothing, and from each that scripts
// know.
func pathsTo(p *pack.Package, target string) ([]pathRow, error) {
	froms := []string{""}
	for _, s := range p.Scripts {
		for _, v := range []string{s.From, s.To} {
			if v != target && !slices.Contains(froms, v) {
				froms = append(froms, v)
			}
		}
	}
	slices.Sort(froms)
	var rows []pathRow
	for _, from := range froms {
		scripts, err := p.Path(from, target)
		var none *pack.NoPathError
		if errors.As(err, &none) {
			continue
		}
		if err != nil {
			return nil, err
		}
		row := pathRow{From: from}
		for _, s := range scripts {
			row.Steps = append(row.Steps, s.To)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// oddOrder is whether scripts upgrade to what Compare takes for an older version,
// or another spelling of the same one, with none leading back.
func oddOrder(edges []depend.Edge) bool {
	return slices.ContainsFunc(edges, func(e depend.Edge) bool {
		return e.From != e.To && depend.Compare(e.From, e.To) >= 0 && !slices.Contains(edges, depend.Edge{From: e.To, To: e.From})
	})
}

// packageRelations is relationsJSON with the versions of the server.
func packageRelations(c *pack.Control, conflicts depend.List) ([]byte, error) {
	postgres := depend.List{}
	if len(c.Postgres) > 0 {
		postgres = depend.List{{{Name: "postgresql", Range: c.Postgres}}}
	}
	text, err := relationsJSON(slices.Concat(c.Depends, postgres), conflicts, c.Provides)
	if err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, err
	}
	all["postgres"] = json.RawMessage("[]")
	if len(c.Postgres) > 0 {
		var depends [][]struct {
			Range json.RawMessage `json:"range"`
		}
		if err := json.Unmarshal(all["depends"], &depends); err != nil {
			return nil, err
		}
		all["postgres"] = depends[len(depends)-1][0].Range
	}
	return json.Marshal(all)
}

// Uploaded lists the releases that were uploaded, by name and version.
func Uploaded(ctx context.Context, q Querier) ([]Release, error) {
	n, _, err := format(ctx, q)
	if err != nil || n < 2 {
		return nil, err
	}
	rows, err := q.Query(ctx, `
SELECT name, version, sha256, signed_by FROM extension.package ORDER BY name COLLATE pg_catalog."C", version COLLATE pg_catalog."C"`)
	if err != nil {
		return nil, fmt.Errorf("could not list the packages that were uploaded: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Release])
}

// A Release is a package that was uploaded.
type Release struct{ Name, Version, SHA256, SignedBy string }
