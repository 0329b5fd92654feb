package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"rideau/archive"
	"rideau/wal"
)

const walCheckHelp = `Usage: rideau wal check DIR [options]

Says from where to where the archive in DIR is whole, and what is missing.

It follows the newest timeline back through the switch points of its history,
as recovery does with recovery_target_timeline = 'latest'. What was before the
oldest segment may have been removed on purpose and is not called missing. WAL
that other timelines wrote is named and does no harm. Nothing is changed.

Options:
    --deep           Read the WAL too: every page, every record with its CRC.
                     Also finds where WAL ends in the segment in progress.
    --timeline N     Follow timeline N instead of the newest.
    --json           Print the report as JSON.

Exit status: 0 if all is whole, 1 if something is missing or damaged, or if
there is no WAL at all.

Example:
    $ rideau wal check --deep /var/lib/rideau
`

func newWalCheckCommand() *cobra.Command {
	var deep, asJSON bool
	var timeline string
	cmd := newCommand("check DIR [options]", walCheckHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"DIR", "directory of an archive"}); err != nil {
			return err
		}
		tli, err := parseTimeline(cmd, timeline)
		if err != nil {
			return err
		}
		a := archive.New(archive.Dir(args[0]))
		inv, err := a.Inventory(cmd.Context())
		if err != nil {
			return fmt.Errorf("could not read the archive: %w", err)
		}
		report := inv.Check(tli)
		if deep {
			if err := a.Verify(cmd.Context(), report, nil); err != nil {
				return fmt.Errorf("could not verify WAL: %w", err)
			}
		}
		out := cmd.OutOrStdout()
		if asJSON {
			err = writeReportJSON(out, report)
		} else {
			_, err = io.WriteString(out, describeReport(report))
		}
		if err == nil && !report.Whole() {
			err = withStatus(statusFailed, nil) // the report has said it
		}
		return err
	})
	cmd.Flags().BoolVar(&deep, "deep", false, "")
	cmd.Flags().BoolVar(&asJSON, "json", false, "")
	cmd.Flags().StringVar(&timeline, "timeline", "", "")
	return cmd
}

// parseTimeline reads --timeline; 0 if it was not given.
func parseTimeline(cmd *cobra.Command, text string) (wal.TLI, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 {
		return 0, usageErrorf(cmd, "invalid --timeline %q: want a number from 1", text)
	}
	return wal.TLI(n), nil
}

// describeReport says what is in a report, the verdict last.
func describeReport(r *archive.Report) string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s"+format+"\n", append([]any{label}, args...)...)
	}
	if r.Path == nil {
		for _, d := range r.Damaged {
			line("damaged", "%s: %s", d.Name, d.Reason)
		}
		b.WriteString("There is no WAL.\n")
		return b.String()
	}
	if r.SegmentSize != 0 {
		line("segments", "of %s", r.SegmentSize)
	}
	path := ""
	for _, e := range r.Path.Entries {
		path += fmt.Sprintf("%s up to %s, then ", e.TLI, e.End)
	}
	line("timeline", "%s%s", path, r.Path.TLI)
	for i, g := range r.Ranges {
		line("whole", "%s to %s, %s%s", g.From, g.To, count(uint64(len(g.Segments)), "segment"), timelinesOf(g, r.Path.TLI))
		if i >= len(r.Missing) {
			continue
		}
		switch m := r.Missing[i]; m.Count {
		case 1:
			line("missing", "%s to %s: %s", m.From, m.To, m.First)
		default:
			line("missing", "%s to %s: %s to %s, %s", m.From, m.To, m.First, m.Last, count(m.Count, "segment"))
		}
	}
	if r.Partial != nil {
		line("partial", "%s", r.Partial.Name)
	}
	for _, d := range r.Damaged {
		line("damaged", "%s: %s", d.Name, d.Reason)
	}
	for _, c := range r.Corrupt {
		line("corrupt", "%s at %s: %s", c.Segment, c.Err.LSN, c.Err.Reason)
	}
	for _, g := range r.Beside {
		line("beside", "%s to %s, %s%s", g.From, g.To, count(uint64(len(g.Segments)), "segment"), timelinesOf(g, 0))
	}
	if len(r.NoHistory) > 0 && !r.PathUnknown {
		line("note", "There is no %s: recovery to the latest timeline that begins below", r.NoHistory[0].HistoryName())
		line("", "timeline %s stops looking there. Set recovery_target_timeline = %s.", r.NoHistory[0], r.Path.TLI)
	}
	b.WriteString(verdict(r) + "\n")
	return b.String()
}

// timelinesOf names the timelines of g's segments, unless all are of usual.
func timelinesOf(g archive.Range, usual wal.TLI) string {
	var names []string
	last := wal.TLI(0)
	for _, s := range g.Segments {
		if s.TLI != last {
			names = append(names, s.TLI.String())
			last = s.TLI
		}
	}
	switch {
	case len(names) == 1 && last == usual:
		return ""
	case len(names) == 1:
		return " of timeline " + names[0]
	}
	return " of timelines " + strings.Join(names, ", ")
}

func count(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// verdict is the report in a sentence.
func verdict(r *archive.Report) string {
	if len(r.Ranges) == 0 {
		if r.Partial != nil {
			return "No segment is completed yet."
		}
		return "There is no WAL on this timeline."
	}
	to := r.Ranges[len(r.Ranges)-1].To
	if r.Whole() {
		if r.End != 0 {
			return fmt.Sprintf("Whole, and every record verified: from %s to %s.", r.Ranges[0].From, r.End)
		}
		return fmt.Sprintf("Whole: from %s to %s.", r.Ranges[0].From, to)
	}
	var reasons []string
	var missing uint64
	for _, m := range r.Missing {
		missing += m.Count
	}
	if missing > 0 {
		reasons = append(reasons, count(missing, "segment")+" missing")
	}
	if n := len(r.Damaged); n > 0 {
		reasons = append(reasons, count(uint64(n), "file")+" damaged")
	}
	if n := len(r.Corrupt); n > 0 {
		reasons = append(reasons, count(uint64(n), "segment")+" corrupt")
	}
	if r.PathUnknown {
		reasons = append(reasons, fmt.Sprintf("no history file says where timeline %s begins", r.Path.TLI))
	}
	return "Not whole: " + strings.Join(reasons, ", ") + "."
}

// writeReportJSON prints a report for programs. LSNs are text, [from, to).
func writeReportJSON(w io.Writer, r *archive.Report) error {
	type stretch struct {
		From     wal.LSN   `json:"from"`
		To       wal.LSN   `json:"to"`
		TLIs     []wal.TLI `json:"timelines"`
		Segments int       `json:"segments"`
	}
	type gap struct {
		From  wal.LSN `json:"from"`
		To    wal.LSN `json:"to"`
		First string  `json:"first"`
		Last  string  `json:"last"`
		Count uint64  `json:"segments"`
	}
	type fault struct {
		File   string   `json:"file"`
		LSN    *wal.LSN `json:"lsn,omitempty"`
		Reason string   `json:"reason"`
	}
	type ancestor struct {
		TLI wal.TLI `json:"timeline"`
		End wal.LSN `json:"end"`
	}
	stretches := func(ranges []archive.Range) []stretch {
		list := []stretch{}
		for _, g := range ranges {
			s := stretch{From: g.From, To: g.To, Segments: len(g.Segments)}
			for _, seg := range g.Segments {
				if n := len(s.TLIs); n == 0 || s.TLIs[n-1] != seg.TLI {
					s.TLIs = append(s.TLIs, seg.TLI)
				}
			}
			list = append(list, s)
		}
		return list
	}
	out := struct {
		Whole       bool       `json:"whole"`
		SegmentSize uint32     `json:"segment_size"`
		TLI         wal.TLI    `json:"timeline"`
		Ancestors   []ancestor `json:"ancestors"`
		PathUnknown bool       `json:"path_unknown"`
		Ranges      []stretch  `json:"ranges"`
		Missing     []gap      `json:"missing"`
		Partial     string     `json:"partial,omitempty"`
		End         *wal.LSN   `json:"verified_end,omitempty"`
		Corrupt     []fault    `json:"corrupt"`
		Damaged     []fault    `json:"damaged"`
		Beside      []stretch  `json:"beside"`
		NoHistory   []wal.TLI  `json:"no_history"`
	}{
		Whole: r.Whole(), SegmentSize: uint32(r.SegmentSize), PathUnknown: r.PathUnknown,
		Ancestors: []ancestor{}, Ranges: stretches(r.Ranges), Missing: []gap{}, Corrupt: []fault{}, Damaged: []fault{},
		Beside: stretches(r.Beside), NoHistory: append([]wal.TLI{}, r.NoHistory...),
	}
	if r.Path != nil {
		out.TLI = r.Path.TLI
		for _, e := range r.Path.Entries {
			out.Ancestors = append(out.Ancestors, ancestor{e.TLI, e.End})
		}
	}
	if r.Partial != nil {
		out.Partial = r.Partial.Name
	}
	if r.End != 0 {
		out.End = &r.End
	}
	for _, m := range r.Missing {
		out.Missing = append(out.Missing, gap(m))
	}
	for _, c := range r.Corrupt {
		out.Corrupt = append(out.Corrupt, fault{c.Segment, &c.Err.LSN, c.Err.Reason})
	}
	for _, d := range r.Damaged {
		out.Damaged = append(out.Damaged, fault{d.Name, nil, d.Reason})
	}
	return writeJSON(w, out)
}
