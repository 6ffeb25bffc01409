package seccomp

import "sync"

// The calls behind socketcall(2) and ipc(2), in the order of their numbers (linux/net.h, linux/ipc.h).
var (
	socketCalls = []string{"", "socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send", "recv",
		"sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg"}
	ipcCalls = map[string]uint64{"semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12, "msgget": 13, "msgctl": 14,
		"shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24}
)

// hidden is where a call can also be reached.
type hidden struct {
	mux    string
	number test
}

// multiplexed maps the calls behind multiplexers to the test of the first argument under which these do their work.
var multiplexed = sync.OnceValue(func() map[string]hidden {
	m := map[string]hidden{}
	for i, name := range socketCalls[1:] {
		m[name] = hidden{"socketcall", test{op: opEQ, value: uint64(i) + 1}}
	}
	for name, n := range ipcCalls {
		// The upper half of the first argument is a version, which the kernel cuts off.
		m[name] = hidden{"ipc", test{op: opMaskedEQ, value: n, mask: 0xffff}}
	}
	return m
})

// addCopy lets a rule reach its call through the multiplexer.
func (g *program) addCopy(i int, h hidden, e *entry, w *warnings) error {
	numbers := g.lookup(h.mux)
	if numbers == nil || numbers[i] < 0 || e.action == g.deflt {
		return nil
	}
	if len(e.tests[0]) > 0 && int32(e.action&actionFull) > int32(g.deflt&actionFull) {
		return nil
	}
	return g.set(i, uint32(numbers[i]), h.mux).add(h.mux, rule{action: e.action, tests: []test{h.number}, copied: true}, w)
}
