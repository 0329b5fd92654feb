package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"rideau/internal/pgserver"
	"rideau/wal"
)

// A fan is receivers of the same WAL.
type fan struct {
	receivers []*receiver
	taking    []*receiver // those that read what they are sent
	stop      context.CancelFunc
	group     *errgroup.Group
	broken    <-chan struct{} // closed when one of them has failed
}

// openFan connects n receivers.
func openFan(ctx context.Context, conninfo string, n int) (*fan, error) {
	f := &fan{}
	for range n {
		r, err := connect(ctx, conninfo)
		if err != nil {
			f.close()
			return nil, err
		}
		f.receivers = append(f.receivers, r)
	}
	return f, nil
}

// start has all of them begin to stream; they go on until close. The last
// stalled of them take nothing.
func (f *fan) start(ctx context.Context, from wal.LSN, stalled int) error {
	for _, r := range f.receivers {
		if err := r.start(ctx, from); err != nil {
			return err
		}
	}
	ctx, f.stop = context.WithCancel(ctx)
	f.group, ctx = errgroup.WithContext(ctx)
	f.broken = ctx.Done()
	f.taking = f.receivers[:len(f.receivers)-stalled]
	for _, r := range f.taking {
		f.group.Go(func() error { return r.follow(ctx, nil) })
	}
	return nil
}

// wait waits until all that take WAL have it up to lsn.
func (f *fan) wait(ctx context.Context, lsn wal.LSN) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	for _, r := range f.taking {
		for wal.LSN(r.got.Load()) < lsn {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-f.broken:
				return errors.New("a receiver ended too early")
			case now := <-tick.C:
				if now.After(deadline) {
					return fmt.Errorf("waited for a receiver at %s to reach %s", wal.LSN(r.got.Load()), lsn)
				}
			}
		}
	}
	return nil
}

// close ends all receivers, and returns what one of them complained of.
func (f *fan) close() error {
	var err error
	if f.stop != nil {
		f.stop()
		err = f.group.Wait()
	}
	for _, r := range f.receivers {
		r.close()
	}
	return err
}

// fanout measures what it takes to serve many receivers, twice over:
//
//	old WAL   what lies in segments, in memory of the operating system; from
//	          the moment when all are connected until the last has it
//	live WAL  what a primary is writing; from the moment when it begins (all
//	          receivers wait for more) until the last receiver has it
//
// "direct" is the same receivers at the primary itself. MB/s is of all receivers
// together. They run in this process, on the same processors, and throw away
// what they get; so with two processors the rate is as much theirs as ours, and
// CPU a GB sent is the better figure: of the relay's process, which for live WAL
// includes receiving it, checking it and syncing it once; of the primary, that
// of its walsenders. "primary pays" is the walsenders' CPU in a run, whoever it
// serves.
func (b *bench) fanout(ctx context.Context) (err error) {
	l, err := b.theBacklog(ctx)
	if err != nil {
		return err
	}
	r, done, err := b.fedRelay(ctx, l)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()

	type server struct {
		name, conninfo string
		receivers      int
	}
	var servers []server
	for _, n := range b.cfg.Receivers {
		servers = append(servers, server{"relay", r.conninfo(), n})
		if n == directReceivers {
			servers = append(servers, server{"direct", l.server.Conninfo(""), n})
		}
	}
	for round := range b.cfg.Rounds {
		for _, s := range rotate(servers, round) {
			b.logf("fanout: round %d, %d receivers, %s", round+1, s.receivers, s.name)
			if s.name == "direct" {
				// It must not receive meanwhile, and will catch up afterwards.
				r.cmd.Process.Signal(syscall.SIGSTOP)
			}
			err := b.fanoutOld(ctx, l, r, s.name, s.conninfo, s.receivers)
			if err == nil {
				err = b.fanoutLive(ctx, l, r, s.name, s.conninfo, s.receivers)
			}
			r.cmd.Process.Signal(syscall.SIGCONT)
			if err != nil {
				return err
			}
		}
	}
	for _, kind := range []string{"old", "live"} {
		if b.results.find(fanFigure(kind, directReceivers), "direct") != nil {
			b.results.compare(fanFigure(kind, directReceivers), "relay", "direct", 0)
			b.results.compareLess(fanFigure(kind, directReceivers)+", CPU a GB", "relay", "direct")
		}
	}
	if b.results.find(payFigure(directReceivers), "direct") != nil {
		b.results.compareLess(payFigure(directReceivers), "relay", "direct")
	}
	if b.cfg.profile != "" {
		return errors.Join(b.profileFanout(ctx, l), b.profileLive(ctx, l))
	}
	return nil
}

// directReceivers is with how many receivers the relay is compared to a primary.
const directReceivers = 10

func fanFigure(kind string, n int) string { return fmt.Sprintf("fanout, %s WAL to %d", kind, n) }
func payFigure(n int) string              { return fmt.Sprintf("fanout, live WAL to %d, primary pays", n) }

// fedRelay starts a relay and waits until it has all of the backlog.
func (b *bench) fedRelay(ctx context.Context, l *backlog) (_ *relayChild, done func() error, err error) {
	dir, remove, err := b.dir()
	if err != nil {
		return nil, nil, err
	}
	slot, err := l.slot(ctx)
	if err != nil {
		return nil, nil, err
	}
	r, err := b.beginRelay(ctx, l.server.Conninfo(""), dir, slot, "relay")
	if err != nil {
		return nil, nil, err
	}
	done = func() error {
		r.stop()
		return errors.Join(dropSlot(context.WithoutCancel(ctx), l.server, slot), remove())
	}
	if err := r.waitFlushed(ctx, l.end); err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return r, done, nil
}

// walsenders are the processes of a primary that serve those of a name.
func walsenders(ctx context.Context, s *pgserver.Server, name string) ([]int, error) {
	rows, err := s.Query(ctx, fmt.Sprintf("SELECT pid FROM pg_stat_replication WHERE application_name = '%s'", name))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, row := range rows {
		var pid int
		if _, err := fmt.Sscan(row[0], &pid); err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// fanoutOld sends each of n receivers its share of the backlog, from the
// beginning: of four times as much as there is, but no more than there is.
func (b *bench) fanoutOld(ctx context.Context, l *backlog, r *relayChild, who, conninfo string, n int) (err error) {
	each := min(l.bytes(), 4*l.bytes()/int64(n))
	settle()
	f, err := openFan(ctx, conninfo, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	pids := []int{r.cmd.Process.Pid}
	if who == "direct" {
		if pids, err = walsenders(ctx, l.server, receiverName); err != nil {
			return err
		}
	}
	before, err := cpuOf(pids...)
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := f.start(ctx, l.from, 0); err != nil {
		return err
	}
	return b.fanned(ctx, f, fanFigure("old", n), who, begun, each, l.from+wal.LSN(each), pids, before)
}

// fanned waits for a fan and notes what it took.
func (b *bench) fanned(ctx context.Context, f *fan, figure, who string, begun time.Time, each int64, until wal.LSN, pids []int, before time.Duration) error {
	if err := f.wait(ctx, until); err != nil {
		return err
	}
	took := time.Since(begun)
	after, err := cpuOf(pids...)
	if err != nil {
		return err
	}
	sent := float64(each) * float64(len(f.receivers))
	b.results.add(figure, who, "MB/s", sent/1e6/took.Seconds())
	b.results.add(figure+", CPU a GB", who, "s", (after-before).Seconds()/sent*1e9)
	return nil
}

// fanoutLive has the primary write an eighth of the backlog, less with many
// receivers, while n follow.
func (b *bench) fanoutLive(ctx context.Context, l *backlog, r *relayChild, who, conninfo string, n int) (err error) {
	at, err := l.server.LSN(ctx)
	if err != nil {
		return err
	}
	if who == "relay" {
		if err := r.waitFlushed(ctx, at); err != nil {
			return err
		}
	}
	settle()
	f, err := openFan(ctx, conninfo, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.start(ctx, at, 0); err != nil {
		return err
	}
	fed := map[string]string{"relay": "relay", "direct": receiverName}[who]
	senders, err := walsenders(ctx, l.server, fed)
	if err != nil {
		return err
	}
	pids := []int{r.cmd.Process.Pid}
	if who == "direct" {
		pids = senders
	}
	before, err := cpuOf(pids...)
	if err != nil {
		return err
	}
	paidBefore, err := cpuOf(senders...)
	if err != nil {
		return err
	}
	begun := time.Now()
	end, err := emit(ctx, l.server, max(1, b.cfg.BacklogMB/8))
	if err != nil {
		return err
	}
	if err := b.fanned(ctx, f, fanFigure("live", n), who, begun, int64(end-at), end, pids, before); err != nil {
		return err
	}
	paid, err := cpuOf(senders...)
	if err != nil {
		return err
	}
	b.results.add(payFigure(n), who, "s", (paid - paidBefore).Seconds())
	return nil
}

const memoryFigure = "memory, 50 receivers"

// memory measures the most that a relay ever has resident (VmHWM) while it
// drains a backlog and, from the same moment on, serves it to 50 receivers of
// which 5 are connected and take nothing; and then, to the same, live WAL. Each
// round is a new relay. The limit is for the worst of them.
func (b *bench) memory(ctx context.Context) error {
	const receivers, stalled = 50, 5
	l, err := b.theBacklog(ctx)
	if err != nil {
		return err
	}
	for round := range b.cfg.Rounds {
		b.logf("memory: round %d", round+1)
		if err := b.memoryRun(ctx, l, receivers, stalled); err != nil {
			return err
		}
	}
	b.results.limit(memoryFigure, "relay", 100)
	return nil
}

func (b *bench) memoryRun(ctx context.Context, l *backlog, receivers, stalled int) (err error) {
	dir, remove, err := b.dir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	slot, err := l.slot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dropSlot(context.WithoutCancel(ctx), l.server, slot)) }()
	r, err := b.beginRelay(ctx, l.server.Conninfo(""), dir, slot, "relay")
	if err != nil {
		return err
	}
	defer r.stop()
	if err := r.waitFlushed(ctx, l.from+1); err != nil { // it can say what timeline this is
		return err
	}
	f, err := openFan(ctx, r.conninfo(), receivers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.start(ctx, l.from, stalled); err != nil {
		return err
	}
	// A share each, so that it does not take for ever: the oldest WAL, which
	// comes from disk, while the relay's own end moves on.
	if err := r.waitFlushed(ctx, l.end); err != nil {
		return err
	}
	end, err := emit(ctx, l.server, max(1, b.cfg.BacklogMB/32))
	if err != nil {
		return err
	}
	if err := f.wait(ctx, l.from+wal.LSN(min(l.bytes(), 8*l.bytes()/int64(receivers)))); err != nil {
		return err
	}
	if err := r.waitFlushed(ctx, end); err != nil {
		return err
	}
	peak, err := peakMemory(r.cmd.Process.Pid)
	if err != nil {
		return err
	}
	b.results.add(memoryFigure, "relay", "MB", float64(peak)/1e6)
	return nil
}
