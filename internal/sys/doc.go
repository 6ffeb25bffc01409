// Package sys is the floor of the house: raw kernel calls, the ownership of
// file descriptors, and probes for what this kernel can do.
//
//	everything above ── FD (one owner, closed once)
//	                 ── mount calls by descriptor (fsopen, open_tree, move_mount, ...)
//	                 ── pidfd calls, sealed memfds
//	                 ── Feature probes: tried, never guessed from a version
//
// Nothing here knows about containers. Calls return *os.SyscallError or
// *fs.PathError so that errors.Is works with syscall.Errno and with the fs
// sentinels; no call retries anything but EINTR.
package sys
