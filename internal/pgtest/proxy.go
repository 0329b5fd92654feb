package pgtest

import (
	"testing"

	"rideau/internal/netproxy"
)

// A Direction of the bytes through a [Proxy].
type Direction = netproxy.Direction

const (
	Up   = netproxy.Up   // from the client to the server
	Down = netproxy.Down // from the server to the client
	Both = netproxy.Both
)

// A Proxy is a [netproxy.Proxy] that ends with the test.
type Proxy struct{ *netproxy.Proxy }

// NewProxy starts a proxy on a port of its own before address upstream, which
// need not answer yet.
func NewProxy(t testing.TB, upstream string) *Proxy {
	t.Helper()
	p, err := netproxy.New(upstream)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return &Proxy{p}
}
