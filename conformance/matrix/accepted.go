package matrix

import (
	"slices"
	"strings"
)

// required are the fields without which a request is refused. All others may be left out.
var required = []string{
	"config", "config.metadata", "config.metadata.name", "config.metadata.uid", "config.metadata.namespace",
	"sandbox_config.metadata", "sandbox_config.metadata.name", "sandbox_config.metadata.uid", "sandbox_config.metadata.namespace",
	"sandbox_config", "pod_sandbox_id", "container_id", "cmd", "image", "image.image", "config.image", "config.image.image",
	"config.mounts.container_path", "config.mounts.host_path", "config.devices.container_path", "config.devices.host_path",
	"config.devices.permissions", "config.envs.key", "config.port_mappings.container_port", "sandbox_config.port_mappings.container_port",
	"config.linux.resources.hugepage_limits.page_size",
}

// An allowance is a kind of mutation that may be accepted, with the reason why.
type allowance struct {
	reason string
	rpcs   string   // prefix; "" for all
	fields []string // suffixes of the path; none for all
	kinds  []string // none for all
}

// allowances is the reviewed list of what a runtime may let through. Whatever is let through and not on it fails the tests, so each new
// field of CRI ends up either in a check or here.
var allowances = []allowance{
	{reason: "no filter of a list is an error", rpcs: "List"},
	{reason: "no filter of a list is an error", rpcs: "Stream"},
	{reason: "the version of the client is not looked at", rpcs: "Version"},
	{reason: "both are legal", kinds: []string{"true"}},
	{reason: "an empty message is one that says nothing", kinds: []string{"empty"}},
	{reason: "ids are looked up and not parsed; an unknown one is NotFound", kinds: []string{"parent", "format", "newline"},
		fields: []string{"pod_sandbox_id", "container_id", "target_id"}},
	{reason: "labels and annotations are text that only comes back", kinds: []string{"value parent", "value format", "value newline", "key parent", "key format", "key newline"},
		fields: []string{"labels", "annotations"}},
	{reason: "an image without a name is none; its other fields do not count", fields: []string{
		"mounts.image.annotations", "mounts.image.user_specified_image", "mounts.image.runtime_handler", "mounts.image.image_ref"}},
	{reason: "only comes back in Status", kinds: []string{"parent", "format", "newline"}, fields: []string{"image_ref"}},
	{reason: "the container's own affair, up to the kernel's E2BIG", fields: []string{"command", "args", "cmd"},
		kinds: []string{"empty element", "parent", "format", "newline", "1 MiB"}},
	{reason: "any name without '=' is legal to execve", fields: []string{"envs.key"}, kinds: []string{"parent", "format", "newline"}},
	{reason: "a strange but legal name of a file, directory or profile", fields: []string{"log_path", "cgroup_parent", "run_as_username", "apparmor.localhost_ref"}, kinds: []string{"format"}},
	{reason: "AppArmor profiles may have paths as names", fields: []string{"apparmor.localhost_ref"}, kinds: []string{"parent"}},
	{reason: "a line of text; the kernel knows whether it is a value", fields: []string{"sysctls"}, kinds: []string{"value parent", "value format"}},
	{reason: "-1 is no limit", fields: []string{"cpu_quota", "memory_limit_in_bytes", "memory_swap_limit_in_bytes", "oom_score_adj"}, kinds: []string{"-1"}},
	{reason: "more than there is, which limits nothing", fields: []string{"cpu_shares", "memory_limit_in_bytes", "memory_swap_limit_in_bytes", "hugepage_limits.limit"}, kinds: []string{"max", "2^32"}},
	{reason: "a quota of an hour is one", fields: []string{"cpu_quota"}, kinds: []string{"2^32"}},
	{reason: "a time-out is capped", fields: []string{"timeout"}, kinds: []string{"max", "2^32"}},
	{reason: "any number is an attempt", fields: []string{"metadata.attempt"}, kinds: []string{"max"}},
	{reason: "group 0 is a group", fields: []string{"supplemental_groups"}, kinds: []string{"empty element"}},
	{reason: "the registry knows whether it is a credential", rpcs: "PullImage", kinds: []string{"parent", "format"},
		fields: []string{"auth.username", "auth.password", "auth.identity_token", "auth.server_address"}},
	{reason: "a pull reads only the metadata of the sandbox; the rest has its bounds", rpcs: "PullImage", fields: []string{"sandbox_config", "sandbox_config."}},
}

// Reason returns why a runtime may accept what a mutation makes of a request, or "". rpc is the name of the RPC.
func Reason(rpc string, m Mutation) string {
	if m.Kind == "nil" && !slices.Contains(required, m.Field) {
		return "an optional field"
	}
	for _, a := range allowances {
		if strings.HasPrefix(rpc, a.rpcs) && (len(a.kinds) == 0 || slices.Contains(a.kinds, m.Kind)) &&
			(len(a.fields) == 0 || slices.ContainsFunc(a.fields, func(f string) bool { return under(m.Field, f) })) {
			return a.reason
		}
	}
	return ""
}

// under: f is the end of the path, or with a dot behind it a part of it.
func under(path, f string) bool {
	if strings.HasSuffix(f, ".") {
		return strings.HasPrefix(path, f) || strings.Contains(path, "."+f)
	}
	return path == f || strings.HasSuffix(path, "."+f)
}

// NamedBy reports whether the text of an error names the field that a mutation changed, or the one that it then contradicts.
func NamedBy(m Mutation, text string) bool {
	if strings.Contains(text, m.Leaf()) {
		return true
	}
	for field, other := range map[string]string{
		"userns_options.mode": "userns_options",
		"run_as_user.value":   "run_as_username",
		"run_as_user":         "run_as_group",
		"gidMappings":         "uidMappings",
		"host_id":             "length",
	} {
		if under(m.Field, field) && strings.Contains(text, other) {
			return true
		}
	}
	return false
}
