package machine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

const qemuProgram = "qemu-system-x86_64"

// qemu is one running QEMU. It is killed by the kernel when our process dies, however it dies.
type qemu struct {
	cmd  *exec.Cmd
	port *os.File      // our end of the agent's port
	done chan struct{} // closed when QEMU has ended
	err  error         // why; valid after done
}

// launch is what a QEMU is started with.
type launch struct {
	accel  string // tcg or kvm
	kernel string
	initrd string // "" for none
	disk   string // "" for none
	serial string // file that takes the serial console; appended to
	append string // kernel arguments
	memory int    // MiB
	cpus   int
	nice   int
}

// baseArguments are those of every guest: no mitigations (they cost twice under emulation and protect nobody here), a panic that
// ends QEMU instead of waiting for a key, complaints on the serial console. /tmp stays on the disk, as on Debian 12 and where the tests are
// otherwise run: as Debian 13's tmpfs it is nodev, and a root filesystem made there has no devices.
const baseArguments = "console=ttyS0 root=/dev/vda rw mitigations=off panic=-1 oops=panic net.ifnames=0 audit=0 loglevel=4 systemd.mask=tmp.mount " +
	"nowatchdog rcupdate.rcu_cpu_stall_suppress=1 " + // on a busy host a stall says nothing about the guest
	"systemd.show_status=auto systemd.journald.forward_to_console=1 systemd.journald.max_level_console=err"

func (l launch) args() []string {
	a := []string{"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", strconv.Itoa(l.memory), "-smp", strconv.Itoa(l.cpus),
		"-kernel", l.kernel, "-append", l.append, "-chardev", "file,id=console,append=on,path=" + l.serial, "-serial", "chardev:console"}
	if l.accel == "kvm" {
		a = append(a, "-machine", "pc,accel=kvm", "-cpu", "host")
	} else {
		// Four levels of page tables are walked faster than five. SVM stays on, though nothing uses it: without it QEMU 7.2 leaves out the
		// CPUID leaf with the width of addresses, and Linux then prints the paths of mounts as "xxx". Without fast strings, which
		// QEMU has not: kernel and Go would copy byte by byte. A large translation buffer: with the default one the boot evicts its own code.
		a = append(a, "-machine", "pc", "-accel", "tcg,tb-size=2048,thread="+tcgThreads(), "-cpu", "max,la57=off,erms=off,fsrm=off")
	}
	if l.initrd != "" {
		a = append(a, "-initrd", l.initrd)
	}
	if l.disk != "" {
		a = append(a, "-drive", "if=none,id=root,format=raw,cache=none,discard=unmap,file="+l.disk, "-device", "virtio-blk-pci,drive=root,serial=root",
			"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,fd=3", "-device", "virtserialport,chardev=agent,name=vitrine.agent",
			"-device", "virtio-rng-pci")
	}
	return a
}

// start starts QEMU. Its parent is a thread of ours that waits for it: "die with the parent" follows threads, not processes.
func (l launch) start() (*qemu, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make port: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "port")
	defer theirs.Close()
	q := &qemu{port: os.NewFile(uintptr(pair[0]), "port"), done: make(chan struct{})}
	args := append([]string{"-n", strconv.Itoa(l.nice), qemuProgram}, l.args()...)
	q.cmd = exec.Command("nice", args...)
	q.cmd.ExtraFiles = []*os.File{theirs}
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	complaints := &lastBytes{limit: 4096}
	q.cmd.Stderr = complaints
	began := make(chan error)
	go func() { // ends with QEMU
		runtime.LockOSThread()
		err := q.cmd.Start()
		began <- err
		if err != nil {
			return
		}
		err = q.cmd.Wait()
		q.err = fmt.Errorf("QEMU ended: %s", q.cmd.ProcessState)
		if words := complaints.text(); words != "" && err != nil {
			q.err = fmt.Errorf("QEMU ended: %s: %s", q.cmd.ProcessState, words)
		}
		close(q.done)
	}()
	if err := <-began; err != nil {
		q.port.Close()
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	return q, nil
}

// killTime is how long the kernel may take to end a QEMU. One that sits in a system call of a broken KVM never ends.
const killTime = 20 * time.Second

// kill ends QEMU as a power cut ends a machine: what the guest had not yet written to the disk is lost.
func (q *qemu) kill() {
	_ = q.cmd.Process.Kill() // it may have ended already
	select {
	case <-q.done:
	case <-time.After(killTime):
	}
	q.port.Close()
}

// why says how QEMU ended, if it has.
func (q *qemu) why() error {
	select {
	case <-q.done:
		return q.err
	default:
		return errors.New("QEMU runs on though it was killed")
	}
}

// signal sends SIGSTOP or SIGCONT.
func (q *qemu) signal(s syscall.Signal) error { return q.cmd.Process.Signal(s) }

// wait waits for an orderly end.
func (q *qemu) wait(limit time.Duration) error {
	select {
	case <-q.done:
		q.port.Close()
		return nil
	case <-time.After(limit):
		return errors.New("the guest did not end within " + limit.String())
	}
}

// lastBytes keeps the end of what is written to it. QEMU's goroutine writes, and reads happen after its end.
type lastBytes struct {
	limit int
	b     []byte
}

// Write never fails.
func (l *lastBytes) Write(p []byte) (int, error) {
	l.b = append(l.b, p...)
	l.b = l.b[max(0, len(l.b)-l.limit):]
	return len(p), nil
}

func (l *lastBytes) text() string { return tail(l.b, 5) }

var _ io.Writer = (*lastBytes)(nil)
