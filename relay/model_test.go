package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rideau/wal"
)

var modelWAL = sync.OnceValue(func() *walWriter {
	w := &walWriter{tli: 1, base: first, prev: first - 64}
	rnd := rand.New(rand.NewPCG(1, 2))
	for w.pos() < first+30<<20 {
		n := 1 + rnd.IntN(3000)
		if rnd.IntN(40) == 0 {
			n = rnd.IntN(300_000) + 10
		}
		w.record(n)
	}
	return w
})

func TestSpoolModel(t *testing.T) {
	n := 4
	if s := os.Getenv("RIDEAU_MODEL_ROUNDS"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	base := os.Getenv("RIDEAU_MODEL_DIR")
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("RIDEAU_MODEL_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	for i := range n {
		dir := t.TempDir()
		if base != "" {
			dir, _ = os.MkdirTemp(base, "rv")
			defer os.RemoveAll(dir)
		}
		spoolRound(t, dir, seed+uint64(i))
		if t.Failed() {
			t.Logf("seed %d", seed+uint64(i))
			return
		}
	}
}

func spoolRound(t *testing.T, dir string, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	w := modelWAL()
	r := newTestRelay(t, dir)
	pctx, pcancel := context.WithCancel(t.Context())
	var pwg sync.WaitGroup
	next := r.next
	pwg.Go(func() { next.run(pctx) })
	defer pwg.Wait()
	defer pcancel()
	r.setIdentity(&identity{SystemID: testSystem, SegmentSize: testSize})
	if err := r.writeIdentity(r.identity()); err != nil {
		t.Fatal(err)
	}
	sp := newTestSpool(dir)
	r.setSpool(sp)
	if err := sp.begin(1, first, 0); err != nil {
		t.Fatal(err)
	}
	var cur atomic.Pointer[Relay]
	cur.Store(r)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	startReaders := func(sp *spool, rr *Relay) {
		for range 2 {
			readers.Go(func() {
				src := rr.newSource(sp, 1)
				defer src.close()
				at := first
				for {
					data, _, err := src.Read(at, 128<<10)
					if err != nil {
						t.Errorf("read at %s: %v", at, err)
						return
					}
					if len(data) == 0 {
						select {
						case <-stop:
							return
						case <-src.Changed():
						}
						continue
					}
					if !bytes.Equal(data, w.b[at-first:int(at-first)+len(data)]) {
						t.Errorf("reader got wrong bytes at %s (%d)", at, len(data))
						return
					}
					// look twice: bytes in hand must not change
					if !bytes.Equal(data, w.b[at-first:int(at-first)+len(data)]) {
						t.Errorf("bytes changed in hand at %s", at)
					}
					at += wal.LSN(len(data))
				}
			})
		}
	}
	startReaders(sp, r)
	defer func() { close(stop); readers.Wait() }()

	acked := first
	for sp.taken < w.pos() && !t.Failed() {
		// one stream
		ctx, cancel := context.WithCancelCause(t.Context())
		pieces := sp.startWriter()
		var wg sync.WaitGroup
		wg.Go(func() { sp.writeBehind(ctx, pieces, func(err error) { cancel(err) }) })
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-sp.dirty:
				}
				if err := sp.sync(time.Now); err != nil {
					cancel(err)
				}
			}
		})
		breakAt := sp.taken + wal.LSN(rnd.IntN(20<<20))
		midMessage := rnd.IntN(2) == 0
		lastPub := sp.position().Flushed
	stream:
		for sp.taken < w.pos() {
			if rnd.IntN(30) == 0 || sp.serverEnd < sp.taken {
				switch rnd.IntN(3) {
				case 0:
					sp.serverEnd = sp.taken + wal.LSN(rnd.IntN(40<<20))
				case 1:
					sp.serverEnd = sp.taken + catchUp + wal.LSN(rnd.IntN(20<<20))
				case 2:
					sp.serverEnd = sp.taken
				}
			}
			// message: ends at a page boundary, or at serverEnd
			n := 1 + rnd.IntN(3000)
			if sp.serverEnd > sp.taken+128<<10 {
				n = 128<<10 - int(sp.taken%pageSize)
			}
			n = min(n, int(w.pos()-sp.taken))
			sp.serverEnd = max(sp.serverEnd, sp.taken+wal.LSN(n))
			for n > 0 {
				p := sp.space(n)
				if midMessage && sp.taken > breakAt && rnd.IntN(3) == 0 {
					copy(p[:len(p)/2], bytes.Repeat([]byte{0xee}, len(p)/2))
					break stream // half received, lost
				}
				copy(p, w.b[sp.taken-first:])
				if err := sp.append(ctx, p); err != nil {
					t.Errorf("append: %v", err)
					break stream
				}
				n -= len(p)
			}
			sp.endMessage()
			switch behind, unsynced := sp.serverEnd-sp.taken, sp.unsynced(); {
			case unsynced == 0:
			case behind >= catchUp:
				if unsynced >= catchUp/2 {
					sp.wakeSyncer()
				}
			case behind >= farBehind:
				if err := sp.commit(ctx, false); err != nil {
					t.Errorf("commit: %v", err)
					break stream
				}
				sp.wakeSyncer()
			case unsynced < farBehind && rnd.IntN(3) == 0:
			default:
				if err := sp.commit(ctx, true); err != nil {
					t.Errorf("commit: %v", err)
					break stream
				}
				if err := sp.sync(time.Now); err != nil {
					t.Errorf("sync: %v", err)
				}
				if sp.position().Flushed != sp.taken {
					t.Errorf("synced to %s, not %s", sp.position().Flushed, sp.taken)
				}
				sp.next.ask(sp.size)
				if sp.noDirect && rnd.IntN(50) == 0 {
					sp.noDirect = false
				}
				if sp.cur != nil && rnd.IntN(200) == 0 {
					// direct writes fail
					if sp.cur.direct != nil {
						sp.cur.direct.Close()
					} else {
						f, _ := os.Open(sp.cur.path + partialSuffix)
						sp.cur.direct = f
					}
				}
			}
			p := sp.position().Flushed
			if p < lastPub {
				t.Errorf("published went back %s -> %s", lastPub, p)
			}
			lastPub = p
			if sp.taken > breakAt && !midMessage {
				break
			}
			if context.Cause(ctx) != nil {
				t.Errorf("ctx: %v", context.Cause(ctx))
				break
			}
		}
		cancel(errors.New("broken"))
		sp.stopWriter()
		wg.Wait()
		acked = max(acked, sp.reportable())
		how := rnd.IntN(4)
		switch how {
		case 0: // failed sync
			if err := r.reload(sp.reportable()); err != nil {
				t.Errorf("reload: %v", err)
				return
			}
		case 1: // killed
			sp.drop()
			pub := sp.position()
			nr := newTestRelay(t, dir)
			if err := nr.load(t.Context()); err != nil {
				t.Errorf("load: %v", err)
				return
			}
			if got := nr.spool().position(); got.Flushed < pub.Complete {
				t.Errorf("after kill recovered %+v, published was %+v", got, pub)
			}
			nr.spool().next = next
			sp.mu.Lock()
			nsp := nr.spool()
			sp.mu.Unlock()
			r, sp = nr, nsp
			startReaders(sp, r)
		default:
			if err := r.settle(ctx, sp, io.ErrUnexpectedEOF); err != io.ErrUnexpectedEOF {
				t.Errorf("settle: %v", err)
			}
			if sp.written != sp.taken {
				t.Errorf("settled %s of %s", sp.written, sp.taken)
			}
		}
		if sp.reportable() < acked {
			t.Errorf("way %d: reportable %s < acked %s", how, sp.reportable(), acked)
		}
		// what is on disk
		for lsn := first; lsn < sp.position().Flushed; lsn += wal.LSN(testSize) {
			f, err := sp.file(1, lsn, &wal.History{TLI: 1})
			if err != nil {
				t.Errorf("file %s: %v", lsn, err)
				return
			}
			b := make([]byte, min(int(sp.position().Flushed-lsn), int(testSize)))
			if _, err := f.ReadAt(b, 0); err != nil {
				t.Errorf("%s: %v", filepath.Base(f.Name()), err)
			}
			f.Close()
			if !bytes.Equal(b, w.b[lsn-first:int(lsn-first)+len(b)]) {
				t.Errorf("wrong on disk in segment %s, way %d", lsn, how)
				return
			}
		}
	}
	if err := sp.sync(time.Now); err != nil {
		t.Error(err)
	}
	sp.drop()
}
