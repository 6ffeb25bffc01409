package crilog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTerminalsLastWords: what was written and closed while a read was on its way is behind an EIO, and is read all the
// same. The writer shares the reader's CPU and goes before it, so that it meets the reader anywhere in its call: on Linux
// 6.1, emulated, one of twenty rounds has an EIO before the words.
func TestTerminalsLastWords(t *testing.T) {
	var at unix.CPUSet
	if err := unix.SchedGetaffinity(0, &at); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !at.IsSet(cpu) {
		cpu++
	}
	speakers := make(chan int)
	var spoken atomic.Bool
	defer close(speakers)
	first := make(chan error)
	go speak(cpu, first, speakers, &spoken) // ends with speakers, and its thread with it
	switch err := <-first; {
	case errors.Is(err, unix.EPERM):
		t.Skip("needs CAP_SYS_NICE: the writer has real-time priority")
	case err != nil:
		t.Fatal(err)
	}
	done := make(chan string)
	go func() { done <- listen(cpu, 300, speakers, &spoken) }()
	if lost := <-done; lost != "" {
		t.Error(lost)
	}
}

// speak writes to each terminal that it is given, at some time, and closes it at once.
func speak(cpu int, first chan<- error, terminals <-chan int, spoken *atomic.Bool) {
	runtime.LockOSThread() // and never unlocked: nobody else is to have the thread
	err := stayOn(cpu)
	if err == nil {
		err = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10, Flags: unix.SCHED_FLAG_RESET_ON_FORK}, 0)
	}
	first <- err
	for fd := range terminals {
		_ = unix.Nanosleep(&unix.Timespec{Nsec: int64(20_000 + rand.IntN(100_000))}, nil)
		_, _ = unix.Write(fd, []byte("last words\n"))
		unix.Close(fd)
		spoken.Store(true)
	}
}

// listen reads so many terminals to their ends, and says what was missing.
func listen(cpu, terminals int, speakers chan<- int, spoken *atomic.Bool) string {
	runtime.LockOSThread()
	if err := stayOn(cpu); err != nil {
		return err.Error()
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -20) // the reader goes on before the kernel's worker has passed on what was written
	lost := 0
	for range terminals {
		master, slave, err := newTerminal()
		if err != nil {
			return err.Error()
		}
		spoken.Store(false)
		speakers <- slave
		in, n := &input{s: &stream{}, need: readSize}, 0
		for !in.eof {
			if in.read(uintptr(master)) && !in.eof {
				n += in.n
				buffers.Put(in.buf)
			}
		}
		if n == 0 {
			lost++
		}
		for !spoken.Load() {
			time.Sleep(time.Millisecond)
		}
		unix.Close(master)
	}
	if lost > 0 {
		return fmt.Sprintf("%d of %d terminals ended without their last words", lost, terminals)
	}
	return ""
}

// stayOn binds the thread to a CPU.
func stayOn(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	return os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinity(0, &set))
}

// newTerminal makes a terminal with a master that does not block.
func newTerminal() (master, slave int, err error) {
	master, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, 0, os.NewSyscallError("open /dev/ptmx", err)
	}
	err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0)
	if err == nil {
		slave, err = peer(master)
	}
	return master, slave, os.NewSyscallError("open terminal", err)
}

func peer(master int) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
