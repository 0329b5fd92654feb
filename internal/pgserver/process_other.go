//go:build !linux

package pgserver

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// There is no death signal here: servers outlive us if we are killed.
func setDeathSignal(*syscall.SysProcAttr, syscall.Signal) {}

func startTime(pid int) string {
	out, err := exec.Command("ps", "-o", "stat=,lstart=", "-p", strconv.Itoa(pid)).Output()
	stat, start, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if err != nil || strings.HasPrefix(stat, "Z") {
		return ""
	}
	return strings.TrimSpace(start)
}

func descendants(root int) ([]int, error) {
	out, err := exec.Command("ps", "-axo", "pid=,ppid=").Output()
	if err != nil {
		return nil, fmt.Errorf("could not list processes: %w", err)
	}
	children := map[int][]int{}
	for line := range strings.Lines(string(out)) {
		var pid, ppid int
		if _, err := fmt.Sscan(line, &pid, &ppid); err == nil {
			children[ppid] = append(children[ppid], pid)
		}
	}
	all := []int{root}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}

func removeSharedMemory(string) {}

func adoptOrphans() {}

func reap(int) {}

func memoryFree(string) int64 { return 0 }
