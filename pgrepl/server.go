package pgrepl

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// ServerConfig says how connections are met. The zero value trusts this
// machine and speaks no TLS; only Params is always needed.
type ServerConfig struct {
	// Access says who may connect. Nil trusts connections from this machine
	// and refuses all others.
	Access *Access

	// TLS offers TLS, negotiated or direct. Nil: none is offered. For client
	// certificates set ClientCAs, and ClientAuth to VerifyClientCertIfGiven.
	TLS *tls.Config

	// Params returns what the client is told as ParameterStatus, in order:
	// what the real server tells, above all server_version, on whose major
	// clients decide how they write commands, and integer_datetimes, without
	// which pg_basebackup and pg_receivewal leave. What belongs to the session
	// (application_name, session_authorization) is filled in by Accept. Called
	// for each physical session; the result is not kept.
	Params func() [][2]string

	// AuthTimeout is how long a client may take until it is authenticated:
	// authentication_timeout. Zero: 1 minute, as the server's default.
	AuthTimeout time.Duration

	// MaxPending is how many connections may be in Accept at once; further
	// ones are closed without a word. Zero: 1000. Each holds a goroutine and
	// a few kilobytes.
	MaxPending int

	// Log hears of connections and commands at level Debug and Info. Nil: nobody.
	Log *slog.Logger

	pending atomic.Int64
}

const (
	defaultAuthTimeout = time.Minute
	defaultMaxPending  = 1000

	// maxStartupPacket is MAX_STARTUP_PACKET_LENGTH of pqcomm.h, without the
	// length itself.
	maxStartupPacket = 10000

	// Codes in the place of a protocol version, of pqcomm.h.
	cancelRequest = 80877102
	sslRequest    = 80877103
	gssRequest    = 80877104

	protocol30 = 3 << 16
	protocol32 = 3<<16 | 2 // long cancel keys; the newest we speak

	// tlsHandshake is the first byte of a TLS ClientHello. As the first byte
	// of a startup packet it would mean one of 352 MB.
	tlsHandshake = 0x16
	alpnProtocol = "postgresql"
)

// ErrTooManyPending is what Accept returns for a connection that it closed
// because MaxPending others were being met.
var ErrTooManyPending = errors.New("too many connections are not yet authenticated")

var nextPID atomic.Uint32

func init() {
	// Clients put this number into the names of slots; those of a relay's
	// former life may still be there.
	nextPID.Store(mathrand.Uint32N(1 << 24))
}

// Accept meets a new connection: requests for encryption, the startup packet,
// the access rules and, for physical replication, authentication up to
// ReadyForQuery. It takes at most AuthTimeout, and reads at most a startup
// packet of 10,000 bytes from a client that has not been authenticated.
//
// When it fails it has told the client why, as the server would, and closed
// conn. The error is an [*Error] if the client was told, and io.EOF if it left
// before it said anything, which is no cause for complaint.
func Accept(ctx context.Context, conn net.Conn, cfg *ServerConfig) (*Session, error) {
	limit := int64(cfg.MaxPending)
	if limit == 0 {
		limit = defaultMaxPending
	}
	defer cfg.pending.Add(-1)
	if cfg.pending.Add(1) > limit {
		conn.Close()
		return nil, ErrTooManyPending
	}

	timeout := cfg.AuthTimeout
	if timeout == 0 {
		timeout = defaultAuthTimeout
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3})
	}
	conn.SetDeadline(time.Now().Add(timeout))
	stop := interrupt(ctx, conn.SetDeadline)

	a := &acceptance{cfg: cfg, peer: newPeer(conn), s: &Session{
		RemoteAddr: conn.RemoteAddr(),
		PID:        newPID(),
		conn:       conn,
		br:         bufio.NewReaderSize(conn, readerSize),
		log:        cfg.Log,
	}}
	if a.s.log == nil {
		a.s.log = slog.New(slog.DiscardHandler)
	}
	err := a.run()
	stop()
	s := a.s
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		s.conn.SetDeadline(time.Time{})
		return s, nil
	}

	var e *Error
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
		e = &Error{Code: "57P01", Message: "terminating connection due to administrator command"}
	case errors.Is(err, os.ErrDeadlineExceeded) && a.authenticating:
		e = &Error{Severity: "FATAL", Code: "57014", Message: "canceling authentication due to timeout"}
		err = e
	default:
		errors.As(err, &e)
	}
	if e != nil && a.greeted {
		s.Fatal(e)
	} else {
		conn.Close()
	}
	return nil, err
}

func newPID() uint32 {
	for {
		// Positive also as an int32, which is how libpq shows it.
		if pid := nextPID.Add(1) & 0x7FFFFFFF; pid != 0 {
			return pid
		}
	}
}

// An acceptance is the state of one Accept.
type acceptance struct {
	cfg  *ServerConfig
	s    *Session
	peer peer
	cert *tls.Certificate // that the client was shown

	greeted        bool // the client speaks our protocol and may be told an error
	authenticating bool
}

func (a *acceptance) run() error {
	s := a.s
	if err := a.encryption(); err != nil {
		return err
	}
	packet := s.startup
	if code := binary.BigEndian.Uint32(packet[4:]); code == cancelRequest {
		// PID, then a key of 4 bytes, or up to 256 since protocol 3.2.
		if n := len(packet) - 12; n < 1 || n > 256 {
			return errors.New("invalid length of cancel request packet")
		}
		s.Kind = Cancel
		if !a.cfg.Access.mayForward(a.peer) {
			return errors.New("cancel request from a host that may not be forwarded")
		}
		return nil
	}
	a.greeted = true
	st, err := parseStartup(packet[4:])
	if err != nil {
		return err
	}
	s.Kind, s.User, s.Database, s.ApplicationName = st.kind, st.user, st.database, st.applicationName
	a.peer.kind, a.peer.user, a.peer.database, a.peer.tls = s.Kind, s.User, s.Database, s.TLS
	r, err := a.cfg.Access.match(a.peer)
	if err != nil {
		return err
	}
	if s.Kind != Physical {
		return nil
	}

	if st.protocol > protocol32 || len(st.unknown) > 0 {
		s.wbuf = encode(s.wbuf, &pgproto3.NegotiateProtocolVersion{
			// The whole version, whatever the library's field is called.
			NewestMinorProtocol: min(st.protocol, protocol32),
			UnrecognizedOptions: st.unknown,
		})
	}
	a.authenticating = true
	var users map[string]verifier
	if a.cfg.Access != nil {
		users = a.cfg.Access.users
	}
	shown, err := a.serverCertificate()
	if err != nil {
		return err
	}
	if err := s.authenticate(r, users, shown); err != nil {
		return err
	}
	s.wbuf = encode(s.wbuf, &pgproto3.AuthenticationOk{})
	a.parameters(st)
	key := make([]byte, 4)
	if st.protocol >= protocol32 {
		key = make([]byte, 32)
	}
	// Nothing here can be cancelled, but libpq wants a key of its own.
	rand.Read(key)
	s.wbuf = encode(s.wbuf, &pgproto3.BackendKeyData{ProcessID: s.PID, SecretKey: key})
	s.ready()
	if err := s.send(); err != nil {
		return err
	}
	s.log.Debug("replication connection authorized", "user", s.User, "addr", s.RemoteAddr.String(),
		"application_name", s.ApplicationName, "tls", s.TLS)
	return nil
}

func (a *acceptance) serverCertificate() (*x509.Certificate, error) {
	switch {
	case a.cert == nil:
		return nil, nil
	case a.cert.Leaf != nil:
		return a.cert.Leaf, nil
	}
	return x509.ParseCertificate(a.cert.Certificate[0])
}

// parameters tells the server's settings, and this session's.
func (a *acceptance) parameters(st startup) {
	s := a.s
	own := [][2]string{{"application_name", st.applicationName}, {"session_authorization", st.user}}
	if st.clientEncoding != "" {
		own = append(own, [2]string{"client_encoding", st.clientEncoding})
	}
	if a.cfg.Params != nil {
		s.params = append(s.params, a.cfg.Params()...)
	}
next:
	for _, o := range own {
		for i := range s.params {
			if s.params[i][0] == o[0] {
				s.params[i] = o
				continue next
			}
		}
		s.params = append(s.params, o)
	}
	for _, p := range s.params {
		s.param(p[0], p[1])
	}
}

// encryption answers requests for it, until a startup packet or a cancel
// request has come.
func (a *acceptance) encryption() error {
	s := a.s
	first, err := s.br.Peek(1)
	if err != nil {
		return err
	}
	if first[0] == tlsHandshake {
		if !a.tlsOffered() {
			return errors.New("direct TLS connection, but TLS is not configured")
		}
		if err := a.startTLS(s.Conn()); err != nil {
			return err
		}
		if s.state.NegotiatedProtocol != alpnProtocol {
			return errors.New("received direct SSL connection request without ALPN protocol negotiation extension")
		}
	}
	gssDone, tlsDone := false, false
	for {
		packet, err := s.readStartup()
		if err != nil {
			return err
		}
		switch code := binary.BigEndian.Uint32(packet[4:]); {
		case code == sslRequest && !tlsDone:
			tlsDone = true
			if !a.tlsOffered() || s.TLS {
				if _, err := s.conn.Write([]byte{'N'}); err != nil {
					return err
				}
				continue
			}
			if _, err := s.conn.Write([]byte{'S'}); err != nil {
				return err
			}
			// What is here already was not encrypted, and whoever injected it
			// wants us to take it as if it had been.
			injected := s.br.Buffered() > 0
			if err := a.startTLS(s.conn); err != nil {
				return err
			}
			if injected {
				a.greeted = true
				return &Error{Code: "08P01", Message: "received unencrypted data after SSL request",
					Detail: "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack."}
			}
			gssDone = true
		case code == gssRequest && !gssDone:
			gssDone = true
			if _, err := s.conn.Write([]byte{'N'}); err != nil {
				return err
			}
		default:
			s.startup = packet
			return nil
		}
	}
}

// tlsOffered is false on Unix-domain sockets, as in the server.
func (a *acceptance) tlsOffered() bool {
	_, unix := a.s.RemoteAddr.(*net.UnixAddr)
	return a.cfg.TLS != nil && !unix
}

// startTLS makes TLS over conn the session's connection. The deadline of the
// connection below governs the handshake.
func (a *acceptance) startTLS(conn net.Conn) error {
	s := a.s
	tc := tls.Server(conn, serverTLS(a.cfg.TLS, &a.cert))
	if err := tc.Handshake(); err != nil {
		return fmt.Errorf("could not accept SSL connection: %w", err)
	}
	state := tc.ConnectionState()
	s.conn, s.state, s.TLS = tc, &state, true
	s.br = bufio.NewReaderSize(tc, readerSize)
	return nil
}

// readStartup reads a packet that has no type: a startup packet or a request.
// It returns it whole, length included.
func (s *Session) readStartup() ([]byte, error) {
	var length [4]byte
	if n, err := io.ReadFull(s.br, length[:]); err != nil {
		if n > 0 {
			return nil, fmt.Errorf("incomplete startup packet: %w", err)
		}
		return nil, err // io.EOF: it said nothing
	}
	n := int(int32(binary.BigEndian.Uint32(length[:])))
	if n < 8 || n > 4+maxStartupPacket {
		return nil, errors.New("invalid length of startup packet")
	}
	packet := make([]byte, n)
	copy(packet, length[:])
	if _, err := io.ReadFull(s.br, packet[4:]); err != nil {
		return nil, fmt.Errorf("incomplete startup packet: %w", err)
	}
	return packet, nil
}

// A startup is what a startup packet says.
type startup struct {
	protocol        uint32
	kind            Kind
	user, database  string
	applicationName string
	clientEncoding  string
	unknown         []string // _pq_ options: none is known to us
}

// parseStartup reads a startup packet without its length, as
// ProcessStartupPacket does. Its errors are *Error and fatal.
func parseStartup(packet []byte) (startup, error) {
	st := startup{protocol: binary.BigEndian.Uint32(packet), kind: SQL}
	if major := st.protocol >> 16; major != 3 {
		return st, Errorf("0A000", "unsupported frontend protocol %d.%d: server supports 3.0 to 3.%d",
			major, st.protocol&0xFFFF, protocol32&0xFFFF)
	}
	rest := packet[4:]
	for len(rest) > 0 && rest[0] != 0 {
		name, after, ok1 := bytes.Cut(rest, []byte{0})
		value, after, ok2 := bytes.Cut(after, []byte{0})
		if !ok1 || !ok2 {
			rest = nil
			break
		}
		rest = after
		switch name, value := string(name), string(value); {
		case name == "user":
			st.user = value
		case name == "database":
			st.database = value
		case name == "application_name":
			st.applicationName = cutName(cleanASCII(value))
		case name == "client_encoding":
			st.clientEncoding = value
		case name == "replication":
			physical, ok := parseBool(value)
			switch {
			case value == "database":
				st.kind = Logical
			case !ok:
				return st, &Error{Code: "22023", Message: fmt.Sprintf(`invalid value for parameter "replication": "%s"`, value),
					Hint: `Valid values are: "false", 0, "true", 1, "database".`}
			case physical:
				st.kind = Physical
			default:
				st.kind = SQL
			}
		case strings.HasPrefix(name, "_pq_."):
			st.unknown = append(st.unknown, name)
		}
	}
	if len(rest) != 1 || rest[0] != 0 {
		return st, &Error{Code: "08P01", Message: "invalid startup packet layout: expected terminator as last byte"}
	}
	if st.user == "" {
		return st, &Error{Code: "28000", Message: "no PostgreSQL user name specified in startup packet"}
	}
	if st.database == "" {
		st.database = st.user
	}
	st.user, st.database = cutName(st.user), cutName(st.database)
	if st.kind == Physical {
		st.database = "" // whatever the client said: it belongs to none
	}
	return st, nil
}

// parseBool is parse_bool of bool.c: any beginning of a word that says which.
func parseBool(s string) (value, ok bool) {
	s = asciiLower(s)
	switch {
	case s == "":
		return false, false
	case s == "1", s == "on", strings.HasPrefix("true", s), strings.HasPrefix("yes", s):
		return true, true
	case s == "0", s == "of", s == "off", strings.HasPrefix("false", s), strings.HasPrefix("no", s):
		return false, true
	}
	return false, false
}

// cleanASCII makes of a text that goes into logs and views what pg_clean_ascii
// makes of it.
func cleanASCII(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= 32 && c <= 126 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

// send writes what has been put together, under the deadline of Accept.
func (s *Session) send() error {
	_, err := s.conn.Write(s.wbuf)
	s.wbuf = s.wbuf[:0]
	return err
}

func isEOF(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
