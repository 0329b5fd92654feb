package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"rideau/archive"
	"rideau/wal"
)

const walDumpHelp = `Usage: rideau wal dump DIR|FILE [options]

Prints the records in the archive DIR, or in one segment FILE, in order and
verified, in the form of pg_waldump: what is written to find something in its
output finds it here. Servers of 13 to 18 wrote the WAL; nothing has to be
said of which, nor of the size of segments.

Of an archive it follows the newest timeline from the oldest WAL on, through
switch points and into the segment in progress. Where WAL is missing or corrupt
it says so on standard error, goes on behind it, and exits with status 1.

Options:
    --start LSN      Begin with the first record at or after LSN.
    --end LSN        Stop before the first record at or after LSN.
    --timeline N     Follow timeline N instead of the newest.
    --rmgr NAME      Only records of this resource manager, such as Heap or
                     Transaction; may be given several times.
    --limit N        Stop after N records.
    --stats          Print not the records but how many of each kind there are,
                     and how large.
    --json           Print a JSON object a line, or with --stats one in all.

Examples:
    $ rideau wal dump --start 2/9F000000 --rmgr Transaction /var/lib/rideau
    $ rideau wal dump --stats /var/lib/rideau/00000003000000020000009F
`

func newWalDumpCommand() *cobra.Command {
	var flags struct {
		start, end, timeline string
		rmgr                 []string
		limit                uint64
		stats, json          bool
	}
	cmd := newCommand("dump DIR|FILE [options]", walDumpHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"DIR|FILE", "directory of an archive or file of a segment"}); err != nil {
			return err
		}
		d := walDump{limit: math.MaxUint64, end: math.MaxUint64, stderr: cmd.ErrOrStderr()}
		var err error
		if d.tli, err = parseTimeline(cmd, flags.timeline); err != nil {
			return err
		}
		for _, option := range []struct {
			name, value string
			lsn         *wal.LSN
		}{{"start", flags.start, &d.start}, {"end", flags.end, &d.end}} {
			if option.value == "" {
				continue
			}
			if *option.lsn, err = wal.ParseLSN(option.value); err != nil {
				return usageErrorf(cmd, "invalid --%s: %w", option.name, err)
			}
		}
		for _, name := range flags.rmgr {
			rmgr, ok := parseRMgr(name)
			if !ok {
				return usageErrorf(cmd, "unknown resource manager %q", name)
			}
			d.rmgr = append(d.rmgr, rmgr)
		}
		if cmd.Flags().Changed("limit") {
			d.limit = flags.limit
		}
		out := bufio.NewWriter(cmd.OutOrStdout())
		switch {
		case flags.stats:
			d.show = &dumpStats{json: flags.json, kinds: map[string]*kindStats{}}
		case flags.json:
			d.show = dumpJSON{}
		default:
			d.show = dumpText{}
		}
		err = d.run(cmd.Context(), out, args[0])
		if flushErr := out.Flush(); flushErr != nil {
			err = flushErr
		}
		return err
	})
	cmd.Flags().StringVar(&flags.start, "start", "", "")
	cmd.Flags().StringVar(&flags.end, "end", "", "")
	cmd.Flags().StringVar(&flags.timeline, "timeline", "", "")
	cmd.Flags().StringArrayVar(&flags.rmgr, "rmgr", nil, "")
	cmd.Flags().Uint64Var(&flags.limit, "limit", 0, "")
	cmd.Flags().BoolVar(&flags.stats, "stats", false, "")
	cmd.Flags().BoolVar(&flags.json, "json", false, "")
	return cmd
}

func parseRMgr(name string) (wal.RMgr, bool) {
	for n := range 256 {
		if strings.EqualFold(wal.RMgr(n).String(), name) {
			return wal.RMgr(n), true
		}
	}
	return 0, false
}

// A walDump is a call of "rideau wal dump".
type walDump struct {
	start, end wal.LSN
	tli        wal.TLI
	rmgr       []wal.RMgr // empty: all
	limit      uint64
	show       dumpShow
	stderr     io.Writer

	incomplete bool // something was missing or corrupt
}

// A dumpShow prints records.
type dumpShow interface {
	record(w io.Writer, rec *wal.Record) error
	end(w io.Writer) error
}

// pageSize is XLOG_BLCKSZ, of which all packaged servers have the default.
const pageSize = 8192

func (d *walDump) run(ctx context.Context, out *bufio.Writer, path string) error {
	report, a, err := d.open(ctx, path)
	if err != nil {
		return err
	}
	ranges := report.Readable()
	if len(ranges) == 0 {
		return fmt.Errorf("there is no WAL in %q", path)
	}
	if d.start != 0 {
		ranges = slices.DeleteFunc(ranges, func(g archive.Range) bool { return g.To <= d.start })
		if len(ranges) == 0 || d.start < ranges[0].From {
			return fmt.Errorf("there is no WAL at %s in %q", d.start, path)
		}
	}
	for i, g := range ranges {
		if g.From >= d.end || d.limit == 0 {
			break
		}
		if i > 0 {
			d.complain(out, "WAL is missing from %s to %s", ranges[i-1].To, g.From)
		}
		if err := d.stretch(ctx, out, a, report, g); err != nil {
			return err
		}
	}
	if err := d.show.end(out); err != nil {
		return err
	}
	if d.incomplete {
		return withStatus(statusFailed, nil)
	}
	return nil
}

// open answers what there is at path: an archive, or one segment of it.
func (d *walDump) open(ctx context.Context, path string) (*archive.Report, *archive.Archive, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	dir, file := path, ""
	if !info.IsDir() {
		dir, file = filepath.Split(path)
		dir = cmp.Or(dir, ".")
	}
	a := archive.New(archive.Dir(dir))
	inv, err := a.Inventory(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("could not read the archive: %w", err)
	}
	if file == "" {
		return inv.Check(d.tli), a, nil
	}
	for _, damage := range inv.Damaged {
		if damage.Name == file {
			return nil, nil, damage
		}
	}
	i := slices.IndexFunc(inv.Segments, func(s archive.Segment) bool { return s.Name == file })
	if i < 0 {
		return nil, nil, fmt.Errorf("%q is not a WAL segment", path)
	}
	inv.Segments = inv.Segments[i : i+1]
	inv.Histories = nil
	return inv.Check(inv.Segments[0].TLI), a, nil
}

// complain says what is wrong, in order with what goes to standard output.
func (d *walDump) complain(out *bufio.Writer, format string, args ...any) {
	d.incomplete = true
	out.Flush()
	fmt.Fprintf(d.stderr, "rideau wal dump: "+format+"\n", args...)
}

// stretch prints the records of a stretch of WAL.
func (d *walDump) stretch(ctx context.Context, out *bufio.Writer, a *archive.Archive, report *archive.Report, g archive.Range) error {
	w := a.WAL(ctx, g, report.SegmentSize)
	defer w.Close()
	// A record may begin at d.start, or only end behind it: the page knows.
	from := max(g.From, d.start&^(pageSize-1))
	for from < g.To {
		reader := wal.NewReader(w, report.SegmentSize, 0, report.Path.TLI, from)
		err := d.records(ctx, out, reader)
		var corrupt *wal.CorruptError
		switch {
		case errors.As(err, &corrupt):
			d.complain(out, "%v", corrupt)
			from = report.SegmentSize.Next(corrupt.LSN)
		case errors.Is(err, wal.ErrEndOfWAL):
			hole, err := zerosInside(w, g, report.SegmentSize, reader.Pos())
			if !hole || err != nil {
				return err // none: a record is not complete, or the segment not full
			}
			d.complain(out, "there are zeros at %s where WAL should go on", reader.Pos())
			from = report.SegmentSize.Next(reader.Pos())
		default:
			return err
		}
	}
	return nil
}

// zerosInside reports whether there are zeros at lsn and more WAL behind them.
// A reader takes zeros for space that is not yet filled, which only the last
// segment can have, and at its end.
func zerosInside(w *archive.WAL, g archive.Range, size wal.SegmentSize, lsn wal.LSN) (bool, error) {
	var next [8]byte // records and pages begin at multiples of 8, with what is not zero
	n, err := w.ReadAt(next[:], int64(lsn))
	if n < len(next) || next != [8]byte{} {
		return false, ignoreEOF(err)
	}
	last := g.Segments[len(g.Segments)-1]
	if last.Partial && lsn >= last.LSN {
		return false, nil
	}
	ends, err := w.ZerosFrom(lsn)
	return !ends || size.Next(lsn) < g.To, err
}

func ignoreEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// records prints what reader reads. It returns nil when it was to stop.
func (d *walDump) records(ctx context.Context, out *bufio.Writer, reader *wal.Reader) error {
	for ; d.limit > 0; d.limit-- {
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, err := reader.Next()
		if err != nil {
			return err
		}
		if rec.LSN >= d.end {
			return nil
		}
		if rec.LSN < d.start || len(d.rmgr) > 0 && !slices.Contains(d.rmgr, rec.RMgr) {
			d.limit++
			continue
		}
		if err := d.show.record(out, rec); err != nil {
			return err
		}
	}
	return nil
}

type dumpText struct{}

func (dumpText) record(w io.Writer, rec *wal.Record) error {
	_, err := fmt.Fprintln(w, rec)
	return err
}

func (dumpText) end(io.Writer) error { return nil }

type dumpJSON struct{}

func (dumpJSON) record(w io.Writer, rec *wal.Record) error {
	type block struct {
		ID       uint8  `json:"id"`
		Relation string `json:"relation"` // tablespace/database/relfilenode
		Fork     string `json:"fork"`
		Number   uint32 `json:"block"`
		Image    int    `json:"image_bytes,omitempty"`
	}
	out := struct {
		LSN       wal.LSN `json:"lsn"`
		End       wal.LSN `json:"end"`
		Prev      wal.LSN `json:"prev"`
		XID       uint32  `json:"xid"`
		RMgr      string  `json:"rmgr"`
		Operation string  `json:"operation"`
		Length    uint32  `json:"length"`
		Origin    uint16  `json:"origin,omitempty"`
		Blocks    []block `json:"blocks,omitempty"`
		Text      string  `json:"text"`
	}{
		LSN: rec.LSN, End: rec.End, Prev: rec.Prev, XID: rec.XID,
		RMgr: rec.RMgr.String(), Operation: rec.Operation(), Length: rec.Length, Text: rec.String(),
	}
	if content, err := rec.Decode(); err == nil {
		out.Origin = content.Origin
		for _, b := range content.Blocks {
			out.Blocks = append(out.Blocks, block{
				ID: b.ID, Relation: fmt.Sprintf("%d/%d/%d", b.Tablespace, b.Database, b.Relation),
				Fork: b.Fork.String(), Number: b.Number, Image: len(b.Image),
			})
		}
	}
	return json.NewEncoder(w).Encode(out)
}

func (dumpJSON) end(io.Writer) error { return nil }

// kindStats counts the records of one kind.
type kindStats struct {
	Kind   string `json:"kind"` // Heap/INSERT
	Count  uint64 `json:"records"`
	Record uint64 `json:"record_bytes"` // without images
	Image  uint64 `json:"image_bytes"`  // of pages
}

type dumpStats struct {
	json  bool
	kinds map[string]*kindStats
}

func (s *dumpStats) record(_ io.Writer, rec *wal.Record) error {
	name := rec.RMgr.String() + "/" + rec.Operation()
	k := s.kinds[name]
	if k == nil {
		k = &kindStats{Kind: name}
		s.kinds[name] = k
	}
	k.Count++
	length := uint64(rec.Length)
	if content, err := rec.Decode(); err == nil {
		for _, b := range content.Blocks {
			k.Image += uint64(len(b.Image))
			length -= uint64(len(b.Image))
		}
	}
	k.Record += length
	return nil
}

// end prints the kinds, those that fill most WAL first.
func (s *dumpStats) end(w io.Writer) error {
	kinds := []*kindStats{}
	total := &kindStats{Kind: "total"}
	for _, k := range s.kinds {
		kinds = append(kinds, k)
		total.Count += k.Count
		total.Record += k.Record
		total.Image += k.Image
	}
	slices.SortFunc(kinds, func(a, b *kindStats) int {
		return cmp.Or(cmp.Compare(b.Record+b.Image, a.Record+a.Image), cmp.Compare(a.Kind, b.Kind))
	})
	if s.json {
		return json.NewEncoder(w).Encode(struct {
			Kinds []*kindStats `json:"kinds"`
			Total *kindStats   `json:"total"`
		}{kinds, total})
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "records\t%\trecord bytes\t%\timage bytes\t%\t all bytes\t%\t  kind")
	share := func(n, of uint64) string {
		if of == 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f", 100*float64(n)/float64(of))
	}
	for _, k := range append(kinds, total) {
		fmt.Fprintf(t, "%d\t%s\t%d\t%s\t%d\t%s\t%d\t%s\t  %s\n",
			k.Count, share(k.Count, total.Count), k.Record, share(k.Record, total.Record),
			k.Image, share(k.Image, total.Image), k.Record+k.Image, share(k.Record+k.Image, total.Record+total.Image), k.Kind)
	}
	return t.Flush()
}
