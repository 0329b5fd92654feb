package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"rideau/archive"
	"rideau/internal/durable"
	"rideau/pgrepl"
	"rideau/relay"
	"rideau/wal"
)

// connectTo returns the error that pgconn makes of a server that refuses
// everybody with refusal.
func connectTo(t *testing.T, refusal *pgproto3.ErrorResponse) (address string, err error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := pgproto3.NewBackend(c, c)
			b.ReceiveStartupMessage()
			b.Send(refusal)
			b.Flush()
			c.Close()
		}
	}()
	host, port, _ := net.SplitHostPort(l.Addr().String())
	conn, err := pgconn.Connect(t.Context(), fmt.Sprintf("host=%s port=%s user=replicator password=s3cret sslmode=disable", host, port))
	if err == nil {
		conn.Close(t.Context())
		t.Fatal("connected to a server that refuses everybody")
	}
	return l.Addr().String(), err
}

// What a server refuses us with, and what its administrator is told to do. The
// messages are those of PostgreSQL 13 to 18.
func TestExplainServer(t *testing.T) {
	tests := []struct {
		name, code, message string
		hint                string
	}{
		{"wrong password", "28P01", `password authentication failed for user "replicator"`, "password file"},
		{"no line in pg_hba.conf", "28000", `no pg_hba.conf entry for replication connection from host "10.0.0.7", user "replicator", no encryption`,
			"host replication replicator 10.0.0.7/32 scram-sha-256"},
		{"the same in German", "28000", `kein pg_hba.conf-Eintrag für Replikationsverbindung von Host »10.0.0.7«, Benutzer »replicator«, keine Verschlüsselung`,
			"host replication replicator 10.0.0.7/32 scram-sha-256"},
		{"the same in French", "28000", `aucune entrée dans pg_hba.conf pour la connexion de la réplication à partir de l'hôte « 10.0.0.7 », utilisateur « replicator », aucun chiffrement`,
			"host replication replicator 10.0.0.7/32 scram-sha-256"},
		{"over IPv6", "28000", `no pg_hba.conf entry for replication connection from host "fd00::7", user "replicator", SSL encryption`,
			"host replication replicator fd00::7/128 scram-sha-256"},
		{"over a socket", "28000", `no pg_hba.conf entry for replication connection from host "[local]", user "replicator", no encryption`,
			"host replication replicator ADDRESS/32"},
		{"a line that rejects", "28000", `pg_hba.conf rejects replication connection for host "10.0.0.7", user "replicator", no encryption`, "before any that rejects"},
		{"no such role", "28000", `role "replicator" does not exist`, "CREATE ROLE replicator LOGIN REPLICATION PASSWORD"},
		{"not a replication role, to 15", "42501", `must be superuser or replication role to start walsender`, "ALTER ROLE replicator REPLICATION."},
		{"not a replication role, from 16", "42501", `permission denied to start WAL sender`, "ALTER ROLE replicator REPLICATION."},
		{"wal_level minimal forbids walsenders", "53300", `number of requested standby connections exceeds "max_wal_senders" (currently 0)`, "wal_level replica"},
		{"the server is full", "53300", `sorry, too many clients already`, "max_connections"},
		{"no slot left", "53400", `all replication slots are in use`, "max_replication_slots"},
		{"the slot is another's", "55006", `replication slot "rideau" is active for PID 42`, "--slot NAME"},
		{"the slot was invalidated", "55000", `can no longer get changes from replication slot "rideau"`, "pg_drop_replication_slot"},
		{"starting", "57P03", `the database system is starting up`, "when the server has started"},
		{"the server's own hint, where we know nothing", "XX000", `something new`, "what the server suggests"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			address, err := connectTo(t, &pgproto3.ErrorResponse{
				Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: tt.code, Message: tt.message, Hint: "what the server suggests",
			})
			var out strings.Builder
			if status := report(&out, "rideau relay", err); status != statusFailed {
				t.Errorf("exit status %d, want %d", status, statusFailed)
			}
			want := fmt.Sprintf("rideau relay: could not connect to server %q as user \"replicator\"\ndetail: The server said: %s (SQLSTATE %s).\nhint: ", address, tt.message, tt.code)
			if got := out.String(); !strings.HasPrefix(got, want) || !strings.Contains(got, tt.hint) {
				t.Errorf("got\n%s\nwant\n%s... %s", got, want, tt.hint)
			}
			if strings.Contains(out.String(), "s3cret") {
				t.Error("the password was printed")
			}
		})
	}
}

func TestExplainSeveralServers(t *testing.T) {
	one, err1 := connectTo(t, &pgproto3.ErrorResponse{Severity: "FATAL", Code: "57P03", Message: "the database system is shutting down"})
	two, err2 := connectTo(t, &pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"})
	got := explain(errors.Join(err1, err2))
	if got.message != "could not connect to any of 2 servers" {
		t.Errorf("message %q", got.message)
	}
	for _, line := range []string{one + ": the database system is shutting down (SQLSTATE 57P03)", two + ": password authentication failed (SQLSTATE 28P01)"} {
		if !strings.Contains(got.detail, line) {
			t.Errorf("detail lacks %q:\n%s", line, got.detail)
		}
	}
}

// Every error that a decision hangs on is explained: what happened in the
// message, and something to do.
func TestExplain(t *testing.T) {
	syscallError := func(op string, errno syscall.Errno) error {
		return fmt.Errorf("could not: %w", &fs.PathError{Op: op, Path: "wal/0001", Err: errno})
	}
	removed := &pgconn.PgError{Severity: "ERROR", Code: "58P01", Message: "requested WAL segment 00000003000000020000009F has already been removed"}
	listen := &net.OpError{Op: "listen", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5433}, Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	_, badPort := pgconn.ParseConfig("host=db1 port=x password=s3cret")
	tests := []struct {
		name                  string
		err                   error
		message, detail, hint string
	}{
		{"gap", &relay.GapError{Server: "db1", TLI: 3, LSN: 0x29F000000, Err: removed},
			`server "db1" no longer has WAL at 2/9F000000 on timeline 3`, "The server said: requested WAL segment 00000003000000020000009F has already been removed (SQLSTATE 58P01).", "replication slot"},
		{"a logical slot", &relay.SlotError{Server: "db1", Slot: "decoding", Err: &pgrepl.SlotKindError{Slot: "decoding", Kind: "logical"}},
			`cannot receive with slot "decoding" of server "db1"`, "", "--slot NAME"},
		{"diverged", &relay.DivergedError{Server: "db2", TLI: 1, LSN: 0x5000100, ServerTLI: 2, Fork: 0x5000000},
			"forked at 0/5000000", "Nothing was overwritten", "pg_rewind"},
		{"behind", &relay.BehindError{Server: "db2", TLI: 1, LSN: 0x4000000, OurTLI: 1, OurLSN: 0x5000000}, "behind this relay", "", "server that is ahead"},
		{"a server's own directory", &relay.ServerDirError{Dir: "main"}, `directory "main" belongs to a PostgreSQL server`, "", "directory of its own"},
		{"the identity is garbage", &relay.StateError{Path: "wal/rideau.json", Err: errors.New("no JSON")}, `cannot understand "wal/rideau.json": no JSON`, "", "makes it again"},
		{"the slots are garbage", &relay.StateError{Path: "wal/rideau-slots.json", Slots: true, Err: errors.New("no JSON")}, "rideau-slots.json", "", "must be made again"},
		{"another cluster", &relay.SystemError{Server: "db2", Want: 1, Got: 2}, "system identifier 2", "initdb", "another directory"},
		{"another segment size", &relay.SegmentSizeError{Server: "db2", Want: 1 << 20, Got: 1 << 24}, "segment size", "", "another directory"},
		{"two promotions to one timeline", &relay.HistoryError{Server: "db2", TLI: 2}, "history of timeline 2", "Two servers were promoted", "Follow one"},
		{"disk full", &relay.DiskFullError{Dir: "wal", LSN: 0x5000000, Err: syscall.ENOSPC}, `no room in "wal"`, "nothing was lost", "--keep"},
		{"the directory is another relay's", &durable.LockedError{Dir: "wal", PID: 42}, `"wal"`, "", "directory of its own"},
		{"corrupt WAL", &wal.CorruptError{LSN: 0x5000028, Reason: "CRC"}, "0/5000028", "", "pg_waldump"},
		{"damaged file", &archive.DamageError{Name: "000000010000000000000001", Reason: "short"}, "damaged", "", "another archive"},
		{"no relay to fetch from", &archive.UnreachableError{Source: "http://x", Err: errors.New("refused")}, "could not get WAL", "", "--http"},
		{"bad slot name", pgrepl.CheckSlotName("Bad Slot"), `replication slot name "Bad Slot" contains invalid character`, "", "lower case letters"},
		{"bad connection string", badPort, "invalid connection string: invalid port", "", "as psql reads it"},
		{"address taken", fmt.Errorf("x: %w", listen), `could not listen on "127.0.0.1:5433": address already in use`, "", "--listen"},
		{"no such host", &net.DNSError{Name: "db9", IsNotFound: true}, `there is no host "db9"`, "", "PGHOST"},
		{"no room", syscallError("write", syscall.ENOSPC), "no space left", "", "--keep"},
		{"no permission", syscallError("mkdir", syscall.EACCES), "permission denied", "", "must own"},
		{"a file where a directory should be", syscallError("mkdir", syscall.ENOTDIR), "not a directory", "", "Give a directory"},
		{"a command refused by the server", fmt.Errorf("could not create replication slot: %w", &pgconn.PgError{Severity: "ERROR", Code: "53400", Message: "all replication slots are in use"}),
			"could not create replication slot", "The server said: all replication slots are in use (SQLSTATE 53400).", "max_replication_slots"},
		{"told to stop", context.Canceled, "interrupted", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := explain(fmt.Errorf("outer: %w", tt.err))
			if !strings.Contains(got.message, tt.message) {
				t.Errorf("message %q lacks %q", got.message, tt.message)
			}
			if !strings.Contains(got.detail, tt.detail) {
				t.Errorf("detail %q lacks %q", got.detail, tt.detail)
			}
			if !strings.Contains(got.hint, tt.hint) || (got.hint == "") != (tt.hint == "") {
				t.Errorf("hint %q lacks %q", got.hint, tt.hint)
			}
			if strings.HasSuffix(got.message, ".") || strings.Contains(got.message, "SQLSTATE") {
				t.Errorf("message %q is not one of PostgreSQL's style", got.message)
			}
			for _, sentence := range []string{got.detail, got.hint} {
				if sentence != "" && !strings.HasSuffix(sentence, ".") && !strings.HasSuffix(sentence, "?") {
					t.Errorf("%q is not a sentence", sentence)
				}
			}
		})
	}
}

// The names of system calls are for programmers.
func TestPlainPaths(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"a directory that cannot be made", &fs.PathError{Op: "mkdir", Path: "ro/x", Err: syscall.EACCES},
			`could not create directory "ro/x": permission denied`},
		{"a lock that cannot be made", &fs.PathError{Op: "open", Path: "ro/.lock", Err: syscall.EACCES},
			`could not open file "ro/.lock": permission denied`},
		{"nothing there", &fs.PathError{Op: "stat", Path: "wal", Err: syscall.ENOENT},
			`could not find "wal": no such file or directory`},
		{"what could not be done is said already", fmt.Errorf("could not create segment: %w", &fs.PathError{Op: "fallocate", Path: "wal/1", Err: syscall.ENOSPC}),
			`could not create segment: "wal/1": no space left on device`},
		{"a mistake in the command line", &usageError{err: fmt.Errorf("could not read users: %w", &fs.PathError{Op: "open", Path: "users", Err: syscall.ENOENT})},
			`could not read users: "users": no such file or directory`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := explain(tt.err).message; got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestReportStatus(t *testing.T) {
	tests := []struct {
		name   string
		err    error
		status int
		output string
	}{
		{"done", nil, 0, ""},
		{"failed", errors.New("could not"), 1, "rideau x: could not\n"},
		{"misused", &usageError{err: errors.New("unknown"), hint: "Try."}, 2, "rideau x: unknown\nhint: Try.\n"},
		{"misused, and told already", &usageError{}, 2, ""},
		{"a status of its own", withStatus(126, errors.New("could not fetch")), 126, "rideau x: could not fetch\n"},
		{"a status of its own, in silence", withStatus(1, nil), 1, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if status := report(&out, "rideau x", tt.err); status != tt.status || out.String() != tt.output {
				t.Errorf("status %d, output %q; want %d, %q", status, out.String(), tt.status, tt.output)
			}
		})
	}
}

// A session that ends without a word is explained by whoever is left: of a file,
// somebody has said which.
func TestExplainLostSession(t *testing.T) {
	for _, err := range []error{io.ErrUnexpectedEOF, &extensionError{io.ErrUnexpectedEOF}} {
		if e := explain(err); e.message != "the server ended the session without a word (unexpected EOF)" || !strings.Contains(e.hint, "full disk") {
			t.Errorf("got %+v", e)
		}
	}
	if e := explain(fmt.Errorf("could not read %q: %w", "foo.plan", io.ErrUnexpectedEOF)); e.message != `could not read "foo.plan": unexpected EOF` || e.hint != "" {
		t.Errorf("got %+v", e)
	}
}
