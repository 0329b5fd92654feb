package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"rideau/extension"
	"rideau/extension/depend"
	"rideau/extension/ledger"
	"rideau/extension/registry"
	"rideau/pgrepl"
)

const extensionBootstrapHelp = `Usage: rideau extension bootstrap [options]

Makes functions in a database by which extensions are installed in SQL, from
packages that were put there before (rideau extension upload):

    SELECT * FROM extension.available();
    SELECT extension.install('foo');            -- or ('foo', '1.0', 'schema')
    SELECT extension.upgrade('foo');
    SELECT extension.uninstall('foo');
    SELECT * FROM extension.installed();

They work in the transaction that calls them, with the rights of who calls
them. Only the owner of schema "extension" may, and whom the owner grants it:

    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA extension TO somebody;
    GRANT INSERT, UPDATE, DELETE ON extension.installed, extension.object
        TO somebody;
    GRANT CREATE ON DATABASE app TO somebody;

The last is for the server's own extensions and to make schemas; with a schema
that somebody owns, packages can be installed without it.

What SQL cannot judge (relations to the whole server, files for nodes) it
refuses, and names the command that can. Run it again after an upgrade of
rideau. The schema is dumped by pg_dump, and works when it is restored.

Options:
    -d, --dbname CONNINFO
                      The database, or its name. Default PG*.

Example:
    $ rideau extension bootstrap -d 'host=db1 dbname=app user=app_owner'
`

func newExtensionBootstrapCommand() *cobra.Command {
	var t extensionTarget
	cmd := newCommand("bootstrap [options]", extensionBootstrapHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args); err != nil {
			return err
		}
		return t.transact(cmd, func(tx pgx.Tx) error {
			if err := ledger.Bootstrap(cmd.Context(), tx); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "Extensions can be installed in SQL. Put packages there with rideau extension upload, then: SELECT extension.install('NAME')")
			return err
		})
	})
	cmd.Flags().StringArrayVarP(&t.nodes, "dbname", "d", nil, "")
	return cmd
}

// transact does something in one transaction of the database, alone: others who
// install there are waited for.
func (t *extensionTarget) transact(cmd *cobra.Command, do func(pgx.Tx) error) (err error) {
	if len(t.nodes) > 1 {
		return usageErrorf(cmd, "-d is given %d times, and one is meant: the primary", len(t.nodes))
	}
	ctx := cmd.Context()
	parsed, err := pgrepl.ParseConfig(t.conninfos()[0])
	if err != nil {
		return err
	}
	config, err := pgx.ParseConfig("")
	if err != nil {
		return err
	}
	config.Config = *parsed
	delete(config.RuntimeParams, "replication")
	config.DefaultQueryExecMode = pgx.QueryExecModeDescribeExec
	config.StatementCacheCapacity, config.DescriptionCacheCapacity = 0, 0
	config.OnNotice = func(*pgconn.PgConn, *pgconn.Notice) {}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	// Nothing is found by way of a schema that others can write to (CVE-2018-1058).
	if _, err := conn.Exec(ctx, "SET search_path = pg_catalog, pg_temp; SET standard_conforming_strings = on"); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1::int, $2::int)", ledger.LockClass, ledger.LockKey); err != nil {
			return err
		}
		return do(tx)
	})
}

const extensionUploadHelp = `Usage: rideau extension upload NAME... [options]

Puts packages into a database, where extension.install finds them (rideau
extension bootstrap): the newest version of NAME, or the one of foo=1.0 or
'foo (< 2)', with all packages that it depends on. Their signatures are
checked here. What no registry has must be on the server.

Options:
    -d, --dbname CONNINFO
                      The database, or its name. Default PG*.
    --registry PLACE  Where packages are: see rideau extension install.
    --only            Only those that are named, not what they depend on.
    --json            Print what was uploaded as JSON.

Example:
    $ rideau extension upload foo -d app --registry packages
    $ psql app -c "SELECT extension.install('foo')"
`

func newExtensionUploadCommand() *cobra.Command {
	var t extensionTarget
	var only bool
	cmd := newCommand("upload NAME... [options]", extensionUploadHelp, func(cmd *cobra.Command, args []string) error {
		if err := someNames(cmd, args, "package to upload"); err != nil {
			return err
		}
		wishes, err := parseWishes(cmd, args, "")
		if err != nil {
			return err
		}
		registries, err := t.openRegistries(cmd)
		if err != nil {
			return err
		}
		defer registries.Close()
		up := uploads{from: registries.set, follow: !only, chosen: map[string]bool{}}
		for _, w := range wishes {
			if err := up.choose(cmd.Context(), w, ""); err != nil {
				return err
			}
		}
		return up.put(cmd, &t)
	})
	f := cmd.Flags()
	f.StringArrayVarP(&t.nodes, "dbname", "d", nil, "")
	t.registryFlags(cmd)
	f.BoolVar(&only, "only", false, "")
	return cmd
}

// uploads are the packages that one command puts into a database.
type uploads struct {
	from   registry.Set
	follow bool
	chosen map[string]bool
	list   []upload
	notes  []string
}

type upload struct {
	from    *registry.Registry
	release registry.Release
}

// choose takes the newest version that is wished for, after what it depends on.
// needed names who needs it, "" for what the user named.
func (u *uploads) choose(ctx context.Context, w extension.Wish, needed string) error {
	if u.chosen[w.Name] {
		return nil
	}
	r, name, err := u.from.Find(ctx, w.Name)
	var none *registry.NotFound
	if errors.As(err, &none) && needed != "" {
		u.notes = append(u.notes, fmt.Sprintf("%s is in no registry; %s needs it from the server", w.Name, needed))
		u.chosen[w.Name] = true
		return nil
	} else if err != nil {
		return err
	}
	all, err := r.Versions(ctx, name)
	if err != nil {
		return err
	}
	order := registry.Order(all)
	for i := len(all) - 1; i >= 0; i-- {
		if !w.Range.Allows(all[i].Version, order) {
			continue
		}
		u.chosen[w.Name] = true
		if u.follow {
			for _, alternatives := range all[i].Depends {
				if err := u.chooseOne(ctx, alternatives, name); err != nil {
					return err
				}
			}
		}
		u.list = append(u.list, upload{r, all[i]})
		return nil
	}
	return fmt.Errorf("no version of %s in registry %s is %s", name, r.Name(), w.Range)
}

// chooseOne takes the first of alternatives that a registry has. What is not of
// this database is none of ours.
func (u *uploads) chooseOne(ctx context.Context, alternatives depend.Alternatives, needed string) error {
	for i, rel := range alternatives {
		if rel.Scope != depend.Database {
			return nil
		}
		if _, _, err := u.from.Find(ctx, rel.Name); errors.As(err, new(*registry.NotFound)) && i < len(alternatives)-1 {
			continue
		}
		return u.choose(ctx, extension.Wish{Name: rel.Name, Range: rel.Range}, needed)
	}
	return nil
}

// A noFunctionsError says that a database has no functions to install in SQL.
type noFunctionsError struct{ database string }

func (e *noFunctionsError) Error() string {
	return fmt.Sprintf("database %q has no functions to install packages with", e.database)
}

// An uploadedJSON is a package that was put into a database.
type uploadedJSON struct {
	Name    string   `json:"name"`
	Version string   `json:"version"`
	From    string   `json:"from"`
	SHA256  string   `json:"sha256"`
	Signers []string `json:"signers"`
}

// put uploads all, in one transaction.
func (u *uploads) put(cmd *cobra.Command, t *extensionTarget) error {
	var done []uploadedJSON
	err := t.transact(cmd, func(tx pgx.Tx) error {
		var ready bool
		if err := tx.QueryRow(cmd.Context(), "SELECT to_regprocedure('extension.install(text,text,text)') IS NOT NULL").Scan(&ready); err != nil {
			return err
		}
		if !ready {
			return &noFunctionsError{tx.Conn().Config().Database}
		}
		for _, one := range u.list {
			pkg, err := one.from.Fetch(cmd.Context(), one.release.Name, one.release.Version)
			if err != nil {
				return err
			}
			if err := ledger.Upload(cmd.Context(), tx, pkg, strings.Join(one.release.Signers, ", ")); err != nil {
				return err
			}
			done = append(done, uploadedJSON{one.release.Name, one.release.Version, one.from.Name(), pkg.SHA256, append([]string{}, one.release.Signers...)})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, note := range u.notes {
		fmt.Fprintf(cmd.ErrOrStderr(), "note: %s\n", note)
	}
	if t.asJSON {
		return writeJSON(cmd.OutOrStdout(), done)
	}
	tab := newTable(cmd.OutOrStdout())
	for _, d := range done {
		from := "from " + d.From
		if len(d.Signers) == 0 {
			from += ", unsigned"
		}
		tab.row("uploaded", d.Name, d.Version, from)
	}
	return tab.flush()
}
