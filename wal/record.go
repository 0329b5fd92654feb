package wal

import (
	"encoding/binary"
	"fmt"
)

// A Record is one verified WAL record. It and all that it refers to belong to
// the [Reader] and are valid until the next record is read.
type Record struct {
	LSN    LSN // where it begins
	End    LSN // where the next may begin, padding included
	Prev   LSN // where the record before begins; 0 for the first of a cluster
	XID    uint32
	Length uint32 // of all of it, header included (xl_tot_len)
	RMgr   RMgr
	Info   uint8 // the high half says which operation of RMgr it is

	major   int
	data    []byte // after the header
	decoded bool
	err     error
	content Content
}

// set makes rec the record in b.
func (rec *Record) set(lsn, end LSN, major int, b []byte) {
	_ = b[recordHeader-1]
	rec.LSN = lsn
	rec.End = end
	rec.Length = binary.LittleEndian.Uint32(b)
	rec.XID = binary.LittleEndian.Uint32(b[4:])
	rec.Prev = LSN(binary.LittleEndian.Uint64(b[8:]))
	rec.Info = b[16]
	rec.RMgr = RMgr(b[17])
	rec.major = major
	rec.data = b[recordHeader:]
	rec.decoded = false
}

// Major is the major version of the server that wrote the record.
func (rec *Record) Major() int { return rec.major }

// Data is what follows the record's header, as it is in WAL but for the page
// headers.
func (rec *Record) Data() []byte { return rec.data }

// A Content is what is in a record.
type Content struct {
	Blocks []Block
	Main   []byte // what the resource manager wrote beside the blocks
	Origin uint16 // the replication origin, 0: none
	TopXID uint32 // the transaction of which XID is a subtransaction, 0: not said
}

// A Block is a reference to a block that a record changes, and what it says of
// it.
type Block struct {
	ID         uint8
	Fork       Fork
	Tablespace uint32
	Database   uint32
	Relation   uint32 // the relfilenode
	Number     uint32
	WillInit   bool // replay makes the page anew

	// Image is the page without the hole in its middle, HoleLength zeros that
	// belong at HoleOffset; nil if there is none. It may be compressed.
	Image       []byte
	HoleOffset  uint16
	HoleLength  uint16
	Compression string // "pglz", "lz4", "zstd"; "" if Image is not compressed
	Apply       bool   // replay restores the image; else it is there to compare

	Data []byte
}

// A Fork is one of the files of a relation.
type Fork uint8

// String is the fork's name as PostgreSQL has it: main, fsm, vm, init.
func (f Fork) String() string {
	if int(f) < len(forkNames) {
		return forkNames[f]
	}
	return fmt.Sprintf("fork%d", uint8(f))
}

var forkNames = [...]string{"main", "fsm", "vm", "init"}

// Numbers of xlogrecord.h.
const (
	maxBlockID        = 32 // XLR_MAX_BLOCK_ID
	blockIDTopXID     = 252
	blockIDOrigin     = 253
	blockIDDataLong   = 254
	blockIDDataShort  = 255
	blockForkMask     = 0x0F
	blockHasImage     = 0x10
	blockHasData      = 0x20
	blockWillInit     = 0x40
	blockSameRelation = 0x80
	imageHasHole      = 0x01
	imageApply        = 0x02
	imagePGLZ         = 0x04
	imageLZ4          = 0x08
	imageZstd         = 0x10
	// Before 15, one bit said that an image was compressed, and it was in the
	// place of imageApply.
	image14Compressed = 0x02
	image14Apply      = 0x04
	blockSize         = 8192 // BLCKSZ
)

// Decode takes the record apart, once. A *[CorruptError] means that the server
// wrote what it would not replay: the CRC is right all the same.
func (rec *Record) Decode() (*Content, error) {
	if !rec.decoded {
		rec.decoded = true
		rec.err = nil
		if reason := rec.decode(); reason != "" {
			rec.err = &CorruptError{LSN: rec.LSN, Reason: reason}
		}
	}
	if rec.err != nil {
		return nil, rec.err
	}
	return &rec.content, nil
}

// decode does what DecodeXLogRecord does, and answers what is wrong: first
// there are the headers of all that is in the record, then what they head, in
// the same order.
func (rec *Record) decode() string {
	const short = "record ends before its headers say"
	c := &rec.content
	*c = Content{Blocks: c.Blocks[:0]}
	h := header{b: rec.data}
	total, mainLength := 0, 0
	var lengths [maxBlockID + 1]struct{ image, data uint16 }
	last := -1

headers:
	for len(h.b) > total {
		switch id := h.u8(); {
		case id == blockIDDataShort:
			mainLength = int(h.u8())
			total += mainLength
			break headers
		case id == blockIDDataLong:
			mainLength = int(h.u32())
			total += mainLength
			break headers
		case id == blockIDOrigin:
			c.Origin = h.u16()
		case id == blockIDTopXID:
			c.TopXID = h.u32()
		case id > maxBlockID:
			return fmt.Sprintf("record has block ID %d", id)
		case int(id) <= last:
			return fmt.Sprintf("record has block ID %d after %d", id, last)
		default:
			last = int(id)
			flags := h.u8()
			length := h.u16()
			if (flags&blockHasData != 0) != (length > 0) {
				return fmt.Sprintf("block %d has flags %02X, but %d bytes of data", id, flags, length)
			}
			b := Block{ID: id, Fork: Fork(flags & blockForkMask), WillInit: flags&blockWillInit != 0}
			l := &lengths[len(c.Blocks)]
			l.data = length
			total += int(length)
			if flags&blockHasImage != 0 {
				l.image = h.u16()
				total += int(l.image)
				if reason := b.decodeImage(&h, rec.major, l.image); reason != "" {
					return reason
				}
			}
			if flags&blockSameRelation == 0 {
				b.Tablespace, b.Database, b.Relation = h.u32(), h.u32(), h.u32()
			} else if n := len(c.Blocks); n > 0 {
				p := &c.Blocks[n-1]
				b.Tablespace, b.Database, b.Relation = p.Tablespace, p.Database, p.Relation
			} else {
				return fmt.Sprintf("block %d is of the same relation as the one before, but there is none", id)
			}
			b.Number = h.u32()
			c.Blocks = append(c.Blocks, b)
		}
	}
	if h.short || len(h.b) != total {
		return short
	}
	for i := range c.Blocks {
		b, l := &c.Blocks[i], lengths[i]
		if l.image > 0 {
			b.Image = h.take(int(l.image))
		}
		if l.data > 0 {
			b.Data = h.take(int(l.data))
		}
	}
	c.Main = h.take(mainLength)
	return ""
}

// decodeImage reads what is said of an image after its length.
func (b *Block) decodeImage(h *header, major int, length uint16) string {
	b.HoleOffset = h.u16()
	info := h.u8()
	if major < 15 {
		b.Apply = info&image14Apply != 0
		if info&image14Compressed != 0 {
			b.Compression = "pglz"
		}
	} else {
		b.Apply = info&imageApply != 0
		switch {
		case info&imagePGLZ != 0:
			b.Compression = "pglz"
		case info&imageLZ4 != 0:
			b.Compression = "lz4"
		case info&imageZstd != 0:
			b.Compression = "zstd"
		}
	}
	hole := info&imageHasHole != 0
	switch {
	case b.Compression == "" && length <= blockSize:
		b.HoleLength = blockSize - length
	case hole && b.Compression != "":
		b.HoleLength = h.u16()
	}
	if length == 0 || length > blockSize ||
		length == blockSize && (hole || b.Compression != "") ||
		length < blockSize && !hole && b.Compression == "" ||
		hole && (b.HoleOffset == 0 || b.HoleLength == 0) ||
		!hole && (b.HoleOffset != 0 || b.HoleLength != 0) {
		return fmt.Sprintf("block %d has an image of %d bytes with info bits %02X and a hole of %d bytes at %d",
			b.ID, length, info, b.HoleLength, b.HoleOffset)
	}
	return ""
}

// A header reads little-endian numbers. Once there are too few bytes it is
// short, and answers zeros.
type header struct {
	b     []byte
	short bool
}

func (h *header) take(n int) []byte {
	if n > len(h.b) {
		h.short = true
		h.b = nil
		return nil
	}
	b := h.b[:n:n]
	h.b = h.b[n:]
	return b
}

func (h *header) u8() uint8 {
	if b := h.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (h *header) u16() uint16 {
	if b := h.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (h *header) u32() uint32 {
	if b := h.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (h *header) u64() uint64 {
	if b := h.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}
