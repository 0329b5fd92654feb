package registry

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"gocloud.dev/blob"
	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"

	"rideau/extension/pack"
)

// bigArchive is a package that takes some time to travel: it does not compress.
func bigArchive(t testing.TB, name, version string) []byte {
	t.Helper()
	noise := make([]byte, 200_000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	files := packageFiles(name, version)
	files["install.sql"] = &fstest.MapFile{Data: []byte("SELECT '" + hex.EncodeToString(noise) + "';\n")}
	p, err := pack.ReadDir(files)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := p.WriteArchive(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A flaky server serves a directory, and one file of it badly.
type flaky struct {
	dir string
	bad string // the file

	mu       sync.Mutex
	cuts     []int64 // after how many bytes each answer ends; the last is as it should be
	down     bool
	noRanges bool     // sends everything, whatever was asked for
	wrong    bool     // sends another part than was asked for
	asked    []string // the Range of each request for the file
	sent     int64    // bytes of the file that went out
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	if name != f.bad {
		http.ServeFile(w, r, filepath.Join(f.dir, name))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r.Header.Get("Range"))
	if f.down {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	data, err := os.ReadFile(filepath.Join(f.dir, filepath.FromSlash(name)))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && !f.noRanges {
		at, err := strconv.Atoi(strings.TrimSuffix(from, "-"))
		if err != nil || at >= len(data) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		said := at
		if f.wrong {
			said = 0
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", said, len(data)-1, len(data)))
		w.Header().Set("Content-Length", strconv.Itoa(len(data)-at))
		w.WriteHeader(http.StatusPartialContent)
		data = data[at:]
	} else {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	}
	if len(f.cuts) > 0 {
		data = data[:f.cuts[0]]
		f.cuts = f.cuts[1:]
		n, _ := w.Write(data)
		f.sent += int64(n)
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler) // the connection ends here
	}
	n, _ := w.Write(data)
	f.sent += int64(n)
}

func newFlaky(t *testing.T) (*lab, *flaky, string, []byte) {
	t.Helper()
	l := newLab(t)
	a := bigArchive(t, "foo", "1")
	if _, err := l.writer().Publish(context.Background(), a, l.keys()...); err != nil {
		t.Fatal(err)
	}
	f := &flaky{dir: l.dir, bad: l.archiveName("foo")}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return l, f, server.URL, a
}

func (f *flaky) check(t *testing.T, sent int64, asked ...string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if fmt.Sprintf("%q", f.asked) != fmt.Sprintf("%q", asked) {
		t.Errorf("asked for %q, want %q", f.asked, asked)
	}
	if f.sent != sent {
		t.Errorf("%d bytes went out, want %d", f.sent, sent)
	}
}

// A connection that is cut is followed by another, for the rest only.
func TestCutDownloadGoesOn(t *testing.T) {
	t.Parallel()
	l, f, location, a := newFlaky(t)
	f.cuts = []int64{50_000, 30_000}
	r, err := l.openAt(location)
	l.must(err)
	got, err := r.Archive(context.Background(), "foo", "1")
	if err != nil || !bytes.Equal(got, a) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	f.check(t, int64(len(a)), "", "bytes=50000-", "bytes=80000-")
	// Now it is in the cache.
	if _, err := r.Fetch(context.Background(), "foo", "1"); err != nil {
		t.Fatal(err)
	}
	f.check(t, int64(len(a)), "", "bytes=50000-", "bytes=80000-")
}

// Without a cache a cut is made good as well, within one call.
func TestCutDownloadWithoutCache(t *testing.T) {
	t.Parallel()
	l, f, location, a := newFlaky(t)
	l.options.Cache = ""
	f.cuts = []int64{50_000}
	r, err := l.openAt(location)
	l.must(err)
	if got, err := r.Archive(context.Background(), "foo", "1"); err != nil || !bytes.Equal(got, a) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	f.check(t, int64(len(a)), "", "bytes=50000-")
}

// Object storage is asked for the rest only as well.
func TestCutDownloadFromS3(t *testing.T) {
	setS3Environment(t)
	ctx := context.Background()
	l := emptyLab(t)
	backend := s3mem.New()
	l.must(backend.CreateBucket("bucket"))
	inner := gofakes3.New(backend).Server()
	var mu sync.Mutex
	var bad string
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		cut := r.Method == http.MethodGet && bad != "" && strings.HasSuffix(r.URL.Path, bad)
		if cut {
			asked = append(asked, r.Header.Get("Range"))
			cut = len(asked) == 1
		}
		mu.Unlock()
		if !cut {
			inner.ServeHTTP(w, r)
			return
		}
		answer := httptest.NewRecorder()
		inner.ServeHTTP(answer, r)
		for k, v := range answer.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(answer.Code)
		w.Write(answer.Body.Bytes()[:60_000])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(server.Close)
	location := "s3://bucket?region=us-east-1&use_path_style=true&endpoint=" + server.URL
	l.must(Init(ctx, location, l.policy(), l.options, l.keys()...))
	a := bigArchive(t, "foo", "1")
	_, err := l.writerAt(location).Publish(ctx, a, l.keys()...)
	l.must(err)
	mu.Lock()
	bad = blobName(refOf(a).SHA256)
	mu.Unlock()
	r, err := l.openAt(location)
	l.must(err)
	if got, err := r.Archive(ctx, "foo", "1"); err != nil || !bytes.Equal(got, a) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprintf("%q", asked) != `["" "bytes=60000-"]` {
		t.Errorf("asked for %q", asked)
	}
}

// What came before the program ended is not asked for again by the next.
func TestInterruptedDownloadIsResumed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l, f, location, a := newFlaky(t)
	f.cuts = []int64{100_000, 0} // then the server is silent
	r, err := l.openAt(location)
	l.must(err)
	if _, err := r.Fetch(ctx, "foo", "1"); err == nil || !strings.Contains(err.Error(), "100000 of") {
		t.Fatalf("half an archive: %v", err)
	}
	f.check(t, 100_000, "", "bytes=100000-")
	f.down = true
	if _, err := r.Fetch(ctx, "foo", "1"); err == nil || !strings.Contains(err.Error(), "503") {
		t.Fatalf("from a server that is down: %v", err)
	}
	f.down = false
	r, err = l.openAt(location)
	l.must(err)
	if got, err := r.Archive(ctx, "foo", "1"); err != nil || !bytes.Equal(got, a) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	f.check(t, int64(len(a)), "", "bytes=100000-", "bytes=100000-", "bytes=100000-")
}

// A server may know no ranges, or send another than was asked for.
func TestServerWithoutRanges(t *testing.T) {
	t.Parallel()
	l, f, location, a := newFlaky(t)
	f.cuts, f.noRanges = []int64{50_000}, true
	r, err := l.openAt(location)
	l.must(err)
	if got, err := r.Archive(context.Background(), "foo", "1"); err != nil || !bytes.Equal(got, a) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	f.check(t, 50_000+int64(len(a)), "", "bytes=50000-")

	l.forget()
	f.cuts, f.noRanges, f.wrong = []int64{50_000}, false, true
	r, err = l.openAt(location)
	l.must(err)
	if _, err := r.Archive(context.Background(), "foo", "1"); err == nil || !strings.Contains(err.Error(), "another part") {
		t.Errorf("another part: %v", err)
	}
}

// What a crash left in the cache may be rubbish: it costs another download, and
// is never used.
func TestCacheIsNotBelieved(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l, f, location, a := newFlaky(t)
	r, err := l.openAt(location)
	l.must(err)
	sum := refOf(a).SHA256
	part := filepath.Join(l.options.Cache, "partial", sum.String()[:2], sum.String()[2:])
	whole := filepath.Join(l.options.Cache, filepath.FromSlash(blobName(sum)))
	total := int64(0)
	for name, prepare := range map[string]func(){
		"a beginning of zeros":     func() { l.write(part, make([]byte, 70_000)) },
		"more than there can be":   func() { l.write(part, make([]byte, len(a)+1)) },
		"all of it, one bit wrong": func() { b := bytes.Clone(a); b[9] ^= 1; l.write(part, b) },
		"a whole one, a bit wrong": func() { b := bytes.Clone(a); b[9] ^= 1; l.write(whole, b) },
		"a whole one, cut off":     func() { l.write(whole, a[:len(a)/2]) },
		"a whole one, of no bytes": func() { l.write(whole, nil) },
	} {
		os.Remove(whole)
		os.Remove(part)
		prepare()
		if got, err := r.Archive(ctx, "foo", "1"); err != nil || !bytes.Equal(got, a) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		f.mu.Lock()
		if f.sent-total < int64(len(a)) {
			t.Errorf("%s: only %d bytes came", name, f.sent-total)
		}
		total = f.sent
		f.mu.Unlock()
		if _, err := os.Stat(part); err == nil {
			t.Errorf("%s: the part is still there", name)
		}
	}
	// A file that is whole as a part was not renamed: nothing is asked for.
	os.Remove(whole)
	l.write(part, a)
	if got, err := r.Archive(ctx, "foo", "1"); err != nil || !bytes.Equal(got, a) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sent != total {
		t.Error("what was there was sent again")
	}
}

func (l *lab) write(path string, data []byte) {
	l.t.Helper()
	l.must(os.MkdirAll(filepath.Dir(path), 0o700))
	l.must(os.WriteFile(path, data, 0o600))
}

// Several who want the same archive at once share one download.
func TestDownloadsAtOnce(t *testing.T) {
	t.Parallel()
	l, f, location, a := newFlaky(t)
	r, err := l.openAt(location)
	l.must(err)
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if got, err := r.Archive(context.Background(), "foo", "1"); err != nil || !bytes.Equal(got, a) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	all.Wait()
	f.check(t, int64(len(a)), "")
}

// A server that goes silent in the middle is given up on.
func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base, err := url.Parse("http://registry.example/")
		if err != nil {
			t.Fatal(err)
		}
		st := &httpStore{base, &http.Client{Transport: silent{}}, false, watch{}}
		start := time.Now()
		_, err = readSmall(context.Background(), st, "timestamp", 100)
		if err == nil || !strings.Contains(err.Error(), "sent nothing") {
			t.Errorf("read %v", err)
		}
		if d := time.Since(start); d != 3*idle/2 {
			t.Errorf("gave up after %s", d)
		}
	})
}

// Who waits is told after a few seconds that he does, in the middle of an answer
// too; and who no longer wants to is not kept.
func TestWaiting(t *testing.T) {
	for _, tc := range []struct {
		why  string
		from http.RoundTripper
		want []time.Duration // when something is said
	}{
		{"an answer that stops, and stops again", silent{}, []time.Duration{patience, idle/2 + patience}},
		{"no answer", mute{}, []time.Duration{patience}},
	} {
		t.Run(tc.why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var mu sync.Mutex
				var said []time.Duration
				o := Options{Client: &http.Client{Transport: tc.from}, Waiting: func(location string) {
					if location != "http://registry.example" {
						t.Errorf("waits for %q", location)
					}
					mu.Lock()
					defer mu.Unlock()
					said = append(said, time.Since(start))
				}}
				st, _, err := openStore(t.Context(), "http://registry.example/", o)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(idle-time.Second, cancel)
				_, err = readSmall(ctx, st, "timestamp", 100)
				if !errors.Is(err, context.Canceled) || time.Since(start) != idle-time.Second {
					t.Errorf("after %s: %v", time.Since(start), err)
				}
				mu.Lock()
				defer mu.Unlock()
				if !slices.Equal(said, tc.want) {
					t.Errorf("said something after %v, want %v", said, tc.want)
				}
			})
		})
	}
}

// mute is a transport that does not answer.
type mute struct{}

func (mute) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// Where nobody is, that is told apart from what a server says.
func TestUnreachable(t *testing.T) {
	setS3Environment(t)
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	l := emptyLab(t)
	closed := httptest.NewServer(nil)
	closed.Close()
	for _, location := range []string{closed.URL, "s3://bucket/prefix?region=us-east-1&use_path_style=true&endpoint=" + closed.URL} {
		_, err := l.openAt(location)
		var gone *Unreachable
		var request *url.Error
		if !errors.As(err, &gone) || gone.Location != location || !errors.As(err, &request) || strings.Contains(err.Error(), "RequestID") {
			t.Errorf("%s: %v", location, err)
		}
	}
	server := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	if _, err := l.openAt(server.URL); err == nil || errors.As(err, new(*Unreachable)) {
		t.Errorf("a server: %v", err)
	}
	for _, location := range []string{"gs://bucket/prefix", "azblob://bucket"} {
		if _, err := l.openAt(location); err == nil || !strings.Contains(err.Error(), "a registry is a directory, or begins with http://, https://, s3:// or file://") {
			t.Errorf("%s: %v", location, err)
		}
	}
}

// Storage that overwrites what was to be created is not written to: a registry
// that is there stays, and none is made.
func TestStorageThatOverwrites(t *testing.T) {
	setS3Environment(t)
	ctx := context.Background()
	l := emptyLab(t)
	backend := s3mem.New()
	l.must(backend.CreateBucket("bucket"))
	inner := gofakes3.New(backend).Server()
	var careless atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if careless.Load() {
			r.Header.Del("If-None-Match")
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	at := func(prefix string) string {
		return "s3://bucket/" + prefix + "?region=us-east-1&use_path_style=true&endpoint=" + server.URL
	}
	l.must(Init(ctx, at("good"), l.policy(), l.options, l.keys()...))
	content := func() string {
		var all []string
		list, err := backend.ListBucket("bucket", nil, gofakes3.ListBucketPage{})
		l.must(err)
		for _, o := range list.Contents {
			all = append(all, o.Key+" "+o.ETag)
		}
		return strings.Join(all, "\n")
	}
	before := content()
	careless.Store(true)
	for what, err := range map[string]error{
		"made over another": Init(ctx, at("good"), l.policy(), l.options, l.keys()...),
		"made":              Init(ctx, at("new"), l.policy(), l.options, l.keys()...),
		"opened":            func() error { _, err := OpenWriter(ctx, at("good"), l.trust, l.options); return err }(),
	} {
		want := "If-None-Match"
		if what == "made over another" {
			want = "there is a registry at"
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if after := content(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	careless.Store(false)
	l.must(Init(ctx, at("new"), l.policy(), l.options, l.keys()...))
	_, err := l.openAt("s3://nobucket?region=us-east-1&use_path_style=true&endpoint=" + server.URL)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "object storage said NoSuchBucket: ") || strings.Contains(err.Error(), "RequestID") {
		t.Errorf("no bucket: %v", err)
	}
}

// Object storage that goes silent is given up on as well, whether or not it has
// begun to answer.
func TestSilentStorage(t *testing.T) {
	for _, answers := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			bucket := blob.NewBucket(silentBucket{answers: answers})
			start, said := time.Now(), new(atomic.Int32)
			st := blobStore{bucket, watch{"s3://bucket", func(string) { said.Add(1) }}}
			_, err := readSmall(context.Background(), st, "timestamp", 100)
			if err == nil || !strings.Contains(err.Error(), "sent nothing for 1m0s") || time.Since(start) != idle || said.Load() == 0 {
				t.Errorf("answers %v: after %s, said %d times: %v", answers, time.Since(start), said.Load(), err)
			}
			if err := st.close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A silentBucket is object storage that never gets to the end of an answer.
type silentBucket struct {
	driver.Bucket
	answers bool
}

func (b silentBucket) NewRangeReader(ctx context.Context, _ string, _, _ int64, _ *driver.ReaderOptions) (driver.Reader, error) {
	if !b.answers {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &silentReader{ctx: ctx}, nil
}

func (silentBucket) ErrorCode(error) gcerrors.ErrorCode { return gcerrors.Unknown }
func (silentBucket) ErrorAs(error, any) bool            { return false }
func (silentBucket) Close() error                       { return nil }

type silentReader struct {
	driver.Reader
	ctx context.Context
}

func (r *silentReader) Attributes() *driver.ReaderAttributes {
	return &driver.ReaderAttributes{Size: 100}
}
func (r *silentReader) Close() error { return nil }
func (r *silentReader) Read(p []byte) (int, error) {
	<-r.ctx.Done()
	return 0, r.ctx.Err()
}

// silent is a transport that answers a few bytes, half a wait later some more, and
// then nothing.
type silent struct{}

func (silent) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: &silence{ctx: r.Context()}, Request: r}, nil
}

type silence struct {
	ctx context.Context
	n   int
}

func (s *silence) Read(p []byte) (int, error) {
	s.n++
	switch s.n {
	case 1:
		return copy(p, "abc"), nil
	case 2:
		select {
		case <-time.After(idle / 2):
			return copy(p, "def"), nil
		case <-s.ctx.Done():
			return 0, s.ctx.Err()
		}
	}
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

func (s *silence) Close() error { return nil }

// A web server that says 403 of what is not there, as object storage does, is no
// obstacle; one that fails is not taken for one that has nothing newer.
func TestWebServersSayNo(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.publish("foo", "1")
	for status, ok := range map[int]bool{http.StatusForbidden: true, http.StatusNotFound: true, http.StatusGone: true, http.StatusBadGateway: false} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			path := filepath.Join(l.dir, filepath.FromSlash(r.URL.Path))
			if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
				http.Error(w, "no", status)
				return
			}
			http.ServeFile(w, r, path)
		}))
		_, err := l.openAt(server.URL)
		if ok != (err == nil) {
			t.Errorf("%d: %v", status, err)
		}
		server.Close()
	}
	for _, location := range []string{"ftp://example.com/x", "http://example.com/x?y=z", "s3://", ""} {
		if location == "" {
			location = filepath.Join(t.TempDir(), "nothing")
		}
		if _, err := l.openAt(location); err == nil {
			t.Errorf("opened %q", location)
		}
	}
	if _, err := OpenWriter(context.Background(), "http://127.0.0.1:1/", l.trust, l.options); err == nil || !strings.Contains(err.Error(), "cannot write") {
		t.Errorf("writing over HTTP: %v", err)
	}
}
