package archive

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"rideau/wal"
)

var update = flag.Bool("update", false, "write what is into testdata, to be read as a diff")

// scenes runs the scenes of a file in testdata: what there is, a line of
// dashes, and what comes of it. If one fails, run with -update and read the
// diff: it is a change in what we do to people's WAL.
func scenes(t *testing.T, file string, run func(t *testing.T, given string) string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(strings.TrimSpace(string(text)), "\n\n")
	for i, scene := range parts {
		given, want, _ := strings.Cut(scene, "\n----")
		want = strings.TrimPrefix(want, "\n")
		title, _, _ := strings.Cut(strings.TrimPrefix(given, "# "), "\n")
		t.Run(title, func(t *testing.T) {
			got := strings.TrimSpace(run(t, given))
			if got != want && !*update {
				t.Errorf("%s:\n%s\n---- got\n%s\n---- want\n%s", file, given, got, want)
			}
			parts[i] = given + "\n----\n" + got
		})
	}
	if *update {
		if err := os.WriteFile(file, []byte(strings.Join(parts, "\n\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// fields yields the words of each line of a scene that is not a comment.
func fields(given string) [][]string {
	var lines [][]string
	for line := range strings.Lines(given) {
		if f := strings.Fields(line); len(f) > 0 && f[0] != "#" {
			lines = append(lines, f)
		}
	}
	return lines
}

// TestPlanExpiry reads lines of
//
//	keep [SIZE in MB] [AGE]
//	NAME AGE            a segment, whole or partial, completed AGE ago
//	current TLI         the timeline that is being written, if not the newest
//	slot NAME LSN
//	standby NAME TLI LSN
func TestPlanExpiry(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	scenes(t, "testdata/expire.txt", func(t *testing.T, given string) string {
		var keep Keep
		var current, newest wal.TLI
		var segments []Segment
		var readers []Reader
		for _, f := range fields(given) {
			switch f[0] {
			case "current":
				fmt.Sscan(f[1], &current)
			case "keep":
				for _, word := range f[1:] {
					if n, isSize := strings.CutSuffix(word, "MB"); isSize {
						fmt.Sscan(n, &keep.Size)
						keep.Size <<= 20
						continue
					}
					keep.Age = mustAge(t, word)
				}
			case "slot":
				readers = append(readers, Reader{Name: f[1], Kind: Slot, LSN: mustLSN(t, f[2])})
			case "standby":
				r := Reader{Name: f[1], Kind: Standby, LSN: mustLSN(t, f[3])}
				fmt.Sscan(f[2], &r.TLI)
				readers = append(readers, r)
			default:
				s, err := parseSegment(Object{Name: f[0], Size: int64(testSize), Modified: now.Add(-mustAge(t, f[1]))}, testSize)
				if err != nil {
					t.Fatal(err)
				}
				segments = append(segments, s)
				newest = max(newest, s.TLI)
			}
		}
		if current == 0 {
			current = newest
		}
		remove, lost := PlanExpiry(segments, current, keep, readers, now)

		// Whatever the scene, the order of what is listed does not matter.
		slices.Reverse(segments)
		if again, _ := PlanExpiry(segments, current, keep, readers, now); !slices.Equal(again, remove) {
			t.Errorf("with segments in the opposite order the plan is %q", again)
		}

		var b strings.Builder
		for _, name := range remove {
			fmt.Fprintf(&b, "remove %s\n", name)
		}
		for _, l := range lost {
			fmt.Fprintf(&b, "%s %q loses WAL from %s to %s\n", l.Kind, l.Name, l.LSN, l.To)
		}
		if b.Len() == 0 {
			return "nothing"
		}
		return b.String()
	})
}

// TestCheck reads names of segments and history files, the latter with what is
// in them: pairs of a timeline and where it was left.
func TestCheck(t *testing.T) {
	scenes(t, "testdata/check.txt", func(t *testing.T, given string) string {
		var names []string
		texts := map[string]string{}
		for _, f := range fields(given) {
			switch kindOf(f[0]) {
			case history:
				var text strings.Builder
				for i := 1; i+1 < len(f); i += 2 {
					fmt.Fprintf(&text, "%s\t%s\tno recovery target specified\n", f[i], f[i+1])
				}
				texts[f[0]] = text.String()
			default:
				if len(f) == 2 && f[1] == "damaged" {
					texts[f[0]] = "x"
					continue
				}
				names = append(names, f[0])
			}
		}
		a, _ := archiveOf(t, strings.Join(names, " "), texts)
		inv, err := a.Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return describe(inv.Check(0))
	})
}

// describe says all that is in a report.
func describe(r *Report) string {
	var b strings.Builder
	stretch := func(what string, g Range) {
		fmt.Fprintf(&b, "%-8s %s to %s in", what, g.From, g.To)
		for _, s := range g.Segments {
			fmt.Fprintf(&b, " %d/%d", s.TLI, uint64(s.LSN)/uint64(testSize))
			if s.Partial {
				b.WriteString(".partial")
			}
		}
		b.WriteString("\n")
	}
	if r.Path != nil {
		fmt.Fprintf(&b, "path     ")
		for _, e := range r.Path.Entries {
			fmt.Fprintf(&b, "%s -(%s)-> ", e.TLI, e.End)
		}
		fmt.Fprintf(&b, "%s\n", r.Path.TLI)
	}
	if r.PathUnknown {
		fmt.Fprintf(&b, "unknown  where timeline %s comes from\n", r.Path.TLI)
	}
	for i, g := range r.Ranges {
		stretch("whole", g)
		if i < len(r.Missing) {
			m := r.Missing[i]
			fmt.Fprintf(&b, "missing  %s to %s: %d, %s to %s\n", m.From, m.To, m.Count, m.First, m.Last)
		}
	}
	if r.Partial != nil {
		fmt.Fprintf(&b, "partial  %s\n", r.Partial.Name)
	}
	for _, g := range r.Beside {
		stretch("beside", g)
	}
	for _, tli := range r.NoHistory {
		fmt.Fprintf(&b, "no file  %s\n", tli.HistoryName())
	}
	for _, d := range r.Damaged {
		fmt.Fprintf(&b, "damaged  %v\n", d)
	}
	fmt.Fprintf(&b, "verdict  %v\n", map[bool]string{true: "whole", false: "not whole"}[r.Whole()])
	return b.String()
}

func mustLSN(t *testing.T, s string) wal.LSN {
	t.Helper()
	lsn, err := wal.ParseLSN(s)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

func mustAge(t *testing.T, s string) time.Duration {
	t.Helper()
	age, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return age
}
