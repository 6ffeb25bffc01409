package integration

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

func writableCgroup(value string) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{spec.WritableCgroup: value}
	}
}

// A container that was given its cgroup divides it: it makes cgroups, moves its processes, and passes controllers on,
// as root and as somebody else. Its own limits stay out of its reach, its neighbour has nothing of this, execs work as
// ever, and nothing is left of what it made.
func TestWritableCgroup(t *testing.T) {
	s := open(t)
	p := s.runPod("delegated", writableCgroup("root, nobody"))
	for name, uid := range map[string]int64{"root": 0, "nobody": 65534} {
		id := p.run(name, "sleep 1000", func(c *runtimeapi.ContainerConfig) {
			c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{RunAsUser: &runtimeapi.Int64Value{Value: uid}}}
		})
		out := s.exec(id, `cd /sys/fs/cgroup || exit
cat /proc/1/cgroup
echo $(cat init/cgroup.procs)
mkdir mine mine/deep && echo made
sleep 500 >/dev/null 2>&1 & echo $! > mine/cgroup.procs && grep -c . mine/cgroup.procs
echo offered $(cat cgroup.controllers)
want=$(tr ' ' '\n' < cgroup.controllers | grep -e pids -e memory | sed 's/^/+/' | tr '\n' ' ')
[ -z "$want" ] || echo $want > cgroup.subtree_control; echo passed on $?
(grep -qw cpu cgroup.controllers && echo +cpu > cgroup.subtree_control) 2>/dev/null
echo enabled $(cat cgroup.subtree_control)
[ -z "$want" ] || ls mine | grep -q pids.max && echo has files
[ ! -e mine/memory.max ] || echo 16777216 > mine/memory.max && echo limits its own
echo limit $(cat mine/memory.max 2>/dev/null)
(echo 1000000 > cgroup.max.descendants) 2>/dev/null || echo not the node\'s
(echo 1 > cgroup.freeze) 2>/dev/null || echo not the whole
[ ! -e memory.oom.group ] || { (cat memory.oom.group > memory.oom.group) 2>/dev/null; echo oom group $? $(id -u); }
for f in pids.max memory.max cpu.max; do if [ -e $f ] && (echo max > $f) 2>/dev/null; then echo escaped by $f; fi; done`)
		for _, want := range []string{"0::/init", "1", "made", "passed on 0", "has files", "limits its own", "not the node's", "not the whole"} {
			if !strings.Contains("\n"+out+"\n", "\n"+want+"\n") {
				t.Errorf("%s: no %q in:\n%s", name, want, out)
			}
		}
		wantPassedOn(t, name, out)
		if strings.Contains(out, "oom group") && strings.Contains(out, "oom group 0 ") != (uid == 0) {
			t.Errorf("%s and memory.oom.group:\n%s", name, out)
		}
		if strings.Contains(out, "escaped by") {
			t.Errorf("%s raised its own limits:\n%s", name, out)
		}
		if out := s.exec(id, "echo again"); out != "again" {
			t.Errorf("%s: an exec after that: %q", name, out)
		}
	}
	plain := p.run("plain", "sleep 1000")
	if out := s.exec(plain, "mkdir /sys/fs/cgroup/mine 2>&1; ls -d /sys/fs/cgroup/init 2>&1; true"); strings.Count(out, "\n") != 1 || !strings.Contains(out, "Read-only") {
		t.Errorf("a neighbour that was not named: %q", out)
	}
}

// wantPassedOn looks at what the script of TestWritableCgroup found enabled for the children, and at the limit that it then set. Where the
// hierarchy has no controllers there is nothing to pass on, and the script has said so of all the rest.
func wantPassedOn(t *testing.T, name, out string) {
	t.Helper()
	if len(stage.MissingControllers()) > 0 {
		return
	}
	said := map[string][]string{}
	for _, line := range strings.Split(out, "\n") {
		if f := strings.Fields(line); len(f) > 0 {
			said[f[0]] = f[1:]
		}
	}
	want := []string{"memory", "pids"}
	if slices.Contains(said["offered"], "cpu") {
		want = append(want, "cpu")
	}
	for _, c := range want {
		if !slices.Contains(said["enabled"], c) {
			t.Errorf("%s did not pass %s on:\n%s", name, c, out)
		}
	}
	if !slices.Equal(said["limit"], []string{"16777216"}) {
		t.Errorf("%s: memory.max of its own cgroup is %q:\n%s", name, said["limit"], out)
	}
}

// The annotation is refused by name where it is malformed. That a daemon which does not allow it refuses it, too, is TestHandlers' to say.
func TestWritableCgroupRefused(t *testing.T) {
	s := open(t)
	cfg, err := s.PodConfig("undelegated")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Forget(cfg); err != nil {
			t.Error(err)
		}
	}()
	writableCgroup("a,,b")(cfg)
	_, err = s.cri.RunPodSandbox(s.ctx, cfg, "")
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), spec.WritableCgroup) {
		t.Errorf("names with a hole: %v", err)
	}
}
