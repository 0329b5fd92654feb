package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"rideau/relay"
)

// A relayProcess is "rideau relay" running.
type relayProcess struct {
	args []string // after the program's name
	http string   // URL of its console
	log  string   // file of what it says
	pid  int
	proc *os.Process
	done chan struct{} // closed when it has ended
	err  error         // how; valid once done is closed
}

// startRelay starts the program with args.
func startRelay(program, http, log string, args []string) (*relayProcess, error) {
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	r := &relayProcess{args: args, http: http, log: log, done: make(chan struct{})}
	cmd := exec.Command(program, args...)
	cmd.Args[0] = "rideau" // as a user would have typed it, for those who look with ps
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "PG") })
	// In a process group of its own an interrupt typed at our terminal does not
	// reach it: we decide how it ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithUs(cmd.SysProcAttr)
	started := make(chan error)
	go func() {
		// The kernel takes the end of the thread that forked for our death.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			r.proc, r.pid = cmd.Process, cmd.Process.Pid
		}
		started <- err
		if err == nil {
			r.err = cmd.Wait()
			close(r.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("could not start the relay: %w", err)
	}
	return r, nil
}

// stopPatience is how long the relay is given to stop in order. Nobody waits
// for its WAL any more.
const stopPatience = 3 * time.Second

func (r *relayProcess) stop() {
	for _, stop := range []struct {
		signal   syscall.Signal
		patience time.Duration
	}{{syscall.SIGTERM, stopPatience}, {syscall.SIGKILL, time.Minute}} {
		select {
		case <-r.done:
			return
		default:
		}
		r.proc.Signal(stop.signal) // an error says that it has ended
		select {
		case <-r.done:
			return
		case <-time.After(stop.patience):
		}
	}
}

// command is the relay's command line, as one would type it.
func (r *relayProcess) command() string {
	words := []string{"rideau"}
	for _, arg := range r.args {
		if arg == "" || strings.ContainsAny(arg, " '\"\\$&|;<>()*?~#") {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		words = append(words, arg)
	}
	return strings.Join(words, " ")
}

// status asks the relay how it is.
func (r *relayProcess) status(ctx context.Context) (relay.Status, error) {
	var st relay.Status
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.http+"/status", nil)
	if err != nil {
		return st, err
	}
	resp, err := statusClient.Do(req)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return st, fmt.Errorf("%s/status answers %s", r.http, resp.Status)
	}
	err = json.NewDecoder(resp.Body).Decode(&st)
	return st, err
}

// No proxy of the environment, and nothing left open behind us.
var statusClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}

// lastLines is the end of a log.
func lastLines(file string, n int) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}
