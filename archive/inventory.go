package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"rideau/wal"
)

// A Segment is a file of WAL in an archive.
type Segment struct {
	Name     string
	TLI      wal.TLI
	LSN      wal.LSN // its first byte
	Size     int64   // of the file; that of a segment, unless damaged or partial
	Partial  bool    // not completed: how much of it is WAL is not known from here
	Modified time.Time
}

// An Inventory is what is in an archive.
type Inventory struct {
	// SegmentSize is that of the archive's segments, zero if it has none.
	SegmentSize wal.SegmentSize

	// Segments are whole and partial segments, ordered by timeline and LSN; the
	// whole one first where both are there.
	Segments []Segment

	// Histories are the history files, ordered by timeline.
	Histories []*wal.History

	// Damaged are the files that bear a name of WAL and cannot be it: history
	// files that cannot be parsed, segments whose size is not that of a
	// segment, names that no server with this size writes.
	Damaged []*DamageError
}

// maxHistorySize bounds what is read of a history file: a line is a promotion.
const maxHistorySize = 1 << 20

// Inventory lists the archive and reads its history files. Files with other
// names are none of its business.
//
// An archive changes under a running relay. What is listed was there at some
// time during the call; a segment completed meanwhile may be listed under both
// its names, or neither.
func (a *Archive) Inventory(ctx context.Context) (*Inventory, error) {
	var inv Inventory
	var segments []Object
	for o, err := range a.store.List(ctx, "") {
		if err != nil {
			return nil, err
		}
		switch kindOf(o.Name) {
		case segment, partial:
			segments = append(segments, o)
		case history:
			h, err := a.history(ctx, o.Name)
			var damage *DamageError
			switch {
			case errors.Is(err, fs.ErrNotExist): // removed since
			case errors.As(err, &damage):
				inv.Damaged = append(inv.Damaged, damage)
			case err != nil:
				return nil, err
			default:
				inv.Histories = append(inv.Histories, h)
			}
		}
	}
	var err error
	if inv.SegmentSize, err = a.segmentSize(ctx, segments); err != nil {
		return nil, err
	}
	for _, o := range segments {
		if inv.SegmentSize == 0 {
			inv.Damaged = append(inv.Damaged, &DamageError{Name: o.Name, Reason: "neither it nor any other segment says how large segments are"})
			continue
		}
		s, err := parseSegment(o, inv.SegmentSize)
		if err != nil {
			inv.Damaged = append(inv.Damaged, &DamageError{Name: o.Name, Reason: err.Error()})
			continue
		}
		inv.Segments = append(inv.Segments, s)
	}
	return &inv, nil
}

// parseSegment tells what o is in an archive of segments of size.
func parseSegment(o Object, size wal.SegmentSize) (Segment, error) {
	name, isPartial := strings.CutSuffix(o.Name, partialSuffix)
	tli, lsn, err := size.ParseFileName(name)
	switch {
	case err != nil:
		return Segment{}, err
	case isPartial && o.Size > int64(size), !isPartial && o.Size != int64(size):
		return Segment{}, fmt.Errorf("it has %d bytes, not the %d of a segment", o.Size, size)
	}
	return Segment{Name: o.Name, TLI: tli, LSN: lsn, Size: o.Size, Partial: isPartial, Modified: o.Modified}, nil
}

func (a *Archive) history(ctx context.Context, name string) (*wal.History, error) {
	content, _, err := a.store.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer content.Close()
	text, err := io.ReadAll(io.LimitReader(content, maxHistorySize))
	if err != nil {
		return nil, err
	}
	h, err := parseHistory(name, text)
	if err != nil {
		return nil, &DamageError{Name: name, Reason: err.Error()}
	}
	return h, nil
}

// segmentSize asks the newest segment that is what its name says. Zero means
// that there is none: no segment, or only damaged ones and such as were
// preallocated and not written to yet.
func (a *Archive) segmentSize(ctx context.Context, objects []Object) (wal.SegmentSize, error) {
	objects = slices.Clone(objects)
	slices.SortFunc(objects, func(x, y Object) int { // whole ones first, then newest first
		return cmp.Or(cmp.Compare(kindOf(x.Name), kindOf(y.Name)), cmp.Compare(y.Name, x.Name))
	})
	for _, o := range objects {
		h, err := a.header(ctx, o.Name)
		if err == nil {
			return h.size, nil
		}
		var damage *DamageError
		if !errors.As(err, &damage) && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
	}
	return 0, nil
}

// header reads and checks the first page header of a segment, partial or not.
func (a *Archive) header(ctx context.Context, name string) (header, error) {
	content, size, err := a.store.Open(ctx, name)
	if err != nil {
		return header{}, err
	}
	defer content.Close()
	page := make([]byte, longHeaderSize)
	n, err := io.ReadFull(content, page)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return header{}, err
	}
	h, err := parseHeader(page[:n])
	whole, isPartial := strings.CutSuffix(name, partialSuffix)
	if err == nil {
		err = h.agrees(whole)
	}
	if err == nil && !isPartial && size != int64(h.size) {
		err = fmt.Errorf("it has %d bytes, not the %d of a segment", size, h.size)
	}
	if err != nil {
		return header{}, &DamageError{Name: name, Reason: err.Error()}
	}
	return h, nil
}
