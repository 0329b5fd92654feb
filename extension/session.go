package extension

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"rideau/extension/registry"
)

// Config says where to install, and from what.
type Config struct {
	// Nodes are connection strings, of the same database on each node of a pool:
	// one primary, and any number of standbys. One is usual.
	Nodes []string
	// Shelves have packages, besides the files that the server has.
	Shelves []*registry.Registry
	// LockTimeout is how long one statement waits for a lock before all is rolled
	// back and tried again: a DDL statement that waits for a long query makes
	// everybody else wait behind it. Zero means 5 s.
	LockTimeout time.Duration
	// Tries is how often the transaction is tried. Zero means 10.
	Tries int
	// Log tells what is done. Nil discards.
	Log *slog.Logger

	// off switches rules off, so that tests can see that each is needed.
	off []Rule
}

func (c Config) enforced(r Rule) bool { return !slices.Contains(c.off, r) }

// A Session is connected to one database, on every node that was named. It is
// for one goroutine at a time.
type Session struct {
	cfg      Config
	primary  *node
	standbys []*node
}

// A node is one server of the pool.
type node struct {
	conninfo string
	conn     *pgx.Conn
	o        *Observed
}

// Open connects to every node and observes them all. Exactly one must be a
// primary, except to look only; all must be of one system, if that can be seen.
func Open(ctx context.Context, cfg Config) (_ *Session, err error) {
	if len(cfg.Nodes) == 0 {
		return nil, errors.New("no server is named")
	}
	if cfg.LockTimeout == 0 {
		cfg.LockTimeout = 5 * time.Second
	}
	if cfg.Tries == 0 {
		cfg.Tries = 10
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Session{cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	var seen []*node
	for _, conninfo := range cfg.Nodes {
		n := &node{conninfo: conninfo}
		if n.conn, err = connect(ctx, conninfo); err != nil {
			return nil, err
		}
		seen = append(seen, n)
		s.standbys = append(s.standbys, n) // for Close
		if n.o, err = Observe(ctx, n.conn); err != nil {
			return nil, err
		}
	}
	if s.primary, s.standbys, err = arrange(seen); err != nil {
		s.standbys = seen
		return nil, err
	}
	return s, nil
}

// arrange finds the primary among the nodes.
func arrange(nodes []*node) (primary *node, standbys []*node, err error) {
	if len(nodes) == 1 {
		return nodes[0], nil, nil
	}
	for _, n := range nodes {
		first := nodes[0].o
		switch {
		case n.o.SystemID != first.SystemID && n.o.SystemID != "" && first.SystemID != "":
			return nil, nil, fmt.Errorf("%s and %s are not of one pool: their system identifiers are %s and %s", first.Node, n.o.Node, first.SystemID, n.o.SystemID)
		case n.o.Database != first.Database:
			return nil, nil, fmt.Errorf("one database is meant, and the nodes lead to two: %q at %s, %q at %s", first.Database, first.Node, n.o.Database, n.o.Node)
		case n.o.Standby:
			standbys = append(standbys, n)
		case primary != nil:
			return nil, nil, fmt.Errorf("two of the nodes are primaries: %s and %s", primary.o.Node, n.o.Node)
		default:
			primary = n
		}
	}
	if primary == nil {
		return nil, nil, errors.New("none of the nodes is a primary: all are in recovery")
	}
	return primary, standbys, nil
}

// Close ends the sessions.
func (s *Session) Close() error {
	var all []error
	for _, n := range s.nodes() {
		if n.conn != nil {
			all = append(all, n.conn.Close(context.Background()))
		}
	}
	s.primary, s.standbys = nil, nil
	return errors.Join(all...)
}

// nodes lists the standbys, then the primary: the order in which files are
// brought, because a standby must have a library before it replays what needs it.
func (s *Session) nodes() []*node {
	nodes := slices.Clone(s.standbys)
	if s.primary != nil {
		nodes = append(nodes, s.primary)
	}
	return nodes
}

// Observed is what the primary said when it was last asked.
func (s *Session) Observed() *Observed { return s.primary.o }

// refresh asks all nodes again.
func (s *Session) refresh(ctx context.Context) error {
	for _, n := range s.nodes() {
		o, err := Observe(ctx, n.conn)
		if err != nil {
			return err
		}
		n.o = o
	}
	return nil
}
