// Package machine makes virtual machines with Debian in them: systemd as PID 1, cgroup v2 with all controllers, kernels older than
// the build machine's. Everything of it is Debian's own packages, fetched by mmdebstrap through the machine's configured apt sources.
//
//	Recipe --mmdebstrap--> directory --mke2fs -d--> root.img, vmlinuz, modules     cached by the recipe's digest
//	                                                   | sparse copy       |
//	Machine:  QEMU process  <-- disk.img (cache=none) -+     initrd = agent + modules + unit, made per boot
//	             |  socketpair = virtio-serial port "vitrine.agent"
//	             +--> link.Client: Run, Put, Get          serial.log: what the kernel and systemd said
//
// A Machine outlives its boots: PowerCut kills QEMU and leaves the disk as the guest had written it, Boot starts QEMU
// on it again, Reboot is an orderly way round. Nothing waits without a deadline, and QEMU dies with the process that started it.
package machine
