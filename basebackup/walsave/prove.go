package walsave

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"rideau/wal"
)

const (
	pageSize    = 8192 // XLOG_BLCKSZ
	shortHeader = 24   // SizeOfXLogShortPHD
	longHeader  = 40   // SizeOfXLogLongPHD
	contrecord  = 1    // XLP_FIRST_IS_CONTRECORD, of xlp_info at offset 2

	chunk = 1 << 20 // what is read of a file at a time
)

// A prover reads segments in order and verifies that every record between start
// and stop is in them. It is a value: a copy of it is where to go back to.
type prover struct {
	size  wal.SegmentSize
	start wal.LSN
	check wal.Checker

	// page and info are of the last page header that was read.
	page wal.LSN
	info uint16
}

// newProver makes a prover that begins with the segment that start is in. What
// is in it before start is verified too: it costs nothing, and shows that a
// record begins where the backup is said to start.
func newProver(size wal.SegmentSize, systemID uint64, start wal.LSN) *prover {
	// The checker takes pages of any timeline; which it must be is checked here.
	return &prover{size: size, start: start, check: *wal.NewChecker(size, systemID, 0, size.Start(start))}
}

// segment verifies the file of s, of which there are n bytes, on path. It
// answers the end of what is to be kept: the end of the segment if all of it is
// there and good, else, of the last one, the stop. The error is a
// *wal.CorruptError or one of reading.
func (p *prover) segment(f io.ReaderAt, n int64, s Segment, path *wal.History) (wal.LSN, error) {
	end := p.size.Next(s.LSN)
	if n < int64(s.Need-s.LSN) {
		return 0, fmt.Errorf("there are %d bytes of the segment, %d are needed", n, s.Need-s.LSN)
	}
	if p.start > s.LSN && p.start < end {
		if err := p.read(f, s.LSN, p.start, path); err != nil {
			return 0, err
		}
		if !p.boundary(p.start) {
			return 0, &wal.CorruptError{LSN: p.start, Reason: "the backup starts there, but no record begins there"}
		}
	}
	if err := p.read(f, s.LSN, s.Need, path); err != nil {
		return 0, err
	}
	if !s.Last {
		return end, nil
	}
	if !p.boundary(s.Need) {
		return 0, &wal.CorruptError{LSN: s.Need, Reason: "the backup stops there, but no record ends there"}
	}
	if n < int64(p.size) {
		return s.Need, nil
	}
	err := p.read(f, s.LSN, end, path)
	if _, corrupt := errors.AsType[*wal.CorruptError](err); corrupt {
		return s.Need, nil // what was in the file before it was used again
	}
	return end, err
}

// read verifies from where it has got to, up to lsn, the segment at base.
func (p *prover) read(f io.ReaderAt, base, lsn wal.LSN, path *wal.History) error {
	buf := make([]byte, chunk)
	for pos := p.check.Pos(); pos < lsn; pos = p.check.Pos() {
		b := buf[:min(chunk-pos%chunk, lsn-pos)]
		if n, err := f.ReadAt(b, int64(pos-base)); n < len(b) {
			return fmt.Errorf("could not read WAL at %s: %w", pos, err)
		}
		if err := p.pages(pos, b, path); err != nil {
			return err
		}
		if _, err := p.check.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// pages verifies whose the pages that begin in b are. A page is of the timeline
// that began it: one with a switch point in it is still the old one's. What
// follows XLOG_SWITCH has no headers but zeros.
func (p *prover) pages(lsn wal.LSN, b []byte, path *wal.History) error {
	for i := int(-lsn % pageSize); i+8 <= len(b); i += pageSize {
		page := lsn + wal.LSN(i)
		p.page, p.info = page, binary.LittleEndian.Uint16(b[i+2:])
		if tli := wal.TLI(binary.LittleEndian.Uint32(b[i+4:])); tli != 0 && tli != path.TLIAt(page) {
			return &wal.CorruptError{LSN: page, Reason: fmt.Sprintf("page has timeline %s, not %s", tli, path.TLIAt(page))}
		}
	}
	return nil
}

// boundary reports whether a record ends, and the next may begin, at lsn, up to
// which all has been read. Where that is the beginning of a page the server
// also says it is behind the page's header (XLogBytePosToRecPtr).
func (p *prover) boundary(lsn wal.LSN) bool {
	end := p.check.End()
	if end == lsn {
		return true
	}
	header := wal.LSN(shortHeader)
	if p.size.Offset(end) == 0 {
		header = longHeader
	}
	return end%pageSize == 0 && lsn == end+header && p.page == end && p.info&contrecord == 0
}
