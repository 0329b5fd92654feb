package extension

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/jackc/pgx/v5"

	"rideau/pgrepl"
)

// Upstream says which server the one of the session follows, if that is a standby
// and the role may read its primary_conninfo; else it is "".
func (s *Session) Upstream(ctx context.Context) (string, error) {
	if !s.primary.o.Standby {
		return "", nil
	}
	var conninfo string
	err := s.primary.conn.QueryRow(ctx, "SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'").Scan(&conninfo)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && conninfo == "" {
		return "", nil // it may not be seen, or WAL comes from an archive
	} else if err != nil {
		return "", fmt.Errorf("could not ask %s which server it follows: %w", s.primary.o.Node, err)
	}
	config, err := pgrepl.ParseConfig(conninfo)
	if err != nil {
		return "", nil // the server reads it otherwise, and it is only a hint
	}
	return net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port))), nil
}
