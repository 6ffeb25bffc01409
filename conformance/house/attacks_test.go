package house

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// attacks is how many rows the table of known attacks has.
const attacks = 28

var (
	attackRow  = regexp.MustCompile(`(?m)^\| RT-(\d\d) \|(.*)$`)
	attackTest = regexp.MustCompile("`(Test[A-Za-z0-9]+)`")
	testFunc   = regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9]+)\(t \*testing\.T\)`)
)

// unshown compares the table of attacks in text with the tests that exist.
func unshown(text string, tests map[string]bool) (complaints []string) {
	rows := map[string]string{}
	for _, m := range attackRow.FindAllStringSubmatch(text, -1) {
		rows[m[1]] = m[2]
	}
	named := map[string]bool{}
	for n := 1; n <= attacks; n++ {
		nr := fmt.Sprintf("%02d", n)
		own := 0
		for _, m := range attackTest.FindAllStringSubmatch(rows[nr], -1) {
			named[m[1]] = true
			if strings.HasPrefix(m[1], "TestRT"+nr) {
				own++
			}
			if !tests[m[1]] {
				complaints = append(complaints, fmt.Sprintf("RT-%s names %s, which does not exist", nr, m[1]))
			}
		}
		if own == 0 {
			complaints = append(complaints, fmt.Sprintf("RT-%s has no test TestRT%[1]s", nr))
		}
	}
	for name := range tests {
		if strings.HasPrefix(name, "TestRT") && !named[name] {
			complaints = append(complaints, name+" stands in no row")
		}
	}
	return complaints
}

// TestAttacks: each known attack has a test of its number, and how that was seen
// to fail stands in docs/security.md.
func TestAttacks(t *testing.T) {
	root, _ := tree(t)
	text, err := os.ReadFile(filepath.Join(root, "docs/security.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests := testNames(t, root)
	report(t, unshown(string(text), tests))
	delete(tests, "TestRT15")
	tests["TestRT29More"] = true
	if n := len(unshown(string(text), tests)); n != 2 {
		t.Errorf("a test that is missing and one without a row make %d complaints", n)
	}
}

// testNames returns the names of all tests of the tree.
func testNames(t *testing.T, root string) map[string]bool {
	t.Helper()
	names, err := Files(root, "_test.go")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range testFunc.FindAllStringSubmatch(string(b), -1) {
			tests[m[1]] = true
		}
	}
	return tests
}
