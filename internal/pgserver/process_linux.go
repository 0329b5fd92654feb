package pgserver

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

func setDeathSignal(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }

// A procStat is what we need of /proc/PID/stat.
type procStat struct {
	state byte
	ppid  int
	start string // clock ticks since boot: with the id, names a process for good
}

func readStat(pid int) (procStat, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, false
	}
	// The second field is the command in parentheses and may hold any byte.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return procStat{}, false
	}
	ppid, err := strconv.Atoi(f[1])
	return procStat{state: f[0][0], ppid: ppid, start: f[19]}, err == nil
}

// startTime identifies the process that has the id now; empty if it is dead,
// reaped or not.
func startTime(pid int) string {
	st, ok := readStat(pid)
	if !ok || st.state == 'Z' || st.state == 'X' {
		return ""
	}
	return st.start
}

// descendants lists root and all processes below it, parents first.
func descendants(root int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if st, ok := readStat(pid); ok && st.state != 'Z' {
			children[st.ppid] = append(children[st.ppid], pid)
		}
	}
	all := []int{root}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

// adoptOrphans makes children of a postmaster that has died ours instead of
// init's, so that kill can reap them: init does not everywhere, in containers it
// is often a program that never waits, and a test that kills a thousand servers
// would leave ten thousand zombies.
var adoptOrphans = sync.OnceFunc(func() {
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) // without it they are init's
})

// reap lets a dead process go if it is our child.
func reap(pid int) { syscall.Wait4(pid, nil, syscall.WNOHANG, nil) }

// memoryFree is how much can be written to the file system in memory at dir
// without leaving too little memory for all else: half of what is available.
// 0 if there is none that we may write to.
func memoryFree(dir string) int64 {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil || fs.Type != unix.TMPFS_MAGIC || unix.Access(dir, unix.W_OK) != nil {
		return 0
	}
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "MemAvailable:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	kb, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil {
		return 0
	}
	return min(int64(fs.Bavail)*int64(fs.Bsize), kb<<10/2)
}

// removeSharedMemory removes the System V segment that a killed server leaves
// behind. It is tiny, but the machine has only so many; its next start would
// remove it, but a server that is removed has none.
func removeSharedMemory(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return // a server that stopped properly has removed both
	}
	// LOCK_FILE_LINE_SHMEM_KEY (utils/pidfile.h): key and id.
	lines := strings.Split(string(b), "\n")
	if len(lines) < 7 {
		return
	}
	if f := strings.Fields(lines[6]); len(f) == 2 {
		if id, err := strconv.Atoi(f[1]); err == nil {
			unix.SysvShmCtl(id, unix.IPC_RMID, nil) // gone already, perhaps
		}
	}
}
