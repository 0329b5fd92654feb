package walsave

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"rideau/wal"
)

// A Source gives WAL segments and history files. [NewSQL], [NewReplication] and
// [NewArchive] make them. One goroutine uses a source at a time.
//
// An error that is an *[archive.UnreachableError] says that nothing is known
// and to ask again may help; it is asked again for as long as the caller's
// context lives. All others end the backup.
type Source interface {
	// Fetch waits until the segment is there up to s.Need, and writes it to w
	// from its first byte on: all of it if it is known to be complete, else at
	// least up to s.Need. It never writes more than a segment. Waiting is told,
	// now and then, where it waits and for what.
	//
	// Unless s.Last it answers a *[pgrepl.EndOfTimeline] if the segment is not
	// to be had whole on its timeline, because the server has left that.
	// WAL that is gone is a *[RecycledError].
	Fetch(ctx context.Context, s Segment, w io.Writer, waiting func(Waiting)) error

	// History answers the history file of tli. The error is fs.ErrNotExist if,
	// and only if, the source was asked and does not have it.
	History(ctx context.Context, tli wal.TLI) (string, error)

	// Close ends what connections there are.
	Close() error
}

// A Waiting says what a source waits for.
type Waiting struct {
	For string  // "000000010000000000000003 in archive /var/lib/wal"
	LSN wal.LSN // how far the server has got; zero if that is not known
	Err error   // what the source was last asked in vain with; nil if it answers
}

// A RecycledError says that a segment that the backup needs is not on the
// server any more.
type RecycledError struct {
	Segment string
	LSN     wal.LSN // its first byte
	Server  string  // who does not have it
	Err     error   // what it said; nil if only the file was not there
}

func (e *RecycledError) Error() string {
	msg := fmt.Sprintf("WAL segment %s (from %s) is not on %s any more", e.Segment, e.LSN, e.Server)
	if e.Err != nil {
		msg += ": " + e.Err.Error()
	}
	return msg
}

func (e *RecycledError) Unwrap() error { return e.Err }

// A writeError is one of the place where WAL is kept: no source can help it.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// isWriteError tells it from errors of the source.
func isWriteError(err error) bool {
	_, ok := errors.AsType[*writeError](err)
	return ok
}

// poll is how long a source that cannot tell us is left alone before it is
// asked again.
const poll = 250 * time.Millisecond

// pause waits, or answers why ctx ended.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// left answers the history, of those whose text is given, by which a segment of
// timeline tli is to be had of a newer one: the server has left tli before
// need. It answers nil if there is none.
func left(tli wal.TLI, need wal.LSN, newer *wal.History) (next wal.TLI, end wal.LSN, ok bool) {
	end, _, ok = newer.SwitchPoint(tli)
	if !ok || end >= need {
		return 0, 0, false
	}
	return newer.TLIAt(need - 1), end, true
}
