package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// A Reader reads records, one after the other, from a source that may still be
// growing. It returns only records that it has verified as a [Checker] would.
//
// A Reader is not safe for concurrent use.
type Reader struct {
	stream
	src io.ReaderAt

	// pos is where the next record begins, or the page that holds it, and good
	// is what was known there. They move only once a record is complete:
	// whatever goes wrong, or has not arrived, Next begins again there.
	pos         LSN
	good        stream
	fresh       bool // as in Checker
	maybeSwitch bool // as in Checker

	// buf holds what the source has from base on, as far as it has been read.
	// Base is where a page begins.
	buf  []byte
	base LSN
	full []byte // the memory of buf

	rec  Record
	long []byte // a record of more than one page, without the page headers
}

// NewReader makes a Reader of tli's WAL in src, in which the byte at an LSN
// has that offset, and which answers io.EOF where there is no more. Start,
// systemID and tli are as in [NewChecker]: from where a segment or a page
// begins, the first record read is the first that begins there, and one of
// which there is only the end is skipped. Where a record begins inside a page,
// src must have the page.
//
// What src has must be stable: WAL that is still being written when it is read
// may seem torn. Zeros where a page or a record must begin are taken for space
// that is not yet filled.
func NewReader(src io.ReaderAt, size SegmentSize, systemID uint64, tli TLI, start LSN) *Reader {
	s := stream{size: size, systemID: systemID, tli: tli}
	return &Reader{
		stream: s,
		good:   s,
		src:    src,
		pos:    start,
		fresh:  start%pageSize == 0,
		full:   make([]byte, chunk),
	}
}

// Pos is where Next looks for the next record: the end of the last.
func (r *Reader) Pos() LSN { return r.pos }

// Next reads the next record. It is valid until the next call.
//
// The error is [ErrEndOfWAL] when there is no complete record yet, a
// *[CorruptError] when what is there cannot be one, or an error of the source.
// The Reader stays where it is then, and when it is called again, looks at the
// source again.
func (r *Reader) Next() (*Record, error) {
	if err := r.next(); err != nil {
		r.stream, r.buf = r.good, nil
		return nil, err
	}
	return &r.rec, nil
}

func (r *Reader) next() error {
	at := r.pos
	if !recordMayBegin(at) || !r.size.Valid() {
		return noRecord(at, r.size)
	}
	if r.magic == 0 && at%pageSize != 0 {
		if _, err := r.openPage(at &^ (pageSize - 1)); err != nil {
			return err
		}
	}

	overwrite, lost := false, LSN(0) // the record must be an XLOG_OVERWRITE_CONTRECORD and name lost
	for {
		lsn, err := r.begin(at, &overwrite)
		if err != nil {
			return err
		}
		b, err := r.window(lsn, 8)
		if err != nil {
			return err
		}
		length := binary.LittleEndian.Uint32(b)
		if length == 0 && r.maybeSwitch {
			r.settle(r.size.Next(lsn))
			at = r.pos
			continue
		}
		if length == 0 {
			return ErrEndOfWAL
		}
		if reason := badLength(length); reason != "" {
			return &CorruptError{LSN: lsn, Reason: reason}
		}
		var record []byte
		var end LSN
		if left := pageSize - lsn%pageSize; LSN(length) <= left {
			record, end, err = r.whole(lsn, length)
		} else {
			var abandoned bool
			record, end, abandoned, err = r.assemble(lsn, length)
			if abandoned {
				overwrite, lost, at = true, lsn, end
				continue
			}
		}
		if err != nil {
			return err
		}
		if overwrite {
			if reason := overwrites(record, record[recordHeader:], lost); reason != "" {
				return &CorruptError{LSN: lsn, Reason: reason}
			}
		}
		if isSwitch(record) && r.size.Offset(end) != 0 {
			end = r.size.Next(end)
		}
		r.prev = lsn
		r.settle(end)
		r.maybeSwitch = false
		r.rec.set(lsn, end, r.version.major, record)
		return nil
	}
}

// settle makes pos the place where a record may begin.
func (r *Reader) settle(pos LSN) {
	r.pos, r.fresh, r.good = pos, false, r.stream
}

// begin answers where the record begins that at is the place for: past the
// header of the page, if at is one, and past what the page continues, if what
// it continues began before the start. It sets overwrite if the page says that
// its record takes the place of an incomplete one.
func (r *Reader) begin(at LSN, overwrite *bool) (LSN, error) {
	for at%pageSize == 0 {
		p, err := r.openPage(at)
		if err != nil {
			return 0, err
		}
		switch {
		case p.overwrites && !*overwrite && !r.fresh:
			return 0, &CorruptError{LSN: at, Reason: "page overwrites an incomplete record, but there is none"}
		case p.overwrites:
			*overwrite = true
		case p.continues && !r.fresh:
			return 0, &CorruptError{LSN: at, Reason: "page continues a record, but none is incomplete"}
		case p.continues:
			if at, *overwrite, err = r.skip(at, p); err != nil {
				return 0, err
			}
			continue
		}
		return at + LSN(p.size), nil
	}
	return at, nil
}

// skip passes over the record that the first page continues. It answers where
// the next may begin, and whether that is a page on which it takes the place
// of the one that was to be skipped.
func (r *Reader) skip(at LSN, p pageInfo) (next LSN, overwritten bool, err error) {
	if p.left == 0 || p.left > maxRecord {
		return 0, false, &CorruptError{LSN: at, Reason: fmt.Sprintf("page continues a record of which %d bytes are left", p.left)}
	}
	maybeSwitch := p.left <= recordHeader-8
	left := p.left
	for {
		n := min(left, pageSize-uint32(p.size))
		at += LSN(p.size)
		b, err := r.window(at, align(n))
		if err != nil {
			return 0, false, err
		}
		at += LSN(align(n))
		if left -= n; left == 0 {
			if maybeSwitch {
				var h [recordHeader]byte
				copy(h[recordHeader-n:], b)
				maybeSwitch = isSwitch(h[:])
			}
			r.maybeSwitch = maybeSwitch
			r.settle(at)
			return at, false, nil
		}
		if p, err = r.openPage(at); err != nil {
			return 0, false, err
		}
		if p.overwrites {
			return at, true, nil
		}
		if reason := p.mustContinue(0, left); reason != "" {
			return 0, false, &CorruptError{LSN: at, Reason: reason}
		}
	}
}

// whole reads a record that lies within one page. It is not copied.
func (r *Reader) whole(lsn LSN, length uint32) (record []byte, end LSN, err error) {
	b, err := r.window(lsn, align(length))
	if err != nil {
		return nil, 0, err
	}
	record = b[:length]
	if reason := r.record(lsn, record); reason != "" {
		return nil, 0, &CorruptError{LSN: lsn, Reason: reason}
	}
	if !crcOK(crc32.Update(0, castagnoli, record[recordHeader:]), record) {
		return nil, 0, &CorruptError{LSN: lsn, Reason: badCRC}
	}
	return record, lsn + LSN(align(length)), nil
}

// assemble reads a record that is continued on other pages. If one of them
// says that it never will be, it answers abandoned, and the page as end.
func (r *Reader) assemble(lsn LSN, length uint32) (record []byte, end LSN, abandoned bool, err error) {
	var crc uint32
	record = r.long[:0]
	for at, n := lsn, uint32(pageSize-lsn%pageSize); ; {
		b, err := r.window(at, align(n))
		if err != nil {
			return nil, 0, false, err
		}
		b = b[:n]
		had := uint32(len(record))
		// Grown as pages arrive, and not to length at once, which nothing but
		// the next page's header vouches for.
		record = append(record, b...)
		r.long = record
		if had < recordHeader && len(record) >= recordHeader {
			if reason := r.record(lsn, record); reason != "" {
				return nil, 0, false, &CorruptError{LSN: lsn, Reason: reason}
			}
			crc = crc32.Update(0, castagnoli, record[recordHeader:])
		} else if had >= recordHeader {
			crc = crc32.Update(crc, castagnoli, b)
		}
		at += LSN(align(n))
		left := length - uint32(len(record))
		if left == 0 {
			if !crcOK(crc, record) {
				return nil, 0, false, &CorruptError{LSN: lsn, Reason: badCRC}
			}
			return record, at, false, nil
		}
		p, err := r.openPage(at)
		if err != nil {
			return nil, 0, false, err
		}
		if p.overwrites {
			return nil, at, true, nil
		}
		if reason := p.mustContinue(lsn, left); reason != "" {
			return nil, 0, false, &CorruptError{LSN: at, Reason: reason}
		}
		at, n = at+LSN(p.size), min(left, pageSize-uint32(p.size))
	}
}

// openPage verifies the header of the page at lsn.
func (r *Reader) openPage(lsn LSN) (pageInfo, error) {
	h, err := r.window(lsn, shortHeader)
	if err != nil {
		return pageInfo{}, err
	}
	size := headerSize(h)
	if size > len(h) {
		if h, err = r.window(lsn, uint32(size)); err != nil {
			return pageInfo{}, err
		}
	}
	h = h[:size]
	if reason := r.page(lsn, h); reason != "" {
		if isZero(h) {
			return pageInfo{}, ErrEndOfWAL
		}
		return pageInfo{}, &CorruptError{LSN: lsn, Reason: reason}
	}
	return r.pageInfo(h), nil
}

// window answers what there is of the page at lsn, from lsn on, and at least
// need bytes, which must be in that page. It is valid until the next call.
func (r *Reader) window(lsn LSN, need uint32) ([]byte, error) {
	if lsn < r.base || lsn-r.base+LSN(need) > LSN(len(r.buf)) {
		if err := r.load(lsn); err != nil {
			return nil, err
		}
		if lsn-r.base+LSN(need) > LSN(len(r.buf)) {
			return nil, ErrEndOfWAL
		}
	}
	from := lsn - r.base
	to := min(from|(pageSize-1)+1, LSN(len(r.buf)))
	return r.buf[from:to], nil
}

// load fills buf from the page at lsn on.
func (r *Reader) load(lsn LSN) error {
	r.base = lsn &^ (pageSize - 1)
	r.buf = nil
	// No longer than to the next multiple, so that reads stay aligned.
	n, err := r.src.ReadAt(r.full[:chunk-r.base%chunk], int64(r.base))
	if err != nil && err != io.EOF {
		return fmt.Errorf("could not read WAL at %s: %w", r.base, err)
	}
	r.buf = r.full[:n]
	return nil
}
