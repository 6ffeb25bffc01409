package seccomp

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vitrine-runtime/vitrine/oci/seccomp/profile"
)

func defaultProfile(b *testing.B) *specs.LinuxSeccomp {
	p, err := profile.Default(capSets["default"], "")
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// BenchmarkCompile is the time for the default profile, without and with the cache.
func BenchmarkCompile(b *testing.B) {
	p := defaultProfile(b)
	b.Run("cold", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Compile(p); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cached", func(b *testing.B) {
		b.ReportAllocs()
		c := NewCache(4)
		for b.Loop() {
			if _, err := c.Compile(p); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkKernel loads filters, in turns and each 40 times on a thread of its own, and makes calls under them. Values are medians: load in us, an always
// allowed call and one that is decided by its argument in ns. Beside ours stand libseccomp's programs, where it is installed; VITRINE_SECCOMP_OTHER names a file with another compiler's program for comparison.
func BenchmarkKernel(b *testing.B) {
	p := defaultProfile(b)
	all, err := Compile(p)
	if err != nil {
		b.Fatal(err)
	}
	p.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86}
	two, err := Compile(p)
	if err != nil {
		b.Fatal(err)
	}
	names := []string{"nothing", "default", "default-without-x32"}
	filters := []*Filter{{Insns: []Insn{{Code: codeReturn, K: uint32(Allow)}}, Flags: flagSpecAllow}, all, two}
	if missing := oracleNeeds(); missing == "" {
		o := newOracle(b)
		for _, o.tree = range []bool{false, true} {
			f, err := o.filter(host(), defaultProfile(b))
			if err != nil {
				b.Fatal(err)
			}
			f.Flags = flagSpecAllow
			names, filters = append(names, map[bool]string{false: "libseccomp", true: "libseccomp-tree"}[o.tree]), append(filters, f)
		}
	}
	if other := os.Getenv("VITRINE_SECCOMP_OTHER"); other != "" {
		program, err := os.ReadFile(other)
		if err != nil {
			b.Fatal(err)
		}
		names, filters = append(names, "other"), append(filters, &Filter{Insns: parseProgram(program), Flags: flagSpecAllow})
	}
	out := startVictim(b, "load", assignment{filters: filters})
	for i, name := range names {
		var columns [3][]uint64
		for row := i; row < 40*len(names); row += len(names) {
			for c := range columns {
				columns[c] = append(columns[c], binary.NativeEndian.Uint64(out[24*row+8*c:]))
			}
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(len(filters[i].Insns)), "insns")
			for c, unit := range []string{"load-us", "allowed-ns", "argument-ns"} {
				slices.Sort(columns[c])
				b.ReportMetric(float64(columns[c][20])/[]float64{1000, 10, 10}[c], unit)
			}
		})
	}
}

func parseProgram(b []byte) []Insn {
	var list []Insn
	for ; len(b) >= 8; b = b[8:] {
		list = append(list, Insn{Code: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:])})
	}
	return list
}
