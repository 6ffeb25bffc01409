package spec

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels are the SELinux labels of a pod or a container, user:role:type:level. The zero value is none: the kernel has no
// SELinux, or the node does not use it for containers.
type Labels struct {
	Process string `json:"process"` // what its processes run under
	Mount   string `json:"mount"`   // what all files of its file systems have
}

// privilegedType is the type of processes that the policy confines in nothing.
const privilegedType = "spc_t"

// ContainerLabels returns the labels of a container in a pod with the labels of. Each part of the request's options takes
// the place of the pod's, so that containers of a pod share its categories, and with them its files and volumes, unless they ask
// for others. A privileged container is of the type that nothing is forbidden to, without categories. Whether the policy knows
// the outcome is the node's to say.
func ContainerLabels(c *runtimeapi.ContainerConfig, of Labels, h Host) (Labels, error) {
	sc := security(c)
	if of == (Labels{}) {
		return of, checkNoLabels(sc.GetSelinuxOptions(), sc.GetPrivileged(), h)
	}
	return of.with(sc.GetSelinuxOptions(), sc.GetPrivileged(), h.PrivilegedLabel), nil
}

// CheckNoLabels refuses a pod that asks for labels on a node that gives none although its kernel has SELinux. A privileged one may ask for
// what it likes: nothing is kept from it, with and without a label.
func CheckNoLabels(cfg *runtimeapi.PodSandboxConfig, h Host) error {
	sc := cfg.GetLinux().GetSecurityContext()
	return checkNoLabels(sc.GetSelinuxOptions(), sc.GetPrivileged(), h)
}

func checkNoLabels(o *runtimeapi.SELinuxOption, privileged bool, h Host) error {
	asks := o.GetUser() != "" || o.GetRole() != "" || o.GetType() != "" || o.GetLevel() != ""
	if !asks || privileged || !h.SELinux {
		return nil
	}
	return Unimplemented("linux.security_context.selinux_options", "",
		"this node's kernel has SELinux, but pods have no labels: it is off in the configuration, or the policy has no containers")
}

// PodLabels returns the labels of a pod: those that were made for it, of, with the parts that the request names in their place.
func PodLabels(cfg *runtimeapi.PodSandboxConfig, of Labels) Labels {
	return of.with(cfg.GetLinux().GetSecurityContext().GetSelinuxOptions(), false, false)
}

// with replaces parts of l. Files have no role and no type of a process. A policy without the privileged type leaves a privileged process that
// asks for no other one without a label: it runs under that of the daemon.
func (l Labels) with(o *runtimeapi.SELinuxOption, privileged, known bool) Labels {
	if l == (Labels{}) {
		return l
	}
	p, m := cutLabel(l.Process), cutLabel(l.Mount)
	if privileged {
		p = cutLabel(l.Privileged())
	}
	for part, value := range []string{o.GetUser(), o.GetRole(), o.GetType(), o.GetLevel()} {
		if value == "" {
			continue
		}
		p[part] = value
		if part == labelUser || part == labelLevel {
			m[part] = value
		}
	}
	if privileged && !known && o.GetType() == "" {
		p = label{}
	}
	return Labels{p.String(), m.String()}
}

// Privileged returns the label of a privileged process.
func (l Labels) Privileged() string {
	p := cutLabel(l.Process)
	p[labelType], p[labelLevel] = privilegedType, sensitivity(p[labelLevel])
	return p.String()
}

// Shared returns the label of files that all may read who may read any of the pod's: without categories.
func (l Labels) Shared() string {
	m := cutLabel(l.Mount)
	m[labelLevel] = sensitivity(m[labelLevel])
	return m.String()
}

// Level is the part of a process' label that says with whom it shares; "" of none.
func (l Labels) Level() string { return cutLabel(l.Process)[labelLevel] }

// label is one in its parts; the level is absent in a policy without any.
type label [4]string

const (
	labelUser = iota
	_         // role
	labelType
	labelLevel
)

func cutLabel(s string) (l label) {
	copy(l[:], strings.SplitN(s, ":", len(l))) // the level has colons of its own
	return l
}

func (l label) String() string { return strings.TrimRight(strings.Join(l[:], ":"), ":") }

// sensitivity returns a level without its categories: s0 of s0:c1,c2.
func sensitivity(level string) string {
	s, _, _ := strings.Cut(level, ":")
	return s
}
