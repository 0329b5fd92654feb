package wal

import (
	"errors"
	"fmt"
	"strings"
)

// An Entry of a [History] is one ancestor: TLI is followed up to End, where the
// next timeline of the path begins.
type Entry struct {
	TLI    TLI
	End    LSN // the first byte that is not on TLI
	Reason string
}

// A History is the path from the first timeline to TLI: its ancestors in
// order, each with the LSN where the path left it. The history of timeline 1
// has no entries.
type History struct {
	TLI TLI

	// Entries are the ancestors only. TLI increases, and is less than the
	// history's own. End never decreases; two are equal when the timeline
	// between them ended before anything was written on it.
	Entries []Entry
}

// ParseHistory reads the text of tli's history file as PostgreSQL does
// (readTimeLineHistory): a line an ancestor, its timeline, the LSN where it was
// left, and a reason that nobody reads; empty lines and comments (#) are
// skipped.
//
// PostgreSQL can leave a timeline at an earlier LSN than the one where it
// began: recovery that follows timeline 2 but stops at a target before 2's
// switch point names 2 as its parent all the same. Nothing of 2 is then in the
// path, and less of what came before; the history answered says so with
// entries that end at the later line's LSN. The file itself is to be passed on
// as it is.
//
// Refused, though PostgreSQL's scanf takes them: signs, 0x, numbers that do
// not fit, and LSN 0/0.
func ParseHistory(tli TLI, text string) (*History, error) {
	h := &History{TLI: tli}
	if tli == 0 {
		return nil, errors.New("invalid history: there is no timeline 0")
	}
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.Trim(line, cSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		entry, err := parseEntry(line)
		if err == nil && len(h.Entries) > 0 && entry.TLI <= h.Entries[len(h.Entries)-1].TLI {
			err = fmt.Errorf("timeline %s does not come after timeline %s", entry.TLI, h.Entries[len(h.Entries)-1].TLI)
		}
		if err == nil && entry.TLI >= tli {
			err = fmt.Errorf("timeline %s cannot be an ancestor of timeline %s", entry.TLI, tli)
		}
		if err != nil {
			return nil, fmt.Errorf("invalid history file %q: line %d: %w", tli.HistoryName(), number, err)
		}
		for i := len(h.Entries) - 1; i >= 0 && h.Entries[i].End > entry.End; i-- {
			h.Entries[i].End = entry.End
		}
		h.Entries = append(h.Entries, entry)
	}
	return h, nil
}

// cSpace is what isspace takes in the C locale.
const cSpace = " \t\n\v\f\r"

// parseEntry reads a line that has neither spaces around it nor is empty.
func parseEntry(line string) (Entry, error) {
	first, rest := cutSpace(line)
	var n uint64
	for _, c := range []byte(first) {
		if c < '0' || c > '9' || n > 1<<32 {
			return Entry{}, fmt.Errorf("want a timeline ID, got %q", first)
		}
		n = n*10 + uint64(c-'0')
	}
	if n == 0 || n >= 1<<32 {
		return Entry{}, fmt.Errorf("want a timeline ID, got %q", first)
	}
	where, reason := cutSpace(rest)
	lsn, err := ParseLSN(where)
	if err != nil {
		return Entry{}, err
	}
	if lsn == InvalidLSN {
		return Entry{}, fmt.Errorf("no timeline can be left at %s", lsn)
	}
	return Entry{TLI: TLI(n), End: lsn, Reason: reason}, nil
}

// cutSpace cuts s around its first run of white space.
func cutSpace(s string) (before, after string) {
	i := strings.IndexAny(s, cSpace)
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimLeft(s[i:], cSpace)
}

// Format is the text of h's history file as PostgreSQL writes it
// (writeTimeLineHistory): each promotion copies its parent's file, then appends
// an empty line and its own. It is empty for timeline 1, which has no file.
func (h *History) Format() string {
	var b strings.Builder
	for i, e := range h.Entries {
		if i > 0 {
			b.WriteByte('\n')
		}
		// A reason may hold a restore point's name, which can hold any bytes.
		reason := strings.ReplaceAll(e.Reason, "\n", " ")
		fmt.Fprintf(&b, "%s\t%s\t%s\n", e.TLI, e.End, reason)
	}
	return b.String()
}

// Contains reports whether everything received up to lsn on tli is in h's
// past, so that whoever received it may follow h.TLI without giving up
// anything. On h.TLI itself that is always so.
func (h *History) Contains(tli TLI, lsn LSN) bool {
	if tli == h.TLI {
		return true
	}
	end, _, ok := h.SwitchPoint(tli)
	return ok && lsn <= end
}

// SwitchPoint answers where the path leaves tli, and for which timeline. It
// answers false if tli is not an ancestor of h.TLI: not in the path, or h.TLI
// itself, which the path does not leave.
func (h *History) SwitchPoint(tli TLI) (end LSN, next TLI, ok bool) {
	for i, e := range h.Entries {
		if e.TLI == tli {
			return e.End, h.after(i), true
		}
	}
	return 0, 0, false
}

// TLIAt is the timeline that holds the byte at lsn. At a switch point that is
// the new one, though the page that holds it may have been copied from the old.
func (h *History) TLIAt(lsn LSN) TLI {
	for _, e := range h.Entries {
		if lsn < e.End {
			return e.TLI
		}
	}
	return h.TLI
}

// Ancestor is the history of a timeline in h's path, h.TLI included.
func (h *History) Ancestor(tli TLI) (*History, bool) {
	if tli == h.TLI {
		return h, true
	}
	for i, e := range h.Entries {
		if e.TLI == tli {
			// Full slice expression: whoever appends must not write into h.
			return &History{TLI: tli, Entries: h.Entries[:i:i]}, true
		}
	}
	return nil, false
}

// after is the timeline that follows entry i.
func (h *History) after(i int) TLI {
	if i+1 < len(h.Entries) {
		return h.Entries[i+1].TLI
	}
	return h.TLI
}
