package program

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// ErrRule is wrapped by what Check returns.
var ErrRule = errors.New("program breaks a rule")

// Check proves rules over a program, whoever compiled it:
//
//   - it makes no calls but those that the rules know;
//   - it executes something, and what follows the seccomp filter is only that;
//   - it has left the old root, given up groups, ids and capabilities, looked
//     where it is and closed its descriptors, in this order, before it executes,
//     and no way through the program leads around one of these;
//   - the listener of a filter that notifies is handed over at once, and nothing
//     else is;
//   - every descriptor that it opens is closed by execve;
//   - before the pivot, or an exec's join, no path is used but single components below a
//     descriptor, openat2 confined to the root or to what lies beneath another
//     descriptor of the program's, and the few paths of the monitor's own namespace
//     (rule R1 of the security page);
//   - what is mounted in the new root cannot propagate out of it;
//   - nothing but the five fixed descriptors, and those that the process is to have,
//     is open while it waits;
//   - it writes to nothing but the report pipe and, whole, files of a procfs of
//     its own that are its process's or a namespace's; it sends nothing but one
//     descriptor over a socket of its file table;
//   - what becomes its stdio is a terminal that came from its own master and was
//     looked at, and it changes nothing of its data that a rule has read;
//   - it waits for nobody but its parent, before the descriptors are closed (a
//     gate) or once behind, and only after it has reported just that;
//   - it forks once at most, a sibling that goes on in its place before anything but
//     namespaces was changed;
//   - it joins no mount namespace but a container's, for an exec, and nothing once
//     its own root is at work;
//   - a failure of a protection is never passed over, and a mask or a mount is
//     left out only where its path does not exist.
func Check(p *step.Program) error {
	c := &checker{p: p, flags: p.Clone, hop: -1, entry: slices.IndexFunc(p.Steps, entersRoot)}
	if i := slices.IndexFunc(p.Steps, func(s step.Step) bool { return s.Nr == unix.SYS_CLONE3 }); i >= 0 {
		if err := c.hops(i); err != nil {
			return err
		}
	}
	rules := [...]func(int, *step.Step) error{c.known, c.closes, c.confined, c.strict, c.jumps, c.reports, c.enters, c.terminals, c.stores, c.hands, c.writes}
	executes, filtered := false, false
	for i := range p.Steps {
		s := &p.Steps[i]
		executes = executes || s.Nr == unix.SYS_EXECVE || s.Nr == unix.SYS_EXECVEAT
		if filtered && s.Nr != unix.SYS_EXECVE && s.Nr != unix.SYS_EXECVEAT && s.Nr < step.OpExpect {
			return c.broken(i, "call after the seccomp filter")
		}
		filtered = filtered || s.Nr == unix.SYS_SECCOMP
		for _, rule := range rules {
			if err := rule(i, s); err != nil {
				return err
			}
		}
	}
	if !executes {
		return fmt.Errorf("nothing is executed: %w", ErrRule)
	}
	return errors.Join(c.spine(), c.private(), c.waits())
}

type checker struct {
	p     *step.Program
	entry int       // index of the step that enters the container's root, or -1
	hop   int       // index of a second clone, or -1
	flags uint64    // of the namespaces that one of the clones makes
	met   [8]uint64 // a bit for each call that is known: a program makes few, often
}

func (c *checker) broken(i int, what string) error {
	return fmt.Errorf("step %d (%s): %s: %w", i, c.p.Steps[i].Name, what, ErrRule)
}

// closes demands close-on-exec of every call that makes a descriptor.
func (c *checker) closes(i int, s *step.Step) error {
	flag, ok := uint64(0), true
	switch s.Nr {
	case unix.SYS_OPENAT2:
		flag = c.word(s.Args[2], 0) & unix.O_CLOEXEC
	case unix.SYS_OPEN_TREE:
		flag = s.Args[2].Val & unix.OPEN_TREE_CLOEXEC
	case unix.SYS_FSOPEN:
		flag = s.Args[1].Val & unix.FSOPEN_CLOEXEC
	case unix.SYS_FSPICK:
		flag = s.Args[2].Val & unix.FSPICK_CLOEXEC
	case unix.SYS_FSMOUNT:
		flag = s.Args[1].Val & unix.FSMOUNT_CLOEXEC
	case unix.SYS_SOCKET:
		flag = s.Args[1].Val & unix.SOCK_CLOEXEC
	case unix.SYS_IOCTL:
		if s.Args[1] != val(unix.TIOCGPTPEER) {
			return nil
		}
		flag = s.Args[2].Val & unix.O_CLOEXEC
	case unix.SYS_OPEN, unix.SYS_OPENAT, unix.SYS_DUP, unix.SYS_DUP2, unix.SYS_PIPE, unix.SYS_PIPE2:
		ok = false
	default:
		return nil
	}
	if !ok || flag == 0 {
		return c.broken(i, "descriptor that survives execve")
	}
	return nil
}

// ownPaths are the paths that a program may name before its pivot.
var ownPaths = []string{"/", ScratchRoot, EmptyDir, NullFile}

// entersRoot says whether names mean the container's from a step on: the pivot of a
// container, the join of an exec.
func entersRoot(s step.Step) bool {
	return s.Nr == unix.SYS_PIVOT_ROOT || s.Nr == unix.SYS_SETNS && s.Args[1].Kind == step.Const && s.Args[1].Val&unix.CLONE_NEWNS != 0
}

// confined demands, until the container's root is entered, that no path leads
// through it or through anybody else's tree by name.
func (c *checker) confined(i int, s *step.Step) error {
	if i >= c.entry {
		return nil
	}
	switch s.Nr {
	case unix.SYS_OPENAT2:
		r := c.word(s.Args[2], 16)
		if r&below == below && s.Args[0].Kind == step.Reg {
			return c.component(i, s.Args[0], s.Args[1])
		}
		if r&beneath == beneath && s.Args[0].Kind == step.Reg || c.clockLink(i, s) {
			return nil
		}
		if s.Args[0] != rootFD || r&unix.RESOLVE_NO_MAGICLINKS == 0 || r&(unix.RESOLVE_IN_ROOT|unix.RESOLVE_BENEATH) == 0 {
			return c.broken(i, "path that may leave the root")
		}
	case unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR, unix.SYS_STATX, unix.SYS_FSPICK:
		return c.named(i, s.Args[0], s.Args[1])
	case unix.SYS_MOVE_MOUNT:
		return errors.Join(c.named(i, s.Args[0], s.Args[1]), c.named(i, s.Args[2], s.Args[3]))
	case unix.SYS_FCHOWNAT, unix.SYS_NEWFSTATAT:
		if s.Args[0].Kind == step.Reg && c.text(s.Args[1]) == "" && slices.Contains(s.Args[:], val(unix.AT_EMPTY_PATH)) {
			return nil // the descriptor itself
		}
		return c.component(i, s.Args[0], s.Args[1])
	case unix.SYS_MKDIRAT, unix.SYS_MKNODAT:
		return c.component(i, s.Args[0], s.Args[1])
	case unix.SYS_SYMLINKAT:
		return c.component(i, s.Args[1], s.Args[2])
	case unix.SYS_UMOUNT2, unix.SYS_CHDIR: // of what takes paths, known allows these
		return c.broken(i, "call that takes a path by name")
	}
	return nil
}

// named allows a descriptor with an empty path, or one of our own paths.
func (c *checker) named(i int, dir, path step.Arg) error {
	name := c.text(path)
	if dir == val(atFDCWD) {
		if !slices.Contains(ownPaths, name) {
			return c.broken(i, "path of another's file tree")
		}
		return nil
	}
	if name != "" {
		return c.broken(i, "path below a descriptor")
	}
	return nil
}

// component allows one name below a descriptor that the program has opened.
func (c *checker) component(i int, dir, name step.Arg) error {
	n := c.text(name)
	if dir.Kind != step.Reg || n == "" || n == "." || n == ".." || bytes.ContainsRune([]byte(n), '/') {
		return c.broken(i, "more than one component")
	}
	return nil
}

// waits demands that everything but the fixed descriptors is closed before the
// start wait.
func (c *checker) waits() error {
	if c.p.Wait == step.NoWait {
		return nil
	}
	for i := c.p.Wait - 1; i >= 0; i-- {
		switch s := &c.p.Steps[i]; s.Nr {
		case unix.SYS_CLOSE_RANGE:
			if c.closesAll(s) {
				return nil
			}
		case unix.SYS_WRITE, step.OpExpect, step.OpSet:
		default:
			return c.broken(i, "call between the closing of descriptors and the start wait")
		}
	}
	return fmt.Errorf("start wait with open descriptors: %w", ErrRule)
}

func (c *checker) word(a step.Arg, off uint64) uint64 {
	if a.Kind != step.Addr || a.Val+off+8 > uint64(len(c.p.Data)) {
		return 0
	}
	return binary.NativeEndian.Uint64(c.p.Data[a.Val+off:])
}

// text returns the string that an argument points to; what is not a string is
// shown as something that no rule allows.
func (c *checker) text(a step.Arg) string {
	if a.Kind != step.Addr || a.Val >= uint64(len(c.p.Data)) {
		return "/not/a/string"
	}
	s, _, ok := bytes.Cut(c.p.Data[a.Val:], []byte{0})
	if !ok {
		return "/not/a/string"
	}
	return string(s)
}
