package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRealDevices: a device of the host under a name of the container's; what is no device there is refused.
func TestRealDevices(t *testing.T) {
	n := newRealNode(t)
	pod := n.run(podRequest("web"))
	file := filepath.Join(n.dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c := n.running(pod, "c", func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/mine", Permissions: "rw"}}
	})
	// A file would have kept it.
	n.must(c, "write", "/dev/mine", "x")
	if got := n.must(c, "cat", "/dev/mine"); got != "" {
		t.Errorf("/dev/mine holds %q", got)
	}
	for _, path := range []string{file, filepath.Join(n.dir, "missing"), n.dir} {
		bad := containerRequest("bad", "sleep")
		bad.Devices = []*runtimeapi.Device{{HostPath: path, ContainerPath: "/dev/mine", Permissions: "rw"}}
		if _, err := n.m.CreateContainer(bg, pod, bad, nil); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "devices[0].host_path") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestRealSeccompProfile: a Localhost profile holds, for the container and for an exec, by either of the fields; one that cannot be
// read, or is none, is refused, and nobody waits for a FIFO.
func TestRealSeccompProfile(t *testing.T) {
	n := newRealNode(t)
	pod := n.run(podRequest("web"))
	plant := func(name, text string) string {
		path := filepath.Join(n.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// Nothing can be created: openat with O_CREAT is EPERM.
	profile := plant("profile.json", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["openat"],"action":"SCMP_ACT_ERRNO","errnoRet":1,
		"args":[{"index":2,"value":64,"valueTwo":64,"op":"SCMP_CMP_MASKED_EQ"}]}]}`)
	local := func(path string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: path}
	}
	for name, edit := range map[string]func(*runtimeapi.LinuxContainerSecurityContext){
		"new": func(c *runtimeapi.LinuxContainerSecurityContext) { c.Seccomp = local(profile) },
		"old": func(c *runtimeapi.LinuxContainerSecurityContext) { c.SeccompProfilePath = "localhost/" + profile }, //nolint:staticcheck // deprecated, and still sent
		"none": func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		},
	} {
		c := n.running(pod, name, func(c *runtimeapi.ContainerConfig) { edit(c.Linux.SecurityContext) })
		want := map[bool]int32{true: 0, false: 1}[name == "none"]
		if r := n.exec(c, "write", "/tmp/x", "x"); r.ExitCode != want || want == 1 && !strings.Contains(string(r.Stderr), "operation not permitted") {
			t.Errorf("%s: %v", name, r)
		}
		mode := map[bool]string{true: "Seccomp:\t0", false: "Seccomp:\t2"}[name == "none"]
		if got := n.must(c, "cat", "/proc/1/status"); !strings.Contains(got, mode) {
			t.Errorf("%s: no %q in %s", name, mode, got)
		}
	}
	fifo := filepath.Join(n.dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, path := range map[string]string{"missing": filepath.Join(n.dir, "missing"), "no profile": plant("poor.json", `{"defaultAction":"allow"}`),
		"no JSON": plant("rubbish", "x"), "a FIFO": fifo, "a directory": n.dir, "too large": plant("large", strings.Repeat(" ", maxProfile+1))} {
		bad := containerRequest("bad", "sleep")
		bad.Linux.SecurityContext.Seccomp = local(path)
		if _, err := n.m.CreateContainer(bg, pod, bad, nil); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "seccomp.localhost_ref") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestRealVolumeKeepsItsFlags: a volume that is mounted "rw" is not remounted: what the host's mount forbids stays forbidden.
func TestRealVolumeKeepsItsFlags(t *testing.T) {
	n := newRealNode(t)
	pod := n.run(podRequest("web"))
	dir := filepath.Join(n.dir, "careful")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("careful", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unmountAll(dir) })
	c := n.running(pod, "c", func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/rw"}, {HostPath: dir, ContainerPath: "/ro", Readonly: true}}
	})
	seen := 0
	for line := range strings.Lines(n.must(c, "cat", "/proc/self/mountinfo")) {
		f := strings.Fields(line)
		if len(f) < 6 || f[4] != "/rw" && f[4] != "/ro" {
			continue
		}
		seen++
		if want := f[4][1:] + ",nosuid,nodev,noexec"; !strings.HasPrefix(f[5], want) {
			t.Errorf("%s is mounted %s, want %s", f[4], f[5], want)
		}
	}
	if seen != 2 {
		t.Errorf("%d of the two volumes are there", seen)
	}
}

// TestRealEnvIsBytes: a variable that is not UTF-8 is the same for the first process and for each exec, whatever daemon makes that, and
// after what an update writes. JSON cannot hold it, and the spec on disk stays JSON.
func TestRealEnvIsBytes(t *testing.T) {
	n := newRealNode(t)
	dir := n.withCDI()
	n.cdiSpec(dir, "named", `{"env": ["GIVEN=device", "OVER=device"]}`)
	n.images.plant = func(root string) error {
		return os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/h\xe9:/bin/sh\n"), 0o644)
	}
	pod := n.run(podRequest("bytes"))
	c := n.running(pod, "c", func(c *runtimeapi.ContainerConfig) {
		with("named")(c)
		for k, v := range map[string]string{"RAW": "\xff\xfe\x80", "MIXED": "a\xffé\ufffd=\n", "OVER": "\xff", "PLAIN": "é"} {
			c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: k, Value: []byte(v)})
		}
	})
	want := slices.Sorted(strings.SplitSeq(strings.TrimSuffix(n.must(c, "cat", "/proc/1/environ"), "\x00"), "\x00"))
	for _, kv := range []string{"RAW=\xff\xfe\x80", "MIXED=a\xffé\ufffd=\n", "OVER=device", "GIVEN=device", "PLAIN=é", "HOME=/h\xe9"} {
		if !slices.Contains(want, kv) {
			t.Errorf("the first process has no %q: %q", kv, want)
		}
	}
	same := func(when string) {
		t.Helper()
		got := strings.TrimSuffix(n.must(c, "cat", "/proc/self/environ"), "\x00")
		if got := slices.Sorted(strings.SplitSeq(got, "\x00")); !slices.Equal(got, want) {
			t.Errorf("%s: %q, and the first process has %q", when, got, want)
		}
	}
	same("at first")
	n.restart()
	same("after a restart")
	if err := n.m.UpdateContainerResources(bg, c, &resources{OomScoreAdj: 1, CpuShares: 77}); err != nil {
		t.Fatal(err)
	}
	same("after an update")
	n.restart()
	same("after an update and a restart")
	s := &specs.Spec{}
	if err := readRecord(filepath.Join(n.m.podDir(pod), c), "config.json", s); err != nil || !slices.Contains(s.Process.Env, "RAW=\ufffd\ufffd\ufffd") {
		t.Errorf("the spec on disk: %v, %q", err, s.Process.Env)
	}
}

// TestEnvInRecord: only an environment that JSON cannot hold is in the record beside it, and a record of before is read as it was.
func TestEnvInRecord(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	envOf := func(id string) [][]byte {
		t.Helper()
		r := &containerRecord{}
		if err := readRecord(filepath.Join(n.m.podDir(pod), id), "container.json", r); err != nil {
			t.Fatal(err)
		}
		return r.Env
	}
	request := func(name, value string) *runtimeapi.ContainerConfig {
		cfg := containerRequest(name, "sleep")
		cfg.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte(value)}}
		return cfg
	}
	if got := envOf(n.create(pod, request("plain", "é\ufffd"))); got != nil {
		t.Errorf("JSON can hold it, and the record has %q", got)
	}
	c := n.create(pod, request("raw", "\xff"))
	if got := envOf(c); !slices.ContainsFunc(got, func(kv []byte) bool { return string(kv) == "A=\xff" }) || len(got) < 2 {
		t.Errorf("the record has %q", got)
	}
	old := n.m.index.Load().containers[c]
	if err := n.m.Close(); err != nil {
		t.Fatal(err)
	}
	old.record.Env = nil
	if err := old.writeLocked(); err != nil {
		t.Fatal(err)
	}
	n.open()
	if s, err := n.m.index.Load().containers[c].ociSpec(); err != nil || !slices.Contains(s.Process.Env, "A=\ufffd") {
		t.Errorf("a record of before: %v, %v", s, err)
	}
}
