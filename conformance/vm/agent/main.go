// Command agent is our part of the guest, one static binary with two lives. As /init of the initrd it loads the few modules that the
// root disk needs, mounts it, leaves itself and its unit below /run and becomes systemd. As the service vitrine-agent it
// runs what the harness sends over a virtio-serial port. So the root disk is Debian's alone, and a changed agent
// needs no new disk.
//
//	kernel -> /init (agent) -> insmod virtio_blk -> mount /dev/vda -> /run/vitrine-vm/agent + unit -> exec systemd
//	                                                       systemd -> vitrine-agent.service -> port <-> host
//
// Its words go to the serial console, where the harness keeps them.
package main

import (
	"fmt"
	"os"
)

func main() {
	var err error
	if os.Getpid() == 1 {
		err = initialize()
	} else {
		err = serve()
	}
	fmt.Fprintln(os.Stderr, "vitrine agent:", err)
	os.Exit(1) // as pid 1 this is a kernel panic, which ends QEMU at once: better than a wait for the deadline
}
