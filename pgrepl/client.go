package pgrepl

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"rideau/wal"
)

// A Target is one server that a connection string names.
type Target struct {
	Host string // a name, an address or a socket directory
	Port uint16

	config       *pgconn.Config
	wantsStandby bool
}

// String is how messages name the server: host:port, or the socket's path.
func (t *Target) String() string {
	_, address := t.Address()
	return address
}

// Address is what net.Dial takes to reach the server.
func (t *Target) Address() (network, address string) {
	return pgconn.NetworkAddress(t.Host, t.Port)
}

// ParseConfig reads a connection string as libpq does, and takes out those of
// libpq's options that pgconn would send to the server.
func ParseConfig(conninfo string) (*pgconn.Config, error) {
	config, err := pgconn.ParseConfig(conninfo)
	if err != nil {
		return nil, err
	}
	return config, takeKeywords(config.RuntimeParams)
}

// Targets lists the servers of a connection string, in its order. conninfo is
// libpq's, keywords and values or a URI, with the PG* variables, the password
// file and the service file filling what it leaves out. name becomes the
// application_name unless conninfo has one.
//
// An error never holds the password.
func Targets(conninfo, name string) ([]*Target, error) {
	base, err := ParseConfig(conninfo)
	if err != nil {
		return nil, err
	}
	base.RuntimeParams["replication"] = "true"
	if base.RuntimeParams["application_name"] == "" {
		base.RuntimeParams["application_name"] = name
	}
	// A physical connection belongs to no database; libpqwalreceiver sends
	// this name, which .pgpass files know.
	base.Database = "replication"
	if base.ConnectTimeout == 0 {
		base.ConnectTimeout = 10 * time.Second
	}

	// pgconn asks some of what target_session_attrs wants to know by SQL, which
	// no walsender answers. Whoever has all servers before him decides better.
	wantsStandby := false
	for _, f := range []pgconn.ValidateConnectFunc{
		pgconn.ValidateConnectTargetSessionAttrsStandby,
		pgconn.ValidateConnectTargetSessionAttrsPreferStandby,
		pgconn.ValidateConnectTargetSessionAttrsReadOnly,
	} {
		wantsStandby = wantsStandby || reflect.ValueOf(f).Pointer() == reflect.ValueOf(base.ValidateConnect).Pointer()
	}
	base.ValidateConnect = nil

	// pgconn keeps one list of addresses to try: several for a host where
	// sslmode allows both TLS and plain. We want a list a host.
	all := append([]*pgconn.FallbackConfig{{Host: base.Host, Port: base.Port, TLSConfig: base.TLSConfig}}, base.Fallbacks...)
	var targets []*Target
	for _, f := range all {
		if n := len(targets); n > 0 && targets[n-1].Host == f.Host && targets[n-1].Port == f.Port {
			targets[n-1].config.Fallbacks = append(targets[n-1].config.Fallbacks, f)
			continue
		}
		config := base.Copy()
		config.Host, config.Port, config.TLSConfig = f.Host, f.Port, f.TLSConfig
		config.Fallbacks = nil
		if config.Password, err = passwordFor(conninfo, f.Host, f.Port); err != nil {
			return nil, err
		}
		targets = append(targets, &Target{Host: f.Host, Port: f.Port, config: config, wantsStandby: wantsStandby})
	}
	return targets, nil
}

// passwordFor finds the password for one server. pgconn looks into the password
// file for the first host and the string's own database; libpq does for each
// host, and for "replication" on behalf of a walreceiver.
func passwordFor(conninfo, host string, port uint16) (string, error) {
	if strings.HasPrefix(conninfo, "postgres://") || strings.HasPrefix(conninfo, "postgresql://") {
		sep := "?"
		if strings.Contains(conninfo, "?") {
			sep = "&"
		}
		conninfo += fmt.Sprintf("%sdbname=replication&host=%s&port=%d", sep, url.QueryEscape(host), port)
	} else {
		quoted := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(host)
		conninfo += fmt.Sprintf(" dbname=replication host='%s' port=%d", quoted, port)
	}
	config, err := pgconn.ParseConfig(conninfo)
	if err != nil {
		return "", err
	}
	return config.Password, nil
}

// ignoredKeywords are libpq's that say how to do what we do in a way of our
// own, or not at all. pgconn takes them for settings of the server, which
// would refuse the connection; and pg_basebackup -R writes some of them.
var ignoredKeywords = []string{
	"fallback_application_name", "gssdelegation", "gsslib", "keepalives", "keepalives_count",
	"keepalives_idle", "keepalives_interval", "load_balance_hosts", "replication", "sslcompression",
	"ssl_max_protocol_version", "sslkeylogfile", "tcp_user_timeout",
}

// refusedKeywords are libpq's that a connection would be less safe without, or
// go elsewhere; and the values with which they ask for nothing that we lack.
var refusedKeywords = map[string][]string{
	"gssencmode":               {"prefer", "disable"},
	"hostaddr":                 nil,
	"requirepeer":              nil,
	"scram_client_key":         nil,
	"scram_server_key":         nil,
	"sslcrl":                   nil,
	"sslcrldir":                nil,
	"ssl_min_protocol_version": {"TLSv1", "TLSv1.1", "TLSv1.2"}, // crypto/tls has no older one
}

// takeKeywords removes libpq's own keywords from the settings to be sent.
func takeKeywords(params map[string]string) error {
	for _, k := range ignoredKeywords {
		delete(params, k)
	}
	for k, harmless := range refusedKeywords {
		if v := params[k]; v != "" && !slices.Contains(harmless, v) {
			return fmt.Errorf("connection option %q is not supported with this value", k)
		}
		delete(params, k)
	}
	return nil
}

// WantsStandby reports whether the connection string asks for a standby:
// target_session_attrs is standby, prefer-standby or read-only. It is for the
// caller to heed; Connect takes any server.
func (t *Target) WantsStandby() bool { return t.wantsStandby }

// A Conn is a connection of a walreceiver to a server. Between commands it is
// used by one goroutine; while WAL is streamed one goroutine receives
// ([Conn.Next], [Conn.ReadWAL]) and any may call [Conn.SendStatus] and
// [Conn.SendFeedback].
type Conn struct {
	Target *Target

	conn   net.Conn // the end of the chain, TLS included
	r      *bufio.Reader
	params map[string]string

	// left counts the bytes of the current message that were not yet read:
	// WAL while streaming.
	left int

	// w serialises what is written while WAL is streamed.
	w struct {
		sync.Mutex
		buf    []byte
		closed bool // CopyDone was sent: nothing may follow it
	}
}

// Connect opens a physical replication connection to the server, with TLS and
// authentication as its connection string says. The error is a *ConnectError.
func (t *Target) Connect(ctx context.Context) (*Conn, error) {
	var framed *framedConn
	config := t.config.Copy()
	config.AfterNetConnect = func(_ context.Context, _ *pgconn.Config, conn net.Conn) (net.Conn, error) {
		// Called again for each address and TLS mode; the last is the one in use.
		framed = &framedConn{Conn: conn, r: bufio.NewReaderSize(conn, readBuffer)}
		return framed, nil
	}
	config.DialFunc = waitDial(config.DialFunc)
	pc, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, &ConnectError{Server: t.String(), Err: err}
	}
	if err := quiet(ctx, pc); err != nil {
		pc.Close(ctx)
		return nil, &ConnectError{Server: t.String(), Err: err}
	}
	h, err := pc.Hijack()
	if err != nil {
		return nil, err
	}
	c := &Conn{Target: t, conn: framed.Conn, r: framed.r, params: h.ParameterStatuses}
	return c, nil
}

// quiet makes sure that nobody else reads from pc: a write that took long has
// made pgconn read beside it, for fear of a deadlock, and that reader may still
// be there. pgconn ends it with a query, which a connection for physical
// replication refuses; the answer will do.
func quiet(ctx context.Context, pc *pgconn.PgConn) error {
	for tries := 0; ; tries++ {
		err := pc.SyncConn(ctx)
		var refused *pgconn.PgError
		if err == nil || tries == 3 || !errors.As(err, &refused) {
			return err
		}
	}
}

// A ConnectError reports a server that could not be connected to. Err is
// pgconn's; with errors.As it tells a *pgconn.PgError, if the server refused.
type ConnectError struct {
	Server string
	Err    error
}

func (e *ConnectError) Unwrap() error { return e.Err }

// Error tells the reason on one line; pgconn's own text has a line for each
// address and TLS mode that was tried.
func (e *ConnectError) Error() string {
	reason := strings.ReplaceAll(strings.ReplaceAll(e.Err.Error(), "\n", ";"), "\t", " ")
	var pg *pgconn.PgError
	var errno syscall.Errno
	var dns *net.DNSError
	switch {
	case errors.As(e.Err, &pg):
		reason = pg.Error()
	case errors.As(e.Err, &errno):
		reason = errno.Error()
	case errors.As(e.Err, &dns):
		reason = fmt.Sprintf("could not find the address of %q: %s", dns.Name, dns.Err)
	case errors.Is(e.Err, context.DeadlineExceeded):
		reason = "timeout expired"
	}
	return fmt.Sprintf("could not connect to server %q: %s", e.Server, reason)
}

// readBuffer is small: what is larger than it is read straight to where it
// belongs, and most WAL messages are.
const readBuffer = 16 << 10

// A framedConn hands pgconn one message at a time, so that nothing is left in
// buffers of pgconn's when the connection is taken over from it.
type framedConn struct {
	net.Conn
	r    *bufio.Reader
	left int
}

func (c *framedConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		head, err := c.r.Peek(5)
		if err != nil {
			return 0, err
		}
		c.left = 1 + int(int32(binary.BigEndian.Uint32(head[1:])))
		if c.left < 5 {
			return 0, fmt.Errorf("invalid message length from server: %d", c.left-1)
		}
	}
	n, err := c.r.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// Close ends the connection, with a Terminate message where the server is
// still listening.
func (c *Conn) Close() error {
	c.w.Lock()
	defer c.w.Unlock()
	c.conn.SetDeadline(time.Now().Add(time.Second))
	c.conn.Write([]byte{'X', 0, 0, 0, 4})
	return c.conn.Close()
}

// Param is what the server said of itself at the start of the connection, as
// ParameterStatus: server_version, integer_datetimes and so on. Empty if it
// said nothing.
func (c *Conn) Param(name string) string { return c.params[name] }

// Params are all of them. The map belongs to the connection.
func (c *Conn) Params() map[string]string { return c.params }

// Major is the server's major version: 15. Zero if the server told none.
func (c *Conn) Major() int {
	digits := c.params["server_version"]
	if i := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = digits[:i]
	}
	n, _ := strconv.Atoi(digits)
	return n
}

// watch makes reads and writes fail once ctx is done. The caller calls stop,
// which gives back the connection without deadlines.
func (c *Conn) watch(ctx context.Context) (stop func()) {
	if ctx.Done() == nil {
		return func() {}
	}
	cancel := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if cancel() {
			return
		}
		c.conn.SetDeadline(time.Time{})
	}
}

// A row is one row of a reply; nil is NULL.
type row [][]byte

// A reply is what the server answers to one command.
type reply struct {
	rows []row
	copy bool // the server went into COPY BOTH mode: the connection streams
}

// command sends one replication command and reads all of its reply, up to
// ReadyForQuery or the beginning of COPY BOTH mode. An ErrorResponse becomes a
// *pgconn.PgError, after which the connection is ready for another command.
func (c *Conn) command(ctx context.Context, text string) (*reply, error) {
	defer c.watch(ctx)()
	msg, err := (&pgproto3.Query{String: text}).Encode(nil)
	if err != nil {
		return nil, err
	}
	if _, err := c.conn.Write(msg); err != nil {
		return nil, ctxError(ctx, err)
	}
	reply, err := c.reply()
	return reply, ctxError(ctx, err)
}

// ctxError prefers the reason for which we ended an operation over the
// deadline by which we ended it.
func ctxError(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// maxReply bounds a message that is no WAL: history files are the largest.
const maxReply = 16 << 20

func (c *Conn) reply() (*reply, error) {
	var rep reply
	var failed error
	for {
		tag, n, err := c.header()
		if err != nil {
			return nil, err
		}
		if n > maxReply {
			return nil, fmt.Errorf("message of %d bytes from server where at most %d were expected", n, maxReply)
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(c.r, body); err != nil {
			return nil, err
		}
		switch tag {
		case 'D':
			var m pgproto3.DataRow
			if err := m.Decode(body); err != nil {
				return nil, err
			}
			rep.rows = append(rep.rows, m.Values)
		case 'E':
			var m pgproto3.ErrorResponse
			if err := m.Decode(body); err != nil {
				return nil, err
			}
			failed = pgconn.ErrorResponseToPgError(&m)
			if m.Severity == "FATAL" || m.Severity == "PANIC" {
				return nil, failed
			}
		case 'W':
			rep.copy = true
			return &rep, nil
		case 'S':
			c.setParam(body)
		case 'Z':
			if failed != nil {
				return nil, failed
			}
			return &rep, nil
		case 'T', 'C', 'N', 'I':
		default:
			return nil, fmt.Errorf("unexpected message %q from server", tag)
		}
	}
}

func (c *Conn) setParam(body []byte) {
	var m pgproto3.ParameterStatus
	if m.Decode(body) == nil {
		c.params[m.Name] = m.Value
	}
}

// header reads the tag and length of the next message; n does not count the
// length itself.
func (c *Conn) header() (tag byte, n int, err error) {
	head, err := c.r.Peek(5)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errServerClosed
		}
		return 0, 0, err
	}
	tag, n = head[0], int(int32(binary.BigEndian.Uint32(head[1:])))-4
	if n < 0 {
		return 0, 0, fmt.Errorf("invalid message length from server: %d", n+4)
	}
	c.r.Discard(5)
	return tag, n, nil
}

// errServerClosed is what libpq says then.
var errServerClosed = fmt.Errorf("server closed the connection unexpectedly: %w", io.ErrUnexpectedEOF)

// A System is the answer to IDENTIFY_SYSTEM.
type System struct {
	ID  uint64 // the system identifier, which initdb made
	TLI wal.TLI
	Pos wal.LSN // how far the server has flushed, or as a standby received
}

// Identify asks who the server is and where it stands.
func (c *Conn) Identify(ctx context.Context) (System, error) {
	rep, err := c.command(ctx, "IDENTIFY_SYSTEM")
	if err != nil {
		return System{}, err
	}
	if len(rep.rows) != 1 || len(rep.rows[0]) < 3 {
		return System{}, errors.New("could not identify system: unexpected reply")
	}
	r := rep.rows[0]
	id, err := strconv.ParseUint(string(r[0]), 10, 64)
	if err != nil {
		return System{}, fmt.Errorf("could not identify system: invalid system identifier %q", r[0])
	}
	tli, err := parseTLI(r[1])
	if err != nil {
		return System{}, err
	}
	pos, err := wal.ParseLSN(string(r[2]))
	if err != nil {
		return System{}, err
	}
	return System{ID: id, TLI: tli, Pos: pos}, nil
}

func parseTLI(b []byte) (wal.TLI, error) {
	n, err := strconv.ParseUint(string(b), 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("invalid timeline %q from server", b)
	}
	return wal.TLI(n), nil
}

// Show asks for a setting, in the form that SHOW prints.
func (c *Conn) Show(ctx context.Context, name string) (string, error) {
	rep, err := c.command(ctx, "SHOW "+name)
	if err != nil {
		return "", err
	}
	if len(rep.rows) != 1 || len(rep.rows[0]) != 1 {
		return "", fmt.Errorf("could not show %s: unexpected reply", name)
	}
	return string(rep.rows[0][0]), nil
}

// TimelineHistory fetches the text of tli's history file. A server that does
// not have it answers with SQLSTATE 58P01.
func (c *Conn) TimelineHistory(ctx context.Context, tli wal.TLI) (string, error) {
	rep, err := c.command(ctx, "TIMELINE_HISTORY "+tli.String())
	if err != nil {
		return "", err
	}
	if len(rep.rows) != 1 || len(rep.rows[0]) != 2 {
		return "", fmt.Errorf("could not fetch the history of timeline %d: unexpected reply", tli)
	}
	if got := string(rep.rows[0][0]); got != tli.HistoryName() {
		return "", fmt.Errorf("server sent history file %q where %q was asked for", got, tli.HistoryName())
	}
	return string(rep.rows[0][1]), nil
}

// CreateSlot makes a physical slot that holds WAL from now on. It exists
// already if the error is a *pgconn.PgError with SQLSTATE 42710.
func (c *Conn) CreateSlot(ctx context.Context, name string) error {
	// The old option syntax: every server from 13 to 18 takes it.
	_, err := c.command(ctx, "CREATE_REPLICATION_SLOT "+quoteIdent(name)+" PHYSICAL RESERVE_WAL")
	return err
}

// DropSlot removes a slot.
func (c *Conn) DropSlot(ctx context.Context, name string) error {
	_, err := c.command(ctx, "DROP_REPLICATION_SLOT "+quoteIdent(name))
	return err
}

// A Slot is a physical replication slot on a server.
type Slot struct {
	Restart    wal.LSN // the oldest WAL that the slot holds; zero if none yet
	RestartTLI wal.TLI
}

// A SlotKindError says that a slot is not a physical one.
type SlotKindError struct{ Slot, Kind string }

func (e *SlotKindError) Error() string {
	return fmt.Sprintf("replication slot %q is a %s slot, not a physical one", e.Slot, e.Kind)
}

// ReadSlot asks what a slot holds; nil where there is no such slot. Servers
// before 15 cannot say: they answer with a syntax error, SQLSTATE 42601.
func (c *Conn) ReadSlot(ctx context.Context, name string) (*Slot, error) {
	rep, err := c.command(ctx, "READ_REPLICATION_SLOT "+quoteIdent(name))
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "0A000" { // cannot use READ_REPLICATION_SLOT with a logical replication slot
		return nil, &SlotKindError{Slot: name, Kind: "logical"}
	}
	if err != nil {
		return nil, err
	}
	if len(rep.rows) != 1 || len(rep.rows[0]) != 3 {
		return nil, fmt.Errorf("could not read replication slot %q: unexpected reply", name)
	}
	r := rep.rows[0]
	if r[0] == nil {
		return nil, nil
	}
	if kind := string(r[0]); kind != "physical" {
		return nil, &SlotKindError{Slot: name, Kind: kind}
	}
	var s Slot
	if r[1] != nil {
		if s.Restart, err = wal.ParseLSN(string(r[1])); err != nil {
			return nil, err
		}
	}
	if r[2] != nil {
		if s.RestartTLI, err = parseTLI(r[2]); err != nil {
			return nil, err
		}
	}
	return &s, nil
}

func quoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// StartReplication asks for the WAL of tli from start on. On success the
// connection streams: call [Conn.Next] until it returns an error. It returns
// *EndOfTimeline at once if tli ends at start.
func (c *Conn) StartReplication(ctx context.Context, slot string, tli wal.TLI, start wal.LSN) error {
	text := "START_REPLICATION "
	if slot != "" {
		text += "SLOT " + quoteIdent(slot) + " "
	}
	text += "PHYSICAL " + start.String() + " TIMELINE " + tli.String()
	rep, err := c.command(ctx, text)
	if err != nil {
		return err
	}
	if rep.copy {
		c.left = 0
		c.w.closed = false
		return nil
	}
	if end := endOfTimeline(tli, rep.rows); end != nil {
		return end
	}
	return fmt.Errorf("server sent no WAL of timeline %d from %s and no next timeline", tli, start)
}

func endOfTimeline(tli wal.TLI, rows []row) error {
	if len(rows) != 1 || len(rows[0]) != 2 {
		return nil
	}
	next, err := parseTLI(rows[0][0])
	if err != nil {
		return err
	}
	lsn, err := wal.ParseLSN(string(rows[0][1]))
	if err != nil {
		return err
	}
	if next <= tli {
		return fmt.Errorf("server named timeline %d as the successor of timeline %d", next, tli)
	}
	return &EndOfTimeline{TLI: tli, Next: next, LSN: lsn}
}

// An Incoming is the head of a message from a streaming server.
type Incoming struct {
	// WAL: Len bytes that begin at Start follow and must be read with
	// [Conn.ReadWAL] before the next call of [Conn.Next]. Len is zero for a
	// keepalive.
	Start wal.LSN
	Len   int

	End            wal.LSN   // how far the server has flushed
	Time           time.Time // the server's clock as it sent this
	ReplyRequested bool
}

// ErrStreamEnded says that the server ended the stream in good order: it is
// shutting down.
var ErrStreamEnded = errors.New("server ended the WAL stream")

// Next waits for the next message of a stream of tli. It returns
// *EndOfTimeline or [ErrStreamEnded] when the stream is over; after
// *EndOfTimeline the connection is ready for another command. Deadlines are
// the caller's ([Conn.SetReadDeadline]).
func (c *Conn) Next(tli wal.TLI) (Incoming, error) {
	if c.left > 0 {
		return Incoming{}, fmt.Errorf("%d bytes of WAL were not read", c.left)
	}
	for {
		tag, n, err := c.header()
		if err != nil {
			return Incoming{}, err
		}
		switch tag {
		case 'd':
			return c.incoming(n)
		case 'c':
			return Incoming{}, c.endStream(tli)
		case 'C':
			// CommandComplete without CopyDone: an orderly shutdown.
			if _, err := c.r.Discard(n); err != nil {
				return Incoming{}, err
			}
			return Incoming{}, ErrStreamEnded
		case 'E', 'N', 'S':
			if n > maxReply {
				return Incoming{}, fmt.Errorf("message of %d bytes from server where at most %d were expected", n, maxReply)
			}
			body := make([]byte, n)
			if _, err := io.ReadFull(c.r, body); err != nil {
				return Incoming{}, err
			}
			switch tag {
			case 'S':
				c.setParam(body)
			case 'E':
				var m pgproto3.ErrorResponse
				if err := m.Decode(body); err != nil {
					return Incoming{}, err
				}
				return Incoming{}, pgconn.ErrorResponseToPgError(&m)
			}
		default:
			return Incoming{}, fmt.Errorf("unexpected message %q from server while WAL is streamed", tag)
		}
	}
}

func (c *Conn) incoming(n int) (Incoming, error) {
	tag, err := c.r.Peek(1)
	if err != nil {
		return Incoming{}, err
	}
	switch {
	case tag[0] == tagWAL && n >= walHeaderLen:
		h, err := c.r.Peek(walHeaderLen)
		if err != nil {
			return Incoming{}, err
		}
		in := Incoming{
			Start: wal.LSN(binary.BigEndian.Uint64(h[1:])),
			End:   wal.LSN(binary.BigEndian.Uint64(h[9:])),
			Time:  fromPgTime(binary.BigEndian.Uint64(h[17:])),
			Len:   n - walHeaderLen,
		}
		c.r.Discard(walHeaderLen)
		c.left = in.Len
		return in, nil
	case tag[0] == tagKeepalive && n == keepaliveLen:
		h, err := c.r.Peek(keepaliveLen)
		if err != nil {
			return Incoming{}, err
		}
		in := Incoming{
			End:            wal.LSN(binary.BigEndian.Uint64(h[1:])),
			Time:           fromPgTime(binary.BigEndian.Uint64(h[9:])),
			ReplyRequested: h[17] != 0,
		}
		c.r.Discard(keepaliveLen)
		return in, nil
	}
	return Incoming{}, fmt.Errorf("invalid message %q of %d bytes in the WAL stream", tag[0], n)
}

// ReadWAL fills p with the WAL of the current message.
func (c *Conn) ReadWAL(p []byte) error {
	if len(p) > c.left {
		return fmt.Errorf("message holds %d more bytes of WAL, not %d", c.left, len(p))
	}
	n, err := io.ReadFull(c.r, p)
	c.left -= n
	return err
}

// Ready reports whether there is more to take at once. With TLS some of what
// has arrived may escape it.
func (c *Conn) Ready() bool {
	if c.r.Buffered() > 0 {
		return true
	}
	w, ok := c.conn.(interface{ ready() bool })
	return ok && w.ready()
}

// endStream answers the server's CopyDone and reads what follows it: the next
// timeline, or none when the server only meant to end the command.
func (c *Conn) endStream(tli wal.TLI) error {
	if err := c.SendCopyDone(); err != nil {
		return err
	}
	rep, err := c.reply()
	if err != nil {
		return err
	}
	if end := endOfTimeline(tli, rep.rows); end != nil {
		return end
	}
	return ErrStreamEnded
}

// SendCopyDone tells the server that we want no more WAL. Reports are dropped
// from here on.
func (c *Conn) SendCopyDone() error {
	c.w.Lock()
	defer c.w.Unlock()
	if c.w.closed {
		return nil
	}
	c.w.closed = true
	_, err := c.conn.Write([]byte{'c', 0, 0, 0, 4})
	return err
}

// SendStatus reports positions exactly as they are given.
func (c *Conn) SendStatus(s Status) error {
	c.w.Lock()
	defer c.w.Unlock()
	c.w.buf = s.AppendTo(copyDataHeader(c.w.buf[:0], statusLen))
	return c.send()
}

// SendFeedback sends hot standby feedback.
func (c *Conn) SendFeedback(f Feedback, now time.Time) error {
	c.w.Lock()
	defer c.w.Unlock()
	c.w.buf = f.AppendTo(copyDataHeader(c.w.buf[:0], feedbackLen), now)
	return c.send()
}

// copyDataHeader appends the head of a CopyData message of n bytes.
func copyDataHeader(b []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(append(b, 'd'), uint32(4+n))
}

// send writes w.buf; the caller holds the lock.
func (c *Conn) send() error {
	if c.w.closed {
		return nil
	}
	_, err := c.conn.Write(c.w.buf)
	return err
}

// SetReadDeadline bounds the wait for the server's next bytes.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// SetWriteDeadline bounds what reports may take.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// Raw gives the byte stream behind an idle connection, for what is passed
// through: reads include what was buffered. The connection is the caller's to
// close.
func (c *Conn) Raw() (io.Reader, net.Conn) { return c.r, c.conn }

// Dial opens a connection to the server without speaking the protocol: with
// TLS where the connection string wants it, before any startup packet. It is
// what a forwarded session begins on.
func (t *Target) Dial(ctx context.Context) (net.Conn, error) {
	network, address := t.Address()
	attempts := append([]*pgconn.FallbackConfig{{TLSConfig: t.config.TLSConfig}}, t.config.Fallbacks...)
	var failed error
	for _, a := range attempts {
		conn, err := t.config.DialFunc(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if a.TLSConfig == nil {
			return conn, nil
		}
		tlsConn, err := t.startTLS(ctx, conn, a.TLSConfig)
		if err == nil {
			return tlsConn, nil
		}
		conn.Close()
		failed = err
	}
	return nil, failed
}

// errNoTLS is a server that answers 'N' to SSLRequest.
var errNoTLS = errors.New("server refused TLS connection")

func (t *Target) startTLS(ctx context.Context, conn net.Conn, config *tls.Config) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if t.config.SSLNegotiation != "direct" {
		request := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, sslRequest)
		if _, err := conn.Write(request); err != nil {
			return nil, err
		}
		var answer [1]byte
		if _, err := io.ReadFull(conn, answer[:]); err != nil {
			return nil, err
		}
		if answer[0] != 'S' {
			return nil, errNoTLS
		}
	}
	tlsConn := tls.Client(conn, config)
	if err := tlsConn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return tlsConn, nil
}
