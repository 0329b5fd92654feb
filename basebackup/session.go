package basebackup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"rideau/wal"
)

// A session is an ordinary SQL connection of which one question is asked at a
// time. The control session is one.
type session struct {
	server string
	mu     sync.Mutex // held for a question and its answer
	pc     *pgconn.PgConn
}

func (d *dialer) session(ctx context.Context) (*session, error) {
	pc, err := d.connect(ctx)
	if err != nil {
		return nil, err
	}
	d.pin(pc)
	return &session{server: d.String(), pc: pc}, nil
}

func (s *session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.pc.Close(ctx)
}

// rows asks, and answers with the rows as text; "" is NULL too.
func (s *session) rows(ctx context.Context, sql string) ([][]string, error) {
	all, err := s.all(ctx, sql)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// all asks several questions at once, and answers with the rows of each.
func (s *session) all(ctx context.Context, sql ...string) ([][][]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	results, err := s.pc.Exec(ctx, strings.Join(sql, ";\n")).ReadAll()
	switch {
	case err != nil:
		return nil, err
	case len(results) != len(sql):
		return nil, fmt.Errorf("server answered %d of %d questions", len(results), len(sql))
	}
	all := make([][][]string, len(sql))
	for i, r := range results {
		for _, row := range r.Rows {
			fields := make([]string, len(row))
			for j, f := range row {
				fields[j] = string(f)
			}
			all[i] = append(all[i], fields)
		}
	}
	return all, nil
}

// row asks for one row.
func (s *session) row(ctx context.Context, sql string) ([]string, error) {
	rows, err := s.rows(ctx, sql)
	if err != nil {
		return nil, err
	}
	return one(rows)
}

// one is the row of an answer that has one.
func one(rows [][]string) ([]string, error) {
	if len(rows) != 1 {
		return nil, fmt.Errorf("server answered %d rows where one was expected", len(rows))
	}
	return rows[0], nil
}

// file reads n bytes of a file of the server's from off on, fewer at its end. The
// error is fs.ErrNotExist if there is no such file.
func (s *session) file(ctx context.Context, path string, off, n int64) ([]byte, error) {
	rows, err := s.binary(ctx, "SELECT pg_read_binary_file($1::text, $2::int8, $3::int8, true)", path, strconv.FormatInt(off, 10), strconv.FormatInt(n, 10))
	switch {
	case err != nil:
		return nil, err
	case len(rows) != 1 || rows[0] == nil:
		return nil, &fs.PathError{Op: "read", Path: path, Err: fs.ErrNotExist}
	}
	return rows[0], nil
}

// names are those in a directory of the server's; none if it is not there.
func (s *session) names(ctx context.Context, path string) ([]string, error) {
	rows, err := s.binary(ctx, "SELECT pg_ls_dir($1::text, true, false)", path)
	names := make([]string, len(rows))
	for i, row := range rows {
		names[i] = string(row)
	}
	return names, err
}

// binary asks for one column, in binary; NULL is nil.
func (s *session) binary(ctx context.Context, sql string, args ...string) (column [][]byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	params := make([][]byte, len(args))
	for i, a := range args {
		params[i] = []byte(a)
	}
	result := s.pc.ExecParams(ctx, sql, params, nil, nil, []int16{1}).Read()
	for _, row := range result.Rows {
		column = append(column, row[0])
	}
	return column, result.Err
}

// facts are what the server says of itself. None is guessed.
type facts struct {
	server    string // host:port
	version   string // server_version
	major     int
	systemID  uint64
	catalog   uint32 // catalog version
	tli       wal.TLI
	recovery  bool // a standby
	checksums bool
	fullPages bool
	walLevel  string
	dirMode   uint32 // data_directory_mode
	walSize   wal.SegmentSize
	blockSize int
	segment   int64 // blocks of a relation's file, relseg_size
	pid       uint32
	role      string
	// connections is how many the role may have; below zero: any number.
	connections int
	statsDir    string // stats_temp_directory, until 14
	logDir      string
	spaces      []tablespace
	summarizes  bool // summarize_wal
}

// A tablespace is one that users made.
type tablespace struct {
	oid      uint32
	name     string
	location string // empty: in place, inside the data directory
}

const factsSQL = `SELECT current_setting('server_version'), current_setting('server_version_num'),
 s.system_identifier, s.catalog_version_no, c.timeline_id, pg_is_in_recovery(),
 current_setting('data_checksums'), c.full_page_writes, current_setting('wal_level'),
 current_setting('data_directory_mode'), i.bytes_per_wal_segment, i.database_block_size, i.blocks_per_segment,
 pg_backend_pid(), current_user,
 -- Most roles may not know these two, and pg_settings then leaves them out.
 coalesce((SELECT setting FROM pg_settings WHERE name = 'stats_temp_directory'), ''),
 coalesce((SELECT setting FROM pg_settings WHERE name = 'log_directory'), 'log'),
 coalesce(current_setting('summarize_wal', true), 'off'), i.data_page_checksum_version
FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_init() i`

func (s *session) facts(ctx context.Context) (*facts, error) {
	all, err := s.all(ctx, factsSQL, tablespacesSQL, "SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user")
	if err != nil {
		return nil, err
	}
	r, err := one(all[0])
	if err != nil {
		return nil, err
	}
	limit, err := one(all[2])
	if err != nil {
		return nil, err
	}
	f := &facts{
		server: s.server, version: r[0], recovery: r[5] == "t", fullPages: r[7] == "t", walLevel: r[8],
		role: r[14], statsDir: r[15], logDir: r[16], summarizes: r[17] == "on",
		checksums: r[18] != "0" && r[6] != "off",
	}
	number := func(field string, bits int) (n uint64) {
		if err == nil {
			n, err = strconv.ParseUint(field, 10, bits)
		}
		return n
	}
	f.major = int(number(r[1], 32) / 10000)
	if len(r[2]) > 0 && r[2][0] == '-' { // system identifiers are shown as signed
		var n int64
		n, err = strconv.ParseInt(r[2], 10, 64)
		f.systemID = uint64(n)
	} else {
		f.systemID = number(r[2], 64)
	}
	f.catalog = uint32(number(r[3], 32))
	f.tli = wal.TLI(number(r[4], 32))
	f.walSize = wal.SegmentSize(number(r[10], 32))
	f.blockSize = int(number(r[11], 32))
	f.segment = int64(number(r[12], 32))
	f.pid = uint32(number(r[13], 32))
	mode, modeErr := strconv.ParseUint(r[9], 8, 32)
	var limitErr, spacesErr error
	f.connections, limitErr = strconv.Atoi(limit[0])
	f.spaces, spacesErr = parseTablespaces(all[1])
	if err = errors.Join(err, modeErr, limitErr, spacesErr); err != nil {
		return nil, err
	}
	f.dirMode = uint32(mode)
	return f, nil
}

// tablespacesSQL asks for those that users made.
const tablespacesSQL = `SELECT oid, spcname, pg_tablespace_location(oid) FROM pg_tablespace
WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid`

func parseTablespaces(rows [][]string) (spaces []tablespace, err error) {
	for _, r := range rows {
		oid, err := strconv.ParseUint(r[0], 10, 32)
		if err != nil {
			return nil, err
		}
		t := tablespace{oid: uint32(oid), name: r[1], location: r[2]}
		if t.location == fmt.Sprintf("pg_tblspc/%d", t.oid) { // allow_in_place_tablespaces
			t.location = ""
		}
		spaces = append(spaces, t)
	}
	return spaces, nil
}

// minimum and maximum of the majors that are known.
const (
	oldestMajor = 13
	newestMajor = 18
)

// fit says why no backup can be had of such a server, if so. pid is what the
// connection's startup said: another one's is a pooler's.
func (f *facts) fit(startupPID uint32) error {
	switch {
	case f.major < oldestMajor, f.major > newestMajor:
		return &SettingError{f.server, "server_version", f.version, "13 to 18"}
	case f.blockSize != 8192:
		return &SettingError{f.server, "block_size", strconv.Itoa(f.blockSize), "8192"}
	case startupPID != 0 && startupPID != f.pid:
		return &PoolerError{f.server}
	case f.walLevel == "minimal":
		return &SettingError{f.server, "wal_level", f.walLevel, "replica or logical"}
	case f.recovery && !f.fullPages:
		return &SettingError{f.server, "full_page_writes", "off", "it on at the primary, for a backup of a standby"}
	}
	return nil
}

// functions are what the role must be able to execute.
func functions(major int) []string {
	start, stop := "pg_backup_start(text,boolean)", "pg_backup_stop(boolean)"
	if major < 15 {
		start, stop = "pg_start_backup(text,boolean,boolean)", "pg_stop_backup(boolean,boolean)"
	}
	return []string{"pg_ls_dir(text,boolean,boolean)", "pg_stat_file(text,boolean)",
		"pg_read_binary_file(text,bigint,bigint,boolean)", start, stop}
}

// privileges says which of the functions the role may not execute.
func (s *session) privileges(ctx context.Context, major int) (missing []string, err error) {
	rows, err := s.rows(ctx, fmt.Sprintf("SELECT f FROM unnest(%s::text[]) f WHERE NOT has_function_privilege('pg_catalog.' || f, 'EXECUTE')",
		literal(textArray(functions(major)))))
	for _, r := range rows {
		missing = append(missing, r[0])
	}
	return missing, err
}

// start begins the backup. It returns when the checkpoint is done, with where
// that is and with the tablespaces that there are now.
func (s *session) start(ctx context.Context, f *facts, label string, fast bool) (at startPoint, spaces []tablespace, err error) {
	call := fmt.Sprintf("pg_backup_start(%s, %t)", literal(label), fast)
	if f.major < 15 {
		call = fmt.Sprintf("pg_start_backup(%s, %t, false)", literal(label), fast)
	}
	all, err := s.all(ctx, "SELECT "+call, "SELECT timeline_id FROM pg_control_checkpoint()", tablespacesSQL)
	if err != nil {
		return at, nil, err
	}
	lsn, err := one(all[0])
	if err == nil {
		at.LSN, err = wal.ParseLSN(lsn[0])
	}
	if err != nil {
		return at, nil, err
	}
	tli, err := one(all[1])
	if err == nil {
		_, err = fmt.Sscan(tli[0], &at.TLI)
	}
	if err != nil {
		return at, nil, err
	}
	spaces, err = parseTablespaces(all[2])
	return at, spaces, err
}

// stopped is what the server says as the backup ends.
type stopped struct {
	lsn   wal.LSN
	label string
	spcs  string
}

// stop ends the backup, without waiting for the server's archiver: the WAL is
// our own care.
func (s *session) stop(ctx context.Context, f *facts) (stopped, error) {
	call := "pg_backup_stop(false)"
	if f.major < 15 {
		call = "pg_stop_backup(false, false)"
	}
	r, err := s.row(ctx, "SELECT lsn, labelfile, spcmapfile FROM "+call)
	if err != nil {
		return stopped{}, err
	}
	lsn, err := wal.ParseLSN(r[0])
	return stopped{lsn, r[1], r[2]}, err
}

// position is how far the server's WAL is; zero if it does not say.
func (s *session) position(ctx context.Context) wal.LSN {
	r, err := s.row(ctx, "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END")
	if err != nil {
		return 0
	}
	lsn, _ := wal.ParseLSN(r[0])
	return lsn
}

// pulse is what must not change while a backup runs.
func (s *session) pulse(ctx context.Context, f *facts) error {
	r, err := s.row(ctx, "SELECT pg_backend_pid(), pg_is_in_recovery()")
	switch {
	case err != nil:
		return err
	case r[0] != strconv.FormatUint(uint64(f.pid), 10):
		return &PoolerError{f.server}
	case f.recovery && r[1] == "f":
		return &PromotedError{f.server}
	}
	return nil
}

// labelStart reads where a backup begins from its backup_label.
func labelStart(label string) (startPoint, error) {
	var p startPoint
	for line := range strings.Lines(label) {
		if rest, ok := strings.CutPrefix(line, "START WAL LOCATION: "); ok {
			text, _, _ := strings.Cut(rest, " ")
			lsn, err := wal.ParseLSN(text)
			if err != nil {
				return p, err
			}
			p.LSN = lsn
		}
		if rest, ok := strings.CutPrefix(line, "START TIMELINE: "); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(rest), 10, 32)
			if err != nil {
				return p, err
			}
			p.TLI = wal.TLI(n)
		}
	}
	if p.LSN == 0 || p.TLI == 0 {
		return p, errors.New("the server's backup label does not say where the backup starts")
	}
	return p, nil
}
