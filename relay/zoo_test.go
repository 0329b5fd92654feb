package relay_test

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"rideau/archive"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
	"rideau/relay"
	"rideau/wal"
)

// zooMajors are the versions on which promotions are most unlike each other:
// 13 is the oldest; 15 has recovery apart from the rest of xlog.c; 18 is the
// newest. What does not depend on the server's version runs on one.
var zooMajors = []int{13, 15, 18}

// zooOptions are a primary with small segments and little of its own to write,
// whose standbys look often.
func zooOptions(major int) pgtest.Options {
	return pgtest.Options{Major: major, InitdbArgs: []string{"--wal-segsize=1"}, Settings: map[string]string{
		"wal_keep_size":                "256MB",
		"wal_retrieve_retry_interval":  "100ms",
		"autovacuum":                   "off",
		"wal_writer_delay":             "10ms",
		"wal_receiver_status_interval": "1s",
	}}
}

// upstreams is the conninfo of several servers.
func upstreams(ports ...int) string {
	var hosts, list []string
	for _, p := range ports {
		hosts, list = append(hosts, "127.0.0.1"), append(list, fmt.Sprint(p))
	}
	return fmt.Sprintf("host=%s port=%s user=postgres sslmode=disable", strings.Join(hosts, ","), strings.Join(list, ","))
}

// relayAt is how standbys reach a relay that is not there yet.
func relayAt(port int) string { return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", port) }

const fingerprint = "SELECT count(*) || ' ' || coalesce(md5(string_agg(n || filler, ',' ORDER BY n)), '') FROM t"

// fill makes the table on its first call, and WAL on each.
func fill(s *pgtest.Server, rows int) {
	s.Exec("CREATE TABLE IF NOT EXISTS t (n serial, filler text)")
	s.Exec("INSERT INTO t (filler) SELECT md5(random()::text) FROM generate_series(1, $1::int)", rows)
}

// sameData waits until each standby has what the primary has.
func sameData(t *testing.T, primary *pgtest.Server, standbys ...*pgtest.Server) {
	t.Helper()
	want := primary.QueryValue(fingerprint)
	for _, s := range standbys {
		s.WaitLSN(primary.LSN())
		if got := s.QueryValue(fingerprint); got != want {
			t.Errorf("standby %s has %q, the primary %q", s, got, want)
		}
	}
}

// verify reads the relay's directory record by record: all of it must be good,
// without a hole, up to what the relay says that it has.
func verify(t *testing.T, dir string, pos relay.Position) {
	t.Helper()
	a := archive.New(archive.Dir(dir))
	inv, err := a.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	report := inv.Check(pos.TLI)
	if err := a.Verify(t.Context(), report, nil); err != nil {
		t.Fatal(err)
	}
	whole := report.Whole() || len(report.Ranges) == 0 && report.Partial != nil
	if !whole || len(report.Corrupt) > 0 || len(report.Damaged) > 0 || report.PathUnknown {
		t.Errorf("the archive is not whole: missing %v, corrupt %v, damaged %v, path unknown: %v",
			report.Missing, report.Corrupt, report.Damaged, report.PathUnknown)
	}
	if report.End < pos.Complete {
		t.Errorf("records in the archive end at %s, but the relay says %s", report.End, pos.Complete)
	}
}

// position is the relay's, which must have one.
func (r *testRelay) position() relay.Position {
	r.t.Helper()
	pos, ok := r.Position()
	if !ok {
		r.t.Fatal("the relay has no position")
	}
	return pos
}

// waitError waits until the relay says why it does not receive.
func (r *testRelay) waitError(contains string) {
	r.t.Helper()
	pgtest.Wait(r.t, fmt.Sprintf("the relay to say %q", contains), func() (bool, string) {
		st := r.Status().Upstream
		logged := strings.Contains(r.log.String(), strings.ReplaceAll(contains, `"`, `\"`))
		return strings.Contains(st.Error, contains) && logged, fmt.Sprintf("in its log: %v, in its status: %+v", logged, st)
	})
}

// path is the history of a timeline as the relay's directory has it.
func path(t *testing.T, dir string, tli wal.TLI) *wal.History {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, tli.HistoryName()))
	if err != nil {
		t.Fatal(err)
	}
	h, err := wal.ParseHistory(tli, string(text))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// contents answers the hash of each file of WAL in a directory.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for _, e := range entries {
		if !archive.IsWAL(strings.TrimSuffix(e.Name(), ".partial")) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		sums[e.Name()] = fmt.Sprintf("%x", sha256.Sum256(b))
	}
	return sums
}

// again makes a primary leave its timeline for the next without another
// server: it goes back into recovery and is promoted, as after a restore.
func again(t *testing.T, s *pgtest.Server) {
	t.Helper()
	s.Stop(pgserver.Fast)
	writeFor(t, s, "standby.signal", "")
	s.Start()
	s.Promote()
}

// writeFor writes a file in a server's directory, for it to read.
func writeFor(t *testing.T, s *pgtest.Server, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Where the old timeline ends in its segment: exactly between two segments,
// where there is no old part to copy; exactly between two pages, where the end
// of the last record is not where the next begins; and anywhere.
func TestSwitchPoints(t *testing.T) {
	for _, major := range zooMajors {
		for _, at := range []string{"segment boundary", "page boundary", "in a page"} {
			t.Run(fmt.Sprintf("%d/%s", major, at), func(t *testing.T) {
				t.Parallel()
				primary := pgtest.Start(t, zooOptions(major))
				port, aPort := pgtest.FreePort(t), pgtest.FreePort(t)
				r := startRelay(t, relay.Config{
					Upstream: upstreams(primary.Port, aPort), Slot: "rideau",
					Listen: []string{fmt.Sprintf("127.0.0.1:%d", port)},
				})
				r.waitComplete(1, primary.LSN()) // its slot is older than the base backups
				fill(primary, 1000)
				a := primary.Standby(pgtest.Options{Name: "a", Port: aPort}, relayAt(port))
				b := primary.Standby(pgtest.Options{Name: "b"}, relayAt(port))
				a.Start()
				b.Start()
				fill(primary, 20000) // more than a segment
				sameData(t, primary, a, b)

				var end wal.LSN
				switch at {
				case "segment boundary":
					primary.Exec("SELECT pg_switch_wal()")
					end = primary.LSN()
				case "page boundary":
					end = fillPage(t, primary)
				default:
					fill(primary, 1)
					end = primary.LSN()
				}
				r.waitComplete(1, end)
				a.WaitLSN(end)
				primary.Kill()
				a.Promote()
				fill(a, 100)
				r.waitComplete(2, a.LSN())
				sameData(t, a, b)

				fork := path(t, r.cfg.Dir, 2).Entries[0].End
				offset := wal.SegmentSize(1 << 20).Offset(fork)
				switch {
				case at == "segment boundary" && offset != 0,
					at == "page boundary" && (offset == 0 || offset%8192 != 0):
					t.Errorf("the timeline was left at %s, not at a %s", fork, at)
				}
				verify(t, r.cfg.Dir, r.position())
				// And from the archive alone, over the switch.
				fill(a, 20000)
				b.Restart()
				sameData(t, a, b)
				r.waitComplete(2, a.LSN())
				verify(t, r.cfg.Dir, r.position())
			})
		}
	}
}

// fillPage writes WAL up to exactly the end of a page, flushed, and answers
// where that is.
func fillPage(t *testing.T, s *pgtest.Server) (end wal.LSN) {
	t.Helper()
	const page = 8192
	position := func(f string) wal.LSN {
		lsn, err := wal.ParseLSN(s.QueryValue("SELECT " + f + "()"))
		if err != nil {
			t.Fatal(err)
		}
		return lsn
	}
	emit := func(n int) { s.Exec("SELECT pg_logical_emit_message(false, 'p', repeat('x', $1::int))", n) }
	pgtest.Wait(t, "a page to be filled", func() (bool, string) {
		// What a message needs beside its text, measured: short ones and long
		// ones differ in their headers, so a long one is measured.
		before := position("pg_current_wal_insert_lsn")
		if before%page > page/4 || before%(1<<20) < page {
			emit(1024)
			return false, ""
		}
		emit(1024)
		after := position("pg_current_wal_insert_lsn")
		overhead := int(after-before) - 1024
		left := page - int(after%page)
		emit(left - overhead)
		// The next record would begin behind the next page's header.
		at := position("pg_current_wal_insert_lsn")
		if at%page != 24 {
			return false, fmt.Sprintf("inserted up to %s", at)
		}
		end = at - 24
		pgtest.Wait(t, "the page to be flushed", func() (bool, string) {
			flushed := position("pg_current_wal_flush_lsn")
			return flushed >= end, fmt.Sprintf("%s of %s", flushed, end)
		})
		return position("pg_current_wal_insert_lsn") == at, "something else was written"
	})
	return end
}

// The server is promoted with the beginning of a record at the end of what it
// sent: it forks at the end of the last whole record, below what it sent. The
// relay, whose own server is that standby, hears of it in the stream.
func TestSwitchInsideRecordInStream(t *testing.T) {
	for _, major := range zooMajors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			primary := pgtest.Start(t, zooOptions(major))
			tap := newTap(t, primary.Addr())
			fill(primary, 1000)
			a := primary.Standby(pgtest.Options{Name: "a"}, tap.conninfo()+" gssencmode=disable")
			a.Start()
			a.WaitLSN(primary.LSN())
			r := startRelay(t, relay.Config{Upstream: a.Conninfo(""), Slot: "rideau"})
			b := primary.Standby(pgtest.Options{Name: "b"}, r.conninfo())
			b.Start()
			fill(primary, 1000)
			sameData(t, primary, a, b)
			before, cut := halfRecord(t, primary, tap)
			waitFlushed(t, r, cut)
			if pos := r.position(); pos.Complete >= cut || pos.Complete < before {
				t.Fatalf("the relay says that records end at %s; there is only half a record from %s to %s", pos.Complete, before, cut)
			}
			primary.Kill()
			a.Promote()
			fill(a, 1000)
			r.waitComplete(2, a.LSN())
			sameData(t, a, b)
			if fork := path(t, r.cfg.Dir, 2).Entries[0].End; fork >= cut {
				t.Errorf("the timeline was left at %s, not before %s", fork, cut)
			}
			verify(t, r.cfg.Dir, r.position())
		})
	}
}

// The same where the relay was fed by the primary that died, and comes to the
// standby that was promoted anew.
func TestSwitchInsideRecord(t *testing.T) {
	for _, major := range zooMajors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			primary := pgtest.Start(t, zooOptions(major))
			tap := newTap(t, primary.Addr())
			port, aPort := pgtest.FreePort(t), pgtest.FreePort(t)
			r := startRelay(t, relay.Config{
				Upstream: upstreams(tap.port(), aPort), Slot: "rideau",
				Listen: []string{fmt.Sprintf("127.0.0.1:%d", port)},
			})
			fill(primary, 1000)
			a := primary.Standby(pgtest.Options{Name: "a", Port: aPort}, relayAt(port))
			b := primary.Standby(pgtest.Options{Name: "b"}, relayAt(port))
			a.Start()
			b.Start()
			fill(primary, 1000)
			sameData(t, primary, a, b)
			_, cut := halfRecord(t, primary, tap)
			waitFlushed(t, r, cut)
			received := "SELECT (pg_last_wal_receive_lsn() >= $1::pg_lsn)::text"
			a.WaitQuery("true", received, cut.String())
			b.WaitQuery("true", received, cut.String())
			primary.Kill()
			a.Promote()
			fill(a, 1000)
			r.waitComplete(2, a.LSN())
			sameData(t, a, b)
			if fork := path(t, r.cfg.Dir, 2).Entries[0].End; fork >= cut {
				t.Errorf("the timeline was left at %s, not before %s", fork, cut)
			}
			verify(t, r.cfg.Dir, r.position())
		})
	}
}

// halfRecord makes the primary write one large record, of which the tap lets
// half through. It answers where the record is and up to where it came.
func halfRecord(t *testing.T, primary *pgtest.Server, tap *tap) (begins, cut wal.LSN) {
	t.Helper()
	begins = primary.LSN()
	// Over a few pages of 8 kB, and ending inside one.
	cut = begins + 30_000
	tap.stopAt(cut)
	primary.Exec("SELECT pg_logical_emit_message(true, 'half', repeat('x', 100000))")
	return begins, cut
}

// waitFlushed waits until the relay has all bytes below lsn, records or not.
func waitFlushed(t *testing.T, r *testRelay, lsn wal.LSN) {
	t.Helper()
	pgtest.Wait(t, fmt.Sprintf("the relay to have flushed %s", lsn), func() (bool, string) {
		pos, _ := r.Position()
		return pos.Flushed >= lsn, fmt.Sprintf("%+v, upstream %+v", pos, r.Status().Upstream)
	})
}

// The primary dies while it writes a record over many segments, of which it
// has sent some, and comes back: it writes on where the last whole segment
// ended, and says that the record was overwritten.
func TestCrashInsideRecord(t *testing.T) {
	for _, major := range zooMajors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			primary := pgtest.Start(t, zooOptions(major))
			r := startRelay(t, relay.Config{Upstream: primary.Conninfo(""), Slot: "rideau"})
			fill(primary, 1000)
			b := primary.Standby(pgtest.Options{Name: "b"}, r.conninfo())
			b.Start()
			fill(primary, 1000)
			sameData(t, primary, b)

			before := primary.LSN()
			crashed := make(chan struct{})
			go func() {
				defer close(crashed)
				// Fails when the server dies.
				primary.Server.Query(t.Context(), "SELECT pg_logical_emit_message(false, 'long', repeat('x', 100000000))")
			}()
			waitFlushed(t, r, before+3<<20)
			primary.Kill()
			<-crashed
			if pos := r.position(); pos.Complete > before+1<<20 {
				t.Fatalf("the record was whole before the server died: %+v", pos)
			}
			primary.Start()
			fill(primary, 1000)
			r.waitComplete(1, primary.LSN())
			sameData(t, primary, b)
			verify(t, r.cfg.Dir, r.position())
		})
	}
}

// Two promotions within one segment, each of a standby that only the relay
// feeds: the segment exists three times, and standbys follow both.
func TestTwoSwitchesInOneSegment(t *testing.T) {
	for _, major := range zooMajors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			o := zooOptions(major)
			o.InitdbArgs = nil // 16 MB
			primary := pgtest.Start(t, o)
			port, aPort, bPort := pgtest.FreePort(t), pgtest.FreePort(t), pgtest.FreePort(t)
			r := startRelay(t, relay.Config{
				Upstream: upstreams(primary.Port, aPort, bPort), Slot: "rideau",
				Listen: []string{fmt.Sprintf("127.0.0.1:%d", port)},
			})
			fill(primary, 1000)
			a := primary.Standby(pgtest.Options{Name: "a", Port: aPort}, relayAt(port))
			b := primary.Standby(pgtest.Options{Name: "b", Port: bPort}, relayAt(port))
			c := primary.Standby(pgtest.Options{Name: "c"}, relayAt(port))
			a.Start()
			b.Start()
			c.Start()
			fill(primary, 100)
			sameData(t, primary, a, b, c)
			primary.Kill()
			a.Promote()
			fill(a, 100)
			sameData(t, a, b, c)
			a.Kill()
			b.Promote()
			fill(b, 100)
			r.waitComplete(3, b.LSN())
			sameData(t, b, c)

			h := path(t, r.cfg.Dir, 3)
			size := wal.SegmentSize(16 << 20)
			first, second := h.Entries[0].End, h.Entries[1].End
			if size.Start(first) != size.Start(second) || first == second {
				t.Fatalf("the timelines were left at %s and %s, not in one segment", first, second)
			}
			for tli, suffix := range map[wal.TLI]string{1: ".partial", 2: ".partial", 3: ".partial"} {
				if _, err := os.Stat(filepath.Join(r.cfg.Dir, size.FileName(tli, first)+suffix)); err != nil {
					t.Error(err)
				}
			}
			verify(t, r.cfg.Dir, r.position())
			// A standby of before all that finds its way through them.
			c.Restart()
			fill(b, 100)
			sameData(t, b, c)
		})
	}
}

// The relay is away during two promotions, and the server has lost the history
// file between: the relay finds its way through both by the newest, and a
// standby that asks for the missing file gets what it said.
func TestAwayDuringTwoPromotions(t *testing.T) {
	for _, major := range zooMajors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			primary := pgtest.Start(t, zooOptions(major))
			r := startRelay(t, relay.Config{Upstream: primary.Conninfo(""), Slot: "rideau"})
			fill(primary, 1000)
			b := primary.Standby(pgtest.Options{Name: "b"}, r.conninfo())
			b.Start()
			sameData(t, primary, b)
			if err := r.halt(); err != nil {
				t.Fatal(err)
			}
			fill(primary, 20000)
			again(t, primary)
			fill(primary, 20000)
			said, err := os.ReadFile(filepath.Join(primary.Dir, "pg_wal/00000002.history"))
			if err != nil {
				t.Fatal(err)
			}
			again(t, primary)
			fill(primary, 100)
			if err := os.Remove(filepath.Join(primary.Dir, "pg_wal/00000002.history")); err != nil {
				t.Fatal(err)
			}

			r.start()
			r.waitComplete(3, primary.LSN())
			sameData(t, primary, b)
			got, err := os.ReadFile(filepath.Join(b.Dir, "pg_wal/00000002.history"))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(said) {
				t.Errorf("the standby was told that the history of timeline 2 is %q; it was %q", got, said)
			}
			verify(t, r.cfg.Dir, r.position())
			// What happened on the way is served again to who comes later.
			if err := r.halt(); err != nil {
				t.Fatal(err)
			}
			r.start()
			fill(primary, 100)
			sameData(t, primary, b)
		})
	}
}

// Timeline 2 was a promotion that came to nothing: the next is 3, its parent
// 1, and nobody has a history of 2. A standby asks for it all the same.
func TestSkippedTimeline(t *testing.T) {
	for _, major := range zooMajors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			primary := pgtest.Start(t, zooOptions(major))
			port, aPort := pgtest.FreePort(t), pgtest.FreePort(t)
			r := startRelay(t, relay.Config{
				Upstream: upstreams(primary.Port, aPort), Slot: "rideau",
				Listen: []string{fmt.Sprintf("127.0.0.1:%d", port)},
			})
			fill(primary, 1000)
			a := primary.Standby(pgtest.Options{Name: "a", Port: aPort}, relayAt(port))
			b := primary.Standby(pgtest.Options{Name: "b"}, relayAt(port))
			a.Start()
			b.Start()
			fill(primary, 1000)
			sameData(t, primary, a, b)
			primary.Kill()
			// The number is taken when a looks for a free one.
			writeFor(t, a, "pg_wal/00000002.history", "# taken\n")
			a.Promote()
			if err := os.Remove(filepath.Join(a.Dir, "pg_wal/00000002.history")); err != nil {
				t.Fatal(err)
			}
			fill(a, 1000)
			r.waitComplete(3, a.LSN())
			sameData(t, a, b)
			if h := path(t, r.cfg.Dir, 3); len(h.Entries) != 1 || h.Entries[0].TLI != 1 {
				t.Fatalf("timeline 3 came by %+v, not from 1", h.Entries)
			}
			// The file that stands for what nobody knows does no harm later.
			b.Restart()
			fill(a, 1000)
			sameData(t, a, b)
			b.Promote()
			if got := b.QueryValue("SELECT timeline_id FROM pg_control_checkpoint()"); got == "2" {
				t.Errorf("the standby was promoted to timeline %s, which was gone by", got)
			}
			verify(t, r.cfg.Dir, r.position())
		})
	}
}

// The relay begins on a primary that has been promoted twice.
func TestBeginOnTimeline3(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, zooOptions(17))
	fill(primary, 100)
	again(t, primary)
	again(t, primary)
	r := startRelay(t, relay.Config{Upstream: primary.Conninfo(""), Slot: "rideau"})
	b := primary.Standby(pgtest.Options{Name: "b"}, r.conninfo())
	b.Start()
	fill(primary, 100)
	r.waitComplete(3, primary.LSN())
	sameData(t, primary, b)
	for _, tli := range []wal.TLI{2, 3} {
		path(t, r.cfg.Dir, tli)
	}
	verify(t, r.cfg.Dir, r.position())
}

// A standby was promoted that had not got all that the relay has, and may have
// acknowledged. The relay refuses it, touches nothing, and serves on.
func TestDiverged(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, zooOptions(16))
	lag := pgtest.NewProxy(t, primary.Addr())
	aPort := pgtest.FreePort(t)
	r := startRelay(t, relay.Config{Upstream: upstreams(primary.Port, aPort), Slot: "rideau"})
	fill(primary, 1000)
	a := primary.Standby(pgtest.Options{Name: "a", Port: aPort}, lag.Conninfo(primary))
	b := primary.Standby(pgtest.Options{Name: "b"}, r.conninfo())
	a.Start()
	b.Start()
	sameData(t, primary, a, b)
	lag.Freeze(pgtest.Both)
	fill(primary, 1000)
	sameData(t, primary, b)
	want := primary.QueryValue(fingerprint)
	end := primary.LSN()
	r.waitComplete(1, end)
	primary.Kill()
	before, files := r.position(), contents(t, r.cfg.Dir)
	a.Promote()
	fill(a, 5000)

	r.waitError(fmt.Sprintf("timeline 2 of server \"127.0.0.1:%d\" forked at ", a.Port))
	if got := r.position(); got != before {
		t.Errorf("the relay was at %+v and is at %+v", before, got)
	}
	after := contents(t, r.cfg.Dir)
	for name, sum := range files {
		if after[name] != sum {
			t.Errorf("%s was changed", name)
		}
	}
	if len(after) != len(files) {
		t.Errorf("there were %d files and are %d", len(files), len(after))
	}
	// Who comes for what it has is served: b, with its WAL taken away.
	b.Restart()
	r.waitStandbys(1)
	if got := b.QueryValue(fingerprint); got != want {
		t.Errorf("the standby has %q, the primary had %q", got, want)
	}
	// So it is after a restart, while the other server is all there is.
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.waitError("forked at ")
	r.waitStandbys(1)
	if got := r.position(); got.TLI != 1 || got.Complete != before.Complete {
		t.Errorf("the relay was at %+v and is at %+v", before, got)
	}
	// The primary that has it all comes back, and is followed.
	primary.Start()
	fill(primary, 100)
	sameData(t, primary, b)
	verify(t, r.cfg.Dir, r.position())
}

// The old primary comes back after the relay has followed another: it is not
// taken, even when it is the only one that answers.
func TestOldPrimaryReturns(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, zooOptions(14))
	port, aPort := pgtest.FreePort(t), pgtest.FreePort(t)
	r := startRelay(t, relay.Config{
		Upstream: upstreams(primary.Port, aPort), Slot: "rideau",
		Listen: []string{fmt.Sprintf("127.0.0.1:%d", port)},
	})
	fill(primary, 1000)
	a := primary.Standby(pgtest.Options{Name: "a", Port: aPort}, relayAt(port))
	a.Start()
	sameData(t, primary, a)
	primary.Kill()
	a.Promote()
	fill(a, 100)
	r.waitComplete(2, a.LSN())

	// It goes on alone, further than the relay is.
	primary.Start()
	fill(primary, 20000)
	fill(a, 100)
	r.waitComplete(2, a.LSN())
	a.Stop(pgserver.Fast)
	r.waitError("behind this relay, which has ")
	before := r.position()
	if before.TLI != 2 {
		t.Errorf("the relay is on timeline %d", before.TLI)
	}
	a.Start()
	fill(a, 100)
	r.waitComplete(2, a.LSN())
	verify(t, r.cfg.Dir, r.position())
}

// Two standbys were promoted, both to timeline 2. The relay has followed one;
// the other is not taken, wherever it is in the list, and alone neither.
func TestTwoTimelines2(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, zooOptions(18))
	port, aPort, bPort := pgtest.FreePort(t), pgtest.FreePort(t), pgtest.FreePort(t)
	r := startRelay(t, relay.Config{
		Upstream: upstreams(bPort, aPort, primary.Port), Slot: "rideau",
		Listen: []string{fmt.Sprintf("127.0.0.1:%d", port)},
	})
	fill(primary, 1000)
	a := primary.Standby(pgtest.Options{Name: "a", Port: aPort}, relayAt(port))
	b := primary.Standby(pgtest.Options{Name: "b", Port: bPort}, primary.Conninfo(""))
	a.Start()
	b.Start()
	sameData(t, primary, a, b)
	// b is promoted further on than a: its history is another.
	a.Set(map[string]string{"primary_conninfo": "host=127.0.0.1 port=1"})
	a.Restart()
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	fill(primary, 100)
	sameData(t, primary, b)
	primary.Kill()
	a.Promote()
	r.start()
	fill(a, 1000)
	r.waitComplete(2, a.LSN())
	b.Promote()
	fill(b, 5000)
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.start()
	fill(a, 100)
	r.waitComplete(2, a.LSN())
	a.Stop(pgserver.Fast)
	r.waitError("the history of timeline 2 on server ")
	again(t, b) // now on 3, by way of the wrong 2
	fill(b, 5000)
	r.waitError("the history of timeline 2 on server ")
	a.Start()
	fill(a, 100)
	r.waitComplete(2, a.LSN())
	verify(t, r.cfg.Dir, r.position())
}

// The relay is killed while it receives the new timeline's copy of the segment
// in which that began: what it has published does not go back, and the copy
// that was begun does not count. The server has no history file of that
// timeline, only of the next.
func TestKilledBeforeTheSwitchPoint(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, zooOptions(15))
	fill(primary, 100)
	tap := newTap(t, primary.Addr())
	r := startChild(t, tap.conninfo())
	wait := func(what string, tli wal.TLI, done func(relay.Status) bool) (st relay.Status) {
		t.Helper()
		pgtest.Wait(t, "the relay "+what, func() (ok bool, _ string) {
			st, ok = r.status()
			return ok && st.Position.TLI == tli && done(st), fmt.Sprintf("%+v", st)
		})
		return st
	}
	reached := func(lsn wal.LSN) func(relay.Status) bool {
		return func(st relay.Status) bool { return st.Position.Complete >= lsn }
	}
	wait("to begin", 1, func(relay.Status) bool { return true })
	b := primary.Standby(pgtest.Options{Name: "b"}, r.conninfo())
	b.Start()
	fill(primary, 20000)
	primary.Exec("SELECT pg_switch_wal()")
	fill(primary, 3000)
	sameData(t, primary, b)
	// The relay sees nothing of this before the tap is where it is to be.
	tap.keepOut(true)
	again(t, primary)
	fork := path(t, filepath.Join(primary.Dir, "pg_wal"), 2).Entries[0].End
	size := wal.SegmentSize(1 << 20)
	if size.Offset(fork) < 200_000 {
		t.Fatalf("the timeline was left at %s, too early in its segment for this test", fork)
	}
	again(t, primary)
	if err := os.Remove(filepath.Join(primary.Dir, "pg_wal/00000002.history")); err != nil {
		t.Fatal(err)
	}
	// The copy of timeline 2 comes up to here.
	half := size.Start(fork) + 100_000
	tap.stopTimeline(2, half)
	tap.keepOut(false)
	fill(primary, 10)
	st := wait("to have half of the copy on disk, and not to count it", 1, func(st relay.Status) bool {
		return st.Position.Complete == fork && st.Upstream.TLI == 2 && st.Upstream.State == "streaming" && st.Reported > size.Start(fork)
	})
	published := st.Position
	r.kill()
	r.start()
	st = wait("to come back", 1, func(relay.Status) bool { return true })
	if st.Position.Complete != published.Complete {
		t.Errorf("the relay had published %+v, and after its death %+v", published, st.Position)
	}
	b.WaitQuery("streaming", "SELECT status FROM pg_stat_wal_receiver")
	tap.stopAt(0)
	// The same with a connection that breaks, rather than the relay.
	wait("to follow", 3, reached(primary.LSN()))
	sameData(t, primary, b)
	st, _ = r.status()
	verify(t, r.c.Dir, st.Position)
}

// The server is lost in the middle of the copy of that segment, and the one
// that is promoted in its place did not come by its timeline: all that the
// relay had of that was copied from before.
func TestLostBeforeTheSwitchPoint(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, zooOptions(15))
	aPort, bPort := pgtest.FreePort(t), pgtest.FreePort(t)
	tap := newTap(t, fmt.Sprintf("127.0.0.1:%d", aPort))
	port := pgtest.FreePort(t)
	r := startRelay(t, relay.Config{
		Upstream: upstreams(primary.Port, tap.port(), bPort), Slot: "rideau",
		Listen: []string{fmt.Sprintf("127.0.0.1:%d", port)},
	})
	fill(primary, 1000)
	a := primary.Standby(pgtest.Options{Name: "a", Port: aPort}, relayAt(port))
	b := primary.Standby(pgtest.Options{Name: "b", Port: bPort}, relayAt(port))
	c := primary.Standby(pgtest.Options{Name: "c"}, relayAt(port))
	a.Start()
	b.Start()
	c.Start()
	primary.Exec("SELECT pg_switch_wal()")
	fill(primary, 2000)
	sameData(t, primary, a, b, c)
	size := wal.SegmentSize(1 << 20)
	half := size.Start(primary.LSN()) + 100_000
	if half > primary.LSN() {
		t.Fatal("too early in the segment for this test")
	}
	tap.stopTimeline(2, half)
	primary.Kill()
	a.Promote()
	pgtest.Wait(t, "the relay to have half of the copy", func() (bool, string) {
		st := r.Status()
		return st.Upstream.TLI == 2 && st.Reported > size.Start(half) && st.Reported <= half, fmt.Sprintf("%+v", st)
	})
	before := r.position()
	a.Kill()
	// b knows that the number is taken, but not by whom.
	writeFor(t, b, "pg_wal/00000002.history", "# taken\n")
	b.Promote()
	fill(b, 100)
	r.waitComplete(3, b.LSN())
	sameData(t, b, c)
	if before.TLI != 1 {
		t.Errorf("the relay published %+v in the middle of the copy", before)
	}
	verify(t, r.cfg.Dir, r.position())
}

// While the primary is down the relay does not take WAL from a standby of its
// own list: that waits for the relay. The primary that comes back is followed.
func TestPrimaryReturns(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, zooOptions(17))
	port, aPort := pgtest.FreePort(t), pgtest.FreePort(t)
	r := startRelay(t, relay.Config{
		Upstream: upstreams(primary.Port, aPort), Slot: "rideau",
		Listen: []string{fmt.Sprintf("127.0.0.1:%d", port)},
	})
	fill(primary, 100)
	a := primary.Standby(pgtest.Options{Name: "a", Port: aPort}, relayAt(port))
	a.Start()
	sameData(t, primary, a)
	primary.Kill()
	r.waitError("none of the 2 servers is a primary")
	primary.Start()
	fill(primary, 100)
	r.waitComplete(1, primary.LSN())
	sameData(t, primary, a)
}

// A connection that breaks while the relay asks who the server is, is broken
// and no more.
func TestCutWhileAsking(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, zooOptions(15))
	again(t, primary) // so that there is a history
	for _, word := range []string{"IDENTIFY_SYSTEM", "SHOW wal_segment_size", "SHOW max_wal_senders", "TIMELINE_HISTORY", "CREATE_REPLICATION_SLOT", "START_REPLICATION"} {
		t.Run(word, func(t *testing.T) {
			tap := newTap(t, primary.Addr())
			r := startRelay(t, relay.Config{Upstream: tap.conninfo(), Slot: "rideau"})
			fill(primary, 10)
			r.waitComplete(2, primary.LSN())
			cuts := make(chan struct{}, 3)
			tap.mu.Lock()
			tap.onText = func(text string) bool {
				if strings.HasPrefix(text, word) {
					select {
					case cuts <- struct{}{}:
						return true
					default:
					}
				}
				return false
			}
			for c := range tap.conns {
				c.Close()
			}
			tap.mu.Unlock()
			fill(primary, 10)
			r.waitComplete(2, primary.LSN())
			if len(cuts) == 0 {
				t.Errorf("the relay did not say %s", word)
			}
		})
	}
}

// The very first WAL that a relay gets is damaged on its way. It is refused,
// and taken when it comes whole.
func TestCorruptFromTheFirst(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, zooOptions(15))
	tap := newTap(t, primary.Addr())
	var once sync.Once
	tap.change = func(_ wal.LSN, p []byte) { once.Do(func() { p[0] ^= 0xff }) }
	r := startRelay(t, relay.Config{Upstream: tap.conninfo(), Slot: "rideau"})
	fill(primary, 100)
	r.waitComplete(1, primary.LSN())
	if !strings.Contains(r.log.String(), "could not receive WAL") {
		t.Errorf("nothing was refused:\n%s", r.log)
	}
	verify(t, r.cfg.Dir, r.position())
}

// A tap stands between a server and those who receive WAL from it, and
// understands what passes: so it can cut WAL at a given byte, wherever
// messages begin and end.
type tap struct {
	t      *testing.T
	l      net.Listener
	server string
	wg     sync.WaitGroup

	mu     sync.Mutex
	stop   wal.LSN // let nothing through from here on; zero: all
	tli    wal.TLI // only of streams of this timeline; zero: any
	conns  map[net.Conn]bool
	onText func(command string) (cut bool)
	change func(start wal.LSN, p []byte)
	closed bool
}

func newTap(t *testing.T, server string) *tap {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{t: t, l: l, server: server, conns: map[net.Conn]bool{}}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		p.closed = true
		for c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *tap) port() int { return p.l.Addr().(*net.TCPAddr).Port }

func (p *tap) conninfo() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=postgres sslmode=disable", p.port())
}

// stopAt cuts WAL at a byte; connections stay, and wait.
func (p *tap) stopAt(lsn wal.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop = lsn
}

// stopTimeline cuts only streams of a timeline.
func (p *tap) stopTimeline(tli wal.TLI, lsn wal.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop, p.tli = lsn, tli
}

// keepOut cuts whoever says anything.
func (p *tap) keepOut(out bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onText = nil
	if out {
		p.onText = func(string) bool { return true }
	}
}

func (p *tap) own(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *tap) disown(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *tap) serve(client net.Conn) {
	if !p.own(client) {
		return
	}
	defer p.disown(client)
	server, err := net.Dial("tcp", p.server)
	if err != nil || !p.own(server) {
		return
	}
	defer p.disown(server)
	var tli struct {
		sync.Mutex
		wal.TLI
	}
	up := make(chan struct{})
	go func() {
		defer close(up)
		defer server.Close()
		defer client.Close()
		// The startup packet has no tag.
		head := make([]byte, 4)
		if _, err := io.ReadFull(client, head); err != nil {
			return
		}
		if _, err := server.Write(head); err != nil {
			return
		}
		if _, err := io.CopyN(server, client, int64(binary.BigEndian.Uint32(head))-4); err != nil {
			return
		}
		for {
			tag, body, err := readMessage(client)
			if err != nil {
				return
			}
			if tag == 'Q' {
				text := strings.TrimRight(string(body), "\x00")
				if _, after, ok := strings.Cut(text, "TIMELINE "); ok && strings.HasPrefix(text, "START_REPLICATION") {
					tli.Lock()
					fmt.Sscan(after, &tli.TLI)
					tli.Unlock()
				}
				p.mu.Lock()
				onText := p.onText
				p.mu.Unlock()
				if onText != nil && onText(text) {
					return
				}
			}
			if writeMessage(server, tag, body) != nil {
				return
			}
		}
	}()
	for {
		tag, body, err := readMessage(server)
		if err != nil {
			break
		}
		if tag == 'd' && len(body) > 0 && (body[0] == 'w' || body[0] == 'k') {
			tli.Lock()
			now := tli.TLI
			tli.Unlock()
			p.mu.Lock()
			stop, change := p.stop, p.change
			if p.tli != 0 && p.tli != now {
				stop = 0
			}
			p.mu.Unlock()
			if body[0] == 'w' {
				start := wal.LSN(binary.BigEndian.Uint64(body[1:]))
				if change != nil {
					change(start, body[25:])
				}
				if stop != 0 && start >= stop {
					continue
				}
				if stop != 0 && start+wal.LSN(len(body)-25) > stop {
					body = body[:25+int(stop-start)]
				}
			}
		}
		if writeMessage(client, tag, body) != nil {
			break
		}
	}
	client.Close()
	server.Close()
	<-up
}

func readMessage(r io.Reader) (tag byte, body []byte, err error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(r, head); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint32(head[1:])) - 4
	if n < 0 {
		return 0, nil, errors.New("invalid length")
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return head[0], body, err
}

func writeMessage(w io.Writer, tag byte, body []byte) error {
	msg := binary.BigEndian.AppendUint32([]byte{tag}, uint32(4+len(body)))
	_, err := w.Write(append(msg, body...))
	return err
}
