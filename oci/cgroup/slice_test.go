package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// noUnits is a systemd that does nothing, for what is only about names.
type noUnits struct{}

func (noUnits) start(context.Context, unit) error                    { return nil }
func (noUnits) set(context.Context, string, []property) error        { return nil }
func (noUnits) stop(context.Context, string) error                   { return nil }
func (noUnits) active(context.Context, string, string) (bool, error) { return true, nil }
func (noUnits) quotaStep(context.Context) uint64                     { return 10000 }
func (noUnits) close()                                               {}

func TestExpandSlice(t *testing.T) {
	for in, want := range map[string]string{
		"":                                  "",
		"/":                                 "",
		"-.slice":                           "",
		"/-.slice":                          "",
		"a.slice":                           "a.slice",
		"a-b.slice":                         "a.slice/a-b.slice",
		"kubepods-pod1a_2b.slice":           "kubepods.slice/kubepods-pod1a_2b.slice",
		"kubepods-burstable-pod1a_2b.slice": "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1a_2b.slice",
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1a_2b.slice": "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1a_2b.slice",
		"memory.max.slice": "_memory.max.slice",
		"cpu-a.slice":      "_cpu.slice/cpu-a.slice",
		"misc.slice":       "misc.slice",
		"_x-y.slice":       "__x.slice/__x-y.slice",
	} {
		parts, err := expandSlice(in)
		if got := strings.Join(parts, "/"); got != want || err != nil {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"a", "a.scope", "a/b", "a.slice/b.slice", "a-b.slice/a.slice", "a--b.slice", "-a.slice", "a-.slice", ".slice",
		"a b.slice", "a\nb.slice", "../a.slice", "a\\x2db.slice", "ä.slice", "%n.slice", strings.Repeat("x", 250) + ".slice", "x/-.slice"} {
		if parts, err := expandSlice(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.40q: %v, %v", in, parts, err)
		}
	}
}

func TestPathsOfTheDrivers(t *testing.T) {
	fs := &Tree{prefix: "vitrine-"}
	sd := &Tree{prefix: "vitrine-", units: noUnits{}}
	for _, tt := range []struct {
		tree               *Tree
		parent, pod, scope string
	}{
		{fs, "kubepods/pod1", "vitrine/p1", "kubepods/pod1/vitrine-c1"},
		{sd, "kubepods-pod1.slice", "vitrine.slice/vitrine-podp1.slice", "kubepods.slice/kubepods-pod1.slice/vitrine-c1.scope"},
		{sd, "-.slice", "vitrine.slice/vitrine-podp1.slice", "vitrine-c1.scope"},
	} {
		pod, err := tt.tree.PodParent("vitrine", "p1")
		if pod != tt.pod || err != nil {
			t.Errorf("pod %q, %v; want %q", pod, err, tt.pod)
		}
		scope, err := tt.tree.ScopePath(tt.parent, "c1")
		if scope != tt.scope || err != nil {
			t.Errorf("scope %q, %v; want %q", scope, err, tt.scope)
		}
	}
	for path, want := range map[string]string{"x.scope": "-.slice", "a.slice/x.scope": "a.slice", "_cpu.slice/x.scope": "cpu.slice"} {
		if got := sliceUnit(path); got != want {
			t.Errorf("slice of %s: %s", path, got)
		}
	}
	if got := unitPath("vitrine-1a.scope"); got != "/org/freedesktop/systemd1/unit/vitrine_2d1a_2escope" {
		t.Error(got)
	}
}

func TestTranslate(t *testing.T) {
	fine, coarse := uint64(100), uint64(10000)
	for _, tt := range []struct {
		file, content string
		step          uint64
		want          string
		exact         bool
	}{
		{"memory.max", "67108864\n", fine, "MemoryMax=67108864", true},
		{"memory.high", "max\n", fine, "MemoryHigh=18446744073709551615", true},
		{"pids.max", "77", fine, "TasksMax=77", true},
		{"cpu.weight", "36\n", fine, "CPUWeight=36", true},
		{"cpu.weight", "0\n", fine, "", false}, // of an idle group
		{"cpu.idle", "1\n", fine, "", false},
		{"cpu.max", "max 100000\n", fine, "CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=18446744073709551615", true},
		{"cpu.max", "25000 100000\n", coarse, "CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=250000", true},
		{"cpu.max", "12300 100000\n", fine, "CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=123000", true},
		{"cpu.max", "12300 100000\n", coarse, "CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=130000", false},
		{"cpu.max", "12345 100000\n", fine, "CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=123500", false},
		{"cpu.max", "12345 100000\n", coarse, "CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=130000", false},
		{"cpu.max", "1000 3000\n", fine, "CPUQuotaPeriodUSec=3000 CPUQuotaPerSecUSec=333400", false},
		{"cpu.max", fmt.Sprint(math.MaxInt64, " 1000\n"), fine, "", false},
		{"cpu.max", "12345\n", coarse, "CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=130000", false},
		{"cpuset.cpus", "0-2,9\n", fine, "AllowedCPUs=[7 2]", true},
		{"cpuset.mems", "\n", fine, "AllowedMemoryNodes=[]", true},
		{"io.weight", "default 200\n", fine, "IOWeight=200", true},
		{"io.weight", "default 200\n8:0 50\n", fine, "", false},
		{"memory.oom.group", "1\n", fine, "", false},
	} {
		props, exact := translate(tt.file, tt.content, func() uint64 { return tt.step })
		var got []string
		for _, p := range props {
			got = append(got, fmt.Sprintf("%s=%v", p.Name, p.Value))
		}
		if s := strings.Join(got, " "); s != tt.want || exact != tt.exact {
			t.Errorf("%s %q: %s, exact %v; want %s, %v", tt.file, tt.content, s, exact, tt.want, tt.exact)
		}
	}
}

func TestDeviceProperties(t *testing.T) {
	entries := func(r []specs.LinuxDeviceCgroup) string {
		p := deviceProperties(&specs.LinuxResources{Devices: r})
		if p == nil {
			return "none"
		}
		return fmt.Sprint(p[0].Value, p[1].Value)
	}
	if got := entries(usualDevices()[:4]); got != "strict[[char-* m] [block-* m] [/dev/char/1:3 mrw]]" {
		t.Error(got)
	}
	if got := entries(usualDevices()); got == "none" {
		t.Error("the usual rules cannot be said")
	}
	deny := specs.LinuxDeviceCgroup{Access: "rwm"}
	for _, r := range [][]specs.LinuxDeviceCgroup{
		nil, {{Allow: true, Access: "rwm"}}, {{Access: "rw"}}, {deny, {Allow: false, Type: "c"}},
		{deny, {Allow: true, Type: "c", Major: ptr(int64(3999)), Access: "r"}}, {deny, {Allow: true, Type: "c", Minor: ptr(int64(3)), Access: "r"}},
	} {
		if got := entries(r); got != "none" {
			t.Errorf("%v: %s", r, got)
		}
	}
}
