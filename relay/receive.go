package relay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"rideau/pgrepl"
	"rideau/wal"
)

// statusInterval is wal_receiver_status_interval's default: the server hears
// of us at least so often.
const statusInterval = 10 * time.Second

// farBehind is from where on WAL is synced while more arrives: two of
// walsender's largest messages (MAX_SEND_SIZE). What one waits for is not so
// far behind.
const farBehind = 256 << 10

// catchUp is from where on syncs are spared, half of it apart: nobody waits for
// WAL of so long ago, everybody for us to get through it, and each sync of new
// space is a commit of the file system's journal.
const catchUp = 16 << 20

// receive takes WAL of tli until the stream ends or fails. While there is more
// to come two goroutines share the work, so that WAL goes on arriving while
// older WAL is synced; and three when we are far behind:
//
//	receiver  read, check, write ─┐ commit      read, check ─┐
//	writer                        │                          └─▶ write ─┐ commit
//	syncer                        └─▶ fdatasync, publish, report        └─▶ ...
//
// When the receiver has all that the server has, it syncs itself: commits wait
// for that, and to wake another goroutine would cost them what a sync on a
// good disk does.
//
// Two more look after the connection: reports that nothing else caused and a
// server that fell silent; a server that does not read.
func (r *Relay) receive(ctx context.Context, c *candidate, tli wal.TLI) error {
	sp := r.spool()
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	// Reads and writes fail once ctx is done, whoever ended it.
	watched := make(chan struct{})
	stopWatch := context.AfterFunc(ctx, func() {
		c.conn.SetReadDeadline(time.Unix(1, 0))
		close(watched)
	})

	var heard atomic.Int64 // when the server last sent something, unix nanoseconds
	heard.Store(time.Now().UnixNano())
	r.reports.start(c.conn, sp)
	guarded := make(chan struct{})
	var guard sync.WaitGroup
	guard.Go(func() { r.reports.guard(guarded, c.conn) })
	defer guard.Wait()
	defer close(guarded)
	pieces := sp.startWriter()
	wg.Go(func() { sp.writeBehind(ctx, pieces, cancel) })
	wg.Go(func() {
		if err := r.syncer(ctx, sp); err != nil {
			cancel(err)
		}
	})
	wg.Go(func() {
		if err := r.heartbeat(ctx, c.server, &heard); err != nil {
			cancel(err)
		}
	})

	err := r.reports.send(true, false)
	if err == nil {
		err = r.take(ctx, c, sp, tli, &heard)
	}
	// A deadline that we set ourselves is not the reason.
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		err = cause
	}
	cancel(err)
	sp.stopWriter()
	wg.Wait()
	// The connection is used again if only the timeline has ended.
	if !stopWatch() {
		<-watched
	}
	c.conn.SetReadDeadline(time.Time{})

	err = r.settle(ctx, sp, err)
	r.reports.stop()
	return err
}

// settle keeps and says what was taken before the stream ended with err. What
// cannot be trusted is read anew from the disk: after a failed sync, which must
// not be tried again; after a damaged record; and where what was checked could
// not be written, all of it. ctx is done, so that no full disk is waited for.
func (r *Relay) settle(ctx context.Context, sp *spool, err error) error {
	var failed *syncError
	var corrupt *wal.CorruptError
	broken := errors.As(err, &failed) || errors.As(err, &corrupt)
	if !broken {
		if werr := sp.commit(ctx, false); werr != nil {
			err = werr
		}
		if serr := sp.sync(time.Now); serr != nil {
			err, broken = &syncError{serr}, true
		} else {
			r.reports.send(false, false)
			broken = sp.check.Pos() != sp.written
		}
	}
	if broken {
		if err := r.reload(sp.reportable()); err != nil {
			return &localError{err}
		}
	}
	return err
}

// take is the receiver's loop.
func (r *Relay) take(ctx context.Context, c *candidate, sp *spool, tli wal.TLI, heard *atomic.Int64) error {
	for {
		in, err := c.conn.Next(tli)
		if err != nil {
			return err
		}
		heard.Store(time.Now().UnixNano())
		r.stats.upstreamEnd.Store(uint64(in.End))
		if in.Len > 0 {
			if in.Start != sp.taken {
				return fmt.Errorf("server sent WAL at %s where %s was expected", in.Start, sp.taken)
			}
			sp.serverEnd = max(in.End, in.Start+wal.LSN(in.Len))
			for n := in.Len; n > 0; {
				p := sp.space(n)
				if err := c.conn.ReadWAL(p); err != nil {
					return err
				}
				if err := sp.append(ctx, p); err != nil {
					return err
				}
				n -= len(p)
			}
			r.stats.received.Add(uint64(in.Len))
			sp.endMessage()
		}
		switch behind, unsynced := sp.serverEnd-sp.taken, sp.unsynced(); {
		case unsynced == 0:
		case sp.far():
			// The writer has it, and commits.
			if unsynced >= catchUp/2 {
				sp.wakeSyncer()
			}
		case behind >= farBehind:
			if err := sp.commit(ctx, false); err != nil {
				return err
			}
			sp.wakeSyncer()
		case unsynced < farBehind && c.conn.Ready():
			// The write and the sync after the next message cover this one too.
		default:
			if err := r.syncNow(ctx, sp); err != nil {
				return err
			}
			sp.next.ask(sp.size)
		}
		if in.ReplyRequested {
			if err := r.reports.send(true, false); err != nil {
				return err
			}
		}
	}
}

// syncNow puts on disk all that there is, and reports it: commits wait for that.
func (r *Relay) syncNow(ctx context.Context, sp *spool) error {
	r.stats.syncing.Store(true)
	defer r.stats.syncing.Store(false)
	if err := sp.commit(ctx, true); err != nil {
		return err
	}
	return r.sync(sp)
}

// A syncError says that the disk could not make WAL durable. What was not yet
// acknowledged is received again.
type syncError struct{ err error }

func (e *syncError) Error() string { return "could not sync WAL: " + e.err.Error() }
func (e *syncError) Unwrap() error { return e.err }

// syncer syncs whenever there is something to sync, and reports it.
func (r *Relay) syncer(ctx context.Context, sp *spool) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sp.dirty:
		}
		if err := r.sync(sp); err != nil {
			return err
		}
	}
}

// sync makes durable what was committed, publishes it and reports it.
func (r *Relay) sync(sp *spool) error {
	if err := sp.sync(time.Now); err != nil {
		return &syncError{err}
	}
	return r.reports.send(false, false)
}

// heartbeat reports when nothing else does, asks a silent server whether it is
// still there, and gives it up after the timeout.
func (r *Relay) heartbeat(ctx context.Context, server string, heard *atomic.Int64) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	timeout := r.cfg.ReceiverTimeout
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.reports.nudged:
			if err := r.reports.send(false, false); err != nil {
				return err
			}
			continue
		case <-tick.C:
		}
		silent := time.Since(time.Unix(0, heard.Load()))
		var err error
		switch busy := r.stats.full.Load() || r.stats.syncing.Load(); {
		case busy:
			// We do not read, so the server cannot be heard; it must hear us.
			heard.Store(time.Now().UnixNano())
			err = r.reports.send(true, false)
		case timeout > 0 && silent > timeout:
			return fmt.Errorf("server %q has not sent anything for %s", server, silent.Round(time.Second))
		case timeout > 0 && silent > timeout/2:
			err = r.reports.send(true, true)
		default:
			err = r.reports.tick()
		}
		if err != nil {
			return err
		}
	}
}

// reports is what we tell the server. Flush is the end of the last whole
// record on disk, of the timeline that is being streamed: a commit is one, so
// nobody waits for more; and the server's slot then keeps the record that we
// have only half of, should we have to read it again after a crash.
type reports struct {
	relay *Relay

	// since is when a write to the server began that is not done yet, unix
	// nanoseconds. A deadline for each would do as well, but to arm and disarm
	// a timer is more work than the write.
	since atomic.Int64

	mu       sync.Mutex
	nudged   chan struct{} // capacity 1: standbys have applied more
	conn     *pgrepl.Conn  // nil: nobody listens
	sp       *spool
	last     pgrepl.Status
	feedback pgrepl.Feedback
	fedBack  time.Time
}

func (p *reports) start(conn *pgrepl.Conn, sp *spool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn, p.sp, p.last = conn, sp, pgrepl.Status{}
	p.fedBack = time.Time{}
}

// nudge asks for a report soon, if there is news. It does not block: those who
// hear standbys must not wait for the server.
func (p *reports) nudge() {
	select {
	case p.nudged <- struct{}{}:
	default:
	}
}

func (p *reports) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn = nil
}

// send reports where we are if that has changed, or in any case if forced.
// request asks the server to answer.
func (p *reports) send(force, request bool) error {
	apply := p.relay.applied()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.locked(force, request, apply)
}

func (p *reports) locked(force, request bool, apply wal.LSN) error {
	if p.conn == nil {
		return nil
	}
	flushed := p.sp.reportable()
	s := pgrepl.Status{Write: flushed, Flush: flushed, Apply: min(apply, flushed)}
	if !force && s.Write == p.last.Write && s.Flush == p.last.Flush && s.Apply == p.last.Apply {
		return nil
	}
	s.Time, s.ReplyRequested = time.Now(), request
	if err := p.write(func() error { return p.conn.SendStatus(s) }); err != nil {
		return err
	}
	p.last = s
	p.relay.stats.reported.Store(uint64(s.Flush))
	return nil
}

// write calls f, which writes to the server. The caller holds mu.
func (p *reports) write(f func() error) error {
	p.since.Store(time.Now().UnixNano())
	defer p.since.Store(0)
	return f()
}

// guard ends a write to a server that does not read, after the time in which
// it should have. The stream is lost with it.
func (p *reports) guard(done <-chan struct{}, conn *pgrepl.Conn) {
	tick := time.NewTicker(statusInterval / 4)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case now := <-tick.C:
			if since := p.since.Load(); since != 0 && now.Sub(time.Unix(0, since)) > statusInterval {
				conn.SetWriteDeadline(time.Unix(1, 0))
			}
		}
	}
}

// tick sends what is due by the clock: a status, and feedback when it has
// changed or is old.
func (p *reports) tick() error {
	apply, feedback := p.relay.applied(), p.relay.feedback()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		return nil
	}
	now := time.Now()
	if err := p.locked(now.Sub(p.last.Time) >= statusInterval, false, apply); err != nil {
		return err
	}
	wanted := feedback != pgrepl.Feedback{}
	due := feedback != p.feedback || p.fedBack.IsZero() || wanted && now.Sub(p.fedBack) >= statusInterval
	if !due {
		return nil
	}
	if err := p.write(func() error { return p.conn.SendFeedback(feedback, now) }); err != nil {
		return err
	}
	p.feedback, p.fedBack = feedback, now
	return nil
}
