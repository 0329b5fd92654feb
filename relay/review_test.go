package relay

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"rideau/internal/pgtest"
	"rideau/wal"
)

const (
	testSystem = 7000000000000000001
	testSize   = wal.SegmentSize(1 << 20)
)

// A walWriter writes valid WAL, from a segment's start on.
type walWriter struct {
	tli  wal.TLI
	base wal.LSN
	prev wal.LSN
	b    []byte
}

func (w *walWriter) pos() wal.LSN { return w.base + wal.LSN(len(w.b)) }

func (w *walWriter) page(left int) {
	if w.pos()%pageSize != 0 {
		return
	}
	h := make([]byte, 24, 40)
	var info uint16
	if left > 0 {
		info |= 1
	}
	if testSize.Offset(w.pos()) == 0 {
		info |= 2
		h = h[:40]
		binary.LittleEndian.PutUint64(h[24:], testSystem)
		binary.LittleEndian.PutUint32(h[32:], uint32(testSize))
		binary.LittleEndian.PutUint32(h[36:], pageSize)
	}
	binary.LittleEndian.PutUint16(h, 0xD118)
	binary.LittleEndian.PutUint16(h[2:], info)
	binary.LittleEndian.PutUint32(h[4:], uint32(w.tli))
	binary.LittleEndian.PutUint64(h[8:], uint64(w.pos()))
	binary.LittleEndian.PutUint32(h[16:], uint32(left))
	w.b = append(w.b, h...)
}

// record writes a logical message of n bytes.
func (w *walWriter) record(n int) {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i*7 + n)
	}
	h := make([]byte, 24)
	binary.LittleEndian.PutUint32(h, uint32(24+n))
	binary.LittleEndian.PutUint32(h[4:], 731)
	binary.LittleEndian.PutUint64(h[8:], uint64(w.prev))
	h[17] = byte(wal.RMgrLogicalMessage)
	table := crc32.MakeTable(crc32.Castagnoli)
	crc := crc32.Update(crc32.Update(0, table, data), table, h[:20])
	binary.LittleEndian.PutUint32(h[20:], crc)
	w.page(0)
	lsn := w.pos()
	whole := len(h) + n
	for left := append(h, data...); len(left) > 0; {
		if len(left) < whole {
			w.page(len(left))
		}
		k := min(len(left), int(pageSize-w.pos()%pageSize))
		w.b = append(w.b, left[:k]...)
		left = left[k:]
	}
	w.prev = lsn
	for len(w.b)%8 != 0 {
		w.b = append(w.b, 0)
	}
}

// until writes records up to lsn or a little further.
func (w *walWriter) until(lsn wal.LSN) {
	for w.pos() < lsn {
		w.record(1000)
	}
}

func newTestRelay(t *testing.T, dir string) *Relay {
	t.Helper()
	r, err := New(Config{Upstream: "host=127.0.0.1 port=1", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newTestSpool(dir string) *spool {
	return newSpool(dir, testSize, testSystem, slog.New(slog.DiscardHandler), newStats())
}

// takeAll gives b to the spool as the receiver does, in messages of 128 kB.
func (s *spool) takeAll(t *testing.T, b []byte) {
	t.Helper()
	for len(b) > 0 {
		p := s.space(min(len(b), 128<<10))
		n := copy(p, b)
		if err := s.append(context.Background(), p[:n]); err != nil {
			t.Fatal(err)
		}
		s.commit()
		b = b[n:]
	}
}

func syncs(t *testing.T, st *stats) uint64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(st.fsync)
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return all[0].Metric[0].Histogram.GetSampleCount()
}

const first = wal.LSN(0x300000)

// A relay that was killed between write and fdatasync finds its WAL in the
// operating system's cache. It must sync it before it says that it has it.
func TestRecoverSyncsWhatItPublishes(t *testing.T) {
	dir := t.TempDir()
	w := &walWriter{tli: 1, base: first, prev: first - 64}
	w.until(first + 300<<10)
	sp := newTestSpool(dir)
	if err := sp.begin(1, first, 0); err != nil {
		t.Fatal(err)
	}
	sp.takeAll(t, w.b)
	sp.drop() // killed: nothing was synced

	r := newTestRelay(t, dir)
	if err := r.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.spool().position().Complete; got != w.pos() {
		t.Fatalf("recovered up to %s, want %s", got, w.pos())
	}
	if syncs(t, r.stats) == 0 {
		t.Error("WAL that was never synced is published, and will be reported as flushed")
	}
}

// Segments that were written before a power cut, but not synced, may reach the
// disk in any order. A torn one hides all that follows.
func TestRecoverStopsAtTornPartial(t *testing.T) {
	dir := t.TempDir()
	w := &walWriter{tli: 1, base: first, prev: first - 64}
	w.until(first + 4<<20 + 300<<10)
	sp := newTestSpool(dir)
	if err := sp.begin(1, first, 0); err != nil {
		t.Fatal(err)
	}
	half := w.b[:1<<20]
	sp.takeAll(t, half)
	if err := sp.sync(time.Now); err != nil {
		t.Fatal(err)
	}
	sp.takeAll(t, w.b[1<<20:])
	sp.drop() // the power is cut; the second segment has lost a block
	torn := first + 1<<20 + 512<<10
	f, err := os.OpenFile(filepath.Join(dir, testSize.FileName(1, torn)+partialSuffix), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), int64(testSize.Offset(torn))); err != nil {
		t.Fatal(err)
	}
	f.Close()

	r := newTestRelay(t, dir)
	if err := r.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.spool().position().Complete; got > torn {
		t.Errorf("recovered up to %s, past WAL that is lost at %s", got, torn)
	}
}

// A sync that failed is not tried again, by nobody.
func TestFailedSyncStaysFailed(t *testing.T) {
	dir := t.TempDir()
	w := &walWriter{tli: 1, base: first, prev: first - 64}
	w.until(first + 100<<10)
	sp := newTestSpool(dir)
	if err := sp.begin(1, first, 0); err != nil {
		t.Fatal(err)
	}
	sp.takeAll(t, w.b)
	good := sp.cur.f
	bad, other, err := os.Pipe() // cannot be synced
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	defer other.Close()
	sp.cur.f = other
	if err := sp.sync(time.Now); err == nil {
		t.Fatal("a pipe was synced")
	}
	sp.cur.f = good // the kernel has forgotten the error, and the pages
	if err := sp.sync(time.Now); err == nil {
		t.Errorf("a second sync succeeded, and published %+v", sp.position())
	}
}

// A file that an earlier process made, or an earlier attempt, may not be in its
// directory yet: its name is synced with it.
func TestPartialFoundIsNew(t *testing.T) {
	dir := t.TempDir()
	w := &walWriter{tli: 1, base: first, prev: first - 64}
	w.until(first + 100<<10)
	sp := newTestSpool(dir)
	for range 2 {
		if err := sp.begin(1, first, 0); err != nil {
			t.Fatal(err)
		}
		sp.takeAll(t, w.b)
		if !sp.cur.isNew {
			t.Error("the directory would not be synced before the WAL is published")
		}
		sp.drop()
	}
}

// Of a whole segment and a partial one the whole one counts, also for going
// back into it.
func TestWholeBesidePartial(t *testing.T) {
	dir := t.TempDir()
	w := &walWriter{tli: 1, base: first, prev: first - 64}
	w.until(first + 1<<20 + 100<<10)
	path := filepath.Join(dir, testSize.FileName(1, first))
	if err := os.WriteFile(path, w.b[:1<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+partialSuffix, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	sp := newTestSpool(dir)
	sp.tli, sp.written = 1, first+512<<10
	if err := sp.open(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 512<<10)
	if _, err := sp.cur.f.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if string(got) != string(w.b[:len(got)]) {
		t.Error("the beginning of the segment is not that of the whole file")
	}
}

// A sync fails while the new timeline has not yet reached the switch: what of
// it was not synced is not believed, and the parent loses nothing.
func TestReloadInsideSwitch(t *testing.T) {
	dir := t.TempDir()
	w := &walWriter{tli: 1, base: first, prev: first - 64}
	w.until(first + 600<<10)
	end := w.pos()
	history := "1\t" + end.String() + "\tno recovery target specified\n"
	if err := os.WriteFile(filepath.Join(dir, wal.TLI(2).HistoryName()), []byte(history), 0o600); err != nil {
		t.Fatal(err)
	}
	sp := newTestSpool(dir)
	if err := sp.begin(1, first, 0); err != nil {
		t.Fatal(err)
	}
	sp.takeAll(t, w.b)
	sp.drop()
	r := newTestRelay(t, dir)
	if err := r.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	sp = r.spool()
	if err := sp.begin(2, first, end); err != nil {
		t.Fatal(err)
	}
	copyOf := &walWriter{tli: 2, base: first, prev: w.prev, b: append([]byte(nil), w.b...)}
	copyOf.until(end + 100<<10)
	sp.takeAll(t, copyOf.b[:end-first]) // all of the old part, not synced
	if err := r.reload(sp.reportable()); err != nil {
		t.Fatal(err)
	}
	if got, want := sp.position(), (Position{1, end, end}); got != want {
		t.Errorf("after a failed sync of timeline 2 the position is %+v, want %+v", got, want)
	}
}

// runTestRelay runs a relay until the test ends.
func runTestRelay(t *testing.T, cfg Config) *Relay {
	t.Helper()
	cfg.Dir, cfg.Listen = t.TempDir(), []string{"127.0.0.1:0"}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(pgtest.Patience):
			t.Error("the relay does not stop")
		}
	})
	select {
	case <-r.Ready():
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	return r
}

// A slot on a server that is not followed would keep WAL there for nobody.
func TestSlotOnlyWhereWeReceive(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	standby := primary.Standby(pgtest.Options{}, primary.Conninfo(""))
	standby.Start()
	r := runTestRelay(t, Config{
		Upstream: fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=postgres", standby.Port, primary.Port),
		Slot:     "rideau",
	})
	pgtest.Wait(t, "the relay to receive", func() (bool, string) {
		pos, _ := r.Position()
		return pos.Complete >= primary.LSN(), fmt.Sprintf("%+v", r.Status().Upstream)
	})
	if got := primary.QueryValue("SELECT count(*) FROM pg_replication_slots"); got != "1" {
		t.Errorf("the primary has %s slots, want 1", got)
	}
	if got := standby.QueryValue("SELECT count(*) FROM pg_replication_slots"); got != "0" {
		t.Errorf("the standby has %s slots that nobody uses", got)
	}
}

// An error without an SQLSTATE comes from whatever answers at the port.
func TestHopelessWithoutCode(t *testing.T) {
	r := newTestRelay(t, t.TempDir())
	r.setSpool(newTestSpool(t.TempDir()))
	if r.hopeless(&pgconn.PgError{}, true) {
		t.Error("an error that says nothing ends the relay")
	}
	if r.hopeless(&localError{&os.PathError{Op: "write", Path: identityFile, Err: syscall.ENOSPC}}, false) {
		t.Error("a full disk ends the relay")
	}
}
