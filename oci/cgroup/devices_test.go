package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// usualDevices are the rules of an ordinary container, in the order in which
// specs have them: nothing, then what is allowed.
func usualDevices() []specs.LinuxDeviceCgroup {
	rule := func(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		d := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		if major >= 0 {
			d.Major = &major
		}
		if minor >= 0 {
			d.Minor = &minor
		}
		return d
	}
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		rule("c", -1, -1, "m"), rule("b", -1, -1, "m"),
		rule("c", 1, 3, "rwm"), rule("c", 1, 5, "rwm"), rule("c", 1, 7, "rwm"), rule("c", 1, 8, "rwm"), rule("c", 1, 9, "rwm"),
		rule("c", 5, 0, "rwm"), rule("c", 5, 2, "rwm"), rule("c", 136, -1, "rwm"),
	}
}

// allowed is the meaning of the rules, written as plainly as possible: each kind
// of access is decided by the last rule that matches it, and denied by none.
func allowed(rules []specs.LinuxDeviceCgroup, kind int32, major, minor int64, access int32) bool {
	for _, bit := range []int32{accMknod, accRead, accWrite} {
		if access&bit == 0 {
			continue
		}
		ok := false
		for _, d := range rules {
			r, err := compileRule(d)
			if err != nil {
				panic(err)
			}
			if (r.kind < 0 || r.kind == kind) && (r.major < 0 || r.major == major) && (r.minor < 0 || r.minor == minor) && r.access&bit != 0 {
				ok = r.allow
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

// interpret runs a program as the kernel would.
func interpret(prog []bpfInsn, kind int32, major, minor int64, access int32) int64 {
	ctx := map[int16]uint64{0: uint64(uint32(access<<16 | kind)), 4: uint64(major), 8: uint64(minor)}
	var r [11]uint64
	for pc := 0; ; pc++ {
		in := prog[pc]
		dst, src := in.regs&15, in.regs>>4
		switch in.op {
		case opLoadW:
			r[dst] = ctx[in.off]
		case opMov:
			r[dst] = r[src]
		case opMovImm:
			r[dst] = uint64(int64(in.imm))
		case opAnd32:
			r[dst] = uint64(uint32(r[dst]) & uint32(in.imm))
		case opShr32:
			r[dst] = uint64(uint32(r[dst]) >> uint32(in.imm))
		case opJNE:
			if r[dst] != uint64(int64(in.imm)) {
				pc += int(in.off)
			}
		case opJEQ:
			if r[dst] == uint64(int64(in.imm)) {
				pc += int(in.off)
			}
		case opExit:
			return int64(r[0])
		default:
			panic(fmt.Sprintf("op %#x", in.op))
		}
	}
}

func checkProgram(t *testing.T, rules []specs.LinuxDeviceCgroup) {
	t.Helper()
	prog, err := deviceProgram(&specs.LinuxResources{Devices: rules})
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []int32{devBlock, devChar} {
		for _, major := range []int64{0, 1, 5, 8, 136} {
			for _, minor := range []int64{0, 3, 5, 77} {
				for access := int32(1); access < 8; access++ {
					want := allowed(rules, kind, major, minor, access)
					got := prog == nil || interpret(prog, kind, major, minor, access) == 1
					if got != want {
						t.Fatalf("%v: type %d %d:%d access %d: %v, want %v", rules, kind, major, minor, access, got, want)
					}
				}
			}
		}
	}
}

// randomRules overlap.
func randomRules(rnd *rand.Rand) (rules []specs.LinuxDeviceCgroup) {
	for range 1 + rnd.IntN(8) {
		d := specs.LinuxDeviceCgroup{Allow: rnd.IntN(3) > 0, Type: []string{"a", "b", "c", "c", ""}[rnd.IntN(5)],
			Access: []string{"rwm", "rwm", "r", "w", "m", "rw", "rm", ""}[rnd.IntN(8)]}
		if rnd.IntN(3) > 0 {
			d.Major = ptr([]int64{1, 5, 8, -1}[rnd.IntN(4)])
		}
		if rnd.IntN(3) > 0 {
			d.Minor = ptr([]int64{0, 3, 5}[rnd.IntN(3)])
		}
		rules = append(rules, d)
	}
	return rules
}

// The kernel takes what comes of any rules, and what comes of the usual ones is short: it
// looks at each way through.
func TestKernelTakesDevicePrograms(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads programs")
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 300 {
		rules := randomRules(rnd)
		if i == 0 {
			rules = usualDevices()
		}
		prog, err := deviceProgram(&specs.LinuxResources{Devices: rules})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 && len(prog) > 30 {
			t.Errorf("%d instructions for the usual rules", len(prog))
		}
		if prog == nil {
			continue
		}
		fd, err := loadDeviceProgram(prog)
		if errors.Is(err, errNoDeviceFilter) {
			needDeviceFilter(t, err)
		}
		if err != nil {
			t.Fatalf("%+v: %v", rules, err)
		}
		unix.Close(fd)
	}
	many := make([]specs.LinuxDeviceCgroup, 1<<15)
	for i := range many {
		many[i] = specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(i)), Access: "r"}
	}
	if _, err := deviceProgram(&specs.LinuxResources{Devices: many}); !errors.Is(err, ErrInvalid) {
		t.Errorf("more rules than jumps pass over: %v", err)
	}
}

func TestDeviceProgram(t *testing.T) {
	checkProgram(t, usualDevices())
	checkProgram(t, []specs.LinuxDeviceCgroup{{Access: "rwm"}})
	checkProgram(t, []specs.LinuxDeviceCgroup{{Allow: true}})
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 { // against the plain reading
		checkProgram(t, randomRules(rnd))
	}
	for _, r := range []*specs.LinuxResources{nil, {}, {Devices: []specs.LinuxDeviceCgroup{{Access: "r"}, {Allow: true, Access: "rwm"}}}} {
		if prog, err := deviceProgram(r); prog != nil || err != nil {
			t.Errorf("%v: %d instructions, %v; want none", r, len(prog), err)
		}
	}
	for _, d := range []specs.LinuxDeviceCgroup{{Type: "x"}, {Access: "rx"}, {Major: ptr(int64(-2))}, {Minor: ptr(int64(1) << 40)}} {
		if _, err := deviceProgram(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{d}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", d, err)
		}
	}
}

// The kernel enforces it: in a scope with the usual rules /dev/null works, a
// node of the host's disk can be made and not be read (CAP_MKNOD is of no use),
// and execs in a leaf are bound as well.
func TestDeviceFilterHolds(t *testing.T) {
	tr, _ := tree(t)
	s, err := tr.Create("p", "dev", &specs.LinuxResources{Devices: usualDevices()})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Unenforced()) > 0 {
		needDeviceFilter(t, s.Unenforced())
	}
	if _, err := exec.LookPath("mknod"); err != nil {
		t.Skip("needs mknod(1)")
	}
	leaf, err := s.Leaf("exec-1")
	if err != nil {
		t.Fatal(err)
	}
	node := t.TempDir() + "/loop0"
	script := fmt.Sprintf("mknod %s b 7 0 && rm %[1]s && mknod %[1]s b 7 0 && echo made; head -c 1 %[1]s && echo read; : >/dev/null && echo null; head -c 1 /dev/zero >/dev/null && echo zero", node)
	for _, where := range []*Scope{s, leaf} {
		os.Remove(node)
		dir, err := where.OpenDir()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", script)
		cmd.SysProcAttr = inCgroup(dir.Int())
		out, _ := cmd.CombinedOutput()
		dir.Close()
		if got := string(out); !strings.Contains(got, "made") || strings.Contains(got, "\nread") || !strings.Contains(got, "Operation not permitted") ||
			!strings.Contains(got, "null") || !strings.Contains(got, "zero") {
			t.Errorf("%s: %s", where.Path(), got)
		}
	}
	if err := s.Update(context.Background(), &specs.LinuxResources{Devices: usualDevices()}); !errors.Is(err, ErrInvalid) {
		t.Errorf("update of devices: %v", err)
	}
	if err := s.Remove(context.Background()); err != nil {
		t.Error(err)
	}
}

// More programs than are kept: each still is attached, and descriptors are not
// lost.
func TestDeviceFiltersAreBounded(t *testing.T) {
	tr, _ := tree(t)
	for i := range 2 * maxFilters {
		rules := append(usualDevices(), specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(200)), Minor: ptr(int64(i)), Access: "rw"})
		s, err := tr.Create("p", fmt.Sprint(i), &specs.LinuxResources{Devices: rules})
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Unenforced()) > 0 {
			needDeviceFilter(t, s.Unenforced())
		}
	}
	if n := len(tr.filters.loaded); n != maxFilters {
		t.Errorf("%d programs are kept", n)
	}
}

// needDeviceFilter skips a test on a kernel that loads no device filter. Those of the virtual machines do: there it is a failure of ours.
func needDeviceFilter(t *testing.T, why any) {
	t.Helper()
	if os.Getenv("VITRINE_VM") != "" {
		t.Fatal("this kernel loads device filters, and did not take ours: ", why)
	}
	t.Skip("needs a kernel with the cgroup device filter: ", why)
}
