//go:build unix

package pgrepl

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// waitPair is a waitConn and its other end.
func waitPair(t *testing.T) (c net.Conn, peer net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var d net.Dialer
	c, err = waitDial(d.DialContext)(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		peer.Close()
	})
	return c, peer
}

// What the runtime's own connections promise, a waitConn promises.
func TestWaitConn(t *testing.T) {
	t.Run("what is sent arrives, both ways, larger than any buffer", func(t *testing.T) {
		c, peer := waitPair(t)
		const size = 32 << 20
		go func() {
			io.Copy(peer, io.LimitReader(peer, size))
			peer.(*net.TCPConn).CloseWrite()
		}()
		sent := make(chan error, 1)
		go func() {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = byte(i * 7)
			}
			for range size / len(b) {
				if _, err := c.Write(b); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		got, err := io.ReadAll(c)
		if err != nil || len(got) != size {
			t.Fatalf("read %d bytes, %v, want %d", len(got), err, size)
		}
		for i := range got {
			if got[i] != byte(i%(1<<20)*7) {
				t.Fatalf("byte %d is %d", i, got[i])
			}
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})

	// Each ends a wait that is under way, or one that has not begun: the test
	// does not know which, and it must not matter.
	for _, tt := range []struct {
		name string
		end  func(c net.Conn)
		want error
	}{
		{"a deadline that has passed", func(c net.Conn) { c.SetReadDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		{"a deadline that comes", func(c net.Conn) { c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) }, os.ErrDeadlineExceeded},
		{"closing", func(c net.Conn) { c.Close() }, net.ErrClosed},
	} {
		t.Run(tt.name+" ends a read", func(t *testing.T) {
			for range 50 {
				c, _ := waitPair(t)
				failed := make(chan error)
				go func() {
					_, err := c.Read(make([]byte, 1))
					failed <- err
				}()
				tt.end(c)
				if err := <-failed; !errors.Is(err, tt.want) {
					t.Fatalf("Read failed with %v, want %v", err, tt.want)
				}
			}
		})
	}

	t.Run("a deadline ends a write that nobody reads, and leaves reads alone", func(t *testing.T) {
		c, peer := waitPair(t)
		failed := make(chan error)
		go func() {
			b := make([]byte, 1<<20)
			for {
				if _, err := c.Write(b); err != nil {
					failed <- err
					return
				}
			}
		}()
		c.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Write failed with %v, want a deadline", err)
		}
		if _, err := peer.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("a deadline taken back is none", func(t *testing.T) {
		c, peer := waitPair(t)
		c.SetDeadline(time.Unix(1, 0))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Read failed with %v, want a deadline", err)
		}
		c.SetDeadline(time.Time{})
		peer.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("the other end leaves", func(t *testing.T) {
		c, peer := waitPair(t)
		peer.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("Read failed with %v, want EOF", err)
		}
	})
}

// A server that nobody listens for is told as by the dialer itself.
func TestWaitConnRefused(t *testing.T) {
	want := errors.New("no")
	_, err := waitDial(func(context.Context, string, string) (net.Conn, error) { return nil, want })(t.Context(), "tcp", "x")
	if !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}
