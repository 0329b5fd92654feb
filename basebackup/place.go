package basebackup

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"syscall"
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
		case mapped && !filepath.IsAbs(local):
			return nil, &TablespaceError{t.oid, t.location, local, "the path is not absolute"}
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
		out[e.Name()] = target
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
		if e.Name() != "lost+found" {
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

// distinct makes sure that local, if it exists, is not the directory remote of
// the server's own. Two files can have the same content and times of
// modification, but the time of the last change of an inode cannot be copied.
// One file can have the same by chance, if the server's was made in the second
// in which ours was; so all of names must, which are in both.
func distinct(ctx context.Context, s *session, server, local, remote string, names []string) error {
	paths := make([]string, len(names))
	for i, n := range names {
		paths[i] = path.Join(remote, n)
	}
	rows, err := s.rows(ctx, fmt.Sprintf(`SELECT extract(epoch FROM change)::int8, extract(epoch FROM modification)::int8
FROM unnest(%s::text[]) WITH ORDINALITY u(p, n), pg_stat_file(p, true) ORDER BY n`, literal(textArray(paths))))
	if err != nil {
		return err
	}
	if len(rows) != len(names) {
		return fmt.Errorf("server answered %d rows where %d were expected", len(rows), len(names))
	}
	for i, n := range names {
		info, err := os.Stat(filepath.Join(local, filepath.FromSlash(n)))
		if err != nil {
			return nil // not there, or not to be had: then it is not written to either
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || rows[i][0] != strconv.FormatInt(changeTime(st), 10) || rows[i][1] != strconv.FormatInt(info.ModTime().Unix(), 10) {
			return nil
		}
	}
	return &LiveError{server, local}
}

// distinctDir makes sure that dir is not the server's data directory. In that,
// while the server runs, there is the lock file of this server and no other.
func distinctDir(ctx context.Context, s *session, server, dir string) error {
	local, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return nil
	}
	r, err := s.row(ctx, "SELECT encode(pg_read_binary_file('postmaster.pid', 0, 8192, true), 'hex')")
	if err != nil {
		return err
	}
	if r[0] != hex.EncodeToString(local) {
		return nil
	}
	return distinct(ctx, s, server, dir, "", []string{"PG_VERSION"})
}

// someNames are the directory dir itself, and some of what is in it.
func someNames(dir string) []string {
	const enough = 100
	names := []string{"."}
	filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(dir, name)
		if err != nil || relErr != nil || len(names) > enough {
			return filepath.SkipAll
		}
		if !e.IsDir() {
			names = append(names, filepath.ToSlash(rel))
		}
		return nil
	})
	return names
}
