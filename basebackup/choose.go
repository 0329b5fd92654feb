package basebackup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"rideau/basebackup/manifest"
	"rideau/basebackup/page"
	"rideau/basebackup/summary"
	"rideau/wal"
)

// choose asks the ladder, and makes the state that says that DIR is under way.
func (b *backup) choose(ctx context.Context) error {
	var init stateInit
	var why string
	var tries []attempt
	var err error
	if b.local.kind == localInterrupted {
		if b.state, err = openState(b.cfg.Dir); err != nil {
			return err
		}
		init, tries = b.state.init, b.state.attempts()
		if init.ExtentSize != extentSize {
			return &stateError{Path: filepath.Join(b.cfg.Dir, stateDir, stateFile),
				Err: fmt.Errorf("its extents are of %d bytes, and this program's of %d", init.ExtentSize, extentSize)}
		}
	} else {
		init, why = b.local.standing()
	}
	server, err := b.ladderServer(ctx)
	if err != nil {
		return err
	}
	if b.plan, err = choose(init, why, tries, server); err != nil {
		return err
	}
	if b.plan.base.kind == newerPages || b.plan.journal.kind == newerPages {
		if server.summaries, err = b.summaryNames(ctx); err != nil {
			return err
		}
		if b.plan, err = choose(init, why, tries, server); err != nil {
			return err
		}
	}
	if err := b.readSummaries(ctx); err != nil {
		return err
	}
	if c := b.local.control; c != nil && b.plan.base.kind == different {
		b.warn(fmt.Sprintf("%s: what it may have that the server has not is lost from here on", b.plan.reason))
	}
	// Somebody may have started a server in DIR while this one took its time
	// over the checkpoint. Soon nobody can.
	if pid := serverPID(b.cfg.Dir); pid != 0 {
		return &RunningError{Dir: b.cfg.Dir, PID: pid}
	}
	if b.local.kind == localInterrupted {
		text, err := b.state.saved(oldManifest)
		if err != nil {
			return err
		}
		if text != nil {
			m, err := manifest.Parse(bytes.NewReader(text))
			if err != nil {
				return err
			}
			b.baseFiles = sizes(m)
		}
	} else {
		if b.local.manifest != nil && b.local.kind == localComplete {
			b.baseFiles = sizes(b.local.manifest)
		}
		init.SystemID, init.Major, init.CatalogVersion = b.facts.systemID, b.facts.major, b.facts.catalog
		init.ExtentSize, init.Base = extentSize, b.plan.onward(init.Base)
		old := map[string][]byte{}
		if b.local.controlBytes != nil {
			old[oldControl] = b.local.controlBytes
		}
		if b.baseFiles != nil {
			old[oldManifest] = b.local.manifestBytes
		}
		for _, name := range b.local.leftovers {
			if err := os.RemoveAll(filepath.Join(b.cfg.Dir, name)); err != nil {
				return err
			}
		}
		if b.state, err = createState(b.cfg.Dir, init, old); err != nil {
			return err
		}
	}
	return b.state.addAttempt(attempt{Start: b.start.LSN, TLI: b.start.TLI, Time: time.Now().UTC(),
		History: server.history.Format(), Server: server.identity, Checksums: b.facts.checksums})
}

// sizes are those of the files of a manifest.
func sizes(m *manifest.Manifest) map[string]int64 {
	files := make(map[string]int64, len(m.Files))
	for _, f := range m.Files {
		files[f.Path] = f.Size
	}
	return files
}

// ladderServer asks the server what the ladder wants to know.
func (b *backup) ladderServer(ctx context.Context) (*ladderServer, error) {
	f := b.facts
	s := &ladderServer{systemID: f.systemID, major: f.major, catalog: f.catalog, recovery: f.recovery, checksums: f.checksums, start: b.start.LSN}
	text := ""
	if b.start.TLI > 1 {
		name := "pg_wal/" + b.start.TLI.HistoryName()
		raw, err := b.control.file(ctx, name, 0, 1<<20)
		if err != nil {
			return nil, &FileError{Server: f.server, Path: name, Err: err}
		}
		text = string(raw)
	}
	var err error
	if s.history, err = wal.ParseHistory(b.start.TLI, text); err != nil {
		return nil, err
	}
	reach := "pg_current_wal_flush_lsn()"
	if f.recovery {
		reach = "(SELECT min_recovery_end_lsn FROM pg_control_recovery())"
	}
	r, err := b.control.row(ctx, "SELECT "+reach+", concat_ws(' ', a.change, b.change, inet_server_addr(), inet_server_port()) FROM pg_stat_file('PG_VERSION', true) a, pg_stat_file('base/1/PG_VERSION', true) b")
	if err != nil {
		return nil, err
	}
	if s.reach, err = wal.ParseLSN(r[0]); err != nil {
		return nil, err
	}
	s.identity = r[1]
	return s, nil
}

// summaryWait is how long the server's summarizer may take to reach the start of
// the backup; it works as WAL is written, so it is seldom far behind.
const summaryWait = 30 * time.Second

// summaryNames lists the server's WAL summaries, once they reach the start of
// this backup. None if it makes none, or does not come so far in time.
func (b *backup) summaryNames(ctx context.Context) ([]summary.Name, error) {
	if b.facts.major < 17 || !b.facts.summarizes {
		return nil, nil
	}
	b.phase(WaitingSummaries, "")
	for end := time.Now().Add(summaryWait); ; {
		r, err := b.control.row(ctx, fmt.Sprintf("SELECT summarized_lsn >= '%s' FROM pg_get_wal_summarizer_state()", b.start.LSN))
		if err != nil {
			return nil, err
		}
		if r[0] == "t" {
			break
		}
		if time.Now().After(end) {
			b.log.Info("WAL summaries do not reach the start of the backup; looking at pages' LSNs instead")
			return nil, nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
	names, err := b.control.names(ctx, "pg_wal/summaries")
	if err != nil {
		return nil, err
	}
	var out []summary.Name
	for _, n := range names {
		if name, ok := summary.ParseName(n); ok {
			out = append(out, name)
		}
	}
	return out, nil
}

// readSummaries reads those that the plan needs. One that is gone by now, or
// damaged, only costs the rung.
func (b *backup) readSummaries(ctx context.Context) error {
	if len(b.plan.summaries) == 0 {
		return nil
	}
	b.changes = &summary.Table{}
	for _, n := range b.plan.summaries {
		err := b.changes.Add(&remoteFile{ctx: ctx, session: b.control, path: "pg_wal/summaries/" + n.String()})
		var corrupt *summary.CorruptError
		switch {
		case err == nil:
			continue
		case !errors.As(err, &corrupt) && !errors.Is(err, fs.ErrNotExist):
			return err
		}
		b.warn(fmt.Sprintf("could not use WAL summary %s: %v; looking at pages' LSNs instead", n, err))
		b.changes, b.plan.summaries = nil, nil
		for _, r := range []*rung{&b.plan.base, &b.plan.journal} {
			if r.kind == listed {
				r.kind = newerPages
			}
		}
		return nil
	}
	return nil
}

// A remoteFile reads a file of the server's from its beginning to its end.
type remoteFile struct {
	ctx     context.Context
	session *session
	path    string
	off     int64
	buf     []byte
}

func (r *remoteFile) Read(p []byte) (int, error) {
	if len(r.buf) == 0 {
		b, err := r.session.file(r.ctx, r.path, r.off, 1<<20)
		if err != nil {
			return 0, err
		}
		if len(b) == 0 {
			return 0, io.EOF
		}
		r.off += int64(len(b))
		r.buf = b
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// survey finds out of which main forks DIR has something that the plan's rungs
// may be used for. All others are made void before anything is written to them:
// a later attempt must not take half of a new file for what was there before.
//
// On the way it takes out what is a file of another name too, a symbolic or a
// hard link: to write to it would change something that is not DIR's alone.
func (b *backup) survey() error {
	if b.local.kind == localEmpty {
		return nil
	}
	var void []string
	for _, f := range b.listing.files {
		name := filepath.Join(b.cfg.Dir, filepath.FromSlash(f.path))
		info, err := os.Lstat(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		ok := err == nil && info.Mode().IsRegular() && !linked(info)
		if err == nil && !ok {
			if err := os.Remove(name); err != nil {
				return err
			}
		}
		if f.kind != mainFork {
			continue
		}
		reach, journaled := b.state.reach(f.path)
		switch {
		case journaled:
			ok = ok && info.Size() >= reach
			f.base = ok && !b.state.void(f.path) && b.ofBase(f, info)
		case b.state.void(f.path):
			continue
		default:
			ok = ok && b.ofBase(f, info)
			f.base = ok
		}
		if !ok && (journaled || b.plan.base.kind != everything) {
			void = append(void, f.path)
		}
	}
	return b.state.forget(void...)
}

// ofBase reports whether a file is as the base had it: with a manifest, by its
// size there.
func (b *backup) ofBase(f *file, info fs.FileInfo) bool {
	if b.plan.base.kind == everything {
		return false
	}
	if b.baseFiles == nil {
		return true
	}
	size, has := b.baseFiles[f.path]
	return has && size == info.Size()
}

// how is the copier's question: how is this extent to be copied?
func (b *backup) how(f *file, extent int, off, n int64) (method, wal.LSN, []uint32) {
	if f.kind != mainFork {
		return whole, 0, nil
	}
	_, length, known := b.state.known(f.path, extent)
	r := rung{kind: everything}
	switch {
	case known && length == n:
		// Not since its own attempt: a later one, of a server that lagged behind,
		// may have written older pages over it before it was cut off.
		r = b.plan.journal
	case f.base:
		r = b.plan.base
	}
	switch r.kind {
	case different:
		return digests, 0, nil
	case newerPages:
		return newer, r.since, nil
	case listed:
		return b.listedBlocks(f, off, n)
	}
	return whole, 0, nil
}

// listedBlocks are those of an extent that WAL summaries list.
func (b *backup) listedBlocks(f *file, off, n int64) (method, wal.LSN, []uint32) {
	fork, ok := forkOf(f.path)
	if !ok {
		return whole, 0, nil
	}
	c := b.changes.Lookup(fork)
	inFork := f.segno * uint32(b.facts.segment)
	first := inFork + uint32(off/page.Size)
	last := first + uint32((n+page.Size-1)/page.Size)
	var picks []uint32
	for block := range c.Blocks(first, last) {
		picks = append(picks, block-inFork)
	}
	return picked, 0, picks
}

// The tablespaces that have no link (src/include/catalog/pg_tablespace.dat).
const (
	defaultTablespace = 1663
	globalTablespace  = 1664
)

// forkOf is the main fork that a file is of, as WAL summaries name it.
func forkOf(path string) (summary.Fork, bool) {
	dir, rel, _, _, ok := relationFile(path)
	if !ok {
		return summary.Fork{}, false
	}
	n, _ := number(rel)
	f := summary.Fork{Relation: n}
	parts := strings.Split(dir, "/")
	switch parts[0] {
	case "global":
		f.Tablespace = globalTablespace
	case "base":
		f.Tablespace = defaultTablespace
		f.Database, _ = number(parts[1])
	default:
		f.Tablespace, _ = number(parts[1])
		f.Database, _ = number(parts[3])
	}
	return f, true
}

// method is how the plan copies, for the report: of more than one, all.
func (b *backup) method() string {
	kinds := map[string]bool{}
	if b.plan.journal != (rung{}) {
		kinds[b.plan.journal.kind.String()] = true
	}
	if b.plan.base.kind != everything || len(kinds) == 0 {
		kinds[b.plan.base.kind.String()] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")
}
