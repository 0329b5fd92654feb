package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"rideau/internal/durable"
)

// A Source answers files of WAL: an [Archive], or a [Remote] one.
type Source interface {
	// Open answers the content of a segment, partial segment or history file
	// and how long it is. The error is fs.ErrNotExist if, and only if, the
	// source was asked and knows that it does not have the file.
	Open(ctx context.Context, name string) (io.ReadCloser, int64, error)
}

// Fetch writes the file that source has under name to the path dest, as
// restore_command does with %f and %p. It is PostgreSQL that knows its history
// and chooses names; we answer what was asked for, byte for byte, be it an
// ancestor's segment with a switch point in it.
//
// The file at dest is whole and on disk when Fetch returns nil, and otherwise
// not touched. A segment has exactly the size that its first page says, and
// begins where its name says. The error is fs.ErrNotExist only if the source
// knows that it does not have the file: PostgreSQL takes that for the end of
// WAL, ends recovery and begins a new timeline.
func Fetch(ctx context.Context, source Source, name, dest string) error {
	kind := kindOf(name)
	if kind != segment && kind != history {
		return &NameError{Name: name}
	}
	return fetch(ctx, source, name, dest)
}

// FetchPartial fetches the partial segment of name, for when the whole one is
// not there: the last WAL of a server that will not come back. The file at
// dest has the size of a segment, and after the last WAL, zeros, which
// recovery takes for its end.
//
// Not for standbys. They would take the segment for all there is of it, and
// would have to read it anew once it is completed.
func FetchPartial(ctx context.Context, source Source, name, dest string) error {
	if kindOf(name) != segment {
		return &NameError{Name: name}
	}
	return fetch(ctx, source, name+partialSuffix, dest)
}

func fetch(ctx context.Context, source Source, name, dest string) error {
	content, size, err := source.Open(ctx, name)
	if err != nil {
		return err
	}
	defer content.Close()
	f, err := durable.Create(dest, 0o600)
	if err != nil {
		return &destError{err}
	}
	defer f.Close()
	if n, err := io.Copy(destWriter{f}, content); err != nil {
		return err
	} else if n != size {
		return fmt.Errorf("could not read %q: got %d of %d bytes: %w", name, n, size, io.ErrUnexpectedEOF)
	}
	if err := checkFetched(f, name, size); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := f.Commit(); err != nil {
		return &destError{err}
	}
	return nil
}

// checkFetched looks at what was written, whoever said to have looked before.
func checkFetched(f *durable.File, name string, size int64) error {
	name, isPartial := strings.CutSuffix(name, partialSuffix)
	if kindOf(name) != segment {
		return nil
	}
	page := make([]byte, longHeaderSize)
	n, err := f.ReadAt(page, 0)
	if err != nil && err != io.EOF {
		return &destError{err}
	}
	if isPartial {
		h, err := parseHeader(page[:n])
		if err == nil && size > int64(h.size) {
			err = fmt.Errorf("it has %d bytes, more than the %d of a segment", size, h.size)
		}
		if err != nil {
			return &DamageError{Name: name + partialSuffix, Reason: err.Error()}
		}
		if err := durable.Preallocate(f.File, int64(h.size)); err != nil {
			return &destError{err}
		}
		size = int64(h.size)
	}
	return checkSegment(name, page[:n], size)
}

// A destError is one of the place to write to. It hides that the error below
// may be fs.ErrNotExist, which would be taken for an answer of the source.
type destError struct{ err error }

func (e *destError) Error() string { return e.err.Error() }

// destWriter marks errors of writing as the destination's.
type destWriter struct{ w io.Writer }

func (d destWriter) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	if err != nil {
		err = &destError{err}
	}
	return n, err
}

// The pauses of [Patiently], which double from the first to the last.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// Patiently calls try again, after a pause, for as long as it returns an
// [*UnreachableError] and patience has not run out. It returns what try
// returned last; or, if ctx ends during a pause, why it ended.
func Patiently(ctx context.Context, patience time.Duration, try func() error) error {
	deadline := time.Now().Add(patience)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := try()
		if _, unreachable := errors.AsType[*UnreachableError](err); !unreachable || !time.Now().Add(pause).Before(deadline) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
