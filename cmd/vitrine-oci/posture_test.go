package main

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/conformance/posture"
)

// What a process is that the command line starts, held against golden files (package
// posture): the init of what `vitrine-oci spec` writes, and a user's exec in it, both on a
// terminal; and the same in a user namespace. conformance/integration has the other profiles.

var lookAround = `
sec() { echo "# $1"; }
sec status; ` + posture.Status("Uid", "Gid", "Groups", "Umask", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Cap*", "SigBlk", "TracerPid", "NSpid", "NSsid", "NSpgid") + `
sec limits; grep 'open files' /proc/$$/limits
sec namespaces; for n in cgroup ipc mnt net pid time user uts; do echo "$n $(readlink /proc/$$/ns/$n)"; done
sec maps; cat /proc/$$/uid_map /proc/$$/gid_map /proc/$$/setgroups
sec place; grep ^0: /proc/$$/cgroup; readlink /proc/$$/cwd; hostname
sec terminal; tty; stty size 2>/dev/null; stty -a 2>/dev/null | grep -o 'isig.* echo '; set -- $(cat /proc/$$/stat); echo "terminal $7, group in front $([ $8 = $5 ] && echo its own)"
sec dev; cd /dev; for f in * pts/*; do stat -c '%n %A %u:%g %t:%T %N' $f; done; cd /
sec mounts; cat /proc/$$/mountinfo
sec descriptors; for f in $(seq 0 64); do test -L /proc/$$/fd/$f && echo "$f $(readlink /proc/$$/fd/$f)"; done
sec environment; tr '\0' '\n' </proc/$$/environ | sort
sec writable; for f in /proc/sys/kernel/domainname /proc/sys/vm/drop_caches /sys/kernel/uevent_helper /sys/fs/cgroup/cgroup.procs /x /dev/x; do (: >>$f) 2>/dev/null && echo $f; done; rm -f /dev/x
sec end
`

// postureBundle is a bundle of `vitrine-oci spec` with a program that looks around.
func postureBundle(t *testing.T) (dir string, s *specs.Spec) {
	t.Helper()
	dir = bundleOf(t, "")
	for _, a := range []string{"grep", "readlink", "hostname", "stat", "seq", "tr", "sort", "rm", "echo", "test"} {
		os.Symlink("busybox", dir+"/rootfs/bin/"+a)
	}
	os.Remove(dir + "/config.json")
	if code, _, errs := cli("spec", "--bundle", dir); code != 0 {
		t.Fatal(errs)
	}
	b, err := os.ReadFile(dir + "/config.json")
	if err != nil {
		t.Fatal(err)
	}
	s = new(specs.Spec)
	if err := json.Unmarshal(b, s); err != nil {
		t.Fatal(err)
	}
	s.Process.Args = []string{"/bin/sh", "-c", lookAround + "cat >/dev/null"}
	s.Process.ConsoleSize = &specs.Box{Height: 40, Width: 200}
	b, _ = json.Marshal(s)
	os.WriteFile(dir+"/config.json", b, 0o600)
	return dir, s
}

func TestPostureOnTerminals(t *testing.T) {
	dir, s := postureBundle(t)
	socks := t.TempDir()
	masters := make(chan int, 1)
	serve(t, socks+"/console", func(_ []byte, fd int) { masters <- fd })
	do := func(args ...string) {
		t.Helper()
		if code, _, errs := cli(append([]string{"--root", socks + "/state", "--cgroup-manager", "disabled"}, args...)...); code != 0 {
			t.Fatalf("%q: %s", args[0], errs)
		}
	}
	t.Cleanup(func() { cli("--root", socks+"/state", "--cgroup-manager", "disabled", "delete", "--force", "c") })
	do("create", "--bundle", dir, "--console-socket", socks+"/console", "c")
	master := terminal(t, <-masters)
	do("start", "c")
	init := upTo(t, master, "# end")
	do("exec", "--tty", "--user", "1000:1000", "--console-socket", socks+"/console", "--detach", "--pid-file", socks+"/pid", "c", "/bin/sh", "-c", lookAround)
	inside := upTo(t, terminal(t, <-masters), "# end")
	b, _ := os.ReadFile(socks + "/pid")
	if pid, err := strconv.Atoi(string(b)); err != nil {
		t.Error(err)
	} else if _, err := unix.Wait4(pid, nil, 0, nil); err != nil { // a zombie would keep its pid namespace
		t.Error(err)
	}
	posture.Golden(t, "tty", normal(s, init, ""))
	posture.Golden(t, "exec-tty", normal(s, inside, init))
}

// TestPostureInUserNamespace: root there is nobody here; and a user's exec in it.
func TestPostureInUserNamespace(t *testing.T) {
	n := newNode(t)
	dir, s := postureBundle(t)
	give(t, dir+"/rootfs", 300000)
	maps := []specs.LinuxIDMapping{{HostID: 300000, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Process.Terminal = false
	with := func(script string) {
		t.Helper()
		s.Process.Args[2] = script
		b, _ := json.Marshal(s)
		if err := os.WriteFile(dir+"/config.json", b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	with(lookAround)
	posture.Golden(t, "userns", normal(s, n.must("run", "--bundle", dir, n.tag), ""))
	with("exec sleep 1000")
	n.must("run", "--detach", "--bundle", dir, n.tag)
	init := n.must("exec", n.tag, "/bin/sh", "-c", "for n in cgroup ipc mnt net pid time user uts; do echo $n $(readlink /proc/1/ns/$n); done")
	posture.Golden(t, "exec-userns", normal(s, n.must("exec", "--user", "1000:1000", n.tag, "/bin/sh", "-c", lookAround), init))
	n.must("delete", "--force", n.tag)
}

// callers are the files that the binary was given as stdout and stderr.
var callers = regexp.MustCompile(`^([12]) /.*/(out|err)$`)

// normal writes what a probe has said in words that are the same everywhere.
// of is what the container's init has said, for an exec.
func normal(s *specs.Spec, text, of string) string {
	var b strings.Builder
	var mounts []string // their order is the kernel's
	at := ""
	for line := range strings.Lines(strings.ReplaceAll(text, "\r", "")) {
		line = strings.TrimRight(line, "\n")
		name, begins := strings.CutPrefix(line, "# ")
		switch {
		case begins && name == "end":
			return b.String()
		case begins:
			slices.Sort(mounts)
			b.WriteString(strings.Join(mounts, ""))
			mounts, at = nil, name
			b.WriteString(at + "\n")
			continue
		case at == "namespaces":
			kind, ns, _ := strings.Cut(line, " ")
			if host, _ := os.Readlink("/proc/self/ns/" + kind); host == ns {
				line = kind + " the host's"
			} else if strings.Contains(of, line) {
				line = kind + " the container's"
			} else {
				line = kind + " its own"
			}
		case at == "status" && strings.HasPrefix(line, "NS"):
			kind, ids, _ := strings.Cut(line, ":")
			if f := strings.Fields(ids); of != "" && len(f) == 1 {
				line = kind + ": one"
			}
		case at == "descriptors":
			line = callers.ReplaceAllString(line, "$1 the caller's $2")
		case at == "mounts":
			if line = mounted(s, line); line != "" {
				mounts = append(mounts, posture.Line(line))
			}
			continue
		}
		b.WriteString(posture.Line(line))
	}
	return b.String()
}

// withoutHosts leaves out what a device has from the host's /dev, whose flags are not lost when one is bound: systemd mounts
// that nosuid.
func withoutHosts(flags string) string {
	var st unix.Statfs_t
	if err := unix.Statfs("/dev", &st); err == nil && st.Flags&unix.ST_NOSUID != 0 {
		flags = strings.Replace(flags, ",nosuid", "", 1)
	}
	return flags
}

// mounted says where something is mounted, of what kind and with what flags, or
// nothing for a path that the spec wants masked or read-only and that is so: which
// of them exist is the kernel's.
func mounted(s *specs.Spec, line string) string {
	m, ok := posture.ParseMount(line)
	if !ok {
		return "unreadable: " + line
	}
	at, flags, kind, super := m.At, m.Flags, m.Kind, m.Super
	if strings.HasPrefix(flags, "ro,") && (slices.Contains(s.Linux.MaskedPaths, at) && (kind == "tmpfs" || strings.HasSuffix(m.Root, "/null")) || slices.Contains(s.Linux.ReadonlyPaths, at)) {
		return ""
	}
	if m.Root != "/" && kind != "devpts" && strings.HasPrefix(at, "/dev/") {
		flags = withoutHosts(flags)
	}
	if len(m.Propagation) > 0 {
		flags += " " + strings.Join(m.Propagation, ",")
	}
	switch {
	case at == "/" || m.Root != "/" && kind != "devpts": // of the host's files
		kind, super = "bind", ""
	case kind == "tmpfs" || kind == "devpts":
		super = strings.TrimSuffix(super, ",inode64")
	default:
		super = ""
	}
	return strings.Join([]string{at, kind, flags, super}, " ")
}
