package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// metricFiles says of each metric of a container which file of its cgroup must be there for it, and where a line of it
// begins with a word that not every kernel writes, that word as well. Without a file it is always there.
var metricFiles = map[string][2]string{
	"container_cpu_usage_seconds_total": {"cpu.stat"}, "container_cpu_user_seconds_total": {"cpu.stat"}, "container_cpu_system_seconds_total": {"cpu.stat"},
	"container_cpu_cfs_periods_total": {"cpu.stat", "nr_periods "}, "container_cpu_cfs_throttled_periods_total": {"cpu.stat", "nr_throttled "},
	"container_cpu_cfs_throttled_seconds_total": {"cpu.stat", "throttled_usec "},
	"container_memory_usage_bytes":              {"memory.current"}, "container_memory_working_set_bytes": {"memory.current"}, "container_memory_max_usage_bytes": {"memory.peak"},
	"container_memory_rss": {"memory.stat"}, "container_memory_cache": {"memory.stat"}, "container_memory_mapped_file": {"memory.stat"},
	"container_memory_kernel_usage": {"memory.stat", "kernel "}, "container_memory_swap": {"memory.swap.current"},
	"container_memory_failcnt": {"memory.events"}, "container_memory_failures_total": {"memory.stat"}, "container_oom_events_total": {"memory.events"},
	"container_hugetlb_usage_bytes": {"hugetlb.2MB.current"}, "container_hugetlb_max_usage_bytes": {"never"},
	"container_fs_usage_bytes": {}, "container_fs_limit_bytes": {}, "container_fs_inodes_total": {}, "container_fs_inodes_free": {},
	"container_fs_reads_bytes_total": {"io.stat", "rbytes="}, "container_fs_reads_total": {"io.stat", "rios="}, "container_fs_writes_bytes_total": {"io.stat", "wbytes="},
	"container_fs_writes_total": {"io.stat", "wios="}, "container_blkio_device_usage_total": {"io.stat", "rbytes="},
	"container_pressure_cpu_waiting_seconds_total": {"cpu.pressure", "some "}, "container_pressure_cpu_stalled_seconds_total": {"cpu.pressure", "some "},
	"container_pressure_memory_waiting_seconds_total": {"memory.pressure", "some "}, "container_pressure_memory_stalled_seconds_total": {"memory.pressure", "some "},
	"container_pressure_io_waiting_seconds_total": {"io.pressure", "some "}, "container_pressure_io_stalled_seconds_total": {"io.pressure", "some "},
	"container_processes": {}, "container_threads": {}, "container_threads_max": {"pids.max"}, "container_file_descriptors": {}, "container_sockets": {}, "container_ulimits_soft": {},
	"container_spec_cpu_period": {}, "container_spec_cpu_quota": {}, "container_spec_cpu_shares": {},
	"container_spec_memory_limit_bytes": {}, "container_spec_memory_swap_limit_bytes": {}, "container_spec_memory_reservation_limit_bytes": {},
	"container_start_time_seconds": {}, "container_last_seen": {},
}

// metricReading are the samples of one pod and its one container, by name and by the labels behind the common ones.
type metricReading struct {
	*pod
	keys           map[string][]string // by name, as the descriptors say
	container, net map[string]uint64
}

// readMetrics asks, and holds labels against the descriptors.
func (p *pod) readMetrics(id string) *metricReading {
	p.Helper()
	r := &metricReading{pod: p, keys: map[string][]string{}, container: map[string]uint64{}, net: map[string]uint64{}}
	descriptors, err := p.cri.ListMetricDescriptors(p.ctx)
	if err != nil {
		p.Fatal(err)
	}
	for _, d := range descriptors {
		if r.keys[d.Name] != nil || d.Help == "" {
			p.Errorf("descriptor %v", d)
		}
		r.keys[d.Name] = d.LabelKeys
	}
	pods, err := p.cri.ListPodSandboxMetrics(p.ctx)
	if err != nil {
		p.Fatal(err)
	}
	dir := strings.TrimPrefix(p.cgroupOf(id), "/sys/fs/cgroup")
	for _, sb := range pods {
		if sb.PodSandboxId != p.id {
			continue
		}
		r.take(r.net, sb.Metrics, filepath.Dir(dir), p.id, "", "POD")
		if len(sb.ContainerMetrics) != 1 || sb.ContainerMetrics[0].ContainerId != id {
			p.Fatalf("containers: %v", sb.ContainerMetrics)
		}
		r.take(r.container, sb.ContainerMetrics[0].Metrics, dir, id, busybox, "c")
	}
	return r
}

func (r *metricReading) take(into map[string]uint64, samples []*runtimeapi.Metric, id, name, image, container string) {
	r.Helper()
	for _, m := range samples {
		labels := map[string]string{}
		for i, k := range r.keys[m.Name] {
			if len(m.LabelValues) == len(r.keys[m.Name]) {
				labels[k] = m.LabelValues[i]
			}
		}
		if labels["id"] != id || labels["name"] != name || labels["image"] != image || labels["container"] != container ||
			labels["namespace"] != r.cfg.Metadata.Namespace || labels["pod"] != r.cfg.Metadata.Name {
			r.Errorf("%s: labels %q, keys %q", m.Name, m.LabelValues, r.keys[m.Name])
			continue
		}
		key := strings.Join(append([]string{m.Name}, m.LabelValues[6:]...), " ")
		if _, twice := into[key]; twice {
			r.Errorf("%s is there twice", key)
		}
		into[key] = m.Value.GetValue()
	}
}

// has says whether there is a sample with that name.
func (r *metricReading) has(name string) bool {
	for _, of := range []map[string]uint64{r.container, r.net} {
		for key := range of {
			if n, _, _ := strings.Cut(key, " "); n == name {
				return true
			}
		}
	}
	return false
}

// between wants a sample within bounds, which the kernel's own files gave before and after.
func (r *metricReading) between(key string, low, high uint64) {
	r.Helper()
	got, ok := r.container[key]
	if !ok {
		got, ok = r.net[key]
	}
	if !ok || got < low || got > high {
		r.Errorf("%s is %d (there: %v), want %d to %d", key, got, ok, low, high)
	}
}

// TestMetrics holds metrics against the kernel's own files, read before and after, and wants each metric there is a
// descriptor of where the kernel counts it, and nowhere else.
func TestMetrics(t *testing.T) {
	s := open(t)
	p := s.runPod("metrics")
	id := p.run("c", "while [ ! -e /tmp/stop ]; do :; done; exec sleep 100000", func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 50000, CpuQuota: 100000, CpuShares: 512, MemoryLimitInBytes: 64 * mib}
	})
	dir := p.cgroupOf(id)
	s.eventually("it has used CPU time", func() bool { return p.counter(dir+"/cpu.stat", "usage_usec") > 2e6 })
	s.exec(id, "dd if=/dev/zero of=/big bs=1M count=4 2>/dev/null; touch /tmp/stop")
	s.eventually("it sleeps", func() bool {
		pids := p.pids(id)
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pids[0]))
		return err == nil && string(text) == "sleep\n"
	})
	s.eventually("layer", func() bool { return p.readMetrics(id).container["container_fs_usage_bytes "+p.device()] >= 4*mib })
	time.Sleep(1100 * time.Millisecond) // processes are looked at again
	before := p.kernelSays(dir, id)
	r := p.readMetrics(id)
	after := p.kernelSays(dir, id)
	for key, low := range before {
		high := after[key]
		slack := uint64(0)
		if strings.HasPrefix(key, "container_memory_") && !strings.Contains(key, "failures") {
			slack = mib // the kernel adds up what its CPUs have kept back, now and then
		}
		r.between(key, min(low, high)-min(slack, low, high), max(low, high)+slack)
	}
	for name, keys := range r.keys {
		if len(keys) < 6 || !slices.Equal(keys[:6], []string{"id", "name", "image", "namespace", "pod", "container"}) {
			t.Errorf("%s: labels %q", name, keys)
		}
		file, ok := metricFiles[name]
		if !ok && !strings.HasPrefix(name, "container_network_") {
			t.Errorf("a metric of whose place nothing is known: %s", name)
		}
		counted := true
		if file[0] != "" {
			text, err := os.ReadFile(filepath.Join(dir, file[0]))
			counted = err == nil && bytes.Contains(text, []byte(file[1]))
		}
		if counted != r.has(name) {
			t.Errorf("%s: there: %v; the kernel has it: %v", name, !counted, counted)
		}
	}
	for key := range r.container {
		if name, _, _ := strings.Cut(key, " "); r.keys[name] == nil {
			t.Errorf("%s has no descriptor", key)
		}
	}
	t.Logf("%d metrics, %d samples of the container and %d of the pod, %d held against the kernel", len(r.keys), len(r.container), len(r.net), len(before))
	if err := s.cri.StopPodSandbox(s.ctx, p.id); err != nil {
		t.Fatal(err)
	}
	pods, err := s.cri.ListPodSandboxMetrics(s.ctx)
	if err != nil || slices.ContainsFunc(pods, func(m *runtimeapi.PodSandboxMetrics) bool { return m.PodSandboxId == p.id }) {
		t.Errorf("of a stopped pod: %v, %v", pods, err)
	}
}

// device is what metrics call the device that images and layers are on.
func (p *pod) device() string {
	p.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(p.Root, &st); err != nil {
		p.Fatal(err)
	}
	number := fmt.Sprintf("%d:%d", st.Dev>>8&0xfff, st.Dev&0xff)
	if to, err := os.Readlink("/sys/dev/block/" + number); err == nil {
		return "/dev/" + filepath.Base(to)
	}
	return number
}

// kernelSays reads what metrics must be at this moment.
func (p *pod) kernelSays(dir, id string) map[string]uint64 {
	p.Helper()
	pids := p.pids(id)
	proc := fmt.Sprintf("/proc/%d", pids[0])
	says := map[string]uint64{
		"container_last_seen":                     uint64(time.Now().Unix()),
		"container_start_time_seconds":            uint64(p.status(id).StartedAt / 1e9),
		"container_cpu_usage_seconds_total total": p.counter(dir+"/cpu.stat", "usage_usec") / 1e6,
		"container_cpu_user_seconds_total":        p.counter(dir+"/cpu.stat", "user_usec") / 1e6,
		"container_cpu_system_seconds_total":      p.counter(dir+"/cpu.stat", "system_usec") / 1e6,
		"container_processes":                     uint64(len(pids)),
		"container_threads":                       uint64(len(pids)),
		"container_sockets":                       0,
		"container_spec_cpu_period":               50000,
		"container_spec_cpu_quota":                100000,
		"container_spec_cpu_shares":               512,
		"container_spec_memory_limit_bytes":       64 * mib,
	}
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		p.Fatal(err)
	}
	says["container_file_descriptors"] = uint64(len(fds))
	limits, err := os.ReadFile(proc + "/limits")
	if err != nil {
		p.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if strings.HasPrefix(line, "Max open files") {
			says["container_ulimits_soft max_open_files"], _ = strconv.ParseUint(strings.Fields(line)[3], 10, 64)
		}
	}
	p.filesSay(says, proc)
	if has("memory") {
		for _, m := range [][3]string{{"usage_bytes", "memory.current"}, {"max_usage_bytes", "memory.peak"}, {"rss", "memory.stat", "anon"}, {"cache", "memory.stat", "file"},
			{"mapped_file", "memory.stat", "file_mapped"}, {"failcnt", "memory.events", "max"}, {"failures_total pgfault container", "memory.stat", "pgfault"},
			{"failures_total pgmajfault hierarchy", "memory.stat", "pgmajfault"}} {
			if _, err := os.Stat(filepath.Join(dir, m[1])); err == nil {
				says["container_memory_"+m[0]] = p.counter(filepath.Join(dir, m[1]), m[2])
			}
		}
		says["container_oom_events_total"] = p.counter(dir+"/memory.events", "oom_kill")
		says["container_memory_working_set_bytes"] = says["container_memory_usage_bytes"] - p.counter(dir+"/memory.stat", "inactive_file")
	}
	if has("cpu") {
		says["container_cpu_cfs_periods_total"] = p.counter(dir+"/cpu.stat", "nr_periods")
		says["container_cpu_cfs_throttled_periods_total"] = p.counter(dir+"/cpu.stat", "nr_throttled")
	}
	return says
}

// filesSay adds what the file system and the pod's network count.
func (p *pod) filesSay(says map[string]uint64, proc string) {
	p.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(p.Root, &fs); err != nil {
		p.Fatal(err)
	}
	says["container_fs_limit_bytes "+p.device()] = fs.Blocks * uint64(fs.Bsize)
	says["container_fs_inodes_total "+p.device()] = fs.Files
	dev, err := os.ReadFile(proc + "/net/dev")
	if err != nil {
		p.Fatal(err)
	}
	for line := range strings.Lines(string(dev)) {
		name, numbers, _ := strings.Cut(strings.TrimSpace(line), ":")
		f := strings.Fields(numbers)
		if name != "eth0" || len(f) < 16 {
			continue
		}
		for field, key := range map[int]string{0: "receive_bytes", 1: "receive_packets", 2: "receive_errors", 3: "receive_packets_dropped",
			8: "transmit_bytes", 9: "transmit_packets", 10: "transmit_errors", 11: "transmit_packets_dropped"} {
			says["container_network_"+key+"_total eth0"], _ = strconv.ParseUint(f[field], 10, 64)
		}
	}
}
