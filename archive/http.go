package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// serverHeader is in every answer of a relay's console. A 404 without it comes
// from something else, a proxy or the wrong port, and says nothing of WAL: to
// take it for "not there" would end a recovery too early.
const serverHeader = "rideau"

// Remote is the archive of a running relay, at the address of its console, as
// in http://localhost:5480. It is a [Source] for [Fetch], and has no partial
// segments: a relay serves the one it is writing to standbys that stream.
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

// NewRemote answers the archive of the relay whose console is at address,
// http://HOST:PORT. Nothing may follow: a console answers 404 for paths it does
// not know, and a mistake here must not look like WAL that is not there.
func NewRemote(address string) (*Remote, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/")+u.RawQuery+u.Fragment != "" {
		return nil, fmt.Errorf("invalid address %q of a relay: want http://HOST:PORT", address)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = (&net.Dialer{Timeout: connectTimeout}).DialContext
	transport.ResponseHeaderTimeout = silenceTimeout
	transport.DisableCompression = true // Content-Length is that of the file
	return &Remote{
		url:    u.Scheme + "://" + u.Host + "/wal/",
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
	ours := resp.Header.Get("Server") == serverHeader
	if ours && resp.StatusCode == http.StatusOK && resp.ContentLength >= 0 {
		return body, resp.ContentLength, nil
	}
	defer body.Close()
	return nil, 0, r.refusal(name, resp.StatusCode, ours, body)
}

// refusal is the error for an answer other than the file.
func (r *Remote) refusal(name string, status int, ours bool, body io.Reader) error {
	switch {
	case !ours:
		return &UnreachableError{Source: r.url, Err: fmt.Errorf("what answers there is not a relay (HTTP status %d)", status)}
	case status == http.StatusNotFound:
		return &fs.PathError{Op: "get", Path: r.url + name, Err: fs.ErrNotExist}
	}
	var answer struct{ Error string }
	if err := json.NewDecoder(io.LimitReader(body, 10_000)).Decode(&answer); err != nil || answer.Error == "" {
		answer.Error = "it says nothing more"
	}
	return &UnreachableError{Source: r.url, Err: fmt.Errorf("the relay answered with HTTP status %d: %s", status, answer.Error)}
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
