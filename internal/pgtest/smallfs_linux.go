package pgtest

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// SmallFS mounts a file system of so many bytes and returns its folder, which
// anyone may write to; it is unmounted with the test. It fills up as a disk does
// (ENOSPC), and has room again when files are removed or [Grow] is called.
//
// Only root can mount. Without root the test is skipped: the one skip of this
// package, because nothing else fails a write in the middle as a full disk does.
func SmallFS(t testing.TB, bytes int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a full disk needs a small file system, and only root can mount one")
	}
	dir := Dir(t)
	if err := unix.Mount("rideau-test", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d,mode=0777", bytes)); err != nil {
		if err == unix.EPERM || err == unix.EACCES {
			t.Skipf("a full disk needs a small file system, and this container's root cannot mount one: %v", err)
		}
		t.Fatalf("could not mount a file system of %d bytes: %v", bytes, err)
	}
	t.Cleanup(func() {
		// Lazily: a process that the test has left behind must not keep the mount
		// point, and so the folder, for good.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("could not unmount %q: %v", dir, err)
		}
	})
	return dir
}

// Grow changes the size of a file system made by SmallFS.
func Grow(t testing.TB, dir string, bytes int64) {
	t.Helper()
	if err := unix.Mount("rideau-test", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Fatalf("could not grow %q to %d bytes: %v", dir, bytes, err)
	}
}
