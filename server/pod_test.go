package server

import (
	"context"
	"math"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podRow edits a valid sandbox config. Rows are named after the bad-input list.
type podRow struct {
	id    string
	field string // "" where the request must be accepted
	edit  func(*runtimeapi.PodSandboxConfig)
}

func runPodRows(t *testing.T, rows []podRow) {
	t.Helper()
	c, f := serve(t, nil)
	for _, r := range rows {
		t.Run(r.id, func(t *testing.T) {
			_, err := c.RunPodSandbox(context.Background(), with(validRun(), func(q *runtimeapi.RunPodSandboxRequest) { r.edit(q.Config) }))
			calls := f.took()
			if r.field == "" {
				if err != nil || len(calls) != 1 {
					t.Fatalf("legal case: %v, calls %v", err, calls)
				}
				return
			}
			wantError(t, err, codes.InvalidArgument, r.field)
			if len(calls) != 0 {
				t.Errorf("reached the manager: %v", calls)
			}
		})
	}
}

func TestRunPodSandboxRequest(t *testing.T) {
	c, f := serve(t, nil)
	ctx := context.Background()
	resp, err := c.RunPodSandbox(ctx, validRun())
	if err != nil || resp.GetPodSandboxId() != podID {
		t.Fatalf("valid request: %v, %v", resp, err)
	}
	if _, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: validPod().Metadata}}); err != nil {
		t.Fatalf("B-02 only metadata: %v", err)
	}
	f.took()
	_, err = c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{}) // B-01
	wantError(t, err, codes.InvalidArgument, "config: must be set")
	for _, h := range []string{"nope", "../x", strings.Repeat("h", 1024)} { // B-30
		_, err = c.RunPodSandbox(ctx, with(validRun(), func(q *runtimeapi.RunPodSandboxRequest) { q.RuntimeHandler = h }))
		wantError(t, err, codes.InvalidArgument, "runtime_handler")
	}
	if calls := f.took(); len(calls) != 0 {
		t.Errorf("reached the manager: %v", calls)
	}
}

func TestPodMetadata(t *testing.T) {
	set := func(v string, field func(*runtimeapi.PodSandboxMetadata) *string) func(*runtimeapi.PodSandboxConfig) {
		return func(p *runtimeapi.PodSandboxConfig) { *field(p.Metadata) = v }
	}
	name := func(m *runtimeapi.PodSandboxMetadata) *string { return &m.Name }
	namespace := func(m *runtimeapi.PodSandboxMetadata) *string { return &m.Namespace }
	uid := func(m *runtimeapi.PodSandboxMetadata) *string { return &m.Uid }
	rows := []podRow{
		{"B-02 no metadata", "config.metadata", func(p *runtimeapi.PodSandboxConfig) { p.Metadata = nil }},
		{"B-03 no name", "config.metadata.name", set("", name)},
		{"B-03 no namespace", "config.metadata.namespace", set("", namespace)},
		{"B-03 no uid", "config.metadata.uid", set("", uid)},
		{"B-04 slash", "config.metadata.name", set("a/b", name)},
		{"B-04 dots", "config.metadata.uid", set("..", uid)},
		{"B-04 NUL", "config.metadata.namespace", set("a\x00b", namespace)},
		{"B-04 newline", "config.metadata.name", set("a\nb", name)},
		{"B-04 1 MiB", "config.metadata.uid", set(strings.Repeat("u", 1<<20), uid)},
		{"B-04 254 bytes", "config.metadata.uid", set(strings.Repeat("u", 254), uid)},
		{"B-04 253 bytes", "", set(strings.Repeat("u", 253), uid)},
		{"B-06 attempt", "", func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Attempt = math.MaxUint32 }},
		{"B-31 256 KiB of labels", "", func(p *runtimeapi.PodSandboxConfig) {
			p.Labels = map[string]string{"k": strings.Repeat("v", maxLabels-1)}
		}},
		{"B-31 more labels", "config.labels", func(p *runtimeapi.PodSandboxConfig) {
			p.Labels = map[string]string{"k": strings.Repeat("v", maxLabels)}
		}},
		{"B-31 1 MiB annotation", "config.annotations", func(p *runtimeapi.PodSandboxConfig) { p.Annotations["k"] = strings.Repeat("v", 1<<20) }},
		{"B-31 no key", "config.annotations", func(p *runtimeapi.PodSandboxConfig) { p.Annotations[""] = "v" }},
		{"B-34 windows is ignored", "", func(p *runtimeapi.PodSandboxConfig) {
			p.Windows = &runtimeapi.WindowsPodSandboxConfig{SecurityContext: &runtimeapi.WindowsSandboxSecurityContext{NamespaceOptions: &runtimeapi.WindowsNamespaceOption{Network: 99}}}
		}},
	}
	runPodRows(t, rows)
}

func TestPodNames(t *testing.T) {
	host := func(v string) func(*runtimeapi.PodSandboxConfig) {
		return func(p *runtimeapi.PodSandboxConfig) { p.Hostname = v }
	}
	logs := func(v string) func(*runtimeapi.PodSandboxConfig) {
		return func(p *runtimeapi.PodSandboxConfig) { p.LogDirectory = v }
	}
	dns := func(servers, searches, options []string) func(*runtimeapi.PodSandboxConfig) {
		return func(p *runtimeapi.PodSandboxConfig) {
			p.DnsConfig = &runtimeapi.DNSConfig{Servers: servers, Searches: searches, Options: options}
		}
	}
	many := make([]string, 1000)
	for i := range many {
		many[i] = "10.0.0.1"
	}
	rows := []podRow{
		{"B-07 no hostname", "", host("")},
		{"B-07 64 bytes", "", host(strings.Repeat("h", 64))},
		{"B-07 65 bytes", "config.hostname", host(strings.Repeat("h", 65))},
		{"B-07 space", "config.hostname", host("a b")},
		{"B-07 dash", "config.hostname", host("-a")},
		{"B-07 dots", "config.hostname", host("a..b")},
		{"B-07 newline", "config.hostname", host("a\nb")},
		{"B-07 NUL", "config.hostname", host("a\x00")},
		{"B-07 unicode", "config.hostname", host("bücher")},
		{"B-08 none", "", logs("")},
		{"B-08 relative", "config.log_directory", logs("var/log")},
		{"B-08 parent", "config.log_directory", logs("/var/log/../../etc")},
		{"B-08 newline", "config.log_directory", logs("/var/log\n")},
		{"B-09 no address", "config.dns_config.servers[0]", dns([]string{"x"}, nil, nil)},
		{"B-09 1000 entries", "config.dns_config.servers", dns(many, nil, nil)},
		{"B-09 newline", "config.dns_config.servers[1]", dns([]string{"10.0.0.1", "10.0.0.1\nx"}, nil, nil)},
		{"B-09 newline in zone", "config.dns_config.servers[0]", dns([]string{"fe80::1%a\nb"}, nil, nil)},
		{"B-10 newline", "config.dns_config.searches[0]", dns(nil, []string{"a\nnameserver 6.6.6.6"}, nil)},
		{"B-10 space", "config.dns_config.searches[0]", dns(nil, []string{"a b"}, nil)},
		{"B-10 many", "config.dns_config.searches", dns(nil, many, nil)},
		{"B-10 newline in option", "config.dns_config.options[0]", dns(nil, nil, []string{"ndots:5\nnameserver 6.6.6.6"})},
		{"B-10 root", "", dns(nil, []string{"."}, nil)},
	}
	runPodRows(t, rows)
}

func TestPodPorts(t *testing.T) {
	ports := func(m ...*runtimeapi.PortMapping) func(*runtimeapi.PodSandboxConfig) {
		return func(p *runtimeapi.PodSandboxConfig) { p.PortMappings = m }
	}
	type pm = runtimeapi.PortMapping
	rows := []podRow{
		{"B-11 container port 0", "config.port_mappings[0].container_port", ports(&pm{HostPort: 80})},
		{"B-11 container port -1", "config.port_mappings[0].container_port", ports(&pm{ContainerPort: -1})},
		{"B-11 container port 65536", "config.port_mappings[0].container_port", ports(&pm{ContainerPort: 65536})},
		{"B-11 host port -1", "config.port_mappings[0].host_port", ports(&pm{ContainerPort: 1, HostPort: -1})},
		{"B-11 host port 65536", "config.port_mappings[0].host_port", ports(&pm{ContainerPort: 1, HostPort: 65536})},
		{"B-11 protocol", "config.port_mappings[0].protocol", ports(&pm{ContainerPort: 1, Protocol: 99})},
		{"B-12 twice", "config.port_mappings[1].host_port", ports(&pm{ContainerPort: 1, HostPort: 9}, &pm{ContainerPort: 2, HostPort: 9})},
		{"B-12 other protocol", "", ports(&pm{ContainerPort: 1, HostPort: 9}, &pm{ContainerPort: 1, HostPort: 9, Protocol: runtimeapi.Protocol_UDP})},
		{"B-13 no address", "config.port_mappings[0].host_ip", ports(&pm{ContainerPort: 1, HostIp: "x"})},
		{"B-13 zone", "config.port_mappings[0].host_ip", ports(&pm{ContainerPort: 1, HostIp: "fe80::1%eth0"})},
		{"B-13 prefix", "config.port_mappings[0].host_ip", ports(&pm{ContainerPort: 1, HostIp: "0.0.0.0/0"})},
		{"B-14 host network", "", func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.Sysctls = nil
			p.Linux.SecurityContext.NamespaceOptions.Network = modeNode
		}},
	}
	runPodRows(t, rows)
}

func TestPodCgroupParent(t *testing.T) {
	bad := []string{"../x", "/a/../b", "/a\nb", "/" + strings.Repeat("a", 4096), "/a\x00"}
	good := []string{"", "/", "/kubepods", "kubepods/x", "/kubepods/burstable/pod1"}
	check := func(t *testing.T, driver runtimeapi.CgroupDriver, paths []string, want codes.Code) {
		t.Helper()
		c, _ := serve(t, func(cfg *Config) { cfg.CgroupDriver = driver })
		for _, p := range paths {
			_, err := c.RunPodSandbox(context.Background(), with(validRun(), func(q *runtimeapi.RunPodSandboxRequest) { q.Config.Linux.CgroupParent = p }))
			if want == codes.OK {
				if err != nil {
					t.Errorf("B-15 %q: %v", p, err)
				}
				continue
			}
			wantError(t, err, want, "config.linux.cgroup_parent")
		}
	}
	check(t, runtimeapi.CgroupDriver_CGROUPFS, bad, codes.InvalidArgument)
	check(t, runtimeapi.CgroupDriver_CGROUPFS, good, codes.OK)
	check(t, runtimeapi.CgroupDriver_SYSTEMD, append(bad, "/kubepods", "/-.slice", "/.slice", "/a b.slice"), codes.InvalidArgument)
	check(t, runtimeapi.CgroupDriver_SYSTEMD, []string{"", "/kubepods.slice/kubepods-podf3_1.slice", "test.slice"}, codes.OK)
}

func TestPodNamespaces(t *testing.T) {
	ns := func(edit func(*runtimeapi.NamespaceOption)) func(*runtimeapi.PodSandboxConfig) {
		return func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.Sysctls = nil
			edit(p.Linux.SecurityContext.NamespaceOptions)
		}
	}
	const at = "config.linux.security_context.namespace_options."
	rows := []podRow{
		{"B-16 network 99", at + "network", ns(func(o *runtimeapi.NamespaceOption) { o.Network = 99 })},
		{"B-16 network CONTAINER", at + "network", ns(func(o *runtimeapi.NamespaceOption) { o.Network = modeContainer })},
		{"B-16 network TARGET", at + "network", ns(func(o *runtimeapi.NamespaceOption) { o.Network = modeTarget })},
		{"B-17 pid TARGET", at + "pid", ns(func(o *runtimeapi.NamespaceOption) { o.Pid = modeTarget })},
		{"B-17 pid -1", at + "pid", ns(func(o *runtimeapi.NamespaceOption) { o.Pid = -1 })},
		{"B-18 ipc 99", at + "ipc", ns(func(o *runtimeapi.NamespaceOption) { o.Ipc = 99 })},
		{"B-17 target id", at + "target_id", ns(func(o *runtimeapi.NamespaceOption) { o.TargetId = "x" })},
		{"all of the host", "", ns(func(o *runtimeapi.NamespaceOption) { o.Network, o.Pid, o.Ipc = modeNode, modeNode, modeNode })},
		{"all of the pod", "", ns(func(o *runtimeapi.NamespaceOption) { o.Network, o.Pid, o.Ipc = modePod, modePod, modePod })},
	}
	runPodRows(t, rows)
}

func TestPodUserNamespace(t *testing.T) {
	type m = runtimeapi.IDMapping
	line := func() []*m { return []*m{{HostId: 100000, Length: 65536}} }
	userns := func(edit func(*runtimeapi.NamespaceOption, *runtimeapi.UserNamespace)) func(*runtimeapi.PodSandboxConfig) {
		return func(p *runtimeapi.PodSandboxConfig) {
			o := p.Linux.SecurityContext.NamespaceOptions
			o.UsernsOptions = &runtimeapi.UserNamespace{Uids: line(), Gids: line()}
			edit(o, o.UsernsOptions)
		}
	}
	both := func(l ...*m) func(*runtimeapi.NamespaceOption, *runtimeapi.UserNamespace) {
		return func(_ *runtimeapi.NamespaceOption, u *runtimeapi.UserNamespace) { u.Uids, u.Gids = l, l }
	}
	const at = "config.linux.security_context.namespace_options.userns_options."
	rows := []podRow{
		{"B-19 CONTAINER", at + "mode", userns(func(_ *runtimeapi.NamespaceOption, u *runtimeapi.UserNamespace) { u.Mode = modeContainer })},
		{"B-19 TARGET", at + "mode", userns(func(_ *runtimeapi.NamespaceOption, u *runtimeapi.UserNamespace) { u.Mode = modeTarget })},
		{"B-19 99", at + "mode", userns(func(_ *runtimeapi.NamespaceOption, u *runtimeapi.UserNamespace) { u.Mode = 99 })},
		{"B-20 none", at + "uids", userns(both())},
		{"B-20 two lines", at + "uids", userns(both(&m{Length: 1}, &m{ContainerId: 1, HostId: 1, Length: 1}))},
		{"B-20 length 0", at + "uids[0].length", userns(both(&m{}))},
		{"B-20 overflow", at + "uids[0].length", userns(both(&m{HostId: math.MaxUint32, Length: 2}))},
		{"B-20 root not mapped", at + "uids[0].container_id", userns(both(&m{ContainerId: 1, Length: 5}))},
		{"B-20 gids differ", at + "gids", userns(func(_ *runtimeapi.NamespaceOption, u *runtimeapi.UserNamespace) { u.Gids[0].HostId++ })},
		{"B-21 host pid", at + "mode", userns(func(o *runtimeapi.NamespaceOption, _ *runtimeapi.UserNamespace) { o.Pid = modeNode })},
		{"B-21 host ipc", at + "mode", userns(func(o *runtimeapi.NamespaceOption, _ *runtimeapi.UserNamespace) { o.Ipc = modeNode })},
	}
	for i := range rows {
		edit := rows[i].edit
		rows[i].edit = func(p *runtimeapi.PodSandboxConfig) { p.Linux.Sysctls = nil; edit(p) }
	}
	runPodRows(t, rows)

	legal := with(validRun(), func(q *runtimeapi.RunPodSandboxRequest) {
		userns(func(*runtimeapi.NamespaceOption, *runtimeapi.UserNamespace) {})(q.Config)
	})
	c, _ := serve(t, nil)
	_, err := c.RunPodSandbox(context.Background(), legal)
	wantError(t, err, codes.Unimplemented, at+"mode")
	c, _ = serve(t, func(cfg *Config) { cfg.Features.UserNamespaces = true })
	if _, err := c.RunPodSandbox(context.Background(), legal); err != nil {
		t.Errorf("with the feature: %v", err)
	}
}

func TestPodSysctls(t *testing.T) {
	sysctl := func(k, v string) func(*runtimeapi.PodSandboxConfig) {
		return func(p *runtimeapi.PodSandboxConfig) { p.Linux.Sysctls = map[string]string{k: v} }
	}
	host := func(k string, edit func(*runtimeapi.NamespaceOption)) func(*runtimeapi.PodSandboxConfig) {
		return func(p *runtimeapi.PodSandboxConfig) {
			sysctl(k, "1")(p)
			edit(p.Linux.SecurityContext.NamespaceOptions)
		}
	}
	hostNet := func(o *runtimeapi.NamespaceOption) { o.Network = modeNode }
	hostIPC := func(o *runtimeapi.NamespaceOption) { o.Ipc = modeNode }
	const at = "config.linux.sysctls["
	rows := []podRow{
		{"B-23 core_pattern", at + `"kernel.core_pattern"]`, sysctl("kernel.core_pattern", "|/x")},
		{"B-23 swappiness", at + `"vm.swappiness"]`, sysctl("vm.swappiness", "1")},
		{"B-23 hostname", at, sysctl("kernel.hostname", "x")},
		{"B-24 host network", at, host("net.core.somaxconn", hostNet)},
		{"B-24 host network by slashes", at, host("net/core/somaxconn", hostNet)},
		{"B-24 host IPC", at, host("kernel.shmmax", hostIPC)},
		{"B-24 host IPC mqueue", at, host("fs.mqueue.msg_max", hostIPC)},
		{"B-24 IPC in host network", "", host("kernel.shmmax", hostNet)},
		{"B-25 parent", at, sysctl("net/../kernel/core_pattern", "1")},
		{"B-25 dots", at, sysctl("net.ipv4.../x", "1")},
		{"B-25 leading dot", at, sysctl(".net.x", "1")},
		{"B-25 trailing slash", at, sysctl("net.x/", "1")},
		{"B-25 no key", at, sysctl("", "1")},
		{"B-25 newline in key", at, sysctl("net.x\ny", "1")},
		{"B-25 newline", at, sysctl("net.core.somaxconn", "1\n2")},
		{"B-25 plus", at, sysctl("net.core.somaxconn", "1+kernel.core_pattern=x")},
		{"B-25 empty value", at, sysctl("net.core.somaxconn", "")},
		{"one letter words", "", sysctl("net.x.y", "1")},
		{"slashes", "", sysctl("net/core/somaxconn", "1")},
	}
	runPodRows(t, rows)
}

func TestPodSecurity(t *testing.T) {
	sec := func(edit func(*runtimeapi.LinuxSandboxSecurityContext)) func(*runtimeapi.PodSandboxConfig) {
		return func(p *runtimeapi.PodSandboxConfig) { edit(p.Linux.SecurityContext) }
	}
	type sc = runtimeapi.LinuxSandboxSecurityContext
	profile := func(t runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: t, LocalhostRef: ref}
	}
	const at = "config.linux.security_context."
	rows := []podRow{
		{"B-26 group without user", at + "run_as_group", sec(func(c *sc) { c.RunAsUser = nil })},
		{"B-27 localhost without ref", at + "seccomp.localhost_ref", sec(func(c *sc) { c.Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "") })},
		{"B-27 unconfined with ref", at + "seccomp.localhost_ref", sec(func(c *sc) { c.Seccomp = profile(runtimeapi.SecurityProfile_Unconfined, "/x") })},
		{"B-27 relative ref", at + "seccomp.localhost_ref", sec(func(c *sc) { c.Seccomp = profile(runtimeapi.SecurityProfile_Localhost, "x") })},
		{"B-27 type 99", at + "seccomp.profile_type", sec(func(c *sc) { c.Seccomp = profile(99, "") })},
		{"B-27 path", at + "seccomp_profile_path", sec(func(c *sc) { c.SeccompProfilePath = "localhost/../x" })}, //nolint:staticcheck // deprecated, and still checked
		{"B-27 path word", at + "seccomp_profile_path", sec(func(c *sc) { c.SeccompProfilePath = "foo" })},       //nolint:staticcheck // deprecated, and still checked
		{"B-29 type", at + "selinux_options.type", sec(func(c *sc) { c.SelinuxOptions.Type = "a:b" })},
		{"B-29 level", at + "selinux_options.level", sec(func(c *sc) { c.SelinuxOptions.Level = "garbage" })},
		{"B-29 level categories", at + "selinux_options.level", sec(func(c *sc) { c.SelinuxOptions.Level = "s0:c1,," })},
		{"B-77 user -1", at + "run_as_user.value", sec(func(c *sc) { c.RunAsUser.Value = -1 })},
		{"B-77 user 2^32-1", at + "run_as_user.value", sec(func(c *sc) { c.RunAsUser.Value = math.MaxUint32 })},
		{"B-78 group 2^32", at + "run_as_group.value", sec(func(c *sc) { c.RunAsGroup.Value = 1 << 32 })},
		{"B-78 groups", at + "supplemental_groups[1]", sec(func(c *sc) { c.SupplementalGroups = []int64{0, 1 << 32} })},
		{"B-78 70000 groups", at + "supplemental_groups", sec(func(c *sc) { c.SupplementalGroups = make([]int64, 70000) })},
		{"B-33 negative overhead", "config.linux.overhead.memory_limit_in_bytes", func(p *runtimeapi.PodSandboxConfig) { p.Linux.Overhead.MemoryLimitInBytes = -2 }},
		{"B-33 resources", "config.linux.resources.cpu_shares", func(p *runtimeapi.PodSandboxConfig) { p.Linux.Resources.CpuShares = math.MinInt64 }},
		{"nil profiles", "", sec(func(c *sc) { c.Seccomp, c.Apparmor, c.SeccompProfilePath = nil, nil, "" })}, //nolint:staticcheck // deprecated, and still checked
	}
	runPodRows(t, rows)
}
