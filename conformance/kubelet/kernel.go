package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const hierarchy = "/sys/fs/cgroup"

// process is the first process of a container, by what cannot be the same for another one.
type process struct {
	id    string // of the container
	pid   int
	began string // start time in ticks since boot: a pid comes again, with another one
}

// cgroupOf returns where the kubelet wants a container's cgroup, for the driver that is in use.
func (n *node) cgroupOf(p *pod, id string) string {
	class := strings.ToLower(p.Status.QOSClass)
	if n.driver == "systemd" {
		uid := strings.ReplaceAll(p.Metadata.UID, "-", "_")
		if class == "guaranteed" {
			return "/kubepods.slice/kubepods-pod" + uid + ".slice/vitrine-" + id + ".scope"
		}
		above := "kubepods-" + class
		return "/kubepods.slice/" + above + ".slice/" + above + "-pod" + uid + ".slice/vitrine-" + id + ".scope"
	}
	if class == "guaranteed" {
		return "/kubepods/pod" + p.Metadata.UID + "/vitrine-" + id
	}
	return "/kubepods/" + class + "/pod" + p.Metadata.UID + "/vitrine-" + id
}

// first finds the process of a cgroup that is pid 1 of its own PID namespace.
func first(cgroup, id string) (process, error) {
	text, err := os.ReadFile(filepath.Join(hierarchy, cgroup, "cgroup.procs"))
	if err != nil {
		return process{}, err
	}
	for _, f := range strings.Fields(string(text)) {
		status, err := os.ReadFile("/proc/" + f + "/status")
		if err != nil {
			continue // ended while we looked
		}
		ns := strings.Fields(field(string(status), "NSpid:"))
		if len(ns) != 2 || ns[1] != "1" {
			continue
		}
		pid, err := strconv.Atoi(f)
		if err != nil {
			return process{}, err
		}
		began, err := startTime(pid)
		return process{id, pid, began}, err
	}
	return process{}, fmt.Errorf("cgroup %s has no process that is pid 1 of a namespace", cgroup)
}

// field returns the rest of the line that begins with name.
func field(text, name string) string {
	for _, line := range strings.Split(text, "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// startTime is the 22nd field of stat, counted behind the name, which may hold anything.
func startTime(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	i := strings.LastIndexByte(string(text), ')')
	f := strings.Fields(string(text)[i+1:])
	if len(f) < 20 {
		return "", errors.New("stat of a process is short")
	}
	return f[19], nil
}

// compare reads the files of a container's cgroup, and its process's oom_score_adj, and returns what differs from want.
func compare(cgroup string, pid int, want map[string]string) []string {
	var wrong []string
	for name, w := range want {
		path := filepath.Join(hierarchy, cgroup, name)
		if name == "oom_score_adj" {
			path = fmt.Sprintf("/proc/%d/oom_score_adj", pid)
		}
		text, err := os.ReadFile(path)
		if got := strings.TrimSpace(string(text)); err != nil {
			wrong = append(wrong, err.Error())
		} else if got != w {
			wrong = append(wrong, fmt.Sprintf("%s is %q, want %q", name, got, w))
		}
	}
	slices.Sort(wrong)
	return wrong
}

// memory returns the node's memory in bytes.
func memory() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	kib, err := strconv.ParseInt(strings.TrimSuffix(field(string(text), "MemTotal:"), " kB"), 10, 64)
	return kib << 10, err
}
