package program_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// TestGatesOfContainer: at the network gate there is a network namespace and
// no mount, at the hooks' gate there are mounts and the root is not entered.
func TestGatesOfContainer(t *testing.T) {
	root := rootTree(t)
	seen := map[string]string{}
	res := stage{root: root, in: program.Input{Spec: testSpec("true"), NetGate: true, HookGate: true},
		gate: func(c *executor.Child) error {
			return elsewhere(func() error {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.Pid()))
				lo, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", c.Pid()))
				seen[c.At()] = string(b) + string(lo)
				return err
			})
		}}.run(t)
	if res.err != nil {
		t.Fatal(res.err)
	}
	net, hooks := seen[step.GateNet], seen[step.GateHooks]
	if strings.Contains(net, program.ScratchRoot) || strings.Count(net, ":") != 2 {
		t.Errorf("at the network gate:\n%s", net)
	}
	if !strings.Contains(hooks, " "+program.ScratchRoot+"/proc ") {
		t.Errorf("at the hooks' gate:\n%s", hooks)
	}
}

// elsewhere runs f where the host's /proc is in sight.
func elsewhere(f func() error) error {
	done := make(chan error)
	go func() { done <- f() }()
	return <-done
}

func TestCheckFindsBrokenGates(t *testing.T) {
	good, err := program.Compile(program.Input{Spec: testSpec("true"), HookGate: true, NetGate: true})
	if err != nil {
		t.Fatal(err)
	}
	breaks(t, "a gate that", good, map[string]func(*step.Program){
		"reads from a file":       func(p *step.Program) { p.Steps[find(p, named(step.GateHooks))].Args[0].Val = step.FirstFD },
		"takes end of file":       func(p *step.Program) { p.Steps[find(p, named(step.GateNet))+1].Args[1].Val = 0 },
		"goes on over the answer": func(p *step.Program) { p.Steps[find(p, named(step.GateNet))].Then = 1 },
		"reports another step": func(p *step.Program) {
			p.Steps[find(p, named(step.GateHooks))-1].Args[1] = p.Steps[find(p, named(step.GateNet))-1].Args[1]
		},
		"does not report":        func(p *step.Program) { p.Steps[find(p, named(step.GateHooks))-1].Nr = step.OpSet },
		"reports without a wait": func(p *step.Program) { p.Steps[find(p, named(step.GateHooks))].Nr = step.OpSet },
		"is passed over": func(p *step.Program) {
			p.Steps[find(p, named(step.GateNet))].OnErr = []step.Branch{{Errno: uint16(unix.EINTR)}}
		},
		"is jumped over":        func(p *step.Program) { p.Steps[find(p, named(step.GateNet))-2].Then = 3 },
		"behind the start wait": func(p *step.Program) { p.Wait = find(p, named(step.GateHooks)) },
	})
}
