package demo

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// retryEvery is how long a client waits before it looks for a primary again.
const retryEvery = 50 * time.Millisecond

// hosts are the hosts and ports of several servers in one connection string.
func hosts(ports ...int) string {
	names, numbers := make([]string, len(ports)), make([]string, len(ports))
	for i, port := range ports {
		names[i], numbers[i] = "127.0.0.1", fmt.Sprint(port)
	}
	return fmt.Sprintf("host=%s port=%s", strings.Join(names, ","), strings.Join(numbers, ","))
}

// clients write rows, one a transaction, to whichever of the servers is the
// primary. They are never told which.
type clients struct {
	conninfo string
	ledger   *ledger
	wg       sync.WaitGroup
	quit     chan struct{}
	once     sync.Once
}

func startClients(ctx context.Context, n int, ports []int, l *ledger) *clients {
	c := &clients{
		// TLS would only stand in the way of seeing what happens.
		conninfo: hosts(ports...) + " user=postgres dbname=postgres sslmode=disable connect_timeout=5 target_session_attrs=read-write application_name=client",
		ledger:   l, quit: make(chan struct{}),
	}
	for range n {
		c.wg.Go(func() { c.run(ctx) })
	}
	return c
}

// stop waits until every client has finished its commit; or, if the context
// that they were started with is done, has given it up.
func (c *clients) stop(ctx context.Context) error {
	c.once.Do(func() { close(c.quit) })
	done := make(chan struct{})
	go func() {
		c.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waited for clients to finish their commits: %w", ctx.Err())
	}
}

func (c *clients) stopped() bool {
	select {
	case <-c.quit:
		return true
	default:
		return false
	}
}

func (c *clients) run(ctx context.Context) {
	config, err := pgx.ParseConfig(c.conninfo)
	if err != nil {
		return // it is ours; nothing would be acknowledged, which does not pass unnoticed
	}
	// A server that stops waiting for its synchronous member, because it is told
	// to, says "committed" with a warning that the commit may be nowhere else.
	// Who cares for his data does not take that for an acknowledgement.
	warned := false
	config.OnNotice = func(*pgconn.PgConn, *pgconn.Notice) { warned = true }
	for ctx.Err() == nil && !c.stopped() {
		warned = false
		if conn, err := pgx.ConnectConfig(ctx, config); err == nil {
			c.write(ctx, conn, &warned)
			conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
		case <-c.quit:
		case <-time.After(retryEvery):
		}
	}
}

// write writes until that fails or warned is set. What failed stays in doubt.
func (c *clients) write(ctx context.Context, conn *pgx.Conn, warned *bool) {
	port := int(conn.Config().Port)
	if addr := conn.PgConn().Conn().RemoteAddr(); addr != nil {
		fmt.Sscanf(addr.String()[strings.LastIndexByte(addr.String(), ':')+1:], "%d", &port)
	}
	for ctx.Err() == nil && !c.stopped() {
		a := attempt{id: c.ledger.begin(), port: port}
		err := conn.QueryRow(ctx, "INSERT INTO ledger (id) VALUES ($1) RETURNING pg_current_xact_id()::text::bigint", a.id).Scan(&a.xid)
		if err != nil || *warned {
			return
		}
		a.acked = time.Now()
		c.ledger.ack(a)
	}
}
