// Package executor forks a child that runs a program of system calls.
//
//	Start: check ─ map ─ patch ─ prologue ─ clone3 ──┬─ parent: Child
//	                                                 │
//	  child: dup files to 0,1,2,3,4,5… ─ close_range ─ step 0 ─ step 1 ─ …
//	         … ─ {ready} ─ read StartFD ─ … ─ execve
//	  report pipe:  Record per milestone or failure, EOF at execve (or death)
//
// The child is a raw fork of the calling process that never runs Go: a loop of
// about a hundred instructions (fork_amd64.s) walks the steps and makes the
// calls. It allocates nothing, takes no lock, touches no stack, and has one
// thread, so it may join any kind of namespace. The Go heap, the stacks and
// all other private writable memory of the parent are left out of the copy
// (MADV_DONTFORK): the page tables need not be copied, and what the parent
// knows of other containers is out of reach of this one even before its execve.
//
// A program in a sealed memfd is not even in the parent's memory: the child maps it, as
// the first thing that it does (sealed.go).
//
// What the caller must know:
//   - The caller is the parent. It reaps the child with waitid on PidFD.
//   - Signal handlers are cleared by clone3; the signal mask is set by the program.
//   - Nothing is inherited but the descriptors named in Attr.
//   - An address of the mapping means the same in parent and child, which is how
//     pointers in the program's data are patched before the fork.
//
// The loop exists for amd64. On another machine the package does not build,
// which is the honest form of "not yet".
package executor
