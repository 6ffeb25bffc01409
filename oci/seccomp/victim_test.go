package seccomp

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The victim is this test binary, started again. It puts a filter over one thread and makes system calls from it.

const victimEnv = "VITRINE_SECCOMP_VICTIM"

func init() {
	if os.Getenv(victimEnv) != "" {
		runtime.LockOSThread() // the first thread stays the main goroutine's: a process does not lose it when it ends
	}
}

func TestMain(m *testing.M) {
	switch os.Getenv(victimEnv) {
	case "":
		os.Exit(m.Run())
	case "calls":
		victimCalls()
	case "load":
		victimLoad()
	case "answers":
		victimAnswers()
	case "notify":
		victimNotify()
	}
	os.Exit(0)
}

// assignment is what the victim reads from fd 3, and verdicts what it writes to fd 4, all numbers native.
type assignment struct {
	filters []*Filter
	calls   []kernelCall
}

// kernelCall is a call to make. Compat calls go through int 0x80, with five arguments. In the mode "answers" the number of its filter stands above
// the lowest bit of Compat.
type kernelCall struct {
	Compat uint64
	Number uint64
	Args   [6]uint64
}

// startVictim runs the test binary as a victim and gives what it wrote.
func startVictim(t testing.TB, mode string, o assignment) []byte {
	t.Helper()
	out, msg, err := runVictim(t, mode, o)
	if err != nil {
		t.Fatalf("victim: %v\n%s", err, msg)
	}
	return out
}

// exitOf says how a victim ended that made calls under a filter which allows everything in the native ABI.
func exitOf(t testing.TB, calls []kernelCall) string {
	t.Helper()
	f, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := runVictim(t, "calls", assignment{filters: []*Filter{f}, calls: calls}); err != nil {
		return err.Error()
	}
	return ""
}

func runVictim(t testing.TB, mode string, o assignment) (out, msg []byte, err error) {
	t.Helper()
	var in bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&in, binary.NativeEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	put(uint32(len(o.filters)))
	for _, f := range o.filters {
		put(f.Flags)
		put(uint32(len(f.Insns)))
		in.Write(f.Bytes())
	}
	put(uint32(len(o.calls)))
	put(o.calls)

	inFile, outFile := memfd(t, in.Bytes()), memfd(t, nil)
	defer inFile.Close()
	defer outFile.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), victimEnv+"="+mode, "GODEBUG=asyncpreemptoff=1", "GOGC=off")
	cmd.ExtraFiles = []*os.File{inFile, outFile}
	if msg, err = cmd.CombinedOutput(); err != nil {
		return nil, msg, err
	}
	out, err = io.ReadAll(io.NewSectionReader(outFile, 0, 1<<30))
	return out, msg, err
}

func memfd(t testing.TB, content []byte) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("victim", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "victim")
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

// results makes the calls under a filter (nil: none) and gives their errnos.
func results(t testing.TB, f *Filter, calls []kernelCall) []syscall.Errno {
	t.Helper()
	o := assignment{calls: calls}
	if f != nil {
		o.filters = []*Filter{f}
	}
	b := startVictim(t, "calls", o)
	if len(b) != 8*len(calls) {
		t.Fatalf("victim answered %d of %d calls", len(b)/8, len(calls))
	}
	list := make([]syscall.Errno, len(calls))
	for i := range list {
		list[i] = syscall.Errno(binary.NativeEndian.Uint64(b[8*i:]))
	}
	return list
}

func die(what string, err error) {
	fmt.Fprintln(os.Stderr, what, err)
	os.Exit(3)
}

// readOrder is the victim's side of startVictim.
func readOrder() (flags []uint64, programs [][]byte, calls []kernelCall) {
	b, err := os.ReadFile("/proc/self/fd/3")
	if err != nil {
		die("read order:", err)
	}
	in := bytes.NewReader(b)
	get := func(v any) {
		if err := binary.Read(in, binary.NativeEndian, v); err != nil {
			die("read order:", err)
		}
	}
	var n uint32
	for get(&n); n > 0; n-- {
		var f uint64
		var l uint32
		get(&f)
		get(&l)
		p := make([]byte, 8*l)
		get(p)
		flags, programs = append(flags, f), append(programs, p)
	}
	get(&n)
	calls = make([]kernelCall, n)
	get(calls)
	return flags, programs, calls
}

// load puts a filter over the calling thread, which is locked.
func load(flags uint64, program []byte) syscall.Errno {
	fprog := unix.SockFprog{Len: uint16(len(program) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	_, _, e := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&fprog)))
	return e
}

func victimCalls() {
	flags, programs, calls := readOrder()
	out := make([]uint64, len(calls))
	done, tid := make(chan struct{}), make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			die("no_new_privs:", err)
		}
		for i, p := range programs {
			if e := load(flags[i], p); e != 0 {
				die("load:", e)
			}
		}
		for i, c := range calls {
			out[i] = uint64(makeCall(c))
		}
		close(done)
		select {} // the thread stays as it is until the process ends
	}()
	for task := fmt.Sprintf("/proc/self/task/%d", <-tid); ; {
		select {
		case <-done:
		case <-time.After(10 * time.Millisecond):
			if _, err := os.Stat(task); err != nil {
				os.Exit(exitThreadGone)
			}
			continue
		}
		break
	}
	if err := binary.Write(os.NewFile(4, "out"), binary.NativeEndian, out); err != nil {
		die("write:", err)
	}
}

// exitThreadGone is the victim's status if the thread under the filter ended and the process did not.
const exitThreadGone = 42

// victimAnswers makes the calls of each filter on a thread of its own.
func victimAnswers() {
	flags, programs, calls := readOrder()
	out := make([]uint64, len(calls))
	for i, p := range programs {
		done := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
				die("no_new_privs:", err)
			}
			if e := load(flags[i], p); e != 0 {
				die("load:", e)
			}
			for n, c := range calls {
				if c.Compat>>1 == uint64(i) {
					c.Compat &= 1
					out[n] = uint64(makeCall(c))
				}
			}
			close(done)
			select {}
		}()
		<-done
	}
	if err := binary.Write(os.NewFile(4, "out"), binary.NativeEndian, out); err != nil {
		die("write:", err)
	}
}

func makeCall(c kernelCall) syscall.Errno {
	if c.Compat != 0 {
		return int80(c)
	}
	_, _, e := syscall.RawSyscall6(uintptr(c.Number), uintptr(c.Args[0]), uintptr(c.Args[1]), uintptr(c.Args[2]), uintptr(c.Args[3]), uintptr(c.Args[4]), uintptr(c.Args[5]))
	return e
}

// victimLoad loads each filter 40 times on threads of their own, in turns, and writes the times in ns; then the time of an allowed call under each.
func victimLoad() {
	flags, programs, _ := readOrder()
	out := os.NewFile(4, "out")
	for range 40 {
		for i, p := range programs {
			took := make(chan [3]uint64)
			go func() {
				runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
				if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
					die("no_new_privs:", err)
				}
				start := time.Now()
				if e := load(flags[i], p); e != 0 {
					die("load:", e)
				}
				r := [3]uint64{uint64(time.Since(start))}
				r[1] = perCall(unix.SYS_GETPPID, 0)
				r[2] = perCall(unix.SYS_PERSONALITY, 0xffffffff)
				took <- r
			}()
			if err := binary.Write(out, binary.NativeEndian, <-took); err != nil {
				die("write:", err)
			}
		}
	}
}

// perCall gives tenths of a ns.
func perCall(number, arg uintptr) uint64 {
	const n = 5000
	start := time.Now()
	for range n {
		syscall.RawSyscall(number, arg, 0, 0)
	}
	return uint64(time.Since(start)) * 10 / n
}
