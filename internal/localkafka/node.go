package localkafka

import (
	"context"
	_ "embed" // log4j2.properties
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

//go:embed log4j2.properties
var log4j []byte

// program is how to run Kafka's classes.
type program struct {
	java, jars string
	optimize   bool
}

// command runs a main class, with the JVM set for a short, small life unless p says otherwise.
func (p program) command(ctx context.Context, n *node, class string, args ...string) *exec.Cmd {
	jvm := []string{
		"-Xmx" + strconv.Itoa(n.heapMB) + "m",
		"-Djava.awt.headless=true",
		"-Dlog4j2.configurationFile=" + filepath.Join(n.dir, "log4j2.properties"),
		"-cp", filepath.Join(p.jars, "*"),
	}
	if !p.optimize {
		// A cluster for a test lives for seconds: the slow compiler never pays.
		jvm = append(jvm, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
	}
	cmd := exec.CommandContext(ctx, p.java, append(append(jvm, class), args...)...)
	cmd.Dir = n.dir
	return cmd
}

// node is one Kafka process, broker and controller.
type node struct {
	id     int
	dir    string
	heapMB int

	cmd     *exec.Cmd
	logFrom int64         // where this start's part of the log begins
	exited  chan struct{} // closed when the process has ended
	exitErr error         // valid once exited is closed
}

func (n *node) dataDir() string    { return filepath.Join(n.dir, "data") }
func (n *node) properties() string { return filepath.Join(n.dir, "server.properties") }
func (n *node) logFile() string    { return filepath.Join(n.dir, "kafka.log") }

// configure writes the node's settings.
func (n *node) configure(settings map[string]string) error {
	if err := os.MkdirAll(n.dir, 0o750); err != nil {
		return fmt.Errorf("make the folder of node %d: %w", n.id, err)
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s=%s\n", name, settings[name])
	}
	for file, content := range map[string][]byte{
		n.properties(): []byte(b.String()), filepath.Join(n.dir, "log4j2.properties"): log4j,
	} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return fmt.Errorf("configure node %d: %w", n.id, err)
		}
	}
	return nil
}

// format prepares the node's storage anew.
func (n *node) format(ctx context.Context, p program, clusterID string) error {
	if err := os.RemoveAll(n.dataDir()); err != nil {
		return fmt.Errorf("format node %d: %w", n.id, err)
	}
	out, err := p.command(ctx, n, "kafka.tools.StorageTool", "format", "--cluster-id", clusterID, "--config", n.properties()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("format node %d: %w\n%s", n.id, err, complaint(string(out)))
	}
	return nil
}

// start runs the main class class.
func (n *node) start(ctx context.Context, p program, class string) error {
	if info, err := os.Stat(n.logFile()); err == nil {
		n.logFrom = info.Size()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open the log of node %d: %w", n.id, err)
	}
	file, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of node %d: %w", n.id, err)
	}
	defer func() { _ = file.Close() }()
	// ctx ends the start, not the node.
	n.cmd = p.command(context.WithoutCancel(ctx), n, class, n.properties())
	n.cmd.Stdout, n.cmd.Stderr = file, file
	// A session of its own: Ctrl-C in a terminal reaches every process of the foreground group, and would end the broker
	// under the feet of clients that are still finishing their work.
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	dieWithParent(n.cmd.SysProcAttr, syscall.SIGKILL)
	n.exited = make(chan struct{})
	started := make(chan error, 1)
	go n.run(started)
	if err := <-started; err != nil {
		return fmt.Errorf("start node %d: %w", n.id, err)
	}
	return nil
}

// run starts the process and waits for its end, on one OS thread that it keeps for itself all the while: the kernel's
// parent-death signal is tied to the thread, and Go may end a thread that nothing is locked to.
func (n *node) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := n.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	n.exitErr = n.cmd.Wait()
	close(n.exited)
}

// stop asks the process to end and kills it when ctx ends before that. It reports whether it had to.
func (n *node) stop(ctx context.Context) (killed bool) {
	_ = n.cmd.Process.Signal(syscall.SIGTERM) // the only error is that it has ended
	select {
	case <-n.exited:
		return false
	case <-ctx.Done():
	}
	_ = n.cmd.Process.Kill()
	<-n.exited
	return true
}

// kill ends the process if there is one.
func (n *node) kill() {
	if n.cmd != nil && n.cmd.Process != nil {
		_ = n.cmd.Process.Kill() // the only error is that it has ended
		<-n.exited
	}
}

// said returns what the node logged since it was started.
func (n *node) said() string {
	raw, err := os.ReadFile(n.logFile())
	if err != nil || int64(len(raw)) < n.logFrom {
		return ""
	}
	return string(raw[n.logFrom:])
}

// complaint returns the lines of a program's output that tell why it has ended.
func complaint(said string) string {
	var lines []string
	for _, line := range strings.Split(said, "\n") {
		if strings.Contains(line, " ERROR ") || strings.Contains(line, " FATAL ") || strings.Contains(line, "Exception") || strings.HasPrefix(line, "Error") {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return lastLines(said, 12)
	}
	return strings.Join(lines[:min(len(lines), 12)], "\n")
}
