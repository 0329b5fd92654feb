package manifest

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"strings"
	"unicode/utf8"
)

// timeLayout is Last-Modified, always of GMT.
const timeLayout = "2006-01-02 15:04:05 GMT"

// A Writer writes a manifest as its files become known, and keeps none of them.
// It is not safe for concurrent use.
type Writer struct {
	w     *bufio.Writer // what is written to out is also hashed
	out   io.Writer
	sum   hash.Hash
	files int
	err   error // the first, for ever
}

// NewWriter begins a manifest of the version, with the server's system identifier
// if it is of version 2. An error shows in Add or Finish.
func NewWriter(w io.Writer, version int, sysid uint64) *Writer {
	sum := sha256.New()
	m := &Writer{w: bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10), out: w, sum: sum, err: checkVersion(version)}
	m.printf("{ \"PostgreSQL-Backup-Manifest-Version\": %d,\n", version)
	if version > 1 {
		m.printf("\"System-Identifier\": %d,\n", sysid)
	}
	m.printf("\"Files\": [")
	return m
}

// printf leaves errors to bufio, which keeps them for Flush.
func (m *Writer) printf(format string, args ...any) { fmt.Fprintf(m.w, format, args...) }

// Add writes a file. That no path comes twice is the caller's to see to. A File
// that cannot be in a manifest is refused and not written, and may be followed by
// others. A time that has no year of four digits is left out: nobody needs it.
func (m *Writer) Add(f File) error {
	if m.err != nil {
		return m.err
	}
	if f.Algorithm == "" {
		f.Algorithm = None
	}
	if err := f.check(); err != nil {
		return err
	}
	separator := ",\n"
	if m.files == 0 {
		separator = "\n"
	}
	m.files++
	m.w.WriteString(separator)
	if utf8.ValidString(f.Path) {
		m.printf(`{ "Path": %s, `, quote(f.Path))
	} else {
		m.printf(`{ "Encoded-Path": "%x", `, f.Path)
	}
	m.printf(`"Size": %d`, f.Size)
	if t := f.ModTime.UTC(); !t.IsZero() && t.Year() >= 0 && t.Year() <= 9999 {
		m.printf(`, "Last-Modified": "%s"`, t.Format(timeLayout))
	}
	if f.Algorithm != None {
		m.printf(`, "Checksum-Algorithm": "%s", "Checksum": "%x"`, f.Algorithm, f.Checksum)
	}
	if _, err := m.w.WriteString(" }"); err != nil {
		m.err = fmt.Errorf("could not write the manifest: %w", err)
	}
	return m.err
}

// Finish ends the manifest with the WAL that the backup needs. It neither syncs
// nor closes what it wrote to.
func (m *Writer) Finish(ranges []Range) error {
	if m.err != nil {
		return m.err
	}
	for _, r := range ranges {
		if err := r.check(); err != nil {
			return err
		}
	}
	m.printf("\n],\n\"WAL-Ranges\": [\n")
	for i, r := range ranges {
		if i > 0 {
			m.printf(",\n")
		}
		m.printf(`{ "Timeline": %d, "Start-LSN": "%s", "End-LSN": "%s" }`, uint32(r.TLI), r.Start, r.End)
	}
	m.printf("\n],\n")
	err := m.w.Flush()
	if err == nil {
		_, err = fmt.Fprintf(m.out, "\"Manifest-Checksum\": \"%x\"}\n", m.sum.Sum(nil))
	}
	if err != nil {
		m.err = fmt.Errorf("could not write the manifest: %w", err)
		return m.err
	}
	m.err = errFinished
	return nil
}

// quote is escape_json of json.c. What encoding/json does is as valid and not the
// same: it also escapes what would be dangerous in HTML.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c >= ' ':
			b.WriteByte(c)
		default:
			if at := strings.IndexByte("\b\f\n\r\t", c); at >= 0 {
				b.WriteByte('\\')
				b.WriteByte("bfnrt"[at])
			} else {
				fmt.Fprintf(&b, "\\u%04x", c)
			}
		}
	}
	b.WriteByte('"')
	return b.String()
}
