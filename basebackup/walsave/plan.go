package walsave

import (
	"fmt"

	"rideau/wal"
)

// A Position is where a backup starts or stops: an LSN, and whose.
type Position struct {
	TLI wal.TLI
	LSN wal.LSN
}

func (p Position) String() string { return fmt.Sprintf("%s on timeline %s", p.LSN, p.TLI) }

// A Range is a stretch of one timeline's WAL: Start up to, and without, End.
type Range struct {
	TLI        wal.TLI
	Start, End wal.LSN
}

// A Segment is a file of WAL that a backup needs.
type Segment struct {
	TLI wal.TLI // whose file
	LSN wal.LSN // its first byte

	// Need is the first byte that is not needed: the end of the segment, or the
	// stop. Last says that it is the latter.
	Need wal.LSN
	Last bool

	// Older are ancestors of TLI whose WAL ends in this segment, newest first.
	// Their files are made from this one.
	Older []wal.Entry
}

// Plan answers which segments a backup needs, oldest first, and which ranges of
// WAL are in them, newest first and none of them empty. The path is the history
// of the stop's timeline. The error says how start and stop contradict it.
func Plan(path *wal.History, size wal.SegmentSize, start, stop Position) ([]Segment, []Range, error) {
	switch {
	case path.TLI != stop.TLI:
		return nil, nil, fmt.Errorf("the history is of timeline %s, and the backup stopped at %s", path.TLI, stop)
	case stop.LSN <= start.LSN:
		return nil, nil, fmt.Errorf("the backup stopped at %s, before it started at %s", stop, start)
	}
	if _, ok := path.Ancestor(start.TLI); !ok || !path.Contains(start.TLI, start.LSN) {
		return nil, nil, fmt.Errorf("the backup started at %s, which is not in the history of timeline %s where it stopped", start, stop.TLI)
	}
	var segments []Segment
	for lsn := size.Start(start.LSN); lsn < stop.LSN; lsn = size.Next(lsn) {
		segments = append(segments, segment(path, size, start.LSN, lsn, stop.LSN))
	}
	return segments, ranges(path, start, stop.LSN), nil
}

// segment answers what is needed of the segment at lsn, if the backup stops at
// stop; if that is not yet known, zero.
func segment(path *wal.History, size wal.SegmentSize, start, lsn, stop wal.LSN) Segment {
	s := Segment{LSN: lsn, Need: size.Next(lsn)}
	if stop != 0 && stop <= s.Need {
		s.Need, s.Last = stop, true
	}
	s.TLI = path.TLIAt(s.Need - 1)
	for i := len(path.Entries) - 1; i >= 0; i-- {
		e := path.Entries[i]
		if e.TLI >= s.TLI || e.End <= max(lsn, start) {
			continue
		}
		// One of which nothing is in the path ends where its parent does.
		if i > 0 && path.Entries[i-1].End == e.End {
			continue
		}
		s.Older = append(s.Older, e)
	}
	return s
}

// ranges answers what of each timeline is between start and stop, newest first.
func ranges(path *wal.History, start Position, stop wal.LSN) []Range {
	var list []Range
	tli, end := path.TLI, stop
	for i := len(path.Entries) - 1; i >= 0 && path.Entries[i].End > start.LSN; i-- {
		e := path.Entries[i]
		if e.End < end {
			list = append(list, Range{TLI: tli, Start: e.End, End: end})
			end = e.End
		}
		tli = e.TLI
	}
	return append(list, Range{TLI: tli, Start: start.LSN, End: end})
}
