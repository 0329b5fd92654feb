package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A journal remembers what was done before the transaction, to undo it if that
// fails.
type journal struct {
	files    []broughtFile
	settings []changedSetting
}

type broughtFile struct {
	n    *node
	path string
	had  bool
	was  []byte
}

type changedSetting struct {
	n    *node
	name string
	had  bool // postgresql.auto.conf has had it
	was  string
	now  SystemChange
}

// A LeftError says that nothing was done in a database, and that not all that came
// before could be undone. It does not unwrap to what failed: who sees only that
// would say that nothing was changed.
type LeftError struct {
	Err  error
	Left []string // what is left, where, and why
}

func (e *LeftError) Error() string {
	return fmt.Sprintf("%v; nothing was changed in the database, but not all that was done before could be undone: %s", e.Err, strings.Join(e.Left, "; "))
}

// Is finds the cause by identity.
func (e *LeftError) Is(target error) bool { return errors.Is(e.Err, target) }

// undo undoes what is in the journal, and returns why it had to: err, or more.
func (j *journal) undo(ctx context.Context, err error) error {
	var restart *RestartError
	var unknown *CommitError
	if j == nil || len(j.files)+len(j.settings) == 0 || errors.As(err, &restart) || errors.As(err, &unknown) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	failed := &LeftError{Err: err}
	left := func(n *node, what string, err error) {
		failed.Left = append(failed.Left, fmt.Sprintf("%s at %s (%v)", what, n.o.Node, err))
	}
	for _, n := range j.nodes() {
		open, end, err := n.open(ctx)
		if err != nil {
			for _, set := range j.settings {
				if set.n == n {
					left(n, set.name, err)
				}
			}
			for _, f := range j.files {
				if f.n == n {
					left(n, f.path, err)
				}
			}
			continue
		}
		reload := false
		for _, set := range slices.Backward(j.settings) {
			if set.n != n {
				continue
			}
			did, err := open.restore(ctx, set)
			reload = reload || did
			if err != nil {
				left(n, set.name, err)
			}
		}
		if reload {
			if err := open.reloaded(ctx); err != nil {
				left(n, "what was set, until its configuration is reloaded,", err)
			}
		}
		// What is new goes first: that makes room on a disk that may be full.
		inside, outside := []string{}, []string{}
		for _, f := range slices.Backward(j.files) {
			switch {
			case f.n != n || f.had:
			case strings.HasPrefix(f.path, n.store(false)+"/"):
				inside = append(inside, f.path)
			default:
				outside = append(outside, f.path)
			}
		}
		if len(inside) > 0 {
			if err := open.removeStored(ctx, inside); err != nil {
				left(n, joinSome(inside, 3), err)
			}
		}
		for _, f := range outside { // brought to the server's own folder
			if err := open.removeFile(ctx, f); err != nil {
				left(n, f, err)
			}
		}
		for _, f := range slices.Backward(j.files) {
			if f.n != n || !f.had {
				continue
			}
			// Not to be written if it was not replaced.
			if has, err := open.fileHash(ctx, f.path); err == nil && has == hashOf(f.was) {
				continue
			}
			if err := open.write(ctx, f.path, f.was); err != nil {
				left(n, f.path, err)
			}
		}
		if err := end(); err != nil {
			left(n, "a session", err)
		}
	}
	if len(failed.Left) > 0 {
		return failed
	}
	return err
}

// nodes lists the nodes that something was done on.
func (j *journal) nodes() []*node {
	var list []*node
	add := func(n *node) {
		if !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	for _, set := range j.settings {
		add(set.n)
	}
	for _, f := range j.files {
		add(f.n)
	}
	return list
}

// open is the node with a session that works: a new one if its own is gone.
func (n *node) open(ctx context.Context) (*node, func() error, error) {
	if !n.conn.IsClosed() {
		return n, func() error { return nil }, nil
	}
	own := *n
	var err error
	if own.conn, err = n.dial(ctx); err != nil {
		return nil, nil, err
	}
	return &own, func() error { return hangUp(ctx, own.conn) }, nil
}

// alter is alterSystem, with what was before in the journal.
func (j *journal) alter(ctx context.Context, n *node, c SystemChange) error {
	set := changedSetting{n: n, name: c.Name, now: c}
	var err error
	if set.was, set.had, err = n.autoSetting(ctx, c.Name); err != nil {
		return err
	}
	j.settings = append(j.settings, set)
	return n.alterSystem(ctx, c)
}

// autoSetting is what ALTER SYSTEM has set a parameter to.
func (n *node) autoSetting(ctx context.Context, name string) (value string, ok bool, err error) {
	err = n.conn.QueryRow(ctx, `
SELECT coalesce(setting, '') FROM pg_file_settings WHERE lower(name) = lower($1) AND sourcefile LIKE '%/postgresql.auto.conf' ORDER BY seqno DESC LIMIT 1`, name).Scan(&value)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	} else if err != nil {
		return "", false, fmt.Errorf("%s: %s: %w", n.o.Node, name, err)
	}
	return value, true, nil
}

// restore undoes an ALTER SYSTEM, unless somebody has said another since.
func (n *node) restore(ctx context.Context, set changedSetting) (did bool, err error) {
	value, ok, err := n.autoSetting(ctx, set.name)
	if err != nil {
		return false, err
	}
	ours := strings.Join(set.now.Values, "")
	if set.now.List {
		if value, err = relist(value); err != nil {
			return false, err
		}
		ours = listText(set.now.Values)
	}
	if !ok || value != ours {
		return false, nil
	}
	if !set.had {
		_, err := n.conn.PgConn().Exec(ctx, "ALTER SYSTEM RESET "+quoteSetting(set.name)).ReadAll()
		return err == nil, err
	}
	was := SystemChange{Name: set.name, Values: []string{set.was}, List: set.now.List}
	if was.List {
		if was.Values, err = splitLibraries(set.was); err != nil {
			return false, err
		}
	}
	return true, n.alterSystem(ctx, was)
}

// relist writes a list as listText does.
func relist(text string) (string, error) {
	values, err := splitLibraries(text)
	return listText(values), err
}
