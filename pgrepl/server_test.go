package pgrepl

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"go.uber.org/goleak"
)

// params15 are what a server of version 15 tells.
func params15() [][2]string {
	return [][2]string{
		{"application_name", "the relay's own"}, {"client_encoding", "UTF8"}, {"DateStyle", "ISO, MDY"},
		{"default_transaction_read_only", "off"}, {"in_hot_standby", "off"}, {"integer_datetimes", "on"},
		{"IntervalStyle", "postgres"}, {"is_superuser", "off"}, {"server_encoding", "UTF8"},
		{"server_version", "15.18 (Debian 15.18-0+deb12u1)"}, {"session_authorization", "the_relay"},
		{"standard_conforming_strings", "on"}, {"TimeZone", "Etc/UTC"},
	}
}

// A testServer meets connections as cfg says and serves them with a few
// answers. What Accept returned goes to results.
type testServer struct {
	port    int
	results chan acceptResult
}

type acceptResult struct {
	s   *Session
	err error
}

func startServer(t *testing.T, cfg *ServerConfig) *testServer {
	t.Helper()
	if cfg.Params == nil {
		cfg.Params = params15
	}
	before := goleak.IgnoreCurrent()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &testServer{port: ln.Addr().(*net.TCPAddr).Port, results: make(chan acceptResult, 100)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				s, err := Accept(ctx, conn, cfg)
				srv.results <- acceptResult{s, err}
				if err == nil {
					answer(ctx, s)
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		ln.Close()
		wg.Wait()
		goleak.VerifyNone(t, before)
	})
	return srv
}

// answer serves a session with fixed answers until it ends.
func answer(ctx context.Context, s *Session) {
	defer s.Close()
	if s.Kind != Physical {
		return
	}
	for {
		cmd, err := s.ReadCommand(ctx)
		if err != nil {
			return
		}
		switch cmd := cmd.(type) {
		case IdentifySystem:
			err = s.ReplySystem(System{ID: 7711080864224384423, TLI: 1, Pos: 0x1500790})
		case Show:
			err = s.ReplyShow(cmd.Name, "16MB")
		case TimelineHistory:
			err = s.Error(Errorf("58P01", `could not open file "pg_wal/%08X.history": No such file or directory`, uint32(cmd.TLI)))
		case CreateSlot:
			err = s.ReplyCreated(cmd.Name)
		case ReadSlot:
			err = s.ReplySlot(nil)
		case DropSlot:
			err = s.ReplyDropped()
		default:
			err = s.Error(Errorf("0A000", "not in this test"))
		}
		if err != nil {
			return
		}
	}
}

// psql's answers to the commands of the replication protocol are those that it
// prints with a server of version 15.
func TestPsql(t *testing.T) {
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Fatal("psql is needed (Debian: postgresql-client-15): ", err)
	}
	srv := startServer(t, &ServerConfig{})
	tests := []struct{ command, want string }{
		{"IDENTIFY_SYSTEM", "systemid|timeline|xlogpos|dbname\n7711080864224384423|1|0/1500790|\n(1 row)\n"},
		{"SHOW wal_segment_size", "wal_segment_size\n16MB\n(1 row)\n"},
		{"CREATE_REPLICATION_SLOT s1 PHYSICAL", "slot_name|consistent_point|snapshot_name|output_plugin\ns1|0/0||\n(1 row)\n"},
		{"READ_REPLICATION_SLOT s1", "slot_type|restart_lsn|restart_tli\n||\n(1 row)\n"},
		{"DROP_REPLICATION_SLOT s1", "DROP_REPLICATION_SLOT\n"},
		{"TIMELINE_HISTORY 9", "ERROR:  could not open file \"pg_wal/00000009.history\": No such file or directory\n"},
		{"IDENTIFY_SYSTEM x", "ERROR:  syntax error\n"},
		{"", "ERROR:  cannot execute SQL commands in WAL sender for physical replication\n"},
	}
	for _, tt := range tests {
		cmd := exec.CommandContext(t.Context(), psql, "-X", "-A", "-c", tt.command,
			fmt.Sprintf("host=127.0.0.1 port=%d user=postgres replication=true gssencmode=prefer sslmode=prefer", srv.port))
		out, _ := cmd.CombinedOutput()
		if string(out) != tt.want {
			t.Errorf("psql -c %q printed:\n%s\nwant:\n%s", tt.command, out, tt.want)
		}
	}
}

// connect opens a physical connection to srv with pgconn.
func connect(t *testing.T, srv *testServer, conninfo string, change ...func(*pgconn.Config)) (*pgconn.PgConn, error) {
	t.Helper()
	config, err := pgconn.ParseConfig(fmt.Sprintf("host=127.0.0.1 port=%d replication=true sslmode=disable ", srv.port) + conninfo)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(config)
	}
	conn, err := pgconn.ConnectConfig(t.Context(), config)
	if err == nil {
		t.Cleanup(func() { conn.Close(context.Background()) })
	}
	return conn, err
}

// wantSQLState fails unless err is the server's answer with that code and text.
func wantServerError(t *testing.T, err error, code, message string) {
	t.Helper()
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		t.Errorf("got %v, want the server to say %s: %s", err, code, message)
		return
	}
	if e.Code != code || e.Message != message {
		t.Errorf("server said %s: %s\nwant %s: %s", e.Code, e.Message, code, message)
	}
}

func TestParametersOfTheSession(t *testing.T) {
	srv := startServer(t, &ServerConfig{})
	conn, err := connect(t, srv, "user=standby application_name=s1 client_encoding=LATIN1")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"server_version":        "15.18 (Debian 15.18-0+deb12u1)",
		"integer_datetimes":     "on",
		"application_name":      "s1",
		"session_authorization": "standby",
		"client_encoding":       "LATIN1",
	} {
		if got := conn.ParameterStatus(name); got != want {
			t.Errorf("parameter %s = %q, want %q", name, got, want)
		}
	}
	if conn.PID() == 0 {
		t.Error("the session's PID is zero")
	}
	other, err := connect(t, srv, "user=standby")
	if err != nil {
		t.Fatal(err)
	}
	if other.PID() == conn.PID() {
		t.Errorf("two sessions have PID %d", conn.PID())
	}
}

const password = "correct horse battery staple"

func scramAccess(t *testing.T, rules string) *Access {
	t.Helper()
	v, err := NewVerifier(password)
	if err != nil {
		t.Fatal(err)
	}
	a, err := ParseAccess(rules, map[string]string{"standby": v})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestSCRAM(t *testing.T) {
	certs := newCertificates(t)
	access := scramAccess(t, "host replication all all scram-sha-256")
	srv := startServer(t, &ServerConfig{Access: access, TLS: certs.server})
	const failed = `password authentication failed for user "standby"`
	tests := []struct {
		name, conninfo string
		code, message  string // of the failure
	}{
		{"right", "user=standby password='" + password + "'", "", ""},
		{"wrong", "user=standby password=wrong", "28P01", failed},
		{"no such user ends as a wrong password does", "user=nobody password=wrong", "28P01", `password authentication failed for user "nobody"`},
		{"over TLS, bound to the certificate", "sslmode=require channel_binding=require user=standby password='" + password + "'", "", ""},
		{"wrong over TLS", "sslmode=require channel_binding=require user=standby password=wrong", "28P01", failed},
		{"over TLS, not bound", "sslmode=require channel_binding=disable user=standby password='" + password + "'", "", ""},
		{"no such user over TLS", "sslmode=require channel_binding=require user=nobody password=wrong", "28P01", `password authentication failed for user "nobody"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := connect(t, srv, tt.conninfo)
			if tt.code == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantServerError(t, err, tt.code, tt.message)
		})
	}
}

// libpq binds by code of its own; pgconn's and ours might share a mistake.
func TestSCRAMWithLibpq(t *testing.T) {
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Fatal("psql is needed (Debian: postgresql-client-15): ", err)
	}
	// The hash that is bound to is that of the certificate's signature.
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		certs := newCertificatesOf(t, curve)
		srv := startServer(t, &ServerConfig{Access: scramAccess(t, "hostssl replication all all scram-sha-256"), TLS: certs.server})
		cmd := exec.CommandContext(t.Context(), psql, "-X", "-At", "-c", "IDENTIFY_SYSTEM",
			fmt.Sprintf("host=127.0.0.1 port=%d user=standby replication=true sslmode=verify-ca sslrootcert=%s channel_binding=require",
				srv.port, certs.caFile))
		cmd.Env = append(os.Environ(), "PGPASSWORD="+password)
		out, err := cmd.CombinedOutput()
		if want := "7711080864224384423|1|0/1500790|\n"; err != nil || string(out) != want {
			t.Errorf("%s: psql printed %q, %v; want %q", curve.Params().Name, out, err, want)
		}
	}
}

// Channel binding is for this: somebody between us and the client who ends TLS
// with a certificate that the client accepts, and passes everything on.
func TestSCRAMThroughAnotherCertificate(t *testing.T) {
	srv := startServer(t, &ServerConfig{
		Access: scramAccess(t, "hostssl replication all all scram-sha-256"), TLS: newCertificates(t).server})
	between, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		client, err := between.Accept()
		if err != nil {
			return
		}
		defer client.Close()
		c := dialRaw(t, srv)
		defer c.conn.Close()
		c.startTLS()
		request := make([]byte, 8)
		io.ReadFull(client, request)
		client.Write([]byte{'S'})
		tc := tls.Server(client, newCertificates(t).server)
		wg.Go(func() { io.Copy(c.conn, tc) })
		io.Copy(tc, c.conn)
		tc.Close()
	})
	t.Cleanup(func() { between.Close(); wg.Wait() })
	middle := &testServer{port: between.Addr().(*net.TCPAddr).Port}
	_, err = connect(t, middle, "sslmode=require channel_binding=require user=standby password='"+password+"'")
	wantServerError(t, err, "08P01", "SCRAM channel binding check failed")
}

// A user who does not exist has a salt, and the same one each time: who asks
// twice cannot tell.
func TestMockSaltIsConstant(t *testing.T) {
	srv := startServer(t, &ServerConfig{Access: scramAccess(t, "host replication all all scram-sha-256")})
	salt := func(user string) string {
		c := dialRaw(t, srv)
		c.startup(map[string]string{"user": user, "replication": "true"})
		c.want(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{"SCRAM-SHA-256"}})
		c.send(&pgproto3.SASLInitialResponse{AuthMechanism: "SCRAM-SHA-256", Data: []byte("n,,n=,r=abc")})
		msg, ok := c.receive().(*pgproto3.AuthenticationSASLContinue)
		if !ok {
			t.Fatal("the server did not go on")
		}
		_, rest, _ := strings.Cut(string(msg.Data), ",s=")
		return rest
	}
	if a, b := salt("nobody"), salt("nobody"); a != b {
		t.Errorf("a user who does not exist has salts %s and %s", a, b)
	}
	if a, b := salt("nobody"), salt("noone"); a == b {
		t.Errorf("two users who do not exist have one salt %s", a)
	}
	if a, b := salt("nobody"), salt("standby"); len(a) != len(b) || !strings.HasSuffix(a, ",i=4096") {
		t.Errorf("salts look different: %s for nobody, %s for a user", a, b)
	}
}

// What a client may not do in the exchange, with the server's words.
func TestSCRAMRefusals(t *testing.T) {
	certs := newCertificates(t)
	srv := startServer(t, &ServerConfig{Access: scramAccess(t, "host replication all all scram-sha-256"), TLS: certs.server})
	const plus, base = "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"
	tests := []struct {
		name            string
		tls             bool
		mechanism, data string
		code, message   string
	}{
		{"downgrade: the client did not see PLUS", true, base, "y,,n=,r=abc", "28000", "SCRAM channel binding negotiation error"},
		{"y where there is no PLUS", false, base, "y,,n=,r=abc", "", ""},
		{"PLUS without binding", true, plus, "n,,n=,r=abc", "08P01", "malformed SCRAM message"},
		{"binding without PLUS", true, base, "p=tls-server-end-point,,n=,r=abc", "08P01", "malformed SCRAM message"},
		{"PLUS that was not offered", false, plus, "p=tls-server-end-point,,n=,r=abc", "08P01", "client selected an invalid SASL authentication mechanism"},
		{"an unknown mechanism", false, "PLAIN", "x", "08P01", "client selected an invalid SASL authentication mechanism"},
		{"nothing", false, base, "", "08P01", "malformed SCRAM message"},
		{"garbage", false, base, "n,,x", "08P01", "malformed SCRAM message"},
		{"too much", false, base, "n,,n=,r=" + strings.Repeat("a", 2000), "hang up", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := dialRaw(t, srv)
			if tt.tls {
				c.startTLS()
			}
			c.startup(map[string]string{"user": "standby", "replication": "true"})
			mechanisms := []string{base}
			if tt.tls {
				mechanisms = []string{plus, base}
			}
			c.want(&pgproto3.AuthenticationSASL{AuthMechanisms: mechanisms})
			c.send(&pgproto3.SASLInitialResponse{AuthMechanism: tt.mechanism, Data: []byte(tt.data)})
			switch tt.code {
			case "":
				if _, ok := c.receive().(*pgproto3.AuthenticationSASLContinue); !ok {
					t.Error("the server did not go on")
				}
			case "hang up":
				c.wantEOF()
			default:
				c.wantFatal(tt.code, tt.message)
			}
		})
	}
}

func TestClientCertificates(t *testing.T) {
	certs := newCertificates(t)
	config := certs.server.Clone()
	config.ClientCAs = certs.pool
	config.ClientAuth = tls.VerifyClientCertIfGiven
	access := scramAccess(t, `
		hostssl replication standby  all cert
		hostssl replication verified all trust clientcert=verify-ca
		hostssl replication both     all scram-sha-256 clientcert=verify-full`)
	srv := startServer(t, &ServerConfig{Access: access, TLS: config})
	with := func(cert tls.Certificate) func(*pgconn.Config) {
		return func(c *pgconn.Config) {
			c.TLSConfig = &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}
		}
	}
	mine, other, foreign := certs.client(t, "standby"), certs.client(t, "somebody"), newCertificates(t).client(t, "standby")

	if _, err := connect(t, srv, "user=standby sslmode=require", with(mine)); err != nil {
		t.Error("with the right certificate:", err)
	}
	_, err := connect(t, srv, "user=standby sslmode=require", with(other))
	wantServerError(t, err, "28000", `certificate authentication failed for user "standby"`)
	_, err = connect(t, srv, "user=standby sslmode=require")
	wantServerError(t, err, "28000", "connection requires a valid client certificate")
	if _, err = connect(t, srv, "user=standby sslmode=require", with(foreign)); err == nil {
		t.Error("a certificate of an unknown authority was taken")
	}
	if _, err := connect(t, srv, "user=verified sslmode=require", with(other)); err != nil {
		t.Error("with anybody's certificate, as verify-ca allows:", err)
	}
	_, err = connect(t, srv, "user=both password=wrong sslmode=require", with(certs.client(t, "both")))
	wantServerError(t, err, "28P01", `password authentication failed for user "both"`)
}

// Direct TLS begins with the handshake and must name the protocol.
func TestDirectTLS(t *testing.T) {
	certs := newCertificates(t)
	srv := startServer(t, &ServerConfig{TLS: certs.server})
	conn, err := connect(t, srv, "user=standby sslmode=require sslnegotiation=direct")
	if err != nil {
		t.Fatal(err)
	}
	if r := <-srv.results; !r.s.TLS {
		t.Error("the session does not know that it has TLS")
	}
	if _, err := conn.Exec(t.Context(), "IDENTIFY_SYSTEM").ReadAll(); err != nil {
		t.Error(err)
	}

	// A client that speaks another protocol is not answered in ours.
	for _, protos := range [][]string{nil, {"http/1.1"}} {
		c := dialRaw(t, srv)
		tc := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true, NextProtos: protos})
		if err := tc.Handshake(); err == nil {
			if _, err := tc.Read(make([]byte, 1)); err == nil {
				t.Errorf("a direct connection with ALPN %q got an answer", protos)
			}
		}
		if r := <-srv.results; r.err == nil {
			t.Errorf("a direct connection with ALPN %q was accepted", protos)
		}
	}
}

// Requests for encryption may come in either order, and none twice.
func TestEncryptionRequests(t *testing.T) {
	plain := startServer(t, &ServerConfig{})
	c := dialRaw(t, plain)
	c.request(gssRequest)
	c.wantByte('N')
	c.request(sslRequest)
	c.wantByte('N')
	c.startup(map[string]string{"user": "standby", "replication": "true"})
	c.want(&pgproto3.AuthenticationOk{})

	c = dialRaw(t, plain)
	c.request(sslRequest)
	c.wantByte('N')
	c.request(sslRequest)
	c.wantFatal("0A000", "unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2")

	c = dialRaw(t, startServer(t, &ServerConfig{TLS: newCertificates(t).server}))
	c.startTLS()
	c.request(gssRequest)
	c.wantFatal("0A000", "unsupported frontend protocol 1234.5680: server supports 3.0 to 3.2")
}

// What arrives between the request for TLS and the handshake may have been put
// there by somebody else (CVE-2021-23214).
func TestBytesBeforeTLS(t *testing.T) {
	srv := startServer(t, &ServerConfig{TLS: newCertificates(t).server})
	c := dialRaw(t, srv)
	injected := startupPacket(protocol30, map[string]string{"user": "mallory", "replication": "true"})
	if _, err := c.conn.Write(append(requestPacket(sslRequest), injected...)); err != nil {
		t.Fatal(err)
	}
	c.wantByte('S')
	c.handshake()
	c.wantFatal("08P01", "received unencrypted data after SSL request")
}

func TestStartup(t *testing.T) {
	srv := startServer(t, &ServerConfig{})
	physical := map[string]string{"user": "standby", "replication": "true"}
	packet := func(tail string) []byte {
		b := binary.BigEndian.AppendUint32(nil, protocol30)
		return prefixed(append(b, tail...))
	}
	tests := []struct {
		name          string
		packet        []byte
		code, message string // of the FATAL; "hang up"; or none
	}{
		{"physical", startupPacket(protocol30, physical), "", ""},
		{"with a database, which does not matter", startupPacket(protocol30, map[string]string{"user": "x", "database": "nosuchdb", "replication": "on"}), "", ""},
		{"protocol 3.2", startupPacket(protocol32, physical), "", ""},
		{"protocol 2", startupPacket(2<<16, physical), "0A000", "unsupported frontend protocol 2.0: server supports 3.0 to 3.2"},
		{"no user", startupPacket(protocol30, map[string]string{"replication": "true"}), "28000", "no PostgreSQL user name specified in startup packet"},
		{"no truth value", startupPacket(protocol30, map[string]string{"user": "x", "replication": "perhaps"}), "22023", `invalid value for parameter "replication": "perhaps"`},
		{"no terminator", packet("user\x00x\x00"), "08P01", "invalid startup packet layout: expected terminator as last byte"},
		{"a name without a value", packet("user\x00x\x00replication\x00"), "08P01", "invalid startup packet layout: expected terminator as last byte"},
		{"more after the terminator", packet("user\x00x\x00\x00\x00"), "08P01", "invalid startup packet layout: expected terminator as last byte"},
		{"a length of nothing", []byte{0, 0, 0, 4}, "hang up", ""},
		{"a negative length", []byte{0xFF, 0xFF, 0xFF, 0xFF}, "hang up", ""},
		{"larger than any", append([]byte{0, 0, 0x27, 0x15}, make([]byte, 20)...), "hang up", ""}, // 10,005
		{"another protocol", []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), "hang up", ""},
		{"TLS where there is none", []byte{tlsHandshake, 3, 1, 0, 5, 1, 2, 3, 4, 5}, "hang up", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := dialRaw(t, srv)
			if _, err := c.conn.Write(tt.packet); err != nil {
				t.Fatal(err)
			}
			switch tt.code {
			case "":
				c.want(&pgproto3.AuthenticationOk{})
			case "hang up":
				c.wantEOF()
				if r := <-srv.results; r.err == nil || errors.Is(r.err, io.EOF) {
					t.Errorf("Accept: %v, want a complaint", r.err)
				}
				return
			default:
				c.wantFatal(tt.code, tt.message)
			}
			<-srv.results
		})
	}

	t.Run("a client that says nothing is no cause for complaint", func(t *testing.T) {
		dialRaw(t, srv).conn.Close()
		if r := <-srv.results; r.err != io.EOF {
			t.Errorf("Accept: %v, want io.EOF", r.err)
		}
	})
}

func TestNegotiateProtocolVersion(t *testing.T) {
	srv := startServer(t, &ServerConfig{})
	params := map[string]string{"user": "standby", "replication": "true"}

	// A newer minor: libpq of 19 asks for 3.9999 to see whether we would lie.
	c := dialRaw(t, srv)
	c.conn.Write(startupPacket(3<<16|9999, params))
	c.wantBytes([]byte{'v', 0, 0, 0, 12, 0, 3, 0, 2, 0, 0, 0, 0})
	c.want(&pgproto3.AuthenticationOk{})
	if n := len(c.keyData().SecretKey); n != 32 {
		t.Errorf("cancel key of %d bytes, want 32 as in 3.2", n)
	}

	// An option of the protocol that is none of ours.
	params["_pq_.widgets"] = "yes"
	c = dialRaw(t, srv)
	c.conn.Write(startupPacket(protocol30, params))
	c.wantBytes(append([]byte{'v', 0, 0, 0, 25, 0, 3, 0, 0, 0, 0, 0, 1}, "_pq_.widgets\x00"...))
	c.want(&pgproto3.AuthenticationOk{})
	if n := len(c.keyData().SecretKey); n != 4 {
		t.Errorf("cancel key of %d bytes, want 4 as in 3.0", n)
	}
}

// What is not physical replication is not authenticated here. It can be passed
// on: the startup packet as it came, and every byte after it.
func TestForwardedSessions(t *testing.T) {
	srv := startServer(t, &ServerConfig{})
	sql := map[string]string{"user": "app", "database": "shop", "application_name": "a\nb"}
	logical := map[string]string{"user": "app", "database": "shop", "replication": "database"}
	for _, tt := range []struct {
		params map[string]string
		want   Kind
	}{{sql, SQL}, {logical, Logical}, {map[string]string{"user": "app", "replication": "off"}, SQL}} {
		c1, c2 := net.Pipe()
		packet := startupPacket(protocol32, tt.params)
		go func() {
			c1.Write(append(bytes.Clone(packet), "and what follows"...))
			c1.Close()
		}()
		s, err := Accept(t.Context(), c2, &ServerConfig{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Kind != tt.want || s.User != "app" {
			t.Errorf("session of %v: kind %v, user %q", tt.params, s.Kind, s.User)
		}
		if !bytes.Equal(s.StartupPacket(), packet) {
			t.Errorf("startup packet %q, want %q", s.StartupPacket(), packet)
		}
		rest, err := io.ReadAll(s.Conn())
		if err != nil || string(rest) != "and what follows" {
			t.Errorf("rest of the connection: %q, %v", rest, err)
		}
		s.Close()
	}

	c := dialRaw(t, srv)
	packet := prefixed(append(binary.BigEndian.AppendUint32(nil, cancelRequest), 0, 0, 0, 7, 1, 2, 3, 4))
	c.conn.Write(packet)
	r := <-srv.results
	if r.err != nil || r.s.Kind != Cancel || !bytes.Equal(r.s.StartupPacket(), packet) {
		t.Errorf("cancel request: %+v, %v", r.s, r.err)
	}
	c.wantEOF()
}

// The protocol beyond simple queries, message by message.
func TestExtendedProtocol(t *testing.T) {
	srv := startServer(t, &ServerConfig{})
	c := dialRaw(t, srv)
	c.startup(map[string]string{"user": "standby", "replication": "true"})
	c.keyData()
	c.want(&pgproto3.ReadyForQuery{TxStatus: 'I'})

	const extended = "extended query protocol not supported in a replication connection"
	c.send(&pgproto3.Parse{Query: "SELECT 1"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Query{String: "IDENTIFY_SYSTEM"}, &pgproto3.Sync{})
	c.wantError("08P01", extended)
	c.want(&pgproto3.ReadyForQuery{TxStatus: 'I'}) // one answer, at Sync

	c.send(&pgproto3.FunctionCall{})
	c.wantError("08P01", "fastpath function calls not supported in a replication connection")
	c.want(&pgproto3.ReadyForQuery{TxStatus: 'I'}) // without a Sync

	c.send(&pgproto3.Flush{}, &pgproto3.CopyData{Data: []byte("late")}, &pgproto3.CopyDone{}, &pgproto3.CopyFail{})
	c.send(&pgproto3.Query{String: "DROP_REPLICATION_SLOT s"})
	c.want(&pgproto3.CommandComplete{CommandTag: []byte("DROP_REPLICATION_SLOT")})
	c.want(&pgproto3.ReadyForQuery{TxStatus: 'I'})

	c.conn.Write([]byte{'Q', 0, 0, 0, 8, 'a', 'b', 'c', 'd'})
	c.wantError("08P01", "invalid string in message")
	c.want(&pgproto3.ReadyForQuery{TxStatus: 'I'})

	c.conn.Write([]byte{'?', 0, 0, 0, 4})
	c.wantFatal("08P01", "invalid frontend message type 63")
}

// Stopping a server ends idle sessions as an administrator's command does.
func TestStopIdleSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := newSession(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := s.ReadCommand(ctx)
			done <- err
		}()
		synctest.Wait()
		cancel()
		c.wantFatal("57P01", "terminating connection due to administrator command")
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("ReadCommand: %v, want context.Canceled", err)
		}
	})
}

// A client has authentication_timeout to say who it is, whatever it does
// meanwhile.
func TestAuthenticationTimeout(t *testing.T) {
	access := scramAccess(t, "local replication all scram-sha-256")
	tests := []struct {
		name string
		say  func(*rawConn)
		told bool
	}{
		{"says nothing", func(*rawConn) {}, false},
		{"half a startup packet", func(c *rawConn) { c.conn.Write([]byte{0, 0, 0, 99, 0, 3}) }, false},
		{"no password", func(c *rawConn) {
			c.startup(map[string]string{"user": "standby", "replication": "true"})
			c.want(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{"SCRAM-SHA-256"}})
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				c1, c2 := net.Pipe()
				c := &rawConn{t: t, conn: c1}
				done := make(chan error, 1)
				go func() {
					_, err := Accept(t.Context(), c2, &ServerConfig{Access: access})
					done <- err
				}()
				tt.say(c)
				if tt.told {
					c.wantFatal("57014", "canceling authentication due to timeout")
				} else {
					c.wantEOF()
				}
				if err := <-done; err == nil {
					t.Error("Accept succeeded")
				}
				if took := time.Since(start); took != time.Minute {
					t.Errorf("gave up after %v, want 1m", took)
				}
			})
		})
	}
}

// Connections that say nothing cannot use up more than MaxPending, and what
// they hold is given back.
func TestMaxPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := &ServerConfig{MaxPending: 10}
		var mu sync.Mutex
		refused, timedOut := 0, 0
		var wg sync.WaitGroup
		for range 25 {
			c1, c2 := net.Pipe()
			defer c1.Close()
			wg.Go(func() {
				_, err := Accept(t.Context(), c2, cfg)
				mu.Lock()
				defer mu.Unlock()
				if errors.Is(err, ErrTooManyPending) {
					refused++
				} else {
					timedOut++
				}
			})
		}
		wg.Wait()
		if refused != 15 || timedOut != 10 {
			t.Errorf("%d refused at once and %d after a timeout, want 15 and 10", refused, timedOut)
		}
		if _, s := newSession(t, cfg); s == nil {
			t.Error("nobody is let in afterwards")
		}
	})
}

// Whatever arrives before authentication, Accept ends, and without an error of
// ours (a panic, or memory without bound).
func FuzzStartup(f *testing.F) {
	f.Add(startupPacket(protocol30, map[string]string{"user": "x", "replication": "true"}))
	f.Add(append(requestPacket(gssRequest), startupPacket(protocol32, map[string]string{"user": "x", "replication": "database"})...))
	f.Add(requestPacket(sslRequest))
	f.Add([]byte{tlsHandshake, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add(append(startupPacket(protocol30, map[string]string{"user": "x", "replication": "1", "_pq_.x": "y"}),
		"p\x00\x00\x00\x26SCRAM-SHA-256\x00\x00\x00\x00\x0bn,,n=,r=abc"...))
	v, err := NewVerifier(password)
	if err != nil {
		f.Fatal(err)
	}
	access, err := ParseAccess("local all,replication all scram-sha-256", map[string]string{"x": v})
	if err != nil {
		f.Fatal(err)
	}
	config := newCertificates(f).server
	f.Fuzz(func(t *testing.T, data []byte) {
		conn := &scriptConn{r: bytes.NewReader(data)}
		s, err := Accept(t.Context(), conn, &ServerConfig{Access: access, TLS: config, Params: params15})
		if (s == nil) == (err == nil) {
			t.Fatalf("Accept = %v, %v", s, err)
		}
		if err != nil && !conn.closed {
			t.Errorf("Accept failed (%v) and left the connection open", err)
		}
		if s != nil && s.Kind == Physical {
			t.Errorf("%q was let in without a password", data)
		}
	})
}

// A scriptConn is a client that says its lines, hears nothing and leaves.
type scriptConn struct {
	r      *bytes.Reader
	closed bool
}

func (c *scriptConn) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c *scriptConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *scriptConn) Close() error                     { c.closed = true; return nil }
func (c *scriptConn) LocalAddr() net.Addr              { return nil }
func (c *scriptConn) RemoteAddr() net.Addr             { return pipeAddr{} }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// A rawConn is a client that says exactly what a test wants.
type rawConn struct {
	t    *testing.T
	conn net.Conn
}

func dialRaw(t *testing.T, srv *testServer) *rawConn {
	t.Helper()
	conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(srv.port))
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { conn.Close() })
	return &rawConn{t: t, conn: conn}
}

// newSession is a physical session over a pipe, and its client after
// ReadyForQuery.
func newSession(t *testing.T, cfg *ServerConfig) (*rawConn, *Session) {
	t.Helper()
	if cfg == nil {
		cfg = &ServerConfig{}
	}
	if cfg.Params == nil {
		cfg.Params = params15
	}
	c1, c2 := net.Pipe()
	c := &rawConn{t: t, conn: c1}
	result := make(chan acceptResult, 1)
	go func() {
		s, err := Accept(context.Background(), c2, cfg)
		result <- acceptResult{s, err}
	}()
	c.startup(map[string]string{"user": "standby", "application_name": "standby1", "replication": "true"})
	c.want(&pgproto3.AuthenticationOk{})
	c.keyData()
	c.want(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	r := <-result
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { c1.Close(); r.s.Close() })
	return c, r.s
}

func prefixed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(4+len(b))), b...)
}

func requestPacket(code uint32) []byte { return prefixed(binary.BigEndian.AppendUint32(nil, code)) }

func startupPacket(protocol uint32, params map[string]string) []byte {
	b := binary.BigEndian.AppendUint32(nil, protocol)
	for name, value := range params {
		b = append(append(b, name...), 0)
		b = append(append(b, value...), 0)
	}
	return prefixed(append(b, 0))
}

func (c *rawConn) startup(params map[string]string) {
	c.t.Helper()
	if _, err := c.conn.Write(startupPacket(protocol30, params)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *rawConn) request(code uint32) {
	c.t.Helper()
	if _, err := c.conn.Write(requestPacket(code)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *rawConn) send(msgs ...pgproto3.FrontendMessage) {
	c.t.Helper()
	var b []byte
	for _, m := range msgs {
		var err error
		if b, err = m.Encode(b); err != nil {
			c.t.Fatal(err)
		}
	}
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *rawConn) startTLS() {
	c.t.Helper()
	c.request(sslRequest)
	c.wantByte('S')
	c.handshake()
}

func (c *rawConn) handshake() {
	c.t.Helper()
	tc := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.conn = tc
}

func (c *rawConn) wantByte(want byte) {
	c.t.Helper()
	c.wantBytes([]byte{want})
}

func (c *rawConn) wantBytes(want []byte) {
	c.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.conn, got); err != nil || !bytes.Equal(got, want) {
		c.t.Fatalf("server sent %q, %v; want %q", got[:n], err, want)
	}
}

// receive reads one message of the server's.
func (c *rawConn) receive() pgproto3.BackendMessage {
	c.t.Helper()
	// A Frontend that is used once reads no further than it must: what it is
	// given is exactly one message.
	head := make([]byte, 5)
	if _, err := io.ReadFull(c.conn, head); err != nil {
		c.t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
	if _, err := io.ReadFull(c.conn, body); err != nil {
		c.t.Fatal(err)
	}
	msg, err := pgproto3.NewFrontend(bytes.NewReader(append(head, body...)), nil).Receive()
	if err != nil {
		c.t.Fatal(err)
	}
	return msg
}

func (c *rawConn) want(want pgproto3.BackendMessage) {
	c.t.Helper()
	w, err := want.Encode(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	got := c.receive()
	if g, err := got.Encode(nil); err != nil || !bytes.Equal(g, w) {
		c.t.Fatalf("server sent %+v, want %+v", got, want)
	}
}

func (c *rawConn) wantFatal(code, message string) {
	c.t.Helper()
	c.wantSeverity("FATAL", code, message)
	c.wantEOF()
}

func (c *rawConn) wantError(code, message string) {
	c.t.Helper()
	c.wantSeverity("ERROR", code, message)
}

func (c *rawConn) wantSeverity(severity, code, message string) {
	c.t.Helper()
	e, ok := c.receive().(*pgproto3.ErrorResponse)
	if !ok || e.Severity != severity || e.SeverityUnlocalized != severity || e.Code != code || e.Message != message {
		c.t.Fatalf("server sent %+v, want %s %s: %s", e, severity, code, message)
	}
}

func (c *rawConn) wantEOF() {
	c.t.Helper()
	n, err := c.conn.Read(make([]byte, 1))
	if n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("server sent %d bytes, %v; want it to hang up", n, err)
	}
}

// keyData reads parameters up to BackendKeyData, which it returns.
func (c *rawConn) keyData() *pgproto3.BackendKeyData {
	c.t.Helper()
	for {
		switch m := c.receive().(type) {
		case *pgproto3.ParameterStatus, *pgproto3.AuthenticationOk:
		case *pgproto3.BackendKeyData:
			return m
		default:
			c.t.Fatalf("server sent %+v, want BackendKeyData", m)
		}
	}
}

// certificates are an authority and what it has signed.
type certificates struct {
	ca     *x509.Certificate
	key    *ecdsa.PrivateKey
	pool   *x509.CertPool
	server *tls.Config
	caFile string
}

func newCertificates(t testing.TB) *certificates {
	t.Helper()
	return newCertificatesOf(t, elliptic.P256())
}

func newCertificatesOf(t testing.TB, curve elliptic.Curve) *certificates {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	c := &certificates{ca: ca, key: key, pool: x509.NewCertPool(), caFile: filepath.Join(t.TempDir(), "ca.pem")}
	c.pool.AddCert(ca)
	if err := os.WriteFile(c.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	c.server = &tls.Config{Certificates: []tls.Certificate{c.sign(t, "127.0.0.1", x509.ExtKeyUsageServerAuth)}}
	return c
}

func (c *certificates) client(t testing.TB, user string) tls.Certificate {
	return c.sign(t, user, x509.ExtKeyUsageClientAuth)
}

func (c *certificates) sign(t testing.TB, name string, usage x509.ExtKeyUsage) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.ca, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
