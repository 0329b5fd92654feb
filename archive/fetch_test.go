package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rideau/wal"
)

func TestInventoryFails(t *testing.T) {
	broken := errors.New("input/output error")
	const names = "000000010000000000000001 000000010000000000000002"
	hist := map[string]string{"00000002.history": "1\t0/200100\tx\n"}
	for _, op := range []string{"list 000000010000000000000002", "open 00000002.history", "open 000000010000000000000002"} {
		a, m := archiveOf(t, names, hist)
		m.fail = func(o, name string) error {
			if o+" "+name == op {
				return broken
			}
			return nil
		}
		if _, err := a.Inventory(t.Context()); !errors.Is(err, broken) {
			t.Errorf("where %q fails: Inventory returned %v", op, err)
		}
	}

	// What is removed between listing and looking is no failure.
	a, m := archiveOf(t, names, hist)
	m.fail = func(op, name string) error {
		if op == "open" && name != "000000010000000000000001" {
			return fs.ErrNotExist
		}
		return nil
	}
	inv, err := a.Inventory(t.Context())
	if err != nil || len(inv.Segments) != 2 || inv.SegmentSize != testSize || len(inv.Histories) != 0 || len(inv.Damaged) != 0 {
		t.Errorf("Inventory while files are removed: %+v, %v", inv, err)
	}
}

// source is a Source of one answer.
type source struct {
	text string
	size int64
	err  error // of Open
	read error // instead of the end of the text
}

func (s source) Open(context.Context, string) (io.ReadCloser, int64, error) {
	if s.err != nil {
		return nil, 0, s.err
	}
	var r io.Reader = strings.NewReader(s.text)
	if s.read != nil {
		r = io.MultiReader(r, failing{s.read})
	}
	return io.NopCloser(r), s.size, nil
}

func whole(text string) source { return source{text: text, size: int64(len(text))} }

// What arrives at its place is what was asked for, or nothing does; and only an
// answer that there is no such file looks like one.
func TestFetch(t *testing.T) {
	const name = "000000020000000000000003"
	good := segmentText(testSize, 2, 0x300000)
	broken := errors.New("input/output error")
	var (
		damage *DamageError
		named  *NameError
	)
	tests := []struct {
		why    string
		name   string
		source source
		is     error // what the error is, or
		as     any   // which type it has
	}{
		{"a segment", name, whole(good), nil, nil},
		{"a history file", "00000002.history", whole("1\t0/300100\tx\n"), nil, nil},
		{"a history file that is empty, as PostgreSQL may have it", "00000002.history", whole(""), nil, nil},
		{"it is not there", name, source{err: fs.ErrNotExist}, fs.ErrNotExist, nil},
		{"the source is broken", name, source{err: broken}, broken, nil},
		{"the source breaks on the way", name, source{text: good[:9000], size: int64(testSize), read: broken}, broken, nil},
		{"the answer ends early", name, source{text: good[:9000], size: int64(testSize)}, io.ErrUnexpectedEOF, nil},
		{"the file is short", name, whole(good[:9000]), nil, &damage},
		{"the file is empty", name, whole(""), nil, &damage},
		{"the file is zeros", name, whole(strings.Repeat("\x00", int(testSize))), nil, &damage},
		{"the file is another", name, whole(segmentText(testSize, 2, 0x400000)), nil, &damage},
		{"PostgreSQL never asks for a partial segment", name + ".partial", whole(good), nil, &named},
		{"nor for this", "../../etc/passwd", whole(good), nil, &named},
	}
	for _, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			dir := t.TempDir()
			dest := filepath.Join(dir, "RECOVERYXLOG")
			err := Fetch(t.Context(), tt.source, tt.name, dest)
			if tt.is != nil && !errors.Is(err, tt.is) || tt.as != nil && !errors.As(err, tt.as) {
				t.Errorf("Fetch returned %v, want %v %T", err, tt.is, tt.as)
			}
			if tt.is != fs.ErrNotExist && errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Fetch returned %v, which is taken for the end of WAL", err)
			}
			want := ""
			if tt.is == nil && tt.as == nil {
				if err != nil {
					t.Errorf("Fetch returned %v", err)
				}
				want = fmt.Sprintf("RECOVERYXLOG:%d", len(tt.source.text))
				if got := mustRead(t, Dir(dir), "RECOVERYXLOG"); got != tt.source.text {
					t.Error("the file is not what the source has")
				}
			}
			if got := files(t, dir); got != want {
				t.Errorf("the directory holds %q, want %q", got, want)
			}
		})
	}
}

// The place to write to is not there: no answer of the source.
func TestFetchNowhere(t *testing.T) {
	dest := filepath.Join(t.TempDir(), "none", "RECOVERYXLOG")
	err := Fetch(t.Context(), whole(segmentText(testSize, 2, 0x300000)), "000000020000000000000003", dest)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Fetch returned %v, want an error that is not fs.ErrNotExist", err)
	}
}

func TestFetchCancelled(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Fetch(ctx, whole(segmentText(testSize, 2, 0x300000)), "000000020000000000000003", filepath.Join(dir, "RECOVERYXLOG"))
	if !errors.Is(err, context.Canceled) || files(t, dir) != "" {
		t.Errorf("Fetch returned %v and left %q", err, files(t, dir))
	}
}

func TestFetchPartial(t *testing.T) {
	const name = "000000020000000000000003"
	full := segmentText(testSize, 2, 0x300000)
	tests := []struct {
		why, text string
		ok        bool
	}{
		{"preallocated", full, true},
		{"as long as what was written", full[:9000], true},
		{"nothing was written", strings.Repeat("\x00", int(testSize)), false},
		{"empty", "", false},
		{"too long", full + "x", false},
		{"another", segmentText(testSize, 2, 0x400000), false},
	}
	for _, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			dir := t.TempDir()
			a, _ := archiveOf(t, "", map[string]string{name + ".partial": tt.text})
			dest := filepath.Join(dir, "RECOVERYXLOG")
			if err := Fetch(t.Context(), a, name, dest); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Fetch returned %v, want fs.ErrNotExist", err)
			}
			err := FetchPartial(t.Context(), a, name, dest)
			if !tt.ok {
				if err == nil || errors.Is(err, fs.ErrNotExist) || files(t, dir) != "" {
					t.Errorf("FetchPartial returned %v and left %q", err, files(t, dir))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := mustRead(t, Dir(dir), "RECOVERYXLOG"); got != full {
				t.Errorf("got %d bytes that are not the WAL and zeros", len(got))
			}
		})
	}
}

func files(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		s = append(s, fmt.Sprintf("%s:%d", e.Name(), info.Size()))
	}
	return strings.Join(s, " ")
}

func TestNewRemote(t *testing.T) {
	for address, ok := range map[string]bool{
		"http://localhost:5480":       true,
		"http://localhost:5480/":      true,
		"https://[::1]:5480":          true,
		"http://localhost:5480/relay": false, // a console has only /wal/, and 404 for the rest
		"http://localhost:5480/?x":    false,
		"http:///wal":                 false,
		"localhost:5480":              false,
		"ftp://localhost":             false,
		"http://%zz":                  false,
	} {
		if _, err := NewRemote(address); (err == nil) != ok {
			t.Errorf("NewRemote(%q) returned %v", address, err)
		}
	}
}

// What answers of a console mean, and of what is not a console.
func TestRemote(t *testing.T) {
	const name = "000000020000000000000003"
	good := segmentText(testSize, 2, 0x300000)
	answer := func(server string, status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Server", server)
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	tests := []struct {
		why    string
		answer http.HandlerFunc
		want   string // "", "not there", or what an UnreachableError says
	}{
		{"the file", answer("rideau", 200, good), ""},
		{"not there", answer("rideau", 404, `{"error": "there is no WAL file"}`), "not there"},
		{"the wrong port: not there", answer("nginx", 404, "<html>"), "what answers there is not a relay (HTTP status 404)"},
		{"the wrong port: something", answer("nginx", 200, good), "what answers there is not a relay (HTTP status 200)"},
		{"a proxy without the relay", answer("nginx", 502, ""), "what answers there is not a relay (HTTP status 502)"},
		{"the relay cannot", answer("rideau", 500, `{"error": "could not open WAL file"}`), "the relay answered with HTTP status 500: could not open WAL file"},
		{"the relay will not", answer("rideau", 403, ``), "the relay answered with HTTP status 403: it says nothing more"},
		{"cut in the middle", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Server", "rideau")
			w.Header().Set("Content-Length", strconv.Itoa(len(good)))
			io.WriteString(w, good[:9000])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, "unexpected EOF"},
		{"cut before the answer", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		{"of unknown length", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Server", "rideau")
			io.WriteString(w, good[:9000])
			w.(http.Flusher).Flush()
		}, "it says nothing more"},
	}
	for _, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/wal/"+name {
					t.Errorf("asked for %q", r.URL.Path)
				}
				tt.answer(w, r)
			}))
			defer s.Close()
			remote, err := NewRemote(s.URL)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			err = Fetch(t.Context(), remote, name, filepath.Join(dir, "RECOVERYXLOG"))
			var unreachable *UnreachableError
			switch {
			case tt.want == "":
				if err != nil || mustRead(t, Dir(dir), "RECOVERYXLOG") != good {
					t.Errorf("Fetch returned %v", err)
				}
				return
			case tt.want == "not there":
				if !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("Fetch returned %v, want fs.ErrNotExist", err)
				}
			case !errors.As(err, &unreachable) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(unreachable.Err.Error(), tt.want):
				t.Errorf("Fetch returned %v, want that it could not get WAL: %s", err, tt.want)
			}
			if got := files(t, dir); got != "" {
				t.Errorf("left %q", got)
			}
		})
	}
}

func TestRemoteNobodyThere(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	remote, err := NewRemote(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	var unreachable *UnreachableError
	if _, _, err := remote.Open(t.Context(), "00000002.history"); !errors.As(err, &unreachable) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open returned %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := remote.Open(ctx, "00000002.history"); !errors.Is(err, context.Canceled) {
		t.Errorf("Open returned %v, want that it was cancelled", err)
	}
}

// A connection on which nothing comes any more is given up after half a minute
// of fake time. What is slow is not.
func TestRemoteSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow, silent := 4, make(chan struct{})
		body := readerFunc(func(p []byte) (int, error) {
			if slow--; slow > 0 {
				<-time.After(silenceTimeout - time.Second)
				return 1, nil
			}
			<-silent
			return 0, errors.New("closed")
		})
		remote := &Remote{url: "http://relay/wal/", client: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			context.AfterFunc(r.Context(), func() { close(silent) })
			return &http.Response{StatusCode: 200, ContentLength: 100, Header: http.Header{"Server": {"rideau"}}, Body: io.NopCloser(body), Request: r}, nil
		})}}
		start := time.Now()
		content, _, err := remote.Open(t.Context(), "00000002.history")
		if err != nil {
			t.Fatal(err)
		}
		defer content.Close()
		n, err := io.Copy(io.Discard, content)
		var unreachable *UnreachableError
		if n != 3 || !errors.As(err, &unreachable) || !errors.Is(unreachable.Err, errSilent) {
			t.Errorf("read %d bytes, %v", n, err)
		}
		if got, want := time.Since(start), 4*silenceTimeout-3*time.Second; got != want {
			t.Errorf("gave up after %v, want %v", got, want)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A source that does not answer is asked again, for so long and no longer; any
// answer is one.
func TestPatiently(t *testing.T) {
	unreachable, broken := &UnreachableError{Source: "x", Err: errors.New("connection refused")}, errors.New("broken")
	tests := []struct {
		why      string
		patience time.Duration
		answers  []error // the last is repeated
		want     error
		calls    int
		took     time.Duration
	}{
		{"at once", time.Minute, []error{nil}, nil, 1, 0},
		{"not there is an answer", time.Minute, []error{fs.ErrNotExist}, fs.ErrNotExist, 1, 0},
		{"other errors are not of the network", time.Minute, []error{broken}, broken, 1, 0},
		{"back after a moment", time.Minute, []error{unreachable, unreachable, nil}, nil, 3, 300 * time.Millisecond},
		{"back without the file", time.Minute, []error{unreachable, fs.ErrNotExist}, fs.ErrNotExist, 2, 100 * time.Millisecond},
		// 0.1 + 0.2 + 0.4 + ... + 3.2 are 6.3 s, then 5 s each time.
		{"never back", time.Minute, []error{unreachable}, unreachable, 17, 56300 * time.Millisecond},
		{"no patience", 0, []error{unreachable}, unreachable, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start, calls := time.Now(), 0
				err := Patiently(t.Context(), tt.patience, func() error {
					calls++
					return tt.answers[min(calls, len(tt.answers))-1]
				})
				if err != tt.want || calls != tt.calls || time.Since(start) != tt.took {
					t.Errorf("%v after %d calls and %v, want %v, %d, %v", err, calls, time.Since(start), tt.want, tt.calls, tt.took)
				}
			})
		})
	}
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		err := Patiently(ctx, time.Minute, func() error { cancel(); return unreachable })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("returned %v", err)
		}
	})
}

// What can be read is what is whole and the partial segment that continues it.
func TestReadable(t *testing.T) {
	tests := []struct{ why, names, want string }{
		{"nothing", "", ""},
		{"no partial segment", "000000010000000000000001", "0/100000-0/200000 1"},
		{"only a partial segment", "000000010000000000000001.partial", "0/100000-0/200000 1p"},
		{"after a hole", "000000010000000000000001 000000010000000000000003 000000010000000000000004.partial", "0/100000-0/200000 1 0/300000-0/500000 3 4p"},
		{"the new timeline's copy of the last", "000000010000000000000002 000000010000000000000003 000000020000000000000003.partial", "0/200000-0/400000 2 3p"},
	}
	for _, tt := range tests {
		a, _ := archiveOf(t, tt.names, map[string]string{"00000002.history": "1\t0/300100\tx\n"})
		inv, err := a.Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		tli := wal.TLI(1)
		if strings.Contains(tt.names, "00000002") {
			tli = 2
		}
		r := inv.Check(tli)
		before := describe(r)
		var got []string
		for _, g := range r.Readable() {
			got = append(got, fmt.Sprintf("%s-%s", g.From, g.To))
			for _, s := range g.Segments {
				got = append(got, fmt.Sprint(uint64(s.LSN)/uint64(testSize))+map[bool]string{true: "p"}[s.Partial])
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %q, want %q", tt.why, got, tt.want)
		}
		if describe(r) != before {
			t.Errorf("%s: the report was changed", tt.why)
		}
	}
}
