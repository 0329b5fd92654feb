package pgrepl

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"rideau/wal"
)

// A Source is where the WAL of a stream comes from. One stream uses it, from
// one goroutine.
type Source interface {
	// Read returns WAL from lsn on, at most max bytes, valid until the next
	// Read; and end, the first byte that is not yet on the server's disk. No
	// data and no error means that there is nothing yet: Changed tells when.
	//
	// The data never ends inside a record except at a page boundary, or where
	// the upstream itself ended a message: standbys rely on it.
	//
	// An [*EndOfTimeline] ends the stream in the protocol's way, [ErrShutdown]
	// as an orderly stop of the server does, once the standby has confirmed
	// what it was sent. Any other error goes to the standby as [AsError] has
	// it, and the session goes on.
	Read(lsn wal.LSN, max int) (data []byte, end wal.LSN, err error)

	// Changed has capacity 1, and receives when Read may have more to say.
	Changed() <-chan struct{}
}

// ErrShutdown says that the server is stopping: there will be no more WAL.
// Stream returns it when the standby has been told.
var ErrShutdown = errors.New("the server is shutting down")

// A TimeoutError reports a standby that said nothing for the whole timeout.
type TimeoutError struct {
	Peer    string // application_name, or the address of one without
	Timeout time.Duration
}

func (e *TimeoutError) Error() string {
	return fmt.Sprintf("standby %q did not reply for %v", e.Peer, e.Timeout)
}

// StreamConfig says what to stream. Start, TLI and Source are needed.
type StreamConfig struct {
	TLI    wal.TLI
	Start  wal.LSN
	Source Source

	// Next is set if TLI is known to have ended: where, and what follows. It
	// is what a client hears that leaves a historic timeline by itself.
	Next *EndOfTimeline

	// Timeout is wal_sender_timeout. A standby that was silent for half of it
	// is asked for a reply; silent for all of it, it is given up. Zero: never.
	Timeout time.Duration

	// OnStatus and OnFeedback hear what the standby reports, from a goroutine
	// of the stream's own, one at a time. They must not block: replies are
	// read by nobody else. May be nil.
	OnStatus   func(Status)
	OnFeedback func(Feedback)

	// OnSent is called with the first byte that was not yet sent, after each
	// message. May be nil.
	OnSent func(wal.LSN)
}

// lingerTimeout is how long the last words of a stream wait for the standby to
// hang up, so that no reset overtakes them.
const lingerTimeout = time.Second

// Stream answers START_REPLICATION: it sends WAL and keepalives and hears
// reports until the timeline ends or the client has had enough. It then
// returns nil, and the session is ready for the next command, as it is after an
// error of the Source, which the client was told.
//
// When ctx is done, or the Source says ErrShutdown, the standby gets all that
// the Source has and the session is closed once it has confirmed that: as a
// server does on shutdown. Stream then returns ErrShutdown. A standby that
// confirms nothing is waited for until Timeout; Close ends the wait.
//
// Any error ends the session: ErrShutdown, io.EOF for a client that left, a
// [*TimeoutError], or a failure of the connection.
func (s *Session) Stream(ctx context.Context, cfg StreamConfig) error {
	st := &stream{Session: s, cfg: cfg, ctx: ctx, next: cfg.Next, sent: cfg.Start,
		began: time.Now(), wake: make(chan struct{}, 1), readerDone: make(chan struct{})}
	err := st.run()
	if err != nil {
		s.conn.Close()
	}
	return err
}

// A stream is the state of one Stream. Its goroutine writes; another reads.
type stream struct {
	*Session
	cfg  StreamConfig
	ctx  context.Context
	next *EndOfTimeline // historic: what follows
	sent wal.LSN

	began     time.Time
	copyDone  bool      // we have sent it
	lastAsked time.Time // for a reply, by the writer

	// Shared with the reader. It sends to wake when the writer has cause to
	// look again: a reply to give, a question answered, or while stopping any
	// report.
	asked      atomic.Bool // for a reply, and nothing has come since
	stopping   atomic.Bool // all that is there, then no more
	wantsReply atomic.Bool
	lastReply  atomic.Int64  // nanoseconds after began
	confirmed  atomic.Uint64 // flushed by the standby, or written if it flushes nothing
	wake       chan struct{}
	readerDone chan struct{}
	readerErr  error // nil after CopyDone; valid once readerDone is closed

	timedOut atomic.Bool // by the watchdog

	head [5 + walHeaderLen]byte
	vec  [2][]byte
	bufs net.Buffers
	copy []byte // header and WAL for connections that cannot take them apart
}

func (st *stream) run() error {
	s := st.Session
	// A cancelled ReadCommand may have left a deadline; while streaming the
	// watchdog is in charge.
	s.conn.SetDeadline(time.Time{})
	stopWatchdog := st.watchdog()
	defer stopWatchdog()
	go func() {
		defer close(st.readerDone)
		st.readerErr = st.readReplies()
	}()
	err := st.send()
	if err != nil && st.timedOut.Load() {
		err = &TimeoutError{Peer: s.peerName(), Timeout: st.cfg.Timeout}
	}
	var told *Error
	switch {
	case err == nil: // CopyDone has gone both ways
	case errors.Is(err, ErrShutdown):
		st.farewell()
		return err
	case errors.As(err, &told) && told.Severity == "FATAL":
		s.Fatal(told)
		<-st.readerDone
		return err
	case errors.As(err, &told):
		// Stop reading between messages: what comes next is a command, or
		// what is left of the standby's reports, which ReadCommand ignores.
		s.conn.SetReadDeadline(time.Unix(1, 0))
		<-st.readerDone
		stopWatchdog()
		s.conn.SetDeadline(time.Time{})
		if st.readerErr != nil && !errors.Is(st.readerErr, os.ErrDeadlineExceeded) {
			return st.readerErr
		}
		return s.Error(told)
	default:
		s.conn.Close()
		<-st.readerDone
		return err
	}
	stopWatchdog()
	if st.next != nil {
		s.result([]Column{{"next_tli", oidInt8}, {"next_tli_startpos", oidText}},
			[]Value{Value(st.next.Next.String()), Value(st.next.LSN.String())})
	}
	s.complete("START_STREAMING")
	return s.Reply("START_REPLICATION", nil) // twice, as libpqrcv_endstreaming expects
}

// askWhileStopping is how soon a standby is asked again that has answered, but
// not confirmed all that it was sent.
const askWhileStopping = 100 * time.Millisecond

// farewell is how a stopping server leaves: the command is complete, without
// CopyDone, and the connection ends.
func (st *stream) farewell() {
	s := st.Session
	s.conn.SetDeadline(time.Now().Add(lingerTimeout))
	if !st.copyDone {
		s.complete("COPY 0")
		st.write(s.wbuf)
	}
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
	<-st.readerDone // at the latest when the deadline has passed
	s.conn.Close()
}

// watchdog ends the connection when nothing was heard for the whole timeout,
// also under a write that the standby does not take. No deadline is set before
// that: one that strikes inside a message would spoil a TLS connection.
func (st *stream) watchdog() (stop func()) {
	if st.cfg.Timeout <= 0 {
		return func() {}
	}
	var mu sync.Mutex
	var timer *time.Timer
	stopped := false
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(st.cfg.Timeout, func() {
		mu.Lock()
		defer mu.Unlock()
		if stopped {
			return
		}
		if left := time.Until(st.lastHeard().Add(st.cfg.Timeout)); left > 0 {
			timer.Reset(left)
			return
		}
		st.timedOut.Store(true)
		st.conn.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}

func (st *stream) lastHeard() time.Time { return st.began.Add(time.Duration(st.lastReply.Load())) }

// send is the loop of the goroutine that writes. It returns nil when CopyDone
// has gone both ways, ErrShutdown when all has been sent and confirmed, an
// *Error that is for the client, or what broke the connection.
func (st *stream) send() error {
	st.wbuf = encode(st.wbuf, &pgproto3.CopyBothResponse{})
	err := st.write(st.wbuf)
	st.wbuf = st.wbuf[:0]
	if err != nil {
		return err
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	done := st.ctx.Done()
	changed := st.cfg.Source.Changed()
	ended := false // the Source has no more
	for {
		select {
		case <-st.readerDone:
			if st.readerErr != nil {
				return st.readerErr
			}
			return st.write(copyDone) // the client's came first
		case <-done:
			st.stopping.Store(true)
			done = nil
		default:
		}
		if st.wantsReply.CompareAndSwap(true, false) {
			if err := st.keepalive(false); err != nil {
				return err
			}
		}
		if st.cfg.Timeout > 0 && !st.asked.Load() && time.Since(st.lastHeard()) >= st.cfg.Timeout/2 {
			if err := st.keepalive(true); err != nil {
				return err
			}
		}

		if !ended {
			data, end, err := st.cfg.Source.Read(st.sent, MaxWALMessage)
			switch {
			case errors.Is(err, ErrShutdown):
				st.stopping.Store(true)
				ended, changed = true, nil
			case err != nil:
				return st.sourceError(err)
			case len(data) > 0:
				if err := st.sendWAL(data, end); err != nil {
					return err
				}
				continue
			}
		}

		// Nothing to send.
		if st.stopping.Load() {
			if wal.LSN(st.confirmed.Load()) >= st.sent {
				return ErrShutdown
			}
			if !st.asked.Load() && time.Since(st.lastAsked) >= askWhileStopping {
				if err := st.keepalive(true); err != nil {
					return err
				}
			}
		}
		var due <-chan time.Time
		if st.stopping.Load() && !st.asked.Load() {
			// It answered without confirming: it may be busy writing.
			timer.Reset(askWhileStopping - time.Since(st.lastAsked))
			due = timer.C
		} else if st.cfg.Timeout > 0 && !st.asked.Load() {
			timer.Reset(time.Until(st.lastHeard().Add(st.cfg.Timeout / 2)))
			due = timer.C
		}
		select {
		case <-changed:
		case <-st.wake:
		case <-st.readerDone:
		case <-due:
		case <-done:
			st.stopping.Store(true)
			done = nil
		}
	}
}

// sourceError is the end of the timeline, or an error for the client to hear.
//
// At the end it sends CopyDone and waits for the client's: what the client
// still has to report is heard, and nothing follows from us.
func (st *stream) sourceError(err error) error {
	var end *EndOfTimeline
	if !errors.As(err, &end) {
		return AsError(err)
	}
	st.next = end
	if err := st.write(copyDone); err != nil {
		return err
	}
	st.copyDone = true
	select {
	case <-st.readerDone:
		return st.readerErr
	case <-st.ctx.Done():
		return ErrShutdown
	}
}

var copyDone = []byte{'c', 0, 0, 0, 4}

// sendWAL sends one 'w' message: header and WAL in one system call.
func (st *stream) sendWAL(data []byte, end wal.LSN) error {
	h := st.head[:]
	h[0] = 'd'
	binary.BigEndian.PutUint32(h[1:], uint32(4+walHeaderLen+len(data)))
	h[5] = tagWAL
	binary.BigEndian.PutUint64(h[6:], uint64(st.sent))
	binary.BigEndian.PutUint64(h[14:], uint64(max(end, st.sent+wal.LSN(len(data)))))
	binary.BigEndian.PutUint64(h[22:], pgTime(time.Now()))
	var err error
	if _, ok := st.conn.(*tls.Conn); ok {
		// TLS copies anyway; apart, the header would become a record of its own.
		st.copy = append(append(st.copy[:0], h...), data...)
		err = st.write(st.copy)
	} else {
		st.vec = [2][]byte{h, data}
		st.bufs = st.vec[:]
		if _, err = st.bufs.WriteTo(st.conn); err != nil {
			err = fmt.Errorf("could not send WAL to standby: %w", err)
		}
	}
	if err != nil {
		return err
	}
	st.sent += wal.LSN(len(data))
	if st.cfg.OnSent != nil {
		st.cfg.OnSent(st.sent)
	}
	return nil
}

// keepalive sends 'k' with the position up to which WAL was sent: walreceiver
// takes it for the end of WAL on the server, and 'w' has told it more.
func (st *stream) keepalive(reply bool) error {
	b := append(st.head[:0], 'd', 0, 0, 0, 4+keepaliveLen, tagKeepalive)
	b = binary.BigEndian.AppendUint64(b, uint64(st.sent))
	b = binary.BigEndian.AppendUint64(b, pgTime(time.Now()))
	b = append(b, boolByte(reply))
	if reply {
		st.asked.Store(true)
		st.lastAsked = time.Now()
	}
	return st.write(b)
}

func (st *stream) write(b []byte) error {
	if _, err := st.conn.Write(b); err != nil {
		return fmt.Errorf("could not send to standby: %w", err)
	}
	return nil
}

// readReplies is the goroutine that reads, until CopyDone (nil), Terminate or
// the end of the connection (io.EOF), or an error. It reads messages in place
// and only whole, so that a deadline can stop it between two of them.
func (st *stream) readReplies() error {
	for {
		head, err := st.br.Peek(5)
		if err != nil {
			return err
		}
		typ, n := head[0], int(int32(binary.BigEndian.Uint32(head[1:])))-4
		if typ != 'd' && typ != 'c' && typ != 'X' {
			return &Error{Severity: "FATAL", Code: "08P01", Message: fmt.Sprintf(`invalid standby message type "%c"`, typ)}
		}
		if n < 0 || n > readerSize-5 {
			return fmt.Errorf("invalid message length from standby: %d", n+4)
		}
		msg, err := st.br.Peek(5 + n)
		if err != nil {
			return unexpected(err)
		}
		switch typ {
		case 'X':
			return io.EOF
		case 'd':
			if err := st.report(msg[5:]); err != nil {
				return err
			}
		}
		st.br.Discard(5 + n)
		st.lastReply.Store(int64(time.Since(st.began)))
		if st.asked.Swap(false) || st.stopping.Load() || st.wantsReply.Load() {
			select {
			case st.wake <- struct{}{}:
			default:
			}
		}
		if typ == 'c' {
			return nil
		}
	}
}

// report takes one message of the standby's.
func (st *stream) report(b []byte) error {
	var tag byte
	if len(b) > 0 {
		tag = b[0]
	}
	switch tag {
	case tagStatus:
		status, err := parseStatus(b)
		if err != nil {
			return err
		}
		confirmed := status.Flush
		if confirmed == wal.InvalidLSN {
			confirmed = status.Write // pg_receivewal without --synchronous
		}
		st.confirmed.Store(uint64(confirmed))
		if status.ReplyRequested {
			st.wantsReply.Store(true)
		}
		if st.cfg.OnStatus != nil {
			st.cfg.OnStatus(status)
		}
	case tagFeedback:
		f, err := parseFeedback(b)
		if err != nil {
			return err
		}
		if st.cfg.OnFeedback != nil {
			st.cfg.OnFeedback(f)
		}
	default:
		return fmt.Errorf("unexpected message type %q from standby", tag)
	}
	return nil
}

func (s *Session) peerName() string {
	if s.ApplicationName != "" {
		return s.ApplicationName
	}
	return s.RemoteAddr.String()
}
