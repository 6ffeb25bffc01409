package oci

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// Between the new mount namespace and pivot_root no path may be followed that
// leads through the root by name (rule R1). Check proves it over programs; this
// lint sees what the kernel is really asked, by strace, whoever asks it.

// lintVictim makes TestStraceLint what is looked at.
const lintVictim = "VITRINE_LINT_VICTIM"

// runLintVictim is what runs under strace: a container with everything that
// follows a path, and an exec in it.
func runLintVictim(t *testing.T) {
	n := newNode(t)
	if err := os.Symlink("../tmp", filepath.Join(n.rootfs, "bin/out")); err != nil {
		t.Fatal(err)
	}
	p := n.pod(nil)
	c := n.config(p, "c", "sleep", "1000")
	s := c.Spec
	vol := t.TempDir()
	for _, d := range []string{"/vol/deep/missing", "/var/run/secrets", "/bin/out/x"} {
		tree, err := sys.OpenTree(unix.AT_FDCWD, vol, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		if c.Mounts == nil {
			c.Mounts = map[int]*sys.FD{}
		}
		c.Mounts[len(s.Mounts)] = tree
		s.Mounts = append(s.Mounts, specs.Mount{Destination: d, Type: "bind", Source: vol, Options: []string{"rbind", "ro"}})
	}
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
		specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}},
		specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance"}},
		specs.Mount{Destination: "/dev/shm/a b", Type: "tmpfs", Source: "/srv/shm"})
	s.Linux.MaskedPaths = []string{"/proc/kcore", "/proc/acpi", "/sys/firmware", "/bin/out", "/none"}
	s.Linux.ReadonlyPaths = []string{"/proc/sys", "/proc/sysrq-trigger"}
	s.Process.Cwd = "/work/dir"
	pr, err := p.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := pr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, st := run(t, pr, "echo", "hello"); st.ExitCode() != 0 || out != "hello\n" {
		t.Fatalf("%q, %+v", out, st)
	}
}

// TestStraceLint is the rule over the system calls of a container and an exec.
func TestStraceLint(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces and mounts")
	}
	if os.Getenv(lintVictim) != "" {
		runLintVictim(t)
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs Debian's strace: " + err.Error())
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-qq", "-v", "-s", "4096", "-o", out,
		"-e", "trace=clone,clone3,execve,pivot_root,unshare,setns,%file,open_tree,move_mount,mount_setattr,mount,umount2,openat2,fsconfig,fchdir,exit_group",
		self, "-test.run", "^TestStraceLint$", "-test.v")
	cmd.Env = append(os.Environ(), lintVictim+"=1")
	text, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(text), "--- PASS: TestStraceLint") {
		t.Fatalf("under strace: %v\n%s", err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	trace := strings.Split(string(b), "\n")
	l := lint(trace)
	if len(l.bad) > 0 {
		t.Errorf("%d calls follow paths by name:\n%s", len(l.bad), strings.Join(l.bad[:min(len(l.bad), 20)], "\n"))
	}
	if l.pivots != 1 || l.execs != 1 || l.calls < 100 {
		t.Errorf("%d containers, %d execs, %d calls between the namespace and the pivot", l.pivots, l.execs, l.calls)
	}
	t.Logf("%d calls looked at", l.calls)
	// The lint itself: each of these in the place of one good call has to be found.
	at := slices.IndexFunc(trace, func(s string) bool { return strings.Contains(s, "openat2(5, \"dev\"") })
	if at < 0 {
		t.Fatal("no openat2 of /dev in the trace")
	}
	pid, _, _ := strings.Cut(trace[at], " ")
	for _, call := range []string{
		`mkdirat(AT_FDCWD, "/root/dev", 0755) = 0`, `openat(AT_FDCWD, "root/dev", O_PATH) = 6`, `mount("proc", "/root/proc", "proc", 0, NULL) = 0`,
		`openat2(5, "dev/pts", {flags=O_PATH, resolve=RESOLVE_NO_MAGICLINKS}, 24) = 6`, `openat2(AT_FDCWD, "dev", {flags=O_PATH, resolve=RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS}, 24) = 6`,
		`mknodat(6, "a/b", S_IFCHR|0666, makedev(1, 3)) = 0`, `open("/proc/self/attr/exec", O_WRONLY) = 6`, `symlinkat("/proc/self/fd", 6, "../fd") = 0`,
		`move_mount(6, "", AT_FDCWD, "/root/dev", MOVE_MOUNT_F_EMPTY_PATH) = 0`, `openat(5, "dev", O_PATH) = 6`, `chdir("/root") = 0`,
	} {
		doctored := slices.Clone(trace)
		doctored[at] = pid + " " + call
		if len(lint(doctored).bad) != 1 {
			t.Errorf("not found: %s", call)
		}
	}
}

// linted is what a lint has found.
type linted struct {
	bad                  []string
	calls, pivots, execs int
}

var (
	callLine = regexp.MustCompile(`^(\d+)\s+(\w+)\((.*)$`)
	resumed  = regexp.MustCompile(`^(\d+)\s+<\.\.\. (\w+) resumed>.*= (\d+)$`)
	result   = regexp.MustCompile(`\) += (\d+)$`)
	pathArg  = regexp.MustCompile(`"((?:[^"\\]|\\.)*)"`)
)

// lint follows each child that is cloned with a new mount namespace up to its
// pivot_root, and counts those that join one. A monitor is cloned so too, as
// programs are executed (CLONE_VFORK): it has nobody's root yet.
func lint(trace []string) (l linted) {
	watched := map[string]bool{} // pid -> has not got to its pivot
	pending := map[string]bool{} // pid -> is in such a clone3
	for _, line := range trace {
		if m := resumed.FindStringSubmatch(line); m != nil && m[2] == "clone3" && pending[m[1]] {
			watched[m[3]] = true
			delete(pending, m[1])
		}
		if m := callLine.FindStringSubmatch(line); m != nil && m[2] == "clone3" && strings.Contains(m[3], "CLONE_NEWNS") && !strings.Contains(m[3], "CLONE_VFORK") {
			if r := result.FindStringSubmatch(m[3]); r != nil {
				watched[r[1]] = true
			} else {
				pending[m[1]] = true
			}
		}
	}
	for _, line := range trace {
		m := callLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		pid, call, args := m[1], m[2], m[3]
		switch {
		case call == "setns" && strings.Contains(args, "CLONE_NEWNS"):
			l.execs++ // what it opens now, it opens as the container does
		case call == "pivot_root" && watched[pid]:
			l.pivots++
			delete(watched, pid)
		case watched[pid]:
			l.calls++
			if why := byPath(call, args); why != "" {
				l.bad = append(l.bad, why+": "+line)
			}
		}
	}
	return l
}

// byPath says what is wrong with the paths of a call, or "".
func byPath(call, args string) string {
	ours := []string{"", "/", program.ScratchRoot, program.EmptyDir, program.NullFile}
	var names []string
	for _, q := range pathArg.FindAllStringSubmatch(args, -1) {
		names = append(names, q[1])
	}
	switch call {
	case "fsconfig", "sethostname", "exit_group", "fchdir", "unshare", "clone3":
		return "" // no paths
	case "openat2":
		inside := strings.Contains(args, "RESOLVE_IN_ROOT") || strings.Contains(args, "RESOLVE_BENEATH")
		if strings.HasPrefix(args, "AT_FDCWD") || !inside || !strings.Contains(args, "RESOLVE_NO_MAGICLINKS") {
			return "not confined"
		}
		return ""
	case "symlinkat":
		names = names[min(1, len(names)):] // the first is what the link says
	case "open_tree", "mount_setattr", "move_mount":
		for _, n := range names {
			if !slices.Contains(ours, n) {
				return fmt.Sprintf("path %q", n)
			}
		}
		return ""
	case "mkdirat", "mknodat", "fchownat", "newfstatat", "statx":
	default:
		return "call that takes a path by name"
	}
	for _, n := range names {
		if strings.HasPrefix(args, "AT_FDCWD") && !slices.Contains(ours, n) || strings.Contains(n, "/") && !slices.Contains(ours, n) || n == ".." {
			return fmt.Sprintf("path %q", n)
		}
	}
	return ""
}
