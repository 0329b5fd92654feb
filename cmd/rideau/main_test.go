package main

import (
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
