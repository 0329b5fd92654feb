package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"rideau/demo"
	"rideau/internal/pgtest"
)

// checkDemo checks a report against what the demo is there to show.
func checkDemo(t *testing.T, r *demo.Report) {
	t.Helper()
	if len(r.Problems) > 0 {
		t.Errorf("problems: %q", r.Problems)
	}
	f := r.Failover
	switch {
	case f.AckedBefore < 50 || r.Acknowledged < f.AckedBefore+50:
		t.Errorf("%d commits acknowledged, %d of them before the failover: want 50 on either side", r.Acknowledged, f.AckedBefore)
	case f.Held.TLI != 1 || f.TLI != 2 || f.Fork != f.Held.Complete:
		t.Errorf("timeline %d begins at %s, want 2 at the end of what the relay held, %+v", f.TLI, f.Fork, f.Held)
	case r.Downtime <= 0:
		t.Errorf("no commit was acknowledged for %v s, want some", r.Downtime)
	case r.InDoubt == 0:
		t.Errorf("no commit was under way when the primary was killed")
	}
	if u := r.Untouched; !u.SameProcess || !u.SameConfiguration || u.ReceivedTLI != 2 || u.Name == f.Promoted {
		t.Errorf("the other standby: %+v", u)
	}
	if len(r.Places) != 3 {
		t.Fatalf("%d places, want 3", len(r.Places))
	}
	for _, p := range r.Places {
		if !p.Whole() || p.Found != r.Acknowledged || p.TLI != 2 || p.LSN <= f.Fork {
			t.Errorf("of %d commits %s has %+v", r.Acknowledged, p.Name, p)
		}
		if p.Name != "relay" && p.Rows != p.Found+p.InDoubt {
			t.Errorf("%s has %d rows, want those acknowledged and those in doubt: %+v", p.Name, p.Rows, p)
		}
	}
	if _, err := os.Stat(r.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestDemo(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			report, err := demo.Run(t.Context(), demo.Config{Program: ourselves(t), Major: major, Write: 300 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(report.Version, fmt.Sprint(major, ".")) {
				t.Errorf("version %s, want %d", report.Version, major)
			}
			checkDemo(t, report)
		})
	}
}

// ourselves is this test binary, which under the name rideau is the program.
func ourselves(t *testing.T) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// The command as it is typed.
func TestDemoJSON(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(pgtest.Dir(t), "demo")
	var stdout, stderr bytes.Buffer
	status := execute(t.Context(), []string{"demo", "--json", "--dir", dir}, strings.NewReader(""), &stdout, &stderr)
	if status != statusDone {
		t.Fatalf("exit status %d\n%s", status, stderr.String())
	}
	var report demo.Report
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatalf("%v\n%s", err, stdout.String())
	}
	checkDemo(t, &report)
	if report.Dir != dir {
		t.Errorf("files were in %q, want %q", report.Dir, dir)
	}
	if lines := strings.Count(stderr.String(), "\n"); lines != 2+12 {
		t.Errorf("%d lines of progress, want a title and one a step:\n%s", lines, stderr.String())
	}
}

// The demo's word is worth something only if it would say so were a row lost.
// Here somebody takes one away behind its back, and adds one.
func TestDemoLoses(t *testing.T) {
	t.Parallel()
	var ports string
	var sabotage error
	report, err := demo.Run(t.Context(), demo.Config{
		Program: ourselves(t), Write: 300 * time.Millisecond,
		Step: func(text string) {
			if m := regexp.MustCompile(`rideau relay 'host=(\S+ port=\S+) `).FindStringSubmatch(text); m != nil {
				ports = m[1]
			}
			if strings.HasPrefix(text, "clients: have stopped") {
				var conn *pgx.Conn
				conn, sabotage = pgx.Connect(t.Context(), "host="+ports+" user=postgres dbname=postgres sslmode=disable target_session_attrs=read-write")
				if sabotage == nil {
					defer conn.Close(context.Background())
					_, sabotage = conn.Exec(t.Context(), "DELETE FROM ledger WHERE id = 7; INSERT INTO ledger VALUES (-1)")
				}
			}
		},
	})
	if sabotage != nil {
		t.Fatal(sabotage)
	}
	var lost *demo.LostError
	if !errors.As(err, &lost) {
		t.Fatalf("the demo said %v of a row that is not there", err)
	}
	if _, err := os.Stat(filepath.Join(lost.Kept, "relay.log")); err != nil {
		t.Errorf("the evidence was not kept: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(lost.Kept) })
	for _, p := range report.Places[:2] {
		if p.Missing != 1 || p.MissingIDs[0] != 7 || p.Foreign != 1 {
			t.Errorf("%s: %+v, want row 7 missing and one that nobody wrote", p.Name, p)
		}
	}
	if p := report.Places[2]; !p.Whole() {
		t.Errorf("the relay's WAL has the commit of row 7 all the same, but the demo says %+v", p)
	}
	var words bytes.Buffer
	if status := reportError(&words, err); status != statusFailed || !strings.Contains(words.String(), "(ids 7)") {
		t.Errorf("exit status %d, and said: %s", status, words.String())
	}
}

func reportError(w *bytes.Buffer, err error) int { return report(w, "rideau demo", err) }

// Whenever the demo ends, and however, nothing of it lives on.
func TestDemoEnds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		at     string // the step after which it is ended
		signal syscall.Signal
		status int
	}{
		{"interrupted at its beginning", "primary:", syscall.SIGINT, 1},
		{"terminated while clients write", "standbys:", syscall.SIGTERM, 1},
		{"hung up on after the primary's death", "SIGKILL to", syscall.SIGHUP, 1},
		{"killed with two servers", "primary:", syscall.SIGKILL, -1},
		{"killed with all of it running", "standbys:", syscall.SIGKILL, -1},
		{"interrupted when all is said", "Ctrl-C", syscall.SIGINT, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(pgtest.Dir(t), "demo")
			cmd := exec.Command(ourselves(t), "demo", "--keep", "--dir", dir)
			cmd.Args[0] = "rideau"
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out := &watchedOutput{want: tt.at, seen: make(chan struct{})}
			cmd.Stdout, cmd.Stderr = out, out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				cmd.Wait()
				close(ended)
			}()
			select {
			case <-out.seen:
			case <-ended:
			case <-time.After(pgtest.Patience):
				t.Errorf("the demo does not come to %q", tt.at)
			}
			running := processesNaming(t, dir)
			cmd.Process.Signal(tt.signal)
			select {
			case <-ended:
			case <-time.After(pgtest.Patience):
				cmd.Process.Kill()
				<-ended
				t.Errorf("the demo did not end")
			}
			if status := cmd.ProcessState.ExitCode(); status != tt.status {
				t.Errorf("exit status %d, want %d", status, tt.status)
			}
			if len(running) < 2 { // itself and a postmaster
				t.Errorf("only %q ran, so this test shows nothing", running)
			}
			if tt.signal != syscall.SIGKILL {
				if left := processesNaming(t, dir); len(left) > 0 {
					t.Errorf("processes live on: %q", left)
				}
				if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the directory is still there: %v", err)
				}
			}
			// The kernel has told them, but they need a moment.
			pgtest.Wait(t, "all processes to be gone", func() (bool, string) {
				left := processesNaming(t, dir)
				return len(left) == 0, fmt.Sprintf("%q live on", left)
			})
			if t.Failed() {
				t.Logf("the demo said:\n%s", out)
			}
		})
	}
}

// processesNaming are the command lines of processes that have text in theirs.
func processesNaming(t *testing.T, text string) (found []string) {
	t.Helper()
	out, err := exec.Command("ps", "-A", "-ww", "-o", "args=").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, text) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// A watchedOutput says when something was written to it.
type watchedOutput struct {
	mu   sync.Mutex
	text bytes.Buffer
	want string
	seen chan struct{}
	once sync.Once
}

func (o *watchedOutput) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(p)
	if strings.Contains(o.text.String(), o.want) {
		o.once.Do(func() { close(o.seen) })
	}
	return len(p), nil
}

func (o *watchedOutput) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}
