package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// ErrEndOfWAL means that there is no complete record yet. It is not a fault:
// the caller may append to the source and try again.
var ErrEndOfWAL = errors.New("end of WAL")

// A CorruptError reports WAL that no server writes: a page or a record that
// does not verify, or that does not follow from what came before.
type CorruptError struct {
	LSN    LSN // where the page or the record that is wrong begins
	Reason string

	// zero: nothing but zeros where a page or a record must begin. In a file
	// that was made before it was filled, this is where filling has got to.
	zero bool
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("invalid WAL at %s: %s", e.LSN, e.Reason)
}

// What follows is the layout of WAL on little-endian machines with 8-byte
// alignment, which is x86-64 and arm64: all that Rideau supports. The rules are
// those of xlogreader.c; names and numbers are those of xlog_internal.h and
// xlogrecord.h.
const (
	pageSize    = 8192 // XLOG_BLCKSZ; checked against each long header
	shortHeader = 24   // SizeOfXLogShortPHD
	longHeader  = 40   // SizeOfXLogLongPHD

	xlpFirstIsContrecord = 0x0001
	xlpLongHeader        = 0x0002

	recordHeader = 24 // SizeOfXLogRecord
	crcOffset    = 20 // offsetof(XLogRecord, xl_crc)

	// maxRecord is MaxAllocSize: a record that a server could not hold in
	// memory, it could not replay. (From 16 on the server itself stops at
	// XLogRecordMaxSize, 1020 MB.)
	maxRecord = 1<<30 - 1

	rmgrMinCustom = 128 // RM_MIN_CUSTOM_ID, since 15

	rmgrInfoMask            = 0xF0 // XLR_RMGR_INFO_MASK
	xlogSwitch              = 0x40
	xlogOverwriteContrecord = 0xD0
)

// overwriteHead is how much of an XLOG_OVERWRITE_CONTRECORD record's data is
// needed to know the record it names: one byte each for XLR_BLOCK_ID_DATA_SHORT
// and its length, then overwritten_lsn.
const overwriteHead = 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A version is what differs between major versions below the contents of
// records.
type version struct {
	major     int
	flags     uint16 // XLP_ALL_FLAGS
	overwrite uint16 // XLP_FIRST_IS_OVERWRITE_CONTRECORD
	lastRmgr  RMgr   // the last of those built in
	custom    bool   // extensions may have their own
}

// versionOf knows a major version by its page magic.
func versionOf(magic uint16) (version, bool) {
	v := version{flags: 0x000F, overwrite: 0x0008, lastRmgr: RMgrLogicalMessage, custom: true}
	switch magic {
	case 0xD106:
		v.major, v.custom = 13, false
	case 0xD10D:
		v.major, v.custom = 14, false
	case 0xD110:
		v.major = 15
	case 0xD113:
		v.major = 16
	case 0xD116:
		v.major = 17
	case 0xD118:
		v.major = 18
	case 0xD120, 0xD121: // the former only in betas
		// XLP_BKP_REMOVABLE is gone, and its bit reused.
		v.major, v.flags, v.overwrite, v.lastRmgr = 19, 0x0007, 0x0004, RMgrXLOG2
	default:
		return version{}, false
	}
	return v, true
}

// A stream is what is known of a stretch of WAL: what every page and every
// record of it must agree with. Checker and Reader differ in how they come by
// the bytes; what may be in them is decided here.
type stream struct {
	size     SegmentSize
	systemID uint64 // 0: that of the first long header
	tli      TLI    // 0: any

	magic   uint16 // of the pages so far, 0: none seen
	version version
	pageTLI TLI // of the last page
	prev    LSN // start of the last record, 0: unknown
}

// headerSize tells how long a page's header is, from its first 4 bytes.
func headerSize(h []byte) int {
	if binary.LittleEndian.Uint16(h[2:])&xlpLongHeader != 0 {
		return longHeader
	}
	return shortHeader
}

// page verifies the header of the page at lsn, all headerSize bytes of it. It
// answers what is wrong, "" if nothing; only then does it learn from the page.
func (s *stream) page(lsn LSN, h []byte) string {
	magic := binary.LittleEndian.Uint16(h)
	info := binary.LittleEndian.Uint16(h[2:])
	tli := TLI(binary.LittleEndian.Uint32(h[4:]))
	addr := LSN(binary.LittleEndian.Uint64(h[8:]))
	v := s.version
	if magic != s.magic {
		var ok bool
		if v, ok = versionOf(magic); !ok {
			return fmt.Sprintf("page has magic number %04X, which is of no supported version", magic)
		}
		if s.magic != 0 {
			return fmt.Sprintf("page has magic number %04X, after %04X", magic, s.magic)
		}
	}
	if info&^v.flags != 0 {
		return fmt.Sprintf("page has info bits %04X", info)
	}
	if addr != lsn {
		return fmt.Sprintf("page has address %s", addr)
	}
	switch {
	case tli == 0:
		return "page has timeline 0"
	case tli < s.pageTLI:
		return fmt.Sprintf("page has timeline %s, after %s", tli, s.pageTLI)
	case s.tli != 0 && tli > s.tli:
		return fmt.Sprintf("page has timeline %s, in WAL of timeline %s", tli, s.tli)
	}
	if info&xlpLongHeader != 0 {
		id := binary.LittleEndian.Uint64(h[24:])
		segment := SegmentSize(binary.LittleEndian.Uint32(h[32:]))
		block := binary.LittleEndian.Uint32(h[36:])
		switch {
		case s.systemID != 0 && id != s.systemID:
			return fmt.Sprintf("page is of the system with identifier %d, not of %d", id, s.systemID)
		case segment != s.size:
			return fmt.Sprintf("page is of a segment of %d bytes, not of %d", uint32(segment), uint32(s.size))
		case block != pageSize:
			return fmt.Sprintf("page is of a server with wal_block_size %d, only %d is supported", block, pageSize)
		}
		s.systemID = id
	} else if s.size.Offset(lsn) == 0 {
		return "first page of a segment has no long header"
	}
	s.magic, s.version, s.pageTLI = magic, v, tli
	return ""
}

// A pageInfo is what a page's header says of the record before.
type pageInfo struct {
	size       int    // of the header
	continues  bool   // the page begins with more of it
	left       uint32 // how much of it there was left when the page began
	overwrites bool   // the rest of it will never come: something else is here
}

// pageInfo reads a header that [stream.page] has verified.
func (s *stream) pageInfo(h []byte) pageInfo {
	info := binary.LittleEndian.Uint16(h[2:])
	return pageInfo{
		size:       len(h),
		continues:  info&xlpFirstIsContrecord != 0,
		left:       binary.LittleEndian.Uint32(h[16:]),
		overwrites: info&s.version.overwrite != 0,
	}
}

// mustContinue says what is wrong with the page that follows one on which left
// bytes of the record at lsn were missing, "" if nothing. The lsn is 0 if the
// record began before the start.
func (p pageInfo) mustContinue(lsn LSN, left uint32) string {
	if p.continues && p.left == left {
		return ""
	}
	which := "the record before"
	if lsn != 0 {
		which = "the record at " + lsn.String()
	}
	if !p.continues {
		return "page does not continue " + which
	}
	return fmt.Sprintf("page has %d bytes left of %s, not %d", p.left, which, left)
}

// record verifies the header of the record at lsn, all 24 bytes of it. It
// answers what is wrong, "" if nothing. The CRC is not looked at.
func (s *stream) record(lsn LSN, h []byte) string {
	_ = h[recordHeader-1]
	if n := binary.LittleEndian.Uint32(h); n < recordHeader || n > maxRecord {
		return badLength(n)
	}
	prev := LSN(binary.LittleEndian.Uint64(h[8:]))
	if prev != s.prev && (s.prev != 0 || prev >= lsn) {
		if s.prev != 0 {
			return fmt.Sprintf("record has prev-link %s, not %s", prev, s.prev)
		}
		return fmt.Sprintf("record has prev-link %s", prev)
	}
	if rm := RMgr(h[17]); rm > s.version.lastRmgr && !s.validRmgr(rm) {
		return fmt.Sprintf("record has resource manager ID %d", rm)
	}
	if h[18]|h[19] != 0 {
		return "record has padding that is not zero"
	}
	return ""
}

func (s *stream) validRmgr(rm RMgr) bool {
	if s.magic == 0 { // resumed inside a page: any that some version has
		return rm <= RMgrXLOG2 || rm >= rmgrMinCustom
	}
	return s.version.custom && rm >= rmgrMinCustom
}

// badLength says what is wrong with xl_tot_len n, "" if nothing.
func badLength(n uint32) string {
	if n < recordHeader {
		return fmt.Sprintf("record has length %d, at least %d is needed for its header", n, recordHeader)
	}
	if n > maxRecord {
		return fmt.Sprintf("record has length %d, more than any server can read", n)
	}
	return ""
}

// crcOK reports whether header holds the CRC of the record: of its data, whose
// CRC is given, then of the header up to the CRC itself.
func crcOK(data uint32, header []byte) bool {
	return crc32.Update(data, castagnoli, header[:crcOffset]) == binary.LittleEndian.Uint32(header[crcOffset:])
}

// recordMayBegin reports whether a record can begin at lsn, or on the page that
// begins there.
func recordMayBegin(lsn LSN) bool {
	return lsn%8 == 0 && (lsn%pageSize == 0 || lsn%pageSize >= shortHeader)
}

func noRecord(lsn LSN, size SegmentSize) *CorruptError {
	return &CorruptError{LSN: lsn, Reason: fmt.Sprintf("no record can begin there, in segments of %d bytes", uint32(size))}
}

const badCRC = "record has an incorrect checksum"

// isSwitch: the rest of the segment after such a record is padding.
func isSwitch(header []byte) bool {
	return RMgr(header[17]) == RMgrXLOG && header[16]&rmgrInfoMask == xlogSwitch
}

// overwrites says what is wrong with a record that must be
// XLOG_OVERWRITE_CONTRECORD and name lost, "" if nothing. head is the beginning
// of its data; lost is 0 when the record that was lost is not known.
func overwrites(header, head []byte, lost LSN) string {
	if RMgr(header[17]) != RMgrXLOG || header[16]&rmgrInfoMask != xlogOverwriteContrecord ||
		len(head) < overwriteHead || head[0] != blockIDDataShort {
		return "page overwrites an incomplete record, but does not begin with XLOG_OVERWRITE_CONTRECORD"
	}
	if named := LSN(binary.LittleEndian.Uint64(head[2:])); lost != 0 && named != lost {
		return fmt.Sprintf("record overwrites the incomplete record at %s, not the one at %s", named, lost)
	}
	return ""
}

// align is MAXALIGN.
func align[T ~uint32 | ~uint64 | ~int](n T) T { return (n + 7) &^ 7 }
