package program

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// Registers of a terminal. The master lives until it was sent.
const (
	rMaster step.Register = 48
	rSlave  step.Register = 49
)

// masterName goes along with the master, as some receivers want a name for it.
const masterName = "/dev/pts/ptmx"

// consoleSocket is what the file table says of it.
const consoleSocket = "socket for the terminal"

// ttyMajor is the major number of the slaves of Unix98 pseudo terminals (136 to
// 143 are reserved, the kernel uses one), as stat(2) packs it. ttyMajorBits are
// where it stands there.
const (
	ttyMajor     = uint64(136) << 8
	ttyMajorBits = uint64(0xffffffff_000fff00)
)

// terminal makes a pseudo terminal in the devpts that is mounted below root,
// the process's controlling terminal and its stdio, and sends the master over a
// socket of the file table. What a container could have changed is not asked:
// the slave comes from the master itself (TIOCGPTPEER) and never from a path
// (CVE-2025-52565), and what came is looked at before anything is done with it.
// The init of a container gets it as /dev/console as well.
func (b *builder) terminal(p *specs.Process, root step.Arg, socket int, c consolePlace) error {
	size, err := windowSize(p.ConsoleSize)
	if err != nil {
		return err
	}
	b.openBelow("find the pseudo terminals", root, "dev/pts", unix.O_PATH|unix.O_DIRECTORY, inRoot|unix.RESOLVE_NO_SYMLINKS, rTarget)
	b.devpts("find a devpts on /dev/pts", rTarget)
	b.openBelow("make a terminal there", reg(rTarget), "ptmx", unix.O_RDWR|unix.O_NOCTTY, below, rMaster)
	b.closeReg(rTarget)
	b.call("unlock it", unix.SYS_IOCTL, reg(rMaster), val(unix.TIOCSPTLCK), b.words(0))
	b.call("open its other side", unix.SYS_IOCTL, reg(rMaster), val(unix.TIOCGPTPEER), val(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)).to(rSlave)
	number := b.slave("get a terminal from it", rSlave)
	if size != nil {
		b.call("set the size of its window", unix.SYS_IOCTL, reg(rMaster), val(unix.TIOCSWINSZ), b.bytes(size))
	}
	b.call("give it to the user", unix.SYS_FCHOWNAT, reg(rSlave), b.str(""), val(p.User.UID), val(uint64(math.MaxUint32)), val(unix.AT_EMPTY_PATH))
	if c != noConsole {
		b.console(root, number, c)
	}
	for fd, name := range []string{"stdin", "stdout", "stderr"} {
		b.call("make it "+name, unix.SYS_DUP3, reg(rSlave), val(fd), val(0))
	}
	b.closeReg(rSlave)
	b.call("make it the controlling terminal", unix.SYS_IOCTL, val(0), val(unix.TIOCSCTTY), val(0))
	b.send(socket)
	return nil
}

// consolePlace says what a terminal is attached to.
type consolePlace int

const (
	noConsole    consolePlace = iota
	ownConsole                // /dev/console, made if it is missing
	foundConsole              // the same in a /dev that is another's: nothing is made there
)

// below opens a single component of a directory, on the same mount.
const below = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// windowSize is the struct winsize of a size, or nil for none.
func windowSize(box *specs.Box) ([]byte, error) {
	if box == nil {
		return nil, nil
	}
	if box.Height > math.MaxUint16 || box.Width > math.MaxUint16 {
		return nil, fmt.Errorf("process.consoleSize: %d lines of %d columns: %w", box.Height, box.Width, ErrInvalid)
	}
	var w []byte
	for _, n := range []uint{box.Height, box.Width, 0, 0} {
		w = binary.NativeEndian.AppendUint16(w, uint16(n))
	}
	return w, nil
}

// devpts ends the child unless the descriptor is of a devpts.
func (b *builder) devpts(name string, r step.Register) {
	b.expect(name, b.filesystem(r), unix.DEVPTS_SUPER_MAGIC, ^uint64(0), unix.ENODEV)
}

// slave ends the child unless the descriptor is of the slave of a pseudo
// terminal in a devpts. It returns where its device number stands.
func (b *builder) slave(name string, r step.Register) (number step.Arg) {
	const modeAt, devAt = unsafe.Offsetof(unix.Stat_t{}.Mode), unsafe.Offsetof(unix.Stat_t{}.Rdev)
	b.devpts(name, r)
	st := b.room(int(unsafe.Sizeof(unix.Stat_t{})))
	b.call("look at it", unix.SYS_NEWFSTATAT, reg(r), b.str(""), st, val(unix.AT_EMPTY_PATH))
	b.expect(name, mem32(st, modeAt), unix.S_IFCHR, unix.S_IFMT, unix.ENODEV)
	b.expect(name, mem64(st, devAt), ttyMajor, ttyMajorBits, unix.ENODEV)
	return mem64(st, devAt)
}

// console attaches the slave on /dev/console and looks whether it is what
// stands there then.
func (b *builder) console(root, number step.Arg, c consolePlace) {
	b.call("copy it", unix.SYS_OPEN_TREE, reg(rSlave), b.str(""), val(uint64(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH))).to(rMount)
	if c == foundConsole {
		b.openBelow("find /dev/console", root, "dev/console", unix.O_PATH, inRoot|unix.RESOLVE_NO_SYMLINKS, rTarget)
	} else {
		b.target("dev/console", false, inRoot|unix.RESOLVE_NO_SYMLINKS)
	}
	b.attach("mount it on /dev/console")
	b.closeReg(rMount)
	b.closeReg(rTarget)
	b.openBelow("find the console", root, "dev/console", unix.O_PATH, inRoot|unix.RESOLVE_NO_SYMLINKS, rTarget)
	there := b.slave("find a terminal on /dev/console", rTarget)
	b.same("find this terminal on /dev/console", there, number, unix.ENODEV)
	b.closeReg(rTarget)
}

// send passes the master on and closes it. Nobody at the other end is EPIPE.
func (b *builder) send(socket int) {
	iov := b.iovec(masterName)
	control := b.room(unix.SizeofCmsghdr + 8)
	copy(b.p.Data[control.Val:], rights())
	msg := b.room(unix.SizeofMsghdr)
	b.point(msg.Val+uint64(unsafe.Offsetof(unix.Msghdr{}.Iov)), iov)
	binary.NativeEndian.PutUint64(b.p.Data[msg.Val+uint64(unsafe.Offsetof(unix.Msghdr{}.Iovlen)):], 1)
	b.point(msg.Val+uint64(unsafe.Offsetof(unix.Msghdr{}.Control)), control)
	binary.NativeEndian.PutUint64(b.p.Data[msg.Val+uint64(unsafe.Offsetof(unix.Msghdr{}.Controllen)):], unix.SizeofCmsghdr+8)
	b.call("put the master into a message", step.OpStore, reg(rMaster), step.Arg{Kind: step.Addr, Val: control.Val + unix.SizeofCmsghdr}, val(4))
	b.call("send it to whoever asked for a terminal", unix.SYS_SENDMSG, file(socket), msg, val(unix.MSG_NOSIGNAL))
	b.closeReg(rMaster)
}

// rights is the struct cmsghdr of a message that carries one descriptor.
func rights() []byte {
	var h []byte
	h = binary.NativeEndian.AppendUint64(h, unix.SizeofCmsghdr+4)
	h = binary.NativeEndian.AppendUint32(h, unix.SOL_SOCKET)
	return binary.NativeEndian.AppendUint32(h, unix.SCM_RIGHTS)
}

// checkTerminal holds the wish for a terminal against the socket for it.
func checkTerminal(p *specs.Process, socket int) error {
	switch {
	case socket < 0:
		return fmt.Errorf("console socket: descriptor %d: %w", socket, ErrInvalid)
	case p.Terminal && socket == 0:
		return fmt.Errorf("process.terminal: without a socket to send it over: %w", ErrUnsupported)
	case !p.Terminal && socket > 0:
		return fmt.Errorf("process.terminal: false, but there is a socket for one: %w", ErrInvalid)
	}
	return nil
}
