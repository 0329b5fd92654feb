package script

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A Finding is something in a script that may be wrong.
type Finding struct {
	Rule         string // the number that pgspot has for it: "PS002"
	File         string
	Line, Column int
	Message      string
}

func (f Finding) String() string {
	return fmt.Sprintf("%s:%d:%d: %s: %s", f.File, f.Line, f.Column, f.Rule, f.Message)
}

// Lint looks for what can be turned against those who install or use the
// extension: names and operators that are looked up in a search_path somebody
// else may have written to, and objects that may have been somebody else's
// before. The rules are those that pgspot documents, under their numbers:
//
//	PS001  operator without a schema          PS009  CASE that compares, with an operator nobody can name
//	PS002  CREATE OR REPLACE of a function    PS010  schema IF NOT EXISTS
//	PS003  SECURITY DEFINER without a path    PS011  sequence IF NOT EXISTS
//	PS004  SECURITY DEFINER, unsafe path      PS012  table IF NOT EXISTS
//	PS005  function without a path            PS013  server IF NOT EXISTS
//	PS006  CREATE OR REPLACE of a transform   PS014  index IF NOT EXISTS
//	PS007  the same of something else         PS015  CREATE OR REPLACE of a view
//	                                          PS016  function without a schema
//	                                          PS017  table without a schema
//
// A path is safe if it has only pg_catalog, pg_temp at its end, and schemas that
// the script itself creates. Objects in schemas that the script creates can be
// replaced. The target schema, @extschema@, is not among them.
//
// Statements, DO blocks and the bodies of functions in SQL and PL/pgSQL are
// read, as they are before or after substitution. They are not parsed: PS001,
// PS009, PS016 and PS017 go by the words around, of several tables with commas
// between them only the first is looked at, and SQL in strings that are executed
// is not seen. A script without findings is not proven safe.
func Lint(list []Statement) []Finding {
	l := &linter{created: map[string]bool{}}
	for _, s := range list {
		l.statement(s)
	}
	return l.found
}

// A linter knows what the statements so far have done.
type linter struct {
	found   []Finding
	created map[string]bool // schemas
	path    []string        // search_path, nil: the installer's, whose first schema is the target
	current Statement
}

// placeholders stand where names do.
var placeholders = regexp.MustCompile(`@extschema(:[^@\s]+)?@|@extowner@`)

// asName turns a placeholder into a name of the same length.
func asName(p []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if r < 0x80 && !isIdent(byte(r)) || r == '$' {
			return '_'
		}
		return r
	}, p)
}

// A region is a text that is linted: a statement, or a body in it.
type region struct {
	lex    lexer
	tokens []token
	offset int  // in the statement
	fixed  bool // all positions are the offset: the text is not as it stands there
	code   bool // PL/pgSQL
}

// tokenize reads a region; a body that cannot be read has none.
func tokenize(text []byte) (region, bool) {
	r := region{lex: lexer{src: text}}
	for {
		t, err := r.lex.next()
		if err != nil {
			return r, false
		}
		if t.kind == end {
			return r, true
		}
		r.tokens = append(r.tokens, t)
	}
}

func (r *region) is(i int, words ...string) bool {
	if i < 0 || i >= len(r.tokens) {
		return false
	}
	for _, w := range words {
		if r.lex.is(r.tokens[i], w) {
			return true
		}
	}
	return false
}

func (r *region) char(i int, c byte) bool {
	return i >= 0 && i < len(r.tokens) && r.lex.char(r.tokens[i], c)
}

// name reads a name with its schema at i; next is what follows it.
func (r *region) name(i int) (schema, name string, next int) {
	part := func(i int) (string, bool) {
		if i >= len(r.tokens) || r.tokens[i].kind != word && r.tokens[i].kind != quoted {
			return "", false
		}
		s := r.lex.unquote(r.tokens[i])
		if r.tokens[i].kind == word {
			s = strings.ToLower(s)
		}
		return s, true
	}
	name, ok := part(i)
	if !ok {
		return "", "", i
	}
	next = i + 1
	for r.char(next, '.') {
		more, ok := part(next + 1)
		if !ok {
			break
		}
		schema, name, next = name, more, next+2
	}
	return schema, name, next
}

// report adds a finding at token i of the region.
func (l *linter) report(r *region, i int, rule, format string, args ...any) {
	at := r.offset
	if !r.fixed {
		at += r.tokens[i].start
	}
	line, column := position([]byte(l.current.SQL), at)
	if line == 1 {
		column += l.current.Column - 1
	}
	l.found = append(l.found, Finding{Rule: rule, File: l.current.File, Line: l.current.Line + line - 1, Column: column, Message: fmt.Sprintf(format, args...)})
}

// safe says whether nobody else can write to the schemas of a path.
func (l *linter) safe(path []string) bool {
	for i, s := range path {
		if s != "pg_catalog" && !l.created[s] && (s != "pg_temp" || i < len(path)-1) {
			return false
		}
	}
	return path != nil
}

// ours says whether an object is made in a schema that the script has created.
func (l *linter) ours(schema string) bool {
	if schema == "" && len(l.path) > 0 {
		schema = l.path[0]
	}
	return l.created[schema]
}

func (l *linter) statement(s Statement) {
	l.current = s
	r, ok := tokenize(placeholders.ReplaceAllFunc([]byte(s.SQL), asName))
	if !ok || len(r.tokens) == 0 {
		return
	}
	switch {
	case r.is(0, "SET"):
		i := 1
		if r.is(i, "LOCAL", "SESSION") {
			i++
		}
		if path, ok := l.setPath(&r, i); ok {
			l.path = path
		}
	case r.is(0, "CREATE"):
		l.create(&r)
	case r.is(0, "DO"):
		for i, t := range r.tokens {
			if t.kind == text || t.kind == dollar {
				l.body(&r, i, !r.is(i-1, "LANGUAGE"), l.path)
			}
		}
	case r.is(0, "SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "VALUES", "PERFORM") || r.char(0, '('):
		if path, ok := setConfig(&r); ok {
			l.path = path
			return
		}
		l.expressions(&r, 0, len(r.tokens), l.path)
	}
}

// setPath reads "search_path = a, b" or "search_path TO a, b" at i.
func (l *linter) setPath(r *region, i int) (path []string, ok bool) {
	if !r.is(i, "SEARCH_PATH") || !r.char(i+1, '=') && !r.is(i+1, "TO") {
		return nil, false
	}
	path = []string{}
	for i += 2; i < len(r.tokens); i += 2 {
		var s string
		switch r.tokens[i].kind {
		case word:
			s = strings.ToLower(r.lex.text(r.tokens[i]))
		case quoted:
			s = r.lex.unquote(r.tokens[i])
		case text:
			s = strings.Trim(r.lex.text(r.tokens[i]), "'")
		}
		if s != "" {
			path = append(path, s)
		}
		if !r.char(i+1, ',') {
			break
		}
	}
	if slices.Contains(path, "default") {
		return nil, true
	}
	return path, true
}

// setConfig reads SELECT pg_catalog.set_config('search_path', '…', …).
func setConfig(r *region) (path []string, ok bool) {
	_, name, i := r.name(1)
	if name != "set_config" || !r.char(i, '(') || i+3 >= len(r.tokens) || r.lex.text(r.tokens[i+1]) != "'search_path'" || r.tokens[i+3].kind != text {
		return nil, false
	}
	path = []string{}
	for s := range strings.SplitSeq(strings.Trim(r.lex.text(r.tokens[i+3]), "'"), ",") {
		if s = strings.Trim(strings.TrimSpace(s), `"`); s != "" {
			path = append(path, s)
		}
	}
	return path, true
}

// adjectives stand between CREATE and what is created.
var adjectives = []string{"GLOBAL", "LOCAL", "TEMP", "TEMPORARY", "UNLOGGED", "UNIQUE", "RECURSIVE", "MATERIALIZED", "FOREIGN", "CONSTRAINT",
	"TRUSTED", "PROCEDURAL", "EVENT", "DEFAULT"}

func (l *linter) create(r *region) {
	i, replace := 1, false
	if r.is(i, "OR") && r.is(i+1, "REPLACE") {
		i, replace = 3, true
	}
	temporary := false
	for r.is(i, adjectives...) {
		temporary = temporary || r.is(i, "TEMP", "TEMPORARY")
		i++
	}
	if i >= len(r.tokens) {
		return
	}
	kind, at := upper(r.lex.text(r.tokens[i])), i
	i++
	if r.is(i, "CONCURRENTLY") {
		i++
	}
	exists := r.is(i, "IF") && r.is(i+1, "NOT") && r.is(i+2, "EXISTS")
	if exists {
		i += 3
	}
	schema, name, next := r.name(i)
	ours := l.ours(schema) || temporary
	const before = "may be somebody else's from before, who then owns what the script makes of it"
	switch kind {
	case "FUNCTION", "PROCEDURE":
		if replace && !ours {
			l.report(r, at, "PS002", "%s that is replaced %s: use CREATE %s", strings.ToLower(kind), before, kind)
		}
		l.function(r, next)
		return
	case "SCHEMA":
		if exists {
			l.report(r, at, "PS010", "schema that exists %s: use CREATE SCHEMA", before)
		} else if name != "authorization" {
			l.created[name] = true
		}
		return
	case "VIEW", "TABLE":
		if kind == "VIEW" && replace && !ours {
			l.report(r, at, "PS015", "view that is replaced %s: use CREATE VIEW", before)
		}
		if exists && !ours {
			l.report(r, at, "PS012", "table that exists %s: use CREATE TABLE", before)
		}
		for ; next < len(r.tokens); next++ {
			if r.is(next, "AS") && r.is(next+1, "SELECT", "WITH", "VALUES", "TABLE") {
				l.expressions(r, next+1, len(r.tokens), l.path)
				return
			}
		}
		return
	case "EXTENSION":
		return
	}
	rules := map[string]string{"SEQUENCE": "PS011", "SERVER": "PS013", "INDEX": "PS014"}
	switch {
	case exists && rules[kind] != "" && (kind != "SEQUENCE" || !ours):
		l.report(r, at, rules[kind], "%s that exists %s: use CREATE %s", strings.ToLower(kind), before, kind)
	case exists && rules[kind] == "" && !ours:
		l.report(r, at, "PS007", "%s that exists %s: leave IF NOT EXISTS out", strings.ToLower(kind), before)
	case replace && kind == "TRANSFORM":
		l.report(r, at, "PS006", "transform that is replaced %s: use CREATE TRANSFORM", before)
	case replace && !ours:
		l.report(r, at, "PS007", "%s that is replaced %s: leave OR REPLACE out", strings.ToLower(kind), before)
	}
}

// function lints a function from its arguments on.
func (l *linter) function(r *region, i int) {
	definer, language := -1, ""
	var path []string
	body, atomic := -1, -1
	depth := 0
	start := i
	for ; i < len(r.tokens) && atomic < 0; i++ {
		switch {
		case r.char(i, '('):
			depth++
		case r.char(i, ')'):
			depth--
		case depth > 0:
		case r.is(i, "SECURITY") && r.is(i+1, "DEFINER"):
			definer = i
		case r.is(i, "LANGUAGE") && i+1 < len(r.tokens):
			language = strings.ToLower(strings.Trim(r.lex.text(r.tokens[i+1]), `'"`))
		case r.is(i, "SET"):
			if p, ok := l.setPath(r, i+1); ok {
				path = p
			}
		case r.is(i, "AS") && i+1 < len(r.tokens) && (r.tokens[i+1].kind == text || r.tokens[i+1].kind == dollar):
			body = i + 1
		case r.is(i, "BEGIN") && r.is(i+1, "ATOMIC"):
			atomic = i + 2
		}
	}
	at := max(start-1, 0)
	switch {
	case definer >= 0 && path == nil:
		l.report(r, definer, "PS003", "SECURITY DEFINER without a search_path of its own: who calls it chooses what its names mean; add SET search_path = pg_catalog, pg_temp")
	case definer >= 0 && !l.safe(path):
		l.report(r, definer, "PS004", "SECURITY DEFINER with a search_path in which others may create objects: %s", strings.Join(path, ", "))
	case path == nil && language != "c" && language != "internal" && atomic < 0:
		l.report(r, at, "PS005", "function without a search_path of its own: who calls it chooses what its names mean")
	}
	switch {
	case atomic >= 0: // its names are looked up when it is created
		l.expressions(r, atomic, len(r.tokens), l.path)
	case body >= 0 && (language == "sql" || language == "plpgsql"):
		l.body(r, body, language == "plpgsql", path)
	}
}

// body lints the text of a string.
func (l *linter) body(r *region, i int, code bool, path []string) {
	t := r.tokens[i]
	raw := r.lex.src[t.start:t.end]
	var inner []byte
	var offset int
	fixed := false
	switch {
	case t.kind == dollar:
		tag := bytes.IndexByte(raw[1:], '$') + 2
		inner, offset = raw[tag:len(raw)-tag], t.start+tag
	case raw[0] == '\'':
		inner, offset = raw[1:len(raw)-1], t.start+1
		if bytes.Contains(inner, []byte("''")) {
			inner, fixed = bytes.ReplaceAll(inner, []byte("''"), []byte("'")), true
		}
	default:
		return // with escapes
	}
	b, ok := tokenize(inner)
	if !ok {
		return
	}
	b.offset, b.fixed, b.code = r.offset+offset, fixed, code
	l.expressions(&b, 0, len(b.tokens), path)
}

// notCalls are words, besides keywords, before a parenthesis that call nothing.
var notCalls = func() map[string]bool {
	m := map[string]bool{}
	for w := range strings.FieldsSeq(`over filter within partition by key conflict operator sets cube rollup materialized include if elsif while loop return
		query perform execute raise using returns range rows groups insert update delete begin exception by set values alias as index type like ilike is
		declare cursor call do merge matched nothing always ordinality tables view columns options server`) {
		m[w] = true
	}
	return m
}()

// expressions lints what is looked up in the path, between two tokens.
func (l *linter) expressions(r *region, from, to int, path []string) {
	if l.safe(path) {
		return
	}
	ctes := map[string]bool{}
	for i := from; i < to; i++ {
		if _, name, next := r.name(i); name != "" && r.is(i-1, "WITH", "RECURSIVE") || r.char(i-1, ',') {
			for next < to && !r.is(next, "AS") && next < i+40 {
				next++
			}
			if r.is(next, "AS") && (r.char(next+1, '(') || r.is(next+1, "MATERIALIZED", "NOT")) {
				ctes[name] = true
			}
		}
	}
	var openers []string      // the word before each open parenthesis
	inSet, named := false, -1 // named is the end of the last OPERATOR(…)
	for i := from; i < to; i++ {
		t := r.tokens[i]
		switch {
		case r.is(i, "OPERATOR") && r.char(i+1, '('):
			for i < to && !r.char(i, ')') {
				i++
			}
			named = i
			continue
		case r.char(i, '('):
			opener := ""
			if i > from && r.tokens[i-1].kind == word {
				opener = upper(r.lex.text(r.tokens[i-1]))
			}
			openers = append(openers, opener)
		case r.char(i, ')') && len(openers) > 0:
			openers = openers[:len(openers)-1]
		case r.char(i, ';'), r.is(i, "WHERE", "FROM", "RETURNING"):
			inSet = false
		case r.is(i, "SET"):
			inSet = true
		case t.kind == operator:
			last := i
			for last+1 < to && r.tokens[last+1].kind == operator && r.tokens[last+1].start == r.tokens[last].end {
				last++
			}
			symbol := string(r.lex.src[t.start:r.tokens[last].end])
			if l.isOperator(r, i, last, from, symbol, inSet) {
				l.report(r, i, "PS001", "operator %s is looked up in search_path: write OPERATOR(pg_catalog.%s), or set the path", symbol, symbol)
			}
			i = last
			continue
		case r.is(i, "LIKE", "ILIKE") && !r.char(i-1, '('):
			l.report(r, i, "PS001", "the operator of %s is looked up in search_path: set the path", upper(r.lex.text(t)))
		case r.is(i, "CASE") && !r.is(i-1, "END") && !r.is(i+1, "WHEN") && !r.char(i-1, '.') && !r.char(i+1, ';'):
			l.report(r, i, "PS009", "CASE compares with an operator that is looked up in search_path: use CASE WHEN, or set the path")
		}
		if t.kind != word && t.kind != quoted || r.char(i-1, '.') {
			continue
		}
		_, name, next := r.name(i)
		qualified := next > i+1
		switch {
		case r.char(next, '('):
			_, isKey := keywords[name]
			if t.kind == quoted || name == "left" || name == "right" {
				isKey = false
			}
			if !qualified && !isKey && !notCalls[name] && (!r.char(i-1, ')') || named == i-1) && !r.char(i-1, ':') &&
				!r.is(i-1, "AS", "INTO", "TABLE", "UPDATE", "ON", "REFERENCES", "JOIN", "WITH", "RECURSIVE") && !ctes[name] {
				l.report(r, i, "PS016", "function %s is looked up in search_path: write its schema, or set the path", name)
			}
		case r.table(i, from, openers) && !qualified && !ctes[name] && !isAny(name, "select", "only", "lateral", "unnest", "values", "with"):
			l.report(r, i, "PS017", "table %s is looked up in search_path: write its schema, or set the path", name)
		}
	}
}

// table says whether the name at i stands where a table does.
func (r *region) table(i, from int, openers []string) bool {
	special := len(openers) > 0 && isAny(strings.ToLower(openers[len(openers)-1]), "extract", "substring", "trim", "overlay", "position")
	begins := i-1 == from || r.char(i-2, ';') || r.char(i-2, '(') || r.is(i-2, "BEGIN", "THEN", "ELSE", "LOOP", "AS", "ATOMIC")
	return r.is(i-1, "FROM") && !special && !r.is(i-2, "DISTINCT") || r.is(i-1, "JOIN") ||
		r.is(i-1, "INTO") && r.is(i-2, "INSERT", "MERGE") || r.is(i-1, "UPDATE") && begins
}

func isAny(s string, list ...string) bool { return slices.Contains(list, s) }

// raised are the options of RAISE … USING.
var raised = []string{"MESSAGE", "DETAIL", "HINT", "ERRCODE", "COLUMN", "CONSTRAINT", "DATATYPE", "TABLE", "SCHEMA"}

// isOperator says whether the symbol of tokens i to last is an operator that is
// looked up, and not something else that looks like one.
func (l *linter) isOperator(r *region, i, last, from int, symbol string, inSet bool) bool {
	operand := func(i int) bool {
		if i < from {
			return false
		}
		switch t := r.tokens[i]; t.kind {
		case word:
			_, isKey := keywords[strings.ToLower(r.lex.text(t))]
			return !isKey || r.is(i, "NULL", "TRUE", "FALSE", "END", "CURRENT_USER", "CURRENT_DATE", "CURRENT_TIMESTAMP")
		case quoted, text, dollar, number:
			return true
		}
		return r.char(i, ')') || r.char(i, ']')
	}
	begins := func(i int) bool { // a statement of PL/pgSQL
		return i < from || r.char(i, ';') || r.char(i, '>') /* of a label */ || r.is(i, "BEGIN", "THEN", "ELSE", "LOOP")
	}
	switch {
	case symbol == "=>" || r.char(i-1, ':') && symbol == "=":
		return false
	case symbol == "*" && !operand(i-1):
		return false
	case (symbol == "-" || symbol == "+") && !operand(i-1) && last+1 < len(r.tokens) && r.tokens[last+1].kind == number:
		return false
	case symbol == "%" && r.is(last+1, "TYPE", "ROWTYPE"):
		return false
	case symbol == "<<" || symbol == ">>":
		return !r.code
	case symbol == "=" && r.code && r.is(i-1, raised...) && (r.is(i-2, "USING") || r.char(i-2, ',')):
		return false
	case symbol == "=" && inSet:
		first := i - 1
		for first > from && (r.char(first-1, '.') || r.char(first, '.')) {
			first--
		}
		return !r.is(first-1, "SET") && !r.char(first-1, ',') && !r.char(i-1, ')') && !r.char(i-1, ']')
	case symbol == "=" && r.code:
		first := i - 1
		for first > from && (r.char(first-1, '.') || r.char(first, '.')) {
			first--
		}
		return !begins(first-1) && !r.declares(first, from)
	}
	return true
}

// declares says whether what is before i is a declaration: "name type = ".
func (r *region) declares(i, from int) bool {
	for ; i >= from && !r.char(i, ';') && !r.is(i, "BEGIN", "IF", "WHERE", "THEN"); i-- {
		if r.is(i, "DECLARE") {
			return true
		}
	}
	return false
}
