package server

import (
	"context"
	"math"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// createRow edits a valid CreateContainerRequest.
type createRow struct {
	id    string
	field string // "" where the request must be accepted
	edit  func(*runtimeapi.CreateContainerRequest)
	code  codes.Code // InvalidArgument where it is not set
}

func runCreateRows(t *testing.T, rows []createRow) {
	t.Helper()
	c, f := serve(t, nil)
	for _, r := range rows {
		t.Run(r.id, func(t *testing.T) {
			_, err := c.CreateContainer(context.Background(), with(validCreate(), r.edit))
			calls := f.took()
			if r.field == "" {
				if err != nil || len(calls) != 1 {
					t.Fatalf("legal case: %v, calls %v", err, calls)
				}
				return
			}
			want := r.code
			if want == codes.OK {
				want = codes.InvalidArgument
			}
			wantError(t, err, want, r.field)
			if len(calls) != 0 {
				t.Errorf("reached the manager: %v", calls)
			}
		})
	}
}

// conf edits the container config of a request.
func conf(edit func(*runtimeapi.ContainerConfig)) func(*runtimeapi.CreateContainerRequest) {
	return func(r *runtimeapi.CreateContainerRequest) { edit(r.Config) }
}

type cc = runtimeapi.ContainerConfig

func TestCreateRequest(t *testing.T) {
	image := func(v string) func(*runtimeapi.CreateContainerRequest) {
		return conf(func(c *cc) { c.Image.Image = v })
	}
	rows := []createRow{
		{id: "valid", edit: func(*runtimeapi.CreateContainerRequest) {}},
		{id: "B-41 config", field: "config: must", edit: func(r *runtimeapi.CreateContainerRequest) { r.Config = nil }},
		{id: "B-41 metadata", field: "config.metadata", edit: conf(func(c *cc) { c.Metadata = nil })},
		{id: "B-41 image", field: "config.image.image", edit: conf(func(c *cc) { c.Image = nil })},
		{id: "B-42 name", field: "config.metadata.name", edit: conf(func(c *cc) { c.Metadata.Name = "" })},
		{id: "B-42 name with slash", field: "config.metadata.name", edit: conf(func(c *cc) { c.Metadata.Name = "../x" })},
		{id: "B-43 no sandbox id", field: "pod_sandbox_id", edit: func(r *runtimeapi.CreateContainerRequest) { r.PodSandboxId = "" }},
		{id: "B-44 no sandbox config", field: "sandbox_config", edit: func(r *runtimeapi.CreateContainerRequest) { r.SandboxConfig = nil }},
		{id: "B-44 bad sandbox config", field: "sandbox_config.hostname", edit: func(r *runtimeapi.CreateContainerRequest) { r.SandboxConfig.Hostname = "-" }},
		{id: "B-47 empty", field: "config.image.image", edit: image("")},
		{id: "B-47 space", field: "config.image.image", edit: image("a b")},
		{id: "B-47 10 KiB", field: "config.image.image", edit: image(strings.Repeat("a", 10<<10))},
		{id: "B-47 parent", field: "config.image.image", edit: image("reg/../x")},
		{id: "B-47 short digest", field: "config.image.image", edit: image("x@sha256:zz")},
		{id: "B-47 short id", field: "config.image.image", edit: image("sha256:short")},
		{id: "B-47 path", field: "config.image.image", edit: image("/etc/x.tar")},
		{id: "B-47 plain id", edit: image(strings.Repeat("c", 64))},
		{id: "image handler", field: "config.image.runtime_handler", edit: conf(func(c *cc) { c.Image.RuntimeHandler = "x" })},
		{id: "B-48 the image's command", edit: conf(func(c *cc) { c.Command, c.Args = nil, nil })},
		{id: "B-49 empty command", field: "config.command[0]", edit: conf(func(c *cc) { c.Command[0] = "" })},
		{id: "B-49 NUL", field: "config.command[0]", edit: conf(func(c *cc) { c.Command[0] = "a\x00" })},
		{id: "B-50 long argument", edit: conf(func(c *cc) { c.Args = []string{strings.Repeat("a", 128<<10+1)} })},
		{id: "B-67 CDI", edit: conf(func(c *cc) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.com/gpu=0"}} })},
		{id: "B-67 CDI annotation", field: "config.annotations[cdi.k8s.io/a]", edit: conf(func(c *cc) { c.Annotations = map[string]string{"cdi.k8s.io/a": "vendor.com/gpu=0,gpu1"} })},
		{id: "B-67 CDI name", field: "config.CDI_devices[0].name", edit: conf(func(c *cc) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "gpu0"}} })},
		{id: "B-67 CDI empty", field: "config.CDI_devices[0].name", edit: conf(func(c *cc) { c.CDIDevices = []*runtimeapi.CDIDevice{{}} })},
		{id: "B-86 stop signal", field: "config.stop_signal", edit: conf(func(c *cc) { c.StopSignal = 9999 })},
	}
	runCreateRows(t, rows)
}

func TestCreateProcess(t *testing.T) {
	env := func(k, v string) func(*runtimeapi.CreateContainerRequest) {
		return conf(func(c *cc) { c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: k, Value: []byte(v)}) })
	}
	dir := func(v string) func(*runtimeapi.CreateContainerRequest) {
		return conf(func(c *cc) { c.WorkingDir = v })
	}
	log := func(v string) func(*runtimeapi.CreateContainerRequest) {
		return conf(func(c *cc) { c.LogPath = v })
	}
	rows := []createRow{
		{id: "B-51 no key", field: "config.envs[3].key", edit: env("", "x")},
		{id: "B-51 equals", field: "config.envs[3].key", edit: env("a=b", "x")},
		{id: "B-51 NUL in key", field: "config.envs[3].key", edit: env("a\x00b", "x")},
		{id: "B-51 NUL in value", field: "config.envs[3].value", edit: env("a", "x\x00y")},
		{id: "B-51 newline", edit: env("a", "x\ny")},
		{id: "B-51 10000", edit: conf(func(c *cc) {
			for range 10000 {
				c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: "k"})
			}
		})},
		{id: "B-51 not UTF-8 in value", edit: env("a", "\xff\xfe")},
		{id: "B-52 HOME", field: "config.envs[3].value", edit: env("HOME", "/x\nroot2::0:0::/:/bin/sh")},
		{id: "B-53 relative", field: "config.working_dir", edit: dir("../x")},
		{id: "B-53 newline", field: "config.working_dir", edit: dir("/a\nb")},
		{id: "B-53 NUL", field: "config.working_dir", edit: dir("/a\x00b")},
		{id: "B-53 5000 bytes", field: "config.working_dir", edit: dir("/" + strings.Repeat("a", 5000))},
		{id: "B-53 none", edit: dir("")},
		{id: "B-54 absolute", field: "config.log_path", edit: log("/etc/passwd")},
		{id: "B-54 parent", field: "config.log_path", edit: log("../x")},
		{id: "B-54 inner parent", field: "config.log_path", edit: log("a/../../b")},
		{id: "B-54 NUL", field: "config.log_path", edit: log("a\x00")},
		{id: "B-54 directory", field: "config.log_path", edit: log("a/")},
		{id: "B-54 dot", field: "config.log_path", edit: log(".")},
		{id: "B-54 no log", edit: log("")},
		{id: "B-56 stdin once alone", edit: conf(func(c *cc) { c.Stdin = false })},
	}
	runCreateRows(t, rows)
}

func TestCreateMounts(t *testing.T) {
	mount := func(edit func(*runtimeapi.Mount)) func(*runtimeapi.CreateContainerRequest) {
		return conf(func(c *cc) { edit(c.Mounts[0]) })
	}
	dst := func(v string) func(*runtimeapi.CreateContainerRequest) {
		return mount(func(m *runtimeapi.Mount) { m.ContainerPath = v })
	}
	src := func(v string) func(*runtimeapi.CreateContainerRequest) {
		return mount(func(m *runtimeapi.Mount) { m.HostPath = v })
	}
	img := func(edit func(*runtimeapi.Mount)) func(*runtimeapi.CreateContainerRequest) {
		return mount(func(m *runtimeapi.Mount) {
			m.HostPath, m.Image = "", &runtimeapi.ImageSpec{Image: imageID}
			edit(m)
		})
	}
	const at = "config.mounts[0]."
	rows := []createRow{
		{id: "B-57 empty", field: at + "container_path", edit: dst("")},
		{id: "B-57 relative", field: at + "container_path", edit: dst("data")},
		{id: "B-57 root", field: at + "container_path", edit: dst("/")},
		{id: "B-57 root by parent", field: at + "container_path", edit: dst("/..")},
		{id: "B-57 root by dot", field: at + "container_path", edit: dst("/.//")},
		{id: "B-57 /proc", field: at + "container_path", edit: dst("/proc")},
		{id: "B-57 /proc/self", field: at + "container_path", edit: dst("/proc/self")},
		{id: "B-57 /proc by detour", field: at + "container_path", edit: dst("/x/../proc/self")},
		{id: "B-57 //proc/sys", field: at + "container_path", edit: dst("//proc/sys")},
		{id: "B-57 twice", field: "config.mounts[1].container_path", edit: conf(func(c *cc) { c.Mounts[1].ContainerPath = "/data/" })},
		{id: "B-57 4097 bytes", field: at + "container_path", edit: dst("/" + strings.Repeat("a", 4096))},
		{id: "B-57 NUL", field: at + "container_path", edit: dst("/a\x00")},
		{id: "B-57 cgroup and null", edit: conf(func(c *cc) { c.Mounts[0].ContainerPath, c.Mounts[1].ContainerPath = "/sys/fs/cgroup", "/dev/null" })},
		{id: "B-58 no source", field: at + "host_path", edit: src("")},
		{id: "B-58 relative", field: at + "host_path", edit: src("a")},
		{id: "B-58 NUL", field: at + "host_path", edit: src("/a\x00")},
		{id: "B-59 both", field: at + "host_path", edit: mount(func(m *runtimeapi.Mount) { m.Image.Image = imageID })},
		{id: "B-60 propagation", field: at + "propagation", edit: mount(func(m *runtimeapi.Mount) { m.Propagation = 99 })},
		{id: "B-63 not readonly", field: at + "recursive_read_only", edit: mount(func(m *runtimeapi.Mount) { m.Readonly = false })},
		{id: "B-63 slave", field: at + "recursive_read_only", edit: mount(func(m *runtimeapi.Mount) { m.Propagation = 1 })},
		{id: "B-63 shared", field: at + "recursive_read_only", edit: mount(func(m *runtimeapi.Mount) { m.Propagation = 2 })},
		{id: "B-64 no userns", field: at + "uidMappings", edit: mount(func(m *runtimeapi.Mount) { m.GidMappings = []*runtimeapi.IDMapping{{Length: 1}} })},
		{id: "B-65 not readonly", field: "ImageVolumeMountFailed: " + at + "readonly", edit: img(func(m *runtimeapi.Mount) { m.Readonly = false })},
		{id: "B-65 parent", field: "ImageVolumeMountFailed: " + at + "image_sub_path", edit: img(func(m *runtimeapi.Mount) { m.ImageSubPath = "../x" })},
		{id: "B-65 absolute", field: at + "image_sub_path", edit: img(func(m *runtimeapi.Mount) { m.ImageSubPath = "/x" })},
		{id: "B-65 sub path without image", field: at + "image_sub_path", edit: mount(func(m *runtimeapi.Mount) { m.ImageSubPath = "x" })},
		{id: "B-65 not yet", field: "ImageVolumeMountFailed: " + at + "image", code: codes.Unimplemented, edit: img(func(*runtimeapi.Mount) {})},
		{id: "mount option", field: at + "mount_options[0]", edit: mount(func(m *runtimeapi.Mount) { m.MountOptions = []string{"suid"} })},
		{id: "mount options not yet", field: at + "mount_options", code: codes.Unimplemented, edit: mount(func(m *runtimeapi.Mount) { m.MountOptions = []string{"noexec"} })},
	}
	runCreateRows(t, rows)
}

func TestFeaturesOfMounts(t *testing.T) {
	c, _ := serve(t, func(cfg *Config) { cfg.Features = Features{SupplementalGroupsPolicy: true} })
	_, err := c.CreateContainer(context.Background(), validCreate())
	wantError(t, err, codes.FailedPrecondition, "RROUnsupported: config.mounts[0].recursive_read_only")

	c, _ = serve(t, func(cfg *Config) {
		cfg.Features.ImageVolumes, cfg.Features.MountOptions = true, true
	})
	_, err = c.CreateContainer(context.Background(), with(validCreate(), conf(func(c *cc) {
		m := c.Mounts[0]
		m.HostPath, m.Image, m.ImageSubPath = "", &runtimeapi.ImageSpec{Image: imageID}, "a/b"
		m.MountOptions = []string{"noexec", "nodev", "nosuid"}
	})))
	if err != nil {
		t.Errorf("with the features: %v", err)
	}
}

func TestCreateDevices(t *testing.T) {
	dev := func(host, container, perm string) func(*runtimeapi.CreateContainerRequest) {
		return conf(func(c *cc) {
			c.Devices = append(c.Devices, &runtimeapi.Device{HostPath: host, ContainerPath: container, Permissions: perm})
		})
	}
	const at = "config.devices[1]."
	runCreateRows(t, []createRow{
		{id: "B-66 legal", edit: dev("/dev/kvm", "/dev/kvm", "mr")},
		{id: "B-66 no host path", field: at + "host_path", edit: dev("", "/dev/x", "r")},
		{id: "B-66 relative host path", field: at + "host_path", edit: dev("dev/x", "/dev/x", "r")},
		{id: "B-66 relative", field: at + "container_path", edit: dev("/dev/x", "dev/x", "r")},
		{id: "B-66 twice", field: at + "container_path", edit: dev("/dev/x", "/dev/fuse", "r")},
		{id: "B-66 proc", field: at + "container_path", edit: dev("/dev/x", "/proc/x", "r")},
		{id: "B-66 no permissions", field: at + "permissions", edit: dev("/dev/x", "/dev/x", "")},
		{id: "B-66 rwx", field: at + "permissions", edit: dev("/dev/x", "/dev/x", "rwx")},
		{id: "B-66 rr", field: at + "permissions", edit: dev("/dev/x", "/dev/x", "rr")},
	})
}

func TestCreateResources(t *testing.T) {
	res := func(edit func(*runtimeapi.LinuxContainerResources)) func(*runtimeapi.CreateContainerRequest) {
		return conf(func(c *cc) { edit(c.Linux.Resources) })
	}
	type r = runtimeapi.LinuxContainerResources
	unified := func(k, v string) func(*runtimeapi.CreateContainerRequest) {
		return res(func(x *r) { x.Unified[k] = v })
	}
	cpus := func(v string) func(*runtimeapi.CreateContainerRequest) {
		return res(func(x *r) { x.CpusetCpus = v })
	}
	page := func(v string) func(*runtimeapi.CreateContainerRequest) {
		return res(func(x *r) { x.HugepageLimits = append(x.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: v}) })
	}
	const at = "config.linux.resources."
	rows := []createRow{
		{id: "no limits", edit: conf(func(c *cc) { c.Linux.Resources = nil })},
		{id: "B-68 period -1", field: at + "cpu_period", edit: res(func(x *r) { x.CpuPeriod = -1 })},
		{id: "B-68 period 1", field: at + "cpu_period", edit: res(func(x *r) { x.CpuPeriod = 1 })},
		{id: "B-68 period 10^12", field: at + "cpu_period", edit: res(func(x *r) { x.CpuPeriod = 1e12 })},
		{id: "B-68 quota 999", field: at + "cpu_quota", edit: res(func(x *r) { x.CpuQuota = 999 })},
		{id: "B-68 quota -2", field: at + "cpu_quota", edit: res(func(x *r) { x.CpuQuota = -2 })},
		{id: "B-68 quota without period", field: at + "cpu_quota", edit: res(func(x *r) { x.CpuPeriod = 0 })},
		{id: "B-68 no quota", edit: res(func(x *r) { x.CpuQuota = -1 })},
		{id: "B-68 odd quota", edit: res(func(x *r) { x.CpuQuota = 12345 })},
		{id: "B-68 shares -1", field: at + "cpu_shares", edit: res(func(x *r) { x.CpuShares = -1 })},
		{id: "B-68 shares are clamped", edit: res(func(x *r) { x.CpuShares = math.MaxInt64 })},
		{id: "B-69 memory 1", field: at + "memory_limit_in_bytes", edit: res(func(x *r) { x.MemoryLimitInBytes = 1 })},
		{id: "B-69 memory 4095", field: at + "memory_limit_in_bytes", edit: res(func(x *r) { x.MemoryLimitInBytes = 4095 })},
		{id: "B-69 unlimited", edit: res(func(x *r) { x.MemoryLimitInBytes, x.MemorySwapLimitInBytes = -1, -1 })},
		{id: "B-69 2^63-1", edit: res(func(x *r) { x.MemoryLimitInBytes, x.MemorySwapLimitInBytes = math.MaxInt64, 0 })},
		{id: "B-70 swap below memory", field: at + "memory_swap_limit_in_bytes", edit: res(func(x *r) { x.MemorySwapLimitInBytes = 5000 })},
		{id: "B-70 swap without memory", field: at + "memory_swap_limit_in_bytes", edit: res(func(x *r) { x.MemoryLimitInBytes = 0 })},
		{id: "B-71 x", field: at + "cpuset_cpus", edit: cpus("x")},
		{id: "B-71 open range", field: at + "cpuset_cpus", edit: cpus("0-")},
		{id: "B-71 backward", field: at + "cpuset_cpus", edit: cpus("5-1")},
		{id: "B-71 9999", field: at + "cpuset_cpus", edit: cpus("9999")},
		{id: "B-71 empty element", field: at + "cpuset_cpus", edit: cpus("0,,1")},
		{id: "B-71 newline", field: at + "cpuset_cpus", edit: cpus("0\n")},
		{id: "B-71 mems", field: at + "cpuset_mems", edit: res(func(x *r) { x.CpusetMems = "-1" })},
		{id: "B-72 -1001", field: at + "oom_score_adj", edit: res(func(x *r) { x.OomScoreAdj = -1001 })},
		{id: "B-72 1001", field: at + "oom_score_adj", edit: res(func(x *r) { x.OomScoreAdj = 1001 })},
		{id: "B-73 3XB", field: at + "hugepage_limits[2].page_size", edit: page("3XB")},
		{id: "B-73 space", field: at + "hugepage_limits[2].page_size", edit: page("2 MB")},
		{id: "B-73 twice", field: at + "hugepage_limits[2].page_size", edit: page("2MB")},
		{id: "B-74 parent", field: at + `unified["../memory.max"]`, edit: unified("../memory.max", "1")},
		{id: "B-74 slash", field: at + "unified", edit: unified("a/b", "1")},
		{id: "B-74 newline in key", field: at + "unified", edit: unified("memory.max\n", "1")},
		{id: "B-74 core file", field: at + "unified", edit: unified("cgroup.procs", "1")},
		{id: "B-74 unknown", field: at + "unified", edit: unified("nope.max", "1")},
		{id: "B-74 octal", field: at + `unified["pids.max"]`, edit: unified("pids.max", "0100")},
		{id: "B-74 plus", field: at + `unified["cpu.weight.nice"]`, edit: unified("cpu.weight.nice", "+5")},
		{id: "B-74 hexadecimal", field: at + `unified["cpu.max"]`, edit: unified("cpu.max", "50000 0x10000")},
		{id: "B-74 octal behind a key", field: at + `unified["rdma.max"]`, edit: unified("rdma.max", "mlx4_0 hca_handle=010")},
		{id: "B-74 octal and negative", field: at + `unified["cpu.weight.nice"]`, edit: unified("cpu.weight.nice", "-010")},
		{id: "B-74 newline in value", field: at + "unified", edit: unified("memory.max", "1\n2")},
	}
	runCreateRows(t, rows)
}

func TestCreateUsers(t *testing.T) {
	type sc = runtimeapi.LinuxContainerSecurityContext
	sec := func(edit func(*sc)) func(*runtimeapi.CreateContainerRequest) {
		return conf(func(c *cc) { edit(c.Linux.SecurityContext) })
	}
	user := func(v int64) func(*runtimeapi.CreateContainerRequest) {
		return sec(func(c *sc) { c.RunAsUser.Value, c.RunAsUsername = v, "" })
	}
	username := func(v string) func(*runtimeapi.CreateContainerRequest) {
		return sec(func(c *sc) { c.RunAsUser, c.RunAsUsername = nil, v })
	}
	const at = "config.linux.security_context."
	rows := []createRow{
		{id: "B-77 -1", field: at + "run_as_user.value", edit: user(-1)},
		{id: "B-77 2^32-1", field: at + "run_as_user.value", edit: user(math.MaxUint32)},
		{id: "B-77 2^32", field: at + "run_as_user.value", edit: user(1 << 32)},
		{id: "B-77 2^63-1", field: at + "run_as_user.value", edit: user(math.MaxInt64)},
		{id: "B-77 2^32-2", edit: user(math.MaxUint32 - 1)},
		{id: "B-78 group", field: at + "run_as_group.value", edit: sec(func(c *sc) { c.RunAsGroup.Value = 1 << 32 })},
		{id: "B-78 group without user", field: at + "run_as_group", edit: sec(func(c *sc) { c.RunAsUser, c.RunAsUsername = nil, "" })},
		{id: "B-78 group with name", edit: username("web")},
		{id: "B-78 supplemental", field: at + "supplemental_groups[0]", edit: sec(func(c *sc) { c.SupplementalGroups = []int64{-1} })},
		{id: "B-78 70000", field: at + "supplemental_groups", edit: sec(func(c *sc) { c.SupplementalGroups = make([]int64, 70000) })},
		{id: "B-79 disagree", field: at + "run_as_username", edit: sec(func(c *sc) { c.RunAsUsername = "8" })},
		{id: "B-79 name and number", edit: sec(func(c *sc) { c.RunAsUsername = "web" })},
		{id: "B-80 0:0", field: at + "run_as_username", edit: username("0:0")},
		{id: "B-80 newline", field: at + "run_as_username", edit: username("\n")},
		{id: "B-80 too high", field: at + "run_as_username", edit: username("4294967295")},
		{id: "B-80 overflow", field: at + "run_as_username", edit: username("99999999999999999999")},
		{id: "B-81 policy", field: at + "supplemental_groups_policy", edit: sec(func(c *sc) { c.SupplementalGroupsPolicy = 99 })},
	}
	runCreateRows(t, rows)

	c, _ := serve(t, func(cfg *Config) { cfg.Features = Features{RecursiveReadOnly: true} })
	_, err := c.CreateContainer(context.Background(), validCreate())
	wantError(t, err, codes.Unimplemented, at+"supplemental_groups_policy")
}

func TestCreateSecurity(t *testing.T) {
	type sc = runtimeapi.LinuxContainerSecurityContext
	sec := func(edit func(*sc)) func(*runtimeapi.CreateContainerRequest) {
		return conf(func(c *cc) { edit(c.Linux.SecurityContext) })
	}
	ns := func(edit func(*runtimeapi.NamespaceOption)) func(*runtimeapi.CreateContainerRequest) {
		return sec(func(c *sc) { edit(c.NamespaceOptions) })
	}
	caps := func(add, drop []string) func(*runtimeapi.CreateContainerRequest) {
		return sec(func(c *sc) { c.Capabilities = &runtimeapi.Capability{AddCapabilities: add, DropCapabilities: drop} })
	}
	const at = "config.linux.security_context."
	rows := []createRow{
		{id: "no linux", edit: conf(func(c *cc) { c.Linux = nil })},
		{id: "B-22 other userns", field: at + "namespace_options.userns_options", edit: ns(func(o *runtimeapi.NamespaceOption) { o.UsernsOptions = &runtimeapi.UserNamespace{} })},
		{id: "B-28 privileged", field: at + "privileged", edit: func(r *runtimeapi.CreateContainerRequest) {
			r.SandboxConfig.Linux.SecurityContext.Privileged = false
		}},
		{id: "B-75 unknown", field: at + "capabilities.add_capabilities[0]", edit: caps([]string{"NOPE"}, nil)},
		{id: "B-75 prefix twice", field: at + "capabilities.add_capabilities[1]", edit: caps([]string{"KILL", "CAP_CAP_KILL"}, nil)},
		{id: "B-75 empty", field: at + "capabilities.add_capabilities[0]", edit: caps([]string{""}, nil)},
		{id: "B-75 unknown drop", field: at + "capabilities.drop_capabilities[0]", edit: caps(nil, []string{"NOPE"})},
		{id: "B-75 ALL in any case", edit: caps([]string{"ALL", "all", "Cap_Net_Raw"}, []string{"All"})},
		{id: "B-82 no target", field: at + "namespace_options.target_id", edit: ns(func(o *runtimeapi.NamespaceOption) { o.TargetId = "" })},
		{id: "B-82 target without mode", field: at + "namespace_options.target_id", edit: ns(func(o *runtimeapi.NamespaceOption) { o.Pid = modePod })},
		{id: "B-82 network", field: at + "namespace_options.network", edit: ns(func(o *runtimeapi.NamespaceOption) { o.Network = modeTarget })},
		{id: "B-83 no ref", field: at + "seccomp.localhost_ref", edit: sec(func(c *sc) { c.Seccomp.LocalhostRef = "" })},
		{id: "B-83 relative", field: at + "seccomp.localhost_ref", edit: sec(func(c *sc) { c.Seccomp.LocalhostRef = "../x" })},
		{id: "B-84 no ref", field: at + "apparmor.localhost_ref", edit: sec(func(c *sc) { c.Apparmor.ProfileType = 2 })},
		{id: "B-84 99", field: at + "apparmor.profile_type", edit: sec(func(c *sc) { c.Apparmor.ProfileType = 99 })},
		{id: "B-84 word", field: at + "apparmor_profile", edit: sec(func(c *sc) { c.ApparmorProfile = "foo" })},           //nolint:staticcheck // deprecated, and still checked
		{id: "B-84 no name", field: at + "apparmor_profile", edit: sec(func(c *sc) { c.ApparmorProfile = "localhost/" })}, //nolint:staticcheck // deprecated, and still checked
		{id: "B-85 relative", field: at + "masked_paths[1]", edit: sec(func(c *sc) { c.MaskedPaths = append(c.MaskedPaths, "proc") })},
		{id: "B-85 root", field: at + "masked_paths[0]", edit: sec(func(c *sc) { c.MaskedPaths[0] = "/" })},
		{id: "B-85 /proc", field: at + "readonly_paths[0]", edit: sec(func(c *sc) { c.ReadonlyPaths[0] = "/proc/" })},
		{id: "B-85 parent", field: at + "readonly_paths[0]", edit: sec(func(c *sc) { c.ReadonlyPaths[0] = "/proc/../etc" })},
		{id: "B-85 NUL", field: at + "readonly_paths[0]", edit: sec(func(c *sc) { c.ReadonlyPaths[0] = "/a\x00" })},
		{id: "B-85 many", field: at + "masked_paths", edit: sec(func(c *sc) { c.MaskedPaths = make([]string, 10000) })},
	}
	runCreateRows(t, rows)
}
