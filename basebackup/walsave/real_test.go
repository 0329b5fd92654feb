package walsave

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"rideau/archive"
	"rideau/internal/pgtest"
	"rideau/wal"
)

// versions are the oldest, one in the middle and the newest: what differs
// between majors is names and the stop of a backup, not WAL's rules.
var versions = []int{13, 15, 18}

// server starts a primary with small segments.
func server(t *testing.T, major int, settings map[string]string) *pgtest.Server {
	t.Helper()
	s := pgtest.Start(t, pgtest.Options{Major: major, InitdbArgs: []string{"--wal-segsize=1"}, Settings: settings})
	s.Exec("CREATE TABLE t (a text)")
	s.Exec(`CREATE ROLE bk LOGIN; GRANT EXECUTE ON FUNCTION pg_ls_dir(text,boolean,boolean),
		pg_stat_file(text,boolean), pg_read_binary_file(text,bigint,bigint,boolean) TO bk`)
	return s
}

// fill writes about so many megabytes of WAL, in records small and large.
func fill(s *pgtest.Server, megabytes int) {
	s.Exec(fmt.Sprintf("INSERT INTO t SELECT repeat(md5(i::text), 1 + i %% 40) FROM generate_series(1, %d) i", 1200*megabytes))
}

// A backup is one whose files nobody copies.
type backup struct {
	t        *testing.T
	server   *pgtest.Server
	conn     *pgx.Conn
	start    Position
	systemID uint64
}

func begin(t *testing.T, s *pgtest.Server) *backup {
	t.Helper()
	conn, err := s.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	b := &backup{t: t, server: s, conn: conn}
	b.start.LSN = b.lsn(map[bool]string{true: "SELECT pg_start_backup('b', true, false)::text", false: "SELECT pg_backup_start('b', true)::text"}[s.Major < 15])
	b.start.TLI = b.tli("SELECT timeline_id::text FROM pg_control_checkpoint()")
	b.systemID, err = strconv.ParseUint(b.value("SELECT system_identifier::text FROM pg_control_system()"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *backup) value(sql string) string {
	b.t.Helper()
	var v string
	if err := b.conn.QueryRow(b.t.Context(), sql).Scan(&v); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func (b *backup) lsn(sql string) wal.LSN {
	b.t.Helper()
	lsn, err := wal.ParseLSN(b.value(sql))
	if err != nil {
		b.t.Fatal(err)
	}
	return lsn
}

func (b *backup) tli(sql string) wal.TLI {
	b.t.Helper()
	n, err := strconv.ParseUint(b.value(sql), 10, 32)
	if err != nil {
		b.t.Fatal(err)
	}
	return wal.TLI(n)
}

func (b *backup) stop() Position {
	b.t.Helper()
	p := Position{TLI: b.start.TLI}
	p.LSN = b.lsn(map[bool]string{true: "SELECT lsn::text FROM pg_stop_backup(false, false)", false: "SELECT lsn::text FROM pg_backup_stop(false)"}[b.server.Major < 15])
	if b.value("SELECT pg_is_in_recovery()::text") == "true" {
		p.TLI = b.tli("SELECT min_recovery_end_timeline::text FROM pg_control_recovery()")
	}
	return p
}

func (b *backup) config(dir string, source Source) Config {
	b.t.Cleanup(func() { source.Close() })
	return Config{Dir: dir, SystemID: b.systemID, SegmentSize: mb, Start: b.start, Source: source, FileMode: 0o640}
}

// reader connects as a role that has no more rights than it needs.
func reader(conninfo string) *ConnReader {
	return NewReader(func(ctx context.Context) (*pgconn.PgConn, error) {
		return pgconn.Connect(ctx, conninfo)
	})
}

func (b *backup) sql() Source {
	return NewSQL(reader(b.server.Conninfo("user=bk dbname=postgres")), b.server.String(), mb, b.systemID)
}

func (b *backup) replication(conninfo string) Source {
	b.t.Helper()
	r, err := NewReplication(conninfo, mb, b.systemID)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// A saving is Save in the background.
type saving struct {
	t    *testing.T
	stop chan Position
	done chan struct{}
	res  *Result
	err  error

	mu      sync.Mutex
	status  Status
	hadErr  bool
	onState func(Status)
}

func save(t *testing.T, ctx context.Context, cfg Config, on func(Status)) *saving {
	s := &saving{t: t, stop: make(chan Position, 1), done: make(chan struct{}), onState: on}
	cfg.Progress = func(st Status) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.status = st
		s.hadErr = s.hadErr || st.Waiting.Err != nil
		if s.onState != nil {
			s.onState(st)
		}
	}
	go func() {
		defer close(s.done)
		s.res, s.err = Save(ctx, cfg, s.stop)
	}()
	t.Cleanup(func() { <-s.done })
	return s
}

// wait waits until the status is as wanted; Save may end first.
func (s *saving) wait(what string, ok func(Status) bool) {
	s.t.Helper()
	pgtest.Wait(s.t, what, func() (bool, string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		select {
		case <-s.done:
			s.t.Fatalf("waiting for %s: Save returned: %v", what, s.err)
		default:
		}
		return ok(s.status), fmt.Sprintf("%+v", s.status)
	})
}

func (s *saving) end() (*Result, error) {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(pgtest.Patience):
		s.t.Fatalf("Save has not returned: %+v", s.status)
	}
	return s.res, s.err
}

// good ends the test unless Save succeeded.
func (s *saving) good() *Result {
	s.t.Helper()
	res, err := s.end()
	if err != nil {
		s.t.Fatalf("Save: %v", err)
	}
	return res
}

// verify holds what is in dir against the result: pg_waldump reads every range,
// every segment is whole and marked, and there is nothing else.
func verify(t *testing.T, major int, dir string, start, stop Position, res *Result, histories ...string) {
	t.Helper()
	if res.Ranges[0].End != stop.LSN || res.Ranges[len(res.Ranges)-1].Start != start.LSN {
		t.Errorf("ranges %v, want from %s to %s", res.Ranges, start, stop)
	}
	for _, r := range res.Ranges { // as pg_verifybackup runs it
		pgtest.Run(t, major, "pg_waldump", "--quiet", "--path="+dir, "--timeline="+r.TLI.String(), "--start="+r.Start.String(), "--end="+r.End.String())
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var segments int
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if e.IsDir() {
			if e.Name() != "archive_status" {
				t.Errorf("unexpected directory %s", e.Name())
			}
			continue
		}
		if info.Mode() != 0o640 {
			t.Errorf("%s has mode %s", e.Name(), info.Mode())
		}
		if !slices.Contains(histories, e.Name()) {
			segments++
			if _, _, err := mb.ParseFileName(e.Name()); err != nil || info.Size() != int64(mb) {
				t.Errorf("unexpected file %s of %d bytes", e.Name(), info.Size())
			}
		}
		if info, err := os.Stat(filepath.Join(dir, "archive_status", e.Name()+".done")); err != nil || info.Size() != 0 {
			t.Errorf("%s is not marked as archived: %v", e.Name(), err)
		}
	}
	if segments != res.Segments || res.Bytes != int64(segments)*int64(mb) {
		t.Errorf("there are %d segments, the result says %d, %d bytes", segments, res.Segments, res.Bytes)
	}
	for _, name := range histories {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	done, err := os.ReadDir(filepath.Join(dir, "archive_status"))
	if err != nil || len(done) != segments+len(histories) {
		t.Errorf("archive_status has %d files, want %d: %v", len(done), segments+len(histories), err)
	}
}

// walDir makes a place for WAL that pg_waldump, whoever it runs as, can read.
func walDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(pgtest.Dir(t), "pg_wal")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// readable lets tools that run as another account read what was saved.
func readable(t *testing.T, dir string) {
	t.Helper()
	info, err := os.Stat(filepath.Dir(dir))
	if err != nil {
		t.Fatal(err)
	}
	gid := int(info.Sys().(*syscall.Stat_t).Gid)
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, -1, gid)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Error(err)
		return
	}
	if err := os.WriteFile(to, b, 0o644); err != nil {
		t.Error(err)
	}
}

func TestSave(t *testing.T) {
	for _, major := range versions {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			archived := pgtest.Dir(t)
			primary := server(t, major, map[string]string{
				"archive_mode": "on", "archive_command": "cp %p " + archived + "/%f"})
			standby := primary.Standby(pgtest.Options{Name: "s"}, primary.Conninfo(""))
			standby.Start()
			standby.WaitLSN(primary.LSN())
			for _, server := range []*pgtest.Server{primary, standby} {
				for _, kind := range []string{"sql", "replication", "archive"} {
					name := map[bool]string{true: "primary", false: "standby"}[server == primary] + " " + kind
					t.Run(name, func(t *testing.T) {
						testSave(t, primary.For(t), server.For(t), kind, archived)
					})
				}
			}
		})
	}
}

func testSave(t *testing.T, primary, server *pgtest.Server, kind, archived string) {
	onPrimary := server.Port == primary.Port
	if !onPrimary {
		primary.Exec("CHECKPOINT") // for the restartpoint that the backup begins with
		server.WaitLSN(primary.LSN())
	}
	b := begin(t, server)
	dir := walDir(t)
	for _, name := range []string{"000000090000000000000001", "00000009.history", "0000000100000000000000FF.partial"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("of an earlier attempt"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var source Source
	var on func(Status)
	switch kind {
	case "sql":
		source = b.sql()
	case "replication":
		source = b.replication(server.Conninfo(""))
	case "archive":
		source = NewArchive(archive.New(archive.Dir(archived)), archived, mb, b.systemID)
		if !onPrimary {
			// Nobody switches, so of the last segment there is only what a relay
			// would have of it.
			on = func(s Status) {
				name, _, ok := strings.Cut(s.Waiting.For, " in archive ")
				if !ok {
					return
				}
				partial := filepath.Join(archived, name+".partial")
				copyFile(t, filepath.Join(primary.Dir, "pg_wal", name), partial)
				t.Cleanup(func() { os.Remove(partial) })
			}
		}
	}
	s := save(t, t.Context(), b.config(dir, source), nil)
	fill(primary, 5)
	s.wait("segments that are saved before the stop", func(st Status) bool { return st.Segments >= 2 })
	server.WaitLSN(primary.LSN())
	if !onPrimary {
		primary.Exec("CHECKPOINT")
		server.WaitLSN(primary.LSN())
		server.Exec("CHECKPOINT") // moves the minimum recovery point
	}
	stop := b.stop()
	s.mu.Lock()
	s.onState = on
	s.mu.Unlock()
	s.stop <- stop
	res := s.good()
	readable(t, dir)
	verify(t, server.Major, dir, b.start, stop, res)

	if on != nil {
		notYet(t, b, dir, stop)
	}

	// Whole segments are the server's, byte for byte.
	for lsn := mb.Start(b.start.LSN); lsn < stop.LSN; lsn = mb.Next(lsn) {
		name := mb.FileName(1, lsn)
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(primary.Dir, "pg_wal", name))
		if err != nil {
			t.Fatal(err)
		}
		n := int(mb)
		if stop.LSN <= mb.Next(lsn) && !onPrimary {
			n = int(stop.LSN - lsn)
			if i := bytes.IndexFunc(got[n:], func(r rune) bool { return r != 0 }); i >= 0 && !bytes.Equal(got, want) {
				t.Errorf("%s is not zero at %d, after the stop", name, n+i)
			}
		}
		if !bytes.Equal(got[:n], want[:n]) {
			t.Errorf("%s is not the server's", name)
		}
	}
}

// notYet: a partial segment does not do while the stop is not in it, be it
// because there are zeros or because it ends.
func notYet(t *testing.T, b *backup, dir string, stop Position) {
	t.Helper()
	seg := segment(history(1), mb, b.start.LSN, mb.Start(stop.LSN-1), stop.LSN)
	name := mb.FileName(1, seg.LSN)
	whole, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	n := stop.LSN - seg.LSN
	early := slices.Concat(whole[:n-16], make([]byte, len(whole)-int(n)+16))
	for _, test := range []struct {
		content []byte
		found   bool
	}{{whole, true}, {whole[:n], true}, {early, false}, {early[:n-16], false}} {
		store := t.TempDir()
		if err := os.WriteFile(filepath.Join(store, name+".partial"), test.content, 0o600); err != nil {
			t.Fatal(err)
		}
		a := NewArchive(archive.New(archive.Dir(store)), store, mb, b.systemID).(*fromArchive)
		var got bytes.Buffer
		found, err := a.try(t.Context(), seg, name, &got)
		if found != test.found || err != nil || found && !bytes.Equal(got.Bytes(), whole[:n]) {
			t.Errorf("partial segment of %d bytes: found %t, %v, got %d bytes", len(test.content), found, err, got.Len())
		}
	}
}

// A standby's timeline changes under a backup when what it follows is promoted.
func TestTimelineSwitch(t *testing.T) {
	for _, major := range versions {
		for _, kind := range []string{"sql", "replication"} {
			t.Run(fmt.Sprint(major, " ", kind), func(t *testing.T) {
				t.Parallel()
				testTimelineSwitch(t, major, kind)
			})
		}
	}
}

func testTimelineSwitch(t *testing.T, major int, kind string) {
	primary := server(t, major, nil)
	first := primary.Standby(pgtest.Options{Name: "first"}, primary.Conninfo(""))
	first.Start()
	first.WaitLSN(primary.LSN())
	second := first.Standby(pgtest.Options{Name: "second"}, first.Conninfo(""))
	second.Start()
	primary.Exec("CHECKPOINT")
	second.WaitLSN(primary.LSN())

	b := begin(t, second)
	source := b.sql()
	if kind == "replication" {
		source = b.replication(second.Conninfo(""))
	}
	dir := walDir(t)
	s := save(t, t.Context(), b.config(dir, source), nil)
	fill(primary, 3)
	end := primary.LSN()
	second.WaitLSN(end)
	s.wait("segments of timeline 1", func(st Status) bool { return st.Segments >= 1 })
	stop1 := Position{1, end} // where it could have stopped
	first.Promote()
	fill(first, 3)
	first.Exec("CHECKPOINT")
	second.WaitLSN(first.LSN())
	second.Exec("CHECKPOINT")
	stop := b.stop()
	if stop.TLI != 2 {
		t.Fatalf("the backup stopped at %s", stop)
	}
	s.wait("segments of timeline 2", func(st Status) bool { return st.Saved >= mb.Start(stop.LSN) })
	s.stop <- stop
	res := s.good()
	readable(t, dir)
	verify(t, major, dir, b.start, stop, res, "00000002.history")
	if len(res.Ranges) != 2 || res.Ranges[0].TLI != 2 || res.Ranges[1].TLI != 1 {
		t.Errorf("ranges %v", res.Ranges)
	}

	notAnotherPath(t, b, dir, res.Ranges[0].Start)

	// Saved again by the same source, which has followed timeline 2 long before
	// it hears that the backup stopped on timeline 1.
	cfg := b.config(walDir(t), b.again(kind))
	s = save(t, t.Context(), cfg, nil)
	s.wait("segments of timeline 2", func(st Status) bool { return st.Saved >= mb.Start(stop.LSN) })
	s.stop <- stop1
	res = s.good()
	readable(t, cfg.Dir)
	verify(t, major, cfg.Dir, b.start, stop1, res)

	// An archive in which timeline 1's last segment will never be, because its
	// server ended before it was full.
	first.Exec("SELECT pg_switch_wal()")
	archived := pgtest.Dir(t)
	names, err := os.ReadDir(filepath.Join(first.Dir, "pg_wal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range names {
		tli, lsn, err := mb.ParseFileName(e.Name())
		if strings.HasSuffix(e.Name(), ".history") || err == nil && (tli == 2 || mb.Next(lsn) <= end) && lsn < stop.LSN {
			copyFile(t, filepath.Join(first.Dir, "pg_wal", e.Name()), filepath.Join(archived, e.Name()))
		}
	}
	for _, at := range []Position{stop1, stop} {
		cfg := b.config(walDir(t), NewArchive(archive.New(archive.Dir(archived)), archived, mb, b.systemID))
		s := save(t, t.Context(), cfg, nil)
		s.wait("all that is in the archive", func(st Status) bool { return st.Saved >= mb.Start(stop.LSN) })
		s.stop <- at
		res := s.good()
		readable(t, cfg.Dir)
		histories := []string{"00000002.history"}
		verify(t, major, cfg.Dir, b.start, at, res, histories[:at.TLI-1]...)
	}
}

// notAnotherPath: pages must be of the timelines that the history says, which
// no link and no CRC would show.
func notAnotherPath(t *testing.T, b *backup, dir string, at wal.LSN) {
	t.Helper()
	seg := mb.Start(at)
	other := at + 2*pageSize
	if other >= mb.Next(at) {
		other = at - 2*pageSize
	}
	f, err := os.Open(filepath.Join(dir, mb.FileName(2, seg)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, switched := range []wal.LSN{at, other} {
		path := history(2, 1, uint64(switched))
		_, err := newProver(mb, b.systemID, seg).segment(f, int64(mb), Segment{TLI: 2, LSN: seg, Need: mb.Next(seg)}, path)
		if _, corrupt := errors.AsType[*wal.CorruptError](err); corrupt != (switched != at) || !corrupt && err != nil {
			t.Errorf("timeline 1 ended at %s; if it had at %s: %v", at, switched, err)
		}
	}
}

func (b *backup) again(kind string) Source {
	if kind == "sql" {
		return b.sql()
	}
	return b.replication(b.server.Conninfo(""))
}

// A gate lets a reader in once it is open.
type gate struct {
	Reader
	open <-chan struct{}
}

func (g gate) Position(ctx context.Context) (wal.LSN, error) {
	select {
	case <-g.open:
		return g.Reader.Position(ctx)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func TestRecycled(t *testing.T) {
	for _, major := range versions {
		for _, kind := range []string{"sql", "replication"} {
			t.Run(fmt.Sprint(major, " ", kind), func(t *testing.T) {
				t.Parallel()
				s := server(t, major, map[string]string{"wal_keep_size": "0", "min_wal_size": "2MB", "max_wal_size": "2MB"})
				b := begin(t, s)
				name := mb.FileName(1, b.start.LSN)
				open := make(chan struct{})
				source := NewSQL(gate{reader(s.Conninfo("user=bk dbname=postgres")), open}, s.String(), mb, b.systemID)
				recycle := func() {
					pgtest.Wait(t, name+" to be recycled", func() (bool, string) {
						fill(s, 1)
						s.Exec("SELECT pg_switch_wal()")
						s.Exec("CHECKPOINT")
						left := s.QueryValue("SELECT count(*) FROM pg_ls_dir('pg_wal') n WHERE n = '" + name + "'")
						return left == "0", "it is there"
					})
				}
				if kind == "replication" {
					recycle()
					source = b.replication(s.Conninfo(""))
				}
				dir := walDir(t)
				saving := save(t, t.Context(), b.config(dir, source), nil)
				if kind == "sql" {
					recycle()
					close(open)
				}
				_, err := saving.end()
				gone, ok := errors.AsType[*RecycledError](err)
				if !ok || gone.Segment != name || gone.LSN != mb.Start(b.start.LSN) {
					t.Fatalf("Save: %v, want that %s is gone", err, name)
				}
				nothingPartial(t, dir)
			})
		}
	}
}

// nothingPartial: what has the name of a segment is one, and no other file is
// left.
func nothingPartial(t *testing.T, dir string) (segments int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := mb.ParseFileName(e.Name()); err != nil || info.Size() != int64(mb) {
			t.Errorf("%s of %d bytes is left", e.Name(), info.Size())
		}
		segments++
	}
	return segments
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := server(t, 18, nil)
	for _, kind := range []string{"sql", "replication"} {
		t.Run(kind, func(t *testing.T) {
			dir := filepath.Join(pgtest.SmallFS(t, 4<<20+1<<19), "pg_wal")
			b := begin(t, s.For(t))
			saving := save(t, t.Context(), b.config(dir, b.again(kind)), nil)
			fill(s.For(t), 7)
			_, err := saving.end()
			if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), mb.FileName(1, b.start.LSN+4<<20)) || !strings.Contains(err.Error(), "0/") {
				t.Errorf("Save: %v", err)
			}
			if n := nothingPartial(t, dir); n != 4 {
				t.Errorf("%d segments are saved", n)
			}
		})
	}
}

func TestCanceled(t *testing.T) {
	t.Parallel()
	s := server(t, 15, nil)
	why := errors.New("enough")
	for _, kind := range []string{"sql", "replication", "archive"} {
		t.Run(kind, func(t *testing.T) {
			b := begin(t, s.For(t))
			var source Source
			if kind == "archive" {
				source = NewArchive(archive.New(archive.Dir(t.TempDir())), "none", mb, b.systemID)
			} else {
				source = b.again(kind)
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			dir := walDir(t)
			saving := save(t, ctx, b.config(dir, source), nil)
			saving.wait("Save to wait", func(st Status) bool { return st.Waiting.For != "" })
			before := time.Now()
			cancel(why)
			if _, err := saving.end(); !errors.Is(err, why) {
				t.Errorf("Save: %v", err)
			}
			if took := time.Since(before); took > 5*time.Second {
				t.Errorf("Save returned after %s", took)
			}
			nothingPartial(t, dir)
		})
	}
}

// The network fails and heals, twice: with the saver idle, and as it hears of
// the stop.
func TestConnectionLost(t *testing.T) {
	t.Parallel()
	s := server(t, 18, nil)
	for _, kind := range []string{"sql", "replication"} {
		t.Run(kind, func(t *testing.T) {
			s := s.For(t)
			b := begin(t, s)
			proxy := pgtest.NewProxy(t, s.Addr())
			source := b.replication(proxy.Conninfo(s))
			if kind == "sql" {
				source = NewSQL(reader(proxy.Conninfo(s)+" user=bk dbname=postgres"), "proxy", mb, b.systemID)
			}
			dir := walDir(t)
			saving := save(t, t.Context(), b.config(dir, source), nil)
			lost := func(st Status) bool { return st.Waiting.Err != nil }
			fill(s, 2)
			saving.wait("a segment", func(st Status) bool { return st.Segments > 0 })
			proxy.Cut()
			saving.wait("the loss to show", lost)
			fill(s, 2)
			proxy.Heal()
			end := s.LSN()
			saving.wait("more segments", func(st Status) bool { return st.Saved >= mb.Start(end) })
			proxy.Cut()
			saving.wait("the loss to show again", lost)
			stop := b.stop()
			saving.stop <- stop
			saving.wait("the loss to show after the stop", func(st Status) bool { return st.Waiting.Err != nil })
			proxy.Heal()
			res := saving.good()
			readable(t, dir)
			verify(t, 18, dir, b.start, stop, res)
		})
	}
}

// A liar changes what a reader reads.
type liar struct {
	Reader
	lie func(path string, off int64, b []byte) ([]byte, error)
}

func (l liar) ReadPieces(ctx context.Context, path string, pieces []Piece, f func(int, []byte) error) error {
	return l.Reader.ReadPieces(ctx, path, pieces, func(i int, b []byte) error {
		b, err := l.lie(path, pieces[i].Off, b)
		if err != nil {
			return err
		}
		return f(i, b)
	})
}

func TestUntrue(t *testing.T) {
	t.Parallel()
	s := server(t, 18, nil)
	for _, test := range []struct {
		why      string
		lie      func(path string, off int64, b []byte) ([]byte, error)
		move     int  // the stop, by so many bytes
		late     bool // the stop is told when its segment has been saved
		recycled bool
		good     bool
	}{
		{why: "a flipped bit", lie: func(_ string, off int64, b []byte) ([]byte, error) {
			if len(b) > longHeader { // which is read again, and would be another file's
				b[len(b)/2] ^= 4
			}
			return b, nil
		}},
		{why: "a bit that is flipped once", good: true, lie: func() func(string, int64, []byte) ([]byte, error) {
			flipped := false
			return func(_ string, _ int64, b []byte) ([]byte, error) {
				if !flipped {
					flipped = true
					b[len(b)/2] ^= 4
				}
				return b, nil
			}
		}()},
		{why: "a file that waits to be used again", recycled: true, lie: func(_ string, off int64, b []byte) ([]byte, error) {
			b[10] ^= 4 // of xlp_pageaddr
			return b, nil
		}},
		{why: "a file that is renamed while it is read", recycled: true, lie: func(_ string, off int64, b []byte) ([]byte, error) {
			if len(b) < int(mb) {
				b[10] ^= 4
			}
			return b, nil
		}},
		{why: "a stop where no record ends", move: -8, lie: func(_ string, _ int64, b []byte) ([]byte, error) { return b, nil }},
		{why: "a stop where no record ends, in a segment that is saved", move: -8, late: true, lie: func(_ string, _ int64, b []byte) ([]byte, error) { return b, nil }},
		{why: "the truth about a segment that is saved", late: true, good: true, lie: func(_ string, _ int64, b []byte) ([]byte, error) { return b, nil }},
		{why: "a page of another timeline", lie: func(_ string, _ int64, b []byte) ([]byte, error) {
			if len(b) > pageSize {
				b[pageSize+4] = 2 // xlp_tli, which no CRC covers
			}
			return b, nil
		}},
		{why: "the truth", good: true, lie: func(_ string, _ int64, b []byte) ([]byte, error) { return b, nil }},
	} {
		t.Run(test.why, func(t *testing.T) {
			s := s.For(t)
			b := begin(t, s)
			fill(s, 1)
			source := NewSQL(liar{reader(s.Conninfo("user=bk dbname=postgres")), test.lie}, s.String(), mb, b.systemID)
			dir := walDir(t)
			saving := save(t, t.Context(), b.config(dir, source), nil)
			stop := b.stop()
			if test.late {
				saving.wait("the segment with the stop", func(st Status) bool { return st.Saved >= stop.LSN })
			}
			stop.LSN += wal.LSN(test.move)
			saving.stop <- stop
			_, err := saving.end()
			_, recycled := errors.AsType[*RecycledError](err)
			_, corrupt := errors.AsType[*wal.CorruptError](err)
			if good := err == nil; good != test.good || !good && (recycled != test.recycled || !recycled && !corrupt) {
				t.Errorf("Save: %v", err)
			}
			if err != nil {
				nothingPartial(t, dir)
			}
		})
	}
}

// Another system's server is refused at once, whatever its segments say.
func TestAnotherSystem(t *testing.T) {
	t.Parallel()
	s, other := server(t, 18, nil), server(t, 18, nil)
	b := begin(t, s)
	saving := save(t, t.Context(), b.config(walDir(t), b.replication(other.Conninfo(""))), nil)
	if _, err := saving.end(); err == nil || !strings.Contains(err.Error(), "system identifier") {
		t.Errorf("Save: %v", err)
	}
}
