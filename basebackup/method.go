package basebackup

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"rideau/basebackup/page"
	"rideau/wal"
)

// chunkSize is what the server reads at once, and sends as one row. Smaller
// ones cost rows, larger ones cost the server's memory allocator: 256 kB was
// the fastest of 64 kB to 16 MB. It is a multiple of the page, and of 4096, so
// that the server's stdio reads each with one system call.
const chunkSize = 256 << 10

// extentSize is what a worker takes at a time, and what the journal speaks of.
const extentSize = 16 << 20

// A method is how a chunk comes here.
type method uint8

const (
	// whole: all of it.
	whole method = iota
	// newer: the pages whose LSN on the server is not below since. The server's
	// page decides, so a torn one that we have is always replaced: what tore it
	// was a change since.
	newer
	// digests: what each page's digest is on the server; those that differ are
	// picked then.
	digests
	// picked: the pages that are listed.
	picked
)

// digestLen is how much of a page's SHA-256 is compared: as good as a checksum
// of 128 bits that nobody can forge.
const digestLen = 16

// A request asks for one chunk.
type request struct {
	task   *task
	method method
	off    int64
	n      int           // bytes that are wanted
	since  wal.LSN       // for newer
	blocks []uint16      // for picked: pages within the chunk, ascending
	seen   []suspectPage // what was wrong when it was read before
	tries  int
}

// A suspectPage is a page as it was when its check failed.
type suspectPage struct {
	index int // of the page in the chunk
	bytes [page.Size]byte
}

// statement is the COPY for requests of one method. Rows come in the order of
// the requests: its number; for all but whole the length of what the server
// has; then data.
func statement(m method, reqs []*request, wrap func(string) string) string {
	paths := make([]string, len(reqs))
	offs := make([]int64, len(reqs))
	lens := make([]int64, len(reqs))
	for i, r := range reqs {
		paths[i], offs[i], lens[i] = r.task.file.path, r.off, int64(r.n)
		if m == whole {
			lens[i] = int64(r.ask())
		}
	}
	from := fmt.Sprintf("unnest(%s::text[], %s::int8[], %s::int8[]", literal(textArray(paths)), literal(intArray(offs)), literal(intArray(lens)))
	const read = "pg_read_binary_file(p, o, l, true)"
	var query string
	switch m {
	case whole:
		if wrap == nil {
			query = fmt.Sprintf("SELECT n, %s FROM %s) WITH ORDINALITY AS r(p, o, l, n)", read, from)
			break
		}
		query = fmt.Sprintf("SELECT n, length(c)::int8, %s FROM (SELECT n, %s AS c FROM %s) WITH ORDINALITY AS r(p, o, l, n) OFFSET 0) s",
			wrap("c"), read, from)
	case newer:
		since := make([]int64, len(reqs))
		for i, r := range reqs {
			since[i] = int64(r.since)
		}
		query = fmt.Sprintf(`SELECT n, length(c)::int8, b.i, %s FROM (SELECT n, x, %s AS c FROM %s, %s::int8[]) WITH ORDINALITY AS r(p, o, l, x, n) OFFSET 0) s,
LATERAL (SELECT string_agg(int2send(i::int2), ''::bytea) AS i, string_agg(substr(c, i*8192+1, 8192), ''::bytea) AS d
 FROM generate_series(0, (length(c)+8191)/8192-1) i
 WHERE CASE WHEN length(c) < (i+1)*8192 THEN true ELSE %s END) b`,
			wrapped(wrap, "b.d"), read, from, literal(intArray(since)), newerSQL)
	case digests:
		query = fmt.Sprintf(`SELECT n, length(c)::int8, (SELECT string_agg(substr(sha256(substr(c, i*8192+1, 8192)), 1, %d), ''::bytea)
 FROM generate_series(0, (length(c)+8191)/8192-1) i) FROM (SELECT n, %s AS c FROM %s) WITH ORDINALITY AS r(p, o, l, n) OFFSET 0) s`,
			digestLen, read, from)
	case picked:
		lists := make([]string, len(reqs))
		for i, r := range reqs {
			var b []byte
			for j, n := range r.blocks {
				if j > 0 {
					b = append(b, ',')
				}
				b = strconv.AppendUint(b, uint64(n), 10)
			}
			lists[i] = string(b)
		}
		query = fmt.Sprintf(`SELECT n, length(c)::int8, %s FROM (SELECT n, x, %s AS c FROM %s, %s::text[]) WITH ORDINALITY AS r(p, o, l, x, n) OFFSET 0) s,
LATERAL (SELECT string_agg(substr(c, i*8192+1, 8192), ''::bytea) AS d FROM unnest(string_to_array(x, ',')::int[]) i) b`,
			wrapped(wrap, "b.d"), read, from, literal(textArray(lists)))
	}
	return "COPY (" + query + ") TO STDOUT (FORMAT binary)"
}

func wrapped(wrap func(string) string, arg string) string {
	if wrap == nil {
		return arg
	}
	return "length(" + arg + ")::int8, " + wrap(arg)
}

// newerSQL is whether page i of chunk c is new, or its pd_lsn is not below x.
// pd_lsn is two little-endian words, the high one first (PageXLogRecPtr). A
// server on a big-endian machine is refused long before, by its pg_control.
// The parentheses matter: to SQL << and | are of one precedence.
var newerSQL = func() string {
	var b strings.Builder
	b.WriteString("(SELECT v >= x OR v <= 0 FROM (SELECT ")
	for i, byteAt := range []int{3, 2, 1, 0, 7, 6, 5, 4} {
		if i > 0 {
			b.WriteString(" | ")
		}
		fmt.Fprintf(&b, "(get_byte(c, i*8192+%d)::int8 << %d)", byteAt, 56-8*i)
	}
	b.WriteString(" AS v) l)")
	return b.String()
}()

// atOnce is whether a file is read with one read, to its end, even if it has
// grown since it was listed: a small one that is no relation's. A configuration
// file must not end in the middle, and one read shows it as it was at one time.
func (f *file) atOnce() bool { return f.kind == plain && f.size <= chunkSize }

// ask is how much to ask for.
func (r *request) ask() int {
	if r.task.file.atOnce() {
		return chunkSize
	}
	return r.n
}

// parseBlocks reads the list of pages that newer answers with.
func parseBlocks(b []byte, pages int) ([]uint16, error) {
	if len(b)%2 != 0 {
		return nil, fmt.Errorf("server sent a list of pages of %d bytes", len(b))
	}
	blocks := make([]uint16, len(b)/2)
	for i := range blocks {
		blocks[i] = binary.BigEndian.Uint16(b[2*i:])
		if int(blocks[i]) >= pages || i > 0 && blocks[i] <= blocks[i-1] {
			return nil, fmt.Errorf("server sent page %d of a chunk of %d", blocks[i], pages)
		}
	}
	return blocks, nil
}
