package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rideau/extension"
	"rideau/internal/durable"
)

// wishesFile is what somebody wants, in the current directory.
const wishesFile = "extensions.toml"

// lockFile is beside the wishes: extensions.lock.
func lockFile(wishes string) string {
	return strings.TrimSuffix(wishes, filepath.Ext(wishes)) + ".lock"
}

// wishes are extensions.toml, and where it is.
type wishes struct {
	*extension.Wishes
	file string
}

// readWishes reads extensions.toml. What is wrong with it is a mistake in the
// configuration.
func readWishes(file string) (*wishes, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("could not read what is wished for: %w", err)
	}
	w, err := extension.ParseWishes(file, text)
	if err != nil {
		return nil, &usageError{err: err, hint: "doc/extension.md explains extensions.toml."}
	}
	return &wishes{w, file}, nil
}

// locations are the registries of the file. A directory is relative to it.
func (w *wishes) locations() []registryLocation {
	var list []registryLocation
	for _, l := range w.Registries {
		if !strings.Contains(l, "://") && !strings.HasPrefix(l, pgxnPrefix) && !filepath.IsAbs(l) {
			l = filepath.Join(filepath.Dir(w.file), l)
		}
		list = append(list, registryLocation{l, false})
	}
	return list
}

// databases are those to work on: all, or the one that was named.
func (w *wishes) databases(cmd *cobra.Command, only string, d []string) ([]string, error) {
	var list []string
	for name := range w.Databases {
		if only == "" || name == only {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	switch {
	case len(list) == 0 && only != "":
		return nil, usageErrorf(cmd, "%s has no [database.%s]", w.file, only)
	case len(list) == 0:
		return nil, &usageError{err: fmt.Errorf("%s has no [database.NAME]", w.file), hint: "doc/extension.md explains extensions.toml."}
	case len(list) > 1 && len(d) > 0:
		err := usageErrorf(cmd, "-d leads to one database, and %s has %s", w.file, strings.Join(list, ", "))
		err.hint = "Say which one is meant: --database NAME."
		return nil, err
	}
	return list, nil
}

// A wishedDatabase is one database of the file, and a session in it.
type wishedDatabase struct {
	name    string
	nodes   []string
	session *extensionSession
	request extension.Request // what is wished, with the options of the command
}

// openWished connects to the databases of the file.
func (f *planFlags) openWished(cmd *cobra.Command, base extension.Request, timeout time.Duration) (_ *wishes, all []*wishedDatabase, err error) {
	w, err := readWishes(f.file)
	if errors.Is(err, fs.ErrNotExist) {
		usage := usageErrorf(cmd, "%w", err)
		usage.hint = "Name extensions to install, or write extensions.toml: doc/extension.md has one to begin with."
		return nil, nil, usage
	} else if err != nil {
		return nil, nil, err
	}
	names, err := w.databases(cmd, f.database, f.nodes)
	if err != nil {
		return nil, nil, err
	}
	locations := w.locations()
	if len(f.registries) > 0 {
		if locations, err = f.extensionTarget.locations(); err != nil {
			return nil, nil, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeWished(all))
		}
	}()
	for _, name := range names {
		req, d, err := w.Request(name)
		if err != nil {
			return nil, all, &usageError{err: fmt.Errorf("%s: %w", w.file, err)}
		}
		req.Mode, req.NoConf, req.AllowOpen, req.AllowSkew = base.Mode, base.NoConf, base.AllowOpen, base.AllowSkew
		for held, why := range base.Held {
			req.Held[held] = why
		}
		one := &wishedDatabase{name: name, request: req}
		switch {
		case len(f.nodes) > 0:
			one.nodes = f.conninfos()
		case d.Conninfo != "":
			one.nodes = append([]string{d.Conninfo}, d.Nodes...)
		default:
			one.nodes = append((&extensionTarget{nodes: []string{name}}).conninfos(), d.Nodes...)
		}
		if one.session, err = f.openWith(cmd, one.nodes, locations, timeout); err != nil {
			return nil, all, err
		}
		all = append(all, one)
	}
	sessions := make([]*extensionSession, len(all))
	for i, one := range all {
		sessions[i] = one.session
	}
	return w, all, f.checkHeld(cmd, sessions...)
}

func closeWished(all []*wishedDatabase) error {
	var errs []error
	for _, one := range all {
		errs = append(errs, one.session.Close())
	}
	return errors.Join(errs...)
}

// locked lays the lock file over the requests. ok is false if there is none.
func (w *wishes) locked(all []*wishedDatabase) (_ *extension.Locked, ok bool, err error) {
	name := lockFile(w.file)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	} else if err != nil {
		return nil, false, fmt.Errorf("could not read the lock file: %w", err)
	}
	lock, err := extension.ParseLock(name, text)
	if err != nil {
		return nil, false, &usageError{err: err, hint: "Write it anew: rideau extension lock."}
	}
	if lock.Wishes != w.SHA256 {
		return nil, false, &staleLockError{name, w.file}
	}
	for _, one := range all {
		if one.request, err = lock.Request(one.name, one.request); err != nil {
			return nil, false, &usageError{err: fmt.Errorf("%s: %w", name, err), hint: "Write it anew: rideau extension lock."}
		}
	}
	return lock, true, nil
}

// A staleLockError says that a lock file is not of these wishes.
type staleLockError struct{ lock, wishes string }

func (e *staleLockError) Error() string {
	return fmt.Sprintf("%s is not of this %s, which was changed after it", e.lock, e.wishes)
}

// A libraryError says that the server's own libraries are not those that the
// lock file was written with.
type libraryError struct {
	lock, database string
	names          []string
}

func (e *libraryError) Error() string {
	return fmt.Sprintf("database %q: the libraries of %s on the server are not those of %s", e.database, strings.Join(e.names, ", "), e.lock)
}

// planWishes shows the plans of what extensions.toml wishes for.
func (f *planFlags) planWishes(cmd *cobra.Command, base extension.Request) (err error) {
	timeout, err := parseTimeout(f.lockTimeout)
	if err != nil {
		return err
	}
	w, all, err := f.openWished(cmd, base, timeout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeWished(all)) }()
	if f.output != "" && len(all) > 1 {
		usage := usageErrorf(cmd, "a plan that is kept is of one database, and %s has %d", w.file, len(all))
		usage.hint = "Say which one is meant: --database NAME."
		return usage
	}
	_, ok, err := w.locked(all)
	if err != nil {
		return err
	}
	if !ok && !f.asJSON {
		fmt.Fprintf(cmd.ErrOrStderr(), "note: %s is not there: versions are chosen now, and may be others later; rideau extension lock writes it\n", lockFile(w.file))
	}
	for _, one := range all {
		plan, err := one.session.Plan(cmd.Context(), one.request)
		if err != nil {
			return err
		}
		if err := f.show(cmd, one.session, plan, one.nodes); err != nil {
			return err
		}
	}
	return nil
}

// applyWishes does what extensions.toml wishes for, as the lock file says.
func (f *planFlags) applyWishes(cmd *cobra.Command) (err error) {
	base, timeout, err := f.request(cmd)
	if err != nil {
		return err
	}
	w, all, err := f.openWished(cmd, base, timeout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeWished(all)) }()
	lock, ok, err := w.locked(all)
	if err != nil {
		return err
	}
	if !ok {
		usage := usageErrorf(cmd, "there is no %s", lockFile(w.file))
		usage.hint = "Write it, look at it, and keep it under version control: rideau extension lock."
		return usage
	}
	// All are planned before the first is changed.
	plans := make([]*extension.Plan, len(all))
	for i, one := range all {
		differ, err := one.session.CheckLibraries(cmd.Context(), lock.Databases[one.name])
		if err != nil {
			return err
		}
		if len(differ) > 0 {
			return &libraryError{lockFile(w.file), one.name, differ}
		}
		if plans[i], err = one.session.Plan(cmd.Context(), one.request); err != nil {
			return fmt.Errorf("database %q: %w", one.name, err)
		}
	}
	for i, one := range all {
		if err := carryOut(cmd, one.session, plans[i], f.dryRun, f.asJSON); err != nil {
			if len(all) > 1 {
				err = fmt.Errorf("database %q: %w", one.name, err)
			}
			return err
		}
	}
	return nil
}

const extensionLockHelp = `Usage: rideau extension lock [options]

Finds the versions that fulfil extensions.toml, for each database in it, and
writes them to extensions.lock beside it, with the hashes of the packages and
of the server's libraries. No database is changed: rideau extension apply does
that, with exactly these. Keep both files under version control.

    registries = ["https://extensions.example.org/"]

    [database.app]
    conninfo = "host=db1 dbname=app"   # default dbname=app and PG*
    nodes = ["host=db2 dbname=app"]    # its standbys

    [database.app.extensions]
    hstore = "*"
    foo = ">= 1.0, < 2"
    bar = { version = "~> 1.1", schema = "bar", mode = "module", hold = true }

Options:
    -d, --dbname CONNINFO
                      The database, instead of what the file says.
    --registry PLACE  Where packages are, instead of what the file says.
    --upgrade         The newest versions that are wished for and can be
                      reached. Else what is installed stays as it is.
    --mode MODE, --hold NAME, --no-conf, --allow-open-schema, --allow-skew,
    --lock-timeout TIME
                      As for rideau extension install.
    -f, --file FILE   Another file than extensions.toml.
    --database NAME   Only this [database.NAME] of the file.
    --json            Print what was locked as JSON.
` + moreHelp + `
Example:
    $ rideau extension lock && git diff extensions.lock
`

func newExtensionLockCommand() *cobra.Command {
	var f planFlags
	cmd := newCommand("lock [options]", extensionLockHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args); err != nil {
			return err
		}
		return f.lock(cmd)
	})
	f.extensionTarget.flags(cmd)
	f.wanted.flags(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&f.upgradeAll, "upgrade", false, "")
	flags.StringVarP(&f.file, "file", "f", wishesFile, "")
	flags.StringVar(&f.database, "database", "", "")
	return cmd
}

func (f *planFlags) lock(cmd *cobra.Command) (err error) {
	base, timeout, err := f.request(cmd)
	if err != nil {
		return err
	}
	w, all, err := f.openWished(cmd, base, timeout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeWished(all)) }()
	lock := &extension.Locked{Wishes: w.SHA256, Databases: map[string][]extension.LockedVersions{}}
	name := lockFile(w.file)
	if f.database != "" {
		if err := w.othersOf(lock, name); err != nil {
			return err
		}
	}
	for _, one := range all {
		req := one.request
		if f.upgradeAll {
			req.Install = nil
			for _, wish := range one.request.Install {
				if _, ok := one.session.Observed().Find(wish.Name); ok {
					req.Upgrade = append(req.Upgrade, wish)
				} else {
					req.Install = append(req.Install, wish)
				}
			}
		}
		if lock.Databases[one.name], err = one.session.Lock(cmd.Context(), req); err != nil {
			return fmt.Errorf("database %q: %w", one.name, err)
		}
		for _, note := range one.session.unknown() {
			fmt.Fprintf(cmd.ErrOrStderr(), "note: %s\n", note)
		}
	}
	text, err := lock.Marshal()
	if err != nil {
		return err
	}
	if err := durable.WriteFile(name, text, 0o644); err != nil {
		return fmt.Errorf("could not write the lock file: %w", err)
	}
	if f.asJSON {
		return writeJSON(cmd.OutOrStdout(), lockJSON(lock))
	}
	t := newTable(cmd.OutOrStdout())
	for _, one := range all {
		for _, v := range lock.Databases[one.name] {
			from := "the server"
			switch {
			case v.Shelf != "":
				from = v.Shelf
			case v.Mode != extension.Native:
				from = "a package that is installed, and not in the registries any more"
			}
			t.row(one.name, v.Name, v.Version, string(v.Mode), "from "+from)
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "Written to %s. To do it: rideau extension apply\n", name)
	return err
}

// othersOf keeps what a lock file says of databases that are not looked at. That
// is only right as long as the wishes are the same.
func (w *wishes) othersOf(lock *extension.Locked, name string) error {
	if len(w.Databases) == 1 {
		return nil
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return &usageError{err: fmt.Errorf("%s must be written for all databases first: %w", name, err), hint: "Leave out --database."}
	}
	old, err := extension.ParseLock(name, text)
	if err != nil {
		return &usageError{err: err, hint: "Leave out --database."}
	}
	if old.Wishes != w.SHA256 {
		return &usageError{err: &staleLockError{name, w.file}, hint: "Leave out --database: the wishes of the others may have changed, too."}
	}
	for database, list := range old.Databases {
		lock.Databases[database] = list
	}
	return nil
}

// A lockedJSON is one line of a lock file for programs.
type lockedJSON struct {
	Name      string         `json:"name"`
	Version   string         `json:"version"`
	Mode      extension.Mode `json:"mode"`
	Schema    string         `json:"schema,omitempty"`
	Shelf     string         `json:"shelf,omitempty"`
	SHA256    string         `json:"sha256,omitempty"`
	Libraries []string       `json:"libraries,omitempty"`
	Objects   string         `json:"objects,omitempty"`
}

func lockJSON(l *extension.Locked) any {
	databases := map[string][]lockedJSON{}
	for name, list := range l.Databases {
		databases[name] = []lockedJSON{}
		for _, v := range list {
			databases[name] = append(databases[name], lockedJSON(v))
		}
	}
	return map[string]any{"wishes": l.Wishes, "databases": databases}
}
