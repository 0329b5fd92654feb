package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"rideau/internal/durable"
)

// A cache is a folder of content by its digest, and of downloads that are not
// complete:
//
//	blobs/sha256/ab/cdef…        complete, verified when it came, and again when used
//	partial/ab/cdef…             the beginning of it
//
// What is there may be removed whenever no download runs. Whoever downloads
// holds the directory of the beginning, which stays.
type cache struct{ dir string }

// blob returns the content that r names, from the cache or from st. It is
// verified; whoever gets it need not.
func (c cache) blob(ctx context.Context, st store, r ref, limit int64) ([]byte, error) {
	name := blobName(r.SHA256)
	if err := r.check(limit); err != nil {
		return nil, &Refused{File: name, Reason: Oversized, Detail: err.Error()}
	}
	if c.dir == "" {
		tmp, err := os.MkdirTemp("", "rideau-registry-*")
		if err != nil {
			return nil, err
		}
		data, err := cache{tmp}.blob(ctx, st, r, limit)
		return data, errors.Join(err, os.RemoveAll(tmp))
	}
	path := filepath.Join(c.dir, filepath.FromSlash(name))
	data, err := readFile(path, r.Size)
	if err == nil && refOf(data) == r {
		return data, nil
	}
	// Not there, or damaged: a cache is not worth an error.
	if err := c.download(ctx, st, r, path); err != nil {
		return nil, err
	}
	data, err = readFile(path, r.Size)
	if err == nil && refOf(data) != r {
		err = fmt.Errorf("file %q does not have what was just written to it", path)
	}
	return data, err
}

// download brings what r names to path. What an earlier attempt left is kept
// and only the rest asked for; an attempt that is cut off is followed by another
// for as long as each brings something.
func (c cache) download(ctx context.Context, st store, r ref, path string) error {
	sum := r.SHA256.String()
	dir := filepath.Join(c.dir, "partial", sum[:2])
	for _, d := range []string{dir, filepath.Dir(path)} {
		if err := mkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	lock, err := wait(ctx, func() (*durable.Lock, error) { return durable.HoldDir(dir) })
	if err != nil {
		return err
	}
	defer lock.Close()
	// Another may have finished while we waited.
	if data, err := readFile(path, r.Size); err == nil && refOf(data) == r {
		return nil
	}
	part := filepath.Join(dir, sum[2:])
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()

	resumed, err := c.fill(ctx, st, r, f)
	var refused *Refused
	if resumed && errors.As(err, &refused) {
		// The beginning may be rubbish, of a crash for instance: once more, all of it.
		if err := f.Truncate(0); err != nil {
			return err
		}
		_, err = c.fill(ctx, st, r, f)
	}
	if errors.As(err, &refused) {
		// Not worth resuming.
		return errors.Join(err, os.Remove(part))
	}
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return durable.Rename(part, path)
}

// fill makes f what r names, beginning with what f has. It says whether f had
// something.
func (c cache) fill(ctx context.Context, st store, r ref, f *os.File) (resumed bool, err error) {
	name := blobName(r.SHA256)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	h := sha256.New()
	have, err := io.Copy(h, f)
	if err != nil {
		return false, err
	}
	resumed = have > 0
	if have > r.Size {
		return true, &Refused{File: name, Reason: Mismatch, Detail: "more is there than belongs to it"}
	}
	for have < r.Size {
		n, err := c.more(ctx, st, r, have, io.MultiWriter(f, h))
		have += n
		if err == nil || n > 0 && ctx.Err() == nil && !isRefused(err) {
			continue
		}
		return resumed, err
	}
	return resumed, matches(h, r, name)
}

// more brings some of what r names from offset on: all that is missing unless
// the connection ends before.
func (c cache) more(ctx context.Context, st store, r ref, offset int64, w io.Writer) (int64, error) {
	name := blobName(r.SHA256)
	body, err := st.open(ctx, name, offset)
	if err != nil {
		return 0, fmt.Errorf("could not get %q: %w", name, err)
	}
	defer body.Close()
	left := r.Size - offset
	n, err := io.Copy(w, io.LimitReader(body, left))
	if err != nil {
		return n, fmt.Errorf("could not get all of %q, %d of %d bytes are here: %w", name, offset+n, r.Size, err)
	}
	if n < left {
		if n == 0 {
			return 0, &Refused{File: name, Reason: Mismatch, Detail: fmt.Sprintf("it ends after %d of %d bytes", offset, r.Size)}
		}
		return n, nil // maybe there is more when asked again
	}
	// What is too long is not what was announced, even if it begins like it.
	var one [1]byte
	if k, err := io.ReadFull(body, one[:]); k > 0 {
		return n, &Refused{File: name, Reason: Oversized, Detail: fmt.Sprintf("it is longer than the %d bytes that were announced", r.Size)}
	} else if !errors.Is(err, io.EOF) {
		return n, nil // complete, whatever became of the connection
	}
	return n, nil
}

func matches(h hash.Hash, r ref, name string) error {
	if got := digest(h.Sum(nil)); got != r.SHA256 {
		return &Refused{File: name, Reason: Mismatch, Detail: "its SHA-256 is " + got.String()}
	}
	return nil
}

// wait takes a lock as soon as its holder lets go of it. A lock of flock's can
// only be tried for.
func wait(ctx context.Context, take func() (*durable.Lock, error)) (*durable.Lock, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		lock, err := take()
		var taken *durable.LockedError
		if err == nil || !errors.As(err, &taken) {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("gave up waiting: %w", err)
		case <-tick.C:
		}
	}
}
