package main

import (
	"os"
	"os/exec"
	"testing"
)

// rerunVar turns the test binary into the program, for tests that need a process of their own to kill.
const rerunVar = "ORDERFLOW_TEST_RERUN"

func rerun() bool {
	if os.Getenv(rerunVar) == "" {
		return false
	}
	main()
	return true
}

// command returns the program with its arguments as a process to start.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), rerunVar+"=1", "GORACE=atexit_sleep_ms=0") // or it sleeps for a second before it ends
	return cmd
}
