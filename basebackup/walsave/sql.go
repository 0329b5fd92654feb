package walsave

import (
	"bytes"
	"context"
	"encoding/binary"
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

// pieceLen is how much of a file the server reads at once, and sends as one row.
// Offsets are multiples of it: aligned reads are one system call of the server.
const pieceLen = 4 << 20

// A Reader reads files of a server, as pg_read_binary_file does. An error with
// which the server refused is a *pgconn.PgError; after any other the next call
// may connect anew.
type Reader interface {
	// ReadPieces reads pieces of a file, in their order and one at a time, and
	// gives each to f, which must not keep it. A piece beyond the file's end is
	// shorter, or empty. The path is relative to the data directory. The error is
	// fs.ErrNotExist if there is no such file, and f's if that has one.
	ReadPieces(ctx context.Context, path string, pieces []Piece, f func(i int, b []byte) error) error

	// ReadDir answers the names in a directory.
	ReadDir(ctx context.Context, path string) ([]string, error)

	// Position is how far the server has written WAL, or, in recovery, replayed.
	Position(ctx context.Context) (wal.LSN, error)
}

// A Piece is a part of a file.
type Piece struct {
	Off, Len int64
}

// NewReader makes a Reader of ordinary connections, one at a time, made when
// needed. The role must be allowed to execute pg_ls_dir(text,boolean,boolean)
// and pg_read_binary_file(text,bigint,bigint,boolean). What sessions need, such
// as timeouts that are off, is up to connect.
func NewReader(connect func(context.Context) (*pgconn.PgConn, error)) *ConnReader {
	return &ConnReader{connect: connect}
}

// A ConnReader is a [Reader] over a connection.
//
// Of a piece the zeros at its end are not sent: a segment that was switched away
// from is mostly that.
type ConnReader struct {
	// Received, if not nil, is told how many bytes came of files.
	Received func(n int64)

	// Pack, if not nil, is asked before each statement how the server is to
	// compress a bytea of SQL, and how that is undone; wrap is nil if it is not.
	// Unpack is told how long the bytes are.
	Pack func() (wrap func(sql string) string, unpack func(dst, src []byte, n int) ([]byte, error))

	connect func(context.Context) (*pgconn.PgConn, error)
	conn    *pgconn.PgConn
	buf     []byte // a piece
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

// ask sends one statement, whose answer is in binary.
func (r *ConnReader) ask(ctx context.Context, sql string, args ...string) (*pgconn.ResultReader, error) {
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
	return r.conn.ExecParams(ctx, sql, params, nil, nil, []int16{1}), nil
}

// query runs one statement and answers its rows' first column.
func (r *ConnReader) query(ctx context.Context, sql string, args ...string) ([][]byte, error) {
	rr, err := r.ask(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	res := rr.Read()
	if res.Err != nil {
		return nil, res.Err
	}
	column := make([][]byte, len(res.Rows))
	for i, row := range res.Rows {
		column[i] = row[0]
	}
	return column, nil
}

// piecesSQL answers for each piece how long it is, how long a byte and what is
// left of it without zeros at the end is, and these. The byte keeps zeros at the
// beginning.
const piecesSQL = `SELECT length(c), length(z), %s FROM (
 SELECT c, pg_catalog.btrim('\x01'::bytea || c, '\x00'::bytea) AS z FROM (
  SELECT pg_catalog.pg_read_binary_file($1::text, o, l, true) AS c
  FROM ROWS FROM (pg_catalog.unnest($2::int8[]), pg_catalog.unnest($3::int8[])) AS p(o, l) OFFSET 0) r OFFSET 0) t`

// ReadPieces implements [Reader].
func (r *ConnReader) ReadPieces(ctx context.Context, path string, pieces []Piece, f func(i int, b []byte) error) error {
	var wrap func(string) string
	var unpack func(dst, src []byte, n int) ([]byte, error)
	if r.Pack != nil {
		wrap, unpack = r.Pack()
	}
	data := "z"
	if wrap != nil {
		data = wrap("z")
	}
	offs, lens := make([]string, len(pieces)), make([]string, len(pieces))
	for i, p := range pieces {
		offs[i], lens[i] = fmt.Sprint(p.Off), fmt.Sprint(p.Len)
	}
	rows, err := r.ask(ctx, fmt.Sprintf(piecesSQL, data), path, "{"+strings.Join(offs, ",")+"}", "{"+strings.Join(lens, ",")+"}")
	if err != nil {
		return err
	}
	n := 0
	for err == nil && rows.NextRow() {
		row := rows.Values()
		switch {
		case n == len(pieces) || len(row) != 3:
			err = fmt.Errorf("server answered with more than %d pieces of %q", len(pieces), path)
		case row[2] == nil:
			err = &fs.PathError{Op: "read", Path: path, Err: fs.ErrNotExist}
		case len(row[0]) != 4 || len(row[1]) != 4:
			err = fmt.Errorf("server sent lengths of %d and %d bytes", len(row[0]), len(row[1]))
		default:
			if r.Received != nil {
				r.Received(int64(len(row[2])))
			}
			var b []byte
			if b, err = r.piece(pieces[n], int32(binary.BigEndian.Uint32(row[0])), int32(binary.BigEndian.Uint32(row[1])), row[2], wrap != nil, unpack); err == nil {
				err = f(n, b)
			}
			n++
		}
	}
	_, closeErr := rows.Close()
	switch {
	case err != nil:
		return err
	case closeErr != nil:
		return closeErr
	case n != len(pieces):
		return fmt.Errorf("server answered %d of %d pieces of %q", n, len(pieces), path)
	}
	return nil
}

// piece makes of an answer what it was on the server.
func (r *ConnReader) piece(p Piece, length, sent int32, b []byte, packed bool, unpack func(dst, src []byte, n int) ([]byte, error)) ([]byte, error) {
	if length < 0 || int64(length) > p.Len || sent < 1 || sent > length+1 {
		return nil, fmt.Errorf("server sent %d of %d bytes where %d were asked for", sent, length, p.Len)
	}
	if cap(r.buf) < int(length)+1 {
		r.buf = make([]byte, 0, length+1)
	}
	buf := r.buf[:0]
	if packed {
		var err error
		if buf, err = unpack(buf, b, int(sent)); err != nil {
			return nil, err
		}
	} else {
		buf = append(buf, b...)
	}
	if len(buf) != int(sent) || buf[0] != 1 {
		return nil, fmt.Errorf("server sent %d bytes and not %d", len(buf), sent)
	}
	buf = buf[:length+1]
	clear(buf[sent:])
	return buf[1:], nil
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
	var text string
	err := q.reader.ReadPieces(ctx, "pg_wal/"+tli.HistoryName(), []Piece{{0, pieceLen}}, func(_ int, b []byte) error {
		text = string(b)
		return nil
	})
	return text, q.mayRetry(ctx, err)
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

// read copies the file up to need, with one statement. Every piece is a file that
// is opened anew, and a name may be given to another file at any time: the first
// page is verified before, and must be the same after.
func (q *sqlSource) read(ctx context.Context, s Segment, name string, need wal.LSN, w io.Writer) error {
	var pieces []Piece
	for off := int64(0); off < int64(need-s.LSN); off += pieceLen {
		pieces = append(pieces, Piece{off, min(pieceLen, int64(need-s.LSN)-off)})
	}
	last := len(pieces)
	pieces = append(pieces, Piece{0, longHeader})
	var first [longHeader]byte
	var ours error // what is wrong with it, or with where it goes
	err := q.reader.ReadPieces(ctx, "pg_wal/"+name, pieces, func(i int, b []byte) error {
		ours = func() error {
			if i == last {
				if !bytes.Equal(b, first[:]) {
					return &RecycledError{Segment: name, LSN: s.LSN, Server: q.server,
						Err: errors.New("its file became another one while it was read")}
				}
				return nil
			}
			if i == 0 {
				if err := q.firstPage(s, name, b); err != nil {
					return err
				}
				copy(first[:], b)
			}
			if p := pieces[i]; int64(len(b)) != p.Len {
				return fmt.Errorf("%s of %s has %d bytes, a segment has %d", name, q.server, p.Off+int64(len(b)), int64(q.size))
			}
			_, err := w.Write(b)
			return err
		}()
		return ours
	})
	if ours != nil {
		return ours
	}
	return q.gone(ctx, err, s, name)
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
