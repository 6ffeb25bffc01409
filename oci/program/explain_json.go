package program

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
	"github.com/vitrine-runtime/vitrine/internal/step"
)

// explained is the form of ExplainJSON. Its names are kept: others read it.
type explained struct {
	Clone []string        `json:"clone"`          // flags of clone3
	Files []explainedFile `json:"files"`          // what the child begins with
	Wait  *int            `json:"wait,omitempty"` // number of the step that waits for the start
	Steps []explainedStep `json:"steps"`
}

type explainedFile struct {
	FD   int    `json:"fd"`
	What string `json:"what"`
}

type explainedStep struct {
	Number  int               `json:"step"`
	Call    string            `json:"call"`
	Args    []string          `json:"args"`              // as Explain shows them
	Result  string            `json:"result,omitempty"`  // register that keeps it
	OnError []explainedBranch `json:"onError,omitempty"` // errors that do not end the child
	Then    *int              `json:"then,omitempty"`    // where it goes on after success, if not with the next step
	For     string            `json:"for"`               // what it is for
}

type explainedBranch struct {
	Errno string `json:"errno"`
	Then  int    `json:"then"`
}

// ExplainJSON writes a program for other programs: what Explain shows, one object
// per step.
func ExplainJSON(w io.Writer, p *step.Program) error {
	out := explained{Files: []explainedFile{
		{0, "stdin"}, {1, "stdout"}, {2, "stderr"}, {step.ReportFD, "report to the parent"}, {step.StartFD, "start from the parent"},
	}}
	for _, f := range cloneText {
		if (p.Clone|unix.CLONE_PIDFD|unix.CLONE_CLEAR_SIGHAND)&f.bits == f.bits {
			out.Clone = append(out.Clone, f.name)
		}
	}
	for i, f := range p.Files {
		out.Files = append(out.Files, explainedFile{step.FirstFD + i, f})
	}
	if p.Wait != step.NoWait {
		out.Wait = &p.Wait
	}
	e := explainer{p: p}
	for i := range p.Steps {
		out.Steps = append(out.Steps, e.object(i))
	}
	b, err := specjson.MarshalIndent(out)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

func (e explainer) object(i int) explainedStep {
	s := &e.p.Steps[i]
	o := explainedStep{Number: i, For: s.Name}
	if o.Call, o.Args = e.call(s); o.Args == nil {
		o.Args = []string{}
	}
	if s.Result != step.NoResult {
		o.Result = fmt.Sprintf("r%d", s.Result)
	}
	for _, b := range s.OnErr {
		o.OnError = append(o.OnError, explainedBranch{errnoName(b.Errno), i + 1 + int(b.Skip)})
	}
	if s.Then > 0 {
		at := i + 1 + int(s.Then)
		o.Then = &at
	}
	return o
}
