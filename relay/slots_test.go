package relay_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rideau/archive"
	"rideau/internal/pgtest"
	"rideau/pgrepl"
	"rideau/relay"
	"rideau/wal"
)

// connect opens a replication connection to the relay, as a standby would.
func (r *testRelay) connect(t *testing.T, name string) *pgrepl.Conn {
	t.Helper()
	targets, err := pgrepl.Targets(r.conninfo(), name)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := targets[0].Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// A receiver that asks for WAL which is not there yet is kept waiting, and gets
// it from exactly where it asked.
func TestStartAhead(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{InitdbArgs: []string{"--wal-segsize=1"}})
	r := startRelay(t, relay.Config{Upstream: primary.Conninfo(""), SenderTimeout: 2 * time.Second})
	r.waitComplete(1, primary.LSN())
	pos, _ := r.Position()
	ahead := wal.SegmentSize(1<<20).Next(pos.Flushed) + 1<<20

	conn := r.connect(t, "ahead")
	if err := conn.StartReplication(t.Context(), "", 1, ahead); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(pgtest.Patience))
	in, err := conn.Next(1)
	if err != nil || in.Len != 0 || !in.ReplyRequested {
		t.Fatalf("got %+v, %v, want a keepalive", in, err)
	}
	alive := func() {
		if err := conn.SendStatus(pgrepl.Status{Write: ahead, Flush: ahead, Time: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	// Segment for segment, past where the receiver waits.
	for primary.LSN() <= ahead {
		alive()
		primary.Exec("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 300000))")
	}
	for in.Len == 0 {
		alive()
		if in, err = conn.Next(1); err != nil {
			t.Fatal(err)
		}
	}
	if in.Start != ahead {
		t.Errorf("WAL begins at %s, want %s", in.Start, ahead)
	}
}

// Slots survive a restart of the relay; temporary ones go with their
// connection; a slot in use is not given to a second receiver.
func TestSlots(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	r := startRelay(t, relay.Config{Upstream: primary.Conninfo("")})
	r.waitComplete(1, primary.LSN())
	pos, _ := r.Position()

	conn := r.connect(t, "one")
	if err := conn.CreateSlot(t.Context(), "kept"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CreateSlot(t.Context(), "kept"); err == nil || !strings.Contains(err.Error(), `replication slot "kept" already exists (SQLSTATE 42710)`) {
		t.Errorf("the same name twice: %v", err)
	}
	if err := conn.CreateSlot(t.Context(), "No Good"); err == nil || !strings.Contains(err.Error(), "42602") {
		t.Errorf("a bad name: %v", err)
	}
	start := wal.SegmentSize(16 << 20).Start(pos.Flushed)
	if err := conn.StartReplication(t.Context(), "kept", 1, start); err != nil {
		t.Fatal(err)
	}
	if err := conn.SendStatus(pgrepl.Status{Write: pos.Flushed, Flush: pos.Flushed, Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	pgtest.Wait(t, "the slot to move", func() (bool, string) {
		s := r.Status().Slots
		return len(s) == 1 && s[0].Active && s[0].Restart == pos.Flushed, fmt.Sprintf("%+v", s)
	})
	two := r.connect(t, "two")
	if err := two.StartReplication(t.Context(), "kept", 1, start); err == nil || !strings.Contains(err.Error(), `replication slot "kept" is active for PID`) {
		t.Errorf("a slot that is in use: %v", err)
	}
	if err := two.StartReplication(t.Context(), "none", 1, start); err == nil || !strings.Contains(err.Error(), `replication slot "none" does not exist (SQLSTATE 42704)`) {
		t.Errorf("a slot that is not there: %v", err)
	}
	if err := two.DropSlot(t.Context(), "kept"); err == nil || !strings.Contains(err.Error(), "55006") {
		t.Errorf("drop of a slot that is in use: %v", err)
	}
	conn.Close()
	two.Close()
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.start()
	three := r.connect(t, "three")
	slot, err := three.ReadSlot(t.Context(), "kept")
	if err != nil || slot == nil || slot.Restart != pos.Flushed || slot.RestartTLI != 1 {
		t.Errorf("after a restart the slot is %+v, %v, want %s on timeline 1", slot, err, pos.Flushed)
	}
	if slot, err := three.ReadSlot(t.Context(), "none"); slot != nil || err != nil {
		t.Errorf("a slot that is not there: %+v, %v", slot, err)
	}
	if err := three.DropSlot(t.Context(), "kept"); err != nil {
		t.Error(err)
	}
	if n := len(r.Status().Slots); n != 0 {
		t.Errorf("%d slots are left", n)
	}
}

// Within the budget nothing goes that a slot needs; beyond it the oldest goes,
// and the log names who lost it. A receiver that comes too late is told.
func TestKeep(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{InitdbArgs: []string{"--wal-segsize=1"}})
	r := startRelay(t, relay.Config{Upstream: primary.Conninfo(""), Slot: "rideau", Keep: archive.Keep{Size: 4 << 20}})
	r.waitComplete(1, primary.LSN())
	conn := r.connect(t, "lagging")
	if err := conn.CreateSlot(t.Context(), "lagging"); err != nil {
		t.Fatal(err)
	}
	pos, _ := r.Position()
	start := wal.SegmentSize(1 << 20).Start(pos.Flushed)
	for range 12 {
		primary.Exec("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 700000))")
	}
	r.waitComplete(1, primary.LSN())
	pgtest.Wait(t, "old WAL to go", func() (bool, string) {
		files, _ := filepath.Glob(filepath.Join(r.cfg.Dir, "0*"))
		return len(files) <= 5, strings.Join(files, " ")
	})
	if log := r.log.String(); !strings.Contains(log, `needed_by="slot \"lagging\""`) {
		t.Error("the log does not name the slot that lost WAL")
	}
	err := conn.StartReplication(context.Background(), "lagging", 1, start)
	if err == nil || !strings.Contains(err.Error(), "requested WAL segment "+wal.SegmentSize(1<<20).FileName(1, start)+" has already been removed (SQLSTATE 58P01)") {
		t.Errorf("WAL that is gone: %v", err)
	}
	// What is left is whole, and the newest.
	pos, _ = r.Position()
	if err := conn.StartReplication(t.Context(), "", 1, wal.SegmentSize(1<<20).Start(pos.Flushed)); err != nil {
		t.Error(err)
	}
}

// A receiver that answers but never confirms does not keep the relay from
// stopping for longer than the timeout.
func TestStopIsBounded(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	r := startRelay(t, relay.Config{Upstream: primary.Conninfo(""), SenderTimeout: 2 * time.Second})
	r.waitComplete(1, primary.LSN())
	pos, _ := r.Position()
	conn := r.connect(t, "evasive")
	start := wal.SegmentSize(16 << 20).Start(pos.Flushed)
	if err := conn.StartReplication(t.Context(), "", 1, start); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, pgrepl.MaxWALMessage)
		for {
			in, err := conn.Next(1)
			if err != nil || conn.ReadWAL(buf[:in.Len]) != nil {
				return
			}
			conn.SendStatus(pgrepl.Status{Write: start, Flush: start, Time: time.Now()})
		}
	}()
	r.waitStandbys(1)
	if err := r.halt(); err != nil {
		t.Error(err)
	}
	<-done
	r.start()
}
