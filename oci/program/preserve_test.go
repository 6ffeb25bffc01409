package program

import (
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// Descriptors are passed on as they are named, and what would pass on others, or early,
// is no program.
func TestPreserveRules(t *testing.T) {
	compile := func() *step.Program {
		p, err := CompileExec(ExecInput{Preserve: 2, Process: compileProcess()})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	find := func(p *step.Program, nr uint32, after int) int {
		for i := after; i < len(p.Steps); i++ {
			if p.Steps[i].Nr == nr {
				return i
			}
		}
		t.Fatalf("no call %d", nr)
		return 0
	}
	for name, change := range map[string]func(p *step.Program){
		"another file":     func(p *step.Program) { p.Steps[find(p, unix.SYS_DUP3, 0)].Args[0] = val(step.FirstFD) },
		"early":            func(p *step.Program) { p.Steps[find(p, unix.SYS_DUP3, 0)].Args[2] = val(0) },
		"another number":   func(p *step.Program) { p.Steps[find(p, unix.SYS_DUP3, p.Wait)].Args[1] = val(9) },
		"stdout":           func(p *step.Program) { p.Steps[find(p, unix.SYS_DUP3, p.Wait)].Args[1] = val(1) },
		"too many kept":    func(p *step.Program) { p.Steps[find(p, unix.SYS_CLOSE_RANGE, 0)].Args[0] = val(step.FirstFD + 3) },
		"copy that stays":  func(p *step.Program) { p.Steps[find(p, unix.SYS_FCNTL, 0)].Args[1] = val(unix.F_DUPFD) },
		"copy of the root": func(p *step.Program) { p.Steps[find(p, unix.SYS_FCNTL, 0)].Args[0] = val(step.FirstFD) },
	} {
		p := compile()
		if err := Check(p); err != nil {
			t.Fatal(err)
		}
		change(p)
		if err := Check(p); !errors.Is(err, ErrRule) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := CompileExec(ExecInput{Preserve: 1, NoWait: true, Process: compileProcess()}); !errors.Is(err, ErrInvalid) {
		t.Errorf("without a wait: %v", err)
	}
	var text strings.Builder
	if err := Explain(&text, compile()); err != nil || !strings.Contains(text.String(), "pass on descriptor 4") {
		t.Errorf("%v: %s", err, text.String())
	}
}

func compileProcess() *specs.Process {
	return &specs.Process{Args: []string{"/bin/true"}, Cwd: "/", Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 9, Hard: 9}}}
}
