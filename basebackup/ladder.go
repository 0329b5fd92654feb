package basebackup

import (
	"fmt"
	"strings"

	"rideau/basebackup/control"
	"rideau/basebackup/manifest"
	"rideau/basebackup/summary"
	"rideau/wal"
)

// The ladder is how little of a relation's main fork can travel, from the
// cheapest rung to the one that is always right:
//
//	listed      blocks that WAL summaries list since an LSN
//	newerPages  pages whose LSN on the server is not below an LSN
//	different   pages whose digest on the server is not that of ours
//	everything
//
// The first two hold only for what is "known since L": every byte of it is at
// least as fresh as the server was at L, in the server's own history. A block
// that is not changed since is then the server's; one that is torn, or newer
// here than there, was changed since L, and so travels or is replayed whole from
// the WAL of this backup. That has three conditions, and each rule below is one
// of them or what makes it fail:
//
//   - L is in the server's past: an LSN says where, not whose.
//   - The reach, the freshest that any byte of it can be, is in the server's
//     past too, and not past what this backup will stop at: what starts from the
//     backup is consistent only beyond the last change that is in its pages.
//   - Nothing but WAL has changed pages: the checksums flag is the same.
//
// Blocks that DIR does not have at all travel on every rung.
//
// Other files than main forks are on none but the last. Free space maps are not
// in WAL. A visibility map can lose bits by a record that names only the heap's
// block and leaves the map's LSN as it was. All other files have no LSN.
type rungKind uint8

const (
	everything rungKind = iota
	different
	newerPages
	listed
)

func (k rungKind) String() string {
	switch k {
	case different:
		return "content"
	case newerPages:
		return "page LSN"
	case listed:
		return "summaries"
	}
	return "copy"
}

// A rung is how blocks are chosen that DIR has.
type rung struct {
	kind  rungKind
	since wal.LSN // for newerPages and listed
}

func (r rung) String() string {
	if r.since == 0 {
		return r.kind.String()
	}
	return fmt.Sprintf("%s since %s", r.kind, r.since)
}

// A choice is the ladder's.
type choice struct {
	// base is for what DIR was before the first attempt, except files that are
	// void (state.void), that are not in its manifest if it has one, or whose
	// size is not the manifest's: those are copied whole.
	base rung

	// journal is for extents that the journal knows. Each is known since its own
	// attempt, which is never before this rung's since. What is neither the
	// base's nor the journal's is copied whole.
	journal rung

	summaries []summary.Name // to be read, if a rung is listed
	reason    string         // a sentence for the log, without its period
}

// A ladderServer is what the choice needs to know of the server.
type ladderServer struct {
	systemID  uint64
	major     int
	catalog   uint32
	history   *wal.History // of the timeline that it is on
	recovery  bool
	checksums bool

	// identity tells a standby from all others of its system: the system
	// identifier does not. Empty: not known. (The time of change of PG_VERSION's
	// inode, as pg_stat_file has it, is one: a copy has another.)
	identity string

	start wal.LSN // where this backup starts

	// reach is what the LSN at which this backup stops will not be below: of a
	// primary its flushed WAL; of a standby its minimum recovery point, of which
	// pg_backup_stop answers what it is by then. Not what the standby has
	// replayed, which can be far ahead of that.
	reach wal.LSN

	summaries []summary.Name // that exist; nil before 17, or with summarize_wal off
}

// A MismatchError says that DIR cannot be made the server's: what it holds
// belongs to another system, or another version of it. Nothing was changed.
type MismatchError struct {
	What          string // "system identifier", "PostgreSQL version", "catalog version"
	Local, Server uint64
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("directory has %s %d, but the server has %d", e.What, e.Local, e.Server)
}

// standing answers what can be relied upon of a directory that no backup of ours
// was interrupted in, by itself, and why not more. It is what the state says of
// the base from then on.
func (l *local) standing() (init stateInit, why string) {
	init.Base.Kind = l.kind
	if l.kind == localEmpty {
		return init, "the directory is empty"
	}
	c := l.control
	init.SystemID, init.Major, init.CatalogVersion = c.SystemID, l.major, c.CatalogVersion
	b := &init.Base
	b.Checksums = c.ChecksumVersion != 0
	if l.kind == localComplete {
		// A backup's pages are at least as fresh as its start, its redo point,
		// for all that was changed before was on disk by then; and not fresher
		// than its stop. It may have gone over a switch of timelines.
		first, last := ends(l.manifest.WAL)
		b.Since, b.SinceTLI, b.Reach, b.ReachTLI = first.Start, first.TLI, last.End, last.TLI
		why = "the directory is a backup that was not started"
	} else if why = l.notAStandby(); why == "" {
		// All that was replayed before the restartpoint's redo was on disk
		// before the restartpoint was (CreateRestartPoint). What was written
		// later was changed by later WAL, and not before minRecoveryPoint had
		// been moved past that, on disk (UpdateMinRecoveryPoint).
		b.Since, b.SinceTLI, b.Reach, b.ReachTLI = c.Redo, c.TLI, c.MinRecovery, c.MinRecoveryTLI
		why = "the directory is a standby's that was stopped cleanly"
	} else {
		return init, why
	}
	h := l.history(b.ReachTLI)
	if h == nil || !h.Contains(b.SinceTLI, b.Since) {
		b.Since = 0
		return init, fmt.Sprintf("the directory's own history of timeline %s is missing or does not fit", b.ReachTLI)
	}
	b.History = h.Format()
	return init, why
}

// notAStandby says why pg_control does not prove that only replay has changed a
// cluster's pages since its last restartpoint; "" if it does.
func (l *local) notAStandby() string {
	c := l.control
	switch {
	// A primary's pages may hold what the server never had, with any LSN.
	case c.State == control.InProduction || c.State == control.ShutDown || c.State == control.ShuttingDown || c.State == control.Startup || c.State == control.InCrashRecovery:
		return fmt.Sprintf("the directory was a primary's (%s)", c.State)
	// Was it the server that died, or the machine? After a power cut, files that
	// replay of CREATE DATABASE was copying may have their size but not their
	// content, under LSNs that are older than any change; so may everything if
	// fsync was off. Replay begins before that and makes it good, but this
	// backup's begins after. pg_rewind and a copy of a standby that ran leave
	// this state as well, with a redo point that is not their pages'.
	case c.State != control.ShutDownInRecovery:
		return fmt.Sprintf("the directory's server did not stop cleanly (%s)", c.State)
	// Recovery from a backup (or pg_rewind) has not begun, or not reached its
	// end: pages may be fresher than minRecoveryPoint, and redo is not theirs.
	case l.label || c.BackupStart != 0 || c.BackupEnd != 0 || c.BackupEndRequired:
		return "the directory was still to recover to the end of a backup"
	case c.MinRecovery == 0 || c.MinRecovery < c.Redo:
		return "the directory's minimum recovery point is not known"
	}
	return ""
}

// ends are the ranges on the oldest and on the newest timeline.
func ends(ranges []manifest.Range) (first, last manifest.Range) {
	first, last = ranges[0], ranges[0]
	for _, r := range ranges {
		if r.TLI < first.TLI {
			first = r
		}
		if r.TLI > last.TLI {
			last = r
		}
	}
	return first, last
}

// choose chooses for what init says of DIR, and the attempts since, if any; why
// is what standing said. The error is a [*MismatchError].
func choose(init stateInit, why string, tries []attempt, s *ladderServer) (choice, error) {
	if err := mismatch(init, s); err != nil {
		return choice{}, err
	}
	p := choice{reason: why}
	b := init.Base
	attempted, tryErr := oldest(tries, s)

	switch doubt := doubt(b, s); {
	case b.Kind == localEmpty:
		p.base = rung{kind: everything}
	case b.Since == 0:
		p.base = rung{kind: different}
	case doubt != "":
		p.base, p.reason = rung{kind: different}, doubt
	// What an attempt was writing when it ended is not in the journal, and is
	// as doubtful as the attempt, wherever in the base's files it was.
	case tryErr != "":
		p.base = rung{kind: different}
	default:
		p.base = rung{kind: newerPages, since: b.Since}
		// A standby that lagged may have been asked in between, and its older
		// pages written over some of the base's.
		if len(tries) > 0 && attempted < b.Since {
			p.base.since = attempted
		}
	}
	if len(tries) > 0 {
		p.journal = rung{kind: newerPages, since: attempted}
		p.reason = "an interrupted backup goes on"
		if tryErr != "" {
			p.journal = rung{kind: different}
			p.reason += ", but " + tryErr
		} else if p.base.kind == different {
			p.reason += "; for what it had not copied, " + orElse(doubt(b, s), orElse(why, "nothing is known of what was there before"))
		}
	}
	p.summarized(s)
	return p, nil
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// mismatch refuses what can never become the server's. There is nothing to be
// forced: DIR would be emptied, which its owner can do, and we cannot know
// whether those were the last copies.
func mismatch(init stateInit, s *ladderServer) error {
	switch {
	case init.Base.Kind == localEmpty && init.SystemID == 0:
		return nil
	case init.SystemID != s.systemID:
		return &MismatchError{"system identifier", init.SystemID, s.systemID}
	case init.Major != s.major:
		return &MismatchError{"PostgreSQL version", uint64(init.Major), uint64(s.major)}
	case init.CatalogVersion != s.catalog:
		return &MismatchError{"catalog version", uint64(init.CatalogVersion), uint64(s.catalog)}
	}
	return nil
}

// doubt says why the base is not known since its LSN in this server's history,
// "" if it is.
func doubt(b base, s *ladderServer) string {
	switch {
	case b.Kind == localEmpty || b.Since == 0:
		return ""
	// pg_checksums rewrites pages and leaves their LSNs.
	case b.Checksums != s.checksums:
		return "data checksums were switched since"
	case !s.history.Contains(b.SinceTLI, b.Since) || !s.history.Contains(b.ReachTLI, b.Reach):
		return fmt.Sprintf("the directory came to %s on timeline %s, which is not in the past of the server's timeline %s", b.Reach, b.ReachTLI, s.history.TLI)
	// Two standbys that were promoted apart can give one number to two timelines.
	case !samePast(b.History, b.ReachTLI, s.history):
		return fmt.Sprintf("the directory's history of timeline %s is not the server's", b.ReachTLI)
	// A standby that lags behind where DIR came from; or a server that was set
	// back to an older state without a timeline of its own.
	case b.Reach > s.reach:
		return fmt.Sprintf("the directory came to %s, but the server only to %s", b.Reach, s.reach)
	}
	return ""
}

// oldest answers the start of the oldest attempt, or why what attempts copied is
// not known since they started, in this server's history. How far they came
// nobody knows: they ended without a word.
func oldest(tries []attempt, s *ladderServer) (since wal.LSN, doubt string) {
	for i, a := range tries {
		switch {
		case a.Checksums != s.checksums:
			return 0, "data checksums were switched since"
		// A switch away from that timeline may be before what was copied.
		case a.TLI != s.history.TLI:
			return 0, fmt.Sprintf("the server is on timeline %s now, and was on %s", s.history.TLI, a.TLI)
		case !samePast(a.History, a.TLI, s.history):
			return 0, fmt.Sprintf("the history of timeline %s is another one now", a.TLI)
		case a.Start > s.reach:
			return 0, fmt.Sprintf("it started at %s, and the server came only to %s", a.Start, s.reach)
		// A primary has all WAL that any of its standbys had. Another standby may
		// lag behind; the same one has at least come to where it was, for it moves
		// its minimum recovery point before it writes a page.
		case s.recovery && (s.identity == "" || a.Server != s.identity):
			return 0, "it was of another server, and this one is a standby that may not have come as far"
		}
		if i == 0 || a.Start < since {
			since = a.Start
		}
	}
	return since, ""
}

// samePast compares the text of tli's history file with what the server's
// history says of the same timeline.
func samePast(text string, tli wal.TLI, server *wal.History) bool {
	ours, err := wal.ParseHistory(tli, text)
	theirs, ok := server.Ancestor(tli)
	if err != nil || !ok || len(ours.Entries) != len(theirs.Entries) {
		return false
	}
	for i, e := range ours.Entries {
		if e.TLI != theirs.Entries[i].TLI || e.End != theirs.Entries[i].End {
			return false
		}
	}
	return true
}

// summarized takes the rungs one higher where WAL summaries tell all from the
// oldest LSN to the start of this backup. What is changed later is in this
// backup's WAL, with full pages.
func (p *choice) summarized(s *ladderServer) {
	var since wal.LSN
	for _, r := range []rung{p.base, p.journal} {
		if r.kind == newerPages && (since == 0 || r.since < since) {
			since = r.since
		}
	}
	if since == 0 || len(s.summaries) == 0 {
		return
	}
	// Of a standby that lags behind, this backup can start before what DIR is
	// known since. Then pages' LSNs decide.
	use, err := summary.Cover(s.summaries, s.history, since, s.start)
	if err != nil {
		p.reason += fmt.Sprintf(" (%v)", err)
		return
	}
	p.summaries = use
	for _, r := range []*rung{&p.base, &p.journal} {
		if r.kind == newerPages {
			r.kind = listed
		}
	}
}

// String is the choice for the log: how, and why.
func (p choice) String() string {
	how := p.base.String()
	if p.journal != (rung{}) {
		how = strings.Join([]string{p.journal.String(), how}, ", else ")
	}
	return how + ": " + p.reason
}

// onward is the base as the state is to have it: a first attempt that compares
// content may leave pages half written that the base's LSN would not bring
// again, so no later one may rely on that.
func (p choice) onward(b base) base {
	if p.base.kind == different {
		b.Since, b.SinceTLI = 0, 0
	}
	return b
}
