package script

import (
	"bytes"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// A Substitution says what stands for the placeholders of a script.
type Substitution struct {
	// File names the script in errors.
	File string

	// Schema is the target schema. It replaces @extschema@, unless the extension
	// is relocatable: then the placeholder stays, as it does on the server.
	Schema      string
	Relocatable bool

	// Owner is the role that calls, and replaces @extowner@.
	Owner string

	// Required has the schemas of required extensions by the extensions' names:
	// they replace @extschema:name@.
	Required map[string]string

	// ModulePathname replaces MODULE_PATHNAME, which stands inside of quotes in
	// scripts. Empty means that the control file has none, and nothing is
	// replaced.
	ModulePathname string

	// Strict refuses placeholders that are left over, which the server would
	// only notice as an odd syntax error, or not at all in the body of a
	// function.
	Strict bool
}

// relevant are the characters that no one way of quoting makes safe inside of
// strings, inside of dollar quotes and outside of both. The server has refused
// them since CVE-2023-39417; we do on every version. A newline would move the
// lines behind it.
const relevant = "\"$'\\"

// placeholder finds what nothing was substituted for.
var placeholder = regexp.MustCompile(`@extschema(:[^@\s]+)?@|@extowner@`)

// Substitute does to a script what CREATE EXTENSION does before it runs it, in
// its order: lines that begin with \echo become empty, then @extowner@,
// @extschema@, @extschema:name@ (by name) and MODULE_PATHNAME are replaced,
// wherever they stand, names being quoted if they must be. Nothing else is
// looked at: the script need not be correct.
//
// An error is an [*Error] at the first use of a value that cannot be used.
func Substitute(sql []byte, s Substitution) ([]byte, error) {
	sql = emptyEcho(sql)
	var failed error
	replace := func(what, name, value string) {
		if failed != nil || !bytes.Contains(sql, []byte(what)) {
			return
		}
		if i := strings.IndexAny(name, relevant+"\r\n\x00"); i >= 0 || name == "" {
			why := "is empty"
			if i >= 0 {
				why = "must not contain a line end or any of " + relevant
			}
			l := lexer{file: s.File, src: sql}
			failed = l.errorAt(bytes.Index(sql, []byte(what)), "cannot put %q in place of %s: the value %s", name, what, why)
			return
		}
		sql = bytes.ReplaceAll(sql, []byte(what), []byte(value))
	}
	replace("@extowner@", s.Owner, quoteIdent(s.Owner))
	if !s.Relocatable {
		replace("@extschema@", s.Schema, quoteIdent(s.Schema))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Required)) {
		replace("@extschema:"+name+"@", s.Required[name], quoteIdent(s.Required[name]))
	}
	if s.ModulePathname != "" {
		// $libdir has a dollar, which is harmless inside of single quotes.
		replace("MODULE_PATHNAME", strings.ReplaceAll(s.ModulePathname, "$", ""), s.ModulePathname)
	}
	if failed != nil {
		return nil, failed
	}
	if i := bytes.Index(sql, []byte("MODULE_PATHNAME")); s.Strict && i >= 0 && s.ModulePathname == "" {
		l := lexer{file: s.File, src: sql}
		return nil, l.errorAt(i, "nothing stands for MODULE_PATHNAME: the control file has no module_pathname")
	}
	if at := placeholder.FindIndex(sql); s.Strict && at != nil {
		l := lexer{file: s.File, src: sql}
		what := string(sql[at[0]:at[1]])
		switch {
		case what == "@extschema@":
			return nil, l.errorAt(at[0], "@extschema@ cannot be used in the script of a relocatable extension")
		case what == "@extowner@":
			return nil, l.errorAt(at[0], "nothing stands for @extowner@")
		default:
			name := strings.TrimSuffix(strings.TrimPrefix(what, "@extschema:"), "@")
			return nil, l.errorAt(at[0], "%s names an extension that is not required: %q", what, name)
		}
	}
	return sql, nil
}

// emptyEcho empties lines that begin with \echo, and keeps the lines.
func emptyEcho(sql []byte) []byte {
	if !bytes.Contains(sql, echo) {
		return sql
	}
	lines := bytes.Split(sql, []byte{'\n'})
	for i, line := range lines {
		if bytes.HasPrefix(line, echo) {
			lines[i] = nil
		}
	}
	return bytes.Join(lines, []byte{'\n'})
}

// quoteIdent quotes a name if it has to be, as quote_identifier does.
func quoteIdent(name string) string {
	safe := name != "" && (name[0] == '_' || 'a' <= name[0] && name[0] <= 'z')
	for i := range len(name) {
		c := name[i]
		safe = safe && ('a' <= c && c <= 'z' || isDigit(c) || c == '_')
	}
	if _, key := keywords[name]; safe && !key {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// keywords are those of 13 to 19 that are not unreserved: as a name they must
// be quoted somewhere. To quote one that an older server does not know changes
// nothing.
var keywords = func() map[string]struct{} {
	set := map[string]struct{}{}
	for _, w := range strings.Fields(`
		all analyse analyze and any array as asc asymmetric authorization between
		bigint binary bit boolean both case cast char character check coalesce
		collate collation column concurrently constraint create cross
		current_catalog current_date current_role current_schema current_time
		current_timestamp current_user dec decimal default deferrable desc
		distinct do else end except exists extract false fetch float for foreign
		freeze from full grant graph_table greatest group grouping having ilike in
		initially inner inout int integer intersect interval into is isnull join
		json json_array json_arrayagg json_exists json_object json_objectagg
		json_query json_scalar json_serialize json_table json_value lateral
		leading least left like limit localtime localtimestamp merge_action
		national natural nchar none normalize not notnull null nullif numeric
		offset on only or order out outer overlaps overlay placing position
		precision primary real references returning right row select session_user
		setof similar smallint some substring symmetric system_user table
		tablesample then time timestamp to trailing treat trim true union unique
		user using values varchar variadic verbose when where window with
		xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces
		xmlparse xmlpi xmlroot xmlserialize xmltable`) {
		set[w] = struct{}{}
	}
	return set
}()
