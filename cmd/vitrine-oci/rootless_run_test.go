package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/conformance/posture"
	"github.com/vitrine-runtime/vitrine/oci/notify/notifytest"
)

// Hooks of the runtime's namespaces run where the caller is, with what he may do; those inside
// in the container; and one that fails does what it does for root.
func TestRootlessHooks(t *testing.T) {
	u := newUser(t)
	dir := u.home + "/hooks"
	const script = "#!/usr/bin/busybox sh\nBB=/usr/bin/busybox; [ -x $BB ] || BB=/bin/busybox\n" +
		"{ $BB cat; echo; $BB readlink /proc/self/ns/user; $BB id -u; $BB env; } >\"$1\" 2>&1\n[ ! \"$CODE\" ] || echo said >&2; exit ${CODE:-0}\n"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/hook", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	give(t, dir, userID)
	with := func(fails string) string {
		b := u.bundleWith("exec sleep 1000", mappedSpec, u.inCgroup, func(s map[string]any) {
			hooks := map[string]any{}
			for _, p := range allPhases {
				env := []string{"PHASE=" + p}
				if p == fails {
					env = append(env, "CODE=3")
				}
				path, to := dir+"/hook", dir+"/"+p
				if p == "startContainer" {
					path, to = "/bin/hook", "/tmp/"+p
				} else if p == "createContainer" { // the host's files are those of the user there, too
					to = dir + "/" + p
				}
				hooks[p] = []any{map[string]any{"path": path, "args": []string{"hook", to}, "env": env, "timeout": 10}}
			}
			s["hooks"] = hooks
		})
		if err := os.WriteFile(b+"/rootfs/bin/hook", []byte(strings.Replace(script, "#!/usr/bin/busybox sh", "#!/bin/sh", 1)), 0o755); err != nil {
			t.Fatal(err)
		}
		give(t, b+"/rootfs/tmp", userID)
		return b
	}
	b := with("")
	u.must("create", "--bundle", b, u.tag)
	pid := u.stateOf(u.tag).Pid
	inside, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	u.must("start", u.tag)
	u.must("kill", u.tag, "KILL")
	u.await(u.tag, "stopped")
	u.must("delete", u.tag)
	first, _ := os.Readlink("/proc/self/ns/user")
	for _, c := range []struct {
		phase, status string
		pid           int
		ns, uid       string
	}{
		{"prestart", "creating", pid, first, strconv.Itoa(userID)}, {"createRuntime", "creating", pid, first, strconv.Itoa(userID)},
		{"createContainer", "creating", 1, inside, "0"}, {"startContainer", "created", 1, inside, "0"},
		{"poststart", "running", pid, first, strconv.Itoa(userID)}, {"poststop", "stopped", 0, first, strconv.Itoa(userID)},
	} {
		file := dir + "/" + c.phase
		if c.phase == "startContainer" {
			file = b + "/rootfs/tmp/" + c.phase
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		state, rest, _ := strings.Cut(string(text), "\n")
		var s specs.State
		if err := json.Unmarshal([]byte(state), &s); err != nil || string(s.Status) != c.status || s.Pid != c.pid || s.ID != u.tag || s.Bundle != b {
			t.Errorf("%s: %v, state %s", c.phase, err, state)
		}
		if f := strings.Fields(rest); len(f) < 3 || f[0] != c.ns || f[1] != c.uid || !slices.Contains(f, "PHASE="+c.phase) || strings.Contains(rest, "XDG_RUNTIME_DIR") {
			t.Errorf("%s: %q, want %s and %s", c.phase, rest, c.ns, c.uid)
		}
	}
	for _, p := range []string{"prestart", "createContainer"} {
		os.Remove(dir + "/poststop")
		u.fails("hooks."+p+"[0]", "create", "--bundle", with(p), u.tag)
		if _, err := os.Stat(dir + "/poststop"); err != nil {
			t.Errorf("%s failed: %v", p, err)
		}
	}
	u.fails("exit code 3: said", "run", "--bundle", with("poststart"), u.tag)
	if r := u.oci("create", "--bundle", with("poststop"), u.tag); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if r := u.oci("delete", "--force", u.tag); r.code != 0 || !strings.Contains(r.errs, "hooks.poststop[0]") {
		t.Errorf("%+v", r)
	}
}

// A terminal's master goes to the console socket, a filter's listener to its agent, from
// create and start as from exec, and run has a terminal of its own.
func TestRootlessTerminalAndListener(t *testing.T) {
	u := newUser(t)
	masters, told := make(chan int, 2), make(chan []byte, 2)
	serve(t, u.home+"/console", func(_ []byte, fd int) { masters <- fd })
	serve(t, u.home+"/agent", func(text []byte, fd int) {
		told <- text
		go notifytest.Answer(fd, nil) // ends with the container
	})
	for _, f := range []string{"/console", "/agent"} {
		os.Chmod(u.home+f, 0o666)
	}
	listener := func(s map[string]any) {
		s["process"].(map[string]any)["terminal"] = true
		s["linux"].(map[string]any)["seccomp"] = map[string]any{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": u.home + "/agent", "listenerMetadata": "meta",
			"syscalls": []any{map[string]any{"names": []string{"mkdir"}, "action": "SCMP_ACT_NOTIFY"}}}
	}
	b := u.bundleWith("stty size; mkdir /tmp/new; cat; echo the end", mappedSpec, u.inCgroup, listener)
	u.must("create", "--bundle", b, "--console-socket", u.home+"/console", u.tag)
	master := terminal(t, <-masters)
	u.must("start", u.tag)
	state := stateOf(t, <-told)
	if state.State.ID != u.tag || state.Metadata != "meta" || state.Pid != u.stateOf(u.tag).Pid {
		t.Errorf("told %+v", state)
	}
	u.must("exec", "--tty", "--detach", "--console-socket", u.home+"/console", u.tag, "sh", "-c", "tty; mkdir /tmp/newer; echo the end")
	if s := upTo(t, terminal(t, <-masters), "the end"); !strings.Contains(s, "/dev/pts/1\r\n") || !strings.Contains(s, "Level 2 halted") {
		t.Errorf("terminal of the exec: %q", s)
	}
	<-told
	master.WriteString("\x04")
	if s := upTo(t, master, "the end"); !strings.Contains(s, "Level 2 halted") {
		t.Errorf("terminal: %q", s)
	}
	u.reap()
	u.await(u.tag, "stopped")
	u.must("delete", u.tag)
	tty := u.bundleWith("tty; exit 6", mappedSpec, func(s map[string]any) { s["process"].(map[string]any)["terminal"] = true })
	if r := u.oci("run", "--bundle", tty, u.tag); r.code != 6 || !strings.HasPrefix(r.out, "/dev/pts/0") {
		t.Errorf("run: %+v", r)
	}
}

// Descriptors from 3 on, the limit on them, signals and exit codes go through the process
// between the caller and the container.
func TestRootlessBetween(t *testing.T) {
	u := newUser(t)
	u.asRoot = "exec 3>" + u.home + "/a 4>" + u.home + "/b 5>" + u.home + "/c && ulimit -Sn 700 && "
	u.prepare()
	noLimit := func(s map[string]any) { delete(s["process"].(map[string]any), "rlimits") }
	b := u.bundleWith("for i in 3 4 5; do echo from $i >&$i; done 2>/dev/null; ls /proc/self/fd; ulimit -Sn; exit 7", mappedSpec, noLimit)
	r := u.oci("run", "--preserve-fds", "2", "--bundle", b, u.tag)
	if r.code != 7 || strings.Join(strings.Fields(r.out), " ") != "0 1 2 3 4 5 700" { // 5 is the directory
		t.Errorf("%+v", r)
	}
	for i, f := range []string{"a", "b", "c"} {
		want := fmt.Sprintf("from %d\n", 3+i)
		if f == "c" {
			want = ""
		}
		if text, _ := os.ReadFile(u.home + "/" + f); string(text) != want {
			t.Errorf("descriptor %d got %q", 3+i, text)
		}
	}
	if r := u.oci("run", "--detach", "--bundle", u.bundleWith("exec sleep 1000", mappedSpec), u.tag); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if r := u.oci("exec", "--preserve-fds", "1", u.tag, "sh", "-c", "echo once more >&3; ls /proc/self/fd; exit 8"); r.code != 8 || r.out != "0\n1\n2\n3\n4\n" {
		t.Errorf("exec: %+v", r)
	}
	if text, _ := os.ReadFile(u.home + "/a"); string(text) != "once more\n" {
		t.Errorf("descriptor 3 got %q", text)
	}
	u.must("delete", "--force", u.tag)
	u.asRoot, u.as = "", `sh -c '"$0" "$@" & pid=$!; until [ -e `+u.home+`/up ]; do sleep 0.05; done; kill -TERM $pid; wait $pid'`
	u.prepare()
	up := func(s map[string]any) {
		s["mounts"] = append(s["mounts"].([]any), map[string]any{"destination": "/up", "type": "bind", "source": u.home, "options": []string{"bind"}})
	}
	wait := u.bundleWith("trap 'echo told; exit 4' TERM; touch /up/up; while :; do sleep 0.05; done", mappedSpec, up)
	if r := u.oci("run", "--bundle", wait, u.tag); r.code != 4 || r.out != "told\n" {
		t.Errorf("signal: %+v", r)
	}
	u.as = ""
	u.prepare()
}

// What a terminal sends to everybody in front of it comes to the container once, though two
// processes pass signals on. The shell has nothing to wait for: a second copy finds the first one taken, and is counted.
func TestRootlessInterrupt(t *testing.T) {
	u := newUser(t)
	up := func(s map[string]any) {
		s["mounts"] = append(s["mounts"].([]any), map[string]any{"destination": "/up", "type": "bind", "source": u.home, "options": []string{"bind"}})
	}
	b := u.bundleWith("trap 'echo interrupt; echo . >> /up/got' INT; trap 'exit 4' TERM; touch /up/up; while :; do :; done", mappedSpec, up)
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, err := unix.IoctlRetInt(int(master.Fd()), unix.TIOCGPTPEER)
	if err != nil {
		t.Fatal(err)
	}
	tty := os.NewFile(uintptr(slave), "tty")
	defer tty.Close()
	const times = 20
	typed := make(chan error, 1)
	go func() { typed <- u.interrupt(master, times) }()
	u.node.with = func(cmd *exec.Cmd) {
		cmd.Stdin = tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}
	r := u.oci("run", "--bundle", b, u.tag)
	u.node.with = nil
	if err := <-typed; err != nil {
		t.Error(err)
	}
	if r.code != 4 || strings.Count(r.out, "interrupt\n") != times {
		t.Errorf("%+v", r)
	}
}

// interrupt types the terminal's interrupt so often, each when the one before has come, since signals of one number do not queue. It
// ends the container then, also where one does not come.
func (u *user) interrupt(master *os.File, times int) error {
	defer func() { _ = exec.Command("kill", "-TERM", strconv.Itoa(u.pidOf(u.tag))).Run() }()
	if !u.grows("/up", 0) {
		return errors.New("the container does not come up")
	}
	for i := range times {
		if _, err := master.WriteString("\x03"); err != nil {
			return err
		}
		if !u.grows("/got", int64(2*(i+1))) {
			return fmt.Errorf("interrupt %d does not come", i+1)
		}
		time.Sleep(100 * time.Millisecond) // a second copy would come
	}
	return nil
}

// grows waits until a file of the user's is there and has that size. It is on a disk, which may be busy with what others have written.
func (u *user) grows(file string, size int64) bool {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if info, err := os.Stat(u.home + file); err == nil && info.Size() >= size {
			return true
		}
	}
	return false
}

// pidOf is a container's, as its state file says.
func (u *user) pidOf(id string) int {
	var s struct{ Pid int }
	b, err := os.ReadFile(filepath.Join(u.state, id, "state.json"))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		u.t.Error(err)
	}
	return s.Pid
}

// Binds of what the user can read, flags of their mounts, filesystems of the kernel, a network
// namespace of the container's own, and /sys and the network of the host.
func TestRootlessMounts(t *testing.T) {
	u := newUser(t)
	u.asRoot = "mount -t tmpfs -o nosuid,nodev,mode=755 held " + u.home + "/held && echo content >" + u.home + "/held/file && mkdir " + u.home + "/held/in && mount -t tmpfs inner " + u.home + "/held/in && "
	if err := os.Mkdir(u.home+"/held", 0o755); err != nil {
		t.Fatal(err)
	}
	u.prepare()
	mounts := func(list ...any) func(map[string]any) {
		return func(s map[string]any) { s["mounts"] = append(s["mounts"].([]any), list...) }
	}
	m := func(dest, kind, source string, options ...string) any {
		return map[string]any{"destination": dest, "type": kind, "source": source, "options": options}
	}
	held := u.home + "/held"
	b := u.bundleWith("cat /a/file /f; touch /a/x; touch /t/y && ls /t; grep -c . /proc/net/dev; grep -E ' (/a|/f|/t) ' /proc/mounts", mappedSpec,
		mounts(m("/a", "bind", held, "rbind", "ro"), m("/f", "bind", held+"/file", "bind"), m("/t", "tmpfs", "t", "noexec")))
	r := u.oci("run", "--bundle", b, u.tag)
	for _, want := range []string{"content\ncontent\ny\n3\n", "held /a tmpfs ro,nosuid,nodev", "held /f tmpfs rw,nosuid,nodev", "t /t tmpfs rw,noexec"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%+v, want %q", r, want)
		}
	}
	// What covers a part of it is locked: to uncover it by a bind without the rest is refused.
	u.fails("mounts[7].source", "run", "--bundle", u.bundleWith("true", mappedSpec, mounts(m("/a", "bind", held, "bind"))), u.tag)
	// Nor does a remount loosen what the host has forbidden.
	u.fails("change the attributes of /a", "run", "--bundle", u.bundleWith("true", mappedSpec, mounts(m("/a", "bind", held, "rbind"), m("/a", "bind", held, "remount", "bind", "dev"))), u.tag)
	u.fails("permission denied", "run", "--bundle", u.bundleWith("true", mappedSpec, mounts(m("/a", "bind", "/proc/1/root", "bind"))), u.tag)
	shared := func(s map[string]any) {
		l := s["linux"].(map[string]any)
		l["namespaces"] = slices.DeleteFunc(l["namespaces"].([]any), func(ns any) bool { return ns.(map[string]any)["type"] == "network" })
	}
	u.fails("sysfs", "run", "--bundle", u.bundleWith("true", mappedSpec, shared), u.tag)
	bound := func(s map[string]any) {
		for _, x := range s["mounts"].([]any) {
			if x := x.(map[string]any); x["destination"] == "/sys" {
				x["type"], x["source"], x["options"] = "bind", "/sys", []string{"rbind", "nosuid", "noexec", "nodev", "ro"}
			}
		}
		s["mounts"] = s["mounts"].([]any)[:6] // and no cgroup on top of it
	}
	if r := u.oci("run", "--bundle", u.bundleWith("readlink /proc/self/ns/net; ls -d /sys/class/net; touch /sys/x", mappedSpec, shared, bound), u.tag); !strings.Contains(r.out, "/sys/class/net") || !strings.Contains(r.errs, "Read-only") {
		t.Errorf("%+v", r)
	}
}

// Root of a user namespace, as podman runs a runtime: with and without a user namespace for
// the container, a mount namespace of its own, and more than one id.
func TestRootOfUserNamespace(t *testing.T) {
	u := newUser(t)
	single := func(s map[string]any) {
		for _, x := range s["mounts"].([]any) {
			x := x.(map[string]any)
			x["options"] = slices.DeleteFunc(x["options"].([]any), func(o any) bool { return o == "gid=5" })
		}
	}
	nested := func(s map[string]any) {
		single(s)
		l := s["linux"].(map[string]any)
		l["namespaces"] = append(l["namespaces"].([]any), map[string]any{"type": "user"})
		l["uidMappings"] = []any{map[string]any{"containerID": 7, "hostID": 0, "size": 1}}
		l["gidMappings"] = l["uidMappings"]
		s["process"].(map[string]any)["user"] = map[string]any{"uid": 7, "gid": 7}
	}
	const script = "id -u; id -g; ls -l /dev/null | grep -c 1,; touch /tmp/x; cat /proc/1/comm; ls /sys/class/net; exec sleep 1000"
	for name, as := range map[string]string{
		"a mount namespace of its own": "unshare --user --map-root-user --mount",
		"the host's mount namespace":   "unshare --user --map-root-user",
		"subordinate ids":              fmt.Sprintf("unshare --user --map-users=%[1]d,1,1000 --map-groups=%[1]d,1,1000 --map-root-user --mount", subIDs),
	} {
		for kind, change := range map[string]func(map[string]any){"": single, " and a container's": nested} {
			t.Run(name+kind, func(t *testing.T) {
				u := &user{node: &node{t: t, state: u.state, tag: u.tag}, etc: u.etc, home: u.home, as: as, env: "USER=root"}
				u.prepare()
				b := u.bundleWith(script, change, u.inCgroup)
				u.must("--rootless=true", "create", "--bundle", b, u.tag)
				if s := u.stateOf(u.tag); s.Status != "created" || s.Owner != strconv.Itoa(userID) {
					t.Errorf("%+v", s)
				}
				var st unix.Statfs_t
				if err := unix.Statfs(fmt.Sprintf("/proc/%d/exe", u.stateOf(u.tag).Pid), &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
					t.Errorf("the binary behind a blocked container can be written: %#x, %v", st.Flags, err)
				}
				// The namespace that unshare(1) has made was its own. Only the user himself, who is
				// above all of them, comes back.
				u.as = ""
				u.prepare()
				u.must("start", u.tag)
				want := "0\n0\n"
				if kind != "" {
					want = "7\n7\n"
				}
				if r := u.oci("exec", u.tag, "sh", "-c", "id -u; id -g; ps | grep -c 'sleep 1000'"); !strings.HasPrefix(r.out, want) {
					t.Errorf("exec: %+v", r)
				}
				u.must("delete", "--force", u.tag)
				if text, _ := os.ReadFile(b + "/rootfs/tmp/x"); text == nil {
					t.Error("the container has not run")
				}
			})
		}
	}
}

// Who is not root in his user namespace makes one below it.
func TestRootlessWithinUserNamespace(t *testing.T) {
	u := newUser(t)
	u.as = "unshare --user --map-user=5 --map-group=5"
	u.prepare()
	b := u.bundleWith("id -u", func(s map[string]any) {
		mappedSpec(s)
		l := s["linux"].(map[string]any)
		l["uidMappings"] = []any{map[string]any{"containerID": 0, "hostID": 5, "size": 1}}
		l["gidMappings"] = l["uidMappings"]
		for _, x := range s["mounts"].([]any) {
			x := x.(map[string]any)
			x["options"] = slices.DeleteFunc(x["options"].([]any), func(o any) bool { return o == "gid=5" })
		}
	})
	if r := u.oci("run", "--bundle", b, u.tag); r.out != "0\n" {
		t.Errorf("%+v", r)
	}
}

// A container of the user's that shares the host's pid namespace and may trace others gets at
// nothing of the runtime that waits beside it: its namespace is below that one's.
func TestRootlessRuntimeIsAbove(t *testing.T) {
	u := newUser(t)
	tracer := func(s map[string]any) {
		l := s["linux"].(map[string]any)
		l["namespaces"] = slices.DeleteFunc(l["namespaces"].([]any), func(ns any) bool { return ns.(map[string]any)["type"] == "pid" })
		caps := []string{"CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_CHROOT"}
		s["process"].(map[string]any)["capabilities"] = map[string]any{"bounding": caps, "effective": caps, "permitted": caps}
		s["mounts"].([]any)[0] = map[string]any{"destination": "/proc", "type": "bind", "source": "/proc", "options": []string{"rbind"}}
		l["maskedPaths"], l["readonlyPaths"] = nil, nil
	}
	// Its parent is the runtime inside, whose parent is the one outside.
	b := u.bundleWith(`p=$(grep PPid /proc/$$/status | grep -o '[0-9]*'); q=$(grep PPid /proc/$p/status | grep -o '[0-9]*')
look() { ls /proc/$1/root/ >/dev/null && echo root; cat /proc/$1/environ >/dev/null && echo environ; readlink /proc/$1/fd/0 >/dev/null && echo fd; readlink /proc/$1/ns/mnt >/dev/null && echo ns; (: >/proc/$1/mem) && echo mem; }
sleep 100 & for x in $p $q $!; do cat /proc/$x/comm; look $x; done; kill $!`, mappedSpec, tracer)
	r := u.oci("run", "--bundle", b, u.tag)
	if f := strings.Fields(r.out); r.code != 0 || len(f) != 8 || strings.Join(f[3:], " ") != "root environ fd ns mem" {
		t.Errorf("%+v", r)
	}
}

// TestPostureRootless: what a process of a user's container is.
func TestPostureRootless(t *testing.T) {
	u := newUser(t)
	dir, s := postureBundle(t)
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: userID, Size: 1}, {ContainerID: 1, HostID: subIDs, Size: 65536}}
	s.Linux.GIDMappings = s.Linux.UIDMappings
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.CgroupsPath = "/" + u.tag + "/" + u.tag
	s.Process.Terminal = false
	with := func(script string) {
		t.Helper()
		s.Process.Args[2] = script
		b, _ := json.Marshal(s)
		if err := os.WriteFile(dir+"/config.json", b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	give(t, dir, userID)
	reachable(t, dir+"/rootfs")
	with(lookAround)
	posture.Golden(t, "rootless", normal(s, u.must("run", "--bundle", dir, u.tag), ""))
	with("exec sleep 1000")
	u.must("run", "--detach", "--bundle", dir, u.tag)
	init := u.must("exec", u.tag, "/bin/sh", "-c", "for n in cgroup ipc mnt net pid time user uts; do echo $n $(readlink /proc/1/ns/$n); done")
	posture.Golden(t, "exec-rootless", normal(s, u.must("exec", "--user", "1000:1000", u.tag, "/bin/sh", "-c", lookAround), init))
	u.must("delete", "--force", u.tag)
}

// What a user namespace lets its root do in the container's own namespaces: clocks, parameters, names,
// filesystems, limits, a filter, and a place for the OOM killer that is not better than before.
func TestRootlessOwnNamespaces(t *testing.T) {
	u := newUser(t)
	text, _ := os.ReadFile("/proc/self/oom_score_adj")
	adj, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	adj = min(adj+300, 1000)
	b := u.bundleWith("exec sleep 1000", mappedSpec, u.inCgroup, func(s map[string]any) {
		l, p := s["linux"].(map[string]any), s["process"].(map[string]any)
		l["namespaces"] = append(l["namespaces"].([]any), map[string]any{"type": "time"})
		l["timeOffsets"] = map[string]any{"boottime": map[string]any{"secs": 86400 * 1000}}
		l["sysctl"] = map[string]any{"net.ipv4.ip_forward": "1"} // those of an ipc namespace since Linux 6.9
		l["rootfsPropagation"] = "slave"
		l["personality"] = map[string]any{"domain": "LINUX32"}
		l["seccomp"] = map[string]any{"defaultAction": "SCMP_ACT_ALLOW",
			"syscalls": []any{map[string]any{"names": []string{"mkdir", "mkdirat"}, "action": "SCMP_ACT_ERRNO", "errnoRet": 62}}}
		s["domainname"], p["oomScoreAdj"], p["noNewPrivileges"] = "domain", adj, false
		s["mounts"] = append(s["mounts"].([]any), map[string]any{"destination": "/bin", "type": "tmpfs", "options": []string{"tmpcopyup"}})
	})
	u.must("run", "--detach", "--bundle", b, u.tag)
	out := u.must("exec", u.tag, "sh", "-c", `cut -d. -f1 /proc/uptime; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/domainname /proc/1/oom_score_adj /proc/self/oom_score_adj
busybox uname -m; mkdir /tmp/d 2>&1; touch /bin/mine && ls -ld /bin/mine | cut -c1-10; ls /dev/mqueue; grep Seccomp: /proc/1/status`)
	f := strings.Split(out, "\n")
	if up, err := strconv.Atoi(f[0]); err != nil || up < 86400*1000 {
		t.Errorf("uptime %s", f[0])
	}
	want := fmt.Sprintf("1\ndomain\n%d\n%d\ni686\nmkdir: can't create directory '/tmp/d': Timer expired\n-rw-r--r--\nSeccomp:\t2\n", adj, adj)
	if got := strings.Join(f[1:], "\n"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	u.must("delete", "--force", u.tag)
}

// The binary that is installed starts two Go runtimes for a user's container: the one that waits, and
// the one inside, which is sealed before.
func TestRootlessEntry(t *testing.T) {
	u := newUser(t)
	u.self = built(t)
	reachable(t, u.self)
	b := u.bundleWith("exec sleep 1000", mappedSpec)
	u.env = "GODEBUG=inittrace=1"
	u.prepare()
	r := u.oci("create", "--bundle", b, u.tag)
	if n := strings.Count(r.errs, "init runtime @"); r.code != 0 || n != 2 {
		t.Errorf("%d starts: %+v", n, r)
	}
	u.env = ""
	u.prepare()
	var st unix.Statfs_t
	if err := unix.Statfs(fmt.Sprintf("/proc/%d/exe", u.stateOf(u.tag).Pid), &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("the binary behind a blocked container can be written: %#x, %v", st.Flags, err)
	}
	u.must("start", u.tag)
	u.must("exec", u.tag, "true")
	u.must("delete", "--force", u.tag)
}

// Where the one inside is killed, delete removes what there is.
func TestRootlessInsideIsKilled(t *testing.T) {
	u := newUser(t)
	hook := u.home + "/hook"
	script := "#!/usr/bin/busybox sh\nfor p in $(/usr/bin/busybox cat /proc/$PPID/task/*/children); do [ $p = $$ ] || kill -9 $p; done\n"
	if err := os.WriteFile(hook, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	b := u.bundleWith("exec sleep 1000", mappedSpec, u.inCgroup, func(s map[string]any) {
		s["hooks"] = map[string]any{"prestart": []any{map[string]any{"path": hook}}}
	})
	if r := u.oci("create", "--bundle", b, u.tag); r.code != 137 {
		t.Errorf("%+v", r)
	}
	if s := u.stateOf(u.tag); s.Status != "created" || s.Pid == 0 {
		t.Errorf("%+v", s)
	}
	u.must("delete", "--force", u.tag)
}

// A caller who is killed in the middle leaves what delete removes.
func TestRootlessKilled(t *testing.T) {
	u := newUser(t)
	hook := u.home + "/hook"
	if err := os.WriteFile(hook, []byte("#!/usr/bin/busybox sh\n/usr/bin/busybox touch "+u.home+"/reached\nexec /usr/bin/busybox sleep 2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	b := u.bundleWith("exec sleep 1000", mappedSpec, u.inCgroup, func(s map[string]any) {
		s["hooks"] = map[string]any{"prestart": []any{map[string]any{"path": hook}}}
	})
	u.as = `sh -c '"$0" "$@" & pid=$!; until [ -e ` + u.home + `/reached ]; do sleep 0.02; done; kill -KILL $pid'`
	u.prepare()
	u.oci("create", "--bundle", b, u.tag)
	u.as = ""
	u.prepare()
	for range 200 { // the one inside hears that nobody answers, and takes all back
		if left := u.must("list", "-q"); left == "" {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if left := u.must("list", "-q"); left != "" {
		t.Errorf("%q is left", left)
	}
	if left, _ := filepath.Glob(u.state + "/*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
