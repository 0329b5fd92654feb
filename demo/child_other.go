//go:build !linux

package demo

import "syscall"

// There is no death signal here: the relay outlives us if we are killed.
func dieWithUs(*syscall.SysProcAttr) {}
