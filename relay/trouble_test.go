package relay_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"rideau/internal/durable"
	"rideau/internal/pgtest"
	"rideau/pgrepl"
	"rideau/relay"
)

// runOnce runs a relay that is expected to fail, and returns why.
func runOnce(t *testing.T, cfg relay.Config) error {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Listen = []string{"127.0.0.1:0"}
	r, err := relay.New(cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), pgtest.Patience)
	defer cancel()
	err = r.Run(ctx)
	if ctx.Err() != nil {
		t.Fatal("the relay runs where it should have failed")
	}
	return err
}

// What cannot work is said at once, by a type, before anything is kept.
func TestRefusals(t *testing.T) {
	t.Parallel()
	one := pgtest.Start(t, pgtest.Options{HBA: []string{"host replication secret 127.0.0.1/32 scram-sha-256"}})
	one.Exec("CREATE ROLE secret LOGIN REPLICATION PASSWORD 'right'")
	one.Exec("CREATE ROLE plain LOGIN")
	other := pgtest.Start(t, pgtest.Options{})
	small := pgtest.Start(t, pgtest.Options{InitdbArgs: []string{"--wal-segsize=1"}})

	t.Run("wrong password", func(t *testing.T) {
		err := runOnce(t, relay.Config{Upstream: fmt.Sprintf("host=127.0.0.1 port=%d user=secret password=hunter2", one.Port)})
		if err == nil || !strings.Contains(err.Error(), `password authentication failed for user "secret"`) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("unknown user", func(t *testing.T) {
		err := runOnce(t, relay.Config{Upstream: fmt.Sprintf("host=127.0.0.1 port=%d user=nobody", one.Port)})
		if err == nil || !strings.Contains(err.Error(), `role "nobody" does not exist`) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no replication role", func(t *testing.T) {
		err := runOnce(t, relay.Config{Upstream: fmt.Sprintf("host=127.0.0.1 port=%d user=plain", one.Port)})
		if err == nil || !strings.Contains(err.Error(), "permission denied to start WAL sender") && !strings.Contains(err.Error(), "must be superuser or replication role to start walsender") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		err := runOnce(t, relay.Config{Upstream: fmt.Sprintf("host=127.0.0.1 port=%d", pgtest.FreePort(t))})
		if err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("got %v", err)
		}
	})

	dir := t.TempDir()
	r := startRelay(t, relay.Config{Upstream: one.Conninfo(""), Dir: dir})
	r.waitComplete(1, one.LSN())
	t.Run("a directory of something else is mentioned", func(t *testing.T) {
		home := t.TempDir()
		if err := os.WriteFile(home+"/thesis.tex", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		other := startRelay(t, relay.Config{Upstream: one.Conninfo(""), Dir: home})
		if log := other.log.String(); !strings.Contains(log, "holds other things") || !strings.Contains(log, "thesis.tex") {
			t.Errorf("the log says nothing of it:\n%s", log)
		}
		if log := r.log.String(); strings.Contains(log, "holds other things") {
			t.Errorf("an empty directory is complained of:\n%s", log)
		}
	})
	t.Run("two relays in one directory", func(t *testing.T) {
		var locked *durable.LockedError
		if err := runOnce(t, relay.Config{Upstream: one.Conninfo(""), Dir: dir}); !errors.As(err, &locked) {
			t.Errorf("got %v, want a LockedError", err)
		}
	})
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	t.Run("another cluster", func(t *testing.T) {
		var system *relay.SystemError
		if err := runOnce(t, relay.Config{Upstream: other.Conninfo(""), Dir: dir}); !errors.As(err, &system) {
			t.Errorf("got %v, want a SystemError", err)
		}
	})
	t.Run("another segment size", func(t *testing.T) {
		// The system identifier is looked at first; so it is this that is told.
		var system *relay.SystemError
		if err := runOnce(t, relay.Config{Upstream: small.Conninfo(""), Dir: dir}); !errors.As(err, &system) {
			t.Errorf("got %v, want a SystemError", err)
		}
	})
	r.start()
	r.waitComplete(1, one.LSN())
}

// A full disk stops acknowledgements, not the relay; room brings them back,
// and nothing is missing.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := pgtest.SmallFS(t, 8<<20)
	primary := pgtest.Start(t, pgtest.Options{
		InitdbArgs: []string{"--wal-segsize=1"},
		Settings:   map[string]string{"synchronous_standby_names": "rideau", "wal_sender_timeout": "3s"},
	})
	primary.Exec("SET synchronous_commit = local; CREATE TABLE t (n int, filler text)")
	ballast := dir + "/ballast"
	if err := os.WriteFile(ballast, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r := startRelay(t, relay.Config{Upstream: primary.Conninfo(""), Dir: dir, Slot: "rideau"})
	primary.WaitQuery("sync", "SELECT sync_state FROM pg_stat_replication")

	// More than there is room for.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := primary.Server.Query(ctx, "INSERT INTO t SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 4000) n")
		done <- err
	}()
	pgtest.Wait(t, "the relay to say that its disk is full", func() (bool, string) {
		return r.Status().DiskFull, fmt.Sprintf("%+v", r.Status().Position)
	})
	if _, err := os.Stat(ballast); err != nil {
		t.Fatal(err)
	}
	// For longer than wal_sender_timeout the primary hears of us all the time.
	full := primary.QueryValue("SELECT now()::text")
	primary.WaitQuery("true", "SELECT (reply_time > $1::timestamptz + interval '4 s')::text FROM pg_stat_replication", full)
	select {
	case err := <-done:
		t.Fatalf("a commit was acknowledged with no room for it: %v", err)
	default:
	}
	if strings.Contains(r.log.String(), "could not receive WAL") {
		t.Error("the connection was lost over a full disk")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(pgtest.Patience):
		t.Fatal("there is room again, but the commit is not acknowledged")
	}
	r.waitComplete(1, primary.LSN())
	if r.Status().DiskFull {
		t.Error("the relay still says that its disk is full")
	}
}

// What standbys hold back is held back on the primary: the oldest of all.
func TestFeedback(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	primary.Exec("CREATE TABLE t AS SELECT generate_series(1, 10) n")
	r := startRelay(t, relay.Config{Upstream: primary.Conninfo(""), Slot: "rideau"})
	r.waitComplete(1, primary.LSN())
	s := primary.Standby(pgtest.Options{Name: "s", Settings: map[string]string{
		"hot_standby_feedback": "on", "wal_receiver_status_interval": "1s",
	}}, r.conninfo())
	s.Start()
	s.WaitLSN(primary.LSN())

	// A query on the standby that needs an old snapshot.
	conn, err := s.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT * FROM t"); err != nil {
		t.Fatal(err)
	}
	var snapshot string
	if err := tx.QueryRow(t.Context(), "SELECT txid_snapshot_xmin(txid_current_snapshot())::text").Scan(&snapshot); err != nil {
		t.Fatal(err)
	}
	primary.Exec("DELETE FROM t")
	primary.Exec("CREATE TABLE later ()")
	primary.WaitQuery(snapshot, "SELECT xmin::text FROM pg_replication_slots WHERE slot_name = 'rideau'")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgtest.Wait(t, "the primary to be let go", func() (bool, string) {
		xmin := primary.QueryValue("SELECT coalesce(xmin::text, '') FROM pg_replication_slots WHERE slot_name = 'rideau'")
		return xmin != snapshot, xmin
	})
	s.Set(map[string]string{"hot_standby_feedback": "off"})
	s.Reload()
	primary.WaitQuery("", "SELECT coalesce(xmin::text, '') FROM pg_replication_slots WHERE slot_name = 'rideau'")
}

// One standby that reads nothing costs the others nothing, and gets it all
// once it reads again.
func TestStuckStandby(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"synchronous_standby_names": "rideau"}})
	primary.Exec("SET synchronous_commit = local; CREATE TABLE t (n int, filler text)")
	r := startRelay(t, relay.Config{Upstream: primary.Conninfo(""), Slot: "rideau"})
	r.waitComplete(1, primary.LSN())
	stuck := primary.Standby(pgtest.Options{Name: "stuck"}, r.conninfo())
	quick := primary.Standby(pgtest.Options{Name: "quick"}, r.conninfo())
	stuck.Start()
	quick.Start()
	r.waitStandbys(2)
	stuck.Pause()
	// More than sockets and the relay's memory hold.
	primary.Exec("INSERT INTO t SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 40000) n")
	quick.WaitLSN(primary.LSN())
	stuck.Resume()
	stuck.WaitLSN(primary.LSN())
}

// Half-open connections, garbage and giants disturb nobody.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"synchronous_standby_names": "rideau"}})
	r := startRelay(t, relay.Config{Upstream: primary.Conninfo(""), Slot: "rideau"})
	primary.WaitQuery("sync", "SELECT sync_state FROM pg_stat_replication")

	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range 1000 {
		c, err := net.Dial("tcp", r.cfg.Listen[0])
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, c)
	}
	for _, garbage := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"\x7f\xff\xff\xff\x00\x03\x00\x00",
		"\x00\x00\x00\x04",
		"\x00\x00\x00\x08\x04\xd2\x16\x2f\x00\x00\x00\x09\x00\x03\x00\x00\x00",
		strings.Repeat("\x16\x03\x01", 5000),
	} {
		c, err := net.Dial("tcp", r.cfg.Listen[0])
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(garbage))
		c.Close()
	}
	primary.Exec("CREATE TABLE t ()") // waits for the relay
	for _, c := range conns {
		c.Close()
	}
	conns = nil
	out := pgtest.Run(t, 15, "psql", "-XAtc", "SHOW wal_segment_size", r.conninfo()+" replication=true")
	if strings.TrimSpace(out) != "16MB" {
		t.Errorf("after all that, the relay says %q", out)
	}
}

// A record that arrives damaged is refused before its end is acknowledged,
// with its place; once it arrives whole all goes on.
func TestCorruptWAL(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_compression": "off"}})
	primary.Exec("CREATE TABLE t (filler text)")
	flip := newFlipper(t, primary.Addr(), []byte("please damage this text"))
	r := startRelay(t, relay.Config{Upstream: flip.conninfo(), Slot: "rideau"})
	r.waitComplete(1, primary.LSN())
	before := primary.LSN()
	primary.Exec("INSERT INTO t VALUES ('please damage this text')")
	pgtest.Wait(t, "the relay to refuse the record", func() (bool, string) {
		return strings.Contains(r.log.String(), "incorrect") || strings.Contains(r.log.String(), "CRC"), r.log.String()
	})
	pos, _ := r.Position()
	if end := primary.LSN(); pos.Complete >= end {
		t.Errorf("the relay acknowledged %s, past the damaged record that ends at %s", pos.Complete, end)
	}
	if pos.Complete < before {
		t.Errorf("the relay went back to %s, before %s", pos.Complete, before)
	}
	flip.heal()
	r.waitComplete(1, primary.LSN())
}

// A flipper is a proxy that damages a text on its way from the server.
type flipper struct {
	l      net.Listener
	needle []byte
	healed chan struct{}
}

func newFlipper(t *testing.T, server string, needle []byte) *flipper {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &flipper{l, needle, make(chan struct{})}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", server)
			if err != nil {
				c.Close()
				continue
			}
			go func() { copyUntilClosed(s, c, nil); s.Close() }()
			go func() { copyUntilClosed(c, s, f.damage); c.Close() }()
		}
	}()
	return f
}

func (f *flipper) damage(p []byte) {
	select {
	case <-f.healed:
		return
	default:
	}
	if i := strings.Index(string(p), string(f.needle)); i >= 0 {
		p[i] ^= 1
	}
}

func (f *flipper) heal() { close(f.healed) }

func (f *flipper) conninfo() string {
	_, port, _ := net.SplitHostPort(f.l.Addr().String())
	return fmt.Sprintf("host=127.0.0.1 port=%s user=postgres sslmode=disable", port)
}

func copyUntilClosed(dst, src net.Conn, change func([]byte)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if change != nil {
			change(buf[:n])
		}
		if _, werr := dst.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// An upstream that falls silent without a word is given up, and found again.
func TestSilentUpstream(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	proxy := pgtest.NewProxy(t, primary.Addr())
	r := startRelay(t, relay.Config{Upstream: proxy.Conninfo(primary), Slot: "rideau", ReceiverTimeout: 3 * time.Second})
	r.waitComplete(1, primary.LSN())
	proxy.Freeze(pgtest.Both)
	pgtest.Wait(t, "the relay to give the silent server up", func() (bool, string) {
		st := r.Status().Upstream
		return st.State != "streaming", fmt.Sprintf("%+v", st)
	})
	proxy.Heal()
	primary.Exec("CREATE TABLE t ()")
	r.waitComplete(1, primary.LSN())
}

// Roles with a password, from outside the trusted addresses.
func TestAccess(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	verifier, err := pgrepl.NewVerifier("s3cret")
	if err != nil {
		t.Fatal(err)
	}
	access, err := pgrepl.ParseAccess("host replication standby 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 reject\n", map[string]string{"standby": verifier})
	if err != nil {
		t.Fatal(err)
	}
	r := startRelay(t, relay.Config{Upstream: primary.Conninfo(""), Access: access, ForwardSQL: true})
	r.waitComplete(1, primary.LSN())
	for _, tt := range []struct{ name, conninfo, want string }{
		{"the right password", "user=standby password=s3cret replication=true", ""},
		{"a wrong password", "user=standby password=guess replication=true", `password authentication failed for user "standby"`},
		{"a user without a rule", "user=mallory replication=true", "no pg_hba.conf entry for replication connection"},
		{"SQL that is rejected", "user=standby dbname=postgres", "pg_hba.conf rejects connection"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := pgtest.Command(t, 15, "psql", "-wXAtc", "SHOW wal_segment_size", fmt.Sprintf("host=127.0.0.1 port=%d %s", r.port(), tt.conninfo))
			out, err := cmd.CombinedOutput()
			if tt.want == "" && err != nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("got %v: %s, want %q", err, out, tt.want)
			}
		})
	}
}

// A slot that is no use: a logical one is the user's mistake, and is called so; one
// that the server has given up is a gap.
func TestSlotNoUse(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major, InitdbArgs: []string{"--wal-segsize=1"}, Settings: map[string]string{
				"wal_level": "logical", "max_slot_wal_keep_size": "2MB", "min_wal_size": "2MB", "max_wal_size": "2MB", "wal_keep_size": "0"}})
			s.Exec("SELECT pg_create_logical_replication_slot('decoding', 'pgoutput')")
			err := runOnce(t, relay.Config{Upstream: s.Conninfo(""), Slot: "decoding"})
			if err == nil || !strings.Contains(err.Error(), "logical") {
				t.Errorf("a new relay with a logical slot: %v", err)
			}
			var gap *relay.GapError
			if errors.As(err, &gap) {
				t.Errorf("a new relay takes a logical slot for one that was lost: %v", err)
			}

			r := startRelay(t, relay.Config{Upstream: s.Conninfo(""), Slot: "physical"})
			r.waitComplete(1, s.LSN())
			if err := r.halt(); err != nil {
				t.Fatal(err)
			}
			held := r.cfg
			held.Slot = "decoding"
			var slot *relay.SlotError
			if err := runOnce(t, held); !errors.As(err, &slot) {
				t.Errorf("one that holds WAL, with a logical slot: %v", err)
			}
			s.Exec("SELECT pg_drop_replication_slot('decoding')")
			for range 8 {
				s.Exec("SELECT pg_logical_emit_message(true, 'fill', repeat('x', 900000))")
				s.Exec("SELECT pg_switch_wal()")
			}
			s.Exec("CHECKPOINT")
			r.start()
			r.waitTrouble("no longer has")
		})
	}
}

// waitTrouble waits until the relay says why it does not receive.
func (r *testRelay) waitTrouble(text string) {
	r.t.Helper()
	pgtest.Wait(r.t, fmt.Sprintf("the relay to say %q", text), func() (bool, string) {
		up := r.Status().Upstream
		return strings.Contains(up.Error, text), fmt.Sprintf("%+v", up)
	})
}
