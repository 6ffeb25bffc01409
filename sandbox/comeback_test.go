package sandbox

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/cni"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// strange are labels and annotations as nobody would write them, and as they must come back.
var strange = map[string]string{"a.b/c": "kept\nas\tit is \x7f", "": "", "vitrine.dev/x": `{"}`, "ä": "€ " + strings.Repeat("x", 4000)}

// TestWhatComesBack: what a request says of a pod and of a container is told by every message that has a field for it, and after a
// restart; ids and times are the same everywhere.
func TestWhatComesBack(t *testing.T) {
	n := newNode(t, newFakes())
	cfg := podRequest("web")
	cfg.Metadata.Attempt, cfg.Labels, cfg.Annotations = 4, strange, strange
	pod := n.run(cfg)
	next := proto.Clone(cfg).(*runtimeapi.PodSandboxConfig)
	next.Metadata.Attempt = 5
	if other := n.run(next); other == pod {
		t.Error("another attempt is the same pod")
	}
	req := containerRequest("c", "sleep")
	req.Metadata.Attempt, req.Labels, req.Annotations, req.StopSignal = 3, strange, strange, runtimeapi.Signal_SIGNAL_SIGINT
	req.Image = &runtimeapi.ImageSpec{Image: "test", UserSpecifiedImage: "what:people-wrote", Annotations: strange, ImageRef: "test"}
	c := n.create(pod, req)
	heard := n.listen()
	n.start(c)
	heard.wants(c, "started")
	event := heard.all[len(heard.all)-1]
	if len(event.ContainersStatuses) != 1 || event.CreatedAt == 0 {
		t.Fatalf("event: %v", event)
	}
	image := proto.Clone(req.Image).(*runtimeapi.ImageSpec)
	image.Image = "localhost/test:latest"
	for range 2 {
		st, _, err := n.m.PodSandboxStatus(pod)
		if err != nil {
			t.Fatal(err)
		}
		list := n.m.ListPodSandbox(&runtimeapi.PodSandboxFilter{Id: pod})
		if len(list) != 1 || st.CreatedAt == 0 || st.RuntimeHandler != "" {
			t.Fatalf("%v, listed %v", st, list)
		}
		same(t, st, "", &runtimeapi.PodSandboxStatus{Id: pod, Metadata: cfg.Metadata, CreatedAt: st.CreatedAt, Labels: strange, Annotations: strange}, "network", "linux")
		same(t, list[0], "", &runtimeapi.PodSandbox{Id: pod, Metadata: cfg.Metadata, CreatedAt: st.CreatedAt, Labels: strange, Annotations: strange})
		same(t, n.podStats(pod).Attributes, "", &runtimeapi.PodSandboxAttributes{Id: pod, Metadata: cfg.Metadata, Labels: strange, Annotations: strange})

		ctr := n.status(c)
		of := n.m.ListContainers(&runtimeapi.ContainerFilter{Id: c})
		if len(of) != 1 || ctr.CreatedAt == 0 || ctr.StartedAt < ctr.CreatedAt {
			t.Fatalf("%v, listed %v", ctr, of)
		}
		id, digest := "sha256:"+strings.Repeat("a", 64), "localhost/test@sha256:"+strings.Repeat("b", 64)
		want := &runtimeapi.ContainerStatus{Id: c, Metadata: req.Metadata, State: runtimeapi.ContainerState_CONTAINER_RUNNING, CreatedAt: ctr.CreatedAt, StartedAt: ctr.StartedAt,
			Image: image, ImageRef: digest, ImageId: id, Labels: strange, Annotations: strange, StopSignal: runtimeapi.Signal_SIGNAL_SIGINT}
		same(t, ctr, "", want, "resources", "user")
		same(t, event.ContainersStatuses[0], "in an event", want, "resources", "user")
		same(t, of[0], "", &runtimeapi.Container{Id: c, PodSandboxId: pod, Metadata: req.Metadata, Image: image, ImageRef: digest, ImageId: id,
			State: runtimeapi.ContainerState_CONTAINER_RUNNING, CreatedAt: ctr.CreatedAt, Labels: strange, Annotations: strange})
		same(t, n.stats(c).Attributes, "", &runtimeapi.ContainerAttributes{Id: c, Metadata: req.Metadata, Labels: strange, Annotations: strange})
		n.restart()
	}
	if err := n.m.StopContainer(bg, c, 60); err != nil {
		t.Fatal(err)
	}
	if st := n.status(c); st.ExitCode != 128+2 {
		t.Errorf("SIGINT was asked for: %v", st)
	}
}

// same compares messages but for fields that other tests look at.
func same(t *testing.T, got proto.Message, where string, want proto.Message, but ...protoreflect.Name) {
	t.Helper()
	got = proto.Clone(got)
	for _, f := range but {
		got.ProtoReflect().Clear(got.ProtoReflect().Descriptor().Fields().ByName(f))
	}
	if !proto.Equal(got, want) {
		t.Errorf("%T %s:\ngot  %v\nwant %v", got, where, got, want)
	}
}

// TestListFilters: each field of a filter leaves out what does not fit, and all have to fit.
func TestListFilters(t *testing.T) {
	n := newNode(t, newFakes())
	a, b := n.run(podRequest("a")), n.run(podRequest("b"))
	one, two := n.create(a, containerRequest("one", "sleep")), n.create(b, containerRequest("two", "sleep"))
	n.start(one)
	three := n.create(b, containerRequest("three", "sleep"))
	if err := n.m.StopPodSandbox(bg, b); err != nil {
		t.Fatal(err)
	}
	type pf = runtimeapi.PodSandboxFilter
	podState := func(s runtimeapi.PodSandboxState) *runtimeapi.PodSandboxStateValue {
		return &runtimeapi.PodSandboxStateValue{State: s}
	}
	ready, not := podState(runtimeapi.PodSandboxState_SANDBOX_READY), podState(runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
	for name, q := range map[string]struct {
		f    *pf
		want []string
	}{
		"none": {nil, []string{b, a}}, "empty": {&pf{}, []string{b, a}}, "id": {&pf{Id: a}, []string{a}}, "part of an id": {&pf{Id: b[:12]}, []string{b}},
		"ready": {&pf{State: ready}, []string{a}}, "not ready": {&pf{State: not}, []string{b}}, "no state": {&pf{State: podState(7)}, nil},
		"label": {&pf{LabelSelector: map[string]string{"app": "b"}}, []string{b}}, "value": {&pf{LabelSelector: map[string]string{"app": "c"}}, nil},
		"all": {&pf{Id: a, State: ready, LabelSelector: map[string]string{"app": "a"}}, []string{a}}, "id and state": {&pf{Id: a, State: not}, nil},
		"labels": {&pf{LabelSelector: map[string]string{"app": "a", "more": ""}}, nil}, "unknown": {&pf{Id: "zz"}, nil},
	} {
		var got []string
		for _, p := range n.m.ListPodSandbox(q.f) {
			got = append(got, p.Id)
		}
		if !slices.Equal(got, q.want) {
			t.Errorf("pods, %s: %q, want %q", name, got, q.want)
		}
	}
	type cf = runtimeapi.ContainerFilter
	state := func(s runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
		return &runtimeapi.ContainerStateValue{State: s}
	}
	running, exited := state(runtimeapi.ContainerState_CONTAINER_RUNNING), state(runtimeapi.ContainerState_CONTAINER_EXITED)
	for name, q := range map[string]struct {
		f    *cf
		want []string
	}{
		"none": {nil, []string{three, two, one}}, "empty": {&cf{}, []string{three, two, one}}, "id": {&cf{Id: two}, []string{two}}, "part of an id": {&cf{Id: one[:12]}, []string{one}},
		"running": {&cf{State: running}, []string{one}}, "exited": {&cf{State: exited}, []string{three, two}}, "no state": {&cf{State: state(7)}, nil},
		"pod": {&cf{PodSandboxId: b}, []string{three, two}}, "label": {&cf{LabelSelector: map[string]string{"c": "three"}}, []string{three}},
		"all":           {&cf{Id: two, PodSandboxId: b, State: exited, LabelSelector: map[string]string{"c": "two"}}, []string{two}},
		"pod and state": {&cf{PodSandboxId: a, State: exited}, nil}, "another pod's": {&cf{Id: one, PodSandboxId: b}, nil},
	} {
		var got []string
		for _, c := range n.m.ListContainers(q.f) {
			got = append(got, c.Id)
		}
		if !slices.Equal(got, q.want) {
			t.Errorf("containers, %s: %q, want %q", name, got, q.want)
		}
	}
}

// TestPortsReachTheNetwork: what the plugins are told of a pod and its ports.
func TestPortsReachTheNetwork(t *testing.T) {
	n := newNode(t, newFakes())
	cfg := podRequest("web")
	cfg.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080}, {ContainerPort: 81},
		{Protocol: runtimeapi.Protocol_UDP, ContainerPort: 53, HostPort: 5353, HostIp: "127.0.0.1"}, {Protocol: runtimeapi.Protocol_SCTP, ContainerPort: 9, HostPort: 8080, HostIp: "::1"}}
	pod := n.run(cfg)
	want := []cni.PortMapping{{Protocol: "tcp", HostPort: 8080, ContainerPort: 80}, {Protocol: "udp", HostIP: "127.0.0.1", HostPort: 5353, ContainerPort: 53},
		{Protocol: "sctp", HostIP: "::1", HostPort: 8080, ContainerPort: 9}}
	if p := n.net.last; p.ID != pod || p.Name != "web" || p.Namespace != "default" || p.UID != "uid-web" || !slices.Equal(p.PortMappings, want) {
		t.Errorf("%+v", p)
	}
	host := podRequest("host")
	host.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 80}}
	host.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	if n.run(host); n.net.adds != 1 {
		t.Error("a pod in the host's network has ports of its own")
	}
}

// TestBandwidthReachesTheNetwork: what the plugins are told of a pod's annotations. Nonsense makes no pod, and does not end one that an
// earlier version made of it.
func TestBandwidthReachesTheNetwork(t *testing.T) {
	n := newNode(t, newFakes())
	for name, c := range map[string]struct {
		ingress, egress string
		want            *cni.Bandwidth
	}{
		"none":  {"", "", nil},
		"both":  {"1M", "1G", &cni.Bandwidth{IngressRate: 1e6, IngressBurst: 256e6, EgressRate: 1e9, EgressBurst: math.MaxUint32}},
		"one":   {"", "1k", &cni.Bandwidth{EgressRate: 1e3, EgressBurst: 256e3}},
		"other": {"16777216", "", &cni.Bandwidth{IngressRate: 1 << 24, IngressBurst: math.MaxUint32}},
	} {
		cfg := podRequest(name)
		cfg.Annotations = map[string]string{}
		for key, value := range map[string]string{spec.IngressBandwidth: c.ingress, spec.EgressBandwidth: c.egress} {
			if value != "" {
				cfg.Annotations[key] = value
			}
		}
		n.run(cfg)
		if got := n.net.last.Bandwidth; (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
	adds := n.net.adds
	cfg := podRequest("nonsense")
	cfg.Annotations = map[string]string{spec.EgressBandwidth: "fast"}
	if _, err := n.m.RunPodSandbox(bg, cfg, ""); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), spec.EgressBandwidth) || n.net.adds != adds {
		t.Errorf("nonsense: %v, %d pods connected", err, n.net.adds-adds)
	}
	cfg.Annotations[spec.EgressBandwidth] = "777M"
	pod := n.run(cfg)
	if err := n.m.Close(); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(n.m.podDir(pod), "pod.json")
	text, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	older := bytes.ReplaceAll(text, []byte("777M"), []byte("fast"))
	if err := os.WriteFile(record, older, 0o600); err != nil || bytes.Equal(text, older) {
		t.Fatal(err, "or nothing to replace")
	}
	n.open()
	st, _, err := n.m.PodSandboxStatus(pod)
	if err != nil || st.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Annotations[spec.EgressBandwidth] != "fast" {
		t.Errorf("a pod of an earlier version: %v, %v", st, err)
	}
}

// TestSandboxConfigOfAnother: a container cannot be made with another pod's config; the rest of its own is for reference.
func TestSandboxConfigOfAnother(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	for name, edit := range map[string]func(*runtimeapi.PodSandboxMetadata){
		"name": func(m *runtimeapi.PodSandboxMetadata) { m.Name = "db" }, "namespace": func(m *runtimeapi.PodSandboxMetadata) { m.Namespace = "x" },
		"uid": func(m *runtimeapi.PodSandboxMetadata) { m.Uid = "x" }, "attempt": func(m *runtimeapi.PodSandboxMetadata) { m.Attempt = 1 },
	} {
		cfg := podRequest("web")
		edit(cfg.Metadata)
		if _, err := n.m.CreateContainer(bg, pod, containerRequest("c", "sleep"), cfg); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "sandbox_config.metadata."+name+" ") {
			t.Errorf("another %s: %v", name, err)
		}
	}
	cfg := podRequest("web")
	cfg.Hostname, cfg.LogDirectory = "other", "/nowhere"
	req := containerRequest("c", "sleep")
	req.LogPath = "c.log"
	id, err := n.m.CreateContainer(bg, pod, req, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if st := n.status(id); st.LogPath != "" {
		t.Errorf("the log of a pod without a log directory is %s", st.LogPath)
	}
}

// TestEveryFigureHasItsPlace gives every figure a value of its own and looks for it in the message.
func TestEveryFigureHasItsPlace(t *testing.T) {
	u := &cgroupUse{nanoCores: cgroup.Number{Value: 5, Known: true}}
	next := uint64(100)
	for _, n := range []*cgroup.Number{&u.CPUUsage, &u.MemoryUsage, &u.MemoryLimit, &u.InactiveFile, &u.Anonymous, &u.SwapUsage, &u.SwapLimit, &u.PageFaults, &u.MajorPageFaults} {
		next *= 2
		*n = cgroup.Number{Value: next, Known: true}
	}
	for i, p := range []*cgroup.Pressure{&u.CPU, &u.Memory, &u.IO} {
		at := float64(10 * (i + 1))
		*p = cgroup.Pressure{Known: true, Some: cgroup.PressureLine{Total: uint64(at), Avg10: at + 1, Avg60: at + 2, Avg300: at + 3}, Full: cgroup.PressureLine{Total: uint64(at + 4), Avg10: at + 5, Avg60: at + 6, Avg300: at + 7}}
	}
	v := func(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
	psi := func(at float64) *runtimeapi.PsiStats {
		return &runtimeapi.PsiStats{Some: &runtimeapi.PsiData{Total: uint64(at), Avg10: at + 1, Avg60: at + 2, Avg300: at + 3},
			Full: &runtimeapi.PsiData{Total: uint64(at + 4), Avg10: at + 5, Avg60: at + 6, Avg300: at + 7}}
	}
	same(t, u.cpu(9), "", &runtimeapi.CpuUsage{Timestamp: 9, UsageCoreNanoSeconds: v(200), UsageNanoCores: v(5), Psi: psi(10)})
	// 400 are used, 1600 of them are files that can go: nothing is left of that. The limit of 800 is all available.
	same(t, u.memory(9), "", &runtimeapi.MemoryUsage{Timestamp: 9, UsageBytes: v(400), WorkingSetBytes: v(0), AvailableBytes: v(800), RssBytes: v(3200),
		PageFaults: v(25600), MajorPageFaults: v(51200), Psi: psi(20)})
	u.InactiveFile.Value = 100
	same(t, u.memory(9), "", &runtimeapi.MemoryUsage{Timestamp: 9, UsageBytes: v(400), WorkingSetBytes: v(300), AvailableBytes: v(500), RssBytes: v(3200),
		PageFaults: v(25600), MajorPageFaults: v(51200), Psi: psi(20)})
	same(t, u.io(9), "", &runtimeapi.IoUsage{Timestamp: 9, Psi: psi(30)})
	same(t, u.swap(9), "", &runtimeapi.SwapUsage{Timestamp: 9, SwapUsageBytes: v(6400), SwapAvailableBytes: v(6400)})
}
