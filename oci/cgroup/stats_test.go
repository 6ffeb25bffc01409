package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	cpuStat    = "usage_usec 656762387\nuser_usec 110871293\nsystem_usec 545891093\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n"
	memoryStat = "anon 12210176\nfile 24514560\nkernel 4096\nfile_mapped 8192\nswapcached 0\ninactive_anon 0\ninactive_file 12173312\nactive_file 12111872\npgfault 2344220\npgmajfault 79\npgrefill 0\n"
	pressure   = "some avg10=0.18 avg60=10.07 avg300=100.00 total=235553416\nfull avg10=0.00 avg60=0.01 avg300=0.23 total=19572445\n"
)

func known(n uint64) Number { return Number{n, true} }

func TestParseStats(t *testing.T) {
	var s Stats
	parseCPUStat(&s, []byte(cpuStat))
	parseMemoryStat(&s, []byte(memoryStat))
	want := Stats{CPUUsage: known(656762387000), CPUUser: known(110871293000), CPUSystem: known(545891093000),
		Periods: known(3), Throttled: known(2), ThrottledTime: known(1000), Cached: known(24514560), Kernel: known(4096), Mapped: known(8192), Anonymous: known(12210176), InactiveFile: known(12173312), PageFaults: known(2344220), MajorPageFaults: known(79)}
	if s != want {
		t.Errorf("got %+v, want %+v", s, want)
	}
	p := Pressure{Some: PressureLine{0.18, 10.07, 100, 235553416000}, Full: PressureLine{0, 0.01, 0.23, 19572445000}, Known: true}
	if got := parsePressure([]byte(pressure)); got != p {
		t.Errorf("got %+v, want %+v", got, p)
	}
	old, _, _ := strings.Cut(pressure, "full")
	p.Full = PressureLine{}
	if got := parsePressure([]byte(old)); got != p { // Linux before 5.13, cpu.pressure
		t.Errorf("got %+v, want %+v", got, p)
	}
	for text, want := range map[string]Number{
		"0\n": known(0), "4096\n": known(4096), "4096": known(4096), "18446744073709551615\n": known(math.MaxUint64),
		"max\n": {}, "": {}, "\n": {}, "18446744073709551616\n": {}, "99999999999999999999999\n": {}, "-1\n": {}, "1 2\n": {}, "1\n\n": {}, "\x00": {},
	} {
		if got := parseNumber([]byte(text)); got != want {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	}
}

// No order of memory.stat's lines is promised.
func TestParseMemoryStatInAnyOrder(t *testing.T) {
	var want, got Stats
	parseMemoryStat(&want, []byte(memoryStat))
	lines := strings.SplitAfter(memoryStat, "\n")
	slices.Reverse(lines)
	parseMemoryStat(&got, []byte(strings.Join(lines, "")))
	if got != want || !got.Anonymous.Known {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// What no kernel writes is unknown, and never a number that is wrong.
func TestParseStatsRefuses(t *testing.T) {
	for _, text := range []string{
		"", "usage_usec", "usage_usec \n", "usage_usec 1", "usage_usec  1\n", "usage_usec -1\n", "usage_usec 1 \n", "usage_usec 0x1\n",
		"usage_usec 99999999999999999999\n", "usage_usec 18446744073709551615\n" /* more than fits in nanoseconds */, "usage_usecs 1\n", "\nusage_use 1\n",
	} {
		var s Stats
		if parseCPUStat(&s, []byte(text)); s.CPUUsage.Known {
			t.Errorf("%q: got %+v", text, s.CPUUsage)
		}
	}
	for _, text := range []string{
		"", "some", "some \n", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1", "some avg10=0.00 avg60=0.00 total=1\n",
		"some avg10=.00 avg60=0.00 avg300=0.00 total=1\n", "some avg10=0.0 avg60=0.00 avg300=0.00 total=1\n", "some avg10=0.000 avg60=0.00 avg300=0.00 total=1\n",
		"some avg10=0.00 avg60=0.00 avg300=0.00 total=\n", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1 \n", "some avg10=nan avg60=0.00 avg300=0.00 total=1\n",
		"some avg10=9999.00 avg60=0.00 avg300=0.00 total=1\n", "some avg10=0.00 avg60=0.00 avg300=0.00 total=18446744073709551615\n",
	} {
		if p := parsePressure([]byte(text)); p.Known {
			t.Errorf("%q: got %+v", text, p)
		}
	}
}

// Truncated at any byte, or with any byte changed, a number is right or unknown.
func TestParseStatsDamaged(t *testing.T) {
	for i := range len(memoryStat) {
		var s Stats
		parseMemoryStat(&s, []byte(memoryStat[:i]))
		for _, n := range []struct{ got, want Number }{
			{s.Anonymous, known(12210176)}, {s.InactiveFile, known(12173312)}, {s.PageFaults, known(2344220)}, {s.MajorPageFaults, known(79)},
		} {
			if n.got.Known && n.got != n.want {
				t.Fatalf("%d bytes: got %+v, want %+v", i, n.got, n.want)
			}
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		for _, text := range []string{cpuStat, memoryStat, pressure, "4096\n"} {
			b := []byte(text)
			for range 1 + rnd.IntN(3) {
				b[rnd.IntN(len(b))] = byte(rnd.IntN(256))
			}
			var s Stats
			for _, f := range meterFiles {
				f.parse(&s, b) // does not panic
			}
		}
	}
}

func FuzzParseStats(f *testing.F) {
	for _, text := range []string{cpuStat, memoryStat, pressure, "4096\n", "max\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Stats
		for _, f := range meterFiles {
			f.parse(&s, b)
		}
		if w := s.WorkingSet(); w.Known && w.Value > s.MemoryUsage.Value {
			t.Errorf("working set %d of %d", w.Value, s.MemoryUsage.Value)
		}
		for _, p := range []Pressure{s.CPU, s.Memory, s.IO} {
			if p.Some.Avg10 < 0 || p.Some.Avg10 > 1001 || math.IsNaN(p.Full.Avg300) {
				t.Errorf("pressure %+v", p)
			}
		}
	})
}

func TestWorkingSetDoesNotWrap(t *testing.T) {
	s := Stats{MemoryUsage: known(5), InactiveFile: known(7)}
	if got := s.WorkingSet(); got != known(0) {
		t.Errorf("got %+v", got)
	}
	if got := (&Stats{MemoryUsage: known(5)}).WorkingSet(); got.Known {
		t.Errorf("without memory.stat: got %+v", got)
	}
}

// measured makes a scope, lets f do something in it and returns the scope's Meter,
// which was opened before.
func measured(t *testing.T, r *specs.LinuxResources) (*Scope, *Meter) {
	t.Helper()
	tr, _ := tree(t)
	s, err := tr.Create("pod", "c1", r)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Meter()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return s, m
}

func read(t *testing.T, m *Meter) Stats {
	t.Helper()
	var s Stats
	if err := m.Read(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// A busy process shows as CPU time, in a hierarchy without controllers as well.
func TestMeterCPU(t *testing.T) {
	s, m := measured(t, nil)
	before := read(t, m)
	if before.CPUUsage != known(0) {
		t.Errorf("before anything ran: %+v", before.CPUUsage)
	}
	cmd := run(t, s, "/bin/sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	want := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	got := time.Duration(read(t, m).CPUUsage.Value)
	// The kernel's two ways to count differ by what precedes the exec, and by ticks.
	if got < want-20*time.Millisecond || got > want*3/2+50*time.Millisecond {
		t.Errorf("CPU usage is %v, the process used %v", got, want)
	}
}

func TestMeterMemory(t *testing.T) {
	limit := int64(256 << 20)
	s, m := measured(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})
	if !strings.Contains(strings.Join(s.tree.controllers, " "), "memory") {
		if os.Getenv("VITRINE_VM") != "" {
			t.Fatalf("a guest without the memory controller: it has %v", s.tree.controllers)
		}
		st := read(t, m)
		if st.MemoryUsage.Known || st.MemoryLimit.Known || st.WorkingSet().Known || st.SwapUsage.Known || st.PageFaults.Known {
			t.Errorf("memory without its controller: %+v", st)
		}
		t.Skip("needs the memory controller: counts memory (the rest was tested)")
	}
	const mib = 1 << 20
	idle := read(t, m)
	if idle.MemoryLimit != known(uint64(limit)) {
		t.Errorf("limit %+v", idle.MemoryLimit)
	}
	// 16 MiB of page cache, and 32 MiB that dd holds while it waits for its reader.
	run(t, s, "/bin/sh", "-c", `dd if=/dev/zero of="$0/f" bs=1M count=16 2>/dev/null; dd if=/dev/zero bs=32M count=1 2>/dev/null | sleep 1000`, t.TempDir())
	var st Stats
	waitFor(t, "48 MiB in use", func() bool {
		st = read(t, m)
		return st.MemoryUsage.Value > 48*mib && st.Anonymous.Value >= 32*mib
	})
	if in := st.InactiveFile.Value; in < 12*mib || in > 24*mib {
		t.Errorf("inactive page cache %d", in)
	}
	if st.Anonymous.Value > 48*mib || st.MemoryUsage.Value > 80*mib {
		t.Errorf("anonymous %+v, all %+v", st.Anonymous, st.MemoryUsage)
	}
	if ws := st.WorkingSet(); !ws.Known || ws.Value+st.InactiveFile.Value != st.MemoryUsage.Value {
		t.Errorf("working set %+v of %+v, inactive %+v", ws, st.MemoryUsage, st.InactiveFile)
	}
	if st.PageFaults.Value < 100 || !st.MajorPageFaults.Known || st.MajorPageFaults.Value > st.PageFaults.Value {
		t.Errorf("page faults %+v %+v", st.PageFaults, st.MajorPageFaults)
	}
	if _, err := os.Stat("/sys/fs/cgroup/init.scope/memory.swap.current"); err == nil && (!st.SwapUsage.Known || st.SwapLimit.Known) {
		t.Errorf("swap %+v of %+v", st.SwapUsage, st.SwapLimit)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// PSI needs no controller.
func TestMeterPressure(t *testing.T) {
	if _, err := os.Stat("/proc/pressure/cpu"); err != nil {
		t.Skip("needs PSI: ", err)
	}
	s, m := measured(t, nil)
	st := read(t, m)
	if !st.CPU.Known || !st.Memory.Known || !st.IO.Known {
		t.Fatalf("pressure is unknown: %+v", st)
	}
	// More to do than there are CPUs: some of it waits.
	for range 2 * cpus(t) {
		run(t, s, "/bin/sh", "-c", "while :; do :; done")
	}
	waitFor(t, "pressure on the CPU", func() bool { return read(t, m).CPU.Some.Total > uint64(200*time.Millisecond) })
	if got := read(t, m); got.CPU.Some.Total < got.CPU.Full.Total {
		t.Errorf("more full than some: %+v", got.CPU)
	}
	if err := s.write("switch PSI off in", "cgroup.pressure", "0", false); err != nil {
		t.Fatal(err) // 6.1, our floor, has it
	}
	if got := read(t, m); got.CPU.Known {
		t.Errorf("switched off, and still known: %+v", got.CPU)
	}
	if err := s.write("switch PSI on in", "cgroup.pressure", "1", false); err != nil {
		t.Fatal(err)
	}
	read(t, m)
	m.tried = time.Now().Add(-2 * lookAgain)
	read(t, m) // finds them again
	if got := read(t, m); !got.CPU.Known {
		t.Errorf("switched on again: %+v", got.CPU)
	}
}

func cpus(t *testing.T) int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	return set.Count()
}

// A frozen cgroup answers, and one that is removed says so; a new one of the same
// name is not mistaken for it.
func TestMeterFrozenAndRemoved(t *testing.T) {
	s, m := measured(t, nil)
	run(t, s, "/bin/sleep", "1000")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if !read(t, m).CPUUsage.Known {
		t.Error("a frozen cgroup has no CPU usage")
	}
	census, err := s.Census()
	if err != nil {
		t.Fatal(err)
	}
	defer census.Close()
	var n uint64
	if err := census.Read(&n); err != nil || n != 1 {
		t.Errorf("processes: %d, %v", n, err)
	}
	if err := errors.Join(s.Kill(), s.WaitEmpty(ctx), s.Remove(ctx)); err != nil {
		t.Fatalf("with an open meter: %v", err)
	}
	for range 2 {
		if err := m.Read(&Stats{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("read of a removed cgroup: %v", err)
		}
	}
	if err := census.Read(&n); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("census of a removed cgroup: %v", err)
	}
	if _, err := s.Meter(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("meter of a removed cgroup: %v", err)
	}
	if _, err := s.tree.Create("pod", "c1", nil); err != nil {
		t.Fatal(err)
	}
	if err := m.Read(&Stats{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read of a removed cgroup, with a new one in its place: %v", err)
	}
}

func TestCensus(t *testing.T) {
	tr, _ := tree(t)
	s, err := tr.Create("pod", "c1", nil)
	if err != nil {
		t.Fatal(err)
	}
	census, err := s.Census()
	if err != nil {
		t.Fatal(err)
	}
	defer census.Close()
	want := func(n uint64) {
		t.Helper()
		got := n + 1
		if err := census.Read(&got); err != nil || got != n {
			t.Errorf("%d processes, %v; want %d", got, err, n)
		}
	}
	want(0)
	run(t, s, "/bin/sleep", "1000")
	run(t, s, "/bin/sleep", "1000")
	want(2)
	leaf, err := s.Leaf("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	run(t, leaf, "/bin/sleep", "1000")
	want(3)
	if err := leaf.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := leaf.WaitEmpty(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(2)
}

// Reading allocates nothing: it happens for each container every few seconds.
func TestMeterReadAllocates(t *testing.T) {
	s, m := measured(t, nil)
	census, err := s.Census()
	if err != nil {
		t.Fatal(err)
	}
	defer census.Close()
	var st Stats
	var n uint64
	if got := testing.AllocsPerRun(200, func() {
		if err := errors.Join(m.Read(&st), census.Read(&n)); err != nil {
			t.Fatal(err)
		}
	}); got >= 1 {
		t.Errorf("%v allocations for a reading", got)
	}
	if got := testing.AllocsPerRun(200, func() {
		parseMemoryStat(&st, memoryStatBytes)
		st.CPU = parsePressure(pressureBytes)
	}); got != 0 {
		t.Errorf("%v allocations for parsing", got)
	}
}

var memoryStatBytes, pressureBytes = []byte(memoryStat), []byte(pressure)

func BenchmarkMeterRead(b *testing.B) {
	tr, _ := tree(b)
	s, err := tr.Create("pod", "c1", nil)
	if err != nil {
		b.Fatal(err)
	}
	m, err := s.Meter()
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	var st Stats
	for b.Loop() {
		if err := m.Read(&st); err != nil {
			b.Fatal(err)
		}
	}
}
