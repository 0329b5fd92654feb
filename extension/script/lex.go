package script

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// An Error says what is wrong with a script, and where.
type Error struct {
	File         string
	Line, Column int // from 1; the column in characters
	Message      string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// A kind is what a token is.
type kind byte

const (
	end      kind = iota // of the input
	word                 // an unquoted identifier or keyword
	quoted               // "identifier", U&"identifier"
	text                 // a string of any form, with its prefix
	dollar               // $tag$ string $tag$
	number               // digits only: 1.5e3 is several tokens, which does no harm
	operator             // one character of an operator
	punct                // ( ) [ ] , ; : . $ and whatever else
)

// A token is text[start:end] of the script.
type token struct {
	kind       kind
	start, end int
}

// A lexer finds tokens as the server's scan.l does, with
// standard_conforming_strings on. It does not tell all tokens apart that the
// server does, only those that matter for where statements and strings end.
type lexer struct {
	file string
	src  []byte
	pos  int
}

// position returns the line and column, from 1, of a byte offset.
func position(src []byte, offset int) (line, column int) {
	before := src[:offset]
	line = 1 + bytes.Count(before, []byte{'\n'})
	return line, 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
}

// errorAt is an Error at a byte offset.
func (l *lexer) errorAt(offset int, format string, args ...any) error {
	line, column := position(l.src, offset)
	return &Error{File: l.file, Line: line, Column: column, Message: fmt.Sprintf(format, args...)}
}

// text returns the token's text as it stands in the script.
func (l *lexer) text(t token) string { return string(l.src[t.start:t.end]) }

// is says whether the token is the keyword, given in upper case.
func (l *lexer) is(t token, keyword string) bool {
	return t.kind == word && len(keyword) == t.end-t.start && upper(l.text(t)) == keyword
}

// char says whether the token is the one character.
func (l *lexer) char(t token, c byte) bool {
	return (t.kind == punct || t.kind == operator) && l.src[t.start] == c
}

// upper folds ASCII letters, and no others: keywords have none.
func upper(s string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' {
			return r - 'a' + 'A'
		}
		return r
	}, s)
}

func isSpace(c byte) bool {
	return c == ' ' || '\t' <= c && c <= '\r'
}
func isNewline(c byte) bool { return c == '\n' || c == '\r' }
func isDigit(c byte) bool   { return '0' <= c && c <= '9' }
func isIdentStart(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || c >= 0x80
}
func isIdent(c byte) bool    { return isIdentStart(c) || isDigit(c) || c == '$' }
func isOperator(c byte) bool { return strings.IndexByte("~!@#^&|`?+-*/%<>=", c) >= 0 }

// at returns the byte at offset i, or zero behind the end. A script has no zero
// bytes: Split refuses them.
func (l *lexer) at(i int) byte {
	if i < len(l.src) {
		return l.src[i]
	}
	return 0
}

// next returns the next token that is neither space nor comment.
func (l *lexer) next() (token, error) {
	if err := l.skip(); err != nil {
		return token{}, err
	}
	start := l.pos
	made := func(k kind) (token, error) { return token{k, start, l.pos}, nil }
	if start >= len(l.src) {
		return made(end)
	}
	switch c := l.src[start]; {
	case c == '\'':
		return l.quote(start, start, '\'', false)
	case c == '"':
		return l.quote(start, start, '"', false)
	case isIdentStart(c):
		for l.pos < len(l.src) && isIdent(l.src[l.pos]) {
			l.pos++
		}
		switch name := l.src[start:l.pos]; {
		case len(name) == 1 && l.at(l.pos) == '\'' && strings.IndexByte("eEbBxXnN", name[0]) >= 0:
			return l.quote(start, l.pos, '\'', name[0] == 'e' || name[0] == 'E')
		case len(name) == 1 && (name[0] == 'u' || name[0] == 'U') && l.at(l.pos) == '&' && (l.at(l.pos+1) == '\'' || l.at(l.pos+1) == '"'):
			return l.quote(start, l.pos+1, l.at(l.pos+1), false)
		}
		return made(word)
	case isDigit(c):
		for isDigit(l.at(l.pos)) {
			l.pos++
		}
		return made(number)
	case c == '$':
		if isDigit(l.at(start + 1)) { // a parameter
			for l.pos++; isDigit(l.at(l.pos)); {
				l.pos++
			}
			return made(punct)
		}
		tag := start + 1
		if isIdentStart(l.at(tag)) {
			for c := l.at(tag); c != '$' && isIdent(c); c = l.at(tag) {
				tag++
			}
		}
		if l.at(tag) != '$' {
			l.pos++
			return made(punct)
		}
		delimiter := l.src[start : tag+1]
		length := bytes.Index(l.src[tag+1:], delimiter)
		if length < 0 {
			return token{}, l.errorAt(start, "dollar-quoted string %s… is not terminated", delimiter)
		}
		l.pos = tag + 1 + length + len(delimiter)
		return made(dollar)
	case isOperator(c):
		l.pos++
		return made(operator)
	default:
		l.pos++
		return made(punct)
	}
}

// skip passes white space and comments.
func (l *lexer) skip() error {
	for l.pos < len(l.src) {
		switch c := l.src[l.pos]; {
		case isSpace(c):
			l.pos++
		case c == '-' && l.at(l.pos+1) == '-':
			l.lineComment()
		case c == '/' && l.at(l.pos+1) == '*':
			if err := l.blockComment(); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	return nil
}

// lineComment passes a comment, and leaves what ends its line.
func (l *lexer) lineComment() {
	for l.pos < len(l.src) && !isNewline(l.src[l.pos]) {
		l.pos++
	}
}

func (l *lexer) blockComment() error {
	start := l.pos
	l.pos += 2
	for depth := 1; depth > 0; {
		switch {
		case l.pos >= len(l.src):
			return l.errorAt(start, "comment is not terminated")
		case l.src[l.pos] == '*' && l.at(l.pos+1) == '/':
			depth--
			l.pos += 2
		case l.src[l.pos] == '/' && l.at(l.pos+1) == '*':
			depth++
			l.pos += 2
		default:
			l.pos++
		}
	}
	return nil
}

// quote reads a string or identifier whose prefix is at start and whose quote
// is at open.
func (l *lexer) quote(start, open int, mark byte, escapes bool) (token, error) {
	l.pos = open + 1
	for {
		switch c := l.at(l.pos); {
		case l.pos >= len(l.src):
			what := "quoted string"
			if mark == '"' {
				what = "quoted identifier"
			}
			return token{}, l.errorAt(start, "%s is not terminated", what)
		case c == '\\' && escapes:
			l.pos += 2
		case c == mark && l.at(l.pos+1) == mark:
			l.pos += 2
		case c == mark:
			l.pos++
			if escapes && l.continues() {
				continue // past the quote that opened the next part
			}
			if mark == '"' {
				return token{quoted, start, l.pos}, nil
			}
			return token{text, start, l.pos}, nil
		default:
			l.pos++
		}
	}
}

// continues says whether the string that has just been closed goes on, because
// nothing but white space with a newline in it, and comments of one line, stand
// before the next quote; and if so passes that. Two parts of a plain string can
// be read as two strings, but the second part of an E string has backslashes
// too.
func (l *lexer) continues() bool {
	newline := false
	for p := (lexer{src: l.src, pos: l.pos}); p.pos < len(p.src); {
		switch c := p.src[p.pos]; {
		case isSpace(c):
			newline = newline || isNewline(c)
			p.pos++
		case c == '-' && p.at(p.pos+1) == '-':
			p.lineComment()
		case c == '\'' && newline:
			l.pos = p.pos + 1
			return true
		default:
			return false
		}
	}
	return false
}
