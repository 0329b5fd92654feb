package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rideau/extension"
	"rideau/extension/depend"
)

const extensionInstallHelp = `Usage: rideau extension install NAME... [options]

Installs extensions in one database, with all that they depend on and without
what they conflict with, in one transaction. What is installed already stays
as it is unless it stands in the way. First it says what will be done.

NAME may have versions: foo, foo=1.0, 'foo (>= 1.1, < 2)'.

Options:
    -d, --dbname CONNINFO
                      The database, or its name. Repeat it for each node of a
                      pool: libraries come to all nodes first. Default PG*.
    --registry PLACE  Where packages are: a registry (directory, http://,
                      s3://), or a plain directory of packages; and to look
                      only, pgxn:URL. Repeatable. Default those of
                      extensions.toml here.
    --schema NAME     Into this schema; it is made if it is not there.
    --mode MODE       auto, or one of these. Default auto, which never grafts.
                        native  the server has the files
                        path    18 and later, superuser: files come over SQL
                        module  plain owner: objects without an extension
                        graft   superuser: as module, then the rows of
                                pg_extension; PostgreSQL does not support it
` + dryRunHelp + scriptHelp + skewHelp + lockTimeoutHelp + reportHelp + `
Exit status: 0 done, or there was nothing to do; 1 nothing was changed.

Example:
    $ rideau extension install foo -d 'host=db1 dbname=app'
`

// installFlags are the options of commands that change a database.
type installFlags struct {
	extensionTarget
	wanted
	dryRun bool
}

func newExtensionInstallCommand() *cobra.Command {
	var f installFlags
	cmd := newCommand("install NAME... [options]", extensionInstallHelp, func(cmd *cobra.Command, args []string) error {
		if err := someNames(cmd, args, "extension to install"); err != nil {
			return err
		}
		wishes, err := parseWishes(cmd, args, f.schema)
		if err != nil {
			return err
		}
		return f.run(cmd, func(_ *extensionSession, req *extension.Request) { req.Install = wishes })
	})
	f.extensionTarget.flags(cmd)
	f.wanted.flags(cmd)
	cmd.Flags().StringVar(&f.schema, "schema", "", "")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "")
	return cmd
}

const extensionUpgradeHelp = `Usage: rideau extension upgrade [NAME...] [options]

Upgrades extensions of one database along their update scripts, in one
transaction: to the newest version that fits with the rest, or to the one that
is named (foo=1.1, 'foo (< 2)'). Without a name, all of them.

What cannot be reached by update scripts is not an upgrade, and nothing is
dropped to be created anew. Extensions that are needed and not there yet are
installed.

Options:
` + nodesHelp + placeHelp + `    --mode MODE       An upgrade stays in the mode of the installation; auto
                      and path choose where the files come from.
` + dryRunHelp + scriptHelp + skewHelp + lockTimeoutHelp + reportHelp + `
Exit status: 0 done, or there was nothing to do; 1 nothing was changed.

Example:
    $ rideau extension upgrade -d 'host=db1 dbname=app' --dry-run
`

func newExtensionUpgradeCommand() *cobra.Command {
	var f installFlags
	cmd := newCommand("upgrade [NAME...] [options]", extensionUpgradeHelp, func(cmd *cobra.Command, args []string) error {
		wishes, err := parseWishes(cmd, args, "")
		if err != nil {
			return err
		}
		return f.run(cmd, func(s *extensionSession, req *extension.Request) { req.Upgrade = wishes; upgradeAll(s, req) })
	})
	f.extensionTarget.flags(cmd)
	f.wanted.flags(cmd)
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "")
	return cmd
}

// upgradeAll fills in an upgrade of which nobody said what.
func upgradeAll(s *extensionSession, req *extension.Request) {
	if len(req.Upgrade) > 0 {
		return
	}
	for _, in := range s.Observed().Installed {
		if _, held := req.Held[in.Name]; !held {
			req.Upgrade = append(req.Upgrade, extension.Wish{Name: in.Name})
		}
	}
}

const extensionUninstallHelp = `Usage: rideau extension uninstall NAME... [options]

Drops extensions from one database, in one transaction: exactly what was
installed. It is refused, and nothing changed, if other extensions need them
or if objects of yours depend on what would go. What foo.conf set for the
database or a role is reset; what it set for the whole server stays.

Files that were brought to nodes (mode path) go when no database of the server
has the extension any more. So does what an earlier run could not remove, or
somebody's DROP EXTENSION left: name it, and every node with -d.

Options:
` + nodesHelp + `    --registry PLACE  Where packages are, which know more of what needs what:
                      see rideau extension install.
    --cascade         Uninstall what needs them too, and DROP ... CASCADE:
                      objects of yours go with them. See --dry-run first.
    --modified        Drop also what was changed by hand since.
    --allow-open-schema
                      An uninstall.sql may be executed where others may create.
` + dryRunHelp + skewHelp + lockTimeoutHelp + reportHelp + `
Exit status: 0 done, 1 nothing was changed.

Example:
    $ rideau extension uninstall foo -d 'host=db1 dbname=app'
`

func newExtensionUninstallCommand() *cobra.Command {
	var f installFlags
	cmd := newCommand("uninstall NAME... [options]", extensionUninstallHelp, func(cmd *cobra.Command, args []string) error {
		if err := someNames(cmd, args, "extension to uninstall"); err != nil {
			return err
		}
		if err := checkNames(cmd, args); err != nil {
			return err
		}
		return f.run(cmd, func(_ *extensionSession, req *extension.Request) { req.Uninstall = args })
	})
	f.extensionTarget.flags(cmd)
	f.wanted.poolFlags(cmd)
	cmd.Flags().BoolVar(&f.cascade, "cascade", false, "")
	cmd.Flags().BoolVar(&f.modified, "modified", false, "")
	cmd.Flags().BoolVar(&f.allowOpen, "allow-open-schema", false, "")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "")
	return cmd
}

// checkNames refuses what cannot be the name of an extension.
func checkNames(cmd *cobra.Command, names []string) error {
	for _, name := range names {
		if err := depend.CheckName(name); err != nil {
			return usageErrorf(cmd, "%w", err)
		}
	}
	return nil
}

const extensionAdoptHelp = `Usage: rideau extension adopt NAME [options]

Takes charge of an extension that is in a database already: objects that a
script made when somebody ran it by hand, or an extension of CREATE EXTENSION
about which a package knows more than the server. All that the package makes
must be there, and as it makes it, which is tried in a schema beside and rolled
back; it is recorded, and nothing else is changed. From then on it can be
upgraded, and uninstalled.

NAME may have a version: foo=1.0. A package of it must be in a registry.

Options:
` + databaseHelp + placeHelp + `    --schema NAME     Where its objects are. Default what the package says,
                      else public.
    --modified        What was changed by hand is adopted as it is.
` + dryRunHelp + lockTimeoutHelp + reportHelp + `
Example:
    $ rideau extension adopt foo=1.0 -d app --schema tools --registry packages
`

func newExtensionAdoptCommand() *cobra.Command {
	var f installFlags
	cmd := newCommand("adopt NAME [options]", extensionAdoptHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"NAME", "extension to adopt"}); err != nil {
			return err
		}
		wishes, err := parseWishes(cmd, args, f.schema)
		if err != nil {
			return err
		}
		req, timeout, err := f.request(cmd)
		if err != nil {
			return err
		}
		s, err := f.open(cmd, timeout)
		if err != nil {
			return err
		}
		defer s.Close()
		req.Install = wishes
		plan, err := s.PlanAdopt(cmd.Context(), req)
		if err != nil {
			return err
		}
		return f.carryOut(cmd, s, plan)
	})
	f.extensionTarget.flags(cmd)
	cmd.Flags().StringVar(&f.schema, "schema", "", "")
	cmd.Flags().BoolVar(&f.modified, "modified", false, "")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "")
	cmd.Flags().StringVar(&f.lockTimeout, "lock-timeout", "5s", "")
	return cmd
}

// request is that of the options. Who allows nodes to differ allows some to be
// absent.
func (f *installFlags) request(cmd *cobra.Command) (extension.Request, time.Duration, error) {
	f.withoutAbsent = f.allowSkew
	return f.wanted.request(cmd)
}

// run plans, says what will be done, does it and reports.
func (f *installFlags) run(cmd *cobra.Command, ask func(*extensionSession, *extension.Request)) error {
	req, timeout, err := f.request(cmd)
	if err != nil {
		return err
	}
	s, err := f.open(cmd, timeout)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := f.checkHeld(cmd, s); err != nil {
		return err
	}
	ask(s, &req)
	for try := 1; ; try++ {
		plan, err := s.Plan(cmd.Context(), req)
		if err != nil {
			return err
		}
		err = f.carryOut(cmd, s, plan)
		var moved *extension.MovedError
		if !errors.As(err, &moved) || try == maxPlans {
			return err
		}
		// Somebody else was installing: nothing was changed by us, and what we
		// were asked for may have another answer now.
	}
}

// maxPlans is how often a plan is made when others change the database meanwhile.
const maxPlans = 5

// planned is what commands that change something print as JSON.
type planned struct {
	Plan   *extension.Plan   `json:"plan"`
	Report *extension.Report `json:"report,omitempty"`
}

func (f *installFlags) carryOut(cmd *cobra.Command, s *extensionSession, plan *extension.Plan) error {
	return carryOut(cmd, s, plan, f.dryRun, f.asJSON)
}

// carryOut says what will be done, does it, and says what was done.
func carryOut(cmd *cobra.Command, s *extensionSession, plan *extension.Plan, dry, asJSON bool) error {
	out := cmd.OutOrStdout()
	if !asJSON {
		if err := describePlan(out, plan, briefly); err != nil {
			return err
		}
	}
	for _, note := range leftAlone(s.Observed(), plan) {
		fmt.Fprintf(cmd.ErrOrStderr(), "note: %s\n", note)
	}
	if plan.Empty() {
		if asJSON {
			return writeJSON(out, planned{Plan: plan})
		}
		return nil
	}
	report, err := s.Apply(cmd.Context(), plan, dry)
	if report != nil {
		var werr error
		if asJSON {
			werr = writeJSON(out, planned{plan, report})
		} else {
			werr = describeApplied(out, plan, report)
		}
		if err == nil {
			err = werr
		}
	}
	return err
}

// leftAlone says which wishes about what is installed already are not heeded:
// nothing is moved to another schema, or becomes another mode.
func leftAlone(o *extension.Observed, plan *extension.Plan) []string {
	var notes []string
	for _, w := range plan.Request.Install {
		in, ok := o.Find(w.Name)
		if !ok {
			continue
		}
		if w.Schema != "" && w.Schema != in.Schema {
			notes = append(notes, fmt.Sprintf("%s is in schema %q already, and is not moved to %q", w.Name, in.Schema, w.Schema))
		}
		if mode := cmp.Or(w.Mode, plan.Request.Mode, extension.Auto); mode != extension.Auto && mode != in.Mode {
			notes = append(notes, fmt.Sprintf("%s is installed as %s already, and does not become %s; uninstall it first", w.Name, in.Mode, mode))
		}
	}
	return notes
}

// done is what an action is called when it is done.
var done = map[extension.Action]string{
	extension.Install: "installed", extension.Upgrade: "upgraded", extension.Uninstall: "uninstalled", extension.Adopt: "adopted",
}

// dropped lists what CASCADE took with it.
func dropped(r *extension.Report) []string {
	var list []string
	for _, s := range r.Steps {
		list = append(list, s.Others...)
	}
	return list
}

// describeApplied says what was done, and what is left to do.
func describeApplied(w io.Writer, plan *extension.Plan, r *extension.Report) error {
	t := newTable(w)
	for _, s := range r.Steps {
		what := count(uint64(s.Objects), "object")
		if s.Schema != "" && s.Action != extension.Uninstall {
			what += " in schema " + quoteIdentifier(s.Schema)
		}
		t.row(done[s.Action], s.Name, versions(s.From, s.To), what)
	}
	for _, set := range r.Set {
		t.row("set", set)
	}
	for _, what := range dropped(r) {
		t.row("dropped too", what)
	}
	for _, what := range r.Removed {
		t.row("removed", what)
	}
	for _, l := range r.Locks {
		t.row("lock", l.Relation, l.Mode)
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, note := range r.Notes {
		if slices.Contains(plan.Notes, note) {
			continue // was said before
		}
		fmt.Fprintf(w, "note: %s\n", printable(note))
	}
	tries := ""
	if r.Tries > 1 {
		tries = fmt.Sprintf(", in %d tries", r.Tries)
	}
	last := fmt.Sprintf("Done in %s%s.", formatTime(r.Elapsed), tries)
	if r.DryRun {
		last = fmt.Sprintf("All of this was done in %s%s, and rolled back: nothing was changed.", formatTime(r.Elapsed), tries)
	}
	if len(r.Restart) > 0 && !r.DryRun {
		last += fmt.Sprintf(" Restart every node for it to take effect: %s.", printable(strings.Join(r.Restart, "; ")))
	}
	_, err := fmt.Fprintln(w, last)
	return err
}

// versions shows what a step does to a version.
func versions(from, to string) string {
	switch {
	case from == "":
		return to
	case to == "":
		return from
	}
	return from + " -> " + to
}
