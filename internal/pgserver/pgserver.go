// Package pgserver runs real PostgreSQL servers on this machine: it makes their
// data directories, starts them, makes standbys of them, and ends them in all
// the ways that servers end.
//
//	Find ──▶ New ──▶ Start ──▶ Stop │ Kill │ Pause ──▶ Start ... ──▶ Remove
//	          ▲                  │
//	          └──── Standby ◀────┘  (an online base backup, taken by copying)
//
// It serves `rideau demo` and, through package pgtest, the tests of every other
// package. It is not for servers that matter: unless told otherwise they run
// with fsync off, trust whoever comes from loopback, and die with the process
// that started them.
//
// # Whose processes
//
// PostgreSQL refuses to run as root. When we are root, servers and tools run as
// nobody: that account owns nothing else on the machine, so a test that goes
// wrong has nothing to hurt. It must be able to reach the data directory, which
// is why [New] without a directory makes one where it can, and with a directory
// says which of its parents cannot be entered.
//
// A server is our child, not a daemon. If we die, however we die, the kernel
// sends its postmaster SIGQUIT (an immediate shutdown). Every process that is
// signalled is found by its own id below a postmaster that we started; nothing
// is ever ended by name.
//
// # Ports
//
// A server keeps its port from New to Remove, also while it is down, so that a
// restarted server is where its clients look for it. Ports are reserved among
// all processes of this package on the machine, see [FreePort].
//
// # Templates
//
// initdb takes seconds, copying its result a fraction of one. The first New of a
// major version and set of initdb arguments leaves a template in the cache
// directory; every later one copies it, and gives the copy a system identifier
// of its own, because two servers that did not come from the same initdb must
// not look as if they did.
package pgserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"rideau/wal"
)

// Majors lists the major versions that Rideau supports.
var Majors = []int{13, 14, 15, 16, 17, 18}

// defaultWait bounds a wait whose context has no deadline.
const defaultWait = 60 * time.Second

// Options says what server New should make. The zero value is good.
type Options struct {
	// Major version. Zero means 15, which Debian 12 has.
	Major int

	// Dir is the data directory to make. Empty means a new one in the system's
	// temporary folder or, unless fsync is set, in memory where that is plenty.
	Dir string

	// Name becomes cluster_name, and so the application_name by which a standby
	// is known to its primary. Empty means no name.
	Name string

	// Port to listen on at 127.0.0.1. Zero means a free one.
	Port int

	// InitdbArgs are given to initdb after our own: --username=postgres,
	// --auth=trust, --encoding=UTF8, --no-locale, --data-checksums. Of those
	// --no-data-checksums takes the last away, with every major version.
	InitdbArgs []string

	// Settings for postgresql.conf, without quotes. They replace our own, see
	// defaultSettings, and in Open what postgresql.auto.conf says. fsync is off
	// unless asked for here.
	Settings map[string]string

	// HBA lines are put before our own lines of pg_hba.conf, which let everyone
	// in from loopback, except that the local socket always remains trusted: we
	// use it ourselves.
	HBA []string
}

// A Server is a data directory with its port, and sometimes a running server.
// Its methods may be called from several goroutines.
type Server struct {
	Major     int
	Name      string
	Dir       string // the data directory
	BinDir    string // where its postgres and initdb are
	Port      int    // at 127.0.0.1
	SocketDir string // where its Unix socket is
	LogFile   string // all that the server ever said, from its first start on
	User      string // the superuser, always postgres

	account  account
	base     string // socket, log, and Dir if none was given
	ownDir   bool   // Dir was made by us, and goes with Remove
	settings map[string]string

	removeBase func() error
	release    func() // gives the port back

	mu     sync.Mutex
	proc   *process // nil when not running
	frozen []int    // while paused: the processes that were stopped, parents first

	removed bool
}

// New makes a data directory and configures it. It does not start the server.
func New(ctx context.Context, o Options) (*Server, error) {
	s, err := prepare(o)
	if err != nil {
		return nil, err
	}
	if err := s.init(ctx, o); err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

func (s *Server) init(ctx context.Context, o Options) error {
	if entries, err := os.ReadDir(s.Dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("directory %q is not empty", s.Dir)
	}
	template, err := template(ctx, s.BinDir, s.Major, o.InitdbArgs, s.account)
	if err != nil {
		return err
	}
	s.ownDir = true
	if err := copyTree(template, s.Dir, s.account, nil); err != nil {
		return fmt.Errorf("could not copy template %q: %w", template, err)
	}
	if err := newSystemIdentifier(s.Dir); err != nil {
		return err
	}
	return s.configure(o)
}

// Open configures a data directory that exists, one that pg_basebackup made for
// instance, with a port of its own. It does not start the server, and Remove
// leaves the directory.
//
// Mind that pg_basebackup -R of a newer version writes a primary_conninfo with
// options that an older server's libpq does not know. Give one in Settings.
func Open(o Options) (*Server, error) {
	version, err := os.ReadFile(filepath.Join(o.Dir, "PG_VERSION"))
	if err != nil {
		return nil, fmt.Errorf("%q is not a data directory: %w", o.Dir, err)
	}
	if o.Major, err = strconv.Atoi(strings.TrimSpace(string(version))); err != nil {
		return nil, fmt.Errorf("%q is not a data directory of a supported version", o.Dir)
	}
	s, err := prepare(o)
	if err != nil {
		return nil, err
	}
	if err := chownTree(s.Dir, s.account); err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	if err := s.configure(o); err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

// prepare finds the programs, folders and port of a server, and makes no data
// directory yet.
func prepare(o Options) (_ *Server, err error) {
	if o.Major == 0 {
		o.Major = 15
	}
	s := &Server{
		Major: o.Major, Name: o.Name, Dir: o.Dir, Port: o.Port, User: "postgres",
		settings: maps.Clone(o.Settings), release: func() {},
	}
	if s.BinDir, err = Find(o.Major); err != nil {
		return nil, err
	}
	if s.account, err = serverAccount(); err != nil {
		return nil, err
	}
	root := os.TempDir()
	if o.Dir == "" && (o.Settings["fsync"] == "" || o.Settings["fsync"] == "off") {
		root = scratch() // nothing was promised to be on disk
	}
	if s.base, s.removeBase, err = TempDirIn(root); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Remove())
		}
	}()
	s.SocketDir = s.base
	s.LogFile = filepath.Join(s.base, "log")
	if s.Dir == "" {
		s.Dir = filepath.Join(s.base, "data")
	} else {
		if s.Dir, err = filepath.Abs(s.Dir); err != nil {
			return nil, err
		}
		if err := s.account.canReach(filepath.Dir(s.Dir)); err != nil {
			return nil, err
		}
	}
	if s.Port == 0 {
		if s.Port, s.release, err = FreePort(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// defaultSettings are for a server that is started often, lives briefly, and
// feeds many standbys.
func defaultSettings(major int) map[string]string {
	m := map[string]string{
		"fsync":                 "off",
		"wal_level":             "replica",
		"max_wal_senders":       "20",
		"max_replication_slots": "20",
		"wal_keep_size":         "1GB",
		"max_wal_size":          "1GB",
		"hot_standby":           "on",
		"shared_buffers":        "16MB",
		"max_connections":       "100",
		"jit":                   "off",
		"listen_addresses":      "127.0.0.1",
		// Without this a standby waits 5 s before it tries its primary again.
		"wal_retrieve_retry_interval": "200ms",
		// Files in the data directory instead of /dev/shm, where a server that
		// was killed and never started again would leave them for good.
		"dynamic_shared_memory_type": "mmap",
		"logging_collector":          "off",
		"log_destination":            "stderr",
		"log_line_prefix":            "%m [%p] %b %a ",
		"log_replication_commands":   "on",
		"timezone":                   "UTC",
		"log_timezone":               "UTC",
	}
	return m
}

const confName = "rideau.conf"

// configure writes our settings to a file of their own, included last.
func (s *Server) configure(o Options) error {
	main := filepath.Join(s.Dir, "postgresql.conf")
	text, err := os.ReadFile(main)
	if err != nil {
		return err
	}
	include := "include_if_exists = '" + confName + "'\n"
	if !strings.HasSuffix(string(text), include) {
		if err := s.account.writeFile(main, string(text)+"\n"+include); err != nil {
			return err
		}
	}
	hba := "local all all trust\nlocal replication all trust\n" + strings.Join(o.HBA, "\n") + `
host all all 127.0.0.1/32 trust
host all all ::1/128 trust
host replication all 127.0.0.1/32 trust
host replication all ::1/128 trust
`
	if err := s.account.writeFile(filepath.Join(s.Dir, "pg_hba.conf"), hba); err != nil {
		return err
	}
	err = s.account.editAutoConf(s.Dir, func(setting string) bool {
		_, given := s.settings[setting]
		return !given
	})
	if err != nil {
		return err
	}
	return s.writeSettings()
}

// editAutoConf removes settings that are not to be kept from the file that
// ALTER SYSTEM and pg_basebackup -R write, and that wins over all others.
func (a account) editAutoConf(dir string, keep func(setting string) bool) error {
	name := filepath.Join(dir, "postgresql.auto.conf")
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var kept strings.Builder
	for line := range strings.Lines(string(text)) {
		setting, _, _ := strings.Cut(line, "=")
		if keep(strings.TrimSpace(setting)) {
			kept.WriteString(line)
		}
	}
	if kept.Len() == len(text) {
		return nil
	}
	return a.writeFile(name, kept.String())
}

func (s *Server) writeSettings() error {
	m := defaultSettings(s.Major)
	m["port"] = strconv.Itoa(s.Port)
	m["unix_socket_directories"] = s.SocketDir
	m["cluster_name"] = s.Name
	maps.Copy(m, s.settings)
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%s = '%s'\n", k, strings.ReplaceAll(m[k], "'", "''"))
	}
	return s.account.writeFile(filepath.Join(s.Dir, confName), b.String())
}

// Set changes settings in the configuration file; an empty map value is the
// empty string, not the default. It takes effect at the next Reload or Start,
// as the setting's context demands. ALTER SYSTEM wins over it.
func (s *Server) Set(settings map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settings == nil {
		s.settings = map[string]string{}
	}
	maps.Copy(s.settings, settings)
	return s.writeSettings()
}

// Conninfo is the connection string of the server's TCP port, followed by
// extra, whose keywords win.
func (s *Server) Conninfo(extra string) string {
	return strings.TrimSpace(fmt.Sprintf("host=127.0.0.1 port=%d user=%s dbname=postgres %s", s.Port, s.User, extra))
}

// Addr is the server's TCP address.
func (s *Server) Addr() string { return fmt.Sprintf("127.0.0.1:%d", s.Port) }

// Connect connects as superuser through the Unix socket, which works whatever
// the server's listen_addresses, TLS settings and HBA lines are. While the
// server says that it is starting up it tries again, until ctx ends.
func (s *Server) Connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := withWait(ctx)
	defer cancel()
	config, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%d user=%s dbname=postgres", s.SocketDir, s.Port, s.User))
	if err != nil {
		return nil, err
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	var conn *pgx.Conn
	err = poll(ctx, "a connection to "+s.String(), func() (bool, error) {
		var err error
		conn, err = pgx.ConnectConfig(ctx, config)
		var pgerr *pgconn.PgError
		if errors.As(err, &pgerr) && pgerr.Code == "57P03" { // cannot_connect_now
			return false, nil
		}
		return err == nil, err
	})
	return conn, err
}

// Query runs sql on a connection of its own and returns the rows of its last
// result as text, NULL as the empty string. Without args sql may be several
// statements.
func (s *Server) Query(ctx context.Context, sql string, args ...any) ([][]string, error) {
	conn, err := s.Connect(ctx)
	if err != nil {
		return nil, err
	}
	// The server may be gone when we hang up; what matters has been said by then.
	defer conn.Close(context.WithoutCancel(ctx))
	if len(args) == 0 {
		results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
		if err != nil || len(results) == 0 {
			return nil, err
		}
		last := results[len(results)-1]
		return textRows(last.Rows), nil
	}
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all [][]string
	for rows.Next() {
		all = append(all, textRows([][][]byte{rows.RawValues()})...)
	}
	return all, rows.Err()
}

func textRows(rows [][][]byte) [][]string {
	out := make([][]string, len(rows))
	for i, row := range rows {
		for _, v := range row {
			out[i] = append(out[i], string(v))
		}
	}
	return out
}

// QueryValue is Query for one value.
func (s *Server) QueryValue(ctx context.Context, sql string, args ...any) (string, error) {
	rows, err := s.Query(ctx, sql, args...)
	if err != nil {
		return "", err
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return "", fmt.Errorf("query returned %d rows, expected one value: %s", len(rows), sql)
	}
	return rows[0][0], nil
}

// LSN asks a primary for the end of its flushed WAL, a standby for the end of
// what it has replayed.
func (s *Server) LSN(ctx context.Context) (wal.LSN, error) {
	text, err := s.QueryValue(ctx, `SELECT CASE WHEN pg_is_in_recovery()
		THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END`)
	if err != nil {
		return 0, err
	}
	if text == "" { // a standby that has replayed nothing yet
		return wal.InvalidLSN, nil
	}
	return wal.ParseLSN(text)
}

// WaitLSN waits until [Server.LSN] has reached lsn.
func (s *Server) WaitLSN(ctx context.Context, lsn wal.LSN) error {
	ctx, cancel := withWait(ctx)
	defer cancel()
	conn, err := s.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var at string
	err = poll(ctx, fmt.Sprintf("%s to reach %s", s, lsn), func() (bool, error) {
		// Asked anew each time: the standby may be promoted meanwhile.
		err := conn.QueryRow(ctx, `SELECT coalesce((CASE WHEN pg_is_in_recovery()
			THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)::text, '0/0')`).Scan(&at)
		if err != nil {
			return false, err
		}
		now, err := wal.ParseLSN(at)
		return now >= lsn, err
	})
	if err != nil && at != "" {
		err = fmt.Errorf("%w (it is at %s)", err, at)
	}
	return err
}

// String names the server in messages.
func (s *Server) String() string {
	if s.Name != "" {
		return fmt.Sprintf("server %q (PostgreSQL %d, port %d)", s.Name, s.Major, s.Port)
	}
	return fmt.Sprintf("server on port %d (PostgreSQL %d)", s.Port, s.Major)
}

// Log returns the last lines of what the server said.
func (s *Server) Log(lines int) string {
	f, err := os.Open(s.LogFile)
	if err != nil {
		return ""
	}
	defer f.Close()
	var all []string
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		all = append(all, in.Text())
		if len(all) > 2*lines {
			all = append(all[:0], all[len(all)-lines:]...)
		}
	}
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Remove ends the server if it runs, at once, and removes all that New made.
// A server cannot be used after Remove; to remove it again does nothing.
func (s *Server) Remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed {
		return nil
	}
	err := s.kill()
	if err != nil {
		return err // its processes still use the rest
	}
	s.removed = true
	s.release()
	removeSharedMemory(s.Dir)
	if s.ownDir {
		err = errors.Join(err, os.RemoveAll(s.Dir))
	}
	return errors.Join(err, s.removeBase())
}

// withWait gives ctx a deadline if it has none.
func withWait(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, defaultWait)
}

// poll calls done until it says so or fails. When ctx ends first the error
// names what was waited for.
func poll(ctx context.Context, what string, done func() (bool, error)) error {
	start := time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok && err == nil {
			return nil
		}
		if ctx.Err() != nil {
			if err == nil {
				err = ctx.Err()
			}
			return fmt.Errorf("waited %v for %s: %w", time.Since(start).Round(time.Millisecond), what, err)
		}
		if err != nil {
			return fmt.Errorf("while waiting for %s: %w", what, err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// exists says whether name can be seen; errors other than absence count as seen
// so that they surface where the file is used.
func exists(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}
