package sandbox

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/oci/cgroup"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

var quoted = regexp.MustCompile("`([^`]+)`")

// docRows returns the cells of a table in docs/limits.md, without their backquotes; a cell may hold several.
func docRows(t *testing.T, heading string) (rows [][][]string) {
	t.Helper()
	b, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(b), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("no section %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.Lines(section) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		var row [][]string
		for cell := range strings.SplitSeq(strings.Trim(strings.TrimSpace(line), "|"), "|") {
			var words []string
			for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
				words = append(words, m[1])
			}
			row = append(row, words)
		}
		rows = append(rows, row)
	}
	return rows
}

// TestLimitsPage holds docs/limits.md against the code: each example becomes the files that stand beside it,
// and no field of the CRI is left out.
func TestLimitsPage(t *testing.T) {
	fields := map[string]bool{}
	for _, row := range docRows(t, "From the CRI to the kernel") {
		r := &runtimeapi.LinuxContainerResources{}
		if err := protojson.Unmarshal([]byte(row[1][0]), r); err != nil {
			t.Errorf("%s: %v", row[1][0], err)
			continue
		}
		for _, f := range row[0] {
			fields[f] = true
			if !strings.Contains(row[1][0], `"`+f+`"`) {
				t.Errorf("the example %s does not have %s", row[1][0], f)
			}
		}
		got := docFiles(t, r)
		if r.OomScoreAdj != 0 {
			got = append(got, fmt.Sprintf("/proc/PID/oom_score_adj=%d", r.OomScoreAdj))
		}
		if !slices.Equal(got, row[2]) {
			t.Errorf("%s becomes %q, and the page says %q", row[1][0], got, row[2])
		}
	}
	all := (&runtimeapi.LinuxContainerResources{}).ProtoReflect().Descriptor().Fields()
	for i := range all.Len() {
		if f := string(all.Get(i).Name()); !fields[f] {
			t.Errorf("%s is not on the page", f)
		}
	}
	for _, row := range docRows(t, "Unified") {
		got := docFiles(t, &runtimeapi.LinuxContainerResources{Unified: map[string]string{row[0][0]: row[1][0]}})
		if want := row[0][0] + "=" + row[1][0]; len(got) != 1 || got[0] != want {
			t.Errorf("unified %s becomes %q", want, got)
		}
	}
}

func docFiles(t *testing.T, r *runtimeapi.LinuxContainerResources) (out []string) {
	t.Helper()
	s, err := spec.Resources(r, spec.Host{HugePageSizes: []string{"2MB"}})
	if err != nil {
		t.Errorf("%v: %v", r, err)
		return nil
	}
	files, err := cgroup.Files(s)
	if err != nil {
		t.Errorf("%v: %v", r, err)
	}
	for _, f := range files {
		out = append(out, f.Name+"="+f.Value)
	}
	return out
}
