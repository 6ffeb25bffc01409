package main

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What a process on a terminal is, all of it, held against a golden file: the
// init of what `vitrine-oci spec` writes, and a user's exec in it. conformance/integration has the profiles without a terminal.

var updatePosture = flag.Bool("update-posture", false, "write the golden files of the posture tests")

const lookAround = `
sec() { echo "# $1"; }
sec status; grep -E '^(Uid|Gid|Groups|Umask|NoNewPrivs|Seccomp|Seccomp_filters|Cap[A-Z][a-z]+|SigBlk|TracerPid|NSpid|NSsid|NSpgid):' /proc/$$/status
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
	golden(t, "tty", posture(s, init, ""))
	golden(t, "exec-tty", posture(s, inside, init))
}

var inode = regexp.MustCompile(`\[\d+\]`)

// posture writes what a probe has said in words that are the same everywhere.
// of is what the container's init has said, for an exec.
func posture(s *specs.Spec, text, of string) string {
	var b strings.Builder
	at := ""
	for line := range strings.Lines(strings.ReplaceAll(text, "\r", "")) {
		line = strings.TrimRight(line, "\n")
		// The shell's fork blocks all signals in the shell for a moment, in which its child may read this.
		line = strings.Replace(line, "SigBlk:\tfffffffffffbfeff", "SigBlk:\t0000000000000000", 1)
		name, begins := strings.CutPrefix(line, "# ")
		switch {
		case begins && name == "end":
			return b.String()
		case begins:
			at = name
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
		case at == "mounts":
			if line = mounted(s, line); line == "" {
				continue
			}
		}
		b.WriteString(strings.TrimRight("    "+strings.Join(strings.Fields(inode.ReplaceAllString(line, "")), " "), " ") + "\n")
	}
	return b.String()
}

// mounted says where something is mounted, of what kind and with what flags, or
// nothing for a path that the spec wants masked or read-only and that is so: which
// of them exist is the kernel's.
func mounted(s *specs.Spec, line string) string {
	f := strings.Fields(line)
	dash := slices.Index(f, "-")
	if dash < 0 || len(f) < dash+4 {
		return "unreadable: " + line
	}
	at, flags, kind, super := f[4], f[5], f[dash+1], f[dash+3]
	if strings.HasPrefix(flags, "ro,") && (slices.Contains(s.Linux.MaskedPaths, at) && kind == "tmpfs" || slices.Contains(s.Linux.ReadonlyPaths, at)) {
		return ""
	}
	if dash > 6 {
		flags += " " + strings.Join(f[6:dash], ",")
	}
	switch {
	case at == "/" || f[3] != "/" && kind != "devpts": // of the host's files
		kind, super = "bind", ""
	case kind == "tmpfs" || kind == "devpts":
		super = strings.TrimSuffix(super, ",inode64")
	default:
		super = ""
	}
	return strings.Join([]string{at, kind, flags, super}, " ")
}

func golden(t *testing.T, profile, got string) {
	t.Helper()
	file := filepath.Join("testdata", "posture", profile+".txt")
	if *updatePosture {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	have, wanted := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for _, l := range have {
		if !slices.Contains(wanted, l) {
			t.Errorf("%s: more: %s", profile, l)
		}
	}
	for _, l := range wanted {
		if !slices.Contains(have, l) {
			t.Errorf("%s: less: %s", profile, l)
		}
	}
	if !t.Failed() {
		t.Errorf("%s: another order than in %s:\n%s", profile, file, got)
	}
}
