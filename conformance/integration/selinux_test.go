package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// needSELinux skips where containers have no labels. Debian's policy package has what it takes: docs/vm.md.
func needSELinux(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		t.Skip("needs SELinux in the kernel, and a policy that knows containers")
	}
}

// ownLabel is the label of who asks, without the NUL that the kernel sends.
const ownLabel = "tr -d '\\0\\n' </proc/self/attr/current"

func withSELinux(o *runtimeapi.SELinuxOption) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.SelinuxOptions = o }
}

// fileLabel returns the label of a path of the host, or of a container's by its process.
func fileLabel(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, "security.selinux", buf)
	if err != nil {
		t.Errorf("label of %s: %v", path, err)
	}
	return strings.TrimRight(string(buf[:max(n, 0)]), "\x00")
}

// categories takes a label apart: what comes before its categories, and these.
func categories(label string) (kind, level string) {
	parts := strings.SplitN(label, ":", 4)
	if len(parts) < 4 {
		return label, ""
	}
	return strings.Join(parts[:3], ":"), parts[3]
}

// TestSELinuxLabels: processes and files of a pod have its label, which no other pod has, and each container what it asks for.
func TestSELinuxLabels(t *testing.T) {
	needSELinux(t)
	s := open(t)
	privileged := func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }
	p, other := s.runPod("labelled", privileged), s.runPod("other")
	ref := s.pullVolume("labelled")
	plain := p.run("plain", ownLabel+"; echo; sleep 1000", imageVolume(ref, ""))
	label := s.exec(plain, ownLabel)
	kind, level := categories(label)
	if kind != "system_u:system_r:container_t" || !strings.HasPrefix(level, "s0:c") {
		t.Fatalf("label of an exec: %q", label)
	}
	s.eventually("its first process has it, too", func() bool { return strings.Join(p.logText("plain", "stdout"), "") == label })

	file := "system_u:object_r:container_file_t:" + level
	root := filepath.Join("/proc", strconv.Itoa(p.pids(plain)[0]), "root")
	for _, at := range []string{"", "/bin/busybox", "/dev", "/dev/null", "/dev/pts", "/dev/shm", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/vol/data/f", "/proc/acpi", "/proc/kcore"} {
		if got := fileLabel(t, root+"/."+at); got != file {
			t.Errorf("label of /%s: %q, want %q", at, got, file)
		}
	}
	s.exec(plain, "echo x >/new; echo x >/dev/shm/new")
	for _, at := range []string{"/new", "/dev/shm/new"} {
		if got := fileLabel(t, root+at); got != file {
			t.Errorf("label of a new file %s: %q, want %q", at, got, file)
		}
	}
	if got := s.exec(other.run("c", "sleep 1000"), ownLabel); got == label || !strings.HasPrefix(got, kind) {
		t.Errorf("another pod has %q, this one %q", got, label)
	}

	for name, c := range map[string]struct {
		options    *runtimeapi.SELinuxOption
		privileged bool
		want       string
	}{
		"nothing":             {nil, false, label},
		"level":               {&runtimeapi.SELinuxOption{Level: "s0:c7,c9"}, false, "system_u:system_r:container_t:s0:c7,c9"},
		"no categories":       {&runtimeapi.SELinuxOption{Level: "s0"}, false, "system_u:system_r:container_t:s0"},
		"type":                {&runtimeapi.SELinuxOption{Type: "spc_t"}, false, "system_u:system_r:spc_t:" + level},
		"privileged":          {nil, true, "system_u:system_r:spc_t:s0"},
		"privileged, a level": {&runtimeapi.SELinuxOption{Level: "s0:c7,c9"}, true, "system_u:system_r:spc_t:s0:c7,c9"},
	} {
		id := p.run(strings.ReplaceAll(strings.ReplaceAll(name, ",", ""), " ", "-"), "sleep 1000", withSELinux(c.options), func(cfg *runtimeapi.ContainerConfig) { cfg.Linux.SecurityContext.Privileged = c.privileged })
		if got := s.exec(id, ownLabel); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		_, at := categories(c.want)
		if c.options == nil { // its files are the pod's, whatever it may do itself
			at = level
		}
		in := filepath.Join("/proc", strconv.Itoa(p.pids(id)[0]), "root")
		if got := fileLabel(t, in+"/."); got != "system_u:object_r:container_file_t:"+at {
			t.Errorf("%s: root has %q, want level %s", name, got, at)
		}
		// The pod's files can be read by it, whatever its categories are.
		if got := fileLabel(t, in+"/etc/resolv.conf"); at != level && got != "system_u:object_r:container_file_t:s0" {
			t.Errorf("%s: resolv.conf has %q", name, got)
		}
	}
	_, err := p.cri.CreateContainer(p.ctx, p.id, labelled(&runtimeapi.SELinuxOption{Type: "no_such_t"}), p.cfg)
	if code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "selinux_options") {
		t.Errorf("a type that the policy lacks: %v", err)
	}

	in := s.runPod("mapped", mapped)
	id := in.run("c", "sleep 1000", inMapped)
	_, level = categories(s.exec(id, ownLabel))
	root = filepath.Join("/proc", strconv.Itoa(in.pids(id)[0]), "root")
	for _, at := range []string{"", "/bin/busybox", "/dev", "/dev/pts", "/dev/shm", "/etc/resolv.conf"} {
		if got := fileLabel(t, root+"/."+at); got != "system_u:object_r:container_file_t:"+level {
			t.Errorf("in a user namespace %s has %q, want level %s", at, got, level)
		}
	}

	// What a daemon before made is not given to others, and what it runs keeps what it has.
	s.killDaemon()
	s.restart()
	if got := s.exec(plain, ownLabel); got != label {
		t.Errorf("exec after a restart: %q, want %q", got, label)
	}
	if got := s.exec(p.run("later", "sleep 1000"), ownLabel); got != label {
		t.Errorf("a container after a restart: %q, want %q", got, label)
	}
}

func labelled(o *runtimeapi.SELinuxOption) *runtimeapi.ContainerConfig {
	cfg := stage.ContainerConfig("refused", busybox, "/bin/true")
	withSELinux(o)(cfg)
	return cfg
}

// TestSELinuxPod: what a pod's own options say is for its containers, and a label that the policy lacks is no pod.
func TestSELinuxPod(t *testing.T) {
	needSELinux(t)
	s := open(t)
	options := &runtimeapi.SELinuxOption{Level: "s0:c100,c200"}
	with := func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.SelinuxOptions = options }
	p, twin := s.runPod("named", with), s.runPod("twin", with)
	for _, in := range []*pod{p, twin} {
		if got := s.exec(in.run("c", "sleep 1000"), ownLabel); got != "system_u:system_r:container_t:s0:c100,c200" {
			t.Errorf("%q", got)
		}
	}
	bad, err := s.PodConfig("bad")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Forget(bad); err != nil {
			t.Error(err)
		}
	}()
	bad.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Role: "no_such_r"}
	if _, err := s.cri.RunPodSandbox(s.ctx, bad, ""); code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "selinux_options") {
		t.Errorf("a role that the policy lacks: %v", err)
	}
}

// CD-05: only volumes whose request says so get the label of the container (CVE-2021-43816), and none that the host lives from.
func TestSELinuxVolumes(t *testing.T) {
	needSELinux(t)
	s := open(t)
	p := s.runPod("volumes")
	dirs := t.TempDir()
	at := func(name string) string { return filepath.Join(dirs, name) }
	for _, name := range []string{"asked", "not"} {
		if err := os.MkdirAll(at(name)+"/below", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at(name)+"/below/file", []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", at("asked")+"/link"); err != nil {
		t.Fatal(err)
	}
	passwd, before := fileLabel(t, "/etc/passwd"), fileLabel(t, at("not")+"/below/file")
	mount := func(host string, relabel bool) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: "/mnt" + host, HostPath: host, SelinuxRelabel: relabel})
		}
	}
	id := p.run("c", "sleep 1000", mount(at("asked"), true), mount(at("not"), false), mount(at("made"), true))
	_, level := categories(s.exec(id, ownLabel))
	want := "system_u:object_r:container_file_t:" + level
	for _, name := range []string{"asked", "asked/below", "asked/below/file", "asked/link", "made"} {
		if got := fileLabel(t, at(name)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := fileLabel(t, at("not")+"/below/file"); got != before {
		t.Errorf("a volume that is not to be relabelled: %q, was %q", got, before)
	}
	if got := fileLabel(t, "/etc/passwd"); got != passwd {
		t.Errorf("behind a link in a volume: %q, was %q", got, passwd)
	}
	cfg := stage.ContainerConfig("refused", busybox, "/bin/true")
	mount("/usr", true)(cfg)
	if _, err := p.cri.CreateContainer(p.ctx, p.id, cfg, p.cfg); code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "mounts[0].selinux_relabel") {
		t.Errorf("relabel /usr: %v", err)
	}
}

// TestSELinuxOff: who wants no labels has none, and is told where one is asked for.
func TestSELinuxOff(t *testing.T) {
	needSELinux(t)
	s := open(t)
	if err := s.Configure(s.ctx, "selinux = false\n"); err != nil {
		t.Fatal(err)
	}
	s.connect()
	t.Cleanup(func() {
		if err := s.Configure(s.ctx, ""); err != nil {
			t.Error(err)
		}
		s.connect()
	})
	p := s.runPod("off")
	if got := s.exec(p.run("c", "sleep 1000"), ownLabel); strings.Contains(got, "container_t") {
		t.Errorf("label %q", got)
	}
	if _, err := p.cri.CreateContainer(p.ctx, p.id, labelled(&runtimeapi.SELinuxOption{Level: "s0"}), p.cfg); code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "selinux_options") {
		t.Errorf("a label is asked for: %v", err)
	}
}

// TestCritestSELinux runs critest's specs for SELinux, which exist only where the kernel has it.
func TestCritestSELinux(t *testing.T) {
	needSELinux(t)
	r := critest(t, "SELinux")
	t.Logf("%d specs passed", r.passed)
	if len(r.others) > 0 || r.passed < 17 {
		t.Errorf("%d specs passed, others: %q", r.passed, r.others)
	}
}
