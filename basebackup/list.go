package basebackup

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A kind of file decides how it is copied and checked.
type kind uint8

const (
	plain      kind = iota // of no relation
	mainFork               // blocks that may be spared if they have not changed
	sideFork               // free space map, visibility map, init: blocks, always whole
	theControl             // global/pg_control, last of all
)

// A file is one of the server's.
type file struct {
	path  string // in the data directory, with '/'; tablespaces as pg_tblspc/OID/...
	size  int64
	mtime int64 // unix seconds
	kind  kind
	segno uint32 // of a relation's fork: which gigabyte

	base bool // DIR had it, and it may be spared as the plan says for the base
	sum  *sum // while it is copied
}

// A listing is what there is to copy.
type listing struct {
	dirs    []string // parents before children
	files   []*file
	bytes   int64
	control *file    // pg_control, which is not among the files
	later   []string // pg_tblspc/OID of tablespaces that were made since the backup began
}

// listSQL walks the data directory. Everything may vanish while it does: then
// pg_stat_file's row is NULL and is dropped. What is not copied is not entered.
// A tablespace's directory is entered only at its own version's subdirectory:
// others may share the location.
const listSQL = `COPY (
WITH RECURSIVE f(path, name, size, mtime, isdir) AS (
  SELECT n, n, s.size, s.modification, s.isdir
  FROM pg_ls_dir('.', true, false) n, pg_stat_file(n, true) s WHERE s.isdir IS NOT NULL
UNION ALL
  SELECT f.path || '/' || n, n, s.size, s.modification, s.isdir
  FROM f, pg_ls_dir(f.path, true, false) n, pg_stat_file(f.path || '/' || n, true) s
  WHERE f.isdir AND NOT f.path = ANY (%[1]s::text[]) AND left(f.name, 9) <> 'pgsql_tmp' AND s.isdir IS NOT NULL
    AND (f.path !~ '^pg_tblspc/[0-9]+$' OR n = %[2]s)
)
SELECT path, CASE WHEN isdir THEN -1 ELSE size END::int8, extract(epoch FROM mtime)::int8 FROM f
) TO STDOUT (FORMAT binary)`

// emptied are directories whose content is never copied: it means something to
// the running server only (excludeDirContents in src/backend/backup/basebackup.c),
// or is fetched apart (pg_wal).
var emptied = []string{"pg_wal", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"}

// left are files that are never copied, wherever they are: excludeFiles in
// basebackup.c, and what a restore must not find: signals, old labels.
var left = map[string]bool{
	"postmaster.pid": true, "postmaster.opts": true, "backup_label": true, "tablespace_map": true,
	"backup_manifest": true, "postgresql.auto.conf.tmp": true, "current_logfiles.tmp": true, ".DS_Store": true,
	"backup_label.old": true, "tablespace_map.old": true, "backup_manifest.tmp": true,
	"recovery.signal": true, "standby.signal": true,
}

// versionDir is the directory of a server's own in a tablespace
// (TABLESPACE_VERSION_DIRECTORY in src/include/common/relpath.h).
func (f *facts) versionDir() string { return fmt.Sprintf("PG_%d_%d", f.major, f.catalog) }

// list asks the server for its files.
func list(ctx context.Context, s *stream, f *facts, logs bool) (*listing, error) {
	stop := context.AfterFunc(ctx, func() { s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	closed := append([]string{stateDir, "lost+found"}, emptied...)
	if f.statsDir != "" && !path.IsAbs(f.statsDir) {
		closed = append(closed, path.Clean(f.statsDir))
	}
	if !logs && f.logDir != "" && !path.IsAbs(f.logDir) {
		closed = append(closed, path.Clean(f.logDir))
	}
	if err := s.query(fmt.Sprintf(listSQL, literal(textArray(closed)), literal(f.versionDir()))); err != nil {
		return nil, err
	}
	if err := s.begin(); err != nil {
		return nil, err
	}
	l := &listing{}
	buf := make([]byte, 64<<10)
	for {
		_, ok, err := s.tuple()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		name, _, err := s.bytes(buf)
		if err != nil {
			return nil, err
		}
		p := string(name)
		size, _, err := s.integer()
		if err != nil {
			return nil, err
		}
		mtime, _, err := s.integer()
		if err != nil {
			return nil, err
		}
		if !filepath.IsLocal(p) || p == "." || p != path.Clean(p) || under(path.Dir(p), closed) {
			return nil, fmt.Errorf("server listed a file %q, which cannot be in its data directory", p)
		}
		l.add(p, size, mtime)
	}
	l.settle(f)
	return l, nil
}

// add takes one entry of the walk; size -1 is a directory.
func (l *listing) add(p string, size, mtime int64) {
	base := path.Base(p)
	switch {
	case p == stateDir, left[base], strings.HasPrefix(base, "pgsql_tmp"), strings.HasPrefix(base, "pg_internal.init"):
		return
	case size < 0:
		l.dirs = append(l.dirs, p)
		return
	}
	f := &file{path: p, size: size, mtime: mtime}
	f.kind, f.segno = kindOf(p)
	l.files = append(l.files, f)
}

// settle takes out what is only known to be superfluous once all is listed:
// other forks of unlogged relations, which start anew from their init fork;
// tablespaces that are inside the data directory, a second time; and those that
// were made since the backup began.
func (l *listing) settle(f *facts) {
	unlogged := map[string]bool{}
	for _, f := range l.files {
		if dir, rel, fork, _, ok := relationFile(f.path); ok && fork == "init" {
			unlogged[dir+"/"+rel] = true
		}
	}
	l.later = f.later(l.dirs)
	not := append(f.inside(l.dirs), l.later...)
	l.dirs = slices.DeleteFunc(l.dirs, func(d string) bool { return under(d, not) })
	kept := l.files[:0]
	for _, f := range l.files {
		if temporary(f.path) || under(f.path, not) {
			continue
		}
		if dir, rel, fork, _, ok := relationFile(f.path); ok && fork != "init" && unlogged[dir+"/"+rel] {
			continue
		}
		if f.kind == theControl {
			l.control = f
			continue
		}
		l.bytes += f.size
		kept = append(kept, f)
	}
	l.files = kept
}

// later are tablespaces that are not among those the backup began with. Replay
// makes them and what is in them, and fails if something is in its way: what it
// makes is a link.
func (f *facts) later(dirs []string) (found []string) {
	for _, d := range dirs {
		oid, ok := strings.CutPrefix(d, "pg_tblspc/")
		if n, is := number(oid); ok && is && !slices.ContainsFunc(f.spaces, func(t tablespace) bool { return t.oid == n }) {
			found = append(found, d)
		}
	}
	return found
}

// inside are the directories of tablespaces whose location is in the data
// directory itself: PostgreSQL warns of that, and allows it. The role cannot
// know the data directory's name, so they are found by their look.
func (f *facts) inside(dirs []string) (found []string) {
	for _, d := range dirs {
		parent := path.Dir(d)
		if path.Base(d) != f.versionDir() || strings.HasPrefix(d, "pg_tblspc/") || parent == "." {
			continue
		}
		for _, t := range f.spaces {
			if strings.HasSuffix(t.location, "/"+parent) {
				found = append(found, d)
			}
		}
	}
	return found
}

func under(p string, dirs []string) bool {
	for _, d := range dirs {
		if p == d || strings.HasPrefix(p, d+"/") {
			return true
		}
	}
	return false
}

// kindOf tells a file's kind from its name, and the segment of a relation's.
func kindOf(p string) (kind, uint32) {
	if p == "global/pg_control" {
		return theControl, 0
	}
	_, _, fork, segno, ok := relationFile(p)
	switch {
	case !ok:
		return plain, 0
	case fork == "":
		return mainFork, segno
	default:
		return sideFork, segno
	}
}

// relationFile takes apart the path of a relation's file: base/5/16384_vm.1 is
// of relation 16384 in base/5, fork vm, segment 1.
func relationFile(p string) (dir, rel, fork string, segno uint32, ok bool) {
	dir, name := path.Split(p)
	dir = strings.TrimSuffix(dir, "/")
	if !relationDir(dir) {
		return "", "", "", 0, false
	}
	stem, seg, hasSeg := strings.Cut(name, ".")
	if hasSeg {
		n, ok := number(seg)
		if !ok {
			return "", "", "", 0, false
		}
		segno = n
	}
	rel, fork, hasFork := strings.Cut(stem, "_")
	if _, ok := number(rel); !ok {
		return "", "", "", 0, false
	}
	if hasFork && fork != "fsm" && fork != "vm" && fork != "init" {
		return "", "", "", 0, false
	}
	return dir, rel, fork, segno, true
}

// relationDir reports whether relations live in dir: global, base/DB,
// pg_tblspc/OID/PG_VERSION_CATALOG/DB.
func relationDir(dir string) bool {
	if dir == "global" {
		return true
	}
	if db, ok := strings.CutPrefix(dir, "base/"); ok {
		_, ok = number(db)
		return ok
	}
	parts := strings.Split(dir, "/")
	if len(parts) != 4 || parts[0] != "pg_tblspc" || !strings.HasPrefix(parts[2], "PG_") {
		return false
	}
	_, spc := number(parts[1])
	_, db := number(parts[3])
	return spc && db
}

// temporary reports whether p is a temporary relation's: t3_16384.
func temporary(p string) bool {
	dir, name := path.Split(p)
	if !relationDir(strings.TrimSuffix(dir, "/")) || !strings.HasPrefix(name, "t") {
		return false
	}
	backend, rel, ok := strings.Cut(name[1:], "_")
	if _, is := number(backend); !ok || !is {
		return false
	}
	rel, _, _ = strings.Cut(rel, "_")
	rel, _, _ = strings.Cut(rel, ".")
	_, is := number(rel)
	return is
}

// number is a decimal number as the server writes one: an OID, a segment.
func number(s string) (uint32, bool) {
	if s == "" || len(s) > 1 && s[0] == '0' || s[0] == '+' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil
}
