package walsave

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"rideau/archive"
	"rideau/pgrepl"
	"rideau/wal"
)

// damagePatience is how long a file of an archive may be something else than
// its name says. An archive_command that is cp, as in PostgreSQL's manual,
// shows a segment while it grows.
const damagePatience = time.Minute

// fromArchive waits until segments are in an archive.
type fromArchive struct {
	source   archive.Source
	name     string
	size     wal.SegmentSize
	systemID uint64
}

// NewArchive makes a Source of an archive: an [archive.Archive] of a directory,
// or an [archive.Remote]. Name is how messages name it. Segments arrive there
// some time after they are complete. Of the last one the partial file will do,
// which a relay's archive has.
func NewArchive(source archive.Source, name string, size wal.SegmentSize, systemID uint64) Source {
	return &fromArchive{source: source, name: name, size: size, systemID: systemID}
}

func (a *fromArchive) Close() error { return nil }

func (a *fromArchive) History(ctx context.Context, tli wal.TLI) (string, error) {
	f, _, err := a.open(ctx, tli.HistoryName())
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, pieceLen))
	if err != nil {
		return "", unreachable(ctx, a.name, err)
	}
	return string(text), nil
}

// open opens a file. That there is nothing at all in the archive may be
// otherwise soon.
func (a *fromArchive) open(ctx context.Context, name string) (io.ReadCloser, int64, error) {
	f, n, err := a.source.Open(ctx, name)
	if errors.Is(err, archive.ErrEmpty) {
		err = &fs.PathError{Op: "get", Path: name, Err: fs.ErrNotExist}
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return f, n, err
}

func (a *fromArchive) Fetch(ctx context.Context, s Segment, w io.Writer, waiting func(Waiting)) error {
	name := a.size.FileName(s.TLI, s.LSN)
	var damagedSince time.Time
	for {
		found, err := a.try(ctx, s, name, w)
		if found {
			return err
		}
		if err != nil && damagedSince.IsZero() {
			damagedSince = time.Now()
		} else if err != nil && time.Since(damagedSince) > damagePatience {
			return err
		}
		waiting(Waiting{For: fmt.Sprintf("%s in archive %s", name, a.name), Err: err})
		if err := pause(ctx, poll); err != nil {
			return err
		}
	}
}

// try looks for the segment once. If it is not found the error is an
// *archive.DamageError or nil.
func (a *fromArchive) try(ctx context.Context, s Segment, name string, w io.Writer) (found bool, err error) {
	whole := int64(a.size)
	err = a.copy(ctx, name, whole, whole, w)
	// A relay gives no partial files over HTTP.
	if _, remote := a.source.(*archive.Remote); errors.Is(err, fs.ErrNotExist) && s.Last && !remote {
		err = a.partial(ctx, s, name+".partial", w)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = a.newer(ctx, s, w)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if _, damaged := errors.AsType[*archive.DamageError](err); damaged {
		return false, err
	}
	return true, err
}

// copy copies n bytes of a file that must have at least atLeast.
func (a *fromArchive) copy(ctx context.Context, name string, n, atLeast int64, w io.Writer) error {
	f, size, err := a.open(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	if size < atLeast {
		return &archive.DamageError{Name: name, Reason: fmt.Sprintf("it has %d bytes, at least %d are needed", size, atLeast)}
	}
	if m, err := io.CopyN(w, f, min(n, size)); err != nil {
		if isWriteError(err) {
			return err
		}
		return unreachable(ctx, a.name, fmt.Errorf("could not read %q after %d bytes: %w", name, m, err))
	}
	return nil
}

// partial copies a segment that is not complete, if it reaches far enough. Its
// file may have been made before it was filled: only its records tell.
func (a *fromArchive) partial(ctx context.Context, s Segment, name string, w io.Writer) error {
	n := int64(s.Need - s.LSN)
	c := wal.NewChecker(a.size, a.systemID, s.TLI, s.LSN)
	err := a.copy(ctx, name, n, n, checkWriter{c})
	_, corrupt := errors.AsType[*wal.CorruptError](err)
	_, short := errors.AsType[*archive.DamageError](err)
	switch {
	case corrupt || short || err == nil && !reaches(c, s.Need):
		return &fs.PathError{Op: "get", Path: name, Err: fs.ErrNotExist} // not yet
	case err != nil:
		return err
	}
	return a.copy(ctx, name, n, n, w)
}

// reaches reports whether a record ends at lsn, or right before the page header
// that lsn is behind. Whether that is a page's header the prover looks at.
func reaches(c *wal.Checker, lsn wal.LSN) bool {
	end := c.End()
	return end == lsn || end%pageSize == 0 && lsn-end <= longHeader
}

// A checkWriter is a Checker to write to, whose errors are not the source's.
type checkWriter struct{ c *wal.Checker }

func (w checkWriter) Write(p []byte) (int, error) {
	n, err := w.c.Write(p)
	if err != nil {
		err = &writeError{err}
	}
	return n, err
}

// newer looks among newer timelines, in the way recovery does, for one that
// left s's timeline inside the segment: its file begins with the same bytes,
// and that of s may never come.
func (a *fromArchive) newer(ctx context.Context, s Segment, w io.Writer) error {
	missing := &fs.PathError{Op: "get", Path: a.size.FileName(s.TLI, s.LSN), Err: fs.ErrNotExist}
	for tli := s.TLI + 1; ; tli++ {
		text, err := a.History(ctx, tli)
		if errors.Is(err, fs.ErrNotExist) {
			return missing
		} else if err != nil {
			return err
		}
		h, err := wal.ParseHistory(tli, text)
		if err != nil {
			return &archive.DamageError{Name: tli.HistoryName(), Reason: err.Error()}
		}
		end, _, ok := h.SwitchPoint(s.TLI)
		if !ok || end < s.Need && s.Last || end >= a.size.Next(s.LSN) {
			continue
		}
		next := h.TLIAt(a.size.Next(s.LSN) - 1)
		name := a.size.FileName(next, s.LSN)
		if s.Last {
			n := int64(end - s.LSN)
			err = a.copy(ctx, name, n, n, w)
		} else if err = a.has(ctx, name); err == nil {
			return &pgrepl.EndOfTimeline{TLI: s.TLI, Next: next, LSN: end}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

// has answers nil if the archive has a file.
func (a *fromArchive) has(ctx context.Context, name string) error {
	f, _, err := a.open(ctx, name)
	if err != nil {
		return err
	}
	return f.Close()
}
