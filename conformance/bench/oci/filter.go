package main

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/oci/seccomp"
)

// caseFilter is the load of the default profile into the kernel.
const caseFilter = "filter"

// Names of the compilers.
const (
	filterOurs = "ours"
	filterTree = "libseccomp, tree"
	filterList = "libseccomp, list"
)

type filter struct {
	name string
	code []byte
}

// filterPrograms compiles the default profile by everybody who can.
func (w *worker) filterPrograms() ([]filter, error) {
	s, err := w.spec(caseE1, "true")
	if err != nil {
		return nil, err
	}
	f, err := seccomp.Compile(s.Linux.Seccomp)
	if err != nil {
		return nil, err
	}
	list := []filter{{filterOurs, f.Bytes()}}
	if w.Oracle == "" {
		return list, nil
	}
	for _, name := range []string{filterTree, filterList} {
		code, err := askOracle(w.Oracle, commands(s.Linux.Seccomp, name == filterTree))
		if err != nil {
			return nil, err
		}
		list = append(list, filter{name, code})
	}
	return list, nil
}

// The kernel's numbers of what default profiles are made of, for libseccomp.
var (
	scmpArches  = []uint32{0xc000003e, 0x40000003, 0x4000003e} // x86-64, i386, x32
	scmpActions = map[specs.LinuxSeccompAction]uint32{specs.ActAllow: 0x7fff0000, specs.ActErrno: 0x00050000}
	scmpOps     = []specs.LinuxSeccompOperator{"", specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
)

// commands says a profile in the oracle's words, adding rules as runc and crun do.
func commands(p *specs.LinuxSeccomp, tree bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "begin %d\n", scmp(p.DefaultAction, p.DefaultErrnoRet))
	if tree {
		b.WriteString("tree\n")
	}
	for _, a := range scmpArches {
		fmt.Fprintf(&b, "arch %d\n", a)
	}
	for _, s := range p.Syscalls {
		for _, name := range s.Names {
			fmt.Fprintf(&b, "rule %d %s %d", scmp(s.Action, s.ErrnoRet), name, len(s.Args))
			for _, a := range s.Args {
				fmt.Fprintf(&b, " %d %d %d %d", a.Index, slices.Index(scmpOps, a.Op), a.Value, a.ValueTwo)
			}
			b.WriteByte('\n')
		}
	}
	return b.String() + "end\n"
}

func scmp(a specs.LinuxSeccompAction, errno *uint) uint32 {
	n := scmpActions[a]
	if a == specs.ActErrno {
		n |= 1
		if errno != nil {
			n = n&^1 | uint32(*errno)
		}
	}
	return n
}

// askOracle runs the oracle once.
func askOracle(path, commands string) ([]byte, error) {
	cmd := exec.Command(path)
	cmd.Stdin = strings.NewReader(commands)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start oracle: %w", err)
	}
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("hear oracle: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "ok ")))
	if err != nil {
		return nil, fmt.Errorf("libseccomp: %s", strings.TrimSpace(line))
	}
	code := make([]byte, n)
	if _, err := io.ReadFull(r, code); err != nil {
		return nil, fmt.Errorf("hear oracle: %w", err)
	}
	return code, cmd.Wait()
}
