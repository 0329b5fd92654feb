package relay

import (
	"context"

	"rideau/internal/durable"
	"rideau/wal"
)

// A piece is WAL on its way to the writer: of one chunk, which stays in the
// window until the piece is written, since fewer pieces than that has chunks
// can be on their way.
type piece struct {
	chunk    *chunk
	from, to wal.LSN
	complete wal.LSN // the end of the last whole record up to to
}

// piecesMax bounds them.
const piecesMax = windowChunks / 4

// startWriter lets WAL be written by who reads from the channel.
func (s *spool) startWriter() <-chan piece {
	s.pieces = make(chan piece, piecesMax)
	return s.pieces
}

// stopWriter says that there is nothing more to write.
func (s *spool) stopWriter() {
	close(s.pieces)
	s.pieces = nil
}

// hand gives the writer what was taken. It waits while the writer has enough
// to do.
func (s *spool) hand(ctx context.Context) error {
	p := piece{s.buf, s.handed, s.taken, s.check.End()}
	s.writing.Add(1)
	select {
	case s.pieces <- p:
	default:
		s.stats.syncing.Store(true)
		defer s.stats.syncing.Store(false)
		select {
		case s.pieces <- p:
		case <-ctx.Done():
			s.writing.Done()
			return context.Cause(ctx)
		}
	}
	s.handed = s.taken
	return nil
}

// writeBehind writes WAL that nobody waits for, a chunk at a time, until pieces
// is closed. The first failure goes to failed; what comes after it is dropped,
// and received again.
//
// Such WAL goes to the disk past the system's cache. To fill that costs more
// than all else that is done for a byte, and would push out what somebody uses,
// where a standby that wants it too follows so closely that memory has it.
func (s *spool) writeBehind(ctx context.Context, pieces <-chan piece, failed func(error)) {
	for p := range pieces {
		if s.writeErr == nil {
			s.writeErr = s.write(ctx, p.chunk.buf[p.from-p.chunk.base:p.to-p.chunk.base], p.complete, true)
			if s.writeErr == nil {
				s.commitAt(p.complete)
			} else {
				failed(s.writeErr)
			}
		}
		s.writing.Done()
	}
}

// writeDirect writes p to seg at off past the system's cache, if p is such that
// it can be. Where that fails, whatever the reason, the usual way is still open,
// and if the disk is at fault that will say so.
func (s *spool) writeDirect(seg *segment, p []byte, off int64) bool {
	if s.noDirect || !durable.IsAligned(p, off) {
		return false
	}
	if seg.direct == nil {
		f, err := durable.OpenDirect(seg.path + partialSuffix)
		if err != nil {
			s.noDirect = true
			return false
		}
		seg.direct = f
	}
	_, err := seg.direct.WriteAt(p, off)
	s.noDirect = err != nil
	return err == nil
}
