// Package sandbox runs pods: it turns CRI requests into monitors, containers, networks and files, remembers
// what it did, and finds it again after a restart.
//
//	Manager ----- Sandbox (a pod) ----- Container
//	   |             |- monitor (package oci): the pod's processes and namespaces
//	   |             |- network (package cni), netns pinned below /run/netns
//	   |             '- files: resolv.conf, hostname, hosts, shm
//	   |
//	   '- snapshot of all pods and containers, which every read is served from
//
// # On disk
//
//	<run>/pods/<pod>/pod.json               what was asked for, and what became of it
//	                 monitor.sock           the monitor's
//	                 resolv.conf hostname hosts
//	                 shm/                   mount point of the pod's tmpfs
//	                 <container>/container.json   as pod.json
//	                             config.json      the runtime spec
//	                             exit.json        the monitor's: the exit that cannot be lost
//
// A record is written before the first resource exists and is removed after the last one is gone. Every
// resource has a name that follows from the record, so that one function (erase) can take a pod or a
// container away from any point of its life. A failed request, a removal, and the recovery of what a killed
// daemon left half-made all use it.
//
// # Who knows what
//
// The monitor is the authority on life: pids and exits. The record is the authority on configuration. Facts
// (created at, started at, finished at) are kept for each container, and its state is derived from them and
// nothing else; see facts.next for the table.
//
// # Requests
//
// RunPodSandbox and CreateContainer are idempotent by (uid, namespace, name, attempt) and (pod, name,
// attempt). They run detached from their caller's cancellation, under a deadline of their own; a retry joins
// the running operation, and a result that nobody was there to take is given to the first who asks again
// for the same thing. Whatever fails is rolled back before its error is returned. Stop and Remove join in the
// same way.
//
// # Locks
//
// Reads take the snapshot from an atomic pointer, and facts from another; no lock that a read takes is ever
// held over a system call. Manager.mu orders the changes of the snapshot. Sandbox.mu and Container.mu order
// the writers of facts and are held over the writing of one record, so that what is on disk never goes back.
// Whoever ends a pod holds its token (lockEnd) for as long as that takes.
package sandbox
