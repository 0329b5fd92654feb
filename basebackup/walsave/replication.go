package walsave

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"rideau/pgrepl"
	"rideau/wal"
)

const (
	closeTimeout = 5 * time.Second

	// statusInterval is wal_receiver_status_interval's default, and silence
	// wal_receiver_timeout's.
	statusInterval = 10 * time.Second
	silence        = 60 * time.Second
)

// replication streams WAL from a relay or a server, as pg_receivewal does. The
// stream goes on from one segment to the next.
type replication struct {
	targets  []*pgrepl.Target
	size     wal.SegmentSize
	systemID uint64

	conn *pgrepl.Conn // that streams; nil if none does
	tli  wal.TLI
	pos  wal.LSN // the next byte
	left int     // how much of the current message there is, from pos on
	end  wal.LSN // how far the server has flushed
}

// NewReplication makes a Source that streams from the first server of a
// connection string that can be reached. It uses no slot. It reports what it
// has written, and nothing as flushed, so that no server takes it for a
// synchronous standby.
func NewReplication(conninfo string, size wal.SegmentSize, systemID uint64) (Source, error) {
	targets, err := pgrepl.Targets(conninfo, "rideau basebackup")
	if err != nil {
		return nil, err
	}
	return &replication{targets: targets, size: size, systemID: systemID}, nil
}

func (r *replication) server() string {
	names := make([]string, len(r.targets))
	for i, t := range r.targets {
		names[i] = t.String()
	}
	return strings.Join(names, ", ")
}

func (r *replication) Close() error {
	if r.conn == nil {
		return nil
	}
	conn := r.conn
	r.conn, r.left = nil, 0
	return conn.Close()
}

// connect connects to the first target that answers.
func (r *replication) connect(ctx context.Context) (*pgrepl.Conn, error) {
	var first error
	for _, t := range r.targets {
		conn, err := t.Connect(ctx)
		if err == nil {
			var sys pgrepl.System
			if sys, err = conn.Identify(ctx); err == nil {
				if sys.ID == r.systemID {
					return conn, nil
				}
				err = fmt.Errorf("server %s has system identifier %d, the backup is of %d", t, sys.ID, r.systemID)
				conn.Close()
				return nil, err
			}
			conn.Close()
		}
		if first == nil {
			first = err
		}
	}
	return nil, unreachable(ctx, r.server(), first)
}

func (r *replication) History(ctx context.Context, tli wal.TLI) (string, error) {
	conn, err := r.connect(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	text, err := conn.TimelineHistory(ctx, tli)
	if isUndefinedFile(err) {
		return "", &fs.PathError{Op: "get", Path: tli.HistoryName(), Err: fs.ErrNotExist}
	} else if err != nil {
		return "", unreachable(ctx, r.server(), err)
	}
	return text, nil
}

// isUndefinedFile: 58P01 is what a server says of files of WAL that it does not
// have, history files and segments.
func isUndefinedFile(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == "58P01"
}

// start makes a stream that begins where s does.
func (r *replication) start(ctx context.Context, s Segment) error {
	r.Close()
	conn, err := r.connect(ctx)
	if err != nil {
		return err
	}
	if err := conn.StartReplication(ctx, "", s.TLI, s.LSN); err != nil {
		conn.Close()
		return r.failed(ctx, err, s)
	}
	r.conn, r.tli, r.pos, r.left, r.end = conn, s.TLI, s.LSN, 0, 0
	return nil
}

// failed says what a stream's error means.
func (r *replication) failed(ctx context.Context, err error, s Segment) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if ended, ok := errors.AsType[*pgrepl.EndOfTimeline](err); ok {
		if s.Last {
			return fmt.Errorf("timeline %s ends at %s on %s, but the backup stopped on it at %s", s.TLI, ended.LSN, r.server(), s.Need)
		}
		return ended
	}
	if isUndefinedFile(err) {
		return &RecycledError{Segment: r.size.FileName(s.TLI, s.LSN), LSN: s.LSN, Server: r.server(), Err: err}
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && strings.Contains(pgErr.Message, "ahead of the WAL flush position") {
		err = errors.New(pgErr.Message) // it will come
	}
	return unreachable(ctx, r.server(), err)
}

func (r *replication) Fetch(ctx context.Context, s Segment, w io.Writer, waiting func(Waiting)) error {
	if r.conn == nil || r.tli != s.TLI || r.pos != s.LSN {
		if err := r.start(ctx, s); err != nil {
			return err
		}
	}
	conn := r.conn
	var written atomic.Uint64
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() { report(conn, &written, done) })
	stopWatch := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })

	err := r.take(ctx, s, w, &written, waiting)
	close(done)
	wg.Wait()
	if !stopWatch() || err != nil {
		r.Close() // in the middle of something, or with a deadline in the past
	}
	if err != nil && !isWriteError(err) {
		err = r.failed(ctx, err, s)
	}
	return err
}

// take copies what arrives until there is what s needs.
func (r *replication) take(ctx context.Context, s Segment, w io.Writer, written *atomic.Uint64, waiting func(Waiting)) error {
	end := r.size.Next(s.LSN)
	buf := make([]byte, pgrepl.MaxWALMessage)
	for r.pos < end {
		written.Store(uint64(r.pos))
		if r.left == 0 {
			// Where the server has the whole segment, so will we.
			if s.Last && r.pos >= s.Need && r.end < end {
				return nil
			}
			if err := r.next(ctx, s, waiting); err != nil {
				return err
			}
			continue
		}
		p := buf[:min(len(buf), r.left, int(end-r.pos))]
		if err := r.conn.ReadWAL(p); err != nil {
			return err
		}
		r.left -= len(p)
		r.pos += wal.LSN(len(p))
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

// next waits for a message.
func (r *replication) next(ctx context.Context, s Segment, waiting func(Waiting)) error {
	if !r.conn.Ready() {
		waiting(Waiting{For: fmt.Sprintf("%s from %s", r.size.FileName(s.TLI, s.LSN), r.server()), LSN: r.end})
	}
	r.conn.SetReadDeadline(time.Now().Add(silence))
	if ctx.Err() != nil { // the deadline that said so has just been moved
		return context.Cause(ctx)
	}
	in, err := r.conn.Next(r.tli)
	if err != nil {
		return err
	}
	r.end = max(r.end, in.End)
	if in.Len > 0 && in.Start != r.pos {
		return fmt.Errorf("server sent WAL at %s where %s was expected", in.Start, r.pos)
	}
	r.left = in.Len
	if in.ReplyRequested {
		return r.conn.SendStatus(pgrepl.Status{Write: r.pos, Time: time.Now()})
	}
	return nil
}

// report tells the server that we are there, and asks whether it is.
func report(conn *pgrepl.Conn, written *atomic.Uint64, done <-chan struct{}) {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		// What fails here fails the reader too.
		conn.SetWriteDeadline(time.Now().Add(silence))
		conn.SendStatus(pgrepl.Status{Write: wal.LSN(written.Load()), Time: time.Now(), ReplyRequested: true})
	}
}
