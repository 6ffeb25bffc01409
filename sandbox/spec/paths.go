package spec

import (
	"fmt"
	"path"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxPaths bounds the lists of masked and read-only paths: each costs a mount.
const maxPaths = 1024

// minimalMasks are hidden whenever a request hides anything. They are the paths of /proc and /sys that
// leaked or let change the host in the past; older kubelets do not list all of them.
var minimalMasks = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware", "/sys/fs/selinux",
}

// minimalReadonly is used, as minimalMasks is, for a request without any security context.
var minimalReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// applyPaths hides and protects paths. The request's lists are the truth: an empty one is what Kubernetes
// sends for procMount Unmasked. A request without a security context at all was not written by somebody who
// thought about masks, and is given our lists. Privileged containers have neither.
func applyPaths(in *Input, s *specs.Spec) error {
	sc := security(in.Container)
	masked, err := checkPaths("linux.security_context.masked_paths", sc.GetMaskedPaths())
	if err != nil {
		return err
	}
	readonly, err := checkPaths("linux.security_context.readonly_paths", sc.GetReadonlyPaths())
	if err != nil {
		return err
	}
	if sc.GetPrivileged() {
		return nil
	}
	if in.Container.GetLinux().GetSecurityContext() == nil {
		masked, readonly = minimalMasks, minimalReadonly
	}
	if len(masked) != 0 {
		masked = slices.Concat(masked, minimalMasks)
		slices.Sort(masked)
		masked = slices.Compact(masked)
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = masked, readonly
	return nil
}

func checkPaths(field string, list []string) ([]string, error) {
	if len(list) > maxPaths {
		return nil, Invalid(field, "", "%d paths are more than %d", len(list), maxPaths)
	}
	var out []string
	for i, p := range list {
		f := fmt.Sprintf("%s[%d]", field, i)
		if err := checkAbsolute(f, p); err != nil {
			return nil, err
		}
		c := path.Clean(p)
		if c == "/" {
			return nil, Invalid(f, p, "the root itself cannot be hidden or protected")
		}
		out = append(out, c)
	}
	return out, nil
}
