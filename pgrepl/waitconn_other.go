//go:build !unix

package pgrepl

import "github.com/jackc/pgx/v5/pgconn"

// waitDial is dial: see waitconn.go for what it is elsewhere.
func waitDial(dial pgconn.DialFunc) pgconn.DialFunc { return dial }
