package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// testHost is a node with a short list of everything.
var testHost = Host{
	Capabilities: []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN",
	},
	Devices: []HostDevice{
		{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, Mode: 0o666},
		{Path: "/dev/vda", Type: "b", Major: 253, Minor: 0, Mode: 0o660, GID: 6},
	},
	HugePageSizes: []string{"2MB"},
}

var testFiles = Files{
	ResolvConf: "/run/vitrine/pods/p/resolv.conf", Hostname: "/run/vitrine/pods/p/hostname",
	Hosts: "/run/vitrine/pods/p/hosts", Shm: "/run/vitrine/pods/p/shm",
}

// plain is the input of a container that asks for nothing but a command.
func plain() Input {
	return Input{
		ID: "c",
		Container: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
			Command:  []string{"sleep", "1000"},
			Linux:    &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}},
		},
		Pod:         &Pod{Hostname: "web-0", SharedPID: true},
		User:        User{Home: "/root", Groups: []uint32{0}},
		Files:       testFiles,
		Host:        testHost,
		CgroupsPath: "vitrine/p/vitrine-c",
	}
}

func TestBuildGolden(t *testing.T) {
	for name, edit := range map[string]func(*Input){
		"plain":               func(*Input) {},
		"no-security-context": func(in *Input) { in.Container.Linux = nil },
		"own-pid-tty": func(in *Input) {
			in.Pod.SharedPID = false
			in.Container.Tty = true
		},
		"host-everything": func(in *Input) {
			in.Pod = &Pod{HostNetwork: true, HostIPC: true, HostPID: true}
			in.Files.Shm = "/dev/shm"
		},
		"privileged": func(in *Input) {
			in.Pod.Privileged = true
			sc := in.Container.Linux.SecurityContext
			sc.Privileged = true
			sc.MaskedPaths = []string{"/proc/kcore"}
			sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		},
		"privileged-no-devices": func(in *Input) {
			in.Pod.Privileged, in.Pod.NoHostDevices = true, true
			in.Container.Linux.SecurityContext.Privileged = true
			in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "rw"}}
			in.Devices = testHost.Devices[:1]
			in.CDI = &cdi.ContainerEdits{DeviceNodes: []*cdi.DeviceNode{{Path: "/dev/disk"}}}
			in.CDINodes = testHost.Devices[1:]
		},
		"kubelet": kubeletLike,
		"readonly-image-defaults": func(in *Input) {
			in.Container.Command = nil
			in.Container.Linux.SecurityContext.ReadonlyRootfs = true
			in.Image = ocispec.ImageConfig{
				Entrypoint: []string{"/docker-entrypoint.sh"}, Cmd: []string{"nginx", "-g", "daemon off;"},
				Env: []string{"PATH=/opt/bin", "NGINX=1", "junk", "=x"}, WorkingDir: "srv",
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := plain()
			edit(&in)
			s, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".json", s)
		})
	}
}

// kubeletLike is what a kubelet sends for a pod with most fields in use.
func kubeletLike(in *Input) {
	c := in.Container
	in.Pod.SharedPID = false
	c.Args = []string{"--verbose"}
	c.WorkingDir = "/data/../data"
	c.Envs = []*runtimeapi.KeyValue{
		{Key: "A", Value: []byte("1")}, {Key: "PATH", Value: []byte("/bin")}, {Key: "A", Value: []byte("two\nlines")}}
	c.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/etc/hosts", HostPath: "/var/lib/kubelet/pods/u/etc-hosts"},
		{ContainerPath: "/data/deep/er", HostPath: "/srv/b", Readonly: true, RecursiveReadOnly: true},
		{ContainerPath: "/data", HostPath: "/srv/a", Readonly: true, MountOptions: []string{"noexec"}},
		{ContainerPath: "/csi", HostPath: "/var/lib/kubelet/csi", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		{ContainerPath: "/host", HostPath: "/", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	}
	c.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "rwm"}}
	in.Devices = testHost.Devices[:1]
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
		OomScoreAdj: 999, CpusetCpus: "0-1", Unified: map[string]string{"memory.high": "60000000"},
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}},
	}
	c.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		Capabilities: &runtimeapi.Capability{
			AddCapabilities: []string{"net_raw"}, DropCapabilities: []string{"all", "KILL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}},
		NoNewPrivs:    true,
		MaskedPaths:   []string{"/proc/kcore", "/proc/thermal"},
		ReadonlyPaths: []string{"/proc/sys"},
	}
	in.User = User{UID: 1000, GID: 1000, Groups: []uint32{1000, 50000}, Home: "/home/app"}
	in.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
}

func golden(t *testing.T, name string, v any) {
	t.Helper()
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("differs from %s (run with -update and read the diff):\n%s", path, got.Bytes())
	}
}

// refusal is a bad value, the field that the error has to name, and its kind.
type refusal struct {
	field string
	edit  func(*Input)
	kind  error
}

// tryRefusals builds plain inputs that are bad in one place.
func tryRefusals(t *testing.T, list []refusal) {
	t.Helper()
	for _, c := range list {
		in := plain()
		c.edit(&in)
		_, err := Build(in)
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != c.field || !errors.Is(err, c.kind) {
			t.Errorf("want a refusal of %s (%v), got %v", c.field, c.kind, err)
		}
	}
}

func sc(in *Input) *runtimeapi.LinuxContainerSecurityContext {
	return in.Container.Linux.SecurityContext
}

func TestBuildRefusesProcess(t *testing.T) {
	env := func(k, v string) func(*Input) {
		return func(in *Input) { in.Container.Envs = []*runtimeapi.KeyValue{{Key: k, Value: []byte(v)}} }
	}
	tryRefusals(t, []refusal{
		{"command", func(in *Input) { in.Container.Command = nil }, ErrInvalid},
		{"command", func(in *Input) { in.Container.Command = []string{""} }, ErrInvalid},
		{"command", func(in *Input) { in.Container.Args = []string{"a\x00b"} }, ErrInvalid},
		{"working_dir", func(in *Input) { in.Container.WorkingDir = "data" }, ErrInvalid},
		{"working_dir", func(in *Input) { in.Container.WorkingDir = "/a\nroot::0:0" }, ErrInvalid},
		{"envs[0].key", env("", "x"), ErrInvalid},
		{"envs[0].key", env("A=B", "x"), ErrInvalid},
		{"envs[0].value", env("A", "x\x00"), ErrInvalid},
		{"envs[0].value", env("HOME", "/x\nroot2::0:0::/:/bin/sh"), ErrInvalid},
	})
}

func TestBuildRefusesResources(t *testing.T) {
	res := func(f func(*runtimeapi.LinuxContainerResources)) func(*Input) {
		return func(in *Input) {
			in.Container.Linux.Resources = &runtimeapi.LinuxContainerResources{}
			f(in.Container.Linux.Resources)
		}
	}
	tryRefusals(t, []refusal{
		{"linux.resources.oom_score_adj", res(func(r *runtimeapi.LinuxContainerResources) { r.OomScoreAdj = -1001 }), ErrInvalid},
		{"linux.resources.cpu_period", res(func(r *runtimeapi.LinuxContainerResources) { r.CpuPeriod = 10 }), ErrInvalid},
		{"linux.resources.cpu_quota", res(func(r *runtimeapi.LinuxContainerResources) { r.CpuQuota = 999 }), ErrInvalid},
		{"linux.resources.cpu_shares", res(func(r *runtimeapi.LinuxContainerResources) { r.CpuShares = -1 }), ErrInvalid},
		{"linux.resources.cpuset_cpus", res(func(r *runtimeapi.LinuxContainerResources) { r.CpusetCpus = "0,,1" }), ErrInvalid},
		{"linux.resources.memory_limit_in_bytes", res(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes = 4095 }), ErrInvalid},
		{"linux.resources.memory_swap_limit_in_bytes", res(func(r *runtimeapi.LinuxContainerResources) { r.MemorySwapLimitInBytes = 1 << 20 }), ErrInvalid},
		{"linux.resources.unified", res(func(r *runtimeapi.LinuxContainerResources) { r.Unified = map[string]string{"cgroup.procs": "1"} }), ErrInvalid},
		{"linux.resources.unified", res(func(r *runtimeapi.LinuxContainerResources) { r.Unified = map[string]string{"../memory.max": "1"} }), ErrInvalid},
		{"linux.resources.unified", res(func(r *runtimeapi.LinuxContainerResources) {
			r.Unified = map[string]string{"memory.max": "1\n2"}
		}), ErrInvalid},
		{"linux.resources.hugepage_limits[0].page_size", res(func(r *runtimeapi.LinuxContainerResources) {
			r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2 MB"}}
		}), ErrInvalid},
	})
}

func TestBuildRefusesSecurity(t *testing.T) {
	tryRefusals(t, []refusal{
		{"capabilities.add_capabilities[0]", func(in *Input) {
			sc(in).Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NOPE"}}
		}, ErrInvalid},
		{"capabilities.drop_capabilities[0]", func(in *Input) {
			sc(in).Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"CAP_CAP_KILL"}}
		}, ErrInvalid},
		{"linux.security_context.privileged", func(in *Input) { sc(in).Privileged = true }, ErrInvalid},
		{"linux.security_context.namespace_options.pid", func(in *Input) {
			sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{Pid: 99}
		}, ErrInvalid},
		{"linux.security_context.namespace_options.pid", func(in *Input) {
			sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_NODE}
		}, ErrInvalid},
		{"linux.security_context.namespace_options.network", func(in *Input) {
			sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}
		}, ErrInvalid},
		{"linux.security_context.namespace_options.userns_options.uids", func(in *Input) {
			sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{}}
		}, ErrInvalid},
		{"linux.security_context.masked_paths[0]", func(in *Input) { sc(in).MaskedPaths = []string{"proc"} }, ErrInvalid},
		{"linux.security_context.readonly_paths[0]", func(in *Input) { sc(in).ReadonlyPaths = []string{"/a/.."} }, ErrInvalid},
	})
}

func TestBuildRefusesVolumes(t *testing.T) {
	volume := func(edit func(*runtimeapi.Mount)) func(*Input) {
		return func(in *Input) {
			m := &runtimeapi.Mount{ContainerPath: "/i", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "x"}}
			edit(m)
			in.Container.Mounts = []*runtimeapi.Mount{m}
		}
	}
	mount := func(m *runtimeapi.Mount) func(*Input) {
		return func(in *Input) {
			if m.HostPath == "" {
				m.HostPath = "/srv"
			}
			if m.ContainerPath == "" {
				m.ContainerPath = "/mnt"
			}
			in.Container.Mounts = []*runtimeapi.Mount{m}
		}
	}
	device := func(dst, perm string) func(*Input) {
		return func(in *Input) {
			in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: dst, Permissions: perm}}
			in.Devices = testHost.Devices[:1]
		}
	}
	tryRefusals(t, []refusal{
		{"mounts[0].container_path", mount(&runtimeapi.Mount{ContainerPath: "/.."}), ErrInvalid},
		{"mounts[0].container_path", mount(&runtimeapi.Mount{ContainerPath: "/a/../proc/self"}), ErrInvalid},
		{"mounts[0].container_path", mount(&runtimeapi.Mount{ContainerPath: "rel"}), ErrInvalid},
		{"mounts[0].host_path", mount(&runtimeapi.Mount{HostPath: "rel"}), ErrInvalid},
		{"mounts[0].propagation", mount(&runtimeapi.Mount{Propagation: 99}), ErrInvalid},
		{"mounts[0].recursive_read_only", mount(&runtimeapi.Mount{RecursiveReadOnly: true}), ErrInvalid},
		{"mounts[0].recursive_read_only", mount(&runtimeapi.Mount{RecursiveReadOnly: true, Readonly: true,
			Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}), ErrInvalid},
		{"mounts[0].mount_options[0]", mount(&runtimeapi.Mount{MountOptions: []string{"bind"}}), ErrInvalid},
		{"mounts[0].uidMappings", mount(&runtimeapi.Mount{UidMappings: []*runtimeapi.IDMapping{{}}}), ErrInvalid},
		{"config.mounts[0].readonly", volume(func(m *runtimeapi.Mount) { m.Readonly = false }), ErrImageVolume},
		{"config.mounts[0].host_path", volume(func(m *runtimeapi.Mount) { m.HostPath = "/etc" }), ErrInvalid},
		{"config.mounts[0].propagation", volume(func(m *runtimeapi.Mount) { m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL }), ErrInvalid},
		{"config.mounts[0].image_sub_path", volume(func(m *runtimeapi.Mount) { m.Image, m.ImageSubPath = nil, "x" }), ErrInvalid},
		{"config.mounts[0].mount_options[0]", volume(func(m *runtimeapi.Mount) { m.MountOptions = []string{"exec"} }), ErrInvalid},
		{"config.mounts[0].uidMappings", volume(func(m *runtimeapi.Mount) { m.GidMappings = []*runtimeapi.IDMapping{{}} }), ErrInvalid},
		{"config.mounts[0].container_path", volume(func(m *runtimeapi.Mount) { m.ContainerPath = "/proc/x" }), ErrInvalid},
		{"mounts[1].container_path", func(in *Input) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/i", HostPath: "/a"}, {ContainerPath: "/i/", HostPath: "/b"}}
		}, ErrInvalid},
		{"devices[0].container_path", device("/proc/x", "rwm"), ErrInvalid},
		{"devices[0].permissions", device("/dev/x", "rr"), ErrInvalid},
		{"devices[0].permissions", device("/dev/x", ""), ErrInvalid},
	})
}

// TestImageVolumeRefused: the text has the whole path of the field, once, also after a caller has asked for that.
func TestImageVolumeRefused(t *testing.T) {
	in := plain()
	in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/i", Image: &runtimeapi.ImageSpec{Image: "x"}}}
	_, err := Build(in)
	const want = "image volume: config.mounts[0].readonly: an image is mounted read-only or not at all"
	if got := InConfig(err); !errors.Is(got, ErrImageVolume) || got == nil || got.Error() != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// An image is mounted read-only, without devices and set-uid programs, and its programs may run unless noexec is asked for.
func TestImageVolume(t *testing.T) {
	in := plain()
	in.Container.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/a/", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "x"}, SelinuxRelabel: true, RecursiveReadOnly: true},
		{ContainerPath: "/b", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "x"}, ImageSubPath: "s/t",
			MountOptions: []string{"noexec", "nosuid"}, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	}
	in.Volumes = map[int]string{0: "sha256:aa", 1: "sha256:bb"}
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	for dst, want := range map[string]string{
		"/a": "bind image:sha256:aa [rbind rprivate ro nosuid nodev]", "/b": "bind image:sha256:bb/s/t [rbind rprivate ro nosuid nodev noexec]",
	} {
		i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == dst })
		if i < 0 {
			t.Fatalf("%s: no mount", dst)
		}
		if m := s.Mounts[i]; fmt.Sprintf("%s %s %v", m.Type, m.Source, m.Options) != want || OnHost(m) {
			t.Errorf("%s: %v", dst, m)
		}
	}
}
