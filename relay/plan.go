package relay

import (
	"fmt"
	"slices"

	"rideau/wal"
)

// local is what the relay holds, for deciding.
type local struct {
	systemID    uint64 // zero: nothing is known yet, any server will do
	segmentSize wal.SegmentSize
	tli         wal.TLI // zero: no WAL yet
	complete    wal.LSN // end of the last whole record on disk
	written     wal.LSN // where the stream on tli would go on; complete <= written

	// known is what the relay knows of a timeline's path; nil if of none.
	known func(wal.TLI) (*wal.History, bool)
}

// observed is what a server said of itself.
type observed struct {
	server      string
	systemID    uint64
	segmentSize wal.SegmentSize
	tli         wal.TLI
	pos         wal.LSN      // flushed there, or received by a standby
	history     *wal.History // of tli
	standby     bool

	// What its slot for us holds, where it has one and could say.
	slotTLI     wal.TLI
	slotRestart wal.LSN
}

// start is where to ask for WAL.
type start struct {
	tli wal.TLI
	lsn wal.LSN
}

// planStart decides where to go on receiving from a server, or why its WAL
// must not be mixed with ours. It is the only judge of that.
//
//	ours   ────────complete──written        a record that never ended may lie between
//	                  │ fork here or later: nothing of ours is lost
//	theirs ───────────┴───────────▶
//
// A fork below complete means that we hold, and may have acknowledged, a
// record that the server never had.
func planStart(l local, o observed) (start, error) {
	if l.systemID != 0 && l.systemID != o.systemID {
		return start{}, &SystemError{Server: o.server, Want: l.systemID, Got: o.systemID}
	}
	if l.segmentSize != 0 && l.segmentSize != o.segmentSize {
		return start{}, &SegmentSizeError{Server: o.server, Want: l.segmentSize, Got: o.segmentSize}
	}
	if tli := otherHistory(l, o.history); tli != 0 {
		return start{}, &HistoryError{Server: o.server, TLI: tli}
	}
	if l.tli == 0 {
		// Nothing yet. What the slot holds is older than where the server
		// stands, and worth having: it may be what a base backup needs.
		if o.slotRestart != 0 && o.slotTLI != 0 && o.history.Contains(o.slotTLI, o.slotRestart) {
			return start{o.slotTLI, o.segmentSize.Start(o.slotRestart)}, nil
		}
		return start{o.tli, o.segmentSize.Start(o.pos)}, nil
	}
	if o.tli < l.tli {
		return start{}, &BehindError{Server: o.server, TLI: o.tli, LSN: o.pos, OurTLI: l.tli, OurLSN: l.complete}
	}
	if o.tli == l.tli {
		if o.pos < l.complete {
			return start{}, &BehindError{Server: o.server, TLI: o.tli, LSN: o.pos, OurTLI: l.tli, OurLSN: l.complete}
		}
		if o.pos < l.written {
			// A server that lost its unfinished last record in a crash has
			// less than we were sent, but no record less. What it has there
			// now may be something else.
			return start{l.tli, l.complete}, nil
		}
		return start{l.tli, l.written}, nil
	}
	end, next, ok := o.history.SwitchPoint(l.tli)
	if !ok || end < l.complete {
		return start{}, &DivergedError{Server: o.server, TLI: l.tli, LSN: l.complete, ServerTLI: o.tli, Fork: forkOf(o.history, l.tli, end, ok)}
	}
	if end < l.written {
		// Behind the fork we hold only the beginning of a record that was
		// never finished. There is nothing to ask for on our timeline.
		return start{next, o.segmentSize.Start(end)}, nil
	}
	return start{l.tli, l.written}, nil
}

// otherHistory answers the timeline of h's path whose own path is not the one
// that we know it by, zero if all agree: two servers were promoted to the same
// number, and all that has come from one of them is not the other's.
func otherHistory(l local, h *wal.History) wal.TLI {
	path := append(slices.Clone(h.Entries), wal.Entry{TLI: h.TLI})
	for i, e := range path {
		ours, ok := l.known(e.TLI)
		if !ok {
			continue
		}
		if len(ours.Entries) != i {
			return e.TLI
		}
		for j, o := range ours.Entries {
			// h may leave a timeline before that began, see ParseHistory:
			// its earlier entries then end there.
			cut := path[j].End < o.End && path[j].End == path[j+1].End
			if path[j].TLI != o.TLI || path[j].Reason != o.Reason || path[j].End != o.End && !cut {
				return e.TLI
			}
		}
	}
	return 0
}

// forkOf is where h leaves tli: the switch point, or where its path passes the
// timelines before tli when it never went through it.
func forkOf(h *wal.History, tli wal.TLI, end wal.LSN, ok bool) wal.LSN {
	if ok {
		return end
	}
	for _, e := range h.Entries {
		if e.TLI < tli {
			end = e.End
		}
	}
	return end
}

// planSwitch decides what follows when a server said that the timeline we
// stream ends at end.LSN.
func planSwitch(l local, server string, next wal.TLI, end wal.LSN) (start, error) {
	if end < l.complete {
		return start{}, &DivergedError{Server: server, TLI: l.tli, LSN: l.complete, ServerTLI: next, Fork: end}
	}
	if end > l.written {
		return start{}, fmt.Errorf("server %q ended timeline %d at %s but sent it only up to %s", server, l.tli, end, l.written)
	}
	return start{next, l.segmentSize.Start(end)}, nil
}

// choose picks the server to receive from, -1 for none: a primary before a
// standby, then the one on the highest timeline, then the first in the list.
// A standby is taken only if it is wanted: the only server there is, or asked
// for. One of several may be one of those that we feed; we would wait for each
// other for ever, and not see the primary come back.
func choose(servers []observed, standbyWanted bool) int {
	best := -1
	for i, o := range servers {
		if o.standby && !standbyWanted {
			continue
		}
		if best < 0 || servers[best].standby && !o.standby ||
			servers[best].standby == o.standby && servers[best].tli < o.tli {
			best = i
		}
	}
	return best
}

// A SystemError says that a server belongs to another cluster: its system
// identifier is not the one whose WAL the relay keeps. It will never do.
type SystemError struct {
	Server    string
	Want, Got uint64
}

func (e *SystemError) Error() string {
	return fmt.Sprintf("server %q has system identifier %d, but this relay keeps WAL of system %d", e.Server, e.Got, e.Want)
}

// A SegmentSizeError says that a server's WAL comes in files of another size.
type SegmentSizeError struct {
	Server    string
	Want, Got wal.SegmentSize
}

func (e *SegmentSizeError) Error() string {
	return fmt.Sprintf("server %q has a WAL segment size of %s, but this relay keeps segments of %s", e.Server, e.Got, e.Want)
}

// A BehindError says that a server has not got all that the relay has: an old
// primary that came back, or a standby that lags. Another server, or time, may
// help.
type BehindError struct {
	Server string
	TLI    wal.TLI // where the server is
	LSN    wal.LSN
	OurTLI wal.TLI
	OurLSN wal.LSN
}

func (e *BehindError) Error() string {
	return fmt.Sprintf("server %q is at %s on timeline %d, behind this relay, which has %s on timeline %d", e.Server, e.LSN, e.TLI, e.OurLSN, e.OurTLI)
}

// A DivergedError says that a server's history left ours before the end of
// what we hold: it was promoted without records that the relay had flushed,
// and perhaps acknowledged. Nothing was overwritten.
type DivergedError struct {
	Server    string
	TLI       wal.TLI // ours
	LSN       wal.LSN // the end of the last whole record we have on TLI
	ServerTLI wal.TLI
	Fork      wal.LSN // where the server's history left TLI, or the path to it
}

func (e *DivergedError) Error() string {
	return fmt.Sprintf("timeline %d of server %q forked at %s, but this relay has flushed timeline %d up to %s", e.ServerTLI, e.Server, e.Fork, e.TLI, e.LSN)
}

// A GapError reports that the server has removed WAL the relay still needed.
// Retrying does not help: the missing WAL must come from somewhere else.
type GapError struct {
	Server string
	TLI    wal.TLI
	LSN    wal.LSN // the first byte that is missing
	Err    error   // what the server said
}

func (e *GapError) Error() string {
	return fmt.Sprintf("server %q no longer has WAL at %s on timeline %d", e.Server, e.LSN, e.TLI)
}

func (e *GapError) Unwrap() error { return e.Err }

// A SlotError reports that the slot on the server is not one to receive with: it
// is a logical one.
type SlotError struct {
	Server string
	Slot   string
	Err    error // what the server said
}

func (e *SlotError) Error() string {
	return fmt.Sprintf("cannot receive with slot %q of server %q: %v", e.Slot, e.Server, e.Err)
}

func (e *SlotError) Unwrap() error { return e.Err }
