package console

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

const segment = "00000001000000000000002A"

// wal answers as the handler of an archive may.
func wal(w http.ResponseWriter, r *http.Request) {
	switch path.Base(r.URL.Path) {
	case segment:
		w.Header().Set("Content-Length", "1048576")
		io.WriteString(w, strings.Repeat("W", 1<<20))
	default:
		http.Error(w, "not in the archive", http.StatusNotFound)
	}
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
		WAL:     http.HandlerFunc(wal),
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
		{"a segment", "GET", "/wal/" + segment, 200, "text/plain", "WWWW"},
		{"a segment that is not there, in the handler's words", "GET", "/wal/00000001000000000000002B", 404, "text/plain", "not in the archive"},
		{"nothing deeper", "GET", "/wal/a/" + segment, 404, "application/json", "there is nothing at"},
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

// A console without WAL does not answer for one.
func TestNoWAL(t *testing.T) {
	cfg := testConfig()
	cfg.WAL = nil
	handler, err := newHandler(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/wal/"+segment, nil))
	if w.Code != 404 || !strings.Contains(w.Body.String(), "there is nothing at") {
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
