package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"rideau/pgrepl"
	"rideau/wal"
)

// A standby is one physical replication connection to us.
type standby struct {
	name string // application_name, or the address
	addr string
	user string
	pid  uint32
	tls  bool
	at   time.Time // connected

	mu        sync.Mutex
	state     string
	tli       wal.TLI
	slot      *slot
	sent      wal.LSN
	status    pgrepl.Status
	heard     time.Time // of its last status
	feedback  pgrepl.Feedback
	wantsFeed bool // it sends feedback
}

// needs is the first byte that the standby may still ask for.
func (s *standby) needs() (wal.TLI, wal.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != "streaming" {
		return 0, 0
	}
	if s.status.Flush != 0 {
		return s.tli, min(s.sent, s.status.Flush)
	}
	return s.tli, s.sent
}

// listen opens all addresses or none.
func (r *Relay) listen() (_ []net.Listener, err error) {
	var ls []net.Listener
	defer func() {
		if err != nil {
			for _, l := range ls {
				l.Close()
			}
		}
	}()
	for _, addr := range r.cfg.Listen {
		l, err := listenAt(addr)
		if err != nil {
			return nil, err
		}
		ls = append(ls, l)
		r.log.Info("serving standbys", "addr", l.Addr().String())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range ls {
		r.addrs = append(r.addrs, l.Addr())
	}
	return ls, nil
}

func listenAt(addr string) (net.Listener, error) {
	if !strings.HasPrefix(addr, "/") {
		return net.Listen("tcp", addr)
	}
	// A directory, and the port that libpq looks for there; as in
	// unix_socket_directories, with the port after a colon if not 5433.
	dir, port, ok := strings.Cut(addr, ":")
	if !ok {
		port = "5433"
	}
	path := filepath.Join(dir, ".s.PGSQL."+port)
	// A socket that nobody listens at is left from a crash.
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
	} else if st, serr := os.Lstat(path); serr == nil && st.Mode()&os.ModeSocket != 0 {
		os.Remove(path)
	}
	return net.Listen("unix", path)
}

// accept serves one listener until it is closed.
func (r *Relay) accept(ctx context.Context, l net.Listener, sessions *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, most likely: those who hold them will go.
			r.log.Error("could not accept a connection", "addr", l.Addr().String(), "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		sessions.Go(func() { r.serve(ctx, conn) })
	}
}

// serve meets one connection and sees it to its end.
func (r *Relay) serve(ctx context.Context, conn net.Conn) {
	r.mu.Lock()
	r.conns[conn] = struct{}{}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.conns, conn)
		r.mu.Unlock()
	}()
	peer := conn.RemoteAddr().String()
	s, err := pgrepl.Accept(ctx, conn, r.server)
	if err != nil {
		if !errors.Is(err, io.EOF) && ctx.Err() == nil {
			r.log.Info("refused a connection", "peer", peer, "err", err)
		}
		return
	}
	defer s.Close()
	switch s.Kind {
	case pgrepl.Physical:
		err = r.serveStandby(ctx, s)
	default:
		err = r.forward(ctx, s)
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, pgrepl.ErrShutdown) && ctx.Err() == nil {
		r.log.Info("lost a connection", "peer", peer, "application_name", s.ApplicationName, "err", err)
	}
}

func (r *Relay) serveStandby(ctx context.Context, s *pgrepl.Session) error {
	sb := &standby{
		name: s.ApplicationName, addr: s.RemoteAddr.String(), user: s.User,
		pid: s.PID, tls: s.TLS, at: time.Now(), state: "startup",
	}
	if sb.name == "" {
		sb.name = sb.addr
	}
	r.mu.Lock()
	r.standbys[sb] = struct{}{}
	r.mu.Unlock()
	defer r.depart(sb)

	up := &pinned{relay: r, session: s}
	defer up.close()
	for {
		cmd, err := s.ReadCommand(ctx)
		if err != nil {
			return err
		}
		if err := r.answer(ctx, s, sb, up, cmd); err != nil {
			return err
		}
	}
}

// depart forgets a standby that left.
func (r *Relay) depart(sb *standby) {
	sb.mu.Lock()
	feedback, slot := sb.feedback, sb.slot
	sb.mu.Unlock()
	r.slots.leave(sb)
	r.mu.Lock()
	delete(r.standbys, sb)
	if slot != nil && feedback != (pgrepl.Feedback{}) {
		r.gone[slot.Name] = departed{feedback, time.Now()}
	}
	r.mu.Unlock()
}

// errStarting is what a server says that is not yet ready.
var errStarting = &pgrepl.Error{Code: "57P03", Message: "the database system is starting up",
	Detail: "The relay has not yet reached the server whose WAL it is to serve."}

// answer does one command. An error ends the connection; what the client did
// wrong is told to it and is none.
func (r *Relay) answer(ctx context.Context, s *pgrepl.Session, sb *standby, up *pinned, cmd pgrepl.Command) error {
	id := r.identity()
	pos, ok := r.Position()
	if id == nil || !ok {
		return s.Error(errStarting)
	}
	switch cmd := cmd.(type) {
	case pgrepl.IdentifySystem:
		return s.ReplySystem(pgrepl.System{ID: id.SystemID, TLI: pos.TLI, Pos: pos.Flushed})

	case pgrepl.Show:
		return r.show(ctx, s, up, id, cmd)

	case pgrepl.TimelineHistory:
		text, err := r.timelines.text(cmd.TLI, pos.TLI)
		if err != nil {
			return s.Error(pgrepl.Errorf("58P01", "could not open file \"pg_wal/%s\": No such file or directory", cmd.TLI.HistoryName()))
		}
		return s.ReplyHistory(cmd.TLI, text)

	case pgrepl.CreateSlot:
		if cmd.Plugin != "" {
			return s.Error(errLogical)
		}
		var restart wal.LSN
		if cmd.ReserveWAL {
			restart = id.SegmentSize.Start(pos.Flushed)
		}
		if err := r.slots.create(cmd.Name, cmd.Temporary, restart, sb); err != nil {
			return s.Error(pgrepl.AsError(err))
		}
		return s.ReplyCreated(cmd.Name)

	case pgrepl.DropSlot:
		for {
			wait, err := r.slots.drop(cmd.Name, sb, cmd.Wait)
			if err != nil {
				return s.Error(pgrepl.AsError(err))
			}
			if wait == nil {
				return s.ReplyDropped()
			}
			select {
			case <-wait:
			case <-ctx.Done():
				return s.Fatal(errAdmin)
			}
		}

	case pgrepl.ReadSlot:
		sl, ok := r.slots.read(cmd.Name)
		if !ok {
			return s.ReplySlot(nil)
		}
		reply := &pgrepl.Slot{Restart: sl.Restart}
		if sl.Restart != 0 {
			reply.RestartTLI = pos.TLI
			if sl.Restart < pos.Flushed {
				reply.RestartTLI = r.history(pos.TLI).TLIAt(sl.Restart)
			}
		}
		return s.ReplySlot(reply)

	case pgrepl.StartReplication:
		return r.serveWAL(ctx, s, sb, cmd, pos)

	case pgrepl.BaseBackup, pgrepl.UploadManifest:
		return up.pass(ctx, cmd)
	}
	return s.Error(errLogical)
}

var (
	errAdmin   = &pgrepl.Error{Code: "57P01", Message: "terminating connection due to administrator command"}
	errLogical = &pgrepl.Error{Code: "0A000", Message: "logical replication is not served by the relay",
		Hint: "Connect with replication=database, which is passed on to the primary."}
)

// show answers from what the server said when we last reached it; what we did
// not ask then we ask now.
func (r *Relay) show(ctx context.Context, s *pgrepl.Session, up *pinned, id *identity, cmd pgrepl.Show) error {
	name := strings.ToLower(cmd.Name)
	value, ok := id.Settings[name]
	switch {
	case name == "transaction_read_only":
		value, ok = "off", true // as the primary would: see params
	case name == "wal_segment_size":
		value, ok = id.SegmentSize.String(), true
	}
	if !ok {
		return up.pass(ctx, cmd)
	}
	return s.ReplyShow(cmd.Name, value)
}

// serveWAL is START_REPLICATION.
func (r *Relay) serveWAL(ctx context.Context, s *pgrepl.Session, sb *standby, cmd pgrepl.StartReplication, pos Position) error {
	if cmd.Logical {
		return s.Error(errLogical)
	}
	tli := cmd.TLI
	if tli == 0 {
		tli = pos.TLI
	}
	next, perr := planServe(tli, cmd.LSN, pos.TLI, r.history(pos.TLI))
	if perr != nil {
		return s.Error(perr)
	}
	sp := r.spool()
	// Before COPY begins an error is an ordinary answer; after it some
	// receivers take it for a broken connection.
	if cmd.LSN < pos.Flushed {
		f, err := sp.file(tli, cmd.LSN, r.history(pos.TLI))
		if err != nil {
			return s.Error(fileError(sp.size.FileName(tli, cmd.LSN), err))
		}
		f.Close()
	}
	var sl *slot
	if cmd.Slot != "" {
		var err error
		if sl, err = r.slots.acquire(cmd.Slot, sb); err != nil {
			return s.Error(pgrepl.AsError(err))
		}
		defer r.slots.release(sl)
	}

	src := r.newSource(sp, tli)
	defer src.close()
	sb.mu.Lock()
	sb.state, sb.tli, sb.slot, sb.sent, sb.status = "streaming", tli, sl, cmd.LSN, pgrepl.Status{}
	sb.mu.Unlock()
	r.log.Info("streaming to a standby", "standby", sb.name, "addr", sb.addr, "tli", tli, "lsn", cmd.LSN, "slot", cmd.Slot)
	err := s.Stream(ctx, pgrepl.StreamConfig{
		TLI: tli, Start: cmd.LSN, Source: src, Next: next, Timeout: r.cfg.SenderTimeout,
		OnSent: func(lsn wal.LSN) {
			sb.mu.Lock()
			r.stats.sent.Add(uint64(lsn - sb.sent))
			sb.sent = lsn
			sb.mu.Unlock()
		},
		OnStatus: func(st pgrepl.Status) {
			sb.mu.Lock()
			sb.status, sb.heard = st, time.Now()
			sb.mu.Unlock()
			if sl != nil {
				r.slots.confirm(sl, st.Flush)
			}
			// What standbys have applied is for the server to know at once:
			// commits may wait for it.
			r.reports.nudge()
		},
		OnFeedback: func(f pgrepl.Feedback) {
			sb.mu.Lock()
			sb.feedback, sb.wantsFeed = f, true
			sb.mu.Unlock()
		},
	})
	sb.mu.Lock()
	sb.state = "idle"
	sb.mu.Unlock()
	if err == nil {
		r.log.Info("the stream to a standby ended", "standby", sb.name, "addr", sb.addr, "tli", tli, "sent", sb.sent)
	}
	return err
}

// planServe decides whether WAL of tli from lsn can be served where the
// present is timeline current: the checks that walsender.c makes, in its
// words. For a timeline that has ended it answers what follows.
func planServe(tli wal.TLI, lsn wal.LSN, current wal.TLI, history *wal.History) (*pgrepl.EndOfTimeline, *pgrepl.Error) {
	if tli == current {
		return nil, nil
	}
	end, next, ok := history.SwitchPoint(tli)
	if !ok {
		return nil, &pgrepl.Error{Code: "XX000", Message: fmt.Sprintf("requested timeline %d is not in this server's history", tli)}
	}
	if end < lsn {
		return nil, &pgrepl.Error{Code: "XX000",
			Message: fmt.Sprintf("requested starting point %s on timeline %d is not in this server's history", lsn, tli),
			Detail:  fmt.Sprintf("This server's history forked from timeline %d at %s.", tli, end)}
	}
	return &pgrepl.EndOfTimeline{TLI: tli, Next: next, LSN: end}, nil
}
