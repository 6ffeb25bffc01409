package sandbox

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// metricsOf are the samples of the only container of the only pod, by name.
func (n *node) metricsOf(id string) map[string]*runtimeapi.Metric {
	n.t.Helper()
	out := map[string]*runtimeapi.Metric{}
	for _, p := range n.m.ListPodSandboxMetrics(bg) {
		for _, c := range p.ContainerMetrics {
			if c.ContainerId != id {
				n.t.Errorf("container %s", c.ContainerId)
			}
			for _, m := range c.Metrics {
				out[m.Name] = m
			}
		}
	}
	return out
}

// A running container has what this node counts, live, under labels that agree with the descriptors and are never the
// same twice; an exited one has nothing, and nothing stays open.
func TestMetricsLife(t *testing.T) {
	n := newNode(t, newFakes())
	open := n.openFiles()
	pod := n.run(podRequest("web"))
	id := n.create(pod, containerRequest("c", "sleep"))
	n.start(id)
	keys, seen := map[string]int{}, map[string]bool{}
	for _, d := range n.m.ListMetricDescriptors() {
		keys[d.Name] = len(d.LabelKeys)
	}
	got := n.metricsOf(id)
	for _, p := range n.m.ListPodSandboxMetrics(bg) {
		for _, m := range slices.Concat(p.Metrics, p.ContainerMetrics[0].Metrics) {
			one := fmt.Sprintf("%s %q", m.Name, m.LabelValues)
			if len(m.LabelValues) != keys[m.Name] || seen[one] {
				t.Errorf("%s: %d labels, want %d", one, len(m.LabelValues), keys[m.Name])
			}
			seen[one] = true
		}
	}
	for _, name := range []string{"container_cpu_usage_seconds_total", "container_fs_usage_bytes", "container_fs_limit_bytes",
		"container_processes", "container_threads", "container_file_descriptors", "container_sockets", "container_ulimits_soft",
		"container_start_time_seconds", "container_last_seen"} {
		if got[name] == nil {
			t.Errorf("no %s", name)
		}
	}
	for name, controller := range map[string]string{"container_memory_usage_bytes": "memory", "container_threads_max": "pids", "container_cpu_cfs_periods_total": "cpu"} {
		if there := slices.Contains(n.controllers(), controller); (got[name] != nil) != there {
			t.Errorf("controller %s is %v, %s is %v", controller, there, name, got[name])
		}
	}
	c, _ := n.m.container(id)
	eventually(t, "as many descriptors as the process has", func() bool { // it may still be opening them
		fds, err := os.ReadDir("/proc/" + strconv.Itoa(c.facts.Load().Pid) + "/fd")
		return err == nil && n.metricsOf(id)["container_file_descriptors"].GetValue().GetValue() == uint64(len(fds))
	})
	if m := got["container_cpu_usage_seconds_total"]; m.GetTimestamp() != 0 || strings.Join(m.GetLabelValues()[3:], " ") != "default web c total" {
		t.Errorf("%v", m)
	}
	if err := n.m.StopContainer(bg, id, 0); err != nil {
		t.Fatal(err)
	}
	if got := n.metricsOf(id); len(got) != 0 {
		t.Errorf("exited: %v", got)
	}
	if err := n.m.StopPodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
	if got := n.openFiles(); got != open || n.m.stats.fds.used.Load() != 0 {
		t.Errorf("%d files are open, %d were; %d are counted", got, open, n.m.stats.fds.used.Load())
	}
}

// slicesOnly is a tree of systemd's, as far as it names things.
type slicesOnly struct{ CgroupTree }

func (slicesOnly) Parent(name string) (string, error) {
	return map[string]string{"a-b.slice": "a.slice/a-b.slice"}[name], nil
}

// The label id is where the pod's cgroup lies, also where an earlier daemon recorded what systemd calls it.
func TestMetricsOfARecordedSlice(t *testing.T) {
	for recorded, want := range map[string]string{"a-b.slice": "/a.slice/a-b.slice", "a.slice/a-b.slice": "/a.slice/a-b.slice", "_cpu.slice": "/_cpu.slice"} {
		m := &Manager{}
		m.cfg.Cgroups = slicesOnly{}
		sb := m.emptySandbox("x")
		sb.record.Cgroup = recorded
		for _, s := range sb.metricsMessage(nil, 0).Metrics {
			t.Errorf("of a pod that nobody looked at: %v", s)
		}
		sb.stats.network.last.Store(&reading[[]netInterface]{value: []netInterface{{name: "eth0"}}})
		for _, s := range sb.metricsMessage(nil, 0).Metrics {
			if s.LabelValues[0] != want {
				t.Fatalf("%s: %q", recorded, s.LabelValues)
			}
		}
	}
}
