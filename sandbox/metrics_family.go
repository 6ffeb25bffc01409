package sandbox

import (
	"math"
	"slices"
	"strconv"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// baseKeys are the labels of every metric: the first three are cAdvisor's, with what it puts there (the cgroup, the id of
// the container, the name of its image); the others are those that a kubelet adds to cAdvisor's metrics and not to ours.
var baseKeys = []string{"id", "name", "image", "namespace", "pod", "container"}

const (
	counter = runtimeapi.MetricType_COUNTER
	gauged  = runtimeapi.MetricType_GAUGE
)

// family is one metric. docs/metrics.md has the same table, and a test that compares the two.
type family struct {
	name string
	kind runtimeapi.MetricType
	more []string // labels beside baseKeys
	file string   // where the kernel counts it: in the cgroup, if it is no path
	help string
	read func(*sampler)
}

// keys are all labels, in the order of the values of each sample.
func (f *family) keys() []string { return slices.Concat(baseKeys, f.more) }

// families are all metrics there are.
var families = slices.Concat(cpuFamilies, memoryFamilies, hugePageFamilies, diskFamilies, networkFamilies,
	pressureFamilies, processFamilies, specFamilies, lifeFamilies)

var cpuFamilies = []family{
	{"container_cpu_usage_seconds_total", counter, []string{"cpu"}, "cpu.stat", "CPU time of all cores together, in seconds.",
		func(w *sampler) {
			if w.use != nil {
				w.seconds(w.use.at, w.use.value.CPUUsage, "total")
			}
		}},
	{"container_cpu_user_seconds_total", counter, nil, "cpu.stat", "CPU time in user mode, in seconds.",
		inSeconds(func(u *cgroupUse) cgroup.Number { return u.CPUUser })},
	{"container_cpu_system_seconds_total", counter, nil, "cpu.stat", "CPU time in the kernel, in seconds.",
		inSeconds(func(u *cgroupUse) cgroup.Number { return u.CPUSystem })},
	{"container_cpu_cfs_periods_total", counter, nil, "cpu.stat", "Periods of the CPU quota in which something ran.",
		ofUse(func(u *cgroupUse) cgroup.Number { return u.Periods })},
	{"container_cpu_cfs_throttled_periods_total", counter, nil, "cpu.stat", "Periods in which the quota held the container back.",
		ofUse(func(u *cgroupUse) cgroup.Number { return u.Throttled })},
	{"container_cpu_cfs_throttled_seconds_total", counter, nil, "cpu.stat", "Time for which the quota held the container back, in seconds.",
		inSeconds(func(u *cgroupUse) cgroup.Number { return u.ThrottledTime })},
}

var memoryFamilies = []family{
	{"container_memory_usage_bytes", gauged, nil, "memory.current", "Memory charged, page cache and kernel memory included.",
		ofUse(func(u *cgroupUse) cgroup.Number { return u.MemoryUsage })},
	{"container_memory_working_set_bytes", gauged, nil, "memory.current", "Memory charged, without page cache that is easily taken back.",
		ofUse(func(u *cgroupUse) cgroup.Number { return u.WorkingSet() })},
	{"container_memory_max_usage_bytes", gauged, nil, "memory.peak", "The most memory that was ever charged.",
		ofDetail(func(d *cgroup.Detail) cgroup.Number { return d.MemoryPeak })},
	{"container_memory_rss", gauged, nil, "memory.stat", "Anonymous memory, in bytes.",
		ofUse(func(u *cgroupUse) cgroup.Number { return u.Anonymous })},
	{"container_memory_cache", gauged, nil, "memory.stat", "Page cache, tmpfs included, in bytes.",
		ofUse(func(u *cgroupUse) cgroup.Number { return u.Cached })},
	{"container_memory_mapped_file", gauged, nil, "memory.stat", "Page cache that processes have mapped, in bytes.",
		ofUse(func(u *cgroupUse) cgroup.Number { return u.Mapped })},
	{"container_memory_kernel_usage", gauged, nil, "memory.stat", "Memory of the kernel's own, in bytes.",
		ofUse(func(u *cgroupUse) cgroup.Number { return u.Kernel })},
	{"container_memory_swap", gauged, nil, "memory.swap.current", "Swap in use, in bytes.",
		ofUse(func(u *cgroupUse) cgroup.Number { return u.SwapUsage })},
	{"container_memory_failcnt", counter, nil, "memory.events", "How often more memory was wanted than the limit allows.",
		ofDetail(func(d *cgroup.Detail) cgroup.Number { return d.MemoryHits })},
	{"container_memory_failures_total", counter, []string{"failure_type", "scope"}, "memory.stat", "Page faults.",
		func(w *sampler) {
			if w.use == nil {
				return
			}
			for _, scope := range []string{"container", "hierarchy"} {
				w.number(w.use.at, w.use.value.PageFaults, "pgfault", scope)
				w.number(w.use.at, w.use.value.MajorPageFaults, "pgmajfault", scope)
			}
		}},
	{"container_oom_events_total", counter, nil, "memory.events", "Processes that the OOM killer took.",
		ofDetail(func(d *cgroup.Detail) cgroup.Number { return d.OOMKills })},
}

var hugePageFamilies = []family{
	{"container_hugetlb_usage_bytes", gauged, []string{"pagesize"}, "hugetlb.2MB.current", "Huge pages in use, in bytes.",
		func(w *sampler) {
			if w.detail != nil {
				for _, h := range w.detail.value.HugePages {
					w.number(w.detail.at, h.Usage, h.Size)
				}
			}
		}},
	{"container_hugetlb_max_usage_bytes", gauged, []string{"pagesize"}, "-", "The most huge pages that were ever in use, in bytes.",
		func(*sampler) {}}, // cgroup v2 does not keep it
}

var diskFamilies = []family{
	{"container_fs_usage_bytes", gauged, []string{"device"}, "the writable layer", "What the writable layer occupies, in bytes.",
		ofLayer(func(u *layerUse) cgroup.Number { return cgroup.Number{Value: u.use.UsedBytes, Known: true} })},
	{"container_fs_limit_bytes", gauged, []string{"device"}, "statfs", "Size of the file system that the writable layer is on, in bytes.",
		ofLayer(func(u *layerUse) cgroup.Number { return cgroup.Number{Value: u.room.bytes, Known: u.room.known} })},
	{"container_fs_inodes_total", gauged, []string{"device"}, "statfs", "Inodes of the file system that the writable layer is on.",
		ofLayer(func(u *layerUse) cgroup.Number { return cgroup.Number{Value: u.room.inodes, Known: u.room.known} })},
	{"container_fs_inodes_free", gauged, []string{"device"}, "statfs", "Free inodes of the file system that the writable layer is on.",
		ofLayer(func(u *layerUse) cgroup.Number { return cgroup.Number{Value: u.room.freeNode, Known: u.room.known} })},
	{"container_fs_reads_bytes_total", counter, []string{"device"}, "io.stat", "Bytes read from a device.",
		ofDisk(func(d *cgroup.DiskStats) uint64 { return d.ReadBytes })},
	{"container_fs_reads_total", counter, []string{"device"}, "io.stat", "Reads from a device.",
		ofDisk(func(d *cgroup.DiskStats) uint64 { return d.ReadOps })},
	{"container_fs_writes_bytes_total", counter, []string{"device"}, "io.stat", "Bytes written to a device.",
		ofDisk(func(d *cgroup.DiskStats) uint64 { return d.WriteBytes })},
	{"container_fs_writes_total", counter, []string{"device"}, "io.stat", "Writes to a device.",
		ofDisk(func(d *cgroup.DiskStats) uint64 { return d.WriteOps })},
	{"container_blkio_device_usage_total", counter, []string{"device", "major", "minor", "operation"}, "io.stat", "Bytes moved to and from a device.",
		func(w *sampler) {
			w.disks(func(d *cgroup.DiskStats, device string) {
				major, minor := strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)
				w.add(w.detail.at, d.ReadBytes, device, major, minor, "Read")
				w.add(w.detail.at, d.WriteBytes, device, major, minor, "Write")
				w.add(w.detail.at, d.DiscardBytes, device, major, minor, "Discard")
			})
		}},
}

var networkFamilies = []family{
	{"container_network_receive_bytes_total", counter, []string{"interface"}, "/proc/PID/net/dev", "Bytes received.",
		ofNetwork(func(i *netInterface) uint64 { return i.rxBytes })},
	{"container_network_receive_packets_total", counter, []string{"interface"}, "/proc/PID/net/dev", "Packets received.",
		ofNetwork(func(i *netInterface) uint64 { return i.rxPackets })},
	{"container_network_receive_errors_total", counter, []string{"interface"}, "/proc/PID/net/dev", "Errors while receiving.",
		ofNetwork(func(i *netInterface) uint64 { return i.rxErrors })},
	{"container_network_receive_packets_dropped_total", counter, []string{"interface"}, "/proc/PID/net/dev", "Packets dropped while receiving.",
		ofNetwork(func(i *netInterface) uint64 { return i.rxDropped })},
	{"container_network_transmit_bytes_total", counter, []string{"interface"}, "/proc/PID/net/dev", "Bytes sent.",
		ofNetwork(func(i *netInterface) uint64 { return i.txBytes })},
	{"container_network_transmit_packets_total", counter, []string{"interface"}, "/proc/PID/net/dev", "Packets sent.",
		ofNetwork(func(i *netInterface) uint64 { return i.txPackets })},
	{"container_network_transmit_errors_total", counter, []string{"interface"}, "/proc/PID/net/dev", "Errors while sending.",
		ofNetwork(func(i *netInterface) uint64 { return i.txErrors })},
	{"container_network_transmit_packets_dropped_total", counter, []string{"interface"}, "/proc/PID/net/dev", "Packets dropped while sending.",
		ofNetwork(func(i *netInterface) uint64 { return i.txDropped })},
}

var pressureFamilies = []family{
	{"container_pressure_cpu_waiting_seconds_total", counter, nil, "cpu.pressure", "Time in which a task waited for a CPU, in seconds.",
		ofPressure(func(u *cgroupUse) (*cgroup.Pressure, uint64) { return &u.CPU, u.CPU.Some.Total })},
	{"container_pressure_cpu_stalled_seconds_total", counter, nil, "cpu.pressure", "Time in which all tasks waited for a CPU, in seconds.",
		ofPressure(func(u *cgroupUse) (*cgroup.Pressure, uint64) { return &u.CPU, u.CPU.Full.Total })},
	{"container_pressure_memory_waiting_seconds_total", counter, nil, "memory.pressure", "Time in which a task waited for memory, in seconds.",
		ofPressure(func(u *cgroupUse) (*cgroup.Pressure, uint64) { return &u.Memory, u.Memory.Some.Total })},
	{"container_pressure_memory_stalled_seconds_total", counter, nil, "memory.pressure", "Time in which all tasks waited for memory, in seconds.",
		ofPressure(func(u *cgroupUse) (*cgroup.Pressure, uint64) { return &u.Memory, u.Memory.Full.Total })},
	{"container_pressure_io_waiting_seconds_total", counter, nil, "io.pressure", "Time in which a task waited for input or output, in seconds.",
		ofPressure(func(u *cgroupUse) (*cgroup.Pressure, uint64) { return &u.IO, u.IO.Some.Total })},
	{"container_pressure_io_stalled_seconds_total", counter, nil, "io.pressure", "Time in which all tasks waited for input or output, in seconds.",
		ofPressure(func(u *cgroupUse) (*cgroup.Pressure, uint64) { return &u.IO, u.IO.Full.Total })},
}

var processFamilies = []family{
	{"container_processes", gauged, nil, "cgroup.procs", "Processes.",
		ofCrowd(func(c *crowd) cgroup.Number { return c.processes })},
	{"container_threads", gauged, nil, "pids.current", "Threads of all processes.",
		func(w *sampler) {
			if w.detail != nil && w.detail.value.Threads.Known {
				w.number(w.detail.at, w.detail.value.Threads)
			} else if w.crowd != nil {
				w.number(w.crowd.at, w.crowd.value.threads)
			}
		}},
	{"container_threads_max", gauged, nil, "pids.max", "Threads that are allowed; 0 where there is no limit.",
		ofDetail(func(d *cgroup.Detail) cgroup.Number { return d.MaxThreads })},
	{"container_file_descriptors", gauged, nil, "/proc/PID/fd", "Open descriptors of all processes.",
		ofCrowd(func(c *crowd) cgroup.Number { return c.fds })},
	{"container_sockets", gauged, nil, "/proc/PID/fd", "Open descriptors of all processes that are sockets.",
		ofCrowd(func(c *crowd) cgroup.Number { return c.sockets })},
	{"container_ulimits_soft", gauged, []string{"ulimit"}, "/proc/PID/limits", "Soft resource limits of the main process.",
		func(w *sampler) {
			if w.crowd != nil {
				w.number(w.crowd.at, w.crowd.value.openFiles, "max_open_files")
			}
		}},
}

var specFamilies = []family{
	{"container_spec_cpu_period", gauged, nil, "the record", "Period of the CPU quota that was asked for, in microseconds.",
		asked(func(r *runtimeapi.LinuxContainerResources) cgroup.Number { return set(r.GetCpuPeriod()) })},
	{"container_spec_cpu_quota", gauged, nil, "the record", "CPU quota that was asked for, in microseconds of each period.",
		asked(func(r *runtimeapi.LinuxContainerResources) cgroup.Number { return set(r.GetCpuQuota()) })},
	{"container_spec_cpu_shares", gauged, nil, "the record", "CPU shares that were asked for.",
		asked(func(r *runtimeapi.LinuxContainerResources) cgroup.Number { return set(r.GetCpuShares()) })},
	{"container_spec_memory_limit_bytes", gauged, nil, "the record", "Memory limit that was asked for; 0 is none.",
		asked(func(r *runtimeapi.LinuxContainerResources) cgroup.Number { return limit(r.GetMemoryLimitInBytes()) })},
	{"container_spec_memory_swap_limit_bytes", gauged, nil, "the record", "Limit of memory and swap together that was asked for; 0 is none.",
		asked(func(r *runtimeapi.LinuxContainerResources) cgroup.Number { return limit(r.GetMemorySwapLimitInBytes()) })},
	{"container_spec_memory_reservation_limit_bytes", gauged, nil, "the record", "Memory that is kept for the container; 0 is none.",
		asked(func(r *runtimeapi.LinuxContainerResources) cgroup.Number {
			n, err := strconv.ParseUint(r.GetUnified()["memory.min"], 10, 64)
			if err != nil && r.GetUnified()["memory.min"] != "" {
				return cgroup.Number{} // max
			}
			return cgroup.Number{Value: n, Known: true}
		})},
}

var lifeFamilies = []family{
	{"container_start_time_seconds", gauged, nil, "the record", "When the container was started, in seconds since 1970.",
		func(w *sampler) {
			if w.started > 0 {
				w.add(w.begin, uint64(w.started)/1e9)
			}
		}},
	{"container_last_seen", gauged, nil, "cpu.stat", "When the container's cgroup was last read, in seconds since 1970.",
		func(w *sampler) {
			if w.use != nil {
				w.add(w.use.at, uint64(w.use.at)/1e9)
			}
		}},
}

// set is a figure that was asked for; those that nobody asked for, and quotas of none, are not there.
func set(n int64) cgroup.Number { return cgroup.Number{Value: uint64(max(n, 0)), Known: n > 0} }

// limit is a limit that was asked for. As cAdvisor has it, none is 0, and so is one that no machine reaches.
func limit(n int64) cgroup.Number {
	if n < 0 || n > math.MaxInt64/2 {
		n = 0
	}
	return cgroup.Number{Value: uint64(n), Known: true}
}

func ofUse(n func(*cgroupUse) cgroup.Number) func(*sampler) {
	return func(w *sampler) {
		if w.use != nil {
			w.number(w.use.at, n(&w.use.value))
		}
	}
}

func inSeconds(n func(*cgroupUse) cgroup.Number) func(*sampler) {
	return func(w *sampler) {
		if w.use != nil {
			w.seconds(w.use.at, n(&w.use.value))
		}
	}
}

func ofPressure(total func(*cgroupUse) (*cgroup.Pressure, uint64)) func(*sampler) {
	return func(w *sampler) {
		if w.use != nil {
			p, ns := total(&w.use.value)
			w.seconds(w.use.at, cgroup.Number{Value: ns, Known: p.Known})
		}
	}
}

func ofDetail(n func(*cgroup.Detail) cgroup.Number) func(*sampler) {
	return func(w *sampler) {
		if w.detail != nil {
			w.number(w.detail.at, n(&w.detail.value))
		}
	}
}

func ofCrowd(n func(*crowd) cgroup.Number) func(*sampler) {
	return func(w *sampler) {
		if w.crowd != nil {
			w.number(w.crowd.at, n(&w.crowd.value))
		}
	}
}

func ofLayer(n func(*layerUse) cgroup.Number) func(*sampler) {
	return func(w *sampler) {
		if w.layer != nil {
			w.number(w.layer.at, n(w.layer), w.layer.room.device)
		}
	}
}

func ofDisk(n func(*cgroup.DiskStats) uint64) func(*sampler) {
	return func(w *sampler) {
		w.disks(func(d *cgroup.DiskStats, device string) { w.add(w.detail.at, n(d), device) })
	}
}

// disks calls f for each device that the container has used.
func (w *sampler) disks(f func(d *cgroup.DiskStats, device string)) {
	if w.detail == nil {
		return
	}
	list := w.detail.value.Disks
	for i := range list {
		if len(w.devices) == i {
			w.devices = append(w.devices, deviceName(list[i].Major, list[i].Minor))
		}
		f(&list[i], w.devices[i])
	}
}

func ofNetwork(n func(*netInterface) uint64) func(*sampler) {
	return func(w *sampler) {
		if w.network == nil {
			return
		}
		for i := range w.network.value {
			w.add(w.network.at, n(&w.network.value[i]), w.network.value[i].name)
		}
	}
}

func asked(n func(*runtimeapi.LinuxContainerResources) cgroup.Number) func(*sampler) {
	return func(w *sampler) {
		if w.asked != nil {
			w.number(w.begin, n(w.asked))
		}
	}
}
