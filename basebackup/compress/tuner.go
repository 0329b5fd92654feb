package compress

import (
	"sync"
	"time"
)

// A Tuner finds out whether compression makes a copy faster, by trying both. One
// serves all connections of a backup: they share the network and the server.
//
// It compares what one connection gets one way and the other. If the network is
// full, a connection that compresses gets the same part of it and makes more of
// it; if the server's processors are, or the network is fast, one that does not
// compress gets more. What has lost is tried again, seldom enough to cost a
// twentieth of the time at most, because tables differ and so do hours. The zero
// value is ready.
//
// It has no clock: what it knows it is told by Done.
type Tuner struct {
	mu    sync.Mutex
	way   [2]rate       // plain, compressed
	began [2]int        // how many requests there have been
	since time.Duration // spent the better way since the other was tried
	price time.Duration // what the last try of the other took
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
	// trials of each way come first.
	trials = 3

	// worth is what compression must win by. Below it the server's processors
	// are better left to its users.
	worth = 1.1

	// retryShare bounds the time that goes into trying what has lost.
	retryShare = 20
)

// Compress says whether to compress the next request. Each is answered by Done,
// unless it failed.
func (t *Tuner) Compress() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.best()
	if o := 1 - i; t.way[o].samples < trials && t.began[o] < t.began[i] {
		i = o // both are tried in turn, by all connections together
	} else if t.way[0].samples >= trials && t.way[1].samples >= trials && t.since > retryShare*t.price {
		t.since = 0 // one connection tries, not all that ask at once
		i = o
	}
	t.began[i]++
	return i == 1
}

// best is the index of what is faster so far.
func (t *Tuner) best() int {
	if t.way[1].samples > 0 && t.way[0].samples > 0 && t.way[1].perSecond() > worth*t.way[0].perSecond() {
		return 1
	}
	return 0
}

// Done reports a request: how it was made, how many bytes it was of on the
// server, and how long its answer took, from when the one before it on the same
// connection was complete.
func (t *Tuner) Done(compressed bool, raw int64, took time.Duration) {
	if raw <= 0 {
		return // vanished files say nothing about rates
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	i := 0
	if compressed {
		i = 1
	}
	t.way[i].add(raw, took)
	if i == t.best() {
		t.since += took
	} else {
		t.price = took
	}
}

// Compressing says what the Tuner thinks best at the moment.
func (t *Tuner) Compressing() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.best() == 1
}
