package walsave

import (
	"reflect"
	"strings"
	"testing"

	"rideau/wal"
)

const mb = wal.SegmentSize(1 << 20)

// history makes one of entries "TLI, end" pairs.
func history(tli wal.TLI, pairs ...uint64) *wal.History {
	h := &wal.History{TLI: tli}
	for i := 0; i < len(pairs); i += 2 {
		h.Entries = append(h.Entries, wal.Entry{TLI: wal.TLI(pairs[i]), End: wal.LSN(pairs[i+1])})
	}
	return h
}

func TestPlan(t *testing.T) {
	for _, test := range []struct {
		why         string
		path        *wal.History
		start, stop Position
		segments    string // names, those of older timelines after a plus
		need        wal.LSN
		ranges      []Range
	}{
		{"one segment", history(1), Position{1, 0x300028}, Position{1, 0x3F0000},
			"3", 0x3F0000, []Range{{1, 0x300028, 0x3F0000}}},
		{"stop where a segment ends: the next is not needed", history(1), Position{1, 0x300028}, Position{1, 0x500000},
			"3 4", 0x500000, []Range{{1, 0x300028, 0x500000}}},
		{"stop behind the next one's page header: it is", history(1), Position{1, 0x300028}, Position{1, 0x500028},
			"3 4 5", 0x500028, []Range{{1, 0x300028, 0x500028}}},
		{"start on timeline 2, which is older than the start", history(2, 1, 0x280000), Position{2, 0x300028}, Position{2, 0x3F0000},
			"2/3", 0x3F0000, []Range{{2, 0x300028, 0x3F0000}}},
		{"timeline 1 ended in the start's segment, before the start", history(2, 1, 0x310000), Position{2, 0x320000}, Position{2, 0x3F0000},
			"2/3", 0x3F0000, []Range{{2, 0x320000, 0x3F0000}}},
		{"a switch inside a segment", history(2, 1, 0x480000), Position{1, 0x300028}, Position{2, 0x500010},
			"3 2/4+1 2/5", 0x500010, []Range{{2, 0x480000, 0x500010}, {1, 0x300028, 0x480000}}},
		{"a switch where a segment ends", history(2, 1, 0x400000), Position{1, 0x300028}, Position{2, 0x480000},
			"3 2/4", 0x480000, []Range{{2, 0x400000, 0x480000}, {1, 0x300028, 0x400000}}},
		{"two switches in one segment", history(3, 1, 0x380000, 2, 0x390000), Position{1, 0x300028}, Position{3, 0x3A0000},
			"3/3+2+1", 0x3A0000, []Range{{3, 0x390000, 0x3A0000}, {2, 0x380000, 0x390000}, {1, 0x300028, 0x380000}}},
		{"a timeline on which nothing was written", history(3, 1, 0x380000, 2, 0x380000), Position{1, 0x300028}, Position{3, 0x3A0000},
			"3/3+1", 0x3A0000, []Range{{3, 0x380000, 0x3A0000}, {1, 0x300028, 0x380000}}},
		{"stop at the switch point: nothing of timeline 2 yet", history(2, 1, 0x380000), Position{1, 0x300028}, Position{2, 0x380000},
			"3", 0x380000, []Range{{1, 0x300028, 0x380000}}},
	} {
		segments, ranges, err := Plan(test.path, mb, test.start, test.stop)
		if err != nil {
			t.Errorf("%s: %v", test.why, err)
			continue
		}
		var names []string
		for _, s := range segments {
			name := (s.LSN / 0x100000).String()[2:]
			if s.TLI != 1 {
				name = s.TLI.String() + "/" + name
			}
			for _, e := range s.Older {
				name += "+" + e.TLI.String()
			}
			names = append(names, name)
		}
		last := segments[len(segments)-1]
		if got := strings.Join(names, " "); got != test.segments || last.Need != test.need || !last.Last || !reflect.DeepEqual(ranges, test.ranges) {
			t.Errorf("%s:\ngot  %s up to %s, %v\nwant %s up to %s, %v", test.why, got, last.Need, ranges, test.segments, test.need, test.ranges)
		}
		for _, s := range segments[:len(segments)-1] {
			if s.Last || s.Need != mb.Next(s.LSN) {
				t.Errorf("%s: %s is needed up to %s", test.why, mb.FileName(s.TLI, s.LSN), s.Need)
			}
		}
	}
	for _, test := range []struct {
		why         string
		path        *wal.History
		start, stop Position
	}{
		{"stop before start", history(1), Position{1, 0x300028}, Position{1, 0x300028}},
		{"another timeline's history", history(2, 1, 0x400000), Position{1, 0x300028}, Position{1, 0x380000}},
		{"start after the path has left its timeline", history(2, 1, 0x200000), Position{1, 0x300028}, Position{2, 0x380000}},
		{"start on a timeline that is not in the path", history(3, 1, 0x200000), Position{2, 0x300028}, Position{3, 0x380000}},
	} {
		if _, _, err := Plan(test.path, mb, test.start, test.stop); err == nil {
			t.Errorf("%s: no error", test.why)
		}
	}
}

func TestIsWAL(t *testing.T) {
	for name, want := range map[string]bool{
		"000000010000000000000003":                 true,
		"000000010000000000000003.partial":         true,
		"00000002.history":                         true,
		"000000010000000000000003.00000028.backup": true,
		"000000010000000000000003.done":            true,
		"00000002.history.ready":                   true,
		".000000010000000000000003.123.tmp":        true,
		"archive_status":                           false,
		"summaries":                                false,
		"notes.backup":                             false,
		"000000010000000000000003.bak":             false,
		".notes.123.tmp":                           false,
		"PG_VERSION":                               false,
	} {
		if got := isWAL(name); got != want {
			t.Errorf("isWAL(%q) = %t", name, got)
		}
	}
}
