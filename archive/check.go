package archive

import (
	"cmp"
	"slices"

	"rideau/wal"
)

// A Report says what can be done with the WAL in an archive.
//
// It follows one path: a timeline's, back through the switch points of its
// history to the oldest WAL there is. That is what recovery does, with
// recovery_target_timeline = 'latest' for the newest timeline.
type Report struct {
	SegmentSize wal.SegmentSize

	// Path is the history of the timeline; nil in an empty archive. Where no
	// history file knows it the path is only that timeline itself, and
	// PathUnknown is set.
	Path        *wal.History
	PathUnknown bool

	// Ranges are the stretches of WAL on the path that are there without a
	// hole, in order.
	Ranges []Range

	// Missing are the holes between them. What was before the first range may
	// have been removed on purpose, and is not called missing.
	Missing []Gap

	// Partial is the segment in progress that continues the last range; nil if
	// there is none.
	Partial *Segment

	// Beside are stretches of WAL that are not on the path: what a timeline
	// wrote after the path had left it, and timelines the path never took.
	Beside []Range

	// NoHistory are the timelines above that of the oldest WAL, up to the
	// newest, of which there is no history file. On the path they do no harm,
	// for the newest file names all ancestors. But recovery to 'latest' asks
	// for history files one number after the other and takes the first that is
	// not there for the end: it then has to be told the number.
	NoHistory []wal.TLI

	Damaged []*DamageError

	// Corrupt is WAL that does not verify, and End the end of the last record
	// that does. Only [Archive.Verify] knows them.
	Corrupt []Corruption
	End     wal.LSN
}

// A Range is a stretch of WAL without a hole: From up to, and without, To.
type Range struct {
	From, To wal.LSN

	// Segments hold it, in order. On a path, a segment with a switch point is
	// the new timeline's copy; only where that is missing, and the range ends
	// at the switch point, is it the old timeline's.
	Segments []Segment
}

// A Gap is a stretch of WAL that is missing, and so are the segments from
// First to Last, Count of them.
type Gap struct {
	From, To    wal.LSN
	First, Last string
	Count       uint64
}

// Whole reports whether all WAL from the beginning of the first range to the
// end of the last can be replayed, as far as can be told without reading it.
func (r *Report) Whole() bool {
	return len(r.Ranges) == 1 && len(r.Missing) == 0 && len(r.Damaged) == 0 && len(r.Corrupt) == 0 && !r.PathUnknown
}

// Readable answers the ranges with the partial segment joined to the last.
func (r *Report) Readable() []Range {
	ranges := slices.Clone(r.Ranges)
	if r.Partial == nil {
		return ranges
	}
	s, next := *r.Partial, r.SegmentSize.Next(r.Partial.LSN)
	if len(ranges) == 0 {
		return []Range{{From: s.LSN, To: next, Segments: []Segment{s}}}
	}
	last := &ranges[len(ranges)-1]
	segments := slices.Clone(last.Segments)
	if last.To > s.LSN { // it is the new timeline's copy of the last segment
		segments = segments[:len(segments)-1]
	}
	last.Segments, last.To = append(segments, s), next
	return ranges
}

// Check finds out from where to where the archive is whole on the path to a
// timeline, and what is missing or does not belong. Timeline 0 is the newest.
func (inv *Inventory) Check(tli wal.TLI) *Report {
	r := &Report{SegmentSize: inv.SegmentSize, Damaged: slices.Clone(inv.Damaged)}
	newest := tli
	if newest == 0 {
		newest = inv.newestTLI()
	}
	if newest == 0 {
		return r
	}
	r.Path, r.PathUnknown = &wal.History{TLI: newest}, newest > 1
	for _, h := range inv.Histories {
		if path, ok := h.Ancestor(newest); ok { // its own file, or a descendant's
			r.Path, r.PathUnknown = path, false
		}
	}
	r.NoHistory = inv.noHistory(newest)

	path := timelinePath{r.Path, inv.SegmentSize}
	var on, beside []Segment
	for _, s := range inv.Segments {
		switch {
		case path.end(s) == s.LSN:
			beside = append(beside, s)
		case !s.Partial:
			on = append(on, s)
		}
	}
	r.Ranges, r.Missing = path.walk(on)
	for _, s := range inv.Segments {
		if s.Partial && path.continues(s, r.Ranges) {
			r.Partial = &s
		}
	}
	r.Beside = stretches(beside, inv.SegmentSize)
	return r
}

func (inv *Inventory) newestTLI() (newest wal.TLI) {
	for _, h := range inv.Histories {
		newest = max(newest, h.TLI)
	}
	for _, s := range inv.Segments {
		newest = max(newest, s.TLI)
	}
	return newest
}

// maxNoHistory bounds Report.NoHistory: a stray file's name can leave four
// billion timelines out.
const maxNoHistory = 100

func (inv *Inventory) noHistory(newest wal.TLI) (missing []wal.TLI) {
	oldest := newest
	for _, s := range inv.Segments {
		oldest = min(oldest, s.TLI)
	}
	next := max(oldest+1, 2)
	for _, h := range inv.Histories { // ordered
		if h.TLI > newest {
			break
		}
		for ; next < h.TLI && len(missing) < maxNoHistory; next++ {
			missing = append(missing, next)
		}
		next = max(next, h.TLI+1)
	}
	for ; next <= newest && next > 1 && len(missing) < maxNoHistory; next++ {
		missing = append(missing, next)
	}
	return missing
}

// A timelinePath is a history seen in segments.
type timelinePath struct {
	*wal.History
	size wal.SegmentSize
}

// owner is the timeline whose copy of the segment at lsn holds all of it that
// is on the path. It is the one on which the segment ends, for a new timeline's
// first segment begins with a copy of what was before the switch point.
func (p timelinePath) owner(lsn wal.LSN) wal.TLI {
	return p.TLIAt(p.size.Next(lsn) - 1)
}

// end is how far s is on the path: to the end of s if s.TLI owns it, to the
// switch point if the path leaves s.TLI within s, else no further than where s
// begins.
func (p timelinePath) end(s Segment) wal.LSN {
	next := p.size.Next(s.LSN)
	if p.owner(s.LSN) == s.TLI {
		return next
	}
	end, _, ok := p.SwitchPoint(s.TLI)
	if !ok || end <= s.LSN || end >= next {
		return s.LSN
	}
	return end
}

// walk joins segments of the path to ranges, and finds what is between them.
func (p timelinePath) walk(on []Segment) (ranges []Range, missing []Gap) {
	slices.SortFunc(on, func(x, y Segment) int { // of one place, the newest copy first: it goes furthest
		return cmp.Or(cmp.Compare(x.LSN, y.LSN), cmp.Compare(y.TLI, x.TLI))
	})
	for i, s := range on {
		if i > 0 && s.LSN == on[i-1].LSN {
			continue // the other copy has it all
		}
		if n := len(ranges); n > 0 && ranges[n-1].To == s.LSN {
			ranges[n-1].To = p.end(s)
			ranges[n-1].Segments = append(ranges[n-1].Segments, s)
			continue
		}
		if n := len(ranges); n > 0 {
			missing = append(missing, p.gap(ranges[n-1].To, s.LSN))
		}
		ranges = append(ranges, Range{From: s.LSN, To: p.end(s), Segments: []Segment{s}})
	}
	return ranges, missing
}

func (p timelinePath) gap(from, to wal.LSN) Gap {
	last := to - 1
	return Gap{
		From: from, To: to,
		First: p.size.FileName(p.owner(from), from),
		Last:  p.size.FileName(p.owner(last), last),
		Count: uint64(p.size.Next(last)-p.size.Start(from)) / uint64(p.size),
	}
}

// continues reports whether the partial segment s goes on where the last range
// ends. It may begin before: a new timeline's copy of a segment of which the
// old one's is complete.
func (p timelinePath) continues(s Segment, ranges []Range) bool {
	if s.TLI != p.owner(s.LSN) {
		return false
	}
	if len(ranges) == 0 {
		return true
	}
	return p.size.Start(ranges[len(ranges)-1].To) == s.LSN
}

// stretches joins segments, ordered by timeline and LSN, where one follows the
// other on the same timeline.
func stretches(segments []Segment, size wal.SegmentSize) (ranges []Range) {
	for _, s := range segments {
		if n := len(ranges); n > 0 && ranges[n-1].To >= s.LSN && ranges[n-1].From <= s.LSN && ranges[n-1].Segments[0].TLI == s.TLI {
			ranges[n-1].To = size.Next(s.LSN)
			ranges[n-1].Segments = append(ranges[n-1].Segments, s)
			continue
		}
		ranges = append(ranges, Range{From: s.LSN, To: size.Next(s.LSN), Segments: []Segment{s}})
	}
	return ranges
}
