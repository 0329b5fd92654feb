package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"rideau/extension/depend"
)

const rootHelp = `Usage: rideau NOUN [VERB] [options] [arguments]

Rideau stands between a PostgreSQL primary and everything that needs its data.

    demo         kill a primary on this machine, and see that nothing is lost
    basebackup   copy a server over SQL; go on with that, refresh it
    backup       prove a backup
    doctor       what a server allows, what is missing, the SQL to fix it
    relay        receive WAL once, keep it, serve it to many standbys
    run          the same as a daemon, from a configuration file
    wal          fetch WAL for recovery, check an archive, look inside WAL
    extension    install extensions over SQL; make, sign and publish packages
    password     make the verifier of a password for the configuration file
    completion   completion of commands and options for your shell
    version      which rideau this is

"rideau NOUN --help" explains one. Connections take the same strings and PG*
variables as psql. Exit status: 0 done, 1 failed, 2 a mistake in the command.
`

// newRoot returns the whole command tree. A new noun is a file with a function
// newNOUNCommand, a line here and a line in rootHelp.
func newRoot() *cobra.Command {
	root := newGroup("rideau", rootHelp,
		newDemoCommand(),
		newBasebackupCommand(),
		newBackupCommand(),
		newDoctorCommand(),
		newRelayCommand(),
		newRunCommand(),
		newWalCommand(),
		newExtensionCommand(),
		newPasswordCommand(),
		newCompletionCommand(),
		newVersionCommand(),
	)
	root.SetHelpCommand(newHelpCommand())
	root.Version = thisBuild()
	root.SetVersionTemplate("{{.Version}}\n")
	return root
}

// newHelpCommand is the other way to ask for help: "rideau help wal fetch".
func newHelpCommand() *cobra.Command {
	cmd := newCommand("help [NOUN [VERB]]", rootHelp, func(cmd *cobra.Command, args []string) error {
		asked, rest, err := cmd.Root().Find(args)
		if err != nil || len(rest) > 0 {
			return usageErrorf(cmd.Root(), "there is no help for %q", strings.Join(args, " "))
		}
		_, err = io.WriteString(cmd.OutOrStdout(), asked.Long)
		return err
	})
	cmd.Hidden = true
	return cmd
}

// newCommand returns a command that does something. The help is the manual of
// it: written by hand, printed as it is, and the source of the man page. use is
// the name followed by the arguments, as cobra wants it: "relay CONNINFO DIR".
func newCommand(use, help string, run func(cmd *cobra.Command, args []string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:  use,
		Long: help,
		Args: cobra.ArbitraryArgs, // run counts them: it can say which is missing
		RunE: run,

		SilenceErrors:         true, // report prints them
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
	}
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) { io.WriteString(cmd.OutOrStdout(), cmd.Long) })
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageErrorf(cmd, "%w", err)
	})
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.SetHelpCommand(&cobra.Command{Hidden: true, Use: "no-help-command"}) // --help does it
	return cmd
}

// newGroup returns a command that only has others below it. Called alone it is
// a mistake, for which the help is the best hint.
func newGroup(use, help string, children ...*cobra.Command) *cobra.Command {
	var cmd *cobra.Command
	cmd = newCommand(use, help, func(_ *cobra.Command, args []string) error {
		kind := "verb"
		if !cmd.HasParent() {
			kind = "noun"
		}
		if len(args) == 0 {
			io.WriteString(cmd.ErrOrStderr(), help)
			return &usageError{}
		}
		err := usageErrorf(cmd, "unknown %s %q", kind, args[0])
		var names []string
		for _, child := range children {
			names = append(names, child.Name())
		}
		if near := nearest(args[0], names); near != "" {
			err.hint = fmt.Sprintf("Did you mean %q? Run %q for all of them.",
				cmd.CommandPath()+" "+near, cmd.CommandPath()+" --help")
		}
		return err
	})
	cmd.AddCommand(children...)
	return cmd
}

// arguments checks that args are as many as names, and names the one missing
// or too many. A name is an argument and what it is: "DIR", "directory to keep
// WAL in".
func arguments(cmd *cobra.Command, args []string, names ...[2]string) error {
	if len(args) > len(names) {
		return usageErrorf(cmd, "unexpected argument %q", maskPasswords(args[len(names)]))
	}
	if len(args) < len(names) {
		missing := names[len(args)]
		err := usageErrorf(cmd, "no %s", missing[1])
		err.hint = fmt.Sprintf("Give one as the %s argument: %s.", ordinals[len(args)], strings.TrimSuffix("rideau "+usageLine(cmd), " [options]"))
		return err
	}
	return nil
}

var ordinals = [...]string{"first", "second", "third", "fourth"}

func usageLine(cmd *cobra.Command) string {
	line := cmd.Use
	for p := cmd.Parent(); p != nil && p.HasParent(); p = p.Parent() {
		line = p.Name() + " " + line
	}
	return line
}

// nearest returns the name that s was probably meant to be, or "".
func nearest(s string, names []string) string {
	best, bestDistance := "", 3 // more than two slips is another word
	for _, name := range names {
		if s != "" && strings.HasPrefix(name, s) || len(name) > 2 && strings.HasPrefix(s, name) {
			return name
		}
		if d := depend.Distance(s, name); d < bestDistance && d < len(name) {
			best, bestDistance = name, d
		}
	}
	return best
}
