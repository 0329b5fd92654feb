package summary

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"rideau/wal"
)

// A Name is what the name of a summary says: whose WAL it is of, from its first
// byte up to, and not including, its last.
type Name struct {
	TLI        wal.TLI
	Start, End wal.LSN
}

// ParseName reads the name of a file in pg_wal/summaries. It answers false for
// any name that the server does not take for a summary's (IsWalSummaryFilename):
// the temporary file that the summarizer writes, above all.
func ParseName(name string) (Name, bool) {
	digits, ok := strings.CutSuffix(name, ".summary")
	if !ok || len(digits) != 40 || strings.Trim(digits, "0123456789ABCDEF") != "" {
		return Name{}, false
	}
	var n Name
	_, err := fmt.Sscanf(digits, "%08X%016X%016X", &n.TLI, &n.Start, &n.End)
	return n, err == nil && n.TLI != 0 && n.Start < n.End
}

// String is the file's name.
func (n Name) String() string {
	return fmt.Sprintf("%08X%016X%016X.summary", uint32(n.TLI), uint64(n.Start), uint64(n.End))
}

// A GapError says that summaries do not cover what they must. They may do so
// later if LSN is at the end of the range: the summarizer lags behind the server.
type GapError struct {
	TLI      wal.TLI
	LSN      wal.LSN // the first byte of which no summary tells
	From, To wal.LSN // what was to be covered on TLI
}

func (e *GapError) Error() string {
	return fmt.Sprintf("WAL summaries of timeline %s from %s to %s are incomplete: none has %s", e.TLI, e.From, e.To, e.LSN)
}

// Cover chooses from names the summaries that tell all that happened from one
// LSN to another on the way that h describes: on every timeline of it, from
// where it began (or from) to where it was left (or to), without a gap. They are
// in the order in which it happened. The error is a [*GapError].
//
// A range that ends before it begins is a gap too: no summary can say what
// happened in it.
//
// As the server does (PrepareForIncrementalBackup), it takes every file that
// overlaps, and takes overlapping files for what they are: a file may begin
// before the range and end after it.
func Cover(names []Name, h *wal.History, from, to wal.LSN) ([]Name, error) {
	if from > to {
		return nil, &GapError{TLI: h.TLI, LSN: to, From: from, To: to}
	}
	sorted := slices.SortedFunc(slices.Values(names), func(a, b Name) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.End, b.End))
	})
	var use []Name
	begin := wal.InvalidLSN
	stretches := append(slices.Clone(h.Entries), wal.Entry{TLI: h.TLI, End: to})
	for _, s := range stretches {
		start, end := max(begin, from), min(s.End, to)
		begin = s.End
		if start >= end {
			continue // left before from, or begun after to, or nothing was written on it
		}
		have := start
		for _, n := range sorted {
			if n.TLI != s.TLI || n.End <= start || n.Start >= end {
				continue
			}
			if n.Start > have {
				break
			}
			have = max(have, n.End)
			use = append(use, n)
		}
		if have < end {
			return nil, &GapError{TLI: s.TLI, LSN: have, From: start, To: end}
		}
	}
	return use, nil
}
