package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"time"

	"rideau/internal/pgserver"
	"rideau/relay"
	"rideau/wal"
)

// profileDrain drains the backlog once more, by a relay in this process, and
// leaves a CPU profile.
func (b *bench) profileDrain(ctx context.Context, l *backlog) error {
	return b.profiled(ctx, l, "drain.prof", func(profile func() error, _ string, reach func(wal.LSN) error) error {
		if err := profile(); err != nil {
			return err
		}
		return reach(l.end)
	})
}

// profileFanout sends the backlog to ten receivers. They are in the profile too,
// under (*receiver).follow.
func (b *bench) profileFanout(ctx context.Context, l *backlog) error {
	return b.profiled(ctx, l, "fanout.prof", func(profile func() error, conninfo string, reach func(wal.LSN) error) (err error) {
		if err := reach(l.end); err != nil {
			return err
		}
		f, err := openFan(ctx, conninfo, directReceivers)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.close()) }()
		if err := profile(); err != nil {
			return err
		}
		if err := f.start(ctx, l.from, 0); err != nil {
			return err
		}
		return f.wait(ctx, l.end)
	})
}

// profileLive sends what the primary writes to one receiver.
func (b *bench) profileLive(ctx context.Context, l *backlog) error {
	return b.profiled(ctx, l, "live.prof", func(profile func() error, conninfo string, reach func(wal.LSN) error) (err error) {
		at, err := l.server.LSN(ctx)
		if err != nil {
			return err
		}
		if err := reach(at); err != nil {
			return err
		}
		f, err := openFan(ctx, conninfo, 1)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.close()) }()
		if err := f.start(ctx, at, 0); err != nil {
			return err
		}
		if err := profile(); err != nil {
			return err
		}
		end, err := emit(ctx, l.server, max(1, b.cfg.BacklogMB/8))
		if err != nil {
			return err
		}
		return f.wait(ctx, end)
	})
}

// profiling is held while a CPU profile is taken: a process has one at a time,
// and a test runs several parts at once.
var profiling sync.Mutex

// startProfile profiles into out, once nobody else does, until stop is called.
func startProfile(out io.Writer) (stop func(), err error) {
	profiling.Lock()
	if err := pprof.StartCPUProfile(out); err != nil {
		profiling.Unlock()
		return func() {}, err
	}
	return func() {
		pprof.StopCPUProfile()
		profiling.Unlock()
	}, nil
}

// profiled runs a relay in this process beside do, and profiles from when do
// says until it returns.
func (b *bench) profiled(ctx context.Context, l *backlog, name string, do func(profile func() error, conninfo string, reach func(wal.LSN) error) error) (err error) {
	dir, remove, err := b.dir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	slot, err := l.slot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dropSlot(context.WithoutCancel(ctx), l.server, slot)) }()
	port, release, err := pgserver.FreePort()
	if err != nil {
		return err
	}
	defer release()
	r, err := relay.New(relay.Config{
		Upstream: l.server.Conninfo(""), Dir: dir, Slot: slot,
		Listen: []string{net.JoinHostPort("127.0.0.1", fmt.Sprint(port))},
	})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	if err := os.MkdirAll(b.cfg.profile, 0o755); err != nil {
		stop()
		return err
	}
	out, err := os.Create(filepath.Join(b.cfg.profile, name))
	if err != nil {
		stop()
		return err
	}
	defer out.Close()
	go func() { ended <- r.Run(running) }()
	reach := func(lsn wal.LSN) error {
		return eventually(ctx, "the relay to reach "+lsn.String(), func() (bool, error) {
			pos, _ := r.Position()
			return pos.Complete >= lsn, nil
		})
	}
	var begun time.Time
	stopProfile := func() {}
	err = do(func() (err error) {
		stopProfile, err = startProfile(out)
		begun = time.Now()
		return err
	}, fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", port), reach)
	stopProfile()
	b.logf("%s: %s", out.Name(), time.Since(begun).Round(time.Millisecond))
	stop()
	return errors.Join(err, <-ended)
}
