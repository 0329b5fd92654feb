package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// daemonFlags are the options that "rideau relay" and "rideau run" share.
type daemonFlags struct {
	listen                    []string
	slot, name, keep          string
	hba, users                string
	tlsCert, tlsKey, tlsCA    string
	noForwardSQL              bool
	http, logFormat, logLevel string
}

func (f *daemonFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.listen, "listen", nil, "")
	flags.StringVar(&f.slot, "slot", "", "")
	flags.StringVar(&f.name, "name", "", "")
	flags.StringVar(&f.keep, "keep", "", "")
	flags.StringVar(&f.hba, "hba", "", "")
	flags.StringVar(&f.users, "users", "", "")
	flags.StringVar(&f.tlsCert, "tls-cert", "", "")
	flags.StringVar(&f.tlsKey, "tls-key", "", "")
	flags.StringVar(&f.tlsCA, "tls-ca", "", "")
	flags.BoolVar(&f.noForwardSQL, "no-forward-sql", false, "")
	flags.StringVar(&f.http, "http", "", "")
	flags.StringVar(&f.logFormat, "log", "", "")
	flags.StringVar(&f.logLevel, "log-level", "", "")
}

// override lays the options that were given over cfg.
func (f *daemonFlags) override(cmd *cobra.Command, cfg *config) error {
	given := cmd.Flags().Changed
	for _, option := range []struct {
		name    string
		value   string
		setting *string
	}{
		{"slot", f.slot, &cfg.Relay.Slot},
		{"name", f.name, &cfg.Relay.Name},
		{"keep", f.keep, &cfg.Relay.Keep},
		{"tls-cert", f.tlsCert, &cfg.Relay.TLS.Cert},
		{"tls-key", f.tlsKey, &cfg.Relay.TLS.Key},
		{"tls-ca", f.tlsCA, &cfg.Relay.TLS.ClientCA},
		{"http", f.http, &cfg.HTTP},
		{"log", f.logFormat, &cfg.Log.Format},
		{"log-level", f.logLevel, &cfg.Log.Level},
	} {
		if given(option.name) {
			*option.setting = option.value
		}
	}
	if given("listen") {
		cfg.Relay.Listen = f.listen
	}
	if f.noForwardSQL {
		no := false
		cfg.Relay.ForwardSQL = &no
	}
	if given("keep") {
		if _, err := parseKeep(f.keep); err != nil {
			return &usageError{err: fmt.Errorf("invalid --keep: %w", err), hint: keepHint}
		}
	}
	var err error
	if given("hba") {
		if cfg.Relay.HBA, err = readHBAFile(f.hba); err != nil {
			return err
		}
	}
	if given("users") {
		if cfg.Relay.Users, err = readUsersFile(f.users); err != nil {
			return err
		}
	}
	return nil
}

// serve runs what cfg asks for until ctx is cancelled.
func serve(ctx context.Context, cfg config, stderr io.Writer) error {
	return errors.New("this build has no relay yet")
}
