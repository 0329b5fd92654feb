package main

import (
	"github.com/spf13/cobra"
)

const relayHelp = `Usage: rideau relay CONNINFO DIR [options]

Receives WAL from the PostgreSQL server at CONNINFO, as a standby would,
keeps it in DIR, and serves it to any number of standbys, as a primary
would. The server then pays for one standby, however many there are.

WAL is reported to the server as flushed only once it is on the relay's disk,
so a relay named in synchronous_standby_names keeps commits as safe as a
standby does. It replays nothing itself: what it reports as applied is what
its standbys have applied.

Options:
    --listen ADDR        Serve standbys at ADDR, a host:port or the directory
                         of a Unix socket; repeatable. Default localhost:5433.
    --slot NAME          Use this replication slot, created if needed. Default
                         rideau; none for no slot: the server may then remove
                         WAL that the relay has not received.
    --name NAME          The relay's application_name, for the server's
                         synchronous_standby_names. Default rideau.
    --keep SIZE|AGE      Keep so much WAL (20GB, 7d). Default all.
    --hba FILE           Who may connect, as in pg_hba.conf. Default: loopback
                         is trusted, all others are refused.
    --users FILE         Lines "NAME VERIFIER": see rideau password --help.
    --tls-cert FILE      Offer TLS with this certificate, and
    --tls-key FILE       this key.
    --tls-ca FILE        Ask clients for a certificate signed by this.
    --no-forward-sql     Refuse ordinary SQL connections. They are otherwise
                         passed on to the server that WAL comes from.
    --http ADDR          Serve /status and /metrics. Default localhost:5480;
                         none for neither.
    --log FORMAT         text or json, on standard error. Default text.
    --log-level LEVEL    debug, info, warn or error. Default info.

An interrupt (SIGINT, SIGTERM) stops the relay once its standbys have all the
WAL it holds. A second interrupt stops it at once. No WAL is lost either way.

Example:
    $ rideau relay 'host=db1 user=replicator' relay1/
    $ psql 'host=localhost port=5433 replication=yes' -c IDENTIFY_SYSTEM
`

func newRelayCommand() *cobra.Command {
	var flags daemonFlags
	cmd := newCommand("relay CONNINFO DIR [options]", relayHelp, func(cmd *cobra.Command, args []string) error {
		err := arguments(cmd, args,
			[2]string{"CONNINFO", "connection string of the server WAL comes from"},
			[2]string{"DIR", "directory to keep WAL in"})
		if err != nil {
			return err
		}
		cfg := config{Relay: relayConfig{Upstream: args[0], Dir: args[1]}}
		if err := flags.override(cmd, &cfg); err != nil {
			return err
		}
		return serve(cmd.Context(), cfg, cmd.ErrOrStderr())
	})
	flags.register(cmd)
	return cmd
}
