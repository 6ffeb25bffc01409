package server

import (
	"bytes"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// checkCreateContainer is all that can be said about a CreateContainerRequest
// without looking at the sandbox, the image and the node.
func (s *Server) checkCreateContainer(r *runtimeapi.CreateContainerRequest) error {
	switch {
	case r.GetPodSandboxId() == "":
		return missing("pod_sandbox_id")
	case r.GetConfig() == nil:
		return missing("config")
	case r.GetSandboxConfig() == nil:
		return missing("sandbox_config")
	}
	return first(
		shape(r),
		at("sandbox_config", s.checkPodConfig(r.GetSandboxConfig())),
		at("config", s.checkContainerConfig(r.GetConfig(), r.GetSandboxConfig())),
	)
}

func (s *Server) checkContainerConfig(c *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	if c.GetMetadata() == nil {
		return missing("metadata")
	}
	podSecurity := pod.GetLinux().GetSecurityContext()
	return first(
		text("metadata.name", c.GetMetadata().GetName(), name),
		at("image", s.checkImage(c.GetImage())),
		checkCommand("command", c.GetCommand()),
		optional("working_dir", c.GetWorkingDir(), absolute, singleLine, pathMax),
		checkEnvs(c.GetEnvs()),
		s.checkMounts(c.GetMounts(), podSecurity.GetNamespaceOptions()),
		checkDevices(c.GetDevices()),
		checkLabels("labels", c.GetLabels()),
		checkLabels("annotations", c.GetAnnotations()),
		optional("log_path", c.GetLogPath(), relative, noParent, singleLine, pathMax, fileName),
		at("linux.resources", checkResources(c.GetLinux().GetResources())),
		at("linux.security_context", s.checkContainerSecurity(c.GetLinux().GetSecurityContext(), podSecurity)),
		checkCDI(c),
	)
}

// checkCommand: only what can never be a command. An empty list is the image's.
func checkCommand(field string, cmd []string) error {
	if len(cmd) > 0 && cmd[0] == "" {
		return missing(field + "[0]")
	}
	return nil
}

// fileName: the path ends in a name and not in a directory.
func fileName(v string) string {
	if base := v[strings.LastIndexByte(v, '/')+1:]; base == "" || base == "." {
		return "must end in the name of a file"
	}
	return ""
}

// checkEnvs: "key=value" with a NUL behind it is all that the kernel knows. HOME
// goes into the container's /etc/passwd where the user has no entry there, so it
// has to be a line.
func checkEnvs(envs []*runtimeapi.KeyValue) error {
	for i, e := range envs {
		if err := checkEnv(e); err != nil {
			return atIndex("envs", i, err)
		}
	}
	return nil
}

func checkEnv(e *runtimeapi.KeyValue) error {
	switch {
	case e.GetKey() == "":
		return missing("key")
	case strings.IndexByte(e.GetKey(), '=') >= 0:
		return bad("key", e.GetKey(), "must not hold '='")
	case bytes.IndexByte(e.GetValue(), 0) >= 0:
		return wrong("value", "must not hold a NUL")
	case e.GetKey() == "HOME" && singleLine(string(e.GetValue())) != "":
		return bad("value", string(e.GetValue()), "must be one line for HOME")
	}
	return nil
}

func checkDevices(devices []*runtimeapi.Device) error {
	seen := make(map[string]bool, len(devices))
	for i, d := range devices {
		err := first(
			text("host_path", d.GetHostPath(), required, absolute, noParent, pathMax),
			text("container_path", d.GetContainerPath(), required, absolute, noParent, notRoot, pathMax, outsideProc),
			text("permissions", d.GetPermissions(), required, permissions),
		)
		if err == nil && seen[d.GetContainerPath()] {
			err = bad("container_path", d.GetContainerPath(), "must not be given twice")
		}
		if err != nil {
			return atIndex("devices", i, err)
		}
		seen[d.GetContainerPath()] = true
	}
	return nil
}

// permissions: r, w and m, each at most once.
func permissions(v string) string {
	for i := 0; i < len(v); i++ {
		if strings.IndexByte("rwm", v[i]) < 0 || strings.IndexByte(v[:i], v[i]) >= 0 {
			return "must be made of r, w and m, each at most once"
		}
	}
	return ""
}

// checkCDI wants fully qualified names, vendor.com/class=device. Whether there is such a device is the node's to say.
func checkCDI(c *runtimeapi.ContainerConfig) error {
	for i, d := range c.GetCDIDevices() {
		if err := text("name", d.GetName(), required, cdiName); err != nil {
			return atIndex("CDI_devices", i, err)
		}
	}
	for key, value := range c.GetAnnotations() {
		if !strings.HasPrefix(key, spec.CDIAnnotation) {
			continue
		}
		for name := range strings.SplitSeq(value, ",") {
			if err := text("annotations["+key+"]", name, required, cdiName); err != nil {
				return err
			}
		}
	}
	return nil
}

func cdiName(v string) string {
	if !spec.CDIName(v) {
		return "must be a name as vendor.com/class=device"
	}
	return ""
}

// checkObjectID: any text may be asked for, but not none.
func checkObjectID(field, v string) error {
	if v == "" {
		return missing(field)
	}
	return nil
}

// maxSeconds is ten years: more than anyone waits for, and far from overflowing a
// duration in nanoseconds.
const maxSeconds = 10 * 365 * 24 * 3600

// seconds checks a time-out and caps it.
func seconds(field string, v int64) (int64, error) {
	if v < 0 {
		return 0, bad(field, strconv.FormatInt(v, 10), "must not be negative")
	}
	return min(v, maxSeconds), nil
}
