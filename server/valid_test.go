package server

import (
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// validPod is a sandbox config with every field set that a kubelet may set on Linux.
func validPod() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web-0", Uid: "f3bd5b4e-4cc8-4b0a-8c0a-01d2d0a0d0aa", Namespace: "default", Attempt: 1},
		Hostname:     "web-0",
		LogDirectory: "/var/log/pods/default_web-0_f3bd5b4e",
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10", "fe80::1%eth0"}, Searches: []string{"default.svc.cluster.local", "_tcp.x."}, Options: []string{"ndots:5", "edns0"}},
		PortMappings: []*runtimeapi.PortMapping{
			{Protocol: runtimeapi.Protocol_UDP, ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1"},
			{ContainerPort: 81},
			{ContainerPort: 82},
		},
		Labels:      map[string]string{"app": "web"},
		Annotations: map[string]string{"io.kubernetes.cri-o.userns-mode": "auto", "note": "any\nthing"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/burstable/podf3bd5b4e",
			Sysctls:      map[string]string{"net.ipv4.ip_local_port_range": "1024\t65535", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "10", "net/ipv4/conf/eth0.1/rp_filter": "0"},
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions:   &runtimeapi.NamespaceOption{Pid: modeContainer, UsernsOptions: &runtimeapi.UserNamespace{Mode: modeNode}},
				SelinuxOptions:     &runtimeapi.SELinuxOption{User: "system_u", Role: "system_r", Type: "container_t", Level: "s0:c1,c2.c5"},
				RunAsUser:          &runtimeapi.Int64Value{Value: 1000},
				RunAsGroup:         &runtimeapi.Int64Value{Value: 1000},
				SupplementalGroups: []int64{1, 4294967294},
				Privileged:         true,
				Seccomp:            &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/var/lib/kubelet/seccomp/a.json"},
				Apparmor:           &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "k8s-profile"},
				SeccompProfilePath: "localhost//var/lib/kubelet/seccomp/a.json", //nolint:staticcheck // deprecated, and still checked
			},
			Overhead:  &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 1000, MemoryLimitInBytes: 1 << 20},
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2, MemoryLimitInBytes: -1},
		},
	}
}

func validRun() *runtimeapi.RunPodSandboxRequest {
	return &runtimeapi.RunPodSandboxRequest{Config: validPod()}
}

// validContainer is a container config with every field set that can be.
func validContainer() *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: "app", Attempt: 2},
		Image:       &runtimeapi.ImageSpec{Image: imageID, UserSpecifiedImage: "registry.test/a:1", Annotations: map[string]string{"a": "b"}, ImageRef: imageID},
		Command:     []string{"/bin/sh"},
		Args:        []string{"-c", ""},
		WorkingDir:  "/srv",
		Envs:        []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1\n2")}, {Key: "A"}, {Key: "HOME", Value: []byte("/root")}},
		Mounts:      validMounts(),
		Devices:     []*runtimeapi.Device{{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "rwm"}},
		Labels:      map[string]string{"app": "web"},
		Annotations: map[string]string{"a": "b"},
		LogPath:     "app/2.log",
		Stdin:       true, StdinOnce: true, Tty: true,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       validResources(),
			SecurityContext: validSecurity(),
		},
		StopSignal: runtimeapi.Signal_SIGNAL_SIGUSR1,
	}
}

func validMounts() []*runtimeapi.Mount {
	return []*runtimeapi.Mount{
		{ContainerPath: "/data", HostPath: "/var/lib/kubelet/pods/f3/volumes/data", Readonly: true, RecursiveReadOnly: true, SelinuxRelabel: true, Image: &runtimeapi.ImageSpec{}},
		{ContainerPath: "/etc/hosts", HostPath: "/var/lib/kubelet/pods/f3/etc-hosts"},
		{ContainerPath: "/csi", HostPath: "/var/lib/csi", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
	}
}

func validResources() *runtimeapi.LinuxContainerResources {
	return &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512,
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20, OomScoreAdj: 999,
		CpusetCpus: "0-1,3", CpusetMems: "0",
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}},
		Unified:        map[string]string{"memory.high": "max", "memory.oom.group": "1", "hugetlb.2MB.max": "0"},
	}
}

func validSecurity() *runtimeapi.LinuxContainerSecurityContext {
	return &runtimeapi.LinuxContainerSecurityContext{
		Capabilities:       &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN", "all"}, DropCapabilities: []string{"CAP_KILL"}, AddAmbientCapabilities: []string{"chown"}},
		NamespaceOptions:   &runtimeapi.NamespaceOption{Pid: modeTarget, TargetId: containerID, UsernsOptions: &runtimeapi.UserNamespace{Mode: modeNode}},
		SelinuxOptions:     &runtimeapi.SELinuxOption{Level: "s0-s15:c0.c1023"},
		RunAsUser:          &runtimeapi.Int64Value{Value: 7},
		RunAsUsername:      "7",
		RunAsGroup:         &runtimeapi.Int64Value{Value: 7},
		SupplementalGroups: []int64{7},
		NoNewPrivs:         true, ReadonlyRootfs: true, Privileged: true,
		SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict,
		MaskedPaths:              []string{"/proc/kcore"},
		ReadonlyPaths:            []string{"/proc/sys"},
		Seccomp:                  &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p.json"},
		Apparmor:                 &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined},
		ApparmorProfile:          "localhost/p",     //nolint:staticcheck // deprecated, and still checked
		SeccompProfilePath:       "runtime/default", //nolint:staticcheck // deprecated, and still checked
	}
}

func validCreate() *runtimeapi.CreateContainerRequest {
	return &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: validContainer(), SandboxConfig: validPod()}
}

func validPull() *runtimeapi.PullImageRequest {
	return &runtimeapi.PullImageRequest{
		Image:         &runtimeapi.ImageSpec{Image: "registry.test:5000/a/b:1@sha256:" + imageID[len("sha256:"):]},
		Auth:          &runtimeapi.AuthConfig{Username: "u", Password: "p w", ServerAddress: "https://registry.test", IdentityToken: "t"},
		SandboxConfig: validPod(),
	}
}

// with returns a copy of m after edit.
func with[M proto.Message](m M, edit func(M)) M {
	c := proto.Clone(m).(M)
	if edit != nil {
		edit(c)
	}
	return c
}
