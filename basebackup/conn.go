package basebackup

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"rideau/pgrepl"
)

// applicationName is how the backup's sessions are known in pg_stat_activity.
const applicationName = "rideau basebackup"

// A dialer makes connections to one server: that which the first connection
// found, whatever others the connection string names.
type dialer struct {
	config *pgconn.Config
	pinned bool
	who    string // what the server said to whoSQL, once that is known

	// Streams that were asked for before they are needed.
	ready  chan dialed
	giveUp context.CancelFunc
	mu     sync.Mutex
	ahead  int // how many of them nobody has taken
}

// A dialed is a stream, or why there is none.
type dialed struct {
	s   *stream
	err error
}

func newDialer(conninfo string) (*dialer, error) {
	config, err := pgrepl.ParseConfig(conninfo)
	if err != nil {
		return nil, err
	}
	for name := range config.RuntimeParams {
		// What pgconn does not know it would send to the server as a setting, where
		// libpq takes it for a slip. timezone is of the variable PGTZ.
		if !slices.Contains([]string{"application_name", "client_encoding", "options", "timezone"}, name) {
			return nil, pgconn.NewParseConfigError(conninfo, fmt.Sprintf("invalid connection option %q", name), nil)
		}
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = applicationName
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = 30 * time.Second
	}
	return &dialer{config: config}, nil
}

// setup is said first on every connection. A backup takes as long as it takes;
// plans are trivial and must not be compiled; no other schema's functions are
// called, whatever the role's search_path.
const setup = `SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0;
SET search_path = pg_catalog; SET client_encoding = SQL_ASCII; SET jit = off;
SET max_parallel_workers_per_gather = 0; SET DateStyle = ISO; SET TimeZone = 'UTC'; SET bytea_output = hex;
SELECT set_config(name, '0', false) FROM pg_settings
WHERE name IN ('idle_session_timeout', 'transaction_timeout', 'tcp_user_timeout')`

// connect opens a connection with pgconn's comfort.
func (d *dialer) connect(ctx context.Context) (*pgconn.PgConn, error) {
	pc, err := pgconn.ConnectConfig(ctx, d.config.Copy())
	if err != nil {
		return nil, d.connectError(err)
	}
	first := setup
	if d.who != "" {
		first += ";\n" + whoSQL
	}
	results, err := pc.Exec(ctx, first).ReadAll()
	if err != nil {
		pc.Close(ctx)
		return nil, d.connectError(err)
	}
	if d.who != "" {
		if rows := results[len(results)-1].Rows; len(rows) != 1 || string(rows[0][0]) != d.who {
			pc.Close(ctx)
			return nil, &OtherServerError{Server: d.String()}
		}
	}
	return pc, nil
}

// whoSQL is what tells a server from all others, and from itself after a
// restart. The same name may lead elsewhere the next time.
const whoSQL = `SELECT concat_ws(' ', system_identifier, pg_postmaster_start_time(), current_setting('port'), s.change)
FROM pg_control_system(), pg_stat_file('PG_VERSION', true) s`

// An OtherServerError says that a connection came to another server than the
// backup's.
type OtherServerError struct{ Server string }

func (e *OtherServerError) Error() string {
	return fmt.Sprintf("connections to %q lead to different servers, or it was restarted", e.Server)
}

// A ConnectError reports a server that could not be connected to for a backup,
// which is not for replication and so wants other things of the server.
type ConnectError struct{ pgrepl.ConnectError }

func (d *dialer) connectError(err error) error {
	return &ConnectError{pgrepl.ConnectError{Server: d.String(), Err: err}}
}

// String names the server in messages.
func (d *dialer) String() string {
	_, address := pgconn.NetworkAddress(d.config.Host, d.config.Port)
	return address
}

// pin makes all later connections go to the server that pc is connected to.
func (d *dialer) pin(pc *pgconn.PgConn) {
	if d.pinned {
		return
	}
	remote := pc.Conn().RemoteAddr()
	all := append([]*pgconn.FallbackConfig{{Host: d.config.Host, Port: d.config.Port, TLSConfig: d.config.TLSConfig}}, d.config.Fallbacks...)
	var same []*pgconn.FallbackConfig
	for _, f := range all {
		network, address := pgconn.NetworkAddress(f.Host, f.Port)
		if remote.Network() != network {
			continue
		}
		host, port, err := net.SplitHostPort(remote.String())
		_, wanted, err2 := net.SplitHostPort(address)
		switch {
		case network == "unix" && address == remote.String():
			same = append(same, f)
		case network != "unix" && err == nil && err2 == nil && port == wanted && resolvesTo(f.Host, host):
			same = append(same, f)
		}
	}
	if len(same) > 0 {
		// By address: a name may have several.
		if host, _, err := net.SplitHostPort(remote.String()); err == nil && remote.Network() != "unix" {
			for _, f := range same {
				f.Host = host
			}
		}
		d.config.Host, d.config.Port, d.config.TLSConfig = same[0].Host, same[0].Port, same[0].TLSConfig
		d.config.Fallbacks = same[1:]
	}
	d.pinned = true
}

func resolvesTo(name, ip string) bool {
	if name == ip {
		return true
	}
	addresses, err := net.LookupHost(name)
	if err != nil {
		return false
	}
	for _, a := range addresses {
		if a == ip {
			return true
		}
	}
	return false
}

// A stream is a connection of which the backup reads the bytes itself: a COPY
// of gigabytes must not pass through a driver's rows. It is one goroutine's,
// but for Close.
type stream struct {
	server string
	conn   net.Conn
	r      *bufio.Reader
	out    []byte
	left   int // bytes of the current CopyData message
	copied bool
	read   int64 // bytes taken from CopyData
}

// streamBuffer is what is read ahead; longer reads go past it.
const streamBuffer = 32 << 10

// prepare opens n connections for COPY while something else is done.
func (d *dialer) prepare(ctx context.Context, n int) {
	ctx, d.giveUp = context.WithCancel(ctx)
	d.ready, d.ahead = make(chan dialed, n), n
	for range n {
		go func() {
			s, err := d.dial(ctx)
			d.ready <- dialed{s, err}
		}()
	}
}

// discard closes those that were prepared and that nobody has taken.
func (d *dialer) discard() {
	d.giveUp()
	for d.take() {
		if got := <-d.ready; got.err == nil {
			got.s.Close()
		}
	}
}

func (d *dialer) take() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ahead == 0 {
		return false
	}
	d.ahead--
	return true
}

// giveBack lets another have a stream whose last answer was read to its end.
func (d *dialer) giveBack(s *stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ready <- dialed{s: s} // there is room: it was taken from there
	d.ahead++
}

// stream is a connection for COPY: one that was prepared, if there is one, or
// another.
func (d *dialer) stream(ctx context.Context) (*stream, error) {
	if !d.take() {
		return d.dial(ctx)
	}
	select {
	case got := <-d.ready:
		return got.s, got.err
	case <-ctx.Done():
		d.mu.Lock()
		defer d.mu.Unlock()
		d.ahead++ // discard's
		return nil, ctx.Err()
	}
}

// dial opens a connection for COPY.
func (d *dialer) dial(ctx context.Context) (*stream, error) {
	pc, err := d.connect(ctx)
	if err != nil {
		return nil, err
	}
	// A write that took long has made pgconn read beside it, for fear of a
	// deadlock, and that reader may still be there to take the first bytes from
	// us.
	if err := pc.SyncConn(ctx); err != nil {
		pc.Close(ctx)
		return nil, d.connectError(err)
	}
	h, err := pc.Hijack()
	if err != nil {
		return nil, err
	}
	return &stream{server: d.String(), conn: h.Conn, r: bufio.NewReaderSize(h.Conn, streamBuffer)}, nil
}

func (s *stream) Close() error {
	s.conn.SetDeadline(time.Now().Add(time.Second))
	s.conn.Write([]byte{'X', 0, 0, 0, 4})
	return s.conn.Close()
}

// query sends one statement, a COPY ... TO STDOUT (FORMAT binary), and does not
// wait for its answer: the next may be sent before this one's is read.
func (s *stream) query(sql string) error {
	s.out = append(s.out[:0], 'Q')
	s.out = binary.BigEndian.AppendUint32(s.out, uint32(4+len(sql)+1))
	s.out = append(append(s.out, sql...), 0)
	_, err := s.conn.Write(s.out)
	return err
}

// copyHeader is the signature, flags and extension length of COPY's binary
// format (doc/src/sgml/ref/copy.sgml).
const copyHeaderLen = 11 + 4 + 4

// begin reads up to the first tuple of the next answer.
func (s *stream) begin() error {
	s.left, s.copied = 0, false
	for {
		tag, n, err := s.header()
		if err != nil {
			return err
		}
		if tag == 'H' {
			if _, err := s.r.Discard(n); err != nil {
				return err
			}
			break
		}
		if err := s.other(tag, n); err != nil {
			return err
		}
	}
	var head [copyHeaderLen]byte
	if err := s.full(head[:]); err != nil {
		return err
	}
	if string(head[:11]) != "PGCOPY\n\xff\r\n\x00" {
		return errors.New("server sent something else than COPY's binary format")
	}
	return nil
}

// tuple reads the head of the next tuple: the number of its fields, or ok =
// false after the last, when the answer has been read to its end.
func (s *stream) tuple() (fields int, ok bool, err error) {
	var b [2]byte
	if err := s.full(b[:]); err != nil {
		return 0, false, err
	}
	n := int16(binary.BigEndian.Uint16(b[:]))
	if n >= 0 {
		return int(n), true, nil
	}
	for {
		tag, n, err := s.header()
		if err != nil {
			return 0, false, err
		}
		if tag == 'Z' {
			_, err := s.r.Discard(n)
			return 0, false, err
		}
		if err := s.other(tag, n); err != nil {
			return 0, false, err
		}
	}
}

// length reads the length of a field, -1 for NULL.
func (s *stream) length() (int, error) {
	var b [4]byte
	if err := s.full(b[:]); err != nil {
		return 0, err
	}
	return int(int32(binary.BigEndian.Uint32(b[:]))), nil
}

// integer reads a field of type int8 or int4; NULL is null.
func (s *stream) integer() (v int64, null bool, err error) {
	n, err := s.length()
	if err != nil || n < 0 {
		return 0, true, err
	}
	var b [8]byte
	switch n {
	case 4:
		err = s.full(b[:4])
		return int64(int32(binary.BigEndian.Uint32(b[:4]))), false, err
	case 8:
		err = s.full(b[:])
		return int64(binary.BigEndian.Uint64(b[:])), false, err
	}
	return 0, false, fmt.Errorf("server sent a number of %d bytes", n)
}

// bytes reads a field into buf, which must be large enough; NULL is null.
func (s *stream) bytes(buf []byte) (b []byte, null bool, err error) {
	n, err := s.length()
	if err != nil || n < 0 {
		return nil, true, err
	}
	if n > len(buf) {
		return nil, false, fmt.Errorf("server sent %d bytes where at most %d were asked for", n, len(buf))
	}
	return buf[:n], false, s.full(buf[:n])
}

// full fills p with what COPY sends, over the borders of messages.
func (s *stream) full(p []byte) error {
	for len(p) > 0 {
		if s.left == 0 {
			tag, n, err := s.header()
			if err != nil {
				return err
			}
			if tag != 'd' {
				if err := s.other(tag, n); err != nil {
					return err
				}
				if tag == 'c' || tag == 'Z' {
					return errors.New("server ended COPY in the middle of it")
				}
				continue
			}
			s.left = n
			continue
		}
		n, err := io.ReadFull(s.r, p[:min(len(p), s.left)])
		s.left -= n
		s.read += int64(n)
		p = p[n:]
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) header() (tag byte, n int, err error) {
	head, err := s.r.Peek(5)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, 0, err
	}
	tag, size := head[0], binary.BigEndian.Uint32(head[1:])
	if size < 4 || size > math.MaxInt32 {
		return 0, 0, fmt.Errorf("invalid message length from server: %d", size)
	}
	s.r.Discard(5)
	return tag, int(size) - 4, nil
}

// maxMessage bounds what is read of a message that is not data: an error with
// its context.
const maxMessage = 1 << 20

// other reads a message that is not data. An error from the server is returned;
// after that the connection is of no use.
func (s *stream) other(tag byte, n int) error {
	if n > maxMessage {
		return fmt.Errorf("message %q of %d bytes from server", tag, n)
	}
	if tag != 'E' {
		_, err := s.r.Discard(n)
		return err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(s.r, body); err != nil {
		return err
	}
	var m pgproto3.ErrorResponse
	if err := m.Decode(body); err != nil {
		return err
	}
	return pgconn.ErrorResponseToPgError(&m)
}

// lost reports whether err is about the connection, or a server that goes away
// and may come back, rather than about what was asked.
func lost(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		// Class 57P: admin_shutdown, crash_shutdown, cannot_connect_now; 08:
		// connections; 53300: too many of them, of others. 40001: on a standby,
		// what is replayed takes precedence over who reads.
		return strings.HasPrefix(pg.Code, "57P") || strings.HasPrefix(pg.Code, "08") || pg.Code == "53300" || pg.Code == "40001"
	}
	// There may be several behind one name, and the next try find ours.
	var other *OtherServerError
	if errors.As(err, &other) {
		return true
	}
	// What a disk says looks like the network's: the errno in it is a net.Error.
	var disk *fs.PathError
	if errors.As(err, &disk) {
		return false
	}
	var op net.Error
	return errors.As(err, &op) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)
}

// literal quotes s as a string constant of SQL, whatever
// standard_conforming_strings is.
func literal(s string) string {
	s = strings.ReplaceAll(s, "'", "''")
	if strings.Contains(s, `\`) {
		return " E'" + strings.ReplaceAll(s, `\`, `\\`) + "'"
	}
	return "'" + s + "'"
}

// textArray is an array constant of the strings, as the text of a literal.
func textArray(items []string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, s := range items {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		for _, c := range []byte(s) {
			if c == '"' || c == '\\' {
				b.WriteByte('\\')
			}
			b.WriteByte(c)
		}
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

func intArray(items []int64) string {
	b := []byte{'{'}
	for i, n := range items {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, n, 10)
	}
	return string(append(b, '}'))
}

// conninfo is text with the host, port and user that it left to the
// environment, for a standby that has another one.
func (d *dialer) conninfo(text string) string {
	if strings.Contains(text, "://") {
		return text
	}
	for _, p := range []struct{ name, value string }{
		{"host", d.config.Host}, {"port", strconv.Itoa(int(d.config.Port))}, {"user", d.config.User},
	} {
		if !regexp.MustCompile(`(^|\s)` + p.name + `\s*=`).MatchString(text) {
			text = strings.TrimSpace(text + " " + p.name + "=" + p.value)
		}
	}
	return text
}
