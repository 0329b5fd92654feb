package archive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"rideau/wal"
)

// A header is the beginning of a segment, XLogLongPageHeaderData of
// access/xlog_internal.h, in the byte order of all machines that matter here:
//
//	 0  xlp_magic        uint16  changes with each major version
//	 2  xlp_info         uint16  flags; 2 says that the header is a long one
//	 4  xlp_tli          uint32  the timeline of the page's first record
//	 8  xlp_pageaddr     uint64  the LSN of the page
//	16  xlp_rem_len      uint32  what is left of a record begun before, then padding
//	24  xlp_sysid        uint64
//	32  xlp_seg_size     uint32
//	36  xlp_xlog_blcksz  uint32
type header struct {
	tli   wal.TLI
	lsn   wal.LSN
	sysid uint64
	size  wal.SegmentSize
}

const (
	longHeaderSize = 40 // SizeOfXLogLongPHD
	longHeaderFlag = 2  // XLP_LONG_HEADER
)

func parseHeader(page []byte) (header, error) {
	if len(page) < longHeaderSize {
		return header{}, fmt.Errorf("it has only %d bytes", len(page))
	}
	h := header{
		tli:   wal.TLI(binary.LittleEndian.Uint32(page[4:])),
		lsn:   wal.LSN(binary.LittleEndian.Uint64(page[8:])),
		sysid: binary.LittleEndian.Uint64(page[24:]),
		size:  wal.SegmentSize(binary.LittleEndian.Uint32(page[32:])),
	}
	switch {
	case strings.Trim(string(page[:longHeaderSize]), "\x00") == "":
		return header{}, errors.New("it begins with zeros where a page header should be")
	case binary.LittleEndian.Uint16(page[2:])&longHeaderFlag == 0 || !h.size.Valid():
		return header{}, errors.New("its first page does not have the header of a segment")
	}
	return h, nil
}

// agrees reports how a segment that begins with h cannot be the one that name
// says. Its timeline may be an older one: a new timeline's copy of the segment
// with the switch point begins with the old timeline's pages.
func (h header) agrees(name string) error {
	tli, lsn, err := h.size.ParseFileName(name)
	switch {
	case err != nil:
		return fmt.Errorf("its first page says that segments are %s, and then there is no such name", h.size)
	case h.lsn != lsn:
		return fmt.Errorf("its first page is that of %s", h.lsn)
	case h.tli == 0 || h.tli > tli:
		return fmt.Errorf("its first page is of timeline %s", h.tli)
	}
	return nil
}

// checkSegment answers a DamageError if a file of size bytes that begins with
// page is not the whole segment that its name says.
func checkSegment(name string, page []byte, size int64) error {
	h, err := parseHeader(page)
	if err == nil {
		err = h.agrees(name)
	}
	if err == nil && size != int64(h.size) {
		err = fmt.Errorf("it has %d bytes, not the %d of a segment", size, h.size)
	}
	if err != nil {
		return &DamageError{Name: name, Reason: err.Error()}
	}
	return nil
}
