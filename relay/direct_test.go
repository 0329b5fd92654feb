package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"rideau/internal/durable"
	"rideau/wal"
)

// takeMessage gives b to the spool as one message.
func (s *spool) takeMessage(t *testing.T, b []byte) {
	t.Helper()
	s.takePart(t, b)
	s.endMessage()
}

// takePart gives b to the spool as part of a message.
func (s *spool) takePart(t *testing.T, b []byte) {
	t.Helper()
	for len(b) > 0 {
		p := s.space(len(b))
		n := copy(p, b)
		if err := s.append(t.Context(), p[:n]); err != nil {
			t.Fatal(err)
		}
		b = b[n:]
	}
}

// flush commits and syncs what the spool has taken.
func (s *spool) flush(t *testing.T, awaited bool) {
	t.Helper()
	if err := s.commit(t.Context(), awaited); err != nil {
		t.Fatal(err)
	}
	if err := s.sync(time.Now); err != nil {
		t.Fatal(err)
	}
}

// partial is the content of the segment that holds lsn.
func (s *spool) partial(t *testing.T, lsn wal.LSN) []byte {
	t.Helper()
	f, err := s.file(s.tli, lsn, &wal.History{TLI: s.tli})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Messages end anywhere in a page. A segment that was found holds something else
// there; we begin in the middle of its first page, of which memory has nothing.
// What was there before us stays, what comes after us in the last page is zeros.
func TestDirectPages(t *testing.T) {
	dir := t.TempDir()
	w := &walWriter{tli: 1, base: first, prev: first - 64}
	w.until(first + 300<<10)
	found := bytes.Repeat([]byte{0xee}, int(testSize))
	const begin = 5000
	copy(found, w.b[:begin])
	if err := os.WriteFile(filepath.Join(dir, testSize.FileName(1, first)+partialSuffix), found, 0o600); err != nil {
		t.Fatal(err)
	}
	check := wal.NewChecker(testSize, testSystem, 1, first)
	if _, err := check.Write(w.b[:begin]); err != nil {
		t.Fatal(err)
	}
	sp := newTestSpool(dir)
	// A chunk that others used before.
	sp.window.free = append(sp.window.free, &chunk{buf: durable.Aligned(chunkSize)})
	copy(sp.window.free[0].buf, bytes.Repeat([]byte{0xdd}, chunkSize))
	sp.resume(1, first+begin, check)
	defer sp.drop()
	at := begin
	for i, n := range []int{100, 3000, 91, 1, 4096, 8192, 7777, 100_000, 13} {
		sp.takeMessage(t, w.b[at:at+n])
		at += n
		if err := sp.commit(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		got := sp.partial(t, first)
		if !bytes.Equal(got[:at], w.b[:at]) {
			t.Fatalf("message %d: what was written is not what is there", i)
		}
		if sp.cur.direct == nil || sp.noDirect {
			continue // the page that we began in, or this file system cannot
		}
		if pad := got[at : (at+durable.DirectAlign-1)&^(durable.DirectAlign-1)]; !bytes.Equal(pad, make([]byte, len(pad))) {
			t.Errorf("message %d: the last page does not end with zeros", i)
		}
	}
	f, err := durable.OpenDirect(sp.cur.f, sp.cur.path+partialSuffix)
	if err == nil {
		f.Close()
		if sp.cur.direct == nil {
			t.Error("nothing was written past the cache")
		}
	}
}

// A direct write that fails costs nothing but speed.
func TestDirectFails(t *testing.T) {
	w := &walWriter{tli: 1, base: first, prev: first - 64}
	w.until(first + 300<<10)
	sp := newTestSpool(t.TempDir())
	if err := sp.begin(1, first, 0); err != nil {
		t.Fatal(err)
	}
	defer sp.drop()
	sp.takeMessage(t, w.b[:5000])
	if err := sp.commit(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(sp.cur.path + partialSuffix) // not for writing
	if err != nil {
		t.Fatal(err)
	}
	sp.cur.direct = f
	sp.takeMessage(t, w.b[5000:200_000])
	if err := sp.commit(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if got := sp.partial(t, first)[:200_000]; !bytes.Equal(got, w.b[:200_000]) {
		t.Error("what was written is not what is there")
	}
	if !sp.noDirect {
		t.Error("it would be tried again")
	}
}

// What the writer has written whole chunks of is published, to the byte; complete
// is the end of a record.
func TestBehindPublishes(t *testing.T) {
	const size = wal.SegmentSize(16 << 20)
	base := wal.LSN(size)
	w := &walWriter{tli: 1, base: base, prev: base - 64, size: size}
	var ends []wal.LSN
	for w.pos() < base+3<<20 {
		w.record(30_000)
		ends = append(ends, w.pos())
	}
	b := w.b
	sp := newSpool(t.TempDir(), size, testSystem, slog.New(slog.DiscardHandler), newStats())
	if err := sp.begin(1, base, 0); err != nil {
		t.Fatal(err)
	}
	defer sp.drop()
	sp.serverEnd = base + 40<<20
	var wg sync.WaitGroup
	pieces := sp.startWriter()
	wg.Go(func() { sp.writeBehind(t.Context(), pieces, func(err error) { t.Error(err) }) })
	for at := 0; at < 2<<20+64<<10; at += 64 << 10 {
		sp.takeMessage(t, b[at:at+64<<10])
	}
	sp.stopWriter()
	wg.Wait()
	if err := sp.sync(time.Now); err != nil {
		t.Fatal(err)
	}
	var complete wal.LSN
	for _, e := range ends {
		if e <= base+2<<20 {
			complete = e
		}
	}
	if got, want := sp.position(), (Position{1, base + 2<<20, complete}); got != want {
		t.Errorf("published %+v, want %+v", got, want)
	}
	// The rest is the receiver's; half a message is not for others, nor is
	// anything taken back.
	sp.takePart(t, b[sp.taken-base:][:1000])
	sp.flush(t, false)
	if got, want := sp.position().Flushed, base+2<<20+64<<10; got != want {
		t.Errorf("published up to %s, want the end of the last whole message %s", got, want)
	}
	if sp.written != sp.taken {
		t.Errorf("written up to %s of %s", sp.written, sp.taken)
	}
}

// Whoever waits for the writer does not read; the server is not silent.
func TestBehindBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := farWAL()
		sp := newTestSpool(t.TempDir())
		if err := sp.begin(1, first, 0); err != nil {
			t.Fatal(err)
		}
		defer sp.drop()
		sp.serverEnd = w.pos()
		pieces := sp.startWriter() // which hangs for now
		sp.takeMessage(t, w.b[:1<<20+5000])
		done := make(chan error, 1)
		go func() { done <- sp.commit(t.Context(), false) }()
		synctest.Wait()
		if !sp.stats.syncing.Load() {
			t.Error("the server would be given up while the disk hangs")
		}
		go sp.writeBehind(t.Context(), pieces, func(error) {})
		if err := <-done; err != nil {
			t.Error(err)
		}
		sp.stopWriter()
		if sp.stats.syncing.Load() {
			t.Error("busy for ever")
		}
	})
}

// The stream ends while the writer fails: what it did not write is received again,
// and can be written once the reason is gone.
func TestBehindFailsAndGoesOn(t *testing.T) {
	dir := t.TempDir()
	r := newTestRelay(t, dir)
	s := newFarServer(t, dir)
	r.setSpool(s.sp)
	stuck := first + 2<<20
	inTheWay := filepath.Join(dir, testSize.FileName(1, stuck)+partialSuffix)
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	s.sp.takeAll(t, s.w.b[:6<<20])
	<-s.errs
	s.end()
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	if err := r.settle(t.Context(), s.sp, io.EOF); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("the stream ended with %v, want %v", err, syscall.EISDIR)
	}
	sp := s.sp
	if sp.taken > stuck || sp.position().Flushed != sp.taken {
		t.Fatalf("going on at %s of what was written up to %s, published %+v", sp.taken, stuck, sp.position())
	}
	// A message that breaks at once is not for others, nor what came before.
	again := sp.taken
	sp.takePart(t, s.w.b[again-first:][:1000])
	if err := r.settle(t.Context(), sp, io.EOF); err != io.EOF {
		t.Fatal(err)
	}
	if got := sp.position().Flushed; got != again {
		t.Errorf("after half a message %s is published, want %s", got, again)
	}
	sp.takeMessage(t, s.w.b[sp.taken-first:6<<20])
	sp.flush(t, true)
	if got, want := sp.position().Flushed, first+6<<20; got != want {
		t.Errorf("published up to %s, want %s", got, want)
	}
}

// What has arrived as the stream breaks is written and synced, though it was left
// for the next message, and half a message though it is not published.
func TestSettleKeeps(t *testing.T) {
	r := newTestRelay(t, t.TempDir())
	w := farWAL()
	sp := newTestSpool(r.cfg.Dir)
	r.setSpool(sp)
	if err := sp.begin(1, first, 0); err != nil {
		t.Fatal(err)
	}
	defer sp.drop()
	sp.takeMessage(t, w.b[:100_000])
	sp.takePart(t, w.b[100_000:105_000])
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.settle(ctx, sp, io.EOF); err != io.EOF {
		t.Fatal(err)
	}
	if got, want := sp.position().Flushed, first+100_000; got != want {
		t.Errorf("published up to %s, want %s", got, want)
	}
	if got := sp.partial(t, first)[:105_000]; !bytes.Equal(got, w.b[:105_000]) {
		t.Error("what was written is not what was received")
	}
	if got, want := sp.local().written, first+105_000; got != want {
		t.Errorf("the stream would go on at %s, want %s", got, want)
	}
}

// A segment ends inside a message, and a record: what is in it is published, and
// nothing is taken back.
func TestSegmentEndsInMessage(t *testing.T) {
	w := &walWriter{tli: 1, base: first, prev: first - 64}
	w.until(first + 900<<10)
	complete := w.pos()
	w.record(300 << 10)
	sp := newTestSpool(t.TempDir())
	if err := sp.begin(1, first, 0); err != nil {
		t.Fatal(err)
	}
	defer sp.drop()
	sp.takePart(t, w.b[:1<<20])
	sp.flush(t, true)
	if got, want := sp.position(), (Position{1, first + 1<<20, complete}); got != want {
		t.Errorf("published %+v, want %+v", got, want)
	}
}

// A disk that hangs while the receiver has more for the writer: the server is not
// silent meanwhile, who stops does not wait, and what the writer did not get is
// written when the disk is back.
func TestBehindHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := farWAL()
		sp := newTestSpool(t.TempDir())
		if err := sp.begin(1, first, 0); err != nil {
			t.Fatal(err)
		}
		defer sp.drop()
		sp.serverEnd = w.pos() + 8<<20
		pieces := sp.startWriter()
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() {
			for {
				p := sp.space(128 << 10)
				copy(p, w.b[sp.taken-first:])
				if err := sp.append(ctx, p); err != nil {
					done <- err
					return
				}
				sp.endMessage()
			}
		}()
		synctest.Wait()
		if !sp.stats.syncing.Load() {
			t.Error("the server would be given up while the disk hangs")
		}
		stopped := errors.New("stopped")
		cancel(stopped)
		if err := <-done; err != stopped {
			t.Errorf("append: %v, want %v", err, stopped)
		}
		go sp.writeBehind(ctx, pieces, func(err error) { t.Error(err) })
		sp.stopWriter()
		if err := sp.commit(ctx, false); err != nil {
			t.Error(err)
		}
		if sp.written != sp.taken || sp.written <= first {
			t.Errorf("written up to %s of %s", sp.written, sp.taken)
		}
	})
}
