package basebackup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"rideau/internal/durable"
)

// A place is where a tablespace's files go.
type place struct {
	space tablespace
	local string // absolute; empty: in place
	link  string // where DIR's link leads now; empty: there is none
}

// places decides where tablespaces go: where the user says, else where DIR's
// link leads already, else where they are on the server. links are DIR's, by
// OID. It touches nothing.
func places(spaces []tablespace, mapping, links map[string]string) ([]place, error) {
	unused := map[string]bool{}
	for old := range mapping {
		unused[old] = true
	}
	var out []place
	taken := map[string]uint32{}
	for _, t := range spaces {
		p := place{space: t, link: links[strconv.FormatUint(uint64(t.oid), 10)]}
		if t.location == "" {
			out = append(out, p)
			continue
		}
		local, mapped := mapping[path.Clean(t.location)]
		delete(unused, path.Clean(t.location))
		switch {
		case mapped:
			p.local = filepath.Clean(local)
		case p.link != "":
			p.local = p.link
		default:
			p.local = filepath.FromSlash(path.Clean(t.location))
		}
		if other, ok := taken[p.local]; ok {
			return nil, &TablespaceError{t.oid, t.location, p.local, fmt.Sprintf("tablespace %d goes there", other)}
		}
		taken[p.local] = t.oid
		out = append(out, p)
	}
	for old := range unused {
		return nil, &MappingError{Location: old}
	}
	return out, nil
}

// A MappingError says that a tablespace was mapped that the server does not
// have.
type MappingError struct{ Location string }

func (e *MappingError) Error() string {
	return fmt.Sprintf("the server has no tablespace at %q", e.Location)
}

// links reads where the tablespace links of DIR lead.
func links(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "pg_tblspc"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	out := map[string]string{}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		target, err := os.Readlink(filepath.Join(dir, "pg_tblspc", e.Name()))
		if err != nil {
			return nil, err
		}
		if !filepath.IsAbs(target) { // as the link has it: from where the link is
			target = filepath.Join(dir, "pg_tblspc", target)
		}
		out[e.Name()] = filepath.Clean(target)
	}
	return out, err
}

// vacant reports whether a tablespace can be put into p.local: nothing is there,
// or what DIR's own link already led to.
func (p place) vacant() error {
	if p.local == "" {
		return nil
	}
	entries, err := os.ReadDir(p.local)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return &TablespaceError{p.space.oid, p.space.location, p.local, err.Error()}
	case p.link == p.local:
		return nil
	}
	for _, e := range entries {
		if e.Name() != "lost+found" && !durable.IsTemp(e.Name()) {
			return &TablespaceError{p.space.oid, p.space.location, p.local, fmt.Sprintf("it is not empty: there is %q", e.Name())}
		}
	}
	return nil
}

// make makes the directory and DIR's link to it.
func (p place) make(dir, versionDir string, mode fs.FileMode) error {
	link := filepath.Join(dir, "pg_tblspc", strconv.FormatUint(uint64(p.space.oid), 10))
	if p.local == "" {
		return os.MkdirAll(filepath.Join(link, versionDir), mode)
	}
	if err := os.MkdirAll(filepath.Join(p.local, versionDir), mode); err != nil {
		return err
	}
	if p.link == p.local {
		return nil
	}
	info, err := os.Lstat(link)
	switch {
	case err == nil && info.IsDir():
		// A copy made by another tool may have the files themselves here, and
		// PostgreSQL refuses to start with them.
		return &TablespaceError{p.space.oid, p.space.location, link, "it is a directory and must be a symbolic link"}
	case err == nil:
		if err := os.Remove(link); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return os.Symlink(p.local, link)
}

// A LiveError says that a directory which would be written to is one that the
// server itself uses.
type LiveError struct{ Server, Dir string }

func (e *LiveError) Error() string {
	return fmt.Sprintf("directory %q is server %q's own", e.Dir, e.Server)
}

// distinct makes sure that the directory local, if it exists, is not remote of
// the server's data directory: what is made in the one must not be seen in the
// other. Nothing that could be compared proves as much. Content and times can be
// copied, and a server changes its own while one looks.
func distinct(ctx context.Context, s *session, server, local, remote string) error {
	info, err := os.Stat(local)
	if err != nil || !info.IsDir() {
		return nil // not there: then it will be made, and is ours
	}
	probe, err := os.CreateTemp(local, ".rideau-probe-*.tmp")
	if err != nil {
		return err
	}
	name := probe.Name()
	defer func() { // and as if nobody had been there
		os.Remove(name)
		os.Chtimes(local, time.Time{}, info.ModTime())
	}()
	if err := probe.Close(); err != nil {
		return err
	}
	r, err := s.row(ctx, fmt.Sprintf("SELECT count(size) FROM pg_stat_file(%s, true)", literal(path.Join(remote, filepath.Base(name)))))
	if err != nil {
		return err
	}
	if r[0] != "0" {
		return &LiveError{server, local}
	}
	return nil
}

// linked reports whether a file has other names.
func linked(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && uint64(st.Nlink) > 1
}
