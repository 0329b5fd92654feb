package walsave

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"rideau/archive"
	"rideau/pgrepl"
	"rideau/wal"
)

// piece is how much of a file is read with one query. Offsets are multiples of
// it: aligned reads are one system call of the server. Each costs a round trip,
// and four of them are a segment.
const piece = 4 << 20

// A Reader reads files of a server, as pg_read_binary_file does. An error with
// which the server refused is a *pgconn.PgError; after any other the next call
// may connect anew.
type Reader interface {
	// ReadFile answers n bytes of a file from off on, fewer at its end. The
	// path is relative to the data directory. The result is valid until the
	// next call. The error is fs.ErrNotExist if there is no such file.
	ReadFile(ctx context.Context, path string, off, n int64) ([]byte, error)

	// ReadDir answers the names in a directory.
	ReadDir(ctx context.Context, path string) ([]string, error)

	// Position is how far the server has written WAL, or, in recovery, replayed.
	Position(ctx context.Context) (wal.LSN, error)
}

// NewReader makes a Reader of ordinary connections, one at a time, made when
// needed. The role must be allowed to execute pg_ls_dir(text,boolean,boolean)
// and pg_read_binary_file(text,bigint,bigint,boolean). What sessions need, such
// as timeouts that are off, is up to connect.
func NewReader(connect func(context.Context) (*pgconn.PgConn, error)) *ConnReader {
	return &ConnReader{connect: connect}
}

// A ConnReader is a [Reader] over a connection.
type ConnReader struct {
	connect func(context.Context) (*pgconn.PgConn, error)
	conn    *pgconn.PgConn
}

// Close ends the connection, if there is one.
func (r *ConnReader) Close() error {
	if r.conn == nil {
		return nil
	}
	conn := r.conn
	r.conn = nil
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return conn.Close(ctx)
}

// query runs one statement and answers its rows' first column in binary.
func (r *ConnReader) query(ctx context.Context, sql string, args ...string) ([][]byte, error) {
	if r.conn == nil || r.conn.IsClosed() {
		conn, err := r.connect(ctx)
		if err != nil {
			return nil, err
		}
		r.conn = conn
	}
	params := make([][]byte, len(args))
	for i, a := range args {
		params[i] = []byte(a)
	}
	res := r.conn.ExecParams(ctx, sql, params, nil, nil, []int16{1}).Read()
	if res.Err != nil {
		return nil, res.Err
	}
	column := make([][]byte, len(res.Rows))
	for i, row := range res.Rows {
		column[i] = row[0]
	}
	return column, nil
}

// ReadFile implements [Reader].
func (r *ConnReader) ReadFile(ctx context.Context, path string, off, n int64) ([]byte, error) {
	rows, err := r.query(ctx, "SELECT pg_catalog.pg_read_binary_file($1::text, $2::int8, $3::int8, true)",
		path, fmt.Sprint(off), fmt.Sprint(n))
	switch {
	case err != nil:
		return nil, err
	case len(rows) != 1 || rows[0] == nil:
		return nil, &fs.PathError{Op: "read", Path: path, Err: fs.ErrNotExist}
	}
	return rows[0], nil
}

// ReadDir implements [Reader].
func (r *ConnReader) ReadDir(ctx context.Context, path string) ([]string, error) {
	rows, err := r.query(ctx, "SELECT pg_catalog.pg_ls_dir($1::text, true, false)", path)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(rows))
	for i, row := range rows {
		names[i] = string(row)
	}
	return names, nil
}

// Position implements [Reader].
func (r *ConnReader) Position(ctx context.Context) (wal.LSN, error) {
	rows, err := r.query(ctx, `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
		ELSE pg_catalog.pg_current_wal_lsn() END::text`)
	switch {
	case err != nil:
		return 0, err
	case len(rows) != 1 || rows[0] == nil:
		return 0, nil // it has not replayed anything yet
	}
	return wal.ParseLSN(string(rows[0]))
}

// sqlSource takes segments out of a server's pg_wal.
type sqlSource struct {
	reader   Reader
	server   string
	size     wal.SegmentSize
	systemID uint64
}

// NewSQL makes a Source of a server's pg_wal, read over SQL. Server is how
// messages name it. A reader that is an io.Closer is closed with the source.
func NewSQL(reader Reader, server string, size wal.SegmentSize, systemID uint64) Source {
	return &sqlSource{reader: reader, server: server, size: size, systemID: systemID}
}

func (q *sqlSource) Close() error {
	if c, ok := q.reader.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func (q *sqlSource) History(ctx context.Context, tli wal.TLI) (string, error) {
	text, err := q.reader.ReadFile(ctx, "pg_wal/"+tli.HistoryName(), 0, piece)
	return string(text), q.mayRetry(ctx, err)
}

func (q *sqlSource) Fetch(ctx context.Context, s Segment, w io.Writer, waiting func(Waiting)) error {
	name := q.size.FileName(s.TLI, s.LSN)
	end := q.size.Next(s.LSN)
	var pos wal.LSN
	for {
		var err error
		if pos, err = q.reader.Position(ctx); err != nil {
			return q.mayRetry(ctx, err)
		}
		// The server has passed the stop when it says so: what is before it is
		// in the file, though the position may be that of a record less.
		if pos >= end || s.Last {
			break
		}
		waiting(Waiting{For: fmt.Sprintf("%s on %s", name, q.server), LSN: pos})
		if err := pause(ctx, poll); err != nil {
			return err
		}
	}
	// A standby has a timeline's history before it replays anything of it, so
	// what the position has passed is of a timeline that is listed now.
	if !s.Last {
		if err := q.follow(ctx, s); err != nil {
			return err
		}
	}
	need := s.Need
	if pos >= end {
		need = end
	}
	return q.read(ctx, s, name, need, w)
}

// follow answers a *pgrepl.EndOfTimeline if the segment is now that of a newer
// timeline. A history file alone does not show that the server follows it; that
// it has the segment on that timeline does.
func (q *sqlSource) follow(ctx context.Context, s Segment) error {
	names, err := q.reader.ReadDir(ctx, "pg_wal")
	if err != nil {
		return q.mayRetry(ctx, err)
	}
	for _, tli := range newerHistories(names, s.TLI) {
		text, err := q.History(ctx, tli)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		h, err := wal.ParseHistory(tli, text)
		if err != nil {
			return fmt.Errorf("could not parse %s of %s: %w", tli.HistoryName(), q.server, err)
		}
		next, end, ok := left(s.TLI, s.Need, h)
		if ok && slices.Contains(names, q.size.FileName(next, s.LSN)) {
			return &pgrepl.EndOfTimeline{TLI: s.TLI, Next: next, LSN: end}
		}
	}
	return nil
}

// newerHistories answers the timelines after tli of which names has a history,
// newest first.
func newerHistories(names []string, tli wal.TLI) []wal.TLI {
	var list []wal.TLI
	for _, name := range names {
		var n wal.TLI
		if !strings.HasSuffix(name, ".history") {
			continue
		}
		if _, err := fmt.Sscanf(name, "%08X.history", &n); err == nil && n > tli && n.HistoryName() == name {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b wal.TLI) int { return int(int64(b) - int64(a)) })
	return list
}

// read copies the file up to need. Every piece is a file that is opened anew,
// and a name may be given to another file at any time: the first page is
// verified before, and must be the same after.
func (q *sqlSource) read(ctx context.Context, s Segment, name string, need wal.LSN, w io.Writer) error {
	path := "pg_wal/" + name
	var first []byte
	for off := int64(0); off < int64(need-s.LSN); off += piece {
		n := min(piece, int64(need-s.LSN)-off)
		b, err := q.reader.ReadFile(ctx, path, off, n)
		if err != nil {
			return q.gone(ctx, err, s, name)
		}
		if off == 0 {
			first = bytes.Clone(b[:min(len(b), pageSize)])
			if err := q.firstPage(s, name, first); err != nil {
				return err
			}
		}
		if int64(len(b)) != n {
			return fmt.Errorf("%s of %s has %d bytes, a segment has %d", name, q.server, off+int64(len(b)), int64(q.size))
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	again, err := q.reader.ReadFile(ctx, path, 0, int64(len(first)))
	if err != nil {
		return q.gone(ctx, err, s, name)
	}
	// Of a last segment the first page may still be filled.
	if len(again) < longHeader || !bytes.Equal(again[:longHeader], first[:longHeader]) {
		return &RecycledError{Segment: name, LSN: s.LSN, Server: q.server,
			Err: errors.New("its file became another one while it was read")}
	}
	return nil
}

// firstPage verifies that a file is the segment of its name: one that waits to
// be used has the name of a future segment and the content of an old one.
func (q *sqlSource) firstPage(s Segment, name string, page []byte) error {
	if len(page) < longHeader {
		return fmt.Errorf("%s of %s has only %d bytes", name, q.server, len(page))
	}
	c := wal.NewChecker(q.size, q.systemID, s.TLI, s.LSN)
	if _, err := c.Write(page[:longHeader]); err != nil {
		return &RecycledError{Segment: name, LSN: s.LSN, Server: q.server, Err: err}
	}
	return nil
}

// gone makes a *RecycledError of a file that is not there.
func (q *sqlSource) gone(ctx context.Context, err error, s Segment, name string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &RecycledError{Segment: name, LSN: s.LSN, Server: q.server}
	}
	return q.mayRetry(ctx, err)
}

// mayRetry marks an error after which it makes sense to ask again.
func (q *sqlSource) mayRetry(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return unreachable(ctx, q.server, err)
}

// unreachable marks err as one after which it makes sense to ask again, unless
// ctx caused it or the server said something final.
func unreachable(ctx context.Context, server string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && !passes(pgErr.Code) {
		return err
	}
	return &archive.UnreachableError{Source: server, Err: err}
}

// passes reports whether what SQLSTATE code says may be over soon: connection
// exceptions, insufficient resources, operator intervention.
func passes(code string) bool {
	return strings.HasPrefix(code, "08") || strings.HasPrefix(code, "53") || strings.HasPrefix(code, "57P") ||
		code == "57014" // query_canceled, by somebody else than us
}
