// Package durable puts files on disk so that a power cut leaves either the old
// state or the new one, and keeps a directory to one process.
//
// A file that was written is not yet on disk, and a file that was synced is not
// yet in its directory: the name is data of the directory, which must be synced
// too. So a file that others may rely on is made in four steps, and a crash
// between any two of them leaves at most a temporary file behind:
//
//	temporary file ──write──▶ fsync ──rename──▶ fsync of the directory
//	.NAME.*.tmp               │        NAME      │
//	                          │                  └ the name is there to stay
//	                          └ the content is
//
// [Create] and [WriteFile] take all four. What they were asked to write exists
// under its name if and only if they said so, with one exception that no
// program can avoid: when the last fsync fails the new name is visible now and
// may be gone after a crash. The error is returned, and the caller must not
// claim that the file is there.
//
// # After a failed fsync
//
// A sync that failed is never tried again on the same descriptor. The kernel
// may have thrown away the very pages it could not write, and the second sync
// then succeeds over data that is not there (PostgreSQL learned this in 2018
// and panics since). Close the file, open it anew, and write again what was not
// known to be on disk.
//
// # Leftovers
//
// Temporary files begin with a dot and end in ".tmp". Whoever holds the [Lock]
// of a directory may remove those it finds there.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"
)

// A File is a file in the making. It has its content and its name only after
// [File.Commit]; closed before, it was never there.
type File struct {
	*os.File
	path string
	perm fs.FileMode
}

// Create begins a file that is to become path, replacing what is there. It is
// made in path's own directory, for a rename never crosses file systems. The
// mode will be exactly perm, whatever the umask.
func Create(path string, perm fs.FileMode) (*File, error) {
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	f, err := os.CreateTemp(dir, "."+base+".*.tmp")
	if err != nil {
		return nil, err
	}
	return &File{File: f, path: path, perm: perm}, nil
}

// Commit puts the file on disk under its name and closes it. If that fails,
// what was at path before is still there, unless it is the sync of the
// directory that failed: see the package's words on that.
func (f *File) Commit() error {
	if f.File == nil {
		return os.ErrClosed
	}
	err := f.Chmod(f.perm)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		f.Close()
		return err
	}
	tmp := f.Name()
	err = f.File.Close()
	f.File = nil
	if err == nil {
		err = os.Rename(tmp, f.path)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return SyncDir(filepath.Dir(f.path))
}

// Close discards the file, unless it was committed: then it does nothing. So it
// can be deferred.
func (f *File) Close() error {
	if f.File == nil {
		return nil
	}
	tmp := f.Name()
	err := f.File.Close()
	f.File = nil
	return errors.Join(err, os.Remove(tmp))
}

// IsTemp reports whether name is one that [Create] gives to a file in the
// making. After a crash such a file is rubbish.
func IsTemp(name string) bool {
	return strings.HasPrefix(name, ".") && strings.HasSuffix(name, ".tmp")
}

// WriteFile makes path a file that holds data, or leaves what is there.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	f, err := Create(path, perm)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit()
}

// Rename gives the file old the name new, replacing what is there. The content
// of old must have been synced by whoever wrote it.
func Rename(old, new string) error {
	if err := os.Rename(old, new); err != nil {
		return err
	}
	dir, from := filepath.Dir(new), filepath.Dir(old)
	if err := SyncDir(dir); err != nil || from == dir {
		return err
	}
	return SyncDir(from)
}

// SyncDir puts on disk which names are in dir, after files were created,
// renamed or removed there.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	// Some file systems cannot sync a directory and need not: PostgreSQL's
	// fsync_fname_ext lets the same two errors pass.
	if errors.Is(err, syscall.EBADF) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}

// Fdatasync puts on disk what was written to f, and its length; not the times
// of its last change, which saves a journal write each time. An error is final
// for this descriptor: see the package's words on that.
func Fdatasync(f *os.File) error {
	if err := fdatasync(f); err != nil {
		return pathError("fdatasync", f, err)
	}
	return nil
}

// An FS is the file system of a directory, open to be synced.
type FS struct{ dir *os.File }

// OpenFS opens the file system that dir is on. Do so before what is to be synced
// is written: an error in writing back is told to descriptors that were open
// when it happened, and to nobody twice.
func OpenFS(dir string) (*FS, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return &FS{f}, nil
}

// Sync puts on disk all that was written to the file system: for many files at
// once, of which to sync each would cost a commit of the journal each. What
// others write there it waits for too. After an error what was written since the
// last success may be lost, whatever a later Sync says.
func (s *FS) Sync() error {
	if err := syncFS(s.dir); err != nil {
		return pathError("syncfs", s.dir, err)
	}
	return nil
}

// Close does not sync.
func (s *FS) Close() error { return s.dir.Close() }

// Preallocate makes f at least size bytes long and the space its own, so that
// a later write within size does not fail for want of room. New bytes read as
// zeros; those that are there are not touched. When there is no room (ENOSPC,
// EDQUOT) the file may be left longer than it was.
func Preallocate(f *os.File, size int64) error {
	err := fallocate(f, size)
	if errors.Is(err, errors.ErrUnsupported) { // EOPNOTSUPP and ENOSYS among them
		return WriteZeros(f, size)
	}
	if err != nil {
		return pathError("fallocate", f, err)
	}
	return nil
}

// WriteZeros is Preallocate with bytes that were written: what replaces them
// can be made durable without a word in the file system's journal, which for
// merely allocated space must first say that it is in use. They are written past
// the system's cache where that can be: nobody will read them, and who syncs
// another file meanwhile waits less.
func WriteZeros(f *os.File, size int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := fallocate(f, size); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return pathError("fallocate", f, err)
	}
	direct, err := OpenDirect(f, f.Name())
	if err == nil {
		defer direct.Close()
	}
	zeros := Aligned(1 << 20)
	for at := info.Size(); at < size; {
		p := zeros[:min(size-at, int64(len(zeros)))]
		if direct != nil && isAligned(p, at) {
			if n, err := direct.WriteAt(p, at); err == nil {
				at += int64(n)
				continue
			}
			// The usual way says what is the matter, if anything is.
		}
		n, err := f.WriteAt(p, at)
		if err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

// DirectAlign is what reads and writes past the system's cache must be multiples
// of: in memory, in the file, and in length. Disks ask for 512 or 4096.
const DirectAlign = 4096

// OpenDirect opens f once more, under path, to be written past the system's cache
// (O_DIRECT): what it is given must be aligned, see [DirectAlign]. Such a write is
// as little durable as any other; [Fdatasync] of f is good for both. Not every file
// system can do this; an error may also come of the first write. It is an error if
// path is another file by now.
func OpenDirect(f *os.File, path string) (*os.File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	direct, err := openDirect(path)
	if err != nil {
		return nil, err
	}
	if now, err := direct.Stat(); err != nil || !os.SameFile(info, now) {
		direct.Close()
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("is another file by now")}
	}
	return direct, nil
}

// Aligned allocates n bytes whose start is aligned.
func Aligned(n int) []byte {
	b := make([]byte, n+DirectAlign)
	off := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (DirectAlign - 1)
	return b[off : off+n : off+n]
}

// isAligned reports whether p can be written at off past the system's cache.
func isAligned(p []byte, off int64) bool {
	return (uintptr(unsafe.Pointer(unsafe.SliceData(p)))|uintptr(len(p))|uintptr(off))&(DirectAlign-1) == 0
}

func pathError(op string, f *os.File, err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return err
	}
	return &fs.PathError{Op: op, Path: f.Name(), Err: err}
}

// A LockedError says that another process, or another part of this one, has
// the directory.
type LockedError struct {
	Dir string
	PID int // 0 if the holder did not say
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("directory %q is in use by another process", e.Dir)
	}
	return fmt.Sprintf("directory %q is in use by process %d", e.Dir, e.PID)
}
