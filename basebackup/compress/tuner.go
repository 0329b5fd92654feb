package compress

import (
	"sync"
	"time"
)

// A Tuner finds out whether compression makes a copy faster, by trying both. One
// serves all connections of a backup: they share the network and the server, and
// what one has learnt.
//
//	Next, alone ──▶ trials of both, most of them compressed ──▶ clear, or enough
//	                                                             │
//	Next, many under way ◀── the better way, most of the time ◀──┘
//	                         and now and then a trial of the other, ever more seldom
//
// It compares what one connection gets one way and the other. If the network is
// full, a connection that compresses gets the same part of it and makes more of
// it; if the server's processors are, or the network is fast, one that does not
// compress gets more. It begins with compression: to be wrong about that costs
// milliseconds on a fast network, the other error seconds on a slow one. What has
// lost is tried again, because tables differ and so do hours, and takes a
// twentieth of the time at most. The zero value is ready.
//
// It has no clock: what it knows it is told by Done.
type Tuner struct {
	mu    sync.Mutex
	way   [2]rate       // plain, compressed
	began [2]int        // how many requests there have been
	since time.Duration // spent the better way since the other was tried
	price time.Duration // what the last try of the other took
	lost  int           // how often in a row the other was tried in vain
	last  int           // what was best when last asked
}

// A rate is raw bytes in time, of which older ones count less.
type rate struct {
	samples int
	bytes   float64
	seconds float64
}

func (r *rate) add(n int64, took time.Duration) {
	// Seven tenths: the last three requests are two thirds of the figure.
	const keep = 0.7
	r.samples++
	r.bytes = keep*r.bytes + float64(n)
	r.seconds = keep*r.seconds + took.Seconds()
}

func (r *rate) perSecond() float64 { return r.bytes / max(r.seconds, 1e-9) }

const (
	// trials of each way come first, unless one each is clear.
	trials = 3

	// decisive is by how much one way must win to need no more trials.
	decisive = 1.5

	// sparing is how many trials are compressed for each that is not: on a slow
	// line that one holds up all others.
	sparing = 4

	// worth is what compression must win by. Below it the server's processors
	// are better left to its users.
	worth = 1.1

	// retryShare bounds the time that goes into trying what has lost; each time
	// that it loses again the share halves, so often.
	retryShare = 20
	maxHalved  = 3
)

// A Turn is how the next request is to be made.
type Turn struct {
	Compress bool

	// Trial asks for little, TrialBytes, and for nothing else to be under way on
	// the connection: what was sent before would hide how long it takes.
	Trial bool
}

// TrialBytes is how much of the server's files a trial should be of: enough to
// be more than a round trip, and on a line of 20 MB/s a fortieth of a second.
const TrialBytes = 512 << 10

// Next says how to make the next request. Each is answered by Done, unless it
// failed.
func (t *Tuner) Next() Turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.best()
	turn := Turn{Compress: i == 1}
	switch o := 1 - i; {
	case !t.settled():
		turn.Trial = true
		n := 1
		if o == 0 {
			n = sparing
		}
		if t.began[o]*n < t.began[i] {
			i = o
		}
	case t.since > retryShare<<min(t.lost, maxHalved)*t.price:
		t.since = 0 // one connection tries, not all that ask at once
		turn.Trial = true
		i = o
	}
	t.began[i]++
	turn.Compress = i == 1
	return turn
}

// best is the index of what is faster so far.
func (t *Tuner) best() int {
	if t.way[1].samples > 0 && t.way[0].samples > 0 && t.way[1].perSecond() <= worth*t.way[0].perSecond() {
		return 0
	}
	return 1
}

// settled reports whether both ways have been tried often enough.
func (t *Tuner) settled() bool {
	plain, packed := &t.way[0], &t.way[1]
	switch few := min(plain.samples, packed.samples); {
	case few == 0:
		return false
	case few < trials:
		p, c := plain.perSecond(), packed.perSecond()
		return p > decisive*c || c > decisive*p
	}
	return true
}

// Done reports a request: how it was made, how many bytes it was of on the
// server, and how long its answer took, from when it was sent, or the one before
// it on the same connection was complete.
func (t *Tuner) Done(turn Turn, raw int64, took time.Duration) {
	if raw <= 0 {
		return // vanished files say nothing about rates
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	i := 0
	if turn.Compress {
		i = 1
	}
	t.way[i].add(raw, took)
	switch best := t.best(); {
	case best != t.last:
		t.last, t.lost, t.since, t.price = best, 0, 0, took
	case i == best:
		t.since += took
	case turn.Trial:
		t.price = took
		if t.settled() {
			t.lost++
		}
	}
}

// Compressing says what the Tuner thinks best at the moment.
func (t *Tuner) Compressing() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.best() == 1
}

// Settled reports whether that is founded on trials.
func (t *Tuner) Settled() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.settled()
}
