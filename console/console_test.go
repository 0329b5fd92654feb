package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

const segment = "00000001000000000000002A"

// A shelf is WAL as an archive has it: files, absence, and a disk that fails.
type shelf map[string]string

func (s shelf) Open(_ context.Context, name string) (io.ReadCloser, int64, error) {
	switch name {
	case "0000000100000000000000EE":
		return nil, 0, errors.New("input/output error")
	case "0000000100000000000000DD": // fails halfway
		return io.NopCloser(strings.NewReader("half")), 8, nil
	}
	text, ok := s[name]
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(strings.NewReader(text)), int64(len(text)), nil
}

type standby struct {
	Name string `json:"name"`
	Sent string `json:"sent"`
	Note string `json:"note,omitempty"`
}

func testConfig() Config {
	flushed := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "rideau_flushed"}, func() float64 { return 42 })
	return Config{
		Addr:    "localhost:0",
		Log:     slog.New(slog.DiscardHandler),
		Metrics: []prometheus.Collector{flushed},
		WAL: shelf{
			segment:              strings.Repeat("W", 1<<20),
			segment + ".partial": "for those who stream",
			"00000002.history":   "1\t0/2A000000\tno recovery target specified\n",
		},
		Status: func() any {
			return struct {
				Upstream string    `json:"upstream"`
				Flushed  int64     `json:"flushed"`
				Standbys []standby `json:"standbys"`
			}{"db1 <script>", 9007199254740993, []standby{{"one", "0/2A", ""}, {"two", "0/1B", "slow"}}}
		},
	}
}

// ask sends one request through a real socket and returns the answer, read.
func ask(t *testing.T, method, path string, change func(*http.Request)) (*http.Response, string) {
	t.Helper()
	handler, err := newHandler(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	defer server.Close()
	r, err := http.NewRequest(method, server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(r)
	}
	answer, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := answer.Header.Get("Server"); got != "rideau" {
		t.Errorf("the header Server is %q, want rideau", got)
	}
	return answer, string(body)
}

func TestAnswers(t *testing.T) {
	tests := []struct {
		name, method, path string
		code               int
		kind, contains     string
	}{
		{"the status, with integers whole", "GET", "/status", 200, "application/json", `"flushed": 9007199254740993`},
		{"a page, with integers whole", "GET", "/", 200, "text/html", "9007199254740993"},
		{"a page escapes what it shows", "GET", "/", 200, "text/html", "db1 &lt;script&gt;"},
		{"a page has lists as tables", "GET", "/", 200, "text/html", `<th scope="col">sent</th>`},
		{"alive", "GET", "/healthz", 200, "application/json", "ok"},
		{"metrics of the source", "GET", "/metrics", 200, "text/plain", "rideau_flushed 42"},
		{"metrics of Go", "GET", "/metrics", 200, "text/plain", "go_goroutines"},
		{"metrics of the process", "GET", "/metrics", 200, "text/plain", "process_open_fds"},
		{"a segment", "GET", "/wal/" + segment, 200, "application/octet-stream", "WWWW"},
		{"a history file", "GET", "/wal/00000002.history", 200, "application/octet-stream", "0/2A000000"},
		{"a segment that is not there", "GET", "/wal/00000001000000000000002B", 404, "application/json", "there is no WAL file"},
		{"a segment that cannot be read is not absent", "GET", "/wal/0000000100000000000000EE", 500, "application/json", "input/output error"},
		{"nor is what can never be there", "GET", "/wal/" + segment + ".partial", 400, "application/json", "is not the name"},
		{"nor what is outside", "GET", "/wal/..%2f..%2fetc%2fpasswd", 400, "application/json", "is not the name"},
		{"nor what is deeper", "GET", "/wal/a/" + segment, 400, "application/json", "is not the name"},
		{"nothing there", "GET", "/nothing", 404, "application/json", `there is nothing at \"/nothing\"`},
		{"nothing can be changed", "POST", "/status", 405, "application/json", "not allowed"},
		{"nothing can be removed", "DELETE", "/wal/" + segment, 405, "application/json", "not allowed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			answer, body := ask(t, tt.method, tt.path, nil)
			if answer.StatusCode != tt.code {
				t.Errorf("status code %d, want %d", answer.StatusCode, tt.code)
			}
			if kind := answer.Header.Get("Content-Type"); !strings.HasPrefix(kind, tt.kind) {
				t.Errorf("content type %q, want %q", kind, tt.kind)
			}
			if !strings.Contains(body, tt.contains) {
				t.Errorf("the answer lacks %q:\n%.1000s", tt.contains, body)
			}
			if tt.kind == "application/json" && !json.Valid([]byte(body)) {
				t.Errorf("the answer is not JSON:\n%s", body)
			}
			if strings.Contains(body, "<script>") {
				t.Error("the answer has a script in it")
			}
		})
	}
}

// A restore_command must know that it got all of a segment.
func TestWALHasLength(t *testing.T) {
	for _, method := range []string{"GET", "HEAD"} {
		answer, body := ask(t, method, "/wal/"+segment, nil)
		if answer.ContentLength != 1<<20 {
			t.Errorf("%s: content length %d, want %d", method, answer.ContentLength, 1<<20)
		}
		if want := map[string]int{"GET": 1 << 20}[method]; len(body) != want {
			t.Errorf("%s: body of %d bytes, want %d", method, len(body), want)
		}
	}
}

// What breaks off must not look complete.
func TestWALBreaksOff(t *testing.T) {
	handler, err := newHandler(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	defer server.Close()
	answer, err := http.Get(server.URL + "/wal/0000000100000000000000DD")
	if err != nil {
		return // cut before the headers were out: just as good
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err == nil {
		t.Errorf("half a segment was taken for whole: %q", body)
	}
}

// A console without WAL does not say that a segment is not there: it cannot
// know.
func TestNoWAL(t *testing.T) {
	cfg := testConfig()
	cfg.WAL = nil
	handler, err := newHandler(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/wal/"+segment, nil))
	if w.Code != 501 || !strings.Contains(w.Body.String(), "no WAL is kept here") {
		t.Errorf("answered with %d %s", w.Code, w.Body)
	}
}

func TestHost(t *testing.T) {
	tests := []struct {
		name, host string
		code       int
	}{
		{"loopback by name", "localhost:5480", 200},
		{"without port", "localhost", 200},
		{"a name below localhost", "relay1.localhost", 200},
		{"with the root's dot", "LOCALHOST.", 200},
		{"loopback by address", "127.0.0.1:5480", 200},
		{"another loopback address", "127.8.8.8", 200},
		{"IPv6", "[::1]:5480", 200},
		{"IPv4 in IPv6", "[::ffff:127.0.0.1]:5480", 200},
		{"a name pointed at us", "evil.example:5480", 403},
		{"one that looks right", "localhost.evil.example", 403},
		{"one that ends right", "evillocalhost", 403},
		{"an address elsewhere", "192.0.2.1:5480", 403},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			answer, body := ask(t, "GET", "/healthz", func(r *http.Request) { r.Host = tt.host })
			if answer.StatusCode != tt.code {
				t.Errorf("host %q is answered with %d %s, want %d", tt.host, answer.StatusCode, body, tt.code)
			}
		})
	}
}

// On an address that others can reach, names are not ours to judge.
func TestHostElsewhere(t *testing.T) {
	handler, err := newHandler(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("GET", "http://relay1.example/healthz", nil)
	local := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5480}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local)))
	if w.Code != http.StatusOK {
		t.Errorf("answered with %d %s, want 200", w.Code, w.Body)
	}
}

func TestRun(t *testing.T) {
	var log bytes.Buffer
	cfg := testConfig()
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	c, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	answer, err := http.Get("http://" + c.Addr().String() + "/status")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != 200 {
		t.Errorf("status code %d, want 200", answer.StatusCode)
	}

	// A second one on the same address is told so before anything starts.
	taken := testConfig()
	taken.Addr = c.Addr().String()
	if _, err := Listen(taken); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("Listen on a taken address returned %v", err)
	}

	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run returned %v, want nil", err)
	}
	if _, err := net.Dial("tcp", c.Addr().String()); err == nil {
		t.Error("the address is still served after Run has returned")
	}
	if log.Len() > 0 {
		t.Errorf("logged on loopback:\n%s", log.String())
	}
}

func TestListenWarnsBeyondLoopback(t *testing.T) {
	var log bytes.Buffer
	cfg := testConfig()
	cfg.Addr = ":0"
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	c, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "can read WAL") {
		t.Errorf("no warning in the log:\n%s", log.String())
	}
}

func TestLayOut(t *testing.T) {
	tests := []struct{ name, json, want string }{
		{"nothing", `null`, ""},
		{"a list of words", `["a","b"]`, "a, b"},
		{"objects with different fields", `[{"a":1},{"b":2}]`, "<table> <tr><th scope=\"col\">a</th><th scope=\"col\">b</th></tr> <tr><td>1</td><td></td></tr> <tr><td></td><td>2</td></tr> </table>"},
		{"objects and others", `[{"a":1},2]`, "<table> <tr><th scope=\"row\">a</th><td>1</td></tr> </table> , 2"},
		{"fields keep their order", `{"z":1,"a":true}`, "<table> <tr><th scope=\"row\">z</th><td>1</td></tr> <tr><th scope=\"row\">a</th><td>true</td></tr> </table>"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v, err := layOut(json.NewDecoder(strings.NewReader(tt.json)))
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			if err := page.ExecuteTemplate(&out, "value", v); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(strings.Fields(out.String()), " "); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}
