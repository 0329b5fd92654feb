package relay

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"rideau/archive"
	"rideau/internal/durable"
	"rideau/wal"
)

// An identity is what the relay knows of its cluster: kept in its directory,
// so that it can serve standbys while no server is in reach.
type identity struct {
	SystemID    uint64            `json:"system_identifier,string"`
	SegmentSize wal.SegmentSize   `json:"segment_size_bytes"`
	Params      map[string]string `json:"parameters"` // ParameterStatus of the last server
	Settings    map[string]string `json:"settings"`   // what SHOW said
}

// identityFile holds an identity, beside the WAL.
const identityFile = "rideau.json"

// A StateError says that what the relay wrote for itself beside the WAL cannot
// be understood. The WAL is not concerned.
type StateError struct {
	Path  string
	Slots bool // the slots of standbys are in it, which nobody else knows
	Err   error
}

func (e *StateError) Error() string { return fmt.Sprintf("cannot understand %q: %v", e.Path, e.Err) }
func (e *StateError) Unwrap() error { return e.Err }

// A ServerDirError says that a directory is a PostgreSQL server's own. The
// server would recycle and remove our WAL, and recover from what it never wrote.
type ServerDirError struct{ Dir string }

func (e *ServerDirError) Error() string {
	return fmt.Sprintf("directory %q belongs to a PostgreSQL server", e.Dir)
}

// checkDir refuses a server's data directory, by its PG_VERSION, and pg_wal, by
// the directory that every server since 8.0 has in it.
func checkDir(dir string) error {
	for _, name := range []string{"PG_VERSION", "archive_status"} {
		switch _, err := os.Lstat(filepath.Join(dir, name)); {
		case err == nil:
			return &ServerDirError{dir}
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return nil
}

func (r *Relay) path(name string) string { return filepath.Join(r.cfg.Dir, name) }

func (r *Relay) readIdentity() (*identity, error) {
	text, err := os.ReadFile(r.path(identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var id identity
	err = json.Unmarshal(text, &id)
	if err == nil && (!id.SegmentSize.Valid() || id.SystemID == 0) {
		err = errors.New("no system identifier or WAL segment size in it")
	}
	if err != nil {
		return nil, &StateError{Path: r.path(identityFile), Err: err}
	}
	return &id, nil
}

func (r *Relay) writeIdentity(id *identity) error {
	text, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(r.path(identityFile), append(text, '\n'), 0o600)
}

// load reads what an earlier run, or pg_receivewal, left in the directory.
// It leaves r.sp nil if there is nothing.
func (r *Relay) load(ctx context.Context) error {
	id, err := r.readIdentity()
	if err != nil {
		return err
	}
	inv, err := r.archive.Inventory(ctx)
	if err != nil {
		return err
	}
	for _, d := range inv.Damaged {
		r.log.Warn("a file in the directory is not what its name says", "err", d)
	}
	for _, gap := range inv.Check(0).Missing {
		r.log.Warn("WAL is missing in the directory: standbys cannot come by it",
			"from", gap.From, "to", gap.To, "segments", gap.Count)
	}
	if err := r.timelines.load(inv); err != nil {
		return err
	}
	if id == nil {
		if len(inv.Segments) == 0 {
			return r.warnOfOthers()
		}
		// pg_receivewal's directory: the first page tells whose it is. What
		// the server is like we learn when we reach it.
		if id, err = r.identify(inv.Segments[0]); err != nil {
			return err
		}
	}
	r.setIdentity(id)
	sp := newSpool(r.cfg.Dir, id.SegmentSize, id.SystemID, r.log, r.stats)
	if len(inv.Segments) > 0 {
		if inv.SegmentSize != 0 && inv.SegmentSize != id.SegmentSize {
			return fmt.Errorf("the WAL in %q is in segments of %s, but %q says %s", r.cfg.Dir, inv.SegmentSize, identityFile, id.SegmentSize)
		}
		if err := r.recover(sp, inv, 0); err != nil {
			return err
		}
	}
	r.setSpool(sp)
	return nil
}

// warnOfOthers tells when a directory that has no WAL yet holds other things:
// somebody may have meant another.
func (r *Relay) warnOfOthers() error {
	entries, err := os.ReadDir(r.cfg.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); name != durable.LockName && name != slotsFile && name != preparedFile && name != "lost+found" {
			r.log.Warn("the directory to keep WAL in holds other things", "dir", r.cfg.Dir, "for_example", name)
			break
		}
	}
	return nil
}

// identify reads the cluster's identity from the long header of a segment
// (XLogLongPageHeaderData).
func (r *Relay) identify(seg archive.Segment) (*identity, error) {
	f, err := os.Open(r.path(seg.Name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var head [40]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return nil, fmt.Errorf("could not read the header of %q: %w", seg.Name, err)
	}
	id := &identity{
		SystemID:    binary.LittleEndian.Uint64(head[24:]),
		SegmentSize: wal.SegmentSize(binary.LittleEndian.Uint32(head[32:])),
	}
	if !id.SegmentSize.Valid() || id.SystemID == 0 {
		return nil, fmt.Errorf("could not read the header of %q: it is not the first page of a WAL segment", seg.Name)
	}
	return id, nil
}

// reload makes the spool go on from what is on disk, of the timeline that was
// being received only below limit, after something in memory could not be
// trusted any more. Zero: no limit.
func (r *Relay) reload(limit wal.LSN) error {
	sp := r.spool()
	sp.drop()
	inv, err := r.archive.Inventory(context.Background())
	if err != nil {
		return err
	}
	return r.recover(sp, inv, limit)
}

// recover finds how far the WAL on disk goes, by reading records, and makes sp
// go on there.
//
//	...──segment──▶│◀──────── .partial ────────▶
//	   records     │ records ▶│ torn: was never acknowledged
//	               │          end
//
// A timeline counts only once it has reached the point where it left its
// parent: before that, what we published was the end of the parent, and still
// is. With a limit, nothing from there on is looked at of sp's own timeline;
// older ones were synced before that began.
//
// What a process wrote before it was killed is found here whether or not it
// was synced, so it is synced before it is published: only then may it be
// reported.
func (r *Relay) recover(sp *spool, inv *archive.Inventory, limit wal.LSN) error {
	segments := inv.Segments
	for n := len(segments); n > 0; {
		tli := segments[n-1].TLI
		first := n
		for first > 0 && segments[first-1].TLI == tli {
			first--
		}
		below := limit
		if tli != sp.tli {
			below = 0
		}
		end, check, err := r.findEnd(sp, segments[first:n], below)
		if err != nil {
			return err
		}
		if switched := r.timelines.begins(tli); first > 0 && check.End() < switched {
			r.log.Info("timeline has not reached its beginning on disk; going on with its parent",
				"tli", tli, "lsn", check.End(), "begins", switched)
			n = first
			continue
		}
		if err := r.syncFound(segments[first:n]); err != nil {
			return err
		}
		sp.resume(tli, end, check)
		r.log.Info("WAL on disk ends here", "tli", tli, "lsn", end, "complete", min(check.End(), end))
		return nil
	}
	if sp.tli != 0 {
		// Nothing has been written: what was refused came first of all.
		sp.resume(sp.tli, sp.written, wal.NewChecker(sp.size, sp.systemID, sp.tli, sp.written))
	}
	return nil
}

// syncFound syncs the segments that nobody may have synced: a complete one was
// before it got its name.
func (r *Relay) syncFound(segments []archive.Segment) error {
	for _, seg := range segments {
		if !seg.Partial {
			continue
		}
		f, err := os.Open(r.path(seg.Name))
		if err != nil {
			return err
		}
		began := time.Now()
		err = durable.Fdatasync(f)
		f.Close()
		if err != nil {
			return err
		}
		r.stats.fsync.Observe(time.Since(began).Seconds())
	}
	return durable.SyncDir(r.cfg.Dir)
}

// findEnd finds the end of one timeline's segments: where to go on writing,
// with a Checker that goes on there.
func (r *Relay) findEnd(sp *spool, segments []archive.Segment, limit wal.LSN) (wal.LSN, *wal.Checker, error) {
	files := &timelineFiles{dir: sp.dir, size: sp.size, limit: limit, segments: map[wal.LSN]string{}}
	defer files.close()
	var whole wal.LSN // the end of the newest segment that is complete
	for _, seg := range segments {
		// Of two names the whole one comes first; it counts.
		if _, ok := files.segments[seg.LSN]; !ok {
			files.segments[seg.LSN] = r.path(seg.Name)
		}
		if !seg.Partial {
			whole = seg.LSN + wal.LSN(sp.size)
		}
	}
	last := segments[len(segments)-1]
	from := last.LSN
	if limit != 0 {
		from = min(from, sp.size.Start(limit))
	}
	// Segments that were not completed were not synced together: after a power
	// cut the older one may be torn where the newer one is not.
	for {
		path, ok := files.segments[from-wal.LSN(sp.size)]
		if !ok || !strings.HasSuffix(path, partialSuffix) {
			break
		}
		from -= wal.LSN(sp.size)
	}
	// Go back to a segment in which a record begins, so that one that reaches
	// into the last segments is verified from its beginning.
	for {
		if _, ok := files.segments[from-wal.LSN(sp.size)]; !ok {
			break
		}
		from -= wal.LSN(sp.size)
		begins, err := files.recordBegins(from)
		if err != nil {
			return 0, nil, err
		}
		if begins {
			break
		}
	}
	check, why, err := wal.FindEnd(files, sp.size, sp.systemID, last.TLI, from)
	if err != nil {
		return 0, nil, err
	}
	if why != wal.ErrEndOfWAL {
		r.log.Info("the last record on disk is not whole", "tli", last.TLI, "lsn", check.End(), "err", why)
	}
	end := check.End()
	if limit != 0 || end >= whole {
		return end, check, nil
	}
	// The record goes on beyond a segment that is known to be on disk whole.
	buf := make([]byte, chunkSize)
	for end < whole {
		n, err := files.ReadAt(buf[:min(chunkSize, int(whole-end))], int64(end))
		if err != nil && err != io.EOF {
			return 0, nil, err
		}
		if n == 0 {
			break
		}
		if _, err := check.Write(buf[:n]); err != nil {
			r.log.Error("a complete segment on disk is damaged; receiving it again", "tli", last.TLI, "err", err)
			check.Resume()
			return check.End(), check, nil
		}
		end += wal.LSN(n)
	}
	return end, check, nil
}

// timelineFiles reads one timeline's files by LSN.
type timelineFiles struct {
	dir      string
	size     wal.SegmentSize
	limit    wal.LSN // zero: none
	segments map[wal.LSN]string

	open *os.File
	at   wal.LSN // of open
}

func (t *timelineFiles) close() {
	if t.open != nil {
		t.open.Close()
	}
}

// ReadAt reads within one segment; io.EOF at the end of what there is.
func (t *timelineFiles) ReadAt(p []byte, off int64) (int, error) {
	lsn := wal.LSN(off)
	if t.limit != 0 {
		if lsn >= t.limit {
			return 0, io.EOF
		}
		p = p[:min(len(p), int(t.limit-lsn))]
	}
	start := t.size.Start(lsn)
	p = p[:min(len(p), int(t.size.Next(lsn)-lsn))]
	if t.open == nil || t.at != start {
		t.close()
		t.open = nil
		path, ok := t.segments[start]
		if !ok {
			return 0, io.EOF
		}
		f, err := os.Open(path)
		if err != nil {
			return 0, err
		}
		t.open, t.at = f, start
	}
	n, err := t.open.ReadAt(p, int64(lsn-start))
	if err == io.EOF && n > 0 {
		err = nil
	}
	return n, err
}

// recordBegins tells whether a record begins in the segment at start, or all
// of it belongs to one that began before: xlp_rem_len of its first page.
func (t *timelineFiles) recordBegins(start wal.LSN) (bool, error) {
	var head [20]byte
	if _, err := t.ReadAt(head[:], int64(start)); err != nil && err != io.EOF {
		return false, err
	}
	const continues = 0x0001 // XLP_FIRST_IS_CONTRECORD
	if binary.LittleEndian.Uint16(head[2:])&continues == 0 {
		return true, nil
	}
	return binary.LittleEndian.Uint32(head[16:]) < uint32(t.size), nil
}

// learn takes over what a server says of its cluster and of itself.
func (r *Relay) learn(ctx context.Context, c *candidate) error {
	id := &identity{SystemID: c.systemID, SegmentSize: c.segmentSize, Params: map[string]string{}, Settings: map[string]string{}}
	for k, v := range c.conn.Params() {
		id.Params[k] = v
	}
	for _, name := range []string{"wal_segment_size", "data_directory_mode", "server_version", "server_version_num", "wal_level", "max_wal_senders", "max_replication_slots", "block_size", "wal_block_size"} {
		v, err := c.conn.Show(ctx, name)
		if err != nil {
			return fmt.Errorf("could not ask server %q for %s: %w", c.server, name, err)
		}
		id.Settings[name] = v
	}
	if old := r.identity(); old != nil && old.equal(id) {
		r.setIdentity(id)
	} else {
		if err := r.writeIdentity(id); err != nil {
			return &localError{err}
		}
		r.setIdentity(id)
	}
	if r.spool() == nil {
		r.setSpool(newSpool(r.cfg.Dir, id.SegmentSize, id.SystemID, r.log, r.stats))
	}
	return nil
}

func (id *identity) equal(o *identity) bool {
	a, errA := json.Marshal(id)
	b, errB := json.Marshal(o)
	return errA == nil && errB == nil && string(a) == string(b)
}

// major is the server's major version, as it said: 15.
func (id *identity) major() int {
	n, _ := strconv.Atoi(id.Settings["server_version_num"])
	return n / 10000
}
