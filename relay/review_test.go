package relay

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/prometheus/client_golang/prometheus"

	"rideau/internal/pgtest"
	"rideau/pgrepl"
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
	size wal.SegmentSize // zero: testSize
}

func (w *walWriter) pos() wal.LSN { return w.base + wal.LSN(len(w.b)) }

func (w *walWriter) page(left int) {
	if w.pos()%pageSize != 0 {
		return
	}
	h := make([]byte, 24, 40)
	size := cmp.Or(w.size, testSize)
	var info uint16
	if left > 0 {
		info |= 1
	}
	if size.Offset(w.pos()) == 0 {
		info |= 2
		h = h[:40]
		binary.LittleEndian.PutUint64(h[24:], testSystem)
		binary.LittleEndian.PutUint32(h[32:], uint32(size))
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
		s.endMessage()
		if !s.far() {
			if err := s.commit(context.Background(), true); err != nil {
				t.Fatal(err)
			}
		}
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
	if err := sp.open(true); err != nil {
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

// A server is not silent while we do not listen, for a slow disk or a full one,
// nor at once when we listen again.
func TestSilentWhileBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTestRelay(t, t.TempDir())
		var heard atomic.Int64
		heard.Store(time.Now().UnixNano())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- r.heartbeat(ctx, "server", &heard) }()
		r.stats.syncing.Store(true)
		time.Sleep(2 * defaultTimeout)
		synctest.Wait()
		r.stats.syncing.Store(false)
		err := <-done
		if took := time.Since(began); err == nil || took < 3*defaultTimeout {
			t.Errorf("after %s of which %s were spent syncing: %v", took, 2*defaultTimeout, err)
		}
		cancel()
	})
}

// Directories are made as deep as they are named, and those there are left.
func TestMakeDir(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, dir := range []string{"a/b/c", "a/b/c", "./a/d/", "."} {
		if err := makeDir(dir); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := os.WriteFile("file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := makeDir("file/dir"); err == nil {
		t.Error("a file is no directory")
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

// A relay that holds WAL and starts again in the middle of a failover serves
// it, whatever one of several servers says to it.
func TestOneOfSeveralRefuses(t *testing.T) {
	for _, tt := range []struct {
		upstream string
		want     bool
	}{
		{"host=a port=1", true},
		{"host=a,b port=1,1", false},
	} {
		r, err := New(Config{Upstream: tt.upstream, Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		r.setSpool(newTestSpool(r.cfg.Dir))
		for _, err := range []error{&pgconn.PgError{Code: "28000"}, &SystemError{Server: "a:1"}} {
			if got := r.hopeless(err, true); got != tt.want {
				t.Errorf("%s: %v ends the relay: %t, want %t", tt.upstream, err, got, tt.want)
			}
		}
	}
}

// A fakeServer is the other end of connections that the relay passes on. It
// trusts everybody and then does as it is told.
func fakeServer(t *testing.T, talk func(*pgproto3.Backend, net.Conn)) *pgrepl.Target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				b := pgproto3.NewBackend(conn, conn)
				if _, err := b.ReceiveStartupMessage(); err != nil {
					return
				}
				b.Send(&pgproto3.AuthenticationOk{})
				b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
				if b.Flush() == nil {
					talk(b, conn)
				}
			})
		}
	})
	targets, err := pgrepl.Targets("sslmode=disable user=postgres host=127.0.0.1 port="+strconv.Itoa(l.Addr().(*net.TCPAddr).Port), "rideau")
	if err != nil {
		t.Fatal(err)
	}
	return targets[0]
}

// meet connects a client to a relay that has some WAL and the given server. It
// is past its authentication when meet returns. Once ctx is done the relay must
// be done with it.
func meet(ctx context.Context, t *testing.T, server *pgrepl.Target) *pgproto3.Frontend {
	t.Helper()
	r := newTestRelay(t, t.TempDir())
	r.cfg.ForwardSQL = true
	r.setIdentity(&identity{SystemID: testSystem, SegmentSize: testSize})
	sp := newTestSpool(r.cfg.Dir)
	if err := sp.begin(1, first, 0); err != nil {
		t.Fatal(err)
	}
	r.setSpool(sp)
	r.setCurrent(server)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); r.serve(ctx, conn) }()
	t.Cleanup(func() {
		select {
		case <-done:
		case <-time.After(pgtest.Patience):
			t.Error("the relay is not done with the connection")
		}
		client.Close()
	})
	client.SetDeadline(time.Now().Add(pgtest.Patience))
	f := pgproto3.NewFrontend(client, client)
	f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30,
		Parameters: map[string]string{"user": "postgres", "replication": "true"}})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	untilReady(t, f)
	return f
}

// untilReady reads up to ReadyForQuery and answers what came before it.
func untilReady(t *testing.T, f *pgproto3.Frontend) (kinds []string) {
	t.Helper()
	for {
		m, err := f.Receive()
		if err != nil {
			t.Fatalf("after %v: %v", kinds, err)
		}
		if _, ok := m.(*pgproto3.ReadyForQuery); ok {
			return kinds
		}
		kinds = append(kinds, strings.TrimPrefix(fmt.Sprintf("%T", m), "*pgproto3."))
	}
}

// A server that refuses a manifest while it is uploaded leaves the session
// ready for the next command, as without a relay between.
func TestUploadRefused(t *testing.T) {
	t.Parallel()
	server := fakeServer(t, func(b *pgproto3.Backend, conn net.Conn) {
		for {
			m, err := b.Receive()
			if err != nil {
				return
			}
			switch m := m.(type) {
			case *pgproto3.Query:
				if m.String == "UPLOAD_MANIFEST" {
					b.Send(&pgproto3.CopyInResponse{})
					break
				}
				b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SHOW")})
				b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			case *pgproto3.CopyData:
				if string(m.Data) == "bad" {
					b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", Code: "22023", Message: "no manifest"})
					b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
				}
			case *pgproto3.Terminate:
				return
			default:
				t.Errorf("the server got %T", m)
			}
			if b.Flush() != nil {
				return
			}
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	f := meet(ctx, t, server)
	defer cancel()
	f.Send(&pgproto3.Query{String: "UPLOAD_MANIFEST"})
	f.Send(&pgproto3.CopyData{Data: []byte("bad")})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(untilReady(t, f)); got != "[CopyInResponse ErrorResponse]" {
		t.Errorf("the client got %s", got)
	}
	// It had more to say before it heard of that.
	f.Send(&pgproto3.CopyData{Data: []byte("rest")})
	f.Send(&pgproto3.Query{String: "SHOW listen_addresses"})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(untilReady(t, f)); got != "[CommandComplete]" {
		t.Errorf("the client got %s", got)
	}
}

// A connection to the server lasts no longer than the command it was for.
func TestPassedCommandLeavesNothing(t *testing.T) {
	t.Parallel()
	left := make(chan struct{})
	server := fakeServer(t, func(b *pgproto3.Backend, conn net.Conn) {
		defer close(left)
		for {
			m, err := b.Receive()
			if err != nil {
				return
			}
			if _, ok := m.(*pgproto3.Query); ok {
				b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SHOW")})
				b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
				b.Flush()
			}
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	f := meet(ctx, t, server)
	defer cancel()
	f.Send(&pgproto3.Query{String: "SHOW listen_addresses"})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	untilReady(t, f)
	select {
	case <-left:
	case <-time.After(pgtest.Patience):
		t.Error("the connection to the server is still there")
	}
}

// A server that does not answer does not keep the relay from stopping.
func TestCancelOfSilentServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	targets, err := pgrepl.Targets("sslmode=disable user=postgres host=127.0.0.1 port="+strconv.Itoa(l.Addr().(*net.TCPAddr).Port), "rideau")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := newTestRelay(t, t.TempDir())
	r.cfg.ForwardSQL = true
	r.setCurrent(targets[0])
	ours, theirs := net.Pipe()
	defer ours.Close()
	done := make(chan struct{})
	go func() { defer close(done); r.serve(ctx, loopback{theirs}) }()
	msg, err := (&pgproto3.CancelRequest{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Write(msg); err != nil {
		t.Fatal(err)
	}
	// Once it has connected it waits for the server.
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-done:
	case <-time.After(forwardDialTimeout / 2):
		t.Error("the relay waits for the server")
	}
}

// loopback is a connection from this machine.
type loopback struct{ net.Conn }

func (loopback) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// What target_session_attrs says is the relay's to heed: the question is SQL,
// which no walsender answers.
func TestTargetSessionAttrs(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	for attrs, want := range map[string]bool{
		"any": false, "primary": false, "read-write": false,
		"standby": true, "read-only": true, "prefer-standby": true,
	} {
		targets, err := pgrepl.Targets(primary.Conninfo("")+" target_session_attrs="+attrs, "rideau")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := targets[0].Connect(t.Context())
		if err != nil {
			t.Errorf("%s: %v", attrs, err)
			continue
		}
		conn.Close()
		if got := targets[0].WantsStandby(); got != want {
			t.Errorf("%s: a standby is wanted: %t", attrs, got)
		}
	}
}
