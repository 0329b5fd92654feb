package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rideau/extension/registry"
	"rideau/internal/durable"
)

const extensionSignHelp = `Usage: rideau extension sign FILE --key KEY [options]

Signs, on the machine where the key is. FILE is a package (.tar.gz): then the
signed statement on it goes to FILE.statement, for rideau extension publish
--statement. Or it is a statement or the draft of a root (rideau extension
registry draft) that others have signed already: then the signature is added
to it.

Options:
    --key FILE        Sign with this secret key; repeatable.
    --password-file FILE
                      Take the passwords from the lines of this file, such as
                      /dev/fd/3, and do not ask.
    -o, --output FILE Another file.

Example:
    $ rideau extension sign foo-1.0.tar.gz --key example.key
`

func newExtensionSignCommand() *cobra.Command {
	var keys keyring
	var output string
	cmd := newCommand("sign FILE --key KEY [options]", extensionSignHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"FILE", "package or document to sign"}); err != nil {
			return err
		}
		text, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		file := args[0]
		if bytes.HasPrefix(text, []byte("\x1f\x8b")) { // gzip
			if text, err = registry.Describe(text); err != nil {
				return inSource(file, err)
			}
			file += ".statement"
		}
		secret, err := keys.read(cmd)
		if err != nil {
			return err
		}
		for _, key := range secret {
			if text, err = registry.Sign(text, key); err != nil {
				return inSource(args[0], err)
			}
		}
		if output != "" {
			file = output
		}
		if err := durable.WriteFile(file, text, 0o644); err != nil {
			return fmt.Errorf("could not write what was signed: %w", err)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "signed by %s: %s\n", keyIDs(secret), file)
		return err
	})
	keys.flags(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "")
	return cmd
}

func keyIDs(keys []registry.SecretKey) string {
	var ids []string
	for _, k := range keys {
		ids = append(ids, registry.KeyID(publicOf(k)))
	}
	return strings.Join(ids, ", ")
}

const extensionPublishHelp = `Usage: rideau extension publish REGISTRY PACKAGE... --key KEY [options]

Signs packages and adds them to a registry: a directory, or object storage
(s3://BUCKET/PREFIX). PACKAGE is a file of rideau extension pack, or the
directory of one. A version that is there already stays as it is; another
package under its number is refused.

The registry is verified first, as by everybody who reads it: its key must be
one that you trust. KEY must be one that may sign the package, and the index;
else somebody signs the package elsewhere (rideau extension sign).

Options:
    --key FILE        Sign with this secret key; repeatable.
    --password-file FILE
                      Take the passwords from the lines of this file, such as
                      /dev/fd/3, and do not ask.
    --statement FILE  What the publisher of the package has signed.
    --json            Print what was published as JSON.

Example:
    $ rideau extension publish /srv/extensions foo-1.0.tar.gz --key example.key
`

func newExtensionPublishCommand() *cobra.Command {
	var keys keyring
	var statement string
	var asJSON bool
	cmd := newCommand("publish REGISTRY PACKAGE... --key KEY [options]", extensionPublishHelp, func(cmd *cobra.Command, args []string) (err error) {
		if len(args) < 2 {
			return arguments(cmd, args, [2]string{"REGISTRY", "registry to publish to"}, [2]string{"PACKAGE", "package to publish"})
		}
		if statement != "" && len(args) > 2 {
			return usageErrorf(cmd, "--statement is on one package, and %d were given", len(args)-1)
		}
		// All are read before the first is published.
		archives := make([][]byte, len(args)-1)
		for i, source := range args[1:] {
			if archives[i], err = readPublished(source); err != nil {
				return err
			}
		}
		var signed []byte
		if statement != "" {
			if signed, err = os.ReadFile(statement); err != nil {
				return err
			}
		}
		secret, err := keys.read(cmd)
		if err != nil {
			return err
		}
		w, err := openWriter(cmd, args[0])
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.Close()) }()
		type publishedJSON struct {
			releaseJSON
			Published bool `json:"published"` // false: it was there already
		}
		var list []publishedJSON
		for _, archive := range archives {
			var r *registry.Release
			if signed != nil {
				r, err = w.Add(cmd.Context(), archive, signed, secret...)
			} else {
				r, err = w.Publish(cmd.Context(), archive, secret...)
			}
			if err != nil {
				return err
			}
			list = append(list, publishedJSON{newReleaseJSON(r), !r.Already})
			switch {
			case asJSON:
			case r.Already:
				fmt.Fprintf(cmd.OutOrStdout(), "%s %s is in %s already, the same, sha256 %s\n", r.Name, r.Version, w.Policy().Name, r.SHA256)
			default:
				fmt.Fprintf(cmd.OutOrStdout(), "published %s %s in %s, sha256 %s\n", r.Name, r.Version, w.Policy().Name, r.SHA256)
			}
		}
		if asJSON {
			return writeJSON(cmd.OutOrStdout(), list)
		}
		return nil
	})
	keys.flags(cmd)
	cmd.Flags().StringVar(&statement, "statement", "", "")
	cmd.Flags().BoolVar(&asJSON, "json", false, "")
	return cmd
}

// readPublished reads what is to be published, and refuses scripts that nobody
// could install.
func readPublished(source string) ([]byte, error) {
	packages, err := readSource(source, "")
	if err != nil {
		return nil, err
	}
	if len(packages) != 1 {
		return nil, &usageError{err: fmt.Errorf("%s has %d extensions", source, len(packages)), hint: "Make a package of each first: rideau extension pack."}
	}
	if err := packages[0].Check(); err != nil {
		return nil, inSource(source, err)
	}
	if packages[0].SHA256 != "" {
		return os.ReadFile(source)
	}
	var archive bytes.Buffer
	_, err = packages[0].WriteArchive(&archive)
	return archive.Bytes(), err
}

func openWriter(cmd *cobra.Command, location string) (*registry.Writer, error) {
	trust, o, err := trusting()
	if err != nil {
		return nil, err
	}
	return registry.OpenWriter(cmd.Context(), location, trust, o)
}

const extensionMirrorHelp = `Usage: rideau extension mirror REGISTRY PLACE [NAME...] [options]

Copies a registry, byte for byte, to a directory or to object storage
(s3://BUCKET/PREFIX): with all packages, or with those named. Whoever trusts
the original trusts the copy, for the same key. Run it again to follow the
original; at every moment the copy is whole.

A copy that is not followed expires with the timestamp of the original.

Options:
    --json            Print what the copy has as JSON.

Example:
    $ rideau extension mirror https://extensions.example.org/ /srv/mirror
`

func newExtensionMirrorCommand() *cobra.Command {
	var asJSON bool
	cmd := newCommand("mirror REGISTRY PLACE [NAME...] [options]", extensionMirrorHelp, func(cmd *cobra.Command, args []string) (err error) {
		if len(args) < 2 {
			return arguments(cmd, args, [2]string{"REGISTRY", "registry to copy"}, [2]string{"PLACE", "place for the copy"})
		}
		trust, o, err := trusting()
		if err != nil {
			return err
		}
		from, err := registry.Open(cmd.Context(), args[0], trust, o)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, from.Close()) }()
		if err := registry.Mirror(cmd.Context(), from, args[1], o, args[2:]...); err != nil {
			return err
		}
		names := args[2:]
		if len(names) == 0 {
			names = from.Names()
		}
		if asJSON {
			return writeJSON(cmd.OutOrStdout(), map[string]any{"registry": from.Name(), "place": args[1], "packages": names, "expires": from.Expires()})
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s has %s of %s, valid until %s\n", args[1], count(uint64(len(names)), "package"), from.Name(), day(from.Expires()))
		return err
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "")
	return cmd
}

func day(t time.Time) string { return t.Local().Format(time.DateOnly) }

const extensionRegistryHelp = `Usage: rideau extension registry VERB [options] [arguments]

    init         make a registry, with no packages in it
    show         who may sign what, and until when it is valid
    refresh      sign index and timestamp anew, before they expire
    withdraw     take a version of a package out
    prune        remove what no reader needs any more
    draft        write down other keys for it, for their owners to sign
    replace      put a signed draft in force
    forget       no longer compare it with what was seen of it

A registry is a tree of files that anybody can host: a directory that a web
server serves, or object storage. All that matters in it is signed.

"rideau extension registry VERB --help" explains one.
`

func newExtensionRegistryCommand() *cobra.Command {
	return newGroup("registry", extensionRegistryHelp,
		newRegistryInitCommand(), newRegistryShowCommand(), newRegistryRefreshCommand(), newRegistryWithdrawCommand(),
		newRegistryPruneCommand(), newRegistryDraftCommand(), newRegistryReplaceCommand(), newRegistryForgetCommand())
}

// policyFlags say who may sign what.
type policyFlags struct {
	name       string
	root       []string
	threshold  int
	index      []string
	timestamp  []string
	publishers []string
}

func (p *policyFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&p.name, "name", "", "")
	f.StringArrayVar(&p.root, "root", nil, "")
	f.IntVar(&p.threshold, "threshold", 1, "")
	f.StringArrayVar(&p.index, "index", nil, "")
	f.StringArrayVar(&p.timestamp, "timestamp", nil, "")
	f.StringArrayVar(&p.publishers, "publisher", nil, "")
}

// policy changes old by what the options say.
func (p *policyFlags) policy(cmd *cobra.Command, old registry.Policy) (registry.Policy, error) {
	given := cmd.Flags().Changed
	if given("name") {
		old.Name = p.name
	}
	for _, role := range []struct {
		option string
		files  []string
		role   *registry.Role
	}{{"root", p.root, &old.Root}, {"index", p.index, &old.Index}, {"timestamp", p.timestamp, &old.Timestamp}} {
		if !given(role.option) {
			continue
		}
		*role.role = registry.Role{Threshold: 1}
		for _, file := range role.files {
			key, err := readPublicKey(file)
			if err != nil {
				return old, err
			}
			role.role.Keys = append(role.role.Keys, key)
		}
	}
	if given("threshold") {
		old.Root.Threshold = p.threshold
	}
	if !given("publisher") {
		return old, nil
	}
	old.Publishers = nil
	for _, text := range p.publishers {
		pattern, file, ok := strings.Cut(text, "=")
		if !ok || pattern == "" || file == "" {
			return old, usageErrorf(cmd, "invalid --publisher %q: want PATTERN=KEY, such as 'pg_*=alice.pub'", text)
		}
		key, err := readPublicKey(file)
		if err != nil {
			return old, err
		}
		i := slices.IndexFunc(old.Publishers, func(d registry.Delegation) bool { return d.Names[0] == pattern })
		if i < 0 {
			i = len(old.Publishers)
			old.Publishers = append(old.Publishers, registry.Delegation{Names: []string{pattern}})
		}
		old.Publishers[i].Keys = append(old.Publishers[i].Keys, key)
	}
	return old, nil
}

const registryInitHelp = `Usage: rideau extension registry init PLACE --name NAME --key KEY [options]

Makes a registry with no packages in it: in a directory, or in object storage
(s3://BUCKET/PREFIX). Its users must trust a key of its root, and so must you
before you publish: rideau extension trust add.

Options:
    --name NAME       How people call it.
    --key FILE        Sign with this secret key; repeatable. Unless the others
                      say something else, these keys may sign everything.
    --password-file FILE
                      Take the passwords from the lines of this file, such as
                      /dev/fd/3, and do not ask.
    --root KEY        A public key that may say who may sign what; repeatable.
    --threshold N     How many of them must sign. Default 1.
    --index KEY       A public key that may say which packages there are.
    --timestamp KEY   A public key that may say that this is still the newest
                      state; it may be kept where the registry is served.
    --publisher PATTERN=KEY
                      A public key that may sign the packages whose names are
                      like PATTERN ('pg_*'); repeatable.

Example:
    $ rideau extension registry init /srv/ext --name example --key example.key
    $ rideau extension trust add example example.pub
`

func newRegistryInitCommand() *cobra.Command {
	var keys keyring
	var policy policyFlags
	cmd := newCommand("init PLACE --name NAME --key KEY [options]", registryInitHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"PLACE", "place for the registry"}); err != nil {
			return err
		}
		if policy.name == "" {
			err := usageErrorf(cmd, "no name for the registry")
			err.hint = "Give one with --name NAME: it is how people call it, in NAME/PACKAGE."
			return err
		}
		secret, err := keys.read(cmd)
		if err != nil {
			return err
		}
		var all []registry.PublicKey
		for _, k := range secret {
			all = append(all, publicOf(k))
		}
		p, err := policy.policy(cmd, registry.Policy{
			Root: registry.Role{Keys: all}, Index: registry.Role{Keys: all}, Timestamp: registry.Role{},
			Publishers: []registry.Delegation{{Keys: all, Names: []string{"*"}}},
		})
		if err != nil {
			return err
		}
		o, err := registryOptions()
		if err != nil {
			return err
		}
		if err := registry.Init(cmd.Context(), args[0], p, o, secret...); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "made registry %s in %s, signed by %s\n", p.Name, args[0], keyIDs(secret))
		return err
	})
	keys.flags(cmd)
	policy.flags(cmd)
	return cmd
}

const registryShowHelp = `Usage: rideau extension registry show REGISTRY [options]

Shows who may sign what in a registry, how many packages it has, and until
when it is valid unless it is refreshed.

Options:
    --json            Print it as JSON.
`

func newRegistryShowCommand() *cobra.Command {
	var asJSON bool
	cmd := newCommand("show REGISTRY [options]", registryShowHelp, func(cmd *cobra.Command, args []string) (err error) {
		if err := arguments(cmd, args, [2]string{"REGISTRY", "registry to show"}); err != nil {
			return err
		}
		trust, o, err := trusting()
		if err != nil {
			return err
		}
		r, err := registry.Open(cmd.Context(), args[0], trust, o)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		p := r.Policy()
		type publisher struct {
			Names []string `json:"names"`
			Keys  []string `json:"keys"`
		}
		x := struct {
			Name       string      `json:"name"`
			Location   string      `json:"location"`
			Packages   int         `json:"packages"`
			Expires    time.Time   `json:"expires"`
			Root       []string    `json:"root"`
			Threshold  int         `json:"threshold"`
			Index      []string    `json:"index"`
			Timestamp  []string    `json:"timestamp"`
			Publishers []publisher `json:"publishers"`
		}{r.Name(), r.Location(), len(r.Names()), r.Expires(), publicIDs(p.Root.Keys), p.Root.Threshold, publicIDs(p.Index.Keys), publicIDs(p.Timestamp.Keys), nil}
		for _, d := range p.Publishers {
			x.Publishers = append(x.Publishers, publisher{d.Names, publicIDs(d.Keys)})
		}
		if asJSON {
			return writeJSON(cmd.OutOrStdout(), x)
		}
		t := newTable(cmd.OutOrStdout())
		t.row("name", x.Name)
		t.row("location", x.Location)
		t.row("packages", fmt.Sprint(x.Packages))
		t.row("valid until", day(x.Expires))
		t.row("root", fmt.Sprintf("%d of %s", x.Threshold, strings.Join(x.Root, ", ")))
		t.row("index", strings.Join(x.Index, ", "))
		t.row("timestamp", strings.Join(x.Timestamp, ", "))
		for _, d := range x.Publishers {
			t.row("packages "+strings.Join(d.Names, ", "), strings.Join(d.Keys, ", "))
		}
		return t.flush()
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "")
	return cmd
}

func publicIDs(keys []registry.PublicKey) []string {
	ids := []string{}
	for _, k := range keys {
		ids = append(ids, registry.KeyID(k))
	}
	return ids
}

const registryRefreshHelp = `Usage: rideau extension registry refresh REGISTRY --key KEY [options]

Signs the timestamp of a registry anew, and the index if the keys may: else
they expire, and readers refuse the registry. Run it from cron, more often
than the timestamp is valid (four weeks).

Options:
    --key FILE        Sign with this secret key; repeatable.
    --password-file FILE
                      Take the passwords from the lines of this file, such as
                      /dev/fd/3, and do not ask.

Example:
    $ rideau extension registry refresh /srv/ext --key example.key
`

func newRegistryRefreshCommand() *cobra.Command {
	var keys keyring
	cmd := newCommand("refresh REGISTRY --key KEY [options]", registryRefreshHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"REGISTRY", "registry to refresh"}); err != nil {
			return err
		}
		return change(cmd, args[0], &keys, func(w *registry.Writer, secret []registry.SecretKey) error {
			return w.Refresh(cmd.Context(), secret...)
		}, "signed anew: "+args[0])
	})
	keys.flags(cmd)
	return cmd
}

// change opens a registry, changes it with keys, and says what was done.
func change(cmd *cobra.Command, location string, keys *keyring, do func(*registry.Writer, []registry.SecretKey) error, done string) error {
	secret, err := keys.read(cmd)
	if err != nil {
		return err
	}
	w, err := openWriter(cmd, location)
	if err != nil {
		return err
	}
	if err := errors.Join(do(w, secret), w.Close()); err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), done)
	return err
}

const registryWithdrawHelp = `Usage: rideau extension registry withdraw REGISTRY NAME VERSION --key KEY
         [options]

Takes a version of a package out of a registry. It stays where it is installed,
and in lock files that name it; its archive stays until rideau extension
registry prune.

Options:
    --key FILE        Sign with this secret key; repeatable.
    --password-file FILE
                      Take the passwords from the lines of this file, such as
                      /dev/fd/3, and do not ask.
`

func newRegistryWithdrawCommand() *cobra.Command {
	var keys keyring
	cmd := newCommand("withdraw REGISTRY NAME VERSION --key KEY [options]", registryWithdrawHelp, func(cmd *cobra.Command, args []string) error {
		err := arguments(cmd, args, [2]string{"REGISTRY", "registry to change"}, [2]string{"NAME", "package"}, [2]string{"VERSION", "version to withdraw"})
		if err != nil {
			return err
		}
		return change(cmd, args[0], &keys, func(w *registry.Writer, secret []registry.SecretKey) error {
			return w.Withdraw(cmd.Context(), args[1], args[2], secret...)
		}, fmt.Sprintf("withdrawn: %s %s", args[1], args[2]))
	})
	keys.flags(cmd)
	return cmd
}

const registryPruneHelp = `Usage: rideau extension registry prune REGISTRY [options]

Lists what no reader of a registry needs any more: replaced indexes, archives
of withdrawn versions, what a publisher left who did not get to the end. With
--remove it is removed.

Options:
    --older-than TIME Only what was last written so long ago: readers who have
                      opened the registry read on from the state of then.
                      Default 24h.
    --remove          Remove it.
`

func newRegistryPruneCommand() *cobra.Command {
	var older string
	var remove bool
	cmd := newCommand("prune REGISTRY [options]", registryPruneHelp, func(cmd *cobra.Command, args []string) (err error) {
		if err := arguments(cmd, args, [2]string{"REGISTRY", "registry to prune"}); err != nil {
			return err
		}
		age, err := parseTimeout(older)
		if err != nil {
			return usageErrorf(cmd, "invalid --older-than: %w", err)
		}
		w, err := openWriter(cmd, args[0])
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.Close()) }()
		gone, err := w.Prune(cmd.Context(), time.Now().Add(-age), remove)
		for _, name := range gone {
			fmt.Fprintln(cmd.OutOrStdout(), name)
		}
		return err
	})
	cmd.Flags().StringVar(&older, "older-than", "24h", "")
	cmd.Flags().BoolVar(&remove, "remove", false, "")
	return cmd
}

const registryDraftHelp = `Usage: rideau extension registry draft REGISTRY -o FILE [options]

Writes the root of a registry with other keys to FILE, not signed. Owners of
as many keys as the root asks for, of the old one and of the new one, sign it
(rideau extension sign FILE); rideau extension registry replace puts it in
force. What is not given stays as it is.

Options:
    -o, --output FILE Write it here.
    --name NAME       How people call the registry.
    --root KEY        A public key that may say who may sign what; repeatable.
    --threshold N     How many of them must sign.
    --index KEY       A public key that may say which packages there are.
    --timestamp KEY   A public key that may say that this is the newest state.
    --publisher PATTERN=KEY
                      A public key that may sign the packages whose names are
                      like PATTERN; repeatable. All must be given.
`

func newRegistryDraftCommand() *cobra.Command {
	var policy policyFlags
	var output string
	cmd := newCommand("draft REGISTRY -o FILE [options]", registryDraftHelp, func(cmd *cobra.Command, args []string) (err error) {
		if err := arguments(cmd, args, [2]string{"REGISTRY", "registry to draft a root for"}); err != nil {
			return err
		}
		if output == "" {
			return usageErrorf(cmd, "no file for the draft (-o FILE)")
		}
		w, err := openWriter(cmd, args[0])
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.Close()) }()
		p, err := policy.policy(cmd, w.Policy())
		if err != nil {
			return err
		}
		text, err := w.DraftRoot(p)
		if err != nil {
			return err
		}
		if err := durable.WriteFile(output, text, 0o644); err != nil {
			return fmt.Errorf("could not write the draft: %w", err)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "draft of root: %s; sign it with rideau extension sign %s --key KEY\n", output, shellQuote(output))
		return err
	})
	policy.flags(cmd)
	cmd.Flags().StringVarP(&output, "output", "o", "", "")
	return cmd
}

const registryReplaceHelp = `Usage: rideau extension registry replace REGISTRY FILE --key KEY [options]

Puts the root in FILE in force: a draft of rideau extension registry draft
that was signed. Index and timestamp are signed again with KEY, which must be
enough for that under the new root.

Options:
    --key FILE        Sign with this secret key; repeatable.
    --password-file FILE
                      Take the passwords from the lines of this file, such as
                      /dev/fd/3, and do not ask.
`

func newRegistryReplaceCommand() *cobra.Command {
	var keys keyring
	cmd := newCommand("replace REGISTRY FILE --key KEY [options]", registryReplaceHelp, func(cmd *cobra.Command, args []string) error {
		err := arguments(cmd, args, [2]string{"REGISTRY", "registry to change"}, [2]string{"FILE", "signed root"})
		if err != nil {
			return err
		}
		document, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		return change(cmd, args[0], &keys, func(w *registry.Writer, secret []registry.SecretKey) error {
			return w.PutRoot(cmd.Context(), document, secret...)
		}, "in force: "+args[1])
	})
	keys.flags(cmd)
	return cmd
}

const registryForgetHelp = `Usage: rideau extension registry forget PLACE

Forgets what you have seen of a registry. What was seen protects you: nobody
can show you an older state of it, another registry in its place, or a
directory in which nothing is signed. Forget it only if you know why it is
another now: it was made anew, restored from a backup, or given up. Then what
is seen there next counts. Trusted keys stay as they are.
`

func newRegistryForgetCommand() *cobra.Command {
	return newCommand("forget PLACE", registryForgetHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"PLACE", "registry to forget"}); err != nil {
			return err
		}
		o, err := registryOptions()
		if err != nil {
			return err
		}
		if err := registry.Forget(cmd.Context(), args[0], o); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "forgotten: %s\n", args[0])
		return err
	})
}
