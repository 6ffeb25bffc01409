package stage

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Traces is everything that a pod can leave behind: one line per thing, each with how often it is there. Things that
// are there by right (the bridge, the image layers, the daemon itself) are not in it.
type Traces map[string]int

// Traces looks at the whole stage: processes (monitors, containers, plugins), mounts, pinned network namespaces,
// network interfaces, IPAM reservations, CNI results, cgroups, the daemon's directories, and its descriptors.
func (s *Stage) Traces() Traces {
	t := Traces{}
	s.addProcesses(t)
	addMounts(t)
	for _, dir := range []string{"/run/netns", s.cniCache, s.tmpDir, s.ipamDir, s.RunDir} {
		addTree(t, dir, 0)
	}
	addTree(t, s.Root, 2)
	if s.machine {
		addTree(t, "/sys/fs/cgroup"+s.pods, 0)
		addUnits(t)
	} else {
		addTree(t, "/sys/fs/cgroup", 0)
	}
	addInterfaces(t)
	s.addDescriptors(t)
	return t
}

// TracesAtRest is Traces without the connections to the daemon's socket: those that are still there belong to clients
// that are closing.
func (s *Stage) TracesAtRest() Traces {
	t := s.Traces()
	delete(t, "descriptor of the daemon: unix stream socket, connected "+s.Socket)
	return t
}

// Left returns what is in t and was not in before, sorted.
func (t Traces) Left(before Traces) []string {
	var left []string
	for what, n := range t {
		if n > before[what] {
			line := what
			if n > 1 {
				line = fmt.Sprintf("%s (%d, was %d)", what, n, before[what])
			}
			left = append(left, line)
		}
	}
	sort.Strings(left)
	return left
}

// Settle waits until nothing is left in comparison with before, for at most ten seconds, and returns what then
// still is. Ten seconds is much longer than the kernel needs to take a namespace apart.
func (s *Stage) Settle(before Traces) []string {
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := s.Traces().Left(before)
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// addProcesses adds every process of the PID namespace but pid 1, the player and the daemon. Zombies count: somebody
// did not wait for them.
func (s *Stage) addProcesses(t Traces) {
	defer t.allow("a second keeper of the monitors' scope", 1)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t["/proc: "+err.Error()]++
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() || s.daemon != nil && pid == s.daemon.Pid() {
			continue
		}
		if s.machine && !s.ours(e.Name()) {
			continue
		}
		comm, err := os.ReadFile("/proc/" + e.Name() + "/comm")
		if err != nil {
			continue // ended while we looked
		}
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		args := strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
		if args == "vitrine-keeper" { // each daemon has one in the monitors' scope; an earlier one's ends with it
			t["a second keeper of the monitors' scope"]++
			continue
		}
		t[fmt.Sprintf("process %d %s %q", pid, strings.TrimSpace(string(comm)), args[:min(len(args), 80)])]++
	}
}

// ours reports whether a process of a whole machine belongs to this run: by its cgroup it is the player's child, of a service of ours, a
// monitor or in a pod.
func (s *Stage) ours(pid string) bool {
	theirs, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		return false
	}
	own, _ := os.ReadFile("/proc/self/cgroup") // nobody is in an empty one
	path := string(theirs)
	return path == string(own) || strings.HasPrefix(path, "0::"+s.pods+"/") || strings.Contains(path, "/"+unitPrefix) ||
		strings.Contains(path, "vitrine-monitors")
}

// addUnits adds what systemd knows under our names, whatever its state: a scope that failed and is still listed is a trace too. The
// daemon's services are not; systemd collects them when it comes to it.
func addUnits(t Traces) {
	out, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "vitrine-*", "stagepods-*").Output()
	if err != nil {
		t["list units: "+err.Error()]++
	}
	for _, line := range strings.Split(string(out), "\n") {
		if f := strings.Fields(line); len(f) > 3 && !strings.HasPrefix(f[0], unitPrefix) && f[0] != "vitrine-agent.service" {
			t[fmt.Sprintf("unit %s: %s %s %s", f[0], f[1], f[2], f[3])]++
		}
	}
}

// addMounts adds the mounts of our own mount namespace, which is also the daemon's. Detached mounts and those of the
// monitors end with the processes and descriptors that hold them. /run/netns becomes a mount point with the first
// pod and stays one; a second mount there is a trace.
func addMounts(t Traces) {
	defer t.allow("mount tmpfs on /run/netns", 1)
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t["mountinfo: "+err.Error()]++
	}
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Fields(line); len(f) > 6 {
			if i := slices.Index(f, "-"); i > 0 && i+2 < len(f) {
				t[fmt.Sprintf("mount %s on %s", f[i+1], f[4])]++
			}
		}
	}
}

// quiet matches the paths that may come and stay: the state of host-local that is no reservation, the directory of
// libcni's results, and what the image store keeps for images.
var quiet = regexp.MustCompile(`^(/run/stage/(ipam/[^/]+(/last_reserved_ip\.[0-9]+|/lock)?|cni-cache/results|lib/storage(/.*)?)|` + machineRoot + `/storage(/.*)?)$`)

// addTree adds the paths below dir, down to depth levels (0: all).
func addTree(t Traces, dir string, depth int) {
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == dir || quiet.MatchString(path) {
			return nil //nolint:nilerr // gone while we looked
		}
		if strings.HasPrefix(dir, "/sys/fs/cgroup") && !d.IsDir() {
			return nil
		}
		t["path "+path]++
		if rel, _ := filepath.Rel(dir, path); depth > 0 && d.IsDir() && strings.Count(rel, "/")+1 >= depth {
			return filepath.SkipDir
		}
		return nil
	})
}

// addInterfaces adds the interfaces of the host's side: a veth end that is still here has lost its pod.
func addInterfaces(t Traces) {
	ifs, err := net.Interfaces()
	if err != nil {
		t["interfaces: "+err.Error()]++
	}
	for _, i := range ifs {
		if i.Name != "lo" && i.Name != Bridge {
			t["interface "+i.Name]++
		}
	}
}

var digits = regexp.MustCompile(`[0-9a-f]{12,}|[0-9]+`)

// addDescriptors adds the daemon's descriptors by class: numbers and ids in the link's text are left out, so that the
// socket of one connection counts as the socket of another.
func (s *Stage) addDescriptors(t Traces) {
	if s.daemon == nil {
		return
	}
	dir := fmt.Sprintf("/proc/%d/fd", s.daemon.Pid())
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	sockets := unixSockets()
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed while we looked
		}
		if s, ok := sockets[link]; ok {
			link = s
		}
		if s.daemon.unit != "" {
			link = strings.Replace(link, s.daemon.unit, "the daemon's service", 1)
		}
		t["descriptor of the daemon: "+digits.ReplaceAllString(link, "N")]++
	}
	// The daemon keeps the device filters that it loaded last (oci/cgroup): one more than it may keep is a trace.
	t.allow("descriptor of the daemon: anon_inode:bpf-prog", keptFilters)
}

// AllowPulled lets what pulling an image may leave for a while be there: go.podman.io/storage hands the child that unpacks
// a layer a pipe, and leaves its own end, which has no writer any more, to the garbage collector.
func (t Traces) AllowPulled(layers int) { t["descriptor of the daemon: pipe:[N]"] += layers }

// allow takes a trace away that may be there up to a number of times by right.
func (t Traces) allow(what string, most int) {
	if t[what] <= most {
		delete(t, what)
	}
}

// keptFilters is how many loaded device filters oci/cgroup keeps.
const keptFilters = 32

// unixSockets describes the unix sockets of the network namespace by the text of their links: type, state and, where
// they have one, path.
func unixSockets() map[string]string {
	found := map[string]string{}
	text, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return found
	}
	kinds := map[string]string{"0001": "stream", "0002": "datagram", "0005": "seqpacket"}
	states := map[string]string{"01": "free", "02": "connecting", "03": "connected"}
	for _, line := range strings.Split(string(text), "\n") {
		// Num RefCount Protocol Flags Type St Inode [Path]
		f := strings.Fields(line)
		if len(f) < 7 {
			continue
		}
		path := ""
		if len(f) > 7 {
			path = f[7]
		}
		found["socket:["+f[6]+"]"] = strings.TrimSpace(fmt.Sprintf("unix %s socket, %s %s", kinds[f[4]], states[f[5]], path))
	}
	return found
}
