package demo

import "syscall"

// dieWithUs has the kernel kill the child should we be killed.
func dieWithUs(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
