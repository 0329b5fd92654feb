package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rideau/internal/pgserver"
)

// A child is a program that we started.
type child struct {
	cmd  *exec.Cmd
	said bytes.Buffer  // standard error, and output unless it goes elsewhere; valid once done is closed
	done chan struct{} // closed when it has ended
	err  error         // how; valid once done is closed
}

// begin starts a program that dies with us. At the latest the end of cmd's
// context ends it.
func begin(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, done: make(chan struct{})}
	cmd.Stderr = &c.said
	if cmd.Stdout == nil {
		cmd.Stdout = &c.said
	}
	started := make(chan error)
	go func() {
		// The kernel takes the end of the thread that forked for our death.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// wait waits for the end.
func (c *child) wait() error {
	<-c.done
	if c.err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(c.cmd.Path), c.err, bytes.TrimSpace(c.said.Bytes()))
	}
	return nil
}

// ended reports, as an error, that the program is gone.
func (c *child) ended() error {
	select {
	case <-c.done:
		return fmt.Errorf("%s ended too early: %w", filepath.Base(c.cmd.Path), errors.Join(c.wait(), errEnded))
	default:
		return nil
	}
}

var errEnded = errors.New("it should still run")

// stop ends the program with a signal, or with SIGKILL if that does not help.
func (c *child) stop(sig syscall.Signal) {
	for _, try := range []struct {
		signal   syscall.Signal
		patience time.Duration
	}{{sig, 20 * time.Second}, {syscall.SIGKILL, time.Minute}} {
		c.cmd.Process.Signal(try.signal) // an error says that it has ended
		select {
		case <-c.done:
			return
		case <-time.After(try.patience):
		}
	}
}

// cpu is what the program used, user and system, now that it has ended.
func (c *child) cpu() time.Duration {
	return c.cmd.ProcessState.UserTime() + c.cmd.ProcessState.SystemTime()
}

// tool runs a client program of PostgreSQL to its end, and returns what it said.
func (b *bench) tool(ctx context.Context, name string, args ...string) (string, error) {
	cmd, err := pgserver.Command(ctx, b.cfg.Major, name, args...)
	if err != nil {
		return "", err
	}
	out, _, err := timed(cmd)
	return out, err
}

// timed runs a program to its end and returns what it said and how long it took,
// start and end of the process included.
func timed(cmd *exec.Cmd) (string, time.Duration, error) {
	begun := time.Now()
	c, err := begin(cmd)
	if err != nil {
		return "", 0, err
	}
	err = c.wait()
	return c.said.String(), time.Since(begun), err
}

// cpuOf is what running processes have used until now, user and system, threads
// that have ended included.
func cpuOf(pids ...int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		used, err := cpuClock(pid)
		if err != nil {
			return 0, fmt.Errorf("could not read the CPU time of process %d: %w", pid, err)
		}
		sum += used
	}
	return sum, nil
}

// peakMemory is the most that a running process ever had resident, in bytes.
func peakMemory(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0, fmt.Errorf("cannot read the memory of process %d", pid)
	}
	kb, err := strconv.ParseInt(f[0], 10, 64)
	return kb << 10, err
}
