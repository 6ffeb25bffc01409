package sysctl

import "testing"

func TestPath(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":               "net/ipv4/ip_forward",
		"net/ipv4/ip_forward":               "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/1.forwarding":   "net/ipv4/conf/eth0.1/forwarding",
		"net/ipv4/conf/eth0.1/forwarding":   "net/ipv4/conf/eth0.1/forwarding",
		"kernel.sem":                        "kernel/sem",
		"":                                  "",
		"single":                            "single",
		"net./etc/passwd":                   "net/.etc.passwd",
		"net.ipv4...ip_forward":             "net/ipv4///ip_forward",
		"net/../kernel/core_pattern":        "net/../kernel/core_pattern",
		"net.ipv4.conf.//.//.kernel.panic.": "net/ipv4/conf/../../kernel/panic/",
	} {
		if got := Path(key); got != want {
			t.Errorf("%q: %q, want %q", key, got, want)
		}
	}
}

func TestOf(t *testing.T) {
	for key, want := range map[string]Namespace{
		"net.ipv4.ip_forward": Net, "net.core.somaxconn": Net, "net/ipv4/conf/eth0.1/forwarding": Net,
		"kernel.shmmax": IPC, "kernel.sem": IPC, "kernel.msgmnb": IPC, "kernel.shm_rmid_forced": IPC, "fs.mqueue.msg_max": IPC,
		"kernel.domainname": UTS, "user.max_user_namespaces": User,
		// The machine's, and what only looks like a namespace's.
		"kernel.hostname": Machine, "kernel.core_pattern": Machine, "kernel.shm": Machine, "kernel.shmmax.x": Machine, "kernel.shm_next_id": Machine, "kernel.msgs": Machine,
		"fs.mqueue": Machine, "fs.mqueue.a.b": Machine, "fs.file-max": Machine, "vm.overcommit_memory": Machine, "user.x": Machine, "net": Machine,
		"": Machine, ".": Machine, "net.": Machine, "net..x": Machine, "net.ipv4.conf.//.//.kernel.panic": Machine, "net/../kernel/core_pattern": Machine,
		"net/./x": Machine, "/net/x": Machine, "net/x/": Machine, "net/x\x00": Machine, "Net.ipv4.ip_forward": Machine, "network.x": Machine,
	} {
		if got := Of(Path(key)); got != want {
			t.Errorf("%q: %d, want %d", key, got, want)
		}
	}
}
