package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// newLabels makes the labels of a pod, with categories that no other pod of this daemon has, where the kernel has SELinux
// and its policy (lxc_contexts) knows containers. They are the pod's until releaseLabels.
func (m *Manager) newLabels(cfg *runtimeapi.PodSandboxConfig) (spec.Labels, error) {
	if !m.cfg.SELinux || !m.host.SELinux {
		return spec.Labels{}, nil
	}
	process, mount, err := label.InitLabels(nil)
	if err != nil {
		return spec.Labels{}, fmt.Errorf("make SELinux labels: %w", err)
	}
	made := spec.Labels{Process: process, Mount: mount}
	l := spec.PodLabels(cfg, made)
	if l.Level() != made.Level() {
		selinux.ReleaseLabel(made.Process)
		reserveLabels(l)
	}
	if err := checkLabels(l); err != nil {
		m.releaseLabels("", l)
		return spec.Labels{}, err
	}
	return l, nil
}

// checkLabels asks the kernel's policy.
func checkLabels(l spec.Labels) error {
	for _, v := range []string{l.Process, l.Mount} {
		if v == "" {
			continue
		}
		if err := selinux.SecurityCheckContext(v); err != nil {
			return spec.Invalid("linux.security_context.selinux_options", v, "is no label of this node's policy")
		}
	}
	return nil
}

// reserveLabels keeps the categories from being made for another pod. A level that a request names may be another's, too.
func reserveLabels(l spec.Labels) {
	if l.Process == "" {
		return
	}
	if err := selinux.ReserveLabelV2(l.Process); err != nil && !errors.Is(err, selinux.ErrMCSAlreadyExists) {
		klog.ErrorS(err, "Reservation of SELinux categories", "label", l.Process)
	}
}

// releaseLabels gives the categories of a pod back, unless another one has the same.
func (m *Manager) releaseLabels(pod string, l spec.Labels) {
	if l.Process == "" {
		return
	}
	for id, sb := range m.index.Load().pods {
		if id != pod && sb.record.Labels.Level() == l.Level() {
			return
		}
	}
	selinux.ReleaseLabel(l.Process)
}

// chooseLabels finds the labels that the container is to have, before anything of it is made.
func (c *Container) chooseLabels() error {
	l, err := spec.ContainerLabels(c.config, c.pod.record.Labels, c.pod.m.host)
	if err != nil {
		return err
	}
	if l != c.pod.record.Labels {
		if err := checkLabels(l); err != nil {
			return err
		}
	}
	c.labels = l
	return nil
}

// relabelVolumes gives the files of volumes the label of the container, where the request says so; the files of others stay as
// they are (CVE-2021-43816). It may take long, as there may be many files: only ctx ends the waiting, and what was begun
// goes on.
func (c *Container) relabelVolumes(ctx context.Context, op *operation) error {
	if c.labels.Mount == "" {
		return nil
	}
	for i, r := range c.config.GetMounts() {
		if !r.GetSelinuxRelabel() || spec.IsImageVolume(r) {
			continue
		}
		op.at("relabel volume " + r.GetHostPath())
		done := make(chan error, 1)
		go func() { done <- relabel(r.GetHostPath(), c.labels.Mount) }() // ends when the last file has its label
		var err error
		select {
		case err = <-done:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if err != nil {
			return relabelError(i, r.GetHostPath(), err)
		}
	}
	return nil
}

// relabel changes the label of a path of the host and of all below it, the path itself last. The library refuses directories
// that a host cannot do without. What cannot have labels has those that its mount gives it.
func relabel(path, mount string) error {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		err = label.Relabel(real, mount, false)
	}
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// relabelError tells what the library refuses, which is the request's fault, from what the kernel did, and from a time that ended.
func relabelError(mount int, path string, err error) error {
	field := fmt.Sprintf("mounts[%d].selinux_relabel", mount)
	var errno unix.Errno
	if errors.As(err, &errno) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", field, hostPathError("mounts.host_path", path, err))
	}
	return spec.Invalid(field, path, "%v", err)
}
