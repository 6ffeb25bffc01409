package cgroup

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// docCells returns the table rows of docs/limits.md below a heading.
func docCells(t *testing.T, heading string) (rows [][]string) {
	t.Helper()
	b, err := os.ReadFile("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "\n## "+heading+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "| `") {
			rows = append(rows, strings.Split(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(line), "| "), " |"), " | "))
		}
	}
	if len(rows) == 0 {
		t.Fatalf("no table below %q", heading)
	}
	return rows
}

// unquote takes the backquotes and the separators out of a cell.
func unquote(cell string) (out []string) {
	for i, s := range strings.Split(cell, "`") {
		if i%2 == 1 {
			out = append(out, s)
		}
	}
	return out
}

// propertyNames are the names of what systemd is told about a file with this value.
func propertyNames(file, value string) (names []string) {
	props, _ := translate(file, value, func() uint64 { return 1 })
	for _, p := range props {
		names = append(names, p.Name)
	}
	return names
}

// docs/limits.md says which property of systemd stands for which file, and lists all
// files that a request may name.
func TestLimitsPage(t *testing.T) {
	for _, row := range docCells(t, "From the CRI to the kernel") {
		var got []string
		for _, s := range unquote(row[2]) {
			file, value, _ := strings.Cut(s, "=")
			got = append(got, propertyNames(file, value)...)
		}
		if want := unquote(row[3]); !slices.Equal(got, want) {
			t.Errorf("%s: properties %q, and the page says %q", row[2], got, want)
		}
	}
	var listed []string
	for _, row := range docCells(t, "Unified") {
		file := unquote(row[0])[0]
		listed = append(listed, file)
		if got, want := propertyNames(file, unquote(row[1])[0]), unquote(row[2]); !slices.Equal(got, want) {
			t.Errorf("%s: properties %q, and the page says %q", file, got, want)
		}
		if !slices.Contains(unifiedFiles, file) && !isHugetlbFile(file) {
			t.Errorf("%s is on the page, and no request may name it", file)
		}
	}
	for _, file := range unifiedFiles {
		if !slices.Contains(listed, file) {
			t.Errorf("%s is not on the page", file)
		}
	}
}
