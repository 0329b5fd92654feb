package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"rideau/extension"
	"rideau/extension/depend"
	"rideau/pgrepl"
)

// An extensionSession is a session, and the registries it installs from.
type extensionSession struct {
	*extension.Session
	registries *openRegistries
	absent     []string // nodes that could not be reached, and that we do without
}

func (s *extensionSession) Close() error {
	return errors.Join(s.Session.Close(), s.registries.Close())
}

// openNodes opens a session to those nodes that can be reached if we may do
// without the others, else to all.
func openNodes(cmd *cobra.Command, config extension.Config, without bool) (s *extension.Session, absent []string, err error) {
	for {
		s, err = extension.Open(cmd.Context(), config)
		at, name := unreachable(config.Nodes, err)
		if at < 0 {
			return s, absent, err
		}
		if !without || len(config.Nodes) == 1 {
			return nil, absent, &unreachableError{cmd.Flags().Lookup("allow-skew") != nil && len(config.Nodes) > 1, err}
		}
		absent = append(absent, name)
		config.Nodes = slices.Delete(slices.Clone(config.Nodes), at, at+1)
	}
}

// unreachable finds the node that an error says did not answer, or -1. One that
// refuses us has answered.
func unreachable(nodes []string, err error) (at int, name string) {
	failed := connectErrors(err)
	if len(failed) == 0 {
		return -1, ""
	}
	for _, f := range failed {
		if _, server := connectCause(f); server != nil && server.Code != "57P03" { // cannot_connect_now
			return -1, ""
		}
	}
	config := failed[0].Config
	_, name = pgconn.NetworkAddress(config.Host, config.Port)
	return slices.IndexFunc(nodes, func(node string) bool {
		parsed, err := pgrepl.ParseConfig(node)
		return err == nil && parsed.Host == config.Host && parsed.Port == config.Port && parsed.Database == config.Database && parsed.User == config.User
	}), name
}

// An unreachableError says that one of the nodes did not answer.
type unreachableError struct {
	another bool // others were named, and we could do without this one
	err     error
}

func (e *unreachableError) Error() string { return e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

// A hintedError is an error about a plan for which what was observed in the
// database says what to do.
type hintedError struct {
	err     error
	message string // instead of its own; empty: its own
	hint    string
}

func (e *hintedError) Error() string { return cmp.Or(e.message, e.err.Error()) }
func (e *hintedError) Unwrap() error { return e.err }

// A standbyError says that there is nothing that could be changed.
type standbyError struct {
	node, database string
	upstream       string   // the server it follows; empty if that cannot be seen
	absent         []string // nodes that were not reached; the primary is one of them
}

func (e *standbyError) Error() string {
	return fmt.Sprintf("%s is a standby: extensions are installed on the primary", e.node)
}

// onPrimary refuses a standby, before anything is planned for it.
func (s *extensionSession) onPrimary(ctx context.Context) error {
	o := s.Observed()
	if !o.Standby {
		return nil
	}
	upstream, err := s.Upstream(ctx)
	if err != nil {
		return err
	}
	return &standbyError{node: o.Node, database: o.Database, upstream: upstream, absent: s.absent}
}

// Plan is that of the session, for the primary only; it says more where it cannot
// be done, and which nodes were not looked at.
func (s *extensionSession) Plan(ctx context.Context, req extension.Request) (*extension.Plan, error) {
	if err := s.onPrimary(ctx); err != nil {
		return nil, err
	}
	plan, err := s.Session.Plan(ctx, req)
	if err != nil {
		return nil, s.hinted(err, req)
	}
	plan.Notes = append(plan.Notes, s.unreached(req)...)
	return plan, nil
}

// PlanAdopt is that of the session, for the primary only.
func (s *extensionSession) PlanAdopt(ctx context.Context, req extension.Request) (*extension.Plan, error) {
	if err := s.onPrimary(ctx); err != nil {
		return nil, err
	}
	return s.Session.PlanAdopt(ctx, req)
}

// Lock is that of the session. Nothing is changed by it: a standby will do.
func (s *extensionSession) Lock(ctx context.Context, req extension.Request) ([]extension.LockedVersions, error) {
	locked, err := s.Session.Lock(ctx, req)
	if err != nil {
		return nil, s.hinted(err, req)
	}
	return locked, nil
}

// unreached says what it means for a request that nodes were not looked at.
func (s *extensionSession) unreached(req extension.Request) []string {
	if len(req.Uninstall) == 0 {
		return s.unknown()
	}
	var notes []string
	for _, node := range s.absent {
		notes = append(notes, fmt.Sprintf("%s was not looked at, because it did not answer: files that were brought there stay, and once it answers the same command removes them", node))
	}
	if len(req.Install)+len(req.Upgrade) > 0 {
		notes = append(notes, s.unknown()...)
	}
	return notes
}

// unknown says which nodes were not looked at.
func (s *extensionSession) unknown() []string {
	var notes []string
	for _, node := range s.absent {
		notes = append(notes, fmt.Sprintf("%s was not looked at, because it did not answer: whether it has what is needed is not known, and no file is brought there", node))
	}
	return notes
}

// hinted adds to an error of a plan what to do about it in this database.
func (s *extensionSession) hinted(err error, req extension.Request) error {
	o := s.Observed()
	var absent *extension.NotInstalledError
	if errors.As(err, &absent) {
		if near := depend.Near(absent.Name, installedNames(o)); len(near) > 0 {
			return &hintedError{err: err, hint: fmt.Sprintf("Did you mean %s?", strings.Join(near, " or "))}
		}
		return err
	}
	if noCreate(err) && !o.Role.CanCreate {
		return &hintedError{err: err, hint: fmt.Sprintf("Have the owner of the database or a superuser say: GRANT CREATE ON DATABASE %s TO %s.",
			quoteIdentifier(o.Database), quoteIdentifier(o.Role.Name))}
	}
	var unsolvable *extension.UnsolvableError
	if !errors.As(err, &unsolvable) {
		return err
	}
	for _, w := range slices.Concat(req.Install, req.Upgrade) {
		in, ok := o.Find(w.Name)
		if !ok || len(w.Range) == 0 || w.Range.Allows(in.Version, nil) {
			continue
		}
		for _, x := range unsolvable.Excluded {
			if x.Name == w.Name && depend.Compare(x.Version, in.Version) < 0 && w.Range.Allows(x.Version, nil) {
				return &hintedError{
					err:     err,
					message: fmt.Sprintf("%s %s is installed, and a version never goes down: %s %s cannot be installed over it", in.Name, in.Version, in.Name, x.Version),
					hint: fmt.Sprintf("Uninstall it first, if nothing is lost with it: rideau extension uninstall %s --dry-run. Then install %s.",
						in.Name, shellQuote(in.Name+"="+x.Version)),
				}
			}
		}
	}
	return err
}

// noCreate says whether it is a reason of an error that the role may create
// nothing in the database.
func noCreate(err error) bool {
	var mode *extension.ModeError
	if errors.As(err, &mode) {
		return mode.NoCreate
	}
	var unsolvable *extension.UnsolvableError
	return errors.As(err, &unsolvable) && slices.ContainsFunc(unsolvable.Excluded, func(x extension.Excluded) bool {
		return errors.As(x.Why, &mode) && mode.NoCreate
	})
}

func installedNames(o *extension.Observed) []string {
	var names []string
	for _, in := range o.Installed {
		names = append(names, in.Name)
	}
	return names
}

// checkHeld refuses a --hold of what is in none of the databases: it would hold
// nothing, and not be what was meant.
func (w *wanted) checkHeld(cmd *cobra.Command, sessions ...*extensionSession) error {
	for _, name := range w.hold {
		var installed, where []string
		for _, s := range sessions {
			installed = append(installed, installedNames(s.Observed())...)
			where = append(where, fmt.Sprintf("%q", s.Observed().Database))
		}
		if slices.Contains(installed, name) {
			continue
		}
		err := usageErrorf(cmd, "--hold %s: no such extension is installed in database %s", name, strings.Join(where, ", "))
		err.hint = "rideau extension status says what is installed."
		slices.Sort(installed)
		if near := depend.Near(name, slices.Compact(installed)); len(near) > 0 {
			err.hint = fmt.Sprintf("Did you mean %s?", strings.Join(near, " or "))
		}
		return err
	}
	return nil
}

// A table prints columns that line up. A cell may be empty.
type table struct {
	w    io.Writer
	rows *[][]string
}

func newTable(w io.Writer) table { return table{w, new([][]string)} }

func (t table) row(cells ...string) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		// What comes from packages and servers is printed as text, not as orders to
		// the terminal.
		row[i] = strings.NewReplacer("\t", " ", "\n", " ").Replace(printable(cell))
	}
	*t.rows = append(*t.rows, row)
}

// flush prints the table. The last cell of a row widens no column, and no line
// ends with blanks.
func (t table) flush() error {
	var widths []int
	for _, row := range *t.rows {
		for i := range len(row) - 1 {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	for _, row := range *t.rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		if _, err := fmt.Fprintln(t.w, strings.TrimRight(line.String(), " ")); err != nil {
			return err
		}
	}
	*t.rows = nil
	return nil
}
