// Command tally runs `go test -json` over the packages given to it, shows one line per package while they run and
// the whole output of what fails, and ends with the count that the build machine and a reader look for:
//
//	412 passed, 0 failed, 3 skipped
//
// A test with subtests is not counted itself, only its subtests are, unless it alone fails. A package that does not compile, a panic outside
// of a test and a time-out count as one failure each. The exit status is 0 only if nothing failed and something passed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"sort"
	"strings"
	"syscall"
)

// event is one line of `go test -json` (see `go doc test2json`).
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Output      string
	FailedBuild string
	Elapsed     float64
}

// tally is what is known so far.
type tally struct {
	out     io.Writer
	output  map[string]*strings.Builder // by package and test
	state   map[string]string           // by package and test: pass, fail, skip
	parents map[string]bool             // tests that have subtests
	failed  map[string]bool             // packages in which a test failed
	loose   int                         // failures that belong to no test
	skips   []string
	fails   []string
	slow    []event
}

func main() {
	args := append([]string{"test", "-json", "-timeout", "20m"}, os.Args[1:]...)
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run go test:", err)
		os.Exit(2)
	}
	// Whoever ends us early is still told what was counted: go test ends, and with it the stream.
	early := make(chan os.Signal, 1)
	signal.Notify(early, syscall.SIGINT, syscall.SIGTERM)
	go func() { // ends with the process
		for range early {
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		}
	}()
	t := newTally(os.Stdout)
	if err := t.read(pipe); err != nil {
		fmt.Fprintln(os.Stderr, "read go test:", err)
		t.loose++
	}
	err = cmd.Wait()
	passed, failed := t.summary()
	if err != nil && failed == 0 {
		fmt.Fprintln(os.Stderr, "go test:", err)
		failed++
	}
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}

func newTally(out io.Writer) *tally {
	return &tally{out: out, output: map[string]*strings.Builder{}, state: map[string]string{}, parents: map[string]bool{}, failed: map[string]bool{}}
}

// read takes in the whole stream. Lines that are no event (a build that prints, a binary that writes to the wrong
// place) are shown as they are.
func (t *tally) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) == nil && e.Action != "" {
				t.take(e)
			} else {
				fmt.Fprint(t.out, line)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take handles one event.
func (t *tally) take(e event) {
	if e.Package == "" {
		e.Package = e.ImportPath
	}
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case "output", "build-output":
		b := t.output[key]
		if b == nil {
			b = &strings.Builder{}
			t.output[key] = b
		}
		b.WriteString(e.Output)
	case "run":
		if i := strings.LastIndexByte(e.Test, '/'); i > 0 {
			t.parents[e.Package+"\x00"+e.Test[:i]] = true
		}
	case "pass", "fail", "skip":
		t.end(e, key)
	}
}

// slowSeconds is from when on a test is named for the time that it took.
const slowSeconds = 30

// end handles the end of a test or of a package.
func (t *tally) end(e event, key string) {
	if e.Test == "" {
		t.endPackage(e)
		return
	}
	t.state[key] = e.Action
	if e.Elapsed >= slowSeconds && !strings.Contains(e.Test, "/") {
		t.slow = append(t.slow, e)
	}
	switch e.Action {
	case "fail":
		t.failed[e.Package] = true
		fmt.Fprintf(t.out, "FAIL  %s %s\n%s", e.Package, e.Test, t.text(key))
		for _, why := range complaints(t.text(key)) {
			t.fails = append(t.fails, fmt.Sprintf("%s %s: %s", e.Package, e.Test, why))
		}
	case "skip":
		t.skips = append(t.skips, fmt.Sprintf("%s %s: %s", e.Package, e.Test, reason(t.text(key))))
	}
	delete(t.output, key)
}

// endPackage prints the line of a package. Packages without tests are silent.
func (t *tally) endPackage(e event) {
	switch e.Action {
	case "pass":
		fmt.Fprintf(t.out, "ok    %-70s %6.1f s\n", e.Package, e.Elapsed)
	case "fail":
		fmt.Fprintf(t.out, "FAIL  %s\n", e.Package)
		if !t.failed[e.Package] {
			t.loose++
			if e.FailedBuild != "" {
				fmt.Fprint(t.out, t.text(e.FailedBuild+"\x00"))
			}
			t.unfinished(e.Package)
		}
	}
}

// unfinished prints what the package and its tests without an end have said: a panic or a time-out is in there.
func (t *tally) unfinished(pkg string) {
	for key := range t.output {
		if strings.HasPrefix(key, pkg+"\x00") {
			fmt.Fprint(t.out, t.text(key))
		}
	}
}

func (t *tally) text(key string) string {
	if b := t.output[key]; b != nil {
		return b.String()
	}
	return ""
}

// reason finds the line of a skipped test that says why.
func reason(output string) string {
	why := "no reason given"
	for _, line := range strings.Split(output, "\n") {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			why = line
		}
	}
	return why
}

// complaint is a line that a test wrote itself, as against those of a daemon whose log it shows.
var complaint = regexp.MustCompile(`^ *\w+\.go:\d+: `)

// complaints finds the first few lines in which a failed test says why. They are repeated at the end: of a long run, whoever keeps its
// last lines keeps these.
func complaints(output string) (first []string) {
	for _, line := range strings.Split(output, "\n") {
		if complaint.MatchString(line) && len(first) < 3 {
			first = append(first, fmt.Sprintf("%.400s", strings.TrimSpace(line)))
		}
	}
	return first
}

// childFailed reports whether a failed test failed because of a subtest.
func (t *tally) childFailed(key string) bool {
	for k, state := range t.state {
		if state == "fail" && strings.HasPrefix(k, key+"/") {
			return true
		}
	}
	return false
}

// summary prints the skipped tests and the failed ones with their reasons, the ten slowest of the slow ones, and the last line, and returns its numbers.
func (t *tally) summary() (passed, failed int) {
	skipped := 0
	for key, state := range t.state {
		if t.parents[key] && (state != "fail" || t.childFailed(key)) {
			continue
		}
		switch state {
		case "pass":
			passed++
		case "fail":
			failed++
		case "skip":
			skipped++
		}
	}
	failed += t.loose
	sort.Strings(t.skips)
	for _, s := range t.skips {
		fmt.Fprintln(t.out, "skip ", s)
	}
	sort.Slice(t.slow, func(i, j int) bool { return t.slow[i].Elapsed > t.slow[j].Elapsed })
	for _, e := range t.slow[:min(len(t.slow), 10)] {
		fmt.Fprintf(t.out, "slow  %s %s: %.0f s\n", e.Package, e.Test, e.Elapsed)
	}
	for _, f := range t.fails {
		fmt.Fprintln(t.out, "FAIL ", f)
	}
	fmt.Fprintf(t.out, "%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	return passed, failed
}
