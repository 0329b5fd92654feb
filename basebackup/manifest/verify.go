package manifest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// piece is how much of a file is read at a time: enough that a call costs
// nothing beside it, and few enough to be in the cache still when it is hashed
// and when Options.Block looks at it. It is a multiple of the page size.
const piece = 256 << 10

// ignored is what pg_verifybackup leaves out, on disk and in the manifest, with
// what is below: WAL has its own proof, and the others may be changed when a
// backup is made ready to start.
var ignored = []string{Name, "pg_wal", "postgresql.auto.conf", "recovery.signal", "standby.signal"}

// Options say how to verify. The zero value is good.
type Options struct {
	// Jobs is how many files are read at a time. Less than 1 means one a processor.
	Jobs int

	// Progress is told how many bytes have been read of how many that will be.
	// The calls come one at a time, from several goroutines, and hold up the
	// reading. Nil means that nobody wants to know.
	Progress func(done, total int64)

	// Block sees each file that is read, of the right size and under its path in
	// the manifest, in pieces: in order, each beginning at a multiple of 8192 and,
	// unless it is the file's last, that long too. Calls for different files come
	// at the same time. The bytes are Block's until it returns. Nil means that
	// nobody looks, and then files without checksum are not read.
	Block func(path string, offset int64, b []byte)
}

// A Kind is what is wrong with a file.
type Kind string

// What can be wrong.
const (
	Missing    Kind = "missing"    // in the manifest and not on disk
	Extra      Kind = "extra"      // on disk and not in the manifest
	Size       Kind = "size"       // longer or shorter than the manifest says
	Mismatch   Kind = "checksum"   // of the right size, and not the bytes it was
	Irregular  Kind = "irregular"  // neither a file nor a directory
	Unreadable Kind = "unreadable" // it could not be looked at, or not be read
)

// A Problem is one file that is not as it should be, or a directory that could
// not be read.
type Problem struct {
	Path   string // relative, with '/'
	Kind   Kind
	Detail string // what a person should know beyond the two
}

func (p Problem) String() string { return fmt.Sprintf("%q %s", p.Path, p.Detail) }

// A Report is what came of Verify.
type Report struct {
	Manifest *Manifest
	Problems []Problem // by path; none if all is well
	Files    int       // that were found and are in the manifest
	Bytes    int64     // that were read
}

// Verify holds the backup in dir against its manifest, as pg_verifybackup does:
// first which files there are, with symbolic links followed, and their sizes, then
// the checksums of those with which nothing is wrong yet. What it finds is in the
// Report. The error is about the manifest, a *ParseError if it could be read, or
// about ctx.
func Verify(ctx context.Context, dir string, o Options) (*Report, error) {
	file, err := os.Open(filepath.Join(dir, Name))
	if err != nil {
		return nil, fmt.Errorf("could not open the backup manifest: %w", err)
	}
	m, err := Parse(file)
	file.Close()
	if err != nil {
		return nil, err
	}
	v := &verifier{dir: dir, o: o, report: &Report{Manifest: m}, files: make(map[string]*entry, len(m.Files))}
	for i := range m.Files {
		v.files[m.Files[i].Path] = &entry{File: &m.Files[i]}
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("could not look at the backup: %w", err)
	}
	v.directory(ctx, "", []fs.FileInfo{info})
	if ctx.Err() == nil {
		v.read(ctx, v.compare())
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	slices.SortFunc(v.report.Problems, func(a, b Problem) int { return cmp.Compare(a.Path, b.Path) })
	return v.report, nil
}

// An entry is a file of the manifest.
type entry struct {
	*File
	found bool // on disk, if only to be complained of
	bad   bool // complained of
}

type verifier struct {
	dir        string
	o          Options
	files      map[string]*entry
	unreadable []string // directories of whose content nothing is known

	mu          sync.Mutex // of what follows, and of calls of Progress
	report      *Report
	done, total int64
}

func (v *verifier) problem(path string, kind Kind, format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Problems = append(v.report.Problems, Problem{path, kind, fmt.Sprintf(format, args...)})
}

func (v *verifier) full(path string) string { return filepath.Join(v.dir, filepath.FromSlash(path)) }

// below reports whether path is one of tops, or below one that is a directory.
func below(path string, tops []string) bool {
	return slices.ContainsFunc(tops, func(top string) bool {
		rest, ok := strings.CutPrefix(path, top)
		return top == "." || ok && (rest == "" || rest[0] == '/')
	})
}

// directory goes through a directory, "" being the backup's own. Above are those
// it is in and itself: links can make a directory its own descendant.
func (v *verifier) directory(ctx context.Context, path string, above []fs.FileInfo) {
	names, err := os.ReadDir(v.full(path))
	if err != nil {
		v.unknown(cmp.Or(path, "."), err)
		return
	}
	for _, d := range names {
		if ctx.Err() != nil {
			return
		}
		path := strings.TrimPrefix(path+"/"+d.Name(), "/")
		if below(path, ignored) {
			continue
		}
		info, err := os.Stat(v.full(path))
		switch {
		case err != nil:
			v.unknown(path, err)
		case info.IsDir() && slices.ContainsFunc(above, func(a fs.FileInfo) bool { return os.SameFile(a, info) }):
			v.irregular(path, "is a link to a directory that it is in")
		case info.IsDir():
			v.directory(ctx, path, append(above[:len(above):len(above)], info))
		case !info.Mode().IsRegular():
			v.irregular(path, "is neither a file nor a directory")
		default:
			v.file(path, info.Size())
		}
	}
}

// unknown reports what cannot be looked at, and then nothing more of it: what is
// below is not missing for all we know.
func (v *verifier) unknown(path string, err error) {
	v.unreadable = append(v.unreadable, path)
	v.problem(path, Unreadable, "could not be looked at: %v", reason(err))
}

func (v *verifier) irregular(path, detail string) {
	if e := v.files[path]; e != nil {
		e.found, e.bad = true, true
	}
	v.problem(path, Irregular, "%s", detail)
}

// reason is err without the path, which a Problem has already.
func reason(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

func (v *verifier) file(path string, size int64) {
	e := v.files[path]
	if e == nil {
		v.problem(path, Extra, "is on disk but not in the manifest")
		return
	}
	e.found = true
	v.report.Files++
	if size != e.Size {
		e.bad = true
		v.problem(path, Size, "has %d bytes on disk, and %d in the manifest", size, e.Size)
	}
}

// compare reports what is missing, and answers which files are to be read: the
// largest first, so that none is left for the end when all others are done.
func (v *verifier) compare() (toRead []*entry) {
	for path, e := range v.files {
		switch {
		case below(path, ignored) || below(path, v.unreadable):
		case !e.found:
			v.problem(path, Missing, "is in the manifest but not on disk")
		case !e.bad && (e.Algorithm != None || v.o.Block != nil):
			toRead = append(toRead, e)
			v.total += e.Size
		}
	}
	slices.SortFunc(toRead, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Path, b.Path))
	})
	return toRead
}

func (v *verifier) read(ctx context.Context, files []*entry) {
	queue := make(chan *entry, len(files))
	for _, e := range files {
		queue <- e
	}
	close(queue)
	n := v.o.Jobs
	if n < 1 {
		n = runtime.NumCPU()
	}
	var jobs sync.WaitGroup
	for range min(n, len(files)) {
		jobs.Go(func() {
			buffer := make([]byte, piece)
			for e := range queue {
				v.readFile(ctx, e.File, buffer)
			}
		})
	}
	jobs.Wait()
}

// readFile reads a file once, for all who want to see it. It gives up in silence
// when ctx ends: there will be no report.
func (v *verifier) readFile(ctx context.Context, f *File, buffer []byte) {
	file, err := os.Open(v.full(f.Path))
	if err != nil {
		v.problem(f.Path, Unreadable, "could not be opened: %v", reason(err))
		return
	}
	defer file.Close()
	var sum hash.Hash
	if f.Algorithm != None {
		sum = algorithms[f.Algorithm].hash()
	}
	var at int64
	for err == nil && ctx.Err() == nil {
		var n int
		if n, err = io.ReadFull(file, buffer); n == 0 {
			break
		}
		if sum != nil {
			sum.Write(buffer[:n])
		}
		if v.o.Block != nil {
			v.o.Block(f.Path, at, buffer[:n])
		}
		at += int64(n)
		v.progress(int64(n))
	}
	switch {
	case ctx.Err() != nil:
	case err != io.EOF && err != io.ErrUnexpectedEOF:
		v.problem(f.Path, Unreadable, "could not be read at %d: %v", at, reason(err))
	case at != f.Size: // it had that size a moment ago
		v.problem(f.Path, Size, "had %d bytes when it was read, and %d in the manifest", at, f.Size)
	case sum != nil && !bytes.Equal(sum.Sum(nil), f.Checksum):
		v.problem(f.Path, Mismatch, "has %s %x on disk, and %x in the manifest", f.Algorithm, sum.Sum(nil), f.Checksum)
	}
}

func (v *verifier) progress(n int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done += n
	v.report.Bytes = v.done
	if v.o.Progress != nil {
		v.o.Progress(v.done, v.total)
	}
}
