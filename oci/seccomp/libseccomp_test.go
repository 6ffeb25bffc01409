//go:build amd64

package seccomp

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// measured is a profile, and what the filter that libseccomp 2.5.4 made of it (rules added as runc and crun add them) returned for some calls.
type measured struct {
	Name    string
	Profile specs.LinuxSeccomp
	Error   bool       // libseccomp refused the profile
	Calls   [][]uint64 // architecture, number, two arguments, answer
}

// Why we differ from libseccomp in some cases, after review.
const (
	thread = "calls of ABIs that are not included: we kill the process, libseccomp the thread"
	noTest = "a mask of 0: libseccomp takes the test away on 32-bit ABIs and keeps it on 64-bit ones; we keep it"
	shared = "on 64-bit ABIs rules with different first tests share nodes of libseccomp's tree for the high word, and then are taken for contradictions or change places"
	lost   = "libseccomp gives up when the second test of a rule fails, where another rule would match"
	wrong  = "libseccomp applies a rule of which a test does not hold"
)

// reviewed are the cases in which we differ.
var reviewed = map[string]string{
	"x32 not included":                thread,
	"one argument 21":                 noTest,
	"one argument 37":                 noTest,
	"two arguments 28":                noTest,
	"two arguments 34":                noTest,
	"two arguments, all operators 4":  noTest,
	"two arguments, all operators 19": noTest,
	"two arguments 9":                 shared,
	"two arguments 16":                shared,
	"two arguments 37":                shared,
	"two arguments, all operators 25": shared,
	"two arguments, all operators 42": shared,
	"two arguments, all operators 59": shared,
	"two arguments 39":                lost,
	"two arguments, all operators 12": lost,
	"two arguments, all operators 29": wrong,
	"two arguments, all operators 0":  wrong,
	"two arguments, all operators 40": wrong,
}

// difference is the first one, or "".
func (m *measured) differenceOf() string {
	f, err := Compile(&m.Profile)
	if (err != nil) != m.Error {
		return fmt.Sprintf("our error: %v, libseccomp refused: %v", err, m.Error)
	}
	for _, c := range m.Calls {
		got, _ := f.Run(Call{Arch: uint32(c[0]), Number: uint32(c[1]), Args: [6]uint64{c[2], c[3]}})
		if got != Action(c[4]) {
			return fmt.Sprintf("call %d of %#x with %d: %v, libseccomp %v", c[1], c[0], c[2:4], got, Action(c[4]))
		}
	}
	return ""
}

// TestOrderIsLibseccomps: 180 profiles, written to hit every question of precedence or made at random.
func TestOrderIsLibseccomps(t *testing.T) {
	file, err := os.Open("testdata/libseccomp.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		var m measured
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		switch d, reason := m.differenceOf(), reviewed[m.Name]; {
		case d != "" && reason == "":
			t.Errorf("%s: %s\n%+v", m.Name, d, m.Profile.Syscalls)
		case d == "" && reason != "":
			t.Errorf("%s: no difference any more, but the list says: %s", m.Name, reason)
		}
	}
}
