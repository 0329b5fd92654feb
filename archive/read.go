package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"rideau/wal"
)

// WAL is a stretch of WAL in an archive, to be read at LSNs: an [io.ReaderAt]
// in which the byte at an LSN has that offset, as [wal.NewReader] wants it. It
// keeps one segment open, so it is not for use by several at a time.
type WAL struct {
	archive *Archive
	ctx     context.Context // of the reading: io.ReaderAt takes none
	stretch Range
	size    wal.SegmentSize

	open   io.ReaderAt // segment number at of the range
	at     int
	closer io.Closer
}

// WAL answers a stretch of WAL that a [Report] found. The segments must stay
// for as long as it is read; who reads it closes it.
func (a *Archive) WAL(ctx context.Context, stretch Range, size wal.SegmentSize) *WAL {
	return &WAL{archive: a, ctx: ctx, stretch: stretch, size: size, at: -1}
}

// ReadAt reads at an LSN. Before the stretch there is nothing to be read; at its
// end, and where a partial segment's file ends, is io.EOF.
func (w *WAL) ReadAt(p []byte, offset int64) (n int, err error) {
	lsn := wal.LSN(offset)
	if lsn < w.stretch.From {
		return 0, fmt.Errorf("there is no WAL before %s", w.stretch.From)
	}
	for n < len(p) {
		if lsn >= w.stretch.To {
			return n, io.EOF
		}
		if err := w.seek(lsn); err != nil {
			return n, err
		}
		end := min(w.size.Next(lsn), w.stretch.To)
		chunk := p[n:min(len(p), n+int(end-lsn))]
		m, err := w.open.ReadAt(chunk, int64(w.size.Offset(lsn)))
		n += m
		lsn += wal.LSN(m)
		if m < len(chunk) {
			return n, err
		}
	}
	return n, nil
}

// seek opens the segment that holds lsn, unless it is the open one.
func (w *WAL) seek(lsn wal.LSN) error {
	i := int((w.size.Start(lsn) - w.size.Start(w.stretch.From)) / wal.LSN(w.size))
	if i == w.at {
		return nil
	}
	if err := w.Close(); err != nil {
		return err
	}
	content, _, err := w.archive.Open(w.ctx, w.stretch.Segments[i].Name)
	if err != nil {
		return err
	}
	at, ok := content.(io.ReaderAt)
	if !ok { // not a file: hold the segment in memory
		text, err := io.ReadAll(content)
		if err != nil {
			content.Close()
			return err
		}
		at = bytes.NewReader(text)
	}
	w.open, w.closer, w.at = at, content, i
	return nil
}

// ZerosFrom reports whether nothing but zeros follows at lsn in its segment:
// space that no WAL was written to.
func (w *WAL) ZerosFrom(lsn wal.LSN) (bool, error) {
	buf := make([]byte, 1<<16)
	for end := min(w.size.Next(lsn), w.stretch.To); lsn < end; {
		n, err := w.ReadAt(buf[:min(uint64(len(buf)), uint64(end-lsn))], int64(lsn))
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return false, nil
		}
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		lsn += wal.LSN(n)
	}
	return true, nil
}

// Close closes the segment that is open.
func (w *WAL) Close() error {
	if w.closer == nil {
		return nil
	}
	err := w.closer.Close()
	w.open, w.closer, w.at = nil, nil, -1
	return err
}

// A Corruption is WAL in an archive that does not verify.
type Corruption struct {
	Segment string
	Err     *wal.CorruptError
}

// Verify reads all WAL that r found on its path, checks every page and record,
// and adds to r what is corrupt, at most one place a segment; and where WAL
// ends. After something corrupt it goes on with the next segment. The error is
// one of reading.
//
// Zeros up to the end of the last segment are not corrupt: so ends one that
// somebody made of a partial segment.
//
// Progress, if not nil, is called now and then with how far it has come.
func (a *Archive) Verify(ctx context.Context, r *Report, progress func(wal.LSN)) error {
	if progress == nil {
		progress = func(wal.LSN) {}
	}
	r.Corrupt, r.End = nil, 0
	var sysid uint64 // of the first segment, then of all
	for _, stretch := range r.Ranges {
		v := verifier{a: a, r: r, sysid: &sysid, progress: progress}
		for _, s := range stretch.Segments {
			if err := v.segment(ctx, s, min(stretch.To, r.SegmentSize.Next(s.LSN))); err != nil {
				return err
			}
		}
		r.End = v.end
	}
	if r.Partial == nil {
		return nil
	}
	return a.verifyPartial(ctx, r, sysid)
}

// A verifier checks segments one after the other.
type verifier struct {
	a        *Archive
	r        *Report
	sysid    *uint64
	progress func(wal.LSN)

	check *wal.Checker // nil at the beginning, and after something corrupt
	end   wal.LSN      // of the last good record
	buf   []byte
}

func (v *verifier) segment(ctx context.Context, s Segment, to wal.LSN) error {
	content, _, err := v.a.Open(ctx, s.Name)
	var damage *DamageError
	if errors.As(err, &damage) {
		v.r.Damaged = append(v.r.Damaged, damage)
		v.check = nil
		return nil
	}
	if err != nil {
		return err
	}
	defer content.Close()
	if *v.sysid == 0 {
		h, err := v.a.header(ctx, s.Name)
		if err != nil {
			return err
		}
		*v.sysid = h.sysid
	}
	if v.check == nil {
		v.check = wal.NewChecker(v.r.SegmentSize, *v.sysid, v.r.Path.TLI, s.LSN)
	}
	if v.buf == nil {
		v.buf = make([]byte, 1<<20)
	}
	for at := s.LSN; at < to; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(content, v.buf[:min(uint64(len(v.buf)), uint64(to-at))])
		if err != nil {
			return fmt.Errorf("could not read %q: %w", s.Name, err)
		}
		_, err = v.check.Write(v.buf[:n])
		v.end = v.check.End()
		var corrupt *wal.CorruptError
		switch {
		case errors.As(err, &corrupt):
			if ends, err := v.endsAt(ctx, s, corrupt.LSN); ends || err != nil {
				v.progress(to)
				return err
			}
			v.r.Corrupt = append(v.r.Corrupt, Corruption{Segment: s.Name, Err: corrupt})
			v.check = nil // the next segment begins anew
			return nil
		case err != nil:
			return err
		}
		at += wal.LSN(n)
		v.progress(at)
	}
	return nil
}

// endsAt reports whether WAL just ends at lsn in s, which then is the last
// segment there is.
func (v *verifier) endsAt(ctx context.Context, s Segment, lsn wal.LSN) (bool, error) {
	last := v.r.Ranges[len(v.r.Ranges)-1]
	if v.r.Partial != nil || s.Name != last.Segments[len(last.Segments)-1].Name || lsn < s.LSN {
		return false, nil
	}
	w := v.a.WAL(ctx, last, v.r.SegmentSize)
	defer w.Close()
	return w.ZerosFrom(lsn)
}

// verifyPartial finds where WAL ends in the partial segment.
func (a *Archive) verifyPartial(ctx context.Context, r *Report, sysid uint64) error {
	s := *r.Partial
	w := a.WAL(ctx, Range{From: s.LSN, To: r.SegmentSize.Next(s.LSN), Segments: []Segment{s}}, r.SegmentSize)
	defer w.Close()
	check, _, err := wal.FindEnd(w, r.SegmentSize, sysid, r.Path.TLI, s.LSN)
	if err != nil {
		return fmt.Errorf("could not read %q: %w", s.Name, err)
	}
	// What follows the last good record may have been torn by a crash, or be in
	// the making just now. Either way it is not yet WAL.
	r.End = max(r.End, check.End())
	return nil
}
