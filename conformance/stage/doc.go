// Package stage gives the real daemon a place where it can be tried without touching the host: private mount,
// network, PID, IPC and cgroup namespaces, a loopback registry with an image made on the spot, a CNI network, and a
// check that nothing is left afterwards. `make try`, the integration tests and the benchmark all stand on it.
//
//	host        outer    the program as it was started: makes a cgroup, waits, removes the cgroup
//	             |  clone(NEWNS|NEWPID|NEWNET|NEWIPC|NEWUTS), into the cgroup
//	inside      init     pid 1: mounts /proc, /run (tmpfs) and /sys/fs/cgroup (cgroup2, rooted at our cgroup),
//	             |       brings lo up, reaps whatever is orphaned
//	             |  fork
//	            player   the same program again: Enter returns, and it starts daemons, pods, tests
//	             |  fork
//	            daemon   vitrine serve
//
// All that the player and its daemons make lives in tmpfs, in the namespaces, or below the one cgroup. The end of
// init is therefore the end of all of it, even if the player was killed.
package stage
