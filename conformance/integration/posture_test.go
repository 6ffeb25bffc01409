package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/posture"
)

// What a process of each profile is that the daemon starts, held against golden files (package posture).

// lookAround is the probe. $$ is the process as it was executed; what reads it
// are children of it.
var lookAround = `
sec() { echo "# $1"; }
sec status; ` + posture.Status("Uid", "Gid", "Groups", "Umask", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Cap*", "SigBlk", "TracerPid", "NSpid") + `
sec limits; cat /proc/$$/limits
sec namespaces; for n in cgroup ipc mnt net pid time user uts; do echo "$n $(readlink /proc/$$/ns/$n)"; done
sec maps; cat /proc/$$/uid_map /proc/$$/gid_map
sec place; echo "cgroup $(grep ^0: /proc/$$/cgroup)"; echo "directory $(readlink /proc/$$/cwd)"; echo "label $(cat /proc/$$/attr/current 2>/dev/null)"
sec root; ls -lA / | sed 1d | awk '{print $1, $3, $4, $NF}'
sec dev; cd /dev; for f in * pts/ptmx; do case $f in
  null|zero|full|random|urandom|tty|ptmx|pts|pts/ptmx|shm|mqueue|fd|stdin|stdout|stderr|console) stat -c '%n %A %u:%g %t:%T %N' $f;; *) other=1;; esac; done; echo "others: ${other:-none}"; cd /
sec mounts; cat /proc/$$/mountinfo
sec descriptors; for f in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 20 30 63 100; do test -L /proc/$$/fd/$f && echo -n "$f " && readlink /proc/$$/fd/$f; done
sec environment; tr '\0' '\n' </proc/$$/environ | sort
sec writable; for f in /proc/sys/kernel/domainname /proc/sys/vm/drop_caches /sys/kernel/uevent_helper /sys/fs/cgroup/cgroup.procs /x /etc/hosts /etc/resolv.conf /dev/x; do (: >>$f) 2>/dev/null && echo $f; done; rm -f /x /dev/x 2>/dev/null
sec end
`

// sections splits what a probe has said.
func sections(text string) map[string][]string {
	m, at := map[string][]string{}, ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if name, ok := strings.CutPrefix(line, "# "); ok {
			at = name
			continue
		}
		m[at] = append(m[at], line)
	}
	return m
}

// pose is what a posture is normalised with.
type pose struct {
	host, monitor int // pids
	cfg           *runtimeapi.ContainerConfig
	pod           string
}

var (
	ids  = regexp.MustCompile(`[0-9a-f]{64}`)
	leaf = regexp.MustCompile(`^cgroup 0::/exec-[0-9a-f]+$`)
)

// label is the AppArmor label of who asks for no profile, where the kernel has AppArmor.
func (p pose) label() string {
	if _, err := exec.LookPath("apparmor_parser"); err != nil || p.cfg == nil || p.cfg.GetLinux().GetSecurityContext().GetPrivileged() {
		return "unconfined"
	}
	return "vitrine-default (enforce)"
}

// text writes the sections in an order and in words that are the same
// everywhere.
func (p pose) text(m map[string][]string) string {
	var b strings.Builder
	for _, name := range []string{"status", "limits", "namespaces", "maps", "place", "root", "dev", "mounts", "descriptors", "environment", "writable"} {
		lines := m[name]
		if len(lines) == 0 {
			continue
		}
		switch name {
		case "status":
			lines = p.status(lines)
		case "limits":
			lines = p.limits(lines)
		case "namespaces":
			lines = p.namespaces(lines)
		case "mounts":
			lines = p.mounts(lines)
		case "place":
			for i, l := range lines {
				if leaf.MatchString(l) {
					lines[i] = "cgroup a leaf of its own below the root"
				} else if l != "cgroup 0::/" && strings.HasPrefix(l, "cgroup ") {
					lines[i] = "cgroup in sight of the host's hierarchy"
				} else if l == "label "+p.label() {
					lines[i] = "label"
				}
			}
		case "dev": // a privileged container has the host's devices, and on a real machine /dev/tty has a group
			for i, l := range lines {
				lines[i] = strings.Replace(l, " 0:5 5:0 tty", " 0:0 5:0 tty", 1)
			}
		}
		fmt.Fprintf(&b, "%s\n", name)
		for _, l := range lines {
			l = ids.ReplaceAllString(l, "<id>")
			if p.pod != "" {
				l = strings.ReplaceAll(l, p.pod, "<pod>")
			}
			b.WriteString(posture.Line(l))
		}
	}
	return b.String()
}

func procLines(pid int, file string) []string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	return strings.Split(strings.TrimRight(string(b), "\n"), "\n")
}

// status replaces what depends on the kernel: all capabilities that the host
// has.
func (p pose) status(lines []string) []string {
	all := ""
	for _, l := range procLines(p.host, "status") {
		if v, ok := strings.CutPrefix(l, "CapBnd:\t"); ok {
			all = v
		}
	}
	var out []string
	for _, l := range lines {
		if strings.HasPrefix(l, "NSpid:") {
			l = fmt.Sprintf("NSpid: %d deep", len(strings.Fields(l))-1)
		}
		out = append(out, strings.ReplaceAll(l, all, "all of the host's"))
	}
	return out
}

// limits names what is inherited.
func (p pose) limits(lines []string) []string {
	from := procLines(p.monitor, "limits")
	var out []string
	for _, l := range lines {
		switch {
		case strings.HasPrefix(l, "Limit"):
		case strings.HasPrefix(l, "Max open files"): // the hard one is what the host allows
			if f := strings.Fields(l); len(f) > 4 {
				l = strings.Join(f[:4], " ")
			}
			out = append(out, l)
		case slices.Contains(from, l):
			out = append(out, strings.TrimSpace(l[:26])+": the monitor's")
		default:
			out = append(out, l)
		}
	}
	return out
}

// namespaces says whose each of them is.
func (p pose) namespaces(lines []string) []string {
	var out []string
	for _, l := range lines {
		kind, ns, _ := strings.Cut(l, " ")
		whose := "its own"
		for _, of := range []struct {
			name string
			pid  int
		}{{"the pod's", p.monitor}, {"the host's", p.host}} {
			if at, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", of.pid, kind)); err == nil && at == ns {
				whose = of.name
			}
		}
		out = append(out, kind+" "+whose)
	}
	return out
}

// mounts keeps where something is mounted, with what flags and propagation, and
// of what kind it is where that is ours to choose. Paths that the request wants
// masked or read-only are checked one by one and told in one line: which of them
// exist is the kernel's.
func (p pose) mounts(lines []string) []string {
	var out []string
	asked := map[string]string{}
	if sc := p.cfg.GetLinux().GetSecurityContext(); sc != nil && !sc.Privileged {
		for _, m := range sc.MaskedPaths {
			asked[m] = "masked"
		}
		for _, r := range sc.ReadonlyPaths {
			asked[r] = "read-only"
		}
	}
	for _, l := range lines {
		m, ok := posture.ParseMount(l)
		if !ok {
			out = append(out, "unreadable: "+l)
			continue
		}
		at, flags, kind, super := m.At, m.Flags, m.Kind, m.Super
		if how, ok := asked[at]; ok {
			if !strings.HasPrefix(flags, "ro") || how == "masked" && kind != "tmpfs" || len(m.Propagation) > 0 {
				out = append(out, at+" is not "+how+": "+l)
			}
			delete(asked, at)
			continue
		}
		if sc := p.cfg.GetLinux().GetSecurityContext(); sc != nil && !sc.Privileged && kind == "tmpfs" && strings.HasPrefix(flags, "ro,nosuid") &&
			(strings.HasPrefix(at, "/proc/") || strings.HasPrefix(at, "/sys/")) {
			continue // masks that the runtime adds, as far as they exist
		}
		switch {
		case kind == "tmpfs" && (at == "/dev" || at == "/dev/shm"), kind == "devpts":
			super = strings.TrimSuffix(super, ",inode64")
		case kind == "overlay", kind == "proc", kind == "sysfs", strings.HasPrefix(kind, "cgroup"), kind == "mqueue":
			super = ""
		default:
			kind, super = "bind", ""
		}
		out = append(out, strings.Join([]string{at, kind, flags, strings.Join(m.Propagation, ","), super}, " "))
	}
	sort.Strings(out)
	for path, how := range asked {
		if _, err := os.Lstat(path); err == nil {
			out = append(out, path+" exists and is not "+how)
		}
	}
	if sc := p.cfg.GetLinux().GetSecurityContext(); sc != nil && !sc.Privileged {
		out = append(out, "all paths to mask and to make read-only that exist are so")
	}
	return out
}

// parentOf returns the parent of a process.
func parentOf(pid int) int {
	for _, l := range procLines(pid, "status") {
		if v, ok := strings.CutPrefix(l, "PPid:\t"); ok {
			n, _ := strconv.Atoi(v)
			return n
		}
	}
	return 0
}

// profiles are the containers whose posture is kept.
var profiles = map[string]struct {
	pod       func(*runtimeapi.PodSandboxConfig)
	container func(*runtimeapi.ContainerConfig)
	handler   string
}{
	"default":               {},
	"privileged":            {pod: privilegedPod, container: inPrivileged},
	"privileged-no-devices": {pod: privilegedPod, container: inPrivileged, handler: "bare"},
	"hostnetwork": {
		pod: func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
			c.Hostname = ""
		},
		container: func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		},
	},
	"nonroot": {container: func(c *runtimeapi.ContainerConfig) {
		sc := c.Linux.SecurityContext
		sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 33}, &runtimeapi.Int64Value{Value: 7}
		sc.SupplementalGroups, sc.NoNewPrivs = []int64{1234}, true
		sc.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_RAW"}}
	}},
	"userns":   {pod: mapped, container: inMapped},
	"readonly": {container: func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.ReadonlyRootfs = true }},
}

func TestPosture(t *testing.T) {
	for name, profile := range profiles {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			var pods []func(*runtimeapi.PodSandboxConfig)
			if profile.pod != nil {
				pods = append(pods, profile.pod)
			}
			if profile.handler != "" {
				s.configured(bare)
			}
			p := s.runPodAs(profile.handler, "posture-"+name, pods...)
			var cfg *runtimeapi.ContainerConfig
			id := p.run("c", lookAround+"sleep 1000", func(c *runtimeapi.ContainerConfig) {
				cfg = c
				c.Envs = []*runtimeapi.KeyValue{{Key: "ASKED", Value: []byte("for")}}
				if profile.container != nil {
					profile.container(c)
				}
			})
			s.eventually("the probe is at its end", func() bool { return slices.Contains(p.logText("c", "stdout"), "# end") })
			pids := p.pids(id)
			if len(pids) == 0 {
				t.Fatal("no process")
			}
			ps := pose{host: os.Getpid(), monitor: parentOf(pids[0]), cfg: cfg, pod: p.cfg.Metadata.Name}
			posture.Golden(t, name, ps.text(sections(strings.Join(p.logText("c", "stdout"), "\n"))))
			if name != "default" {
				return
			}
			out, errOut, err := s.cri.ExecSync(s.ctx, id, []string{"/bin/sh", "-c", lookAround}, s.Scale(20*time.Second))
			if err != nil {
				t.Fatalf("exec: %v %s", err, errOut)
			}
			posture.Golden(t, "exec", ps.text(sections(string(out))))
			posture.Golden(t, "monitor", ps.process(ps.monitor))
			posture.Golden(t, "daemon", ps.process(place.Daemon().Pid()))
		})
	}
}

// process is the posture of a process of the runtime, from outside.
func (p pose) process(pid int) string {
	m := map[string][]string{}
	keep := regexp.MustCompile(`^(Uid|Gid|Groups|Umask|NoNewPrivs|Seccomp|Seccomp_filters|Cap[A-Z][a-z]+|TracerPid):`)
	for _, l := range procLines(pid, "status") {
		if keep.MatchString(l) {
			m["status"] = append(m["status"], l)
		}
	}
	for _, n := range []string{"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"} {
		at, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, n))
		m["namespaces"] = append(m["namespaces"], n+" "+at)
	}
	kinds := map[string]bool{}
	for _, target := range links(fmt.Sprintf("/proc/%d/fd", pid)) {
		kinds[kindOf(target)] = true
	}
	for k := range kinds {
		m["descriptors"] = append(m["descriptors"], k)
	}
	sort.Strings(m["descriptors"])
	if pid == p.monitor { // the daemon's mounts and environment are the administrator's
		q := p
		q.cfg = nil
		for _, l := range q.mounts(procLines(pid, "mountinfo")) {
			m["place"] = append(m["place"], "mount "+l)
		}
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		m["environment"] = strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		m["place"] = append(m["place"], "executable "+exe)
	}
	p.monitor = 0
	return p.text(m)
}

func links(dir string) map[int]string {
	m := map[int]string{}
	ents, _ := os.ReadDir(dir)
	for _, e := range ents {
		n, _ := strconv.Atoi(e.Name())
		m[n], _ = os.Readlink(filepath.Join(dir, e.Name()))
	}
	return m
}

// kindOf names what a descriptor is, without names that differ.
func kindOf(target string) string {
	if kind, _, ok := strings.Cut(target, ":"); ok && kind != "/memfd" {
		return kind
	}
	if strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "/memfd:") && !strings.HasPrefix(target, "/dev/") {
		return "file or directory"
	}
	return target
}
