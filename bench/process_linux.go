package main

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dieWithUs has the kernel kill the child should we be killed.
func dieWithUs(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// onDisk refuses a folder whose files are in memory: what fsync costs there is
// nothing, and it is what we measure.
func onDisk(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		return fmt.Errorf("%q is in memory, where fsync costs nothing; set TMPDIR to a folder on a disk", dir)
	}
	return nil
}

// cpuClock reads the clock that counts what a process uses, in nanoseconds,
// where /proc counts hundredths of a second: clock_getcpuclockid(3), whose
// answer is ~pid << 3 | CPUCLOCK_SCHED (linux/posix-timers.h).
func cpuClock(pid int) (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(int32(^pid<<3|2), &t)
	return time.Duration(t.Nano()), err
}
