package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
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
	if fs.Type == unix.TMPFS_MAGIC || uint32(fs.Type) == unix.RAMFS_MAGIC {
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

// cpuOfChildren is what those children of a process have used that have ended,
// and theirs: fields 16 and 17 of /proc/PID/stat, in hundredths of a second
// (USER_HZ).
func cpuOfChildren(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:]) // from the third on
	if len(f) < 15 {
		return 0, fmt.Errorf("cannot read the CPU time of the children of process %d", pid)
	}
	var ticks int64
	for _, field := range f[13:15] {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100, nil
}
