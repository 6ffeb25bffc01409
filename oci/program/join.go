package program

import (
	"encoding/binary"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// joinOrder is the order in which namespaces are joined by somebody with
// privileges outside: the user namespace last, since he loses them there.
var joinOrder = []specs.LinuxNamespaceType{
	specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace, specs.TimeNamespace,
	specs.PIDNamespace, specs.UserNamespace,
}

// join enters the namespaces of the table.
func (c *compiler) join() {
	if c.ns.joined&unix.CLONE_NEWUSER != 0 {
		c.hide()
	}
	if f, ok := c.in.Join[specs.UserNamespace]; ok && c.in.Rootless {
		c.setns(f, specs.UserNamespace)
	}
	for _, t := range joinOrder {
		if f, ok := c.in.Join[t]; ok && !(c.in.Rootless && t == specs.UserNamespace) {
			c.setns(f, t)
		}
	}
}

func (c *compiler) setns(f int, t specs.LinuxNamespaceType) {
	c.call("join the "+string(t)+" namespace", unix.SYS_SETNS, file(f), val(namespaceFlags[t]))
}

// twice says whether it takes two clones. New namespaces belong to the user
// namespace of who makes them, so a joined one comes before. A pid namespace is
// entered by children only. And who is in a new user namespace may join nothing
// of another one.
func (c *compiler) twice() bool {
	return c.ns.joined&(unix.CLONE_NEWUSER|unix.CLONE_NEWPID) != 0 || c.ns.fresh&unix.CLONE_NEWUSER != 0 && c.ns.joined != 0
}

// hop joins what is to be joined, and goes on in a child.
func (c *compiler) hop(flags uint64) {
	c.join()
	c.secondClone(flags)
}

// cloneArgsSize is CLONE_ARGS_SIZE_VER0, and parentTID the place of parent_tid in
// that.
const (
	cloneArgsSize = 64
	parentTID     = 24
)

// secondClone goes on in a sibling: a child of the same parent, who learns its
// pid as the kernel wrote it, while the one who forked it ends. The exit signal of
// a sibling is inherited.
func (b *builder) secondClone(flags uint64) {
	born := b.room(step.RecordSize)
	binary.NativeEndian.PutUint32(b.p.Data[born.Val+4:], step.Born)
	args := b.room(cloneArgsSize)
	binary.NativeEndian.PutUint64(b.p.Data[args.Val:], flags|unix.CLONE_PARENT|unix.CLONE_PARENT_SETTID)
	b.point(args.Val+parentTID, born)
	var child label
	b.call("go on in a sibling", unix.SYS_CLONE3, args, val(cloneArgsSize)).to(rAny)
	b.expect("be the sibling", reg(rAny), 0, ^uint64(0), unix.ECHILD).then(&child).ok(unix.ECHILD)
	b.call("report its birth", unix.SYS_WRITE, val(step.ReportFD), born, val(step.RecordSize))
	b.call("leave the rest to it", unix.SYS_EXIT_GROUP, val(0))
	b.here(&child)
}

// becomeRoot takes the ids that make the mounts, and the terminal of an exec. Until then the process has none
// that mean anything in its user namespace, and what it made would belong to
// nobody, and could not be given away.
func (b *builder) becomeRoot(uid, gid uint32) {
	b.call("be the first group of the user namespace", unix.SYS_SETRESGID, val(gid), val(gid), val(gid))
	b.call("be the first user of it", unix.SYS_SETRESUID, val(uid), val(uid), val(uid))
	b.hide()
}

// hide keeps those with capabilities in the user namespace from tracing the process
// until its execve. A monitor's children are hidden from birth; who has an
// unprivileged parent must be seen by newuidmap(1) until its ids are mapped.
func (b *builder) hide() {
	b.call("be looked into by nobody", unix.SYS_PRCTL, val(unix.PR_SET_DUMPABLE), val(0), val(0), val(0), val(0))
}
