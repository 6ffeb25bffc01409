package cgroup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// desk is a cgroup made of plain files, with a writer that does what the kernel
// would as far as it matters here, notes what it was told, and fails on demand.
type desk struct {
	t      *testing.T
	dir    string
	scope  *Scope
	log    []string
	refuse func(n int, file, value string) error // n counts all writes from 0
	tell   func([]setting) error
	commit func(*specs.LinuxResources) error
	n      int
	busy   bool // there are processes
}

func newDesk(t *testing.T, files map[string]string) *desk {
	t.Helper()
	d := &desk{t: t, dir: t.TempDir()}
	for f, v := range files {
		if err := os.WriteFile(filepath.Join(d.dir, f), []byte(v+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := sys.OpenAt2(unix.AT_FDCWD, filepath.Dir(d.dir), unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	d.scope = (&Tree{root: root}).Load(filepath.Base(d.dir))
	return d
}

func (d *desk) write(_ int, file, value string) error {
	n := d.n
	d.n++
	if d.refuse != nil {
		if err := d.refuse(n, file, value); err != nil {
			return &os.PathError{Op: "write", Path: file, Err: err}
		}
	}
	d.log = append(d.log, file+"="+value)
	old := strings.Fields(d.file(file))
	f := strings.Fields(value)
	switch {
	case file == "cpu.max" && len(f) == 1:
		value += " " + old[1]
	case strings.HasPrefix(file, "cpuset.") && len(f) == 0 && d.busy:
		return &os.PathError{Op: "write", Path: file, Err: unix.ENOSPC}
	case file == "cpu.idle" && value == "1":
		d.put("cpu.weight", "1")
	case file == "cpu.idle":
		d.put("cpu.weight", "100")
	case file == "cpu.weight.nice":
		nice, _ := strconv.Atoi(value)
		d.put("cpu.weight", fmt.Sprint(100-5*nice))
	case file == "cpu.weight" && d.file("cpu.idle") == "1":
		return &os.PathError{Op: "write", Path: file, Err: unix.EINVAL}
	case file == "io.weight":
		value = "default " + f[len(f)-1]
	case file == "io.max":
		value = ioLine(d.file(file), value)
	}
	if file == "cpu.weight" {
		weight, _ := strconv.Atoi(value)
		d.put("cpu.weight.nice", fmt.Sprint((100-weight)/5))
	}
	d.put(file, value)
	return nil
}

// ioLine merges a write to io.max into its one line, which it takes out when it
// sets no limit.
func ioLine(old, value string) string {
	limits := map[string]string{}
	for _, kv := range append(strings.Fields(old), strings.Fields(value)[1:]...) {
		if k, v, ok := strings.Cut(kv, "="); ok {
			limits[k] = v
		}
	}
	out := strings.Fields(value)[0]
	for _, k := range []string{"rbps", "wbps", "riops", "wiops"} {
		out += " " + k + "=" + limits[k]
	}
	if out = strings.ReplaceAll(out+" ", "= ", "=max "); strings.Count(out, "=max") == 4 {
		return ""
	}
	return strings.TrimSpace(out)
}

func (d *desk) put(file, value string) {
	if err := os.WriteFile(filepath.Join(d.dir, file), []byte(strings.TrimSpace(value)+"\n"), 0o644); err != nil {
		d.t.Error(err)
	}
}

func (d *desk) file(name string) string {
	b, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		d.t.Error(err)
	}
	return strings.TrimSpace(string(b))
}

func (d *desk) all() map[string]string {
	out := map[string]string{}
	entries, _ := os.ReadDir(d.dir)
	for _, e := range entries {
		out[e.Name()] = d.file(e.Name())
	}
	delete(out, "cpu.weight.nice") // a coarser view of cpu.weight, which is there
	return out
}

func (d *desk) update(r *specs.LinuxResources) error {
	d.log, d.n = nil, 0
	u := updater{write: d.write, commit: d.commit, tell: func(_ context.Context, limits []setting) error {
		if d.tell != nil {
			return d.tell(limits)
		}
		return nil
	}}
	return u.update(context.Background(), d.scope, r)
}

// fresh is a new cgroup of a kernel with all controllers.
func fresh() map[string]string {
	return map[string]string{
		"cpu.weight": "100", "cpu.weight.nice": "0", "cpu.idle": "0", "cpu.max": "max 100000", "cpu.max.burst": "0", "cpuset.cpus": "", "cpuset.mems": "",
		"memory.min": "0", "memory.low": "0", "memory.high": "max", "memory.max": "max", "memory.current": "0", "memory.oom.group": "0",
		"memory.swap.high": "max", "memory.swap.max": "max", "pids.max": "max", "hugetlb.2MB.max": "max", "hugetlb.2MB.rsvd.max": "max",
		"io.max": "", "io.weight": "default 100",
	}
}

// wish is a request that touches everything.
func wish(shares uint64, quota, limit int64, unified map[string]string) *specs.LinuxResources {
	period := uint64(50000)
	return &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period, Cpus: "0", Mems: "0"},
		Memory:         &specs.LinuxMemory{Limit: &limit, Swap: ptr(2 * limit)},
		Pids:           &specs.LinuxPids{Limit: ptr(int64(100))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}},
		Unified:        unified,
	}
}

func TestUpdateOrder(t *testing.T) {
	d := newDesk(t, fresh())
	small := map[string]string{"memory.min": "1M", "memory.low": "2M", "memory.high": "4M", "memory.swap.high": "1M",
		"memory.oom.group": "1", "cpu.max.burst": "1000", "io.max": "8:0 rbps=1000"}
	large := map[string]string{"memory.min": "10M", "memory.low": "20M", "memory.high": "40M", "memory.swap.high": "10M",
		"memory.oom.group": "0", "cpu.max.burst": "50000", "io.max": "8:0 rbps=2000"}
	for _, tt := range []struct {
		name string
		r    *specs.LinuxResources
		want string
	}{
		{"first limits", wish(512, 20000, 8<<20, small),
			"cpu.weight=59 cpu.max=20000 50000 pids.max=100 hugetlb.2MB.max=4194304 hugetlb.2MB.rsvd.max=4194304" +
				" io.max=8:0 rbps=1000 memory.oom.group=1 memory.high=4M memory.max=8388608 memory.swap.high=1M memory.swap.max=8388608" +
				" memory.low=2M memory.min=1M cpu.max.burst=1000 cpuset.cpus=0 cpuset.mems=0"},
		{"the same again", wish(512, 20000, 8<<20, small), ""},
		{"up", wish(1024, 90000, 80<<20, large),
			"memory.max=83886080 memory.high=40M memory.swap.max=83886080 memory.swap.high=10M" +
				" cpu.weight=100 cpu.max=90000 50000 io.max=8:0 rbps=2000 memory.oom.group=0 memory.low=20M memory.min=10M cpu.max.burst=50000"},
		{"down", wish(512, 20000, 8<<20, small),
			"memory.min=1M memory.low=2M cpu.max.burst=1000 cpu.weight=59 cpu.max=20000 50000 io.max=8:0 rbps=1000 memory.oom.group=1" +
				" memory.high=4M memory.max=8388608 memory.swap.high=1M memory.swap.max=8388608"},
		{"memory for swap", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(4 << 20)), Swap: ptr(int64(24 << 20))}},
			"memory.swap.max=20971520 memory.max=4194304"},
		{"swap for memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(8 << 20)), Swap: ptr(int64(8 << 20))}},
			"memory.max=8388608 memory.swap.max=0"},
		{"unified counts last", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(5 << 20))}, Unified: map[string]string{"memory.max": "8M"}}, ""},
		{"a second key of a line", &specs.LinuxResources{Unified: map[string]string{"io.max": "8:0 rbps=1000 wiops=7"}}, "io.max=8:0 rbps=1000 wiops=7"},
		{"idle", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024))}, Unified: map[string]string{"cpu.idle": "1"}}, "cpu.idle=1"},
		{"not idle any more", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(512))}, Unified: map[string]string{"cpu.idle": "0"}}, "cpu.idle=0 cpu.weight=59"},
		{"only a period", &specs.LinuxResources{CPU: &specs.LinuxCPU{Period: ptr(uint64(100000))}}, "cpu.max=20000 100000"},
		{"only a quota", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(30000))}}, "cpu.max=30000"},
		{"no limit", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1))}, Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}},
			"memory.max=max memory.swap.max=max cpu.max=max"},
		{"nothing", &specs.LinuxResources{}, ""},
		{"nil", nil, ""},
	} {
		if err := d.update(tt.r); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if got := strings.Join(d.log, " "); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

// Each write in turn fails, on the way up, on the way down and where keys and idle
// groups are concerned: everything is as it was.
func TestUpdateRollsBack(t *testing.T) {
	small := map[string]string{"memory.min": "1M", "memory.low": "2M", "memory.high": "4M", "cpu.max.burst": "1000", "io.max": "8:0 rbps=1000", "io.weight": "50"}
	large := map[string]string{"memory.min": "10M", "memory.low": "20M", "memory.high": "40M", "memory.oom.group": "1", "cpu.max.burst": "50000",
		"io.max": "8:0 rbps=2000 wbps=1", "cpu.weight.nice": "5", "io.weight": "60"}
	idle := &specs.LinuxResources{Unified: map[string]string{"cpu.idle": "1", "memory.max": "1G"}}
	steps := []*specs.LinuxResources{nil, wish(512, 20000, 8<<20, small), wish(1024, 90000, 80<<20, large), idle, wish(2048, 20000, 8<<20, map[string]string{"cpu.idle": "0"})}
	for i, to := range steps[1:] {
		for _, from := range steps[:i+1] {
			d := newDesk(t, fresh())
			for _, r := range []*specs.LinuxResources{from, to, from} {
				if to == idle && r != idle && d.file("cpu.idle") == "1" {
					break // shares for a group that stays idle are refused
				}
				before := d.all()
				failAt := 0
				for ; ; failAt++ {
					failed := ""
					d.refuse = func(n int, file, _ string) error {
						if n == failAt {
							failed = file
							return unix.EINVAL
						}
						return nil
					}
					err := d.update(r)
					d.refuse = nil
					if failed == "" {
						if err != nil {
							t.Fatalf("step %d: %v", i, err)
						}
						break
					}
					if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), failed) || strings.Contains(err.Error(), "restore") {
						t.Errorf("step %d, write %d: %v", i, failAt, err)
					}
					if after := d.all(); !maps.Equal(before, after) {
						t.Fatalf("step %d, write %d (%s):\nbefore %v\nafter  %v\nwrites %q", i, failAt, failed, before, after, d.log)
					}
				}
			}
		}
	}
}

// What the service manager does not take is taken back, and it is told so.
func TestUpdateUnitRefuses(t *testing.T) {
	d := newDesk(t, fresh())
	before := d.all()
	var told []string // what it was told, and what the file held then
	d.tell = func(limits []setting) error {
		for _, l := range merge(limits) {
			if l.file == "memory.max" {
				told = append(told, l.value, d.file("memory.max"))
			}
		}
		if len(told) == 2 {
			return unix.ECONNRESET
		}
		return nil
	}
	if err := d.update(wish(512, 20000, 8<<20, nil)); !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("update: %v", err)
	}
	if !maps.Equal(before, d.all()) || !slices.Equal(told, []string{"8388608", "8388608", "max", "max"}) {
		t.Errorf("told %v; files %v", told, d.all())
	}
	// So is what cannot be recorded, and it was told what the kernel took.
	told, d.tell = nil, nil
	d.commit = func(took *specs.LinuxResources) error {
		told = append(told, fmt.Sprint(*took.Memory.Limit))
		return unix.ENOSPC
	}
	if err := d.update(wish(512, 20000, 8<<20, nil)); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("update: %v", err)
	}
	if !maps.Equal(before, d.all()) || !slices.Equal(told, []string{"8388608"}) {
		t.Errorf("committed %v; files %v", told, d.all())
	}
	// A cpuset with processes in it cannot become empty again; all that there are do as well.
	d.busy = true
	d.put("cpuset.cpus.effective", "0-1")
	d.put("cpuset.mems.effective", "0")
	want := d.all()
	want["cpuset.cpus"], want["cpuset.mems"] = "0-1", "0"
	if err := d.update(wish(512, 20000, 8<<20, nil)); !errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "restore") {
		t.Fatalf("update: %v", err)
	}
	if got := d.all(); !maps.Equal(want, got) {
		t.Errorf("files %v", got)
	}
	d.commit, d.busy = nil, false
	// A group loses its weight when it becomes idle.
	d.put("cpu.weight", "59")
	before = d.all()
	d.tell = func([]setting) error { return unix.ECONNRESET }
	if err := d.update(&specs.LinuxResources{Unified: map[string]string{"cpu.idle": "1"}}); !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("update: %v", err)
	}
	if !maps.Equal(before, d.all()) {
		t.Errorf("files %v", d.all())
	}
}

// The service manager writes what it rounds after it has answered, and a keeper puts it right. That moment is not recorded.
func TestUpdateRecordsWhatWasWritten(t *testing.T) {
	d := newDesk(t, fresh())
	d.tell = func([]setting) error {
		d.put("cpu.max", "13000 100000")
		return nil
	}
	var took int64
	d.commit = func(r *specs.LinuxResources) error {
		took = *r.CPU.Quota
		return nil
	}
	if err := d.update(wish(512, 12345, 8<<20, nil)); err != nil || took != 12345 {
		t.Errorf("quota %d, %v", took, err)
	}
}

// A rollback that fails goes on with the other files and is part of the error.
func TestUpdateCannotRestore(t *testing.T) {
	d := newDesk(t, fresh())
	d.refuse = func(_ int, file, value string) error {
		if file == "memory.max" || file == "cpu.max" && strings.HasPrefix(value, "max") {
			return unix.EIO
		}
		return nil
	}
	err := d.update(wish(512, 20000, 8<<20, nil))
	if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "restore the old limit: write cpu.max") {
		t.Fatalf("update: %v", err)
	}
	want := fresh()
	want["cpu.max"] = "20000 50000"
	delete(want, "cpu.weight.nice")
	if got := d.all(); !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

// Old and new limits keep the invariants of steps; so must every state between,
// also on the way back from every failure.
func TestUpdateNeverInvalid(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	d := newDesk(t, fresh())
	pages := func(n, below uint64) uint64 { return n + rnd.Uint64N(below-n+1) }
	state := func() *specs.LinuxResources {
		low := pages(0, 100)
		mid := pages(low, 200)
		high := pages(mid, 300)
		quota := int64(pages(1000, 9000))
		u := map[string]string{}
		for f, v := range map[string]uint64{"memory.min": low, "memory.low": mid, "memory.high": high, "memory.max": pages(high, 400) + 1} {
			u[f] = fmt.Sprint(v * 4096)
		}
		u["cpu.max.burst"], u["cpu.idle"] = fmt.Sprint(pages(0, uint64(quota))), fmt.Sprint(rnd.IntN(2))
		if rnd.IntN(9) == 0 {
			u["memory.high"], u["memory.max"] = "max", "max"
		}
		return &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Shares: ptr(pages(2, 2000))}, Unified: u}
	}
	number := func(file string) uint64 {
		f, _, _ := strings.Cut(d.file(file), " ")
		n, ok := bytesOf(f)
		if !ok {
			t.Fatalf("%s holds %q", file, f)
		}
		return n
	}
	for round := range 300 {
		failAt := rnd.IntN(12)
		d.refuse = func(n int, _, _ string) error {
			for _, pair := range [][2]string{{"memory.min", "memory.low"}, {"memory.low", "memory.high"}, {"memory.high", "memory.max"}, {"cpu.max.burst", "cpu.max"}} {
				if number(pair[0]) > number(pair[1]) {
					t.Fatalf("round %d, before write %d: %s is %s and %s is %s; %q", round, n, pair[0], d.file(pair[0]), pair[1], d.file(pair[1]), d.log)
				}
			}
			if n == failAt {
				return unix.EIO
			}
			return nil
		}
		if err := d.update(state()); err != nil && (!errors.Is(err, unix.EIO) || strings.Contains(err.Error(), "restore")) {
			t.Fatalf("round %d: %v; %q", round, err, d.log)
		}
	}
}

func TestUpdateBelowUsage(t *testing.T) {
	files := fresh()
	files["memory.current"] = fmt.Sprint(5 << 20)
	d := newDesk(t, files)
	limit := func(n int64) *specs.LinuxResources {
		return &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(512))}, Memory: &specs.LinuxMemory{Limit: &n}}
	}
	before := d.all()
	for _, r := range []*specs.LinuxResources{limit(5<<20 - 1), limit(4096), {Unified: map[string]string{"memory.max": "4M"}}} {
		if err := d.update(r); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "memory.max") {
			t.Errorf("update: %v", err)
		}
		if !maps.Equal(before, d.all()) {
			t.Errorf("changed: %v", d.all())
		}
	}
	if err := d.update(limit(5 << 20)); err != nil {
		t.Fatal(err)
	}
	// A limit that is not lowered is no question, whatever is used: it may be over it for a moment.
	d.put("memory.current", fmt.Sprint(6<<20))
	for _, n := range []int64{5 << 20, 5<<20 + 4096} {
		if err := d.update(limit(n)); err != nil {
			t.Error(err)
		}
	}
	// The kernel says itself what it cannot do for pages that are in use.
	d.refuse = func(int, string, string) error { return unix.EBUSY }
	if err := d.update(&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}}); !errors.Is(err, ErrInUse) {
		t.Errorf("huge pages in use: %v", err)
	}
}

func TestUpdateRefuses(t *testing.T) {
	d := newDesk(t, fresh())
	if err := os.Remove(filepath.Join(d.dir, "hugetlb.2MB.max")); err != nil {
		t.Fatal(err)
	}
	before := d.all()
	done, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.scope.Update(done, wish(512, 20000, 8<<20, nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	for name, tt := range map[string]struct {
		r    *specs.LinuxResources
		want error
	}{
		"devices":      {&specs.LinuxResources{Devices: usualDevices()}, ErrInvalid},
		"missing file": {&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(2))}, Unified: map[string]string{"misc.max": "a 1"}}, ErrUnenforced},
		"no limit":     {&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(2))}, Unified: map[string]string{"cgroup.kill": "1"}}, ErrInvalid},
	} {
		if err := d.update(tt.r); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		if !maps.Equal(before, d.all()) {
			t.Errorf("%s: changed %v", name, d.all())
		}
	}
	if err := d.update(&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}}); err != nil {
		t.Errorf("a page size without a file: %v", err)
	}
	for file, tt := range map[string]struct{ err, want error }{
		"io.max": {unix.ENODEV, ErrInvalid}, "memory.max": {unix.ENODEV, unix.ENODEV}, "cpuset.cpus": {unix.ERANGE, ErrInvalid},
	} {
		if err := refusal(file, tt.err); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestSame(t *testing.T) {
	for _, tt := range []struct {
		file, want, have string
		same             bool
	}{
		{"memory.max", "100000000", "99999744", true}, {"memory.max", "100000000", "100003840", false}, {"memory.max", "8M", "8388608", true},
		{"memory.max", fmt.Sprint(uint64(math.MaxInt64)), "max", true}, {"memory.max", "max", "max", true}, {"memory.max", "max", "0", false}, {"memory.max", "x", "0", false},
		{"memory.high", "1g", "1073741824", true}, {"hugetlb.2MB.max", "3000000", "2097152", true}, {"hugetlb.2MB.max", "0", "0", true},
		{"pids.max", "100", "100", true}, {"pids.max", "max", "100", false},
		{"cpu.max", "max", "max 100000", true}, {"cpu.max", "5000", "5000 20000", true}, {"cpu.max", "5000 100000", "5000 20000", false},
		{"cpuset.cpus", "0,1,2", "0-2", true}, {"cpuset.cpus", "0", "", false}, {"cpuset.mems", "\n", "", true}, {"cpuset.cpus", "0-1,1", "0-1", true},
		{"io.weight", "100", "default 100", true}, {"io.weight", "default 50", "default 100", false}, {"io.weight", "8:0 50", "8:0 50", true},
		{"io.max", "8:0 wbps=5", "8:0 rbps=max wbps=5 riops=max wiops=max", true}, {"io.max", "8:0 wbps=6", "8:0 rbps=max wbps=5 riops=max wiops=max", false},
		{"memory.oom.group", "1", "1", true}, {"cpu.weight", "100", "59", false},
	} {
		if got := same(tt.file, tt.want, tt.have); got != tt.same {
			t.Errorf("%s: %q in %q: %v", tt.file, tt.want, tt.have, got)
		}
	}
	for in, want := range map[string]string{"8:0 1": "8:0 default", "100": "default 100"} {
		if got := unset("io.weight", keyOf("io.weight", in)); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestReadBack(t *testing.T) {
	files := fresh()
	maps.Copy(files, map[string]string{"memory.max": "99999744", "memory.swap.max": "50003968", "cpu.weight": "59", "cpu.max": "12350 100000",
		"cpuset.cpus": "0-1", "io.max": "8:0 rbps=1000 wbps=max riops=max wiops=max", "memory.high": "4096"})
	delete(files, "hugetlb.2MB.max")
	delete(files, "cpuset.mems")
	d := newDesk(t, files)
	asked := &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: ptr(uint64(515)), Quota: ptr(int64(12345)), Period: ptr(uint64(100000)), Cpus: "0,1", Mems: "0"},
		Memory:         &specs.LinuxMemory{Limit: ptr(int64(100000000)), Swap: ptr(int64(100000000 + 50000000))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}},
		Unified:        map[string]string{"io.max": "8:0 rbps=1000", "memory.high": "8K", "memory.zswap.max": "0"},
	}
	got, err := d.scope.ReadBack(asked)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprint(*got.CPU.Shares, *got.CPU.Quota, *got.CPU.Period, got.CPU.Cpus, " ", got.CPU.Mems, *got.Memory.Limit, *got.Memory.Swap, got.HugepageLimits, got.Unified)
	if want := "515 12350 1000000,1 100000000 150003968 [] map[io.max:8:0 rbps=1000 memory.high:4096]"; text != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	if *asked.CPU.Quota != 12345 || asked.CPU.Mems != "0" || len(asked.HugepageLimits) != 1 {
		t.Errorf("the request was changed: %+v", asked)
	}
	d.put("cpu.weight", "60")
	if got, err = d.scope.ReadBack(asked); err != nil || cpuWeight(*got.CPU.Shares) != 60 {
		t.Errorf("shares %v, %v", got.CPU.Shares, err)
	}
	for w := uint64(minWeight); w <= maxWeight; w += 37 {
		d.put("cpu.weight", fmt.Sprint(w))
		got, err := d.scope.ReadBack(&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1 << 20))}})
		if err != nil {
			t.Fatal(err)
		}
		if back := cpuWeight(*got.CPU.Shares); back < w || w > minWeight && cpuWeight(*got.CPU.Shares-1) >= w {
			t.Fatalf("weight %d: shares %d, weight %d", w, *got.CPU.Shares, back)
		}
	}
	for _, f := range []string{"memory.swap.max", "memory.max"} { // a kernel without swap, and one without the controller
		if err := os.Remove(filepath.Join(d.dir, f)); err != nil {
			t.Fatal(err)
		}
		got, err := d.scope.ReadBack(asked)
		if want := f == "memory.swap.max"; err != nil || (got.Memory.Swap != nil) != want || (got.Memory.Limit != nil) != want {
			t.Errorf("without %s: %+v, %v", f, got.Memory, err)
		}
	}
	if got, err := d.scope.ReadBack(nil); err != nil || got == nil {
		t.Errorf("nil: %v, %v", got, err)
	}
}
