package sandbox

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// metricRows returns the cells of the table in docs/metrics.md, the first six without their backquotes.
func metricRows(t *testing.T) (rows [][]string) {
	t.Helper()
	b, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "| `container_") {
			row := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
			for i := range row {
				row[i] = strings.TrimSpace(row[i])
				if i != 2 && i < 6 {
					row[i] = strings.Trim(row[i], "`")
				}
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// lookAt makes what is seen of a container whose one file has the content of an example.
func lookAt(t *testing.T, file, example string) *look {
	t.Helper()
	l := &look{}
	text := []byte(strings.ReplaceAll(example, ";", "\n") + "\n")
	switch file {
	case "/proc/PID/net/dev":
		list, err := parseInterfaces(append([]byte("a\nb\n"), text...), nil)
		if err != nil {
			t.Fatal(err)
		}
		l.network = &reading[[]netInterface]{value: list}
	case "/proc/PID/limits":
		l.crowd = &reading[crowd]{value: crowd{openFiles: parseOpenFiles(text)}}
	case "the record":
		l.asked = &runtimeapi.LinuxContainerResources{}
		if err := protojson.Unmarshal(text, l.asked); err != nil {
			t.Fatal(err)
		}
	default:
		l.use, l.detail = &reading[cgroupUse]{}, &reading[cgroup.Detail]{}
		l.use.value.Parse(file, text)
		l.detail.value.Parse(file, text)
	}
	return l
}

// TestMetricsPage holds docs/metrics.md against the code: names, types, labels and files are the same, and each example
// becomes the value that stands beside it, under labels of the right number.
func TestMetricsPage(t *testing.T) {
	rows := metricRows(t)
	if len(rows) != len(families) || len(rows) != 56 {
		t.Fatalf("%d rows, %d metrics", len(rows), len(families))
	}
	for i, f := range families {
		row := rows[i]
		kind := map[runtimeapi.MetricType]string{counter: "counter", gauged: "gauge"}[f.kind]
		var labels []string
		for _, m := range quoted.FindAllStringSubmatch(row[2], -1) {
			labels = append(labels, m[1])
		}
		if row[0] != f.name || row[1] != kind || row[3] != f.file || !slices.Equal(labels, f.more) || f.help == "" {
			t.Errorf("row %d is %q, the code has %+v", i, row, f)
			continue
		}
		if row[5] == "-" {
			continue
		}
		var got *runtimeapi.Metric
		seen := map[string]bool{}
		for _, m := range lookAt(t, row[3], row[4]).samples(make([]string, len(baseKeys))) {
			if one := fmt.Sprintf("%s%q", m.Name, m.LabelValues); seen[one] {
				t.Errorf("%s is there twice", one)
			} else {
				seen[one] = true
			}
			if m.Name == f.name && got == nil {
				got = m
			}
		}
		if got == nil || strconv.FormatUint(got.Value.Value, 10) != row[5] || len(got.LabelValues) != len(f.keys()) || got.MetricType != f.kind {
			t.Errorf("%s: %q becomes %v, and the page says %s", f.name, row[4], got, row[5])
		}
	}
}

// What nobody counts is not there.
func TestMetricsOfNothing(t *testing.T) {
	l := look{use: &reading[cgroupUse]{}, detail: &reading[cgroup.Detail]{}, crowd: &reading[crowd]{}}
	for _, m := range l.samples(nil) {
		if m.Name != "container_last_seen" {
			t.Errorf("%v", m)
		}
	}
}

// Two interfaces never have the same name, and all names can be sent.
func TestInterfaceNames(t *testing.T) {
	for name, want := range map[string]string{"eth0": "eth0", "ä": "ä", "\xff": `\xff`, `\xff`: `\\xff`} {
		if got := interfaceName([]byte(name)); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}
