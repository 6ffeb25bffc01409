package spec

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podConfig is the smallest legal sandbox.
func podConfig() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{}}},
	}
}

func nsOptions(c *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	return c.Linux.SecurityContext.NamespaceOptions
}

func TestPodGolden(t *testing.T) {
	for name, edit := range map[string]func(*runtimeapi.PodSandboxConfig){
		"pod-nil-options": func(c *runtimeapi.PodSandboxConfig) { c.Linux = nil },
		"pod-host": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: 2, Pid: 2, Ipc: 2}
			c.Hostname = "node-1"
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 80}}
		},
		"pod-full": func(c *runtimeapi.PodSandboxConfig) {
			nsOptions(c).Pid = runtimeapi.NamespaceMode_CONTAINER
			c.Hostname = "web-0.site"
			c.LogDirectory = "/var/log/pods/x/"
			c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10", "fd00::a"},
				Searches: []string{"default.svc.cluster.local", "."}, Options: []string{"ndots:5", "use-vc"}}
			c.PortMappings = []*runtimeapi.PortMapping{
				{ContainerPort: 80, HostPort: 8080}, {ContainerPort: 53, HostPort: 8080, Protocol: runtimeapi.Protocol_UDP, HostIp: "::1"},
				{ContainerPort: 9090}}
			c.Linux.CgroupParent = "/kubepods/burstable/podu/"
			c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "1024 65535",
				"fs.mqueue.msg_max": "100", "net/ipv4/conf/eth0.1/arp_filter": "1"}
		},
	} {
		c := podConfig()
		edit(c)
		p, err := PodOf(c, testHost)
		if err != nil {
			t.Fatal(name, err)
		}
		golden(t, name+".json", struct {
			*Pod
			ResolvConf string
		}{p, string(p.ResolvConf)})
	}
}

func TestPodRefuses(t *testing.T) {
	sysctl := func(k, v string) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{k: v} }
	}
	dns := func(d *runtimeapi.DNSConfig) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig = d }
	}
	ports := func(p ...*runtimeapi.PortMapping) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) { c.PortMappings = p }
	}
	ns := func(o *runtimeapi.NamespaceOption) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions = o }
	}
	hostname := func(h string) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) { c.Hostname = h }
	}
	parent := func(p string) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = p }
	}
	const nsField = "linux.security_context.namespace_options."
	for _, c := range []struct {
		field string
		edit  func(*runtimeapi.PodSandboxConfig)
		kind  error
	}{
		{"metadata", func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }, ErrInvalid},
		{"metadata.name", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "a/b" }, ErrInvalid},
		{"metadata.namespace", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Namespace = "" }, ErrInvalid},
		{"metadata.uid", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "a\nb" }, ErrInvalid},
		{"metadata.uid", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = strings.Repeat("u", 1<<20) }, ErrInvalid},
		{"hostname", hostname(strings.Repeat("a", 65)), ErrInvalid},
		{"hostname", hostname("a b"), ErrInvalid},
		{"hostname", hostname("-a"), ErrInvalid},
		{"hostname", hostname("a\n"), ErrInvalid},
		{"log_directory", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "var/log" }, ErrInvalid},
		{"log_directory", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "/var/../log" }, ErrInvalid},
		{"dns_config.servers[0]", dns(&runtimeapi.DNSConfig{Servers: []string{"x"}}), ErrInvalid},
		{"dns_config.servers[0]", dns(&runtimeapi.DNSConfig{Servers: []string{"1.1.1.1\nsearch x"}}), ErrInvalid},
		{"dns_config.searches[0]", dns(&runtimeapi.DNSConfig{Searches: []string{"a\nnameserver 6.6.6.6"}}), ErrInvalid},
		{"dns_config.options[0]", dns(&runtimeapi.DNSConfig{Options: []string{"a b"}}), ErrInvalid},
		{"dns_config.servers", dns(&runtimeapi.DNSConfig{Servers: make([]string, 1000)}), ErrInvalid},
		{"port_mappings[0].container_port", ports(&runtimeapi.PortMapping{}), ErrInvalid},
		{"port_mappings[0].host_port", ports(&runtimeapi.PortMapping{ContainerPort: 1, HostPort: 65536}), ErrInvalid},
		{"port_mappings[0].protocol", ports(&runtimeapi.PortMapping{ContainerPort: 1, Protocol: 99}), ErrInvalid},
		{"port_mappings[0].host_ip", ports(&runtimeapi.PortMapping{ContainerPort: 1, HostIp: "fe80::1%eth0"}), ErrInvalid},
		{"port_mappings[1].host_port", ports(&runtimeapi.PortMapping{ContainerPort: 1, HostPort: 9}, &runtimeapi.PortMapping{ContainerPort: 2, HostPort: 9}), ErrInvalid},
		{"linux.cgroup_parent", parent("../x"), ErrInvalid},
		{"linux.cgroup_parent", parent("/a/../../b"), ErrInvalid},
		{"linux.cgroup_parent", parent("/"), ErrInvalid},
		{"linux.cgroup_parent", parent("a\nb"), ErrInvalid},
		{nsField + "network", ns(&runtimeapi.NamespaceOption{Network: 1}), ErrInvalid},
		{nsField + "network", ns(&runtimeapi.NamespaceOption{Network: 99}), ErrInvalid},
		{nsField + "pid", ns(&runtimeapi.NamespaceOption{Pid: 3}), ErrInvalid},
		{nsField + "pid", ns(&runtimeapi.NamespaceOption{Pid: -1}), ErrInvalid},
		{nsField + "ipc", ns(&runtimeapi.NamespaceOption{Ipc: 99}), ErrInvalid},
		{nsField + "userns_options.uids", ns(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{}}), ErrInvalid},
		{nsField + "userns_options.mode", ns(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: 1}}), ErrInvalid},
		{"linux.sysctls", sysctl("kernel.core_pattern", "|/x"), ErrInvalid},
		{"linux.sysctls", sysctl("vm.swappiness", "1"), ErrInvalid},
		{"linux.sysctls", sysctl("net/../kernel/core_pattern", "x"), ErrInvalid},
		{"linux.sysctls", sysctl("net.ipv4...x", "1"), ErrInvalid},
		{"linux.sysctls", sysctl("net.ipv4.ip_forward", "1\n"), ErrInvalid},
		{"linux.sysctls", sysctl("kernel.shm_rmid_forced", "1+kernel.core_pattern=|x"), ErrInvalid},
		{"linux.sysctls", sysctl("net.ipv4.ip_forward", ""), ErrInvalid},
		{"linux.sysctls", func(c *runtimeapi.PodSandboxConfig) {
			nsOptions(c).Network = runtimeapi.NamespaceMode_NODE
			c.Linux.Sysctls = map[string]string{"net.core.somaxconn": "1"}
		}, ErrInvalid},
		{"linux.sysctls", func(c *runtimeapi.PodSandboxConfig) {
			nsOptions(c).Ipc = runtimeapi.NamespaceMode_NODE
			c.Linux.Sysctls = map[string]string{"kernel.shmmax": "1"}
		}, ErrInvalid},
		{"linux.security_context.run_as_group", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.RunAsGroup = id(1) }, ErrInvalid},
		{"linux.security_context.seccomp.localhost_ref", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost}
		}, ErrInvalid},
	} {
		cfg := podConfig()
		c.edit(cfg)
		_, err := PodOf(cfg, testHost)
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != c.field || !errors.Is(err, c.kind) {
			t.Errorf("want a refusal of %s (%v), got %v", c.field, c.kind, err)
		}
		if err != nil && len(err.Error()) > 700 {
			t.Errorf("%s: a message of %d bytes", c.field, len(err.Error()))
		}
	}
}

func TestOwnPID(t *testing.T) {
	shared, own, host := &Pod{SharedPID: true}, &Pod{}, &Pod{HostPID: true}
	for _, c := range []struct {
		pod  *Pod
		mode runtimeapi.NamespaceMode
		own  bool
		ok   bool
	}{
		{shared, 0, false, true}, {own, 0, true, true}, {host, 0, false, true},
		{shared, 1, true, true}, {own, 1, true, true}, {host, 1, true, true},
		{shared, 2, false, false}, {own, 2, false, false}, {host, 2, false, true},
		{shared, 3, false, true}, {own, 3, false, true}, {host, 3, false, true}, {shared, 99, false, false},
	} {
		cc := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: c.mode}}}}
		got, err := OwnPID(cc, c.pod)
		if got != c.own || (err == nil) != c.ok {
			t.Errorf("pod %+v mode %v: %v, %v", c.pod, c.mode, got, err)
		}
	}
}

func TestLogPath(t *testing.T) {
	pod := &Pod{LogDirectory: "/var/log/pods/p"}
	for rel, want := range map[string]string{
		"": "", "c/0.log": "/var/log/pods/p/c/0.log", "0.log": "/var/log/pods/p/0.log",
		"/etc/passwd": "!", "../x": "!", "a/../../b": "!", "a/../b": "!", ".": "!", "a\nb": "!", "a\x00": "!",
	} {
		got, err := LogPath(pod, &runtimeapi.ContainerConfig{LogPath: rel})
		if want == "!" && !errors.Is(err, ErrInvalid) || want != "!" && (err != nil || got != want) {
			t.Errorf("%q: %q, %v", rel, got, err)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for _, c := range []struct {
		cri   runtimeapi.Signal
		image string
		want  syscall.Signal
		name  runtimeapi.Signal
	}{
		{0, "", syscall.SIGTERM, runtimeapi.Signal_SIGNAL_SIGTERM},
		{0, "SIGQUIT", syscall.SIGQUIT, runtimeapi.Signal_SIGNAL_SIGQUIT},
		{0, "quit", syscall.SIGQUIT, runtimeapi.Signal_SIGNAL_SIGQUIT},
		{0, "9", syscall.SIGKILL, runtimeapi.Signal_SIGNAL_SIGKILL},
		{0, "SIGRTMIN+3", 37, runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3},
		{0, "SIGNOPE", syscall.SIGTERM, runtimeapi.Signal_SIGNAL_SIGTERM},
		{0, "99", syscall.SIGTERM, runtimeapi.Signal_SIGNAL_SIGTERM},
		{0, "0", syscall.SIGTERM, runtimeapi.Signal_SIGNAL_SIGTERM},
		{runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14, "QUIT", 50, runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14},
		{runtimeapi.Signal_SIGNAL_SIGPOLL, "", syscall.SIGIO, runtimeapi.Signal_SIGNAL_SIGPOLL},
	} {
		got, name, err := StopSignal(&runtimeapi.ContainerConfig{StopSignal: c.cri}, c.image)
		if err != nil || got != c.want || name != c.name {
			t.Errorf("%v %q: %v %v %v", c.cri, c.image, got, name, err)
		}
	}
	for v, name := range runtimeapi.Signal_name {
		if _, _, err := StopSignal(&runtimeapi.ContainerConfig{StopSignal: runtimeapi.Signal(v)}, ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := StopSignal(&runtimeapi.ContainerConfig{StopSignal: 9999}, ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("9999: %v", err)
	}
}

func TestSeccompOf(t *testing.T) {
	type prof = runtimeapi.SecurityProfile
	for _, c := range []struct {
		sc   *runtimeapi.LinuxContainerSecurityContext
		kind SeccompKind
		ref  string
		bad  bool
	}{
		{},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Seccomp: &prof{}}, kind: SeccompDefault},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Seccomp: &prof{ProfileType: 1}}},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Seccomp: &prof{ProfileType: 1, LocalhostRef: "/x"}}, bad: true},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Seccomp: &prof{ProfileType: 2, LocalhostRef: "/x"}}, kind: SeccompLocalhost, ref: "/x"},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Seccomp: &prof{ProfileType: 2, LocalhostRef: "../x"}}, bad: true},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Seccomp: &prof{ProfileType: 2}}, bad: true},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Seccomp: &prof{ProfileType: 99}}, bad: true},
		{sc: &runtimeapi.LinuxContainerSecurityContext{Privileged: true, Seccomp: &prof{ProfileType: 2, LocalhostRef: "/x"}}},
		{sc: &runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "runtime/default"}, kind: SeccompDefault},           //nolint:staticcheck // deprecated, and still sent
		{sc: &runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "localhost//x"}, kind: SeccompLocalhost, ref: "/x"}, //nolint:staticcheck // deprecated, and still sent
		{sc: &runtimeapi.LinuxContainerSecurityContext{SeccompProfilePath: "foo"}, bad: true},                                  //nolint:staticcheck // deprecated, and still sent
	} {
		kind, ref, err := SeccompOf(&runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: c.sc}}, &Pod{})
		if kind != c.kind || ref != c.ref || (err != nil) != c.bad {
			t.Errorf("%v: %v %q %v", c.sc, kind, ref, err)
		}
	}
}

func TestParseSeccomp(t *testing.T) {
	for in, ok := range map[string]bool{
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname","no_such_call"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}`: true,
		`{}`:                                    false,
		`[]`:                                    false,
		`{`:                                     false,
		`{"defaultAction":"SCMP_ACT_ALLOW"} {}`: false,
		`{"defaultAction":"SCMP_ACT_NOPE"}`:     false,
		`{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}`:                                                       false,
		`{"defaultAction":"SCMP_ACT_NOTIFY"}`:                                                                          false,
		`{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}`:                                                       false,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO"}]}`:                                  false,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"SCMP_ACT_LOG","args":[{"index":6}]}]}`: false,
	} {
		if _, err := ParseSeccomp([]byte(in)); (err == nil) != ok {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestAppArmor(t *testing.T) {
	type prof = runtimeapi.SecurityProfile
	const newer, older = "linux.security_context.apparmor", "linux.security_context.apparmor_profile"
	on, off := Host{AppArmor: true}, Host{}
	for name, c := range map[string]struct {
		p          *prof
		legacy     string
		privileged bool
		host       Host
		want       AppArmor
		field      string // in the error
	}{
		"nothing":                      {host: on, want: AppArmor{Default: true}},
		"nothing, privileged":          {host: on, privileged: true},
		"nothing, no AppArmor":         {host: off},
		"default":                      {p: &prof{}, host: on, want: AppArmor{Field: newer, Default: true}},
		"default, privileged":          {p: &prof{}, privileged: true, host: on},
		"default, no AppArmor":         {p: &prof{}, host: off},
		"unconfined":                   {p: &prof{ProfileType: 1}, host: on},
		"unconfined beats the older":   {p: &prof{ProfileType: 1}, legacy: "localhost/y", host: on},
		"named":                        {p: &prof{ProfileType: 2, LocalhostRef: "x"}, host: on, want: AppArmor{Field: newer, Profile: "x"}},
		"named as by a kubelet":        {p: &prof{ProfileType: 2, LocalhostRef: "localhost/x"}, host: on, want: AppArmor{Field: newer, Profile: "x"}},
		"a kubelet's for nothing":      {p: &prof{ProfileType: 2, LocalhostRef: "localhost/"}, host: on, field: newer + ".localhost_ref"},
		"named, privileged":            {p: &prof{ProfileType: 2, LocalhostRef: "x"}, privileged: true, host: on, want: AppArmor{Field: newer, Profile: "x"}},
		"named, no AppArmor":           {p: &prof{ProfileType: 2, LocalhostRef: "x"}, host: off, field: newer},
		"no name":                      {p: &prof{ProfileType: 2}, host: on, field: newer + ".localhost_ref"},
		"a name too many":              {p: &prof{LocalhostRef: "x"}, host: on, field: newer + ".localhost_ref"},
		"unknown":                      {p: &prof{ProfileType: 9}, host: on, field: newer + ".profile_type"},
		"older: default":               {legacy: "runtime/default", host: on, want: AppArmor{Field: older, Default: true}},
		"older: unconfined":            {legacy: "unconfined", host: on},
		"older: named":                 {legacy: "localhost/y", host: on, want: AppArmor{Field: older, Profile: "y"}},
		"older: named, no AppArmor":    {legacy: "localhost/y", host: off, field: older},
		"older: nothing of the kind":   {legacy: "foo", host: on, field: older},
		"older: nothing behind a name": {legacy: "localhost/", host: on, field: older + ".localhost_ref"},
	} {
		sc := &runtimeapi.LinuxContainerSecurityContext{Apparmor: c.p, ApparmorProfile: c.legacy, Privileged: c.privileged} //nolint:staticcheck // deprecated, and still to be honoured
		got, err := AppArmorOf(&runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: sc}}, c.host)
		var fe *FieldError
		if errors.As(err, &fe); got != c.want || (err == nil) != (c.field == "") || err != nil && (fe == nil || fe.Field != c.field || !errors.Is(err, ErrInvalid)) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
