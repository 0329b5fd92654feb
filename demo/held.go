package demo

import (
	"context"
	"errors"
	"fmt"

	"rideau/archive"
	"rideau/wal"
)

// xactCommit is XLOG_XACT_COMMIT, and xactOpMask where it is in a record's
// info (access/xact.h).
const (
	xactCommit = 0x00
	xactOpMask = 0x70
)

// held is what is in the WAL of a directory.
type held struct {
	tli     wal.TLI
	end     wal.LSN        // the end of the last whole record
	commits map[uint64]int // by transaction id
	path    *wal.History
}

// readHeld reads, record by record, all WAL in dir on the path to its newest
// timeline, as recovery from it would. Nobody may be writing it.
func readHeld(ctx context.Context, dir string) (*held, error) {
	a := archive.New(archive.Dir(dir))
	inv, err := a.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	report := inv.Check(0)
	ranges := report.Readable()
	if len(ranges) == 0 {
		return nil, archive.ErrEmpty
	}
	if len(ranges) > 1 {
		return nil, fmt.Errorf("WAL is missing from %s to %s", ranges[0].To, ranges[1].From)
	}
	w := a.WAL(ctx, ranges[0], report.SegmentSize)
	defer w.Close()
	h := &held{tli: report.Path.TLI, commits: map[uint64]int{}, path: report.Path}
	r := wal.NewReader(w, report.SegmentSize, 0, h.tli, ranges[0].From)
	for {
		rec, err := r.Next()
		if errors.Is(err, wal.ErrEndOfWAL) {
			h.end = r.Pos()
			return h, nil
		}
		if err != nil {
			return nil, err
		}
		if rec.RMgr == wal.RMgrTransaction && rec.Info&xactOpMask == xactCommit {
			h.commits[uint64(rec.XID)]++
		}
	}
}
