package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
)

// servedHeader is in every answer of an archive. A 404 without it comes from
// something else, a proxy or the wrong port, and says nothing of WAL: to take
// it for "not there" would end a recovery too early.
const servedHeader = "Rideau-Archive"

// ServeHTTP answers GET and HEAD of a file of the archive by the last element
// of the path, for [Remote]: 200 and the file with its Content-Length, 404 if
// it is not there, 400 for a name that cannot be, 500 for all else.
func (a *Archive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := path.Base(r.URL.Path)
	w.Header().Set(servedHeader, name)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD are answered here", http.StatusMethodNotAllowed)
		return
	}
	content, size, err := a.Open(r.Context(), name)
	var nameError *NameError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, fmt.Sprintf("%q is not in the archive", name), http.StatusNotFound)
		return
	case errors.As(err, &nameError):
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer content.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	if r.Method == http.MethodHead {
		return
	}
	if n, err := io.Copy(w, content); err != nil || n != size {
		// The status is sent; all that is left is to cut the connection, which
		// the other end cannot mistake for the end of the file.
		panic(http.ErrAbortHandler)
	}
}

// Remote is the archive of a running relay, at the address of its console, as
// in http://localhost:5480. It is a [Source] for [Fetch].
type Remote struct {
	url    string
	client *http.Client
}

// Time limits for an archive that does not answer. They are generous: a
// recovery has waited for worse, and an answer that comes late is an answer.
const (
	connectTimeout = 10 * time.Second
	silenceTimeout = 30 * time.Second // without an answer's head, or without more of its body
)

// NewRemote answers the archive at address, a URL to which /wal/NAME is
// appended.
func NewRemote(address string) (*Remote, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("invalid address %q of an archive: want http://HOST:PORT", address)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = (&net.Dialer{Timeout: connectTimeout}).DialContext
	transport.ResponseHeaderTimeout = silenceTimeout
	transport.DisableCompression = true // Content-Length is that of the file
	return &Remote{
		url:    strings.TrimSuffix(address, "/") + "/wal/",
		client: &http.Client{Transport: transport},
	}, nil
}

// An UnreachableError says that a source could not be asked, or did not finish
// its answer. Nothing is known of what it has; to ask again may help.
type UnreachableError struct {
	Source string
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("could not get WAL from %q: %v", e.Source, e.Err)
}

// Unwrap is left out: what is below is never an answer, though it may be
// fs.ErrNotExist, as for a socket or a certificate that is not there.

// Open implements [Source].
func (r *Remote) Open(ctx context.Context, name string) (io.ReadCloser, int64, error) {
	if !IsWAL(name) {
		return nil, 0, &NameError{Name: name}
	}
	reqCtx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(reqCtx, http.MethodGet, r.url+name, nil)
	if err != nil {
		cancel(nil)
		return nil, 0, err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		cancel(nil)
		if ctx.Err() != nil {
			return nil, 0, context.Cause(ctx)
		}
		return nil, 0, &UnreachableError{Source: r.url, Err: withoutURL(err)}
	}
	body := &remoteBody{body: resp.Body, source: r.url, ctx: reqCtx, cancel: cancel}
	body.timer = time.AfterFunc(silenceTimeout, func() { cancel(errSilent) })
	if resp.StatusCode == http.StatusOK && resp.ContentLength >= 0 && resp.Header.Get(servedHeader) != "" {
		return body, resp.ContentLength, nil
	}
	defer body.Close()
	return nil, 0, r.refused(name, resp.StatusCode, resp.Header.Get(servedHeader) != "", body)
}

// refused is the error for an answer other than the file.
func (r *Remote) refused(name string, status int, archive bool, body io.Reader) error {
	text, _ := io.ReadAll(io.LimitReader(body, 1000))
	reason := strings.TrimSpace(string(text))
	switch {
	case !archive:
		return &UnreachableError{Source: r.url, Err: fmt.Errorf("what answers there is not the archive of a relay (HTTP status %d)", status)}
	case status == http.StatusNotFound:
		return &fs.PathError{Op: "get", Path: r.url + name, Err: fs.ErrNotExist}
	default:
		return &UnreachableError{Source: r.url, Err: fmt.Errorf("%s (HTTP status %d)", reason, status)}
	}
}

// withoutURL drops what the http package puts before the cause.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

var errSilent = fmt.Errorf("nothing came for %v", silenceTimeout)

// remoteBody is an answer's body that gives up when nothing comes.
type remoteBody struct {
	body   io.ReadCloser
	source string
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

func (b *remoteBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	switch {
	case err == nil:
		b.timer.Reset(silenceTimeout)
	case err != io.EOF:
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
		if !errors.Is(err, context.Canceled) {
			err = &UnreachableError{Source: b.source, Err: err}
		}
	}
	return n, err
}

func (b *remoteBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}
