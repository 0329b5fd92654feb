package relay

import (
	"time"

	"rideau/pgrepl"
	"rideau/wal"
)

// A departed standby's slot holds back the primary's vacuum for a while, so
// that a restart of the standby does not cancel its queries; not for ever, so
// that a dead one does not fill the primary with dead rows.
type departed struct {
	feedback pgrepl.Feedback
	at       time.Time
}

const departedKeep = time.Minute

// applied is what all standbys have applied: the least of those that apply
// anything. Zero if there is none: commits that wait for remote_apply then
// wait on, which is the truth.
func (r *Relay) applied() wal.LSN {
	r.mu.Lock()
	defer r.mu.Unlock()
	var least wal.LSN
	for sb := range r.standbys {
		sb.mu.Lock()
		apply := sb.status.Apply
		sb.mu.Unlock()
		if apply != 0 && (least == 0 || apply < least) {
			least = apply
		}
	}
	return least
}

// feedback is the oldest that any standby needs the primary to keep.
func (r *Relay) feedback() pgrepl.Feedback {
	r.mu.Lock()
	defer r.mu.Unlock()
	var f pgrepl.Feedback
	for sb := range r.standbys {
		sb.mu.Lock()
		f = older(f, sb.feedback)
		sb.mu.Unlock()
	}
	for name, d := range r.gone {
		if time.Since(d.at) > departedKeep || r.slots.active(name) {
			delete(r.gone, name)
			continue
		}
		f = older(f, d.feedback)
	}
	return f
}

// older takes the older of two xmins, of each kind; zero holds nothing.
func older(a, b pgrepl.Feedback) pgrepl.Feedback {
	return pgrepl.Feedback{Xmin: olderXID(a.Xmin, b.Xmin), CatalogXmin: olderXID(a.CatalogXmin, b.CatalogXmin)}
}

func olderXID(a, b pgrepl.FullXID) pgrepl.FullXID {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
