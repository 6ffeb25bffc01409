package bundle

import (
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/notify"
)

// listen has the listener of a child's filter sent to whoever the profile names,
// with the container's state, before the child executes anything. It does nothing
// where there is none.
func (c *Container) listen(child *executor.Child, at uint64) error {
	if at == 0 {
		return nil
	}
	spec, err := c.Spec()
	if err != nil {
		return err
	}
	s := spec.Linux.Seccomp
	to, err := notify.Dial(s.ListenerPath)
	if err != nil {
		return err
	}
	state := c.rec.oci()
	state.Pid = c.rec.Init.Pid
	text, err := notify.Message(state, s.ListenerMetadata)
	if err != nil {
		to.Close()
		return err
	}
	child.Receive(at, func(fd *sys.FD) error {
		defer to.Close()
		defer fd.Close()
		return notify.Send(to.Int(), text, child.Pid(), fd)
	})
	return nil
}
