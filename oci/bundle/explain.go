package bundle

import "github.com/vitrine-runtime/vitrine/internal/step"

// Compile returns the program that Create would run for the bundle in dir, with
// everything that this machine has to do with it. It opens what the bundle names, and
// makes nothing.
func Compile(dir string) (p *step.Program, err error) {
	m := &maker{}
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
	if err := m.compile(); err != nil {
		return nil, err
	}
	return step.Decode(m.program)
}
