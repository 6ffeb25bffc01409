package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// optionsVolume makes a volume on a file system that forbids nothing: a set-uid program, a device, and another file system
// below it with the same.
func optionsVolume(t *testing.T, n *node) string {
	t.Helper()
	dir := filepath.Join(n.dir, "options")
	for _, d := range []string{dir, dir + "/sub"} {
		errs := []error{os.MkdirAll(d, 0o755), unix.Mount("t", d, "tmpfs", 0, "")}
		t.Cleanup(func() { _ = unmountAll(d) })
		errs = append(errs, os.Chmod(d, 0o777), copyFile(n.images.helper, d+"/helper-cat"), os.Chmod(d+"/helper-cat", 0o755|os.ModeSetuid),
			unix.Mknod(d+"/zero", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), os.Chmod(d+"/zero", 0o666))
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// inVolume says what an unprivileged process can do in a directory of its container: execute, become root by a set-uid program,
// open a device, write.
func (n *node) inVolume(id, dir string) string {
	n.t.Helper()
	var can []string
	r, err := n.m.ExecSync(bg, id, []string{dir + "/helper-cat", "/proc/self/status"}, 10*time.Second)
	if err != nil {
		n.t.Fatal(err)
	}
	if r.ExitCode == 0 {
		can = append(can, "exec")
	}
	if strings.Contains(string(r.Stdout), "Uid:\t1000\t0\t") {
		can = append(can, "suid")
	}
	if n.exec(id, "cat", dir+"/zero").ExitCode == 0 {
		can = append(can, "dev")
	}
	if n.exec(id, "write", dir+"/written", "x").ExitCode == 0 {
		can = append(can, "write")
	}
	return strings.Join(can, " ")
}

// TestRealMountOptions: each option holds alone, all hold together, and beside everything else that a mount may be. They are for
// the volume itself; only read-only has a recursive form.
func TestRealMountOptions(t *testing.T) {
	n := newRealNode(t)
	cfg := podRequest("options")
	cfg.Linux.SecurityContext.Privileged = true
	pod := n.run(cfg)
	vol := optionsVolume(t, n)
	all := []string{"nosuid", "noexec", "nodev", "noexec"}
	const everything = "exec suid dev write"
	slave, shared := runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	cases := []struct {
		mount           runtimeapi.Mount
		want, wantBelow string
	}{
		{runtimeapi.Mount{}, everything, everything},
		{runtimeapi.Mount{MountOptions: []string{"noexec"}}, "dev write", everything},
		{runtimeapi.Mount{MountOptions: []string{"nosuid"}}, "exec dev write", everything},
		{runtimeapi.Mount{MountOptions: []string{"nodev"}}, "exec suid write", everything},
		{runtimeapi.Mount{Readonly: true}, "exec suid dev", everything},
		{runtimeapi.Mount{Readonly: true, RecursiveReadOnly: true}, "exec suid dev", "exec suid dev"},
		{runtimeapi.Mount{MountOptions: all}, "write", everything},
		{runtimeapi.Mount{MountOptions: all, Readonly: true}, "", everything},
		{runtimeapi.Mount{MountOptions: all, Readonly: true, RecursiveReadOnly: true}, "", "exec suid dev"},
		{runtimeapi.Mount{MountOptions: all, Propagation: slave}, "write", everything},
		{runtimeapi.Mount{MountOptions: all, Propagation: shared}, "write", everything},
		{runtimeapi.Mount{MountOptions: all, Propagation: shared, Readonly: true}, "", everything},
	}
	c := n.running(pod, "c", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		for i := range cases {
			m := &cases[i].mount
			m.HostPath, m.ContainerPath = vol, "/v"+itoa(i)
			c.Mounts = append(c.Mounts, m)
		}
	})
	for i := range cases {
		m := &cases[i].mount
		if got := n.inVolume(c, m.ContainerPath); got != cases[i].want {
			t.Errorf("%v: can %q, want %q", m, got, cases[i].want)
		}
		if got := n.inVolume(c, m.ContainerPath+"/sub"); got != cases[i].wantBelow {
			t.Errorf("below %v: can %q, want %q", m, got, cases[i].wantBelow)
		}
	}
	// The host's own mount has none of it, and what comes there later arrives where it should.
	var st unix.Statfs_t
	if err := unix.Statfs(vol, &st); err != nil || st.Flags&(unix.ST_NOEXEC|unix.ST_NOSUID|unix.ST_NODEV|unix.ST_RDONLY) != 0 {
		t.Errorf("the host's mount has the flags %#x, %v", st.Flags, err)
	}
	if got := n.status(c).Mounts[6].MountOptions; strings.Join(got, " ") != strings.Join(all, " ") {
		t.Errorf("status: %q", got)
	}
}

// TestMountOptionsRefused: what gives something back is refused, alone and against its opposite, by the name of the field.
func TestMountOptionsRefused(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	for _, opts := range [][]string{{"exec"}, {"exec", "noexec"}, {"suid"}, {"dev"}, {"rw"}, {"noexec,exec"}, {"rnoexec"}, {"bind"}, {""}} {
		for _, m := range []*runtimeapi.Mount{{HostPath: n.dir}, {Image: &runtimeapi.ImageSpec{Image: "test"}, Readonly: true}} {
			m.ContainerPath, m.MountOptions = "/v", opts
			cfg := containerRequest("c", "sleep")
			cfg.Mounts = []*runtimeapi.Mount{m}
			if _, err := n.m.CreateContainer(bg, pod, cfg, nil); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "mounts[0].mount_options[0]") {
				t.Errorf("%q: %v", opts, err)
			}
		}
	}
}
