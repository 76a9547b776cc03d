package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

const module = "github.com/orderflow-dev/orderflow/"

// event is a line of go test -json.
type event struct {
	Action, Package, ImportPath, Test, Output string
	Key, Value                                string // of a test's attribute
	Elapsed                                   float64
}

// suite is one package's result so far.
type suite struct {
	ended  map[string]string           // pass, fail or skip by test
	broker map[string]string           // what the test said it ran on
	output map[string]*strings.Builder // by test, "" for the package's own
}

type results struct {
	verbose bool
	suites  map[string]*suite
}

func readResults(in io.Reader, verbose bool) (*results, error) {
	r := &results{verbose: verbose, suites: map[string]*suite{}}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Println(lines.Text()) // not go test's
			continue
		}
		r.add(e)
	}
	if err := lines.Err(); err != nil {
		return r, fmt.Errorf("read what go test prints: %w", err)
	}
	return r, nil
}

func (r *results) add(e event) {
	if e.Action == "build-output" {
		fmt.Print(e.Output)
		return
	}
	if e.Package == "" {
		return
	}
	name := strings.TrimPrefix(e.Package, module)
	s := r.suites[name]
	if s == nil {
		s = &suite{ended: map[string]string{}, broker: map[string]string{}, output: map[string]*strings.Builder{}}
		r.suites[name] = s
	}
	switch e.Action {
	case "attr":
		if e.Key == "kafka" {
			s.broker[e.Test] = e.Value
		}
	case "output":
		if r.verbose {
			fmt.Print(e.Output)
		}
		if s.output[e.Test] == nil {
			s.output[e.Test] = &strings.Builder{}
		}
		s.output[e.Test].WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.report(name, e)
			return
		}
		s.ended[e.Test] = e.Action
		if e.Action == "fail" && !r.verbose && s.output[e.Test] != nil {
			fmt.Print(tail(s.output[e.Test].String()))
		}
		delete(s.output, e.Test)
	}
}

// tail is the end of what a test printed.
func tail(s string) string {
	const most = 16 << 10
	if len(s) > most {
		return "…" + s[len(s)-most:]
	}
	return s
}

func (s *suite) count(result string) (n int) {
	for _, ended := range s.ended {
		if ended == result {
			n++
		}
	}
	return n
}

// on counts the tests that ran on a broker of that kind, as such or as a part of one that did.
func (s *suite) on(kind string) (n int) {
	for test := range s.ended {
		for whole := test; ; {
			if s.broker[whole] == kind {
				n++
				break
			}
			slash := strings.LastIndexByte(whole, '/')
			if slash < 0 {
				break
			}
			whole = whole[:slash]
		}
	}
	return n
}

// report prints the package's line, and what it printed by itself when it failed: a panic, a leak.
func (s *suite) report(name string, e event) {
	if e.Action == "fail" {
		for _, test := range slices.Sorted(maps.Keys(s.output)) {
			fmt.Print(tail(s.output[test].String()))
		}
	}
	fmt.Printf("%-4s  %-22s %4d passed, %d failed, %d skipped; %d on Apache Kafka, %d on kfake; %.0f s\n", map[string]string{"pass": "ok", "fail": "FAIL", "skip": "none"}[e.Action],
		name, s.count("pass"), s.count("fail"), s.count("skip"), s.on("apache"), s.on("kfake"), e.Elapsed)
}

func (r *results) print(took time.Duration) {
	var passed, failed, skipped, apache, kfake int
	for _, s := range r.suites {
		passed, failed, skipped = passed+s.count("pass"), failed+s.count("fail"), skipped+s.count("skip")
		apache, kfake = apache+s.on("apache"), kfake+s.on("kfake")
	}
	fmt.Printf("\n%d passed, %d failed, %d skipped in %v: %d on Apache Kafka, %d on kfake by their nature, the others use no broker from outside\n",
		passed, failed, skipped, took.Round(time.Second), apache, kfake)
}

// judge reports what passed and proves less than it seems to.
func (r *results) judge(listed map[string][]string, complete bool) error {
	var wrong []error
	for _, name := range slices.Sorted(maps.Keys(r.suites)) {
		s := r.suites[name]
		if n := s.count("skip"); n > 0 {
			wrong = append(wrong, fmt.Errorf("%s: %d tests were skipped; a missing part should fail them", name, n))
		}
		if complete && s.on("apache") == 0 && name != "internal/localkafka" {
			wrong = append(wrong, fmt.Errorf("%s: no test ran on Apache Kafka; its tests should call kafkatest.New", name))
		}
		fakes := map[string]bool{}
		for test, kind := range s.broker {
			if kind == "kfake" {
				top, _, _ := strings.Cut(test, "/")
				fakes[top] = true
			}
		}
		for _, test := range slices.Sorted(maps.Keys(fakes)) {
			if !slices.Contains(listed[name], test) {
				wrong = append(wrong, fmt.Errorf("%s: %s ran on kfake and docs/kfake.md does not say why; call kafkatest.New, or list it there", name, test))
			}
		}
		for _, test := range listed[name] {
			if complete && !fakes[test] {
				wrong = append(wrong, fmt.Errorf("%s: docs/kfake.md lists %s, which did not run on kfake; correct the list", name, test))
			}
		}
	}
	return errors.Join(wrong...)
}

var listedTest = regexp.MustCompile("^- `([a-z/]+)` `(Test\\w+)`")

// readListed returns, by package, the tests that docs/kfake.md says need kfake.
func readListed(path string) (map[string][]string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the list of tests that need kfake (run this from the repository's root): %w", err)
	}
	listed := map[string][]string{}
	for line := range strings.Lines(string(raw)) {
		if m := listedTest.FindStringSubmatch(line); m != nil {
			listed[m[1]] = append(listed[m[1]], m[2])
		}
	}
	return listed, nil
}
