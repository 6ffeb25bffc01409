// Package sysctl knows which kernel parameters belong to a namespace. What is
// not in its list belongs to the machine, and no container is given it: it is the
// one list of the server, the monitor, the compiler of programs and its checker.
//
//	net.*                                   network
//	kernel.msg*, .shm*, .sem, fs.mqueue.*   ipc
//	kernel.domainname                       uts
//	user.max_*                              user
package sysctl

import (
	"slices"
	"strings"
)

// Namespace is the kind of namespace that a parameter belongs to.
type Namespace uint8

// Kinds of namespaces that have parameters.
const (
	Machine Namespace = iota // none: whoever sets it sets it for everybody
	Net
	IPC
	UTS
	User
)

// ipc are the parameters of an ipc namespace below kernel/. The ids of the next
// objects (kernel.shm_next_id) are left to those who restore checkpoints.
var ipc = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem",
	"kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced",
}

// Of returns the kind of namespace that the parameter behind a path below
// /proc/sys belongs to. A path that is none, or that leads out of a directory,
// is the machine's. All of net/ is in the list: in a network namespace of its own
// the kernel shows those only that are the namespace's, and refuses to write the
// others.
//
// The host name is not in the list: runtime-spec has a field for it, and two
// would contradict each other.
func Of(path string) Namespace {
	words := strings.Split(path, "/")
	if slices.ContainsFunc(words, func(w string) bool { return w == "" || w == "." || w == ".." }) || strings.ContainsRune(path, 0) || len(path) > 1024 {
		return Machine
	}
	switch {
	case words[0] == "net" && len(words) > 1:
		return Net
	case len(words) == 3 && words[0] == "fs" && words[1] == "mqueue", slices.Contains(ipc, path):
		return IPC
	case path == "kernel/domainname":
		return UTS
	case len(words) == 2 && words[0] == "user" && strings.HasPrefix(words[1], "max_"):
		return User
	}
	return Machine
}

// Path returns the path below /proc/sys of a parameter's name, as sysctl(8) finds
// it: the first separator decides which of dot and slash separates, and the other
// one then stands for itself (net.ipv4.conf.eth0/1.forwarding is of interface
// eth0.1). It judges nothing: Of does.
func Path(key string) string {
	i := strings.IndexAny(key, "./")
	if i < 0 || key[i] == '/' {
		return key
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, key)
}
