package matrix

import (
	"regexp"
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
	{reason: "the version of the client is not looked at", rpcs: "Version", fields: []string{"version"}},

	{reason: "more may be told", fields: []string{"verbose"}, kinds: []string{"true"}},
	{reason: "which streams there are is the client's choice", rpcs: "Exec", fields: []string{"stdin", "stdout", "stderr"}, kinds: []string{"true"}},
	{reason: "a terminal may be asked for", rpcs: "Exec", fields: []string{"tty"}, kinds: []string{"true"}},
	{reason: "what the container does not have is not attached", rpcs: "Attach", fields: []string{"stdin", "stdout", "stderr", "tty"}, kinds: []string{"true"}},
	{reason: "what streams a container has is its author's choice", fields: []string{"config.stdin", "config.stdin_once", "config.tty"}, kinds: []string{"true"}},
	{reason: "a volume may be read-only", fields: []string{"mounts.readonly"}, kinds: []string{"true"}},
	{reason: "and all below it, since the valid volume is", fields: []string{"mounts.recursive_read_only"}, kinds: []string{"true"}},
	{reason: "without SELinux there is nothing to relabel", fields: []string{"mounts.selinux_relabel"}, kinds: []string{"true"}},
	{reason: "a container may have a read-only root", fields: []string{"security_context.readonly_rootfs"}, kinds: []string{"true"}},
	{reason: "it takes rights away", fields: []string{"security_context.no_new_privs"}, kinds: []string{"true"}},
	{reason: "a pod may be privileged; a container only in such a pod, which the valid one is where this is accepted",
		fields: []string{"security_context.privileged"}, kinds: []string{"true"}},

	{reason: "no settings: the node's resolv.conf", fields: []string{"config.dns_config", "sandbox_config.dns_config"}, kinds: []string{"empty"}},
	{reason: "nothing of Linux: the defaults", fields: []string{"config.linux", "sandbox_config.linux"}, kinds: []string{"empty"}},
	{reason: "no limits", fields: []string{"linux.resources", "linux.overhead"}, kinds: []string{"empty"}},
	{reason: "no limit to change", rpcs: "Update", fields: []string{"linux", "overhead", "resources"}, kinds: []string{"empty"}},
	{reason: "no wishes: namespaces of its own, and the default profiles", fields: []string{"linux.security_context"}, kinds: []string{"empty"}},
	{reason: "no mode is POD, for each namespace", fields: []string{"security_context.namespace_options"}, kinds: []string{"empty"}},
	{reason: "0 is the mode RuntimeDefault", fields: []string{"security_context.seccomp", "security_context.apparmor"}, kinds: []string{"empty"}},
	{reason: "no part of a label is asked for", fields: []string{"security_context.selinux_options"}, kinds: []string{"empty"}},
	{reason: "nothing to add and nothing to drop", fields: []string{"security_context.capabilities"}, kinds: []string{"empty"}},
	{reason: "user 0 and group 0 are legal", fields: []string{"security_context.run_as_user", "security_context.run_as_group"}, kinds: []string{"empty"}},
	{reason: "the kubelet sends one with each mount that has none", fields: []string{"mounts.image"}, kinds: []string{"empty"}},
	{reason: "no credentials: those of the node", rpcs: "PullImage", fields: []string{"auth"}, kinds: []string{"empty"}},
	{reason: "no prefix yet", rpcs: "UpdateRuntimeConfig", fields: []string{"runtime_config.network_config"}, kinds: []string{"empty"}},

	{reason: "ids are looked up and not parsed; an unknown one is NotFound", kinds: []string{"parent", "format", "newline"},
		fields: []string{"pod_sandbox_id", "container_id", "target_id"}},
	{reason: "labels and annotations are text that only comes back", kinds: []string{"value parent", "value format", "value newline", "key parent", "key format", "key newline"},
		fields: []string{"labels", "annotations"}},
	{reason: "only comes back in Status", kinds: []string{"parent", "format", "newline"}, fields: []string{"image_ref"}},
	{reason: "the container's own affair, up to the kernel's E2BIG", fields: []string{"command", "args", "cmd"},
		kinds: []string{"empty element", "parent", "format", "newline", "1 MiB"}},
	{reason: "any name without '=' is legal to execve", fields: []string{"envs.key"}, kinds: []string{"parent", "format", "newline"}},
	{reason: "a strange but legal name of a file, directory or profile", fields: []string{"log_path", "cgroup_parent", "run_as_username", "apparmor.localhost_ref"}, kinds: []string{"format"}},
	{reason: "the image knows whether it has such a path", fields: []string{"mounts.image_sub_path"}, kinds: []string{"format", "newline"}},
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

	// A pull reads of the sandbox only the metadata. The rest has the bounds of every message: no NUL, nothing that is too long or unknown.
	{reason: "a pull need not be for a pod", rpcs: "PullImage", fields: []string{"sandbox_config"}, kinds: []string{"nil", "empty"}},
	{reason: "a pull need not be for a pod", rpcs: "PullImage", fields: []string{"sandbox_config.metadata"}, kinds: []string{"nil"}},
	{reason: "a pull sets no name", rpcs: "PullImage", fields: []string{"sandbox_config.hostname"}, kinds: anyText},
	{reason: "a pull logs nothing there", rpcs: "PullImage", fields: []string{"sandbox_config.log_directory"}, kinds: anyText},
	{reason: "a pull resolves names with the node's settings", rpcs: "PullImage", kinds: append([]string{"empty element"}, anyText...),
		fields: []string{"sandbox_config.dns_config.servers", "sandbox_config.dns_config.searches", "sandbox_config.dns_config.options"}},
	{reason: "a pull opens no port", rpcs: "PullImage", fields: []string{"sandbox_config.port_mappings"}, kinds: []string{"empty element"}},
	{reason: "a pull opens no port", rpcs: "PullImage", fields: []string{"port_mappings.host_ip"}, kinds: anyText},
	{reason: "a pull opens no port", rpcs: "PullImage", fields: []string{"port_mappings.container_port", "port_mappings.host_port"},
		kinds: append([]string{"nil"}, anyNumber...)},
	{reason: "a pull keeps no labels and no annotations", rpcs: "PullImage", fields: []string{"sandbox_config.labels", "sandbox_config.annotations"},
		kinds: []string{"many", "key 1 MiB", "value 1 MiB"}},
	{reason: "a pull makes no cgroup", rpcs: "PullImage", fields: []string{"linux.cgroup_parent"}, kinds: anyText},
	{reason: "a pull sets no parameters", rpcs: "PullImage", fields: []string{"linux.sysctls", "overhead.unified", "resources.unified"}, kinds: anyPair},
	{reason: "a pull has no limits", rpcs: "PullImage", kinds: anyNumber, fields: inBoth("overhead.", "resources.",
		"cpu_period", "cpu_quota", "cpu_shares", "memory_limit_in_bytes", "memory_swap_limit_in_bytes", "oom_score_adj")},
	{reason: "a pull has no limits", rpcs: "PullImage", kinds: anyText, fields: inBoth("overhead.", "resources.", "cpuset_cpus", "cpuset_mems")},
	{reason: "a pull has no limits", rpcs: "PullImage", kinds: []string{"empty element"}, fields: inBoth("overhead.", "resources.", "hugepage_limits")},
	{reason: "a pull has no limits", rpcs: "PullImage", kinds: append([]string{"nil"}, anyText...), fields: inBoth("overhead.", "resources.", "hugepage_limits.page_size")},
	{reason: "a pull runs as nobody", rpcs: "PullImage", fields: []string{"run_as_user.value", "run_as_group.value", "supplemental_groups"}, kinds: anyNumber},
	{reason: "a pull has no label", rpcs: "PullImage", kinds: anyText,
		fields: []string{"selinux_options.user", "selinux_options.role", "selinux_options.type", "selinux_options.level"}},
	{reason: "a pull has no profile", rpcs: "PullImage", kinds: anyText,
		fields: []string{"seccomp.localhost_ref", "apparmor.localhost_ref", "security_context.seccomp_profile_path"}},
	{reason: "a pull maps no ids", rpcs: "PullImage", kinds: []string{"nil", "max"}, fields: inBoth("uids.", "gids.", "host_id", "container_id", "length")},
	{reason: "a pull has no namespaces", rpcs: "PullImage", kinds: anyText, fields: []string{"namespace_options.target_id"}},
	{reason: "a pull has no namespaces", rpcs: "PullImage", kinds: []string{"empty", "empty element"},
		fields: []string{"namespace_options.userns_options", "userns_options.uids", "userns_options.gids"}},
}

// Kinds of what is only text, only a number, or only a pair of texts to whoever does not use it.
var (
	anyText   = []string{"parent", "format", "newline"}
	anyNumber = []string{"-1", "min", "max", "2^32"}
	anyPair   = []string{"key parent", "key format", "key newline", "value parent", "value format", "value newline"}
)

// inBoth returns each name behind each of two beginnings.
func inBoth(a, b string, names ...string) (all []string) {
	for _, n := range names {
		all = append(all, a+n, b+n)
	}
	return all
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

// NamedBy reports whether the text of an error names the field that a mutation changed, by its whole path, or the one that it then
// contradicts.
func NamedBy(m Mutation, text string) bool {
	text = index.ReplaceAllString(text, "")
	if hasPath(text, m.Field) {
		return true
	}
	if list := m.Field[:max(0, strings.LastIndexByte(m.Field, '.'))]; slices.Contains(wholes, list[strings.LastIndexByte(list, '.')+1:]) && hasPath(text, list) {
		return true
	}
	for _, c := range contradictions {
		if before, ok := strings.CutSuffix(m.Field, c.field); ok && under(m.Field, c.field) && hasPath(text, before+c.other) {
			return true
		}
	}
	return false
}

// wholes are the lists that are compared as a whole.
var wholes = []string{"uids", "gids", "uidMappings", "gidMappings"}

// contradictions are the ends of paths whose change makes another field wrong, which is the one that an error is about.
var contradictions = []struct{ field, other string }{
	{"userns_options.mode", "userns_options"},
	{"userns_options.mode", "userns_options.uids"},
	{"uids.host_id", "uids.length"},
	{"uids.host_id", "gids"},
	{"gids.host_id", "gids.length"},
	{"run_as_user.value", "run_as_username"},
	{"run_as_user", "run_as_username"},
	{"run_as_username", "run_as_user"},
	{"run_as_user", "run_as_group"},
	{"profile_type", "localhost_ref"},
	{"namespace_options.pid", "namespace_options.target_id"},
	{"cpu_period", "cpu_quota"},
	{"memory_limit_in_bytes", "memory_swap_limit_in_bytes"},
	{"mounts.gidMappings", "mounts.uidMappings"},
	{"mounts.image", "mounts.image_sub_path"},
	{"mounts.image", "mounts.host_path"},
	{"mounts.image.image", "mounts.image_sub_path"},
	{"mounts.image.image", "mounts.host_path"},
	{"mounts.readonly", "mounts.recursive_read_only"},
	{"sandbox_config.linux.security_context.namespace_options", "config.mounts.uidMappings"},
	{"sandbox_config.linux.security_context.namespace_options.userns_options", "config.mounts.uidMappings"},
	{"sandbox_config.linux", "config.linux.security_context.privileged"},
	{"sandbox_config.linux.security_context", "config.linux.security_context.privileged"},
	{"sandbox_config.linux.security_context.privileged", "config.linux.security_context.privileged"},
}

// index is what stands behind the name of a list or a map in a path: a number, or a quoted key, which may have been cut.
var index = regexp.MustCompile(`\[(?:[0-9]+|"(?:[^"\\]|\\.)*"(?:\.\.\.)?)\]`)

// hasPath reports whether a text has a path as a whole, or as the beginning of a longer one.
func hasPath(text, path string) bool {
	for at := 0; ; at++ {
		i := strings.Index(text[at:], path)
		if i < 0 {
			return false
		}
		at += i
		end := at + len(path)
		if (at == 0 || text[at-1] == ' ') && (end == len(text) || strings.IndexByte(":. ", text[end]) >= 0) {
			return true
		}
	}
}
