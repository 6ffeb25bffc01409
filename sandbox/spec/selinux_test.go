package spec

import (
	"errors"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestContainerLabels: a container has its pod's labels, with what it asks for in their place.
func TestContainerLabels(t *testing.T) {
	pod := Labels{"system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"}
	for _, c := range []struct {
		what       string
		options    *runtimeapi.SELinuxOption
		privileged bool
		want       Labels
	}{
		{"nothing", nil, false, pod},
		{"empty options", &runtimeapi.SELinuxOption{}, false, pod},
		{"a level", &runtimeapi.SELinuxOption{Level: "s0:c5"}, false,
			Labels{"system_u:system_r:container_t:s0:c5", "system_u:object_r:container_file_t:s0:c5"}},
		{"a level without categories", &runtimeapi.SELinuxOption{Level: "s0"}, false,
			Labels{"system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"}},
		{"a range", &runtimeapi.SELinuxOption{Level: "s0-s15:c0.c1023"}, false,
			Labels{"system_u:system_r:container_t:s0-s15:c0.c1023", "system_u:object_r:container_file_t:s0-s15:c0.c1023"}},
		{"a type", &runtimeapi.SELinuxOption{Type: "web_t"}, false, Labels{"system_u:system_r:web_t:s0:c1,c2", pod.Mount}},
		{"all", &runtimeapi.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0:c4,c5"}, false,
			Labels{"u:r:t:s0:c4,c5", "u:object_r:container_file_t:s0:c4,c5"}},
		{"privileged", nil, true, Labels{"system_u:system_r:spc_t:s0", pod.Mount}},
		{"privileged with a type", &runtimeapi.SELinuxOption{Type: "web_t"}, true, Labels{"system_u:system_r:web_t:s0", pod.Mount}},
		{"privileged with a level", &runtimeapi.SELinuxOption{Level: "s0:c7"}, true,
			Labels{"system_u:system_r:spc_t:s0:c7", "system_u:object_r:container_file_t:s0:c7"}},
	} {
		cfg := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			SelinuxOptions: c.options, Privileged: c.privileged}}}
		if got, err := ContainerLabels(cfg, pod, Host{SELinux: true}); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.what, got, err, c.want)
		}
		// A policy without levels has labels of three parts.
		bare := Labels{"u:r:t", "u:object_r:f"}
		if got, err := ContainerLabels(cfg, bare, Host{SELinux: true}); c.options == nil && !c.privileged && (err != nil || got != bare) {
			t.Errorf("%s, without levels: %+v, %v", c.what, got, err)
		}
	}
}

// TestNoLabels: where pods have none, who asks for one is told, but for kernels in which there is nothing to ask for.
func TestNoLabels(t *testing.T) {
	asks := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		SelinuxOptions: &runtimeapi.SELinuxOption{Level: "s0"}}}}
	for _, c := range []struct {
		cfg    *runtimeapi.ContainerConfig
		kernel bool
		want   error
	}{{asks, true, ErrUnimplemented}, {asks, false, nil}, {&runtimeapi.ContainerConfig{}, true, nil}, {&runtimeapi.ContainerConfig{}, false, nil}} {
		if l, err := ContainerLabels(c.cfg, Labels{}, Host{SELinux: c.kernel}); !errors.Is(err, c.want) || l != (Labels{}) {
			t.Errorf("%v, kernel %v: %+v, %v", c.cfg, c.kernel, l, err)
		}
	}
}

// TestPodLabels: a pod's options are for its containers, too.
func TestPodLabels(t *testing.T) {
	made := Labels{"system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"}
	cfg := &runtimeapi.PodSandboxConfig{}
	if l := PodLabels(cfg, made); l != made || l.Level() != "s0:c1,c2" {
		t.Errorf("without options: %+v, level %q", l, l.Level())
	}
	cfg.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Level: "s0:c9,c10"}}}
	want := Labels{"system_u:system_r:container_t:s0:c9,c10", "system_u:object_r:container_file_t:s0:c9,c10"}
	if l := PodLabels(cfg, made); l != want {
		t.Errorf("with a level: %+v", l)
	}
	if l := PodLabels(cfg, Labels{}); l != (Labels{}) || l.Level() != "" {
		t.Errorf("a pod without labels: %+v", l)
	}
}

// TestBuildHandsLabelsOn: to the process and to its file systems.
func TestBuildHandsLabelsOn(t *testing.T) {
	in := plain()
	in.Labels = Labels{"p", "m"}
	s, err := Build(in)
	if err != nil || s.Process.SelinuxLabel != "p" || s.Linux.MountLabel != "m" {
		t.Errorf("%v %+v", err, s)
	}
}
