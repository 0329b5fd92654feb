package main

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"rideau/pgrepl"
	"rideau/wal"
)

// A receiver is the lightest of standbys: it throws WAL away, and reports it
// as written and flushed, as a standby does: when it has caught up, and at the
// latest after each megabyte.
type receiver struct {
	conn  *pgrepl.Conn
	got   atomic.Uint64 // the first byte that it has not got
	until atomic.Uint64 // stream returns when got is there
}

const reportEvery = 1 << 20

// receiverName is its application_name.
const receiverName = "receiver"

func connect(ctx context.Context, conninfo string) (*receiver, error) {
	targets, err := pgrepl.Targets(conninfo, receiverName)
	if err != nil {
		return nil, err
	}
	conn, err := targets[0].Connect(ctx)
	if err != nil {
		return nil, err
	}
	r := &receiver{conn: conn}
	r.until.Store(math.MaxUint64)
	return r, nil
}

func (r *receiver) close() { r.conn.Close() }

// start asks for WAL from lsn on. On return the server streams.
func (r *receiver) start(ctx context.Context, from wal.LSN) error {
	r.got.Store(uint64(from))
	return r.conn.StartReplication(ctx, "", timeline, from)
}

// stream is start and follow.
func (r *receiver) stream(ctx context.Context, from wal.LSN, seen func(wal.LSN, time.Time)) error {
	if err := r.start(ctx, from); err != nil {
		return err
	}
	return r.follow(ctx, seen)
}

// follow receives until r.until, or until ctx is done, which is no error. seen,
// unless nil, is told of each message of WAL: the first byte after it, and when
// all of it had come.
func (r *receiver) follow(ctx context.Context, seen func(wal.LSN, time.Time)) error {
	stop := context.AfterFunc(ctx, func() { r.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, pgrepl.MaxWALMessage)
	at := wal.LSN(r.got.Load())
	reported := at
	for uint64(at) < r.until.Load() {
		in, err := r.conn.Next(timeline)
		if err == nil && in.Len > 0 && in.Start != at {
			return fmt.Errorf("received WAL at %s where %s was expected", in.Start, at)
		}
		for n := in.Len; n > 0 && err == nil; {
			p := buf[:min(n, len(buf))]
			err = r.conn.ReadWAL(p)
			n -= len(p)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if in.Len > 0 {
			at += wal.LSN(in.Len)
			r.got.Store(uint64(at))
			if seen != nil {
				seen(at, time.Now())
			}
		}
		caughtUp := at >= in.End && at > reported
		if caughtUp || at >= reported+reportEvery || in.ReplyRequested {
			if err := r.conn.SendStatus(pgrepl.Status{Write: at, Flush: at, Time: time.Now()}); err != nil {
				return err
			}
			reported = at
		}
	}
	return nil
}
