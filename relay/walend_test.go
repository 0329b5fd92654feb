package relay

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"

	"rideau/internal/pgtest"
)

// A server, or what stands before it, that does not say how far it is is believed
// to be where its WAL ends: commits do not wait for more.
func TestServerEndUnknown(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", primary.Addr())
			if err != nil {
				c.Close()
				continue
			}
			go func() { io.Copy(s, c); s.Close() }()
			go func() { copyWithoutEnd(c, s); c.Close() }()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	r := runTestRelay(t, Config{Upstream: fmt.Sprintf("host=127.0.0.1 port=%s user=postgres sslmode=disable", port), Slot: "rideau"})
	primary.Exec("CREATE TABLE t ()")
	end := primary.LSN()
	pgtest.Wait(t, "the relay to have it", func() (bool, string) {
		pos, _ := r.Position()
		return pos.Complete >= end, fmt.Sprintf("%+v of %s", pos, end)
	})
}

// copyWithoutEnd copies what a server says, with walEnd of XLogData made zero.
func copyWithoutEnd(dst io.Writer, src io.Reader) {
	in := bufio.NewReader(src)
	for {
		head := make([]byte, 5)
		if _, err := io.ReadFull(in, head); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		if head[0] == 'd' && len(body) > 25 && body[0] == 'w' {
			clear(body[9:17])
		}
		if _, err := dst.Write(append(head, body...)); err != nil {
			return
		}
	}
}
