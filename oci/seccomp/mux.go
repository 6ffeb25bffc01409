package seccomp

import "slices"

// The calls behind socketcall(2) and ipc(2), in the order of their numbers (linux/net.h, linux/ipc.h).
var (
	socketCalls = []string{"", "socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send", "recv",
		"sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg"}
	ipcCalls = map[string]uint64{"semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12, "msgget": 13, "msgctl": 14,
		"shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24}
)

// multiplexer says through which call, and under which test of its first argument, a call can also be reached; "" if it cannot.
func multiplexer(name string) (string, test) {
	if i := slices.Index(socketCalls, name); i > 0 {
		return "socketcall", test{op: opEQ, value: uint64(i)}
	}
	if n, ok := ipcCalls[name]; ok {
		// The upper half of the first argument is a version, which the kernel cuts off.
		return "ipc", test{op: opMaskedEQ, value: n, mask: 0xffff}
	}
	return "", test{}
}

// addCopy lets a rule reach its call through the multiplexer.
func (g *program) addCopy(i int, mux string, number test, e *entry, w *warnings) error {
	numbers := g.lookup(mux)
	if numbers == nil || numbers[i] < 0 || e.action == g.deflt {
		return nil
	}
	if len(e.tests[0]) > 0 && int32(e.action&actionFull) > int32(g.deflt&actionFull) {
		return nil
	}
	return g.set(i, uint32(numbers[i]), mux).add(mux, rule{action: e.action, tests: []test{number}, copied: true}, w)
}
