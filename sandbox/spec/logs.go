package spec

import (
	"path"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podLogs judges the log directory of the pod.
func podLogs(p *Pod, cfg *runtimeapi.PodSandboxConfig, _ Host) error {
	dir := cfg.GetLogDirectory()
	if dir == "" {
		return nil
	}
	if err := checkAbsolute("log_directory", dir); err != nil {
		return err
	}
	if hasDotDot(dir) {
		return Invalid("log_directory", dir, "holds ..")
	}
	p.LogDirectory = path.Clean(dir)
	return nil
}

// LogPath returns the absolute path of a container's log, "" where the pod or the container has none. The
// kubelet's log_path is relative to the pod's log directory and stays below it.
func LogPath(p *Pod, c *runtimeapi.ContainerConfig) (string, error) {
	rel := c.GetLogPath()
	if rel == "" || p.LogDirectory == "" {
		return "", nil
	}
	if strings.ContainsAny(rel, "\x00\n\r") || strings.HasPrefix(rel, "/") || hasDotDot(rel) {
		return "", Invalid("log_path", rel, "not a path below the pod's log directory")
	}
	full := path.Join(p.LogDirectory, rel)
	if full == p.LogDirectory || len(full) >= pathMax {
		return "", Invalid("log_path", rel, "not a file below the pod's log directory")
	}
	return full, nil
}

func hasDotDot(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}
