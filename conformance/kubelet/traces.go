package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// keeper is the name of the process that keeps the scope of the monitors alive.
const keeper = "vitrine-keeper"

// traces is everything that a pod can leave behind on a node, one line for each thing.
type traces map[string]bool

// look collects processes, mounts, pinned network namespaces, interfaces, addresses, cgroups, units, and the directories of the
// daemon, the kubelet and the logs.
func look(ctx context.Context) (traces, error) {
	t := traces{}
	t.processes()
	t.mounts()
	for _, dir := range []string{"/run/netns", "/run/vitrine/pods", "/var/lib/vitrine/upper", "/var/lib/vitrine/network", podLogs, klDir + "/pods", config + "/ipam"} {
		t.tree(dir)
	}
	t.cgroups()
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if strings.HasPrefix(i.Name, "veth") {
			t["interface "+i.Name] = true
		}
	}
	list, err := systemctl(ctx, "list-units", "--all", "--plain", "--no-legend", "--full")
	for _, line := range strings.Split(list, "\n") {
		if f := strings.Fields(line); len(f) > 3 && ofPods(f[0]) {
			t["unit "+f[0]+" "+f[2]] = true
		}
	}
	return t, err
}

// since returns what is there and was not before.
func (t traces) since(before traces) []string {
	var left []string
	for what := range t {
		if !before[what] {
			left = append(left, what)
		}
	}
	slices.Sort(left)
	return left
}

// processes adds the programs that are ours or in a pod: monitors, pause, plugins, and whatever sits in a cgroup of pods. Zombies count.
func (t traces) processes() {
	keepers := 0
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil {
			continue // ended while we looked
		}
		name := strings.TrimSpace(string(comm))
		group, _ := os.ReadFile(dir + "/cgroup") // a process that is ending has none to tell
		where := strings.TrimSpace(string(group))
		if args, _ := os.ReadFile(dir + "/cmdline"); strings.HasPrefix(string(args), keeper) {
			keepers++ // each daemon has its own; two at once are a trace
			t[fmt.Sprintf("keeper number %d", keepers)] = true
			continue
		}
		switch name {
		case "vitrine", "kubelet", "kubelet-walk":
			continue
		case "vitrine-oci", "pause", "bridge", "host-local":
		default:
			if !strings.Contains(where, "kubepods") {
				continue
			}
		}
		t[fmt.Sprintf("process %s %s in %s", filepath.Base(dir), name, where)] = true
	}
}

// mounts adds the mounts of the host's namespace, by where they are.
func (t traces) mounts() {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Fields(line); len(f) > 4 && f[4] != "/run/netns" {
			t["mount on "+f[4]] = true
		}
	}
}

// ofPods tells the units and cgroups of pods and containers from systemd's own and from the scope that keeps the monitors, which stays.
func ofPods(name string) bool {
	return strings.HasPrefix(name, "kubepods") || strings.HasPrefix(name, "vitrine-") && name != "vitrine-monitors.scope" &&
		name != "vitrine-monitors" && !strings.HasSuffix(name, ".service")
}

// cgroups adds those of pods and containers, and whatever is in them.
func (t traces) cgroups() {
	_ = filepath.WalkDir(hierarchy, func(path string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(hierarchy, path)
		if err == nil && d.IsDir() && slices.ContainsFunc(strings.Split(rel, "/"), ofPods) {
			t["cgroup "+rel] = true
		}
		return nil //nolint:nilerr // gone while we looked
	})
}

// tree adds the paths below dir. The plugin's own notes, which are no reservation, stay.
func (t traces) tree(dir string) {
	_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		base := filepath.Base(path)
		if err == nil && path != dir && base != "lock" && !strings.HasPrefix(base, "last_reserved_ip") && path != config+"/ipam/walk" {
			t["path "+path] = true
		}
		return nil //nolint:nilerr // gone while we looked, or never there
	})
}
