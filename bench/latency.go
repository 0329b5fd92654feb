package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"time"

	"golang.org/x/sync/errgroup"

	"rideau/internal/pgserver"
	"rideau/wal"
)

// arrivals are when a receiver had what, in order.
type arrivals struct {
	lsn []wal.LSN // the first byte it had not
	at  []time.Time
}

func (a *arrivals) seen(lsn wal.LSN, at time.Time) {
	a.lsn, a.at = append(a.lsn, lsn), append(a.at, at)
}

// of is when all below lsn had arrived.
func (a *arrivals) of(lsn wal.LSN) time.Time {
	return a.at[sort.Search(len(a.lsn), func(i int) bool { return a.lsn[i] >= lsn })]
}

// commitsPerSecond is slow enough for a commit to have arrived everywhere before
// the next.
const commitsPerSecond = 100

// latency measures what the hop adds. One client commits small transactions, a
// hundred a second. Two receivers in this process note when they have each
// commit: one is connected to the primary, the other to somebody between, who is
// fed by the primary. The figure is how much later the other has it. The relay
// sends only what is on its own disk, so an fdatasync is part of it; the peer, a
// standby that is cascaded from, waits for its own in the same way.
//
// The relay and the standby take turns, and only one of them runs.
func (b *bench) latency(ctx context.Context) (err error) {
	s, err := b.server(ctx, "primary", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	if _, err := s.Query(ctx, "CREATE TABLE t (n int, filler text)"); err != nil {
		return err
	}
	standby, err := b.standby(ctx, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, standby.Remove()) }()

	between := []struct {
		name string
		run  func() ([]time.Duration, error)
	}{
		{"relay", func() (_ []time.Duration, err error) {
			dir, remove, err := b.dir()
			if err != nil {
				return nil, err
			}
			defer func() { err = errors.Join(err, remove()) }()
			if err := createSlot(ctx, s, "relay"); err != nil {
				return nil, err
			}
			r, err := b.beginRelay(ctx, s.Conninfo(""), dir, "relay", "relay")
			if err != nil {
				return nil, err
			}
			defer func() {
				r.stop()
				err = errors.Join(err, dropSlot(context.WithoutCancel(ctx), s, "relay"))
			}()
			at, err := s.LSN(ctx)
			if err != nil {
				return nil, err
			}
			if err := r.waitFlushed(ctx, at); err != nil {
				return nil, err
			}
			return b.hop(ctx, s, r.conninfo())
		}},
		{"standby", func() (_ []time.Duration, err error) {
			if err := standby.Start(ctx); err != nil {
				return nil, err
			}
			defer func() { err = errors.Join(err, standby.Stop(pgserver.Fast)) }()
			at, err := s.LSN(ctx)
			if err != nil {
				return nil, err
			}
			if err := standby.WaitLSN(ctx, at); err != nil {
				return nil, err
			}
			return b.hop(ctx, s, standby.Conninfo(""))
		}},
	}
	for round := range b.cfg.Rounds {
		for _, who := range rotate(between, round) {
			b.logf("latency: round %d, %s", round+1, who.name)
			added, err := who.run()
			if err != nil {
				return fmt.Errorf("%s: %w", who.name, err)
			}
			slices.Sort(added)
			for _, q := range quantiles {
				b.results.add(hopFigure(q), who.name, "ms", quantile(added, q).Seconds()*1000)
			}
		}
	}
	for _, q := range quantiles {
		b.results.compareLess(hopFigure(q), "relay", "standby")
	}
	return nil
}

var quantiles = []float64{0.50, 0.99}

func hopFigure(q float64) string { return fmt.Sprintf("latency added, p%.0f", q*100) }

// hop commits for as long as it was told, and returns for each commit how much
// later it came by way of conninfo.
func (b *bench) hop(ctx context.Context, s *pgserver.Server, conninfo string) (added []time.Duration, err error) {
	client, err := s.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close(context.WithoutCancel(ctx))
	from, err := s.LSN(ctx)
	if err != nil {
		return nil, err
	}

	var direct, behind arrivals
	following, stop := context.WithCancel(ctx)
	defer stop()
	group, following := errgroup.WithContext(following)
	f := &fan{broken: following.Done()}
	for _, at := range []struct {
		conninfo string
		*arrivals
	}{{s.Conninfo(""), &direct}, {conninfo, &behind}} {
		r, err := connect(ctx, at.conninfo)
		if err != nil {
			return nil, err
		}
		defer r.close()
		if err := r.start(ctx, from); err != nil {
			return nil, err
		}
		f.taking = append(f.taking, r)
		group.Go(func() error { return r.follow(following, at.seen) })
	}

	var commits []wal.LSN
	tick := time.NewTicker(time.Second / commitsPerSecond)
	defer tick.Stop()
	warm := commitsPerSecond / 5
	for i := range warm + b.cfg.Seconds*commitsPerSecond {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
		if _, err := client.Exec(ctx, "INSERT INTO t VALUES ($1, 'some seventy bytes, as much as a small change of a row makes')", i); err != nil {
			return nil, err
		}
		var text string
		if err := client.QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()::text").Scan(&text); err != nil {
			return nil, err
		}
		lsn, err := wal.ParseLSN(text)
		if err != nil {
			return nil, err
		}
		if i >= warm {
			commits = append(commits, lsn)
		}
	}
	if err := f.wait(ctx, commits[len(commits)-1]); err != nil {
		return nil, err
	}
	stop()
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for _, lsn := range commits {
		added = append(added, behind.of(lsn).Sub(direct.of(lsn)))
	}
	return added, nil
}
