package seccomp

import (
	"fmt"
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

// callNumbers is one line of the table; -1 means absent.
type callNumbers struct {
	name    string
	numbers []int
}

// table parses tableText, which is kept as text since a thousand structs with pointers would cost the binary five times as much.
var table = sync.OnceValue(func() []callNumbers {
	lines := strings.Split(strings.TrimSuffix(tableText, "\n"), "\n")
	t := make([]callNumbers, len(lines))
	all := make([]int, len(lines)*len(hostABIs))
	for i, line := range lines {
		t[i].name, line, _ = strings.Cut(line, " ")
		t[i].numbers, all = all[:len(hostABIs)], all[len(hostABIs):]
		for j := range t[i].numbers {
			var field string
			field, line, _ = strings.Cut(line, " ")
			n, err := strconv.Atoi(field)
			if err != nil {
				n = -1
			}
			t[i].numbers[j] = n
		}
	}
	return t
})

// lookup finds a call by its name, or nil.
func lookup(name string) []int {
	t := table()
	i, ok := slices.BinarySearchFunc(t, name, func(c callNumbers, name string) int { return strings.Compare(c.name, name) })
	if !ok {
		return nil
	}
	return t[i].numbers
}

// CallName says how the call with this number is named in the ABI that an audit architecture stands for, or "" if no table has it.
// It is for people who read why a call was refused.
func CallName(arch, number uint32) string {
	for i, a := range hostABIs {
		if a.token != arch {
			continue
		}
		for _, c := range table() {
			if c.numbers[i] >= 0 && uint32(c.numbers[i])+a.base == number {
				return c.name
			}
		}
	}
	return ""
}

// selectABIs says which of the host's ABIs a profile includes, by index into hostABIs.
func selectABIs(archs []specs.Arch, w *warnings) ([]bool, error) {
	in := make([]bool, len(hostABIs))
	in[0] = true
	for _, arch := range archs {
		if i := slices.IndexFunc(hostABIs, func(a abi) bool { return a.name == arch }); i >= 0 {
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
