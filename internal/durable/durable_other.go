//go:build !linux

package durable

import (
	"errors"
	"os"
)

// Sync is F_FULLFSYNC on macOS, where fdatasync reaches the drive's cache only.
func fdatasync(f *os.File) error { return f.Sync() }

func fallocate(*os.File, int64) error { return errors.ErrUnsupported }
