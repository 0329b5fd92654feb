package relay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"rideau/pgrepl"
	"rideau/wal"
)

const (
	firstBackoff = 100 * time.Millisecond
	// A failover ends with the first try after a server was promoted, so this
	// is part of every downtime; and a try costs the servers a connection.
	lastBackoff = time.Second

	// graceAfterFirst is how long slower servers of the list are waited for
	// once one has answered that would do: one of them may be on a higher
	// timeline.
	graceAfterFirst = time.Second
)

// follow receives WAL until ctx is done, from whichever server of the list is
// the one to follow. It returns an error only where trying again is no use.
func (r *Relay) follow(ctx context.Context) error {
	backoff := firstBackoff
	var last string // what was logged last, not to repeat it every few seconds
	var logged time.Time
	for first := true; ; first = false {
		var streaming time.Time
		err := r.attempt(ctx, func() { streaming = time.Now() })
		// A stream that breaks as soon as it begins is no success.
		if !streaming.IsZero() && time.Since(streaming) > lastBackoff {
			backoff, last = firstBackoff, ""
		}
		if ctx.Err() != nil {
			return nil
		}
		r.setUpstream(func(u *UpstreamStatus) { u.State, u.Error = "disconnected", err.Error() })
		if r.hopeless(err, first) {
			return err
		}
		if text := err.Error(); text != last || time.Since(logged) > time.Minute {
			r.logUpstream(err)
			last, logged = text, time.Now()
		}
		var full *pgconn.PgError
		if errors.As(err, &full) && full.Code == "55006" {
			// The slot is held by our own last connection, which the server
			// has not noticed to be dead.
			backoff = firstBackoff
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// hopeless tells whether the relay should give up rather than go on trying. A
// relay that holds WAL goes on, since it serves that meanwhile; but the first
// attempt of a process also tells whether its arguments make sense.
func (r *Relay) hopeless(err error, first bool) bool {
	var local *localError
	if errors.As(err, &local) {
		// There may be room again; until then nothing more is acknowledged.
		return !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT)
	}
	if !first {
		return false
	}
	if r.spool() == nil {
		return true
	}
	if len(r.targets) > 1 {
		// This is about one of them; the one to follow may be down for now,
		// as in the middle of a failover.
		return false
	}
	var sys *SystemError
	var size *SegmentSizeError
	var slot *SlotError
	var pg *pgconn.PgError
	return errors.As(err, &sys) || errors.As(err, &size) || errors.As(err, &slot) ||
		errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "28") || pg.Code == "42501")
}

// A localError is trouble with our own disk that no server can mend.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

func (r *Relay) logUpstream(err error) {
	var end *pgrepl.EndOfTimeline
	switch {
	case errors.Is(err, pgrepl.ErrStreamEnded), errors.As(err, &end):
		r.log.Info("the server ended the stream", "err", err)
	default:
		r.log.Error("could not receive WAL", "err", err)
	}
}

// A candidate is a server that answered.
type candidate struct {
	conn *pgrepl.Conn
	observed
	system pgrepl.System
	start  start
	err    error // why its WAL is not for us
}

// attempt connects to the server to follow and receives from it until that
// ends. streaming is called once WAL flows.
func (r *Relay) attempt(ctx context.Context, streaming func()) error {
	r.setUpstream(func(u *UpstreamStatus) { u.State = "connecting" })
	c, err := r.find(ctx)
	if err != nil {
		return err
	}
	defer c.conn.Close()

	if err := r.adopt(ctx, c); err != nil {
		return err
	}
	if err := r.ensureSlot(ctx, c); err != nil {
		return err
	}
	if err := r.startAtSlot(ctx, c); err != nil {
		return err
	}
	r.setCurrent(c.conn.Target)
	r.setUpstream(func(u *UpstreamStatus) {
		u.Server, u.Standby, u.TLI, u.Error = c.server, c.standby, c.tli, ""
		u.Version = c.conn.Param("server_version")
	})
	return r.stream(ctx, c, streaming)
}

// find asks all servers of the list at once and keeps the connection to the
// one to follow.
func (r *Relay) find(ctx context.Context) (*candidate, error) {
	type answer struct {
		c   *candidate
		err error
		i   int
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer)
	var wg sync.WaitGroup
	for i, t := range r.targets {
		wg.Go(func() {
			c, err := r.ask(ctx, t)
			select {
			case answers <- answer{c, err, i}:
			case <-ctx.Done():
				if c != nil {
					c.conn.Close()
				}
			}
		})
	}

	var failed []error
	found := make([]*candidate, len(r.targets))
	var grace <-chan time.Time
wait:
	for range r.targets {
		select {
		case a := <-answers:
			if a.err != nil {
				failed = append(failed, a.err)
				continue
			}
			found[a.i] = a.c
			if a.c.err == nil && !a.c.standby && grace == nil {
				grace = time.After(graceAfterFirst)
			}
		case <-grace:
			break wait
		case <-ctx.Done():
			break wait
		}
	}
	cancel()
	wg.Wait()

	var fit, unfit []*candidate
	for _, c := range found {
		if c == nil {
			continue
		}
		if c.err == nil {
			fit = append(fit, c)
		} else {
			unfit = append(unfit, c)
		}
	}
	best := pick(fit, len(r.targets), r.targets[0].WantsStandby())
	for _, c := range append(fit, unfit...) {
		if c != best {
			c.conn.Close()
		}
	}
	switch {
	case ctx.Err() != nil && best == nil && context.Cause(ctx) != context.Canceled:
		return nil, context.Cause(ctx)
	case best != nil:
		return best, nil
	case len(unfit) > 0:
		// The refusal of a server that is there says more than the silence
		// of others.
		return nil, pick(unfit, 1, true).err
	case len(fit) > 0:
		return nil, fmt.Errorf("none of the %d servers is a primary", len(r.targets))
	case len(failed) == 0:
		return nil, context.Canceled
	}
	return nil, errors.Join(failed...)
}

// pick applies choose to candidates, of a list of total servers.
func pick(cs []*candidate, total int, standbyWanted bool) *candidate {
	os := make([]observed, len(cs))
	for i, c := range cs {
		os[i] = c.observed
	}
	i := choose(os, standbyWanted || total == 1)
	if i < 0 {
		return nil
	}
	return cs[i]
}

// ask connects to a server and learns all that planStart wants to know.
func (r *Relay) ask(ctx context.Context, t *pgrepl.Target) (_ *candidate, err error) {
	conn, err := t.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
			err = fmt.Errorf("server %q: %w", t, err)
		}
	}()
	c := &candidate{conn: conn, observed: observed{server: t.String()}}
	if c.system, err = conn.Identify(ctx); err != nil {
		return nil, err
	}
	c.systemID, c.tli, c.pos = c.system.ID, c.system.TLI, c.system.Pos
	text, err := conn.Show(ctx, "wal_segment_size")
	if err != nil {
		return nil, err
	}
	if c.segmentSize, err = wal.ParseSegmentSize(text); err != nil {
		return nil, err
	}
	// 14 and later say it themselves; SHOW works for all.
	readOnly, ok := conn.Params()["in_hot_standby"]
	if !ok {
		if readOnly, err = conn.Show(ctx, "transaction_read_only"); err != nil {
			return nil, err
		}
	}
	c.standby = readOnly == "on"
	c.history = &wal.History{TLI: 1}
	if c.tli > 1 {
		text, err := conn.TimelineHistory(ctx, c.tli)
		if err != nil {
			return nil, err
		}
		if c.history, err = wal.ParseHistory(c.tli, text); err != nil {
			return nil, err
		}
	}
	c.start, c.err = planStart(r.local(), c.observed)
	return c, nil
}

// adopt makes the server's cluster ours if we had none, and mirrors the
// histories of its timelines before anything of them is announced.
func (r *Relay) adopt(ctx context.Context, c *candidate) error {
	if err := r.learn(ctx, c); err != nil {
		return err
	}
	return r.timelines.mirror(ctx, c.conn, c.tli, r.log)
}

// ensureSlot makes our slot on the server, so that it keeps what we have not
// yet received. There is one, whatever the number of standbys, and it moves
// with what we have flushed.
func (r *Relay) ensureSlot(ctx context.Context, c *candidate) error {
	if r.cfg.Slot == "" {
		return nil
	}
	err := c.conn.CreateSlot(ctx, r.cfg.Slot)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "42710":
		return nil
	case err != nil:
		return fmt.Errorf("could not create replication slot %q on server %q: %w", r.cfg.Slot, c.server, err)
	}
	r.log.Info("created a replication slot", "slot", r.cfg.Slot, "server", c.server)
	if limit, err := c.conn.Show(ctx, "max_slot_wal_keep_size"); err == nil && limit == "-1" {
		r.log.Warn("the server would keep WAL without limit while this relay is away: max_slot_wal_keep_size is -1",
			"slot", r.cfg.Slot, "server", c.server)
	}
	return nil
}

// readSlot asks for our slot on a server of 15 or later; nil if there is none.
func (r *Relay) readSlot(ctx context.Context, c *candidate) (*pgrepl.Slot, error) {
	slot, err := c.conn.ReadSlot(ctx, r.cfg.Slot)
	var kind *pgrepl.SlotKindError
	switch {
	case errors.As(err, &kind):
		return nil, &SlotError{Server: c.server, Slot: r.cfg.Slot, Err: err}
	case err != nil:
		return nil, fmt.Errorf("server %q: %w", c.server, err)
	}
	return slot, nil
}

// startAtSlot makes a relay that has no WAL begin with the oldest that its slot
// holds, where the server can say. A new slot holds WAL from the last
// checkpoint on: that much of the past is to be had, and serves standbys that
// are older. Only the server that was chosen is asked: a slot elsewhere would
// hold WAL for nobody.
func (r *Relay) startAtSlot(ctx context.Context, c *candidate) error {
	l := r.local()
	if l.tli != 0 || r.cfg.Slot == "" || c.conn.Major() < 15 {
		return nil
	}
	slot, err := r.readSlot(ctx, c)
	if err != nil {
		return err
	}
	if slot != nil {
		c.slotTLI, c.slotRestart = slot.RestartTLI, slot.Restart
	}
	c.start, err = planStart(l, c.observed)
	return err
}

// local is what we hold, for planStart.
func (r *Relay) local() local {
	var l local
	if sp := r.spool(); sp != nil {
		l = sp.local()
	}
	l.known = r.timelines.get
	return l
}

// stream receives from one server, across its timelines.
func (r *Relay) stream(ctx context.Context, c *candidate, streaming func()) (err error) {
	sp := r.spool()
	defer func() {
		// A timeline that has not reached its beginning here gives way to its
		// parent, as after a crash: the next server may not have come by it.
		if sp.written < sp.goal && ctx.Err() == nil {
			if rerr := r.reload(0); rerr != nil {
				err = &localError{rerr}
			}
		}
	}()
	at := c.start
	var goal wal.LSN // where at.tli begins, if we come to it from its parent
	if l := sp.local(); l.tli != 0 && l.tli != at.tli {
		goal, _, _ = c.history.SwitchPoint(l.tli)
	}
	for {
		switch {
		case sp.tli != at.tli:
			if err := sp.begin(at.tli, at.lsn, goal); err != nil {
				if err := r.reload(sp.reportable()); err != nil {
					return &localError{err}
				}
				return &syncError{err}
			}
		case sp.written != at.lsn:
			if err := r.reload(at.lsn); err != nil {
				return &localError{err}
			}
			at.lsn = sp.written
		}
		err := c.conn.StartReplication(ctx, r.cfg.Slot, at.tli, at.lsn)
		if err == nil {
			r.log.Info("receiving WAL", "server", c.server, "tli", at.tli, "lsn", at.lsn, "slot", r.cfg.Slot)
			streaming()
			r.setUpstream(func(u *UpstreamStatus) { u.State, u.TLI = "streaming", at.tli })
			err = r.receive(ctx, c, at.tli)
		}
		var end *pgrepl.EndOfTimeline
		if !errors.As(err, &end) {
			return r.streamError(ctx, c, at, err)
		}
		next, err := planSwitch(sp.local(), c.server, end.Next, end.LSN)
		if err != nil {
			return err
		}
		// The server may have been promoted since we asked it.
		system, err := c.conn.Identify(ctx)
		if err != nil {
			return err
		}
		if err := r.timelines.mirror(ctx, c.conn, system.TLI, r.log); err != nil {
			return err
		}
		r.log.Info("the timeline goes on as another", "server", c.server, "tli", end.TLI, "lsn", end.LSN, "next", end.Next)
		at, goal = next, end.LSN
	}
}

// streamError gives what the server said its meaning.
func (r *Relay) streamError(ctx context.Context, c *candidate, at start, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "58P01" {
		return &GapError{Server: c.server, TLI: at.tli, LSN: at.lsn, Err: err}
	}
	if errors.As(err, &pg) && pg.Code == "55000" {
		// Either it is a logical slot, or it was invalidated, because
		// max_slot_wal_keep_size was passed. Only 18 refuses that: with others a
		// slot that was lost streams as long as there is WAL, and ends with 58P01.
		if c.conn.Major() < 18 {
			return &SlotError{Server: c.server, Slot: r.cfg.Slot, Err: err}
		}
		if _, err := r.readSlot(ctx, c); err != nil {
			return err
		}
		return &GapError{Server: c.server, TLI: at.tli, LSN: at.lsn, Err: err}
	}
	return fmt.Errorf("server %q: %w", c.server, err)
}
