package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// cast are the objects that requests are about. What a request used up is made anew for the next.
type cast struct {
	*pod
	seccomp string // a Localhost profile
	image   string // one that may be removed
	runner  string // id of a container that runs
	waiter  string // id of one that was not started
	makes   int    // containers made so far
	mapped  *pod   // one with a user namespace
}

func newCast(s *scene) *cast {
	s.Helper()
	dir := filepath.Join(s.Scratch, "matrix")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { os.RemoveAll(dir) })
	c := &cast{pod: s.runPod("cast"), seccomp: filepath.Join(dir, "seccomp.json"), image: stage.Host + "/test/matrix:1"}
	s.describe("gadget", `{"env": ["GADGET=1"]}`)
	if err := os.WriteFile(c.seccomp, []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`), 0o644); err != nil {
		s.Fatal(err)
	}
	return c
}

// running returns the id of a container that runs, and that ends when it is asked to: a first process that is asked before it has a
// handler never hears of it, and a stop may wait for that as long as it was told to.
func (c *cast) running() string {
	c.Helper()
	if c.runner != "" && c.is(c.runner, runtimeapi.ContainerState_CONTAINER_RUNNING) {
		return c.runner
	}
	c.makes++
	c.runner = c.run(fmt.Sprintf("run%d", c.makes), `trap "exit 0" TERM; : > /ready; while :; do sleep 1000 & wait; done`)
	c.exec(c.runner, "until test -e /ready; do sleep 0.01; done")
	return c.runner
}

// waiting returns the id of a container that was created.
func (c *cast) waiting() string {
	c.Helper()
	if c.waiter == "" || !c.is(c.waiter, runtimeapi.ContainerState_CONTAINER_CREATED) {
		c.makes++
		c.waiter = c.create(stage.ContainerConfig(fmt.Sprintf("wait%d", c.makes), busybox, "sleep", "1000"))
	}
	return c.waiter
}

func (c *cast) is(id string, state runtimeapi.ContainerState) bool {
	st, err := c.cri.ContainerStatus(c.ctx, id, false)
	return err == nil && st.Status.State == state
}

// spare returns the id of a pod that may be removed.
func (c *cast) spare() string {
	c.Helper()
	c.makes++
	return c.runPod(fmt.Sprintf("spare%d", c.makes)).id
}

// pulled returns the name of an image that is there and in no use.
func (c *cast) pulled() string {
	c.Helper()
	if st, err := c.cri.Images.ImageStatus(c.ctx, &runtimeapi.ImageSpec{Image: c.image}, false); err == nil && st.Image != nil {
		return c.image
	}
	_, img, err := c.SeedBusybox(c.ctx, "test/matrix", "1")
	if err == nil {
		c.before.AllowPulled(len(img.Blobs) - 1)
		_, err = c.cri.Pull(c.ctx, c.image)
	}
	if err != nil {
		c.Fatal(err)
	}
	return c.image
}

// valid is a request that the daemon carries out.
type valid struct {
	make  func(*cast) proto.Message
	under []string // only what is at or below these fields is changed: the rest is another valid request's
}

// changes reports whether a field is to be changed in this request.
func (v valid) changes(field string) bool {
	return v.under == nil || slices.ContainsFunc(v.under, func(f string) bool { return strings.HasPrefix(field, f) })
}

// validRequests has, for each RPC whose request has fields, one or more that set nearly all of them.
var validRequests = map[string][]valid{
	"Version":             {{make: func(*cast) proto.Message { return &runtimeapi.VersionRequest{Version: "v1"} }}},
	"Status":              {{make: func(*cast) proto.Message { return &runtimeapi.StatusRequest{} }}},
	"UpdateRuntimeConfig": {{make: func(*cast) proto.Message { return podCIDR("10.86.0.0/24") }}},
	"RunPodSandbox": {{make: func(c *cast) proto.Message { return &runtimeapi.RunPodSandboxRequest{Config: c.validPod()} }},
		{under: []string{"config.linux.security_context.namespace_options"}, make: func(c *cast) proto.Message { return &runtimeapi.RunPodSandboxRequest{Config: c.validPod(mapped)} }}},
	"StopPodSandbox":     {{make: func(c *cast) proto.Message { return &runtimeapi.StopPodSandboxRequest{PodSandboxId: c.spareOnce()} }}},
	"RemovePodSandbox":   {{make: func(c *cast) proto.Message { return &runtimeapi.RemovePodSandboxRequest{PodSandboxId: c.spareOnce()} }}},
	"PodSandboxStatus":   {{make: func(c *cast) proto.Message { return &runtimeapi.PodSandboxStatusRequest{PodSandboxId: c.id} }}},
	"ListPodSandbox":     {{make: func(c *cast) proto.Message { return &runtimeapi.ListPodSandboxRequest{Filter: c.podFilter()} }}},
	"StreamPodSandboxes": {{make: func(c *cast) proto.Message { return &runtimeapi.StreamPodSandboxesRequest{Filter: c.podFilter()} }}},
	"CreateContainer": {{make: func(c *cast) proto.Message { return c.createRequest() }},
		{under: []string{"config.mounts"}, make: func(c *cast) proto.Message { return c.createRequest(c.withImageVolume) }},
		{under: []string{"config.mounts", "config.linux.security_context.namespace_options", "sandbox_config.linux.security_context.namespace_options"},
			make: func(c *cast) proto.Message { return c.mappedRequest() }}},
	"StartContainer": {{make: func(c *cast) proto.Message { return &runtimeapi.StartContainerRequest{ContainerId: c.waiting()} }}},
	"StopContainer": {{make: func(c *cast) proto.Message {
		return &runtimeapi.StopContainerRequest{ContainerId: c.running(), Timeout: 10}
	}}},
	"RemoveContainer":  {{make: func(c *cast) proto.Message { return &runtimeapi.RemoveContainerRequest{ContainerId: c.waiting()} }}},
	"ContainerStatus":  {{make: func(c *cast) proto.Message { return &runtimeapi.ContainerStatusRequest{ContainerId: c.running()} }}},
	"ListContainers":   {{make: func(c *cast) proto.Message { return &runtimeapi.ListContainersRequest{Filter: c.filter()} }}},
	"StreamContainers": {{make: func(c *cast) proto.Message { return &runtimeapi.StreamContainersRequest{Filter: c.filter()} }}},
	"UpdateContainerResources": {{make: func(c *cast) proto.Message {
		return &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.running(), Linux: someResources(), Annotations: map[string]string{"a": "b"}}
	}}},
	"UpdatePodSandboxResources": {{make: func(c *cast) proto.Message {
		return &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: c.id, Overhead: someResources(), Resources: someResources()}
	}}},
	"ReopenContainerLog": {{make: func(c *cast) proto.Message { return &runtimeapi.ReopenContainerLogRequest{ContainerId: c.running()} }}},
	"ExecSync": {{make: func(c *cast) proto.Message {
		return &runtimeapi.ExecSyncRequest{ContainerId: c.running(), Cmd: []string{"true"}, Timeout: 10}
	}}},
	"Exec": {{make: func(c *cast) proto.Message {
		return &runtimeapi.ExecRequest{ContainerId: c.running(), Cmd: []string{"true"}, Stdin: true, Stdout: true}
	}}},
	"Attach": {{make: func(c *cast) proto.Message {
		return &runtimeapi.AttachRequest{ContainerId: c.running(), Stdin: true, Stdout: true}
	}}},
	"PortForward": {{make: func(c *cast) proto.Message {
		return &runtimeapi.PortForwardRequest{PodSandboxId: c.id, Port: []int32{80}}
	}}},
	"ContainerStats":       {{make: func(c *cast) proto.Message { return &runtimeapi.ContainerStatsRequest{ContainerId: c.running()} }}},
	"ListContainerStats":   {{make: func(c *cast) proto.Message { return &runtimeapi.ListContainerStatsRequest{Filter: c.statsFilter()} }}},
	"StreamContainerStats": {{make: func(c *cast) proto.Message { return &runtimeapi.StreamContainerStatsRequest{Filter: c.statsFilter()} }}},
	"PodSandboxStats":      {{make: func(c *cast) proto.Message { return &runtimeapi.PodSandboxStatsRequest{PodSandboxId: c.id} }}},
	"ListPodSandboxStats":  {{make: func(c *cast) proto.Message { return &runtimeapi.ListPodSandboxStatsRequest{Filter: c.podStatsFilter()} }}},
	"StreamPodSandboxStats": {{make: func(c *cast) proto.Message {
		return &runtimeapi.StreamPodSandboxStatsRequest{Filter: c.podStatsFilter()}
	}}},
	"CheckpointContainer": {{make: func(c *cast) proto.Message {
		return &runtimeapi.CheckpointContainerRequest{ContainerId: c.running(), Location: filepath.Join(c.Scratch, "matrix", "checkpoint.tar"), Timeout: 10}
	}}},
	"CheckpointPod": {{make: func(c *cast) proto.Message {
		return &runtimeapi.CheckpointPodRequest{PodSandboxId: c.id, OutputPath: filepath.Join(c.Scratch, "matrix"), ContainerIds: []string{c.running()}}
	}}},
	"RestorePod": {{make: func(c *cast) proto.Message {
		return &runtimeapi.RestorePodRequest{CheckpointPath: filepath.Join(c.Scratch, "matrix"), Config: c.validPod(), ContainerConfigs: []*runtimeapi.ContainerConfig{c.validContainer()}}
	}}, {under: []string{"config.linux.security_context", "container_configs.mounts", "container_configs.linux.security_context"}, make: func(c *cast) proto.Message {
		q := c.validContainer(c.withImageVolume, inMapped)
		return &runtimeapi.RestorePodRequest{CheckpointPath: filepath.Join(c.Scratch, "matrix"), Config: c.validPod(mapped), ContainerConfigs: []*runtimeapi.ContainerConfig{q}}
	}}},
	"ListImages":   {{make: func(*cast) proto.Message { return &runtimeapi.ListImagesRequest{Filter: imageFilter()} }}},
	"StreamImages": {{make: func(*cast) proto.Message { return &runtimeapi.StreamImagesRequest{Filter: imageFilter()} }}},
	"ImageStatus": {{make: func(*cast) proto.Message {
		return &runtimeapi.ImageStatusRequest{Image: imageFilter().Image}
	}}},
	"PullImage": {{make: func(c *cast) proto.Message { return c.pullRequest() }},
		{under: []string{"sandbox_config.linux.security_context.namespace_options"}, make: func(c *cast) proto.Message { return c.pullRequest(mapped) }}},
	"RemoveImage": {{make: func(c *cast) proto.Message {
		return &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: c.pulled(), Annotations: map[string]string{"a": "b"}}}
	}}},
}

func (c *cast) pullRequest(change ...func(*runtimeapi.PodSandboxConfig)) proto.Message {
	return &runtimeapi.PullImageRequest{Image: imageFilter().Image, SandboxConfig: c.validPod(change...),
		Auth: &runtimeapi.AuthConfig{Username: "u", Password: "p w", ServerAddress: "https://" + stage.Host}}
}

func podCIDR(cidr string) *runtimeapi.UpdateRuntimeConfigRequest {
	return &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}}}
}

func imageFilter() *runtimeapi.ImageFilter {
	return &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: busybox, Annotations: map[string]string{"a": "b"}}}
}

// spareOnce is spare for verbs whose changed requests are all about another id.
func (c *cast) spareOnce() string {
	if c.waiter == "" {
		c.waiter = c.spare()
	}
	return c.waiter
}

func (c *cast) podFilter() *runtimeapi.PodSandboxFilter {
	return &runtimeapi.PodSandboxFilter{Id: c.id, State: &runtimeapi.PodSandboxStateValue{}, LabelSelector: c.cfg.Labels}
}

func (c *cast) filter() *runtimeapi.ContainerFilter {
	return &runtimeapi.ContainerFilter{Id: c.running(), PodSandboxId: c.id, State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}, LabelSelector: map[string]string{"a": "b"}}
}

func (c *cast) statsFilter() *runtimeapi.ContainerStatsFilter {
	return &runtimeapi.ContainerStatsFilter{Id: c.running(), PodSandboxId: c.id, LabelSelector: map[string]string{"a": "b"}}
}

func (c *cast) podStatsFilter() *runtimeapi.PodSandboxStatsFilter {
	return &runtimeapi.PodSandboxStatsFilter{Id: c.id, LabelSelector: c.cfg.Labels}
}

// someResources are limits that every node can be asked for.
func someResources() *runtimeapi.LinuxContainerResources {
	return &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 256 << 20, MemorySwapLimitInBytes: 256 << 20, OomScoreAdj: 999,
		CpusetCpus: "0", CpusetMems: "0", Unified: map[string]string{"memory.high": "max"},
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
	}
}

// validPod is a pod with nearly every field set that may be on Linux.
func (c *cast) validPod(change ...func(*runtimeapi.PodSandboxConfig)) *runtimeapi.PodSandboxConfig {
	p := proto.Clone(c.cfg).(*runtimeapi.PodSandboxConfig)
	p.Metadata = &runtimeapi.PodSandboxMetadata{Name: "matrix", Namespace: "vitrine", Uid: "matrix", Attempt: 1}
	p.Linux.CgroupParent = c.cfg.Linux.CgroupParent
	p.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"vitrine.test"}, Options: []string{"ndots:5"}}
	p.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_UDP, ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1"}, {ContainerPort: 81}}
	p.Annotations = map[string]string{"note": "any\nthing"}
	p.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "1024\t65535"}
	p.Linux.Overhead, p.Linux.Resources = someResources(), someResources()
	sc := p.Linux.SecurityContext
	sc.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
	sc.SelinuxOptions = &runtimeapi.SELinuxOption{}
	sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 1000}
	sc.SupplementalGroups = []int64{1}
	sc.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	for _, f := range change {
		f(p)
	}
	return p
}

// validContainer is a container with nearly every field set.
func (c *cast) validContainer(change ...func(*runtimeapi.ContainerConfig)) *runtimeapi.ContainerConfig {
	q := stage.ContainerConfig("matrix", busybox, "/bin/sh")
	q.Args, q.WorkingDir = []string{"-c", "exit 0"}, "/tmp"
	q.Image.UserSpecifiedImage, q.Image.Annotations = busybox, map[string]string{"a": "b"}
	q.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1\n2")}, {Key: "HOME", Value: []byte("/root")}}
	q.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: filepath.Join(c.Scratch, "matrix"), Readonly: true}}
	q.Devices = []*runtimeapi.Device{{ContainerPath: "/dev/nought", HostPath: "/dev/null", Permissions: "rwm"}}
	q.CDIDevices = []*runtimeapi.CDIDevice{{Name: "test.com/thing=gadget"}}
	q.Annotations = map[string]string{"a": "b"}
	q.Stdin, q.StdinOnce, q.Tty = true, true, true
	q.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1
	q.Linux.Resources = someResources()
	sc := q.Linux.SecurityContext
	sc.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"KILL"}}
	sc.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}
	sc.SelinuxOptions = &runtimeapi.SELinuxOption{}
	sc.RunAsUser, sc.RunAsUsername, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 7}, "7", &runtimeapi.Int64Value{Value: 7}
	sc.SupplementalGroups, sc.NoNewPrivs = []int64{7}, true
	sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: c.seccomp}
	sc.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	for _, f := range change {
		f(q)
	}
	return q
}

func (c *cast) createRequest(change ...func(*runtimeapi.ContainerConfig)) proto.Message {
	return &runtimeapi.CreateContainerRequest{PodSandboxId: c.id, Config: c.validContainer(change...), SandboxConfig: c.sandboxConfig(c.pod)}
}

// sandboxConfig is a full one with the metadata of a pod: of a pod that is there only that has to agree.
func (c *cast) sandboxConfig(p *pod, change ...func(*runtimeapi.PodSandboxConfig)) *runtimeapi.PodSandboxConfig {
	cfg := c.validPod(change...)
	cfg.Metadata = proto.Clone(p.cfg.Metadata).(*runtimeapi.PodSandboxMetadata)
	return cfg
}

// mappedRequest is for a container in a pod with a user namespace.
func (c *cast) mappedRequest() proto.Message {
	c.Helper()
	if c.mapped == nil {
		c.mapped = c.runPod("mapped", mapped)
	}
	dir := filepath.Join(c.mappable(), "matrix-mapped")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { os.RemoveAll(dir) })
	q := c.validContainer(func(q *runtimeapi.ContainerConfig) { q.Mounts[0].HostPath = dir }, inMapped)
	return &runtimeapi.CreateContainerRequest{PodSandboxId: c.mapped.id, Config: q, SandboxConfig: c.sandboxConfig(c.mapped, mapped)}
}

// withImageVolume mounts an image in the place of the directory.
func (c *cast) withImageVolume(q *runtimeapi.ContainerConfig) {
	c.Helper()
	st, err := c.cri.Images.ImageStatus(c.ctx, &runtimeapi.ImageSpec{Image: busybox}, false)
	if err != nil {
		c.Fatal(err)
	}
	q.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", Readonly: true, Image: &runtimeapi.ImageSpec{Image: busybox, ImageRef: st.Image.GetId()}, ImageSubPath: "etc"}}
}

// undos take back what a request has made. A container is started before, since much of what one can ask for shows only then.
var undos = map[string]func(x *mutator, q, reply proto.Message) error{
	"RunPodSandbox": func(x *mutator, _, reply proto.Message) error {
		id := reply.(*runtimeapi.RunPodSandboxResponse).PodSandboxId
		if err := x.cri.StopPodSandbox(x.ctx, id); err != nil {
			x.Errorf("stop pod: %v", err)
		}
		if err := x.cri.RemovePodSandbox(x.ctx, id); err != nil {
			x.Errorf("remove pod: %v", err)
		}
		return nil
	},
	"CreateContainer": func(x *mutator, _, reply proto.Message) error {
		id := reply.(*runtimeapi.CreateContainerResponse).ContainerId
		cli := runtimeapi.NewRuntimeServiceClient(x.conn)
		_, err := cli.StartContainer(x.ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		if rerr := x.cri.RemoveContainer(context.WithoutCancel(x.ctx), id); rerr != nil {
			x.Errorf("remove container: %v", rerr)
		}
		return err
	},
	"UpdateContainerResources": func(x *mutator, _, _ proto.Message) error {
		return x.cri.UpdateContainerResources(x.ctx, x.cast.running(), &runtimeapi.ContainerResources{Linux: someResources()})
	},
	"UpdateRuntimeConfig": func(x *mutator, _, _ proto.Message) error {
		return x.cri.UpdateRuntimeConfig(x.ctx, &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{}})
	},
}
