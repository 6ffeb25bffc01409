// Package monitor is the small process that stands behind one pod. It forks the
// pod's containers, waits for them, writes their logs and their exit records,
// and holds the pod's namespaces by being in them.
//
//	daemon ── monitor.sock ──┐   (comes and goes; several may be connected)
//	                         │
//	        ┌────────────────┴───────────────┐  net, ipc, uts: the pod's own
//	        │ monitor: one per pod           │  mnt: a read-only tmpfs with
//	        │  container ── pidfd, log, stdin│       /root /empty /null
//	        │  container ── …                │  pid, cgroup: the host's
//	        └───┬──────────┬──────────┬──────┘
//	          fork       fork       fork          by oci/executor
//	        (pause)   container    exec …
//
// It is started by oci.StartPod from a sealed memfd, is told everything that it
// must know by descriptor, and cannot open a path of the host afterwards.
//
// Who dies with whom:
//   - The daemon's death changes nothing. Requests in flight are finished;
//     their answers are lost, and List tells a new daemon what became of them.
//   - A container's death writes exit.json into its directory, and then tells
//     every daemon that is connected. Whoever is left in its cgroup is killed.
//   - The monitor's death leaves running containers without log and without
//     a waiter. Nothing here can end them: a parent-death signal follows threads, not
//     processes, and a supervisor could die as well. A container that is still
//     blocked before its start ends by itself (its start pipe is closed); the others
//     are killed by the daemon through their cgroups, as soon as it sees the connection
//     close or, restarted, finds that nobody answers on the socket.
//     A pod is never left half alive, and its exit codes are then unknown, not invented.
//
// Memory: no spec and no JSON is kept. A program stays in the daemon's memfd, which is
// open until the execve, and is mapped by its own child only.
package monitor
