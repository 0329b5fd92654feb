//go:build !linux

package pgtest

import "testing"

// SmallFS needs Linux.
func SmallFS(t testing.TB, bytes int64) string {
	t.Skip("a full disk needs a small file system, which is made with Linux's tmpfs")
	return ""
}

// Grow changes the size of a file system made by SmallFS.
func Grow(testing.TB, string, int64) {}
