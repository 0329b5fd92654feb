package wal

import (
	"fmt"
	"strconv"
	"strings"
)

// A SegmentSize is the number of bytes in each WAL file of a cluster, fixed by
// initdb: a power of two from 1 MB to 1 GB. Ask the server (SHOW
// wal_segment_size) or read it from a segment's first page; never assume it.
type SegmentSize uint32

// The limits are WalSegMinSize and WalSegMaxSize of xlog_internal.h.
const (
	MinSegmentSize SegmentSize = 1 << 20
	MaxSegmentSize SegmentSize = 1 << 30
)

// Valid reports whether a server could have s.
func (s SegmentSize) Valid() bool {
	return MinSegmentSize <= s && s <= MaxSegmentSize && s&(s-1) == 0
}

// String formats s as SHOW wal_segment_size does: 16MB, 1GB.
func (s SegmentSize) String() string {
	if s%(1<<30) == 0 && s > 0 {
		return strconv.Itoa(int(s>>30)) + "GB"
	}
	return strconv.Itoa(int(s>>20)) + "MB"
}

// ParseSegmentSize reads what SHOW wal_segment_size answers.
func ParseSegmentSize(text string) (SegmentSize, error) {
	digits, unit := strings.TrimSuffix(text, "MB"), uint64(1<<20)
	if strings.HasSuffix(text, "GB") {
		digits, unit = strings.TrimSuffix(text, "GB"), 1<<30
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || digits == text || !SegmentSize(n*unit).Valid() {
		return 0, fmt.Errorf("invalid WAL segment size %q: want a power of two from 1MB to 1GB", text)
	}
	return SegmentSize(n * unit), nil
}

// Start is the first byte of the segment that holds lsn.
func (s SegmentSize) Start(lsn LSN) LSN { return lsn &^ (LSN(s) - 1) }

// Next is the first byte of the segment after the one that holds lsn.
func (s SegmentSize) Next(lsn LSN) LSN { return s.Start(lsn) + LSN(s) }

// Offset is how far lsn is into its segment.
func (s SegmentSize) Offset(lsn LSN) uint32 { return uint32(lsn & (LSN(s) - 1)) }

// FileName is the name of the segment on tli that holds lsn:
// 24 hexadecimal digits, timeline, high and low half (XLogFileName).
func (s SegmentSize) FileName(tli TLI, lsn LSN) string {
	segno := uint64(lsn) / uint64(s)
	perID := (uint64(1) << 32) / uint64(s)
	return fmt.Sprintf("%08X%08X%08X", uint32(tli), segno/perID, segno%perID)
}

// ParseFileName reads the name of a segment and answers its timeline and first
// byte. It refuses names that no server with this segment size writes, and so
// everything that is not a whole segment: history files, .partial files.
func (s SegmentSize) ParseFileName(name string) (TLI, LSN, error) {
	if len(name) != 24 || strings.ToUpper(name) != name {
		return 0, 0, fmt.Errorf("invalid WAL file name %q: want 24 hexadecimal digits in upper case", name)
	}
	var part [3]uint32
	for i := range part {
		n, err := parseHex32(name[i*8 : i*8+8])
		if err != nil {
			return 0, 0, fmt.Errorf("invalid WAL file name %q: %w", name, err)
		}
		part[i] = n
	}
	perID := (uint64(1) << 32) / uint64(s)
	if uint64(part[2]) >= perID {
		return 0, 0, fmt.Errorf("invalid WAL file name %q: cannot be a segment of %s", name, s)
	}
	if part[0] == 0 {
		return 0, 0, fmt.Errorf("invalid WAL file name %q: there is no timeline 0", name)
	}
	segno := uint64(part[1])*perID + uint64(part[2])
	return TLI(part[0]), LSN(segno * uint64(s)), nil
}
