package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"rideau/console"
	"rideau/relay"
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

// newRelay makes the relay that cfg asks for. Nothing is touched yet.
func newRelay(cfg config, set settings) (*relay.Relay, error) {
	slot := cfg.Relay.Slot
	switch slot {
	case "":
		slot = "rideau"
	case "none":
		slot = ""
	}
	r, err := relay.New(relay.Config{
		Upstream:   cfg.Relay.Upstream,
		Dir:        cfg.Relay.Dir,
		Listen:     cfg.Relay.Listen,
		Slot:       slot,
		Name:       cfg.Relay.Name,
		Keep:       set.keep,
		Access:     set.access,
		TLS:        set.tls,
		ForwardSQL: cfg.Relay.ForwardSQL == nil || *cfg.Relay.ForwardSQL,
		Log:        set.log,
	})
	if err != nil { // it looked at cfg and at nothing else
		words := explain(err)
		return nil, &usageError{err: errors.New(words.message), hint: words.hint}
	}
	return r, nil
}

// gcPercent is how much garbage the daemon lets lie, of what it uses. Most of
// that are chunks of WAL of 1 MB, which some standby still reads when they leave
// the window: with the usual 100, and 50 standbys, it had 101 MB, with 25 it has 77.
// There is little to collect, and none of it per message, so that costs nothing.
const gcPercent = 25

// serve runs what cfg asks for until ctx is cancelled, then stops it in order.
func serve(ctx context.Context, cfg config, stderr io.Writer) error {
	set, err := cfg.resolve(stderr)
	if err != nil {
		return err
	}
	for _, w := range set.warnings {
		set.log.Warn(w)
	}
	r, err := newRelay(cfg, set)
	if err != nil {
		return err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		err := watch(done, cfg, set.log, r)
		if err != nil {
			cancel() // who cannot be watched should not run unseen
		}
		watched <- err
	}()
	err = r.Run(ctx)
	close(done)
	return cmp.Or(err, <-watched)
}

// watch runs the console beside r until done is closed. It begins once r
// listens: of two relays on one directory, the second is told of the directory
// and not of the port. It ends after r, which may take a while to stop and is
// then looked at most.
func watch(done <-chan struct{}, cfg config, log *slog.Logger, r *relay.Relay) error {
	if cfg.HTTP == "none" {
		return nil
	}
	select {
	case <-r.Ready():
	case <-done:
		return nil
	}
	c, err := console.Listen(console.Config{
		Addr:    cfg.HTTP,
		Status:  func() any { return r.Status() },
		WAL:     r.Archive(),
		Metrics: []prometheus.Collector{r},
		Log:     log,
	})
	if err != nil {
		return err
	}
	log.Info("status and metrics are served", "url", "http://"+c.Addr().String())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-done
		cancel()
	}()
	return c.Run(ctx)
}
