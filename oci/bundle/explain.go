package bundle

import (
	"errors"
	"io/fs"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// Compile returns the program that Create would run for the bundle in dir, with
// everything that this machine has to do with it. It opens what the bundle names, and
// makes nothing. Where something of that is not here, or not for us to open, it is the
// program of a machine that has it: what cannot be looked at counts as a directory, and a
// namespace that is joined as somebody else's.
func Compile(dir string) (*step.Program, error) {
	m := &maker{}
	p, err := m.explain(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		m = &maker{guess: true}
		p, err = m.explain(dir)
	}
	return p, err
}

func (m *maker) explain(dir string) (p *step.Program, err error) {
	if m.bundle, err = openBundle(dir); err != nil {
		return nil, err
	}
	if pr := m.bundle.spec.Process; pr != nil && pr.Terminal {
		s, socket, err := newScreen()
		if err != nil {
			return nil, err
		}
		defer s.close()
		defer socket.Close()
		m.opts.console = socket
	}
	defer func() { _ = m.close() }() // copies, and of use to nobody
	if err := m.check(); err != nil {
		return nil, err
	}
	if err := m.compile(); err != nil {
		return nil, err
	}
	return step.Decode(m.program)
}
