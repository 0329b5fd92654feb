package summary_test

import (
	"errors"
	"fmt"
	"testing"

	"rideau/basebackup/summary"
	"rideau/wal"
)

func TestParseName(t *testing.T) {
	for _, tt := range []struct {
		name, why string
		ok        bool
	}{
		{"0000000100000000010000280000000001A00028.summary", "as the server writes it", true},
		{"0000000100000000010000280000000001a00028.summary", "lower case is not the server's", false},
		{"0000000100000000010000280000000001A00028.summary.tmp", "in the making", false},
		{"temp.summary", "what the summarizer writes to", false},
		{"000000010000000001000028000000001A00028.summary", "a digit is missing", false},
		{"0000000000000000010000280000000001A00028.summary", "there is no timeline 0", false},
		{"0000000100000000020000280000000001A00028.summary", "it ends before it begins", false},
		{"", "nothing", false},
	} {
		n, ok := summary.ParseName(tt.name)
		if ok != tt.ok || ok && n.String() != tt.name {
			t.Errorf("%s (%s): got %v, %v", tt.name, tt.why, n, ok)
		}
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("0000000100000000010000280000000001A00028.summary")
	f.Add("FFFFFFFFFFFFFFFFFFFFFFFE" + "FFFFFFFFFFFFFFFF.summary")
	f.Fuzz(func(t *testing.T, s string) {
		if n, ok := summary.ParseName(s); ok && n.String() != s {
			t.Errorf("%q is read as %q", s, n)
		}
	})
}

// Histories and summaries are written with small LSNs, for only their order
// matters.
func TestCover(t *testing.T) {
	one := &wal.History{TLI: 1}
	three := &wal.History{TLI: 3, Entries: []wal.Entry{{TLI: 1, End: 50}, {TLI: 2, End: 70}}}
	n := func(tli wal.TLI, start, end wal.LSN) summary.Name {
		return summary.Name{TLI: tli, Start: start, End: end}
	}
	for _, tt := range []struct {
		name     string
		h        *wal.History
		have     []summary.Name
		from, to wal.LSN
		want     string // what is used, or the gap
	}{
		{"exactly", one, []summary.Name{n(1, 10, 20), n(1, 20, 30)}, 10, 30, "1:10-20 1:20-30"},
		{"in any order", one, []summary.Name{n(1, 20, 30), n(1, 10, 20)}, 10, 30, "1:10-20 1:20-30"},
		{"the ends may stick out", one, []summary.Name{n(1, 1, 20), n(1, 20, 99)}, 10, 30, "1:1-20 1:20-99"},
		{"what only touches the range is not needed", one, []summary.Name{n(1, 1, 10), n(1, 10, 30), n(1, 30, 40)}, 10, 30, "1:10-30"},
		{"overlaps are taken", one, []summary.Name{n(1, 10, 25), n(1, 15, 30)}, 10, 30, "1:10-25 1:15-30"},
		{"one inside another does not take back what is covered", one, []summary.Name{n(1, 10, 30), n(1, 12, 14), n(1, 30, 40)}, 10, 40, "1:10-30 1:12-14 1:30-40"},
		{"nothing there", one, nil, 10, 30, "gap 1 at 10 of 10-30"},
		{"the first byte is missing", one, []summary.Name{n(1, 11, 30)}, 10, 30, "gap 1 at 10 of 10-30"},
		{"a hole", one, []summary.Name{n(1, 10, 20), n(1, 21, 30)}, 10, 30, "gap 1 at 20 of 10-30"},
		{"the summarizer lags", one, []summary.Name{n(1, 10, 29)}, 10, 30, "gap 1 at 29 of 10-30"},
		{"nothing has happened", one, nil, 10, 10, ""},
		{"backwards", one, []summary.Name{n(1, 1, 99)}, 30, 10, "gap 1 at 10 of 30-10"},
		{"along the history", three, []summary.Name{n(1, 1, 50), n(2, 50, 70), n(3, 70, 80)}, 40, 75, "1:1-50 2:50-70 3:70-80"},
		{"another timeline's file with the right LSNs", three, []summary.Name{n(1, 1, 80)}, 40, 75, "gap 2 at 50 of 50-70"},
		{"the old timeline went on after we left it", three, []summary.Name{n(1, 1, 60), n(1, 60, 90), n(2, 50, 70), n(3, 70, 80)}, 40, 75, "1:1-60 2:50-70 3:70-80"},
		{"the end of the old timeline is missing", three, []summary.Name{n(1, 1, 45), n(2, 50, 70), n(3, 70, 80)}, 40, 75, "gap 1 at 45 of 40-50"},
		{"a timeline between is missing", three, []summary.Name{n(1, 1, 50), n(3, 70, 80)}, 40, 75, "gap 2 at 50 of 50-70"},
		{"from a switch point on the old one is not needed", three, []summary.Name{n(2, 50, 70), n(3, 70, 80)}, 50, 75, "2:50-70 3:70-80"},
		{"up to a switch point the new one is not needed", three, []summary.Name{n(1, 1, 50)}, 40, 50, "1:1-50"},
		{"a timeline on which nothing was written",
			&wal.History{TLI: 3, Entries: []wal.Entry{{TLI: 1, End: 50}, {TLI: 2, End: 50}}},
			[]summary.Name{n(1, 1, 50), n(3, 50, 80)}, 40, 75, "1:1-50 3:50-80"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			use, err := summary.Cover(tt.have, tt.h, tt.from, tt.to)
			got := ""
			for i, n := range use {
				if i > 0 {
					got += " "
				}
				got += fmt.Sprintf("%d:%d-%d", n.TLI, n.Start, n.End)
			}
			if err != nil {
				var gap *summary.GapError
				if !errors.As(err, &gap) {
					t.Fatal(err)
				}
				got = fmt.Sprintf("gap %d at %d of %d-%d", gap.TLI, gap.LSN, gap.From, gap.To)
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
