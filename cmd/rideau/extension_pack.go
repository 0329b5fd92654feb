package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"rideau/extension"
	"rideau/extension/depend"
	"rideau/extension/pack"
	"rideau/internal/durable"
)

const extensionPackHelp = `Usage: rideau extension pack SOURCE [options]

Makes a package, a file NAME-VERSION.tar.gz, of the directory SOURCE:

    control          name, version, depends, conflicts, ...
    install.sql      the script
    uninstall.sql    optional: else what was installed is dropped
    upgrade/1.0--1.1.sql
    foo.conf         optional: settings

or of a directory as PostgreSQL has it (foo.control, foo--1.0.sql, and PGXN's
META.json if it is there), a PGXN source archive (.zip), pgxn:URL for what a
mirror of PGXN has under --name, or a package. It is checked first: every
script is cut into statements, and what a careful reader would look at is
printed. The same content gives the same file, to the byte.

Options:
    -o, --output FILE Another file.
    -d, --dbname CONNINFO
                      A scratch database, or its name: the package is installed
                      there and rolled back, and what it makes goes into the
                      package. Who installs it is then sure to get no more and
                      no less. What it depends on must be installed there.
    --upgrade-from OLDER
                      An older package, or its directory; repeatable. It is
                      installed in the scratch database and upgraded with
                      this one's scripts: that must lead where installing
                      this one leads.
    --name NAME       Which extension, if SOURCE has several.
    --json            Print what was made as JSON.
    -v, --verbose     Tell more, on standard error.

Example:
    $ rideau extension pack ./foo -d scratch
`

func newExtensionPackCommand() *cobra.Command {
	var t extensionTarget
	var output, name string
	var older []string
	cmd := newCommand("pack SOURCE [options]", extensionPackHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"SOURCE", "directory or archive to make a package of"}); err != nil {
			return err
		}
		read := readSource
		if strings.HasPrefix(args[0], pgxnPrefix) {
			read = func(source, name string) ([]*pack.Package, error) { return fetchPGXN(cmd, source, name) }
		}
		packages, err := read(args[0], name)
		if err != nil {
			return err
		}
		if len(packages) > 1 && output != "" {
			return usageErrorf(cmd, "%s has %d extensions: say which one with --name", args[0], len(packages))
		}
		if len(older) > 0 && (!cmd.Flags().Changed("dbname") || len(packages) > 1) {
			return usageErrorf(cmd, "--upgrade-from needs a scratch database (-d) and one extension")
		}
		var before []*pack.Package
		for _, source := range older {
			more, err := readSource(source, packages[0].Control.Name)
			if err != nil {
				return err
			}
			before = append(before, more...)
		}
		var made []packed
		for _, pkg := range packages {
			if cmd.Flags().Changed("dbname") {
				if err := t.rehearse(cmd, pkg, before); err != nil {
					return err
				}
			}
			one, err := writePackage(pkg, output)
			if err != nil {
				return err
			}
			made = append(made, *one)
		}
		if t.asJSON {
			return writeJSON(cmd.OutOrStdout(), made)
		}
		for _, one := range made {
			for _, line := range someFindings(one.Findings, t.verbose) {
				fmt.Fprintf(cmd.OutOrStdout(), "note: %s\n", printable(line))
			}
			objects := "what it makes is not known (-d)"
			if one.Objects >= 0 {
				objects = "it makes " + count(uint64(one.Objects), "object")
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s %s, %s, %s\nsha256 %s\n", one.File, one.Name, one.Version, formatSize(one.Size), objects, one.SHA256)
		}
		return nil
	})
	f := cmd.Flags()
	f.StringArrayVarP(&t.nodes, "dbname", "d", nil, "")
	f.BoolVar(&t.asJSON, "json", false, "")
	f.BoolVarP(&t.verbose, "verbose", "v", false, "")
	f.StringVarP(&output, "output", "o", "", "")
	f.StringVar(&name, "name", "", "")
	f.StringArrayVar(&older, "upgrade-from", nil, "")
	return cmd
}

// A packed is a package that was written to a file.
type packed struct {
	Name     string   `json:"name"`
	Version  string   `json:"version"`
	File     string   `json:"file"`
	Size     int64    `json:"size"`
	SHA256   string   `json:"sha256"`
	Objects  int      `json:"objects"` // -1: what it makes is not known
	Findings []string `json:"findings"`
}

// readSource reads the packages of a directory or an archive.
func readSource(source, name string) ([]*pack.Package, error) {
	var packages []*pack.Package
	info, err := os.Stat(source)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir() && name != "" && !isOurs(source):
		pkg, err := pack.ReadNative(os.DirFS(source), name)
		if err != nil {
			return nil, inSource(source, err)
		}
		return []*pack.Package{pkg}, nil
	case info.IsDir():
		pkg, err := pack.Read(os.DirFS(source))
		if err != nil {
			return nil, inSource(source, err)
		}
		packages = []*pack.Package{pkg}
	case strings.HasSuffix(source, ".zip"):
		f, err := os.Open(source)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if packages, err = pack.ReadZip(f, info.Size()); err != nil {
			return nil, inSource(source, err)
		}
	default:
		pkg, _, err := readPackageFile(source)
		if err != nil {
			return nil, err
		}
		packages = []*pack.Package{pkg}
	}
	if name == "" {
		return packages, nil
	}
	var names []string
	for _, pkg := range packages {
		if pkg.Control.Name == name {
			return []*pack.Package{pkg}, nil
		}
		names = append(names, pkg.Control.Name)
	}
	return nil, &usageError{err: fmt.Errorf("%s has no extension %q", source, name), hint: fmt.Sprintf("It has %s.", strings.Join(names, ", "))}
}

// fetchPGXN fetches the newest release of an extension from a mirror of PGXN.
func fetchPGXN(cmd *cobra.Command, source, name string) (_ []*pack.Package, err error) {
	if name == "" {
		return nil, usageErrorf(cmd, "which extension of the mirror? Give --name NAME")
	}
	r, err := openRegistry(cmd.Context(), registryLocation{source, true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	pkg, err := r.Fetch(cmd.Context(), name, "")
	if err != nil {
		return nil, err
	}
	return []*pack.Package{pkg}, nil
}

// isOurs says whether a directory is laid out as the post has it.
func isOurs(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "control"))
	return err == nil
}

// A sourceError says in which directory or archive something is wrong. What is
// wrong says in which file.
type sourceError struct {
	source string
	err    error
}

func (e *sourceError) Error() string {
	return fmt.Sprintf("%s: %v", strings.TrimSuffix(e.source, "/"), e.err)
}
func (e *sourceError) Unwrap() error { return e.err }

func inSource(source string, err error) error { return &sourceError{source, err} }

// readPackageFile reads a package from its archive.
func readPackageFile(file string) (*pack.Package, []byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	pkg, err := pack.ReadArchive(bytes.NewReader(data))
	if err != nil {
		return nil, nil, inSource(file, err)
	}
	return pkg, data, nil
}

// rehearse finds out in a scratch database what a package makes, and whether its
// upgrades lead there from older packages.
func (t *extensionTarget) rehearse(cmd *cobra.Command, pkg *pack.Package, older []*pack.Package) (err error) {
	s, err := t.openWith(cmd, t.conninfos(), nil, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for _, alternatives := range pkg.Control.Depends {
		if !slices.ContainsFunc(alternatives, func(r depend.Relation) bool {
			in, ok := s.Observed().Find(r.Name)
			return r.Scope != depend.Database || ok && r.Range.Allows(in.Version, nil)
		}) {
			return &scratchError{pkg.Control.Name, s.Observed().Database, alternatives.String()}
		}
	}
	if pkg.Objects, err = s.Manifest(cmd.Context(), pkg); err != nil || len(older) == 0 {
		return err
	}
	proofs, err := s.VerifyUpgrades(cmd.Context(), pkg, older...)
	if err != nil {
		return err
	}
	if len(proofs) == 0 {
		return fmt.Errorf("%s %s has no script that upgrades one of the older packages", pkg.Control.Name, pkg.Control.Version)
	}
	for _, p := range proofs {
		if !p.Same() {
			return &upgradeError{pkg.Control.Name, p}
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s %s upgraded to %s is the same as %s installed\n", pkg.Control.Name, p.From, p.To, p.To)
	}
	return nil
}

// An upgradeError says that an upgrade does not lead where an installation leads.
type upgradeError struct {
	name  string
	proof extension.UpgradeProof
}

func (e *upgradeError) Error() string {
	return fmt.Sprintf("%s %s upgraded to %s is not the same as %s installed", e.name, e.proof.From, e.proof.To, e.proof.To)
}

func (e *upgradeError) what() []string {
	var list []string
	for _, part := range []struct {
		objects []string
		what    string
	}{{e.proof.Missing, "is missing after the upgrade"}, {e.proof.Extra, "is left over"}, {e.proof.Differ, "has another definition"}} {
		for _, o := range part.objects {
			list = append(list, o+" "+part.what)
		}
	}
	return list
}

// A scratchError says that a package cannot be tried in a database that lacks what
// it depends on.
type scratchError struct{ name, database, relation string }

func (e *scratchError) Error() string {
	return fmt.Sprintf("%s depends on %s, which is not installed in database %q", e.name, e.relation, e.database)
}

// maxFindings is how many findings of one rule are printed: a script that was
// written without a care has thousands, of which all say the same.
const maxFindings = 3

// someFindings leaves the first few findings of each rule, which each names at
// its end, and says how many more there are.
func someFindings(findings []string, all bool) []string {
	if all {
		return findings
	}
	var list []string
	seen := map[string]int{}
	var rules []string
	for _, f := range findings {
		rule := f[strings.LastIndex(f, " (")+1:]
		if seen[rule]++; seen[rule] == maxFindings+1 {
			rules = append(rules, rule)
		}
		if seen[rule] <= maxFindings {
			list = append(list, f)
		}
	}
	for _, rule := range rules {
		list = append(list, fmt.Sprintf("%d more of %s; -v prints all", seen[rule]-maxFindings, strings.Trim(rule, "()")))
	}
	return list
}

// checkPackage reads the scripts of a package as an installation would, and says
// what a person should look at.
func checkPackage(pkg *pack.Package) ([]string, error) {
	findings, err := extension.Check(pkg)
	if err != nil {
		return nil, err
	}
	list := []string{}
	for _, f := range findings {
		list = append(list, fmt.Sprintf("%s:%d: %s (%s)", f.File, f.Line, f.Message, f.Rule))
	}
	return list, nil
}

func writePackage(pkg *pack.Package, file string) (*packed, error) {
	if err := pkg.Check(); err != nil {
		return nil, err
	}
	findings, err := checkPackage(pkg)
	if err != nil {
		return nil, err
	}
	if file == "" {
		file = pkg.Control.Name + "-" + pkg.Control.Version + ".tar.gz"
	}
	var archive bytes.Buffer
	sum, err := pkg.WriteArchive(&archive)
	if err != nil {
		return nil, err
	}
	if err := durable.WriteFile(file, archive.Bytes(), 0o644); err != nil {
		return nil, fmt.Errorf("could not write the package: %w", err)
	}
	one := &packed{
		Name: pkg.Control.Name, Version: pkg.Control.Version, File: file, Size: int64(archive.Len()), SHA256: sum,
		Objects: len(pkg.Objects), Findings: findings,
	}
	if pkg.Objects == nil {
		one.Objects = -1
	}
	return one, nil
}
