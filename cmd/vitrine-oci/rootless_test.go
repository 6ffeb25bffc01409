package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Somebody without root: by number, with an /etc that knows him, subordinate ids, Debian's
// newuidmap, and a cgroup that is delegated to him.
const (
	userID = 54321
	subIDs = 700000 // and 65535 more
)

// user is a node whose command lines are those of a user.
type user struct {
	*node
	etc, home string
	asRoot    string // for the shell, before it becomes the user: ends with &&
	as        string // what the user executes the binary by
	env       string // assignments
	noCgroup  bool   // nothing is delegated
}

func newUser(t *testing.T) *user {
	t.Helper()
	u := &user{node: newNode(t)}
	for _, f := range []string{"/usr/bin/newuidmap", "/usr/bin/newgidmap"} {
		if _, err := os.Stat(f); err != nil {
			t.Skip("needs Debian's uidmap: " + err.Error())
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	u.etc, u.home = filepath.Join(filepath.Dir(u.state), "etc"), filepath.Join(filepath.Dir(u.state), "home")
	u.state = u.home + "/run/vitrine-oci" // by default
	for _, d := range []string{u.etc, u.home + "/run"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	reachable(t, self, u.home+"/run/x")
	give(t, u.home, userID)
	u.write("passwd", fmt.Sprintf("root:x:0:0::/:/bin/sh\nvera:x:%d:%d::/:/bin/sh\n", userID, userID))
	u.write("subuid", fmt.Sprintf("vera:%d:65536\n", subIDs))
	u.write("subgid", fmt.Sprintf("vera:%d:65536\n", subIDs))
	t.Cleanup(u.gone)
	u.prepare()
	return u
}

func (u *user) write(name, content string) {
	if err := os.WriteFile(filepath.Join(u.etc, name), []byte(content), 0o644); err != nil {
		u.t.Fatal(err)
	}
}

// prepare has the next command lines go the way that the fields say.
func (u *user) prepare() {
	cg := ""
	if !u.noCgroup {
		cg = fmt.Sprintf("cd /sys/fs/cgroup && mkdir -p %[1]s/session && chown %[2]d:%[2]d %[1]s %[1]s/cgroup.procs %[1]s/cgroup.subtree_control && echo $$ >%[1]s/session/cgroup.procs && ", u.tag, userID)
	}
	u.opens = fmt.Sprintf("mount --bind %s /etc && %s%s cd / && export XDG_RUNTIME_DIR=%s/run %s && exec setpriv --reuid %d --regid %d --clear-groups %s ",
		u.etc, cg, u.asRoot, u.home, u.env, userID, userID, u.as) + `"$0" "$@" && `
}

// gone looks for processes and cgroups that are left of the user.
func (u *user) gone() {
	for range 100 {
		u.reap()
		if u.processes() == "" {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if left := u.processes(); left != "" {
		u.t.Errorf("processes are left: %s", left)
	}
	script := `mount --make-rprivate / && { umount -R /sys/fs/cgroup || :; } 2>/dev/null && mount -t cgroup2 -o nsdelegate none /sys/fs/cgroup && cd /sys/fs/cgroup && [ ! -d "$1" ] || rmdir "$1"/session "$1"`
	for try := 0; ; try++ {
		out, err := exec.Command("unshare", "-m", "sh", "-c", script, "-", u.tag).CombinedOutput()
		if err == nil {
			return
		}
		if try == 50 {
			u.t.Errorf("cgroups are left: %v %s", err, out)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// processes are those of the user and of his subordinates.
func (u *user) processes() (list string) {
	all, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, f := range all {
		b, _ := os.ReadFile(f)
		_, rest, _ := strings.Cut(string(b), "\nUid:\t")
		if uid, err := strconv.Atoi(strings.SplitN(rest, "\t", 2)[0]); err == nil && (uid == userID || uid >= subIDs && uid < subIDs+65536) {
			name, _, _ := strings.Cut(string(b), "\n")
			list += f + " " + name + "; "
		}
	}
	return list
}

// mapped gives a spec a user namespace in which the user is 0 and his subordinates follow.
func mappedSpec(s map[string]any) {
	l := s["linux"].(map[string]any)
	l["namespaces"] = append(l["namespaces"].([]any), map[string]any{"type": "user"})
	l["uidMappings"] = []any{map[string]any{"containerID": 0, "hostID": userID, "size": 1}, map[string]any{"containerID": 1, "hostID": subIDs, "size": 65536}}
	l["gidMappings"] = l["uidMappings"]
}

// bundleWith makes a bundle of the user's with what change makes of it.
func (u *user) bundleWith(script string, change ...func(map[string]any)) string {
	u.t.Helper()
	plain := &node{t: u.t, state: u.state, tag: u.tag}
	b := plain.bundle(script, func(s map[string]any) {
		for _, c := range change {
			c(s)
		}
	})
	give(u.t, b, userID)
	reachable(u.t, b+"/rootfs")
	return b
}

// inCgroup is below what is delegated.
func (u *user) inCgroup(s map[string]any) {
	s["linux"].(map[string]any)["cgroupsPath"] = "/" + u.tag + "/" + u.tag + "-c"
}

// Each verb, as a user with subordinate ids, in a cgroup that is his.
func TestRootlessVerbs(t *testing.T) {
	u := newUser(t)
	b := u.bundleWith("echo started; exec sleep 1000", mappedSpec, u.inCgroup)
	pidFile := u.home + "/pid"
	u.must("create", "--bundle", b, "--pid-file", pidFile, u.tag)
	s := u.stateOf(u.tag)
	if pid, _ := os.ReadFile(pidFile); s.Status != "created" || strconv.Itoa(s.Pid) != string(pid) || s.Owner != strconv.Itoa(userID) {
		t.Errorf("state %+v, pid file %s", s, pid)
	}
	maps, _ := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", s.Pid))
	if f := strings.Fields(string(maps)); !slices.Equal(f, strings.Fields(fmt.Sprintf("0 %d 1 1 %d 65536", userID, subIDs))) {
		t.Errorf("maps %q", f)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(fmt.Sprintf("/proc/%d/exe", s.Pid), &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("the binary behind a blocked container can be written: %#x, %v", st.Flags, err)
	}
	u.fails("already exists", "create", "--bundle", b, u.tag)
	u.must("start", u.tag)
	u.fails("it is running", "start", u.tag)
	u.fails("not stopped", "delete", u.tag)
	out := u.must("exec", u.tag, "sh", "-c", "id; cat /proc/self/cgroup /proc/1/uid_map; ps | grep -c sleep; hostname; ls /proc/self/fd")
	for _, want := range []string{"uid=0 gid=0", "0::/\n", "65536\n", "vitrine\n", "\n0\n1\n2\n3\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("exec says %q, want %q in it", out, want)
		}
	}
	if r := u.oci("exec", "--user", "5:6", "-g", "7", u.tag, "sh", "-c", "id; exit 9"); r.code != 9 || !strings.Contains(r.out, "uid=5 gid=6 groups=7") {
		t.Errorf("exec as somebody: %+v", r)
	}
	if r := u.oci("exec", u.tag, "nothing"); r.code != 255 || !strings.Contains(r.errs, "nothing") {
		t.Errorf("exec of nothing: %+v", r)
	}
	if out := u.must("ps", u.tag); !strings.Contains(out, "sleep 1000") {
		t.Errorf("ps: %s", out)
	}
	u.must("pause", u.tag)
	if s := u.stateOf(u.tag); s.Status != "paused" {
		t.Errorf("paused: %s", s.Status)
	}
	u.fails("it is paused", "exec", u.tag, "true")
	u.must("resume", u.tag)
	if out := u.must("list"); !strings.Contains(out, "running") || !strings.Contains(out, strconv.Itoa(userID)) {
		t.Errorf("list: %s", out)
	}
	if out := u.must("events", "--stats", u.tag); !strings.HasPrefix(out, `{"type":"stats","id":"`+u.tag) {
		t.Errorf("events: %s", out)
	}
	if r := u.oci("update", "--pids-limit", "50", u.tag); r.code != 0 && !strings.Contains(r.errs, "pids.max") {
		t.Errorf("update: %+v", r)
	}
	if out := u.must("explain", u.tag); !strings.Contains(out, "be the first user of it") {
		t.Errorf("explain: %s", out)
	}
	if out := u.must("features"); !strings.Contains(out, "ociVersionMin") {
		t.Errorf("features: %s", out)
	}
	u.must("kill", "--all", u.tag, "KILL")
	u.await(u.tag, "stopped")
	u.fails("container not running", "kill", u.tag)
	u.fails("not running", "exec", u.tag, "true")
	u.must("delete", u.tag)
	u.fails("does not exist", "state", u.tag)
	if r := u.oci("run", "--bundle", b, "--detach", u.tag); r.code != 0 {
		t.Errorf("run: %+v", r)
	}
	u.must("delete", "--force", u.tag)
}

// With his own id alone a user needs no helper, and his groups stay.
func TestRootlessSingleID(t *testing.T) {
	u := newUser(t)
	u.asRoot = "mount --bind /dev/null /usr/bin/newuidmap && mount --bind /dev/null /usr/bin/newgidmap && "
	u.prepare()
	b := u.bundleWith("")
	os.Remove(b + "/config.json")
	give(t, b, userID)
	u.must("spec", "--rootless", "--bundle", b)
	change := func(f func(s map[string]any)) string {
		text, err := os.ReadFile(b + "/config.json")
		if err != nil {
			t.Fatal(err)
		}
		s := map[string]any{}
		if err := json.Unmarshal(text, &s); err != nil {
			t.Fatal(err)
		}
		p := s["process"].(map[string]any)
		p["terminal"], p["args"] = false, []string{"sh", "-c", "id; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; cat"}
		if f != nil {
			f(s)
		}
		// As a bundle of its own: the first one stays what it was.
		dir := filepath.Join(u.home, "changed")
		os.MkdirAll(dir, 0o755)
		s["root"] = map[string]any{"path": b + "/rootfs"}
		text, _ = json.Marshal(s)
		if err := os.WriteFile(dir+"/config.json", text, 0o644); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	r := u.ociIn("said\n", "run", "--bundle", change(nil), u.tag)
	line := fmt.Sprintf("0 %d 1", userID)
	// Seen from inside, the ids are those of the namespace between.
	if f := strings.Join(strings.Fields(r.out), " "); r.code != 0 || f != "uid=0 gid=0 0 0 1 0 0 1 deny said" {
		t.Errorf("%+v, want %s", r, line)
	}
	for want, f := range map[string]func(s map[string]any){
		"process.user.additionalGids": func(s map[string]any) {
			s["process"].(map[string]any)["user"] = map[string]any{"uid": 0, "gid": 0, "additionalGids": []int{0}}
		},
		"process.user.uid: 5 is not mapped": func(s map[string]any) { s["process"].(map[string]any)["user"] = map[string]any{"uid": 5, "gid": 0} },
		"find newuidmap in /usr/bin": func(s map[string]any) {
			l := s["linux"].(map[string]any)
			l["uidMappings"] = append(l["uidMappings"].([]any), map[string]any{"containerID": 1, "hostID": subIDs, "size": 10})
		},
	} {
		u.fails(want, "run", "--bundle", change(f), u.tag)
	}
}

// What cannot be had without root is refused by its name, and nothing is left.
func TestRootlessRefusals(t *testing.T) {
	u := newUser(t)
	linux := func(f func(l map[string]any)) func(map[string]any) {
		return func(s map[string]any) { f(s["linux"].(map[string]any)) }
	}
	line := func(inside, outside, size int) map[string]any {
		return map[string]any{"containerID": inside, "hostID": outside, "size": size}
	}
	for _, c := range []struct {
		want   string
		change func(map[string]any)
	}{
		{"newuidmap: exit status 1", linux(func(l map[string]any) { l["uidMappings"] = []any{line(0, userID, 1), line(1, 900000, 10)} })},
		{"newgidmap: exit status 1", linux(func(l map[string]any) { l["gidMappings"] = []any{line(0, userID, 1), line(1, 900000, 10)} })},
		{"linux.uidMappings[0]: 10 ids from 0 on", linux(func(l map[string]any) { l["uidMappings"] = []any{line(0, 0, 10)} })},
		{"linux.uidMappings[0]: 9 ids from", linux(func(l map[string]any) { l["uidMappings"] = []any{line(0, userID-4, 9)} })},
		{"needs root without a user namespace", linux(func(l map[string]any) {
			l["namespaces"], l["uidMappings"], l["gidMappings"] = l["namespaces"].([]any)[:6], nil, nil
		})},
		{"join a user namespace: not supported", linux(func(l map[string]any) {
			l["namespaces"].([]any)[6].(map[string]any)["path"] = "/proc/1/ns/user"
		})},
		{"linux.resources.devices[0]: deny some", linux(func(l map[string]any) {
			l["resources"] = map[string]any{"devices": []any{map[string]any{"allow": false, "type": "c", "major": 1, "access": "rwm"}}}
		})},
		{"device /dev/own", linux(func(l map[string]any) {
			l["devices"] = []any{map[string]any{"path": "/dev/own", "type": "c", "major": 1, "minor": 3}}
		})},
		{"fileMode that the host's node does not have", linux(func(l map[string]any) {
			l["devices"] = []any{map[string]any{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600}}
		})},
		{"operation not permitted", linux(func(l map[string]any) { l["netDevices"] = map[string]any{"lo": map[string]any{"name": "lo0"}} })},
		{"linux.sysctl[\"kernel.panic\"]", linux(func(l map[string]any) { l["sysctl"] = map[string]any{"kernel.panic": "1"} })},
		{"process.oomScoreAdj: set to -900", func(s map[string]any) { s["process"].(map[string]any)["oomScoreAdj"] = -900 }},
		{"set RLIMIT_MEMLOCK", func(s map[string]any) {
			p := s["process"].(map[string]any)
			p["rlimits"] = append(p["rlimits"].([]any), map[string]any{"type": "RLIMIT_MEMLOCK", "soft": uint64(1 << 50), "hard": uint64(1 << 50)})
		}},
		{"process.user.additionalGids[0]: 100000 is not mapped", func(s map[string]any) {
			s["process"].(map[string]any)["user"] = map[string]any{"uid": 0, "gid": 0, "additionalGids": []int{100000}}
		}},
		{"mounts[7].uidMappings", func(s map[string]any) {
			s["mounts"] = append(s["mounts"].([]any), map[string]any{"destination": "/x", "type": "bind", "source": "rootfs/tmp", "options": []string{"bind", "idmap"}})
		}},
		{"mounts[7].source", func(s map[string]any) {
			s["mounts"] = append(s["mounts"].([]any), map[string]any{"destination": "/x", "type": "ext4", "source": "/dev/vda"})
		}},
	} {
		u.fails(c.want, "create", "--bundle", u.bundleWith("true", mappedSpec, u.inCgroup, c.change), u.tag)
		if left := u.must("list", "-q"); left != "" {
			t.Errorf("%s: %q is left", c.want, left)
		}
	}
	b := u.bundleWith("true", mappedSpec)
	u.fails("needs root: a user's own systemd", "--systemd-cgroup", "create", "--bundle", b, u.tag)
	u.fails("the caller is root: false", "--rootless=false", "list")
	u.fails("invalid syntax", "--rootless=inside", "list") // he is not
	for _, file := range []string{"subuid", "subgid"} {
		was, _ := os.ReadFile(filepath.Join(u.etc, file))
		u.write(file, "somebody:700000:65536\n")
		u.fails("new"+file[3:]+"map: exit status 1", "create", "--bundle", b, u.tag)
		u.write(file, string(was))
	}
	u.must("run", "--bundle", b, u.tag) // as it was
}

// Limits need a cgroup; who asks for none does without.
func TestRootlessLimits(t *testing.T) {
	u := newUser(t)
	limit := func(s map[string]any) {
		s["linux"].(map[string]any)["resources"] = map[string]any{"pids": map[string]any{"limit": 30}}
	}
	limited := u.bundleWith("cat /sys/fs/cgroup/pids.max", mappedSpec, limit)
	free := u.bundleWith("echo fine", mappedSpec)
	u.fails("pids.max=30 without a cgroup", "--cgroup-manager", "disabled", "run", "--bundle", limited, u.tag)
	u.fails("pids.max=30 without a cgroup", "run", "--bundle", limited, u.tag) // at the top nothing is his
	for _, args := range [][]string{{"--cgroup-manager", "disabled"}, nil} {
		if r := u.oci(append(args, "run", "--bundle", free, u.tag)...); r.out != "fine\n" || r.errs != "" {
			t.Errorf("%q: %+v", args, r)
		}
	}
	// A cgroup that is asked for and cannot be had is told.
	elsewhere := u.bundleWith("echo fine", mappedSpec, func(s map[string]any) { s["linux"].(map[string]any)["cgroupsPath"] = "/" + u.tag + "-x" })
	if r := u.oci("run", "--bundle", elsewhere, u.tag); r.out != "fine\n" || !strings.Contains(r.errs, "linux.cgroupsPath: the container has no cgroup") {
		t.Errorf("%+v", r)
	}
	// Where the controller is, the limit holds; where it is not, it is an error.
	if r := u.oci("run", "--bundle", u.bundleWith("cat /sys/fs/cgroup/pids.max", mappedSpec, u.inCgroup, limit), u.tag); r.code == 0 && r.out != "30\n" || r.code != 0 && !strings.Contains(r.errs, "set pids.max") {
		t.Errorf("%+v", r)
	}
	// Who is in no cgroup of the user's cannot be born in one.
	u.must("list")
	u.noCgroup = true
	u.prepare()
	u.fails("which takes a right to write to the one above it", "run", "--bundle", u.bundleWith("true", mappedSpec, u.inCgroup), u.tag)
}

// A newuidmap that is found first in $PATH is not used, and no environment is passed on.
func TestRootlessHostilePath(t *testing.T) {
	u := newUser(t)
	evil := u.home + "/evil"
	if err := os.Mkdir(evil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"newuidmap", "newgidmap"} {
		if err := os.WriteFile(evil+"/"+f, []byte("#!/bin/sh\necho $0 >>"+u.home+"/canary\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	give(t, u.home, userID)
	u.env = "PATH=" + evil + ":$PATH"
	u.prepare()
	b := u.bundleWith("echo fine", mappedSpec)
	if r := u.oci("run", "--bundle", b, u.tag); r.out != "fine\n" {
		t.Errorf("%+v", r)
	}
	if text, err := os.ReadFile(u.home + "/canary"); err == nil {
		t.Errorf("was called: %s", text)
	}
	u.env = "LD_PRELOAD=/nonexistent.so" // the linker of a set-user-ID program would complain
	u.prepare()
	if r := u.oci("run", "--bundle", b, u.tag); r.out != "fine\n" {
		t.Errorf("%+v", r)
	}
}
