package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"rideau/internal/pgserver"
)

const drainFigure = "drain"

// drain measures how fast a new receiver, in a fresh folder, gets a backlog of
// WAL to its disk: from the start of its process until all of it is flushed
// there. For pg_receivewal that is when it ends (--endpos); for the relay, when
// its status says so, which is asked for every 5 ms. Both read every segment
// that the server's slot holds, over TCP, from a server that does nothing else
// and whose files are in memory. The relay checks every record; pg_receivewal
// looks at none. "discard" is a receiver of ours that throws WAL away: what the
// server can send.
//
// CPU is that of the receiver's process, user and system, to its end.
//
// In the first round what was received is compared with the server's segments,
// byte by byte.
func (b *bench) drain(ctx context.Context) error {
	l, err := b.theBacklog(ctx)
	if err != nil {
		return err
	}
	mb := float64(l.bytes()) / 1e6
	b.logf("drain: %.0f MB", mb)
	type drained struct{ took, cpu time.Duration }
	receivewal := func(args ...string) func(string, string) (drained, error) {
		return func(dir, slot string) (drained, error) {
			begun := time.Now()
			// It ends when it has more than --endpos.
			c, err := b.beginReceivewal(ctx, l.server, dir, slot, append(args, "--endpos", (l.end-1).String())...)
			if err != nil {
				return drained{}, err
			}
			if err := c.wait(); err != nil {
				return drained{}, err
			}
			return drained{time.Since(begun), c.cpu()}, nil
		}
	}
	contenders := []struct {
		name string
		run  func(dir, slot string) (drained, error)
	}{
		{"relay", func(dir, slot string) (drained, error) {
			begun := time.Now()
			r, err := b.beginRelay(ctx, l.server.Conninfo(""), dir, slot, "relay")
			if err != nil {
				return drained{}, err
			}
			err = r.waitFlushed(ctx, l.end)
			took := time.Since(begun)
			n, mean, serr := r.syncs(ctx)
			r.stop()
			if err := errors.Join(err, serr); err != nil {
				return drained{}, err
			}
			b.logf("drain: the relay synced %d times, %s each", n, mean.Round(time.Microsecond))
			return drained{took, r.cpu()}, nil
		}},
		{"pg_receivewal", receivewal()},
		{"pg_receivewal --synchronous", receivewal("--synchronous")},
	}
	for round := range b.cfg.Rounds {
		took, err := b.discard(ctx, l)
		if err != nil {
			return err
		}
		b.results.add(drainFigure, "discard", "MB/s", mb/took.Seconds())
		for _, c := range rotate(contenders, round) {
			b.logf("drain: round %d, %s", round+1, c.name)
			slot, err := l.slot(ctx)
			if err != nil {
				return err
			}
			dir, remove, err := b.dir()
			if err != nil {
				return err
			}
			settle()
			d, err := c.run(dir, slot)
			if err == nil && round == 0 {
				err = l.checkCopy(dir)
			}
			if err := errors.Join(err, dropSlot(ctx, l.server, slot), remove()); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			b.results.add(drainFigure, c.name, "MB/s", mb/d.took.Seconds())
			b.results.add(drainFigure+", CPU a GB", c.name, "s", d.cpu.Seconds()/mb*1000)
		}
	}
	b.results.compare(drainFigure, "relay", "pg_receivewal", 2)
	b.results.compare(drainFigure, "relay", "pg_receivewal --synchronous", 2)
	b.results.compare(drainFigure, "relay", "discard", 0)
	b.results.compareLess(drainFigure+", CPU a GB", "relay", "pg_receivewal")
	if b.cfg.profile != "" {
		return b.profileDrain(ctx, l)
	}
	return nil
}

// discard receives a backlog and throws it away.
func (b *bench) discard(ctx context.Context, l *backlog) (time.Duration, error) {
	begun := time.Now()
	r, err := connect(ctx, l.server.Conninfo(""))
	if err != nil {
		return 0, err
	}
	defer r.close()
	r.until.Store(uint64(l.end))
	err = r.stream(ctx, l.from, nil)
	return time.Since(begun), err
}

const readerFigure = "reader"

// totalLine is the last line of the table that rideau prints, or pg_waldump,
// with the number of records.
var totalLine = regexp.MustCompile(`(?m)^(?:Total\s+(\d+)\s.*|\s+(\d+)\s.* total)$`)

// reader measures how fast whole segments are read, from memory, and their
// records counted by kind: "rideau wal dump --stats" beside "pg_waldump
// --stats", each from the start of its process to its end. Both verify the CRC
// of each record. They must find the same number of records.
func (b *bench) reader(ctx context.Context) (err error) {
	l, err := b.theBacklog(ctx)
	if err != nil {
		return err
	}
	// A folder of whole segments only. The server keeps them for its slot, so
	// they do not change under their second names.
	dir, remove, err := b.dir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	for at := l.from; at < l.whole; at = segmentSize.Next(at) {
		name := segmentSize.FileName(timeline, at)
		if err := os.Link(filepath.Join(l.server.Dir, "pg_wal", name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	mb := float64(l.whole-l.from) / 1e6
	contenders := []struct {
		name    string
		command func() (*exec.Cmd, error)
	}{
		{"rideau wal dump", func() (*exec.Cmd, error) { return b.rideau(ctx, "wal", "dump", "--stats", dir), nil }},
		{"pg_waldump", func() (*exec.Cmd, error) {
			return pgserver.Command(ctx, b.cfg.Major, "pg_waldump", "--stats", "--path", dir,
				"--start", l.from.String(), "--end", l.whole.String())
		}},
	}
	counts := map[string]int{}
	for round := -1; round < b.cfg.Rounds; round++ { // the first brings the files into memory
		for _, c := range rotate(contenders, max(round, 0)) {
			cmd, err := c.command()
			if err != nil {
				return err
			}
			out, took, err := timed(cmd)
			if err != nil {
				return err
			}
			m := totalLine.FindStringSubmatch(out)
			if m == nil {
				return fmt.Errorf("%s said no total:\n%s", c.name, out)
			}
			if counts[c.name], err = strconv.Atoi(m[1] + m[2]); err != nil {
				return err
			}
			if round >= 0 {
				b.results.add(readerFigure, c.name, "MB/s", mb/took.Seconds())
			}
		}
		if counts["rideau wal dump"] != counts["pg_waldump"] {
			return fmt.Errorf("they read different WAL: %d records, and %d by pg_waldump", counts["rideau wal dump"], counts["pg_waldump"])
		}
	}
	b.logf("reader: %d records in %.0f MB", counts["pg_waldump"], mb)
	b.results.compare(readerFigure, "rideau wal dump", "pg_waldump", 0.75)
	return nil
}
