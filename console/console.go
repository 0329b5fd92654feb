// Package console shows over HTTP what a Rideau process does.
//
//	GET /             a page for people, refreshed every few seconds
//	GET /status       the same as JSON, for programs
//	GET /metrics      the same as numbers over time, for Prometheus
//	GET /healthz      200 while the process answers, for supervisors
//	GET /wal/NAME     a completed segment or a history file, for
//	                  restore_command ("rideau wal fetch")
//
// It knows nothing of relays or pools. Whoever wires it gives it, in a
// [Config], a value to show, which becomes JSON and from that the page; metrics;
// and WAL to serve. [Listen] takes the address, [Console.Run] answers until its
// context is cancelled.
//
// # Answers
//
// Nothing can be changed through the console: every method but GET and HEAD is
// refused. What goes wrong is answered in JSON, {"error": "..."}, the page
// included. Every answer carries the header "Server: rideau".
//
// That header matters for /wal. To a server in recovery, a segment that is not
// there means the end of recovery; so a client must take a 404 for "not there"
// only if it comes from us, and anything else, such as the 404 of a proxy or of
// another program on the port, for a failure. We do our part: below /wal/, 404
// is the answer for a file that is known not to be there, and for nothing else.
//
// # Access
//
// There are no users and no TLS: by default the console listens on loopback
// only. There, a request must also be addressed to loopback by name: a page
// from elsewhere, whose name was pointed at 127.0.0.1 to reach us through
// somebody's browser (DNS rebinding), is refused. On another address, everybody
// who can reach it can read WAL, which is to say the whole database; [Listen]
// logs a warning.
package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// DefaultAddr is where a console listens unless told otherwise.
const DefaultAddr = "localhost:5480"

const (
	headerTimeout = 10 * time.Second // to send us the headers of a request
	answerTimeout = 30 * time.Second // to take our answer; of a file, each piece
	idleTimeout   = 2 * time.Minute  // between requests of one connection
	stopTimeout   = 5 * time.Second  // for answers under way when we stop
	maxHeader     = 16 << 10
	pieceSize     = 64 << 10
)

// WAL is where files of WAL come from.
type WAL interface {
	// Open returns the content of a completed segment or a history file, by
	// PostgreSQL's name for it, and how long it is. The error is fs.ErrNotExist
	// if, and only if, there is no such file. It is called concurrently.
	Open(ctx context.Context, name string) (io.ReadCloser, int64, error)
}

// A Config says what a console shows and where.
type Config struct {
	Addr string // host:port; "" is DefaultAddr

	// Status returns a snapshot to be shown, a value that encoding/json can
	// marshal. It is called concurrently. Required.
	Status func() any

	WAL     WAL                    // nil: there is none to be had here
	Metrics []prometheus.Collector // besides those of Go and of the process
	Log     *slog.Logger           // nil discards
}

// A Console is a listening HTTP server.
type Console struct {
	listener net.Listener
	server   *http.Server
}

// Listen takes the address in cfg. Nothing is answered before Run is called.
func Listen(cfg Config) (*Console, error) {
	if cfg.Addr == "" {
		cfg.Addr = DefaultAddr
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	handler, err := newHandler(cfg)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("could not listen on %q for HTTP: %w", cfg.Addr, err)
	}
	if !isLoopback(listener.Addr()) {
		cfg.Log.Warn("everyone who can reach the HTTP address can read WAL", "addr", listener.Addr().String())
	}
	return &Console{listener: listener, server: newServer(handler, cfg.Log)}, nil
}

func newServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       headerTimeout, // we read no bodies
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// Addr returns the address that the console listens on.
func (c *Console) Addr() net.Addr { return c.listener.Addr() }

// Run answers requests until ctx is cancelled, then finishes those under way,
// within a few seconds, and returns nil. It must be called once, and closes
// the listener in every case.
func (c *Console) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- c.server.Serve(c.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("could not go on serving HTTP: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := c.server.Shutdown(grace); err != nil {
		c.server.Close() // somebody is slow; they have had their time
	}
	<-served
	return nil
}

// newHandler returns the answers to everything.
func newHandler(cfg Config) (http.Handler, error) {
	registry := prometheus.NewRegistry()
	metrics := append([]prometheus.Collector{
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector(),
	}, cfg.Metrics...)
	for _, c := range metrics {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("could not register metrics: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", notFound)
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) { servePage(w, cfg.Status()) })
	mux.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) { serveJSON(w, http.StatusOK, cfg.Status()) })
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		serveJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("/wal/", func(w http.ResponseWriter, r *http.Request) { serveWAL(w, r, cfg.WAL, cfg.Log) })
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry}))
	return guard(mux), nil
}

// guard refuses what is not for us before anything looks at it.
func guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Server", "rideau")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if isLoopback(local) && !isLoopbackName(r.Host) {
			serveError(w, http.StatusForbidden, "the host %q of the request is not this machine's loopback", r.Host)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			serveError(w, http.StatusMethodNotAllowed, "method %q is not allowed", r.Method)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func isLoopback(addr net.Addr) bool {
	if addr == nil {
		return false
	}
	ap, err := netip.ParseAddrPort(addr.String())
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// isLoopbackName reports whether a Host header names the loopback, by a name
// that no DNS server can point elsewhere (RFC 6761, section 6.3).
func isLoopbackName(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// walName matches what restore_command asks for: completed segments and history
// files (src/include/access/xlog_internal.h). A segment still being written is
// for those who stream.
var walName = regexp.MustCompile(`^(?:[0-9A-F]{24}|[0-9A-F]{8}\.history)$`)

func serveWAL(w http.ResponseWriter, r *http.Request, source WAL, log *slog.Logger) {
	name := strings.TrimPrefix(r.URL.Path, "/wal/")
	switch {
	case source == nil:
		serveError(w, http.StatusNotImplemented, "no WAL is kept here")
		return
	case !walName.MatchString(name):
		serveError(w, http.StatusBadRequest, "%q is not the name of a WAL segment or timeline history file", name)
		return
	}
	content, size, err := source.Open(r.Context(), name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		serveError(w, http.StatusNotFound, "there is no WAL file %q", name)
		return
	case err != nil:
		log.Error("could not open a WAL file", "segment", name, "err", err)
		serveError(w, http.StatusInternalServerError, "could not open WAL file %q: %v", name, err)
		return
	}
	defer content.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	if r.Method == http.MethodHead {
		return
	}
	n, err := io.Copy(patientWriter{w, http.NewResponseController(w)}, content)
	if err != nil || n != size {
		log.Info("did not serve all of a WAL file", "segment", name, "sent", n, "size", size, "err", err)
		// The status is sent. All that is left is to cut the connection, which
		// the other end cannot mistake for the end of the file.
		panic(http.ErrAbortHandler)
	}
}

// A patientWriter gives a client the time for an answer anew with every piece
// of it: a segment may take long over a slow line, silence may not.
type patientWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (w patientWriter) Write(p []byte) (n int, err error) {
	for piece := range slices.Chunk(p, pieceSize) {
		if err := w.control.SetWriteDeadline(time.Now().Add(answerTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return n, err
		}
		written, err := w.ResponseWriter.Write(piece)
		n += written
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (w patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func notFound(w http.ResponseWriter, r *http.Request) {
	serveError(w, http.StatusNotFound, "there is nothing at %q", r.URL.Path)
}

func serveError(w http.ResponseWriter, code int, format string, args ...any) {
	serveJSON(w, code, map[string]string{"error": fmt.Sprintf(format, args...)})
}

func serveJSON(w http.ResponseWriter, code int, v any) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		code, text = http.StatusInternalServerError, []byte(`{"error": "could not marshal the status"}`)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	w.Write(append(text, '\n'))
}
