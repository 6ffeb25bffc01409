package source_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/scratch"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/source"
)

// firstID is the host's id of the root of a container with a user namespace.
const firstID = 300000

var mapping = []specs.LinuxIDMapping{{HostID: firstID, Size: 65536}}

// busybox makes a bundle whose root filesystem belongs to owner.
func busybox(t *testing.T, owner int) string {
	t.Helper()
	needsRoot(t)
	bb, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Skip("needs Debian's busybox-static: " + err.Error())
	}
	dir := bundle(t)
	root := filepath.Join(dir, "rootfs")
	os.MkdirAll(root+"/bin", 0o755)
	if err := os.WriteFile(root+"/bin/busybox", bb, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"sh", "cat", "ls", "stat", "touch", "mount", "grep", "readlink", "head", "chown"} {
		os.Symlink("busybox", root+"/bin/"+a)
	}
	own(t, root, owner)
	return dir
}

func own(t *testing.T, dir string, owner int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, owner, owner))
	})
	if err != nil {
		t.Fatal(err)
	}
	for p := filepath.Dir(dir); p != "/tmp" && p != "/"; p = filepath.Dir(p) {
		os.Chmod(p, 0o755)
	}
}

// container is a spec for a shell in new namespaces.
func container(script string, userns bool) *specs.Spec {
	s := &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin"}, Cwd: "/",
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces:  []specs.LinuxNamespace{{Type: "pid"}, {Type: "mount"}, {Type: "ipc"}, {Type: "uts"}, {Type: "network"}, {Type: "cgroup"}},
			MaskedPaths: []string{"/proc/keys", "/sys/firmware"}, ReadonlyPaths: []string{"/proc/sys"},
		},
	}
	if userns {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
		s.Linux.UIDMappings, s.Linux.GIDMappings = mapping, mapping
	}
	return s
}

// run opens the sources of a bundle and runs it, and returns what it printed.
func run(t *testing.T, s *specs.Spec, dir string) (string, error) {
	t.Helper()
	set, err := source.Open(s, dir)
	if err != nil {
		return "", err
	}
	defer set.Close()
	err = set.ShowCgroup(func() (*sys.FD, error) { // any directory does
		return sys.OpenAt2(unix.AT_FDCWD, filepath.Join(dir, "volume"), unix.O_PATH|unix.O_DIRECTORY, 0)
	})
	if err != nil {
		return "", err
	}
	in := program.Input{Spec: s}
	set.Apply(&in)
	p, err := program.Compile(in)
	if err != nil {
		return "", err
	}
	code, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	r, w, _ := os.Pipe()
	defer r.Close()
	null, _ := os.Open(os.DevNull)
	defer null.Close()
	proc, _ := os.Open("/proc")
	defer proc.Close()
	a := executor.Attr{Program: code, CgroupFD: -1, PIDNS: -1, ProcFD: int(proc.Fd()), Stdio: [3]int{int(null.Fd()), int(w.Fd()), int(w.Fd())}}
	for _, l := range s.Linux.UIDMappings {
		id := sys.IDMap{Inside: l.ContainerID, Outside: l.HostID, Count: l.Size}
		a.IDMaps = &sys.IDMaps{UIDs: []sys.IDMap{id}, GIDs: []sys.IDMap{id}}
	}
	for _, f := range set.Files() {
		a.Files = append(a.Files, f.Int())
	}
	if err := executor.HideMemory(); err != nil {
		t.Fatal(err)
	}
	var c *executor.Child
	err = sys.OnLostThread(func() error {
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), scratch.Enter("")); err != nil {
			return err
		}
		c, err = executor.Start(a)
		return err
	})
	w.Close()
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err = c.Ready(); err == nil {
		err = c.Release()
	}
	if err != nil {
		unix.Kill(c.Pid(), unix.SIGKILL)
	}
	out, _ := io.ReadAll(r)
	unix.Wait4(c.Pid(), nil, 0, nil)
	return string(out), err
}

func wants(t *testing.T, s *specs.Spec, dir, want string) {
	t.Helper()
	if out, err := run(t, s, dir); err != nil || out != want {
		t.Errorf("got error %v, output %q; want %q", err, out, want)
	}
}

// TestUserNamespace: devices, procfs and sysfs in a user namespace.
func TestUserNamespace(t *testing.T) {
	dir := busybox(t, firstID)
	s := container(`head -c 3 /dev/zero > /dev/null && stat -c '%F %t:%T %u:%g %a' /dev/null /dev/odd
ls /sys/firmware /proc/1/fd > /dev/null && grep -c . /proc/mounts > /dev/null && echo proc and sys
(echo 1 > /proc/sys/kernel/panic) 2>&1; ls -A /sys/firmware; cat /proc/keys; mount | grep -c -e ' /root' -e scratch`, true)
	owner, mode := uint32(7), os.FileMode(0o640)
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/odd", Type: "c", Major: 1, Minor: 5, UID: &owner, GID: &owner, FileMode: &mode}}
	wants(t, s, dir, "character special file 1:3 0:0 666\ncharacter special file 1:5 7:7 640\nproc and sys\nsh: can't create /proc/sys/kernel/panic: Read-only file system\n0\n")
}

// TestIDMap: files of uid 0 on disk are the container's root's, and what it makes
// is 0 on disk, with the container's mapping and with the mount's own.
func TestIDMap(t *testing.T) {
	for name, m := range map[string]specs.Mount{
		"of the container": {Options: []string{"rbind", "idmap"}},
		"of the mount":     {Options: []string{"bind", "ridmap"}, UIDMappings: mapping, GIDMappings: mapping},
		"without a word":   {Options: []string{"bind"}, UIDMappings: mapping, GIDMappings: mapping},
	} {
		t.Run(name, func(t *testing.T) {
			dir := busybox(t, firstID)
			m.Destination, m.Source = "/v", "volume"
			s := container("stat -c %u:%g /v/file && touch /v/new && echo made", true)
			s.Mounts = append(s.Mounts, m)
			wants(t, s, dir, "0:0\nmade\n")
			var st unix.Stat_t
			if err := unix.Stat(dir+"/volume/new", &st); err != nil || st.Uid != 0 || st.Gid != 0 {
				t.Errorf("%d:%d on disk, %v", st.Uid, st.Gid, err)
			}
		})
	}
	dir := busybox(t, 0)
	joined := container("true", true)
	joined.Linux.Namespaces[6].Path, joined.Linux.UIDMappings, joined.Linux.GIDMappings = "/proc/self/ns/user", nil, nil
	joined.Mounts = append(joined.Mounts, specs.Mount{Destination: "/v", Source: "volume", Options: []string{"bind", "idmap"}})
	// The initial namespace is opened, and maps nothing: the kernel refuses it.
	if _, err := source.Open(joined, dir); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("mapping of a namespace that is joined: %v", err)
	}
	s := container("stat -c %u:%g /v/file", false)
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v", Source: "volume", Options: []string{"bind", "idmap"},
		UIDMappings: []specs.LinuxIDMapping{{HostID: 42, Size: 5}}, GIDMappings: []specs.LinuxIDMapping{{HostID: 43, Size: 5}}})
	wants(t, s, dir, "42:43\n")
	s.Mounts[3].UIDMappings, s.Mounts[3].GIDMappings = nil, nil
	if _, err := run(t, s, dir); !errors.Is(err, program.ErrInvalid) || !strings.HasPrefix(err.Error(), "mounts[3].uidMappings: ") {
		t.Errorf("idmap of nothing: %v", err)
	}
}

func TestCopyUp(t *testing.T) {
	for _, userns := range []bool{false, true} {
		t.Run(fmt.Sprint(userns), func(t *testing.T) {
			owner := map[bool]int{true: firstID}[userns]
			dir := busybox(t, owner)
			root := dir + "/rootfs"
			os.MkdirAll(root+"/etc/deep/er", 0o711)
			os.WriteFile(root+"/etc/deep/file", []byte("text\n"), 0o600)
			os.Symlink("/outside", root+"/etc/link")
			unix.Mkfifo(root+"/etc/fifo", 0o600)
			own(t, root, owner)
			os.Chmod(root+"/etc", 0o701)
			os.Lchown(root+"/etc/deep/file", owner+3, owner+4)
			unix.Chmod(root+"/etc/deep/file", 0o4711)
			s := container(`stat -c '%u:%g %a' /etc /etc/deep/file /missing /named; cat /etc/deep/file; readlink /etc/link; stat -c %F /etc/fifo
touch /etc/new && ls /etc; mount | grep -c -E '/etc|/missing|/named'`, userns)
			up := func(dest string, o ...string) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: append(o, "tmpcopyup", "nosuid")})
			}
			up("/etc", "size=1m")
			up("/missing", "mode=750")
			up("/named", "uid=5", "gid=6", "mode=711")
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_DAC_OVERRIDE"}, Effective: []string{"CAP_DAC_OVERRIDE"}, Permitted: []string{"CAP_DAC_OVERRIDE"}}
			wants(t, s, dir, "0:0 701\n3:4 4711\n0:0 750\n5:6 711\ntext\n/outside\nfifo\ndeep\nfifo\nlink\nnew\n3\n")
			if _, err := os.Stat(root + "/etc/new"); err == nil {
				t.Error("the root filesystem has changed")
			}
		})
	}
}

// TestCopyUpRefusals: what is not there yet, or would not fit, is no empty directory.
func TestCopyUpRefusals(t *testing.T) {
	dir := busybox(t, 0)
	os.MkdirAll(dir+"/rootfs/big", 0o755)
	os.WriteFile(dir+"/rootfs/big/file", make([]byte, 1<<20), 0o600)
	os.Symlink("../../../../../..", dir+"/rootfs/up")
	tmp := func(dest, typ string, o ...string) specs.Mount {
		return specs.Mount{Destination: dest, Type: typ, Source: "tmpfs", Options: append(o, "tmpcopyup")}
	}
	for _, tt := range []struct {
		mounts []specs.Mount
		cause  error
	}{
		{[]specs.Mount{{Destination: "/a", Type: "tmpfs"}, tmp("/a/b", "tmpfs")}, program.ErrUnsupported},
		{[]specs.Mount{tmp("/a", "ramfs")}, program.ErrInvalid},
		{[]specs.Mount{tmp("/a", "tmpfs", "uid=x")}, program.ErrInvalid},
		{[]specs.Mount{tmp("/big", "tmpfs", "size=64k")}, unix.ENOSPC},
	} {
		s := container("true", false)
		n := len(s.Mounts) + len(tt.mounts) - 1
		s.Mounts = append(s.Mounts, tt.mounts...)
		if _, err := run(t, s, dir); !errors.Is(err, tt.cause) || !strings.HasPrefix(err.Error(), fmt.Sprintf("mounts[%d].source: ", n)) {
			t.Errorf("%v: %v, want %v", tt.mounts, err, tt.cause)
		}
	}
	s := container("ls /up/bin/sh", false) // a link that climbs stays inside
	s.Mounts = append(s.Mounts, tmp("/up/big", "tmpfs"))
	wants(t, s, dir, "/up/bin/sh\n")
}

// TestOverlay: a filesystem with paths of the host, also with more of them than
// one value of fsconfig holds.
func TestOverlay(t *testing.T) {
	for _, layers := range []int{2, 12} {
		t.Run(fmt.Sprint(layers), func(t *testing.T) {
			dir := busybox(t, 0)
			var lower []string
			for i := range layers {
				l := fmt.Sprintf("%s/lower%d", dir, i)
				os.Mkdir(l, 0o755)
				os.WriteFile(fmt.Sprintf("%s/f%02d", l, i), nil, 0o644)
				lower = append(lower, l)
			}
			disk := t.TempDir()
			if err := unix.Mount("tmpfs", disk, "tmpfs", 0, ""); err != nil { // the root may be an overlay itself
				t.Fatal(err)
			}
			defer unix.Unmount(disk, unix.MNT_DETACH)
			os.Mkdir(disk+"/upper", 0o755)
			os.Mkdir(disk+"/work", 0o755)
			s := container("ls /o | grep -c f; touch /o/new && echo made; mount | grep -c ' /o type overlay (rw,nosuid'", false)
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/o", Type: "overlay", Source: "overlay",
				Options: []string{"lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + disk + "/upper", "workdir=" + disk + "/work", "nosuid"}})
			wants(t, s, dir, fmt.Sprintf("%d\nmade\n1\n", layers))
			if _, err := os.Stat(disk + "/upper/new"); err != nil {
				t.Error(err)
			}
		})
	}
	s := container("true", false)
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/o", Type: "nosuchfs"})
	if _, err := run(t, s, busybox(t, 0)); !errors.Is(err, unix.ENODEV) || !strings.HasPrefix(err.Error(), "mounts[3].source: ") {
		t.Error(err)
	}
}

// TestDanglingDirectories: a directory behind a link that leads nowhere is made
// inside the root, wherever the link says it is.
func TestDanglingDirectories(t *testing.T) {
	dir := busybox(t, 0)
	canary := t.TempDir()
	root := dir + "/rootfs"
	os.Mkdir(root+"/var", 0o755)
	os.Symlink("/run/inner", root+"/var/run")
	os.Symlink("../../../.."+canary+"/x", root+"/out")
	os.Symlink("loop", root+"/loop")
	s := container("cat /run/inner/v/file /out/file; ls -d "+canary+"/x/file; mount | grep -c ' /run/inner/t '", false)
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/var/run/v", Source: "volume", Options: []string{"bind"}},
		specs.Mount{Destination: "/var/run/t", Type: "tmpfs"}, specs.Mount{Destination: "/out", Source: "volume", Options: []string{"bind"}})
	wants(t, s, dir, "contentcontent"+canary+"/x/file\n1\n")
	if l, _ := os.ReadDir(canary); len(l) != 0 {
		t.Errorf("made outside: %v", l)
	}
	s.Mounts[5].Destination = "/loop"
	if _, err := run(t, s, dir); !errors.Is(err, unix.ELOOP) {
		t.Error(err)
	}
}

// TestOwnCgroup: without a cgroup namespace a container sees its own cgroup and
// not the machine's tree, also in a user namespace.
func TestOwnCgroup(t *testing.T) {
	for _, userns := range []bool{false, true} {
		dir := busybox(t, map[bool]int{true: firstID}[userns])
		s := container("ls /sys/fs/cgroup; touch /sys/fs/cgroup/x 2>&1", userns)
		s.Linux.Namespaces = append(s.Linux.Namespaces[:5:5], s.Linux.Namespaces[6:]...)
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Options: []string{"ro", "nosuid"}})
		wants(t, s, dir, "file\ntouch: /sys/fs/cgroup/x: Read-only file system\n")
		s.Mounts[3].Options = []string{"nsdelegate"}
		if _, err := run(t, s, dir); !errors.Is(err, program.ErrUnsupported) || !strings.HasPrefix(err.Error(), "mounts[3]: option nsdelegate") {
			t.Errorf("user namespace %v: an option of the machine's tree: %v", userns, err)
		}
	}
}

// TestProcOfTheHost may be bound, and nothing else to /proc.
func TestProcOfTheHost(t *testing.T) {
	dir := busybox(t, 0)
	s := container("cat /proc/self/comm", false)
	s.Mounts[0] = specs.Mount{Destination: "/proc", Source: "/proc", Options: []string{"rbind"}}
	wants(t, s, dir, "cat\n")
	s.Mounts[0].Source = "volume"
	if _, err := run(t, s, dir); !errors.Is(err, program.ErrInvalid) {
		t.Error(err)
	}
}

// TestGuess gives the program that Open would, without opening anything.
func TestGuess(t *testing.T) {
	dir := busybox(t, firstID)
	s := container("true", true)
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v", Source: "volume/file", Options: []string{"bind", "idmap"}},
		specs.Mount{Destination: "/t", Type: "tmpfs", Options: []string{"tmpcopyup"}})
	var steps []int
	for _, open := range []func(*specs.Spec, string) (*source.Set, error){source.Open, source.Guess} {
		set, err := open(s, dir)
		if err != nil {
			t.Fatal(err)
		}
		defer set.Close()
		in := program.Input{Spec: s}
		set.Apply(&in)
		p, err := program.Compile(in)
		if err != nil {
			t.Fatal(err)
		}
		steps = append(steps, len(p.Steps), len(p.Files))
	}
	if steps[0] != steps[2] || steps[1] != steps[3] {
		t.Errorf("steps and files %v", steps)
	}
}
