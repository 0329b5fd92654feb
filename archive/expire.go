package archive

import (
	"cmp"
	"slices"
	"time"

	"rideau/wal"
)

// Keep says how much WAL to keep. The zero value keeps everything.
type Keep struct {
	// Size is a budget in bytes for all files of WAL, partial ones included.
	// Where it is exceeded the oldest segments go, whoever needs them: a full
	// disk would stop the WAL of everybody. Zero means no limit.
	Size int64

	// Age is how long after it was completed a segment is kept. Older ones go
	// once no reader needs them. Zero means for ever, within Size.
	Age time.Duration
}

// A Reader is someone who will ask for WAL.
type Reader struct {
	Name string
	Kind ReaderKind
	LSN  wal.LSN // the first byte that it still needs
	TLI  wal.TLI // the timeline it is on; 0 if that is not known, as for a slot
}

// A ReaderKind says what a [Reader] is, for the message.
type ReaderKind string

const (
	Slot    ReaderKind = "slot"
	Standby ReaderKind = "standby" // a connected one
)

// Lost says that a reader lost WAL that it needed: it cannot go on from here.
type Lost struct {
	Reader
	To wal.LSN // the first byte after what was removed, on the reader's way
}

// PlanExpiry answers which segments to remove, oldest first, and which readers
// lose what they need by it.
//
// Removed is always a beginning of the order in which WAL was written, timeline
// after timeline, so no removal makes a hole. The plan ends at the first segment
// that is to stay: within the budget and not too old, or too old but needed. It
// never reaches the newest whole segment, where the record may begin that ends
// in the one being written; nor that one; nor history files. A partial segment of
// a timeline after which another has written whole ones is not being written any
// more, and goes in its turn, unless it is of the timeline that is current: after
// damage to what came later, its parent is gone on with.
//
// A reader that needs WAL from before all that is there has lost already, holds
// back nothing, and is not lost again.
func PlanExpiry(segments []Segment, current wal.TLI, keep Keep, readers []Reader, now time.Time) (remove []string, lost []Lost) {
	var total, size int64 // size is a whole segment's
	var newest wal.TLI    // that has one
	for _, s := range segments {
		total += s.Size
		if !s.Partial {
			size, newest = s.Size, max(newest, s.TLI)
		}
	}
	ended := slices.DeleteFunc(slices.Clone(segments), func(s Segment) bool { return s.Partial && s.TLI >= min(newest, current) })
	slices.SortFunc(ended, func(x, y Segment) int {
		return cmp.Or(cmp.Compare(x.TLI, y.TLI), cmp.Compare(x.LSN, y.LSN), cmp.Compare(x.Name, y.Name))
	})
	readers = slices.DeleteFunc(slices.Clone(readers), func(r Reader) bool { return !r.served(segments, size) })

	at := make(map[int]int) // reader to its entry in lost
	for i, s := range ended {
		over := keep.Size > 0 && total > keep.Size
		old := keep.Age > 0 && now.Sub(s.Modified) > keep.Age
		if i == len(ended)-1 || !over && !old {
			break
		}
		needed := false
		for _, r := range readers {
			needed = needed || r.needs(s)
		}
		if needed && !over {
			break
		}
		remove = append(remove, s.Name)
		total -= s.Size
		for j, r := range readers {
			if !r.needs(s) {
				continue
			}
			if k, ok := at[j]; ok {
				lost[k].To = max(lost[k].To, s.end())
				continue
			}
			at[j] = len(lost)
			lost = append(lost, Lost{Reader: r, To: s.end()})
		}
	}
	return remove, lost
}

// end is the first byte after a whole segment.
func (s Segment) end() wal.LSN { return s.LSN + wal.LSN(s.Size) }

// needs reports whether r will ask for s. It may answer true for a segment
// beside r's way, of which nothing is known here; then s stays a little longer.
func (r Reader) needs(s Segment) bool {
	return s.TLI >= r.TLI && s.end() > r.LSN
}

// served reports whether the WAL that r needs next is there, in a segment of
// size bytes, whole or partial, or not yet written. It may be in the copy of a
// later timeline, which has all of the segment from before its switch point.
func (r Reader) served(segments []Segment, size int64) bool {
	ahead := true
	for _, s := range segments {
		if s.TLI < r.TLI || s.LSN > r.LSN {
			ahead = ahead && s.TLI < r.TLI
			continue
		}
		if r.LSN < s.LSN+wal.LSN(size) {
			return true
		}
	}
	return ahead
}
