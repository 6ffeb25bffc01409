package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	features "github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/vitrine-runtime/vitrine/oci/bundle"
	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/seccomp"
)

func prepareFeatures(c *call) ([]option, func([]string) (int, error)) {
	return nil, func([]string) (int, error) { return 0, printJSON(c.out, supported()) }
}

// supported is what this binary knows (features.md). Whether the machine does is not
// looked at, as the specification has it.
func supported() *features.Features {
	yes, no := true, false
	p, s := program.Supported(), seccomp.Supported()
	return &features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specs.Version, Hooks: bundle.HookPhases(), MountOptions: p.MountOptions,
		Linux: &features.Linux{
			Namespaces: p.Namespaces, Capabilities: p.Capabilities,
			Cgroup:          &features.Cgroup{V1: &no, V2: &yes, Systemd: &yes, SystemdUser: &no, Rdma: &yes},
			Seccomp:         &features.Seccomp{Enabled: &yes, Actions: s.Actions, Operators: s.Operators, Archs: s.Archs, KnownFlags: s.Flags, SupportedFlags: s.Flags},
			Apparmor:        &features.Apparmor{Enabled: &yes},
			Selinux:         &features.Selinux{Enabled: &yes},
			IntelRdt:        &features.IntelRdt{Enabled: &no},
			MemoryPolicy:    &features.MemoryPolicy{Modes: p.MemoryModes, Flags: p.MemoryFlags},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &yes},
		},
		Annotations: map[string]string{"com.github.vitrine-runtime.vitrine.version": version},
	}
}

func prepareSpec(c *call) ([]option, func([]string) (int, error)) {
	dir, rootless := ".", false
	options := []option{
		text("bundle,b", "DIR", "write DIR/config.json (default .)", &dir),
		toggle("rootless", "one for who is not root: a user namespace in which the caller is 0", &rootless),
	}
	return options, func(args []string) (int, error) {
		if len(args) > 0 {
			return 1, fmt.Errorf("spec takes no arguments: %w", errUsage)
		}
		f, err := os.OpenFile(filepath.Join(dir, "config.json"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return 1, err
		}
		content := firstSpec
		if rootless {
			content = rootlessSpec()
		}
		if _, err := f.WriteString(content); err != nil {
			f.Close()
			return 1, err
		}
		return 0, f.Close()
	}
}

// rootlessSpec is firstSpec in a user namespace that has the caller and nobody else.
func rootlessSpec() string {
	only := func(id int) string { return `[{"containerID": 0, "hostID": ` + strconv.Itoa(id) + `, "size": 1}]` }
	return strings.NewReplacer(`, "gid=5"`, "", // the group is nobody there
		`{"type": "cgroup"}],`, `{"type": "cgroup"}, {"type": "user"}],
		"uidMappings": `+only(os.Geteuid())+`,
		"gidMappings": `+only(os.Getegid())+`,`).Replace(firstSpec)
}

// firstSpec is a container to begin with: a shell with a terminal, no capability but
// three harmless ones, and all namespaces.
var firstSpec = `{
	"ociVersion": "` + specs.Version + `",
	"process": {
		"terminal": true,
		"user": {"uid": 0, "gid": 0},
		"args": ["sh"],
		"env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
		"cwd": "/",
		"capabilities": {
			"bounding": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
			"effective": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
			"permitted": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
		},
		"rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
		"noNewPrivileges": true
	},
	"root": {"path": "rootfs", "readonly": true},
	"hostname": "vitrine",
	"mounts": [
		{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
		{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
		{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
		{"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
		{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
		{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
	],
	"linux": {
		"resources": {"devices": [{"allow": false, "access": "rwm"}]},
		"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
		"maskedPaths": [
			"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
			"/proc/sched_debug", "/proc/scsi", "/proc/interrupts", "/sys/firmware", "/sys/devices/virtual/powercap"
		],
		"readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
	}
}
`
