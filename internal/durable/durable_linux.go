package durable

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func fdatasync(f *os.File) error {
	return control(f, unix.Fdatasync)
}

func fallocate(f *os.File, size int64) error {
	return control(f, func(fd int) error { return unix.Fallocate(fd, 0, 0, size) })
}

// control calls op with f's descriptor, which cannot be closed and reused
// meanwhile, again when a signal came between.
func control(f *os.File, op func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = conn.Control(func(fd uintptr) {
		for {
			if result = op(int(fd)); !errors.Is(result, unix.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return result
}

// syncFS is syncfs(2). It reports errors of writing back since Linux 5.8.
func syncFS(dir *os.File) error { return control(dir, unix.Syncfs) }

func openDirect(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
}
