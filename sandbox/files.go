package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/atomicfile"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// shmSize is the size of a pod's /dev/shm in bytes, which is charged to the pod that fills it.
const shmSize = "67108864"

// hostResolvConf is what pods get whose request says nothing about DNS.
const hostResolvConf = "/etc/resolv.conf"

// maxResolvConf bounds the host's resolv.conf.
const maxResolvConf = 1 << 20

func (sb *Sandbox) shmDir() string { return filepath.Join(sb.dir, "shm") }

// makeFiles writes the pod's files and mounts its shm. The log directory is the kubelet's, and made only
// where the caller is not one.
func (sb *Sandbox) makeFiles() error {
	resolv := sb.plan.ResolvConf
	if resolv == nil {
		var err error
		if resolv, err = readHostFile(hostResolvConf, maxResolvConf); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := sb.writeFile("resolv.conf", resolv); err != nil {
		return err
	}
	name := sb.plan.Hostname
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return err
		}
	}
	if err := sb.writeFile("hostname", []byte(name+"\n")); err != nil {
		return err
	}
	if sb.plan.LogDirectory != "" {
		if err := os.MkdirAll(sb.plan.LogDirectory, 0o755); err != nil {
			return fmt.Errorf("make log directory: %w", hostPathError("config.log_directory", sb.plan.LogDirectory, err))
		}
	}
	return sb.mountShm()
}

// writeHosts writes the hosts file of containers that bring none. In the host's network it is the host's.
func (sb *Sandbox) writeHosts(ips []string) error {
	if sb.plan.HostNetwork {
		data, err := readHostFile("/etc/hosts", maxResolvConf)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return sb.writeFile("hosts", data)
	}
	return sb.writeFile("hosts", spec.Hosts(sb.plan.Hostname, ips))
}

// writeFile writes a file that containers will see: readable for all, below a directory that is not.
func (sb *Sandbox) writeFile(name string, data []byte) error {
	path := filepath.Join(sb.dir, name)
	if err := atomicfile.Write(sb.m.disk.disk(), path, data, 0o644); err != nil {
		return err
	}
	root := int(sb.plan.UserNS.Outside(0))                                 // who is root in the pod, as the files are elsewhere
	err := errors.Join(os.Chmod(path, 0o644), os.Lchown(path, root, root)) // whatever our umask is
	if err != nil {
		return err
	}
	return labelFile(path, sb.record.Labels.Mount)
}

// mountShm mounts the tmpfs that all containers of the pod share as /dev/shm. It is the one file system
// that the daemon attaches in the host's namespace: it must outlive both the containers, which come and go,
// and the daemon, so somebody has to hold it, and the monitor is not given anything to hold that it does not
// need to run processes.
func (sb *Sandbox) mountShm() error {
	if sb.plan.HostIPC {
		return nil
	}
	if err := os.Mkdir(sb.shmDir(), 0o700); err != nil {
		return err
	}
	options := fmt.Sprintf("mode=1777,uid=%[1]d,gid=%[1]d,size=%s", sb.plan.UserNS.Outside(0), shmSize)
	if l := sb.record.Labels.Mount; l != "" {
		options += `,context="` + l + `"` // with its commas
	}
	if err := unix.Mount("shm", sb.shmDir(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount shm: %w", err)
	}
	return nil
}

// files returns what containers of the pod see of it.
func (sb *Sandbox) files() spec.Files {
	f := spec.Files{
		ResolvConf: filepath.Join(sb.dir, "resolv.conf"), Hostname: filepath.Join(sb.dir, "hostname"),
		Hosts: filepath.Join(sb.dir, "hosts"), Shm: sb.shmDir(),
	}
	if sb.plan.HostIPC {
		f.Shm = "/dev/shm"
	}
	return f
}

// readHostFile reads a file of the host that the administrator writes; links are fine.
func readHostFile(path string, limit int64) ([]byte, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	return atomicfile.Read(unix.AT_FDCWD, real, limit)
}
