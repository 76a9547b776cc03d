package localkafka

import "syscall"

// dieWithParent has the kernel send sig to the child when the thread that started it ends. The caller must keep that
// thread alive (see [node.run]): Go ends threads, and the child would go with them.
func dieWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }
