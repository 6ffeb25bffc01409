package program_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// An adversary acts between two steps of a program that runs. The program is
// compiled as always; then a gate is put before each of its steps, which tells
// the test where the child is and waits for its word:
//
//	compiled    step 0                  step 1                  …
//	gated       write read  step 0      write read  step 1      …
//
// The gates use two descriptors at the end of the program's table, so the
// executor is the one that is shipped.

// place is where a gated program stands, as the adversary sees it.
type place struct {
	i    int        // number of the step in the program as compiled
	s    *step.Step // the step that comes next
	path string     // path inside the root that it follows, "" for none
	pid  int        // of the child
	dirs map[step.Register]string
}

// adversary is called before each step. The thread is in the tiny namespace of
// the monitor: it reaches the root by descriptor.
type adversary func(pl place)

// gated puts a gate before each step that at chooses (all, if it is nil). Behind the closing of the descriptors there are none:
// only the execve follows a path there, and it does so inside the new root.
func gated(p *step.Program, at func(s *step.Step) bool) *step.Program {
	out, in := uint64(step.FirstFD+len(p.Files)), uint64(step.FirstFD+len(p.Files)+1)
	last := len(p.Steps)
	for i := range p.Steps {
		if s := &p.Steps[i]; s.Nr == unix.SYS_CLOSE_RANGE && s.Args[0].Kind == step.Const && s.Args[0].Val <= step.FirstFD {
			last = i
			break
		}
	}
	gate := func(i int) bool { return i < last && (at == nil || at(&p.Steps[i])) }
	pos := make([]int, len(p.Steps)+1)
	for i := range p.Steps {
		pos[i+1] = pos[i] + 1
		if gate(i) {
			pos[i+1] += 2
		}
	}
	q := &step.Program{Clone: p.Clone, Wait: p.Wait, Relocs: p.Relocs, Data: append([]byte(nil), p.Data...)}
	q.Files = append(append([]string(nil), p.Files...), "gate", "gate")
	q.Data = append(q.Data, make([]byte, 8-len(q.Data)%8+8*last+8)...)
	recs := len(q.Data) - 8*last - 8
	for i, s := range p.Steps {
		if gate(i) {
			binary.NativeEndian.PutUint32(q.Data[recs+8*i:], uint32(i))
			w := step.Step{Nr: unix.SYS_WRITE, Result: step.NoResult, Name: "gate"}
			w.Args = [6]step.Arg{{Val: out}, {Kind: step.Addr, Val: uint64(recs + 8*i)}, {Val: 8}}
			r := step.Step{Nr: unix.SYS_READ, Result: step.NoResult, Name: "gate"}
			r.Args = [6]step.Arg{{Val: in}, {Kind: step.Addr, Val: uint64(recs + 8*last)}, {Val: 1}}
			q.Steps = append(q.Steps, w, r)
		}
		if s.Nr == unix.SYS_WRITE && s.Args[0].Val == step.ReportFD { // a milestone names its wait, the next step
			rec := make([]byte, step.RecordSize)
			binary.NativeEndian.PutUint32(rec, uint32(pos[i+2]-1))
			s.Args[1] = addData(q, rec)
		}
		skip := func(n uint16) uint16 { return uint16(pos[i+1+int(n)] - pos[i+1]) }
		s.Then = skip(s.Then)
		s.OnErr = append([]step.Branch(nil), s.OnErr...)
		for b := range s.OnErr {
			s.OnErr[b].Skip = skip(s.OnErr[b].Skip)
		}
		q.Steps = append(q.Steps, s)
	}
	if p.Wait >= 0 {
		q.Wait = pos[p.Wait+1] - 1
	}
	return q
}

// text returns the string that an argument points to.
func text(p *step.Program, a step.Arg) string {
	if a.Kind != step.Addr {
		return ""
	}
	s, _, _ := bytes.Cut(p.Data[a.Val:], []byte{0})
	return string(s)
}

// follow returns the path inside the root that a step follows, and keeps in dirs
// what its result stands for.
func follow(p *step.Program, s *step.Step, dirs map[step.Register]string) (path string) {
	below := func(dir, name step.Arg) string {
		switch {
		case dir.Kind == step.Reg:
			return filepath.Join(dirs[step.Register(dir.Val)], text(p, name))
		case dir.Val == step.FirstFD:
			return text(p, name)
		}
		return ""
	}
	switch s.Nr {
	case unix.SYS_OPENAT2, unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_FCHOWNAT, unix.SYS_NEWFSTATAT:
		path = below(s.Args[0], s.Args[1])
	case unix.SYS_SYMLINKAT:
		path = below(s.Args[1], s.Args[2])
	case unix.SYS_MOVE_MOUNT: // by descriptor; the path is what a slip would follow
		if s.Args[2].Kind == step.Reg {
			path = dirs[step.Register(s.Args[2].Val)]
		}
	case unix.SYS_CHDIR:
		path = strings.TrimPrefix(text(p, s.Args[0]), "/")
	case step.OpSet:
		if at, ok := strings.CutPrefix(s.Name, "hold on to /"); ok {
			dirs[s.Result] = at
		} else if a := s.Args[0]; a.Kind == step.Reg {
			dirs[s.Result] = dirs[step.Register(a.Val)]
		} else if s.Result != step.NoResult {
			dirs[s.Result] = ""
		}
	}
	if s.Nr == unix.SYS_OPENAT2 && s.Result != step.NoResult {
		dirs[s.Result] = path
	}
	return path
}

// siege is a container that is made under the eyes of an adversary.
type siege struct {
	stage
	canary string                // directory of the host; in the tiny namespace it is /canary
	weaken func(p *step.Program) // takes a protection out of the compiled program
	act    adversary
	gate   func(s *step.Step) bool // where it acts; nil: everywhere

	prog *step.Program
	root *os.File // of the root, for the adversary
}

// lay runs the container and returns how it ended.
func (s *siege) lay(t *testing.T) (res result) {
	t.Helper()
	p, err := program.Compile(s.in)
	if err != nil {
		return result{err: err}
	}
	if s.weaken != nil {
		s.weaken(p)
	}
	s.prog = p
	enc, err := gated(p, s.gate).Encode()
	if err != nil {
		t.Fatal(err)
	}
	proc, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if s.root, err = os.Open(s.stage.root); err != nil {
		t.Fatal(err)
	}
	defer s.root.Close()
	if err := executor.HideMemory(); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	done, out := make(chan result), make(chan string)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		res := s.inside(enc, proc, w)
		w.Close()
		done <- res
	}()
	go func() { b, _ := io.ReadAll(r); out <- string(b) }()
	res = <-done
	res.out = <-out
	return res
}

// inside runs the program from a thread that becomes the monitor.
func (s *siege) inside(enc []byte, proc, w *os.File) (res result) {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return result{err: err}
	}
	defer null.Close()
	var files []int
	var canary *sys.FD
	mounts, err := tinyNamespace(s.stage.root, s.sources, func() (err error) {
		if s.canary != "" {
			if canary, err = sys.OpenTree(unix.AT_FDCWD, s.canary, unix.OPEN_TREE_CLONE); err != nil {
				return err
			}
		}
		if s.prepare != nil {
			return s.prepare()
		}
		return nil
	})
	if err != nil {
		return result{err: err}
	}
	if canary != nil {
		defer canary.Close()
		if err := errors.Join(unix.Mkdir("/canary", 0o755), unix.MoveMount(canary.Int(), "", unix.AT_FDCWD, "/canary", unix.MOVE_MOUNT_F_EMPTY_PATH)); err != nil {
			return result{err: fmt.Errorf("canary: %w", err)}
		}
	}
	for _, m := range mounts {
		defer m.Close()
		files = append(files, m.Int())
	}
	files = append(files, s.sockets...)
	var out, in [2]int // from the child, to the child
	if err := errors.Join(unix.Pipe2(out[:], unix.O_CLOEXEC), unix.Pipe2(in[:], unix.O_CLOEXEC)); err != nil {
		return result{err: err}
	}
	defer func() { unix.Close(out[0]); unix.Close(in[1]) }()
	c, err := executor.Start(executor.Attr{Program: enc, CgroupFD: -1, PIDNS: -1, ProcFD: int(proc.Fd()),
		Stdio: [3]int{int(null.Fd()), int(w.Fd()), int(w.Fd())}, Files: append(files, out[1], in[0])})
	unix.Close(out[1])
	unix.Close(in[0])
	if err != nil {
		return result{err: err}
	}
	defer c.Close()
	s.gates(c, out[0], in[1])
	if res.err = c.Ready(); res.err == nil {
		if s.before != nil {
			s.before(c)
		}
		res.err = c.Release()
	}
	if res.err != nil {
		_ = unix.Kill(c.Pid(), unix.SIGKILL) // one that waits would do so for ever
	}
	if _, err := unix.Wait4(c.Pid(), &res.status, 0, nil); err != nil && res.err == nil {
		res.err = err
	}
	return res
}

// gates lets the adversary act at each gate until there are no more.
func (s *siege) gates(c *executor.Child, out, in int) {
	dirs := map[step.Register]string{}
	var b [8]byte
	for {
		n, err := unix.Read(out, b[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n < len(b) {
			return
		}
		i := int(binary.NativeEndian.Uint32(b[:]))
		st := &s.prog.Steps[i]
		path := follow(s.prog, st, dirs)
		if s.act != nil {
			s.act(place{i: i, s: st, path: path, pid: c.Pid(), dirs: dirs})
		}
		if _, err := unix.Write(in, b[:1]); err != nil {
			return
		}
	}
}

// unconfined is what every runtime was once: paths are followed wherever they
// lead.
func unconfined(p *step.Program) {
	forHow(p, func(_ *step.Step, _, resolve *uint64) { *resolve = 0 })
}

// forHow gives change the flags and the resolution of each openat2. They are
// shared between steps in the data, so each step gets a copy of its own.
func forHow(p *step.Program, change func(s *step.Step, flags, resolve *uint64)) {
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Nr != unix.SYS_OPENAT2 {
			continue
		}
		h := append([]byte(nil), p.Data[s.Args[2].Val:s.Args[2].Val+24]...)
		flags, resolve := binary.NativeEndian.Uint64(h), binary.NativeEndian.Uint64(h[16:])
		change(s, &flags, &resolve)
		binary.NativeEndian.PutUint64(h, flags)
		binary.NativeEndian.PutUint64(h[16:], resolve)
		s.Args[2] = addData(p, h)
	}
}

func addData(p *step.Program, b []byte) step.Arg {
	p.Data = append(p.Data, make([]byte, (8-len(p.Data)%8)%8)...)
	at := len(p.Data)
	p.Data = append(p.Data, b...)
	return step.Arg{Kind: step.Addr, Val: uint64(at)}
}

// nullify makes each step nothing that the function chooses.
func nullify(which func(s *step.Step) bool) func(p *step.Program) {
	return func(p *step.Program) {
		for i := range p.Steps {
			if s := &p.Steps[i]; which(s) {
				*s = step.Step{Nr: step.OpSet, Result: step.NoResult, Name: s.Name}
			}
		}
	}
}

// named chooses steps by the beginning of what they are for.
func named(prefix string) func(s *step.Step) bool {
	return func(s *step.Step) bool { return strings.HasPrefix(s.Name, prefix) }
}

// portrait describes a directory of the host completely: names, kinds, modes,
// owners, sizes, times of change, and content.
func portrait(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		link, _ := os.Readlink(path)
		var content []byte
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			content, _ = os.ReadFile(path)
		}
		fmt.Fprintf(&b, "%s ino %d mode %o %d:%d rdev %x size %d mtime %v ctime %v %q %q\n", path, st.Ino, st.Mode, st.Uid, st.Gid, st.Rdev, st.Size, st.Mtim, st.Ctim, link, content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// cgroupOptions are those of the one hierarchy that the machine has: whoever mounts it in the
// first cgroup namespace sets them, other tests and the host's services among them.
var cgroupOptions = regexp.MustCompile(`( - cgroup2 \S+) \S+`)

// strangers are what tests of other packages mount meanwhile, each below a directory of its name.
var strangers = regexp.MustCompile(`(?m)^(?:\S+ ){4}` + regexp.QuoteMeta(os.TempDir()) + `/Test(\w+?)\d+/.*\n`)

// outside is what must not change by whatever an image does: the canary, the
// host's mounts, and settings of the kernel that attackers are after.
func outside(t *testing.T, canary string) string {
	t.Helper()
	s := portrait(t, canary)
	for _, f := range []string{"/proc/thread-self/mountinfo", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/sysrq", "/proc/sys/kernel/modprobe"} {
		b, _ := os.ReadFile(f)
		own, _, _ := strings.Cut(t.Name(), "/")
		b = strangers.ReplaceAllFunc(b, func(l []byte) []byte {
			if bytes.Contains(l, []byte("/"+own)) {
				return l
			}
			return nil
		})
		s += f + ":\n" + cgroupOptions.ReplaceAllString(string(b), "$1")
	}
	return s
}

// newCanary makes a directory that has what attacks look for.
func newCanary(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"dev", "sub/deep", "proc/self/attr"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"ptmx", "dev/ptmx", "sub/file", "proc/self/attr/exec"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// strays returns the mounts of a child before its pivot that are neither below
// its root nor were there in the monitor's namespace.
func strays(pid int) []string {
	ch := make(chan []string) // the calling thread has no /proc
	go func() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			ch <- []string{err.Error()}
			return
		}
		var bad []string
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 5 {
				continue
			}
			if at := f[4]; at != "/" && at != "/canary" && at != program.ScratchRoot && !strings.HasPrefix(at, program.ScratchRoot+"/") {
				bad = append(bad, line)
			}
		}
		ch <- bad
	}()
	return <-ch
}
