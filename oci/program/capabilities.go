package program

import (
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// capabilityNames by number (linux/capability.h).
var capabilityNames = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK",
	"CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN",
	"CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE",
	"CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
	"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

func capabilityName(n int) string {
	if n < len(capabilityNames) {
		return capabilityNames[n]
	}
	return "capability " + strconv.Itoa(n)
}

// capabilities are the five sets as bit masks.
type capabilities struct {
	bounding, effective, permitted, inheritable, ambient uint64
}

// parseCapabilities reads the sets of the spec. A missing section means none.
// An unknown name is an error: it would be a privilege that somebody counts on,
// or a misspelt one that somebody believes dropped.
func parseCapabilities(c *specs.LinuxCapabilities) (capabilities, error) {
	var out capabilities
	if c == nil {
		return out, nil
	}
	for _, s := range []struct {
		name  string
		names []string
		set   *uint64
	}{
		{"bounding", c.Bounding, &out.bounding}, {"effective", c.Effective, &out.effective}, {"permitted", c.Permitted, &out.permitted},
		{"inheritable", c.Inheritable, &out.inheritable}, {"ambient", c.Ambient, &out.ambient},
	} {
		for _, n := range s.names {
			bit, ok := capabilityBit(n)
			if !ok {
				return out, fmt.Errorf("process.capabilities.%s: %q: %w", s.name, n, ErrInvalid)
			}
			*s.set |= bit
		}
	}
	if out.inheritable&^out.bounding != 0 {
		return out, fmt.Errorf("process.capabilities.inheritable: more than bounding: %w", ErrInvalid)
	}
	if out.effective&^out.permitted != 0 {
		return out, fmt.Errorf("process.capabilities.effective: more than permitted: %w", ErrInvalid)
	}
	if out.ambient&^(out.permitted&out.inheritable) != 0 {
		return out, fmt.Errorf("process.capabilities.ambient: not permitted and inheritable: %w", ErrInvalid)
	}
	return out, nil
}

func capabilityBit(name string) (uint64, bool) {
	for i, n := range capabilityNames {
		if n == name {
			return 1 << i, true
		}
	}
	return 0, false
}
