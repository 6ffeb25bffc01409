package profile

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// deniedFamilies are the address families that no container gets by default.
var deniedFamilies = []uint64{unix.AF_RXRPC, unix.AF_ALG, unix.AF_VSOCK}

// harden applies the changes that the package comment lists.
func harden(p *specs.LinuxSeccomp, h Host) error {
	kept := p.Syscalls[:0:0]
	for _, s := range p.Syscalls {
		if s.Action == specs.ActAllow && slices.Contains(s.Names, "socket") {
			drop, err := opens(s)
			if err != nil {
				return err
			}
			if drop {
				continue
			}
		}
		kept = append(kept, s)
	}
	p.Syscalls = kept
	if !h.Socketcall && (h.Arch == "amd64" || h.Arch == "386") {
		denySocketcall(p)
	}
	return nil
}

// opens says whether an allow rule for socket is to go, since it is for a denied family and for nothing else.
func opens(s specs.LinuxSyscall) (bool, error) {
	if len(s.Names) != 1 || len(s.Args) != 1 || s.Args[0].Index != 0 {
		return false, fmt.Errorf("harden seccomp profile: a rule for socket has an unknown form: %+v", s)
	}
	a := s.Args[0]
	for _, family := range deniedFamilies {
		switch a.Op {
		case specs.OpEqualTo:
			if a.Value == family {
				return true, nil
			}
		case specs.OpLessThan:
			if family < a.Value {
				return false, fmt.Errorf("harden seccomp profile: a rule for socket allows family %d", family)
			}
		default:
			return false, fmt.Errorf("harden seccomp profile: a rule for socket has operator %s", a.Op)
		}
	}
	return false, nil
}

// denySocketcall replaces the permission by ENOSYS. Leaving the name out would not do: the compiler lets rules for socket calls reach their
// places in socketcall, and would open all but socket itself.
func denySocketcall(p *specs.LinuxSeccomp) {
	for i, s := range p.Syscalls {
		if slices.Contains(s.Names, "socketcall") {
			p.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(s.Names), func(n string) bool { return n == "socketcall" })
		}
	}
	nosys := uint(unix.ENOSYS)
	p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"socketcall"}, Action: specs.ActErrno, ErrnoRet: &nosys})
}
