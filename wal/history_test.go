package wal_test

import (
	"reflect"
	"strings"
	"testing"

	"rideau/wal"
)

// The history of the diagram in the package doc, as a server writes it.
const history4 = "1\t0/5000000\tno recovery target specified\n\n2\t0/7A00028\tbefore 2026-11-22 10:00:00+00\n"

func parseHistory(t testing.TB, tli wal.TLI, text string) *wal.History {
	t.Helper()
	h, err := wal.ParseHistory(tli, text)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestParseHistory(t *testing.T) {
	two := []wal.Entry{{1, 0x5000000, "no recovery target specified"}, {2, 0x7A00028, "before 2026-11-22 10:00:00+00"}}
	tests := []struct {
		name string
		tli  wal.TLI
		text string
		want []wal.Entry
	}{
		{"as servers write it", 4, history4, two},
		{"timeline 1 has no ancestors", 1, "", nil},
		{"a file may be empty: then nothing is known of the parents", 5, "\n", nil},
		{"comments and lines of spaces", 4, "# by hand\n" + history4 + "  \t\n   # 3\t0/8000000\n", two},
		{"spaces instead of tabs, and around", 4, "  1 0/5000000   no recovery target specified \r\n2  0/7A00028 before 2026-11-22 10:00:00+00", two},
		{"no reason", 4, "1\t0/5000000\n", []wal.Entry{{1, 0x5000000, ""}}},
		{"LSNs as 19 writes them", 4, "1\t0/05000000\tx\n", []wal.Entry{{1, 0x5000000, "x"}}},
		{"a timeline on which nothing was written before it was left", 3, "1\t0/5000000\tx\n2\t0/5000000\ty\n",
			[]wal.Entry{{1, 0x5000000, "x"}, {2, 0x5000000, "y"}}},
		{"recovery along 2 that stopped before 2 began: nothing of 2 is in the path, and less of 1", 3,
			"1\t0/5000000\tx\n2\t0/4000000\ty\n", []wal.Entry{{1, 0x4000000, "x"}, {2, 0x4000000, "y"}}},
		{"the last numbers there are", 0xFFFFFFFF, "4294967294\tFFFFFFFF/FFFFFFFF\tx\n",
			[]wal.Entry{{0xFFFFFFFE, 0xFFFFFFFFFFFFFFFF, "x"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := parseHistory(t, tt.tli, tt.text)
			if h.TLI != tt.tli || !reflect.DeepEqual(h.Entries, tt.want) {
				t.Errorf("got %v, want %v", h.Entries, tt.want)
			}
		})
	}
}

func TestParseHistoryRefuses(t *testing.T) {
	tests := []struct {
		name string
		text string
		want string
	}{
		{"no timeline", "\n\nfoo\t0/5000000\n", `line 3: want a timeline ID, got "foo"`},
		{"no LSN", "1\n", `line 1: invalid LSN "": no slash`},
		{"half an LSN", "1\t0\treason\n", `line 1: invalid LSN "0": no slash`},
		{"an LSN that is none", "1\t0/500000000\n", `line 1: invalid LSN "0/500000000": want 1 to 8 hexadecimal digits on each side of the slash`},
		{"the LSN that means no end", "1\t0/0\n", `line 1: no timeline can be left at 0/0`},
		{"timeline 0", "0\t0/5000000\n", `line 1: want a timeline ID, got "0"`},
		{"a timeline of more than 32 bits", "4294967297\t0/5000000\n", `line 1: want a timeline ID, got "4294967297"`},
		{"a timeline of far more", strings.Repeat("9", 100) + "\t0/5000000\n", `line 1: want a timeline ID, got "` + strings.Repeat("9", 100) + `"`},
		{"a timeline with a sign", "+1\t0/5000000\n", `line 1: want a timeline ID, got "+1"`},
		{"timelines that do not grow", "2\t0/5000000\n1\t0/6000000\n", `line 2: timeline 1 does not come after timeline 2`},
		{"a timeline twice", "2\t0/5000000\n2\t0/6000000\n", `line 2: timeline 2 does not come after timeline 2`},
		{"itself as its ancestor", "1\t0/5000000\n4\t0/6000000\n", `line 2: timeline 4 cannot be an ancestor of timeline 4`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := wal.ParseHistory(4, tt.text)
			want := `invalid history file "00000004.history": ` + tt.want
			if err == nil || err.Error() != want {
				t.Errorf("got error %v, want %s", err, want)
			}
		})
	}
	if _, err := wal.ParseHistory(0, ""); err == nil {
		t.Error("there is a history of timeline 0")
	}
}

// Format writes what a server would, byte for byte.
func TestHistoryFormat(t *testing.T) {
	if got := parseHistory(t, 4, history4).Format(); got != history4 {
		t.Errorf("got %q, want %q", got, history4)
	}
}

// A standby may follow a new primary only if everything it has received is in
// the primary's past. The numbers are those of the diagram in the package doc.
func TestHistoryContains(t *testing.T) {
	h := parseHistory(t, 4, history4)
	tests := []struct {
		name string
		tli  wal.TLI
		lsn  wal.LSN
		want bool
	}{
		{"behind the first switch", 1, 0x4FFFFFF, true},
		{"exactly at the switch", 1, 0x5000000, true},
		{"one byte past the switch: diverged", 1, 0x5000001, false},
		{"on an ancestor", 2, 0x7000000, true},
		{"at its switch", 2, 0x7A00028, true},
		{"past it", 2, 0x7A00030, false},
		{"on an ancestor, before it began: what was received is the older one's", 2, 0x4000000, true},
		{"on a timeline that was never finished", 3, 0x7000000, false},
		{"on the current timeline", 4, 0x9000000, true},
		{"on a timeline that is newer", 5, 0x9000000, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := h.Contains(tt.tli, tt.lsn); got != tt.want {
				t.Errorf("Contains(%d, %s) = %v, want %v", tt.tli, tt.lsn, got, tt.want)
			}
		})
	}
	t.Run("on a timeline that the path only touches", func(t *testing.T) {
		h := parseHistory(t, 3, "1\t0/5000000\tx\n2\t0/4000000\ty\n")
		if h.Contains(1, 0x4800000) || h.Contains(2, 0x4800000) || !h.Contains(1, 0x4000000) {
			t.Error("what came after the recovery target is not in the past")
		}
	})
}

func TestHistoryQuestions(t *testing.T) {
	h := parseHistory(t, 4, history4)
	for _, tt := range []struct {
		tli  wal.TLI
		end  wal.LSN
		next wal.TLI
		ok   bool
	}{
		{1, 0x5000000, 2, true},
		{2, 0x7A00028, 4, true}, // never 3
		{3, 0, 0, false},
		{4, 0, 0, false},
	} {
		if end, next, ok := h.SwitchPoint(tt.tli); end != tt.end || next != tt.next || ok != tt.ok {
			t.Errorf("SwitchPoint(%d) = %s, %d, %v; want %s, %d, %v", tt.tli, end, next, ok, tt.end, tt.next, tt.ok)
		}
	}
	for lsn, want := range map[wal.LSN]wal.TLI{1: 1, 0x4FFFFFF: 1, 0x5000000: 2, 0x7A00027: 2, 0x7A00028: 4, 1 << 40: 4} {
		if got := h.TLIAt(lsn); got != want {
			t.Errorf("TLIAt(%s) = %d, want %d", lsn, got, want)
		}
	}
	if got := parseHistory(t, 3, "1\t0/5000000\tx\n2\t0/5000000\ty\n").TLIAt(0x5000000); got != 3 {
		t.Errorf("a timeline that ended before it began holds a byte: TLIAt = %d", got)
	}

	two, ok := h.Ancestor(2)
	if !ok || two.TLI != 2 || two.Format() != "1\t0/5000000\tno recovery target specified\n" {
		t.Errorf("Ancestor(2) = %v, %v", two, ok)
	}
	if one, ok := h.Ancestor(1); !ok || one.TLI != 1 || len(one.Entries) != 0 {
		t.Errorf("Ancestor(1) = %v, %v", one, ok)
	}
	if same, ok := h.Ancestor(4); !ok || same != h {
		t.Errorf("Ancestor(4) = %v, %v", same, ok)
	}
	if none, ok := h.Ancestor(3); ok {
		t.Errorf("Ancestor(3) = %v", none)
	}
}

func FuzzParseHistory(f *testing.F) {
	f.Add(uint32(4), history4)
	f.Add(uint32(3), "1\t0/5000000\tx\n2\t0/4000000\ty\n")
	f.Add(uint32(2), "#\n\n 1 0/1 \t a\vb \n")
	f.Fuzz(func(t *testing.T, tli uint32, text string) {
		h, err := wal.ParseHistory(wal.TLI(tli), text)
		if err != nil {
			return
		}
		end, last := wal.LSN(1), wal.TLI(0)
		for _, e := range h.Entries {
			if e.TLI <= last || e.TLI >= h.TLI || e.End < end {
				t.Fatalf("entry %v after %d, %s in the history of %d", e, last, end, h.TLI)
			}
			end, last = e.End, e.TLI
			if got, _, ok := h.SwitchPoint(e.TLI); !ok || got != e.End {
				t.Fatalf("SwitchPoint(%d) = %s, %v", e.TLI, got, ok)
			}
			if at := h.TLIAt(e.End); at <= e.TLI {
				t.Fatalf("TLIAt(%s) = %d, which was left there", e.End, at)
			}
		}
		again, err := wal.ParseHistory(h.TLI, h.Format())
		if err != nil || !reflect.DeepEqual(again, h) {
			t.Fatalf("%q is %v, which is written %q, which is %v, %v", text, h, h.Format(), again, err)
		}
	})
}
