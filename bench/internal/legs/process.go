package legs

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// Start starts this program once more, as one of [Program.Commands], and waits for its first line: JSON, which it reads into
// said. What a part costs is then not counted with the others. The caller ends the process with kill, the -9 kind, which
// returns once it is gone; the end of ctx does so too.
func Start(ctx context.Context, said any, command string, args ...string) (kill func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{command}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start process %s: %w", command, err)
	}
	kill = func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()         // it was killed
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err = errors.Join(err, json.Unmarshal(line, said)); err != nil {
		kill()
		return nil, fmt.Errorf("start process %s: read its first line: %w", command, err)
	}
	return kill, nil
}

// Say prints the first line of a process that [Start] started.
func Say(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }
