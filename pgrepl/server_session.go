package pgrepl

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// A Kind says what a client wants of its connection.
type Kind int

const (
	// Physical is a walreceiver or one of its relatives: replication=true.
	// The session has been authenticated and waits for commands.
	Physical Kind = iota
	// Logical is replication=database. Not authenticated.
	Logical
	// SQL is an ordinary session. Not authenticated.
	SQL
	// Cancel is a request to cancel a query of another session, which this
	// package does not own. It carries no user, gets no answer and ends.
	Cancel
)

func (k Kind) String() string {
	return [...]string{"physical", "logical", "sql", "cancel"}[k]
}

// A Session is the server's end of one connection. It is used by one
// goroutine at a time, except for Close.
//
// A Physical session has been authenticated by [Accept] and is served with
// ReadCommand, Reply, Error and Stream. Of any other kind only the access
// rules have been asked: forward StartupPacket and then Conn to the server
// that will authenticate it, or refuse it with Fatal.
type Session struct {
	Kind            Kind
	User            string
	Database        string // empty for Physical
	ApplicationName string
	RemoteAddr      net.Addr
	PID             uint32 // unique in this process; clients name slots after it
	TLS             bool

	conn    net.Conn // the TLS connection if there is one
	br      *bufio.Reader
	wbuf    []byte // what Reply and its like are about to write
	log     *slog.Logger
	startup []byte
	state   *tls.ConnectionState
	params  [][2]string
}

const (
	// readerSize holds any message that a standby sends while WAL is streamed
	// (statusLen is 34), so that messages are read in place.
	readerSize = 4096

	// maxQuery is the longest command taken. The server allows 1 GB; the
	// longest thing a client has to say here is a backup label.
	maxQuery = 1 << 20

	// smallMessage is PQ_SMALL_MESSAGE_LIMIT of libpq.h: the limit for
	// messages that carry little.
	smallMessage = 10000

	// replyTimeout is how long a client may take to read an answer that is
	// not a stream of WAL.
	replyTimeout = time.Minute

	// fatalTimeout is how long we try to tell a client why it is dismissed.
	fatalTimeout = time.Second
)

// A Column of a result, in text format.
type Column struct {
	Name string
	OID  uint32 // of its type, as in pg_type
}

// A Value is one field's text. Nil is NULL, and pgrepl.Value("text") is a text.
type Value []byte

// StartupPacket is the client's startup packet as it came, length first. It is
// what a forwarded session begins with at the other server.
func (s *Session) StartupPacket() []byte { return s.startup }

// Conn is the client's connection from here on, without its TLS, and with what
// has been read ahead. Whoever takes it owns the session's bytes: no other
// method but Close may be called, except between whole messages.
func (s *Session) Conn() net.Conn { return bufferedConn{s.conn, s.br} }

// Close ends the connection at once. It may be called while another goroutine
// uses the session, whose call then fails.
func (s *Session) Close() error { return s.conn.Close() }

// Major is the major version the client was told the server has, by
// ServerConfig.Params: 15. Zero if it was told none.
func (s *Session) Major() int {
	for _, p := range s.params {
		if p[0] == "server_version" {
			digits := p[1][:span(p[1], isDigit)]
			n, _ := strconv.Atoi(digits)
			return n
		}
	}
	return 0
}

// ReadCommand waits for the next command. What is not one is answered here, as
// the server would: syntax errors, SQL, messages of the extended protocol. The
// error is io.EOF when the client has left; any error ends the session. A ctx
// that is done ends it as an administrator's command does.
func (s *Session) ReadCommand(ctx context.Context) (Command, error) {
	defer interrupt(ctx, s.conn.SetReadDeadline)()
	skipping := false // to the next Sync, after an error in an extended query
	for {
		typ, n, err := s.readHeader()
		if err != nil {
			if ctx.Err() != nil {
				s.Fatal(&Error{Code: "57P01", Message: "terminating connection due to administrator command"})
				return nil, context.Cause(ctx)
			}
			return nil, err
		}
		switch typ {
		case 'Q':
			body, err := s.readBody(n, maxQuery)
			if err != nil {
				return nil, err
			}
			if skipping {
				continue
			}
			cmd, err := parseQuery(body)
			if err != nil {
				if err := s.Error(AsError(err)); err != nil {
					return nil, err
				}
				continue
			}
			s.log.Debug("received replication command", "command", cmd.Text())
			return cmd, nil
		case 'X':
			return nil, io.EOF
		case 'S':
			if err := s.discard(n, smallMessage); err != nil {
				return nil, err
			}
			skipping = false
			s.ready()
			if err := s.flush(); err != nil {
				return nil, err
			}
		case 'P', 'B', 'D', 'E', 'C', 'F', 'H':
			if err := s.discard(n, maxQuery); err != nil {
				return nil, err
			}
			if skipping || typ == 'H' {
				continue // Flush: nothing of ours is ever waiting
			}
			e := &Error{Code: "08P01", Message: "extended query protocol not supported in a replication connection"}
			if typ == 'F' {
				e.Message = "fastpath function calls not supported in a replication connection"
			} else {
				skipping = true
			}
			s.wbuf = e.appendTo(s.wbuf, e.severity())
			if !skipping {
				s.ready()
			}
			if err := s.flush(); err != nil {
				return nil, err
			}
		case 'd', 'c', 'f':
			// Accepted and ignored, per protocol: the client may have been
			// sending still when a COPY failed.
			if err := s.discard(n, maxQuery); err != nil {
				return nil, err
			}
		default:
			e := Errorf("08P01", "invalid frontend message type %d", typ)
			s.Fatal(e)
			return nil, e
		}
	}
}

// interrupt makes what setDeadline governs fail once ctx is done. When stop
// has returned that does not happen any more; it may have happened.
func interrupt(ctx context.Context, setDeadline func(time.Time) error) (stop func()) {
	if ctx.Done() == nil {
		return func() {}
	}
	done := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		setDeadline(time.Unix(1, 0))
		close(done)
	})
	return func() {
		if !cancel() {
			<-done
		}
	}
}

// parseQuery reads the body of a simple query.
func parseQuery(body []byte) (Command, error) {
	text, rest, ok := strings.Cut(string(body), "\x00")
	switch {
	case !ok:
		return nil, &Error{Code: "08P01", Message: "invalid string in message"}
	case rest != "":
		return nil, &Error{Code: "08P01", Message: "invalid message format"}
	}
	return parseCommand(text)
}

// Reply answers a command that has a result: a row description if cols is not
// nil, the rows, the command's tag, ready for the next command.
func (s *Session) Reply(tag string, cols []Column, rows ...[]Value) error {
	if cols != nil {
		s.result(cols, rows...)
	}
	s.complete(tag)
	s.ready()
	return s.flush()
}

// Error answers a command that failed: the error, ready for the next command.
func (s *Session) Error(e *Error) error {
	s.wbuf = e.appendTo(s.wbuf, e.severity())
	s.ready()
	return s.flush()
}

// Fatal tells the client why it is dismissed, with severity FATAL, and closes
// the connection. It does not wait long for the client to listen.
func (s *Session) Fatal(e *Error) error {
	s.conn.SetDeadline(time.Now().Add(fatalTimeout))
	s.wbuf = e.appendTo(s.wbuf, "FATAL")
	_, err := s.conn.Write(s.wbuf)
	s.wbuf = s.wbuf[:0]
	return errors.Join(err, s.conn.Close())
}

// SetParam tells the client that a parameter has changed (ParameterStatus):
// a reload or an upgrade upstream. The message goes out with the next answer.
func (s *Session) SetParam(name, value string) {
	for i := range s.params {
		if s.params[i][0] == name {
			if s.params[i][1] == value {
				return
			}
			s.params[i][1] = value
			s.param(name, value)
			return
		}
	}
	s.params = append(s.params, [2]string{name, value})
	s.param(name, value)
}

func (s *Session) param(name, value string) {
	s.wbuf = encode(s.wbuf, &pgproto3.ParameterStatus{Name: name, Value: value})
}

func (s *Session) result(cols []Column, rows ...[]Value) {
	desc := &pgproto3.RowDescription{Fields: make([]pgproto3.FieldDescription, len(cols))}
	for i, c := range cols {
		desc.Fields[i] = pgproto3.FieldDescription{
			Name: []byte(c.Name), DataTypeOID: c.OID, DataTypeSize: typeSize(c.OID), TypeModifier: -1,
		}
	}
	s.wbuf = encode(s.wbuf, desc)
	for _, row := range rows {
		values := make([][]byte, len(row))
		for i, v := range row {
			values[i] = v
		}
		s.wbuf = encode(s.wbuf, &pgproto3.DataRow{Values: values})
	}
}

// The types that replication commands answer with, of pg_type.dat.
const (
	oidBytea = 17
	oidInt8  = 20
	oidInt4  = 23
	oidText  = 25
	oidOID   = 26
)

// typeSize is typlen of the types that replication commands answer with.
func typeSize(oid uint32) int16 {
	switch oid {
	case oidInt8:
		return 8
	case oidInt4, oidOID:
		return 4
	}
	return -1
}

func (s *Session) complete(tag string) {
	s.wbuf = encode(s.wbuf, &pgproto3.CommandComplete{CommandTag: []byte(tag)})
}

func (s *Session) ready() {
	s.wbuf = encode(s.wbuf, &pgproto3.ReadyForQuery{TxStatus: 'I'})
}

// flush writes what has been put together.
func (s *Session) flush() error {
	s.conn.SetWriteDeadline(time.Now().Add(replyTimeout))
	_, err := s.conn.Write(s.wbuf)
	s.wbuf = s.wbuf[:0]
	if err != nil {
		return fmt.Errorf("could not send to client: %w", err)
	}
	return s.conn.SetWriteDeadline(time.Time{})
}

// readHeader reads a message's type, and the length of its body. A client that
// has left between messages is io.EOF.
func (s *Session) readHeader() (typ byte, n int, err error) {
	head, err := s.br.Peek(5)
	if err != nil {
		if len(head) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, 0, err
	}
	typ, n = head[0], int(int32(binary.BigEndian.Uint32(head[1:])))-4
	if n < 0 {
		return 0, 0, fmt.Errorf("invalid message length from client: %d", n+4)
	}
	s.br.Discard(5)
	return typ, n, nil
}

// readBody reads the n bytes of a message's body, at most max.
func (s *Session) readBody(n, max int) ([]byte, error) {
	if n > max {
		return nil, fmt.Errorf("message of %d bytes from client, more than %d", n, max)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(s.br, body); err != nil {
		return nil, unexpected(err)
	}
	return body, nil
}

func (s *Session) discard(n, max int) error {
	if n > max {
		return fmt.Errorf("message of %d bytes from client, more than %d", n, max)
	}
	_, err := s.br.Discard(n)
	return unexpected(err)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// encode appends a message. The library refuses only messages beyond 1 GB.
func encode(b []byte, msg pgproto3.BackendMessage) []byte {
	b, err := msg.Encode(b)
	if err != nil {
		panic("could not encode message: " + err.Error())
	}
	return b
}

// A bufferedConn reads first what has been read ahead.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite tells the client that no more comes, where the connection can.
func (c bufferedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
