package spec

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Handler are the rules of a runtime handler, which is a name that a pod may choose: all are carried out by the same
// executor, and differ in what they let a pod ask for and in what it has that does not ask. The zero value is what a node
// does of which nothing is configured.
type Handler struct {
	WritableCgroup bool         `json:"writableCgroup,omitempty"` // pods may ask for WritableCgroup
	NoPrivileged   bool         `json:"noPrivileged,omitempty"`   // privileged pods and containers are refused
	UserNS         UserNSPolicy `json:"userNS,omitempty"`
	DefaultSeccomp bool         `json:"defaultSeccomp,omitempty"` // containers that name no profile have the default one
	NoHostDevices  bool         `json:"noHostDevices,omitempty"`  // privileged containers have the devices that others have
}

// UserNSPolicy says whether pods have user namespaces of their own.
type UserNSPolicy string

// What there is to say of user namespaces.
const (
	UserNSAllowed  UserNSPolicy = "" // who asks has one
	UserNSRequired UserNSPolicy = "required"
	UserNSRefused  UserNSPolicy = "refused"
)

// podHandler holds a sandbox against the rules of its handler.
func podHandler(p *Pod, cfg *runtimeapi.PodSandboxConfig, h Host) error {
	const field = "linux.security_context."
	switch r := h.Handler; {
	case r.NoPrivileged && p.Privileged:
		return Invalid(field+"privileged", "", "the runtime handler has no privileged pods")
	case r.UserNS == UserNSRequired && p.UserNS == nil:
		return Invalid(field+"namespace_options.userns_options", "", "the runtime handler has only pods with a user namespace")
	case r.UserNS == UserNSRefused && p.UserNS != nil:
		return Invalid(field+"namespace_options.userns_options", "", "the runtime handler has no pods with a user namespace")
	}
	p.DefaultSeccomp, p.NoHostDevices = h.Handler.DefaultSeccomp, h.Handler.NoHostDevices
	return nil
}
