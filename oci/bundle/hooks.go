package bundle

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/oci/executor"
)

func hasCreateHooks(h *specs.Hooks) bool {
	return h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0 //nolint:staticcheck // deprecated, and in use
}

func (c *Container) createHooks(child *executor.Child) error { return nil }
