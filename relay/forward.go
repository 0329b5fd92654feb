package relay

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"rideau/pgrepl"
)

// forwardDialTimeout bounds how long the server may take to answer.
const forwardDialTimeout = 10 * time.Second

// errNoServer is what a client hears whose request only a server can answer.
var errNoServer = &pgrepl.Error{Code: "57P03", Message: "cannot connect now",
	Detail: "The relay has no connection to its server, which alone can answer this."}

// forward passes a connection that is not for physical replication on to the
// server that WAL comes from: its startup packet, then every byte both ways.
// The server authenticates the client by its own rules, for which the client's
// address is the relay's.
func (r *Relay) forward(ctx context.Context, s *pgrepl.Session) error {
	if !r.cfg.ForwardSQL {
		if s.Kind == pgrepl.Cancel {
			return nil
		}
		return s.Fatal(&pgrepl.Error{Code: "0A000", Message: "the relay serves physical replication only",
			Hint: "Connect to the primary, or let the relay pass such connections on (forward_sql)."})
	}
	target := r.currentTarget()
	if target == nil {
		if s.Kind == pgrepl.Cancel {
			return nil
		}
		return s.Fatal(errNoServer)
	}
	dctx, cancel := context.WithTimeout(ctx, forwardDialTimeout)
	server, err := target.Dial(dctx)
	cancel()
	if err != nil {
		r.log.Info("could not pass a connection on", "server", target.String(), "err", err)
		if s.Kind == pgrepl.Cancel {
			return nil
		}
		return s.Fatal(&pgrepl.Error{Code: "08001", Message: fmt.Sprintf("could not connect to server %q", target), Detail: "The relay passes such connections on to its server."})
	}
	defer server.Close()
	client := s.Conn()
	stop := context.AfterFunc(ctx, func() {
		client.SetDeadline(time.Unix(1, 0))
		server.SetDeadline(time.Unix(1, 0))
	})
	defer stop()
	if _, err := server.Write(s.StartupPacket()); err != nil {
		return err
	}
	if s.Kind == pgrepl.Cancel {
		// The server hangs up when it has done it; so do we then. It asks
		// nobody who he is, so it may not hold a connection for long.
		timeout := time.AfterFunc(forwardDialTimeout, func() { server.Close() })
		defer timeout.Stop()
		io.Copy(io.Discard, server)
		return nil
	}
	r.stats.forwarded.Add(1)
	defer r.stats.forwarded.Add(-1)
	if _, ok := server.(*tls.Conn); ok && !s.TLS {
		if err := offerWithoutBinding(client, server); err != nil {
			return err
		}
	}
	splice(client, server)
	return nil
}

// offerWithoutBinding passes the server's first words on, without the offer of
// SCRAM with channel binding: the server's TLS ends here, a client without TLS
// has no channel to bind to, and libpq takes the offer for an attack.
func offerWithoutBinding(client, server net.Conn) error {
	const authenticationSASL = 10
	head := make([]byte, 5)
	for {
		if _, err := io.ReadFull(server, head); err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint32(head[1:])) - 4
		if n < 0 || n > maxGreeting {
			return fmt.Errorf("invalid message length from server: %d", n+4)
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(server, body); err != nil {
			return err
		}
		msg := slices.Concat(head, body)
		if head[0] == 'R' && n >= 4 && binary.BigEndian.Uint32(body) == authenticationSASL {
			var offer pgproto3.AuthenticationSASL
			if err := offer.Decode(body); err != nil {
				return err
			}
			offer.AuthMechanisms = slices.DeleteFunc(offer.AuthMechanisms, func(name string) bool { return strings.HasSuffix(name, "-PLUS") })
			var err error
			if msg, err = offer.Encode(nil); err != nil {
				return err
			}
		}
		if _, err := client.Write(msg); err != nil {
			return err
		}
		if head[0] != 'v' && head[0] != 'N' {
			return nil
		}
	}
}

// maxGreeting bounds what a server says before authentication.
const maxGreeting = 30000

// splice copies both ways until both have ended, or one has failed. An end is
// passed on as one.
func splice(a, b net.Conn) {
	var wg sync.WaitGroup
	pipe := func(dst, src net.Conn) {
		_, err := io.Copy(dst, src)
		if half, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			half.CloseWrite()
			return
		}
		a.SetDeadline(time.Unix(1, 0))
		b.SetDeadline(time.Unix(1, 0))
	}
	wg.Go(func() { pipe(a, b) })
	wg.Go(func() { pipe(b, a) })
	wg.Wait()
}

// pinned is a connection to the server that belongs to one of our clients, for
// the commands that only the server can do. It is kept once a manifest was
// uploaded, which belongs to the connection it came by; otherwise it would only
// use up one of the server's max_wal_senders, and be one to a server that may
// not be the primary any more when it is needed again.
type pinned struct {
	relay    *Relay
	session  *pgrepl.Session
	conn     *pgrepl.Conn
	manifest bool // one was uploaded
}

func (p *pinned) close() {
	if p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}

// pass sends a command on and the answer back, message by message as they are,
// until the server is ready for another; what the client sends meanwhile
// (CopyData of a manifest) goes the other way.
func (p *pinned) pass(ctx context.Context, cmd pgrepl.Command) (err error) {
	client := p.session.Conn()
	if p.conn == nil {
		target := p.relay.currentTarget()
		if target == nil {
			return p.session.Error(errNoServer)
		}
		conn, err := target.Connect(ctx)
		if err != nil {
			p.relay.log.Info("could not pass a command on", "server", target.String(), "err", err)
			return p.session.Error(&pgrepl.Error{Code: "08001", Message: fmt.Sprintf("could not connect to server %q", target),
				Detail: "The relay passes this command on to its server."})
		}
		p.conn = conn
	}
	from, server := p.conn.Raw()
	stop := context.AfterFunc(ctx, func() {
		server.SetDeadline(time.Unix(1, 0))
		client.SetDeadline(time.Unix(1, 0))
	})
	defer stop()

	text := cmd.Text()
	msg := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(4+len(text)+1))
	msg = append(append(msg, text...), 0)
	if _, err := server.Write(msg); err != nil {
		return err
	}

	// The client speaks only while the server is in COPY IN mode, and then
	// until CopyDone or CopyFail; nothing is read from it otherwise.
	var uploading sync.WaitGroup
	defer func() {
		if err != nil {
			p.close()
			client.Close()
		}
		uploading.Wait()
	}()
	head := make([]byte, 5)
	buf := make([]byte, 128<<10)
	for {
		if _, err := io.ReadFull(from, head); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("server closed the connection during %.20q: %w", text, err)
			}
			return err
		}
		tag, n := head[0], int64(binary.BigEndian.Uint32(head[1:]))-4
		if n < 0 {
			return fmt.Errorf("invalid message length from server: %d", n+4)
		}
		if tag == 'Z' {
			// The server may have failed before the client was done. What the
			// client sends from here on is another command, or CopyData that
			// ReadCommand ignores.
			client.SetReadDeadline(time.Unix(1, 0))
			uploading.Wait()
			client.SetReadDeadline(time.Time{})
		}
		if _, err := client.Write(head); err != nil {
			return err
		}
		if _, err := io.CopyBuffer(writerOnly{client}, io.LimitReader(from, n), buf); err != nil {
			return err
		}
		switch tag {
		case 'G':
			p.manifest = true
			uploading.Go(func() { upload(ctx, server, client) })
		case 'Z':
			if !p.manifest {
				p.close()
			}
			return nil
		}
	}
}

// writerOnly hides ReadFrom, so that CopyBuffer uses the buffer.
type writerOnly struct{ io.Writer }

// upload passes the client's CopyData on, up to CopyDone or CopyFail, or until
// a read deadline strikes between two messages. If it fails the server's
// connection ends, and with it the command.
func upload(ctx context.Context, server, client net.Conn) {
	src := &wholeMessages{ctx: ctx, Conn: client}
	head := make([]byte, 5)
	for {
		src.inside = false
		if _, err := io.ReadFull(src, head); err != nil {
			if src.inside || !errors.Is(err, os.ErrDeadlineExceeded) {
				server.Close()
			}
			return
		}
		n := int64(binary.BigEndian.Uint32(head[1:])) - 4
		if n < 0 {
			server.Close()
			return
		}
		if _, err := server.Write(head); err != nil {
			return
		}
		if _, err := io.CopyN(server, src, n); err != nil {
			server.Close()
			return
		}
		if head[0] == 'c' || head[0] == 'f' {
			return
		}
	}
}

// wholeMessages reads on where a deadline strikes inside a message, unless it
// was for ctx.
type wholeMessages struct {
	net.Conn
	ctx    context.Context
	inside bool // something of the message was read
}

func (w *wholeMessages) Read(p []byte) (int, error) {
	for {
		n, err := w.Conn.Read(p)
		w.inside = w.inside || n > 0
		if n > 0 || !w.inside || !errors.Is(err, os.ErrDeadlineExceeded) || w.ctx.Err() != nil {
			return n, err
		}
		w.SetReadDeadline(time.Time{})
		if w.ctx.Err() != nil {
			return 0, err // its deadline may be the one that we have just taken away
		}
	}
}
