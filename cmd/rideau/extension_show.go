package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"rideau/extension"
	"rideau/extension/depend"
	"rideau/extension/registry"
)

const extensionListHelp = `Usage: rideau extension list [options]

Lists what there is for a database: what is installed in it, what its server
has files of, and which packages the registries have; of each the version, and
of what is not installed the newest one.

Options:
` + databaseHelp + placeHelp + `    --installed       Only what is installed.
    --json            Print the list as JSON.
` + moreHelp + `
Example:
    $ rideau extension list -d 'host=db1 dbname=app'
`

func newExtensionListCommand() *cobra.Command {
	var t extensionTarget
	var installed bool
	cmd := newCommand("list [options]", extensionListHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args); err != nil {
			return err
		}
		s, err := t.open(cmd, 0)
		if err != nil {
			return err
		}
		defer s.Close()
		list := addPackages(s.List(), s.registries)
		if installed {
			list = slices.DeleteFunc(list, func(l extension.Listed) bool { return l.Installed == "" })
		}
		if t.asJSON {
			return writeJSON(cmd.OutOrStdout(), list)
		}
		return describeList(cmd.OutOrStdout(), list)
	})
	t.flags(cmd)
	cmd.Flags().BoolVar(&installed, "installed", false, "")
	return cmd
}

// addPackages adds what the registries have to what the server has.
func addPackages(list []extension.Listed, from *openRegistries) []extension.Listed {
	if list == nil {
		list = []extension.Listed{}
	}
	for _, r := range from.set {
		for _, name := range r.Names() {
			e, _ := r.Entry(name)
			at, ok := slices.BinarySearchFunc(list, name, func(l extension.Listed, name string) int { return strings.Compare(l.Name, name) })
			if !ok {
				list = slices.Insert(list, at, extension.Listed{Name: name})
			}
			l := &list[at]
			l.Comment = cmp.Or(l.Comment, e.Comment)
			if l.Package == "" || depend.Compare(l.Package, e.Latest) < 0 {
				l.Package, l.Shelf = e.Latest, r.Name()
			}
		}
	}
	return list
}

func describeList(w io.Writer, list []extension.Listed) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "Nothing.")
		return err
	}
	t := newTable(w)
	t.row("NAME", "INSTALLED", "SERVER", "PACKAGE", "COMMENT")
	for _, l := range list {
		pkg := l.Package
		if pkg != "" {
			pkg += " in " + l.Shelf
		}
		t.row(l.Name, dash(l.Installed), dash(l.Server), dash(pkg), oneLine(l.Comment, 60))
	}
	return t.flush()
}

func dash(text string) string { return cmp.Or(text, "-") }

const extensionSearchHelp = `Usage: rideau extension search [WORD...] [options]

Finds packages in registries: those that have every word in their name, their
comment, or what they provide. Without a word it lists all. What the server
has files of is in rideau extension list.

Options:
` + placeHelp + `    --json            Print what was found as JSON.

Exit status: 0 if something was found, 1 if not.

Example:
    $ rideau extension search queue --registry https://extensions.example.org/
`

func newExtensionSearchCommand() *cobra.Command {
	var t extensionTarget
	cmd := newCommand("search [WORD...] [options]", extensionSearchHelp, func(cmd *cobra.Command, args []string) error {
		registries, err := t.openRegistries(cmd)
		if err != nil {
			return err
		}
		defer registries.Close()
		found := registries.set.Search(strings.Join(args, " "))
		out := cmd.OutOrStdout()
		if t.asJSON {
			list := []foundJSON{}
			for _, m := range found {
				list = append(list, foundJSON{m.Registry, m.Entry})
			}
			err = writeJSON(out, list)
		} else {
			tab := newTable(out)
			for _, m := range found {
				tab.row(m.Name, m.Latest, m.Registry, oneLine(m.Comment, 60))
			}
			err = tab.flush()
		}
		if err == nil && len(found) == 0 {
			err = withStatus(statusFailed, nil)
			if !t.asJSON {
				fmt.Fprintf(cmd.ErrOrStderr(), "no package has %s\n", cmp.Or(strings.Join(args, " and "), "been published there"))
			}
		}
		return err
	})
	t.registryFlags(cmd)
	return cmd
}

// A foundJSON is a package that a search found, for programs.
type foundJSON struct {
	Registry string `json:"registry"`
	registry.Entry
}

// registryFlags are those of commands without a database.
func (t *extensionTarget) registryFlags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&t.registries, "registry", nil, "")
	cmd.Flags().BoolVar(&t.asJSON, "json", false, "")
}

// openRegistries opens registries for a command that is of no use without.
func (t *extensionTarget) openRegistries(cmd *cobra.Command) (*openRegistries, error) {
	locations, err := t.locations()
	if err != nil {
		return nil, err
	}
	if len(locations) == 0 {
		err := usageErrorf(cmd, "no registry to look in")
		err.hint = "Name one with --registry DIR|URL, or have registries = [\"...\"] in extensions.toml."
		return nil, err
	}
	return openAll(cmd.Context(), locations)
}

const extensionShowHelp = `Usage: rideau extension show NAME [VERSION] [options]

Shows a package of a registry: what it is, its versions, and of the newest or
of VERSION what it depends on and conflicts with, what it needs of the server,
its update scripts, and which keys signed it. Of two registries that have the
name, say which: REGISTRY/NAME.

Options:
` + placeHelp + `    --json            Print it as JSON, all versions with all that is known.

Example:
    $ rideau extension show foo --registry packages
`

func newExtensionShowCommand() *cobra.Command {
	var t extensionTarget
	cmd := newCommand("show NAME [VERSION] [options]", extensionShowHelp, func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 || len(args) > 2 {
			return arguments(cmd, args, [2]string{"NAME", "package to show"}, [2]string{"VERSION", "version"})
		}
		registries, err := t.openRegistries(cmd)
		if err != nil {
			return err
		}
		defer registries.Close()
		r, name, err := registries.set.Find(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		all, err := r.Versions(cmd.Context(), name)
		if err != nil {
			return err
		}
		version := ""
		if len(args) == 2 {
			version = args[1]
		}
		one, err := r.Release(cmd.Context(), name, version)
		if err != nil {
			return err
		}
		if t.asJSON {
			if version != "" {
				all = []registry.Release{one}
			}
			list := make([]releaseJSON, len(all))
			for i := range all {
				list[i] = newReleaseJSON(&all[i])
			}
			return writeJSON(cmd.OutOrStdout(), list)
		}
		return describeRelease(cmd.OutOrStdout(), r, all, one)
	})
	t.registryFlags(cmd)
	return cmd
}

// A releaseJSON is one version of a package, for programs. Relations are in the
// words of a control file.
type releaseJSON struct {
	Registry   string   `json:"registry"`
	Name       string   `json:"name"`
	Version    string   `json:"version"`
	ExtVersion string   `json:"extversion,omitempty"`
	Comment    string   `json:"comment,omitempty"`
	License    string   `json:"license,omitempty"`
	Kind       string   `json:"kind,omitempty"`
	Schema     string   `json:"schema,omitempty"`
	Signers    []string `json:"signers"` // ids of keys; empty if it is not signed
	Postgres   string   `json:"postgres,omitempty"`
	Depends    string   `json:"depends,omitempty"`
	Recommends string   `json:"recommends,omitempty"`
	Suggests   string   `json:"suggests,omitempty"`
	Conflicts  string   `json:"conflicts,omitempty"`
	Breaks     string   `json:"breaks,omitempty"`
	Replaces   string   `json:"replaces,omitempty"`
	Provides   []string `json:"provides,omitempty"`
	Preload    string   `json:"preload,omitempty"`
	Restart    bool     `json:"restart,omitempty"`
	OSDepends  []string `json:"os_depends,omitempty"`
	Classes    []string `json:"custom_variable_classes,omitempty"`
	Files      []string `json:"files,omitempty"`
	Updates    []string `json:"updates,omitempty"` // "1.0 -> 1.1"
	SHA256     string   `json:"sha256,omitempty"`
	Size       int64    `json:"size,omitempty"`
}

func newReleaseJSON(r *registry.Release) releaseJSON {
	j := releaseJSON{
		Registry: r.Registry, Name: r.Name, Version: r.Version, ExtVersion: r.ExtVersion, Comment: r.Comment,
		License: r.License, Kind: r.Kind, Schema: r.Schema, Signers: append([]string{}, r.Signers...),
		Postgres: r.Postgres.String(), Depends: r.Depends.String(), Recommends: r.Recommends.String(),
		Suggests: r.Suggests.String(), Conflicts: r.Conflicts.String(), Breaks: r.Breaks.String(),
		Replaces: r.Replaces.String(), Preload: r.Preload, Restart: r.Restart, OSDepends: r.OSDepends,
		Classes: r.VariableClasses, Files: r.Files, SHA256: r.SHA256, Size: r.Size,
	}
	for _, p := range r.Provides {
		j.Provides = append(j.Provides, p.String())
	}
	for _, e := range r.Edges {
		j.Updates = append(j.Updates, e.From+" -> "+e.To)
	}
	return j
}

// lines are what a person is shown of it, with their labels.
func (j *releaseJSON) lines() [][2]string {
	preload, restart, extversion, classes := j.Preload, "", j.ExtVersion, ""
	if preload == "none" {
		preload = ""
	}
	if j.Restart {
		restart = "needed after installation"
	}
	if extversion == j.Version {
		extversion = ""
	}
	for _, c := range j.Classes {
		classes += " " + c + ".*"
	}
	signers := cmp.Or(strings.Join(j.Signers, ", "), "nobody")
	return [][2]string{
		{"name", j.Name}, {"version", j.Version}, {"in SQL", extversion}, {"comment", j.Comment}, {"license", j.License},
		{"kind", j.Kind}, {"signed by", signers}, {"postgres", j.Postgres}, {"depends", j.Depends},
		{"recommends", j.Recommends}, {"suggests", j.Suggests}, {"conflicts", j.Conflicts}, {"breaks", j.Breaks},
		{"replaces", j.Replaces}, {"provides", strings.Join(j.Provides, ", ")}, {"schema", j.Schema},
		{"preload", preload}, {"restart", restart}, {"parameters", strings.TrimSpace(classes)},
		{"needs of the system", strings.Join(j.OSDepends, ", ")}, {"files", strings.Join(j.Files, ", ")},
		{"updates", strings.Join(j.Updates, ", ")}, {"sha256", j.SHA256},
	}
}

func describeRelease(w io.Writer, r *registry.Registry, all []registry.Release, one registry.Release) error {
	t := newTable(w)
	j := newReleaseJSON(&one)
	for _, line := range j.lines() {
		if line[1] != "" {
			t.row(line[0], line[1])
		}
	}
	var versions []string
	for _, v := range all {
		versions = append(versions, v.Version)
	}
	t.row("versions", strings.Join(versions, ", "))
	t.row("registry", r.Name()+" at "+r.Location())
	return t.flush()
}

const extensionStatusHelp = `Usage: rideau extension status [options]

Says what is installed in a database: version, mode, schema, whether a newer
version can be reached, and of modules whether every object is still there and
as it was installed (but for indexes, triggers, rules, policies and statistics
of its tables).

Options:
` + databaseHelp + placeHelp + `    --json            Print the status as JSON.
` + moreHelp + `
Exit status: 0; 1 if an object of a module is missing or was changed.
`

func newExtensionStatusCommand() *cobra.Command {
	var t extensionTarget
	cmd := newCommand("status [options]", extensionStatusHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args); err != nil {
			return err
		}
		s, err := t.open(cmd, 0)
		if err != nil {
			return err
		}
		defer s.Close()
		st, err := s.Status(cmd.Context())
		if err != nil {
			return err
		}
		if t.asJSON {
			err = writeJSON(cmd.OutOrStdout(), st)
		} else {
			err = describeStatus(cmd.OutOrStdout(), st)
		}
		drifted := slices.ContainsFunc(st.Extensions, func(e extension.ExtensionStatus) bool { return len(e.Missing)+len(e.Modified) > 0 })
		if err == nil && drifted {
			err = withStatus(statusFailed, nil) // the status has said it
		}
		return err
	})
	t.flags(cmd)
	return cmd
}

func describeStatus(w io.Writer, st *extension.Status) error {
	fmt.Fprintf(w, "Database %q at %s, PostgreSQL %s, as %q:\n", st.Database, st.Node, st.Version, st.Role)
	if len(st.Extensions) == 0 {
		_, err := fmt.Fprintln(w, "No extension is installed.")
		return err
	}
	t := newTable(w)
	t.row("NAME", "VERSION", "NEWEST", "MODE", "SCHEMA", "RECORDED")
	for _, e := range st.Extensions {
		objects := ""
		if e.Mode == extension.Module {
			objects = count(uint64(e.Objects), "object")
			if n := len(e.Missing); n > 0 {
				objects += fmt.Sprintf(", %d missing", n)
			}
			if n := len(e.Modified); n > 0 {
				objects += fmt.Sprintf(", %d changed", n)
			}
		}
		t.row(e.Name, e.Version, dash(e.Newest), string(e.Mode), e.Schema, objects)
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, e := range st.Extensions {
		for _, o := range e.Missing {
			fmt.Fprintf(w, "%s: missing: %s\n", e.Name, printable(o))
		}
		for _, o := range e.Modified {
			fmt.Fprintf(w, "%s: not as it was installed: %s\n", e.Name, printable(o))
		}
	}
	return nil
}

const extensionWhyHelp = `Usage: rideau extension why NAME [options]

Says why an extension is in a database: what needs it, what it needs, what it
conflicts with; and which versions could be had here, from where, in which
mode, or why not.

Options:
` + databaseHelp + placeHelp + `    --json            Print it as JSON.
` + moreHelp + `
Example:
    $ rideau extension why bar -d app --registry packages
`

func newExtensionWhyCommand() *cobra.Command {
	var t extensionTarget
	cmd := newCommand("why NAME [options]", extensionWhyHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"NAME", "extension to ask about"}); err != nil {
			return err
		}
		if err := checkNames(cmd, args); err != nil {
			return err
		}
		s, err := t.open(cmd, 0)
		if err != nil {
			return err
		}
		defer s.Close()
		why, err := s.Why(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if t.asJSON {
			return writeJSON(cmd.OutOrStdout(), why)
		}
		return describeWhy(cmd.OutOrStdout(), why)
	})
	t.flags(cmd)
	return cmd
}

func describeWhy(w io.Writer, why *extension.Why) error {
	if why.Installed == "" {
		fmt.Fprintf(w, "%s is not installed.\n", why.Name)
	} else {
		fmt.Fprintf(w, "%s %s is installed as %s, in schema %s.\n", why.Name, why.Installed, why.Mode, quoteIdentifier(why.Schema))
		switch {
		case len(why.NeededBy) > 0:
			fmt.Fprintf(w, "needed by %s\n", strings.Join(why.NeededBy, ", "))
		default:
			fmt.Fprintln(w, "needed by no other extension")
		}
	}
	if why.Depends != "" {
		fmt.Fprintf(w, "depends on %s\n", printable(why.Depends))
	}
	if why.Conflicts != "" {
		fmt.Fprintf(w, "conflicts with %s\n", printable(why.Conflicts))
	}
	for _, o := range why.Offers {
		fmt.Fprintf(w, "to be had: %s\n", printable(o))
	}
	for _, x := range why.Excluded {
		fmt.Fprintf(w, "not to be had: %s\n", printable(x))
	}
	return nil
}

const extensionDoctorHelp = `Usage: rideau extension doctor [options]

Examines the extensions of a database, and the nodes that serve it: relations
that do not hold, members and libraries that are missing or differ, objects of
yours that pg_dump would lose, settings; before a major upgrade, whether the
new server has what the old one needs. Nothing is changed.

    ok   what is as it should be
    no   what is broken or will be, and what to do about it
    note what can be better, or must be known

Options:
` + nodesHelp + placeHelp + `    --upgrade-to CONNINFO
                      A running server of the new major version, before
                      pg_upgrade to it.
    --json            Print all that was found as JSON.
` + moreHelp + `
Exit status: 0 if nothing is broken, 1 if something is.

Example:
    $ rideau extension doctor -d 'host=db1 dbname=app' -d 'host=db2 dbname=app'
`

func newExtensionDoctorCommand() *cobra.Command {
	var t extensionTarget
	var target string
	cmd := newCommand("doctor [options]", extensionDoctorHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args); err != nil {
			return err
		}
		if cmd.Flags().Changed("upgrade-to") && target == "" {
			return usageErrorf(cmd, "--upgrade-to is empty")
		}
		s, err := t.open(cmd, 0)
		if err != nil {
			return err
		}
		defer s.Close()
		x, err := s.Doctor(cmd.Context(), extension.DoctorOptions{Target: target})
		if err != nil {
			return err
		}
		broken := 0
		for _, f := range x.Findings {
			if f.Verdict == "no" {
				broken++
			}
		}
		out := cmd.OutOrStdout()
		if t.asJSON {
			err = writeJSON(out, x)
		} else {
			for _, f := range x.Findings {
				fmt.Fprintf(out, "%-5s%s\n", f.Verdict, printable(f.What))
				for _, line := range f.Fix {
					fmt.Fprintf(out, "     %s\n", printable(line))
				}
			}
			switch broken {
			case 0:
				_, err = fmt.Fprintln(out, "Nothing is broken.")
			case 1:
				_, err = fmt.Fprintln(out, "One thing is to be put right.")
			default:
				_, err = fmt.Fprintf(out, "%d things are to be put right.\n", broken)
			}
		}
		if err == nil && broken > 0 {
			err = withStatus(statusFailed, nil) // the report has said it
		}
		return err
	})
	t.flags(cmd)
	cmd.Flags().StringVar(&target, "upgrade-to", "", "")
	return cmd
}
