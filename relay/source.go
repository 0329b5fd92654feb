package relay

import (
	"errors"
	"io/fs"
	"os"

	"rideau/pgrepl"
	"rideau/wal"
)

// A source is the WAL of one timeline for one standby. It reads from memory
// where it can, which costs nothing, else from the segment files.
type source struct {
	relay   *Relay
	sp      *spool
	tli     wal.TLI
	changed chan struct{}

	history *wal.History // of the published timeline
	chunk   *chunk       // borrowed since the last Read
	file    *os.File     // holds fileAt, if any
	fileAt  wal.LSN      // the start of its segment
	fileTLI wal.TLI      // the published timeline when it was opened
	buf     []byte       // for what comes from disk
}

func (r *Relay) newSource(sp *spool, tli wal.TLI) *source {
	return &source{relay: r, sp: sp, tli: tli, changed: sp.subscribe()}
}

func (s *source) close() {
	s.sp.unsubscribe(s.changed)
	s.release()
	if s.file != nil {
		s.file.Close()
	}
}

func (s *source) release() {
	if s.chunk != nil {
		s.sp.window.put(s.chunk)
		s.chunk = nil
	}
}

// Changed implements pgrepl.Source.
func (s *source) Changed() <-chan struct{} { return s.changed }

// Read implements pgrepl.Source: WAL below the published position, and on an
// older timeline below the point where the history left it.
func (s *source) Read(lsn wal.LSN, max int) ([]byte, wal.LSN, error) {
	s.release()
	pos := s.sp.position()
	limit := pos.Flushed
	if pos.TLI != s.tli {
		if s.history == nil || s.history.TLI != pos.TLI {
			s.history = s.relay.history(pos.TLI)
		}
		end, next, ok := s.history.SwitchPoint(s.tli)
		if !ok {
			return nil, 0, pgrepl.Errorf("XX000", "requested timeline %d is not in this server's history", s.tli)
		}
		if lsn >= end {
			return nil, 0, &pgrepl.EndOfTimeline{TLI: s.tli, Next: next, LSN: end}
		}
		limit = end
	}
	if lsn >= limit {
		return nil, limit, nil
	}

	// Cut at a page boundary, if not at what was flushed.
	end := limit
	if wal.LSN(max) < limit-lsn {
		end = (lsn + wal.LSN(max)) &^ (pageSize - 1)
	}
	if c := s.sp.window.get(s.tli, lsn); c != nil {
		s.chunk = c
		off := int(lsn - c.base)
		n := min(int(end-lsn), chunkSize-off)
		s.relay.stats.fromMemory.Add(uint64(n))
		return c.buf[off : off+n], limit, nil
	}
	data, err := s.readFile(lsn, min(end, s.sp.size.Next(lsn)), pos.TLI)
	return data, limit, err
}

// pageSize is XLOG_BLCKSZ of every build in use.
const pageSize = 8192

func (s *source) readFile(lsn, end wal.LSN, current wal.TLI) ([]byte, error) {
	at := s.sp.size.Start(lsn)
	if s.file == nil || s.fileAt != at || s.fileTLI != current {
		if s.file != nil {
			s.file.Close()
			s.file = nil
		}
		f, err := s.sp.file(s.tli, lsn, s.relay.history(current))
		if err != nil {
			return nil, fileError(s.sp.size.FileName(s.tli, at), err)
		}
		s.file, s.fileAt, s.fileTLI = f, at, current
	}
	if s.buf == nil {
		s.buf = make([]byte, pgrepl.MaxWALMessage)
	}
	n, err := s.file.ReadAt(s.buf[:end-lsn], int64(lsn-at))
	if n < int(end-lsn) {
		return nil, pgrepl.Errorf("XX001", "could not read WAL segment %s at %s: %v", s.sp.size.FileName(s.tli, at), lsn+wal.LSN(n), err)
	}
	s.relay.stats.fromDisk.Add(uint64(n))
	return s.buf[:n], nil
}

// fileError is why a segment cannot be read, in a walsender's words. Only one
// that is not there was removed.
func fileError(segment string, err error) *pgrepl.Error {
	if errors.Is(err, fs.ErrNotExist) {
		return pgrepl.Errorf("58P01", "requested WAL segment %s has already been removed", segment)
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return pgrepl.Errorf("58000", "could not open file \"pg_wal/%s\": %v", segment, err)
}
