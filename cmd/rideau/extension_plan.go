package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"rideau/extension"
	"rideau/extension/pack"
	"rideau/internal/durable"
)

const extensionPlanHelp = `Usage: rideau extension plan [NAME...] [options]

Says in full what would be done to install the extensions named, and changes
nothing: versions, modes and their reasons, SQL, files for nodes, settings,
what needs a restart. Without a name it is what extensions.toml wishes for.

Options:
    -d, --dbname CONNINFO, --registry PLACE, --schema NAME, --mode MODE,
    --hold NAME, --no-conf, --allow-open-schema, --allow-skew, --lock-timeout
                      As for rideau extension install.
    --upgrade NAME    Upgrade this one too; repeatable. May have versions.
    --upgrade-all     Upgrade all that are installed.
    --uninstall NAME  Uninstall this one too; repeatable.
    --cascade         With all that needs it, and objects of yours.
    --rehearse        Do it and roll it back: proves that it works, and shows
                      the locks that others would wait for.
    --sql             Print the statements whole, not only how they begin.
    -o, --output FILE
                      Keep the plan in a file for rideau extension apply.
    -f, --file FILE   Another file than extensions.toml.
    --database NAME   Only this [database.NAME] of the file.
    --json            Print the plan as JSON.
    -v, --verbose     Tell each step of a rehearsal, on standard error.

A kept plan holds no password. It is for the state of the database that it was
made from: if that moves, apply refuses it.

Examples:
    $ rideau extension plan foo -d app --rehearse -o foo.plan
    $ rideau extension apply foo.plan
    $ rideau extension plan new_one --uninstall old_one -d app --sql
`

type planFlags struct {
	installFlags
	upgrade    []string
	upgradeAll bool
	uninstall  []string
	rehearse   bool
	sql        bool
	output     string
	file       string
	database   string
}

func newExtensionPlanCommand() *cobra.Command {
	var f planFlags
	cmd := newCommand("plan [NAME...] [options]", extensionPlanHelp, f.plan)
	f.extensionTarget.flags(cmd)
	f.wanted.flags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.schema, "schema", "", "")
	flags.StringArrayVar(&f.upgrade, "upgrade", nil, "")
	flags.BoolVar(&f.upgradeAll, "upgrade-all", false, "")
	flags.StringArrayVar(&f.uninstall, "uninstall", nil, "")
	flags.BoolVar(&f.cascade, "cascade", false, "")
	flags.BoolVar(&f.rehearse, "rehearse", false, "")
	flags.BoolVar(&f.sql, "sql", false, "")
	flags.StringVarP(&f.output, "output", "o", "", "")
	flags.StringVarP(&f.file, "file", "f", wishesFile, "")
	flags.StringVar(&f.database, "database", "", "")
	return cmd
}

// A savedPlan is a plan that is kept: what was asked, where, and what came of it.
// Whoever applies it makes it anew from these, and compares.
type savedPlan struct {
	Format     int               `json:"format"`
	Hash       string            `json:"hash"`
	Nodes      []string          `json:"nodes,omitempty"`      // connection strings; none if a password is in one
	Registries []string          `json:"registries,omitempty"` // signed ones; others must be named again
	Plan       *extension.Plan   `json:"plan"`
	Rehearsal  *extension.Report `json:"rehearsal,omitempty"`
}

const planFormat = 1

func (f *planFlags) plan(cmd *cobra.Command, args []string) error {
	for _, arg := range args {
		if _, err := readPlan(arg); err == nil {
			err := usageErrorf(cmd, "%s is a plan already", arg)
			err.hint = fmt.Sprintf("To do it: rideau extension apply %s. To make it anew, name the extensions again.", shellQuote(arg))
			return err
		}
	}
	install, err := parseWishes(cmd, args, f.schema)
	if err != nil {
		return err
	}
	upgrade, err := parseWishes(cmd, f.upgrade, "")
	if err != nil {
		return err
	}
	if err := checkNames(cmd, f.uninstall); err != nil {
		return err
	}
	req, timeout, err := f.request(cmd)
	if err != nil {
		return err
	}
	wished := len(install) == 0 && len(upgrade) == 0 && len(f.uninstall) == 0 && !f.upgradeAll
	given := cmd.Flags().Changed
	switch {
	case f.upgradeAll && len(upgrade) > 0:
		return usageErrorf(cmd, "--upgrade and --upgrade-all exclude each other")
	case !wished && (given("file") || given("database")):
		return usageErrorf(cmd, "--file and --database are for plans of extensions.toml: name no extension")
	case wished && given("schema"):
		return usageErrorf(cmd, "--schema is for extensions that are named")
	case wished:
		return f.planWishes(cmd, req)
	}
	s, err := f.open(cmd, timeout)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := f.checkHeld(cmd, s); err != nil {
		return err
	}
	req.Install, req.Upgrade, req.Uninstall = install, upgrade, f.uninstall
	if f.upgradeAll {
		upgradeAll(s, &req)
	}
	plan, err := s.Plan(cmd.Context(), req)
	if err != nil {
		return err
	}
	return f.show(cmd, s, plan, f.conninfos())
}

// show prints a plan, rehearses it and keeps it, as was asked for.
func (f *planFlags) show(cmd *cobra.Command, s *extensionSession, plan *extension.Plan, nodes []string) error {
	out := cmd.OutOrStdout()
	detail := heads
	if f.sql {
		detail = whole
	}
	if !f.asJSON {
		if err := describePlan(out, plan, detail); err != nil {
			return err
		}
	}
	saved := savedPlan{Format: planFormat, Hash: plan.Hash(), Plan: plan}
	if f.rehearse && !plan.Empty() {
		var err error
		if saved.Rehearsal, err = s.Apply(cmd.Context(), plan, true); err != nil {
			return err
		}
		if !f.asJSON {
			if err := describeApplied(out, plan, saved.Rehearsal); err != nil {
				return err
			}
		}
	}
	if f.asJSON {
		if err := writeJSON(out, saved); err != nil {
			return err
		}
	}
	if f.output == "" {
		return nil
	}
	return f.keep(cmd, s, saved, nodes)
}

// keep writes a plan to a file. It has SQL that will be executed and names
// servers, so it is for nobody else's eyes.
func (f *planFlags) keep(cmd *cobra.Command, s *extensionSession, saved savedPlan, nodes []string) error {
	for _, l := range s.registries.set {
		if l.Signed() {
			saved.Registries = append(saved.Registries, l.Location())
		}
	}
	saved.Nodes = nodes
	if slices.ContainsFunc(nodes, func(c string) bool { return maskPasswords(c) != c }) {
		saved.Nodes = nil
		fmt.Fprintln(cmd.ErrOrStderr(), "note: the connection string has a password and is not kept with the plan; give -d again to apply it")
	}
	var text bytes.Buffer
	if err := writeJSON(&text, saved); err != nil {
		return err
	}
	if err := durable.WriteFile(f.output, text.Bytes(), 0o600); err != nil {
		return fmt.Errorf("could not keep the plan: %w", err)
	}
	if !f.asJSON {
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "Kept in %s. To do it: rideau extension apply %s%s\n", f.output, shellQuote(f.output), f.again(saved.Plan))
		return err
	}
	return nil
}

// again are the options that name the registries again, where a plan cannot: it
// has packages that nobody signed.
func (f *planFlags) again(plan *extension.Plan) string {
	if !slices.ContainsFunc(plan.Steps, func(s extension.Step) bool { return s.Shelf != "" && !s.Signed }) {
		return ""
	}
	options := ""
	for _, l := range f.registries {
		options += " --registry " + shellQuote(l)
	}
	return options
}

// readPlan reads a plan that was kept.
func readPlan(file string) (*savedPlan, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("could not read the plan: %w", err)
	}
	var saved savedPlan
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&saved); err != nil || saved.Plan == nil {
		return nil, &usageError{err: fmt.Errorf("%s is not a plan: %s", file, notPlan(text)), hint: "Plans are made with rideau extension plan ... -o FILE."}
	}
	switch {
	case saved.Format != planFormat:
		return nil, &usageError{err: fmt.Errorf("%s is not a plan of format %d", file, planFormat), hint: "Make it anew with rideau extension plan ... -o FILE."}
	case saved.Plan.Hash() != saved.Hash:
		return nil, &usageError{err: fmt.Errorf("%s was changed since the plan was made", file), hint: "Make it anew with rideau extension plan ... -o FILE."}
	}
	return &saved, nil
}

// notPlan says what a file is, if it is no plan.
func notPlan(text []byte) string {
	var something any
	err := json.Unmarshal(text, &something)
	switch {
	case len(bytes.TrimSpace(text)) == 0:
		return "it is empty"
	case err != nil && bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")):
		return "it begins like one and is cut off or damaged"
	case err != nil:
		return "it is not JSON"
	}
	if object, ok := something.(map[string]any); ok && object["hash"] != nil && object["plan"] != nil {
		return "it has what this version of rideau does not know"
	}
	return "it is JSON of something else"
}

// How much a plan shows.
type detail int

const (
	briefly detail = iota // what is done
	heads                 // and the statements, as they begin
	whole                 // in full
)

const maxHeads = 6

// describePlan says what will be done, in the order in which it is.
func describePlan(w io.Writer, p *extension.Plan, how detail) error {
	var b bytes.Buffer
	where := p.Node
	if len(p.Standbys) > 0 {
		where += " with " + strings.Join(p.Standbys, ", ")
	}
	fmt.Fprintf(&b, "Database %q at %s, PostgreSQL %s, as %q:\n", p.Database, where, p.Version, p.Role)
	t := newTable(&b)
	for _, f := range p.Files {
		t.row("file", f.Extension, formatSize(int64(f.Size)), "to "+f.Node, f.Path)
	}
	for i := range p.Steps {
		s := &p.Steps[i]
		t.row(string(s.Action), s.Name, versions(s.From, s.To), string(s.Mode), schemaOf(s), sourceOf(s), because(s))
	}
	for _, r := range p.Remove {
		t.row("remove", r.Extension, count(uint64(len(r.Files)), "file"), "at "+r.Node, "that no database needs then")
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, why := range reasons(p) {
		fmt.Fprintf(&b, "%s\n", printable(why))
	}
	if how != briefly {
		if len(p.Kept) > 0 {
			fmt.Fprintf(&b, "kept as they are: %s\n", strings.Join(p.Kept, ", "))
		}
		describeSQL(&b, p, how)
	}
	for _, s := range p.Steps {
		for _, set := range s.Settings {
			whom := "the database"
			if set.Scope == pack.ScopeRole {
				whom = "role " + quoteIdentifier(set.Role)
			}
			fmt.Fprintf(&b, "setting of %s: %s = %s, for %s\n", whom, set.Name, printable(set.Value), s.Name)
		}
	}
	for _, set := range p.Paths {
		fmt.Fprintf(&b, "first, at %s, with a reload: %s;\n", set.Node, printable(set.SQL()))
	}
	for _, c := range p.System {
		when := "with a reload"
		if c.Restart {
			when = "with a restart"
		}
		fmt.Fprintf(&b, "on every node, %s: %s; (for %s)\n", when, printable(c.SQL()), c.For)
	}
	for _, note := range p.Notes {
		fmt.Fprintf(&b, "note: %s\n", printable(note))
	}
	if len(p.Preload) > 0 {
		fmt.Fprintf(&b, "first: %s into shared_preload_libraries; then every node must be restarted, and the rest is done by the same command\n", printable(strings.Join(p.Preload, ", ")))
	}
	for _, r := range p.Restart {
		fmt.Fprintf(&b, "needs a restart: %s\n", printable(r))
	}
	if p.Empty() {
		b.WriteString(nothing(p) + "\n")
	}
	_, err := w.Write(b.Bytes())
	return err
}

// nothing says why there is nothing to do.
func nothing(p *extension.Plan) string {
	if len(p.Request.Install) == 0 && len(p.Request.Upgrade) > 0 {
		return "Nothing to do: no newer version can be reached."
	}
	var names []string
	for _, w := range p.Request.Install {
		names = append(names, w.Name)
	}
	switch len(names) {
	case 0:
		return "Nothing to do."
	case 1:
		return fmt.Sprintf("Nothing to do: %s is there already, as wished.", names[0])
	}
	return fmt.Sprintf("Nothing to do: %s are there already, as wished.", strings.Join(names, ", "))
}

func schemaOf(s *extension.Step) string {
	switch {
	case s.Schema == "":
		return ""
	case s.MakeSchema:
		return "new schema " + quoteIdentifier(s.Schema)
	}
	return "schema " + quoteIdentifier(s.Schema)
}

func sourceOf(s *extension.Step) string {
	switch {
	case s.Action == extension.Uninstall:
		return ""
	case s.Shelf == "":
		return "from the server"
	case s.Signed:
		return "from " + s.Shelf
	}
	return "from " + s.Shelf + ", unsigned"
}

// because names who needs it, unless it was asked for.
func because(s *extension.Step) string {
	if len(s.Because) == 0 || slices.Contains(s.Because, "asked for") {
		return ""
	}
	return "for " + strings.Join(s.Because, ", ")
}

// reasons says of each mode why it was chosen, once for all extensions that it
// was chosen for.
func reasons(p *extension.Plan) []string {
	var list []string
	for _, s := range p.Steps {
		if s.Why == "" {
			continue
		}
		why := fmt.Sprintf("%s: %s", s.Mode, s.Why)
		if !slices.Contains(list, why) {
			list = append(list, why)
		}
	}
	return list
}

func describeSQL(b *bytes.Buffer, p *extension.Plan, how detail) {
	for i := range p.Steps {
		s := &p.Steps[i]
		fmt.Fprintf(b, "\n-- %s %s %s\n", s.Action, s.Name, versions(s.From, s.To))
		for n, sql := range s.SQL {
			switch {
			case how == whole && strings.HasPrefix(sql, "--"):
				fmt.Fprintf(b, "%s\n", printable(sql))
			case how == whole:
				fmt.Fprintf(b, "%s;\n", printable(sql))
			case n == maxHeads && len(s.SQL) > maxHeads+1:
				fmt.Fprintf(b, "-- and %d more statements; --sql prints all\n", len(s.SQL)-maxHeads)
			case n <= maxHeads:
				fmt.Fprintf(b, "%s\n", printable(oneLine(sql, 76)))
			}
		}
	}
	if how == whole {
		for _, r := range p.Remove {
			fmt.Fprintf(b, "\n-- files to remove at %s, if no database has %s then\n", r.Node, r.Extension)
			for _, f := range r.Files {
				fmt.Fprintf(b, "-- %s\n", printable(f))
			}
		}
	}
	if len(p.Steps) > 0 {
		b.WriteByte('\n')
	}
}

const extensionApplyHelp = `Usage: rideau extension apply [FILE] [options]

Does what the plan in FILE says (rideau extension plan -o FILE). The plan is
made anew and compared first: if the database, its server or the packages are
not any more as they were, nothing is done.

Without FILE it does what extensions.toml wishes for, in exactly the versions
and packages of extensions.lock beside it. All databases are planned before
the first is changed. What is installed and not in the file is left alone.

Options:
    -d, --dbname CONNINFO
                      The database, instead of the one that the plan or the
                      file names. Repeat it for each node of a pool.
    --registry PLACE  Where packages are. A plain directory that a plan was
                      made with must be named again.
` + dryRunHelp + `    --mode MODE, --hold NAME, --no-conf, --allow-open-schema, --allow-skew
                      As for rideau extension install; not with FILE, where
                      the plan has them.
` + lockTimeoutHelp + `    -f, --file FILE   Another file than extensions.toml.
    --database NAME   Only this [database.NAME] of the file.
    --json            Print plan and report as JSON, a document a database.
    -v, --verbose     Tell each step, on standard error.

Exit status: 0 done, or there was nothing to do; 1 a database was not changed.

Example:
    $ rideau extension lock && rideau extension apply --dry-run
`

func newExtensionApplyCommand() *cobra.Command {
	var f planFlags
	cmd := newCommand("apply [FILE] [options]", extensionApplyHelp, func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return f.applyWishes(cmd)
		}
		if err := arguments(cmd, args, [2]string{"FILE", "plan"}); err != nil {
			return err
		}
		for _, option := range []string{"mode", "hold", "no-conf", "allow-open-schema", "allow-skew", "file", "database"} {
			if cmd.Flags().Changed(option) {
				return usageErrorf(cmd, "--%s cannot be given with a plan, which says it already", option)
			}
		}
		return f.applyFile(cmd, args[0])
	})
	f.extensionTarget.flags(cmd)
	f.wanted.flags(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&f.dryRun, "dry-run", false, "")
	flags.StringVarP(&f.file, "file", "f", wishesFile, "")
	flags.StringVar(&f.database, "database", "", "")
	return cmd
}

// A packagesMovedError says that a plan cannot be made again, although the
// database is as it was.
type packagesMovedError struct{ file string }

func (e *packagesMovedError) Error() string {
	return fmt.Sprintf("%s cannot be applied: the packages, or the nodes, are not as they were when the plan was made", e.file)
}

func (f *planFlags) applyFile(cmd *cobra.Command, file string) error {
	_, timeout, err := f.request(cmd)
	if err != nil {
		return err
	}
	saved, err := readPlan(file)
	if err != nil {
		return err
	}
	nodes := saved.Nodes
	if len(f.nodes) > 0 {
		nodes = f.conninfos()
	}
	if len(nodes) == 0 {
		err := usageErrorf(cmd, "the plan does not say where its database is")
		err.hint = "Give -d again: a connection string with a password is not kept with a plan."
		return err
	}
	var locations []registryLocation
	for _, l := range f.registries {
		locations = append(locations, registryLocation{l, true})
	}
	if len(locations) == 0 {
		for _, l := range saved.Registries {
			locations = append(locations, registryLocation{l, false})
		}
		for _, s := range saved.Plan.Steps {
			if s.Shelf != "" && !s.Signed {
				return &unnamedError{plan: file, shelf: s.Shelf}
			}
		}
	}
	f.withoutAbsent = saved.Plan.Request.AllowSkew
	s, err := f.openWith(cmd, nodes, locations, timeout)
	if err != nil {
		var absent *unreachableError
		if errors.As(err, &absent) {
			absent.another = false // the plan says what is allowed
		}
		return err
	}
	defer s.Close()
	if err := s.isFor(file, saved.Plan); err != nil {
		return err
	}
	plan, err := s.planAgain(cmd, saved)
	if err != nil {
		return err
	}
	if plan.Hash() != saved.Hash {
		if plan.Fingerprint != saved.Plan.Fingerprint {
			return &extension.MovedError{Database: saved.Plan.Database, Node: saved.Plan.Node}
		}
		return &packagesMovedError{file}
	}
	return carryOut(cmd, s, plan, f.dryRun, f.asJSON)
}

// An elsewhereError says that a plan was made for another database, server or
// role than those that it shall be applied to.
type elsewhereError struct {
	file, made, here string
}

func (e *elsewhereError) Error() string {
	return fmt.Sprintf("%s was made for %s, and this is %s", e.file, e.made, e.here)
}

// isFor refuses a plan that was made for somewhere else.
func (s *extensionSession) isFor(file string, p *extension.Plan) error {
	o := s.Observed()
	e := &elsewhereError{file: file}
	switch {
	case p.Database != o.Database:
		e.made, e.here = fmt.Sprintf("database %q at %s", p.Database, p.Node), fmt.Sprintf("database %q at %s", o.Database, o.Node)
	case p.Node != o.Node:
		e.made, e.here = p.Node, o.Node
	case p.Role != o.Role.Name:
		e.made, e.here = fmt.Sprintf("role %q", p.Role), fmt.Sprintf("role %q", o.Role.Name)
	default:
		return nil
	}
	return e
}

// planAgain makes a plan from the request of another. That it cannot be made now
// is that the database has moved, if it has.
func (s *extensionSession) planAgain(cmd *cobra.Command, saved *savedPlan) (*extension.Plan, error) {
	if s.Observed().Fingerprint() != saved.Plan.Fingerprint {
		return nil, &extension.MovedError{Database: saved.Plan.Database, Node: saved.Plan.Node}
	}
	if len(saved.Plan.Steps) > 0 && saved.Plan.Steps[0].Action == extension.Adopt {
		return s.PlanAdopt(cmd.Context(), saved.Plan.Request)
	}
	return s.Plan(cmd.Context(), saved.Plan.Request)
}

// An unnamedError says that a plan was made with packages that nobody signed,
// and that whoever applies it did not name where they are.
type unnamedError struct{ plan, shelf string }

func (e *unnamedError) Error() string {
	return fmt.Sprintf("%s was made with packages of %s, which are not signed", e.plan, e.shelf)
}
