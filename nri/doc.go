// Package nri asks the plugins of a node, by the Node Resource Interface: what they want changed in a container before
// it is made, and whether a pod may run. It knows no pods of its own; whoever calls it describes them.
//
//	sandbox ──► Plugins ──► adaptation (github.com/containerd/nri) ──► plugin 00 ──► plugin 10 ──► ...
//	   ▲                                                                   │
//	   '──────────── Runtime: state, unsolicited updates, evictions ◄──────'
//
// Bought are the protocol, the order of the plugins by their index, and the merging of what they answer, in which two of
// them that set the same thing are a conflict. Ours is what the adaptation leaves open:
//
//   - A plugin that is required and is not there, hangs or hangs up fails the request. The adaptation drops such a plugin and goes on
//     as if there had been none.
//   - Evictions: the adaptation counts them and forgets them.
//   - The removal of a variable or device that the container brought: it is in the request afterwards, and not in the answer.
//
// # Trust
//
// Whoever reaches the socket, or can write to the directory of plugins, mounts what he likes into any container: he is
// root of the node. So there is no socket unless it was asked for, it belongs to its owner alone, and
// a directory that others may write to is refused.
//
// # Bounds
//
// A request waits for each plugin Config.RequestTimeout at the most, one after the other; a plugin that took longer is hung up on,
// so that it costs its time once. There are at most 64 plugins, and at most 8 requests of theirs at a time. A message has 4 MiB
// at the most (ttrpc).
package nri
