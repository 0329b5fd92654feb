package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"rideau/internal/netproxy"
	"rideau/internal/pgserver"
)

// A line is a network that is not loopback: a proxy in this process.
type line struct {
	name string
	set  func(*netproxy.Proxy)
}

// The two ways in which a server is far away. A delay alone costs nobody
// bandwidth here, who does not wait for answers; between real machines the
// windows of TCP make of it a rate for each connection, which is the second.
var farLines = []line{
	{"5 ms", func(p *netproxy.Proxy) { p.Delay(netproxy.Both, 5*time.Millisecond) }},
	{"50 MB/s a connection", func(p *netproxy.Proxy) { p.Rate(50e6) }},
}

// over is the connection string of s by way of p.
func over(p *netproxy.Proxy, s *pgserver.Server) string {
	host, port, _ := net.SplitHostPort(p.Addr())
	return s.Conninfo(fmt.Sprintf("host=%s port=%s", host, port))
}

// A smaller database than backup's, for a line is slow.
func (b *bench) lineScale() int { return max(1, b.cfg.BackupScale/4) }

// backupFar is backup over a longer line: 5 ms each way, or 50 MB/s for each
// connection. Proxy, server and client share the processors.
func (b *bench) backupFar(ctx context.Context) (err error) {
	s, err := b.filled(ctx, "backupfar", b.lineScale())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	mb, _, err := dataMB(s)
	if err != nil {
		return err
	}
	for _, l := range farLines {
		figure := "backup, " + l.name
		err := b.overLine(ctx, s, l, func(conninfo string) error {
			list := []copyist{b.rideauBackup(s, "rideau", conninfo), b.pgBasebackup(s, conninfo)}
			return b.turns(ctx, figure, s, list, func(who string, c copied) {
				b.results.add(figure, who, "MB/s", mb/c.took.Seconds())
			})
		})
		if err != nil {
			return err
		}
		b.results.compare(figure, "rideau", "pg_basebackup", 2.5)
	}
	return nil
}

// overLine gives f a connection string of s over a line.
func (b *bench) overLine(ctx context.Context, s *pgserver.Server, l line, f func(conninfo string) error) error {
	p, err := netproxy.New(s.Addr())
	if err != nil {
		return err
	}
	defer p.Close()
	l.set(p)
	return f(over(p, s))
}

const backupSlowFigure = "backup, 20 MB/s in all"

// backupSlow is what compression on the server brings over a line of 20 MB/s
// that all connections share: --compress=auto beside --compress=none, with
// pgcrypto on the server, and beside --compress=pgcrypto, which need not find
// out. pgbench's rows are mostly blanks, so there is another database too, half
// of which is a table of random hexadecimal digits, of which compression makes
// half at best.
func (b *bench) backupSlow(ctx context.Context) error {
	if err := b.overSlowLine(ctx, backupSlowFigure, false, 2); err != nil {
		return err
	}
	return b.overSlowLine(ctx, backupSlowFigure+", half of it random digits", true, 0)
}

// overSlowLine is for one database: mixed or pgbench's own.
func (b *bench) overSlowLine(ctx context.Context, figure string, mixed bool, goal float64) (err error) {
	scale := max(1, b.lineScale()/4)
	s, err := b.filled(ctx, "backupslow", scale)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Remove()) }()
	// A unit of pgbench's scale is about 15 MB; so are these rows.
	_, err = s.Query(ctx, "CREATE EXTENSION pgcrypto")
	if err == nil && mixed {
		_, err = s.Query(ctx, fmt.Sprintf("CREATE TABLE digits AS SELECT md5(i::text) || md5((-i)::text) AS a FROM generate_series(1, %d) i", scale*150000))
	}
	if err == nil {
		err = b.quiet(ctx, s)
	}
	if err != nil {
		return err
	}
	mb, _, err := dataMB(s)
	if err != nil {
		return err
	}
	l := line{"20 MB/s in all", func(p *netproxy.Proxy) { p.RateAll(20e6) }}
	err = b.overLine(ctx, s, l, func(conninfo string) error {
		list := []copyist{
			b.rideauBackup(s, "--compress=auto", conninfo, "--compress", "auto"),
			b.rideauBackup(s, "--compress=pgcrypto", conninfo, "--compress", "pgcrypto"),
			b.rideauBackup(s, "--compress=none", conninfo, "--compress", "none"),
			b.pgBasebackup(s, conninfo),
		}
		return b.turns(ctx, "backupslow", s, list, func(who string, c copied) {
			b.results.add(figure, who, "MB/s", mb/c.took.Seconds())
			if who != "pg_basebackup" {
				b.results.add(figure+", received", who, "MB", float64(c.report.Received)/1e6)
			}
			b.results.add(figure+", server's CPU a GB", who, "s", c.server.Seconds()/mb*1000)
		})
	})
	if err != nil {
		return err
	}
	b.results.compare(figure, "--compress=auto", "--compress=none", goal)
	b.results.compare(figure, "--compress=auto", "--compress=pgcrypto", 0)
	b.results.compare(figure, "--compress=auto", "pg_basebackup", 0)
	b.results.compareLess(figure+", received", "--compress=auto", "--compress=none")
	return nil
}
