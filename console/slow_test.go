package console

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener for connections within this process, whose deadlines
// follow the fake clock of synctest.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// A segment may take its time over a slow line, as long as something moves; a
// client that takes nothing is given up. The minutes are fake.
func TestSlowReaders(t *testing.T) {
	tests := []struct {
		name  string
		pause time.Duration // before each eighth of the segment
		whole bool
	}{
		{"slow but alive, for minutes", 25 * time.Second, true},
		{"silent for longer than we wait", 35 * time.Second, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := testConfig()
				handler, err := newHandler(cfg)
				if err != nil {
					t.Fatal(err)
				}
				listener := make(pipes)
				c := &Console{listener: listener, server: newServer(handler, cfg.Log)}
				go c.server.Serve(listener)
				ours, theirs := net.Pipe()
				listener <- theirs
				if _, err := io.WriteString(ours, "GET /wal/"+segment+" HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
					t.Fatal(err)
				}
				answer, err := http.ReadResponse(bufio.NewReaderSize(ours, 16), nil)
				if err != nil {
					t.Fatal(err)
				}
				var got strings.Builder
				for range 8 {
					<-time.After(tt.pause)
					if _, err = io.CopyN(&got, answer.Body, 1<<17); err != nil {
						break
					}
				}
				if whole := got.Len() == 1<<20; whole != tt.whole {
					t.Errorf("got %d bytes (%v), want all: %v", got.Len(), err, tt.whole)
				}
				ours.Close()
				close(listener)
				c.server.Close()
			})
		})
	}
}
