package house

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// badInputs is how many rows the table of bad input has.
const badInputs = 126

var badInputRow = regexp.MustCompile(`(?m)^\| B-(\d+) \|(.*)$`)

// untested complains of the rows of the table of bad input that are not there, name no test, or name one that does not exist.
func untested(text string, tests map[string]bool) (complaints []string) {
	rows := map[string]string{}
	for _, m := range badInputRow.FindAllStringSubmatch(text, -1) {
		rows[m[1]] = m[2]
	}
	for n := 1; n <= badInputs; n++ {
		nr := fmt.Sprintf("%02d", n)
		named := attackTest.FindAllStringSubmatch(rows[nr], -1)
		if len(named) == 0 {
			complaints = append(complaints, "B-"+nr+" names no test")
		}
		for _, m := range named {
			if !tests[m[1]] {
				complaints = append(complaints, fmt.Sprintf("B-%s names %s, which does not exist", nr, m[1]))
			}
		}
	}
	return complaints
}

// TestBadInputs: each kind of bad input has a row in docs/bad-input.md, and tests.
func TestBadInputs(t *testing.T) {
	root, _ := tree(t)
	text, err := os.ReadFile(filepath.Join(root, "docs/bad-input.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests := testNames(t, root)
	report(t, untested(string(text), tests))
	delete(tests, "TestMatrix")
	if n := len(untested(string(text), tests)); n != 3 { // B-44, B-95, B-126
		t.Errorf("without TestMatrix there are %d complaints", n)
	}
	if n := len(untested("", tests)); n != badInputs {
		t.Errorf("an empty table has %d complaints", n)
	}
}
