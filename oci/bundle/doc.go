// Package bundle is the OCI runtime behind the command line: the verbs of the
// runtime specification over bundles in the file system, without any process of ours that
// stays.
//
//	config.json ── source: detached mounts ──┐
//	            ── program.Compile ──────────┤
//	            ── cgroup: limits, scope ────┤
//	                                         ▼
//	create ── a thread in the tiny mount namespace ── executor.Start ── child
//	   │                                                   │ blocked at its start wait,
//	   │  <root>/<id>/   0700, flock(2) on it              │ holds both FIFOs open
//	   └─►  state.json   who it is (runtime.md, State)     │
//	        config.json  what it was made from             │
//	        program      what it runs, for explain         │
//	        start        FIFO: one byte releases it   ◄────┤
//	        report       FIFO: errors; ends at execve ◄────┘
//	start ── executor.Attach ── Release
//
// create ends, so the child's parent is whoever reaps orphans then: conmon, the
// shim of containerd, init. It holds the start FIFO open for writing itself and so
// waits on without us.
//
// What can be asked of the kernel is not written down. Whether a container is
// created, running, paused or stopped follows from its process: that it exists (by pid
// and start time), whether it has executed something yet, and whether its cgroup is frozen.
//
// Who is not root has all of this done by a second process of ours, root of a user namespace
// that is made for it: see enter.
//
// A directory in root is the unit of deletion. It appears whole and locked (rename),
// and its record names the cgroup before that is made, so that delete can undo what a
// create that was killed has left.
package bundle
