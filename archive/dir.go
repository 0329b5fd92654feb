package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"rideau/internal/durable"
)

// Dir is a [Store] in the directory of that name, which must exist. Only plain
// files count; names that begin with a dot are not the Store's, among them
// files in the making and the directory's lock.
type Dir string

var _ Store = Dir("")

func (d Dir) path(name string) (string, error) {
	if name == "" || name[0] == '.' || strings.ContainsAny(name, `/\`+"\x00") {
		return "", fmt.Errorf("invalid file name %q", name)
	}
	return filepath.Join(string(d), name), nil
}

// Open implements [Store]. The content is an [*os.File].
func (d Dir) Open(_ context.Context, name string) (io.ReadCloser, int64, error) {
	path, err := d.path(name)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		// If it is the directory that is not there, nothing is known of what
		// is in it. A file system that is not mounted must not look like one
		// that has no more WAL.
		if _, dirErr := os.Stat(string(d)); dirErr != nil {
			return nil, 0, &unreachableError{dirErr}
		}
	}
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%q is not a plain file", path)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// unreachableError hides that the error below it is fs.ErrNotExist.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return e.err.Error() }

// Put implements [Store]. Only its owner can read the file: WAL holds all that
// the database does.
func (d Dir) Put(ctx context.Context, name string, content io.Reader) error {
	path, err := d.path(name)
	if err != nil {
		return err
	}
	f, err := durable.Create(path, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return f.Commit()
}

// List implements [Store].
func (d Dir) List(ctx context.Context, after string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		entries, err := os.ReadDir(string(d)) // sorted
		if err != nil {
			yield(Object{}, &unreachableError{err})
			return
		}
		for _, e := range entries {
			if e.Name() <= after || e.Name()[0] == '.' || !e.Type().IsRegular() {
				continue
			}
			if err := ctx.Err(); err != nil {
				yield(Object{}, err)
				return
			}
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed, or completed and renamed, since
			}
			if err != nil {
				yield(Object{}, err)
				return
			}
			if !yield(Object{Name: e.Name(), Size: info.Size(), Modified: info.ModTime()}, nil) {
				return
			}
		}
	}
}

// glance looks at names in the order of the directory, and no further than it
// must: a directory may hold years of WAL.
func (d Dir) glance(is func(name string) bool) (bool, error) {
	f, err := os.Open(string(d))
	if err != nil {
		return false, &unreachableError{err}
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(100)
		if slices.ContainsFunc(names, is) {
			return true, nil
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// Remove implements [Store]. The removal is not synced: a file that comes back
// after a power cut is removed again.
func (d Dir) Remove(_ context.Context, name string) error {
	path, err := d.path(name)
	if err != nil {
		return err
	}
	err = os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
