package archive

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rideau/wal"
)

// Whatever is there and whoever reads, a plan of what to remove makes no hole,
// takes from nobody in silence, and removes no more than it must.
func TestPlanExpiryProperties(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	lsn := rapid.Custom(func(t *rapid.T) wal.LSN {
		return wal.LSN(rapid.Uint64Range(0x100000, 0x1000000).Draw(t, "lsn"))
	})
	rapid.Check(t, func(t *rapid.T) {
		seen := map[string]bool{}
		var segments []Segment
		for range rapid.IntRange(0, 20).Draw(t, "segments") {
			tli := wal.TLI(rapid.IntRange(1, 3).Draw(t, "tli"))
			name := testSize.FileName(tli, lsn.Draw(t, "segment"))
			if rapid.IntRange(0, 5).Draw(t, "partial") == 0 {
				name += partialSuffix
			}
			if seen[name] {
				continue
			}
			seen[name] = true
			age := time.Duration(rapid.IntRange(0, 10).Draw(t, "age")) * time.Hour
			s, err := parseSegment(Object{Name: name, Size: int64(testSize), Modified: now.Add(-age)}, testSize)
			if err != nil {
				t.Fatal(err)
			}
			segments = append(segments, s)
		}
		keep := Keep{
			Size: int64(rapid.IntRange(0, 10).Draw(t, "keep size")) << 20,
			Age:  time.Duration(rapid.IntRange(0, 10).Draw(t, "keep age")) * time.Hour,
		}
		current := wal.TLI(rapid.IntRange(1, 3).Draw(t, "current"))
		var readers []Reader
		for i := range rapid.IntRange(0, 3).Draw(t, "readers") {
			readers = append(readers, Reader{
				Name: fmt.Sprint(i), Kind: Slot, LSN: lsn.Draw(t, "reader"), TLI: wal.TLI(rapid.IntRange(0, 3).Draw(t, "reader's tli")),
			})
		}

		remove, lost := PlanExpiry(segments, current, keep, readers, now)

		var whole, left []Segment
		var names []string
		total := int64(0)
		for _, s := range segments {
			total += s.Size
			if !s.Partial {
				whole = append(whole, s)
			}
			if !s.Partial || s.TLI < current && slices.ContainsFunc(segments, func(o Segment) bool { return !o.Partial && o.TLI > s.TLI }) {
				names = append(names, s.Name)
			}
			if !slices.Contains(remove, s.Name) {
				left = append(left, s)
			}
		}
		slices.Sort(names) // by timeline, then LSN
		if len(remove) > 0 && (len(remove) >= len(names) || !slices.Equal(remove, names[:len(remove)])) {
			t.Fatalf("removed %q of %q: not the oldest, or all", remove, names)
		}
		if keep == (Keep{}) && len(remove) > 0 {
			t.Fatalf("removed %q though everything is kept", remove)
		}
		after := total - int64(len(remove))*int64(testSize)
		if keep.Size > 0 && after > keep.Size && len(remove) < len(names)-1 {
			t.Fatalf("%d bytes are left of a budget of %d", after, keep.Size)
		}
		// A reader lost something exactly if it could go on before and cannot now.
		for _, r := range readers {
			named := slices.ContainsFunc(lost, func(l Lost) bool { return l.Name == r.Name })
			if len(whole) == 0 {
				continue
			}
			couldGoOn, canGoOn := r.served(segments, int64(testSize)), r.served(left, int64(testSize))
			if couldGoOn && !canGoOn && !named {
				t.Fatalf("reader %+v cannot go on, and nobody is told", r)
			}
			if !couldGoOn && named {
				t.Fatalf("reader %+v is lost again", r)
			}
			if named && keep.Size == 0 {
				t.Fatalf("reader %+v lost WAL without a budget to force it", r)
			}
		}
		// What was done is done: the next plan of the same removes nothing more.
		if again, _ := PlanExpiry(left, current, keep, readers, now); len(lost) == 0 && len(again) > 0 {
			t.Fatalf("after %q was removed, %q is to be, too", remove, again)
		}
		// Removal can only shorten the beginning of the path to a timeline.
		for tli := wal.TLI(1); tli <= 3; tli++ {
			before := (&Inventory{SegmentSize: testSize, Segments: ordered(segments)}).Check(tli)
			now := (&Inventory{SegmentSize: testSize, Segments: ordered(left)}).Check(tli)
			if len(now.Missing) > len(before.Missing) {
				t.Fatalf("holes on timeline %d: before %v, after %v", tli, before.Missing, now.Missing)
			}
		}
	})
}

func ordered(segments []Segment) []Segment {
	return slices.SortedFunc(slices.Values(segments), func(a, b Segment) int {
		return slices.Compare([]byte(a.Name), []byte(b.Name))
	})
}

// BenchmarkMiss is a history file that is not there, asked of a directory with
// a year of WAL: restore_command is asked for many such.
func BenchmarkMiss(b *testing.B) {
	dir := b.TempDir()
	m := Dir(dir)
	for i := range 100_000 {
		name := wal.SegmentSize(16<<20).FileName(1, wal.LSN(i+1)<<24)
		path, _ := m.path(name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	a := New(m)
	for b.Loop() {
		if _, _, err := a.Open(b.Context(), "00000002.history"); err == nil {
			b.Fatal("it is there")
		}
	}
}

// BenchmarkVerify is a check that reads and verifies.
func BenchmarkVerify(b *testing.B) {
	one := &walMaker{tli: 1, start: 0x100000}
	one.fill(0x4000000)
	texts := map[string]string{}
	one.segments(texts)
	dir := Dir(b.TempDir())
	for name, text := range texts {
		path, _ := dir.path(name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	a := New(dir)
	inv, err := a.Inventory(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(one.b)))
	for b.Loop() {
		r := inv.Check(0)
		if err := a.Verify(b.Context(), r, nil); err != nil || !r.Whole() {
			b.Fatal(err, r.Corrupt)
		}
	}
}
