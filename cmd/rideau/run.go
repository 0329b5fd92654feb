package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

const runHelp = `Usage: rideau run -c FILE [options]

Runs what the configuration file FILE asks for, until interrupted: today a
relay, as "rideau relay" does with options in place of settings.

The file is YAML; doc/rideau.yaml in the source has every setting, explained.
A setting that does not exist is an error, reported with its line. Options
given here override the file.

Options:
    -c, --config FILE    The configuration file. Required.
    --check              Read the file, say what is wrong with it, do no more.
    --upstream CONNINFO  Connection string of the server WAL comes from.
    --dir DIR            Directory to keep WAL in.
    --listen, --slot, --name, --keep, --hba, --users, --tls-cert, --tls-key,
    --tls-ca, --no-forward-sql, --http, --log, --log-level
                         As for "rideau relay".

An interrupt (SIGINT, SIGTERM) stops in order, a second one at once. No WAL is
lost either way.

Example:
    $ rideau run -c rideau.yaml --check
    $ rideau run -c rideau.yaml --log json
`

func newRunCommand() *cobra.Command {
	var (
		flags         daemonFlags
		file          string
		check         bool
		upstream, dir string
	)
	cmd := newCommand("run -c FILE [options]", runHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args); err != nil {
			return err
		}
		if file == "" {
			err := usageErrorf(cmd, "no configuration file")
			err.hint = "Give one: rideau run -c rideau.yaml."
			return err
		}
		cfg, err := readConfig(file)
		if err != nil {
			return err
		}
		if upstream != "" {
			cfg.Relay.Upstream = upstream
		}
		if dir != "" {
			cfg.Relay.Dir = dir
		}
		if err := flags.override(cmd, &cfg); err != nil {
			return err
		}
		if check {
			set, err := cfg.resolve(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if _, err := newRelay(cfg, set); err != nil {
				return err
			}
			for _, w := range set.warnings {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is valid\n", file)
			return err
		}
		return serve(cmd.Context(), cfg, cmd.ErrOrStderr())
	})
	flags.register(cmd)
	cmd.Flags().StringVarP(&file, "config", "c", "", "")
	cmd.Flags().BoolVar(&check, "check", false, "")
	cmd.Flags().StringVar(&upstream, "upstream", "", "")
	cmd.Flags().StringVar(&dir, "dir", "", "")
	return cmd
}
