//go:build !linux

package main

import (
	"errors"
	"syscall"
	"time"
)

// There is no death signal here: the relay outlives us if we are killed.
func dieWithUs(*syscall.SysProcAttr) {}

// Nothing is known here of what a folder is on.
func onDisk(string) error { return nil }

func cpuClock(int) (time.Duration, error) { return 0, errors.ErrUnsupported }

func cpuOfChildren(int) (time.Duration, error) { return 0, errors.ErrUnsupported }
