package house

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Budgets are the limits of conformance/BUDGET.md by name.
type Budgets map[string]int

var budgetRow = regexp.MustCompile("^\\| `([a-z-]+)` \\| +([0-9]+) \\|")

// ReadBudgets reads the table of conformance/BUDGET.md below root.
func ReadBudgets(root string) (Budgets, error) {
	text, err := os.ReadFile(filepath.Join(root, "conformance", "BUDGET.md"))
	if err != nil {
		return nil, err
	}
	b := Budgets{}
	for _, line := range strings.Split(string(text), "\n") {
		m := budgetRow.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		n, err := strconv.Atoi(m[2])
		if err != nil {
			return nil, fmt.Errorf("read budget %s: %w", m[1], err)
		}
		b[m[1]] = n
	}
	return b, nil
}

// DirectModules returns the module paths that a go.mod requires directly, and the ones among them that the text of
// docs/dependencies.md does not name.
func DirectModules(goMod, reasons string) (direct, unexplained []string) {
	inRequire := false
	for _, line := range strings.Split(goMod, "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) >= 2 && f[0] == "require" && f[1] == "(":
			inRequire = true
			continue
		case len(f) > 0 && f[0] == ")":
			inRequire = false
			continue
		case len(f) >= 3 && f[0] == "require":
			f = f[1:]
		case !inRequire || len(f) < 2:
			continue
		}
		if strings.Contains(line, "// indirect") {
			continue
		}
		direct = append(direct, f[0])
		if !strings.Contains(reasons, "`"+f[0]+"`") {
			unexplained = append(unexplained, f[0])
		}
	}
	return direct, unexplained
}
