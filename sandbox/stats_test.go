package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// openFiles counts the files in the test's cgroups that this process has open.
func (n *node) openFiles() int {
	t := n.t
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	open := 0
	for _, e := range dir {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && strings.Contains(to, filepath.Base(n.cgroot)) && strings.Contains(filepath.Base(to), ".") {
			open++
		}
	}
	return open
}

func (n *node) stats(id string) *runtimeapi.ContainerStats {
	n.t.Helper()
	s, err := n.m.ContainerStats(bg, id)
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

func (n *node) podStats(id string) *runtimeapi.PodSandboxStats {
	n.t.Helper()
	s, err := n.m.PodSandboxStats(bg, id)
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// A life: created, running, exited, with the daemon restarted on the way. Nothing stays open.
func TestStatsLife(t *testing.T) {
	n := newNode(t, newFakes())
	open := n.openFiles()
	pod := n.run(podRequest("web"))
	if s := n.podStats(pod); s.Attributes.Id != pod || s.Attributes.Metadata.GetName() != "web" || len(s.Linux.Containers) != 0 {
		t.Errorf("empty pod: %v", s)
	}
	id := n.create(pod, containerRequest("c", "sleep"))
	if s := n.stats(id); s.Attributes.Id != id || s.Attributes.Metadata.GetName() != "c" || s.Cpu.GetUsageCoreNanoSeconds() == nil {
		t.Errorf("created: %v", s)
	}
	n.start(id)
	before := now()
	s := n.stats(id[:12])
	if s.Cpu.GetTimestamp() < before || s.Memory.GetTimestamp() < before || s.Cpu.GetUsageCoreNanoSeconds() == nil {
		t.Errorf("running: %v", s)
	}
	if !slices.Contains(n.controllers(), "memory") && (s.Memory.UsageBytes != nil || s.Memory.WorkingSetBytes != nil || s.Swap != nil) {
		t.Errorf("memory without its controller: %v", s)
	}
	eventually(t, "writable layer", func() bool { return n.stats(id).WritableLayer != nil })
	p := n.podStats(pod)
	if p.Linux.Cpu.GetUsageCoreNanoSeconds() == nil || p.Linux.Process.GetProcessCount().GetValue() != 1 || len(p.Linux.Containers) != 1 || p.Linux.Containers[0].Cpu == nil {
		t.Errorf("pod: %v", p)
	}
	if got := n.openFiles(); got == open {
		t.Error("no files are kept open")
	}
	n.restart()
	if s := n.stats(id); s.Cpu.GetUsageCoreNanoSeconds() == nil || s.Cpu.Timestamp <= before {
		t.Errorf("after a restart: %v", s)
	}
	if err := n.m.StopContainer(bg, id, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "writable layer after a restart", func() bool { return n.stats(id).WritableLayer != nil })
	if s := n.stats(id); s.Attributes.GetId() != id || s.Cpu != nil || s.Memory != nil || s.Swap != nil || s.Io != nil {
		t.Errorf("exited: %v", s)
	}
	if p := n.podStats(pod); p.Linux.Cpu == nil || p.Linux.Process.GetProcessCount().GetValue() != 0 || len(p.Linux.Containers) != 1 {
		t.Errorf("pod of an exited container: %v", p)
	}
	if err := n.m.StopPodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
	if p := n.podStats(pod); p.Attributes.GetId() != pod || p.Linux.Cpu != nil || p.Linux.Network != nil || len(p.Linux.Containers) != 1 {
		t.Errorf("stopped pod: %v", p)
	}
	if got := n.openFiles(); got != open || n.m.stats.fds.used.Load() != 0 {
		t.Errorf("%d files are open, %d were; %d are counted", got, open, n.m.stats.fds.used.Load())
	}
	if err := n.m.RemovePodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{second(n.m.ContainerStats(bg, id)), second(n.m.PodSandboxStats(bg, pod))} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("of what is gone: %v", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// controllers are those of the test's hierarchy.
func (n *node) controllers() []string { return n.tree.Controllers() }

func TestStatsFilters(t *testing.T) {
	n := newNode(t, newFakes())
	web := podRequest("web")
	web.Labels = map[string]string{"app": "web"}
	a, b := n.run(web), n.run(podRequest("db"))
	one := n.running(a, "one", func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"x": "1", "y": "2"} })
	two := n.running(b, "two", nil)
	for name, c := range map[string]struct {
		filter *runtimeapi.ContainerStatsFilter
		want   []string
	}{
		"none": {nil, []string{two, one}}, "empty": {&runtimeapi.ContainerStatsFilter{}, []string{two, one}},
		"id": {&runtimeapi.ContainerStatsFilter{Id: one}, []string{one}}, "part of an id": {&runtimeapi.ContainerStatsFilter{Id: two[:20]}, []string{two}},
		"pod": {&runtimeapi.ContainerStatsFilter{PodSandboxId: b}, []string{two}}, "another pod's": {&runtimeapi.ContainerStatsFilter{PodSandboxId: b, Id: one}, nil},
		"label": {&runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"x": "1"}}, []string{one}}, "labels": {&runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"x": "1", "y": "3"}}, nil},
		"unknown": {&runtimeapi.ContainerStatsFilter{Id: "zz"}, nil},
	} {
		var got []string
		for _, s := range n.m.ListContainerStats(bg, c.filter) {
			got = append(got, s.Attributes.Id)
			if s.Cpu.GetUsageCoreNanoSeconds() == nil {
				t.Errorf("%s: %v", name, s)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
	for name, c := range map[string]struct {
		filter *runtimeapi.PodSandboxStatsFilter
		want   []string
	}{
		"none": {nil, []string{b, a}}, "id": {&runtimeapi.PodSandboxStatsFilter{Id: a[:9]}, []string{a}},
		"label": {&runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "web"}}, []string{a}},
		"both":  {&runtimeapi.PodSandboxStatsFilter{Id: b, LabelSelector: map[string]string{"app": "web"}}, nil},
	} {
		var got []string
		for _, s := range n.m.ListPodSandboxStats(bg, c.filter) {
			got = append(got, s.Attributes.Id)
			if len(s.Linux.Containers) != 1 {
				t.Errorf("%s: %v", name, s)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// stuckMeter is a cgroup whose files do not answer while the gate is shut.
type stuckMeter struct {
	source[cgroupUse]
	gate  *atomic.Pointer[chan struct{}]
	reads *atomic.Int64
}

func (s stuckMeter) Read(u *cgroupUse, before, now int64) error {
	s.reads.Add(1)
	if gate := s.gate.Load(); gate != nil {
		<-*gate
	}
	return s.source.Read(u, before, now)
}

// One cgroup that does not answer costs everybody together its share of time, once, and is shown as it was.
func TestStatsOfStuckCgroup(t *testing.T) {
	n := newNode(t, newFakes())
	var ids []string
	for i := range 8 {
		ids = append(ids, n.running(n.run(podRequest(fmt.Sprint("p", i))), "c", nil))
	}
	bad := ids[3]
	n.m.stats.limit = time.Second // a busy machine is no stuck cgroup
	var gate atomic.Pointer[chan struct{}]
	var reads atomic.Int64
	kernel := n.m.stats.openMeter
	n.m.stats.openMeter = func(path string) (source[cgroupUse], error) {
		src, err := kernel(path)
		if err == nil && strings.Contains(path, bad) {
			return stuckMeter{src, &gate, &reads}, nil
		}
		return src, err
	}
	first := map[string]int64{}
	for _, s := range n.m.ListContainerStats(bg, nil) {
		first[s.Attributes.Id] = s.Cpu.GetTimestamp()
	}
	shut := make(chan struct{})
	gate.Store(&shut)
	look := func(bound time.Duration) {
		t.Helper()
		begin := time.Now()
		list := n.m.ListContainerStats(bg, nil)
		if took := time.Since(begin); took > bound {
			t.Errorf("took %v", took)
		}
		for _, s := range list {
			at, id := s.Cpu.GetTimestamp(), s.Attributes.Id
			if id == bad && at != first[id] || id != bad && at <= first[id] {
				t.Errorf("container %s (bad: %v): timestamp %d, was %d", id[:8], id == bad, at, first[id])
			}
			if id != bad {
				first[id] = at
			}
		}
	}
	look(4 * n.m.stats.limit)
	before := reads.Load()
	for range 3 {
		look(n.m.stats.limit / 2) // it is known by now
	}
	if got := reads.Load(); got != before {
		t.Errorf("it is asked again: %d times", got-before)
	}
	// It can be stopped and removed meanwhile, and what is open is closed by whoever is stuck.
	if err := n.m.RemoveContainer(bg, bad); err != nil {
		t.Fatal(err)
	}
	if n.m.stats.fds.used.Load() != int64(8*cgroup.MeterFiles) {
		t.Errorf("%d files", n.m.stats.fds.used.Load())
	}
	gate.Store(nil)
	close(shut)
	eventually(t, "its files are closed", func() bool { return n.m.stats.fds.used.Load() == int64(7*cgroup.MeterFiles) })
}

// All cgroups stuck at once: bounded, too.
func TestStatsAllStuck(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("p"))
	for i := range 6 {
		n.running(pod, fmt.Sprint("c", i), nil)
	}
	var gate atomic.Pointer[chan struct{}]
	var reads atomic.Int64
	shut := make(chan struct{})
	gate.Store(&shut)
	kernel := n.m.stats.openMeter
	n.m.stats.openMeter = func(path string) (source[cgroupUse], error) {
		src, err := kernel(path)
		return stuckMeter{src, &gate, &reads}, err
	}
	ctx, cancel := context.WithTimeout(bg, 300*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if got := len(n.m.ListContainerStats(ctx, nil)); got != 6 || time.Since(begin) > 2*time.Second {
		t.Errorf("%d containers after %v", got, time.Since(begin))
	}
	begin = time.Now()
	for _, s := range n.m.ListContainerStats(bg, nil) {
		if s.Cpu != nil || s.Attributes == nil {
			t.Errorf("%v", s)
		}
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("took %v", took)
	}
	gate.Store(nil)
	close(shut)
	eventually(t, "all of them are back", func() bool {
		return !slices.ContainsFunc(n.m.ListContainerStats(bg, nil), func(s *runtimeapi.ContainerStats) bool { return s.Cpu == nil })
	})
}

// A cgroup that is frozen, hidden or taken away under a running container keeps nobody's numbers from being told.
func TestStatsOfTamperedCgroups(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("p"))
	frozen, hidden, fine := n.running(pod, "frozen", nil), n.running(pod, "hidden", nil), n.running(pod, "fine", nil)
	scope := func(id string) *cgroup.Scope {
		return n.tree.Load(n.m.index.Load().containers[id].record.Cgroup)
	}
	at := map[string]int64{}
	look := func(what string, wantNew ...string) {
		t.Helper()
		for _, s := range n.m.ListContainerStats(bg, nil) {
			id := s.Attributes.Id
			if isNew := s.Cpu.GetTimestamp() > at[id]; isNew != slices.Contains(wantNew, id) {
				t.Errorf("%s: container %s: new %v, %v", what, s.Attributes.Metadata.Name, isNew, s.Cpu)
			}
			at[id] = s.Cpu.GetTimestamp()
		}
	}
	ctx, cancel := context.WithTimeout(bg, 10*time.Second)
	defer cancel()
	if err := scope(frozen).Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	look("frozen", frozen, hidden, fine)

	root, err := cgroupOnce()
	if err != nil {
		t.Fatal(err)
	}
	over := filepath.Join(root, scope(hidden).Path())
	if err := unix.Mount("tmpfs", over, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	look("hidden", frozen, hidden, fine) // files that are open stay so
	n.restart()
	clear(at)
	look("hidden at the start", frozen, fine)
	if err := unix.Unmount(over, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	look("uncovered", frozen, hidden, fine)

	// Gone: its process moves elsewhere, and the directory is removed.
	if err := os.WriteFile(filepath.Join(n.cgroot, "elsewhere"), nil, 0); err == nil {
		t.Fatal("made a file in a cgroup")
	}
	away, err := n.tree.Create(filepath.Base(n.cgroot), "away", nil)
	if err != nil {
		t.Fatal(err)
	}
	pid := n.pid(hidden)
	if err := os.WriteFile(filepath.Join(root, away.Path(), "cgroup.procs"), []byte(itoa(pid)), 0); err != nil {
		t.Fatal(err)
	}
	if err := scope(hidden).Remove(ctx); err != nil {
		t.Fatal(err)
	}
	look("removed", frozen, fine)
	if s := n.stats(hidden); s.Cpu.GetUsageCoreNanoSeconds() == nil {
		t.Errorf("the last known value is lost: %v", s)
	}
	p := n.podStats(pod)
	if p.Linux.Cpu.GetUsageCoreNanoSeconds() == nil || len(p.Linux.Containers) != 3 {
		t.Errorf("pod: %v", p)
	}
	if err := errors.Join(scope(frozen).Thaw(), unix.Kill(pid, unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	n.wait(hidden)
	if err := removeCgroup(ctx, n.tree, away.Path()); err != nil {
		t.Error(err)
	}
}

// Without descriptors to spare, statistics are slower and as good.
func TestStatsWithoutDescriptors(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("p"))
	n.running(pod, "a", nil)
	n.running(pod, "b", nil)
	n.m.stats.fds.most = int64(cgroup.MeterFiles)
	open := n.openFiles()
	for range 3 {
		for _, s := range n.m.ListContainerStats(bg, nil) {
			if s.Cpu.GetUsageCoreNanoSeconds() == nil {
				t.Errorf("%v", s)
			}
		}
		if got := n.m.stats.fds.used.Load(); got > n.m.stats.fds.most {
			t.Errorf("%d descriptors are kept", got)
		}
		if got := n.openFiles() - open; got > cgroup.MeterFiles {
			t.Errorf("%d descriptors are open", got)
		}
	}
}

// Many ask at once, while containers come and go; run under the race detector.
func TestStatsConcurrently(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("p"))
	n.running(pod, "stays", nil)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
					n.m.ListContainerStats(bg, nil)
					n.m.ListPodSandboxStats(bg, nil)
				}
			}
		}()
	}
	for i := range 15 {
		id := n.running(pod, fmt.Sprint("c", i), nil)
		if err := n.m.RemoveContainer(bg, id); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	if got := n.m.stats.fds.used.Load(); got != int64(2*cgroup.MeterFiles+cgroup.CensusFiles+1) && got != int64(2*cgroup.MeterFiles+cgroup.CensusFiles) {
		t.Errorf("%d descriptors for one container and its pod", got)
	}
}

// A layer is walked in the background, one at a time, at most a quarter of the time, and not again before it is old.
func TestLayersAreMeasuredInTheBackground(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("p"))
	a, b := n.running(pod, "a", nil), n.running(pod, "b", nil)
	hang := make(chan struct{})
	var walks, inside atomic.Int64
	n.images.mu.Lock()
	n.images.walk = func(ctx context.Context, _ string, _ func() error) error {
		if inside.Add(1) != 1 {
			t.Error("two layers are measured at once")
		}
		defer inside.Add(-1)
		walks.Add(1)
		<-hang
		return ctx.Err()
	}
	n.images.mu.Unlock()
	for range 20 {
		begin := time.Now()
		if s := n.stats(a); s.Cpu == nil || s.WritableLayer != nil || time.Since(begin) > 2*time.Second {
			t.Errorf("with a disk that hangs, after %v: %v", time.Since(begin), s)
		}
		n.stats(b)
	}
	eventually(t, "walk", func() bool { return walks.Load() > 0 })
	if walks.Load() > 1 {
		t.Errorf("%d walks began while the first hung", walks.Load())
	}
	begin := now()
	close(hang)
	var s *runtimeapi.ContainerStats
	eventually(t, "both are measured", func() bool {
		s = n.stats(a)
		return s.WritableLayer != nil && n.stats(b).WritableLayer != nil
	})
	if u := s.WritableLayer; u.Timestamp > begin || u.UsedBytes.GetValue() == 0 || u.InodesUsed.GetValue() < 7 || u.FsId.GetMountpoint() != n.images.dir {
		t.Errorf("%v", u)
	}
	for range 10 {
		n.stats(a)
		time.Sleep(5 * time.Millisecond)
	}
	if walks.Load() != 2 {
		t.Errorf("%d walks for two layers", walks.Load())
	}
	old := *n.m.index.Load().containers[a].stats.layer.Load()
	old.at -= int64(2 * layerAge)
	n.m.index.Load().containers[a].stats.layer.Store(&old)
	eventually(t, "the old one is measured again", func() bool { return n.stats(a).WritableLayer.Timestamp > begin })
}

// The rate is told over a second at least, whoever asks how often.
func TestNanoCores(t *testing.T) {
	const ms = int64(time.Millisecond)
	u := cgroupUse{}
	step := func(at, use int64, want cgroup.Number) {
		t.Helper()
		u.CPUUsage = cgroup.Number{Value: uint64(use), Known: true}
		if u.observe(at); u.nanoCores != want {
			t.Errorf("at %d ms: %+v, want %+v", at/ms, u.nanoCores, want)
		}
	}
	rate := func(n uint64) cgroup.Number { return cgroup.Number{Value: n, Known: true} }
	step(1000*ms, 500*ms, cgroup.Number{})
	step(1001*ms, 501*ms, cgroup.Number{})
	step(2000*ms, 1000*ms, rate(5e8))
	step(2001*ms, 1001*ms, rate(5e8)) // and not that of one millisecond
	step(12000*ms, 21000*ms, rate(2e9))
	step(12000*ms, 21000*ms, cgroup.Number{}) // no time has passed
	step(13000*ms, 21000*ms, rate(0))
	step(14000*ms, 5*ms, cgroup.Number{}) // another cgroup
	step(9000*ms, 6*ms, cgroup.Number{})  // the clock was set back
	u.CPUUsage = cgroup.Number{}
	if u.observe(20000 * ms); u.nanoCores.Known {
		t.Errorf("%+v", u.nanoCores)
	}
}

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 191557994  380556    0    0    0     0          0         0 191557994  380556    0    0    0     0       0          0
  eth0: 1024       3    4    5    6     7          8         9        10      11   12   13   14    15      16          17
net1:18446744073709551615 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
`

func TestParseInterfaces(t *testing.T) {
	got, err := parseInterfaces([]byte(netDev), nil)
	want := []netInterface{{"eth0", 1024, 3, 4, 5, 10, 11, 12, 13}, {"net1", 18446744073709551615, 1, 2, 3, 8, 9, 10, 11}}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("%v, %+v", err, got)
	}
	// What is damaged is an error or has fewer interfaces, and never a wrong number.
	for i := range len(netDev) {
		got, err := parseInterfaces([]byte(netDev[:i]), want)
		for j, in := range got {
			if err == nil && in != want[j] {
				t.Fatalf("%d bytes: %+v", i, got)
			}
		}
	}
	for _, bad := range []string{"eth0: 1 2 3\n", "eth0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", ": 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n",
		"eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 -16\n", "eth0: 99999999999999999999 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", "\n"} {
		if got, err := parseInterfaces([]byte("a\nb\n"+bad), nil); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

// Whatever the text, there is no panic, and no interface without a name.
func TestParseInterfacesSurvives(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		b := []byte(netDev)
		for range 1 + rnd.IntN(4) {
			b[rnd.IntN(len(b))] = byte(rnd.IntN(256))
		}
		list, err := parseInterfaces(b[:rnd.IntN(len(b)+1)], nil)
		for _, i := range list {
			if err == nil && (i.name == "" || i.name == "lo") {
				t.Fatalf("%q: %+v", b, i)
			}
		}
	}
}

// traffic makes a pair of interfaces in a network namespace and sends frames of 1000 bytes out of eth0.
func traffic(pin string, frames int) error {
	return inNetNS(pin, func() error {
		if out, err := exec.Command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "net1").CombinedOutput(); err != nil {
			return fmt.Errorf("ip link add: %w: %s", err, out)
		}
		for _, name := range []string{"eth0", "net1"} {
			// Without addresses nothing is sent but what we send.
			if out, err := exec.Command("ip", "link", "set", name, "addrgenmode", "none", "arp", "off", "multicast", "off", "up").CombinedOutput(); err != nil {
				return fmt.Errorf("ip link set %s: %w: %s", name, err, out)
			}
		}
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		// The queue in between is not there until the kernel has looked at the link, which it does later.
		if err := unix.SetsockoptInt(s, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
			return err
		}
		for range frames {
			if err := unix.Sendto(s, make([]byte, 1000), 0, &unix.SockaddrLinklayer{Ifindex: eth0.Index}); err != nil {
				return err
			}
		}
		return nil
	})
}

// inNetNS runs f on a thread in a pinned network namespace.
func inNetNS(pin string, f func() error) error {
	ns, err := sys.OpenAt2(unix.AT_FDCWD, pin, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer ns.Close()
	return sys.OnLostThread(func() error {
		if err := unix.Setns(ns.Int(), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// TestRealStats compares what a pod did with what is told of it.
func TestRealStats(t *testing.T) {
	n := newRealNode(t)
	pod := n.run(podRequest("web"))
	id := n.running(pod, "c", nil)
	pin := n.m.index.Load().pods[pod].netns()
	if p := n.podStats(pod).Linux; p.Network == nil || p.Network.DefaultInterface != nil || len(p.Network.Interfaces) != 0 {
		t.Errorf("without interfaces: %v", p.Network)
	}
	if err := traffic(pin, 100); err != nil {
		t.Fatal(err)
	}
	p := n.podStats(pod).Linux
	d := p.Network.GetDefaultInterface()
	if d.GetName() != "eth0" || d.TxBytes.GetValue() != 100_000 || d.RxBytes.GetValue() != 0 || d.TxErrors == nil ||
		len(p.Network.Interfaces) != 1 || p.Network.Interfaces[0].Name != "net1" || p.Network.Interfaces[0].RxBytes.GetValue() != 100_000 {
		t.Errorf("network: %v", p.Network)
	}

	before := n.stats(id)
	busy := n.exec(id, "burn", "400").ExitCode
	after := n.stats(id)
	used := time.Duration(after.Cpu.UsageCoreNanoSeconds.Value - before.Cpu.UsageCoreNanoSeconds.Value)
	if busy != 0 || used < 380*time.Millisecond || used > 3*time.Second {
		t.Errorf("an exec that used 400 ms of CPU time: %v, exit code %d", used, busy)
	}
	if p := n.podStats(pod).Linux; p.Cpu.UsageCoreNanoSeconds.GetValue() < after.Cpu.UsageCoreNanoSeconds.Value {
		t.Errorf("the pod used %d, its container %d", p.Cpu.UsageCoreNanoSeconds.GetValue(), after.Cpu.UsageCoreNanoSeconds.Value)
	}
	time.Sleep(time.Duration(rateWindow))
	if s := n.stats(id); s.Cpu.UsageNanoCores == nil {
		t.Errorf("no rate: %v", s.Cpu)
	}

	eventually(t, "writable layer", func() bool { return n.stats(id).WritableLayer != nil })
	layer := n.stats(id).WritableLayer
	n.must(id, "write", "/tmp/file", strings.Repeat("x", 100_000))
	old := *n.m.index.Load().containers[id].stats.layer.Load()
	old.at -= int64(2 * layerAge)
	n.m.index.Load().containers[id].stats.layer.Store(&old)
	eventually(t, "the new file", func() bool {
		u := n.stats(id).WritableLayer
		return u.UsedBytes.Value >= layer.UsedBytes.Value+100_000 && u.InodesUsed.Value == layer.InodesUsed.Value+1
	})
	if got := n.podStats(pod).Linux.Process.GetProcessCount().GetValue(); got != 1 {
		t.Errorf("%d processes", got)
	}
	n.restart()
	if p := n.podStats(pod).Linux; p.Network.GetDefaultInterface().GetTxBytes().GetValue() != 100_000 {
		t.Errorf("network after a restart: %v", p.Network)
	}
	if err := n.m.StopPodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
	if got := n.m.stats.fds.used.Load(); got != 0 {
		t.Errorf("%d descriptors are counted", got)
	}
}

func TestRealStatsOfHostNetwork(t *testing.T) {
	n := newRealNode(t)
	cfg := podRequest("host")
	cfg.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}
	pod := n.run(cfg)
	n.running(pod, "c", nil)
	if p := n.podStats(pod).Linux; p.Network != nil || p.Cpu == nil {
		t.Errorf("the host's traffic is not the pod's: %v", p)
	}
}

// A process that has the pid of a monitor that is gone is not taken for it.
func TestNetworkOfAnother(t *testing.T) {
	n := newRealNode(t)
	pod := n.run(podRequest("web"))
	pin := n.m.index.Load().pods[pod].netns()
	if src, err := openNetwork(os.Getpid(), pin); err == nil {
		src.Close()
		t.Error("the host's interfaces are taken for the pod's")
	}
	if _, err := openNetwork(1<<30, pin); err == nil {
		t.Error("there is no such process")
	}
}

// countedSource is read when it is told to, and counts its closings.
type countedSource struct{ begun, proceed, closed chan struct{} }

func (s countedSource) Read(*uint64, int64, int64) error {
	close(s.begun)
	<-s.proceed
	return nil
}
func (s countedSource) files() int   { return 3 }
func (s countedSource) Close() error { close(s.closed); return nil }

// A gauge that is ended while somebody reads it is closed by the reader, and not under its hands.
func TestGaugeEndedWhileRead(t *testing.T) {
	src := countedSource{make(chan struct{}), make(chan struct{}), make(chan struct{})}
	b := &fdBudget{most: 100}
	var g gauge[uint64]
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.refresh(b, time.Minute, func() (source[uint64], error) { return src, nil })
	}()
	<-src.begun
	g.end(b)
	select {
	case <-src.closed:
		t.Error("closed while it was read")
	default:
	}
	if b.used.Load() != 3 {
		t.Errorf("%d descriptors are counted", b.used.Load())
	}
	close(src.proceed)
	<-done
	select {
	case <-src.closed:
	default:
		t.Error("not closed")
	}
	g.refresh(b, time.Minute, func() (source[uint64], error) {
		t.Error("opened after its end")
		return nil, errors.ErrUnsupported
	})
	if b.used.Load() != 0 {
		t.Errorf("%d descriptors are counted", b.used.Load())
	}
}
