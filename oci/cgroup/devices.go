package cgroup

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// In cgroup v2 access to device nodes is decided by a BPF program that hangs on
// the cgroup. It is what keeps a container with CAP_MKNOD, which is among the
// usual defaults, from making a node of the host's disk and reading it.
//
// The program is so small that it is assembled here. It walks the rules from the
// last to the first and holds in r2 the kinds of access that were asked for and
// not yet granted; each kind is decided by the last rule that matches it:
//
//	r2 = access   r3 = type   r4 = major   r5 = minor
//	rule: type, major or minor differ?       next rule
//	      allow: r2 &= ~rule.access;         r2 == 0? return 1
//	      deny:  r2 & rule.access != 0?      return 0
//	end:  return 0

// bpfInsn is struct bpf_insn.
type bpfInsn struct {
	op   uint8
	regs uint8 // dst | src<<4
	off  int16
	imm  int32
}

// Opcodes of the BPF instruction set that are used here.
const (
	opLoadW  = 0x61 // dst = *(u32 *)(src + off)
	opMov    = 0xbf // dst = src
	opMovImm = 0xb7
	opAnd32  = 0x54 // w(dst) &= imm, upper half zero
	opShr32  = 0x74
	opJNE    = 0x55 // if dst != imm skip off
	opJEQ    = 0x15
	opExit   = 0x95
)

// What the kernel passes in bpf_cgroup_dev_ctx.access_type: the type in the lower
// half, the kinds of access in the upper.
const (
	devBlock, devChar           = 1, 2
	accMknod, accRead, accWrite = 1, 2, 4
)

// errNoDeviceFilter: this kernel, or what we may do in it, has no device filter.
var errNoDeviceFilter = errors.New("no device filter in this kernel")

// deviceProgram compiles the device rules; nil means that there is nothing to
// filter: no rules, or everything allowed by the last one.
func deviceProgram(r *specs.LinuxResources) ([]bpfInsn, error) {
	if r == nil || len(r.Devices) == 0 {
		return nil, nil
	}
	prog := []bpfInsn{
		{opLoadW, reg(2, 1), 0, 0},
		{opMov, reg(3, 2), 0, 0},
		{opAnd32, reg(3, 0), 0, 0xffff},
		{opShr32, reg(2, 0), 0, 16},
		{opLoadW, reg(4, 1), 4, 0},
		{opLoadW, reg(5, 1), 8, 0},
	}
	for i := len(r.Devices) - 1; i >= 0; i-- {
		rule, err := compileRule(r.Devices[i])
		if err != nil {
			return nil, fmt.Errorf("check device rule %d: %w", i, err)
		}
		if i == len(r.Devices)-1 && rule.allowsAll() {
			return nil, nil
		}
		prog = append(prog, rule.assemble()...)
	}
	return append(prog, ret(0)...), nil
}

// deviceRule is one rule with its wildcards as -1.
type deviceRule struct {
	allow        bool
	kind         int32
	major, minor int64
	access       int32
}

func compileRule(d specs.LinuxDeviceCgroup) (deviceRule, error) {
	r := deviceRule{allow: d.Allow, kind: -1, major: -1, minor: -1}
	switch d.Type {
	case "", "a":
	case "b":
		r.kind = devBlock
	case "c", "u":
		r.kind = devChar
	default:
		return r, invalid("type", fmt.Sprintf("%q", d.Type), "must be a, b or c")
	}
	for _, n := range []struct {
		from *int64
		to   *int64
	}{{d.Major, &r.major}, {d.Minor, &r.minor}} {
		if n.from == nil {
			continue
		}
		if *n.to = *n.from; *n.to < -1 || *n.to > math.MaxInt32 {
			return r, invalid("number", *n.from, "is no device number")
		}
	}
	for _, c := range d.Access {
		i := strings.IndexRune("mrw", c)
		if i < 0 {
			return r, invalid("access", fmt.Sprintf("%q", d.Access), "must be made of r, w and m")
		}
		r.access |= 1 << i // accMknod, accRead, accWrite
	}
	if r.access == 0 {
		r.access = accMknod | accRead | accWrite
	}
	return r, nil
}

func (r deviceRule) allowsAll() bool {
	return r.allow && r.kind < 0 && r.major < 0 && r.minor < 0 && r.access == accMknod|accRead|accWrite
}

// assemble returns the rule's instructions; falling off their end is "next rule".
func (r deviceRule) assemble() []bpfInsn {
	var body []bpfInsn
	if r.allow {
		body = append([]bpfInsn{{opAnd32, reg(2, 0), 0, ^r.access}, {opJNE, reg(2, 0), 2, 0}}, ret(1)...)
	} else {
		body = append([]bpfInsn{{opMov, reg(0, 2), 0, 0}, {opAnd32, reg(0, 0), 0, r.access}, {opJEQ, reg(0, 0), 2, 0}}, ret(0)...)
	}
	for _, m := range []struct {
		reg  uint8
		want int64
	}{{5, r.minor}, {4, r.major}, {3, int64(r.kind)}} {
		if m.want >= 0 {
			body = append([]bpfInsn{{opJNE, reg(m.reg, 0), int16(len(body)), int32(m.want)}}, body...)
		}
	}
	return body
}

func reg(dst, src uint8) uint8 { return dst | src<<4 }

func ret(v int32) []bpfInsn { return []bpfInsn{{opMovImm, 0, 0, v}, {opExit, 0, 0, 0}} }

// deviceFilters keeps loaded programs. The kernel checks and compiles one for
// 0.3 ms, and nearly all containers of a node have the same rules. The zero value
// is ready to use.
type deviceFilters struct {
	mu     sync.Mutex
	loaded map[string]*sys.FD // by instructions
}

// maxFilters bounds the programs that are kept; rules differ only by the devices
// that a pod is given.
const maxFilters = 32

// attach hangs a program on the cgroup behind dir, beside those of its parents,
// which all must agree. The cgroup holds it from then on, and it goes with the
// cgroup.
func (f *deviceFilters) attach(dir int, prog []bpfInsn) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := string(unsafe.Slice((*byte)(unsafe.Pointer(&prog[0])), len(prog)*int(unsafe.Sizeof(prog[0]))))
	fd := f.loaded[key]
	if fd == nil {
		n, err := loadDeviceProgram(prog)
		if err != nil {
			return err
		}
		fd = sys.NewFD(n)
		f.keep(key, fd)
	}
	attr := struct{ target, prog, kind, flags uint32 }{
		uint32(dir), uint32(fd.Int()), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI,
	}
	_, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(fd)
	if err != nil {
		return noFilter("attach device filter", err)
	}
	return nil
}

// close forgets the programs. Where they are attached they stay.
func (f *deviceFilters) close() (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fd := range f.loaded {
		err = errors.Join(err, fd.Close())
	}
	f.loaded = nil
	return err
}

// keep remembers a program, in the place of any other one if there are too many.
// Preconditions: f.mu is held.
func (f *deviceFilters) keep(key string, fd *sys.FD) {
	if f.loaded == nil {
		f.loaded = map[string]*sys.FD{}
	}
	for old, fd := range f.loaded {
		if len(f.loaded) < maxFilters {
			break
		}
		fd.Close()
		delete(f.loaded, old)
	}
	f.loaded[key] = fd
}

func loadDeviceProgram(prog []bpfInsn) (int, error) {
	license := []byte("Apache-2.0\x00")
	var pin runtime.Pinner // the kernel is given addresses as numbers, which a growing stack would not mend
	defer pin.Unpin()
	pin.Pin(&prog[0])
	pin.Pin(&license[0])
	attr := struct {
		kind, count    uint32
		insns, license uint64
		logLevel, size uint32
		log            uint64
		version, flags uint32
		name           [16]byte
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(prog)),
		insns: uint64(uintptr(unsafe.Pointer(&prog[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
		name: [16]byte{'v', 'i', 't', 'r', 'i', 'n', 'e', '_', 'd', 'e', 'v', 's'},
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return -1, noFilter("load device filter", err)
	}
	return fd, nil
}

// noFilter tells a kernel without the feature from one that did not like ours.
func noFilter(verb string, err error) error {
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%s: %w: %w", verb, errNoDeviceFilter, err)
	}
	return fmt.Errorf("%s: %w", verb, err)
}

// bpf is bpf(2). EAGAIN comes from a load that was interrupted by a signal, of
// which the Go runtime sends many.
func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for range 16 {
		n, _, e := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		if e == 0 {
			return int(n), nil
		}
		if e != unix.EAGAIN && e != unix.EINTR {
			return -1, e
		}
	}
	return -1, unix.EAGAIN
}
