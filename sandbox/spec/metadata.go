package spec

import (
	"strings"
	"unicode/utf8"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxName bounds names, namespaces and uids. Kubernetes allows 253 bytes.
const maxName = 1024

// checkPodMetadata judges the names of a pod. They end in log directories, CNI arguments (separated by ;
// and =) and file names.
func checkPodMetadata(m *runtimeapi.PodSandboxMetadata) error {
	if m == nil {
		return Invalid("metadata", "", "missing")
	}
	for _, f := range []struct{ field, value string }{
		{"metadata.name", m.GetName()}, {"metadata.namespace", m.GetNamespace()}, {"metadata.uid", m.GetUid()},
	} {
		if err := checkName(f.field, f.value); err != nil {
			return err
		}
	}
	return nil
}

// CheckContainerMetadata judges the name of a container.
func CheckContainerMetadata(m *runtimeapi.ContainerMetadata) error {
	if m == nil {
		return Invalid("metadata", "", "missing")
	}
	return checkName("metadata.name", m.GetName())
}

func checkName(field, v string) error {
	switch {
	case v == "":
		return Invalid(field, "", "empty")
	case len(v) > maxName:
		return Invalid(field, v, "longer than %d bytes", maxName)
	case !utf8.ValidString(v):
		return Invalid(field, v, "not UTF-8")
	case v == "." || v == ".." || strings.ContainsAny(v, "/;="):
		return Invalid(field, v, "not a plain name")
	case strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return Invalid(field, v, "holds a control character")
	}
	return nil
}
