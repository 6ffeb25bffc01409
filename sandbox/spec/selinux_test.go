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
		if got, err := ContainerLabels(cfg, pod, Host{SELinux: true, PrivilegedLabel: true}); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.what, got, err, c.want)
		}
	}
	if s := pod.Shared(); s != "system_u:object_r:container_file_t:s0" {
		t.Errorf("shared: %q", s)
	}
}

// TestPoorPolicies: one without levels, whose labels have three parts, and one without a type for privileged containers.
func TestPoorPolicies(t *testing.T) {
	cfg := func(privileged bool, o *runtimeapi.SELinuxOption) *runtimeapi.ContainerConfig {
		return &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			SelinuxOptions: o, Privileged: privileged}}}
	}
	bare := Labels{"u:r:t", "u:object_r:f"}
	full := Labels{"u:r:t:s0:c1,c2", "u:object_r:f:s0:c1,c2"}
	for _, c := range []struct {
		cfg   *runtimeapi.ContainerConfig
		pod   Labels
		known bool
		want  Labels
	}{
		{cfg(false, nil), bare, true, bare},
		{cfg(true, nil), bare, true, Labels{"u:r:spc_t", "u:object_r:f"}},
		{cfg(true, nil), bare, false, Labels{"", "u:object_r:f"}},
		{cfg(true, nil), full, false, Labels{"", full.Mount}},
		{cfg(true, &runtimeapi.SELinuxOption{Type: "x"}), full, false, Labels{"u:r:x:s0", full.Mount}},
		{cfg(false, nil), full, false, full},
	} {
		if got, err := ContainerLabels(c.cfg, c.pod, Host{SELinux: true, PrivilegedLabel: c.known}); err != nil || got != c.want {
			t.Errorf("%v of %+v: %+v, %v; want %+v", c.cfg, c.pod, got, err, c.want)
		}
	}
	if bare.Level() != "" || bare.Shared() != bare.Mount || bare.Privileged() != "u:r:spc_t" {
		t.Errorf("without levels: %q %q %q", bare.Level(), bare.Shared(), bare.Privileged())
	}
}

// TestNoLabels: where pods have none, who asks for one is told, but for kernels in which there is nothing to ask for.
func TestNoLabels(t *testing.T) {
	asks := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		SelinuxOptions: &runtimeapi.SELinuxOption{Level: "s0"}}}}
	privileged := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
		SelinuxOptions: &runtimeapi.SELinuxOption{Type: "spc_t"}, Privileged: true}}}
	for _, c := range []struct {
		cfg    *runtimeapi.ContainerConfig
		kernel bool
		want   error
	}{{asks, true, ErrUnimplemented}, {privileged, true, nil}, {asks, false, nil}, {&runtimeapi.ContainerConfig{}, true, nil}, {&runtimeapi.ContainerConfig{}, false, nil}} {
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

// TestPodAsksForNoLabels: as a container on a node without labels.
func TestPodAsksForNoLabels(t *testing.T) {
	cfg := func(privileged bool, o *runtimeapi.SELinuxOption) *runtimeapi.PodSandboxConfig {
		return &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{SelinuxOptions: o, Privileged: privileged}}}
	}
	level := &runtimeapi.SELinuxOption{Level: "s0"}
	for _, c := range []struct {
		cfg    *runtimeapi.PodSandboxConfig
		kernel bool
		want   error
	}{{cfg(false, level), true, ErrUnimplemented}, {cfg(true, level), true, nil}, {cfg(false, level), false, nil}, {cfg(false, nil), true, nil}, {cfg(false, &runtimeapi.SELinuxOption{}), true, nil}} {
		if err := CheckNoLabels(c.cfg, Host{SELinux: c.kernel}); !errors.Is(err, c.want) {
			t.Errorf("%v, kernel %v: %v", c.cfg, c.kernel, err)
		}
	}
}
