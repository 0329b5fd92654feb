package pack

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"rideau/extension/depend"
)

// An Error says what is wrong with a file of a package, and where. Line is 0
// where the file as a whole is meant.
type Error struct {
	File         string
	Line, Column int // from 1; the column in characters
	Message      string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.File, e.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// A source is a text file that is being read, with what was found wrong so far.
type source struct {
	file string
	text []byte
	errs []error
}

// maxErrors is how many errors of one file are reported. PostgreSQL gives up
// after 100; people fix a few at a time.
const maxErrors = 20

// at makes an Error for a byte offset.
func (s *source) at(offset int, format string, args ...any) *Error {
	before := s.text[:min(offset, len(s.text))]
	return &Error{
		File:    s.file,
		Line:    1 + bytes.Count(before, []byte{'\n'}),
		Column:  1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]),
		Message: fmt.Sprintf(format, args...),
	}
}

// fail remembers an error.
func (s *source) fail(offset int, format string, args ...any) {
	if len(s.errs) < maxErrors {
		s.errs = append(s.errs, s.at(offset, format, args...))
	}
}

// err returns what was found wrong, in the order of the text.
func (s *source) err() error {
	slices.SortStableFunc(s.errs, func(a, b error) int {
		var x, y *Error
		errors.As(a, &x)
		errors.As(b, &y)
		if x.Line != y.Line {
			return x.Line - y.Line
		}
		return x.Column - y.Column
	})
	return errors.Join(s.errs...)
}

// check refuses what no text file of a package may contain.
func (s *source) check() bool {
	if i := bytes.IndexByte(s.text, 0); i >= 0 {
		s.fail(i, "zero byte")
		return false
	}
	for i := 0; i < len(s.text); {
		r, n := utf8.DecodeRune(s.text[i:])
		if r == utf8.RuneError && n == 1 {
			s.fail(i, "byte 0x%02x is not UTF-8", s.text[i])
			return false
		}
		i += n
	}
	return true
}

// An entry is one "key = value" of a file.
type entry struct {
	key   string
	keyAt int
	value string
	at    []int // offset in the file of each byte of value, and of its end
}

// offset is where byte i of the value stands in the file.
func (e *entry) offset(i int) int { return e.at[min(max(i, 0), len(e.at)-1)] }

// The tokens of PostgreSQL's configuration files, see guc-file.l. Of those that
// match, the longest wins, then the first.
var tokens = func() []*regexp.Regexp {
	const letter, digit = `[A-Za-z_\x{80}-\x{10ffff}]`, `[0-9]`
	const id = letter + `[A-Za-z_0-9\x{80}-\x{10ffff}]*`
	list := []*regexp.Regexp{
		regexp.MustCompile(`^` + id),
		regexp.MustCompile(`^` + id + `\.` + id),
		regexp.MustCompile(`^'([^'\\\n]|\\[^\n]|'')*'`),
		regexp.MustCompile(`^` + letter + `([-._:/A-Za-z0-9]|[\x{80}-\x{10ffff}])*`),
		regexp.MustCompile(`^[-+]?(` + digit + `+|0x[0-9a-fA-F]+)[a-zA-Z]*`),
		regexp.MustCompile(`^[-+]?` + digit + `*\.` + digit + `*([Ee][-+]?` + digit + `+)?`),
	}
	for _, r := range list {
		r.Longest()
	}
	return list
}()

const (
	tokenID = iota
	tokenQualified
	tokenString
	tokenUnquoted
	tokenInteger
	tokenReal
	tokenEquals
	tokenEnd   // of the line
	tokenOther // nothing that may stand there
)

// token returns what stands at offset pos of the line, behind blanks.
func nextToken(line []byte, pos int) (kind, start, end int) {
	for pos < len(line) && strings.IndexByte(" \t\r", line[pos]) >= 0 {
		pos++
	}
	if pos >= len(line) || line[pos] == '#' {
		return tokenEnd, pos, pos
	}
	if line[pos] == '=' {
		return tokenEquals, pos, pos + 1
	}
	kind, end = tokenOther, pos+1
	length := 0
	for k, r := range tokens {
		if m := r.Find(line[pos:]); len(m) > length {
			kind, length = k, len(m)
		}
	}
	if length > 0 {
		end = pos + length
	}
	return kind, pos, end
}

// settings reads a file as the server reads its configuration and its control
// files. Errors are remembered, and their lines left out.
func (s *source) settings() []entry {
	var list []entry
	for pos := 0; pos < len(s.text); {
		line := s.text[pos:]
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			line = line[:i]
		}
		if e, ok := s.setting(line, pos); ok {
			list = append(list, e)
		}
		pos += len(line) + 1
	}
	return list
}

// setting reads one line, which begins at base.
func (s *source) setting(line []byte, base int) (e entry, ok bool) {
	near := func(kind, start, end int) (entry, bool) {
		if kind == tokenEnd {
			s.fail(base+start, "syntax error near the end of the line")
		} else {
			s.fail(base+start, "syntax error near %q", line[start:end])
		}
		return entry{}, false
	}
	kind, start, end := nextToken(line, 0)
	if kind == tokenEnd {
		return entry{}, false
	}
	if kind != tokenID && kind != tokenQualified {
		return near(kind, start, end)
	}
	e.key, e.keyAt = string(line[start:end]), base+start
	kind, start, end = nextToken(line, end)
	if kind == tokenEquals {
		kind, start, end = nextToken(line, end)
	}
	switch kind {
	case tokenString:
		e.value, e.at = unquote(line[start:end], base+start)
	case tokenID, tokenInteger, tokenReal, tokenUnquoted:
		e.value, e.at = string(line[start:end]), offsets(base+start, end-start)
	default:
		return near(kind, start, end)
	}
	if kind, start, end = nextToken(line, end); kind != tokenEnd {
		return near(kind, start, end)
	}
	return e, s.escaped(&e)
}

// offsets are those of a value that stands in the file as it is.
func offsets(start, length int) []int {
	at := make([]int, length+1)
	for i := range at {
		at[i] = start + i
	}
	return at
}

// unquote reads a string with its quotes: a doubled quote is one, a backslash
// begins an escape.
func unquote(q []byte, start int) (value string, at []int) {
	var b []byte
	for i := 1; i < len(q)-1; i++ {
		at = append(at, start+i)
		switch c := q[i]; {
		case c == '\'':
			i++
			b = append(b, c)
		case c == '\\':
			i++
			switch c := q[i]; {
			case '0' <= c && c <= '7':
				octal := 0
				for n := 0; n < 3 && '0' <= q[i] && q[i] <= '7'; n++ {
					octal = octal<<3 + int(q[i]-'0')
					i++
				}
				i--
				b = append(b, byte(octal))
			default:
				if j := strings.IndexByte("bfnrt", c); j >= 0 {
					c = "\b\f\n\r\t"[j]
				}
				b = append(b, c)
			}
		default:
			b = append(b, c)
		}
	}
	return string(b), append(at, start+len(q)-1)
}

// escaped refuses what an escape can write and no value should have: a zero byte,
// at which the server would end the value, and bytes that are not UTF-8.
func (s *source) escaped(e *entry) bool {
	if strings.IndexByte(e.value, 0) < 0 && utf8.ValidString(e.value) {
		return true
	}
	s.fail(e.offset(0), "the value of %q is not UTF-8 text", e.key)
	return false
}

// quoteValue writes a value that unquote reads.
func quoteValue(s string) string {
	return "'" + strings.NewReplacer("'", "''", `\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(s) + "'"
}

// pairs reads a file of "key = value" lines in which the value of a list needs
// no quotes, and goes on in the next line behind a comma.
func (s *source) pairs(isList func(key string) bool) []entry {
	var list []entry
	for pos := 0; pos < len(s.text); {
		end := s.lineEnd(pos)
		line := s.text[pos:end]
		kind, start, keyEnd := nextToken(line, 0)
		if kind == tokenEnd {
			pos = end + 1
			continue
		}
		next := end + 1
		if kind != tokenID {
			s.fail(pos+start, "a line must begin with the name of a parameter")
			pos = next
			continue
		}
		e := entry{key: string(line[start:keyEnd]), keyAt: pos + start}
		kind, start, valueEnd := nextToken(line, keyEnd)
		if kind == tokenEquals {
			kind, start, valueEnd = nextToken(line, valueEnd)
		}
		switch {
		case kind == tokenEnd:
			s.fail(e.keyAt, "parameter %q has no value", e.key)
			pos = next
			continue
		case kind == tokenString:
			e.value, e.at = unquote(line[start:valueEnd], pos+start)
			if kind, start, _ := nextToken(line, valueEnd); kind != tokenEnd {
				s.fail(pos+start, "nothing but a comment may stand behind a quoted value")
			}
			s.escaped(&e)
		case line[start] == '\'':
			s.fail(pos+start, "quoted value is not closed on its line")
			pos = next
			continue
		default:
			e.value, e.at, next = s.bare(pos+start, isList(e.key))
		}
		list = append(list, e)
		pos = next
	}
	return list
}

// lineEnd is the offset of the newline that ends the line at pos.
func (s *source) lineEnd(pos int) int {
	if i := bytes.IndexByte(s.text[pos:], '\n'); i >= 0 {
		return pos + i
	}
	return len(s.text)
}

// bare reads a value without quotes: to the end of the line or the comment in
// it, and on in the next line if it may and ends in a comma. It returns where
// the next line begins.
func (s *source) bare(start int, list bool) (value string, at []int, next int) {
	var b []byte
	for pos := start; ; {
		end := s.lineEnd(pos)
		comment, inQuotes := end, false
		for i := pos; i < end; i++ {
			if s.text[i] == '"' {
				inQuotes = !inQuotes
			}
			if s.text[i] == '#' && !inQuotes {
				comment = i
				break
			}
		}
		part := bytes.TrimRight(s.text[pos:comment], " \t\r")
		for i := range part {
			at = append(at, pos+i)
		}
		b = append(b, part...)
		next = end + 1
		trimmed := bytes.TrimRight(b, " \t\r")
		if !list || !bytes.HasSuffix(trimmed, []byte{','}) || end >= len(s.text) {
			last := start
			if len(trimmed) > 0 {
				last = at[len(trimmed)-1] + 1
			}
			return string(trimmed), append(at[:len(trimmed):len(trimmed)], last), next
		}
		b = append(b, ' ')
		at = append(at, end)
		pos = next
	}
}

// parseBool reads a Boolean as the server does.
func parseBool(s string) (value, ok bool) {
	lower := strings.ToLower(s)
	if lower == "" {
		return false, false
	}
	switch {
	case strings.HasPrefix("true", lower), strings.HasPrefix("yes", lower), lower == "on", lower == "1":
		return true, true
	case strings.HasPrefix("false", lower), strings.HasPrefix("no", lower), lower == "of", lower == "off", lower == "0":
		return false, true
	}
	return false, false
}

// near returns the one of the words that was probably meant, or "".
func near(s string, words []string) string {
	best, least := "", 3
	for _, w := range words {
		if len(s)-len(w) >= least || len(w)-len(s) >= least {
			continue // that many are missing; and a key may be as long as a file
		}
		if d := depend.Distance(strings.ToLower(s), w); d < least && d < len(w) {
			best, least = w, d
		}
	}
	return best
}

// identifiers reads a list as SplitIdentifierString does: names with commas
// between them, folded to lower case unless they stand in double quotes. bad is
// the offset of what cannot be read, -1 if all can.
func identifiers(s string) (names []string, bad int) {
	const blanks = " \t\n\r\f\v"
	pos := 0
	space := func() {
		for pos < len(s) && strings.IndexByte(blanks, s[pos]) >= 0 {
			pos++
		}
	}
	space()
	if pos == len(s) {
		return nil, -1
	}
	for {
		start, name := pos, ""
		if pos < len(s) && s[pos] == '"' {
			for pos++; ; pos++ {
				if pos >= len(s) {
					return nil, start
				}
				if s[pos] == '"' {
					if pos++; pos >= len(s) || s[pos] != '"' {
						break
					}
				}
				name += s[pos : pos+1]
			}
		} else {
			for pos < len(s) && s[pos] != ',' && strings.IndexByte(blanks, s[pos]) < 0 {
				pos++
			}
			name = asciiLower(s[start:pos])
		}
		if name == "" {
			return nil, start
		}
		names = append(names, name)
		space()
		if pos == len(s) {
			return names, -1
		}
		if s[pos] != ',' {
			return nil, pos
		}
		pos++
		space()
	}
}

// asciiLower folds as the server folds identifiers in UTF-8.
func asciiLower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r - 'A' + 'a'
		}
		return r
	}, s)
}

var plainIdentifier = regexp.MustCompile(`^[a-z_][a-z0-9_$]*$`)

// quoteIdentifiers writes a list that identifiers reads.
func quoteIdentifiers(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = n
		if !plainIdentifier.MatchString(n) {
			quoted[i] = `"` + strings.ReplaceAll(n, `"`, `""`) + `"`
		}
	}
	return strings.Join(quoted, ", ")
}
