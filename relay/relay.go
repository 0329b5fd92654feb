package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"rideau/archive"
	"rideau/internal/durable"
	"rideau/pgrepl"
	"rideau/wal"
)

// A Config says what to receive, where to keep it and whom to serve. Upstream
// and Dir are needed.
type Config struct {
	// Upstream is a libpq connection string, keywords or URI, of the server
	// that WAL comes from; or of several, of which the primary is followed.
	Upstream string

	// Dir is the directory to keep WAL in, made if it is not there.
	Dir string

	// Listen are the addresses to serve standbys at: host:port, or a directory
	// to make a socket in. Empty: localhost:5433.
	Listen []string

	// Slot is our replication slot on the upstream, made if it is not there.
	// Empty: none, and the server may remove WAL that we have not received.
	Slot string

	// Name is our application_name, which synchronous_standby_names knows,
	// unless Upstream has one. Empty: rideau.
	Name string

	// Keep says how much WAL to keep. Zero: all.
	Keep archive.Keep

	// Access says who may connect. Nil: this machine is trusted, everybody
	// else refused.
	Access *pgrepl.Access

	// TLS offers TLS to those who connect. Nil: none is offered.
	TLS *tls.Config

	// ForwardSQL passes connections that are not for physical replication
	// on to the upstream.
	ForwardSQL bool

	// SenderTimeout is wal_sender_timeout, for standbys that fall silent.
	// Zero: 60 s, PostgreSQL's default. Negative: never.
	SenderTimeout time.Duration

	// ReceiverTimeout is wal_receiver_timeout, for an upstream that falls
	// silent. Zero: 60 s. Negative: never.
	ReceiverTimeout time.Duration

	// Log hears what a DBA would want to know. Nil: nobody.
	Log *slog.Logger
}

const defaultTimeout = 60 * time.Second

func (c *Config) validate() error {
	if c.Dir == "" {
		return errors.New("no directory to keep WAL in")
	}
	if c.Slot != "" {
		if err := pgrepl.CheckSlotName(c.Slot); err != nil {
			return err
		}
	}
	if c.Keep.Size < 0 || c.Keep.Age < 0 {
		return errors.New("cannot keep less than no WAL")
	}
	if c.Name == "" {
		c.Name = "rideau"
	}
	if len(c.Listen) == 0 {
		c.Listen = []string{"localhost:5433"}
	}
	for _, t := range []*time.Duration{&c.SenderTimeout, &c.ReceiverTimeout} {
		switch {
		case *t == 0:
			*t = defaultTimeout
		case *t < 0:
			*t = 0
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// A Relay is one relay: [New] makes it, Run runs it, once.
type Relay struct {
	cfg       Config
	log       *slog.Logger
	targets   []*pgrepl.Target
	archive   *archive.Archive
	timelines *timelines
	slots     *slots
	next      *preparer
	stats     *stats
	reports   reports
	server    *pgrepl.ServerConfig

	mu       sync.Mutex
	id       *identity // nil until known
	sp       *spool    // nil until the cluster is known
	current  *pgrepl.Target
	upstream UpstreamStatus
	conns    map[net.Conn]struct{} // all connections to us
	standbys map[*standby]struct{}
	gone     map[string]departed // feedback of standbys that left, by slot
	addrs    []net.Addr
	started  time.Time
	ready    chan struct{} // closed once the relay listens
}

// New checks cfg. It touches nothing on disk and no server.
func New(cfg Config) (*Relay, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	targets, err := pgrepl.Targets(cfg.Upstream, cfg.Name)
	if err != nil {
		return nil, err
	}
	r := &Relay{
		cfg: cfg, log: cfg.Log, targets: targets,
		archive:   archive.New(archive.Dir(cfg.Dir)),
		timelines: newTimelines(cfg.Dir),
		stats:     newStats(),
		conns:     map[net.Conn]struct{}{},
		standbys:  map[*standby]struct{}{},
		gone:      map[string]departed{},
		ready:     make(chan struct{}),
	}
	r.slots = newSlots(cfg.Dir)
	r.next = newPreparer(cfg.Dir)
	r.reports.relay, r.reports.nudged = r, make(chan struct{}, 1)
	r.upstream.State = "disconnected"
	r.server = &pgrepl.ServerConfig{Access: cfg.Access, TLS: cfg.TLS, Params: r.params, Log: cfg.Log}
	return r, nil
}

// Run receives, keeps and serves WAL until ctx is done, then stops in good
// order: standbys get all that there is, and confirm it. It returns nil after
// an orderly stop. When it returns nothing it started is alive.
//
// An error before the relay ever reached its server means that its arguments
// make no sense together; later trouble with servers is logged, shown in
// Status, and tried again.
func (r *Relay) Run(ctx context.Context) error {
	if err := makeDir(r.cfg.Dir); err != nil {
		return err
	}
	if err := checkDir(r.cfg.Dir); err != nil {
		return err
	}
	lock, err := durable.LockDir(r.cfg.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := r.load(ctx); err != nil {
		return err
	}
	if err := r.slots.load(); err != nil {
		return err
	}
	listeners, err := r.listen()
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.started = time.Now()
	r.mu.Unlock()
	close(r.ready)

	// Standbys are told to end only once nothing more can come.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	var sessions sync.WaitGroup
	for _, l := range listeners {
		sessions.Go(func() { r.accept(serving, l, &sessions) })
	}

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.follow(gctx) })
	g.Go(func() error { return r.expire(gctx) })
	g.Go(func() error { r.next.run(gctx); return nil })
	err = g.Wait()

	if err == nil {
		r.log.Info("stopping: standbys get the WAL that is here", "standbys", len(r.Status().Standbys))
	}
	stopServing()
	for _, l := range listeners {
		l.Close()
	}
	// A standby that answers but never confirms must not keep us for ever.
	late := time.AfterFunc(r.stopPatience(), r.hangUp)
	sessions.Wait()
	late.Stop()
	if serr := r.slots.save(); err == nil {
		err = serr
	}
	return err
}

// makeDir makes dir and what is missing above it. Their names are on disk when
// it returns: a power cut must not take a directory away that holds WAL which
// was acknowledged.
func makeDir(dir string) error {
	var parents []string
	for dir := filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		parents = append(parents, filepath.Dir(dir))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, parent := range parents {
		if err := durable.SyncDir(parent); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

// stopPatience is how long standbys have to confirm what they were sent when
// the relay stops.
func (r *Relay) stopPatience() time.Duration {
	if r.cfg.SenderTimeout > 0 {
		return r.cfg.SenderTimeout
	}
	return defaultTimeout
}

// hangUp ends every connection to us, in the middle of whatever it does.
func (r *Relay) hangUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.conns) > 0 {
		r.log.Warn("some have not confirmed all that they were sent; ending their connections", "connections", len(r.conns))
	}
	for c := range r.conns {
		c.Close()
	}
}

// Ready is closed once the relay listens.
func (r *Relay) Ready() <-chan struct{} { return r.ready }

// Addrs are the addresses the relay listens at, once it is ready.
func (r *Relay) Addrs() []net.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addrs
}

// Archive is what the relay keeps, for reading.
func (r *Relay) Archive() *archive.Archive { return r.archive }

func (r *Relay) spool() *spool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sp
}

func (r *Relay) setSpool(sp *spool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	sp.next = r.next
	r.sp = sp
}

func (r *Relay) identity() *identity {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.id
}

func (r *Relay) setIdentity(id *identity) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.id = id
}

// setCurrent says which server SQL and base backups are to be had from.
func (r *Relay) setCurrent(t *pgrepl.Target) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = t
}

func (r *Relay) currentTarget() *pgrepl.Target {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// Position is how far the relay has got; false before it has any WAL.
func (r *Relay) Position() (Position, bool) {
	sp := r.spool()
	if sp == nil {
		return Position{}, false
	}
	pos := sp.position()
	return pos, pos.TLI != 0
}

// expireEvery is how often old WAL is looked for. A segment takes longer to
// fill on most servers; on others the budget is passed by a few for a moment.
const expireEvery = 10 * time.Second

// expire removes WAL as Keep says. It is the only one who removes any.
func (r *Relay) expire(ctx context.Context) error {
	tick := time.NewTicker(expireEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := r.slots.save(); err != nil {
			r.log.Error("could not save replication slots", "err", err)
		}
		if r.cfg.Keep == (archive.Keep{}) {
			continue
		}
		if err := r.expireOnce(ctx, time.Now()); err != nil {
			r.log.Error("could not remove old WAL", "err", err)
		}
	}
}

func (r *Relay) expireOnce(ctx context.Context, now time.Time) error {
	inv, err := r.archive.Inventory(ctx)
	if err != nil {
		return err
	}
	pos, _ := r.Position()
	remove, lost := archive.PlanExpiry(inv.Segments, pos.TLI, r.cfg.Keep, r.readers(), now)
	for _, l := range lost {
		r.log.Warn("WAL that is still needed must go: the budget is spent",
			"needed_by", fmt.Sprintf("%s %q", l.Kind, l.Name), "lsn", l.LSN, "removed_up_to", l.To)
	}
	if len(remove) == 0 {
		return nil
	}
	if err := r.archive.Remove(ctx, remove); err != nil {
		return err
	}
	r.log.Info("removed old WAL", "segments", len(remove), "first", remove[0], "last", remove[len(remove)-1])
	return nil
}

// readers are those who will ask for WAL again: slots, and standbys that are
// connected now.
func (r *Relay) readers() []archive.Reader {
	readers := r.slots.readers()
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.standbys {
		if tli, lsn := s.needs(); lsn != 0 {
			readers = append(readers, archive.Reader{Name: s.name, Kind: archive.Standby, LSN: lsn, TLI: tli})
		}
	}
	return readers
}

// params is what standbys are told of the server: what it told us. The role's
// own is not theirs.
func (r *Relay) params() [][2]string {
	id := r.identity()
	if id == nil {
		return nil
	}
	var list [][2]string
	for _, name := range paramOrder {
		v, ok := id.Params[name]
		switch name {
		case "in_hot_standby", "default_transaction_read_only":
			// Of a session here nothing can be written; but these are about
			// the server, which those who look for a primary want to know.
			if !ok && id.major() < 14 {
				continue
			}
			v = "off"
		default:
			if !ok {
				continue
			}
		}
		list = append(list, [2]string{name, v})
	}
	return list
}

// paramOrder is the order in which PostgreSQL 18 reports (by name, as guc.c
// keeps them); application_name and the like are each session's own.
var paramOrder = []string{
	"in_hot_standby", "integer_datetimes", "TimeZone", "IntervalStyle", "search_path", "is_superuser",
	"server_version", "scram_iterations", "default_transaction_read_only", "DateStyle",
	"standard_conforming_strings", "client_encoding", "server_encoding",
}

// history is the path to tli; without one there are no ancestors.
func (r *Relay) history(tli wal.TLI) *wal.History {
	if h, ok := r.timelines.get(tli); ok {
		return h
	}
	return &wal.History{TLI: tli}
}
