package spec

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// elsewhere are the fields of which this package makes nothing, with who else does; docs/cri.md has their tests. One of which it makes
// something after all does not belong here.
var elsewhere = map[string]string{
	"ContainerConfig.metadata.*": "sandbox: what a retry is known by", "ContainerConfig.image.*": "sandbox: resolved, and the policy asked",
	"ContainerConfig.labels": "comes back", "ContainerConfig.annotations": "comes back; those that name CDI devices are asked of the registry, TestCDIRequests, TestRealCDIRights",
	"ContainerConfig.stdin": "sandbox: told to the monitor", "ContainerConfig.stdin_once": "sandbox: ends with the first client",
	"ContainerConfig.CDI_devices.name": "sandbox: asked of the registry, TestRealCDI", "ContainerConfig.devices.host_path": "sandbox: looked up there", "ContainerConfig.mounts.selinux_relabel": "sandbox: relabels, TestSELinuxVolumes",
	"ContainerConfig.mounts.image.annotations": "nobody", "ContainerConfig.mounts.image.runtime_handler": "server: a known one or refused",
	"ContainerConfig.mounts.image.user_specified_image": "sandbox: the policy asked", "ContainerConfig.mounts.image.image_ref": "sandbox: compared",
	"ContainerConfig.linux.security_context.selinux_options.*":           "ContainerLabels",
	"ContainerConfig.linux.security_context.seccomp_profile_path":        "counts where seccomp is missing: TestSeccompOf",
	"ContainerConfig.linux.security_context.namespace_options.target_id": "sandbox: looked for, TestPIDNamespaceOfATarget",
	"ContainerConfig.windows.*":                                          "nobody",

	"PodSandboxConfig.metadata.attempt": "sandbox: what a retry is known by", "PodSandboxConfig.labels": "comes back",
	"PodSandboxConfig.annotations":      "comes back, but for one: TestWritableCgroup",
	"PodSandboxConfig.linux.overhead.*": "PodResources", "PodSandboxConfig.linux.resources.*": "PodResources",
	"PodSandboxConfig.linux.security_context.namespace_options.target_id": "server: refused",
	"PodSandboxConfig.linux.security_context.selinux_options.*":           "PodLabels",
	"PodSandboxConfig.linux.security_context.run_as_user.value":           "nobody",
	"PodSandboxConfig.linux.security_context.run_as_group.value":          "nobody",
	"PodSandboxConfig.linux.security_context.readonly_rootfs":             "nobody",
	"PodSandboxConfig.linux.security_context.supplemental_groups":         "nobody",
	"PodSandboxConfig.linux.security_context.supplemental_groups_policy":  "nobody",
	"PodSandboxConfig.linux.security_context.seccomp.profile_type":        "nobody",
	"PodSandboxConfig.linux.security_context.apparmor.profile_type":       "nobody",
	"PodSandboxConfig.linux.security_context.seccomp_profile_path":        "nobody",
	"PodSandboxConfig.windows.*":                                          "nobody",
}

// samples are values that a field is given where a general one would be refused for its form, or mean nothing.
var samples = map[string]any{
	"ContainerConfig.working_dir": "/srv", "ContainerConfig.mounts.host_path": "/srv/x", "ContainerConfig.mounts.container_path": "/elsewhere",
	"ContainerConfig.devices.container_path": "/dev/other", "ContainerConfig.devices.permissions": "w", "ContainerConfig.log_path": "other.log",
	"ContainerConfig.linux.resources.cpuset_cpus": "7", "ContainerConfig.linux.resources.cpuset_mems": "7",
	"ContainerConfig.linux.resources.hugepage_limits.page_size": "2 MB", "ContainerConfig.linux.security_context.run_as_username": "root",
	"ContainerConfig.linux.security_context.seccomp.localhost_ref": "/other.json",
	"PodSandboxConfig.hostname":                                    "other", "PodSandboxConfig.log_directory": "/var/other", "PodSandboxConfig.linux.cgroup_parent": "/other", "PodSandboxConfig.port_mappings.host_ip": "127.0.0.1",
}

// field is the way to a field from the message at the top.
type field []protoreflect.FieldDescriptor

// fieldsOf returns all fields below a message that hold a value; a list of messages has those of one.
func fieldsOf(m protoreflect.MessageDescriptor, way field) (out []field) {
	for i := range m.Fields().Len() {
		fd := m.Fields().Get(i)
		to := append(slices.Clone(way), fd)
		if fd.IsMap() || fd.Message() == nil {
			out = append(out, to)
			continue
		}
		out = append(out, fieldsOf(fd.Message(), to)...)
	}
	return out
}

func (f field) path() string {
	path := string(f[0].ContainingMessage().Name())
	for _, fd := range f {
		path += "." + string(fd.Name())
	}
	return path
}

// in returns the message that has the field. What is missing on the way is made.
func (f field) in(m protoreflect.Message) protoreflect.Message {
	for _, fd := range f[:len(f)-1] {
		if !fd.IsList() {
			m = m.Mutable(fd).Message()
			continue
		}
		l := m.Mutable(fd).List()
		if l.Len() == 0 {
			l.AppendMutable()
		}
		m = l.Get(0).Message()
	}
	return m
}

// change gives a field another value than it has.
func change(path string, in protoreflect.Message, fd protoreflect.FieldDescriptor) {
	value := func() protoreflect.Value {
		if v, ok := samples[path]; ok {
			return protoreflect.ValueOf(v)
		}
		switch fd.Kind() {
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(!in.Get(fd).Bool())
		case protoreflect.EnumKind:
			return protoreflect.ValueOfEnum(1 - min(in.Get(fd).Enum(), 1))
		case protoreflect.BytesKind:
			return protoreflect.ValueOfBytes([]byte("other"))
		case protoreflect.StringKind:
			return protoreflect.ValueOfString("other\x01")
		case protoreflect.Uint64Kind:
			return protoreflect.ValueOfUint64(1 << 21)
		case protoreflect.Uint32Kind:
			return protoreflect.ValueOfUint32(7)
		case protoreflect.Int32Kind:
			return protoreflect.ValueOfInt32(7777)
		}
		return protoreflect.ValueOfInt64(in.Get(fd).Int() + 7777)
	}
	switch {
	case fd.IsMap():
		in.Mutable(fd).Map().Set(protoreflect.ValueOfString("other").MapKey(), protoreflect.ValueOfString("other"))
	case fd.IsList():
		v := protoreflect.ValueOfString("other")
		if fd.Kind() != protoreflect.StringKind {
			v = protoreflect.ValueOfInt64(7777)
		}
		in.Mutable(fd).List().Append(v)
	default:
		in.Set(fd, value())
	}
}

// fieldsPod and fieldsContainer are what fields are tried in: as much of it is set as a change needs to be seen.
func fieldsPod() *runtimeapi.PodSandboxConfig {
	c := podConfig()
	c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080}}
	c.Linux.SecurityContext.RunAsUser = id(1)
	nsOptions(c).UsernsOptions = fieldsUserNS()
	return c
}

func fieldsUserNS() *runtimeapi.UserNamespace {
	line := []*runtimeapi.IDMapping{{HostId: 100000, Length: 65536}}
	return &runtimeapi.UserNamespace{Uids: line, Gids: line}
}

func fieldsContainer() *runtimeapi.ContainerConfig {
	in := plain()
	kubeletLike(&in)
	c, u := in.Container, fieldsUserNS()
	c.LogPath, c.Envs = "c.log", c.Envs[:1]
	c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/mnt", HostPath: "/srv", UidMappings: u.Uids, GidMappings: u.Gids}}
	s := c.Linux.SecurityContext
	s.NamespaceOptions = &runtimeapi.NamespaceOption{UsernsOptions: u}
	s.RunAsUser, s.RunAsGroup = id(1000), id(7)
	s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/p.json"}
	return c
}

// outcome is all that this package makes of a request, or why it refuses it.
func outcome(m proto.Message) string {
	var all struct {
		Pod  *Pod
		Spec *specs.Spec
		More []any
	}
	h := testHost
	h.AppArmor = true
	err := func() (err error) {
		c, ok := m.(*runtimeapi.ContainerConfig)
		if !ok {
			all.Pod, err = PodOf(m.(*runtimeapi.PodSandboxConfig), h)
			return err
		}
		in := plain()
		in.Host, in.Container, in.Devices = h, c, testHost.Devices[:1]
		in.Pod = &Pod{SharedPID: true, Privileged: true, LogDirectory: "/log", UserNS: &UserNS{HostID: 100000, Length: 65536}}
		if in.User, err = ResolveUser(UserRequest{Security: security(c), Image: "app"}, strings.NewReader(passwdFile), strings.NewReader(groupFile)); err != nil {
			return err
		}
		if all.Spec, err = Build(in); err != nil {
			return err
		}
		log, lerr := LogPath(in.Pod, c)
		signal, _, serr := StopSignal(c, "")
		kind, ref, perr := SeccompOf(c, in.Pod)
		armor, aerr := AppArmorOf(c, h)
		all.More = []any{log, signal, kind, ref, armor, fmt.Sprint(lerr, serr, perr, aerr)}
		return nil
	}()
	text, jerr := json.Marshal(all)
	return fmt.Sprint(string(text), err, jerr)
}

// TestNoRequestFieldIsIgnored gives each field of a pod's and of a container's request another value. What comes of the request differs then, or it is
// refused; or the field is on the list of those that are not for this package. A field that a later CRI brings is on neither side, and fails.
func TestNoRequestFieldIsIgnored(t *testing.T) {
	seen := map[string]bool{}
	for _, base := range []proto.Message{fieldsPod(), fieldsContainer()} {
		if got := outcome(base); !strings.HasSuffix(got, "<nil> <nil>") {
			t.Fatalf("%T: %s", base, got)
		}
		for _, f := range fieldsOf(base.ProtoReflect().Descriptor(), nil) {
			m, path := proto.Clone(base), f.path()
			in := f.in(m.ProtoReflect())
			before := outcome(m)
			change(path, in, f[len(f)-1])
			ignored := outcome(m) == before
			reason, listed := "", false
			for p, why := range elsewhere {
				if part, all := strings.CutSuffix(p, "*"); p == path || all && strings.HasPrefix(path, part) {
					reason, listed, seen[p] = why, true, true
				}
			}
			switch {
			case ignored && !listed:
				t.Errorf("%s changes nothing", path)
			case !ignored && listed:
				t.Errorf("%s is looked at, and on the list: %s", path, reason)
			}
			seen[path] = true
		}
	}
	for p := range elsewhere {
		if !seen[p] {
			t.Errorf("%s is on the list and no field", p)
		}
	}
	if len(seen) < 150 {
		t.Errorf("%d fields were tried", len(seen))
	}
}
