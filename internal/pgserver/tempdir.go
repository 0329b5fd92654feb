package pgserver

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

const tempPrefix = "rideau-pg-"

// TempDir makes an empty folder in the system's temporary folder, with a name
// short enough for Unix sockets, that belongs to the account that servers run
// as. Call remove when done. If we die before, the next process that makes one
// removes it.
func TempDir() (dir string, remove func() error, err error) { return TempDirIn(os.TempDir()) }

// TempDirIn is TempDir in a given folder. Beside the folder it makes is a file
// that we keep locked, which says that its owner lives.
func TempDirIn(root string) (dir string, remove func() error, err error) {
	a, err := serverAccount()
	if err != nil {
		return "", nil, err
	}
	if err := a.canReach(root); err != nil {
		return "", nil, err
	}
	sweepOnce(root)
	var lock *os.File
	for {
		if lock, err = os.CreateTemp(root, tempPrefix+"*.lock"); err != nil {
			return "", nil, err
		}
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil && exists(lock.Name()) {
			break
		}
		lock.Close() // a sweeper was faster than our lock
	}
	dir = strings.TrimSuffix(lock.Name(), ".lock")
	remove = func() error {
		err := errors.Join(os.RemoveAll(dir), os.Remove(lock.Name()))
		lock.Close()
		return err
	}
	err = os.Mkdir(dir, 0o755)
	if err == nil {
		err = a.own(dir)
	}
	if err != nil {
		return "", nil, errors.Join(err, remove())
	}
	return dir, remove, nil
}

var swept sync.Map // root -> *sync.Once

// sweepOnce removes what processes that died have left in root.
func sweepOnce(root string) {
	once, _ := swept.LoadOrStore(root, new(sync.Once))
	once.(*sync.Once).Do(func() {
		locks, _ := filepath.Glob(filepath.Join(root, tempPrefix+"*.lock"))
		for _, name := range locks {
			lock, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				continue // another user's, or gone
			}
			if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
				dir := strings.TrimSuffix(name, ".lock")
				removeSharedMemory(filepath.Join(dir, "data"))
				os.RemoveAll(dir) // it may be half gone, or a server's last words may be on their way: the next sweep tries again
				if !exists(dir) {
					os.Remove(name)
				}
			}
			lock.Close()
		}
	})
}

// scratch is where a data directory may be that need not survive a power cut: in
// memory, if there is plenty, else the temporary folder. To make and remove the
// thousand files of a data directory again and again is slow on ext4, which
// looks at every recently deleted inode before it takes a new one: a second
// against a tenth of one.
func scratch() string {
	const plenty = 6 << 30
	if dir := MemoryDir(plenty); dir != "" && os.Getenv("TMPDIR") == "" {
		return dir
	}
	return os.TempDir()
}

// MemoryDir is a folder whose files are in memory, with more than so many bytes of
// room; empty if there is none.
func MemoryDir(room int64) string {
	const shm = "/dev/shm"
	if memoryFree(shm) > room {
		return shm
	}
	return ""
}
