package program

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// process compiles what a process is given: the same for the init of a
// container and for a later exec.
type process struct {
	*builder
	spec    *specs.Process
	seccomp []byte
	flags   uint64 // of the seccomp filter
	cwd     string
	exec    bool // a further process in a running container
	domain  *specs.LinuxPersonality
	memory  *specs.LinuxMemoryPolicy

	keepGroups bool // setgroups is not allowed in the user namespace

	path string // of the file to execute, or "" for the first argument's
	keep []int  // files of the table that become descriptors 3 and up
}

// compile adds everything from the limits to the execve, with a start wait
// before the point of no return if wait is set.
func (b process) compile(wait bool) error {
	if len(b.spec.Args) == 0 {
		return fmt.Errorf("process.args: empty: %w", ErrInvalid)
	}
	if len(b.seccomp)%8 != 0 || len(b.seccomp) > 8*4096 {
		return fmt.Errorf("seccomp filter of %d bytes: %w", len(b.seccomp), ErrInvalid)
	}
	if !path.IsAbs(b.spec.Cwd) || strings.ContainsRune(b.spec.Cwd, 0) || len(b.spec.Cwd) >= unix.PathMax {
		return fmt.Errorf("process.cwd: %.100q: %w", b.spec.Cwd, ErrInvalid)
	}
	if err := b.rlimits(); err != nil {
		return err
	}
	if err := b.schedule(); err != nil {
		return err
	}
	b.cwd = path.Clean(b.spec.Cwd) // as the directory was made: a/../b does not need an a
	b.keyLabel(b.spec.SelinuxLabel)
	b.call("join a session keyring of its own", unix.SYS_KEYCTL, val(unix.KEYCTL_JOIN_SESSION_KEYRING), val(0)).ok(unix.ENOSYS)
	b.keyLabel("\n") // and no others
	b.call("enter the working directory", unix.SYS_CHDIR, b.str(b.cwd)).to(rCwd).ok(unix.EACCES).ok(unix.EPERM)
	if err := b.credentials(); err != nil {
		return err
	}
	b.directory()
	umask := uint32(0o022)
	if b.spec.User.Umask != nil {
		umask = *b.spec.User.Umask
	}
	b.call("set the umask", unix.SYS_UMASK, val(umask&0o777))
	b.call("let all signals through", unix.SYS_RT_SIGPROCMASK, val(unix.SIG_SETMASK), b.words(0), val(0), val(8))
	b.labels()
	if len(b.keep) > 0 && !wait {
		return fmt.Errorf("preserved descriptors without a start wait: %w", ErrInvalid)
	}
	b.hold()
	b.call("close what is no longer needed", unix.SYS_CLOSE_RANGE, val(step.FirstFD+len(b.keep)), val(uint64(^uint32(0))), val(0))
	if wait {
		b.wait()
	}
	b.pass()
	b.filter()
	return b.execute()
}

var rlimitNumbers = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_STACK": unix.RLIMIT_STACK,
	"RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// Rlimit returns the kernel's number of a limit of the spec.
func Rlimit(name string) (number int, known bool) {
	n, known := rlimitNumbers[name]
	return n, known
}

// rlimits sets the limits that the spec names. RLIMIT_NOFILE has to be among
// them: the Go runtime of the monitor has raised its own soft limit, and a
// program that selects over 1024 descriptors would inherit that.
func (b process) rlimits() error {
	seen := map[string]bool{}
	for i, r := range b.spec.Rlimits {
		n, ok := rlimitNumbers[r.Type]
		if !ok || seen[r.Type] {
			return fmt.Errorf("process.rlimits[%d].type: %q: %w", i, r.Type, ErrInvalid)
		}
		if r.Soft > r.Hard {
			return fmt.Errorf("process.rlimits[%d]: soft limit %d above hard limit %d: %w", i, r.Soft, r.Hard, ErrInvalid)
		}
		seen[r.Type] = true
		b.call("set "+r.Type, unix.SYS_PRLIMIT64, val(0), val(n), b.words(r.Soft, r.Hard), val(0))
	}
	if !seen["RLIMIT_NOFILE"] {
		return fmt.Errorf("process.rlimits: RLIMIT_NOFILE is missing: %w", ErrInvalid)
	}
	return nil
}

// credentials drops what the process is not to have. The order is forced:
// the bounding set needs CAP_SETPCAP, the ids need CAP_SETUID and CAP_SETGID,
// and a filter without no_new_privs needs CAP_SYS_ADMIN, which is kept in the
// effective set until execve computes the sets anew from the bounding set (for
// uid 0) or from the ambient set (for everybody else).
func (b process) credentials() error {
	caps, err := parseCapabilities(b.spec.Capabilities)
	if err != nil {
		return err
	}
	b.call("give up ambient capabilities", unix.SYS_PRCTL, val(unix.PR_CAP_AMBIENT), val(unix.PR_CAP_AMBIENT_CLEAR_ALL), val(0), val(0), val(0))
	var last label
	for n := range 64 {
		if caps.bounding&(1<<n) != 0 {
			continue
		}
		// EINVAL: this kernel has fewer capabilities, and none with a higher number.
		b.call("drop "+capabilityName(n), unix.SYS_PRCTL, val(unix.PR_CAPBSET_DROP), val(n), val(0), val(0), val(0)).on(unix.EINVAL, &last)
	}
	b.here(&last)
	b.call("keep capabilities over the change of user", unix.SYS_PRCTL, val(unix.PR_SET_KEEPCAPS), val(1), val(0), val(0), val(0))
	if err := b.ids(); err != nil {
		return err
	}
	if b.spec.NoNewPrivileges {
		b.call("never gain privileges", unix.SYS_PRCTL, val(unix.PR_SET_NO_NEW_PRIVS), val(1), val(0), val(0), val(0))
	} else if len(b.seccomp) > 0 {
		caps.effective |= 1 << unix.CAP_SYS_ADMIN
		caps.permitted |= 1 << unix.CAP_SYS_ADMIN
	}
	b.capset(caps)
	for n := range 64 {
		if caps.ambient&(1<<n) != 0 {
			b.call("raise ambient "+capabilityName(n), unix.SYS_PRCTL, val(unix.PR_CAP_AMBIENT), val(unix.PR_CAP_AMBIENT_RAISE), val(n), val(0), val(0))
		}
	}
	return nil
}

func (b process) ids() error {
	u := b.spec.User
	if u.UID == ^uint32(0) || u.GID == ^uint32(0) {
		return fmt.Errorf("process.user: id 4294967295 means no id to the kernel: %w", ErrInvalid)
	}
	if len(u.AdditionalGids) > 65536 || slices.Contains(u.AdditionalGids, ^uint32(0)) { // NGROUPS_MAX
		return fmt.Errorf("process.user.additionalGids: %d groups: %w", len(u.AdditionalGids), ErrInvalid)
	}
	groups := make([]byte, 0, 4*len(u.AdditionalGids)+4)
	for _, g := range u.AdditionalGids {
		groups = binary.NativeEndian.AppendUint32(groups, g)
	}
	list := b.bytes(append(groups, 0, 0, 0, 0)) // never empty, so that it has an address
	set := b.call("set the groups", unix.SYS_SETGROUPS, val(len(u.AdditionalGids)), list)
	if b.keepGroups {
		if len(u.AdditionalGids) > 0 {
			return fmt.Errorf("process.user.additionalGids: in a user namespace that denies setgroups: %w", ErrInvalid)
		}
		set.ok(unix.EPERM)
	}
	b.call("set the gid", unix.SYS_SETRESGID, val(u.GID), val(u.GID), val(u.GID))
	b.call("set the uid", unix.SYS_SETRESUID, val(u.UID), val(u.UID), val(u.UID))
	return nil
}

func (b process) capset(c capabilities) {
	var hdr, data []byte
	hdr = binary.NativeEndian.AppendUint32(hdr, unix.LINUX_CAPABILITY_VERSION_3)
	hdr = binary.NativeEndian.AppendUint32(hdr, 0)
	for shift := 0; shift < 64; shift += 32 {
		for _, set := range []uint64{c.effective, c.permitted, c.inheritable} {
			data = binary.NativeEndian.AppendUint32(data, uint32(set>>shift))
		}
	}
	b.call("set the capabilities", unix.SYS_CAPSET, b.bytes(hdr), b.bytes(data))
}

// directory tries the working directory again as the user if root was not let
// in (a home on a file server), and makes sure that it is inside: a leaked
// descriptor as working directory would read "(unreachable)/..."
// (CVE-2024-21626).
func (b process) directory() {
	var in label
	b.expect("see whether it was entered", reg(rCwd), 0, ^uint64(0), unix.EACCES).then(&in).ok(unix.EACCES)
	b.call("enter the working directory as the user", unix.SYS_CHDIR, b.str(b.cwd))
	b.here(&in)
	buf := b.room(unix.PathMax)
	b.call("ask where it is", unix.SYS_GETCWD, buf, val(unix.PathMax))
	b.expect("be inside the root", mem8(buf), '/', 0xff, unix.EXDEV)
}

// wait reports the milestone and blocks until the monitor writes one byte. End
// of file means that the monitor has died, and is not a start.
func (b process) wait() {
	b.p.Wait = b.milestone("report that everything is ready", "wait for the start")
}

// filter loads the seccomp filter. Only execve and the pseudo calls follow, so
// a profile need not allow anything for our sake but execve itself. The listener
// of one that notifies is handed over without a call, too: the profile may ask
// its holder about any.
func (b process) filter() {
	if len(b.seccomp) == 0 {
		return
	}
	var fprog []byte // struct sock_fprog: length, padding, pointer
	fprog = binary.NativeEndian.AppendUint16(fprog, uint16(len(b.seccomp)/8))
	fprog = append(fprog, make([]byte, 14)...)
	at := b.room(len(fprog))
	copy(b.p.Data[at.Val:], fprog)
	b.point(at.Val+8, b.bytes(b.seccomp))
	o := b.call("load the seccomp filter", unix.SYS_SECCOMP, val(unix.SECCOMP_SET_MODE_FILTER), val(b.flags), at)
	if b.flags&unix.SECCOMP_FILTER_FLAG_NEW_LISTENER != 0 {
		o.to(rAny)
		b.call("hand its listener over", step.OpHand, reg(rAny))
	}
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// execute tries the candidates for the first argument in the order of $PATH. As
// with execvp(3), a candidate that may not be executed is remembered, and
// reported if no other one is found.
func (b process) execute() error {
	arg0 := cmp.Or(b.path, b.spec.Args[0])
	for _, s := range [][]string{b.spec.Args, b.spec.Env} {
		for i, a := range s {
			if strings.ContainsRune(a, 0) {
				return fmt.Errorf("process: argument or variable %d has a NUL: %w", i, ErrInvalid)
			}
		}
	}
	if arg0 == "" {
		return fmt.Errorf("process.args[0]: empty: %w", ErrInvalid)
	}
	argv, envp := b.vector(b.spec.Args), b.vector(b.spec.Env)
	if strings.Contains(arg0, "/") {
		b.call("execute "+arg0, unix.SYS_EXECVE, b.str(arg0), argv, envp)
		return nil
	}
	b.call("nothing was denied so far", step.OpSet, val(0)).to(rExec)
	for _, p := range candidates(b.spec, arg0) {
		var next label
		b.call("execute "+p, unix.SYS_EXECVE, b.str(p), argv, envp).on(unix.ENOENT, &next).on(unix.ENOTDIR, &next).on(unix.ELOOP, &next).ok(unix.EACCES)
		b.call("remember the denial", step.OpSet, val(uint64(unix.EACCES))).to(rExec)
		b.here(&next)
	}
	b.expect("execute "+arg0+" from $PATH", reg(rExec), 0, ^uint64(0), unix.EACCES)
	b.never("find "+arg0+" in $PATH", unix.ENOENT)
	return nil
}

// candidates are the files that $PATH makes of a name, each once. An empty or
// relative element is taken from the working directory. What is longer than the
// kernel takes can be no file.
func candidates(p *specs.Process, name string) (files []string) {
	seen := map[string]bool{}
	for _, dir := range strings.Split(searchPath(p.Env), ":") {
		if !path.IsAbs(dir) {
			dir = path.Join(p.Cwd, dir)
		}
		long := slices.ContainsFunc(strings.Split(dir, "/"), func(part string) bool { return len(part) > unix.NAME_MAX })
		if f := path.Join(dir, name); !long && !seen[f] && len(f) < unix.PathMax {
			seen[f] = true
			files = append(files, f)
		}
	}
	return files
}

// searchPath returns the last PATH of the environment, as the process will see
// it.
func searchPath(env []string) string {
	p := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok && v != "" {
			p = v
		}
	}
	return p
}
