package manifest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"rideau/wal"
)

// maxLine bounds a line. A server's longest has a path of MAXPGPATH (1024) bytes,
// each escaped at worst as six.
const maxLine = 64 << 10

// A ParseError says what is wrong with a manifest: it was damaged, or it is not
// one. The backup it belongs to cannot be judged by it.
type ParseError struct {
	Line   int // counted from 1
	Reason string
}

func (e *ParseError) Error() string {
	return fmt.Sprintf("cannot use the backup manifest: line %d: %s", e.Line, e.Reason)
}

// Parse reads a manifest. Its error is a *ParseError, or what r answered.
//
// It holds one line at a time, and the Manifest. Keys may come in any order, but
// the version first and the checksum last. More strictly than PostgreSQL it wants
// every key once, values of the right type, and checksums of the length that
// their algorithm has.
func Parse(r io.Reader) (m *Manifest, err error) {
	s := &scanner{r: bufio.NewReaderSize(r, maxLine), sum: sha256.New()}
	defer func() {
		switch failure := recover().(type) {
		case nil:
		case parseFailure:
			m, err = nil, failure.error
		default:
			panic(failure)
		}
	}()
	return s.manifest(), nil
}

// A parseFailure ends a parse from wherever it is. It is recovered in Parse, and
// passes no other function's border.
type parseFailure struct{ error }

// A scanner takes a manifest apart. JSON has no token that goes over the end of a
// line, so it looks at one line at a time, and hashes each when the next is there:
// all but the last belong to the manifest's checksum.
type scanner struct {
	r    *bufio.Reader
	sum  hash.Hash
	line []byte // with its newline
	rest []byte // of line
	n    int    // the line's number
}

func (s *scanner) fail(format string, args ...any) {
	panic(parseFailure{&ParseError{s.n, fmt.Sprintf(format, args...)}})
}

// next reads the next line, or answers false when there is none.
func (s *scanner) next() bool {
	line, err := s.r.ReadSlice('\n')
	s.n++
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		s.fail("it is longer than %d bytes", maxLine)
	case errors.Is(err, io.EOF) && len(line) > 0:
		s.fail("it does not end with a newline")
	case errors.Is(err, io.EOF):
		s.n--
		return false
	case err != nil:
		panic(parseFailure{fmt.Errorf("could not read the backup manifest: %w", err)})
	}
	s.sum.Write(s.line)
	s.line = append(s.line[:0], line...) // line is r's memory
	s.rest = s.line
	return true
}

// peek skips white space and answers the next byte, or 0 at the end.
func (s *scanner) peek() byte {
	for {
		for i, c := range s.rest {
			if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
				s.rest = s.rest[i:]
				return c
			}
		}
		if s.rest = nil; !s.next() {
			return 0
		}
	}
}

// take takes c, if it is next.
func (s *scanner) take(c byte) bool {
	if s.peek() != c || c == 0 {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

func (s *scanner) expect(c byte) {
	if s.take(c) {
		return
	}
	switch next := s.peek(); next {
	case 0:
		s.fail("the manifest ends where %q should be", c)
	default:
		s.fail("found %q where %q should be", next, c)
	}
}

// object calls field with each key, when its value is next, and answers all keys.
func (s *scanner) object(field func(key string)) (seen []string) {
	s.expect('{')
	seen = make([]string, 0, 6) // as many as there can be in a file
	for more := !s.take('}'); more; {
		key := s.text()
		if slices.Contains(seen, key) {
			s.fail("key %q is there twice", key)
		}
		seen = append(seen, key)
		s.expect(':')
		field(key)
		if more = s.take(','); !more {
			s.expect('}')
		}
	}
	return seen
}

// array calls element when one is next.
func (s *scanner) array(element func()) {
	s.expect('[')
	for more := !s.take(']'); more; {
		element()
		if more = s.take(','); !more {
			s.expect(']')
		}
	}
}

// text takes a string.
func (s *scanner) text() string {
	s.expect('"')
	for i := 0; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '\\':
			i++
		case c < ' ':
			s.fail("string with a control character")
		case c == '"':
			raw := string(s.rest[:i])
			s.rest = s.rest[i+1:]
			return s.unescape(raw)
		}
	}
	s.fail("string without an end")
	return ""
}

func (s *scanner) unescape(raw string) string {
	if !utf8.ValidString(raw) {
		s.fail("string %q is not UTF-8", raw)
	}
	var b strings.Builder
	for {
		before, after, found := strings.Cut(raw, `\`)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		raw = after[1:] // there is one: text has seen to it
		if at := strings.IndexByte(`"\/bfnrt`, after[0]); at >= 0 {
			b.WriteByte("\"\\/\b\f\n\r\t"[at])
			continue
		}
		r := rune(-1)
		if after[0] == 'u' {
			r, raw = unit(raw)
		}
		if utf16.IsSurrogate(r) {
			low := rune(-1)
			if strings.HasPrefix(raw, `\u`) {
				low, raw = unit(raw[2:])
			}
			if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
				r = -1
			}
		}
		if r <= 0 { // 0 is in no path, and in no C string
			s.fail("string with the escape \\%.5s, which is none", after)
		}
		b.WriteRune(r)
	}
}

// unit takes four hexadecimal digits; it answers -1 if they are not there.
func unit(s string) (rune, string) {
	if len(s) < 4 {
		return -1, s
	}
	v, err := hex.DecodeString(s[:4])
	if err != nil {
		return -1, s
	}
	return rune(v[0])<<8 | rune(v[1]), s[4:]
}

// number takes an integer of at most max, without sign, fraction and exponent.
func (s *scanner) number(max uint64) uint64 {
	s.peek()
	i := 0
	for i < len(s.rest) && s.rest[i] >= '0' && s.rest[i] <= '9' {
		i++
	}
	digits := string(s.rest[:i])
	s.rest = s.rest[i:]
	v, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || v > max || len(digits) > 1 && digits[0] == '0' {
		s.fail("found %q where a number up to %d should be", digits, max)
	}
	return v
}

// hex takes a string of hexadecimal digits.
func (s *scanner) hex() []byte {
	text := s.text()
	b, err := hex.DecodeString(text)
	if err != nil {
		s.fail("%q is not hexadecimal", text)
	}
	return b
}

func (s *scanner) manifest() *Manifest {
	m := new(Manifest)
	var want []byte // the checksum, when it has been seen
	keys := s.object(func(key string) {
		if m.Version == 0 && key != "PostgreSQL-Backup-Manifest-Version" {
			s.fail("found key %q where the manifest's version should be", key)
		}
		if want != nil {
			s.fail("key %q comes after the checksum", key)
		}
		switch key {
		case "PostgreSQL-Backup-Manifest-Version":
			m.Version = int(s.number(math.MaxInt32))
			if err := checkVersion(m.Version); err != nil {
				s.fail("%v", err)
			}
		case "System-Identifier":
			m.SystemID = s.number(math.MaxUint64)
		case "Files":
			s.files(m)
		case "WAL-Ranges":
			s.array(func() { m.WAL = append(m.WAL, s.walRange()) })
		case "Manifest-Checksum":
			if want = s.hex(); len(want) != sha256.Size {
				s.fail("the manifest's checksum has %d bytes, not %d", len(want), sha256.Size)
			}
		default:
			s.fail("key %q is not known", key)
		}
	})
	if c := s.peek(); c != 0 {
		s.fail("found %q after the end of the manifest", c)
	}
	s.require(keys, "Files", "WAL-Ranges", "Manifest-Checksum")
	if s.n < 2 {
		s.fail("it is the only line, and the checksum is that of the lines before the last")
	}
	if got := s.sum.Sum(nil); !bytes.Equal(got, want) {
		s.fail("the manifest's checksum is %x, and should be %x by what is in it", want, got)
	}
	if slices.Contains(keys, "System-Identifier") != (m.Version > 1) {
		s.fail("the system identifier belongs to version 2, and this is version %d", m.Version)
	}
	return m
}

func (s *scanner) require(keys []string, required ...string) {
	for _, key := range required {
		if !slices.Contains(keys, key) {
			s.fail("key %q is missing", key)
		}
	}
}

func (s *scanner) files(m *Manifest) {
	seen := map[string]bool{}
	s.array(func() {
		f := s.file()
		if seen[f.Path] {
			s.fail("path %q is there twice", f.Path)
		}
		seen[f.Path] = true
		m.Files = append(m.Files, f)
	})
}

func (s *scanner) file() File {
	var f File
	keys := s.object(func(key string) {
		switch key {
		case "Path":
			f.Path = s.text()
		case "Encoded-Path":
			f.Path = string(s.hex())
		case "Size":
			f.Size = int64(s.number(math.MaxInt64))
		case "Last-Modified":
			text := s.text()
			var err error
			if f.ModTime, err = time.Parse(timeLayout, text); err != nil {
				s.fail("%q is not a time", text)
			}
		case "Checksum-Algorithm":
			f.Algorithm = strings.ToUpper(s.text()) // pg_checksum_parse_type takes any case
		case "Checksum":
			f.Checksum = s.hex()
		default:
			s.fail("key %q is not known in a file", key)
		}
	})
	s.require(keys, "Size")
	if slices.Contains(keys, "Path") == slices.Contains(keys, "Encoded-Path") {
		s.fail("a file has either a path or an encoded path")
	}
	if !slices.Contains(keys, "Checksum-Algorithm") {
		f.Algorithm = None
	}
	if err := f.check(); err != nil {
		s.fail("%v", err)
	}
	return f
}

func (s *scanner) walRange() Range {
	var r Range
	keys := s.object(func(key string) {
		switch key {
		case "Timeline":
			r.TLI = wal.TLI(s.number(math.MaxUint32))
		case "Start-LSN":
			r.Start = s.lsn()
		case "End-LSN":
			r.End = s.lsn()
		default:
			s.fail("key %q is not known in a WAL range", key)
		}
	})
	s.require(keys, "Timeline", "Start-LSN", "End-LSN")
	if err := r.check(); err != nil {
		s.fail("%v", err)
	}
	return r
}

func (s *scanner) lsn() wal.LSN {
	lsn, err := wal.ParseLSN(s.text())
	if err != nil {
		s.fail("%v", err)
	}
	return lsn
}
