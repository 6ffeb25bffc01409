package bundle

import (
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// ErrandPidFD and ErrandRootFD are the descriptors that CreateHooks is given: the init process, and its
// root as a mount.
const ErrandPidFD, ErrandRootFD = 3, 4

// CreateHooks runs the hooks of create for a container that is no Runtime's: a monitor holds it at the gate, and the
// daemon has sent us, since the one does not see the host's files and the other does not fork. dir is the container's
// directory with its config.json, which the hooks are told is the bundle; the place for the root, below it, exists.
func CreateHooks(id, dir string, pid int) error {
	b, err := os.ReadFile(filepath.Join(dir, configName))
	if err != nil {
		return err
	}
	spec := new(specs.Spec)
	if err := specjson.Unmarshal(b, spec); err != nil {
		return fmt.Errorf("read %s: %w", configName, err)
	}
	c := &Container{r: &Runtime{}, spec: spec, rec: record{State: State{
		Version: specs.Version, ID: id, Bundle: dir, Rootfs: filepath.Join(dir, spec.Root.Path), Annotations: spec.Annotations}}}
	return c.createHooks(pid, sys.NewFD(ErrandPidFD), sys.NewFD(ErrandRootFD))
}
