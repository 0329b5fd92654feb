package summary

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"iter"
	"math"
	"math/bits"
)

// InvalidBlock is PostgreSQL's InvalidBlockNumber: as a limit it says that a
// fork was neither created, dropped nor truncated.
const InvalidBlock = math.MaxUint32

// A Fork is one of the files (before they are cut into segments) of a relation.
// With Relation 0 and Fork 0 it stands for all of a database in a tablespace.
type Fork struct {
	Tablespace, Database, Relation uint32
	Fork                           int32 // 0 main, 1 fsm, 2 vm, 3 init (ForkNumber)
}

// Constants of blkreftable.c.
const (
	magic           = 0x652b137b // BLOCKREFTABLE_MAGIC
	blocksPerChunk  = 1 << 16
	maxChunks       = 1 << 32 / blocksPerChunk // block numbers have 32 bits
	maxEntries      = blocksPerChunk / 16      // MAX_ENTRIES_PER_CHUNK: as many make it a bitmap
	maxFork         = 3                        // MAX_FORKNUM of relpath.h
	entryHeaderSize = 24
)

// A CorruptError says that a file is no summary, or not all of one.
type CorruptError struct {
	Reason string
}

func (e *CorruptError) Error() string { return "invalid WAL summary: " + e.Reason }

// A Table is what several summaries say together. The zero value is empty.
// It is not safe for use by several goroutines while [Table.Add] runs; after
// that it is.
type Table struct {
	forks map[Fork]*Changes
	bad   error // of the file that did not verify: everything counts as changed
}

// Changes are what is known to have changed in a fork.
type Changes struct {
	limit  uint32
	chunks []chunk // the nth has blocks from n * blocksPerChunk on
}

// A chunk is blocks relative to its begin. The short form is unsorted and may
// name a block twice; it has fewer than maxEntries, so that its memory never
// passes that of the bitmap.
type chunk struct {
	list   []uint16
	bitmap *[blocksPerChunk / 64]uint64
}

// Add reads one file and merges what it says. The order of files is of no
// matter. An error is a [*CorruptError] or one of r; as some of the file may have
// been merged before it showed, from then on everything counts as changed, and
// every other Add answers the same error.
func (t *Table) Add(r io.Reader) error {
	if t.bad != nil {
		return t.bad
	}
	if t.forks == nil {
		t.forks = map[Fork]*Changes{}
	}
	var c *Changes
	t.bad = read(r, func(f Fork, limit uint32) {
		if c = t.forks[f]; c == nil {
			c = &Changes{limit: InvalidBlock}
			t.forks[f] = c
		}
		c.limit = min(c.limit, limit)
	}, func(n int, words []uint16) { c.merge(n, words) })
	return t.bad
}

// Lookup answers what is known of a fork, nil if no WAL record refers to it, so
// that it is as it was. If its database as a whole counts as changed, or the
// table is bad, so does every block of it.
func (t *Table) Lookup(f Fork) *Changes {
	if t.bad != nil {
		return &Changes{}
	}
	if t.forks[Fork{Tablespace: f.Tablespace, Database: f.Database}] != nil {
		return &Changes{}
	}
	return t.forks[f]
}

// Len is the number of forks of which something is known.
func (t *Table) Len() int { return len(t.forks) }

// Limit is the limit block: every block from there on counts as changed.
// InvalidBlock if there is none.
func (c *Changes) Limit() uint32 { return c.limit }

// Blocks are those from start up to, and not including, stop that count as
// changed, in ascending order, all from the limit block on included. A nil
// Changes has none.
func (c *Changes) Blocks(start, stop uint32) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		if c == nil {
			return
		}
		listed := min(stop, c.limit)
		for n := start / blocksPerChunk; start < listed && int(n) < len(c.chunks) && n <= (listed-1)/blocksPerChunk; n++ {
			base := n * blocksPerChunk
			set := c.chunks[n].bits()
			if set == nil {
				continue
			}
			for i, word := range set {
				for ; word != 0; word &= word - 1 {
					b := base + uint32(i)*64 + uint32(bits.TrailingZeros64(word))
					if b >= start && b < listed && !yield(b) {
						return
					}
				}
			}
		}
		for b := max(start, c.limit); b < stop; b++ {
			if !yield(b) {
				return
			}
		}
	}
}

// bits is the chunk as a bitmap, which does not change it. Nil if it is empty.
func (k *chunk) bits() *[blocksPerChunk / 64]uint64 {
	if k.bitmap != nil || len(k.list) == 0 {
		return k.bitmap
	}
	set := new([blocksPerChunk / 64]uint64)
	for _, b := range k.list {
		set[b/64] |= 1 << (b % 64)
	}
	return set
}

// merge adds what a file says of chunk n: a bitmap if it has maxEntries words,
// else a list.
func (c *Changes) merge(n int, words []uint16) {
	for len(c.chunks) <= n {
		c.chunks = append(c.chunks, chunk{})
	}
	k := &c.chunks[n]
	if len(words) < maxEntries && k.bitmap == nil && len(k.list)+len(words) < maxEntries {
		k.list = append(k.list, words...)
		return
	}
	if k.bitmap == nil {
		if k.bitmap = k.bits(); k.bitmap == nil {
			k.bitmap = new([blocksPerChunk / 64]uint64)
		}
		k.list = nil
	}
	if len(words) == maxEntries {
		for i, w := range words { // the lowest bit of the first word is the first block
			k.bitmap[i/4] |= uint64(w) << (i % 4 * 16)
		}
		return
	}
	for _, b := range words {
		k.bitmap[b/64] |= 1 << (b % 64)
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// read calls fork for each entry of a file and then chunk for each of its chunks
// that are not empty; words are valid during the call. What it has told is not
// to be believed before it has returned without an error: the CRC comes last.
func read(r io.Reader, fork func(f Fork, limit uint32), chunk func(n int, words []uint16)) error {
	in := &verified{r: bufio.NewReaderSize(r, 64<<10), sum: crc32.New(castagnoli)}
	var header [entryHeaderSize]byte
	if err := in.full(header[:4]); err != nil {
		return err
	}
	if got := binary.LittleEndian.Uint32(header[:]); got != magic {
		return &CorruptError{Reason: fmt.Sprintf("it begins with %08X, not with %08X", got, uint32(magic))}
	}
	var sizes [maxChunks]uint16
	var words [maxEntries]uint16
	for {
		if err := in.full(header[:]); err != nil {
			return err
		}
		if header == [entryHeaderSize]byte{} {
			return in.trailer()
		}
		u32 := func(i int) uint32 { return binary.LittleEndian.Uint32(header[i*4:]) }
		f := Fork{Tablespace: u32(0), Database: u32(1), Relation: u32(2), Fork: int32(u32(3))}
		if f.Fork < 0 || f.Fork > maxFork {
			return &CorruptError{Reason: fmt.Sprintf("relation %d/%d/%d has no fork %d", f.Tablespace, f.Database, f.Relation, f.Fork)}
		}
		chunks := u32(5)
		if chunks > maxChunks {
			return &CorruptError{Reason: fmt.Sprintf("relation %d/%d/%d cannot have %d chunks", f.Tablespace, f.Database, f.Relation, chunks)}
		}
		fork(f, u32(4))
		if err := in.words(sizes[:chunks]); err != nil {
			return err
		}
		for n, size := range sizes[:chunks] {
			if size > maxEntries {
				return &CorruptError{Reason: fmt.Sprintf("a chunk of relation %d/%d/%d cannot have %d entries", f.Tablespace, f.Database, f.Relation, size)}
			}
			if size == 0 {
				continue
			}
			if err := in.words(words[:size]); err != nil {
				return err
			}
			chunk(n, words[:size])
		}
	}
}

// A verified reader sums what is read through it.
type verified struct {
	r   *bufio.Reader
	sum hash.Hash32
	buf [8192]byte
}

// full fills p.
func (v *verified) full(p []byte) error {
	if _, err := io.ReadFull(v.r, p); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return &CorruptError{Reason: "it ends too early"}
		}
		return err
	}
	v.sum.Write(p)
	return nil
}

// words fills w with little-endian numbers.
func (v *verified) words(w []uint16) error {
	for len(w) > 0 {
		n := min(len(w), len(v.buf)/2)
		if err := v.full(v.buf[:n*2]); err != nil {
			return err
		}
		for i := range w[:n] {
			w[i] = binary.LittleEndian.Uint16(v.buf[i*2:])
		}
		w = w[n:]
	}
	return nil
}

// trailer verifies the CRC, after which nothing may come.
func (v *verified) trailer() error {
	got := v.sum.Sum32()
	var b [4]byte
	if err := v.full(b[:]); err != nil {
		return err
	}
	if want := binary.LittleEndian.Uint32(b[:]); want != got {
		return &CorruptError{Reason: fmt.Sprintf("it has CRC %08X, but its bytes have %08X", want, got)}
	}
	if _, err := v.r.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = &CorruptError{Reason: "something follows its end"}
		}
		return err
	}
	return nil
}
