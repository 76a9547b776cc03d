package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/orderflow-dev/orderflow/internal/config"
)

const composeFile = "../../docker-compose.yml"

// project is docker-compose.yml as Compose reads it, all profiles on and nothing set.
func project(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{composeFile}, cli.WithDefaultProfiles("*"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ours returns the compose services that run our image, with the command each runs.
func ours(t *testing.T, p *types.Project) map[string]*cobra.Command {
	t.Helper()
	root := newRoot(io.Discard, io.Discard)
	found := map[string]*cobra.Command{}
	for name, s := range p.Services {
		if !strings.HasPrefix(s.Image, "orderflow:") {
			continue
		}
		cmd, rest, err := root.Find(s.Command)
		if err != nil || cmd == root {
			t.Errorf("%s runs %v, which orderflow does not know: %v", name, s.Command, err)
			continue
		}
		if err := cmd.ParseFlags(rest); err != nil {
			t.Errorf("%s runs %v: %v", name, s.Command, err)
		}
		found[name] = cmd
	}
	return found
}

func TestComposeRunsEveryServiceUnderItsOwnName(t *testing.T) {
	t.Parallel()
	p := project(t)
	want := []string{"migrate"}
	for _, cmd := range newServices() {
		want = append(want, cmd.Name())
	}
	running := ours(t, p)
	if got := slices.Sorted(maps.Keys(running)); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("docker-compose.yml runs %v, want %v", got, want)
	}
	for name, cmd := range running {
		if cmd.Name() != name {
			t.Errorf("%s runs %s, want its own name", name, cmd.Name())
		}
	}
}

func TestComposeSetsWhatTheCommandsRead(t *testing.T) {
	t.Parallel()
	p := project(t)
	for name, cmd := range ours(t, p) {
		env := p.Services[name].Environment
		known := map[string]bool{"PGPASSFILE": true} // read by pgx
		for _, reader := range append(readersOf(name), cmd) {
			for _, flag := range flagNames(reader) {
				known[config.EnvName(flag)], known[config.EnvName(flag)+"_FILE"] = true, true
			}
		}
		for variable := range env {
			if !known[variable] {
				t.Errorf("%s sets %s, which `orderflow %s` does not read", name, variable, cmd.Name())
			}
		}
		for _, flag := range flagNames(cmd) {
			if !strings.Contains(cmd.Flags().Lookup(flag).Usage, "(required)") {
				continue
			}
			if _, set := env[config.EnvName(flag)]; !set {
				t.Errorf("%s does not set %s, which `orderflow %s` needs", name, config.EnvName(flag), cmd.Name())
			}
		}
	}
}

// The api takes it with --dev only.
func TestComposeSignsWebhooksWithTheSecretThatServicesKnowForPublic(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(project(t).Secrets["webhook_secret"].File)
	if err != nil || strings.TrimSpace(string(raw)) != devWebhookSecret {
		t.Errorf("the webhook secret is %q, %v; want %q", raw, err, devWebhookSecret)
	}
}

func TestComposeFileAndImageMustFit(t *testing.T) {
	t.Parallel()
	if format := project(t).Services["migrate"].Environment["ORDERFLOW_COMPOSE_FORMAT"]; format == nil || *format != strconv.Itoa(composeFormat) {
		t.Errorf("docker-compose.yml names the wrong format, want %d", composeFormat)
	}
	for format, want := range map[int]string{composeFormat - 1: "older release", composeFormat + 1: "newer release"} {
		if format == 0 {
			format = -1 // 0 is no compose file
		}
		got := orderflow(t.Context(), "migrate", "--compose-format", strconv.Itoa(format), "--database-url", "postgres://127.0.0.1:1/none")
		if got.code != exitConflict || !strings.Contains(got.stderr, want) || !strings.Contains(got.stderr, "release") {
			t.Errorf("migrate from a file of format %d = exit %d, %s; want %d and %q", format, got.code, got.stderr, exitConflict, want)
		}
	}
}

// readersOf returns the other commands that are run in a service's container.
func readersOf(name string) []*cobra.Command {
	others := []*cobra.Command{newHealthcheck()}
	if name == "api" {
		others = append(others, newOrders().Commands()...)
	}
	return others
}

func flagNames(cmd *cobra.Command) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

func TestComposeChecksTheHealthOfWhateverIsWaitedFor(t *testing.T) {
	t.Parallel()
	p := project(t)
	running := ours(t, p)
	for name, s := range p.Services {
		if name == "migrate" {
			continue // it ends
		}
		if s.HealthCheck == nil || s.HealthCheck.Disable || len(s.HealthCheck.Test) == 0 {
			t.Errorf("%s has no health check", name)
		} else if running[name] != nil && !slices.Equal(s.HealthCheck.Test, []string{"CMD", "orderflow", "healthcheck"}) {
			t.Errorf("%s checks its health by %v, want `orderflow healthcheck`: the image has nothing else", name, s.HealthCheck.Test)
		}
		if s.Restart != types.RestartPolicyUnlessStopped || s.MemLimit == 0 {
			t.Errorf("%s: restart %q, memory limit %d; want unless-stopped and a limit", name, s.Restart, s.MemLimit)
		}
		for other, dependency := range s.DependsOn {
			want := types.ServiceConditionHealthy
			if other == "migrate" {
				want = types.ServiceConditionCompletedSuccessfully
			}
			if dependency.Condition != want {
				t.Errorf("%s waits until %s is %s, want %s", name, other, dependency.Condition, want)
			}
		}
	}
}

func TestComposePublishesOnTheLoopbackOnlyWhatIsListenedOn(t *testing.T) {
	t.Parallel()
	p := project(t)
	running := ours(t, p)
	for name, s := range p.Services {
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" {
				t.Errorf("%s publishes %s on %q, want 127.0.0.1", name, port.Published, port.HostIP)
			}
			if running[name] == nil {
				continue
			}
			if addr := s.Environment["ORDERFLOW_ADDR"]; addr == nil || *addr != fmt.Sprintf(":%d", port.Target) {
				t.Errorf("%s publishes port %d, where nothing listens", name, port.Target)
			}
		}
	}
}

// The variables and their defaults stand in two files: where they are used and where people look them up.
func TestEnvExampleListsEveryVariableWithItsDefault(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(composeFile)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]string{}
	for _, m := range regexp.MustCompile(`\$\{([A-Z0-9_]+):-([^}]*)\}`).FindAllStringSubmatch(string(raw), -1) {
		if before, twice := used[m[1]]; twice && before != m[2] {
			t.Errorf("%s is %q in one place and %q in another", m[1], before, m[2])
		}
		used[m[1]] = m[2]
	}
	if all := regexp.MustCompile(`\$\{`).FindAllString(string(raw), -1); len(used) < 10 || len(all) < len(used) {
		t.Fatalf("found %d variables in %s", len(used), composeFile)
	}
	listed := settings(t, "../../.env.example", "#")
	if !maps.Equal(used, listed) {
		t.Errorf(".env.example lists %v\nwant what docker-compose.yml uses, %v", listed, used)
	}
	for name := range settings(t, "../../.env.cluster", "") {
		if _, ok := used[name]; !ok && name != "COMPOSE_PROFILES" {
			t.Errorf(".env.cluster sets %s, which docker-compose.yml does not use", name)
		}
	}
}

// settings reads the lines NAME=value that begin with prefix.
func settings(t *testing.T, path, prefix string) map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	found := map[string]string{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if m := regexp.MustCompile(`^` + prefix + `([A-Z0-9_]+)=(.*)$`).FindStringSubmatch(lines.Text()); m != nil {
			found[m[1]] = m[2]
		}
	}
	return found
}
