// Package oci is the daemon's handle on pods: it starts a monitor for each,
// compiles OCI specs into programs, and speaks with the monitor over
// package wire. It is shaped like os/exec: a Pod makes Processes, a Process
// starts, is signalled and ends.
//
//	Runtime ── StartPod ──> Pod ── Create ──> Process ── Start, Signal, Exec ──> Exec
//	           DialPod ──>   │                                                    │
//	                         └── Events: Exited, …, MonitorLost                  Wait
//
// A handle is a connection and nothing more. Closing it, or the death of the
// daemon, leaves the pod as it is; DialPod and List find everything again.
// Only Stop and Kill end a pod.
//
// Every call that asks a monitor takes a context and returns when that ends,
// also when the monitor is stuck. The request itself is not taken back: a Create that
// was given up may still have made its container, and the caller, who knows
// the id and the cgroup, kills that and calls Remove.
package oci
