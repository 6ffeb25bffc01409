// Package link is what the harness on the host and the agent in the guest say to each other. One byte stream carries
// everything: a virtio-serial port between QEMU and the guest's kernel, which needs no network that a test could take away, and a
// unix socket between a second client and the process that holds the guest.
//
//	vm test  --unix socket-->  holder (Relay)  --virtio-serial-->  agent (in the guest, root)
//	vm shell --unix socket--^
//
//	agent -> host   hello(nonce, kernel, boot id)     when the agent starts, also after a reboot
//	host -> agent   welcome(nonce)                    all bytes before it are leftovers and are dropped
//	host -> agent   open(command)  stdin*  resize*  kill
//	agent -> host   stdout*  stderr*  exit(result)    exit is the last frame of a session
//	both            credit(n)                         n bytes of the session's stream were taken
//	client<->holder control(order)                    reboot, power cut, stop: what only QEMU's owner can do
//
// A session is one command. Each direction of a session has a window of bytes in flight, so that a command that does not read its
// input, or a terminal that is stopped, never holds up the others. Closing the stream ends every session on it.
package link
