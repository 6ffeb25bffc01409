package main

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var updateExplain = flag.Bool("update-explain", false, "write the program in docs/explain.md")

// TestExplainInDocs: what docs/explain.md says that its bundle becomes.
func TestExplainInDocs(t *testing.T) {
	const file = "../../docs/explain.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(fenced(t, doc, "json")), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := cli("explain", "--bundle", dir)
	if code != 0 {
		t.Fatal(errs)
	}
	was, is := fenced(t, doc, "text"), shortened(out)
	if *updateExplain {
		if err := os.WriteFile(file, []byte(strings.Replace(doc, "```text\n"+was, "```text\n"+is, 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, wanted := strings.Split(is, "\n"), strings.Split(was, "\n")
	for i := range min(len(have), len(wanted)) {
		if have[i] != wanted[i] {
			t.Fatalf("docs/explain.md says\n%s\nand it is\n%s", wanted[i], have[i])
		}
	}
	if len(have) != len(wanted) {
		t.Errorf("%d lines in docs/explain.md, and there are %d", len(wanted), len(have))
	}
}

// fenced returns the only block of a language in a document.
func fenced(t *testing.T, doc, language string) string {
	t.Helper()
	_, rest, begins := strings.Cut(doc, "```"+language+"\n")
	block, _, ends := strings.Cut(rest, "```")
	if !begins || !ends {
		t.Fatalf("no block of %s", language)
	}
	return block
}

// shortened leaves out what is said for each of 64 capabilities.
func shortened(text string) string {
	lines := strings.SplitAfter(text, "\n")
	drops := func(l string) bool { return strings.Contains(l, "CAPBSET_DROP") }
	first, last := slices.IndexFunc(lines, drops), len(lines)-1
	for !drops(lines[last]) {
		last--
	}
	const each = 2 // lines: the call, and its error
	return strings.Join(append(append(slices.Clone(lines[:first+2*each]), " ...\n"), lines[last:]...), "")
}
