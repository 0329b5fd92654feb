package basebackup

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"rideau/archive"
	"rideau/basebackup/compress"
	"rideau/basebackup/control"
	"rideau/basebackup/manifest"
	"rideau/basebackup/summary"
	"rideau/basebackup/walsave"
	"rideau/internal/durable"
	"rideau/wal"
)

// Take makes cfg.Dir a copy of the server's data directory, whatever of that is
// there already. It returns when all of it is on disk and can be started.
//
// After an error DIR cannot be started, and the same call goes on from there;
// unless the error came before anything was touched. A *CorruptError comes with
// a report: the backup is complete, but pages of it were damaged on the server.
func Take(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	b := &backup{limit: newLimiter(cfg.MaxRate), cfg: cfg, log: cfg.Log, began: time.Now(), report: &Report{Dir: cfg.Dir, Corrupt: []CorruptPage{}, Warnings: []string{}}}
	ctx, b.fail = context.WithCancelCause(ctx)
	defer b.fail(nil)
	stopTelling := b.tell()
	defer stopTelling()

	err := b.run(ctx)
	// What ended the others, not what they died of.
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	if err != nil {
		return nil, err
	}
	b.phase(Done, "")
	if n := b.report.CorruptAll; n > 0 {
		return b.report, &CorruptError{Server: b.facts.server, Pages: n}
	}
	return b.report, nil
}

// A backup is one run of Take.
type backup struct {
	cfg    Config
	log    *slog.Logger
	began  time.Time
	fail   context.CancelCauseFunc
	report *Report

	dialer  *dialer
	control *session
	facts   *facts
	local   *local
	state   *state
	places  []place
	start   startPoint
	listing *listing
	copier  *copier

	compress *compression
	plan     choice
	umask    fs.FileMode

	outside   map[string]string // configuration files that the server has elsewhere
	disks     []*durable.FS     // where DIR and its tablespaces are
	baseFiles map[string]int64  // of the manifest that DIR had; nil: it had none
	changes   *summary.Table    // if the plan wants WAL summaries

	manifestFile *os.File
	manifest     *manifest.Writer
	manifestMu   sync.Mutex

	journal journal

	limit    *limiter
	counting atomic.Pointer[copier] // once there is one
	now      atomic.Pointer[now]
	walBytes atomic.Int64
	walCame  atomic.Int64 // bytes that were received of WAL, over SQL
	walWait  atomic.Pointer[string]
}

// now is the phase.
type now struct {
	phase   Phase
	waiting string
}

func (b *backup) phase(p Phase, waiting string) {
	b.now.Store(&now{p, waiting})
	if b.cfg.Progress != nil {
		b.cfg.Progress(b.progress())
	}
}

func (b *backup) progress() Progress {
	n := b.now.Load()
	p := Progress{Elapsed: time.Since(b.began), Received: b.walCame.Load(), WALBytes: b.walBytes.Load()}
	if n != nil {
		p.Phase, p.Waiting = n.phase, n.waiting
	}
	if wait := b.walWait.Load(); wait != nil && p.Phase == WaitingWAL {
		p.Waiting = *wait
	}
	return p
}

// run is the backup, from the first look at DIR to its last sync.
func (b *backup) run(ctx context.Context) (err error) {
	if b.dialer, err = newDialer(b.cfg.Conninfo); err != nil {
		return err
	}
	unlock, made, err := b.lockDir()
	if err != nil {
		return err
	}
	defer unlock()
	if made {
		defer func() {
			if err != nil {
				os.Remove(b.cfg.Dir) // unless there is something in it by now
			}
		}()
	}
	if b.local, err = inspect(b.cfg.Dir); err != nil {
		return err
	}
	if err := b.connect(ctx); err != nil {
		return err
	}
	defer b.control.Close()
	if b.local.kind != localInterrupted {
		init, _ := b.local.standing()
		if err := mismatch(init, &ladderServer{systemID: b.facts.systemID, major: b.facts.major, catalog: b.facts.catalog}); err != nil {
			return err
		}
	}
	if err := b.look(ctx); err != nil {
		return err
	}
	if err := b.compression(ctx); err != nil {
		return err
	}

	b.phase(Checkpoint, "")
	// Those that copy connect meanwhile; but not for a checkpoint that may take so
	// long that something on the way forgets them.
	early := b.cfg.Checkpoint == "fast"
	if early {
		b.dialer.prepare(ctx, b.cfg.Jobs)
		defer b.dialer.discard()
	}
	var spaces []tablespace
	if b.start, spaces, err = b.control.start(ctx, b.facts, b.cfg.Label, b.cfg.Checkpoint == "fast"); err != nil {
		return err
	}
	if !early {
		b.dialer.prepare(ctx, b.cfg.Jobs)
		defer b.dialer.discard()
	}
	if err := b.lookAgain(ctx, spaces); err != nil {
		return err
	}
	b.log.Info("backup started", "lsn", b.start.LSN, "tli", b.start.TLI, "server", b.facts.server)

	g, gctx := errgroup.WithContext(ctx)
	pulse, stopPulse := context.WithCancel(gctx)
	defer stopPulse()
	g.Go(func() error { return b.pulse(pulse) })
	stop := make(chan walsave.Position, 1)
	g.Go(func() error {
		defer stopPulse()
		return b.take(gctx, g, stop, stopPulse)
	})
	err = g.Wait()
	b.close()
	return err
}

// close leaves what was copied for another run.
func (b *backup) close() {
	if b.manifestFile != nil {
		b.manifestFile.Close()
	}
	if b.state != nil {
		// Whatever ended the backup, what is on disk now need not travel again.
		if err := b.journal.flush(); err != nil {
			b.log.Warn("could not record what was copied", "err", err)
		}
		b.state.Close()
	}
	for _, d := range b.disks {
		d.Close()
	}
}

// lockDir makes DIR if it is not there, and keeps other backups out of it.
func (b *backup) lockDir() (unlock func(), made bool, err error) {
	dir, err := filepath.Abs(b.cfg.Dir)
	if err != nil {
		return nil, false, err
	}
	b.cfg.Dir, b.report.Dir = dir, dir
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, false, err
		}
		made = true
	}
	lock, err := durable.HoldDir(dir)
	if err != nil {
		return nil, made, err
	}
	return func() { lock.Close() }, made, nil
}

// connect finds the server, and sees that it and the role will do.
func (b *backup) connect(ctx context.Context) (err error) {
	b.phase(Connecting, "")
	if b.control, err = b.dialer.session(ctx); err != nil {
		return err
	}
	if b.facts, err = b.control.facts(ctx); err != nil {
		return err
	}
	f := b.facts
	if err := f.fit(b.control.pc.PID()); err != nil {
		return err
	}
	missing, err := b.control.privileges(ctx, f.major)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return &PrivilegeError{Server: f.server, Role: f.role, Functions: missing}
	}
	if err := b.limitJobs(); err != nil {
		return err
	}
	who, err := b.control.row(ctx, whoSQL)
	if err != nil {
		return err
	}
	b.dialer.who = who[0]
	b.report.Server, b.report.Version, b.report.SystemID, b.report.Standby = f.server, f.version, f.systemID, f.recovery
	return nil
}

// others are the connections beside those that copy: control, and one for WAL.
const others = 2

// limitJobs heeds the role's limit of connections: what waited for one at the
// end would wait for ever.
func (b *backup) limitJobs() error {
	switch limit := b.facts.connections; {
	case limit < 0:
	case limit <= others:
		return &SettingError{b.facts.server, fmt.Sprintf("the connection limit of role %q", b.facts.role), strconv.Itoa(limit), fmt.Sprintf("%d or more", others+1)}
	case limit < b.cfg.Jobs+others:
		b.cfg.Jobs = limit - others
		b.warn(fmt.Sprintf("the role's connection limit of %d leaves %d to copy with", limit, b.cfg.Jobs))
	}
	return nil
}

// compression finds out with what the server can compress, and that it does.
func (b *backup) compression(ctx context.Context) error {
	if b.cfg.Compress == "none" {
		return nil
	}
	rows, err := b.control.rows(ctx, compress.FactsSQL)
	if err != nil {
		return err
	}
	var have []compress.Fact
	for _, r := range rows {
		args, err := strconv.Atoi(r[2])
		if err != nil {
			return err
		}
		have = append(have, compress.Fact{Schema: r[0], Name: r[1], Args: args, Extension: r[3]})
	}
	methods := compress.Detect(have)
	for {
		m, ok, err := compress.Choose(methods, b.cfg.Compress)
		if err != nil || !ok {
			return err
		}
		err = b.tryCompression(ctx, m)
		if err == nil {
			b.compress = &compression{method: m, auto: b.cfg.Compress == "auto"}
			return nil
		}
		if b.cfg.Compress != "auto" || len(methods) == 1 || ctx.Err() != nil {
			return fmt.Errorf("cannot use compression %q: %w", m.Name, err)
		}
		b.log.Info("compression does not work", "method", m.Name, "err", err)
		methods = methods[1:]
	}
}

func (b *backup) tryCompression(ctx context.Context, m compress.Method) error {
	r, err := b.control.row(ctx, m.CheckSQL())
	if err != nil {
		return err
	}
	answer, err := hex.DecodeString(strings.TrimPrefix(r[0], `\x`))
	if err != nil {
		return err
	}
	return m.Check(answer)
}

// look sees that DIR and the places of tablespaces can be written to. Nothing
// is touched yet.
func (b *backup) look(ctx context.Context) error {
	old, err := links(b.cfg.Dir)
	if err != nil {
		return err
	}
	if b.places, err = places(b.facts.spaces, b.cfg.Tablespaces, old); err != nil {
		return err
	}
	if err := distinct(ctx, b.control, b.facts.server, b.cfg.Dir, "."); err != nil {
		return err
	}
	// A pg_wal that leads elsewhere is left to do so; what it leads to is emptied.
	if err := distinct(ctx, b.control, b.facts.server, filepath.Join(b.cfg.Dir, "pg_wal"), "pg_wal"); err != nil {
		return err
	}
	for _, name := range []string{"global", "base"} {
		if info, err := os.Lstat(filepath.Join(b.cfg.Dir, name)); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return &ForeignError{Dir: b.cfg.Dir, Err: fmt.Errorf("%q is a symbolic link", name)}
		}
	}
	for _, p := range b.places {
		if p.local == "" {
			continue
		}
		if p.local == b.cfg.Dir || strings.HasPrefix(p.local, b.cfg.Dir+string(filepath.Separator)) {
			return &TablespaceError{p.space.oid, p.space.location, p.local, "it is inside the backup's own directory"}
		}
		if err := distinct(ctx, b.control, b.facts.server, p.local, fmt.Sprintf("pg_tblspc/%d", p.space.oid)); err != nil {
			return err
		}
		if err := p.vacant(); err != nil {
			return err
		}
	}
	return nil
}

// lookAgain is for tablespaces that came or went before the backup began. What
// comes after is in its WAL, which makes and fills it.
func (b *backup) lookAgain(ctx context.Context, spaces []tablespace) error {
	if slices.Equal(spaces, b.facts.spaces) {
		return nil
	}
	b.facts.spaces = spaces
	b.warn("tablespaces were made or dropped as the backup began; replay of its WAL makes their links as the server has them")
	return b.look(ctx)
}

// pulseEvery is how often the control session is felt.
const pulseEvery = 2 * time.Second

// pulse ends the backup as soon as its session is lost.
func (b *backup) pulse(ctx context.Context) error {
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := b.control.pulse(ctx, b.facts)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return b.void(err)
		}
	}
}

// void is err as the end of the whole backup, if it is of the control session.
func (b *backup) void(err error) error {
	var promoted *PromotedError
	var pooler *PoolerError
	if !errors.As(err, &promoted) && !errors.As(err, &pooler) {
		err = &ControlError{Server: b.facts.server, Err: err}
	}
	b.fail(err)
	return err
}

// take copies, between start and stop, and finishes.
func (b *backup) take(ctx context.Context, g *errgroup.Group, stop chan walsave.Position, stopPulse func()) error {
	if err := b.prepare(ctx); err != nil {
		return err
	}
	var saved *walsave.Result
	wait := make(chan struct{})
	if b.cfg.WAL == "none" {
		close(wait)
	} else {
		source, err := b.walSource(ctx)
		if err != nil {
			return err
		}
		g.Go(func() error {
			defer close(wait)
			defer source.Close()
			var err error
			saved, err = b.saveWAL(ctx, source, stop)
			return err
		})
	}

	b.phase(Listing, "")
	if err := b.list(ctx); err != nil {
		return err
	}
	if err := b.survey(); err != nil {
		return err
	}
	if err := b.openDisks(); err != nil {
		return err
	}
	b.phase(Copying, "")
	if err := b.copy(ctx); err != nil {
		return err
	}
	controlBytes, controlFile, err := readControl(ctx, func(ctx context.Context) ([]byte, error) {
		return b.control.file(ctx, "global/pg_control", 0, control.Size)
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil && lost(err):
		return b.void(err)
	case err != nil:
		return &FileError{Server: b.facts.server, Path: "global/pg_control", Err: err}
	}
	if controlFile.SystemID != b.facts.systemID {
		return &FileError{Server: b.facts.server, Path: "global/pg_control", Err: fmt.Errorf("it is of system %d, not %d", controlFile.SystemID, b.facts.systemID)}
	}

	if err := b.outsideFiles(ctx); err != nil {
		return err
	}
	b.phase(Stopping, "")
	end, err := b.stop(ctx)
	if err != nil {
		return err
	}
	stopPulse() // from here on the session may go
	b.phase(WaitingWAL, "")
	stop <- walsave.Position{TLI: b.report.StopTLI, LSN: b.report.StopLSN}
	select {
	case <-wait:
	case <-ctx.Done():
		return ctx.Err()
	}
	if b.cfg.WAL != "none" && saved == nil {
		<-ctx.Done() // it failed, and says why
		return ctx.Err()
	}
	b.phase(Syncing, "")
	return b.finish(ctx, end, saved, controlBytes, controlFile)
}

// stop ends the backup on the server.
func (b *backup) stop(ctx context.Context) (stopped, error) {
	if err := b.control.pulse(ctx, b.facts); err != nil {
		return stopped{}, b.void(err)
	}
	end, err := b.control.stop(ctx, b.facts)
	if err != nil {
		if ctx.Err() != nil {
			return stopped{}, ctx.Err()
		}
		return stopped{}, b.void(err)
	}
	from, err := labelStart(end.label)
	if err != nil {
		return stopped{}, err
	}
	if from != b.start {
		return stopped{}, fmt.Errorf("server %q started the backup at %s on timeline %d, and says at its end that it was %s on timeline %d",
			b.facts.server, b.start.LSN, b.start.TLI, from.LSN, from.TLI)
	}
	tli, err := b.stopTLI(ctx)
	if err != nil {
		return stopped{}, err
	}
	r := b.report
	r.StartLSN, r.StartTLI, r.StopLSN, r.StopTLI = b.start.LSN, b.start.TLI, end.lsn, tli
	b.log.Info("backup stopped", "lsn", end.lsn, "tli", tli)
	return end, nil
}

// stopTLI is the timeline of the stop. A standby may have followed its upstream
// to another since the start.
func (b *backup) stopTLI(ctx context.Context) (wal.TLI, error) {
	if !b.facts.recovery {
		return b.start.TLI, nil
	}
	r, err := b.control.row(ctx, "SELECT greatest(min_recovery_end_timeline, timeline_id) FROM pg_control_recovery(), pg_control_checkpoint()")
	if err != nil {
		return 0, err
	}
	var tli wal.TLI
	_, err = fmt.Sscan(r[0], &tli)
	return tli, err
}

// prepare chooses how to copy, and takes from DIR what would let it start.
func (b *backup) prepare(ctx context.Context) error {
	f := b.facts
	if err := b.choose(ctx); err != nil {
		return err
	}
	b.report.Method, b.report.Reason, b.report.Resumed = b.method(), b.plan.reason, b.local.kind == localInterrupted
	b.log.Info("copying", "method", b.report.Method, "because", b.report.Reason)
	err := os.Chmod(b.cfg.Dir, fs.FileMode(f.dirMode))
	if err != nil {
		return err
	}
	for _, name := range []string{"global/pg_control", "backup_label", "backup_manifest", "tablespace_map", "standby.signal", "recovery.signal"} {
		if err := os.Remove(filepath.Join(b.cfg.Dir, filepath.FromSlash(name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if name == "global/pg_control" { // without it nothing starts; the rest may go
			if err := durable.SyncDir(filepath.Join(b.cfg.Dir, "global")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if b.umask, err = umaskOf(filepath.Join(b.cfg.Dir, stateDir)); err != nil {
		return err
	}
	b.manifestFile, err = os.OpenFile(filepath.Join(b.cfg.Dir, stateDir, "backup_manifest"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, b.fileMode())
	if err != nil {
		return err
	}
	b.manifest = manifest.NewWriter(b.manifestFile, manifest.VersionFor(f.major), f.systemID)
	return nil
}

// fileMode is that of files, as the server's data directory has it.
func (b *backup) fileMode() fs.FileMode { return fs.FileMode(b.facts.dirMode) & 0o666 }

// umaskOf finds out what new files in dir lack of the mode that was asked for.
func umaskOf(dir string) (fs.FileMode, error) {
	name := filepath.Join(dir, "umask")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return 0, err
	}
	defer os.Remove(name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return 0o666 &^ info.Mode().Perm(), nil
}

// walSource is where WAL comes from.
func (b *backup) walSource(ctx context.Context) (walsave.Source, error) {
	f := b.facts
	from := b.cfg.WAL
	switch {
	case from == "sql":
		return walsave.NewSQL(b.walReader(), f.server, f.walSize, f.systemID), nil
	case strings.HasPrefix(from, "http://"), strings.HasPrefix(from, "https://"):
		remote, err := archive.NewRemote(from)
		if err != nil {
			return nil, err
		}
		// That it answers is better known now than when all has been copied.
		if r, _, err := remote.Open(ctx, wal.TLI(1).HistoryName()); err == nil {
			r.Close()
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return walsave.NewArchive(remote, from, f.walSize, f.systemID), nil
	case strings.Contains(from, "="), strings.HasPrefix(from, "postgres://"), strings.HasPrefix(from, "postgresql://"):
		return walsave.NewReplication(from, f.walSize, f.systemID)
	}
	if info, err := os.Stat(from); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, fmt.Errorf("archive %q is not a directory", from)
	}
	return walsave.NewArchive(archive.New(archive.Dir(from)), from, f.walSize, f.systemID), nil
}

// walReader reads WAL over a connection of its own, compressed while files are.
func (b *backup) walReader() *walsave.ConnReader {
	r := walsave.NewReader(b.dialer.connect)
	r.Received = func(n int64) {
		b.walCame.Add(n)
		b.limit.wal(n)
	}
	if b.compress != nil {
		decoder := b.compress.method.NewDecoder()
		r.Pack = func() (func(string) string, func(dst, src []byte, n int) ([]byte, error)) {
			if !b.compress.compressing() {
				return nil, nil
			}
			return b.compress.method.Expr, decoder.Decode
		}
	}
	return r
}

func (b *backup) saveWAL(ctx context.Context, source walsave.Source, stop chan walsave.Position) (*walsave.Result, error) {
	return walsave.Save(ctx, walsave.Config{
		Dir: filepath.Join(b.cfg.Dir, "pg_wal"), SystemID: b.facts.systemID, SegmentSize: b.facts.walSize,
		Start: walsave.Position{TLI: b.start.TLI, LSN: b.start.LSN}, Source: source, FileMode: b.fileMode(), Log: b.log,
		Progress: func(s walsave.Status) {
			b.walBytes.Store(s.Bytes)
			wait := s.Waiting.For
			if s.Waiting.Err != nil {
				wait += ": " + s.Waiting.Err.Error()
			}
			b.walWait.Store(&wait)
		},
	}, stop)
}

// patiently tries again while what fails is the connection.
func (b *backup) patiently(ctx context.Context, try func() error) error {
	for end := time.Now().Add(patience); ; {
		err := try()
		if err == nil || ctx.Err() != nil || !lost(err) || time.Now().After(end) {
			return err
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
}

// list lists the server's files, and makes their directories.
func (b *backup) list(ctx context.Context) error {
	err := b.patiently(ctx, func() error {
		s, err := b.dialer.stream(ctx)
		if err != nil {
			return err
		}
		if b.listing, err = list(ctx, s, b.facts, b.cfg.Logs); err != nil {
			s.Close()
			return err
		}
		b.dialer.giveBack(s)
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range b.listing.dirs {
		// Our own state, seen through the server: DIR is inside of what is copied.
		if path.Base(d) == stateDir && strings.HasSuffix(b.cfg.Dir, "/"+path.Dir(d)) {
			return &LiveError{b.facts.server, b.cfg.Dir}
		}
	}
	if b.listing.control == nil {
		return &FileError{Server: b.facts.server, Path: "global/pg_control", Err: fs.ErrNotExist}
	}
	if n := len(b.listing.later); n > 0 {
		b.warn(fmt.Sprintf("%d tablespaces were made during the backup: recovery will make them where the server has them, which must exist", n))
	}
	mode := fs.FileMode(b.facts.dirMode)
	byLink := map[string]place{}
	for _, p := range b.places {
		byLink[fmt.Sprintf("pg_tblspc/%d", p.space.oid)] = p
	}
	for _, d := range b.listing.dirs {
		name := filepath.Join(b.cfg.Dir, filepath.FromSlash(d))
		if p, ok := byLink[d]; ok {
			if p.link != "" && p.link != p.local {
				b.warn(fmt.Sprintf("tablespace %q was in %q, which is left as it is", p.space.name, p.link))
			}
			if err := p.make(b.cfg.Dir, b.facts.versionDir(), mode); err != nil {
				return err
			}
			delete(byLink, d)
			continue
		}
		if err := mkdir(name, mode, b.umask); err != nil {
			return err
		}
	}
	for d := range byLink {
		b.log.Info("tablespace was dropped", "path", d)
	}
	for _, d := range []string{"archive_status", "summaries"} {
		if d == "summaries" && b.facts.major < 17 {
			continue
		}
		if err := mkdir(filepath.Join(b.cfg.Dir, "pg_wal", d), mode, b.umask); err != nil {
			return err
		}
	}
	return nil
}

// mkdir makes a directory unless it is there, with mode. A link to another place
// goes: what is there is not DIR's. But pg_wal may lead elsewhere.
func mkdir(name string, mode, umask fs.FileMode) error {
	info, err := os.Lstat(name)
	if err == nil && info.Mode()&fs.ModeSymlink != 0 && filepath.Base(name) != "pg_wal" {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	err = os.Mkdir(name, mode)
	if errors.Is(err, fs.ErrExist) {
		if info, serr := os.Stat(name); serr == nil && info.IsDir() {
			return nil
		}
	}
	if err == nil && mode&(umask|umask>>2&0o111) != 0 {
		err = os.Chmod(name, mode)
	}
	return err
}

// copy copies the listed files.
func (b *backup) copy(ctx context.Context) error {
	c := &copier{
		dir: b.cfg.Dir, mode: b.fileMode(), umask: b.umask, d: b.dialer, f: b.facts, checksums: b.facts.checksums, start: b.start.LSN,
		end: func() wal.LSN { return b.control.position(ctx) },
		how: b.how, limit: b.limit, compress: b.compress, done: b.fileDone, copied: b.journal.add,
	}
	c.queue.fill(b.listing.files)
	c.totalFiles, c.totalBytes = len(b.listing.files), b.listing.bytes
	b.copier = c
	b.counting.Store(c)
	b.journal.start(b)
	g, ctx := errgroup.WithContext(ctx)
	recording, stop := context.WithCancel(ctx)
	g.Go(func() error { return b.journal.run(recording) })
	g.Go(func() error {
		defer stop()
		return c.run(ctx, b.cfg.Jobs)
	})
	return g.Wait()
}

// fileDone writes a file's line of the manifest.
func (b *backup) fileDone(f *file, vanished bool, size int64, crc uint32) error {
	b.manifestMu.Lock()
	defer b.manifestMu.Unlock()
	if vanished {
		return nil
	}
	if f.path == "postgresql.auto.conf" && b.cfg.Standby {
		return nil // it is changed, and pg_verifybackup does not look at it
	}
	return b.listed(f.path, size, time.Unix(f.mtime, 0), crc)
}

// listed writes the line of the manifest for a file that is in DIR.
func (b *backup) listed(path string, size int64, changed time.Time, crc uint32) error {
	return b.manifest.Add(manifest.File{Path: path, Size: size, ModTime: changed, Algorithm: manifest.CRC32C, Checksum: manifest.CRCBytes(crc)})
}

// own writes a file that is not copied, with its line of the manifest.
func (b *backup) own(name string, content []byte) error {
	if err := durable.WriteFile(filepath.Join(b.cfg.Dir, filepath.FromSlash(name)), content, b.fileMode()); err != nil {
		return err
	}
	return b.listed(name, int64(len(content)), time.Now(), crc32.Checksum(content, castagnoli))
}

// finish makes DIR what it is to be, the control file last.
func (b *backup) finish(ctx context.Context, end stopped, saved *walsave.Result, controlBytes []byte, parsed *control.Control) error {
	if err := b.removeExtra(); err != nil {
		return err
	}
	if err := b.own("backup_label", []byte(end.label)); err != nil {
		return err
	}
	if err := b.configure(); err != nil {
		return err
	}
	// Its own time, by which it is known again: all control files have the same
	// CRC, because they end with their own.
	if err := b.listed("global/pg_control", control.Size, parsed.Time, crc32.Checksum(controlBytes, castagnoli)); err != nil {
		return err
	}
	if err := b.manifest.Finish(b.ranges(saved)); err != nil {
		return err
	}
	if err := errors.Join(b.manifestFile.Sync(), b.manifestFile.Close()); err != nil {
		return err
	}
	b.manifestFile = nil
	if err := os.Chmod(filepath.Join(b.cfg.Dir, stateDir, "backup_manifest"), b.fileMode()); err != nil {
		return err
	}
	if err := durable.Rename(filepath.Join(b.cfg.Dir, stateDir, "backup_manifest"), filepath.Join(b.cfg.Dir, "backup_manifest")); err != nil {
		return err
	}
	if err := b.sync(); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(b.cfg.Dir, "global", "pg_control"), controlBytes, b.fileMode()); err != nil {
		return err
	}
	if err := b.state.remove(); err != nil {
		return err
	}
	b.state = nil
	b.total(saved)
	return nil
}

// ranges are the manifest's: what WAL a start of the backup needs.
func (b *backup) ranges(saved *walsave.Result) (ranges []manifest.Range) {
	if saved == nil {
		return []manifest.Range{{TLI: b.report.StopTLI, Start: b.report.StartLSN, End: b.report.StopLSN}}
	}
	for _, r := range saved.Ranges {
		ranges = append(ranges, manifest.Range{TLI: r.TLI, Start: r.Start, End: r.End})
	}
	return ranges
}

// total fills in the report.
func (b *backup) total(saved *walsave.Result) {
	r, c := b.report, b.copier
	r.Files, r.Bytes = int(c.filesDone.Load()-c.vanishedFiles.Load())+1, c.bytes.Load()+control.Size
	r.Received, r.Written, r.Vanished = c.received.Load()+b.walCame.Load(), c.written.Load(), int(c.vanishedFiles.Load())
	r.Corrupt, r.CorruptAll = append(r.Corrupt, c.corrupt...), c.corrupted
	if saved != nil {
		r.WALFiles, r.WALBytes = saved.Segments, saved.Bytes
	}
	r.Compress = "none"
	if b.compress != nil {
		r.Compress, r.Compressed = b.compress.method.Name, b.compress.packed.Load()
	}
	r.Elapsed = time.Since(b.began)
}

// removeExtra removes from DIR what the server does not have.
func (b *backup) removeExtra() error {
	var keep []string
	if !b.cfg.Logs && b.facts.logDir != "" && !path.IsAbs(b.facts.logDir) {
		keep = append(keep, path.Clean(b.facts.logDir))
	}
	paths, err := extra(b.cfg.Dir, b.listing, b.facts.versionDir(), keep)
	if err != nil {
		return err
	}
	if err := remove(b.cfg.Dir, paths); err != nil {
		return err
	}
	if n := len(paths); n > 0 {
		b.log.Info("removed what the server does not have", "files", n)
	}
	b.report.Removed = len(paths)
	return nil
}

// outsideFiles makes the configuration files that the server keeps outside its
// data directory.
func (b *backup) outsideFiles(ctx context.Context) error {
	has := func(name string) bool {
		return slices.ContainsFunc(b.listing.files, func(f *file) bool { return f.path == name })
	}
	b.outside = map[string]string{}
	if !has("postgresql.conf") {
		text, err := outsideConfig(ctx, b.control)
		if err != nil {
			return err
		}
		b.outside["postgresql.conf"] = text
		b.warn("the server's postgresql.conf is not in its data directory: one was made of the settings that the role can see")
	}
	if !has("pg_hba.conf") {
		b.outside["pg_hba.conf"] = outsideHBA
		b.warn("the server's pg_hba.conf is not in its data directory: one was made that lets in only the same user of this machine")
	}
	if !has("pg_ident.conf") {
		b.outside["pg_ident.conf"] = ""
	}
	return nil
}

// configure writes what DIR needs to start and the server keeps elsewhere, and
// what makes it a standby.
func (b *backup) configure() error {
	for _, name := range slices.Sorted(maps.Keys(b.outside)) {
		if err := b.own(name, []byte(b.outside[name])); err != nil {
			return err
		}
	}
	if !b.cfg.Standby {
		return nil
	}
	conninfo := b.cfg.Relay
	if conninfo == "" {
		conninfo = b.dialer.conninfo(b.cfg.Conninfo)
	}
	if err := appendSettings(b.cfg.Dir, standbySettings(conninfo, b.cfg.Slot)); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(b.cfg.Dir, "standby.signal"), nil, b.fileMode())
}

func (b *backup) warn(text string) {
	b.log.Warn(text)
	b.report.Warnings = append(b.report.Warnings, text)
}

// sync puts DIR, and its tablespaces, on disk.
func (b *backup) sync() error {
	if b.cfg.NoSync {
		return nil
	}
	for _, d := range b.disks {
		if err := d.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// openDisks is done before the first file is written: of an error in writing
// back, a descriptor hears that was open when it happened.
func (b *backup) openDisks() error {
	for _, dir := range b.roots() {
		d, err := durable.OpenFS(dir)
		if err != nil {
			return err
		}
		b.disks = append(b.disks, d)
	}
	return nil
}

// roots are the directories that may be on file systems of their own.
func (b *backup) roots() []string {
	roots := map[string]bool{b.cfg.Dir: true}
	for _, p := range b.places {
		if p.local != "" {
			if _, err := os.Stat(p.local); err == nil {
				roots[p.local] = true
			}
		}
	}
	if target, err := filepath.EvalSymlinks(filepath.Join(b.cfg.Dir, "pg_wal")); err == nil {
		roots[target] = true
	}
	return slices.Sorted(maps.Keys(roots))
}

// tell calls Progress until it is told to stop.
func (b *backup) tell() (stop func()) {
	if b.cfg.Progress == nil {
		return func() {}
	}
	report := b.cfg.Progress
	var mu sync.Mutex
	b.cfg.Progress = func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		if c := b.counting.Load(); c != nil {
			p.Files, p.Bytes = int(c.filesDone.Load()), c.bytes.Load()
			p.Received += c.received.Load()
			p.TotalFiles, p.TotalBytes = c.totalFiles, c.totalBytes
			c.mu.Lock()
			p.CorruptPages = c.corrupted
			c.mu.Unlock()
		}
		report(p)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				b.cfg.Progress(b.progress())
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}
