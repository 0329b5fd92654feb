package pgserver

import (
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
)

// A StopMode is one of pg_ctl's shutdown modes.
type StopMode int

const (
	Fast      StopMode = iota // disconnect clients, checkpoint, wait for walsenders
	Smart                     // wait for clients to go first
	Immediate                 // no checkpoint: recovery at the next start
)

func (m StopMode) signal() syscall.Signal {
	switch m {
	case Smart:
		return syscall.SIGTERM
	case Immediate:
		return syscall.SIGQUIT
	}
	return syscall.SIGINT
}

// A process is a postmaster that we started.
type process struct {
	pid  int
	done chan struct{} // closed when it has ended
	err  error         // how; valid once done is closed
}

func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends the death signal when the thread that forked ends, so
		// this goroutine keeps its thread until the child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	return p, <-started
}

// Start starts the server and waits, as pg_ctl does, until it accepts
// connections or is a standby that has begun recovery. A standby accepts
// connections only once it is consistent; [Server.Connect] waits for that. ctx
// bounds the wait, not the life of the server.
func (s *Server) Start(ctx context.Context) error {
	ctx, cancel := withWait(ctx)
	defer cancel()
	proc, err := s.launch()
	if err != nil {
		return err
	}
	err = poll(ctx, s.String()+" to start", func() (bool, error) {
		if !proc.running() {
			return false, fmt.Errorf("it ended: %w", exitError(proc.err))
		}
		status := s.status(proc.pid)
		return status == "ready" || status == "standby", nil
	})
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, s.Log(20))
		return errors.Join(err, s.Kill())
	}
	return nil
}

func (s *Server) launch() (*process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc.running() {
		return nil, fmt.Errorf("%s is already running", s)
	}
	log, err := os.OpenFile(s.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.BinDir, "postgres"), "-D", s.Dir)
	// An immediate shutdown, so that the postmaster takes its children along.
	s.account.become(cmd, syscall.SIGQUIT)
	cmd.Dir = s.Dir
	cmd.Env = environ()
	cmd.Stdout, cmd.Stderr = log, log
	adoptOrphans()
	proc, err := startProcess(cmd)
	if err != nil {
		return nil, fmt.Errorf("could not start %s: %w", s, err)
	}
	s.proc, s.frozen = proc, nil
	return proc, nil
}

// status is the server's own word for its state, from the eighth line of its
// postmaster.pid (LOCK_FILE_LINE_PM_STATUS in utils/pidfile.h).
func (s *Server) status(pid int) string {
	b, err := os.ReadFile(filepath.Join(s.Dir, "postmaster.pid"))
	if err != nil {
		return ""
	}
	lines := strings.Split(string(b), "\n")
	if len(lines) < 8 || strings.TrimSpace(lines[0]) != strconv.Itoa(pid) {
		return "" // not written yet, or left by a server that was killed
	}
	return strings.TrimSpace(lines[7])
}

func exitError(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// Running says whether the postmaster lives. A paused server lives.
func (s *Server) Running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc.running()
}

// Done is closed when the postmaster that the last Start started has ended. It
// is nil before the first Start.
func (s *Server) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil
	}
	return s.proc.done
}

// PID is the postmaster's process id, 0 when it does not run.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.proc.running() {
		return 0
	}
	return s.proc.pid
}

// Stop shuts the server down and waits until it is. A server that does not run
// is no error, a paused one is resumed first. Smart waits for as long as clients
// stay; the others fail after a minute with the server still running.
func (s *Server) Stop(mode StopMode) error {
	s.mu.Lock()
	proc := s.proc
	if !proc.running() {
		s.mu.Unlock()
		return nil
	}
	s.resume()
	err := syscall.Kill(proc.pid, mode.signal())
	s.mu.Unlock()
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("could not stop %s: %w", s, err)
	}
	var timeout <-chan time.Time
	if mode != Smart {
		timer := time.NewTimer(defaultWait)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-proc.done:
		return nil
	case <-timeout:
		return fmt.Errorf("waited %v for %s to stop\n%s", defaultWait, s, s.Log(20))
	}
}

// Kill ends every process of the server with SIGKILL, as a power cut would: all
// are stopped before the first is killed, postmaster first, so that none sends
// or writes anything after another has gone. It returns when none is left. A
// server that does not run is no error.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kill()
}

func (s *Server) kill() error {
	if !s.proc.running() {
		return nil
	}
	pids, err := s.freeze()
	if err != nil {
		return err
	}
	starts := make([]string, len(pids))
	for i, pid := range pids {
		starts[i] = startTime(pid)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("could not kill process %d of %s: %w", pid, s, err)
		}
	}
	<-s.proc.done
	s.frozen = nil
	ctx, cancel := context.WithTimeout(context.Background(), defaultWait)
	defer cancel()
	return poll(ctx, fmt.Sprintf("all %d processes of %s to be gone", len(pids), s), func() (bool, error) {
		for i, pid := range pids {
			// One that waits to be reaped by somebody has no start time.
			if starts[i] != "" && startTime(pid) == starts[i] {
				return false, nil
			}
		}
		// The postmaster, the first, is reaped by the goroutine that started it.
		for _, pid := range pids[min(1, len(pids)):] {
			reap(pid)
		}
		return true, nil
	})
}

// freeze stops all processes of the server, the postmaster first so that it
// starts no others, and returns them.
func (s *Server) freeze() ([]int, error) {
	if s.frozen != nil {
		return s.frozen, nil
	}
	stopped := map[int]bool{}
	var pids []int
	for {
		// Children that were started before their parent had stopped are found
		// the next time round.
		found, err := descendants(s.proc.pid)
		if err != nil {
			return nil, err
		}
		more := false
		for _, pid := range found {
			if stopped[pid] {
				continue
			}
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				if errors.Is(err, syscall.ESRCH) {
					continue
				}
				return nil, fmt.Errorf("could not stop process %d of %s: %w", pid, s, err)
			}
			stopped[pid], more = true, true
			pids = append(pids, pid)
		}
		if !more {
			return pids, nil
		}
	}
}

// Pause stops all processes of the server with SIGSTOP: it keeps its
// connections, and answers nobody.
func (s *Server) Pause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.proc.running() {
		return fmt.Errorf("cannot pause %s: it is not running", s)
	}
	pids, err := s.freeze()
	s.frozen = pids
	return err
}

// Resume undoes Pause.
func (s *Server) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.proc.running() {
		return fmt.Errorf("cannot resume %s: it is not running", s)
	}
	s.resume()
	return nil
}

func (s *Server) resume() {
	for _, pid := range s.frozen {
		syscall.Kill(pid, syscall.SIGCONT) // a stopped process can only have been killed meanwhile
	}
	s.frozen = nil
}

// Reload makes the server read its configuration files again. It does not wait
// until every process has.
func (s *Server) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.proc.running() {
		return fmt.Errorf("cannot reload %s: it is not running", s)
	}
	return syscall.Kill(s.proc.pid, syscall.SIGHUP)
}

// Promote promotes a standby, as pg_ctl does, and waits until it accepts writes.
func (s *Server) Promote(ctx context.Context) error {
	ctx, cancel := withWait(ctx)
	defer cancel()
	s.mu.Lock()
	proc := s.proc
	if !proc.running() {
		s.mu.Unlock()
		return fmt.Errorf("cannot promote %s: it is not running", s)
	}
	err := s.account.writeFile(filepath.Join(s.Dir, "promote"), "")
	if err == nil {
		err = syscall.Kill(proc.pid, syscall.SIGUSR1)
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("could not promote %s: %w", s, err)
	}
	conn, err := s.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return poll(ctx, s.String()+" to end recovery", func() (bool, error) {
		var recovery bool
		err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&recovery)
		return !recovery, err
	})
}
