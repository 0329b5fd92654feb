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
	to       wal.LSN // from what was handed over before
	complete wal.LSN // the end of the last whole record up to there
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
	p := piece{s.buf, s.taken, s.check.End()}
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
			s.writeErr = s.write(ctx, p.chunk, p.to, p.complete, true, false)
			if s.writeErr == nil {
				s.commitAt(p.to, p.complete)
			} else {
				failed(s.writeErr)
			}
		}
		s.writing.Done()
	}
}

// writeDirect writes WAL of a chunk to seg past the system's cache, in whole
// pages: the first from the beginning, as it was before, the last with zeros to its
// end, as the server's is. Where that fails, whatever the reason, the usual way is
// still open, and if the disk is at fault that will say so.
func (s *spool) writeDirect(seg *segment, c *chunk, from, to wal.LSN) bool {
	first, end := from&^(durable.DirectAlign-1), (to+durable.DirectAlign-1)&^(durable.DirectAlign-1)
	if s.noDirect || first < c.from {
		return false
	}
	if seg.direct == nil {
		f, err := durable.OpenDirect(seg.f, seg.path+partialSuffix)
		if err != nil {
			s.giveUpDirect(err)
			return false
		}
		seg.direct = f
	}
	clear(c.buf[to-c.base : end-c.base])
	_, err := seg.direct.WriteAt(c.buf[first-c.base:end-c.base], int64(first-seg.start))
	if err != nil {
		s.giveUpDirect(err)
	}
	return err == nil
}

// giveUpDirect leaves it at the usual way, until the spool is read anew.
func (s *spool) giveUpDirect(err error) {
	s.noDirect = true
	s.log.Info("WAL is written by way of the system's cache from here on", "dir", s.dir, "err", err)
}
