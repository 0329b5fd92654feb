package script

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// A Statement is one statement of a script.
type Statement struct {
	SQL          string // without the semicolon, and without comments around it
	File         string
	Line, Column int // of its first character, from 1
	Offset       int // of its first byte, from 0

	// Keyword is what the statement is: its first two words in upper case, or
	// one if there is only one, with OR REPLACE left out: "CREATE FUNCTION",
	// "INSERT INTO", "DO". Empty if it begins with something else.
	Keyword string
}

// bom is UTF-8's byte order mark, which the server does not know.
var bom = []byte("\xef\xbb\xbf")

// Split cuts a script into its statements. See the package's documentation for
// how it reads; an error is an [*Error].
//
// A line that begins with \echo is blanked, wherever it is, as CREATE EXTENSION
// empties it: the line that tells people not to run the script with psql. Every
// other psql command is refused, and so is COPY from the client, whose data
// psql would have to send.
func Split(file string, sql []byte) ([]Statement, error) {
	l := &lexer{file: file, src: sql}
	if i := bytes.IndexByte(sql, 0); i >= 0 {
		return nil, l.errorAt(i, "script contains a zero byte")
	}
	l.src = blankEcho(sql)
	var list []Statement
	at := tracker{src: l.src, line: 1, column: 1}
	for {
		tokens, err := l.statement()
		if err != nil {
			return nil, err
		}
		if len(tokens) == 0 {
			return list, nil
		}
		if tokens[0].kind == end || l.char(tokens[0], ';') {
			continue // an empty statement
		}
		if err := l.refuse(tokens); err != nil {
			return nil, err
		}
		first, last := tokens[0], tokens[len(tokens)-1]
		s := Statement{SQL: string(l.src[first.start:last.end]), File: file, Offset: first.start, Keyword: l.keyword(tokens)}
		s.Line, s.Column = at.to(first.start)
		list = append(list, s)
	}
}

// A tracker counts lines and columns as it goes.
type tracker struct {
	src          []byte
	pos          int
	line, column int
}

func (t *tracker) to(offset int) (line, column int) {
	passed := t.src[t.pos:offset]
	if i := bytes.LastIndexByte(passed, '\n'); i >= 0 {
		t.line += bytes.Count(passed, []byte{'\n'})
		t.column = 1
		passed = passed[i+1:]
	}
	t.column += utf8.RuneCount(passed)
	t.pos = offset
	return t.line, t.column
}

// echo begins the lines that CREATE EXTENSION removes.
var echo = []byte(`\echo`)

// blankEcho replaces lines that begin with \echo by as many spaces, so that all
// else stays where it was.
func blankEcho(sql []byte) []byte {
	if !bytes.Contains(sql, echo) {
		return sql
	}
	blanked := bytes.Clone(sql)
	for rest := blanked; len(rest) > 0; {
		line := rest
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			line, rest = rest[:i], rest[i+1:]
		} else {
			rest = nil
		}
		if bytes.HasPrefix(line, echo) {
			for i := range line {
				line[i] = ' '
			}
		}
	}
	return blanked
}

// statement reads the tokens of one statement, without its semicolon. At the
// end of the script it returns none; an empty statement is its one semicolon.
func (l *lexer) statement() ([]token, error) {
	var (
		tokens []token
		open   []token // parentheses that are not closed yet
		body   = -1    // index of BEGIN, in the body of a function
	)
	for {
		t, err := l.next()
		if err != nil {
			return nil, err
		}
		switch {
		case t.kind == end && len(open) > 0:
			return nil, l.errorAt(open[len(open)-1].start, "parenthesis is not closed")
		case t.kind == end && body >= 0:
			return nil, l.errorAt(tokens[body].start, "BEGIN ATOMIC has no END")
		case t.kind == end:
			return tokens, nil
		case l.char(t, '('):
			open = append(open, t)
		case l.char(t, ')'):
			if len(open) == 0 {
				return nil, l.errorAt(t.start, "closing parenthesis without an opening one")
			}
			open = open[:len(open)-1]
		case l.char(t, '\\'):
			return nil, l.errorAt(t.start, "psql command %q cannot be used in the script of an extension", l.line(t))
		case l.char(t, ';') && len(open) == 0 && body < 0:
			if len(tokens) == 0 {
				tokens = append(tokens, t)
			}
			return tokens, nil
		case body >= 0 && len(open) == 0 && l.is(t, "END") &&
			(l.char(tokens[len(tokens)-1], ';') || len(tokens) == body+2):
			body = -1
		case body < 0 && len(open) == 0 && l.is(t, "ATOMIC") && l.isRoutine(tokens) && l.is(tokens[len(tokens)-1], "BEGIN"):
			body = len(tokens) - 1
		}
		tokens = append(tokens, t)
	}
}

// line returns what follows on the line of a token, shortened.
func (l *lexer) line(t token) string {
	rest := l.src[t.start:]
	if i := bytes.IndexAny(rest, "\r\n"); i >= 0 {
		rest = rest[:i]
	}
	const enough = 40
	if utf8.RuneCount(rest) > enough {
		return string([]rune(string(rest))[:enough]) + "…"
	}
	return strings.TrimSpace(string(rest))
}

// isRoutine says whether a statement creates a function or procedure.
func (l *lexer) isRoutine(tokens []token) bool {
	k := l.keyword(tokens)
	return k == "CREATE FUNCTION" || k == "CREATE PROCEDURE"
}

// keyword returns Statement.Keyword.
func (l *lexer) keyword(tokens []token) string {
	if len(tokens) == 0 || tokens[0].kind != word {
		return ""
	}
	first, rest := upper(l.text(tokens[0])), tokens[1:]
	if len(rest) > 1 && l.is(rest[0], "OR") && l.is(rest[1], "REPLACE") {
		rest = rest[2:]
	}
	if len(rest) == 0 || rest[0].kind != word {
		return first
	}
	return first + " " + upper(l.text(rest[0]))
}

// refuse refuses a statement that cannot be run on its own, or that changes how
// the following ones are read.
func (l *lexer) refuse(tokens []token) error {
	switch first := tokens[0]; {
	case bytes.HasPrefix(l.src[first.start:], bom):
		return l.errorAt(first.start, "byte order mark, which the server takes for a part of the word behind it")
	case l.is(first, "COPY"):
		depth := 0
		for i, t := range tokens[:len(tokens)-1] {
			what := tokens[i+1]
			switch {
			case l.char(t, '('):
				depth++
			case l.char(t, ')'):
				depth--
			case depth == 0 && (l.is(t, "FROM") && l.is(what, "STDIN") || l.is(t, "TO") && l.is(what, "STDOUT")):
				return l.errorAt(first.start, "COPY %s %s cannot be used in the script of an extension: use INSERT", upper(l.text(t)), upper(l.text(what)))
			}
		}
	case l.is(first, "SET"):
		rest := tokens[1:]
		if len(rest) > 0 && (l.is(rest[0], "SESSION") || l.is(rest[0], "LOCAL")) {
			rest = rest[1:]
		}
		if len(rest) < 2 {
			return nil
		}
		name, value := strings.ToLower(l.unquote(rest[0])), rest[1:]
		if l.char(value[0], '=') || l.is(value[0], "TO") {
			value = value[1:]
		}
		var words []string
		for _, t := range value {
			words = append(words, strings.ToLower(strings.Trim(l.unquote(t), "'")))
		}
		to := strings.Join(words, "")
		switch name {
		case "standard_conforming_strings":
			if to != "on" && to != "true" && to != "yes" && to != "1" {
				return l.errorAt(first.start, "standard_conforming_strings cannot be changed in the script of an extension: strings in it are read with the parameter on")
			}
		case "client_encoding", "names":
			if to != "utf8" && to != "utf-8" && to != "unicode" {
				return l.errorAt(first.start, "client_encoding cannot be changed in the script of an extension: name the encoding of scripts in the control file")
			}
		}
	case l.is(first, "RESET") && len(tokens) > 1:
		switch name := strings.ToLower(l.unquote(tokens[1])); name {
		case "standard_conforming_strings", "client_encoding", "all":
			return l.errorAt(first.start, "RESET %s cannot be used in the script of an extension: it may change how the rest of the script is read", name)
		}
	}
	return nil
}

// unquote returns the name that an identifier stands for, or the token's text.
func (l *lexer) unquote(t token) string {
	s := l.text(t)
	if t.kind == quoted && s[0] == '"' {
		return strings.ReplaceAll(s[1:len(s)-1], `""`, `"`)
	}
	return s
}

// transaction are first words that control transactions, with the second words
// that they are known by; nil means any.
var transaction = map[string][]string{
	"BEGIN":     nil,
	"START":     nil, // TRANSACTION
	"COMMIT":    nil, // also COMMIT PREPARED
	"END":       nil,
	"ROLLBACK":  nil, // also TO SAVEPOINT, and ROLLBACK PREPARED
	"ABORT":     nil,
	"SAVEPOINT": nil,
	"RELEASE":   nil,
	"PREPARE":   {"TRANSACTION"},
}

// CheckTransaction refuses statements that control the transaction in which the
// script runs, as CREATE EXTENSION does. An error is an [*Error] for the first.
func CheckTransaction(list []Statement) error {
	for _, s := range list {
		first, second, _ := strings.Cut(s.Keyword, " ")
		seconds, found := transaction[first]
		if !found {
			continue
		}
		refused := seconds == nil
		for _, w := range seconds {
			refused = refused || w == second
		}
		// PREPARE transaction AS ... prepares a statement of that name.
		if refused && first == "PREPARE" && preparesStatement(s) {
			continue
		}
		if refused {
			return &Error{File: s.File, Line: s.Line, Column: s.Column,
				Message: s.Keyword + ": transaction control is not allowed in the script of an extension"}
		}
	}
	return nil
}

// preparesStatement says whether PREPARE TRANSACTION is followed by something
// else than a string.
func preparesStatement(s Statement) bool {
	l := &lexer{src: []byte(s.SQL)}
	for range 2 {
		if _, err := l.next(); err != nil {
			return false
		}
	}
	third, err := l.next()
	return err == nil && third.kind != text && third.kind != dollar && third.kind != end
}

// Position returns where in the file a position in the statement is. The
// server gives positions in characters, from 1, as the Position of an error; one
// that is outside of the statement is taken to its nearest end.
func Position(s Statement, pos int) (line, column int) {
	line, column = s.Line, s.Column
	for _, r := range s.SQL {
		if pos--; pos < 1 {
			break
		}
		column++
		if r == '\n' {
			line, column = line+1, 1
		}
	}
	return line, column
}
