package program

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sysctl"
)

// procfs mounts a proc that is attached nowhere, in rProc, and stays until the
// descriptors are closed. Labels and parameters of the kernel are written through
// it and never through the container's own: nothing of an image or a volume can
// lie over a file in it, so what is written to is what the kernel shows (rule R2;
// CVE-2019-16884, CVE-2021-30465, CVE-2025-52881).
func (b *builder) procfs() {
	if b.proc {
		return
	}
	b.proc = true
	b.call("prepare a procfs of our own", unix.SYS_FSOPEN, b.str("proc"), val(unix.FSOPEN_CLOEXEC)).to(rContext)
	b.call("make it", unix.SYS_FSCONFIG, reg(rContext), val(unix.FSCONFIG_CMD_CREATE), val(0), val(0), val(0))
	b.call("mount it where nobody else gets at it", unix.SYS_FSMOUNT, reg(rContext), val(unix.FSMOUNT_CLOEXEC),
		val(unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)).to(rProc)
	b.closeReg(rContext)
}

// inProcfs is how a file of our procfs is opened. The link "self" is followed.
const inProcfs = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// procWrite writes a value to a file of our procfs, all of it in one call: of
// "1 2" the kernel takes the 1, and says so by the count only.
func (b *builder) procWrite(find, write, path, value string) {
	b.openProc(find, path)
	b.call(write, unix.SYS_PWRITE64, reg(rTarget), b.str(value), val(len(value)), val(0)).to(rAny)
	b.expect(write+", all of it", reg(rAny), uint64(len(value)), ^uint64(0), unix.EINVAL)
	b.closeReg(rTarget)
}

// openProc opens a file of our procfs in rTarget, for writing.
func (b *builder) openProc(find, path string) {
	b.openBelow(find, reg(rProc), path, unix.O_WRONLY, inProcfs, rTarget)
}

// sysctlTypes are the namespaces of the spec that have parameters.
var sysctlTypes = map[sysctl.Namespace]specs.LinuxNamespaceType{
	sysctl.Net: specs.NetworkNamespace, sysctl.IPC: specs.IPCNamespace, sysctl.UTS: specs.UTSNamespace, sysctl.User: specs.UserNamespace,
}

// netDevices makes sure that there is somebody to move them, and a place that is
// not the host's.
func (c *compiler) netDevices() error {
	if len(c.spec.Linux.NetDevices) == 0 {
		return nil
	}
	if !c.in.NetGate {
		return fmt.Errorf("linux.netDevices: nobody is there to move them: %w", ErrUnsupported)
	}
	if !c.owns(specs.NetworkNamespace) {
		return fmt.Errorf("linux.netDevices: the network namespace is the host's: %w", ErrInvalid)
	}
	return nil
}

// owns says whether the container has a namespace of this type that is not the
// host's, its own or shared with others.
func (c *compiler) owns(typ specs.LinuxNamespaceType) bool {
	named := slices.ContainsFunc(c.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == typ })
	return named && !slices.Contains(c.in.Host, typ)
}

// sysctls writes parameters of the container's namespaces, from within them.
// What belongs to the machine, or to a namespace that the spec does not name or
// that is the host's, is refused.
func (c *compiler) sysctls() error {
	l := c.spec.Linux
	if c.spec.Process.ApparmorProfile != "" || c.spec.Process.SelinuxLabel != "" {
		c.procfs() // for the end: there its place is covered
	}
	for _, key := range slices.Sorted(maps.Keys(l.Sysctl)) {
		path, value := sysctl.Path(key), l.Sysctl[key]
		typ, ok := sysctlTypes[sysctl.Of(path)]
		if !ok {
			return fmt.Errorf("linux.sysctl[%.100q]: belongs to no namespace of the container: %w", key, ErrUnsupported)
		}
		if !c.owns(typ) {
			return fmt.Errorf("linux.sysctl[%.100q]: the %s namespace is the host's: %w", key, typ, ErrInvalid)
		}
		if value == "" || len(value) > 4096 || strings.ContainsRune(value, 0) {
			return fmt.Errorf("linux.sysctl[%.100q]: value %.100q: %w", key, value, ErrInvalid)
		}
		c.procfs()
		c.procWrite("find sysctl "+key, fmt.Sprintf("set sysctl %s to %s", key, value), "sys/"+path, value)
	}
	return nil
}

// Files that a label for the next execve is written to. That of AppArmor is its
// own; the other one is that of the first module that has labels.
const (
	apparmorExec = "self/attr/apparmor/exec"
	labelExec    = "self/attr/exec"
	labelKeys    = "self/attr/keycreate"
)

// maxLabel keeps a label within the page that the kernel reads.
const maxLabel = 4000

// checkLabels refuses what would not arrive as it stands.
func checkLabels(p *specs.Process) error {
	if err := checkLabel("process.apparmorProfile", p.ApparmorProfile, maxLabel); err != nil {
		return err
	}
	return checkLabel("process.selinuxLabel", p.SelinuxLabel, maxLabel)
}

func checkLabel(field, value string, most int) error {
	if len(value) > most || strings.TrimSpace(value) != value || strings.ContainsAny(value, "\x00\n") {
		return fmt.Errorf("%s: %.100q: %w", field, value, ErrInvalid)
	}
	return nil
}

// keyLabel gives the session keyring the label of the process, who could not
// use it with the monitor's; none without one.
func (b process) keyLabel(label string) {
	if b.spec.SelinuxLabel == "" {
		return
	}
	write := "label keyrings as before"
	if label != "\n" {
		write = "label the keyring " + label
		// No filesystem of this name, no SELinux: whoever else has labels would take
		// this one for its own.
		b.call("find SELinux in this kernel, for label "+label, unix.SYS_FSOPEN, b.str("selinuxfs"), val(unix.FSOPEN_CLOEXEC)).to(rContext)
		b.closeReg(rContext)
	}
	b.procWrite("find the label of keyrings", write, labelKeys, label)
}

// labels has the process run under its AppArmor profile and SELinux label from
// its execve on. Only the task itself may write that.
func (b process) labels() {
	if l := b.spec.SelinuxLabel; l != "" {
		b.procWrite("find the SELinux label of the execve", "run under SELinux label "+l, labelExec, l)
	}
	if p := b.spec.ApparmorProfile; p != "" {
		b.procWrite("find AppArmor in this kernel, for profile "+p, "run under AppArmor profile "+p, apparmorExec, "exec "+p)
	}
}
