package sandbox

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// chosen is a runtime handler that a pod has.
type chosen struct {
	name  string
	rules spec.Handler
}

// handler finds the rules of a handler. Nobody has to configure the default one.
func (m *Manager) handler(name string) (chosen, error) {
	rules, ok := m.cfg.Handlers[name]
	if !ok && name != "" {
		return chosen{}, spec.Invalid("runtime_handler", name, "no runtime handler of this node")
	}
	return chosen{name, rules}, nil
}

// rulesOf are the rules that a pod was made by. They are the pod's for its life: one that is there is not to be lost, nor to
// change, because the configuration has. A record of before they were kept has what the configuration says.
func (m *Manager) rulesOf(r *podRecord) spec.Handler {
	if r.Rules != nil {
		return *r.Rules
	}
	return m.cfg.Handlers[r.Handler]
}

// planOf judges a sandbox request by the rules of its handler.
func (m *Manager) planOf(cfg *runtimeapi.PodSandboxConfig, rules spec.Handler) (*spec.Pod, error) {
	h := m.host
	h.Handler = rules
	p, err := spec.PodOf(cfg, h)
	return p, spec.InConfig(err)
}
