package spec

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestHandlerRules: a handler refuses what it has no pods of, by name, and lets the rest be.
func TestHandlerRules(t *testing.T) {
	line := []*runtimeapi.IDMapping{{HostId: 100000, Length: 65536}}
	userns := &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Uids: line, Gids: line}}
	for _, c := range []struct {
		rules  Handler
		sc     *runtimeapi.LinuxSandboxSecurityContext
		refuse string
	}{
		{Handler{}, &runtimeapi.LinuxSandboxSecurityContext{Privileged: true}, ""},
		{Handler{NoPrivileged: true}, &runtimeapi.LinuxSandboxSecurityContext{}, ""},
		{Handler{NoPrivileged: true}, &runtimeapi.LinuxSandboxSecurityContext{Privileged: true}, "linux.security_context.privileged"},
		{Handler{UserNS: UserNSRequired}, &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: userns}, ""},
		{Handler{UserNS: UserNSRequired}, &runtimeapi.LinuxSandboxSecurityContext{}, "userns_options"},
		{Handler{UserNS: UserNSRequired}, nil, "userns_options"},
		{Handler{UserNS: UserNSRefused}, &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: userns}, "userns_options"},
		{Handler{UserNS: UserNSRefused}, &runtimeapi.LinuxSandboxSecurityContext{}, ""},
	} {
		h := testHost
		h.Handler = c.rules
		_, err := PodOf(&runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}, Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: c.sc}}, h)
		if c.refuse == "" && err != nil || c.refuse != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.refuse)) {
			t.Errorf("%+v, %v: %v, want %q", c.rules, c.sc, err, c.refuse)
		}
	}
}

// TestHandlerDevices: what a handler says of the host's devices reaches its pods, where it is about privileged containers alone.
func TestHandlerDevices(t *testing.T) {
	for _, without := range []bool{false, true} {
		h := testHost
		h.Handler.NoHostDevices = without
		cfg := podConfig()
		cfg.Linux.SecurityContext.Privileged = true
		p, err := PodOf(cfg, h)
		if err != nil {
			t.Fatal(err)
		}
		for _, privileged := range []bool{false, true} {
			in := plain()
			in.Pod, sc(&in).Privileged = p, privileged
			s, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			nodes, rules := 0, standardDeviceRules()
			if privileged && !without {
				nodes, rules = len(testHost.Devices), []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
			}
			if got := s.Linux.Resources.Devices; len(s.Linux.Devices) != nodes || !reflect.DeepEqual(got, rules) {
				t.Errorf("without %v, privileged %v: %d nodes, want %d; rules %v", without, privileged, len(s.Linux.Devices), nodes, got)
			}
		}
	}
}

// TestHandlerSeccomp: the default is for who names no profile, and for nobody else.
func TestHandlerSeccomp(t *testing.T) {
	for want, sc := range map[SeccompKind]*runtimeapi.LinuxContainerSecurityContext{
		SeccompDefault:   nil,
		SeccompNone:      {Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}},
		SeccompLocalhost: {Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/x"}},
	} {
		c := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: sc}}
		if kind, _, err := SeccompOf(c, &Pod{DefaultSeccomp: true}); kind != want || err != nil {
			t.Errorf("%v: %v, %v, want %v", sc, kind, err, want)
		}
	}
	c := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{Privileged: true}}}
	if kind, _, err := SeccompOf(c, &Pod{DefaultSeccomp: true}); kind != SeccompNone || err != nil {
		t.Errorf("privileged: %v, %v", kind, err)
	}
}
