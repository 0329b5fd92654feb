package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LockName is the file in a locked directory that carries the lock.
const LockName = ".lock"

// A Lock keeps a directory to whoever holds it. It ends with [Lock.Close] or
// with the process, however the process ends; and when the last reference to
// it is dropped, so keep one.
type Lock struct {
	f *os.File
}

// LockDir takes dir, or answers a [*LockedError] at once if it is taken.
//
// The lock is flock's, on a file that stays: its presence means nothing, and to
// remove it would let two processes lock two files of one name. The number in
// it is for the message only.
func LockDir(dir string) (*Lock, error) {
	f, err := os.OpenFile(filepath.Join(dir, LockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = flock(f)
	if errors.Is(err, unix.EWOULDBLOCK) {
		text, _ := io.ReadAll(io.LimitReader(f, 32))
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text))) // 0 when it makes no sense
		f.Close()
		return nil, &LockedError{Dir: dir, PID: pid}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("could not lock directory %q: %w", dir, err)
	}
	// No sync: the number matters only while we run. No complaint either: on a
	// disk that is full the lock is as good without it.
	f.Truncate(0)
	f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return &Lock{f: f}, nil
}

// HoldDir takes dir as LockDir does, by another lock that leaves no file in it:
// for a directory whose every file means something to somebody else. It cannot
// say who has it.
func HoldDir(dir string) (*Lock, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = flock(f)
	if err == nil {
		return &Lock{f: f}, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, &LockedError{Dir: dir}
	}
	return nil, fmt.Errorf("could not lock directory %q: %w", dir, err)
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Close gives the directory free.
func (l *Lock) Close() error {
	l.f.Truncate(0) // so that no later message names us; a failure harms nobody
	return l.f.Close()
}
