package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	Others  []string `json:"others,omitempty"`
}

// A Lock is one that others will have to wait for: on a relation that was there
// before, in a mode that a plain query or a change of a row conflicts with.
type Lock struct {
	Relation string `json:"relation"`
	Mode     string `json:"mode"`
}

// Apply does what the plan says. With dry it does so in a transaction that is
// rolled back, and says what locks it would have held.
func (s *Session) Apply(ctx context.Context, p *Plan, dry bool) (_ *Report, err error) {
	begun := time.Now()
	if s.primary.o.Standby {
		return nil, fmt.Errorf("%s is a standby: extensions are installed on the primary", s.primary.o.Node)
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := s.refresh(ctx); err != nil {
		return nil, err
	}
	if s.primary.o.Fingerprint() != p.Fingerprint {
		return nil, &MovedError{Database: p.Database, Node: p.Node}
	}
	report := &Report{Database: p.Database, Node: p.Node, DryRun: dry, Restart: p.Restart, Notes: slices.Clone(p.Notes)}
	if len(p.Preload) > 0 && !dry {
		return nil, s.preload(ctx, p)
	}
	on := s.primary
	if dry {
		end, err := s.rehearse(ctx, p, &on)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, end()) }()
	} else {
		if err := s.bring(ctx, p.Files); err != nil {
			return nil, err
		}
		if err := s.leadThere(ctx, p); err != nil {
			return nil, err
		}
	}
	for try := 1; ; try++ {
		r, err := s.transact(ctx, on, p, dry)
		if err == nil {
			report.Steps, report.Locks, report.Tries = r.Steps, r.Locks, try
			report.Notes = append(report.Notes, r.Notes...)
			break
		}
		if !worthAnotherTry(err) {
			return nil, err
		}
		if try >= s.cfg.Tries {
			return nil, &LockedError{Database: p.Database, Tries: try, Err: err}
		}
		s.cfg.Log.Info("the database is busy, trying again", "database", p.Database, "try", try, "err", err)
		if err := pause(ctx, time.Duration(min(try, 10))*100*time.Millisecond); err != nil {
			return nil, err
		}
	}
	if !dry {
		if err := s.afterCommit(ctx, p, report); err != nil {
			return report, err
		}
	}
	report.Elapsed = time.Since(begun)
	return report, nil
}

// worthAnotherTry says whether an error comes from others who were there at the
// same time.
func worthAnotherTry(err error) bool {
	var server *pgconn.PgError
	return errors.As(err, &server) && (server.Code == "55P03" || // lock_not_available
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
	for try := 1; ; try++ {
		var ok bool
		if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1::int, $2::int)", ledger.LockClass, ledger.LockKey).Scan(&ok); err != nil {
			return nil, fmt.Errorf("could not lock database %q: %w", s.primary.o.Database, err)
		}
		if ok {
			break
		}
		if try >= s.cfg.Tries {
			return nil, &LockedError{Database: s.primary.o.Database, Tries: try, Err: errors.New("somebody else installs extensions there")}
		}
		if err := pause(ctx, time.Duration(min(try, 10))*100*time.Millisecond); err != nil {
			return nil, err
		}
	}
	return func() error {
		if conn.IsClosed() {
			return nil // and the lock is gone with it
		}
		_, err := conn.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1::int, $2::int)", ledger.LockClass, ledger.LockKey)
		return err
	}, nil
}

// transact does all steps in one transaction. REPEATABLE READ, so that what
// others do meanwhile is not taken for the script's doing.
func (s *Session) transact(ctx context.Context, on *node, p *Plan, dry bool) (_ *Report, err error) {
	conn := on.conn
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := tx.Rollback(context.WithoutCancel(ctx)); e != nil && !errors.Is(e, pgx.ErrTxClosed) && !conn.IsClosed() {
			err = errors.Join(err, e)
		}
	}()
	r := &runner{s: s, tx: tx, allowOpen: p.Request.AllowOpen, role: s.primary.o.Role.Name, root: on.store(dry)}
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
	if dry {
		r.report.Locks, err = s.locks(ctx, tx)
		return &r.report, err
	}
	if err := tx.Commit(ctx); err != nil {
		return nil, fmt.Errorf("could not commit: %w", err)
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
	conn, err := connect(ctx, s.primary.conninfo)
	if err != nil {
		return nil, err
	}
	*on = &node{conninfo: s.primary.conninfo, conn: conn, o: s.primary.o}
	files, err := s.files(p, true)
	if err == nil {
		err = s.bring(ctx, files)
	}
	end = func() error {
		ctx := context.WithoutCancel(ctx)
		err := conn.Close(ctx)
		if len(files) > 0 {
			err = errors.Join(err, s.removeRehearsal(ctx))
		}
		return err
	}
	if err != nil {
		return nil, errors.Join(err, end())
	}
	return end, nil
}
