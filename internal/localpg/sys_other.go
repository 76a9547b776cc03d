//go:build unix && !linux

package localpg

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// dieWithParent does nothing: only Linux can tie a child to its parent. An orphan is ended by the next [Start].
func dieWithParent(*syscall.SysProcAttr, syscall.Signal) {}

// serverProcesses returns the postmaster named in dir's lock file, if that process is a Postgres.
func serverProcesses(dir string) []int {
	pid := readPostmasterPID(dir)
	if pid <= 0 {
		return nil
	}
	out, err := exec.Command("ps", "-o", "comm=", "-p", strconv.Itoa(pid)).Output()
	if err != nil || !strings.Contains(string(out), "postgres") {
		return nil
	}
	return []int{pid}
}
