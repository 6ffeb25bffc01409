// Package cni connects pods to the node's network by the Container Network
// Interface: it reads the node's configuration, runs the plugins, and never
// forgets to run them again for DEL.
//
//	Add:  lo up ── write the intent ── ADD plugin 1 … n ── result
//	                                     │ failure: DEL n … 1, intent removed
//	Del:  read the intent ── DEL n … 1 ── remove the intent
//
// An intent is a small file that says which configuration list, with which
// arguments, was about to be used for a pod. It is on disk before the first
// plugin runs and goes away only after DEL has succeeded. A daemon that was
// killed in between, at any point, finds it through Pending and calls Del;
// the plugins' specification demands that DEL of something half made or not
// made succeeds. The list itself is in the intent: a pod leaves by the
// configuration that brought it, whatever the administrator has changed since.
//
// Plugins are other people's programs that run as root. Each runs in a process
// group of its own, which is killed whole when the call's context ends, when the
// plugin fails, and when a new daemon finds it still at work for a daemon that
// was killed. What it prints is bounded, and so is what errors quote of it. A
// plugin that not even that ends (it waits in the kernel, for a dead disk) keeps the turn of its
// pod, and nothing else: callers get an error that names the process, and the next verb
// for that pod waits until it has ended, so that a DEL never overtakes an ADD.
package cni
