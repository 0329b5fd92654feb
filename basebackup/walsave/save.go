package walsave

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"rideau/archive"
	"rideau/internal/durable"
	"rideau/pgrepl"
	"rideau/wal"
)

// Config says what to save and where. All of it is needed but Progress and Log.
type Config struct {
	// Dir is pg_wal of the copy. It is made if it is not there, without parents.
	Dir string

	SystemID    uint64
	SegmentSize wal.SegmentSize

	// Start is what pg_backup_start answered, and the timeline it is on.
	Start Position

	// Source is where WAL comes from. It stays the caller's, to be closed.
	Source Source

	// FileMode is that of files: 0600, or 0640 where the group may read.
	// Directories can be entered by the same people.
	FileMode fs.FileMode

	// Progress is told how things stand whenever that has changed. It must not
	// block. Nil: nobody is told.
	Progress func(Status)

	// Log, nil discards.
	Log *slog.Logger
}

func (c *Config) validate() error {
	switch {
	case c.Dir == "":
		return errors.New("walsave: Dir is needed")
	case c.SystemID == 0:
		return errors.New("walsave: SystemID is needed")
	case !c.SegmentSize.Valid():
		return fmt.Errorf("walsave: no server has segments of %d bytes", uint32(c.SegmentSize))
	case c.Start.TLI == 0 || c.Start.LSN == 0:
		return errors.New("walsave: Start is needed")
	case c.Source == nil:
		return errors.New("walsave: Source is needed")
	case c.FileMode.Perm() == 0:
		return errors.New("walsave: FileMode is needed")
	}
	return nil
}

// A Status is how far the saver has got.
type Status struct {
	Saved    wal.LSN // all before it is on disk and proven
	Segments int
	Bytes    int64 // of segments, on disk

	// Waiting is what the saver waits for; its For is empty if it does not.
	Waiting Waiting
}

// A Result is what was saved.
type Result struct {
	Ranges   []Range // of WAL from start to stop, newest first, none empty
	Segments int     // files of segments, those of older timelines included
	Bytes    int64   // of them
}

// Save saves the WAL from cfg.Start to the stop, which arrives once
// pg_backup_stop has returned. When Save returns without an error all of it is
// on disk and proven, with the history files of its timelines.
//
// It first removes all WAL from cfg.Dir: nothing of an earlier attempt, or of a
// server that this directory was of, is trusted. After an error what is there
// is of no use, but no file is incomplete under its final name.
//
// The error is a *RecycledError if WAL is gone, a *wal.CorruptError if it does
// not verify, and ctx's cause if ctx ended.
func Save(ctx context.Context, cfg Config, stop <-chan Position) (*Result, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &saver{Config: cfg, histories: map[wal.TLI]string{}, saved: map[string]bool{}}
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if err := s.setPath(ctx, cfg.Start.TLI); err != nil {
		return nil, err
	}
	s.rewind()

	// What is being fetched when the stop arrives is begun anew, knowing it.
	following, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var at Position
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		select {
		case p, ok := <-stop:
			if at = p; ok {
				cancel(errStopped)
			} else {
				cancel(errNoStop)
			}
		case <-following.Done():
		}
	}()
	err := s.follow(following)
	cancel(nil)
	<-heard
	if !errors.Is(err, errStopped) {
		return nil, err
	}
	return s.finish(ctx, at)
}

var (
	errStopped = errors.New("the backup has stopped")
	errNoStop  = errors.New("the backup was given up before it stopped")
)

// A saver is Save at work.
type saver struct {
	Config
	path      *wal.History
	histories map[wal.TLI]string // texts of those on the path

	prover *prover // all segments before next have passed
	before *prover // all segments but the last of these
	next   wal.LSN
	saved  map[string]bool // names of segments

	status Status
}

// rewind begins at the start.
func (s *saver) rewind() {
	s.next = s.SegmentSize.Start(s.Start.LSN)
	s.prover = newProver(s.SegmentSize, s.SystemID, s.Start.LSN)
	s.status.Saved = s.Start.LSN
}

// prepare makes the directory empty of WAL.
func (s *saver) prepare() error {
	dirMode := s.FileMode.Perm() | s.FileMode.Perm()>>2&0o111
	for _, dir := range []string{s.Dir, s.statusDir()} {
		if err := os.Mkdir(dir, dirMode); err == nil {
			if err := os.Chmod(dir, dirMode); err != nil { // whatever the umask
				return err
			}
		} else if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for _, dir := range []string{s.Dir, s.statusDir()} {
		if err := removeWAL(dir); err != nil {
			return err
		}
	}
	return nil
}

func (s *saver) statusDir() string { return filepath.Join(s.Dir, "archive_status") }

// removeWAL removes the files in dir that have a name of WAL, or of its status.
func removeWAL(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !isWAL(e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return durable.SyncDir(dir)
}

// isWAL reports whether name is one that a server gives to a file in pg_wal or
// archive_status, or one that we give to what becomes one.
func isWAL(name string) bool {
	if durable.IsTemp(name) {
		name, _, _ = strings.Cut(strings.TrimPrefix(name, "."), ".")
		return archive.IsWAL(name) || archive.IsWAL(name+".history")
	}
	for _, suffix := range []string{".done", ".ready"} {
		name = strings.TrimSuffix(name, suffix)
	}
	if segment, offset, ok := strings.Cut(strings.TrimSuffix(name, ".backup"), "."); ok && strings.HasSuffix(name, ".backup") {
		return len(offset) == 8 && archive.IsWAL(segment) // BackupHistoryFileName
	}
	return archive.IsWAL(name)
}

// setPath makes tli's history the path.
func (s *saver) setPath(ctx context.Context, tli wal.TLI) error {
	path := &wal.History{TLI: tli}
	if tli > 1 {
		text, err := s.history(ctx, tli)
		if err != nil {
			return fmt.Errorf("could not get the history of timeline %s: %w", tli, err)
		}
		if path, err = wal.ParseHistory(tli, text); err != nil {
			return err
		}
	}
	s.path = path
	return nil
}

// history answers the text of a history file, once fetched.
func (s *saver) history(ctx context.Context, tli wal.TLI) (string, error) {
	if text, ok := s.histories[tli]; ok {
		return text, nil
	}
	var text string
	err := s.patiently(ctx, tli.HistoryName(), func() (err error) {
		text, err = s.Source.History(ctx, tli)
		return err
	})
	if err == nil {
		s.histories[tli] = text
	}
	return text, err
}

// The pauses before a source is asked again, which double.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// patiently tries until it does not fail for want of a connection.
func (s *saver) patiently(ctx context.Context, what string, try func() error) error {
	for wait := firstPause; ; wait = min(2*wait, lastPause) {
		err := try()
		if _, ok := errors.AsType[*archive.UnreachableError](err); !ok {
			return err
		}
		if wait == firstPause {
			s.Log.Warn("could not get WAL, trying again", "file", what, "err", err)
		}
		s.waiting(Waiting{For: what, Err: err})
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

func (s *saver) waiting(w Waiting) {
	was := s.status.Waiting
	s.status.Waiting = w
	if w.For != was.For || w.LSN != was.LSN || fmt.Sprint(w.Err) != fmt.Sprint(was.Err) {
		s.tell()
	}
}

func (s *saver) tell() {
	if s.Progress != nil {
		s.Progress(s.status)
	}
}

// follow saves complete segments until ctx ends.
func (s *saver) follow(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := s.save(ctx, segment(s.path, s.SegmentSize, s.Start.LSN, s.next, 0))
		if ended, ok := errors.AsType[*pgrepl.EndOfTimeline](err); ok {
			err = s.switchTimeline(ctx, ended)
		}
		if err != nil {
			return err
		}
	}
}

// switchTimeline goes on with a newer timeline.
func (s *saver) switchTimeline(ctx context.Context, ended *pgrepl.EndOfTimeline) error {
	old := s.path
	if err := s.setPath(ctx, ended.Next); err != nil {
		return err
	}
	// What has been saved must be in the new one's past.
	if end, _, ok := s.path.SwitchPoint(old.TLI); !ok || end < max(s.next, s.Start.LSN) {
		return fmt.Errorf("timeline %s ended at %s and timeline %s follows, but %s is not in its past",
			ended.TLI, ended.LSN, ended.Next, Position{old.TLI, max(s.next, s.Start.LSN)})
	}
	s.Log.Info("the timeline has changed", "tli", ended.Next, "lsn", ended.LSN)
	return nil
}

// finish saves what is missing now that the stop is known.
func (s *saver) finish(ctx context.Context, stop Position) (*Result, error) {
	s.waiting(Waiting{}) // what is waited for from here on is news
	if err := s.setPath(ctx, stop.TLI); err != nil {
		return nil, err
	}
	plan, ranges, err := Plan(s.path, s.SegmentSize, s.Start, stop)
	if err != nil {
		return nil, err
	}
	if err := s.keep(plan); err != nil {
		return nil, err
	}
	for _, seg := range plan {
		if seg.LSN < s.next {
			continue
		}
		if err := s.save(ctx, seg); err != nil {
			return nil, err
		}
	}
	if err := s.saveHistories(ctx); err != nil {
		return nil, err
	}
	s.status.Saved = stop.LSN
	s.tell()
	return &Result{Ranges: ranges, Segments: s.status.Segments, Bytes: s.status.Bytes}, nil
}

// keep goes back to the first segment of the plan that is not saved as planned,
// and removes what is saved and not planned. What was saved before the stop was
// known is almost always a beginning of the plan; in which the last segment may
// be, and the stop is then looked for in its file.
func (s *saver) keep(plan []Segment) error {
	kept, names := 0, map[string]bool{}
	for _, seg := range plan {
		files := s.files(seg)
		if slices.ContainsFunc(files, func(name string) bool { return !s.saved[name] }) {
			break
		}
		for _, name := range files {
			names[name] = true
		}
		kept++
	}
	for name := range s.saved {
		if !names[name] {
			if err := s.remove(name); err != nil {
				return err
			}
		}
	}
	next := s.SegmentSize.Start(s.Start.LSN) + wal.LSN(kept)*wal.LSN(s.SegmentSize)
	again := plan[:kept]
	switch lastKept := kept == len(plan); {
	case next != s.next: // the prover cannot go back so far
		s.rewind()
	case lastKept:
		s.prover, again = s.before, plan[kept-1:]
	default:
		return nil
	}
	for _, seg := range again {
		if err := s.proveSaved(seg); err != nil {
			return err
		}
	}
	return nil
}

func (s *saver) proveSaved(seg Segment) error {
	f, err := os.Open(filepath.Join(s.Dir, s.name(seg.TLI, seg.LSN)))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := s.prover.segment(f, int64(s.SegmentSize), seg, s.path); err != nil {
		return fmt.Errorf("could not verify WAL segment %s: %w", f.Name(), err)
	}
	s.next = s.SegmentSize.Next(seg.LSN)
	s.status.Saved = s.next
	return nil
}

func (s *saver) name(tli wal.TLI, lsn wal.LSN) string { return s.SegmentSize.FileName(tli, lsn) }

// files answers the names of a segment's files: its own, and older timelines'.
func (s *saver) files(seg Segment) []string {
	names := []string{s.name(seg.TLI, seg.LSN)}
	for _, e := range seg.Older {
		names = append(names, s.name(e.TLI, seg.LSN))
	}
	return names
}

// remove removes a segment that was saved. Its loss need not be on disk until
// the directory is synced, which the next segment's rename does; and there is a
// next, the last.
func (s *saver) remove(name string) error {
	s.Log.Info("the backup does not need this segment after all", "segment", name)
	for _, path := range []string{filepath.Join(s.Dir, name), s.donePath(name)} {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	delete(s.saved, name)
	s.status.Segments--
	s.status.Bytes -= int64(s.SegmentSize)
	return nil
}

// proveAgain is how often a segment that does not verify is fetched again: what
// was torn then is not torn now, what is corrupt stays so.
const proveAgain = 5

// save fetches a segment, proves it and gives it its name.
func (s *saver) save(ctx context.Context, seg Segment) error {
	name := s.name(seg.TLI, seg.LSN)
	wait := firstPause
	for again := 0; ; again++ {
		err := s.patiently(ctx, name, func() error { return s.try(ctx, seg, name) })
		_, corrupt := errors.AsType[*wal.CorruptError](err)
		_, recycled := errors.AsType[*RecycledError](err)
		if !corrupt || recycled || again == proveAgain {
			return err
		}
		s.Log.Warn("WAL does not verify, reading it again", "segment", name, "err", err)
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait *= 2
	}
}

// try fetches a segment once.
func (s *saver) try(ctx context.Context, seg Segment, name string) error {
	f, err := durable.Create(filepath.Join(s.Dir, name), s.FileMode)
	if err != nil {
		return fmt.Errorf("could not create WAL segment %q, which begins at %s: %w", name, seg.LSN, err)
	}
	defer f.Close()
	w := &writer{f: f, name: name, lsn: seg.LSN, left: int64(s.SegmentSize)}
	if err := s.Source.Fetch(ctx, seg, w, s.waiting); err != nil {
		return err
	}
	s.status.Waiting = Waiting{}
	proven := *s.prover
	end, err := proven.segment(f, int64(w.lsn-seg.LSN), seg, s.path)
	if err != nil {
		return fmt.Errorf("could not verify WAL segment %s: %w", name, err)
	}
	if err := s.commit(f, seg, name, end); err != nil {
		return err
	}
	s.before, s.prover, s.next = s.prover, &proven, s.SegmentSize.Next(seg.LSN)
	s.status.Saved = min(s.next, seg.Need)
	s.tell()
	return nil
}

// commit makes a file that is good up to end a segment.
func (s *saver) commit(f *durable.File, seg Segment, name string, end wal.LSN) error {
	if err := zeroFrom(f, int64(end-seg.LSN), int64(s.SegmentSize)); err != nil {
		return fmt.Errorf("could not write WAL segment %q at %s: %w", name, end, err)
	}
	// Those made from this one come first: it cannot be read once it is closed.
	for _, e := range seg.Older {
		if err := s.saveOlder(f, seg, e); err != nil {
			return err
		}
	}
	if err := f.Commit(); err != nil {
		return fmt.Errorf("could not write WAL segment %q, which begins at %s: %w", name, seg.LSN, err)
	}
	return s.done(name, seg.LSN)
}

// saveOlder makes the file that an older timeline has of a segment in which it
// ended. What is there of it is in the newer one's.
func (s *saver) saveOlder(newer io.ReaderAt, seg Segment, e wal.Entry) error {
	name := s.name(e.TLI, seg.LSN)
	n := int64(e.End - seg.LSN)
	f, err := durable.Create(filepath.Join(s.Dir, name), s.FileMode)
	if err == nil {
		defer f.Close()
		_, err = io.Copy(f, io.NewSectionReader(newer, 0, n))
	}
	if err == nil {
		err = zeroFrom(f, n, int64(s.SegmentSize))
	}
	if err == nil {
		err = f.Commit()
	}
	if err != nil {
		return fmt.Errorf("could not write WAL segment %q, which begins at %s: %w", name, seg.LSN, err)
	}
	return s.done(name, seg.LSN)
}

// zeroFrom makes everything from n on zeros, up to size. The space is the
// file's own: a server that reuses it must not find the disk full.
func zeroFrom(f *durable.File, n, size int64) error {
	if n < size {
		if err := f.Truncate(n); err != nil {
			return err
		}
		return durable.WriteZeros(f.File, size)
	}
	return nil
}

// done counts a segment in, and marks it as archived, as pg_basebackup does:
// a copy that is promoted must not archive what its origin has archived.
func (s *saver) done(name string, lsn wal.LSN) error {
	if !s.saved[name] {
		s.saved[name] = true
		s.status.Segments++
		s.status.Bytes += int64(s.SegmentSize)
	}
	if err := durable.WriteFile(s.donePath(name), nil, s.FileMode); err != nil {
		return fmt.Errorf("could not mark WAL segment %q, which begins at %s, as archived: %w", name, lsn, err)
	}
	return nil
}

func (s *saver) donePath(name string) string { return filepath.Join(s.statusDir(), name+".done") }

// saveHistories keeps the history files of the path. That of its timeline must
// be there, and names all ancestors; theirs are kept where the source has them.
func (s *saver) saveHistories(ctx context.Context) error {
	var list []wal.TLI
	for _, e := range s.path.Entries {
		list = append(list, e.TLI)
	}
	for _, tli := range slices.DeleteFunc(append(list, s.path.TLI), func(tli wal.TLI) bool { return tli == 1 }) {
		name := tli.HistoryName()
		text, err := s.history(ctx, tli)
		if errors.Is(err, fs.ErrNotExist) && tli != s.path.TLI {
			s.Log.Info("the source has no history of an older timeline", "tli", tli)
			continue
		}
		if err == nil {
			err = durable.WriteFile(filepath.Join(s.Dir, name), []byte(text), s.FileMode)
		}
		if err == nil {
			err = durable.WriteFile(s.donePath(name), nil, s.FileMode)
		}
		if err != nil {
			return fmt.Errorf("could not save %q: %w", name, err)
		}
	}
	return nil
}

// A writer is where a source writes a segment: no more than one, and errors say
// that they are of here.
type writer struct {
	f    io.Writer
	name string
	lsn  wal.LSN // the next byte
	left int64
}

func (w *writer) Write(p []byte) (int, error) {
	if int64(len(p)) > w.left {
		return 0, &writeError{fmt.Errorf("WAL segment %q is longer than a segment", w.name)}
	}
	n, err := w.f.Write(p)
	w.lsn += wal.LSN(n)
	w.left -= int64(n)
	if err != nil {
		err = &writeError{fmt.Errorf("could not write WAL segment %q at %s: %w", w.name, w.lsn, err)}
	}
	return n, err
}
