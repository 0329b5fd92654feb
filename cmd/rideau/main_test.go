package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// SIGTERM is how a supervisor stops a daemon, SIGINT how a person does.
func TestInterruptible(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		ctx, stop := interruptible(t.Context())
		if err := syscall.Kill(syscall.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		stop()
	}
}

// TestStubborn is no test but the program of the next one: it does not stop for
// the first interrupt.
func TestStubborn(t *testing.T) {
	if os.Getenv("RIDEAU_TEST_STUBBORN") == "" {
		return
	}
	ctx, stop := interruptible(context.Background())
	defer stop()
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println("interrupted")
	select {}
}

// The second interrupt ends the process at once, also one that a shell has
// started in the background, with SIGINT ignored.
func TestSecondInterrupt(t *testing.T) {
	for _, tt := range []struct {
		name, trap string
		want       func(syscall.WaitStatus) bool
	}{
		{"by the signal", ":", func(s syscall.WaitStatus) bool { return s.Signaled() && s.Signal() == syscall.SIGINT }},
		{"ignored at the start", "trap '' INT", func(s syscall.WaitStatus) bool { return s.ExitStatus() == 130 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", tt.trap+`; exec "$0" -test.run='^TestStubborn$'`, os.Args[0])
			cmd.Env = append(os.Environ(), "RIDEAU_TEST_STUBBORN=1")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill()
			lines := bufio.NewScanner(out)
			for _, want := range []string{"ready", "interrupted"} {
				if !lines.Scan() || lines.Text() != want {
					t.Fatalf("got %q, want %q", lines.Text(), want)
				}
				cmd.Process.Signal(syscall.SIGINT)
			}
			cmd.Wait()
			if s := cmd.ProcessState.Sys().(syscall.WaitStatus); !tt.want(s) {
				t.Errorf("it ended with %v", cmd.ProcessState)
			}
		})
	}
}
