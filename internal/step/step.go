// Package step is the shape of a program: a list of system calls as data.
//
// There is no container in the kernel; there is a process to which a list of
// system calls was applied. Package program compiles an OCI spec into such a
// list, package executor runs it in a freshly forked child, and both meet here,
// so that neither knows the other.
//
//	Program ─┬─ Clone   flags of the clone3 that makes the child
//	         ├─ Files   what descriptors 5, 6, ... of the child are
//	         ├─ Steps   ┌ nr  result  (a0 … a5)  errno→skip …  name ┐
//	         │          └ one system call, or a pseudo call        ┘
//	         ├─ Data    strings, structs, the seccomp filter
//	         └─ Relocs  pointers inside Data, patched when it is mapped
//
// A step may branch forward only, so every program ends. The child's
// descriptors are fixed by convention: 0, 1 and 2 are its stdio, ReportFD
// carries a Record for a milestone or a failure and is closed by a successful
// execve, StartFD is what the start wait reads, and Files follow.
//
// The encoding is what crosses the socket to the monitor: versioned, flat, and
// for one machine architecture, since system-call numbers differ. A newer
// daemon may send its programs to an older monitor: the system-call interface
// of the kernel is the stable part.
package step

import "golang.org/x/sys/unix"

// Descriptors that every child has at the same number.
const (
	ReportFD = 3 // pipe to the parent: records; close-on-exec
	StartFD  = 4 // pipe from the parent: one byte releases the start wait
	FirstFD  = 5 // Files[0]; by convention the root filesystem of a container
)

// Limits of a program. They bound what a decoder allocates and what the child
// addresses.
const (
	MaxArgs     = 6       // of a Linux system call
	MaxBranches = 4       // errno branches of one step
	MaxSteps    = 1 << 16 // a thousand mounts on deep, missing directories are about forty thousand
	MaxFiles    = 4096    // descriptors handed over
	MaxSize     = 16 << 20
	Registers   = 64 // the last one is the child's own
)

// ReportRegister holds the descriptor that failures are written to. The executor's
// prologue sets it; a program that passes on descriptors moves it, by OpSet.
const ReportRegister Register = Registers - 1

// maxErrno is the highest number that the kernel returns for a failure.
const maxErrno = 4095

// cloneFlags are what a program may ask of clone3: new namespaces and nothing
// that would share memory, descriptors or a parent with the one who forks.
const cloneFlags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS |
	unix.CLONE_NEWCGROUP | unix.CLONE_NEWUSER | unix.CLONE_NEWTIME

// NoResult says that nobody reads what the call returned.
const NoResult Register = 0xff

// Pseudo calls live above every system-call number.
const (
	// OpExpect fails with errno a2, a constant, unless a0&a3 == a1. It is how a
	// program looks at what an earlier call returned or wrote.
	OpExpect uint32 = 1<<16 + iota
	// OpSet returns a0, which moves a value between registers or only skips. As
	// with a system call, a value from -4095 to -1 is a failure.
	OpSet
	// OpStore writes the a2 (4 or 8) low bytes of a0 into Data at a1 and returns
	// 0: a call that takes a descriptor inside a struct can be given one that the
	// program has opened.
	OpStore
	// OpHand shows a0, a descriptor, to whoever forked the child, waits until he has
	// taken it (pidfd_getfd) and returns 0. It makes no system call, which the
	// process's own seccomp filter might forbid or ask about, but looks again and again
	// at its memory; who is left alone with that dies by an illegal instruction after
	// some seconds.
	OpHand
)

// Register names one of the child's 64-bit result registers.
type Register uint8

// Gates are the waits that a program may have before its start wait: it reports
// the milestone and reads one byte, while the parent does from outside what the
// child cannot do itself. The names are those of the reading steps, by which the
// parent tells one from the other.
const (
	GateMaps  = "wait for the id maps"         // uid_map and gid_map of the user namespace that the child is in
	GateNet   = "wait for network devices"     // moved into the network namespace of the child
	GateHooks = "wait for hooks of the bundle" // namespaces and mounts are made, the root is not entered
)

// Kind says how an argument gets its value when the step runs.
type Kind uint8

// Kinds of arguments.
const (
	Const Kind = iota // the value itself
	Addr              // address of the byte at this offset in Data
	Reg               // content of this register
	Mem8              // the byte at this offset in Data
	Mem32             // 32 bits at this offset, native order
	Mem64             // 64 bits at this offset, native order
	kinds
)

// Arg is one argument of a step.
type Arg struct {
	Kind Kind
	Val  uint64
}

// Branch says what follows when a call fails with Errno: Skip steps are left
// out and the program goes on. An errno without a branch ends the child.
type Branch struct {
	Errno uint16
	Skip  uint16
}

// Step is one system call or pseudo call. The runner repeats an openat2 that
// returns EAGAIN: with a ".." on its way, in a symlink say, the kernel does that
// whenever anybody on the machine renames or mounts something meanwhile.
type Step struct {
	Nr     uint32
	Result Register // register for the return value, or NoResult
	Args   [MaxArgs]Arg
	OnErr  []Branch
	Then   uint16 // steps left out after success
	Name   string // what it is for, to be read by people
}

// Reloc says that the 8 bytes at At in Data hold a pointer to To in Data.
type Reloc struct {
	At, To uint32
}

// NoWait is the Wait of a program that runs through to its execve.
const NoWait = -1

// Program is a list of system calls with everything that they refer to.
type Program struct {
	Clone  uint64   // CLONE_NEW* flags for clone3
	Wait   int      // index of the step that blocks until the start, or NoWait
	Files  []string // what Files[i] (descriptor FirstFD+i) is
	Steps  []Step
	Data   []byte
	Relocs []Reloc
}

// Record is what a child writes to ReportFD, 8 bytes in native order: errno 0
// is the milestone of having reached step Step (a gate or the start wait), any other errno is the failure
// of that step. Negative steps belong to the executor's prologue.
type Record struct {
	Step  int32
	Errno uint32
}

// Born in the place of the errno says that Step is the pid, as its parent sees it,
// of a sibling that goes on with the program in the place of the child that forked
// it and now ends.
const Born = 1 << 16

// RecordSize is the encoded size of a Record.
const RecordSize = 8
