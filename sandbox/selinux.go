package sandbox

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// maxLabel is the longest label that a file system can be mounted with: fsconfig takes 255 bytes.
const maxLabel = 255

// selinuxLabels makes the labels of pods, and counts who has which level, so that no two pods are given the same.
type selinuxLabels struct {
	on bool // the kernel has SELinux, its policy knows containers, and the configuration wants it

	mu   sync.Mutex     // also around the library, which makes labels without a lock of its own
	held map[string]int // guarded by mu: how many have a level
}

// openLabels finds out whether pods can have labels. A policy that does not know its own words for containers is as
// one without containers.
func openLabels(h *spec.Host, wanted bool) *selinuxLabels {
	s := &selinuxLabels{held: map[string]int{}}
	if !wanted || !h.SELinux {
		return s
	}
	l, err := s.make()
	switch {
	case err == nil && l.Process == "":
		err = errors.New("the policy has no lxc_contexts")
	case err == nil:
		err = errors.Join(selinux.SecurityCheckContext(l.Process), selinux.SecurityCheckContext(l.Mount))
	}
	s.release(l)
	if err != nil {
		klog.ErrorS(err, "The kernel has SELinux, and containers run without labels")
		return s
	}
	s.on = true
	h.PrivilegedLabel = selinux.SecurityCheckContext(l.Privileged()) == nil
	return s
}

// make makes a label with categories that nobody has, and holds it.
func (s *selinuxLabels) make() (spec.Labels, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	process, mount, err := label.InitLabels(nil)
	if err != nil {
		return spec.Labels{}, fmt.Errorf("make SELinux labels: %w", err)
	}
	l := spec.Labels{Process: process, Mount: mount}
	s.held[l.Level()]++
	return l, nil
}

// hold keeps a level from being made for another pod. One that a request names may be another's, too.
func (s *selinuxLabels) hold(l spec.Labels) {
	if l.Level() == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[l.Level()]++; s.held[l.Level()] > 1 {
		return
	}
	if err := selinux.ReserveLabelV2(l.Process); err != nil && !errors.Is(err, selinux.ErrMCSAlreadyExists) {
		klog.ErrorS(err, "Reservation of SELinux categories", "label", l.Process)
	}
}

// release undoes one hold or make.
func (s *selinuxLabels) release(l spec.Labels) {
	if l.Level() == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[l.Level()]--; s.held[l.Level()] <= 0 {
		delete(s.held, l.Level())
		selinux.ReleaseLabel(l.Process)
	}
}

// newLabels makes the labels of a pod. They are the pod's until releaseLabels.
func (m *Manager) newLabels(cfg *runtimeapi.PodSandboxConfig) (spec.Labels, error) {
	if !m.labels.on {
		return spec.Labels{}, spec.CheckNoLabels(cfg, m.host)
	}
	made, err := m.labels.make()
	if err != nil {
		return spec.Labels{}, err
	}
	l := spec.PodLabels(cfg, made)
	if l == made {
		return l, nil
	}
	if err := m.labels.exchange(made, l, checkLabels); err != nil {
		return spec.Labels{}, err
	}
	return l, nil
}

// exchange holds l in the place of made, if check lets it. Both may have one level, which nobody else may be given in between.
func (s *selinuxLabels) exchange(made, l spec.Labels, check func(spec.Labels) error) error {
	defer s.release(made)
	if err := check(l); err != nil {
		return err
	}
	s.hold(l)
	return nil
}

// checkLabels asks the kernel's policy about labels that a request has named parts of.
func checkLabels(l spec.Labels) error {
	const field = "config.linux.security_context.selinux_options"
	for _, v := range []string{l.Process, l.Mount} {
		if v == "" { // a privileged process, see ContainerLabels
			continue
		}
		if len(v) > maxLabel {
			return spec.Invalid(field, v, "makes a label of more than %d bytes", maxLabel)
		}
		err := selinux.SecurityCheckContext(v)
		if errors.Is(err, unix.EINVAL) {
			return spec.Invalid(field, v, "is no label of this node's policy")
		}
		if err != nil {
			return fmt.Errorf("%s: ask the policy about %.256q: %w", field, v, err)
		}
	}
	return nil
}

// chooseLabels finds the labels that the container is to have, before anything of it is made. What differs from the pod's is held until
// the pod is gone.
func (c *Container) chooseLabels() error {
	sb := c.pod
	l, err := spec.ContainerLabels(c.config, sb.record.Labels, sb.m.host)
	if err != nil {
		return err
	}
	if l != sb.record.Labels {
		if err := checkLabels(l); err != nil {
			return err
		}
	}
	c.labels = l
	c.holdLabels()
	if l.Mount != sb.record.Labels.Mount {
		return sb.shareFiles()
	}
	return nil
}

// holdLabels is for a container that has just chosen its labels, or was found again.
func (c *Container) holdLabels() {
	sb := c.pod
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if slices.ContainsFunc(sb.levels, func(l spec.Labels) bool { return l.Level() == c.labels.Level() }) {
		return
	}
	sb.levels = append(sb.levels, c.labels)
	sb.m.labels.hold(c.labels)
}

// releaseLabels gives all levels of a pod that is gone to others.
func (sb *Sandbox) releaseLabels() {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	for _, l := range sb.levels {
		sb.m.labels.release(l)
	}
	sb.levels = nil
}

// labelFile gives a file of the pod a label. A file system without any has that of its mount.
func labelFile(path, mount string) error {
	if mount == "" {
		return nil
	}
	if err := selinux.LsetFileLabel(path, mount); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("label %s: %w", path, err)
	}
	return nil
}

// shareFiles takes the categories from the pod's files: a container with others than its pod's could not read them. Its /dev/shm stays as it
// is mounted.
func (sb *Sandbox) shareFiles() error {
	var errs []error
	f := sb.files()
	for _, path := range []string{f.ResolvConf, f.Hostname, f.Hosts} {
		errs = append(errs, labelFile(path, sb.record.Labels.Shared()))
	}
	return errors.Join(errs...)
}
