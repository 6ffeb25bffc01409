package source

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// idmap gives file n of the table the mapping of ids that its mount asks for: its
// own, or else that of the container's user namespace.
func (s *Set) idmap(field string, n int, m *specs.Mount, o program.MountOptions) error {
	uids, gids := m.UIDMappings, m.GIDMappings
	field += ".uidMappings"
	if len(uids) == 0 {
		if !s.has(specs.UserNamespace) {
			return named(field+": idmap without a mapping, in a container without a user namespace", program.ErrInvalid)
		}
		uids, gids = s.spec.Linux.UIDMappings, s.spec.Linux.GIDMappings
	}
	if s.guess {
		return nil
	}
	var userns *sys.FD
	var err error
	if joined := s.joined(); joined != "" && len(m.UIDMappings) == 0 {
		userns, err = sys.OpenAt2(unix.AT_FDCWD, joined, unix.O_RDONLY, 0)
	} else {
		userns, err = mappingNS(uids, gids)
	}
	if err != nil {
		return named(field, err)
	}
	defer userns.Close()
	if err := sys.MountIDMap(s.files[n], userns, o.IDTree); err != nil {
		return named(field, err)
	}
	return nil
}

// joined is the path of the user namespace that the container joins, or "".
func (s *Set) joined() string {
	for _, ns := range s.spec.Linux.Namespaces {
		if ns.Type == specs.UserNamespace {
			return ns.Path
		}
	}
	return ""
}

// mappingNS returns a user namespace that exists for its mapping alone.
//
// A namespace is born with a process, and a multi-threaded one cannot make one for
// itself; so a child is born in it, which waits for a start that never comes. The
// descriptor keeps the namespace when the child has gone.
func mappingNS(uids, gids []specs.LinuxIDMapping) (*sys.FD, error) {
	if len(uids) == 0 || len(gids) == 0 {
		return nil, named("no mapping", program.ErrInvalid)
	}
	null, err := sys.OpenAt2(unix.AT_FDCWD, os.DevNull, unix.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	code, err := waiting().Encode()
	if err != nil {
		return nil, err
	}
	c, err := executor.Start(executor.Attr{Program: code, CgroupFD: -1, PIDNS: -1, ProcFD: -1, Stdio: [3]int{null.Int(), null.Int(), null.Int()}})
	if err != nil {
		return nil, named("make a user namespace", err)
	}
	fd, err := mapped(c, uids, gids)
	kill := sys.PidfdSignal(c.PidFD(), unix.SIGKILL)
	for {
		_, err := unix.Wait4(c.Pid(), nil, 0, nil) // ours, and nobody else's to reap
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err = errors.Join(err, kill, c.Close()); err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	return fd, nil
}

func mapped(c *executor.Child, uids, gids []specs.LinuxIDMapping) (*sys.FD, error) {
	if err := c.Ready(); err != nil {
		return nil, named("make a user namespace", err)
	}
	m := sys.IDMaps{UIDs: lines(uids), GIDs: lines(gids)}
	if err := m.Write(-1, c.Pid()); err != nil {
		return nil, err
	}
	return sys.OpenAt2(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/ns/user", c.Pid()), unix.O_RDONLY, 0)
}

// waiting is a program that is born in a user namespace, reports that and waits.
func waiting() *step.Program {
	data := make([]byte, 16)
	const wait = 1
	binary.NativeEndian.PutUint32(data, wait)
	num := func(v uint64) step.Arg { return step.Arg{Kind: step.Const, Val: v} }
	at := func(v uint64) step.Arg { return step.Arg{Kind: step.Addr, Val: v} }
	return &step.Program{Clone: unix.CLONE_NEWUSER, Wait: wait, Data: data, Steps: []step.Step{
		{Nr: unix.SYS_WRITE, Result: step.NoResult, Args: [step.MaxArgs]step.Arg{num(step.ReportFD), at(0), num(step.RecordSize)}, Name: "report that the namespace is there"},
		{Nr: unix.SYS_READ, Result: 0, Args: [step.MaxArgs]step.Arg{num(step.StartFD), at(8), num(1)}, Name: "wait for the end"},
		{Nr: unix.SYS_EXIT, Result: step.NoResult, Name: "end"},
	}}
}

func lines(maps []specs.LinuxIDMapping) (out []sys.IDMap) {
	for _, m := range maps {
		out = append(out, sys.IDMap{Inside: m.ContainerID, Outside: m.HostID, Count: m.Size})
	}
	return out
}
