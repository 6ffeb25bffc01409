// Package posture holds what a process of the runtime is against golden files: credentials, capabilities, filters,
// namespaces, mounts, descriptors, environment, all of it. A container looks at itself with a static shell, and what
// differs from one machine to another (inode numbers, ids, what a kernel does not have) is replaced by what it means.
//
//	probe ── sections of text ──► the test's words, Line, ParseMount ──► Golden ── testdata/posture/<profile>.txt
//
// The tests are where the containers are: conformance/integration has those of the daemon, cmd/vitrine-oci those of
// the command line.
package posture

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update-posture", false, "write the golden files of the posture tests")

var inode = regexp.MustCompile(`\[\d+\]`)

// Line returns a line of a posture: without inode numbers, and with one space between two words.
func Line(l string) string {
	return strings.TrimRight("    "+strings.Join(strings.Fields(inode.ReplaceAllString(l, "")), " "), " ") + "\n"
}

// Status returns a command for a shell that says which status it has: the lines of /proc/$$/status with these names,
// patterns of case. No other process is needed for that: while a shell forks, it has all signals blocked, and its child
// would see it so now and then.
func Status(names ...string) string {
	return "while read -r l; do case ${l%%:*} in " + strings.Join(names, "|") + `) echo "$l";; esac; done </proc/$$/status`
}

// Mount is a line of /proc/PID/mountinfo.
type Mount struct {
	// Root is what of the filesystem is mounted, At where, and Flags are the mount's own.
	Root, At, Flags string
	// Propagation is shared:N, master:N and the like, without the numbers.
	Propagation []string
	// Kind is the type of the filesystem, Super its options.
	Kind, Super string
}

// ParseMount reads a line of mountinfo. It is false for one that is none.
func ParseMount(line string) (m Mount, ok bool) {
	f := strings.Fields(line)
	dash := slices.Index(f, "-")
	if dash < 6 || len(f) < dash+4 {
		return m, false
	}
	m = Mount{Root: f[3], At: f[4], Flags: f[5], Kind: f[dash+1], Super: f[len(f)-1]}
	for _, p := range f[6:dash] {
		p, _, _ = strings.Cut(p, ":")
		m.Propagation = append(m.Propagation, p)
	}
	return m, true
}

// Golden compares with the golden file of a profile, in the test's directory. With -update-posture it writes the file.
func Golden(t testing.TB, profile, got string) {
	t.Helper()
	file := filepath.Join("testdata", "posture", profile+".txt")
	if *update {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	have, wanted := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	said := false
	tell := func(how string, lines, others []string) {
		for _, l := range lines {
			if !slices.Contains(others, l) {
				t.Errorf("%s: %s: %s", profile, how, l)
				said = true
			}
		}
	}
	tell("more", have, wanted)
	tell("less", wanted, have)
	if !said {
		t.Errorf("%s: another order than in %s:\n%s", profile, file, got)
	}
}
