package seccomp

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// oracle is testdata/oracle.c, running.
type oracle struct {
	t     testing.TB
	in    io.WriteCloser
	r     *bufio.Reader
	calls map[string]int // what was asked about numbers
	tree  bool           // ask for programs that search numbers by halves, as runc does for profiles of more than 32 rules
}

// oracleEnv names an oracle that was built by hand against another libseccomp.
const oracleEnv = "VITRINE_SECCOMP_ORACLE"

// newOracle builds and starts the program, or skips the test where there is no compiler or no libseccomp to build it with.
func newOracle(t testing.TB) *oracle {
	t.Helper()
	if missing := oracleNeeds(); missing != "" {
		t.Skip(missing)
	}
	bin := os.Getenv(oracleEnv)
	if bin == "" {
		bin = filepath.Join(t.TempDir(), "oracle")
		if out, err := exec.Command("gcc", "-O1", "-o", bin, "testdata/oracle.c", "-lseccomp").CombinedOutput(); err != nil {
			t.Fatalf("build oracle: %v\n%s", err, out)
		}
	}
	cmd := exec.Command(bin)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("oracle: %v", err)
		}
	})
	return &oracle{t, in, bufio.NewReader(out), map[string]int{}, false}
}

// oracleNeeds says what is missing to build it.
func oracleNeeds() string {
	if os.Getenv(oracleEnv) != "" {
		return ""
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		return "needs gcc: libseccomp is asked by a C program"
	}
	if _, err := os.Stat("/usr/include/seccomp.h"); err != nil {
		return "needs libseccomp-dev: its answers are what ours are compared with"
	}
	return ""
}

func (o *oracle) line() string {
	s, err := o.r.ReadString('\n')
	if err != nil {
		o.t.Fatalf("read from oracle: %v", err)
	}
	return strings.TrimSuffix(s, "\n")
}

// number asks for a call's number in an ABI.
func (o *oracle) number(token uint32, name string) int {
	question := fmt.Sprintf("number %d %s\n", token, name)
	if n, ok := o.calls[question]; ok {
		return n
	}
	if _, err := io.WriteString(o.in, question); err != nil {
		o.t.Fatal(err)
	}
	n, err := strconv.Atoi(o.line())
	if err != nil {
		o.t.Fatal(err)
	}
	o.calls[question] = n
	return n
}

// scmpArch is the token by which libseccomp knows an ABI: x32 shares the kernel's with x86-64, but not libseccomp's.
func scmpArch(a abi) uint32 {
	if a.base != 0 {
		return a.token &^ 0x80000000
	}
	return a.token
}

// scmpOps are the operators in the order of libseccomp's enumeration, from 1 on.
var scmpOps = []specs.LinuxSeccompOperator{"", specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}

// filter gives libseccomp's program for a profile, or its error. Rules go in as runc and crun do it: not if they are the default, and one for each test if an
// argument is tested twice.
func (o *oracle) filter(m *machine, p *specs.LinuxSeccomp) (*Filter, error) {
	var b strings.Builder
	deflt := mustAction(p.DefaultAction, p.DefaultErrnoRet)
	fmt.Fprintf(&b, "begin %d\n", deflt)
	if o.tree {
		b.WriteString("tree\n")
	}
	for i, a := range m.abis {
		if i == 0 || slices.Contains(p.Architectures, a.name) {
			fmt.Fprintf(&b, "arch %d\n", scmpArch(a))
		}
	}
	rule := func(action Action, name string, args []specs.LinuxSeccompArg) {
		fmt.Fprintf(&b, "rule %d %s %d", action, name, len(args))
		for _, a := range args {
			fmt.Fprintf(&b, " %d %d %d %d", a.Index, slices.Index(scmpOps, a.Op), a.Value, a.ValueTwo)
		}
		b.WriteByte('\n')
	}
	for _, s := range p.Syscalls {
		action := mustAction(s.Action, s.ErrnoRet)
		if action == deflt {
			continue
		}
		for _, name := range s.Names {
			if distinct(s.Args) {
				rule(action, name, s.Args)
				continue
			}
			for _, a := range s.Args {
				rule(action, name, []specs.LinuxSeccompArg{a})
			}
		}
	}
	b.WriteString("end\n")
	if _, err := io.WriteString(o.in, b.String()); err != nil {
		o.t.Fatal(err)
	}
	f, err := o.program(m.order())
	if err == nil && m.bigEndian {
		unswap(f, p)
	}
	return f, err
}

// unswap mends what libseccomp gets wrong on a little-endian machine for a big-endian one: copies of a return that are made since the first is out of
// a jump's reach have its bytes swapped twice.
func unswap(f *Filter, p *specs.LinuxSeccomp) {
	actions := []Action{KillProcess, mustAction(p.DefaultAction, p.DefaultErrnoRet)}
	for _, s := range p.Syscalls {
		actions = append(actions, mustAction(s.Action, s.ErrnoRet))
	}
	for i, insn := range f.Insns {
		if insn.Code == codeReturn && !slices.Contains(actions, Action(insn.K)) {
			f.Insns[i].K = bits.ReverseBytes32(insn.K)
		}
	}
}

// program reads an answer.
func (o *oracle) program(order binary.ByteOrder) (*Filter, error) {
	verdict, rest, _ := strings.Cut(o.line(), " ")
	if verdict != "ok" {
		return nil, fmt.Errorf("libseccomp: %s", rest)
	}
	n, err := strconv.Atoi(rest)
	if err != nil {
		o.t.Fatal(err)
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(o.r, raw); err != nil {
		o.t.Fatal(err)
	}
	f := &Filter{}
	for ; len(raw) >= 8; raw = raw[8:] {
		f.Insns = append(f.Insns, Insn{Code: order.Uint16(raw), Jt: raw[2], Jf: raw[3], K: order.Uint32(raw[4:])})
	}
	return f, nil
}

// TestTablesAreLibseccomps compares all numbers that both know.
func TestTablesAreLibseccomps(t *testing.T) {
	o := newOracle(t)
	for goarch, m := range machines() {
		for i, a := range m.abis {
			same := 0
			for _, c := range m.calls {
				n := o.number(scmpArch(a), c.name)
				if n < 0 {
					continue // unknown, or behind a multiplexer
				}
				if want := c.numbers[i] + int(a.base); n != want {
					t.Errorf("%s in %s of %s: %d, libseccomp says %d", c.name, a.name, goarch, want, n)
				}
				same++
			}
			if same < 300 && a.name != "SCMP_ARCH_LOONGARCH64" { // which libseccomp has from 2.6 on
				t.Errorf("%s of %s: compared %d numbers only", a.name, goarch, same)
			}
			t.Logf("%s of %s: %d numbers agree", a.name, goarch, same)
		}
	}
}
