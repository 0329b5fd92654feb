package pack

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// checkPath refuses a path that could lead out of a directory, or that could be
// taken for another one.
func checkPath(name string) error {
	bad := ""
	switch {
	case name == "." || !fs.ValidPath(name):
		bad = "it could lead elsewhere"
	case len(name) > maxPath:
		bad = fmt.Sprintf("it is longer than %d bytes", maxPath)
	case strings.Count(name, "/") > maxDepth:
		bad = "it is too deep"
	case !utf8.ValidString(name) || strings.ContainsAny(name, `\`) || strings.ContainsFunc(name, unicode.IsControl):
		bad = "it has characters that a path should not have"
	}
	if bad != "" {
		return fmt.Errorf("path %q is refused: %s", name, bad)
	}
	return nil
}

// WriteArchive writes the package as a gzipped tar file and returns the SHA-256
// of what it wrote, in hex. The same package gives the same bytes: files are
// sorted, and have no times and no owners. (A later version of Go may compress
// better, and so give other bytes.)
//
// The control file is written as it was read, if it was.
func (p *Package) WriteArchive(w io.Writer) (string, error) {
	files, err := p.layout()
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	z, err := gzip.NewWriterLevel(io.MultiWriter(w, hash), gzip.BestCompression)
	if err != nil {
		return "", err
	}
	t := tar.NewWriter(z)
	var total int64
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := checkPath(name); err != nil {
			return "", err
		}
		f := files[name]
		if total += int64(len(f.Data)); total > maxTotal || len(f.Data) > maxFile {
			return "", fmt.Errorf("package %q is too large at %q: a file can have %d bytes, a package %d", p.Control.Name, name, maxFile, maxTotal)
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(f.Mode.Perm()), Size: int64(len(f.Data)), ModTime: time.Unix(0, 0)}
		if err := t.WriteHeader(h); err != nil {
			return "", fmt.Errorf("could not write %q into the archive: %w", name, err)
		}
		if _, err := t.Write(f.Data); err != nil {
			return "", fmt.Errorf("could not write %q into the archive: %w", name, err)
		}
	}
	if err := errors.Join(t.Close(), z.Close()); err != nil {
		return "", fmt.Errorf("could not write the archive: %w", err)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// ReadArchive reads what WriteArchive writes, from whomever it comes: of an
// archive of any size no more than half a gigabyte is unpacked, and one that has
// anything but plain files with plain paths, a file twice, a file that is no
// part of a package, or something behind its end, is refused.
func ReadArchive(r io.Reader) (*Package, error) { return readArchive(r, newLimit()) }

func readArchive(r io.Reader, l *limit) (*Package, error) {
	hash := sha256.New()
	limited := &io.LimitedReader{R: r, N: l.total + 1}
	in := bufio.NewReader(io.TeeReader(limited, hash))
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, fmt.Errorf("could not read archive: %w", err)
	}
	z.Multistream(false)
	// Beside the files themselves a tar file has headers and padding.
	plain := &io.LimitedReader{R: z, N: l.total + l.entries*4096}
	a, t := tar.NewReader(plain), tree{}
	for {
		h, err := a.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("could not read archive: %w", err)
		}
		if err := t.admit(h, l); err != nil {
			return nil, err
		}
		data, err := l.readAll(h.Name, a)
		if err != nil {
			return nil, err
		}
		t[h.Name] = &File{Path: h.Name, Mode: plainMode(fs.FileMode(h.Mode)), Data: data}
	}
	if err := rest(plain, "tar file"); err != nil {
		return nil, err
	}
	if plain.N <= 0 {
		return nil, fmt.Errorf("archive is refused: it is larger than %d bytes", l.total)
	}
	if n, err := io.Copy(io.Discard, in); err != nil || n > 0 {
		return nil, errors.Join(errors.New("archive is refused: something stands behind its end"), err)
	}
	if limited.N <= 0 {
		return nil, fmt.Errorf("archive is refused: it is larger than %d bytes", l.total)
	}
	for name := range t {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if t[dir] != nil {
				return nil, fmt.Errorf("archive is refused: %q is a file and a folder", dir)
			}
		}
	}
	p, err := t.one()
	if err != nil {
		return nil, err
	}
	files, err := p.layout()
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if _, part := files[name]; !part {
			return nil, fmt.Errorf("archive is refused: %q is no part of a package", name)
		}
	}
	p.SHA256 = hex.EncodeToString(hash.Sum(nil))
	return p, nil
}

// admit refuses entries of an archive that are not what WriteArchive writes.
func (t tree) admit(h *tar.Header, l *limit) error {
	if h.Typeflag != tar.TypeReg {
		return fmt.Errorf("archive is refused: %q is not a regular file", h.Name)
	}
	if err := checkPath(h.Name); err != nil {
		return fmt.Errorf("archive is refused: %w", err)
	}
	if t[h.Name] != nil {
		return fmt.Errorf("archive is refused: it has %q twice", h.Name)
	}
	if int64(len(t)) >= l.entries {
		return fmt.Errorf("archive is refused: it has more than %d files", l.entries)
	}
	if h.Size > l.file {
		return fmt.Errorf("archive is refused: %q is larger than %d bytes", h.Name, l.file)
	}
	return nil
}

// rest reads a stream to its end, where nothing but zeros may be left: tar files
// are filled up with them.
func rest(r io.Reader, what string) error {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		for _, b := range buf[:n] {
			if b != 0 {
				return fmt.Errorf("archive is refused: something stands behind the end of its %s", what)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("could not read archive: %w", err)
		}
	}
}
