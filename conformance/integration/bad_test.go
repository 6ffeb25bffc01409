package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// oddities makes a directory with what a path of a request must not be, and returns it.
func (s *scene) oddities() string {
	s.Helper()
	dir := filepath.Join(s.Scratch, "odd")
	s.Cleanup(func() {
		_ = unix.Unmount(dir+"/private", unix.MNT_DETACH) // it may not have come so far
		os.RemoveAll(dir)
	})
	for _, err := range []error{
		os.MkdirAll(dir+"/dir", 0o755),
		os.WriteFile(dir+"/file", []byte("{"), 0o644),
		os.WriteFile(dir+"/huge", nil, 0o644),
		os.Truncate(dir+"/huge", 1<<30),
		os.Symlink("loop", dir+"/loop"),
		os.Symlink("file", dir+"/link"),
		unix.Mkfifo(dir+"/fifo", 0o644),
		os.Mkdir(dir+"/private", 0o755), // systemd makes all that it mounts shared
		unix.Mount("tmpfs", dir+"/private", "tmpfs", 0, ""),
		unix.Mount("", dir+"/private", "", unix.MS_PRIVATE, ""),
	} {
		if err != nil {
			s.Fatal(err)
		}
	}
	return dir
}

// noProfiles are seccomp profiles that are none, by what is wrong with them.
var noProfiles = map[string]string{
	"empty":     `{}`,
	"action":    `{"defaultAction":"SCMP_ACT_WISH"}`,
	"argument":  `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}`,
	"errno":     `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","errnoRet":1}]}`,
	"notify":    `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}`,
	"flag":      `{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WISH"]}`,
	"processor": `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_ABACUS"]}`,
}

// TestBadContainers: what is wrong with a container only on this node, in this pod or with this image is refused by create or by
// start, with the field's name, and leaves nothing. The numbers are those of docs/security.md.
func TestBadContainers(t *testing.T) {
	s := open(t)
	p, other := s.runPod("bad"), s.runPod("other")
	odd := s.oddities()
	foreign, over := other.run("foreign", "sleep 1000"), p.run("over", "exit 0")
	s.exited(over)
	type config = runtimeapi.ContainerConfig
	mount := func(m *runtimeapi.Mount) func(*config) {
		return func(c *config) { m.ContainerPath = "/data"; c.Mounts = []*runtimeapi.Mount{m} }
	}
	device := func(path string) func(*config) {
		return func(c *config) {
			c.Devices = []*runtimeapi.Device{{HostPath: path, ContainerPath: "/dev/odd", Permissions: "rwm"}}
		}
	}
	secure := func(f func(*runtimeapi.LinuxContainerSecurityContext)) func(*config) {
		return func(c *config) { f(c.Linux.SecurityContext) }
	}
	target := func(id string) func(*config) {
		return secure(func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.NamespaceOptions.Pid, c.NamespaceOptions.TargetId = runtimeapi.NamespaceMode_TARGET, id
		})
	}
	localhost := func(ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	seccomp := func(ref string) func(*config) {
		return secure(func(c *runtimeapi.LinuxContainerSecurityContext) { c.Seccomp = localhost(ref) })
	}
	unknownProfile := codes.InvalidArgument // without AppArmor there is none at all
	if strings.HasPrefix(fileText("/sys/module/apparmor/parameters/enabled"), "Y") {
		unknownProfile = codes.FailedPrecondition
	}
	rows := []struct {
		id, field string
		code      codes.Code
		edit      func(*config)
	}{
		{"B-47 no such image", "no/such", codes.NotFound, func(c *config) { c.Image.Image = stage.Host + "/no/such:1" }},
		{"B-49 a directory", "/etc", codes.FailedPrecondition, func(c *config) { c.Command = []string{"/etc"} }},
		{"B-50 an argument of 128 KiB", "", codes.FailedPrecondition, func(c *config) { c.Args = []string{strings.Repeat("a", 128<<10+1)} }},
		{"B-50 8 MiB of arguments", "argument list too long", codes.FailedPrecondition, func(c *config) {
			for range 64 {
				c.Args = append(c.Args, strings.Repeat("a", 128<<10-1))
			}
		}},
		{"B-53 a file", "working directory", codes.FailedPrecondition, func(c *config) { c.WorkingDir = "/etc/passwd" }},
		{"B-54 below a file", "config.log_path", codes.InvalidArgument, func(c *config) { c.LogPath = "file/x.log" }},
		{"B-54 a directory", "config.log_path", codes.InvalidArgument, func(c *config) { c.LogPath = "dir" }},
		{"B-54 a FIFO", "config.log_path", codes.InvalidArgument, func(c *config) { c.LogPath = "fifo" }},
		{"B-54 a link", "config.log_path", codes.InvalidArgument, func(c *config) { c.LogPath = "link" }},
		{"B-58 below a file", "config.mounts.host_path", codes.InvalidArgument, mount(&runtimeapi.Mount{HostPath: odd + "/file/x"})},
		{"B-58 a loop", "config.mounts.host_path", codes.InvalidArgument, mount(&runtimeapi.Mount{HostPath: odd + "/loop/x"})},
		{"B-58 a long name", "config.mounts.host_path", codes.InvalidArgument, mount(&runtimeapi.Mount{HostPath: odd + "/" + strings.Repeat("a", 256)})},
		{"B-61 private on the host", "config.mounts.propagation", codes.InvalidArgument, mount(&runtimeapi.Mount{HostPath: odd + "/private", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL})},
		{"B-65 no such image", "ImageVolumeMountFailed", codes.NotFound, mount(&runtimeapi.Mount{Readonly: true, Image: &runtimeapi.ImageSpec{Image: stage.Host + "/no/such:1"}})},
		{"B-66 missing", "config.devices[0].host_path", codes.InvalidArgument, device(odd + "/none")},
		{"B-66 a file", "config.devices[0].host_path", codes.InvalidArgument, device(odd + "/file")},
		{"B-66 a directory", "config.devices[0].host_path", codes.InvalidArgument, device(odd)},
		{"B-80 no such user", "config.linux.security_context.run_as_username", codes.InvalidArgument, secure(func(c *runtimeapi.LinuxContainerSecurityContext) { c.RunAsUsername = "nosuch" })},
		{"B-82 unknown", "config.linux.security_context.namespace_options.target_id", codes.NotFound, target(strings.Repeat("0", 64))},
		{"B-82 of another pod", "config.linux.security_context.namespace_options.target_id", codes.InvalidArgument, target(foreign)},
		{"B-82 exited", "config.linux.security_context.namespace_options.target_id", codes.FailedPrecondition, target(over)},
		{"B-83 missing", "config.linux.security_context.seccomp.localhost_ref", codes.InvalidArgument, seccomp(odd + "/none")},
		{"B-83 a directory", "config.linux.security_context.seccomp.localhost_ref", codes.InvalidArgument, seccomp(odd)},
		{"B-83 a FIFO", "config.linux.security_context.seccomp.localhost_ref", codes.InvalidArgument, seccomp(odd + "/fifo")},
		{"B-83 1 GiB", "config.linux.security_context.seccomp.localhost_ref", codes.InvalidArgument, seccomp(odd + "/huge")},
		{"B-83 no JSON", "config.linux.security_context.seccomp", codes.InvalidArgument, seccomp(odd + "/file")},
		{"B-84 unknown", "apparmor", unknownProfile, secure(func(c *runtimeapi.LinuxContainerSecurityContext) { c.Apparmor = localhost("no-such-profile") })},
	}
	for name, text := range noProfiles {
		path := filepath.Join(odd, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, rows[0])
		r := &rows[len(rows)-1]
		r.id, r.field, r.code, r.edit = "B-83 "+name, "seccomp", codes.InvalidArgument, seccomp(path)
		if name == "notify" {
			r.code = codes.Unimplemented
		}
	}
	for _, err := range []error{os.WriteFile(p.cfg.LogDirectory+"/file", nil, 0o644), os.Mkdir(p.cfg.LogDirectory+"/dir", 0o755),
		unix.Mkfifo(p.cfg.LogDirectory+"/fifo", 0o644), os.Symlink(odd+"/file", p.cfg.LogDirectory+"/link")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range rows {
		err := s.try(p, r.edit)
		if code(err) != r.code || !strings.Contains(fmt.Sprint(err), r.field) {
			t.Errorf("%s: %v, want %v with %q", r.id, err, r.code, r.field)
		}
	}
}

// try creates, starts and removes a container, and returns the first error.
func (s *scene) try(p *pod, edit func(*runtimeapi.ContainerConfig)) error {
	cfg := stage.ContainerConfig("tried", busybox, "true")
	edit(cfg)
	id, err := s.cri.CreateContainer(s.ctx, p.id, cfg, p.cfg)
	if err != nil {
		return err
	}
	err = s.cri.StartContainer(s.ctx, id)
	if rerr := s.cri.RemoveContainer(s.ctx, id); rerr != nil {
		s.Errorf("remove: %v", rerr)
	}
	return err
}

// TestBadPods is the same for pods.
func TestBadPods(t *testing.T) {
	s := open(t)
	odd := s.oddities()
	const ingress = "kubernetes.io/ingress-bandwidth"
	for id, r := range map[string]struct {
		field string
		code  codes.Code
		edit  func(*runtimeapi.PodSandboxConfig)
	}{
		"B-08 a file":       {"config.log_directory", codes.InvalidArgument, func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = odd + "/file" }},
		"B-08 below a file": {"config.log_directory", codes.InvalidArgument, func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = odd + "/file/x" }},
		"B-08 a loop":       {"config.log_directory", codes.InvalidArgument, func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = odd + "/loop/x" }},
		"B-15 long":         {"config.linux.cgroup_parent", codes.InvalidArgument, func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/" + strings.Repeat("a", 300) }},
		"B-23 core":         {"kernel.core_pattern", codes.InvalidArgument, func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.core_pattern": "|x"} }},
		"B-23 no number":    {"ip_forward", codes.InvalidArgument, func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "x"} }},
		"B-23 unknown":      {"net.nosuch", codes.InvalidArgument, func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.nosuch": "1"} }},
		"B-31 bandwidth":    {"config.annotations[" + ingress + "]", codes.InvalidArgument, func(c *runtimeapi.PodSandboxConfig) { c.Annotations = map[string]string{ingress: "10Mbit"} }},
	} {
		cfg, err := s.PodConfig("bad")
		if err != nil {
			t.Fatal(err)
		}
		logs, parent := cfg.LogDirectory, cfg.Linux.CgroupParent
		r.edit(cfg)
		pod, err := s.cri.RunPodSandbox(s.ctx, cfg, "")
		if err == nil {
			_ = s.cri.RemovePodSandbox(s.ctx, pod)
		}
		if code(err) != r.code || !strings.Contains(fmt.Sprint(err), r.field) {
			t.Errorf("%s: %v, want %v with %q", id, err, r.code, r.field)
		}
		cfg.LogDirectory, cfg.Linux.CgroupParent = logs, parent
		if err := s.Forget(cfg); err != nil {
			t.Error(err)
		}
	}
}

// TestWrongStates: what is legal, but not now (B-45, B-87, B-88, B-93, B-94, B-99, B-106).
func TestWrongStates(t *testing.T) {
	s := open(t)
	p := s.runPod("states")
	over, waits, runs := p.run("over", "exit 0"), p.create(stage.ContainerConfig("waits", busybox, "true")), p.run("runs", "sleep 1000")
	s.exited(over)
	limits := &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100}}
	exec := func(id string) error { _, _, err := s.cri.ExecSync(s.ctx, id, []string{"true"}, 0); return err }
	for what, err := range map[string]error{
		"B-87 start a running one":   s.cri.StartContainer(s.ctx, runs),
		"B-87 start an exited one":   s.cri.StartContainer(s.ctx, over),
		"B-87 update an exited one":  s.cri.UpdateContainerResources(s.ctx, over, limits),
		"B-94 reopen an exited one":  s.cri.ReopenContainerLog(s.ctx, over),
		"B-94 reopen a waiting one":  s.cri.ReopenContainerLog(s.ctx, waits),
		"B-99 exec in an exited one": exec(over),
		"B-99 exec in a waiting one": exec(waits),
	} {
		if code(err) != codes.FailedPrecondition {
			t.Errorf("%s: %v, want FailedPrecondition", what, err)
		}
	}
	if _, err := s.cri.ContainerStats(s.ctx, strings.Repeat("0", 64)); code(err) != codes.NotFound {
		t.Errorf("B-93 unknown: %v, want NotFound", err)
	}
	if st, err := s.cri.ContainerStats(s.ctx, over); err != nil || st.Attributes.GetId() != over {
		t.Errorf("B-93 exited: %v (%v)", st, err)
	}
	if err := s.cri.StopPodSandbox(s.ctx, p.id); err != nil {
		t.Fatal(err)
	}
	_, createErr := s.cri.CreateContainer(s.ctx, p.id, stage.ContainerConfig("late", busybox, "true"), p.cfg)
	_, forwardErr := s.cri.PortForward(s.ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{80}})
	for what, err := range map[string]error{
		"B-45 create":  createErr,
		"B-87 start":   s.cri.StartContainer(s.ctx, waits),
		"B-106 a port": forwardErr,
	} {
		if code(err) != codes.FailedPrecondition {
			t.Errorf("%s in a stopped pod: %v, want FailedPrecondition", what, err)
		}
	}
}

// TestForeignAnnotations: B-32, what selects something in other runtimes selects nothing here: but for its ids, the container is the
// one without the annotations.
func TestForeignAnnotations(t *testing.T) {
	s := open(t)
	p := s.runPod("annotations", func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"io.kubernetes.cri-o.userns-mode": "auto", "io.kubernetes.cri-o.TrustedSandbox": "false", "io.containerd.runc.v2.group": "x"}
	})
	look := func(name string, change ...func(*runtimeapi.ContainerConfig)) string {
		id := p.run(name, "sleep 1000", change...)
		text := s.exec(id, "cat /proc/self/mountinfo | cut -d' ' -f4-6 | sort; grep -e Cap -e [UG]id: -e Groups -e Seccomp -e NoNew -e _allowed /proc/self/status; ulimit -a; ls /dev")
		return strings.ReplaceAll(text, id, "")
	}
	plain := look("plain")
	odd := look("odd", func(c *runtimeapi.ContainerConfig) {
		c.Annotations = map[string]string{
			"org.systemd.property.TimeoutStopUSec": "uint64 1", "io.kubernetes.cri-o.Devices": "/dev/kmsg:/dev/kmsg:rwm", "io.kubernetes.cri-o.UnifiedCgroup": "memory.max=1",
			"io.kubernetes.cri-o.ShmSize": "1Ki", "run.oci.keep_original_groups": "1", "run.oci.mount_context_type": "rootcontext", "io.containerd.image.config.stop-signal": "SIGKILL",
			"io.kubernetes.cri-o.seccompNotifierAction": "stop", "devices.nri.io": "x", "ulimits.nri.containerd.io": "x",
		}
	})
	if plain != odd {
		t.Errorf("with the annotations:\n%s\nwithout:\n%s", odd, plain)
	}
}
