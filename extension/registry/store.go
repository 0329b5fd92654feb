package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/blob/s3blob"
	"gocloud.dev/gcerrors"

	"rideau/internal/durable"
)

// A store is where a tree is kept. Its names are ours alone, with slashes: none
// is ever made of what a document says.
type store interface {
	// open returns the content of name from offset on, which is below its size.
	// It is fs.ErrNotExist when there is none.
	open(ctx context.Context, name string, offset int64) (io.ReadCloser, error)
	close() error
}

// A writable store can be published to.
type writable interface {
	store
	// put makes name have this content, at once and to stay.
	put(ctx context.Context, name string, data []byte) error
	// create is put for a name that does not exist; else it is fs.ErrExist. Of
	// two that create one name at once, one succeeds: see createsOnce.
	create(ctx context.Context, name string, data []byte) error
	// list returns all names, in no order that matters.
	list(ctx context.Context) iter.Seq2[item, error]
	remove(ctx context.Context, name string) error
}

// createsOnce checks that a store does not create what is there. Some that speak S3
// pass over the condition, and of two who publish at once one would be lost. name
// has this content: to write it again changes nothing.
func createsOnce(ctx context.Context, st writable, location, name string, same []byte) error {
	if _, ok := st.(dirStore); ok {
		return nil
	}
	err := st.create(ctx, name, same)
	if err == nil {
		return &overwritesError{location}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// An overwritesError says that a store cannot be published to.
type overwritesError struct{ location string }

func (e *overwritesError) Error() string {
	return fmt.Sprintf("cannot write to registry %q: its object storage overwrites a file that is to be written only if it is not there (If-None-Match)", e.location)
}

type item struct {
	name     string
	modified time.Time
	size     int64
}

// openStore opens a location: a directory, http:// and https://, s3://bucket/prefix
// and file:// (with gocloud's parameters).
func openStore(ctx context.Context, location string, o Options) (store, string, error) {
	scheme, _, ok := strings.Cut(location, "://")
	if !ok {
		dir, err := filepath.Abs(location)
		if err != nil {
			return nil, "", err
		}
		return dirStore(dir), dir, nil
	}
	u, err := url.Parse(location)
	if err != nil {
		return nil, "", fmt.Errorf("invalid location: %w", err)
	}
	switch scheme {
	case "http", "https":
		if u.RawQuery != "" || u.Fragment != "" {
			return nil, "", fmt.Errorf("invalid location %q: it must end with the path", u.Redacted())
		}
		u.Path = strings.TrimSuffix(u.Path, "/")
		u.RawPath = strings.TrimSuffix(u.RawPath, "/")
		h := &httpStore{u, o.Client, false, watch{u.Redacted(), o.Waiting}}
		if h.client == nil {
			h.client, h.own = defaultClient(), true
		}
		return h, u.Redacted(), nil
	case s3blob.Scheme, fileblob.Scheme:
		var bucket *blob.Bucket
		// Credentials are the AWS SDK's business, and do not stand in a URL.
		if scheme == s3blob.Scheme {
			prefix := strings.Trim(u.Path, "/")
			u.Path, u.RawPath = "", ""
			u.RawQuery = withDefaults(u.Query()).Encode()
			if bucket, err = new(s3blob.URLOpener).OpenBucketURL(ctx, u); err == nil && prefix != "" {
				bucket = blob.PrefixedBucket(bucket, prefix+"/")
			}
		} else {
			bucket, err = new(fileblob.URLOpener).OpenBucketURL(ctx, u)
		}
		if err != nil {
			return nil, "", fmt.Errorf("could not open %q: %w", location, err)
		}
		return blobStore{bucket, watch{location, o.Waiting}}, location, nil
	}
	return nil, "", fmt.Errorf("cannot open %q: a registry is a directory, or begins with http://, https://, s3:// or file://", location)
}

// patience is how long somebody may take to answer before who waits is told. A
// guess: what is on its way takes less.
const patience = 3 * time.Second

// A watch tells who waits that he does.
type watch struct {
	location string
	say      func(location string)
}

// start begins one wait, which the function that it returns ends.
func (w watch) start() (end func()) {
	if w.say == nil {
		return func() {}
	}
	t := time.AfterFunc(patience, func() { w.say(w.location) })
	return func() { t.Stop() }
}

// A watchedReader is watched while it reads.
type watchedReader struct {
	io.ReadCloser
	watch watch
}

func (r watchedReader) Read(p []byte) (int, error) {
	defer r.watch.start()()
	return r.ReadCloser.Read(p)
}

// Unreachable says that nobody answered where a registry is: there is no such
// host, or nothing listens there.
type Unreachable struct {
	Location string
	Err      error // a *url.Error
}

func (e *Unreachable) Error() string { return e.Err.Error() }

func (e *Unreachable) Unwrap() error { return e.Err }

// readSmall reads a whole file of at most limit bytes.
func readSmall(ctx context.Context, st store, name string, limit int64) ([]byte, error) {
	r, err := st.open(ctx, name, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readAtMost(r, name, limit)
}

// readAtMost refuses what is longer than limit, and reads no more than that.
func readAtMost(r io.Reader, name string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("could not read %q: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, &Refused{File: name, Reason: Oversized, Detail: fmt.Sprintf("it is longer than %d bytes", limit)}
	}
	return data, nil
}

// A dirStore is a directory.
type dirStore string

func (d dirStore) path(name string) string { return filepath.Join(string(d), filepath.FromSlash(name)) }
func (d dirStore) close() error            { return nil }

func (d dirStore) open(_ context.Context, name string, offset int64) (io.ReadCloser, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%q is not a regular file", d.path(name)))
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (d dirStore) put(_ context.Context, name string, data []byte) error {
	p := d.path(name)
	if err := mkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return durable.WriteFile(p, data, 0o644)
}

func (d dirStore) create(_ context.Context, name string, data []byte) error {
	p := d.path(name)
	if err := mkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return createFile(p, data, 0o644)
}

func (d dirStore) list(ctx context.Context) iter.Seq2[item, error] {
	return func(yield func(item, error) bool) {
		stop := errors.New("stop")
		err := filepath.WalkDir(string(d), func(path string, e fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case ctx.Err() != nil:
				return ctx.Err()
			case !e.Type().IsRegular():
				return nil
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(string(d), path)
			if err != nil {
				return err
			}
			if !yield(item{filepath.ToSlash(rel), info.ModTime(), info.Size()}, nil) {
				return stop
			}
			return nil
		})
		if err != nil && !errors.Is(err, stop) {
			yield(item{}, err)
		}
	}
}

func (d dirStore) remove(_ context.Context, name string) error {
	if err := os.Remove(d.path(name)); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(d.path(name)))
}

// A blobStore is object storage.
type blobStore struct {
	bucket *blob.Bucket
	watch  watch
}

func (b blobStore) close() error { return b.bucket.Close() }

func (b blobStore) open(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	defer b.watch.start()()
	ctx, cancel := context.WithCancelCause(ctx)
	body := newIdleReader(ctx, cancel)
	r, err := b.bucket.NewRangeReader(ctx, name, offset, -1, nil)
	if err != nil {
		body.timer.Stop()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, b.error(err)
	}
	body.body = watchedReader{r, b.watch}
	return body, nil
}

func (b blobStore) put(ctx context.Context, name string, data []byte) error {
	defer b.watch.start()()
	return b.error(b.bucket.WriteAll(ctx, name, data, &blob.WriterOptions{ContentType: contentType}))
}

func (b blobStore) create(ctx context.Context, name string, data []byte) error {
	defer b.watch.start()()
	err := b.bucket.WriteAll(ctx, name, data, &blob.WriterOptions{ContentType: contentType, IfNotExist: true})
	// S3 answers 409 when another is creating it at this moment.
	var s3 interface{ ErrorCode() string }
	if errors.As(err, &s3) && s3.ErrorCode() == "ConditionalRequestConflict" {
		return fmt.Errorf("%w: %w", fs.ErrExist, err)
	}
	return b.error(err)
}

func (b blobStore) list(ctx context.Context) iter.Seq2[item, error] {
	return func(yield func(item, error) bool) {
		all := b.bucket.List(nil)
		for {
			end := b.watch.start()
			o, err := all.Next(ctx)
			end()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(item{}, b.error(err))
				return
			}
			if !yield(item{o.Key, o.ModTime, o.Size}, nil) {
				return
			}
		}
	}
}

func (b blobStore) remove(ctx context.Context, name string) error {
	defer b.watch.start()()
	return b.error(b.bucket.Delete(ctx, name))
}

// contentType is said, for otherwise the library looks into what it writes to
// guess it.
const contentType = "application/octet-stream"

// error says what an error of the library's means.
func (b blobStore) error(err error) error {
	var request *url.Error
	if errors.As(err, &request) && !errors.Is(err, context.Canceled) {
		return &Unreachable{b.watch.location, request}
	}
	if err == nil {
		return nil
	}
	e := &blobError{said: err.Error(), err: err}
	var api interface {
		ErrorCode() string
		ErrorMessage() string
	}
	if _, why, ok := strings.Cut(e.said, "get credentials: "); ok {
		e.said = "no credentials for object storage, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: " + why
	} else if errors.As(err, &api) {
		e.said = "object storage said " + api.ErrorCode()
		if text := api.ErrorMessage(); text != "" {
			e.said += ": " + text
		}
	}
	switch gcerrors.Code(err) {
	case gcerrors.NotFound:
		e.kind = fs.ErrNotExist
	case gcerrors.FailedPrecondition:
		e.kind = fs.ErrExist
	case gcerrors.PermissionDenied:
		e.kind = fs.ErrPermission
	}
	return e
}

// A blobError is an error of object storage in words that are for people, and of a
// kind that is for programs.
type blobError struct {
	said      string
	kind, err error
}

func (e *blobError) Error() string { return e.said }

func (e *blobError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.err}
	}
	return []error{e.kind, e.err}
}

// withDefaults adds to the parameters of an s3:// location what is not said there.
// All content is verified by what was signed; checksums in the way of today's S3
// are not known to all who speak it, and the library complains of those who do not.
func withDefaults(q url.Values) url.Values {
	for _, key := range []string{"request_checksum_calculation", "response_checksum_validation"} {
		if !q.Has(key) {
			q.Set(key, "when_required")
		}
	}
	return q
}

// An httpStore is a tree that a web server serves.
type httpStore struct {
	base   *url.URL
	client *http.Client
	own    bool // the client is ours
	watch  watch
}

func (h *httpStore) close() error {
	if h.own {
		h.client.CloseIdleConnections()
	}
	return nil
}

// idle is how long a server may send nothing in the middle of an answer. A
// guess: long for a disk that must spin up, short for a person who waits.
const idle = 60 * time.Second

func defaultClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = idle
	return &http.Client{Transport: t}
}

func (h *httpStore) open(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.base.JoinPath(name).String(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	// A proxy that compresses on the way would change lengths and offsets.
	req.Header.Set("Accept-Encoding", "identity")
	if offset > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	end := h.watch.start()
	resp, err := h.client.Do(req)
	end()
	if err != nil {
		if ctx.Err() == nil {
			err = &Unreachable{h.watch.location, err}
		}
		cancel(nil)
		return nil, err
	}
	fail := func(err error) (io.ReadCloser, error) {
		resp.Body.Close()
		cancel(nil)
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		if offset == 0 || !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
			return fail(fmt.Errorf("could not get %q: the server sent another part of it (%q)", name, resp.Header.Get("Content-Range")))
		}
		offset = 0
	case http.StatusNotFound, http.StatusGone:
		return fail(&fs.PathError{Op: "get", Path: req.URL.Redacted(), Err: fs.ErrNotExist})
	case http.StatusForbidden, http.StatusUnauthorized:
		return fail(&fs.PathError{Op: "get", Path: req.URL.Redacted(), Err: fs.ErrPermission})
	default:
		return fail(fmt.Errorf("could not get %q: the server answered %q", req.URL.Redacted(), resp.Status))
	}
	body := newIdleReader(ctx, cancel)
	body.body = watchedReader{resp.Body, h.watch}
	// A server that knows no ranges sends all of it.
	if _, err := io.CopyN(io.Discard, body, offset); err != nil {
		body.Close()
		return nil, fmt.Errorf("could not get %q: %w", req.URL.Redacted(), err)
	}
	return body, nil
}

// An idleReader gives up when nothing comes for a while.
type idleReader struct {
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

// newIdleReader waits from now on for a body, which is yet to come.
func newIdleReader(ctx context.Context, cancel context.CancelCauseFunc) *idleReader {
	return &idleReader{ctx: ctx, cancel: cancel, timer: time.AfterFunc(idle, func() { cancel(fmt.Errorf("the server sent nothing for %s", idle)) })}
}

func (r *idleReader) Read(p []byte) (int, error) {
	r.timer.Reset(idle)
	n, err := r.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && r.ctx.Err() != nil {
		err = context.Cause(r.ctx)
	}
	return n, err
}

func (r *idleReader) Close() error {
	r.timer.Stop()
	r.cancel(nil)
	return r.body.Close()
}
