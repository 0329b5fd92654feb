package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"rideau/extension/pack"
)

// A local registry is a plain directory that the user named.
type local struct {
	base     string
	index    index
	packages map[string][]localPackage // in the order of their versions
}

type localPackage struct {
	release *Release
	pack    *pack.Package
	path    string // of the archive; "" for a directory
}

// OpenDirectory opens a directory whose entries are directories of packages, or
// archives of them (.tar.gz, .tgz); a directory that is itself a package is a
// registry of one. Nothing in it is signed: it is for what the user wrote, or
// named. One package that cannot be read is an error, and so are two of one name
// and version.
func OpenDirectory(dir string) (*Registry, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	l := &local{base: filepath.Base(dir), packages: map[string][]localPackage{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []error
	if isPackage(os.DirFS(dir)) {
		all = append(all, l.addDir(dir))
		entries = nil
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := os.Stat(path) // a link counts as what it leads to
		switch name := e.Name(); {
		case strings.HasPrefix(name, "."):
		case err != nil:
			all = append(all, err)
		case info.IsDir():
			if isPackage(os.DirFS(path)) {
				all = append(all, l.addDir(path))
			}
		case strings.HasSuffix(name, ".tar.gz"), strings.HasSuffix(name, ".tgz"):
			all = append(all, l.addArchive(path))
		}
	}
	if err := errors.Join(all...); err != nil {
		return nil, fmt.Errorf("could not read the packages in %q: %w", dir, err)
	}
	for _, name := range slices.Sorted(maps.Keys(l.packages)) {
		byVersion := map[string]localPackage{}
		var releases []*Release
		for _, p := range l.packages[name] {
			if other, ok := byVersion[p.release.Version]; ok {
				return nil, fmt.Errorf("package %q has version %q twice in %q: %q and %q", name, p.release.Version, dir, other.path, p.path)
			}
			byVersion[p.release.Version] = p
			releases = append(releases, p.release)
		}
		l.index.Entries = append(l.index.Entries, summarize(releases))
		sorted := l.packages[name][:0]
		for _, r := range releases {
			sorted = append(sorted, byVersion[r.Version])
		}
	}
	return &Registry{from: l, location: dir}, nil
}

// isPackage reports whether a directory is meant to be a package: it has a
// control file, of the plain or of PostgreSQL's kind.
func isPackage(fsys fs.FS) bool {
	if _, err := fs.Stat(fsys, "control"); err == nil {
		return true
	}
	native, err := fs.Glob(fsys, "*.control")
	return err == nil && len(native) > 0
}

func (l *local) addDir(path string) error {
	p, err := pack.Read(os.DirFS(path))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return l.add(p, path, "", 0)
}

func (l *local) addArchive(path string) error {
	data, err := readFile(path, maxArchive)
	if err != nil {
		return err
	}
	p, err := readArchive(data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return l.add(p, path, path, int64(len(data)))
}

func (l *local) add(p *pack.Package, path, archive string, size int64) error {
	r := releaseOf(p, size)
	if r.Name == "" || r.Version == "" {
		return fmt.Errorf("%s: its control file has no name or no version", path)
	}
	l.packages[r.Name] = append(l.packages[r.Name], localPackage{r, p, archive})
	return nil
}

func (l *local) name() string     { return l.base }
func (l *local) signed() bool     { return false }
func (l *local) entries() []Entry { return l.index.Entries }
func (l *local) close() error     { return nil }

func (l *local) releases(_ context.Context, name string) ([]*Release, error) {
	var all []*Release
	for _, p := range l.packages[name] {
		r := *p.release
		all = append(all, &r)
	}
	return all, nil
}

func (l *local) find(r *Release) (localPackage, error) {
	for _, p := range l.packages[r.Name] {
		if p.release.Version == r.Version {
			return p, nil
		}
	}
	return localPackage{}, &NotFound{Name: r.Name, Version: r.Version}
}

func (l *local) fetch(_ context.Context, r *Release) (*pack.Package, error) {
	p, err := l.find(r)
	return p.pack, err
}

func (l *local) archive(_ context.Context, r *Release) ([]byte, error) {
	p, err := l.find(r)
	if err != nil {
		return nil, err
	}
	if p.path == "" {
		var b bytes.Buffer
		_, err := p.pack.WriteArchive(&b)
		return b.Bytes(), err
	}
	data, err := readFile(p.path, maxArchive)
	if err == nil && refOf(data).SHA256.String() != p.release.SHA256 {
		err = fmt.Errorf("file %q has changed since it was read", p.path)
	}
	return data, err
}
