// Package sys is the floor of the house: raw kernel calls and the ownership of
// file descriptors.
//
//	everything above ── FD (one owner, closed once)
//	                 ── mount calls by descriptor (fsopen, open_tree, move_mount, ...)
//	                 ── pidfd calls, sealed memfds
//
// Nothing here knows about containers. Calls return *os.SyscallError or
// *fs.PathError so that errors.Is works with syscall.Errno and with the fs
// sentinels; no call retries anything but EINTR.
package sys
