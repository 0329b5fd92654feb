package main

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rideau/extension"
	"rideau/extension/depend"
)

const extensionHelp = `Usage: rideau extension VERB [options] [arguments]

Installs extensions over SQL, with all that they depend on, in versions that
fit together, in one transaction; or not at all, and says why.

    list         what there is: in a database, on its server, in registries
    search       find packages in registries
    show         one package: its versions, what each needs, who signed it

    install      install extensions, with what they depend on
    upgrade      to newer versions, or to those named
    uninstall    and drop what was installed, nothing else
    adopt        take charge of what is in a database already
    plan         say what one of these would do, in full; change nothing
    apply        do what a plan says, or what extensions.toml wishes for
    lock         write the exact versions that fulfil extensions.toml

    status       what is installed, and whether it is as it was installed
    why          what an extension has to do with others, and what it could be
    doctor       what is wrong or will be: libraries, nodes, upgrades

    pack         make a package of a directory
    keygen       make a pair of keys to sign packages with
    sign         sign a package or the root of a registry, away from it
    publish      add a package to a registry
    registry     make a registry, change it
    mirror       copy a registry
    trust        whose registries to believe

    bootstrap    SELECT extension.install('foo'): the commands in SQL
    upload       put packages where these find them

"rideau extension VERB --help" explains one; doc/extension.md begins with
nothing and ends with a package installed. Connections (-d) take the same
strings and PG* variables as psql.
`

// Options that many of these commands have, for their helps.
const (
	databaseHelp = `    -d, --dbname CONNINFO
                      The database, or its name. Default PG*.
`
	nodesHelp = `    -d, --dbname CONNINFO
                      The database, or its name. Repeat it for each node of a
                      pool. Default PG*.
`
	placeHelp = `    --registry PLACE  Where packages are: see rideau extension install.
`
	dryRunHelp = `    --dry-run         Do it, roll it back, and say what it did.
`
	scriptHelp = `    --hold NAME       Leave this one at its version; repeatable.
    --no-conf         Leave out what foo.conf sets.
    --allow-open-schema
                      Execute scripts in a schema where others may create
                      objects, and with these take over what a script calls.
`
	skewHelp = `    --allow-skew      Nodes may lack libraries, have different ones, or be
                      down; the primary may not.
`
	lockTimeoutHelp = `    --lock-timeout TIME
                      How long a statement waits for a lock before all is
                      rolled back and tried again. Default 5s.
`
	reportHelp = `    --json            Print the plan and the report as JSON.
    -v, --verbose     Tell each step, on standard error.
`
	moreHelp = `    -v, --verbose     Tell more, on standard error.
`
)

func newExtensionCommand() *cobra.Command {
	cmd := newGroup("extension", extensionHelp,
		newExtensionListCommand(),
		newExtensionSearchCommand(),
		newExtensionShowCommand(),
		newExtensionInstallCommand(),
		newExtensionUpgradeCommand(),
		newExtensionUninstallCommand(),
		newExtensionAdoptCommand(),
		newExtensionPlanCommand(),
		newExtensionApplyCommand(),
		newExtensionLockCommand(),
		newExtensionStatusCommand(),
		newExtensionWhyCommand(),
		newExtensionDoctorCommand(),
		newExtensionPackCommand(),
		newExtensionKeygenCommand(),
		newExtensionSignCommand(),
		newExtensionPublishCommand(),
		newExtensionRegistryCommand(),
		newExtensionMirrorCommand(),
		newExtensionTrustCommand(),
		newExtensionBootstrapCommand(),
		newExtensionUploadCommand(),
	)
	markErrors(cmd)
	return cmd
}

// An extensionError is any error of these commands. A server's refusal means
// something else here than where WAL is received: see explainExtension.
type extensionError struct{ err error }

func (e *extensionError) Error() string { return e.err.Error() }
func (e *extensionError) Unwrap() error { return e.err }

func markErrors(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := run(cmd, args); err != nil {
				return &extensionError{err}
			}
			return nil
		}
	}
	for _, child := range cmd.Commands() {
		markErrors(child)
	}
}

// extensionTarget is where to install and from what: the options that every
// command with a database has.
type extensionTarget struct {
	nodes      []string
	registries []string
	verbose    bool
	asJSON     bool

	withoutAbsent bool // nodes that do not answer may be done without
}

func (t *extensionTarget) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVarP(&t.nodes, "dbname", "d", nil, "")
	f.StringArrayVar(&t.registries, "registry", nil, "")
	f.BoolVarP(&t.verbose, "verbose", "v", false, "")
	f.BoolVar(&t.asJSON, "json", false, "")
}

// conninfos are the connection strings of the nodes. Like psql's -d, one may be
// only the name of a database; none at all is what the PG* variables say.
func (t *extensionTarget) conninfos() []string {
	if len(t.nodes) == 0 {
		return []string{""}
	}
	nodes := make([]string, len(t.nodes))
	for i, node := range t.nodes {
		nodes[i] = node
		if node != "" && !strings.Contains(node, "=") && !strings.Contains(node, "://") {
			nodes[i] = "dbname='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(node) + "'"
		}
	}
	return nodes
}

func (t *extensionTarget) log(stderr io.Writer) (*slog.Logger, error) {
	level := "warn"
	if t.verbose {
		level = "info"
	}
	return newLog(stderr, "text", level)
}

// open opens the registries and connects to the nodes. Whoever asks for
// registries gets those, else those that extensions.toml in the current
// directory names.
func (t *extensionTarget) open(cmd *cobra.Command, lockTimeout time.Duration) (*extensionSession, error) {
	locations, err := t.locations()
	if err != nil {
		return nil, err
	}
	return t.openWith(cmd, t.conninfos(), locations, lockTimeout)
}

func (t *extensionTarget) openWith(cmd *cobra.Command, nodes []string, from []registryLocation, lockTimeout time.Duration) (_ *extensionSession, err error) {
	log, err := t.log(cmd.ErrOrStderr())
	if err != nil {
		return nil, err
	}
	for _, l := range from {
		if strings.HasPrefix(l.location, pgxnPrefix) {
			err := usageErrorf(cmd, "cannot install from a mirror of PGXN: it does not say what depends on what")
			err.hint = "Make a package of it: rideau extension pack " + shellQuote(l.location) + " --name NAME."
			return nil, err
		}
	}
	registries, err := openAll(cmd.Context(), from)
	if err != nil {
		return nil, err
	}
	s, absent, err := openNodes(cmd, extension.Config{
		Nodes: nodes, Shelves: registries.set, LockTimeout: lockTimeout, Log: log,
	}, t.withoutAbsent)
	if err != nil {
		return nil, errors.Join(err, registries.Close())
	}
	return &extensionSession{s, registries, absent}, nil
}

// locations are the registries to open.
func (t *extensionTarget) locations() ([]registryLocation, error) {
	var list []registryLocation
	for _, location := range t.registries {
		list = append(list, registryLocation{location, true})
	}
	if len(list) > 0 {
		return list, nil
	}
	wishes, err := readWishes(wishesFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return wishes.locations(), nil
}

// wanted is how something is to be done: the options of commands that plan.
type wanted struct {
	mode        string
	schema      string
	hold        []string
	cascade     bool
	modified    bool
	noConf      bool
	allowOpen   bool
	allowSkew   bool
	lockTimeout string
}

func (w *wanted) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&w.mode, "mode", "auto", "")
	f.StringArrayVar(&w.hold, "hold", nil, "")
	f.BoolVar(&w.noConf, "no-conf", false, "")
	f.BoolVar(&w.allowOpen, "allow-open-schema", false, "")
	w.poolFlags(cmd)
}

// poolFlags are those of commands that execute no script.
func (w *wanted) poolFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&w.allowSkew, "allow-skew", false, "")
	f.StringVar(&w.lockTimeout, "lock-timeout", "5s", "")
}

// request begins a request with what the options say.
func (w *wanted) request(cmd *cobra.Command) (extension.Request, time.Duration, error) {
	req := extension.Request{
		Cascade: w.cascade, Modified: w.modified, NoConf: w.noConf, AllowOpen: w.allowOpen, AllowSkew: w.allowSkew,
	}
	modes := []extension.Mode{extension.Auto, extension.Native, extension.Path, extension.Module, extension.Graft}
	if w.mode != "" && w.mode != string(extension.Auto) {
		req.Mode = extension.Mode(w.mode)
		if !slices.Contains(modes, req.Mode) {
			return req, 0, usageErrorf(cmd, "invalid --mode %q: want auto, native, path, module or graft", w.mode)
		}
	}
	for _, name := range w.hold {
		if err := depend.CheckName(name); err != nil {
			return req, 0, usageErrorf(cmd, "invalid --hold: %w", err)
		}
		if req.Held == nil {
			req.Held = map[string]string{}
		}
		req.Held[name] = "--hold was given"
	}
	timeout, err := parseTimeout(w.lockTimeout)
	if err != nil || timeout == 0 {
		return req, 0, usageErrorf(cmd, "invalid --lock-timeout %q: want a time such as 5s or 1min", w.lockTimeout)
	}
	return req, timeout, nil
}

// parseWishes reads the names on a command line.
func parseWishes(cmd *cobra.Command, args []string, schema string) ([]extension.Wish, error) {
	var wishes []extension.Wish
	for _, arg := range args {
		w, err := extension.ParseWish(arg)
		if err != nil {
			e := usageErrorf(cmd, "%w", err)
			e.hint = "A wish is a name, or a name with versions: foo, foo=1.0, 'foo (>= 1.1, < 2)'."
			return nil, e
		}
		if slices.ContainsFunc(wishes, func(o extension.Wish) bool { return o.Name == w.Name }) {
			return nil, usageErrorf(cmd, "%s is named twice", w.Name)
		}
		w.Schema = schema
		wishes = append(wishes, w)
	}
	return wishes, nil
}

// someNames checks that a command was given at least one name.
func someNames(cmd *cobra.Command, args []string, what string) error {
	if len(args) > 0 {
		return nil
	}
	err := usageErrorf(cmd, "no %s", what)
	err.hint = "Give one or more: " + strings.TrimSuffix("rideau "+usageLine(cmd), " [options]")
	return err
}

// printable replaces control characters other than tabs.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' && r != '\n' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, text)
}

// oneLine is the beginning of a text, at most width characters of its first line.
func oneLine(text string, width int) string {
	line, _, more := strings.Cut(strings.TrimSpace(text), "\n")
	runes := []rune(strings.ReplaceAll(strings.TrimRight(line, " \r"), "\t", " "))
	if len(runes) > width {
		runes, more = runes[:width-4], true
	}
	if more {
		return string(runes) + " ..."
	}
	return string(runes)
}
