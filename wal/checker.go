package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A Checker verifies WAL as it arrives, in pieces of any size: every page
// header, every record's header, its link to the record before, and its CRC.
// It keeps no more of it than a page header and a record header, and Write
// does not allocate.
//
// Two kinds of bytes pass unverified. A record that began before the start
// cannot be verified; it is skipped, up to the length that the pages say. And
// like the server, it never looks at the padding after a record and after
// XLOG_SWITCH, which fills its segment with zeros.
//
// Zeros where a record must begin are corruption here: a server sends only
// what it has flushed, and flushes only what it has written. In a file that
// is filled as WAL arrives they are the end, see [FindEnd].
//
// A Checker is not safe for concurrent use.
type Checker struct {
	stream
	pos LSN
	err error

	// mode says what the byte at pos is, once the header of its page is past.
	mode mode
	// fresh: pos is the start, and at a page boundary, so that the page may
	// continue a record of which nothing else is known.
	fresh bool

	// good is the state at End, for Resume.
	start LSN
	good  struct {
		end     LSN
		pageTLI TLI
		magic   uint16
		version version
	}

	rem    uint32 // bytes that are left of what mode says
	lsn    LSN    // where the record began; 0 if that was before the start
	crc    uint32 // of the record's data so far
	hdrLen int    // how much of hdr there is
	hdr    [recordHeader]byte

	// The record must be an XLOG_OVERWRITE_CONTRECORD that names lost.
	overwrite bool
	lost      LSN
	headLen   int
	head      [overwriteHead]byte

	// What was skipped at the start may have been the end of XLOG_SWITCH.
	maybeSwitch bool

	pageLen int // how much of hdrPage there is
	hdrPage [longHeader]byte
}

type mode uint8

const (
	atRecord  mode = iota // a record's header, hdrLen bytes into it
	inData                // a record's data, rem bytes from its end
	inAlign               // padding, rem bytes before the next record
	inSkip                // data of a record that began before the start
	inAlign0              // padding after that
	inPadding             // padding up to the end of the segment
)

// NewChecker makes a Checker of tli's WAL that begins at start: where a
// segment begins, where a page begins, or where a record begins (what End said
// of another Checker, but not in the padding after XLOG_SWITCH). If a page
// begins there, it may continue a record from the page before.
//
// Pages may be of ancestors of tli: the copy that a new timeline has of the
// segment in which it left the old begins with the old one's pages. If
// systemID or tli is zero, any will do, and all must agree with the first.
func NewChecker(size SegmentSize, systemID uint64, tli TLI, start LSN) *Checker {
	c := &Checker{stream: stream{size: size, systemID: systemID, tli: tli}, pos: start, start: start}
	c.good.end = start
	c.fresh = start%pageSize == 0
	if !size.Valid() || !recordMayBegin(start) {
		c.err = noRecord(start, size)
	}
	return c
}

// Pos is the next byte that is expected: where the bytes of the next Write
// belong.
func (c *Checker) Pos() LSN { return c.pos }

// End is the first byte that is not yet known to be good: it is never past
// [Checker.Pos]. Where a record has been verified it is the end of the last
// one, padding included, which is where the next begins (or the page that
// holds the next). Before the first complete record it is the start, and once
// the record that began before the start is skipped, the end of that. In the
// padding after XLOG_SWITCH it moves along with Pos, up to the next segment,
// where the server's own idea of that record's end is from the first.
func (c *Checker) End() LSN {
	if c.mode == inPadding {
		return c.pos
	}
	return c.good.end
}

// Prev is where the last complete record begins, which the next must name as
// the one before it (xl_prev). Zero: none seen.
func (c *Checker) Prev() LSN { return c.prev }

// Write verifies p, which continues at Pos. Any error is a *CorruptError, and
// will be returned again by every later Write; n is then how many bytes were
// taken before the fault showed. Those from End on are not to be trusted.
func (c *Checker) Write(p []byte) (n int, err error) {
	if c.err != nil {
		return 0, c.err
	}
	for len(p) > n {
		q := p[n:]
		if c.mode == inPadding {
			n += c.pad(q)
			continue
		}
		offset := uint32(c.pos % pageSize)
		if offset == 0 || c.pageLen > 0 {
			n += c.readPage(q)
		} else {
			if left := pageSize - int(offset); len(q) > left {
				q = q[:left]
			}
			n += c.readRecords(q)
		}
		if c.err != nil {
			return n, c.err
		}
	}
	return n, nil
}

// Resume forgets what came after End, and any error, so that the next Write
// continues there. It answers End.
func (c *Checker) Resume() LSN {
	if c.mode == inPadding {
		return c.pos
	}
	c.pos = c.good.end
	c.pageTLI, c.magic, c.version = c.good.pageTLI, c.good.magic, c.good.version
	c.mode, c.err, c.rem, c.hdrLen, c.pageLen, c.overwrite = atRecord, nil, 0, 0, 0, false
	c.fresh = c.pos == c.start && c.pos%pageSize == 0
	return c.pos
}

func (c *Checker) fail(lsn LSN, reason string) {
	c.err = &CorruptError{LSN: lsn, Reason: reason}
}

// pad passes over the padding after XLOG_SWITCH: pages without headers.
func (c *Checker) pad(p []byte) int {
	left := c.size.Next(c.pos) - c.pos
	if LSN(len(p)) < left {
		c.pos += LSN(len(p))
		return len(p)
	}
	c.pos += left
	c.settle()
	return int(left)
}

// settle makes pos the end of what is good, and where a record may begin.
func (c *Checker) settle() {
	c.mode, c.hdrLen = atRecord, 0
	c.good.end, c.good.pageTLI, c.good.magic, c.good.version = c.pos, c.pageTLI, c.magic, c.version
}

// readPage takes what p has of the page header that pos is in.
func (c *Checker) readPage(p []byte) int {
	want := shortHeader
	if c.pageLen >= shortHeader {
		want = longHeader
	}
	n := copy(c.hdrPage[c.pageLen:want], p)
	c.pageLen += n
	c.pos += LSN(n)
	if c.pageLen < want || c.pageLen < headerSize(c.hdrPage[:]) {
		return n
	}
	h := c.hdrPage[:c.pageLen]
	page := c.pos - LSN(c.pageLen)
	c.pageLen = 0
	if reason := c.page(page, h); reason != "" {
		c.err = &CorruptError{LSN: page, Reason: reason, zero: isZero(h)}
		return n
	}
	said := c.pageInfo(h)
	left := c.rem // of the record that is incomplete, if one is
	open := c.mode == inData || c.mode == inSkip
	if c.mode == atRecord && c.hdrLen > 0 {
		left, open = binary.LittleEndian.Uint32(c.hdr[:])-uint32(c.hdrLen), true
	}
	switch {
	case said.overwrites && (open || c.fresh):
		c.overwrite, c.lost, c.headLen = true, 0, 0
		if open {
			c.lost = c.lsn
		}
		c.mode, c.hdrLen = atRecord, 0
	case said.overwrites:
		c.fail(page, "page overwrites an incomplete record, but there is none")
	case open:
		if reason := said.mustContinue(c.lsn, left); reason != "" {
			c.fail(page, reason)
		}
	case said.continues && !c.fresh:
		c.fail(page, "page continues a record, but none is incomplete")
	case said.continues && (said.left == 0 || said.left > maxRecord):
		c.fail(page, fmt.Sprintf("page continues a record of which %d bytes are left", said.left))
	case said.continues:
		c.mode, c.rem, c.lsn = inSkip, said.left, 0
		c.maybeSwitch = said.left <= recordHeader-8
	}
	c.fresh = false
	return n
}

// readRecords takes p, which is not past the end of the page, and what of it
// is one thing: whole records, or a piece of one.
func (c *Checker) readRecords(p []byte) int {
	switch c.mode {
	case atRecord:
		if c.hdrLen == 0 && !c.overwrite {
			if n := c.readWhole(p); n > 0 || c.err != nil || len(p) == 0 {
				return n
			}
		}
		return c.readHeader(p)

	case inData:
		n := min(len(p), int(c.rem))
		c.crc = crc32.Update(c.crc, castagnoli, p[:n])
		if c.overwrite {
			c.headLen += copy(c.head[c.headLen:], p[:n])
		}
		c.rem -= uint32(n)
		c.pos += LSN(n)
		if c.rem == 0 {
			c.endRecord()
		}
		return n

	case inSkip:
		n := min(len(p), int(c.rem))
		if c.maybeSwitch {
			copy(c.hdr[recordHeader-c.rem:], p[:n])
		}
		c.rem -= uint32(n)
		c.pos += LSN(n)
		if c.rem == 0 {
			c.maybeSwitch = c.maybeSwitch && isSwitch(c.hdr[:])
			c.mode, c.rem = inAlign0, uint32(-c.pos%8)
			c.endAlign()
		}
		return n

	default: // inAlign, inAlign0
		n := min(len(p), int(c.rem))
		c.rem -= uint32(n)
		c.pos += LSN(n)
		c.endAlign()
		return n
	}
}

// readWhole takes the records that lie in p from beginning to end, with their
// padding: most of them, in most WAL. It does what readHeader, endRecord and
// endAlign do, without remembering anything from one to the next.
func (c *Checker) readWhole(p []byte) (n int) {
	for len(p)-n >= recordHeader {
		q := p[n:]
		length := binary.LittleEndian.Uint32(q)
		if length < recordHeader || align(int(length)) > len(q) {
			break
		}
		h := q[:recordHeader]
		if reason := c.record(c.pos, h); reason != "" {
			c.fail(c.pos, reason)
			break
		}
		if !crcOK(crc32.Update(0, castagnoli, q[recordHeader:length]), h) {
			c.fail(c.pos, badCRC)
			break
		}
		c.prev = c.pos
		c.pos += LSN(align(length))
		n += align(int(length))
		c.maybeSwitch = false
		c.settle()
		if isSwitch(h) {
			c.endSwitch()
			break
		}
	}
	return n
}

// readHeader takes what p has of a record's header.
func (c *Checker) readHeader(p []byte) int {
	if c.hdrLen == 0 {
		c.lsn = c.pos
	}
	n := copy(c.hdr[c.hdrLen:], p)
	c.hdrLen += n
	c.pos += LSN(n)
	if c.hdrLen < 4 {
		return n
	}
	// The length is looked at first: the next page's header is held against it.
	length := binary.LittleEndian.Uint32(c.hdr[:])
	if length == 0 && c.maybeSwitch {
		c.mode = inPadding
		return n
	}
	reason := badLength(length)
	if reason == "" && c.hdrLen == recordHeader {
		reason = c.record(c.lsn, c.hdr[:])
	}
	if reason != "" {
		c.err = &CorruptError{LSN: c.lsn, Reason: reason, zero: length == 0}
		return n
	}
	if c.hdrLen == recordHeader {
		c.hdrLen = 0
		c.mode, c.rem, c.crc, c.headLen = inData, length-recordHeader, 0, 0
		if c.rem == 0 {
			c.endRecord()
		}
	}
	return n
}

// endRecord verifies the record in hdr, whose last byte has been read.
func (c *Checker) endRecord() {
	if !crcOK(c.crc, c.hdr[:]) {
		c.fail(c.lsn, badCRC)
		return
	}
	if c.overwrite {
		if reason := overwrites(c.hdr[:], c.head[:c.headLen], c.lost); reason != "" {
			c.fail(c.lsn, reason)
			return
		}
	}
	c.mode, c.rem = inAlign, uint32(-c.pos%8)
	c.endAlign()
}

// endAlign is at the end of a record with its padding, if rem is 0.
func (c *Checker) endAlign() {
	if c.rem > 0 {
		return
	}
	if c.mode == inAlign0 {
		c.settle()
		return
	}
	c.prev, c.overwrite, c.maybeSwitch = c.lsn, false, false
	c.settle()
	if isSwitch(c.hdr[:]) {
		c.endSwitch()
	}
}

// endSwitch is after XLOG_SWITCH, whose padding begins unless the segment ends.
func (c *Checker) endSwitch() {
	if c.size.Offset(c.pos) != 0 {
		c.mode = inPadding
	}
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// FindEnd finds where WAL in files ends after a crash, when nobody can say how
// much of it had reached the disk. It reads src, where the byte at an LSN has
// that offset, from a segment's start on, up to the last record that is
// complete and good.
//
// The Checker it answers continues exactly there: its Pos and its End are the
// end of WAL, and the next Write must follow. Why says what ended it:
// [ErrEndOfWAL] if src did (io.EOF) or zeros began, else the *CorruptError of
// the first page or record that does not verify. After a crash that is a torn
// tail; where WAL is known to have been whole beyond the end it is corruption,
// and only the caller knows. Any other error of src is returned as err.
func FindEnd(src io.ReaderAt, size SegmentSize, systemID uint64, tli TLI, from LSN) (c *Checker, why, err error) {
	c = NewChecker(size, systemID, tli, from)
	buf := make([]byte, chunk)
	for {
		// No longer than to the next multiple, so that reads stay aligned.
		n, err := src.ReadAt(buf[:chunk-c.pos%chunk], int64(c.pos))
		if err != nil && err != io.EOF {
			return nil, nil, fmt.Errorf("could not read WAL at %s: %w", c.pos, err)
		}
		if _, why := c.Write(buf[:n]); why != nil {
			var corrupt *CorruptError
			if errors.As(why, &corrupt) && corrupt.zero {
				why = ErrEndOfWAL
			}
			c.Resume()
			return c, why, nil
		}
		if err == io.EOF || n == 0 {
			c.Resume()
			return c, ErrEndOfWAL, nil
		}
	}
}

// chunk is how much is read from a source at a time.
const chunk = 1 << 20
