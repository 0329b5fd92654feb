package relay_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"rideau/archive"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
	"rideau/relay"
	"rideau/wal"
)

// receivewal starts pg_receivewal, which flushes and reports as it writes.
func receivewal(t *testing.T, major int, conninfo, name, dir string, args ...string) *pgtest.Process {
	t.Helper()
	return pgtest.Go(t, major, "pg_receivewal", append([]string{
		"-d", conninfo + " application_name=" + name, "-D", dir, "--synchronous", "--verbose"}, args...)...)
}

// waitReceiver waits until a server knows that a receiver has flushed lsn.
func waitReceiver(s *pgtest.Server, name string, lsn wal.LSN) {
	s.WaitQuery("true", "SELECT coalesce(max(flush_lsn) >= $2::pg_lsn, false)::text FROM pg_stat_replication WHERE application_name = $1", name, lsn.String())
}

// stopReceiver ends it as a service manager would.
func stopReceiver(t *testing.T, p *pgtest.Process) {
	t.Helper()
	if err := p.Stop(syscall.SIGINT); err != nil {
		t.Errorf("pg_receivewal: %v\n%s", err, p.Output())
	}
}

// walFiles lists a directory's WAL: segments from the one at first on, whole
// and partial, and history files.
func walFiles(t *testing.T, dir string, first wal.LSN) map[string][]byte {
	t.Helper()
	inv, err := archive.New(archive.Dir(dir)).Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(inv.Damaged) > 0 {
		t.Errorf("damaged in %s: %v", dir, inv.Damaged)
	}
	files := map[string][]byte{}
	read := func(name string) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	for _, seg := range inv.Segments {
		if seg.LSN >= first {
			read(seg.Name)
		}
	}
	for _, h := range inv.Histories {
		read(h.TLI.HistoryName())
	}
	return files
}

// firstSegment is where a directory's WAL begins.
func firstSegment(t *testing.T, dir string) wal.LSN {
	t.Helper()
	inv, err := archive.New(archive.Dir(dir)).Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(inv.Segments) == 0 {
		t.Fatalf("there is no WAL in %s", dir)
	}
	return inv.Segments[0].LSN
}

// sameFiles compares two directories, names and bytes, from where both begin.
func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	first := max(firstSegment(t, a), firstSegment(t, b))
	as, bs := walFiles(t, a, first), walFiles(t, b, first)
	aNames, bNames := slices.Sorted(maps.Keys(as)), slices.Sorted(maps.Keys(bs))
	if !slices.Equal(aNames, bNames) {
		t.Errorf("%s has\n%s\nbut %s has\n%s", a, strings.Join(aNames, "\n"), b, strings.Join(bNames, "\n"))
	}
	for _, name := range aNames {
		if there, ok := bs[name]; ok && !bytes.Equal(as[name], there) {
			at := 0
			for at < min(len(as[name]), len(there)) && as[name][at] == there[at] {
				at++
			}
			t.Errorf("%s differs from byte %d on; it has %d bytes in %s and %d in %s", name, at, len(as[name]), a, len(there), b)
		}
	}
}

// Three receive the same WAL under load, through a promotion: the relay and
// pg_receivewal from the server, and pg_receivewal from the relay. When they
// are done their directories are the same, name by name and byte by byte:
// segments, the partial one that the old timeline left, and history files.
func TestSameBytesAsReceivewal(t *testing.T) {
	for _, major := range zooMajors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			primary := pgtest.Start(t, zooOptions(major))
			primary.BenchInit(1)
			a := primary.Standby(pgtest.Options{Name: "a"}, primary.Conninfo(""))
			a.Start()
			a.WaitLSN(primary.LSN())

			direct, through := pgtest.Dir(t), pgtest.Dir(t)
			pgtest.Run(t, major, "pg_receivewal", "-d", a.Conninfo(""), "--slot", "direct", "--create-slot")
			d := receivewal(t, major, a.Conninfo(""), "direct", direct, "--slot", "direct")
			r := startRelay(t, relay.Config{Upstream: a.Conninfo(""), Slot: "rideau"})
			r.waitComplete(1, a.LSN())
			pgtest.Run(t, major, "pg_receivewal", "-d", r.conninfo(), "--slot", "through", "--create-slot")
			th := receivewal(t, major, r.conninfo(), "through", through, "--slot", "through")
			r.waitStandbys(1)

			// The primary dies under load.
			load := primary.Bench()
			begun := primary.LSN()
			primary.WaitLSN(begun + 5<<20)
			primary.Kill()
			load.Wait()
			a.Promote()
			load = a.Bench("-N", "-c", "4", "-t", "1000")
			if err := load.Wait(); err != nil {
				t.Fatalf("pgbench: %v\n%s", err, load.Output())
			}
			// Ended by a switch, and with something in a last segment.
			a.Exec("SELECT pg_switch_wal()")
			a.Exec("SELECT pg_logical_emit_message(true, 'end', 'here')")

			// A server that stops waits until all have what there is.
			end := a.LSN()
			waitReceiver(a, "direct", end)
			r.waitComplete(2, end)
			a.Stop(pgserver.Fast)
			pgtest.Wait(t, "pg_receivewal to have all from the relay", func() (bool, string) {
				st := r.Status()
				return len(st.Standbys) == 1 && st.Standbys[0].Flush == st.Position.Flushed, fmt.Sprintf("%+v", st)
			})
			stopReceiver(t, d)
			stopReceiver(t, th)
			pos := r.position()
			if err := r.halt(); err != nil {
				t.Fatal(err)
			}
			sameFiles(t, direct, r.cfg.Dir)
			sameFiles(t, direct, through)
			verify(t, r.cfg.Dir, pos)

			files := walFiles(t, r.cfg.Dir, 0)
			var partial []string
			for name := range files {
				if strings.HasSuffix(name, ".partial") {
					partial = append(partial, name)
				}
			}
			if len(partial) != 2 || len(files) < 8 {
				t.Errorf("there are %d files, %q of them partial; this test wants more, and one partial of each timeline", len(files), partial)
			}
		})
	}
}

// One directory goes from hand to hand: pg_receivewal begins it, the relay
// goes on where that stopped, then pg_receivewal again, and the relay again,
// through a promotion. It is as if one had done it all.
func TestOneDirectory(t *testing.T) {
	for _, major := range zooMajors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, zooOptions(major))
			fill(s, 100)
			all, dir := pgtest.Dir(t), pgtest.Dir(t)
			whole := receivewal(t, major, s.Conninfo(""), "whole", all)
			tool := func(rows int) {
				t.Helper()
				belongTo(t, dir)
				p := receivewal(t, major, s.Conninfo(""), "hand", dir)
				s.WaitQuery("streaming", "SELECT state FROM pg_stat_replication WHERE application_name = 'hand'")
				fill(s, rows)
				waitReceiver(s, "hand", s.LSN())
				stopReceiver(t, p)
			}
			tli := wal.TLI(1)
			relayTo := func(r *testRelay, rows int) {
				t.Helper()
				fill(s, rows)
				r.waitComplete(tli, s.LSN())
				if err := r.halt(); err != nil {
					t.Fatal(err)
				}
			}
			tool(15_000)
			r := startRelay(t, relay.Config{Upstream: s.Conninfo(""), Dir: dir})
			relayTo(r, 15_000)
			verify(t, dir, r.position())
			tool(15_000)
			// While nobody is in the directory the server is promoted; the
			// relay goes on from pg_receivewal's partial segment.
			waitReceiver(s, "whole", s.LSN())
			again(t, s)
			tli = 2
			r.start()
			relayTo(r, 15_000)
			verify(t, dir, r.position())
			tool(15_000)
			r.start()
			relayTo(r, 100)
			verify(t, dir, r.position())

			r.start()
			end := s.LSN()
			waitReceiver(s, "whole", end)
			r.waitComplete(2, end)
			s.Stop(pgserver.Fast) // waits until both have what there is
			stopReceiver(t, whole)
			if err := r.halt(); err != nil {
				t.Fatal(err)
			}
			sameFiles(t, all, dir)
		})
	}
}

// belongTo gives all files in a directory to its owner: the tools do not run
// as we do.
func belongTo(t *testing.T, dir string) {
	t.Helper()
	st, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	owner := st.Sys().(*syscall.Stat_t)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Chown(filepath.Join(dir, e.Name()), int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}
