package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
)

// StatePaused is the status of a created or running container whose cgroup is
// frozen. The specification leaves room for values of a runtime's own; this is what
// the others call it.
const StatePaused specs.ContainerState = "paused"

// State is what the runtime specification says of a container, with what the callers
// of runtimes have come to expect beside it. The pid is 0 for a container that has
// none any more: readers of lists want the field.
type State struct {
	Version     string               `json:"ociVersion"`
	ID          string               `json:"id"`
	Pid         int                  `json:"pid"`
	Status      specs.ContainerState `json:"status"`
	Bundle      string               `json:"bundle"`
	Rootfs      string               `json:"rootfs"`
	Created     string               `json:"created"` // RFC 3339, UTC
	Annotations map[string]string    `json:"annotations,omitempty"`
	Owner       string               `json:"owner"`
}

// oci is the state with the specification's fields only, for hooks and listeners.
func (s *State) oci() specs.State {
	return specs.State{Version: s.Version, ID: s.ID, Status: s.Status, Pid: s.Pid, Bundle: s.Bundle, Annotations: s.Annotations}
}

// record is state.json. It says who the container is, and nothing of what the
// kernel can be asked; status is there for readers of the file, as of its writing.
type record struct {
	State
	Init   identity `json:"init"`
	Cgroup *place   `json:"cgroup,omitempty"`
	// Hands is where in the process's memory its filter's listener is handed over.
	Hands uint64 `json:"hands,omitempty"`
}

// Container is one container of a Runtime, locked: nobody else can change it
// before Close. It survives Close, and us.
type Container struct {
	r   *Runtime
	dir *directory
	rec record
	// spec is what it was made from; read when it is asked for.
	spec *specs.Spec
}

// Load finds a container and waits until nobody else works on it. The caller
// closes it. An unknown id is ErrNotExist.
func (r *Runtime) Load(id string) (*Container, error) {
	dir, err := r.openDir(id)
	if err != nil {
		return nil, err
	}
	c := &Container{r: r, dir: dir}
	b, err := dir.read(stateName)
	switch {
	case errors.Is(err, fs.ErrNotExist): // a create that was killed before it made anything
		c.rec = record{State: State{Version: specs.Version, ID: id, Status: specs.StateStopped}}
		return c, nil
	case err == nil:
		err = specjson.Unmarshal(b, &c.rec)
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("read state of container %s: %w", id, err)
	}
	return c, nil
}

// Close gives the container free for others. It may be called again.
func (c *Container) Close() error {
	if err := c.dir.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// save writes state.json.
func (c *Container) save() error {
	b, err := specjson.Marshal(c.rec)
	if err != nil {
		return err
	}
	return c.dir.write(stateName, append(b, '\n'))
}

// ID returns the container's id.
func (c *Container) ID() string { return c.rec.ID }

// Spec returns what the container was made from: the bundle's config.json as it was
// then.
func (c *Container) Spec() (*specs.Spec, error) {
	if c.spec != nil {
		return c.spec, nil
	}
	b, err := c.dir.read(configName)
	if err != nil {
		return nil, err
	}
	s := new(specs.Spec)
	if err := specjson.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("read %s of container %s: %w", configName, c.rec.ID, err)
	}
	c.spec = s
	return s, nil
}

// State looks at the container's process and returns its state.
func (c *Container) State() (State, error) {
	s := c.rec.State
	p, alive, err := c.rec.Init.look()
	switch {
	case err != nil:
		return s, err
	case !alive:
		s.Status, s.Pid = specs.StateStopped, 0
		return s, nil
	case p.flags&forkNoExec != 0:
		s.Status = specs.StateCreated
	default:
		s.Status = specs.StateRunning
	}
	s.Pid = c.rec.Init.Pid
	frozen, err := c.frozen()
	if frozen {
		s.Status = StatePaused
	}
	return s, err
}

// status is State for who wants no more.
func (c *Container) status() (specs.ContainerState, error) {
	s, err := c.State()
	return s.Status, err
}

// want returns an error unless the container is in one of the states.
func (c *Container) want(verb string, states ...specs.ContainerState) error {
	s, err := c.status()
	if err != nil {
		return err
	}
	if slices.Contains(states, s) {
		return nil
	}
	if s == specs.StateStopped {
		return fmt.Errorf("%s container %s: %w", verb, c.rec.ID, ErrNotRunning)
	}
	return fmt.Errorf("%s container %s: it is %s: %w", verb, c.rec.ID, s, ErrState)
}

// List returns the states of all containers, by id. Those that come or go meanwhile
// may be missing.
func (r *Runtime) List() ([]State, error) {
	entries, err := os.ReadDir(r.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []State
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || !e.IsDir() {
			continue
		}
		c, err := r.peek(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			r.warn(err.Error())
			continue
		}
		s, err := c.State()
		if err != nil {
			r.warn(err.Error())
			continue
		}
		list = append(list, s)
	}
	return list, nil
}

// Look is Load without the lock, for who changes nothing: it waits for nobody and
// sees what was last written.
func (r *Runtime) Look(id string) (*Container, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	c, err := r.peek(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("container %s: %w", id, ErrNotExist)
	}
	return c, err
}

func (r *Runtime) peek(id string) (*Container, error) {
	c := &Container{r: r, dir: &directory{path: r.Root + "/" + id}}
	b, err := c.dir.read(stateName)
	if err != nil {
		return nil, err
	}
	if err := specjson.Unmarshal(b, &c.rec); err != nil {
		return nil, fmt.Errorf("read state of container %s: %w", id, err)
	}
	return c, nil
}

// Program returns the encoded program that the container was made with.
func (c *Container) Program() ([]byte, error) { return c.dir.read(programName) }
