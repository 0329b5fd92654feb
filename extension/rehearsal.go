package extension

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/jackc/pgx/v5"
)

// newRehearsal names the folder of a dry run of a session: several may go on at
// once, and who comes later must see whether it has ended.
func newRehearsal(ctx context.Context, conn *pgx.Conn) (string, error) {
	var session string
	err := conn.QueryRow(ctx, "SELECT "+sessionKey+" FROM pg_stat_activity WHERE pid = pg_backend_pid()").Scan(&session)
	return storeName + rehearsalSuffix + "-" + session, err
}

// sessionKey is what no other session of a server has had, or will have.
const sessionKey = "pid || '-' || to_hex((extract(epoch FROM backend_start) * 1000000)::bigint)"

// rehearsals lists the folders of dry runs whose session has ended, and those of
// whose session nothing is known.
func (n *node) rehearsals(ctx context.Context) (stale, unknown []string, err error) {
	rows, err := n.conn.Query(ctx, `
SELECT $1::text || '/' || d, d ~ '-[0-9]+-[0-9a-f]+$'
FROM pg_ls_dir($1::text) d WHERE starts_with(d, $2::text)
AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE d = $2::text || `+sessionKey+`) ORDER BY 1`, n.o.DataDir, storeName+rehearsalSuffix+"-")
	if err != nil {
		return nil, nil, err
	}
	var dir string
	var known bool
	_, err = pgx.ForEachRow(rows, []any{&dir, &known}, func() error {
		if known {
			stale = append(stale, dir)
		} else {
			unknown = append(unknown, dir)
		}
		return nil
	})
	return stale, unknown, err
}

// sweep removes what killed dry runs have left. The lock of the server is held.
func (s *Session) sweep(ctx context.Context) error {
	for _, n := range s.nodes() {
		if !n.o.Role.Superuser || n.o.DataDir == "" {
			continue
		}
		stale, _, err := n.rehearsals(ctx)
		if err != nil {
			return fmt.Errorf("%s: could not look for what dry runs have left: %w", n.o.Node, err)
		}
		for _, dir := range stale {
			s.cfg.Log.Info("removing what a dry run has left", "node", n.o.Node, "folder", dir)
			if err := n.removeFolder(ctx, n.conn, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeFolder removes the folder of a dry run.
func (n *node) removeFolder(ctx context.Context, conn *pgx.Conn, dir string) error {
	if !strings.HasPrefix(path.Base(dir), storeName+rehearsalSuffix+"-") || path.Dir(dir) != path.Clean(n.o.DataDir) {
		return fmt.Errorf("extension: %q is no folder of a rehearsal", dir)
	}
	sql := "COPY (SELECT 1) TO PROGRAM " + quoteLiteral("cat > /dev/null; rm -rf "+shellQuote(dir))
	if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		return fmt.Errorf("could not remove %s at %s: %w", dir, n.o.Node, err)
	}
	return nil
}
