package basebackup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"rideau/basebackup/control"
	"rideau/basebackup/manifest"
	"rideau/basebackup/page"
	"rideau/wal"
)

// VerifyConfig says what to verify. Only Dir is needed.
type VerifyConfig struct {
	Dir string

	// Quick reads no files but the manifest, pg_control, the label and the WAL; of
	// the others it looks at names and sizes.
	Quick bool

	// NoWAL says that the WAL was left out on purpose: an archive has it. Else it
	// is missed if it is not in pg_wal.
	NoWAL bool

	// Jobs is how many files are read at a time. Zero: one a processor.
	Jobs int

	// Progress is told how many bytes were read of how many. Nil: nobody.
	Progress func(done, total int64)
}

// A Verification is what could be proven of a backup without a server.
type Verification struct {
	Dir      string `json:"dir"`
	SystemID uint64 `json:"system_identifier,string"`

	// Started: a server has run here since, so the manifest says no longer what
	// should be here. Then only pg_control and the pages were looked at.
	Started bool `json:"started_since"`

	Quick     bool  `json:"quick"`
	Files     int   `json:"files"`
	Bytes     int64 `json:"bytes"`
	Pages     int64 `json:"pages"`
	Checksums bool  `json:"page_checksums"`

	// Torn are pages that do not verify, and need not: recovery brings them anew.
	Torn int64 `json:"torn_pages"`

	// WAL are the stretches without which the backup does not become consistent,
	// the oldest first. WALAbsent: none of it is in pg_wal; an archive has it.
	WAL       []WALRange `json:"wal"`
	WALAbsent bool       `json:"wal_absent"`

	Problems []Problem `json:"problems"`

	// More counts the damaged pages that are not listed, for there are too many.
	More int64 `json:"more_damaged_pages,omitempty"`
}

// A WALRange is a stretch of WAL on one timeline, [From, To).
type WALRange struct {
	TLI  wal.TLI `json:"timeline"`
	From wal.LSN `json:"from"`
	To   wal.LSN `json:"to"`
}

// A Problem is one thing that is not as it should be. Kind is one of
// manifest.Kind, or "page", "control", "label", "wal", "unfinished".
type Problem struct {
	Path   string  `json:"path"`
	Kind   string  `json:"kind"`
	Block  *uint32 `json:"block,omitempty"` // of a page, within the relation's fork
	Detail string  `json:"detail"`
}

// Sound reports whether nothing is wrong.
func (v *Verification) Sound() bool { return len(v.Problems) == 0 }

// maxPages bounds how many damaged pages are listed.
const maxPages = 1000

// Verify proves what can be proven of the backup or data directory cfg.Dir
// without a server: that nothing is missing, added or changed since it was
// made, that each page is sound, that pg_control is whole and of the same
// system, and that the WAL from start to stop is there, record by record.
// Nothing is changed. The error says that it could not be judged; what is wrong
// is in the Verification.
func Verify(ctx context.Context, cfg VerifyConfig) (*Verification, error) {
	if cfg.Dir == "" {
		return nil, errors.New("no directory to verify given")
	}
	if pid := serverPID(cfg.Dir); pid != 0 {
		return nil, &RunningError{Dir: cfg.Dir, PID: pid}
	}
	if _, err := os.Stat(cfg.Dir); err != nil {
		return nil, err
	}
	v := &verifier{cfg: cfg, Verification: Verification{Dir: cfg.Dir, Quick: cfg.Quick, WAL: []WALRange{}, Problems: []Problem{}}}
	if Unfinished(cfg.Dir) {
		v.problem(stateDir, "unfinished", "the backup was not completed: the same command that began it goes on with it")
		return &v.Verification, nil
	}
	if !v.has("PG_VERSION") && !v.has(manifest.Name) {
		return nil, fmt.Errorf("directory %q is neither a backup nor a data directory", cfg.Dir)
	}
	v.readControl()
	var err error
	if v.Started = v.startedSince(); v.Started {
		err = v.verifyPages(ctx)
	} else {
		err = v.verifyBackup(ctx)
	}
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(v.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(deref(a.Block), deref(b.Block)))
	})
	return &v.Verification, nil
}

func deref(n *uint32) uint32 {
	if n == nil {
		return 0
	}
	return *n
}

type verifier struct {
	cfg     VerifyConfig
	control *control.Control // nil: it cannot be read

	// excused is the LSN from which on a page may be torn: WAL has it whole. Zero:
	// none may.
	excused wal.LSN

	mu    sync.Mutex // of Problems and More, while files are read
	pages atomic.Int64
	torn  atomic.Int64

	Verification
}

func (v *verifier) at(name string) string { return filepath.Join(v.cfg.Dir, filepath.FromSlash(name)) }

func (v *verifier) has(name string) bool {
	_, err := os.Lstat(v.at(name))
	return err == nil
}

func (v *verifier) problem(path, kind, format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.Problems = append(v.Problems, Problem{Path: path, Kind: kind, Detail: fmt.Sprintf(format, args...)})
}

// startedSince reports whether a server has run in the directory: it moves
// backup_label away when it begins, and postmaster.opts is never copied.
func (v *verifier) startedSince() bool {
	return v.has("postmaster.opts") || !v.has("backup_label") && v.has("backup_label.old") || !v.has(manifest.Name)
}

const controlPath = "global/pg_control"

func (v *verifier) readControl() {
	b, err := os.ReadFile(v.at(controlPath))
	if err != nil {
		v.problem(controlPath, "control", "could not be read: %v", plainReason(err))
		return
	}
	if v.control, err = control.Parse(b); err != nil {
		v.problem(controlPath, "control", "%v", err)
		return
	}
	v.SystemID, v.Checksums = v.control.SystemID, v.control.ChecksumVersion != 0
}

// plainReason is err without the path, which is said beside it.
func plainReason(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// verifyBackup holds the directory against its manifest, and proves its WAL.
func (v *verifier) verifyBackup(ctx context.Context) error {
	f, err := os.Open(v.at(manifest.Name))
	if err != nil {
		return err
	}
	m, err := manifest.Parse(f)
	f.Close()
	if bad, ok := errors.AsType[*manifest.ParseError](err); ok {
		v.problem(manifest.Name, "manifest", "%v", bad)
		return nil
	}
	if err != nil {
		return err
	}
	if v.control != nil && m.Version >= 2 && m.SystemID != v.control.SystemID {
		v.problem(controlPath, "control", "has system identifier %d, and the manifest has %d", v.control.SystemID, m.SystemID)
	}
	for i := len(m.WAL) - 1; i >= 0; i-- { // the manifest has the newest first
		v.WAL = append(v.WAL, WALRange{m.WAL[i].TLI, m.WAL[i].Start, m.WAL[i].End})
	}
	if len(v.WAL) > 0 {
		v.excused = v.WAL[0].From
	}
	v.verifyLabel()
	if err := v.verifyFiles(ctx, m); err != nil {
		return err
	}
	return v.verifyWAL(ctx)
}

func (v *verifier) verifyFiles(ctx context.Context, m *manifest.Manifest) error {
	if v.cfg.Quick {
		v.compareSizes(m)
		return ctx.Err()
	}
	o := manifest.Options{Jobs: v.cfg.Jobs, Progress: v.cfg.Progress}
	if v.control != nil {
		o.Block = v.look
	}
	report, err := manifest.Verify(ctx, v.cfg.Dir, o)
	if err != nil {
		return err
	}
	v.Files, v.Bytes, v.Pages, v.Torn = report.Files, report.Bytes, v.pages.Load(), v.torn.Load()
	for _, p := range report.Problems {
		v.problem(p.Path, string(p.Kind), "%s", p.Detail)
	}
	return nil
}

// compareSizes looks whether what the manifest lists is there, as long as it
// says. What is there beside it goes unseen.
func (v *verifier) compareSizes(m *manifest.Manifest) {
	for _, f := range m.Files {
		info, err := os.Stat(v.at(f.Path))
		switch {
		case f.Path == "postgresql.auto.conf": // it may be changed, see manifest.Verify
			continue
		case errors.Is(err, fs.ErrNotExist):
			v.problem(f.Path, string(manifest.Missing), "is in the manifest but not on disk")
			continue
		case err != nil:
			v.problem(f.Path, string(manifest.Unreadable), "could not be looked at: %v", plainReason(err))
			continue
		case info.Size() != f.Size:
			v.problem(f.Path, string(manifest.Size), "has %d bytes on disk, and %d in the manifest", info.Size(), f.Size)
		}
		v.Files++
	}
}

// verifyLabel checks that backup_label is there and is of this backup. Without
// it the server would recover from another point, and be corrupt.
func (v *verifier) verifyLabel() {
	text, err := os.ReadFile(v.at("backup_label"))
	if err != nil {
		v.problem("backup_label", "label", "%v: without it a server that starts here would be corrupt", plainReason(err))
		return
	}
	switch start, err := labelStart(string(text)); {
	case err != nil:
		v.problem("backup_label", "label", "does not say where the backup starts")
	case len(v.WAL) > 0 && start.LSN != v.WAL[0].From:
		v.problem("backup_label", "label", "starts at %s, and the manifest at %s", start.LSN, v.WAL[0].From)
	}
}

// look checks the pages of a piece of a file, which begins with one.
func (v *verifier) look(name string, offset int64, b []byte) {
	kind, segno := kindOf(name)
	if kind != mainFork && kind != sideFork {
		return
	}
	block := segno*v.control.SegmentBlocks + uint32(offset/page.Size)
	for ; len(b) > 0; block++ {
		p := b[:min(len(b), page.Size)]
		b = b[len(p):]
		v.pages.Add(1)
		if page.Check(p, block, v.Checksums) {
			continue
		}
		// A file that was being extended can end in the middle of a page.
		if v.excused != 0 && (len(p) < page.Size || page.LSN(p) >= v.excused) {
			v.torn.Add(1)
			continue
		}
		v.damaged(name, page.Explain(p, block, v.Checksums))
	}
}

func (v *verifier) damaged(name string, fault page.Fault) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.Problems) >= maxPages {
		v.More++
		return
	}
	v.Problems = append(v.Problems, Problem{Path: name, Kind: "page", Block: &fault.Block, Detail: fault.Detail})
}

// verifyWAL proves that every record of the ranges is in pg_wal.
func (v *verifier) verifyWAL(ctx context.Context) error {
	if v.control == nil {
		return nil
	}
	if v.WALAbsent = !v.anyWAL(); v.WALAbsent {
		if !v.cfg.NoWAL && len(v.WAL) > 0 {
			v.problem("pg_wal", "wal", "none of the WAL that the backup needs is there")
		}
		return nil
	}
	for _, r := range v.WAL {
		name, err := v.proveRange(ctx, r)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			v.problem("pg_wal/"+name, "wal", "%v", plainReason(err))
		}
	}
	return nil
}

// anyWAL reports whether any segment that the backup needs is there.
func (v *verifier) anyWAL() bool {
	size := v.control.WALSegmentSize
	for _, r := range v.WAL {
		for lsn := size.Start(r.From); lsn < r.To; lsn = size.Next(lsn) {
			if v.has("pg_wal/" + size.FileName(r.TLI, lsn)) {
				return true
			}
		}
	}
	return false
}

// proveRange reads the segments of r from the beginning of the first, up to the
// end of the range. The name is of the segment that err is about.
func (v *verifier) proveRange(ctx context.Context, r WALRange) (name string, err error) {
	size := v.control.WALSegmentSize
	c := wal.NewChecker(size, v.control.SystemID, r.TLI, size.Start(r.From))
	for lsn := size.Start(r.From); lsn < r.To; lsn = size.Next(lsn) {
		name = size.FileName(r.TLI, lsn)
		f, err := os.Open(v.at("pg_wal/" + name))
		if err != nil {
			return name, err
		}
		stops := []wal.LSN{min(r.To, size.Next(lsn))}
		if lsn < r.From {
			stops = []wal.LSN{r.From, stops[0]}
		}
		for _, stop := range stops {
			if _, err = io.CopyN(c, contextReader{ctx, f}, int64(stop-c.Pos())); errors.Is(err, io.EOF) {
				err = fmt.Errorf("ends at %s, and is needed up to %s", c.Pos(), stop)
			}
			if err == nil && (stop == r.From || stop == r.To) && !recordEnds(size, c, stop) {
				err = fmt.Errorf("no record begins at %s", stop)
			}
			if err != nil {
				break
			}
		}
		f.Close()
		if err != nil {
			return name, err
		}
	}
	return "", nil
}

// recordEnds reports whether a record ends, and the next may begin, at lsn, up
// to which c has read. At the beginning of a page the server also names the
// place behind the page's header (XLogBytePosToRecPtr).
func recordEnds(size wal.SegmentSize, c *wal.Checker, lsn wal.LSN) bool {
	const walPage, shortHeader, longHeader = 8192, 24, 40 // XLOG_BLCKSZ, SizeOfXLogShortPHD, SizeOfXLogLongPHD
	end := c.End()
	header := wal.LSN(shortHeader)
	if size.Start(end) == end {
		header = longHeader
	}
	return end == lsn || end%walPage == 0 && lsn == end+header
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// verifyPages looks at the pages of a data directory in which a server has run.
// If it was not stopped properly, recovery is still to come.
func (v *verifier) verifyPages(ctx context.Context) error {
	if v.control == nil || v.cfg.Quick {
		return ctx.Err()
	}
	if s := v.control.State; s != control.ShutDown && s != control.ShutDownInRecovery {
		v.excused = v.control.Redo
	}
	files, total, err := v.relationFiles()
	if err != nil {
		return err
	}
	buffer := make([]byte, 256<<10)
	for _, name := range files {
		if err := v.readPages(ctx, name, total, buffer); err != nil {
			return err
		}
	}
	v.Pages, v.Torn = v.pages.Load(), v.torn.Load()
	return nil
}

// relationFiles lists the files made of pages, links to tablespaces followed.
// Where recovery is still to come, unlogged relations are not worth a look: it
// empties them.
func (v *verifier) relationFiles() (files []string, total int64, err error) {
	var walk func(dir string) error
	unlogged := map[string]bool{}
	walk = func(dir string) error {
		names, err := os.ReadDir(v.at(dir))
		if err != nil {
			return err
		}
		for _, d := range names {
			name := path.Join(dir, d.Name())
			info, err := os.Stat(v.at(name))
			if err != nil {
				return err
			}
			if info.IsDir() {
				if err := walk(name); err != nil {
					return err
				}
				continue
			}
			at, rel, fork, _, ok := relationFile(name)
			if !ok || !info.Mode().IsRegular() {
				continue
			}
			unlogged[at+"/"+rel] = unlogged[at+"/"+rel] || fork == "init"
			files = append(files, name)
			total += info.Size()
		}
		return nil
	}
	for _, top := range []string{"global", "base", "pg_tblspc"} {
		if err := walk(top); err != nil {
			return nil, 0, err
		}
	}
	if v.excused != 0 {
		files = slices.DeleteFunc(files, func(name string) bool {
			at, rel, fork, _, _ := relationFile(name)
			return fork != "init" && unlogged[at+"/"+rel]
		})
	}
	return files, total, nil
}

func (v *verifier) readPages(ctx context.Context, name string, total int64, buffer []byte) error {
	f, err := os.Open(v.at(name))
	if err != nil {
		return err
	}
	defer f.Close()
	v.Files++
	for at := int64(0); ; {
		n, err := io.ReadFull(contextReader{ctx, f}, buffer)
		v.look(name, at, buffer[:n])
		at += int64(n)
		v.Bytes += int64(n)
		if v.cfg.Progress != nil {
			v.cfg.Progress(v.Bytes, total)
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			v.problem(name, string(manifest.Unreadable), "could not be read: %v", plainReason(err))
			return nil
		}
	}
}

// Unfinished reports whether dir holds a backup that did not come to its end,
// and that Take can go on with.
func Unfinished(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, stateDir))
	return err == nil
}
