package basebackup

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rideau/basebackup/control"
	"rideau/basebackup/manifest"
	"rideau/internal/durable"
	"rideau/wal"
)

// A localKind is what a directory is before anything of it is changed.
type localKind string

const (
	localEmpty       localKind = "empty"       // or absent
	localInterrupted localKind = "interrupted" // a backup that did not come to its end
	localComplete    localKind = "complete"    // a backup that nobody has started
	localCluster     localKind = "cluster"     // any other data directory that does not run
)

// A local is what is in DIR, read without changing anything.
type local struct {
	kind  localKind
	major int // of PG_VERSION; of an interrupted backup, what its state says

	// control is global/pg_control, and controlBytes the file. Nil for an empty
	// directory and an interrupted backup, whose state has it.
	control      *control.Control
	controlBytes []byte

	// manifest is that of a complete backup, and manifestBytes the file.
	manifest      *manifest.Manifest
	manifestBytes []byte

	// why a directory that has a manifest, or a label, is a cluster all the
	// same: a half sentence for the log.
	why string

	label     bool                     // there is a backup_label: recovery has not begun from it
	histories map[wal.TLI]*wal.History // of DIR's own pg_wal
	leftovers []string                 // temporary files of ours, to be removed
}

// A RunningError says that a server runs in the directory, or seems to.
type RunningError struct {
	Dir string
	PID int
}

func (e *RunningError) Error() string {
	return fmt.Sprintf("a server seems to run in directory %q, process %d", e.Dir, e.PID)
}

// A ForeignError says that a directory holds something that is not ours to
// replace.
type ForeignError struct {
	Dir   string
	Names []string // some of what is there
	Err   error    // what is wrong with it, if it looks like a data directory
}

func (e *ForeignError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("directory %q cannot be taken for a data directory: %v", e.Dir, e.Err)
	}
	return fmt.Sprintf("directory %q is neither empty nor a data directory: it has no PG_VERSION, and holds %s", e.Dir, strings.Join(e.Names, ", "))
}

func (e *ForeignError) Unwrap() error { return e.Err }

// inspect finds out what is in dir. It reads names, PG_VERSION, pg_control,
// backup_manifest and history files, and changes nothing. Errors are
// [*RunningError], [*ForeignError] and those of the file system.
func inspect(dir string) (*local, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return &local{kind: localEmpty}, nil
	}
	if err != nil {
		return nil, err
	}
	l := &local{}
	var names []string
	for _, e := range entries {
		switch name := e.Name(); {
		case name == durable.LockName:
		case name == removedState || durable.IsTemp(name):
			l.leftovers = append(l.leftovers, name)
		case name == "lost+found": // a file system of its own, as initdb knows it
		default:
			names = append(names, name)
		}
	}
	// First of all, whatever else is there.
	if pid := serverPID(dir); pid != 0 {
		return nil, &RunningError{Dir: dir, PID: pid}
	}
	// A state beside a control file: a crash left it, either before the first
	// byte of DIR had changed, or after the last. Since then somebody may have
	// started a server here, so DIR is judged by what it is.
	_, stateErr := os.Lstat(filepath.Join(dir, stateDir, stateFile))
	_, controlErr := os.Lstat(filepath.Join(dir, "global", "pg_control"))
	if stateErr == nil && controlErr != nil {
		l.kind = localInterrupted
		return l, nil
	}
	// A state without its file was being made when the power went, and nothing
	// else had been changed.
	if i := slices.Index(names, stateDir); i >= 0 {
		names = slices.Delete(names, i, i+1)
		l.leftovers = append(l.leftovers, stateDir)
	}
	if len(names) == 0 {
		l.kind = localEmpty
		return l, nil
	}
	return l, l.inspectCluster(dir, names)
}

// inspectCluster is for a directory that has files.
func (l *local) inspectCluster(dir string, names []string) error {
	foreign := func(err error) error {
		return &ForeignError{Dir: dir, Names: names[:min(len(names), 5)], Err: err}
	}
	version, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) {
		return foreign(nil)
	}
	if err != nil {
		return err
	}
	if l.major, err = strconv.Atoi(strings.TrimSpace(string(version))); err != nil {
		return foreign(fmt.Errorf("PG_VERSION says %q", version[:min(len(version), 20)]))
	}
	l.controlBytes, err = readAtMost(filepath.Join(dir, "global", "pg_control"), control.Size)
	if errors.Is(err, fs.ErrNotExist) {
		// Another tool's backup that was cut short, a directory that somebody
		// emptied: without pg_control nobody can say whose it is.
		return foreign(errors.New("it has no global/pg_control"))
	}
	if err != nil {
		return err
	}
	if l.control, err = control.Parse(l.controlBytes); err != nil {
		return foreign(err)
	}
	l.label = slices.Contains(names, "backup_label")
	if err := l.readHistories(filepath.Join(dir, "pg_wal")); err != nil {
		return err
	}
	l.kind = localCluster
	l.why, err = l.readManifest(dir, names)
	if err == nil && l.why == "" {
		l.kind = localComplete
	}
	return err
}

// readManifest answers why the directory is not a backup that nobody has
// started; "" if it is. A server that starts renames backup_label
// (read_backup_label), makes postmaster.pid and postmaster.opts, and writes
// pg_control before it changes any page. Of these pg_control is the one that
// nobody puts back by hand, and the manifest says when it was written.
//
// Its checksum says almost nothing: a pg_control ends with its own CRC-32C, and
// the CRC-32C of whatever is followed by its own is a constant. All good files of
// one format have the same.
func (l *local) readManifest(dir string, names []string) (why string, err error) {
	if !slices.Contains(names, manifest.Name) {
		return "it has no backup_manifest", nil
	}
	if l.manifestBytes, err = os.ReadFile(filepath.Join(dir, manifest.Name)); err != nil {
		return "", err
	}
	m, err := manifest.Parse(bytes.NewReader(l.manifestBytes))
	if err != nil {
		return fmt.Sprintf("its backup_manifest cannot be relied upon (%v)", err), nil
	}
	if !l.label {
		return "it has no backup_label: it was started", nil
	}
	for _, name := range []string{"postmaster.pid", "postmaster.opts"} {
		if slices.Contains(names, name) {
			return "it has " + name + ": it was started", nil
		}
	}
	if len(m.WAL) == 0 {
		return "its backup_manifest names no WAL", nil
	}
	if m.SystemID != 0 && m.SystemID != l.control.SystemID {
		return "its backup_manifest is another system's", nil
	}
	i := slices.IndexFunc(m.Files, func(f manifest.File) bool { return f.Path == "global/pg_control" })
	if i < 0 {
		return "its backup_manifest does not have pg_control", nil
	}
	sum := manifest.CRCBytes(crc32.Checksum(l.controlBytes, journalCRC))
	if f := m.Files[i]; !strings.EqualFold(f.Algorithm, manifest.CRC32C) {
		return "its backup_manifest is not ours: it has no CRC-32C of pg_control", nil
	} else if f.Size != int64(len(l.controlBytes)) || !bytes.Equal(f.Checksum, sum) {
		return "its pg_control is not the backup's", nil
	} else if d := l.control.Time.Sub(f.ModTime).Abs(); d > controlSlack {
		return "its pg_control was written at another time than the backup's: it was started", nil
	}
	l.manifest = m
	return "", nil
}

// controlSlack is how far apart the time in pg_control (time(), before it is
// written) and the time of its file's change (the file system's, to the second
// in a manifest) can be for one and the same write.
const controlSlack = time.Second

// readHistories reads the history files of a pg_wal. One that cannot be read is
// as good as none: it proves nothing.
func (l *local) readHistories(dir string) error {
	l.histories = map[wal.TLI]*wal.History{}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), ".history")
		n, err := strconv.ParseUint(digits, 16, 32)
		tli := wal.TLI(n)
		if !ok || err != nil || tli.HistoryName() != e.Name() {
			continue
		}
		text, err := readAtMost(filepath.Join(dir, e.Name()), 1<<20)
		if err != nil {
			return err
		}
		if h, err := wal.ParseHistory(tli, string(text)); err == nil {
			l.histories[tli] = h
		}
	}
	return nil
}

// history is DIR's own idea of a timeline's past, nil if it has none.
func (l *local) history(tli wal.TLI) *wal.History {
	if tli == 1 {
		return &wal.History{TLI: 1} // which has no file
	}
	return l.histories[tli]
}

// serverPID answers the process of a postmaster.pid that is alive, 0 if there is
// none. A process of another user counts; one that took over the number of a
// server that died does too, as for the server itself (CreateLockFile).
func serverPID(dir string) int {
	text, err := readAtMost(filepath.Join(dir, "postmaster.pid"), 4096)
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if pid = max(pid, -pid); err != nil || pid == 0 { // negative: a single-user server
		return 0
	}
	if err := syscall.Kill(pid, 0); err != nil && !errors.Is(err, syscall.EPERM) {
		return 0
	}
	return pid
}

// readAtMost reads a file, and refuses one that is larger than it can be.
func readAtMost(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%q is larger than %d bytes", path, limit)
	}
	return b, err
}
