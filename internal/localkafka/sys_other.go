//go:build unix && !linux

package localkafka

import "syscall"

// dieWithParent does nothing: only Linux can tie a child to its parent.
func dieWithParent(*syscall.SysProcAttr, syscall.Signal) {}
