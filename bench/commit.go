package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"rideau/internal/pgserver"
)

// A contender is somebody who may be the only synchronous member. start returns
// once it is one; stop, once it is gone and the server is as it was.
type contender struct {
	name  string
	start func(context.Context) (stop func() error, err error)
}

// commit measures how many transactions a second "pgbench -N" commits while
// each commit waits for one synchronous member's disk (synchronous_commit = on),
// or for nobody's but the server's own.
//
// The server, the member and pgbench share the machine; WAL of the server and of
// the member is on the same disk. Of the contenders only the one whose turn it
// is runs. Before each run there are a checkpoint, so that each begins with the
// same share of page images, and a warm-up of 100 transactions a client. What
// counts is pgbench's own figure, without the time to connect.
func (b *bench) commit(ctx context.Context) (err error) {
	s, err := b.server(ctx, "primary", map[string]string{"synchronous_commit": "on"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	if _, err := b.pgbench(ctx, s, "-i", "-q", "-s", fmt.Sprint(b.cfg.Scale)); err != nil {
		return err
	}
	contenders := []contender{{"relay", func(ctx context.Context) (func() error, error) { return b.memberRelay(ctx, s) }}}
	for _, name := range b.cfg.Peers {
		peer := contender{name: name}
		switch name {
		case "pg_receivewal":
			peer.start = func(ctx context.Context) (func() error, error) { return b.memberReceivewal(ctx, s) }
		case "standby":
			var standby *pgserver.Server
			if standby, err = b.standby(ctx, s); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, standby.Remove()) }()
			peer.start = func(ctx context.Context) (func() error, error) { return b.memberStandby(ctx, s, standby) }
		case "none":
			peer.start = func(context.Context) (func() error, error) { return func() error { return nil }, nil }
		case diskless:
			memory := pgserver.MemoryDir(disklessRoom)
			if memory == "" {
				b.logf("no folder is in memory here, with room: commit without %s", diskless)
				continue
			}
			peer.start = func(ctx context.Context) (func() error, error) { return b.memberDiskless(ctx, s, memory) }
		}
		contenders = append(contenders, peer)
	}
	for round := range b.cfg.Rounds {
		for _, clients := range b.cfg.Clients {
			for _, c := range rotate(contenders, round) {
				b.logf("commit: round %d, %d clients, %s", round+1, clients, c.name)
				tps, err := b.commitRun(ctx, s, c, clients)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				b.results.add(commitFigure(clients), c.name, "tps", tps)
			}
		}
	}
	goals := map[string]float64{"pg_receivewal": 1.0, "standby": 1.15, "none": 0.9}
	for _, clients := range b.cfg.Clients {
		for _, peer := range contenders[1:] {
			b.results.compare(commitFigure(clients), "relay", peer.name, goals[peer.name])
		}
	}
	return nil
}

// commitPeers are whom we are measured with.
var commitPeers = []string{"pg_receivewal", "standby", "none", diskless}

// diskless is pg_receivewal in memory, where a sync is nothing: the most that
// any member can make of this server, on this machine.
const diskless = "diskless"

// disklessRoom is what it needs: containers often have 64 MB.
const disklessRoom = 1 << 30

func commitFigure(clients int) string { return fmt.Sprintf("commit, %d clients", clients) }

// commitRun is one contender's turn.
func (b *bench) commitRun(ctx context.Context, s *pgserver.Server, c contender, clients int) (tps float64, err error) {
	stop, err := c.start(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if _, err := s.Query(ctx, "CHECKPOINT"); err != nil {
		return 0, err
	}
	args := []string{"-n", "-N", "-c", fmt.Sprint(clients), "-j", fmt.Sprint(min(clients, 2))}
	if _, err := b.pgbench(ctx, s, append(args, "-t", "100")...); err != nil {
		return 0, err
	}
	settle()
	out, err := b.pgbench(ctx, s, append(args, "-T", fmt.Sprint(b.cfg.Seconds))...)
	if err != nil {
		return 0, err
	}
	// Had the member left, pgbench would have stood still, or run alone.
	if err := synchronous(ctx, s, c.name); err != nil {
		return 0, err
	}
	m := tpsLine.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench said no figure:\n%s", out)
	}
	return strconv.ParseFloat(m[1], 64)
}

var tpsLine = regexp.MustCompile(`(?m)^tps = ([0-9.]+) \(without initial connection time\)$`)

// synchronous checks that name is the one synchronous member; that there is
// none, if that is the name.
func synchronous(ctx context.Context, s *pgserver.Server, name string) error {
	who, err := s.QueryValue(ctx, "SELECT coalesce(string_agg(application_name || ' ' || sync_state, ', '), 'none') FROM pg_stat_replication")
	if err != nil {
		return err
	}
	if who != name+" sync" && who != name {
		return fmt.Errorf("member is %q, expected %q", who, name)
	}
	return nil
}

// setMember names the synchronous member, none if name is empty, and waits
// until that is so. ready, a condition on its row of pg_stat_replication, is
// waited for too.
func setMember(ctx context.Context, s *pgserver.Server, name, ready string) error {
	if err := s.Set(map[string]string{"synchronous_standby_names": name}); err != nil {
		return err
	}
	if err := s.Reload(); err != nil {
		return err
	}
	conn, err := s.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	sql := "SELECT count(*) = 0 FROM pg_stat_replication"
	if name != "" {
		sql = fmt.Sprintf("SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = '%s' AND sync_state = 'sync' AND state = 'streaming' AND %s", name, ready)
	}
	return eventually(ctx, "the synchronous member to be "+strconv.Quote(name), func() (bool, error) {
		var ok bool
		err := conn.QueryRow(ctx, sql).Scan(&ok)
		return ok, err
	})
}

// flushed is a condition: all that the server had written when it was asked.
const flushed = "flush_lsn >= pg_current_wal_flush_lsn()"

// member runs begin with a fresh folder and a slot that holds WAL from now on,
// and makes what it began the synchronous member, under the slot's name.
func (b *bench) member(ctx context.Context, s *pgserver.Server, name string, begin func(dir string) (end func(), err error)) (stop func() error, err error) {
	dir, remove, err := b.dir()
	if err != nil {
		return nil, err
	}
	return memberIn(ctx, s, name, dir, remove, begin)
}

// memberIn is member in a given folder, which it removes.
func memberIn(ctx context.Context, s *pgserver.Server, name, dir string, remove func() error, begin func(dir string) (end func(), err error)) (stop func() error, err error) {
	if err := createSlot(ctx, s, name); err != nil {
		return nil, errors.Join(err, remove())
	}
	end, err := begin(dir)
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	stop = func() error {
		// First the name: nobody should wait for one who leaves.
		err := s.Set(map[string]string{"synchronous_standby_names": ""})
		err = errors.Join(err, s.Reload())
		end()
		return errors.Join(err, setMember(ctx, s, "", ""), dropSlot(ctx, s, name), remove())
	}
	if err := setMember(ctx, s, name, flushed); err != nil {
		return nil, errors.Join(err, stop())
	}
	return stop, nil
}

func (b *bench) memberRelay(ctx context.Context, s *pgserver.Server) (func() error, error) {
	return b.member(ctx, s, "relay", func(dir string) (func(), error) {
		r, err := b.beginRelay(ctx, s.Conninfo(""), dir, "relay", "relay")
		if err != nil {
			return nil, err
		}
		return r.stop, nil
	})
}

func (b *bench) memberReceivewal(ctx context.Context, s *pgserver.Server) (func() error, error) {
	return b.member(ctx, s, "pg_receivewal", b.receivewalAs(ctx, s, "pg_receivewal"))
}

func (b *bench) memberDiskless(ctx context.Context, s *pgserver.Server, memory string) (func() error, error) {
	dir, remove, err := b.dirIn(memory)
	if err != nil {
		return nil, err
	}
	return memberIn(ctx, s, diskless, dir, remove, b.receivewalAs(ctx, s, diskless))
}

// receivewalAs begins pg_receivewal under a name, which its slot has too.
func (b *bench) receivewalAs(ctx context.Context, s *pgserver.Server, name string) func(dir string) (func(), error) {
	return func(dir string) (func(), error) {
		c, err := b.beginReceivewal(ctx, s, dir, name, "--synchronous")
		if err != nil {
			return nil, err
		}
		return func() { c.stop(syscall.SIGINT) }, nil
	}
}

// beginReceivewal starts pg_receivewal over TCP, as the relay connects.
func (b *bench) beginReceivewal(ctx context.Context, s *pgserver.Server, dir, slot string, args ...string) (*child, error) {
	args = append([]string{"-D", dir, "-d", s.Conninfo("application_name=" + slot), "--slot", slot, "--no-loop"}, args...)
	cmd, err := pgserver.Command(ctx, b.cfg.Major, "pg_receivewal", args...)
	if err != nil {
		return nil, err
	}
	return begin(cmd)
}

// standby makes a standby of s on the measured disk, which has a slot, and
// leaves it stopped.
func (b *bench) standby(ctx context.Context, s *pgserver.Server) (*pgserver.Server, error) {
	dir, _, err := b.dir()
	if err != nil {
		return nil, err
	}
	if err := createSlot(ctx, s, "standby"); err != nil {
		return nil, err
	}
	return s.Standby(ctx, pgserver.Options{
		Name: "standby", Dir: filepath.Join(dir, "data"), Settings: map[string]string{"primary_slot_name": "standby"},
	}, s.Conninfo("application_name=standby"))
}

// memberStandby starts the standby, and lets it replay what it has missed
// before it is measured.
func (b *bench) memberStandby(ctx context.Context, s, standby *pgserver.Server) (func() error, error) {
	if err := standby.Start(ctx); err != nil {
		return nil, err
	}
	stop := func() error {
		err := s.Set(map[string]string{"synchronous_standby_names": ""})
		return errors.Join(err, s.Reload(), standby.Stop(pgserver.Fast), setMember(ctx, s, "", ""))
	}
	// It is named once it has caught up: setMember would wait no longer than
	// for anybody else.
	caught := time.Now()
	at, err := s.LSN(ctx)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		err = standby.WaitLSN(ctx, at)
	}
	if err == nil {
		err = setMember(ctx, s, "standby", flushed)
	}
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	b.logf("the standby caught up in %s", time.Since(caught).Round(time.Millisecond))
	return stop, nil
}
