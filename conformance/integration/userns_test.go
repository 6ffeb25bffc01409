package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// mappedTo is who root of the pods is here, and mappedIDs is how many ids they have.
const mappedTo, mappedIDs = 200000, 65536

// mapped puts a pod into a user namespace of its own.
func mapped(c *runtimeapi.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = ids0(mappedTo, mappedIDs)
}

// ids0 are n ids from host on.
func ids0(host, n uint32) *runtimeapi.UserNamespace {
	line := []*runtimeapi.IDMapping{{HostId: host, Length: n}}
	return &runtimeapi.UserNamespace{Uids: line, Gids: line}
}

// inMapped makes a container's request what the kubelet sends for such a pod: the mapping stands at each mount.
func inMapped(c *runtimeapi.ContainerConfig) { join(c, ids0(mappedTo, mappedIDs)) }

func join(c *runtimeapi.ContainerConfig, u *runtimeapi.UserNamespace) {
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = u
	for _, m := range c.Mounts {
		m.UidMappings, m.GidMappings = u.Uids, u.Gids
	}
}

// hostVolume mounts a directory of the host.
func hostVolume(dir, at string) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: dir, ContainerPath: at})
	}
}

// TestUserNamespace: containers of a pod, and what is executed in them, are in one user namespace with the ids that were
// asked for; their root filesystem and the files of the pod belong to its root, and so does the network.
func TestUserNamespace(t *testing.T) {
	for name, change := range map[string]func(*runtimeapi.NamespaceOption){
		"own pid":      func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_CONTAINER },
		"shared pid":   func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_POD },
		"host network": func(o *runtimeapi.NamespaceOption) { o.Network = runtimeapi.NamespaceMode_NODE },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			var options *runtimeapi.NamespaceOption
			p := s.runPod("userns", mapped, func(c *runtimeapi.PodSandboxConfig) {
				options = c.Linux.SecurityContext.NamespaceOptions
				if change(options); options.Network == runtimeapi.NamespaceMode_NODE {
					c.Hostname = ""
				}
			})
			in := func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.NamespaceOptions = options
				c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
			}
			one, two := p.run("one", "sleep 1000", in), p.run("two", "sleep 1000", in)
			at := s.exec(one, who)
			if f := strings.Fields(at); len(f) != 4 || strings.Join(f[1:], " ") != "0 200000 65536" {
				t.Fatalf("the first is in %q", at)
			}
			if got := s.exec(two, who); got != at {
				t.Errorf("the second is in %q, the first in %q", got, at)
			}
			if got := s.exec(one, "stat -c %u:%g / /bin /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm | sort -u"); got != "0:0" {
				t.Errorf("files belong to %q", got)
			}
			if got := s.exec(one, "echo a >/x && echo b >/dev/shm/x && echo c >/etc/hosts && stat -c %u /x && ls /sys/class/net >/dev/null && echo sysfs"); got != "0\nsysfs" {
				t.Errorf("root's work: %q", got)
			}
			set := s.exec(one, "ip link set lo mtu 1400 2>&1 >/dev/null && echo set || echo refused")
			if want := map[bool]string{false: "set", true: "refused"}[name == "host network"]; !strings.HasSuffix(set, want) {
				t.Errorf("the network is %q, not %s", set, want)
			}
			for _, pid := range p.pids(one) {
				if got := strings.Join(strings.Fields(strings.Join(procLines(pid, "status"), "\n")), " "); !strings.Contains(got, " Uid: 200000 200000 200000 200000 ") {
					t.Errorf("from here, process %d is %s", pid, got)
				}
			}
		})
	}
}

// who tells the user namespace of a shell.
const who = "readlink /proc/self/ns/user; cat /proc/self/uid_map"

// TestUserNamespaceDaemonKilled: nothing of the namespace is the daemon's to remember. After one was killed, the next makes
// containers in it, and streams reach those that are there.
func TestUserNamespaceDaemonKilled(t *testing.T) {
	s := open(t)
	p := s.runPod("userns-killed", mapped)
	one := p.run("one", "sleep 1000", inMapped)
	waiting := p.create(func() *runtimeapi.ContainerConfig {
		cfg := stage.ContainerConfig("waiting", busybox, "/bin/sh", "-c", who+"; sleep 1000")
		inMapped(cfg)
		return cfg
	}())
	at := s.exec(one, who)
	s.killDaemon()
	s.restart()
	two := p.run("two", "sleep 1000", inMapped)
	for name, id := range map[string]string{"an old container": one, "a new one": two} {
		if got := s.exec(id, who); got != at {
			t.Errorf("%s is in %q, not %q", name, got, at)
		}
		if got := s.exec(id, "echo a >/x && stat -c %u:%g /x /etc/hosts | sort -u"); got != "0:0" {
			t.Errorf("files of %s belong to %q", name, got)
		}
	}
	if err := s.cri.StartContainer(s.ctx, waiting); err != nil {
		t.Fatal(err)
	}
	s.eventually("what was created before is in it", func() bool { return strings.Join(p.logText("waiting", "stdout"), "\n") == at })
	st, err := s.cri.PodSandboxStatus(s.ctx, p.id, false)
	if u := ids0(mappedTo, mappedIDs); err != nil || !proto.Equal(st.Status.Linux.GetNamespaces().GetOptions().GetUsernsOptions(), u) {
		t.Errorf("the pod's status: %v, %v", st, err)
	}
	x := s.screen(two, "id -u; tty; exit 3")
	if r := x.end(); r.code != 3 || !strings.Contains(x.out["stdout"].String(), "0\r\n/dev/pts/0") {
		t.Errorf("a terminal: %+v %q", r, x.out["stdout"])
	}
}

// TestUserNamespaceStreams: exec with pipes and with a terminal, attach to both, and port-forward. What carries a stream
// belongs to the container's user, who may open it again.
func TestUserNamespaceStreams(t *testing.T) {
	s := open(t)
	p := s.runPod("userns-streams", mapped)
	user := func(c *runtimeapi.ContainerConfig) {
		inMapped(c)
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 33}
	}
	c := p.run("c", "sleep 1000", user)
	x := s.shell(c, "cat; echo again >/dev/stdout; echo aside >/dev/stderr; exit 3")
	x.say("one\n")
	x.streams["stdin"].Close()
	if r := x.end(); r.code != 3 || x.out["stdout"].String() != "one\nagain\n" || x.out["stderr"].String() != "aside\n" {
		t.Errorf("pipes: %+v, stdout %q, stderr %q", r, x.out["stdout"], x.out["stderr"])
	}
	x = s.screen(c, "echo $(stat -c %u -L /proc/self/fd/0) $(id -u); stty size; echo again >/dev/tty; exit 4")
	if r := x.end(); r.code != 4 || !strings.Contains(x.out["stdout"].String(), "33 33\r\n") || !strings.Contains(x.out["stdout"].String(), "again\r\n") {
		t.Errorf("a terminal: %+v, %q", r, x.out["stdout"])
	}
	for name, kind := range map[string]func(*runtimeapi.ContainerConfig){"pipe": func(*runtimeapi.ContainerConfig) {}, "tty": tty} {
		id := p.run(name, "", user, stdin, kind, func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/bin/sh"} })
		x := s.attach(id, true)
		x.say("echo who $(id -u) >/dev/stdout\n")
		x.sees("who 33")
		x.say("exit 5\n")
		x.end()
		if st := s.exited(id); st.ExitCode != 5 {
			t.Errorf("attached to a %s: %v", name, st)
		}
	}
	p.run("server", echoServer+"sleep 1000", inMapped)
	s.eventually("the servers listen", func() bool { return strings.Count(s.exec(c, "netstat -ltn"), "LISTEN") >= 2 })
	f := s.forward(p.id)
	if got, failed := f.talk(1, 7000, []byte("hello\n")); string(got) != "hello\nover\n" || failed != "" {
		t.Errorf("port-forward: %q, %q", got, failed)
	}
	f.conn.Close()
}

// mappable is a directory on a filesystem that can map ids: before Linux 6.3 a tmpfs, which the scratch is, cannot.
func (s *scene) mappable() string {
	if os.Getenv("VITRINE_VM") == "12" {
		return "/var/tmp"
	}
	return s.Scratch
}

// TestUserNamespaceVolumes: a volume's files have in the pod the owners that they have on disk, and what the pod writes has
// its ids there; without mappings its files are nobody's. A filesystem that cannot map ids is refused, and nothing is left.
func TestUserNamespaceVolumes(t *testing.T) {
	s := open(t)
	p := s.runPod("userns-volumes", mapped)
	at, below := s.mappable(), "7:8"
	if at != s.Scratch {
		below = "65534:65534"
	}
	dir := filepath.Join(at, "userns-volume")
	for _, sub := range []string{dir, filepath.Join(dir, "tmpfs")} {
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := unix.Mount("below", filepath.Join(dir, "tmpfs"), "tmpfs", 0, "mode=755,uid=7,gid=8"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(filepath.Join(dir, "tmpfs"), unix.MNT_DETACH) }) //nolint:errcheck // of a test
	for name, id := range map[string]int{"zero": 0, "few": 33, "many": mappedIDs} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, id, id); err != nil {
			t.Fatal(err)
		}
	}
	ref := s.pullVolume("userns")
	c := p.run("c", "sleep 1000", hostVolume(dir, "/mapped"), imageVolume(ref, "data"), inMapped, hostVolume(dir, "/plain"))
	for _, q := range []struct{ script, want string }{
		{"stat -c %u:%g /mapped /mapped/zero /mapped/few /mapped/many /mapped/tmpfs", "0:0\n0:0\n33:33\n65534:65534\n" + below},
		{"stat -c %u:%g /plain/zero /plain/few", "65534:65534\n65534:65534"},
		{"echo more >>/plain/zero || echo refused", "refused"},
		{"stat -c %u:%g /vol /vol/f; cat /vol/f; echo", "0:0\n0:0\nvolume userns"},
		{"echo new >/mapped/new && chown 5:6 /mapped/new && echo more >>/mapped/zero && cat /mapped/zero", "zeromore"},
		{"echo more >>/mapped/many || echo refused", "refused"},
	} {
		if got := s.exec(c, q.script+" 2>/dev/null"); got != q.want {
			t.Errorf("%s: %q, not %q", q.script, got, q.want)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "new"), &st); err != nil || st.Uid != 5 || st.Gid != 6 {
		t.Errorf("what the pod wrote belongs to %d:%d here, %v", st.Uid, st.Gid, err)
	}

	cfg := stage.ContainerConfig("refused", busybox, "/bin/true")
	hostVolume("/proc/sys", "/mapped")(cfg)
	inMapped(cfg)
	_, err := s.cri.CreateContainer(s.ctx, p.id, cfg, p.cfg)
	if code(err) != codes.FailedPrecondition || !strings.Contains(fmt.Sprint(err), "uidMappings") || !strings.Contains(fmt.Sprint(err), "/proc/sys") {
		t.Errorf("a volume on procfs: %v", err)
	}
}

// TestUserNamespaceRefused: mappings that are none, users that a pod does not have, and containers that want another
// namespace than their pod's have a code and the name of a field, and leave nothing.
func TestUserNamespaceRefused(t *testing.T) {
	s := open(t)
	line := func(inside, host, n uint32) *runtimeapi.IDMapping {
		return &runtimeapi.IDMapping{ContainerId: inside, HostId: host, Length: n}
	}
	both := func(lines ...*runtimeapi.IDMapping) *runtimeapi.UserNamespace {
		return &runtimeapi.UserNamespace{Uids: lines, Gids: lines}
	}
	for name, q := range map[string]struct {
		u     *runtimeapi.UserNamespace
		field string
	}{
		"no mapping":              {&runtimeapi.UserNamespace{}, "uids"},
		"two lines":               {both(line(0, 200000, 10), line(10, 300000, 10)), "uids"},
		"nobody is root":          {both(line(1, 200000, 10)), "container_id"},
		"of no length":            {both(line(0, 200000, 0)), "length"},
		"beyond the last id":      {both(line(0, 1<<32-10, 65536)), "length"},
		"no groups":               {&runtimeapi.UserNamespace{Uids: both(line(0, 200000, 10)).Uids}, "gids"},
		"other groups than users": {&runtimeapi.UserNamespace{Uids: both(line(0, 200000, 10)).Uids, Gids: both(line(0, 300000, 10)).Gids}, "gids"},
		"a mode without a sense":  {&runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_CONTAINER}, "mode"},
		"the host's, with some":   {&runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE, Uids: both(line(0, 200000, 10)).Uids}, "userns_options"},
	} {
		cfg, err := s.PodConfig("userns-refused")
		if err != nil {
			t.Fatal(err)
		}
		cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions = q.u
		id, err := s.cri.RunPodSandbox(s.ctx, cfg, "")
		if code(err) != codes.InvalidArgument || !strings.Contains(fmt.Sprint(err), q.field) {
			t.Errorf("%s: %v", name, err)
		}
		(&pod{scene: s, id: id, cfg: cfg}).end()
	}
	// Ten users are enough for root, and user 33 is none of them.
	few := func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = ids0(mappedTo, 10)
	}
	p := s.runPod("userns-few", few)
	c := p.run("c", "sleep 1000", func(c *runtimeapi.ContainerConfig) { join(c, ids0(mappedTo, 10)) })
	if got := s.exec(c, "cat /proc/self/gid_map; stat -c %u:%g / /dev/pts /dev/ptmx | sort -u"); strings.Join(strings.Fields(got), " ") != "0 200000 10 0:0" {
		t.Errorf("with ten ids: %q", got)
	}
	x := s.screen(c, "tty")
	if r := x.end(); r.code != 0 || !strings.Contains(x.out["stdout"].String(), "/dev/pts/0") {
		t.Errorf("a terminal without the group of terminals: %+v %q", r, x.out["stdout"])
	}
	value := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	for field, edit := range map[string]func(*runtimeapi.LinuxContainerSecurityContext){
		"run_as_user":         func(c *runtimeapi.LinuxContainerSecurityContext) { c.RunAsUser = value(33) },
		"run_as_group":        func(c *runtimeapi.LinuxContainerSecurityContext) { c.RunAsUser, c.RunAsGroup = value(1), value(33) },
		"supplemental_groups": func(c *runtimeapi.LinuxContainerSecurityContext) { c.SupplementalGroups = []int64{10} },
		"userns_options": func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.NamespaceOptions.UsernsOptions = ids0(mappedTo, 11)
		},
	} {
		cfg := stage.ContainerConfig("refused", busybox, "/bin/true")
		join(cfg, ids0(mappedTo, 10))
		edit(cfg.Linux.SecurityContext)
		if _, err := s.cri.CreateContainer(s.ctx, p.id, cfg, p.cfg); code(err) != codes.InvalidArgument || !strings.Contains(fmt.Sprint(err), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	plain := s.runPod("userns-none")
	cfg := stage.ContainerConfig("refused", busybox, "/bin/true")
	inMapped(cfg)
	if _, err := s.cri.CreateContainer(s.ctx, plain.id, cfg, plain.cfg); code(err) != codes.InvalidArgument || !strings.Contains(fmt.Sprint(err), "userns_options") {
		t.Errorf("mapped in a pod that is not: %v", err)
	}
}

// TestUserNamespacesUsedUp: the machine's limit is not the request's fault, and a pod can be made when there is room again.
func TestUserNamespacesUsedUp(t *testing.T) {
	s := open(t)
	const limit = "/proc/sys/user/max_user_namespaces"
	old, err := os.ReadFile(limit)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(limit, []byte("0"), 0o644); errors.Is(err, os.ErrPermission) {
		t.Skip("needs CAP_SYS_RESOURCE: sets user.max_user_namespaces; internal/userns has a test of less")
	} else if err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(limit, old, 0o644)
	cfg, err := s.PodConfig("userns-none-left")
	if err != nil {
		t.Fatal(err)
	}
	mapped(cfg)
	_, rerr := s.cri.RunPodSandbox(s.ctx, cfg, "")
	if err := os.WriteFile(limit, old, 0o644); err != nil {
		t.Fatal(err)
	}
	if code(rerr) != codes.ResourceExhausted || !strings.Contains(fmt.Sprint(rerr), "user namespace") {
		t.Errorf("with none left: %v", rerr)
	}
	if err := s.Forget(cfg); err != nil {
		t.Error(err)
	}
	s.runPod("userns-none-left", mapped)
}

// TestCritestUserNamespaces runs critest's specs on user namespaces and on read-only mounts: none fails, none is skipped.
func TestCritestUserNamespaces(t *testing.T) {
	if r := critest(t, "UserNamespaces|readonly mount"); len(r.others) > 0 || r.passed < 11 {
		t.Errorf("%d specs passed, want 11; others: %q", r.passed, r.others)
	}
}
