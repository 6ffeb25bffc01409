package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// armored is a profile of the node's own.
const armored = `abi <abi/3.0>,
profile vitrine-conformance flags=(attach_disconnected) { file, capability, signal, network, deny /etc/secret rw, }
`

// TestAppArmorProfiles: the label that a container and what is executed in it have, by what the request says, and that it means something. A
// profile that the node has not is FailedPrecondition, and leaves nothing. It needs AppArmor and its compiler:
// `vm -run AppArmor test ./conformance/integration/`.
func TestAppArmorProfiles(t *testing.T) {
	if !strings.HasPrefix(fileText("/sys/module/apparmor/parameters/enabled"), "Y") {
		t.Skip("needs AppArmor in the kernel")
	}
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		t.Skip("needs apparmor_parser, of Debian's package apparmor")
	}
	cmd := exec.Command(parser, "--replace", "--skip-cache")
	cmd.Stdin = strings.NewReader(armored)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte("vitrine-conformance"), 0o600); err != nil {
			t.Error(err)
		}
	})
	s := open(t)
	p := s.runPod("armored", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, name string) func(*runtimeapi.LinuxContainerSecurityContext) {
		return func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: name}
		}
	}
	named := profile(runtimeapi.SecurityProfile_Localhost, "vitrine-conformance")
	const probe = "tr -d '\\0\\n' </proc/self/attr/current; echo; echo x >/etc/secret 2>/dev/null && echo secret; mkdir -p /m && mount -t proc proc /m 2>/dev/null && echo mounted; true"
	for name, c := range map[string]struct {
		edit func(*runtimeapi.LinuxContainerSecurityContext)
		want string
	}{
		"nothing":    {func(*runtimeapi.LinuxContainerSecurityContext) {}, "vitrine-default (enforce)\nsecret"},
		"default":    {profile(runtimeapi.SecurityProfile_RuntimeDefault, ""), "vitrine-default (enforce)\nsecret"},
		"unconfined": {profile(runtimeapi.SecurityProfile_Unconfined, ""), "unconfined\nsecret\nmounted"},
		"named":      {named, "vitrine-conformance (enforce)"},
		"older": {func(c *runtimeapi.LinuxContainerSecurityContext) {
			c.ApparmorProfile = "localhost/vitrine-conformance" //nolint:staticcheck // deprecated, and still to be honoured
		}, "vitrine-conformance (enforce)"},
		"privileged":        {func(c *runtimeapi.LinuxContainerSecurityContext) { c.Privileged = true }, "unconfined\nsecret\nmounted"},
		"privileged, named": {func(c *runtimeapi.LinuxContainerSecurityContext) { c.Privileged = true; named(c) }, "vitrine-conformance (enforce)"},
	} {
		t.Run(name, func(t *testing.T) {
			edit := func(cfg *runtimeapi.ContainerConfig) {
				sc := cfg.Linux.SecurityContext
				sc.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
				sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
				c.edit(sc)
			}
			id := p.run("c", probe+"; sleep 1000", edit)
			if got := s.exec(id, probe); got != c.want {
				t.Errorf("exec: %q, want %q", got, c.want)
			}
			s.eventually("its first process says the same", func() bool { return strings.Join(p.logText("c", "stdout"), "\n") == c.want })
			if err := s.cri.StopContainer(s.ctx, id, 0); err != nil {
				t.Fatal(err)
			}
			if err := s.cri.RemoveContainer(s.ctx, id); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(p.logFile("c")); err != nil {
				t.Fatal(err)
			}
		})
	}
	err = s.try(p, func(c *runtimeapi.ContainerConfig) {
		profile(runtimeapi.SecurityProfile_Localhost, "no-such-profile")(c.Linux.SecurityContext)
	})
	if code(err) != codes.FailedPrecondition || !strings.Contains(fmt.Sprint(err), "no-such-profile") {
		t.Errorf("a profile that is not loaded: %v", err)
	}
}
