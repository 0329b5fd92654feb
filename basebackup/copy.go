package basebackup

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"rideau/basebackup/compress"
	"rideau/basebackup/manifest"
	"rideau/basebackup/page"
	"rideau/wal"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Small files share a statement: so many of them, or so many bytes.
const (
	packFiles = 400
	packBytes = 4 << 20
)

// maxTries is how often a chunk with a page that looks wrong is read before it
// is taken as it is.
const maxTries = 5

// A task is one extent of a file.
type task struct {
	file   *file
	extent int
	off    int64
	n      int64
	fd     *os.File // open from when it is asked for until it is done
	crcs   []uint32 // of its chunks
	left   int      // chunks that are not done
	bytes  int64    // of those that are

	damaged []CorruptPage
}

// A sum is what is known of a file of several extents while they are copied by
// several workers.
type sum struct {
	left     atomic.Int32
	vanished atomic.Bool
	crcs     []uint32 // of its extents
	size     int64    // if it was found to be another than was listed
}

// A copier copies the files of a listing.
type copier struct {
	dir       string
	mode      fs.FileMode // of files
	umask     fs.FileMode
	d         *dialer
	f         *facts
	checksums bool
	start     wal.LSN        // of this backup
	end       func() wal.LSN // how far the server's WAL is now
	// how is asked about an extent. since is for newer, and picks, pages within
	// the file in ascending order, for picked.
	how      func(f *file, extent int, off, n int64) (how method, since wal.LSN, picks []uint32)
	limit    *limiter
	compress *compression // nil: nothing is

	// done is told of each file once: vanished, or with its CRC and size.
	// copied is told of each extent of a main fork that is written.
	done   func(f *file, vanished bool, size int64, crc uint32) error
	copied func(t *task)

	queue queue
	shift *manifest.Shift // by an extent
	chunk *manifest.Shift // by a chunk

	totalFiles int
	totalBytes int64

	bytes, received, written atomic.Int64
	filesDone                atomic.Int64
	vanishedFiles            atomic.Int64

	mu        sync.Mutex
	corrupt   []CorruptPage
	corrupted int
}

// A queue hands out tasks: large files first, an extent at a time, so that the
// workers end together; then the small ones, in the order of the listing.
//
// A worker stays with its file while there is another for the others: two that
// write to one file wait for each other in the kernel, which lets one writer at
// a time into a file. When there are no more files they share the longest.
type queue struct {
	mu    sync.Mutex
	large []*shared
	small []*file
	again []*task
}

// A shared file is one of several extents, of which those from next to end are
// to be had.
type shared struct {
	file      *file
	next, end int
	workers   int
}

func (q *queue) fill(files []*file) {
	for _, f := range files {
		if f.size <= packBytes/4 {
			q.small = append(q.small, f)
			continue
		}
		n := extents(f.size)
		f.sum = &sum{crcs: make([]uint32, n), size: -1}
		f.sum.left.Store(int32(n))
		q.large = append(q.large, &shared{file: f, end: n})
	}
	slices.SortStableFunc(q.large, func(a, b *shared) int { return cmp.Compare(b.file.size, a.file.size) })
}

// take gives the tasks of one statement; none when all are taken. on is the
// file that the worker is at, which take may change.
func (q *queue) take(on **shared) []*task {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.again) > 0 {
		t := q.again[0]
		q.again = q.again[1:]
		return []*task{t}
	}
	if s := q.file(on); s != nil {
		t := &task{file: s.file, extent: s.next, off: int64(s.next) * extentSize}
		t.n = min(extentSize, s.file.size-t.off)
		s.next++
		return []*task{t}
	}
	var pack []*task
	var n int64
	for len(q.small) > 0 && len(pack) < packFiles && n < packBytes {
		f := q.small[0]
		q.small = q.small[1:]
		f.sum = &sum{crcs: make([]uint32, 1), size: -1}
		f.sum.left.Store(1)
		pack = append(pack, &task{file: f, n: f.size})
		n += f.size
	}
	return pack
}

// file is which large file to go on with: that which the worker is at, the
// largest that nobody is at, or that with the most left.
func (q *queue) file(on **shared) *shared {
	if *on != nil && (*on).next < (*on).end {
		return *on
	}
	if *on != nil {
		(*on).workers--
		*on = nil
	}
	q.large = slices.DeleteFunc(q.large, func(s *shared) bool { return s.next == s.end })
	var best *shared
	for _, s := range q.large {
		if s.workers == 0 {
			best = s
			break
		}
		if best == nil || s.end-s.next > best.end-best.next {
			best = s
		}
	}
	if best != nil {
		best.workers++
	}
	*on = best
	return best
}

// leave says that a worker is no longer at its file.
func (q *queue) leave(on *shared) {
	if on == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	on.workers--
}

// giveBack returns tasks that a lost connection left undone.
func (q *queue) giveBack(tasks []*task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.again = append(q.again, tasks...)
}

func extents(size int64) int { return max(1, int((size+extentSize-1)/extentSize)) }

// run copies everything with so many workers.
func (c *copier) run(ctx context.Context, jobs int) error {
	c.shift, c.chunk = manifest.NewShift(extentSize), manifest.NewShift(chunkSize)
	g, ctx := errgroup.WithContext(ctx)
	for range jobs {
		g.Go(func() error { return c.worker(ctx) })
	}
	return g.Wait()
}

// patience is for how long a worker tries to get its connection back while
// nobody else ends the backup.
const patience = time.Minute

// worker copies until there is nothing left. A connection that is lost is made
// again: only the control session is precious.
func (c *copier) worker(ctx context.Context) error {
	var failing time.Time
	delay := 50 * time.Millisecond
	for {
		before := c.received.Load()
		w := &worker{c: c, ctx: ctx, buf: make([]byte, chunkSize), local: make([]byte, chunkSize)}
		if c.compress != nil {
			w.packed = make([]byte, chunkSize+packedMore)
		}
		err := w.run()
		w.close()
		if err == nil || ctx.Err() != nil || !lost(err) {
			return err
		}
		now := time.Now()
		if c.received.Load() > before || failing.IsZero() {
			failing, delay = now, 50*time.Millisecond
		}
		if now.Sub(failing) > patience {
			return err
		}
		if err := pause(ctx, delay); err != nil {
			return err
		}
		delay = min(2*delay, 5*time.Second)
	}
}

// A worker is one connection's.
type worker struct {
	c      *copier
	ctx    context.Context
	s      *stream
	buf    []byte // the chunk, as it will be on disk
	local  []byte // what was there, or what was sent
	packed []byte // as it came, compressed
	decode compress.Decoder
	ended  time.Time // when the last answer was complete
	on     *shared
	mine   []*task    // taken, not yet done
	todo   []*request // of theirs, not yet asked
	turn   *turn      // how to ask next, if that must wait
	flight []flight
	seen   int64
}

// A flight is a statement whose answer has not been read.
type flight struct {
	turn turn
	reqs []*request
}

// ahead is how many statements are sent before the answer to the first is read,
// so that the server never waits for us to ask.
const ahead = 2

func (w *worker) run() error {
	s, err := w.c.d.stream(w.ctx)
	if err != nil {
		return err
	}
	w.s, w.seen = s, s.read
	if w.c.compress != nil {
		w.decode = w.c.compress.method.NewDecoder()
	}
	w.ended = time.Now()
	stop := context.AfterFunc(w.ctx, func() { s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = w.loop()
	if err != nil && w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	return err
}

func (w *worker) loop() error {
	for {
		if err := w.fill(); err != nil {
			return err
		}
		if len(w.flight) == 0 {
			return nil
		}
		f := w.flight[0]
		w.flight = w.flight[1:]
		again, err := w.answer(f)
		if err != nil {
			return err
		}
		if err := w.rest(again); err != nil {
			return err
		}
		w.todo = append(again, w.todo...)
	}
}

// fill sends statements until enough are under way, or nothing is left.
func (w *worker) fill() error {
	for len(w.flight) < ahead {
		if len(w.todo) == 0 {
			tasks := w.c.queue.take(&w.on)
			if len(tasks) == 0 {
				return nil
			}
			w.mine = append(w.mine, tasks...)
			var err error
			if w.todo, err = w.requests(tasks); err != nil {
				return err
			}
			continue
		}
		m := w.todo[0].method
		if w.turn == nil || w.turn.method != m {
			turn := w.c.compress.next(m, w.todo)
			w.turn = &turn
		}
		if w.turn.Trial && len(w.flight) > 0 {
			return nil // it is to be alone
		}
		turn := *w.turn
		w.turn = nil
		if err := w.ask(turn); err != nil {
			return err
		}
	}
	return nil
}

// rest lets a moment pass before pages are read again that looked wrong: the
// server may be in the middle of writing them.
func (w *worker) rest(again []*request) error {
	if !slices.ContainsFunc(again, func(r *request) bool { return r.tries > 0 }) {
		return nil
	}
	return pause(w.ctx, 20*time.Millisecond)
}

func (w *worker) close() {
	if w.s != nil {
		w.s.Close()
	}
	var undone []*task
	for _, t := range w.mine {
		if t.fd != nil {
			t.fd.Close()
			t.fd = nil
		}
		if t.left > 0 || t.crcs == nil {
			w.c.bytes.Add(-t.bytes)
			t.crcs, t.bytes, t.damaged = nil, 0, nil
			undone = append(undone, t)
		}
	}
	w.c.queue.leave(w.on)
	w.c.queue.giveBack(undone)
}

// requests splits tasks into chunks, each with the method that suits it.
func (w *worker) requests(tasks []*task) ([]*request, error) {
	var reqs []*request
	for _, t := range tasks {
		chunks := int((t.n + chunkSize - 1) / chunkSize)
		if chunks == 0 {
			chunks = 1 // to see that it is there
		}
		how, since, picks := w.c.how(t.file, t.extent, t.off, t.n)
		if t.n == 0 {
			how = whole
		}
		t.crcs, t.left = make([]uint32, chunks), chunks
		for i := range chunks {
			off := t.off + int64(i)*chunkSize
			r := &request{task: t, method: how, off: off, n: int(min(chunkSize, t.off+t.n-off)), since: since}
			if how == picked {
				first := uint32(off / page.Size)
				for len(picks) > 0 && picks[0] < first+chunkSize/page.Size {
					r.blocks = append(r.blocks, uint16(picks[0]-first))
					picks = picks[1:]
				}
				if len(r.blocks) == 0 {
					ok, err := w.unchanged(r)
					if err != nil {
						return nil, err
					}
					if ok {
						continue
					}
				}
			}
			reqs = append(reqs, r)
		}
	}
	return reqs, nil
}

// unchanged settles a chunk of which nothing need travel. If what we have is
// not as it should be, all of the chunk is asked for instead.
func (w *worker) unchanged(r *request) (bool, error) {
	ok, err := w.load(r)
	if err != nil || !ok {
		r.method = whole
		return false, err
	}
	again, err := w.settle(r, nil)
	if again != nil {
		*r = *again
		return false, err
	}
	return true, err
}

// ask sends a statement for the first requests of the turn's method, as many as
// it allows.
func (w *worker) ask(turn turn) error {
	var reqs, left []*request
	var size int64
	for _, r := range w.todo {
		if r.method == turn.method && (len(reqs) == 0 || size+int64(r.n) <= turn.bytes) {
			reqs, size = append(reqs, r), size+int64(r.n)
		} else {
			left = append(left, r)
		}
	}
	w.todo = left
	var wrap func(string) string
	if turn.Compress {
		wrap = w.c.compress.method.Expr
	}
	if len(w.flight) == 0 {
		w.ended = time.Now() // the server waits for us
	}
	if err := w.s.query(statement(turn.method, reqs, wrap)); err != nil {
		return err
	}
	w.flight = append(w.flight, flight{turn, reqs})
	return nil
}

// answer reads the rows of a statement, and returns what must be asked for
// next.
func (w *worker) answer(f flight) (again []*request, err error) {
	if err := w.s.begin(); err != nil {
		return nil, w.about(f.reqs, err)
	}
	for i := 0; ; i++ {
		_, ok, err := w.s.tuple()
		if err != nil {
			return nil, w.about(f.reqs[min(i, len(f.reqs)-1):], err)
		}
		if !ok {
			if i != len(f.reqs) {
				return nil, fmt.Errorf("server answered %d of %d questions", i, len(f.reqs))
			}
			now := time.Now()
			w.c.compress.done(f, now.Sub(w.ended))
			w.ended = now
			return again, nil
		}
		n, _, err := w.s.integer()
		if err != nil {
			return nil, err
		}
		if n != int64(i)+1 || i >= len(f.reqs) {
			return nil, fmt.Errorf("server answered question %d where %d was next", n, i+1)
		}
		r, err := w.row(f.reqs[i], f.turn.Compress)
		if err != nil {
			return nil, err
		}
		if r != nil {
			again = append(again, r)
		}
		got := w.s.read - w.seen
		w.seen = w.s.read
		w.c.received.Add(got)
		if err := w.c.limit.take(w.ctx, got); err != nil {
			return nil, err
		}
	}
}

// about says which file an error of the server's is about, as near as can be
// known.
func (w *worker) about(reqs []*request, err error) error {
	if lost(err) || len(reqs) == 0 {
		return err
	}
	return &FileError{Server: w.c.d.String(), Path: reqs[0].task.file.path, Err: err}
}

// data reads the last field of a row, a bytea of at most n bytes once it is
// decompressed, into dst. Compressed, its length comes before it.
func (w *worker) data(dst []byte, n int, compressed bool) (b []byte, null bool, err error) {
	if !compressed {
		return w.s.bytes(dst[:n])
	}
	size, _, err := w.s.integer()
	if err != nil {
		return nil, false, err
	}
	if size > int64(n) {
		return nil, false, fmt.Errorf("server sent %d bytes where at most %d were asked for", size, n)
	}
	packed, null, err := w.s.bytes(w.packed)
	if err != nil || null {
		return nil, null, err
	}
	b, err = w.decode.Decode(dst[:0], packed, int(size))
	if err == nil && len(b) != int(size) {
		err = fmt.Errorf("server's compressed data holds %d bytes, not %d", len(b), size)
	}
	return b, false, err
}

// row takes the answer to r, and returns what must be asked for next, if
// anything.
func (w *worker) row(r *request, compressed bool) (again *request, err error) {
	if r.method == whole {
		want := r.ask()
		into := w.buf
		if compressed {
			into = w.local // which a decoder may leave for another
		}
		b, null, err := w.data(into, want, compressed)
		switch {
		case err != nil:
			return nil, err
		case null:
			return nil, w.vanish(r)
		}
		if r.task.file.atOnce() {
			r.n = len(b) // as it is now
			r.task.file.sum.size = int64(len(b))
		}
		if compressed {
			copy(w.buf, b)
		}
		// Shrunk since it was listed: the WAL that shrank it is replayed.
		clear(w.buf[len(b):r.n])
		return w.settle(r, nil)
	}

	size, null, err := w.s.integer()
	if err != nil {
		return nil, err
	}
	var blocks []uint16
	switch r.method {
	case newer:
		b, _, err := w.s.bytes(w.local[:chunkSize/page.Size*2])
		if err != nil {
			return nil, err
		}
		if blocks, err = parseBlocks(b, chunkSize/page.Size); err != nil {
			return nil, err
		}
	case picked:
		blocks = r.blocks
	case digests:
		b, _, err := w.s.bytes(w.local)
		if err != nil {
			return nil, err
		}
		if null {
			return nil, w.vanish(r)
		}
		return w.compare(r, int(size), b)
	}
	data, _, err := w.data(w.local, chunkSize, compressed)
	switch {
	case err != nil:
		return nil, err
	case null:
		return nil, w.vanish(r)
	case size < int64(r.n):
		return w.instead(r), nil // it shrank
	}
	ok, err := w.load(r)
	if err != nil || !ok {
		return w.instead(r), err
	}
	for i, n := range blocks {
		at := int(n) * page.Size
		if at >= r.n {
			break // it has grown
		}
		end := min(at+page.Size, r.n)
		if len(data) < i*page.Size+end-at {
			return nil, fmt.Errorf("server sent %d bytes for %d pages", len(data), len(blocks))
		}
		copy(w.buf[at:end], data[i*page.Size:])
	}
	return w.settle(r, blocks)
}

// instead asks for all of the chunk where sparing did not work out.
func (w *worker) instead(r *request) *request {
	again := *r
	again.method, again.blocks = whole, nil
	return &again
}

// load reads what we have of the chunk into buf; not ok if that is not all.
func (w *worker) load(r *request) (ok bool, err error) {
	if err := w.open(r.task); err != nil {
		return false, err
	}
	n, err := r.task.fd.ReadAt(w.buf[:r.n], r.off)
	if errors.Is(err, io.EOF) {
		return n == r.n, nil
	}
	return err == nil, err
}

// compare finds the pages that differ from ours, and asks for them.
func (w *worker) compare(r *request, size int, theirs []byte) (*request, error) {
	pages := (r.n + page.Size - 1) / page.Size
	if size < r.n || len(theirs) < pages*digestLen {
		return w.instead(r), nil
	}
	ok, err := w.load(r)
	if err != nil || !ok {
		return w.instead(r), err
	}
	again := *r
	again.method, again.blocks = picked, nil
	for i := range pages {
		ours := sha256.Sum256(w.buf[i*page.Size : min((i+1)*page.Size, r.n)])
		if string(ours[:digestLen]) != string(theirs[i*digestLen:(i+1)*digestLen]) {
			again.blocks = append(again.blocks, uint16(i))
		}
	}
	if len(again.blocks) == 0 {
		return w.settle(r, []uint16{})
	}
	return &again, nil
}

// settle checks the chunk in buf, writes of it what is new, and counts it as
// done. blocks are the pages that came from the server, nil: all, if r.method
// is whole. A page that looks wrong makes it ask again instead.
func (w *worker) settle(r *request, blocks []uint16) (again *request, err error) {
	c, t := w.c, r.task
	content := w.buf[:r.n]
	if t.file.kind == mainFork || t.file.kind == sideFork {
		if suspects := w.check(r, content, blocks); suspects != nil {
			again := w.instead(r)
			again.seen, again.tries = suspects, r.tries+1
			return again, nil
		}
	}
	t.crcs[(r.off-t.off)/chunkSize] = crc32.Checksum(content, castagnoli)
	if err := w.open(t); err != nil {
		return nil, err
	}
	if r.method == whole {
		if _, err := t.fd.WriteAt(content, r.off); err != nil {
			return nil, err
		}
		c.written.Add(int64(len(content)))
	}
	for i := 0; r.method != whole && i < len(blocks); {
		// Runs of pages are written at once.
		j := i + 1
		for j < len(blocks) && blocks[j] == blocks[j-1]+1 {
			j++
		}
		at, end := int(blocks[i])*page.Size, min((int(blocks[j-1])+1)*page.Size, r.n)
		i = j
		if at >= end {
			continue
		}
		if _, err := t.fd.WriteAt(content[at:end], r.off+int64(at)); err != nil {
			return nil, err
		}
		c.written.Add(int64(end - at))
	}
	w.count(r)
	if t.left--; t.left > 0 {
		return nil, nil
	}
	return nil, w.finish(t)
}

// check looks at every page of the chunk. What looks wrong is returned, to be
// read again; unless it has been the same before, in which case it is damaged on
// the server, and reported.
//
// Of pages that were kept it is a check of our own disk: one that is empty here
// would have travelled, had it been empty there.
func (w *worker) check(r *request, content []byte, blocks []uint16) (suspects []suspectPage) {
	var damaged []CorruptPage
	first := uint32(r.task.file.segno)*uint32(w.c.f.segment) + uint32(r.off/page.Size)
	for i := 0; i*page.Size < len(content); i++ {
		p := content[i*page.Size : min((i+1)*page.Size, len(content))]
		if len(p) < page.Size {
			continue // a file that was being extended; replay completes it
		}
		for len(blocks) > 0 && int(blocks[0]) < i {
			blocks = blocks[1:]
		}
		kept := r.method != whole && (len(blocks) == 0 || int(blocks[0]) != i)
		if page.Check(p, first+uint32(i), w.c.checksums) && !(kept && page.IsZero(p)) {
			continue
		}
		if r.method == whole && r.tries > 0 {
			k := slices.IndexFunc(r.seen, func(s suspectPage) bool { return s.index == i })
			if k >= 0 && string(r.seen[k].bytes[:]) == string(p) {
				// What was changed since the start is replayed as a whole page.
				if page.LSN(p) < w.c.start || page.LSN(p) > w.c.end() {
					fault := page.Explain(p, first+uint32(i), w.c.checksums)
					damaged = append(damaged, CorruptPage{Path: r.task.file.path, Block: first + uint32(i), Detail: fault.String()})
				}
				continue
			}
			if r.tries >= maxTries {
				continue // another each time: it is being written, again and again
			}
		}
		s := suspectPage{index: i}
		copy(s.bytes[:], p)
		suspects = append(suspects, s)
	}
	if suspects == nil {
		r.task.damaged = append(r.task.damaged, damaged...)
	}
	return suspects
}

// maxCorrupt bounds the list of damaged pages, not their number.
const maxCorrupt = 1000

func (c *copier) report(damaged []CorruptPage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corrupted += len(damaged)
	c.corrupt = append(c.corrupt, damaged[:min(len(damaged), maxCorrupt-len(c.corrupt))]...)
}

func (w *worker) open(t *task) error {
	if t.fd != nil {
		return nil
	}
	f, err := w.c.create(t.file.path)
	t.fd = f
	return err
}

// create opens a file of the copy for reading and writing.
func (c *copier) create(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(c.dir, filepath.FromSlash(path)), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, c.mode)
	if err == nil && c.umask&c.mode != 0 {
		err = f.Chmod(c.mode)
	}
	return f, err
}

// finish ends a task whose chunks are all done, and its file if it is the last.
func (w *worker) finish(t *task) error {
	w.drop(t)
	w.c.report(t.damaged)
	// Whoever ends the last task takes the sum off the file, perhaps at once.
	f, sum := t.file, t.file.sum
	sum.crcs[t.extent] = w.combine(t.crcs, t.n)
	last := sum.left.Add(-1) == 0
	size := f.size
	if last && sum.size >= 0 {
		size = sum.size
	}
	if last {
		// What it had before may have been longer.
		if err := t.fd.Truncate(size); err != nil {
			return err
		}
	}
	err := t.fd.Close()
	t.fd = nil
	if err != nil {
		return err
	}
	vanished := sum.vanished.Load()
	if f.kind == mainFork && !vanished {
		w.c.copied(t)
	}
	if !last {
		return nil
	}
	crc := sum.crcs[0]
	for i := 1; i < len(sum.crcs); i++ {
		if n := min(extentSize, f.size-int64(i)*extentSize); n == extentSize {
			crc = w.c.shift.Combine(crc, sum.crcs[i])
		} else {
			crc = manifest.CombineCRC(crc, sum.crcs[i], n)
		}
	}
	if vanished {
		w.c.vanishedFiles.Add(1)
		if err := os.Remove(filepath.Join(w.c.dir, filepath.FromSlash(f.path))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	f.sum = nil
	w.c.filesDone.Add(1)
	return w.c.done(f, vanished, size, crc)
}

// combine makes one CRC of those of a task's chunks; n is their length.
func (w *worker) combine(crcs []uint32, n int64) uint32 {
	crc := crcs[0]
	for i := 1; i < len(crcs); i++ {
		if left := n - int64(i)*chunkSize; left >= chunkSize {
			crc = w.c.chunk.Combine(crc, crcs[i])
		} else {
			crc = manifest.CombineCRC(crc, crcs[i], left)
		}
	}
	return crc
}

// vanish counts a chunk of a file that is no longer there as done.
func (w *worker) vanish(r *request) error {
	t := r.task
	t.file.sum.vanished.Store(true)
	w.count(r)
	if t.left--; t.left > 0 {
		return nil
	}
	if err := w.open(t); err != nil { // finish removes it
		return err
	}
	return w.finish(t)
}

// count counts a chunk as done.
func (w *worker) count(r *request) {
	w.c.bytes.Add(int64(r.n))
	r.task.bytes += int64(r.n)
}

// drop forgets a task that is done.
func (w *worker) drop(t *task) {
	if i := slices.Index(w.mine, t); i >= 0 {
		w.mine[i] = w.mine[len(w.mine)-1]
		w.mine = w.mine[:len(w.mine)-1]
	}
}

// packedMore is by how much a chunk may grow when it is compressed.
const packedMore = 64 << 10

// A compression is how the server compresses chunks, and whether. Nil does not.
type compression struct {
	method compress.Method
	auto   bool // else always

	// Of a statement for many small files most time goes into other things than
	// its bytes: they have a tuner of their own, which is asked only where there
	// is not enough else to learn from.
	chunks, small compress.Tuner

	packed atomic.Int64 // bytes of files that were compressed to come here
}

// A turn is how a statement is made.
type turn struct {
	compress.Turn
	method method
	bytes  int64           // of files; at most so many, but for one
	tuner  *compress.Tuner // that is to hear of it, if any
}

const (
	// turnBytes is of how much a statement is while there is a choice: what was
	// asked for the wrong way must not take long.
	turnBytes = 4 << 20

	// smallBytes is what files of a statement have at most, on average, for its
	// time to be theirs and not their number's.
	smallBytes = 64 << 10
)

// next says how the next statement is to be made, for requests of which the
// first are by m.
func (c *compression) next(m method, todo []*request) turn {
	t := turn{method: m, bytes: math.MaxInt64}
	switch {
	case c == nil || m == digests:
		return t
	case !c.auto:
		t.Compress = true
		return t
	}
	t.bytes = turnBytes
	small := sizeOf(todo) < int64(len(todo))*smallBytes
	switch {
	case m == whole && !small:
		t.tuner = &c.chunks
	case m == whole && !c.chunks.Settled():
		t.tuner = &c.small
	default:
		t.Compress = c.compressing()
		return t
	}
	if t.Turn = t.tuner.Next(); t.Trial {
		t.bytes = compress.TrialBytes
	}
	return t
}

// done is told how long an answer took.
func (c *compression) done(f flight, took time.Duration) {
	if f.turn.Compress {
		c.packed.Add(sizeOf(f.reqs))
	}
	if f.turn.tuner != nil {
		f.turn.tuner.Done(f.turn.Turn, sizeOf(f.reqs), took)
	}
}

// sizeOf is how much is asked for.
func sizeOf(reqs []*request) (n int64) {
	for _, r := range reqs {
		n += int64(r.n)
	}
	return n
}

// compressing says what is best at the moment, for what nothing is learnt from.
func (c *compression) compressing() bool {
	switch {
	case !c.auto:
		return true
	case c.chunks.Settled() || !c.small.Settled(): // a tuner that knows nothing compresses
		return c.chunks.Compressing()
	}
	return c.small.Compressing()
}

// A limiter lets so many bytes of files a second pass. Nil lets all.
//
// WAL must not wait, or the server might remove what comes next. Files wait the
// longer for it, but never more than for themselves: a server may write WAL faster
// than the limit, and the copy is to end all the same.
type limiter struct {
	rate  int64
	mu    sync.Mutex
	next  time.Time // when the next byte may pass
	spare int64     // bytes of files that no WAL has been set against
}

// newLimiter makes one for a rate; zero is no limit.
func newLimiter(rate int64) *limiter {
	if rate == 0 {
		return nil
	}
	return &limiter{rate: rate}
}

// wal counts n bytes of WAL that have passed.
func (l *limiter) wal(n int64) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	n = min(n, l.spare)
	l.spare -= n
	l.pass(n)
}

// take waits until n bytes of files may have passed.
func (l *limiter) take(ctx context.Context, n int64) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	l.spare += n
	l.pass(n)
	wait := time.Until(l.next)
	l.mu.Unlock()
	if wait < time.Millisecond {
		return nil
	}
	return pause(ctx, wait)
}

// pass moves next on. The caller holds mu.
func (l *limiter) pass(n int64) {
	if now := time.Now(); l.next.Before(now) {
		l.next = now
	}
	l.next = l.next.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
}

// pause waits for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
