package executor

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// cldExited is CLD_EXITED of siginfo.h: the process ended by itself.
const cldExited = 1

// Child is a process that runs, or ran, a program. Its methods are called by
// one goroutine at a time, in the order Ready, Pass for each gate, Receive,
// Release, Close; Pid and PidFD at any time before Close.
type Child struct {
	pid    int
	pidfd  *sys.FD
	report *os.File // read end: records, EOF at execve
	pipe   *sys.FD  // the same if ready is there, and nil otherwise
	ready  func(fd int) error
	heard  int          // its number, as long as it is open
	start  *sys.FD      // write end: one byte releases the start wait
	wait   int          // index of the start wait, or step.NoWait
	gates  int          // waits before it
	early  *step.Record // of a sibling that was faster than the news of its birth
	at     string       // gate that the child was last seen to wait at
	maps   *sys.IDMaps
	proc   int // procfs directory, or -1
	names  func(int) string
	// hands says that the program hands a descriptor over, handsAt where, and take
	// to whom.
	hands   bool
	handsAt uint64
	take    func(*sys.FD) error
	// attached says that somebody else is the parent.
	attached bool
	allowed  bool // to go on behind the start wait

	childReport, childStart *sys.FD // until the fork is over
}

// StepError says which step of a program failed, and how. Step is negative in
// the executor's own prologue.
type StepError struct {
	Step  int
	Name  string
	Errno unix.Errno
}

// Error says what the step was for and what the kernel said:
// "mount proc on /proc: operation not permitted".
func (e *StepError) Error() string {
	name := e.Name
	if e.Step < 0 {
		name = "arrange descriptors"
	} else if name == "" {
		name = "step " + strconv.Itoa(e.Step)
	}
	return name + ": " + e.Errno.Error()
}

// Unwrap returns the errno, so that errors.Is works with unix.ENOENT and with
// fs.ErrNotExist.
func (e *StepError) Unwrap() error { return e.Errno }

// ErrDied is returned when the child ended before its execve without saying
// why: killed from outside, by its own seccomp filter, or for want of memory.
// The error says which; the status itself is the reaper's to read.
var ErrDied = errors.New("child died before execve")

// Attach returns the Child of somebody else: of a process that has ended, say, and
// whose child waits for its start with FIFOs in place of pipes. report and start are
// ends like those of Pipes, opened before the child is released; program is what it
// runs, to name its steps. Descriptors move to the Child. Release is what it can do.
//
// Such a child may be reaped by its own parent at any time, and with it goes the
// answer to whether it died or executed something that ended. It counts as executed
// then: who fails says so before, and who is killed was not ours to wait for.
func Attach(pid int, pidfd, report, start *sys.FD, program []byte) (*Child, error) {
	v, err := step.Parse(program)
	if err != nil {
		return nil, err
	}
	c := &Child{pid: pid, pidfd: pidfd, start: start, wait: v.Wait, hands: v.Hands, proc: -1, names: v.Name, attached: true}
	c.hear(report)
	return c, nil
}

// Pid returns the child's process id as the parent sees it. After the child
// was reaped the number may belong to somebody else: signal through PidFD.
func (c *Child) Pid() int { return c.pid }

// PidFD returns the descriptor of the child, which stays c's.
func (c *Child) PidFD() *sys.FD { return c.pidfd }

// Ready blocks until the program has reached its first wait: a gate, which At
// tells, or its start wait. For a program without any it blocks until execve
// succeeded. A step that failed is returned as *StepError, a child that vanished as
// ErrDied.
//
// It passes step.GateMaps by itself if there are maps to write.
func (c *Child) Ready() error {
	if err := c.await(); err != nil || c.at != step.GateMaps || c.maps == nil {
		return err
	}
	if err := c.maps.Write(c.proc, c.pid); err != nil {
		return fmt.Errorf("map ids: %w", err)
	}
	return c.Pass()
}

// At returns the gate that the child waits at (step.GateMaps, ...), or "" if it
// waits for its start or was not seen to wait.
func (c *Child) At() string { return c.at }

// Pass ends the wait at a gate and blocks until the next one, as Ready does.
func (c *Child) Pass() error {
	if c.at == "" {
		return fmt.Errorf("pass a gate that nobody waits at: %w", unix.EINVAL)
	}
	c.at = ""
	if err := c.write(); err != nil {
		return err
	}
	return c.await()
}

// Release ends the start wait and blocks until execve succeeded (nil), a step
// failed (*StepError), or the child died (ErrDied). A child at a gate is not
// started.
func (c *Child) Release() error {
	if c.at != "" {
		return fmt.Errorf("start a child that is to %s: %w", c.at, unix.EINVAL)
	}
	return c.release(false)
}

// Run is Release and Ready in one, for a child that nobody lets wait: the start
// is there before the child looks for it, so it costs no change of context. What
// the caller does to the child before Run is done before its execve. A program
// with gates cannot be run so: its first gate would take the start.
func (c *Child) Run() error {
	if c.gates > 0 {
		return fmt.Errorf("run a program with %d gates: %w", c.gates, unix.EINVAL)
	}
	return c.release(true)
}

// release ends the start wait, takes what the child hands over, and blocks until its
// execve. The milestone of that wait is read on the way if nobody has read it yet.
func (c *Child) release(milestone bool) error {
	mem, err := c.open()
	if err != nil {
		return err
	}
	defer mem.Close()
	if err := c.Allow(); err != nil {
		return err
	}
	if milestone {
		if err := c.await(); err != nil {
			return err
		}
	}
	if err := c.receive(mem); err != nil {
		return err
	}
	return c.await()
}

// Allow makes the start wait end as soon as it is reached, so that it costs no change of context:
// Ready and Release then tell what they always do, of a child that waits for neither of them. It may be
// called again. A program with gates is not allowed before Ready has passed them, nor one that hands
// something over before who takes it is there; Allow does not look.
func (c *Child) Allow() error {
	if c.allowed {
		return nil
	}
	c.allowed = true
	err := c.write() // a child that is dead says why elsewhere
	c.start.BriefClose()
	return err
}

// Free says whether Allow can be called before Ready.
func (c *Child) Free() bool { return c.gates == 0 && !c.hands }

func (c *Child) write() error {
	_, err := sys.BriefWrite(c.start.Int(), []byte{1}) // a pipe has room for it
	if err != nil && !errors.Is(err, unix.EPIPE) {
		return os.NewSyscallError("write start pipe", err)
	}
	return nil
}

// Close closes the parent's ends of the pipes and the pidfd. A child that still
// waits for its start then ends by itself: its read returns end of file.
func (c *Child) Close() error {
	if c.report != nil {
		c.report.Close()
	}
	c.pipe.BriefClose()
	c.start.BriefClose()
	c.pidfd.BriefClose()
	return nil
}

func (c *Child) closeChildEnds() {
	c.childReport.BriefClose()
	c.childStart.BriefClose()
}

// hear takes the end that reports come out of.
func (c *Child) hear(report *sys.FD) { c.heard, c.report = report.Int(), report.File("report pipe") }

// await reads one record. Where the end does not block (our own pipes, and those that
// somebody gave us so) it waits in the poller: a thread that sits in read keeps
// the Go scheduler's watchman awake, who looks after it every 20 us and takes a tenth of the
// processor from the child. End of file comes from execve, which closed the
// pipe, or from death.
func (c *Child) await() error {
	rec, err := c.read()
	if errors.Is(err, io.EOF) {
		return c.executed()
	}
	if err != nil {
		return err
	}
	i, errno := int(rec.Step), unix.Errno(rec.Errno)
	if errno == 0 {
		if c.at = ""; i != c.wait {
			c.at = cmp.Or(c.names(i), "step "+strconv.Itoa(i))
		}
		return nil
	}
	return &StepError{Step: i, Name: c.names(i), Errno: errno}
}

// read returns the next record.
func (c *Child) read() (rec step.Record, err error) {
	if c.early != nil {
		rec, c.early = *c.early, nil
		return rec, nil
	}
	var b [step.RecordSize]byte
	for n := 0; n < len(b); {
		k, err := c.fetch(b[n:])
		switch n += k; {
		case err != nil:
			return rec, err // "read report pipe: ..."
		case k == 0 && n == 0:
			return rec, io.EOF
		case k == 0:
			return rec, fmt.Errorf("report of %d bytes: %w", n, ErrDied)
		}
	}
	return step.Record{Step: int32(binary.NativeEndian.Uint32(b[:])), Errno: binary.NativeEndian.Uint32(b[4:])}, nil
}

// fetch reads what the child has reported; nothing and no error is the end, which comes
// with its execve or death.
func (c *Child) fetch(b []byte) (int, error) {
	if c.pipe == nil {
		n, err := c.report.Read(b)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return n, err
	}
	for {
		n, err := sys.BriefRead(c.heard, b)
		if !errors.Is(err, unix.EAGAIN) {
			return n, os.NewSyscallError("read report pipe", err)
		}
		if err := c.ready(c.heard); err != nil {
			return 0, err
		}
	}
}

// executed tells an execve from a death after the pipe was closed, by the flag
// PF_FORKNOEXEC, which execve clears and a zombie keeps. The pipe's end alone
// does not tell: a process that dies closes its descriptors before its parent is
// told, and some kernels (Debian's 6.12.117, seen) close them in execve before
// they clear the flag. So a standing flag is believed only of a zombie; either
// comes at once. The caller must not have reaped the child yet.
func (c *Child) executed() error {
	const forkNoExec = 0x40 // PF_FORKNOEXEC of linux/sched.h
	if flags, err := c.processFlags(); err == nil && flags&forkNoExec == 0 {
		return nil // the rule
	}
	for pause := time.Duration(0); ; pause = min(2*pause+20*time.Microsecond, 10*time.Millisecond) {
		dead, err := c.dead(pause)
		if err != nil {
			return err
		}
		flags, err := c.processFlags()
		switch {
		case c.attached && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)):
			return nil // reaped
		case err != nil:
			return fmt.Errorf("read flags of child: %w", err)
		case flags&forkNoExec == 0:
			return nil
		case dead:
			return c.died()
		}
	}
}

// dead says whether the child ended, at the latest after wait.
func (c *Child) dead(wait time.Duration) (bool, error) {
	p := []unix.PollFd{{Fd: int32(c.pidfd.Int()), Events: unix.POLLIN}}
	timeout := unix.NsecToTimespec(int64(wait))
	n, err := unix.Ppoll(p, &timeout, nil)
	for err == unix.EINTR && wait == 0 { // also who does not wait is told of signals
		n, err = unix.Ppoll(p, &timeout, nil)
	}
	if err != nil && err != unix.EINTR {
		return false, os.NewSyscallError("ppoll pidfd", err)
	}
	return n > 0, nil
}

// died says how the child ended, and leaves it to the reaper. It has closed its
// descriptors already, so the wait is short.
func (c *Child) died() error {
	var si siginfo
	switch errno := c.waitid(&si, unix.WNOWAIT); {
	case errno != 0: // not ours to wait for: it still is dead
		return ErrDied
	case si.code == cldExited:
		return fmt.Errorf("%w: exit status %d", ErrDied, si.status)
	}
	return fmt.Errorf("%w: %s", ErrDied, unix.SignalName(unix.Signal(si.status)))
}

// siginfo is what waitid says of a child.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [100]byte // to the size of siginfo_t
}

// waitid blocks until the child has ended.
func (c *Child) waitid(si *siginfo, options uintptr) unix.Errno {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_PIDFD, uintptr(c.pidfd.Int()), uintptr(unsafe.Pointer(si)), unix.WEXITED|options, 0, 0)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// processFlags reads field 9 of /proc/<pid>/stat. The zombie still has it.
func (c *Child) processFlags() (uint64, error) {
	path := strconv.Itoa(c.pid) + "/stat"
	dir := c.proc
	if dir < 0 {
		dir, path = unix.AT_FDCWD, "/proc/"+path
	}
	fd, err := sys.BriefOpen(dir, path, unix.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	b := make([]byte, 512)
	n, err := sys.BriefRead(fd, b) // all of it, or nothing: procfs has written it down as a whole
	sys.BriefClose(fd)
	if err != nil {
		return 0, err
	}
	// The command name in parentheses may hold spaces and parentheses. Behind it
	// each field has a space in front of it.
	f := b[bytes.LastIndexByte(b[:n], ')')+1 : n]
	for range 7 {
		i := bytes.IndexByte(f, ' ')
		if i < 0 {
			return 0, unix.EINVAL
		}
		f = f[i+1:]
	}
	f = f[:max(0, bytes.IndexByte(f, ' '))]
	return strconv.ParseUint(string(f), 10, 64)
}
