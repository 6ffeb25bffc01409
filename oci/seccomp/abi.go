package seccomp

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

//go:generate go run gen_tables.go

// x32Bit marks x32 calls, which share AUDIT_ARCH_X86_64 with 64-bit ones.
const x32Bit = 0x40000000

// abi is one system-call convention of this machine.
type abi struct {
	name        specs.Arch
	token       uint32 // AUDIT_ARCH_*: seccomp_data.arch
	base        uint32 // added to the numbers of the table
	private     uint32 // numbers from here on are not in the kernel's common sequence; 0: there are none
	narrow      bool   // registers have 32 bits
	mux         bool   // socketcall and ipc exist
	zeroUnknown bool   // calls with large, unknown numbers arrive as number 0 (s390)
}

// wide says whether the words of the ABI have 64 bits. Those of x32 and n32 do not, though their registers do.
func (a abi) wide() bool { return !a.narrow && a.base == 0 && a.name != specs.ArchMIPSEL64N32 }

// callNumbers is one line of the table; -1 means absent.
type callNumbers struct {
	name    string
	numbers []int
}

// machine is what a filter is made for: the ABIs whose calls its kernel takes, the native one first, and what their arguments look like.
type machine struct {
	abis      []abi
	calls     []callNumbers    // by name; the numbers are in the order of abis
	narrow    map[string]uint8 // calls to bit sets of their 32-bit arguments
	bigEndian bool             // the upper word of an argument comes first
}

// host is the machine that we run on. Tests make others, out of the tables of other builds.
var host = sync.OnceValue(func() *machine { return newMachine(runtime.GOARCH, hostABIs, tableText) })

// newMachine parses the text of a table, which is kept as text since a thousand structs with pointers would cost the binary five times as much.
func newMachine(goarch string, abis []abi, text string) *machine {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	m := &machine{abis: abis, calls: make([]callNumbers, len(lines)), narrow: narrowCalls(goarch), bigEndian: goarch == "s390x"}
	all := make([]int, len(lines)*len(abis))
	for i, line := range lines {
		c := &m.calls[i]
		c.name, line, _ = strings.Cut(line, " ")
		c.numbers, all = all[:len(abis)], all[len(abis):]
		for j := range c.numbers {
			var field string
			field, line, _ = strings.Cut(line, " ")
			n, err := strconv.Atoi(field)
			if err != nil {
				n = -1
			}
			c.numbers[j] = n
		}
	}
	return m
}

// lookup finds a call by its name, or nil.
func (m *machine) lookup(name string) []int {
	i, ok := slices.BinarySearchFunc(m.calls, name, func(c callNumbers, name string) int { return strings.Compare(c.name, name) })
	if !ok {
		return nil
	}
	return m.calls[i].numbers
}

// CallName says how the call with this number is named in the ABI that an audit architecture stands for, or "" if no table has it.
// It is for people who read why a call was refused.
func CallName(arch, number uint32) string {
	m := host()
	for i, a := range m.abis {
		if a.token != arch {
			continue
		}
		for _, c := range m.calls {
			if c.numbers[i] >= 0 && uint32(c.numbers[i])+a.base == number {
				return c.name
			}
		}
	}
	return ""
}

// selectABIs says which of the machine's ABIs a profile includes, by index.
func (m *machine) selectABIs(archs []specs.Arch, w *warnings) ([]bool, error) {
	in := make([]bool, len(m.abis))
	in[0] = true
	for _, arch := range archs {
		if i := slices.IndexFunc(m.abis, func(a abi) bool { return a.name == arch }); i >= 0 {
			in[i] = true
			continue
		}
		if !slices.Contains(knownArchs, arch) {
			return nil, fmt.Errorf("seccomp architecture %q: unknown", arch)
		}
		w.add("architecture " + string(arch) + " is not of this machine: ignored")
	}
	return in, nil
}

// knownArchs are all names that the OCI text has.
var knownArchs = []specs.Arch{
	specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64, specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32,
	specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390,
	specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64, specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB,
}
