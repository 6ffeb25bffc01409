package sandbox

import (
	"encoding/json"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerStatus returns what is known of a container, and for verbose callers a map with one key, info,
// whose value is JSON. It reads memory only; for verbose callers also a counter of the kernel's.
func (m *Manager) ContainerStatus(id string, verbose bool) (*runtimeapi.ContainerStatus, map[string]string, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, nil, err
	}
	st := c.message()
	if !verbose {
		return st, nil, nil
	}
	f := c.facts.Load()
	b, err := json.Marshal(struct {
		Sandbox  string   `json:"sandboxID"`
		Pid      int      `json:"pid,omitempty"`
		Dir      string   `json:"directory"`
		Cgroup   string   `json:"cgroup"`
		Notes    []string `json:"notes,omitempty"`
		OOMKills int      `json:"oomKills"`
	}{c.pod.id, f.Pid, c.dir, c.record.Cgroup, c.notes(), c.oomKills(f)})
	return st, map[string]string{"info": string(b)}, err
}

// message is the container as the CRI describes it. It reads memory only.
func (c *Container) message() *runtimeapi.ContainerStatus {
	f := c.facts.Load()
	return &runtimeapi.ContainerStatus{
		Id: c.id, Metadata: c.config.GetMetadata(), State: f.state(),
		CreatedAt: f.Created, StartedAt: f.Started, FinishedAt: f.Finished, ExitCode: f.ExitCode,
		Image: c.imageSpec(), ImageRef: c.record.Image.Ref, ImageId: c.record.Image.ID,
		Reason: f.Reason, Message: f.Message, Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(),
		Mounts: c.mountsShown(), LogPath: c.record.LogPath,
		Resources:  &runtimeapi.ContainerResources{Linux: c.limits.Load().took},
		StopSignal: runtimeapi.Signal(c.record.CRISig),
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{
			Uid: c.record.User.UID, Gid: c.record.User.GID, SupplementalGroups: c.record.User.Groups}},
	}
}

// notes are what could not be done as asked.
func (c *Container) notes() []string {
	out := slices.Clone(c.record.Notes)
	for _, file := range c.limits.Load().gaps {
		if n := notEnforced + file; !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// oomKills is how many processes of the container the OOM killer took so far.
func (c *Container) oomKills(f *facts) int {
	if f.Finished == 0 {
		if n, err := c.pod.m.cfg.Cgroups.Load(c.record.Cgroup).OOMKills(); err == nil {
			return int(n)
		}
		f = c.facts.Load() // it is about to end, or has
	}
	return f.OOMKills
}

// imageSpec is the request's image with a name that people know instead of the id that the kubelet sends.
func (c *Container) imageSpec() *runtimeapi.ImageSpec {
	s, ok := proto.Clone(c.config.GetImage()).(*runtimeapi.ImageSpec)
	if !ok || s == nil {
		s = &runtimeapi.ImageSpec{}
	}
	s.Image = c.record.Image.Name
	return s
}

// ListContainers returns the containers that match a filter, newest first; nil means all. A filter that
// matches nothing, or makes no sense, gives an empty list. It reads memory only.
func (m *Manager) ListContainers(filter *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	var out []*runtimeapi.Container
	for _, c := range m.index.Load().containers {
		f := c.facts.Load()
		if !strings.HasPrefix(c.id, filter.GetId()) || !strings.HasPrefix(c.pod.id, filter.GetPodSandboxId()) ||
			filter.GetState() != nil && filter.GetState().GetState() != f.state() ||
			!selected(filter.GetLabelSelector(), c.config.GetLabels()) {
			continue
		}
		out = append(out, &runtimeapi.Container{
			Id: c.id, PodSandboxId: c.pod.id, Metadata: c.config.GetMetadata(), Image: c.imageSpec(),
			ImageRef: c.record.Image.Ref, ImageId: c.record.Image.ID, State: f.state(), CreatedAt: f.Created,
			Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(),
		})
	}
	slices.SortFunc(out, func(a, b *runtimeapi.Container) int {
		return newestFirst(a.CreatedAt, b.CreatedAt, a.Id, b.Id)
	})
	return out
}
