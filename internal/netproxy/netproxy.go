package netproxy

import (
	"context"
	"net"
	"sync"
	"time"
)

// A Direction of the bytes through a [Proxy].
type Direction int

const (
	Up   Direction = 1 << iota // from the client to the server
	Down                       // from the server to the client
	Both = Up | Down
)

func (d Direction) String() string {
	switch d {
	case Up:
		return "up"
	case Down:
		return "down"
	}
	return "both"
}

// A Proxy stands before a TCP address and makes the network between bad. What
// it is told holds for connections that exist and those to come, until Heal.
type Proxy struct {
	upstream string
	listener net.Listener
	wg       sync.WaitGroup

	mu      sync.Mutex
	cond    *sync.Cond // wakes pumps when any of what follows changes
	conns   map[*link]bool
	cut     bool
	frozen  Direction
	delay   map[Direction]time.Duration
	rate    int // bytes a second, each connection and direction; 0 is unlimited
	shared  int // bytes a second, each direction, all connections together
	passed  map[Direction]*bucket
	closed  bool
	carried map[Direction]int64
}

// A link is one client's connection with its connection to the server.
type link struct {
	client, server net.Conn
	reset          bool // under Proxy.mu: closed by us, nothing is to be delivered
}

func (l *link) close() {
	// A reset rather than an orderly end: the other side has crashed, or its
	// network has, and sent no FIN.
	for _, c := range []net.Conn{l.client, l.server} {
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		c.Close()
	}
}

// A bucket tells when the next bytes may pass at a rate.
type bucket struct{ next time.Time }

// slack is how much later than allowed bytes may pass, and be made up for. A
// timer is late by a millisecond or so, which would else be lost each time.
const slack = 10 * time.Millisecond

// take is when n bytes may pass.
func (b *bucket) take(now time.Time, n, rate int) time.Time {
	if rate <= 0 {
		return now
	}
	if old := now.Add(-slack); b.next.Before(old) {
		b.next = old
	}
	b.next = b.next.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return b.next
}

// New starts a proxy on a port of its own of 127.0.0.1, before the TCP address
// upstream, which need not answer yet. It ends with Close.
func New(upstream string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		upstream: upstream, listener: l,
		conns: map[*link]bool{}, delay: map[Direction]time.Duration{}, carried: map[Direction]int64{},
		passed: map[Direction]*bucket{Up: {}, Down: {}},
	}
	p.cond = sync.NewCond(&p.mu)
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is where clients connect.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// SetUpstream changes where new connections go.
func (p *Proxy) SetUpstream(addr string) {
	p.change(func() { p.upstream = addr })
}

// Cut resets all connections, and every new one until Heal.
func (p *Proxy) Cut() {
	p.change(func() {
		p.cut = true
		p.drop()
	})
}

// Drop resets all connections once; new ones are served.
func (p *Proxy) Drop() { p.change(p.drop) }

func (p *Proxy) drop() {
	for l := range p.conns {
		l.reset = true
		l.close()
	}
}

// Freeze stops the bytes in the given directions: connections stay, and nobody
// is told anything. New connections are accepted and stay silent the same way.
// After Heal the bytes go on, as TCP's do when a cable is back.
func (p *Proxy) Freeze(d Direction) {
	p.change(func() { p.frozen |= d })
}

// Delay holds up every byte for this long in the given directions. It adds
// latency and takes no bandwidth away.
func (p *Proxy) Delay(d Direction, by time.Duration) {
	p.change(func() {
		for _, one := range []Direction{Up, Down} {
			if d&one != 0 {
				p.delay[one] = by
			}
		}
	})
}

// Rate limits each connection to so many bytes a second each way; 0 lifts the
// limit.
func (p *Proxy) Rate(bytesPerSecond int) {
	p.change(func() { p.rate = bytesPerSecond })
}

// RateAll limits all connections together to so many bytes a second each way; 0
// lifts the limit.
func (p *Proxy) RateAll(bytesPerSecond int) {
	p.change(func() { p.shared = bytesPerSecond })
}

// Heal makes the network good again. Connections that were cut stay cut.
func (p *Proxy) Heal() {
	p.change(func() {
		p.cut, p.frozen, p.rate, p.shared = false, 0, 0, 0
		clear(p.delay)
	})
}

// Connections counts those that are open.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Carried counts the bytes delivered in a direction since the beginning.
func (p *Proxy) Carried(d Direction) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var n int64
	for one, bytes := range p.carried {
		if d&one != 0 {
			n += bytes
		}
	}
	return n
}

func (p *Proxy) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.cond.Broadcast()
}

// Close resets all connections and ends the proxy. It returns when nothing of it
// is left.
func (p *Proxy) Close() {
	p.listener.Close()
	p.change(func() {
		p.closed = true
		p.drop()
	})
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

// dialTimeout is for a machine that is busy with other things.
const dialTimeout = time.Minute

func (p *Proxy) serve(client net.Conn) {
	p.mu.Lock()
	refuse, upstream := p.cut || p.closed, p.upstream
	p.mu.Unlock()
	var server net.Conn
	if !refuse {
		ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
		defer cancel()
		var d net.Dialer
		var err error
		server, err = d.DialContext(ctx, "tcp", upstream)
		refuse = err != nil
	}
	l := &link{client: client, server: server}
	if refuse {
		l.server = client
		l.close()
		return
	}
	p.mu.Lock()
	if p.cut || p.closed { // while we dialed
		p.mu.Unlock()
		l.close()
		return
	}
	p.conns[l] = true
	p.mu.Unlock()

	var pumps sync.WaitGroup
	pumps.Go(func() { p.pump(l, Up, client, server) })
	pumps.Go(func() { p.pump(l, Down, server, client) })
	pumps.Wait()
	l.client.Close()
	l.server.Close()
	p.change(func() { delete(p.conns, l) })
}

// A chunk of bytes on its way, with the time at which it was sent.
type chunk struct {
	b    []byte
	sent time.Time
	err  error // the end of the stream
}

// pump carries one direction of a connection. Reading goes on while bytes are
// being held up, or a delay would be a limit of bandwidth too; the queue between
// is bounded as a network's is.
func (p *Proxy) pump(l *link, d Direction, from, to net.Conn) {
	queue := make(chan chunk, 256)
	var passed bucket
	stop := make(chan struct{})
	defer close(stop)
	p.wg.Go(func() {
		defer close(queue)
		for {
			buf := make([]byte, 64<<10)
			n, err := from.Read(buf)
			select {
			case queue <- chunk{buf[:n], time.Now(), err}:
			case <-stop:
				return
			}
			if err != nil {
				return
			}
		}
	})
	for c := range queue {
		if !p.hold(l, d, c.sent) {
			return
		}
		if len(c.b) > 0 {
			if !p.write(l, d, &passed, to, c.b) {
				l.close()
				return
			}
		}
		if c.err != nil {
			// One side has ended what it says; the other may go on.
			if tcp, ok := to.(*net.TCPConn); ok {
				tcp.CloseWrite()
			}
			return
		}
	}
}

// write delivers b, at the rates that are allowed.
func (p *Proxy) write(l *link, d Direction, own *bucket, to net.Conn, b []byte) bool {
	for len(b) > 0 {
		now := time.Now()
		p.mu.Lock()
		part := b
		for _, rate := range []int{p.rate, p.shared} {
			if rate > 0 {
				part = part[:min(len(part), max(1, rate/50))] // fifty times a second
			}
		}
		due := own.take(now, len(part), p.rate)
		if all := p.passed[d].take(now, len(part), p.shared); all.After(due) {
			due = all
		}
		p.mu.Unlock()
		if due.After(now) && !p.waitUntil(l, due) {
			return false
		}
		// Counted first: who has got them must find them counted.
		p.mu.Lock()
		p.carried[d] += int64(len(part))
		p.mu.Unlock()
		if _, err := to.Write(part); err != nil {
			return false
		}
		b = b[len(part):]
	}
	return true
}

// hold waits until bytes sent at a time may be delivered; false means never.
func (p *Proxy) hold(l *link, d Direction, sent time.Time) bool {
	for {
		p.mu.Lock()
		for p.frozen&d != 0 && !p.gone(l) {
			p.cond.Wait()
		}
		due := sent.Add(p.delay[d])
		gone := p.gone(l)
		p.mu.Unlock()
		if gone {
			return false
		}
		if !time.Now().Before(due) {
			return true
		}
		if !p.waitUntil(l, due) {
			return false
		}
	}
}

func (p *Proxy) gone(l *link) bool { return p.closed || l.reset }

// waitUntil waits for a moment, or until something changes; false means that the
// connection is gone.
func (p *Proxy) waitUntil(l *link, at time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	// With the lock, or it could fire between our look at the clock and Wait.
	timer := time.AfterFunc(time.Until(at), func() { p.change(func() {}) })
	defer timer.Stop()
	for time.Now().Before(at) && !p.gone(l) {
		rate, shared := p.rate, p.shared
		p.cond.Wait()
		if p.rate != rate || p.shared != shared {
			break
		}
	}
	return !p.gone(l)
}
