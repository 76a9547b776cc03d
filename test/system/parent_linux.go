package system

import "syscall"

// dieWithParent has the kernel kill the child when the thread that started it ends: see [Process.run].
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
