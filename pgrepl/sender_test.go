package pgrepl

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"rideau/wal"
)

// A memorySource is WAL in memory from begin on, which grows, and then ends
// with err.
type memorySource struct {
	mu      sync.Mutex
	begin   wal.LSN
	data    []byte
	err     error
	changed chan struct{}
}

func newSource(begin wal.LSN, data string) *memorySource {
	return &memorySource{begin: begin, data: []byte(data), changed: make(chan struct{}, 1)}
}

func (m *memorySource) Read(lsn wal.LSN, limit int) ([]byte, wal.LSN, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	end := m.begin + wal.LSN(len(m.data))
	if lsn >= end {
		return nil, end, m.err
	}
	data := m.data[lsn-m.begin:]
	return data[:min(len(data), limit)], end, nil
}

func (m *memorySource) Changed() <-chan struct{} { return m.changed }

func (m *memorySource) grow(data string, err error) {
	m.mu.Lock()
	m.data, m.err = append(m.data, data...), err
	m.mu.Unlock()
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// A standby is the client's end of a stream.
type standby struct {
	*rawConn
	s    *Session
	done chan error // what Stream returned
}

// stream starts a stream in a synctest bubble and reads the answer to
// START_REPLICATION.
func startStream(t *testing.T, ctx context.Context, cfg StreamConfig) *standby {
	t.Helper()
	c, s := newSession(t, nil)
	st := &standby{c, s, make(chan error, 1)}
	go func() { st.done <- s.Stream(ctx, cfg) }()
	c.wantBytes([]byte{'W', 0, 0, 0, 7, 0, 0, 0}) // as captured from 13 to 18
	return st
}

// wantWAL reads one 'w'.
func (c *standby) wantWAL(start wal.LSN, data string, end wal.LSN) {
	c.t.Helper()
	msg := c.copyData()
	want := fmt.Sprintf("%c%s%s", tagWAL, be64(uint64(start)), be64(uint64(end)))
	if len(msg) != walHeaderLen+len(data) || string(msg[:17]) != want || string(msg[walHeaderLen:]) != data {
		c.t.Fatalf("server sent %q, want %q, a time, %q", msg, want, data)
	}
	if got := fromPgTime(binary.BigEndian.Uint64(msg[17:])); !got.Equal(time.Now().Truncate(time.Microsecond)) {
		c.t.Errorf("WAL sent at %v, want %v", got, time.Now())
	}
}

// wantKeepalive reads one 'k'.
func (c *standby) wantKeepalive(pos wal.LSN, reply bool) {
	c.t.Helper()
	msg := c.copyData()
	want := fmt.Sprintf("%c%s%s%c", tagKeepalive, be64(uint64(pos)), be64(pgTime(time.Now())), boolByte(reply))
	if string(msg) != want {
		c.t.Fatalf("server sent %q, want keepalive %q", msg, want)
	}
}

func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func (c *standby) copyData() []byte {
	c.t.Helper()
	msg, ok := c.receive().(*pgproto3.CopyData)
	if !ok {
		c.t.Fatalf("server sent something else than CopyData")
	}
	return msg.Data
}

func (c *standby) report(write, flush, apply wal.LSN, reply bool) {
	c.t.Helper()
	s := Status{Write: write, Flush: flush, Apply: apply, Time: time.Now(), ReplyRequested: reply}
	c.send(&pgproto3.CopyData{Data: s.AppendTo(nil)})
}

// wantNext makes sure that the session takes another command.
func (c *standby) wantNext() {
	c.t.Helper()
	if err := <-c.done; err != nil {
		c.t.Fatalf("Stream: %v, want nil", err)
	}
	go func() {
		cmd, err := c.s.ReadCommand(context.Background())
		if err == nil {
			if _, ok := cmd.(IdentifySystem); !ok {
				err = fmt.Errorf("got %T", cmd)
			} else {
				err = c.s.ReplySystem(System{ID: 1, TLI: 2, Pos: 3})
			}
		}
		c.done <- err
	}()
	c.send(&pgproto3.Query{String: "IDENTIFY_SYSTEM"})
	if m, ok := c.receive().(*pgproto3.RowDescription); !ok || len(m.Fields) != 4 {
		c.t.Fatalf("server sent %+v, want the columns of IDENTIFY_SYSTEM", m)
	}
	c.receive()
	c.receive()
	c.receive()
	if err := <-c.done; err != nil {
		c.t.Fatal(err)
	}
}

func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func TestStreamSendsWhatComes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		src := newSource(0x1000000, "first")
		var sent []wal.LSN
		st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x1000000, Source: src,
			OnSent: func(lsn wal.LSN) { sent = append(sent, lsn) }})
		st.wantWAL(0x1000000, "first", 0x1000005)
		src.grow("second", nil)
		st.wantWAL(0x1000005, "second", 0x100000B)
		src.grow("third", nil)
		st.wantWAL(0x100000B, "third", 0x1000010)
		synctest.Wait()
		if want := []wal.LSN{0x1000005, 0x100000B, 0x1000010}; !slices.Equal(sent, want) {
			t.Errorf("sent up to %v, want %v", sent, want)
		}
		st.conn.Close()
		if err := <-st.done; !errors.Is(err, io.EOF) {
			t.Errorf("Stream: %v, want io.EOF", err)
		}
	})
}

// One message holds 128 KiB at most, and what is left follows at once.
func TestStreamSplitsAtMaxWALMessage(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		data := bytes.Repeat([]byte("x"), MaxWALMessage+8192)
		start := time.Now()
		st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x1000000, Source: newSource(0x1000000, string(data))})
		st.wantWAL(0x1000000, string(data[:MaxWALMessage]), 0x1000000+wal.LSN(len(data)))
		st.wantWAL(0x1000000+MaxWALMessage, string(data[MaxWALMessage:]), 0x1000000+wal.LSN(len(data)))
		if took := time.Since(start); took != 0 {
			t.Errorf("took %v", took)
		}
	})
}

func TestStreamReports(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		var got []string
		st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x1000000, Source: newSource(0x1000000, ""),
			OnStatus:   func(s Status) { got = append(got, fmt.Sprint(s.Write, s.Flush, s.Apply)) },
			OnFeedback: func(f Feedback) { got = append(got, fmt.Sprint(f.Xmin, f.CatalogXmin)) }})
		st.report(0x1000003, 0x1000002, 0x1000001, false)
		st.send(&pgproto3.CopyData{Data: Feedback{Xmin: 1<<32 | 742, CatalogXmin: 0}.AppendTo(nil, time.Now())})
		synctest.Wait()
		if want := []string{"0/1000003 0/1000002 0/1000001", "4294968038 0"}; !slices.Equal(got, want) {
			t.Errorf("heard %q, want %q", got, want)
		}
		// Asked for a reply, the server answers at once and asks for none.
		st.report(0x1000003, 0x1000003, 0x1000001, true)
		st.wantKeepalive(0x1000000, false)
	})
}

// A walsender asks for a reply after half of wal_sender_timeout, and gives the
// standby up after all of it.
func TestStreamDropsSilentStandby(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		start := time.Now()
		st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x1000000, Source: newSource(0x1000000, ""), Timeout: time.Minute})
		st.wantKeepalive(0x1000000, true)
		if got := time.Since(start); got != 30*time.Second {
			t.Errorf("asked for a reply after %v, want 30s", got)
		}
		st.wantEOF() // and no second question
		var timeout *TimeoutError
		if err := <-st.done; !errors.As(err, &timeout) || timeout.Peer != "standby1" || timeout.Timeout != time.Minute {
			t.Errorf("Stream: %v, want a TimeoutError for standby1", err)
		}
		if got := time.Since(start); got != time.Minute {
			t.Errorf("gave up after %v, want 1m", got)
		}
	})
}

// A standby that answers lives, and one that reports by itself is not asked.
func TestStreamKeepsStandbyThatAnswers(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		start := time.Now()
		st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x1000000, Source: newSource(0x1000000, ""), Timeout: time.Minute})
		for i := range 5 {
			st.wantKeepalive(0x1000000, true)
			if got, want := time.Since(start), time.Duration(i+1)*30*time.Second; got != want {
				t.Fatalf("question %d after %v, want %v", i+1, got, want)
			}
			st.report(0x1000000, 0x1000000, 0, false)
		}
		time.Sleep(29 * time.Second)
		st.report(0x1000000, 0x1000000, 0, false)
		st.wantKeepalive(0x1000000, true)
		if got := time.Since(start); got != 209*time.Second {
			t.Errorf("asked after %v, want 3m29s: 30s after the last report", got)
		}
	})
}

// A standby that takes no data cannot hold the server beyond the timeout.
func TestStreamDropsStuckStandby(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		start := time.Now()
		st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x1000000, Source: newSource(0x1000000, "unread"), Timeout: time.Minute})
		var timeout *TimeoutError
		if err := <-st.done; !errors.As(err, &timeout) {
			t.Errorf("Stream: %v, want a TimeoutError", err)
		}
		if got := time.Since(start); got != time.Minute {
			t.Errorf("gave up after %v, want 1m", got)
		}
	})
}

// A standby that takes no data for long but goes on reporting is slow, not
// lost; its reports are heard while the write waits, and the stream is whole.
func TestStreamWaitsForSlowStandby(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		heard := make(chan Status, 10)
		src := newSource(0x1000000, "a large amount of WAL")
		st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x1000000, Source: src, Timeout: time.Minute,
			OnStatus: func(s Status) { heard <- s }})
		for range 5 {
			time.Sleep(50 * time.Second)
			st.report(0x1000000, 0x1000000, 0, false)
			<-heard
		}
		msg := st.copyData()
		if got := string(msg[walHeaderLen:]); got != "a large amount of WAL" {
			t.Errorf("server sent %q", got)
		}
	})
}

// The end of a timeline, byte for byte as servers of 13 to 18 send it.
func TestStreamEndOfTimeline(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		src := newSource(0x3000000, "the last of it")
		src.err = &EndOfTimeline{TLI: 1, Next: 2, LSN: 0x300000E}
		st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x3000000, Source: src})
		st.wantWAL(0x3000000, "the last of it", 0x300000E)
		st.wantBytes([]byte{'c', 0, 0, 0, 4})
		st.report(0x300000E, 0x300000E, 0, true) // what was under way is still heard, and not answered
		st.send(&pgproto3.CopyDone{})
		st.wantBytes(endOfTimelineBytes("2", "0/300000E"))
		st.wantNext()
	})
}

// endOfTimelineBytes is T D C C Z.
func endOfTimelineBytes(tli, pos string) []byte {
	var b bytes.Buffer
	message := func(typ byte, body string) {
		b.WriteByte(typ)
		b.Write(binary.BigEndian.AppendUint32(nil, uint32(4+len(body))))
		b.WriteString(body)
	}
	column := func(name, oid, size string) string {
		return name + "\x00" + "\x00\x00\x00\x00" + "\x00\x00" + oid + size + "\xff\xff\xff\xff" + "\x00\x00"
	}
	value := func(v string) string {
		return string(binary.BigEndian.AppendUint32(nil, uint32(len(v)))) + v
	}
	message('T', "\x00\x02"+column("next_tli", "\x00\x00\x00\x14", "\x00\x08")+column("next_tli_startpos", "\x00\x00\x00\x19", "\xff\xff"))
	message('D', "\x00\x02"+value(tli)+value(pos))
	message('C', "START_STREAMING\x00")
	message('C', "START_REPLICATION\x00")
	message('Z', "I")
	return b.Bytes()
}

// A standby that has the whole of a historic timeline is told so in COPY mode,
// which pg_receivewal needs.
func TestStreamFromSwitchPoint(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		src := newSource(0x3000000, "")
		src.err = &EndOfTimeline{TLI: 1, Next: 2, LSN: 0x3000000}
		st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x3000000, Source: src})
		st.wantBytes([]byte{'c', 0, 0, 0, 4})
		st.send(&pgproto3.CopyDone{})
		st.wantBytes(endOfTimelineBytes("2", "0/3000000"))
		st.wantNext()
	})
}

// The client may leave first: pg_receivewal when it is told to stop.
func TestStreamEndedByClient(t *testing.T) {
	complete := []byte("C\x00\x00\x00\x14START_STREAMING\x00" + "C\x00\x00\x00\x16START_REPLICATION\x00" + "Z\x00\x00\x00\x05I")
	for _, tt := range []struct {
		name string
		next *EndOfTimeline
		want []byte
	}{
		{"on the current timeline", nil, complete},
		{"on a historic one", &EndOfTimeline{TLI: 1, Next: 3, LSN: 0x5000000}, endOfTimelineBytes("3", "0/5000000")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x3000000, Source: newSource(0x3000000, ""), Next: tt.next})
				st.send(&pgproto3.CopyDone{})
				st.wantBytes([]byte{'c', 0, 0, 0, 4})
				st.wantBytes(tt.want)
				st.wantNext()
			})
		})
	}
}

// A stopping server sends all it has, asks, and leaves when the standby has
// it on disk.
func TestStreamShutdown(t *testing.T) {
	for _, tt := range []struct {
		name string
		stop func(src *memorySource, cancel func())
	}{
		{"cancelled", func(src *memorySource, cancel func()) { cancel() }},
		{"by its source", func(src *memorySource, cancel func()) { src.grow("", ErrShutdown) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				src := newSource(0x1000000, "all")
				st := startStream(t, ctx, StreamConfig{TLI: 1, Start: 0x1000000, Source: src, Timeout: time.Minute})
				synctest.Wait() // the server waits in its write
				tt.stop(src, cancel)
				st.wantWAL(0x1000000, "all", 0x1000003)
				st.wantKeepalive(0x1000003, true)
				st.report(0x1000003, 0x1000001, 0, false) // written, not flushed
				st.wantKeepalive(0x1000003, true)
				st.report(0x1000003, 0x1000003, 0, false)
				st.wantBytes([]byte("C\x00\x00\x00\x0bCOPY 0\x00"))
				st.conn.Close()
				if err := <-st.done; !errors.Is(err, ErrShutdown) {
					t.Errorf("Stream: %v, want ErrShutdown", err)
				}
			})
		})
	}
	t.Run("of a receiver that flushes nothing", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			st := startStream(t, ctx, StreamConfig{TLI: 1, Start: 0x1000000, Source: newSource(0x1000000, "all")})
			st.wantWAL(0x1000000, "all", 0x1000003)
			st.report(0x1000003, 0, 0, false) // pg_receivewal
			synctest.Wait()
			cancel()
			st.wantBytes([]byte("C\x00\x00\x00\x0bCOPY 0\x00"))
			st.wantEOF() // we need not hang up first
			if err := <-st.done; !errors.Is(err, ErrShutdown) {
				t.Errorf("Stream: %v, want ErrShutdown", err)
			}
		})
	})
	t.Run("of a standby that confirms nothing", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			st := startStream(t, ctx, StreamConfig{TLI: 1, Start: 0x1000000, Source: newSource(0x1000000, ""), Timeout: time.Minute})
			st.wantKeepalive(0x1000000, true)
			st.wantEOF()
			var timeout *TimeoutError
			if err := <-st.done; !errors.As(err, &timeout) {
				t.Errorf("Stream: %v, want a TimeoutError", err)
			}
		})
	})
	t.Run("Close ends the wait", func(t *testing.T) {
		inBubble(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			st := startStream(t, ctx, StreamConfig{TLI: 1, Start: 0x1000000, Source: newSource(0x1000000, "")})
			st.wantKeepalive(0x1000000, true)
			st.s.Close()
			if err := <-st.done; err == nil {
				t.Error("Stream: nil, want an error")
			}
		})
	})
}

// A standby ahead of us waits, in COPY mode, until we are where it is.
func TestStreamFromAhead(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		src := newSource(0x1000000, "behind")
		start := time.Now()
		st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x1000009, Source: src, Timeout: time.Minute})
		st.wantKeepalive(0x1000009, true)
		if got := time.Since(start); got != 30*time.Second {
			t.Errorf("keepalive after %v, want 30s", got)
		}
		st.report(0x1000009, 0x1000009, 0x1000009, false)
		src.grow(" no more", nil)
		st.wantWAL(0x1000009, " more", 0x100000E)
	})
}

// An error of the source is the client's to hear, and the session goes on,
// whatever the client was still sending.
func TestStreamError(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		src := newSource(0x1000000, "")
		st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x1000000, Source: src, Timeout: time.Minute})
		const gone = "requested WAL segment 000000010000000000000001 has already been removed"
		src.grow("", Errorf("58P01", gone))
		st.wantError("58P01", gone)
		st.want(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		if err := <-st.done; err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // no timeout is left behind
		st.done <- nil
		go func() { // a pipe holds nothing: ReadCommand must be there to read it
			st.report(0, 0, 0, true)
			st.send(&pgproto3.CopyDone{})
		}()
		st.wantNextAfterNoise()
	})
}

// wantNextAfterNoise is wantNext where messages of the stream are under way.
func (c *standby) wantNextAfterNoise() {
	c.t.Helper()
	<-c.done
	go func() {
		_, err := c.s.ReadCommand(context.Background())
		c.done <- err
	}()
	synctest.Wait()
	c.send(&pgproto3.Query{String: "IDENTIFY_SYSTEM"})
	if err := <-c.done; err != nil {
		c.t.Errorf("ReadCommand: %v", err)
	}
}

// Half a report may have come when the stream ends in an error; the rest of
// it follows, and is not taken for a command.
func TestStreamErrorInsideReport(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		src := newSource(0x1000000, "")
		st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x1000000, Source: src})
		msg, err := (&pgproto3.CopyData{Data: Status{Write: 1}.AppendTo(nil)}).Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		st.conn.Write(msg[:20])
		synctest.Wait()
		src.grow("", Errorf("XX000", "broken"))
		st.wantError("XX000", "broken")
		st.want(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		go func() { st.conn.Write(msg[20:]) }()
		st.wantNextAfterNoise()
	})
}

// What no standby sends ends the session.
func TestStreamRefuses(t *testing.T) {
	tests := []struct {
		name, msg     string
		code, message string // of FATAL; none: hang up
	}{
		{"a query", "Q\x00\x00\x00\x05\x00", "08P01", `invalid standby message type "Q"`},
		{"an unknown report", "d\x00\x00\x00\x05z", "", ""},
		{"an empty one", "d\x00\x00\x00\x04", "", ""},
		{"a short one", "d\x00\x00\x00\x06r1", "", ""},
		{"a length that is none", "d\x00\x00\x00\x03", "", ""},
		{"a long one", "d\x00\x10\x00\x00r", "", ""},
		{"Terminate", "X\x00\x00\x00\x04", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				st := startStream(t, t.Context(), StreamConfig{TLI: 1, Start: 0x1000000, Source: newSource(0x1000000, "")})
				st.conn.Write([]byte(tt.msg))
				if tt.code != "" {
					st.wantFatal(tt.code, tt.message)
				} else {
					st.wantEOF()
				}
				if err := <-st.done; err == nil {
					t.Error("Stream: nil, want an error")
				}
			})
		})
	}
}

// An endlessSource always has more.
type endlessSource struct{ data []byte }

func (e endlessSource) Read(lsn wal.LSN, limit int) ([]byte, wal.LSN, error) {
	return e.data[:limit], lsn + wal.LSN(limit), nil
}

func (e endlessSource) Changed() <-chan struct{} { return nil }

// Over TCP one message is one system call and no allocation. Each operation is
// one message of 128 KiB.
func BenchmarkStream(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	server, err := ln.Accept()
	if err != nil {
		b.Fatal(err)
	}
	go client.Write(startupPacket(protocol30, map[string]string{"user": "standby", "replication": "true"}))
	s, err := Accept(b.Context(), server, &ServerConfig{Params: params15})
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	done := make(chan error, 1)
	finished := make(chan struct{})
	b.SetBytes(MaxWALMessage)
	b.ReportAllocs()
	b.ResetTimer()
	go func() {
		done <- s.Stream(context.Background(), StreamConfig{TLI: 1, Start: 0x1000000, Source: endlessSource{make([]byte, MaxWALMessage)},
			Timeout: time.Minute,
			OnSent: func(wal.LSN) {
				if n++; n == b.N {
					close(finished)
				}
			}})
	}()
	go io.Copy(struct{ io.Writer }{io.Discard}, client)
	<-finished
	b.StopTimer()
	client.Close()
	<-done
}

// TLS is another way of writing, and of being interrupted while reading: an
// error of the source must leave the connection whole, half a report included.
func TestStreamOverTLS(t *testing.T) {
	config := newCertificates(t).server
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan acceptResult, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			accepted <- acceptResult{nil, err}
			return
		}
		s, err := Accept(context.Background(), conn, &ServerConfig{TLS: config, Params: params15})
		accepted <- acceptResult{s, err}
	}()
	c := dialRaw(t, &testServer{port: ln.Addr().(*net.TCPAddr).Port})
	c.startTLS()
	c.startup(map[string]string{"user": "standby", "replication": "true"})
	c.keyData()
	c.want(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	r := <-accepted
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer r.s.Close()

	data := make([]byte, 3*MaxWALMessage+100)
	for i := range data {
		data[i] = byte(i >> 7)
	}
	src := newSource(0x1000000, string(data))
	heard := make(chan Status, 1)
	done := make(chan error, 1)
	go func() {
		done <- r.s.Stream(context.Background(), StreamConfig{TLI: 1, Start: 0x1000000, Source: src, Timeout: time.Minute,
			OnStatus: func(s Status) { heard <- s }})
	}()
	c.wantBytes([]byte{'W', 0, 0, 0, 7, 0, 0, 0})
	var got []byte
	for len(got) < len(data) {
		msg := c.receive().(*pgproto3.CopyData).Data
		if start := binary.BigEndian.Uint64(msg[1:]); start != uint64(0x1000000+len(got)) {
			t.Fatalf("message begins at %s, want %s", wal.LSN(start), wal.LSN(0x1000000+len(got)))
		}
		got = append(got, msg[walHeaderLen:]...)
	}
	if !bytes.Equal(got, data) {
		t.Error("the WAL that came is not the WAL that was sent")
	}

	// A whole report and the first half of another, each TLS record on its own.
	msg, err := (&pgproto3.CopyData{Data: Status{Write: 0x1000001}.AppendTo(nil)}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	c.conn.Write(msg)
	<-heard
	c.conn.Write(msg[:20])
	src.grow("", Errorf("XX000", "broken"))
	c.wantError("XX000", "broken")
	c.want(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	c.conn.Write(msg[20:])
	c.send(&pgproto3.Query{String: "IDENTIFY_SYSTEM"})
	if cmd, err := r.s.ReadCommand(context.Background()); err != nil {
		t.Error(err)
	} else if _, ok := cmd.(IdentifySystem); !ok {
		t.Errorf("read %T", cmd)
	}
}
