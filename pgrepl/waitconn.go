//go:build unix

package pgrepl

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
)

// A waitConn is a connection whose reader waits in poll(2), on a thread of its
// own, and not in Go's network poller. Somebody's commit waits for each message
// of a WAL stream, and between two of them there is nothing else to do: to park
// the goroutine costs, for every commit, a wake-up of the runtime's monitor, of
// the poller's thread and of the processor that both run on. With two
// processors, shared with the server, that is 5 to 15 % of the commits that one
// client makes (see doc/bench.md).
//
// It is meant for the few connections of which that is true: each that waits
// has a thread. One goroutine may read and one write at a time; deadlines and
// Close are anybody's.
type waitConn struct {
	fd            int
	local, remote net.Addr
	in, out       half

	more bool // the last read was full: there may be more; the reader's

	users  sync.RWMutex // held for reading while fd is in use
	closed atomic.Bool
}

// yieldAfter is how long a reader goes on before it gives its processor up of
// its own accord. A goroutine that only ever waits in system calls looks to the
// runtime's monitor like one that has run without a pause, and after 10 ms
// (forcePreemptNS) it is interrupted, wherever it is; then the monitor looks
// every 20 µs for a while, which costs more than all that we do for a commit.
// One that yields in time, where it is about to wait and nobody waits for it,
// is left alone.
const yieldAfter = 6 * time.Millisecond

// A half is one direction: the deadline, and the way to make who waits see that
// it has changed.
type half struct {
	deadline atomic.Int64 // unix nanoseconds; 0 is none
	waiting  atomic.Bool
	yielded  time.Time // see yieldAfter; only who waits touches it
	r, w     int       // a pipe: a byte in it ends the wait
}

// waitDial makes dial's connections waitConns, where they are sockets.
func waitDial(dial pgconn.DialFunc) pgconn.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c, err := newWaitConn(conn)
		if err != nil {
			conn.Close()
			return nil, err
		}
		return c, nil
	}
}

// newWaitConn takes conn over.
func newWaitConn(conn net.Conn) (net.Conn, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return conn, nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &waitConn{fd: -1, local: conn.LocalAddr(), remote: conn.RemoteAddr()}
	for _, h := range []*half{&c.in, &c.out} {
		h.r, h.w = -1, -1
	}
	// The descriptor is duplicated, and the first one closed, because the
	// poller would go on watching that.
	if cerr := raw.Control(func(fd uintptr) {
		c.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	}); cerr != nil {
		err = cerr
	}
	for _, h := range []*half{&c.in, &c.out} {
		if err == nil {
			err = h.open()
		}
	}
	if err != nil {
		c.release()
		return nil, os.NewSyscallError("dup", err)
	}
	conn.Close()
	return c, nil
}

func (h *half) open() error {
	var fds [2]int
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := unix.Pipe(fds[:]); err != nil {
		return err
	}
	h.r, h.w = fds[0], fds[1]
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
	}
	return nil
}

// wake makes who waits look again. A full pipe holds wake-ups enough.
func (h *half) wake() {
	if h.waiting.Load() {
		unix.Write(h.w, []byte{0})
	}
}

func (h *half) setDeadline(t time.Time) {
	var n int64
	if !t.IsZero() {
		n = max(t.UnixNano(), 1)
	}
	h.deadline.Store(n)
	h.wake()
}

// left is the time until the deadline, negative if there is none.
func (c *waitConn) left(h *half) (time.Duration, error) {
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	deadline := h.deadline.Load()
	if deadline == 0 {
		return -1, nil
	}
	left := time.Until(time.Unix(0, deadline))
	if left <= 0 {
		return 0, os.ErrDeadlineExceeded
	}
	return left, nil
}

// wait returns nil once fd is ready for events. The caller holds users.
func (c *waitConn) wait(h *half, events int16) error {
	if now := time.Now(); now.Sub(h.yielded) > yieldAfter {
		h.yielded = now
		runtime.Gosched()
	}
	h.waiting.Store(true)
	defer h.waiting.Store(false)
	for {
		left, err := c.left(h)
		if err != nil {
			return err
		}
		timeout := -1
		if left >= 0 {
			timeout = int(min((left+time.Millisecond-1)/time.Millisecond, 1<<30))
		}
		fds := [2]unix.PollFd{{Fd: int32(c.fd), Events: events}, {Fd: int32(h.r), Events: unix.POLLIN}}
		n, err := unix.Poll(fds[:], timeout)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return os.NewSyscallError("poll", err)
		case err != nil || n == 0:
		case fds[1].Revents != 0:
			var drop [64]byte
			unix.Read(h.r, drop[:])
		default:
			return nil
		}
	}
}

// ready reports whether a read would not wait.
func (c *waitConn) ready() bool {
	c.users.RLock()
	defer c.users.RUnlock()
	fds := [1]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds[:], 0)
	return err == nil && n > 0 && !c.closed.Load()
}

func (c *waitConn) Read(p []byte) (int, error) {
	c.users.RLock()
	defer c.users.RUnlock()
	// While there is more than was asked for, waiting is a system call for
	// nothing.
	wait := !c.more
	for {
		if _, err := c.left(&c.in); err != nil {
			return 0, c.fail("read", err)
		}
		if wait {
			if err := c.wait(&c.in, unix.POLLIN); err != nil {
				return 0, c.fail("read", err)
			}
		}
		n, err := unix.Read(c.fd, p)
		switch {
		case err == nil && n == 0 && len(p) > 0:
			return 0, io.EOF
		case err == nil:
			c.more = n == len(p)
			return n, nil
		case errors.Is(err, unix.EAGAIN):
			wait = true
		case !errors.Is(err, unix.EINTR):
			return 0, c.fail("read", os.NewSyscallError("read", err))
		}
	}
}

func (c *waitConn) Write(p []byte) (int, error) {
	c.users.RLock()
	defer c.users.RUnlock()
	if _, err := c.left(&c.out); err != nil {
		return 0, c.fail("write", err)
	}
	done := 0
	for done < len(p) {
		n, err := unix.Write(c.fd, p[done:])
		switch {
		case err == nil:
			done += n
		case errors.Is(err, unix.EAGAIN):
			if err := c.wait(&c.out, unix.POLLOUT); err != nil {
				return done, c.fail("write", err)
			}
		case !errors.Is(err, unix.EINTR):
			return done, c.fail("write", os.NewSyscallError("write", err))
		}
	}
	return done, nil
}

func (c *waitConn) fail(name string, err error) error {
	return &net.OpError{Op: name, Net: c.local.Network(), Source: c.local, Addr: c.remote, Err: err}
}

// Close ends reads and writes that are under way.
func (c *waitConn) Close() error {
	if c.closed.Swap(true) {
		return c.fail("close", net.ErrClosed)
	}
	c.in.wake()
	c.out.wake()
	c.users.Lock()
	defer c.users.Unlock()
	return c.release()
}

func (c *waitConn) release() (err error) {
	for _, fd := range []int{c.in.r, c.in.w, c.out.r, c.out.w} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if c.fd >= 0 {
		err = unix.Close(c.fd)
	}
	return err
}

func (c *waitConn) LocalAddr() net.Addr  { return c.local }
func (c *waitConn) RemoteAddr() net.Addr { return c.remote }

func (c *waitConn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *waitConn) SetReadDeadline(t time.Time) error  { return c.set(&c.in, t) }
func (c *waitConn) SetWriteDeadline(t time.Time) error { return c.set(&c.out, t) }

func (c *waitConn) set(h *half, t time.Time) error {
	if !c.users.TryRLock() {
		return net.ErrClosed // being closed
	}
	defer c.users.RUnlock()
	if c.closed.Load() {
		return net.ErrClosed
	}
	h.setDeadline(t)
	return nil
}
