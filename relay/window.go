package relay

import (
	"sync"

	"rideau/internal/durable"
	"rideau/wal"
)

// chunkSize is the unit in which WAL is kept in memory: the smallest segment,
// so that a chunk never spans two.
const chunkSize = 1 << 20

// windowChunks is how much of the newest WAL all senders share: enough for a
// standby that stalls for a moment, small enough to forget. Behind it, the
// operating system's cache of the segment files does the same for less.
const windowChunks = 16

// A chunk is WAL of one timeline in memory. The receiver fills it; what lies
// below the published position never changes and may be read by anyone who
// holds a reference.
type chunk struct {
	tli  wal.TLI
	base wal.LSN // of buf[0]; a multiple of chunkSize
	from wal.LSN // the first byte that was received, if the stream began inside
	refs int     // guarded by window.mu
	buf  []byte  // chunkSize, where the disk can take it from
}

// A window holds the newest chunks. Senders and the receiver take references;
// a chunk is used again when the last one is given back.
type window struct {
	mu   sync.Mutex
	ring [windowChunks]*chunk
	free []*chunk
}

// at returns the receiver's chunk for WAL that goes on at lsn. No reference is
// counted for the receiver: the chunk it fills is the newest and stays.
func (w *window) at(tli wal.TLI, lsn wal.LSN) *chunk {
	base := lsn &^ (chunkSize - 1)
	i := int(uint64(base) / chunkSize % windowChunks)
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.ring[i]; c != nil {
		if c.tli == tli && c.base == base {
			return c
		}
		w.unref(c)
		w.ring[i] = nil
	}
	var c *chunk
	if n := len(w.free); n > 0 {
		c, w.free = w.free[n-1], w.free[:n-1]
	} else {
		c = &chunk{buf: durable.Aligned(chunkSize)}
	}
	c.tli, c.base, c.from = tli, base, lsn
	c.refs = 1
	w.ring[i] = c
	return c
}

// get returns the chunk that holds lsn, with a reference that [window.put]
// gives back; nil if memory does not hold it.
func (w *window) get(tli wal.TLI, lsn wal.LSN) *chunk {
	base := lsn &^ (chunkSize - 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.ring[uint64(base)/chunkSize%windowChunks]
	if c == nil || c.tli != tli || c.base != base || lsn < c.from {
		return nil
	}
	c.refs++
	return c
}

func (w *window) put(c *chunk) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unref(c)
}

// forget empties the window: what it holds beyond the published position must
// not be trusted any more.
func (w *window) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, c := range w.ring {
		if c != nil {
			w.unref(c)
			w.ring[i] = nil
		}
	}
}

// unref is called with the lock held.
func (w *window) unref(c *chunk) {
	if c.refs--; c.refs == 0 && len(w.free) < windowChunks {
		w.free = append(w.free, c)
	}
}
