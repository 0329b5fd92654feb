package demo

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// An attempt is a row that a client tried to commit.
type attempt struct {
	id    int64
	xid   uint64 // of the transaction; 0 if it was never acknowledged
	port  int    // of the server that acknowledged it
	acked time.Time
}

// A ledger is what clients know of their own writes. It is in memory: no
// server can lose it.
type ledger struct {
	mu    sync.Mutex
	last  int64 // the last id given out
	acked []attempt
	doubt map[int64]bool // begun and not acknowledged
}

func newLedger() *ledger { return &ledger{doubt: map[int64]bool{}} }

// begin gives out an id that was never used, for one attempt.
func (l *ledger) begin() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	l.doubt[l.last] = true
	return l.last
}

// ack writes down that the commit of id was acknowledged.
func (l *ledger) ack(a attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.doubt, a.id)
	l.acked = append(l.acked, a)
}

// count is how many commits were acknowledged.
func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// countBy is how many were acknowledged by the server on port.
func (l *ledger) countBy(port int) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.acked {
		if a.port == port {
			n++
		}
	}
	return n
}

// gap is the time from the last acknowledgement of one server to the first of
// another.
func (l *ledger) gap(from, to int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var last, first time.Time
	for _, a := range l.acked {
		switch {
		case a.port == from && a.acked.After(last):
			last = a.acked
		case a.port == to && (first.IsZero() || a.acked.Before(first)):
			first = a.acked
		}
	}
	if last.IsZero() || first.IsZero() {
		return 0
	}
	return first.Sub(last)
}

// A Tally is the ledger compared with what a place has.
type Tally struct {
	Found      int `json:"acknowledged_found"`
	Missing    int `json:"missing"`
	Duplicates int `json:"duplicates"` // rows beyond the first of an id
	InDoubt    int `json:"in_doubt_found"`
	Foreign    int `json:"foreign"` // that no client ever wrote

	// MissingIDs are the first of the missing rows.
	MissingIDs []int64 `json:"missing_ids,omitempty"`
}

// Whole says whether every acknowledged commit is there, once, and nothing
// that nobody wrote.
func (t Tally) Whole() bool { return t.Missing == 0 && t.Duplicates == 0 && t.Foreign == 0 }

const maxMissingIDs = 10

func (t *Tally) miss(id int64) {
	t.Missing++
	if len(t.MissingIDs) < maxMissingIDs {
		t.MissingIDs = append(t.MissingIDs, id)
	}
}

// compareRows compares the ledger with the ids of the rows that a server has.
func (l *ledger) compareRows(ids []int64) (t Tally) {
	l.mu.Lock()
	defer l.mu.Unlock()
	count := map[int64]int{}
	for _, id := range ids {
		count[id]++
	}
	for _, a := range l.acked {
		if count[a.id] == 0 {
			t.miss(a.id)
			continue
		}
		t.Found++
		t.Duplicates += count[a.id] - 1
		delete(count, a.id)
	}
	for id := range l.doubt {
		if count[id] > 0 {
			t.InDoubt++
			t.Duplicates += count[id] - 1
			delete(count, id)
		}
	}
	for n := range maps.Values(count) {
		t.Foreign += n
	}
	slices.Sort(t.MissingIDs)
	return t
}

// compareCommits compares the ledger with the commits found in WAL, counted by
// transaction id. An id that was lost on one timeline is given out again on the
// next, so each acknowledged row needs a commit of its own. What else was
// committed is not the ledger's.
func (l *ledger) compareCommits(commits map[uint64]int) (t Tally) {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := maps.Clone(commits)
	for _, a := range l.acked {
		if left[a.xid] == 0 {
			t.miss(a.id)
			continue
		}
		left[a.xid]--
		t.Found++
	}
	for _, a := range l.acked {
		t.Duplicates += left[a.xid]
		left[a.xid] = 0
	}
	slices.Sort(t.MissingIDs)
	return t
}
