package basebackup

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"rideau/internal/durable"
	"rideau/wal"
)

// While a backup is under way, DIR has a directory that says so:
//
//	rideau-basebackup/
//	    state.json        whose backup, which attempts, what DIR was before
//	    journal           which extents are on disk, a line each
//	    pg_control.old    the control file that DIR had, if it had one
//	    manifest.old      and its backup_manifest, likewise
//
// It is there from before the first byte of DIR changes until after the last, so
// DIR with it is an interrupted backup and DIR without it never is.
const (
	stateDir     = "rideau-basebackup"
	stateFile    = "state.json"
	journalFile  = "journal"
	oldControl   = "pg_control.old"
	oldManifest  = "manifest.old"
	removedState = ".rideau-basebackup.removed" // renamed to that, it is no state any more
	stateVersion = 1
)

// A stateInit is what is known when the first attempt begins, and does not
// change after.
type stateInit struct {
	SystemID       uint64 `json:"system_identifier,string"`
	Major          int    `json:"postgresql"`
	CatalogVersion uint32 `json:"catalog_version"`
	ExtentSize     int64  `json:"extent_size"`
	Base           base   `json:"base"`
}

// A base is what DIR was before the first attempt.
type base struct {
	Kind localKind `json:"kind"`

	// Since: every page of a file that the base had is at least as fresh as the
	// server was there, as the first attempt judged it. Zero if it could not
	// rely on that; then no later one can, because by then pages may be half
	// written that the base's own LSN would not bring again.
	Since    wal.LSN `json:"since"`
	SinceTLI wal.TLI `json:"since_tli"`

	// Reach: no page of the base is fresher than this.
	Reach    wal.LSN `json:"reach"`
	ReachTLI wal.TLI `json:"reach_tli"`

	Checksums bool   `json:"checksums"`
	History   string `json:"history,omitempty"` // the text of SinceTLI's history file
}

// An attempt is one run that began to copy.
type attempt struct {
	Start   wal.LSN   `json:"start"`
	TLI     wal.TLI   `json:"tli"`
	Time    time.Time `json:"time"`
	History string    `json:"history,omitempty"` // the text of TLI's history file

	// Server is what tells this server from its other standbys, which have the
	// same system identifier, see serverFacts.identity.
	Server    string `json:"server"`
	Checksums bool   `json:"checksums"`
}

// An extentRecord says that an extent is on disk. The caller has synced it.
type extentRecord struct {
	Path   string // within the data directory, with slashes
	Extent int
	Length int64
	Since  wal.LSN // the start of the attempt that copied it
}

// A state is the state of an interrupted backup, or of one that runs. Its
// methods may be called from several goroutines.
//
// Memory: a file of which something is known takes its path and some 100 bytes,
// and 16 for each extent, see TestStateMemory.
type state struct {
	dir string // of the state itself

	mu      sync.RWMutex // of all below; an append is synced under it
	init    stateInit
	tries   []attempt
	journal *os.File
	files   map[string]*knownFile
}

// A knownFile is what the journal says of a file.
type knownFile struct {
	void    bool // forgotten: what the base had of it is not to be relied upon either
	extents []knownExtent
}

type knownExtent struct {
	since  wal.LSN // zero: not known
	length int64
}

// A stateError says that an interrupted backup cannot be gone on with: its state
// is damaged, or of a version that we do not know.
type stateError struct {
	Path string
	Err  error
}

func (e *stateError) Error() string {
	return fmt.Sprintf("cannot go on with the interrupted backup: %q: %v", e.Path, e.Err)
}
func (e *stateError) Unwrap() error { return e.Err }

// stateJSON is the file.
type stateJSON struct {
	Version int       `json:"version"`
	Created time.Time `json:"created"`
	stateInit
	Attempts []attempt `json:"attempts"`
}

// createState makes the state of a backup into dir, with the bytes of files that
// are about to go (oldControl, oldManifest). Everything is on disk when it
// returns: dir may be changed from then on.
func createState(dir string, init stateInit, old map[string][]byte) (*state, error) {
	path := filepath.Join(dir, stateDir)
	if _, err := os.Stat(filepath.Join(path, stateFile)); err == nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	// What was being made when the power went, or removed, says nothing.
	for _, rubbish := range []string{path, filepath.Join(dir, removedState)} {
		if err := os.RemoveAll(rubbish); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	if err := durable.SyncDir(dir); err != nil {
		return nil, err
	}
	for name, b := range old {
		if err := durable.WriteFile(filepath.Join(path, name), b, 0o600); err != nil {
			return nil, err
		}
	}
	if err := durable.WriteFile(filepath.Join(path, journalFile), nil, 0o600); err != nil {
		return nil, err
	}
	s := &state{dir: path, init: init, files: map[string]*knownFile{}}
	if err := s.save(); err != nil { // last: without it the rest is no state
		return nil, err
	}
	return s, s.openJournal()
}

// openState reads the state in dir. Without one the error is fs.ErrNotExist, a
// [*stateError] if nobody can go on with it.
func openState(dir string) (*state, error) {
	path := filepath.Join(dir, stateDir)
	text, err := os.ReadFile(filepath.Join(path, stateFile))
	if err != nil {
		return nil, err
	}
	var j stateJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, &stateError{Path: filepath.Join(path, stateFile), Err: err}
	}
	if j.Version != stateVersion || j.ExtentSize <= 0 {
		return nil, &stateError{Path: filepath.Join(path, stateFile), Err: fmt.Errorf("unknown version %d", j.Version)}
	}
	s := &state{dir: path, init: j.stateInit, tries: j.Attempts, files: map[string]*knownFile{}}
	return s, s.openJournal()
}

// attempts are the runs so far, oldest first.
func (s *state) attempts() []attempt {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.tries)
}

// addAttempt writes down that a run begins, before it copies anything.
func (s *state) addAttempt(a attempt) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tries = append(s.tries, a)
	return s.save()
}

func (s *state) save() error {
	j := stateJSON{Version: stateVersion, Created: time.Now().UTC(), stateInit: s.init, Attempts: s.tries}
	if len(s.tries) > 0 {
		j.Created = s.tries[0].Time
	}
	text, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(s.dir, stateFile), append(text, '\n'), 0o600)
}

// saved answers the bytes of an old file that createState was given, nil if it
// was not.
func (s *state) saved(name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// The journal is lines, each with a CRC-32C of what follows it:
//
//	9C3F01AB + 2 67108864 0/68000070 base/5/16390
//	1D02E7F0 - base/5/16390
//
// "+" an extent is on disk, "-" all that was known of a file is void. The path
// is the rest of the line, quoted as Go does if it has what would break a line.
// A power cut leaves a prefix of what was appended, or blocks of zeros in it, but
// only after what had been synced; the first line that does not verify ends it.

// openJournal reads the journal, cuts off what is torn, and opens it to append.
func (s *state) openJournal() (err error) {
	path := filepath.Join(s.dir, journalFile)
	if s.journal, err = os.OpenFile(path, os.O_RDWR, 0o600); err != nil {
		return &stateError{Path: path, Err: err}
	}
	in := bufio.NewReader(s.journal)
	good := int64(0)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil || !s.replay(line[:len(line)-1]) {
			break // io.EOF, or torn; a disk that cannot be read will say so below
		}
		good += int64(len(line))
	}
	// Cut, and synced before anything is appended, or the next line could come
	// to stand behind a torn one.
	if err := s.journal.Truncate(good); err != nil {
		return err
	}
	if _, err := s.journal.Seek(good, 0); err != nil {
		return err
	}
	return s.journal.Sync()
}

// replay applies a line, or answers false if it does not verify.
func (s *state) replay(line []byte) bool {
	sum, text, ok := bytes.Cut(line, []byte(" "))
	if !ok || string(sum) != journalSum(text) {
		return false
	}
	op, rest, _ := strings.Cut(string(text), " ")
	switch op {
	case "-":
		path, err := journalPath(rest)
		if err != nil {
			return false
		}
		s.files[path] = &knownFile{void: true}
		return true
	case "+":
		f := strings.SplitN(rest, " ", 4)
		if len(f) != 4 {
			return false
		}
		extent, err1 := strconv.Atoi(f[0])
		length, err2 := strconv.ParseInt(f[1], 10, 64)
		since, err3 := wal.ParseLSN(f[2])
		path, err4 := journalPath(f[3])
		// 1<<20 extents are more than any file of the server's has: a bound.
		if errors.Join(err1, err2, err3, err4) != nil || extent < 0 || extent >= 1<<20 {
			return false
		}
		s.apply(extentRecord{Path: path, Extent: extent, Length: length, Since: since})
		return true
	}
	return false
}

func (s *state) apply(r extentRecord) {
	f := s.files[r.Path]
	if f == nil {
		f = &knownFile{}
		s.files[strings.Clone(r.Path)] = f // a clone, or the whole line stays in memory
	}
	if n := r.Extent + 1 - len(f.extents); n > 0 {
		f.extents = append(f.extents, make([]knownExtent, n)...)
	}
	f.extents[r.Extent] = knownExtent{since: r.Since, length: r.Length}
}

// record writes down that extents are on disk. The caller has synced them.
func (s *state) record(entries []extentRecord) error {
	var b []byte
	for _, r := range entries {
		b = journalLine(b, fmt.Sprintf("+ %d %d %s %s", r.Extent, r.Length, r.Since, quotePath(r.Path)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.append(b); err != nil {
		return err
	}
	for _, r := range entries {
		s.apply(r)
	}
	return nil
}

// forget writes down that nothing is known of files any more, neither from the
// journal nor from what DIR was before: before they are made, emptied or
// replaced as a whole. All in one call cost one sync.
func (s *state) forget(paths ...string) error {
	var b []byte
	for _, p := range paths {
		b = journalLine(b, "- "+quotePath(p))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.append(b); err != nil {
		return err
	}
	for _, p := range paths {
		s.files[p] = &knownFile{void: true}
	}
	return nil
}

func (s *state) append(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if _, err := s.journal.Write(b); err != nil {
		return err
	}
	return durable.Fdatasync(s.journal)
}

// known answers since when an extent is known, and how long it was then.
func (s *state) known(path string, extent int) (since wal.LSN, length int64, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f := s.files[path]
	if f == nil || extent < 0 || extent >= len(f.extents) || f.extents[extent].since == 0 {
		return 0, 0, false
	}
	return f.extents[extent].since, f.extents[extent].length, true
}

// reach is where what is known of a file ends, at the least that the file must
// be long; not ok if nothing is known.
func (s *state) reach(path string) (end int64, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f := s.files[path]
	if f == nil {
		return 0, false
	}
	for i, e := range f.extents {
		if e.since != 0 {
			end, ok = int64(i)*s.init.ExtentSize+e.length, true
		}
	}
	return end, ok
}

// void reports whether what DIR had of a file before the first attempt is not to
// be relied upon, because it was to be replaced.
func (s *state) void(path string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f := s.files[path]
	return f != nil && f.void
}

// remove ends the state: the backup is complete.
func (s *state) remove() error {
	if err := s.Close(); err != nil {
		return err
	}
	parent := filepath.Dir(s.dir)
	gone := filepath.Join(parent, removedState)
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	// One rename, or a crash could leave a state without its journal, which
	// would say of a complete backup that nothing of it is known.
	if err := durable.Rename(s.dir, gone); err != nil {
		return err
	}
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	return durable.SyncDir(parent)
}

// Close leaves the state as it is, for another run.
func (s *state) Close() error { return s.journal.Close() }

func journalSum(text []byte) string {
	return fmt.Sprintf("%08X", crc32.Checksum(text, journalCRC))
}

var journalCRC = crc32.MakeTable(crc32.Castagnoli)

func journalLine(b []byte, text string) []byte {
	b = append(b, journalSum([]byte(text))...)
	b = append(b, ' ')
	b = append(b, text...)
	return append(b, '\n')
}

// quotePath writes a path on one line; journalPath reads it.
func quotePath(path string) string {
	if strings.ContainsAny(path, "\n\"") {
		return strconv.Quote(path)
	}
	return path
}

func journalPath(s string) (string, error) {
	if strings.HasPrefix(s, `"`) {
		return strconv.Unquote(s)
	}
	return s, nil
}
