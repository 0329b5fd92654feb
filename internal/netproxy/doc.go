// Package netproxy stands before a TCP address and makes the network between
// bad: cut, frozen, slow or narrow.
//
//	client ──▶ Proxy ──▶ upstream
//	        ◀──       ◀──
//	           delay, rate, freeze, cut: each direction, all connections
//
// Tests use it by way of package pgtest; the bench, to measure as if over a
// longer line.
//
// What passes is neither changed nor reordered. A delay takes no bandwidth away:
// up to 16 MB of a connection and direction are held meanwhile. Rates are exact
// to some milliseconds' worth of bytes. It does not know what a packet is: TCP's
// own ways with loss and windows it cannot show.
package netproxy
