// Vitrine is the daemon and the operator's tool: `vitrine serve` answers the
// Kubernetes CRI on a unix socket and runs pods.
//
//	main -> image.Init      a layer is unpacked by a copy of this program
//	     -> cobra           serve | config | images --watch, fsck, load, save | version
//
//	serve:  configuration -> locks -> image, cni, oci/cgroup, oci -> sandbox (recovery)
//	        -> socket -> server -> READY=1 ... SIGTERM -> drain -> exit
//
// The daemon may be killed at any time: pods live on without it, and the next start
// finds them. Ending gracefully only spares the clients an error.
package main
