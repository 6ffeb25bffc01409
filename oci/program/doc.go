// Package program compiles an OCI runtime spec into a program of system calls,
// checks it, and explains it.
//
//	specs.Spec ── refuse what is not honoured, by name
//	           ── namespaces   unshare, setns
//	           ── root         move_mount of the detached root to /root
//	           ── mounts       in the order of the spec, by descriptor
//	           ── devices      mknodat below a descriptor of /dev
//	           ── terminal     of the container's own devpts, its master sent out
//	           ── paths        masked and read-only
//	           ── pivot        pivot_root, detach the old root
//	           ── process      rlimits, keyring, capabilities, ids, directory
//	           ── wait         milestone, one byte from the monitor
//	           ── execute      seccomp filter, execve
//	                                         ──► step.Program
//
// The root filesystem and the sources of bind mounts arrive as descriptors of
// detached mounts (the program's file table); nothing of the host's file tree
// is named. Inside the root every path is resolved by openat2 with
// RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS relative to the root's descriptor,
// and everything is made with *at calls on single components: what an image
// has put where /dev or /proc should be cannot lead outside, however it is
// changed meanwhile.
//
// Outside the root a program knows three paths, all in the monitor's own tiny
// mount namespace: ScratchRoot, where the new root is attached before the
// pivot, and EmptyDir and NullFile, which masked paths are covered with.
//
// A destination whose last link dangles is covered itself if a file goes there.
// A directory cannot be attached to a link, and steps cannot follow what they
// read: behind a directory's dangling link nothing is made, and the program ends,
// unless Input.Targets says where it leads. That place stays confined.
//
// Where /dev is a bind mount, no devices and links are made: it has its own.
//
// What is not expressed here: linux.resources (package cgroup writes them
// before the process exists), process.oomScoreAdj (written by the monitor: a
// child that writes its own could lower it again), and hooks, which would fork
// inside the program.
package program

// Paths in the monitor's mount namespace that programs name.
const (
	ScratchRoot = "/root"  // directory: mount point of the new root
	EmptyDir    = "/empty" // empty directory
	NullFile    = "/null"  // character device 1:3
)
