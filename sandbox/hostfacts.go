package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// maxHostDevices bounds what a privileged container is given.
const maxHostDevices = 4096

// hostFacts gathers what the rules want to know about the node.
func hostFacts() (*spec.Host, error) {
	self, err := ownCapabilities()
	if err != nil {
		return nil, err
	}
	caps, err := capability.ListSupported()
	if err != nil {
		return nil, fmt.Errorf("list capabilities: %w", err)
	}
	h := &spec.Host{}
	for _, c := range caps {
		name := "CAP_" + strings.ToUpper(c.String())
		// A privileged test runner or a hardened unit may lack some; what a process lacks it cannot hand on.
		if self.Get(capability.PERMITTED, c) && self.Get(capability.BOUNDING, c) {
			h.Capabilities = append(h.Capabilities, name)
		} else {
			h.Withheld = append(h.Withheld, name)
		}
	}
	if h.MaxOpenFiles, err = maxOpenFiles(self); err != nil {
		return nil, err
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return nil, os.NewSyscallError("getrlimit", err)
	}
	h.InheritedOpenFiles = lim.Max
	h.AppArmor = fileHas("/sys/module/apparmor/parameters/enabled", "Y")
	h.SELinux = fileHas("/sys/fs/selinux/enforce", "")
	if h.Devices, err = hostDevices("/dev"); err != nil {
		return nil, fmt.Errorf("list host devices: %w", err)
	}
	h.HugePageSizes, err = hugePageSizes()
	return h, err
}

func ownCapabilities() (capability.Capabilities, error) {
	self, err := capability.NewPid2(0)
	if err == nil {
		err = self.Load()
	}
	if err != nil {
		return nil, fmt.Errorf("read own capabilities: %w", err)
	}
	return self, nil
}

// maxOpenFiles returns the hard limit that we can give, 0 for any: who has CAP_SYS_RESOURCE may raise it.
func maxOpenFiles(self capability.Capabilities) (uint64, error) {
	if self.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE) {
		return 0, nil
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	return lim.Max, nil
}

func fileHas(path, prefix string) bool {
	b, err := os.ReadFile(path)
	return err == nil && strings.HasPrefix(string(b), prefix)
}

// skippedDevices are what a container has of its own, or what is not a device but a file system.
var skippedDevices = map[string]bool{
	"pts": true, "shm": true, "fd": true, "mqueue": true, "ptmx": true, "console": true,
	".lxc": true, ".lxd-mounts": true, ".udev": true,
}

// hostDevices lists the device nodes below dir.
func hostDevices(dir string) ([]spec.HostDevice, error) {
	var out []spec.HostDevice
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // devices come and go
			return nil
		case err != nil:
			return err
		case skippedDevices[d.Name()] && filepath.Dir(path) == dir:
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.Type()&fs.ModeDevice == 0:
			return nil
		case len(out) == maxHostDevices:
			return fs.SkipAll
		}
		dev, err := deviceAt(path)
		if err == nil {
			out = append(out, *dev)
		}
		return nil // gone meanwhile
	})
	return out, err
}

// deviceAt describes a device node of the host. Links are followed.
func deviceAt(path string) (*spec.HostDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	d := &spec.HostDevice{
		Path: path, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		Mode: st.Mode & 0o777, UID: st.Uid, GID: st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return nil, fmt.Errorf("%s is not a device", path)
	}
	return d, nil
}

// lookUpDevices describes the host's side of the devices of a request.
func lookUpDevices(list []*runtimeapi.Device) ([]spec.HostDevice, error) {
	var out []spec.HostDevice
	for i, d := range list {
		field := fmt.Sprintf("config.devices[%d].host_path", i)
		if !filepath.IsAbs(d.GetHostPath()) || strings.IndexByte(d.GetHostPath(), 0) >= 0 {
			return nil, spec.Invalid(field, d.GetHostPath(), "not an absolute path")
		}
		dev, err := deviceAt(d.GetHostPath())
		if err != nil {
			return nil, spec.Invalid(field, d.GetHostPath(), "%v", err)
		}
		out = append(out, *dev)
	}
	return out, nil
}

// hugePageSizes lists the kernel's, as the CRI writes them: 2MB, 1GB.
func hugePageSizes() ([]string, error) {
	entries, err := os.ReadDir("/sys/kernel/mm/hugepages")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		var kb int
		if _, err := fmt.Sscanf(e.Name(), "hugepages-%dkB", &kb); err != nil {
			continue
		}
		switch {
		case kb%(1<<20) == 0:
			out = append(out, itoa(kb>>20)+"GB")
		case kb%(1<<10) == 0:
			out = append(out, itoa(kb>>10)+"MB")
		default:
			out = append(out, itoa(kb)+"KB")
		}
	}
	return out, err
}
