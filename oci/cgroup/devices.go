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
//
// Neighbours that allow everything to devices of one type, as most do, are asked for together: type, then major, then minors.

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
	accAll                      = accMknod | accRead | accWrite
)

// errNoDeviceFilter: this kernel, or what we may do in it, has no device filter.
var errNoDeviceFilter = errors.New("no device filter in this kernel")

// deviceProgram compiles the device rules; nil means that there is nothing to
// filter: no rules, or everything allowed by the last one.
func deviceProgram(r *specs.LinuxResources) ([]bpfInsn, error) {
	if r == nil || len(r.Devices) == 0 {
		return nil, nil
	}
	rules := make([]deviceRule, 0, len(r.Devices))
	rest, decided := false, false
	for i := len(r.Devices) - 1; i >= 0; i-- {
		rule, err := compileRule(r.Devices[i])
		if err != nil {
			return nil, fmt.Errorf("check device rule %d: %w", i, err)
		}
		switch {
		case decided:
		case rule.kind < 0 && rule.major < 0 && rule.minor < 0 && rule.access == accAll:
			rest, decided = rule.allow, true // nobody asks those before it
		default:
			rules = append(rules, rule)
		}
	}
	if rest && len(rules) == 0 {
		return nil, nil
	}
	c := deviceCode{insns: []bpfInsn{
		{opLoadW, reg(2, 1), 0, 0},
		{opMov, reg(3, 2), 0, 0},
		{opAnd32, reg(3, 0), 0, 0xffff},
		{opShr32, reg(2, 0), 0, 16},
		{opLoadW, reg(4, 1), 4, 0},
		{opLoadW, reg(5, 1), 8, 0},
	}}
	for len(rules) > 0 {
		n := 1
		if rules[0].plain() {
			for n < len(rules) && rules[n].plain() && rules[n].kind == rules[0].kind {
				n++
			}
			c.plain(rules[:n])
		} else {
			c.rule(rules[0])
		}
		rules = rules[n:]
	}
	return c.end(rest)
}

// deviceCode is a program in the making.
type deviceCode struct {
	insns []bpfInsn
	exits [2][]int // instructions that jump to the end that denies, and to that which allows
}

func (c *deviceCode) add(op, dst uint8, imm int32) int {
	c.insns = append(c.insns, bpfInsn{op, reg(dst, 0), 0, imm})
	return len(c.insns) - 1
}

// here has an instruction jump to what comes next.
func (c *deviceCode) here(at int) { c.insns[at].off = int16(len(c.insns) - at - 1) }

// exit adds a jump to an end.
func (c *deviceCode) exit(allow int, op, dst uint8, imm int32) {
	c.exits[allow] = append(c.exits[allow], c.add(op, dst, imm))
}

// plain adds neighbours that allow all to devices of one type. Most of what the kernel checks of a program, at its load, are the
// ways through it, so rules share questions.
func (c *deviceCode) plain(rules []deviceRule) {
	other := c.add(opJNE, 3, rules[0].kind)
	for len(rules) > 0 {
		n, all := 0, false
		for n < len(rules) && rules[n].major == rules[0].major {
			all = all || rules[n].minor < 0
			n++
		}
		if all {
			c.exit(1, opJEQ, 4, int32(rules[0].major))
		} else {
			next := c.add(opJNE, 4, int32(rules[0].major))
			for _, r := range rules[:n] {
				c.exit(1, opJEQ, 5, int32(r.minor))
			}
			c.here(next)
		}
		rules = rules[n:]
	}
	c.here(other)
}

// rule adds any rule.
func (c *deviceCode) rule(r deviceRule) {
	var next []int
	for _, m := range []struct {
		reg  uint8
		want int64
	}{{3, int64(r.kind)}, {4, r.major}, {5, r.minor}} {
		if m.want >= 0 {
			next = append(next, c.add(opJNE, m.reg, int32(m.want)))
		}
	}
	if r.allow {
		c.add(opAnd32, 2, ^r.access)
		c.exit(1, opJEQ, 2, 0)
	} else {
		c.insns = append(c.insns, bpfInsn{opMov, reg(0, 2), 0, 0})
		c.add(opAnd32, 0, r.access)
		c.exit(0, opJNE, 0, 0)
	}
	for _, at := range next {
		c.here(at)
	}
}

// end adds the ends that are reached: what falls off the rules is allowed or not.
func (c *deviceCode) end(allow bool) ([]bpfInsn, error) {
	ends := []int{0, 1}
	if allow {
		ends = []int{1, 0}
	}
	if len(c.insns) > math.MaxInt16 {
		return nil, invalid("devices", len(c.insns), "are more instructions than a jump passes over")
	}
	for i, e := range ends {
		if i > 0 && len(c.exits[e]) == 0 {
			continue // the kernel takes no program with instructions that nobody reaches
		}
		for _, at := range c.exits[e] {
			c.here(at)
		}
		c.add(opMovImm, 0, int32(e))
		c.add(opExit, 0, 0)
	}
	return c.insns, nil
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
		r.access = accAll
	}
	return r, nil
}

// plain says that the rule allows everything to devices of one driver.
func (r deviceRule) plain() bool {
	return r.allow && r.kind >= 0 && r.major >= 0 && r.access == accAll
}

func reg(dst, src uint8) uint8 { return dst | src<<4 }

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
