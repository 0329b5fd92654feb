package relay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"rideau/internal/durable"
	"rideau/wal"
)

// A Position is how far the relay has got, all of it on disk.
type Position struct {
	TLI      wal.TLI `json:"tli"`
	Flushed  wal.LSN `json:"flushed"`  // the first byte that is not yet flushed
	Complete wal.LSN `json:"complete"` // the end of the last whole record; at most Flushed
}

// A spool is the WAL on disk and in memory: one writer, many readers.
//
//	receiver    space, append, commit    owns tli, check, taken, buf
//	writer      writeBehind              what nobody waits for, see there
//	syncer      sync                     fdatasync, rename, publish
//	everybody   position, subscribe      what was published
//
// The stream in progress and the published position are on the same timeline
// except after a switch: the new timeline's first segment is received from its
// byte 0, and what is published stays at the end of the old timeline until the
// new one has reached the switch point. So a published position never goes
// back, and neither does what we acknowledge.
type spool struct {
	dir      string
	size     wal.SegmentSize
	systemID uint64
	log      *slog.Logger
	window   window
	next     *preparer // of segments; nil: none are
	stats    *stats

	// The receiver's own.
	tli    wal.TLI
	check  *wal.Checker
	taken  wal.LSN // the first byte not yet received; the stream goes on here
	handed wal.LSN // the first byte that is neither written nor with the writer
	buf    *chunk  // holds handed
	behind bool    // the writer may have pieces

	whole       wal.LSN // the end of the last whole message
	wholeRecord wal.LSN // and of the last whole record in it

	// serverEnd is how far the server was as it sent what is being written.
	serverEnd wal.LSN

	// The receiver's, and the writer's while it has pieces.
	cur      *segment
	written  wal.LSN // the first byte not yet written; at most taken
	noDirect bool    // this file system does not do that

	pieces   chan piece     // to the writer; nil: there is none
	writing  sync.WaitGroup // pieces that are with it
	writeErr error          // its first; the receiver's after writing.Wait

	dirty chan struct{} // capacity 1: there is something to sync

	// syncing is held while files are synced or dropped; taken before mu.
	syncing sync.Mutex
	failed  error // of the last sync; it stays until the files are dropped

	mu    sync.Mutex
	todo  []*segment // written to since the last sync, oldest first
	stage Position   // what a sync now would publish: Flushed is written
	goal  wal.LSN    // publish nothing of stage.TLI before this: the switch point
	done  Position   // the last stage that was synced
	pos   Position   // the last that was published
	times lsnTimes
	subs  map[chan struct{}]struct{}
}

// A segment is a file that is being filled.
type segment struct {
	f      *os.File
	direct *os.File // the same, past the system's cache; nil until wanted
	path   string   // without .partial
	start  wal.LSN
	end    wal.LSN
	isNew  bool // its directory entry may not be on disk yet
}

func (g *segment) close() error {
	if g.direct != nil {
		// What it wrote is synced by way of f, of which errors are told.
		g.direct.Close()
	}
	return g.f.Close()
}

const partialSuffix = ".partial"

func newSpool(dir string, size wal.SegmentSize, systemID uint64, log *slog.Logger, st *stats) *spool {
	return &spool{
		dir: dir, size: size, systemID: systemID, log: log, stats: st,
		dirty: make(chan struct{}, 1),
		subs:  map[chan struct{}]struct{}{},
	}
}

// position is what is on disk now.
func (s *spool) position() Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pos
}

// reportable is the flush position to report on the stream in progress.
func (s *spool) reportable() wal.LSN {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done.Complete
}

// local is what the receiver holds. For the receiver only.
func (s *spool) local() local {
	if s.tli == 0 {
		return local{systemID: s.systemID, segmentSize: s.size}
	}
	return local{
		systemID: s.systemID, segmentSize: s.size,
		tli: s.tli, complete: min(s.check.End(), s.written), written: s.written,
	}
}

// subscribe returns a channel that receives when the position moves.
func (s *spool) subscribe() chan struct{} {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subs[ch] = struct{}{}
	return ch
}

func (s *spool) unsubscribe(ch chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.subs, ch)
}

// wake tells all subscribers to look again. The caller holds mu.
func (s *spool) wake() {
	for ch := range s.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// begin makes the spool ready for WAL of tli from lsn, which is a segment
// boundary: the first of all, or the segment of a timeline switch, which
// happens at goal. What was committed before is synced and published first.
func (s *spool) begin(tli wal.TLI, lsn, goal wal.LSN) error {
	if err := s.sync(time.Now); err != nil {
		return err
	}
	s.drop()
	s.tli = tli
	s.taken, s.handed, s.written = lsn, lsn, lsn
	s.check = wal.NewChecker(s.size, s.systemID, tli, lsn)
	s.endMessage()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stage = Position{tli, lsn, lsn}
	s.done, s.goal = s.stage, goal
	if s.pos.TLI == 0 {
		s.pos = s.stage
		s.wake()
	}
	return nil
}

// resume makes the spool ready to go on where the disk says that we were.
func (s *spool) resume(tli wal.TLI, lsn wal.LSN, check *wal.Checker) {
	s.drop()
	s.window.forget()
	s.tli, s.check = tli, check
	s.taken, s.handed, s.written = lsn, lsn, lsn
	s.endMessage()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stage = Position{tli, lsn, min(check.End(), lsn)}
	s.done, s.goal, s.pos = s.stage, 0, s.stage
	s.wake()
}

// drop closes the files that are open, synced or not.
func (s *spool) drop() {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seg := range s.todo {
		seg.close()
	}
	s.todo, s.cur, s.buf = nil, nil, nil
	s.failed, s.writeErr, s.behind, s.noDirect = nil, nil, false, false
}

// space returns memory for the next n bytes of the stream or fewer, at least
// one: to be filled and then given to append. It ends with its segment.
func (s *spool) space(n int) []byte {
	if s.buf == nil || s.taken >= s.buf.base+chunkSize {
		s.buf = s.window.at(s.tli, s.taken)
	}
	off := int(s.taken - s.buf.base)
	return s.buf.buf[off:min(off+n, chunkSize)]
}

// append checks the bytes that space gave. They are written to their segment by
// commit, or before that when a chunk is full, or by the writer. A record that is
// not valid is refused before anything of this piece is written: the error is a
// *wal.CorruptError.
//
// On a full disk it waits for room, or for ctx.
func (s *spool) append(ctx context.Context, p []byte) error {
	if _, err := s.check.Write(p); err != nil {
		return err
	}
	s.taken += wal.LSN(len(p))
	far := s.far()
	s.behind = s.behind || far
	switch {
	case s.taken < s.buf.base+chunkSize:
		return nil
	case far:
		return s.hand(ctx)
	}
	return s.writeRest(ctx, false)
}

// far reports whether nobody waits for what is received now, and there is a
// writer for it.
func (s *spool) far() bool { return s.pieces != nil && s.taken+catchUp <= s.serverEnd }

// writeRest waits for the writer, and writes what it was not given. If awaited,
// a sync comes next, and nobody does anything else meanwhile.
func (s *spool) writeRest(ctx context.Context, awaited bool) error {
	// A disk that hangs keeps us from reading.
	busy := s.stats.syncing.Swap(true)
	defer s.stats.syncing.Store(busy)
	if s.behind {
		s.writing.Wait()
		s.behind = false
	}
	if s.writeErr != nil || s.handed == s.taken {
		return s.writeErr
	}
	// A segment in which the server already is gets zeros at once, as those
	// that come after it get them in advance (preparer).
	zeros := s.serverEnd < s.size.Next(s.written)
	if err := s.write(ctx, s.buf, s.taken, s.check.End(), awaited, zeros); err != nil {
		return err
	}
	s.handed = s.taken
	return nil
}

// write writes WAL that c holds, from written up to to, which is in the same
// segment. complete is the end of the last whole record up to there. direct is to
// try it past the system's cache: for what nobody waits for, and what is synced
// next. zeros is how a new segment is made.
func (s *spool) write(ctx context.Context, c *chunk, to, complete wal.LSN, direct, zeros bool) error {
	if s.cur == nil {
		if err := s.retryFull(ctx, "create", func() error { return s.open(zeros) }); err != nil {
			return err
		}
	}
	seg := s.cur
	err := s.retryFull(ctx, "write to", func() error {
		if direct && s.writeDirect(seg, c, s.written, to) {
			return nil
		}
		_, err := seg.f.WriteAt(c.buf[s.written-c.base:to-c.base], int64(s.written-seg.start))
		return err
	})
	if err != nil {
		return err
	}
	s.written = to
	if s.written == seg.end {
		s.cur = nil
		s.commitAt(to, complete)
		s.wakeSyncer()
	}
	return nil
}

// open opens or creates the segment that holds written. A new one is made of
// zeros, or only allocated.
func (s *spool) open(zeros bool) error {
	start := s.size.Start(s.written)
	path := filepath.Join(s.dir, s.size.FileName(s.tli, start))
	// A finished file is there if we went back to repeat its end. It counts
	// more than a partial one that somebody may have left beside it.
	if _, err := os.Lstat(path); err == nil {
		if err := durable.Rename(path, path+partialSuffix); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path+partialSuffix, os.O_RDWR, 0)
	created := errors.Is(err, fs.ErrNotExist)
	if created {
		if prepared := s.next.take(path + partialSuffix); prepared != nil {
			s.opened(prepared, path, start)
			return nil
		}
		f, err = os.OpenFile(path+partialSuffix, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return err
	}
	// All of it, so that a disk that fills up is met here, before any WAL of
	// this segment was taken, and so that syncs have no file size to write.
	allocate := durable.Preallocate
	if created && zeros && s.next != nil && s.size <= preparedMax {
		allocate = durable.WriteZeros
	}
	if err := allocate(f, int64(s.size)); err != nil {
		f.Close()
		if created {
			os.Remove(path + partialSuffix)
		}
		return err
	}
	s.opened(f, path, start)
	return nil
}

// opened makes f the segment to write to. A file that was found may have been
// made by an attempt, or a process, that ended before it synced the directory.
func (s *spool) opened(f *os.File, path string, start wal.LSN) {
	seg := &segment{f: f, path: path, start: start, end: start + wal.LSN(s.size), isNew: true}
	s.cur = seg
	s.mu.Lock()
	s.todo = append(s.todo, seg)
	s.mu.Unlock()
}

// fullRetry is how often a full disk is tried again.
const fullRetry = time.Second

// retryFull does op again while it fails for lack of room. What the server
// sends meanwhile waits in the connection, unacknowledged.
func (s *spool) retryFull(ctx context.Context, what string, op func() error) error {
	err := op()
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	name := s.size.FileName(s.tli, s.written)
	s.log.Error("no room for WAL; nothing is acknowledged until there is",
		"segment", name, "lsn", s.written, "tli", s.tli, "err", fmt.Errorf("could not %s segment: %w", what, err))
	s.stats.full.Store(true)
	defer s.stats.full.Store(false)
	tick := time.NewTicker(fullRetry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return &DiskFullError{Dir: s.dir, LSN: s.written, Err: err}
		case <-tick.C:
		}
		err = op()
		if err == nil {
			s.log.Info("there is room again; WAL is taken and acknowledged", "segment", name, "lsn", s.written, "tli", s.tli)
		}
		if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
			return err
		}
	}
}

// A DiskFullError says that the relay was stopped while it waited for room.
type DiskFullError struct {
	Dir string
	LSN wal.LSN // the first byte that was not kept
	Err error
}

func (e *DiskFullError) Error() string {
	return fmt.Sprintf("no room in %q for WAL at %s", e.Dir, e.LSN)
}

func (e *DiskFullError) Unwrap() error { return e.Err }

// endMessage is called where the server's own message ended, so that what is
// published never ends inside a record unless the server cut it there.
func (s *spool) endMessage() {
	s.whole, s.wholeRecord = s.taken, s.check.End()
}

// commit writes what was appended, and makes whole messages part of the next
// sync.
func (s *spool) commit(ctx context.Context, awaited bool) error {
	if err := s.writeRest(ctx, awaited); err != nil {
		return err
	}
	s.commitAt(s.whole, s.wholeRecord)
	return nil
}

// commitAt commits what was written up to end, unless more was before. For who
// writes.
func (s *spool) commitAt(end, complete wal.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if end > s.stage.Flushed {
		s.stage = Position{s.tli, end, min(complete, end)}
	}
}

// unsynced is how many bytes were received since what was last synced.
func (s *spool) unsynced() wal.LSN {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done.TLI != s.tli || s.done.Flushed > s.taken {
		return farBehind
	}
	return s.taken - s.done.Flushed
}

// wakeSyncer asks for a sync by the syncer.
func (s *spool) wakeSyncer() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// sync makes everything that was committed durable, then publishes it: one
// sync for all that arrived while the one before was under way. An error means
// that the bytes since the last success may be lost: nobody may sync the same
// files again and believe it; the spool is read anew from disk. So the error
// is answered again to whoever calls, until then.
func (s *spool) sync(now func() time.Time) error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	if s.failed == nil {
		s.failed = s.syncLocked(now)
	}
	return s.failed
}

func (s *spool) syncLocked(now func() time.Time) error {
	s.mu.Lock()
	stage, todo, goal, done := s.stage, s.todo, s.goal, s.done
	s.mu.Unlock()
	if stage == done {
		return nil // somebody else's sync was in time for this
	}

	finished := 0 // of todo, from the front
	for _, seg := range todo {
		if seg.start >= stage.Flushed {
			break
		}
		began := now()
		if err := durable.Fdatasync(seg.f); err != nil {
			return err
		}
		s.stats.fsync.Observe(now().Sub(began).Seconds())
		switch {
		case seg.end <= stage.Flushed:
			if err := durable.Rename(seg.path+partialSuffix, seg.path); err != nil {
				return err
			}
			if err := seg.close(); err != nil {
				return err
			}
			finished++
		case seg.isNew:
			if err := durable.SyncDir(s.dir); err != nil {
				return err
			}
			seg.isNew = false
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.todo, s.done = s.todo[finished:], stage
	if stage.Flushed < goal {
		return nil // the new timeline has not reached its beginning yet
	}
	if stage != s.pos {
		s.pos = stage
		s.times.add(stage.Flushed, now())
		s.wake()
	}
	return nil
}

// file opens the file that holds the segment of lsn for a reader on tli, whose
// path to the present is history. A segment in which tli ended is in the next
// timeline's file too, the same bytes up to the switch: that serves where we
// never had, or no longer have, the older file.
func (s *spool) file(tli wal.TLI, lsn wal.LSN, history *wal.History) (*os.File, error) {
	start := s.size.Start(lsn)
	for {
		path := filepath.Join(s.dir, s.size.FileName(tli, start))
		// It may be renamed between our looks, but only in this direction.
		for _, name := range []string{path, path + partialSuffix, path} {
			f, err := os.Open(name)
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return f, err
			}
		}
		end, next, ok := history.SwitchPoint(tli)
		if !ok || s.size.Start(end) != start {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		}
		tli = next
	}
}

// lsnTimes remembers when the newest positions were reached, to tell a
// standby's lag in time. One every 100 ms at most, for the last minutes.
type lsnTimes struct {
	ring [4096]struct {
		lsn wal.LSN
		at  time.Time
	}
	n int // how many were ever added
}

const lsnTimesEvery = 100 * time.Millisecond

func (t *lsnTimes) add(lsn wal.LSN, at time.Time) {
	if t.n > 0 && at.Sub(t.ring[(t.n-1)%len(t.ring)].at) < lsnTimesEvery {
		return
	}
	t.ring[t.n%len(t.ring)].lsn, t.ring[t.n%len(t.ring)].at = lsn, at
	t.n++
}

// since is when WAL behind lsn first was there; false if that is longer ago
// than we remember, or nothing is behind lsn.
func (t *lsnTimes) since(lsn wal.LSN) (time.Time, bool) {
	for i := max(0, t.n-len(t.ring)); i < t.n; i++ {
		if e := t.ring[i%len(t.ring)]; e.lsn > lsn {
			return e.at, true
		}
	}
	return time.Time{}, false
}
