package program

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// check is one field of the spec and whether it asks for something.
type check struct {
	field string
	asked bool
}

func firstAsked(checks []check) error {
	for _, c := range checks {
		if c.asked {
			return fmt.Errorf("%s: %w", c.field, ErrUnsupported)
		}
	}
	return nil
}

// refuse returns an error that names the first field which is not honoured.
func refuse(s *specs.Spec) error {
	if s == nil || s.Process == nil || s.Linux == nil {
		return fmt.Errorf("spec without process or linux section: %w", ErrInvalid)
	}
	// Minor versions add fields, which a reader of an older one does not see: who
	// decodes the spec knows, and is of this module's version.
	if !strings.HasPrefix(s.Version, "1.") {
		return fmt.Errorf("ociVersion: %.20q: %w", s.Version, ErrUnsupported)
	}
	l := s.Linux
	if err := checkLabels(s.Process); err != nil {
		return err
	}
	if err := checkLabel("linux.mountLabel", l.MountLabel, maxFSValue); err != nil {
		return err
	}
	if err := firstAsked([]check{
		{"solaris", s.Solaris != nil}, {"windows", s.Windows != nil}, {"vm", s.VM != nil}, {"zos", s.ZOS != nil}, {"freebsd", s.FreeBSD != nil},
		{"hooks", hasHooks(s.Hooks)},
		{"linux.intelRdt", l.IntelRdt != nil},
	}); err != nil {
		return err
	}
	if strings.ContainsRune(s.Hostname+s.Domainname, 0) {
		return fmt.Errorf("hostname: NUL in %q: %w", s.Hostname+s.Domainname, ErrInvalid)
	}
	return nil
}

func hasHooks(h *specs.Hooks) bool {
	if h == nil {
		return false
	}
	//nolint:staticcheck // Prestart is deprecated, but a spec may carry it
	return len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart)+len(h.Poststop) > 0
}
