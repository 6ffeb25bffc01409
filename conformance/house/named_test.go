package house

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	namedTest = regexp.MustCompile(`\bTest[A-Z]\w*`)
	runFlag   = regexp.MustCompile(`-run[ =](?:'([^']*)'|([^\s'` + "`" + `]+))`)
)

// unknownTests complains of the tests that a page names and that do not exist, and of the selections that select none.
func unknownTests(page string, tests map[string]bool) (complaints []string) {
	for _, m := range runFlag.FindAllStringSubmatch(page, -1) {
		selection, err := regexp.Compile(m[1] + m[2])
		if err != nil || !slices.ContainsFunc(sortedKeys(tests), selection.MatchString) {
			complaints = append(complaints, fmt.Sprintf("-run %s%s selects nothing", m[1], m[2]))
		}
	}
	for _, name := range namedTest.FindAllString(runFlag.ReplaceAllString(page, ""), -1) {
		if !tests[name] {
			complaints = append(complaints, "there is no "+name)
		}
	}
	return complaints
}

func sortedKeys(tests map[string]bool) (names []string) {
	for name := range tests {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// TestPagesNameTests: whatever a page says is shown by a test, the test exists. Tables of fields, attacks and bad input rely on it.
func TestPagesNameTests(t *testing.T) {
	root, _ := tree(t)
	tests := testNames(t, root)
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(pages) < 15 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	named := 0
	for _, page := range append(pages, filepath.Join(root, "README.md"), filepath.Join(root, "conformance/BUDGET.md")) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		named += len(namedTest.FindAll(text, -1))
		for _, complaint := range unknownTests(string(text), tests) {
			t.Errorf("%s: %s", strings.TrimPrefix(page, root+"/"), complaint)
		}
	}
	if named < 500 {
		t.Errorf("the pages name %d tests", named)
	}
}

func TestUnknownTests(t *testing.T) {
	tests := map[string]bool{"TestOne": true, "TestIM01Two": true}
	for page, want := range map[string]int{
		"`TestOne`, TestIM01Two": 0, "`TestTwo`": 1, "`TestOneMore`": 1, "go test -run 'TestIM|TestOne' ./x": 0, "-run '^TestThree$'": 1, "`-run TestIM01`": 0, "-run '('": 1,
	} {
		if got := unknownTests(page, tests); len(got) != want {
			t.Errorf("%q: %q", page, got)
		}
	}
}
