package relay

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"rideau/wal"
)

// A farServer is 24 MB ahead as it begins to send to a spool that has a writer.
// The first 8 MB are the writer's, the rest is not far enough behind.
type farServer struct {
	w    *walWriter
	sp   *spool
	errs chan error // of the writer
	end  func()     // the stream is over
}

// farWAL is 24 MB, made once.
var farWAL = sync.OnceValue(func() *walWriter {
	w := &walWriter{tli: 1, base: first, prev: first - 64}
	for w.pos() < first+24<<20 {
		w.record(100_000)
	}
	return w
})

func newFarServer(t *testing.T, dir string) *farServer {
	t.Helper()
	s := &farServer{w: farWAL(), sp: newTestSpool(dir), errs: make(chan error, 1)}
	if err := s.sp.begin(1, first, 0); err != nil {
		t.Fatal(err)
	}
	s.sp.serverEnd = s.w.pos()
	pieces := s.sp.startWriter()
	var wg sync.WaitGroup
	wg.Go(func() { s.sp.writeBehind(t.Context(), pieces, func(err error) { s.errs <- err }) })
	s.end = sync.OnceFunc(func() {
		s.sp.stopWriter()
		wg.Wait()
	})
	t.Cleanup(func() {
		s.end()
		s.sp.drop()
	})
	return s
}

func TestBehind(t *testing.T) {
	for _, direct := range []bool{true, false} {
		dir := t.TempDir()
		s := newFarServer(t, dir)
		s.sp.noDirect = !direct
		// It begins inside a page, where nothing can go past the cache.
		s.sp.takeAll(t, s.w.b[:5000])
		s.sp.takeAll(t, s.w.b[5000:])
		s.end()
		if err := s.sp.sync(time.Now); err != nil {
			t.Fatal(err)
		}
		if got, want := s.sp.position(), (Position{1, s.w.pos(), s.w.pos()}); got != want {
			t.Errorf("position is %+v, want %+v", got, want)
		}
		got := make([]byte, 0, len(s.w.b))
		for lsn := first; lsn < s.w.pos(); lsn += wal.LSN(testSize) {
			f, err := s.sp.file(1, lsn, nil)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, min(int(s.w.pos()-lsn), int(testSize)))
			if _, err := f.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
			f.Close()
			got = append(got, b...)
		}
		if !bytes.Equal(got, s.w.b) {
			t.Errorf("direct %t: the segments hold something else than what was received", direct)
		}
	}
}

// What the stream leaves with us as it breaks is written, though no chunk is full.
func TestBehindEnds(t *testing.T) {
	s := newFarServer(t, t.TempDir())
	s.sp.takeAll(t, s.w.b[:3<<20+5000])
	s.end()
	if err := s.sp.commit(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if want := first + 3<<20 + 5000; s.sp.written != want || s.sp.check.Pos() != want {
		t.Errorf("written up to %s, checked up to %s, want %s", s.sp.written, s.sp.check.Pos(), want)
	}
}

// The writer fails: who receives hears of it, and nothing after it is written.
func TestBehindFails(t *testing.T) {
	dir := t.TempDir()
	s := newFarServer(t, dir)
	stuck := first + 2<<20
	if err := os.Mkdir(filepath.Join(dir, testSize.FileName(1, stuck)+partialSuffix), 0o700); err != nil {
		t.Fatal(err)
	}
	s.sp.takeAll(t, s.w.b[:6<<20])
	if err := <-s.errs; !errors.Is(err, syscall.EISDIR) {
		t.Errorf("the receiver hears %v, want %v", err, syscall.EISDIR)
	}
	s.end()
	if err := s.sp.commit(t.Context(), false); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("the rest can be written: %v", err)
	}
	if s.sp.written != stuck {
		t.Errorf("written up to %s, want %s", s.sp.written, stuck)
	}
	if err := s.sp.sync(time.Now); err != nil {
		t.Fatal(err)
	}
	if got := s.sp.position().Flushed; got != stuck {
		t.Errorf("published up to %s, want %s", got, stuck)
	}
}

// A disk that does not take WAL does not keep a relay from stopping.
func TestBehindStops(t *testing.T) {
	s := &farServer{w: farWAL(), sp: newTestSpool(t.TempDir())}
	if err := s.sp.begin(1, first, 0); err != nil {
		t.Fatal(err)
	}
	s.sp.serverEnd = s.w.pos()
	s.sp.startWriter() // which hangs
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	cancel(stopped)
	for b := s.w.b; ; {
		p := s.sp.space(128 << 10)
		n := copy(p, b)
		if err := s.sp.append(ctx, p[:n]); err != nil {
			if err != stopped {
				t.Errorf("append: %v, want %v", err, stopped)
			}
			break
		}
		if b = b[n:]; len(b) == 0 {
			t.Fatal("the writer has all, though it does nothing")
		}
	}
	if got := s.sp.taken - first; got > (piecesMax+1)<<20 {
		t.Errorf("%d bytes wait in memory for the writer", got)
	}
}
