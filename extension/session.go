package extension

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

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
	config *pgx.ConnConfig // leads to the server that conn is connected to, and to no other
	conn   *pgx.Conn
	o      *Observed

	rehearsal string // the folder of a dry run, below the data directory
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
		n := &node{}
		if n.conn, err = connect(ctx, conninfo); err != nil {
			return nil, err
		}
		n.config = pinned(n.conn)
		seen = append(seen, n)
		s.standbys = append(s.standbys, n) // for Close
		if err := n.notPooled(ctx); err != nil {
			return nil, err
		}
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

// again opens sessions of their own to the same servers.
func (s *Session) again(ctx context.Context) (_ *Session, err error) {
	other := &Session{cfg: s.cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, other.Close())
		}
	}()
	for _, n := range s.nodes() {
		same := &node{config: n.config}
		if same.conn, err = n.dial(ctx); err != nil {
			return nil, err
		}
		other.standbys = append(other.standbys, same) // for Close
	}
	return other, other.refresh(ctx)
}

// dial opens another session to the server of a node, whatever other servers its
// connection string names.
func (n *node) dial(ctx context.Context) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, n.config.Copy())
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, sessionSQL, pgx.QueryExecModeSimpleProtocol); err != nil {
		return nil, errors.Join(err, hangUp(ctx, conn))
	}
	return conn, nil
}

// An endpoint is one server of a connection string.
type endpoint = pgconn.FallbackConfig

// connectedTo lists the endpoints of its connection string that a session may be
// connected to, judged by the address that it is connected to: several if one
// server is named by more than one name, or with and without TLS.
func connectedTo(conn *pgx.Conn) []*endpoint {
	c := conn.Config()
	all := append([]*endpoint{{Host: c.Host, Port: c.Port, TLSConfig: c.TLSConfig}}, c.Fallbacks...)
	if !slices.ContainsFunc(all, func(e *endpoint) bool { return e.Host != c.Host || e.Port != c.Port }) {
		return all
	}
	remote := conn.PgConn().Conn().RemoteAddr()
	var same []*endpoint
	for _, e := range all {
		network, address := pgconn.NetworkAddress(e.Host, e.Port)
		if remote.Network() != network {
			continue
		}
		host, port, err := net.SplitHostPort(remote.String())
		switch {
		case network == "unix" && address == remote.String():
			same = append(same, e)
		case network != "unix" && err == nil && port == strconv.Itoa(int(e.Port)) && resolvesTo(e.Host, host):
			same = append(same, e)
		}
	}
	if len(same) == 0 {
		return all[:1] // it is no address of ours: a dialer of its own
	}
	return same
}

func resolvesTo(name, ip string) bool {
	if name == ip {
		return true
	}
	addresses, err := net.LookupHost(name)
	return err == nil && slices.Contains(addresses, ip)
}

// pinned is the configuration of a session, with one server left in it: that
// which it is connected to. By address, because a name may have several.
func pinned(conn *pgx.Conn) *pgx.ConnConfig {
	config, same := conn.Config(), connectedTo(conn)
	if host, _, err := net.SplitHostPort(conn.PgConn().Conn().RemoteAddr().String()); err == nil && !strings.HasPrefix(same[0].Host, "/") {
		for i, e := range same {
			pin := *e
			pin.Host = host
			same[i] = &pin
		}
	}
	config.Host, config.Port, config.TLSConfig, config.Fallbacks = same[0].Host, same[0].Port, same[0].TLSConfig, same[1:]
	// What was asked of the server, as target_session_attrs, it has answered: that
	// it is another now must be seen, and not be an error of the connection.
	config.ValidateConnect, config.AfterConnect = nil, nil
	return config
}

// A PoolerError says that statements of one session come to different sessions
// of the server. Nothing that we do can be done that way: locks, settings and
// what is loaded belong to a session.
type PoolerError struct{ Node string }

func (e *PoolerError) Error() string {
	return fmt.Sprintf("%s is a connection pooler that shares sessions between transactions", e.Node)
}

// notPooled refuses a pooler that gives the session of the server to somebody
// else after every transaction: sooner or later another session of ours takes it
// away from the first one.
func (n *node) notPooled(ctx context.Context) (err error) {
	ask := func(conn *pgx.Conn, before string) (pid uint32, err error) {
		// In one message: two may come to two sessions.
		results, err := conn.PgConn().Exec(ctx, before+"SELECT pg_backend_pid()").ReadAll()
		if err != nil {
			return 0, err
		}
		_, err = fmt.Sscan(string(results[len(results)-1].Rows[0][0]), &pid)
		return pid, err
	}
	first, err := ask(n.conn, "")
	if err != nil || first == n.conn.PgConn().PID() {
		return err // nobody is between: a pooler has numbers of its own
	}
	soon, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	other, err := n.dial(soon)
	if err != nil && soon.Err() != nil && ctx.Err() == nil {
		return nil // it has no other session to give, because the first one is ours
	} else if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hangUp(ctx, other)) }()
	for range 3 {
		for _, turn := range []struct {
			conn   *pgx.Conn
			before string
			same   bool
		}{{other, "BEGIN; ", false}, {n.conn, "", true}, {other, "ROLLBACK; ", false}, {n.conn, "", true}} {
			pid, err := ask(turn.conn, turn.before)
			if err != nil {
				return err
			}
			if (pid == first) != turn.same {
				return &PoolerError{Node: nodeName(n.conn)}
			}
		}
	}
	return nil
}

// patience is how long we try to end in good order what may be on the other side
// of a dead network.
const patience = 5 * time.Second

// ending is for what must be said at the end, also of what was cancelled.
func ending(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), patience)
}

// hangUp ends a session.
func hangUp(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := ending(ctx)
	defer cancel()
	return conn.Close(ctx)
}

// arrange finds the primary among the nodes.
func arrange(nodes []*node) (primary *node, standbys []*node, err error) {
	if len(nodes) == 1 {
		return nodes[0], nil, nil
	}
	for i, n := range nodes {
		first := nodes[0].o
		switch {
		case slices.ContainsFunc(nodes[:i], func(other *node) bool { return other.o.Node == n.o.Node }):
			return nil, nil, fmt.Errorf("two connection strings lead to one server, %s", n.o.Node)
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
			all = append(all, hangUp(context.Background(), n.conn))
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

// refresh asks all nodes again, and who of them is the primary.
func (s *Session) refresh(ctx context.Context) error {
	nodes := s.nodes()
	for _, n := range nodes {
		o, err := Observe(ctx, n.conn)
		if err != nil {
			return err
		}
		n.o = o
	}
	primary, standbys, err := arrange(nodes)
	if err != nil {
		return err
	}
	s.primary, s.standbys = primary, standbys
	return nil
}

// poolFingerprint changes when anything changes on a standby that a plan was made
// from. What it replays from the primary is in the primary's.
func (s *Session) poolFingerprint() string {
	if len(s.standbys) == 0 {
		return ""
	}
	sum := sha256.New()
	var all []string
	for _, n := range s.standbys {
		own := *n.o
		own.Installed, own.Schemas, own.Prefixes, own.Ledger, own.Settings = nil, nil, nil, LedgerState{}, nil
		all = append(all, own.Fingerprint())
	}
	slices.Sort(all)
	for _, fingerprint := range all {
		fmt.Fprintln(sum, fingerprint)
	}
	return hex.EncodeToString(sum.Sum(nil))
}
