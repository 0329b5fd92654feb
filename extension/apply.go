package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"rideau/extension/ledger"
)

// A Report is what was done.
type Report struct {
	Database string        `json:"database"`
	Node     string        `json:"node"`
	DryRun   bool          `json:"dry_run,omitempty"` // all was rolled back
	Steps    []StepReport  `json:"steps"`
	Locks    []Lock        `json:"locks,omitempty"` // of a dry run: what was held at its end
	Tries    int           `json:"tries"`
	Elapsed  time.Duration `json:"elapsed_ns"`
	Restart  []string      `json:"restart,omitempty"`
	Set      []string      `json:"set,omitempty"`     // settings of the servers that were made: "work_mem at db1:5432"
	Removed  []string      `json:"removed,omitempty"` // files that no database needs any more: "3 files of foo at db1:5432"
	Notes    []string      `json:"notes,omitempty"`
}

// A StepReport is what one step did.
type StepReport struct {
	Action  Action   `json:"action"`
	Name    string   `json:"name"`
	From    string   `json:"from,omitempty"`
	To      string   `json:"to,omitempty"`
	Mode    Mode     `json:"mode"`
	Schema  string   `json:"schema,omitempty"`
	Objects int      `json:"objects"` // that the extension now has, or had
	Created []string `json:"created,omitempty"`
	Dropped []string `json:"dropped,omitempty"`
	Others  []string `json:"others,omitempty"` // that CASCADE dropped, and were not its own
}

// A Lock is one that others will have to wait for: on a relation that was there
// before, in a mode that a plain query or a change of a row conflicts with.
type Lock struct {
	Relation string `json:"relation"`
	Mode     string `json:"mode"`
}

// Apply does what the plan says. With dry it does so in a transaction that is
// rolled back, and says what locks it would have held.
//
// A *UnfinishedError comes with a report: the database is changed then.
func (s *Session) Apply(ctx context.Context, p *Plan, dry bool) (_ *Report, err error) {
	begun := time.Now()
	if o := s.primary.o; p.Database != o.Database {
		return nil, fmt.Errorf("the plan is for database %q, and this is database %q at %s", p.Database, o.Database, o.Node)
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if !dry && s.changesServer(p) {
		unlock, err := s.lockServer(ctx)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, unlock()) }()
	}
	if err := s.refresh(ctx); err != nil {
		return nil, err
	}
	if s.primary.o.Standby {
		return nil, fmt.Errorf("%s is a standby: extensions are installed on the primary", s.primary.o.Node)
	}
	if s.primary.o.Fingerprint() != p.Fingerprint || p.Pool != "" && s.poolFingerprint() != p.Pool {
		return nil, &MovedError{Database: p.Database, Node: p.Node}
	}
	report := &Report{Database: p.Database, Node: p.Node, DryRun: dry, Restart: p.Restart, Notes: slices.Clone(p.Notes)}
	on := s.primary
	done := &journal{}
	if dry {
		end, err := s.rehearse(ctx, p, &on)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, end()) }()
	} else if err := s.prepare(ctx, p, report, done); err != nil {
		return nil, done.undo(ctx, err)
	}
	for try := 1; ; try++ {
		r, err := s.transact(ctx, on, p, dry)
		if err == nil {
			report.Steps, report.Locks, report.Tries = r.Steps, r.Locks, try
			report.Notes = append(report.Notes, r.Notes...)
			break
		}
		if !worthAnotherTry(err) {
			return nil, done.undo(ctx, err)
		}
		if try >= s.cfg.Tries {
			return nil, done.undo(ctx, &LockedError{Database: p.Database, Tries: try, Err: err})
		}
		s.cfg.Log.Info("the database is busy, trying again", "database", p.Database, "try", try, "err", err)
		if err := pause(ctx, time.Duration(min(try, 10))*100*time.Millisecond); err != nil {
			return nil, done.undo(ctx, err)
		}
	}
	if !dry {
		err = s.afterCommit(ctx, p, report)
	}
	report.Elapsed = time.Since(begun)
	return report, err
}

// changesServer says whether the lock of the server is needed: more is changed than
// the database, or files are used that others could remove meanwhile.
func (s *Session) changesServer(p *Plan) bool {
	o := s.primary.o
	return len(p.Files)+len(p.Paths)+len(p.Preload)+len(p.System)+len(p.Remove) > 0 ||
		o.Role.Superuser && slices.ContainsFunc(p.Steps, func(st Step) bool { return st.Mode != Module && slices.Contains(o.Stored, st.Name) })
}

// prepare does what comes before the transaction: all of it can be done twice, and
// undone by the journal.
func (s *Session) prepare(ctx context.Context, p *Plan, report *Report, j *journal) error {
	notes, preloaded, err := s.trySystem(ctx, p)
	if err != nil {
		return err
	}
	report.Notes = append(report.Notes, notes...)
	if len(p.Files) > 0 {
		if err := s.sweep(ctx); err != nil {
			return err
		}
	}
	if err := s.bring(ctx, p.Files, j); err != nil {
		return err
	}
	if err := s.lead(ctx, p.Paths, j, report); err != nil {
		return err
	}
	if len(p.Preload) > 0 {
		return s.preload(ctx, p, j)
	}
	return s.findable(ctx, preloaded)
}

// worthAnotherTry says whether an error comes from others who were there at the
// same time.
func worthAnotherTry(err error) bool {
	var unknown *CommitError
	var server *pgconn.PgError
	return !errors.As(err, &unknown) && errors.As(err, &server) && (server.Code == "55P03" || // lock_not_available
		server.Code == "40P01" || // deadlock_detected
		server.Code == "40001") // serialization_failure
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// lock takes the advisory lock of the database, for the session: it must be held
// before the transaction's snapshot is taken.
func (s *Session) lock(ctx context.Context) (unlock func() error, err error) {
	conn := s.primary.conn
	// As long as for the locks of a script: so often, so long.
	deadline := time.Now().Add(time.Duration(s.cfg.Tries) * s.cfg.LockTimeout)
	for try := 1; ; try++ {
		var ok bool
		if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1::int, $2::int)", ledger.LockClass, ledger.LockKey).Scan(&ok); err != nil {
			return nil, fmt.Errorf("could not lock database %q: %w", s.primary.o.Database, err)
		}
		if ok {
			break
		}
		// Any role may take an advisory lock; nothing can be done but to say who has.
		who, err := holders(ctx, conn, `locktype = 'advisory' AND classid = $1::int::oid AND objid = $2::int::oid AND objsubid = 2
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, ledger.LockClass, ledger.LockKey)
		if err != nil {
			return nil, err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return nil, &LockedError{Database: s.primary.o.Database, Tries: s.cfg.Tries, Err: fmt.Errorf("somebody else installs extensions there: %s", who)}
		}
		if try == 1 {
			s.cfg.Log.Info("waiting for the lock of the database", "database", s.primary.o.Database, "holder", who)
		}
		if err := pause(ctx, min(left, time.Duration(min(try, 10))*100*time.Millisecond)); err != nil {
			return nil, err
		}
	}
	return func() error {
		if conn.IsClosed() {
			return nil // and the lock is gone with it
		}
		ctx, cancel := ending(ctx)
		defer cancel()
		var was bool
		err := conn.QueryRow(ctx, "SELECT pg_advisory_unlock($1::int, $2::int)", ledger.LockClass, ledger.LockKey).Scan(&was)
		if err == nil && !was {
			err = fmt.Errorf("the lock of database %q was lost meanwhile: others may have installed extensions at the same time", s.primary.o.Database)
		}
		return err
	}, nil
}

// holders says who holds a lock.
func holders(ctx context.Context, conn *pgx.Conn, which string, args ...any) (string, error) {
	var who string
	err := conn.QueryRow(ctx, `
SELECT coalesce(string_agg(format('pid %s, role %I, application %L', l.pid, coalesce(a.usename, '?'), coalesce(a.application_name, '')), '; ' ORDER BY l.pid),
                'nobody any more')
FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) WHERE l.granted AND l.pid <> pg_backend_pid() AND `+which, args...).Scan(&who)
	if err != nil {
		return "", fmt.Errorf("could not find out who holds the lock: %w", err)
	}
	return who, nil
}

// lockServer takes a lock of the whole server: files, ALTER SYSTEM and what a
// server loads when it starts are of all its databases, and an advisory lock is of
// one. A lock of a catalog that all share is of the server, can be taken from any
// database, and only by a superuser, as all that it protects. Of
// pg_shseclabel, in this mode, nobody notices: it keeps only a VACUUM of it away,
// which gives way. The session that holds it stays in a transaction without a
// snapshot.
func (s *Session) lockServer(ctx context.Context) (unlock func() error, err error) {
	conn, err := s.primary.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("could not lock %s: %w", s.primary.o.Node, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, hangUp(ctx, conn))
		}
	}()
	for try := 1; ; try++ {
		_, err := conn.PgConn().Exec(ctx, fmt.Sprintf(`BEGIN; SET LOCAL lock_timeout = %d;
LOCK TABLE pg_catalog.pg_shseclabel IN SHARE UPDATE EXCLUSIVE MODE`, s.cfg.LockTimeout.Milliseconds())).ReadAll()
		if err == nil {
			break
		}
		if !worthAnotherTry(err) {
			return nil, fmt.Errorf("could not lock %s: %w", s.primary.o.Node, err)
		}
		if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
			return nil, fmt.Errorf("could not lock %s: %w", s.primary.o.Node, err)
		}
		who, err := holders(ctx, conn, "l.locktype = 'relation' AND l.relation = 'pg_catalog.pg_shseclabel'::regclass AND l.mode = 'ShareUpdateExclusiveLock'")
		if err != nil {
			return nil, err
		}
		if try >= s.cfg.Tries {
			return nil, &LockedError{Database: s.primary.o.Database, Tries: try, Err: fmt.Errorf("somebody else changes the server: %s", who)}
		}
		s.cfg.Log.Info("waiting for the lock of the server", "node", s.primary.o.Node, "try", try, "holder", who)
	}
	return func() error {
		lost := conn.IsClosed()
		if !lost {
			ctx, cancel := ending(ctx)
			defer cancel()
			_, err := conn.Exec(ctx, "ROLLBACK")
			lost = err != nil
		}
		err := hangUp(ctx, conn)
		if lost {
			err = errors.Join(fmt.Errorf("the lock of %s was lost meanwhile: others may have changed the server at the same time", s.primary.o.Node), err)
		}
		return err
	}, nil
}

// rollback ends a transaction, and gives up on a server that does not answer.
func rollback(ctx context.Context, tx pgx.Tx) error {
	ctx, cancel := ending(ctx)
	defer cancel()
	if err := tx.Rollback(ctx); err != nil && !errors.Is(err, pgx.ErrTxClosed) && !tx.Conn().IsClosed() {
		return err
	}
	return nil
}

// An UncommittedError says that the server refused COMMIT, as a deferred constraint
// makes it do. All was rolled back.
type UncommittedError struct {
	Names []string // of the extensions
	Err   error
}

func (e *UncommittedError) Error() string {
	return fmt.Sprintf("%s: could not commit: %v", strings.Join(e.Names, ", "), e.Err)
}

func (e *UncommittedError) Unwrap() error { return e.Err }

// A CommitError says that the answer to COMMIT was lost, so that the changes may
// have been made. What comes after the commit was not done; the same command
// again does it.
type CommitError struct {
	Database string
	Status   string // what the server said of it later: "committed", "in progress"; empty if it could not be asked
	Err      error
	Look     error // why it could not be asked
}

func (e *CommitError) Error() string {
	switch e.Status {
	case "committed":
		return fmt.Sprintf("the changes of database %q are committed, and what comes after them was not done: %v", e.Database, e.Err)
	case "in progress":
		return fmt.Sprintf("the changes of database %q are being committed, or will be undone: %v", e.Database, e.Err)
	}
	text := fmt.Sprintf("the changes of database %q may have been committed: %v", e.Database, e.Err)
	if e.Look != nil {
		text += fmt.Sprintf("; the server could not be asked: %v", e.Look)
	}
	return text
}

func (e *CommitError) Unwrap() error { return e.Err }

// notCommitted finds out what an error of COMMIT means. Only an ERROR is the
// server's word that all is undone; whatever ends the session may have come after
// the commit was written, while its answer waited for a standby.
func (n *node) notCommitted(ctx context.Context, p *Plan, xid string, err error) error {
	undone := &UncommittedError{Err: err}
	for i := range p.Steps {
		undone.Names = append(undone.Names, p.Steps[i].Name)
	}
	var server *pgconn.PgError
	if xid == "" || errors.Is(err, pgx.ErrTxCommitRollback) || errors.As(err, &server) && server.SeverityUnlocalized == "ERROR" {
		return undone
	}
	e := &CommitError{Database: p.Database, Err: err}
	if e.Status, e.Look = n.fate(ctx, xid); e.Status == "aborted" {
		return undone
	}
	return e
}

// fate asks what has become of a transaction, on a session of its own, until the
// server has noticed that the other one is gone.
func (n *node) fate(ctx context.Context, xid string) (status string, err error) {
	ctx, cancel := ending(ctx)
	defer cancel()
	conn, err := n.dial(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, hangUp(ctx, conn)) }()
	for {
		if err := conn.QueryRow(ctx, "SELECT coalesce(pg_xact_status($1::text::xid8), '')", xid).Scan(&status); err != nil {
			return "", err
		}
		if status != "in progress" || pause(ctx, 50*time.Millisecond) != nil {
			return status, nil
		}
	}
}

// transact does all steps in one transaction. REPEATABLE READ, so that what
// others do meanwhile is not taken for the script's doing.
func (s *Session) transact(ctx context.Context, on *node, p *Plan, dry bool) (_ *Report, err error) {
	conn := on.conn
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rollback(ctx, tx)) }()
	r := s.runner(tx)
	r.allowOpen, r.root = p.Request.AllowOpen, on.store(dry)
	if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", s.cfg.LockTimeout.Milliseconds())); err != nil {
		return nil, err
	}
	for i := range p.Steps {
		step := &p.Steps[i]
		s.cfg.Log.Info(string(step.Action), "extension", step.Name, "from", step.From, "to", step.To, "mode", step.Mode, "database", p.Database)
		done, err := r.step(ctx, step)
		if err != nil {
			return nil, err
		}
		r.report.Steps = append(r.report.Steps, *done)
	}
	for _, name := range p.Forget {
		if err := ledger.Forget(ctx, tx, name); err != nil {
			return nil, err
		}
	}
	if dry {
		// What COMMIT would look at; a rollback does not.
		if _, err := tx.Exec(ctx, "SET CONSTRAINTS ALL IMMEDIATE"); err != nil {
			return nil, on.notCommitted(ctx, p, "", err)
		}
		r.report.Locks, err = s.locks(ctx, tx)
		return &r.report, err
	}
	var xid string
	if err := tx.QueryRow(ctx, "SELECT coalesce(pg_catalog.pg_current_xact_id_if_assigned()::text, '')").Scan(&xid); err != nil {
		return nil, err
	}
	if err := tx.Commit(ctx); err != nil {
		return nil, on.notCommitted(ctx, p, xid, err)
	}
	if err := ctx.Err(); err != nil {
		// Who gave up in a COMMIT that waits for a synchronous standby has it
		// committed here, and may not have it there.
		return nil, &CommitError{Database: p.Database, Status: "committed", Err: err}
	}
	return &r.report, nil
}

// locks lists what others would wait for. The other session of ours on the
// server sees which relations there are for others.
func (s *Session) locks(ctx context.Context, tx pgx.Tx) ([]Lock, error) {
	rows, err := tx.Query(ctx, `
SELECT relation, mode FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted
AND mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	if err != nil {
		return nil, err
	}
	type held struct {
		Relation uint32
		Mode     string
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[held])
	if err != nil {
		return nil, err
	}
	var relations []uint32
	var modes []string
	for _, h := range all {
		relations, modes = append(relations, h.Relation), append(modes, h.Mode)
	}
	rows, err = s.primary.conn.Query(ctx, `
SELECT c.oid::regclass::text, h.mode FROM unnest($1::oid[], $2::text[]) AS h (relation, mode) JOIN pg_class c ON c.oid = h.relation
WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f', 'S') ORDER BY 1, 2`, relations, modes)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Lock])
}

// rehearse prepares a dry run on a session of its own: a library that it loads
// stays loaded in that session, from a place that is gone afterwards.
func (s *Session) rehearse(ctx context.Context, p *Plan, on **node) (end func() error, err error) {
	conn, err := s.primary.dial(ctx)
	if err != nil {
		return nil, err
	}
	if s.primary.rehearsal, err = newRehearsal(ctx, conn); err != nil {
		return nil, errors.Join(err, hangUp(ctx, conn))
	}
	*on = &node{config: s.primary.config, conn: conn, o: s.primary.o, rehearsal: s.primary.rehearsal}
	files, err := s.files(p, true)
	if err == nil {
		err = s.bring(ctx, files, nil)
	}
	end = func() error {
		err := hangUp(ctx, conn)
		if len(files) > 0 {
			ctx, cancel := ending(ctx)
			defer cancel()
			err = errors.Join(err, s.removeRehearsal(ctx))
		}
		return err
	}
	if err != nil {
		return nil, errors.Join(err, end())
	}
	return end, nil
}
