package program_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// hostSysctl reads a parameter of the test's own namespaces.
func hostSysctl(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestSysctlsOfTheContainer: each kind of parameter is set in the container, and
// the host keeps its own.
func TestSysctlsOfTheContainer(t *testing.T) {
	root := rootTree(t)
	values := map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "77", "net/ipv4/conf/lo/forwarding": "1", "net.ipv4.ping_group_range": "5 7", "kernel.shmmax": "123456789",
		"kernel.sem": "17 32000 33 99", "fs.mqueue.msg_max": "13", "kernel.domainname": "glass.example",
	}
	s := newStage(root, "sh", "-c", `cd /proc/sys; for f in net/ipv4/ip_unprivileged_port_start net/ipv4/conf/lo/forwarding net/ipv4/ping_group_range kernel/shmmax kernel/sem fs/mqueue/msg_max kernel/domainname; do echo $(cat $f); done`)
	s.in.Spec.Linux.Sysctl = values
	port, shm, name := hostSysctl(t, "net/ipv4/ip_unprivileged_port_start"), hostSysctl(t, "kernel/shmmax"), hostSysctl(t, "kernel/domainname")
	s.wants(t, "77\n1\n5 7\n123456789\n17 32000 33 99\n13\nglass.example\n")
	if hostSysctl(t, "net/ipv4/ip_unprivileged_port_start") != port || hostSysctl(t, "kernel/shmmax") != shm || hostSysctl(t, "kernel/domainname") != name {
		t.Error("a parameter of the host has changed")
	}
}

// TestSysctlsGoToTheKernel: a tmpfs in the place of /proc takes nothing, and
// nothing of the container is followed.
func TestSysctlsGoToTheKernel(t *testing.T) {
	root := rootTree(t)
	write(t, root+"/fake/sys/net/ipv4/ip_forward", "untouched")
	s := newStage(root, "sh", "-c", "cat /fake/sys/net/ipv4/ip_forward; ls /proc; cat /kernel/sys/net/ipv4/ip_forward")
	s.without("/proc")
	s.in.Spec.Mounts = append(s.in.Spec.Mounts, specs.Mount{Destination: "/kernel", Type: "proc"}, specs.Mount{Destination: "/proc", Type: "tmpfs"})
	s.in.Spec.Linux.MaskedPaths, s.in.Spec.Linux.ReadonlyPaths = nil, nil
	s.in.Spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	s.wants(t, "untouched1\n")
}

// TestSysctlsOfUserNamespace: who is root in a user namespace only may write what
// belongs to it, from within.
func TestSysctlsOfUserNamespace(t *testing.T) {
	s := userSpec("sh", "-c", "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shmmax user/max_net_namespaces")
	s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shmmax": "4096", "user.max_net_namespaces": "3"}
	before := hostSysctl(t, "user/max_net_namespaces")
	st := userStage(t, mappedRoot(t), s)
	st.wants(t, "77\n4096\n3\n")
	if hostSysctl(t, "user/max_net_namespaces") != before {
		t.Error("a parameter of the host has changed")
	}
}

func TestSysctlErrors(t *testing.T) {
	root := rootTree(t)
	for _, tt := range []struct{ key, value, want string }{
		{"net.ipv4.ip_forward", "many", "!set sysctl net.ipv4.ip_forward to many: invalid argument"},
		{"net.ipv4.ip_forward", "1 2", "!set sysctl net.ipv4.ip_forward to 1 2, all of it: invalid argument"},
		{"net.ipv4.nothing", "1", "!find sysctl net.ipv4.nothing: no such file or directory"},
		{"net.ipv4.conf.none.forwarding", "1", "!no such file"},
		{"net.core", "1", "!is a directory"},
		{"net.ipv4.ip_forward.x", "1", "!not a directory"},
		{"net.ipv4.ip_forward", "1\n", ""},
	} {
		s := newStage(root, "true")
		s.in.Spec.Linux.Sysctl = map[string]string{tt.key: tt.value}
		s.wants(t, tt.want)
	}
}

func TestSysctlsOfTheHostAreRefused(t *testing.T) {
	for _, tt := range []struct {
		key, value string
		change     func(in *program.Input)
		want       string
	}{
		{"kernel.core_pattern", "|/x", nil, `linux.sysctl["kernel.core_pattern"]: belongs to no namespace of the container: not supported`},
		{"kernel.hostname", "x", nil, "belongs to no namespace"},
		{"vm.swappiness", "1", nil, "belongs to no namespace"},
		{"net/../kernel/core_pattern", "x", nil, "belongs to no namespace"},
		{"net.", "x", nil, "belongs to no namespace"},
		{"", "x", nil, "belongs to no namespace"},
		{"user.max_user_namespaces", "0", nil, "the user namespace is the host's: invalid"},
		{"net.ipv4.ip_forward", "", nil, `value ""`},
		{"net.ipv4.ip_forward", "1\x00", nil, "value"},
		{"net.ipv4.ip_forward", "1", func(in *program.Input) { in.Host = []specs.LinuxNamespaceType{specs.NetworkNamespace} }, "the network namespace is the host's"},
		{"net.ipv4.ip_forward", "1", func(in *program.Input) { drop(in.Spec, specs.NetworkNamespace) }, "the network namespace is the host's"},
		{"kernel.shmmax", "1", func(in *program.Input) { drop(in.Spec, specs.IPCNamespace) }, "the ipc namespace is the host's"},
		{"fs.mqueue.msg_max", "1", func(in *program.Input) { drop(in.Spec, specs.IPCNamespace) }, "the ipc namespace is the host's"},
		{"kernel.domainname", "x", func(in *program.Input) { drop(in.Spec, specs.UTSNamespace) }, "the uts namespace is the host's"},
	} {
		s := newStage("", "true")
		s.in.Spec.Linux.Sysctl = map[string]string{tt.key: tt.value}
		if tt.change != nil {
			tt.change(&s.in)
		}
		if _, err := program.Compile(s.in); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.key, err, tt.want)
		}
	}
}

// drop takes a namespace out of the spec.
func drop(s *specs.Spec, typ specs.LinuxNamespaceType) {
	var keep []specs.LinuxNamespace
	for _, n := range s.Linux.Namespaces {
		if n.Type != typ {
			keep = append(keep, n)
		}
	}
	s.Linux.Namespaces = keep
}

// TestAppArmor: a profile holds from the execve on, for an exec too. Without
// AppArmor in the kernel, or without the profile, the error says which.
func TestAppArmor(t *testing.T) {
	root := rootTree(t)
	s := newStage(root, "sh", "-c", "cat /proc/self/attr/apparmor/current; cat /etc/secret 2>&1")
	write(t, root+"/etc/secret", "secret\n")
	s.in.Spec.Process.ApparmorProfile = "vitrine-test-nowhere"
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || string(b) != "Y\n" {
		s.wants(t, "!AppArmor")
		s.wants(t, "!vitrine-test-nowhere: ")
		t.Skip("the rest needs AppArmor in the kernel: errors only")
	}
	s.wants(t, "!run under AppArmor profile vitrine-test-nowhere: no such file or directory")
	s.in.Spec.Process.ApparmorProfile = "unconfined"
	s.wants(t, "unconfined\nsecret\n")
	loadAppArmor(t)
	s.in.Spec.Process.ApparmorProfile = "vitrine-test"
	for i, nnp := range []bool{false, true, false, true} {
		s.in.Spec.Process.NoNewPrivileges = nnp
		s.in.Spec.Process.User.UID = uint32(500 * (i / 2))
		s.wants(t, "vitrine-test (enforce)\ncat: can't open '/etc/secret': Permission denied\n")
	}
	s = newStage(root, "sleep", "60")
	s.after = func(c *executor.Child) {
		e := testSpec("sh", "-c", "cat /proc/self/attr/apparmor/current; cat /etc/secret 2>&1").Process
		e.ApparmorProfile = "vitrine-test"
		if out, err := execIn(t, c, e); err != nil || !strings.HasPrefix(out, "vitrine-test (enforce)\n") || strings.Contains(out, "secret\n") {
			t.Errorf("exec: %q, %v", out, err)
		}
		unix.Kill(c.Pid(), unix.SIGKILL)
	}
	s.run(t)
}

// loadAppArmor gives the kernel testdata/apparmor.profile, as compiled by
// apparmor_parser 3.0.8 -Q -K -S -M abi/3.0.
func loadAppArmor(t *testing.T) {
	t.Helper()
	const dir = "/sys/kernel/security/apparmor/"
	f, err := os.Open("testdata/apparmor.bin.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+".replace", policy, 0); errors.Is(err, fs.ErrNotExist) {
		t.Skip("the rest needs securityfs: " + err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(dir+".remove", []byte("vitrine-test"), 0) })
}

// TestSELinux: where it is missing, the error says so; where it is there, the
// label is the process's.
func TestSELinux(t *testing.T) {
	const label = "system_u:system_r:container_t:s0:c1,c2"
	root := rootTree(t)
	s := newStage(root, "cat", "/proc/self/attr/current")
	s.in.Spec.Process.SelinuxLabel = label
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !bytes.Contains(b, []byte("\tselinuxfs\n")) {
		s.wants(t, "!find SELinux in this kernel, for label "+label+": no such device")
		c := newStage(root, "sleep", "60")
		c.after = func(c *executor.Child) {
			e := testSpec("true").Process
			e.SelinuxLabel = label
			if _, err := execIn(t, c, e); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), label) {
				t.Errorf("exec: %v", err)
			}
			unix.Kill(c.Pid(), unix.SIGKILL)
		}
		c.run(t)
		t.Skip("the rest needs SELinux in the kernel: errors only")
	}
	if b, err := os.ReadFile("/proc/self/attr/current"); err != nil || !bytes.Contains(b, []byte(":")) {
		t.Skip("the rest needs a policy with " + label)
	}
	for _, uid := range []uint32{0, 500} {
		s.in.Spec.Process.User.UID = uid
		s.wants(t, label)
	}
	c := newStage(root, "sleep", "60")
	c.after = func(c *executor.Child) {
		e := testSpec("cat", "/proc/self/attr/current").Process
		e.SelinuxLabel = label
		if out, err := execIn(t, c, e); err != nil || !strings.HasPrefix(out, label) {
			t.Errorf("exec: %q, %v", out, err)
		}
		unix.Kill(c.Pid(), unix.SIGKILL)
	}
	c.run(t)
	s.in.Spec.Process.SelinuxLabel = "system_u:system_r:nobody_t:s0"
	s.wants(t, "!system_u:system_r:nobody_t:s0: invalid argument")
}

// TestMountLabel: with a label for mounts, the container's own filesystems have it, each once: not the kernel's, and none whose
// options name another. That the files then have it, a kernel with SELinux shows: TestSELinuxLabels.
func TestMountLabel(t *testing.T) {
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	s := newStage("", "true")
	s.in.Spec.Mounts = append(s.in.Spec.Mounts,
		specs.Mount{Destination: "/a", Type: "ramfs", Source: "ramfs"},
		specs.Mount{Destination: "/b", Type: "tmpfs", Source: "tmpfs", Options: []string{"rootcontext=other"}})
	text := func() string {
		p, err := program.Compile(s.in)
		var b bytes.Buffer
		if err := errors.Join(err, program.Explain(&b, p)); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if strings.Contains(text(), `"context"`) {
		t.Error("a label without one in the spec")
	}
	s.in.Spec.Linux.MountLabel = label
	var on []string
	fstype := ""
	for line := range strings.Lines(text()) {
		if m := regexp.MustCompile(`fsopen +r\d+ = \("(\w+)"`).FindStringSubmatch(line); m != nil {
			fstype = m[1]
		}
		if strings.Contains(line, `"context", "`+label+`"`) {
			on = append(on, fstype)
		}
	}
	if want := []string{"tmpfs", "devpts", "ramfs"}; !slices.Equal(on, want) {
		t.Errorf("label on %q, want on %q\n%s", on, want, text())
	}
	s.in.Spec.Linux.MountLabel = "a\nb"
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) || !strings.Contains(err.Error(), "linux.mountLabel") {
		t.Errorf("a label of two lines: %v", err)
	}
}

func TestLabelsThatWouldNotArrive(t *testing.T) {
	for _, l := range []string{"a\x00b", "a\nb", " a", "a ", strings.Repeat("x", 4001)} {
		for i := range 2 {
			s := newStage("", "true")
			p := s.in.Spec.Process
			if i == 0 {
				p.ApparmorProfile = l
			} else {
				p.SelinuxLabel = l
			}
			_, err := program.Compile(s.in)
			_, execErr := program.CompileExec(program.ExecInput{Process: p})
			if !errors.Is(err, program.ErrInvalid) || !errors.Is(execErr, program.ErrInvalid) {
				t.Errorf("%.10q: %v, exec %v", l, err, execErr)
			}
		}
	}
}

// TestSessionKeyring: neither a container nor an exec has the keyring of who
// started it, nor the other's.
func TestSessionKeyring(t *testing.T) {
	if os.Getenv("PROBE") != "" { // as the program of a container
		id, _, errno := unix.Syscall(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, sessionKeyring, 0)
		fmt.Printf("keyring %d %d\n", id, errno)
		return
	}
	root := rootTree(t)
	ours, _, errno := unix.Syscall(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, sessionKeyring, 1)
	if errno != 0 {
		t.Skip("needs keyrings in the kernel: " + errno.Error())
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(self[:4096], []byte("/ld-linux")) {
		t.Skip("needs a static test binary: runs it in a container")
	}
	write(t, root+"/bin/probe", string(self))
	os.Chmod(root+"/bin/probe", 0o755)
	probe := []string{"probe", "-test.run=^TestSessionKeyring$", "-test.v"}
	seen := map[string]bool{fmt.Sprintf("keyring %d 0", ours): true}
	look := func(who, out string) {
		_, line, _ := strings.Cut(out, "keyring ")
		line, _, _ = strings.Cut(line, "\n")
		if line = "keyring " + line; seen[line] || !strings.HasSuffix(line, " 0") {
			t.Errorf("%s has %q; others have %v", who, line, seen)
		}
		seen[line] = true
	}
	s := newStage(root, "sleep", "60")
	s.in.Spec.Process.Env = append(s.in.Spec.Process.Env, "PROBE=1")
	s.after = func(c *executor.Child) {
		e := testSpec(probe...).Process
		e.Env = append(e.Env, "PROBE=1")
		out, err := execIn(t, c, e)
		if err != nil {
			t.Error(err)
		}
		look("exec", out)
		unix.Kill(c.Pid(), unix.SIGKILL)
	}
	s.run(t)
	s.after, s.in.Spec.Process.Args = nil, probe
	res := s.run(t)
	if res.err != nil {
		t.Fatal(res.err)
	}
	look("container", res.out)
}

const sessionKeyring = ^uintptr(2) // KEY_SPEC_SESSION_KEYRING

// TestCheckOfWrites: what a program writes goes to its own procfs, whole, and to
// nothing that is the machine's.
func TestCheckOfWrites(t *testing.T) {
	spec := testSpec("true")
	spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	spec.Process.ApparmorProfile, spec.Process.SelinuxLabel = "x", "a:b:c"
	container, err := program.Compile(program.Input{Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	further, err := program.CompileExec(program.ExecInput{Process: spec.Process})
	if err != nil {
		t.Fatal(err)
	}
	for which, good := range map[string]*step.Program{"container": container, "exec": further} {
		var writes []int
		for i := range good.Steps {
			if good.Steps[i].Nr == unix.SYS_PWRITE64 {
				writes = append(writes, i)
			}
		}
		if want := map[string]int{"container": 5, "exec": 4}[which]; len(writes) != want {
			t.Errorf("%s: %d writes, want %d", which, len(writes), want)
		}
		for _, i := range writes {
			breaks(t, which+", "+good.Steps[i].Name+", with another", good, map[string]func(p *step.Program){
				"path":         func(p *step.Program) { retarget(p, i-1, "sys/kernel/core_pattern") },
				"climbing":     func(p *step.Program) { retarget(p, i-1, "sys/net/../kernel/core_pattern") },
				"other file":   func(p *step.Program) { retarget(p, i-1, "self/mem") },
				"image's proc": func(p *step.Program) { p.Steps[i-1].Args[0] = step.Arg{Val: step.FirstFD} },
				"way":          func(p *step.Program) { p.Steps[i-1].Args[2] = p.Steps[i-1].Args[1] },
				"descriptor":   func(p *step.Program) { p.Steps[i].Args[0] = step.Arg{Val: 5} },
				"offset":       func(p *step.Program) { p.Steps[i].Args[3] = step.Arg{Val: 1} },
				"count":        func(p *step.Program) { p.Steps[i+1].Args[1].Val++ },
				"no look":      func(p *step.Program) { p.Steps[i+1].Nr = step.OpSet },
				"jump":         func(p *step.Program) { p.Steps[i-2].Then = 1 },
				"other fs": func(p *step.Program) {
					for j := range p.Steps {
						if p.Steps[j].Name == "prepare a procfs of our own" {
							retargetArg(p, &p.Steps[j].Args[0], "sysfs")
						}
					}
				},
			})
		}
	}
}

func retarget(p *step.Program, i int, path string) { retargetArg(p, &p.Steps[i].Args[1], path) }

func retargetArg(p *step.Program, a *step.Arg, text string) {
	*a = step.Arg{Kind: step.Addr, Val: uint64(len(p.Data))}
	p.Data = append(p.Data, append([]byte(text), 0)...)
}
