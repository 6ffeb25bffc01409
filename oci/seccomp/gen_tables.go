//go:build ignore

// Command gen_tables writes the tables_GOARCH.go files of package seccomp: the numbers of all system calls,
// read out of the zsysnum files of golang.org/x/sys/unix in the module cache. What has no file there is derived:
// x32 (from amd64), arm's private calls, n32 (from mips64le) and s390 (from s390x). Run it with go generate after golang.org/x/sys was raised. An argument is the directory to write to instead of this one.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/format"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// abi is one column of a table.
type abi struct {
	name   string // the OCI name
	source string // the GOARCH whose zsysnum file has the numbers
	token  string // AUDIT_ARCH_*
	extra  string // further fields of the Go literal
	derive func(map[string]int) map[string]int
}

// tables lists the Debian architectures. The first ABI is the native one; the others are those which the same kernel also runs.
var tables = map[string][]abi{
	"amd64": {
		{name: "X86_64", source: "amd64", token: "0xc000003e"},
		{name: "X86", source: "386", token: "0x40000003", extra: "narrow: true, mux: true"},
		{name: "X32", source: "amd64", token: "0xc000003e", extra: "base: x32Bit, private: 512", derive: x32},
	},
	"386": {{name: "X86", source: "386", token: "0x40000003", extra: "narrow: true, mux: true"}},
	"arm64": {
		{name: "AARCH64", source: "arm64", token: "0xc00000b7"},
		{name: "ARM", source: "arm", token: "0x40000028", extra: "narrow: true, private: 0xf0000", derive: arm},
	},
	"arm":     {{name: "ARM", source: "arm", token: "0x40000028", extra: "narrow: true, private: 0xf0000", derive: arm}},
	"loong64": {{name: "LOONGARCH64", source: "loong64", token: "0xc0000102"}},
	"mips64le": {
		{name: "MIPSEL64", source: "mips64le", token: "0xc0000008"},
		{name: "MIPSEL", source: "mipsle", token: "0x40000008", extra: "narrow: true, mux: true"},
		{name: "MIPSEL64N32", source: "mips64le", token: "0xe0000008", derive: n32},
	},
	"ppc64le": {{name: "PPC64LE", source: "ppc64le", token: "0xc0000015", extra: "mux: true"}},
	"riscv64": {{name: "RISCV64", source: "riscv64", token: "0xc00000f3"}},
	"s390x": {
		{name: "S390X", source: "s390x", token: "0x80000016", extra: "mux: true, zeroUnknown: true"},
		{name: "S390", source: "s390x", token: "0x00000016", extra: "narrow: true, mux: true, zeroUnknown: true", derive: s390},
	},
}

func main() {
	out := "."
	if len(os.Args) > 1 {
		out = os.Args[1]
	}
	version, dir := module()
	for goarch, abis := range tables {
		write(out, goarch, abis, version, dir)
	}
}

// module says where golang.org/x/sys lies and which version it is.
func module() (version, dir string) {
	out, err := exec.Command("go", "list", "-m", "-json", "golang.org/x/sys").Output()
	if err != nil {
		log.Fatal(err)
	}
	var m struct{ Version, Dir string }
	if err := json.Unmarshal(out, &m); err != nil {
		log.Fatal(err)
	}
	return m.Version, m.Dir
}

var entry = regexp.MustCompile(`(?m)^\s+SYS_(\w+)\s+= (\d+)`)

// placeholder are names in the files that are none of calls: holes, and constants that happen to begin like one.
var placeholder = regexp.MustCompile(`^(reserved\d+|unused\d+|arch_specific_syscall|syscall_mask)$`)

// numbers reads one zsysnum file.
func numbers(dir, goarch string) map[string]int {
	b, err := os.ReadFile(filepath.Join(dir, "unix", "zsysnum_linux_"+goarch+".go"))
	if err != nil {
		log.Fatal(err)
	}
	m := map[string]int{}
	for _, e := range entry.FindAllStringSubmatch(string(b), -1) {
		n, err := strconv.Atoi(e[2])
		if err != nil {
			log.Fatal(err)
		}
		if name := strings.ToLower(e[1]); !placeholder.MatchString(name) {
			m[name] = n
		}
	}
	return m
}

// x32 is amd64 without its 64-bit-only calls and with 36 calls of its own from 512 on. Both lists are closed: the kernel adds
// new calls to both ABIs under one number (arch/x86/entry/syscalls/syscall_64.tbl says so).
func x32(amd64 map[string]int) map[string]int {
	m := map[string]int{}
	for n, v := range amd64 {
		m[n] = v
	}
	for _, n := range strings.Fields(`_sysctl create_module epoll_ctl_old epoll_wait_old get_kernel_syms get_thread_area
		nfsservctl query_module set_thread_area uselib vserver`) {
		delete(m, n)
	}
	for i, n := range strings.Fields(`rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace
		rt_sigpending rt_sigtimedwait rt_sigqueueinfo sigaltstack timer_create mq_notify kexec_load waitid set_robust_list
		get_robust_list vmsplice move_pages preadv pwritev rt_tgsigqueueinfo recvmmsg sendmmsg process_vm_readv
		process_vm_writev setsockopt getsockopt io_setup io_submit execveat preadv2 pwritev2`) {
		m[n] = 512 + i
	}
	return m
}

// arm adds the private calls of asm/unistd.h and the second name of call 341.
func arm(m map[string]int) map[string]int {
	for i, n := range strings.Fields("breakpoint cacheflush usr26 usr32 set_tls get_tls") {
		m[n] = 0xf0001 + i
	}
	if n, ok := m["arm_sync_file_range"]; ok {
		m["sync_file_range2"] = n
	}
	return m
}

// time64 are the calls that 32-bit ABIs got for times after 2038, from 403 on in all of them; "-" where the sequence has a hole.
var time64 = strings.Fields(`clock_gettime64 clock_settime64 clock_adjtime64 clock_getres_time64 clock_nanosleep_time64 timer_gettime64
	timer_settime64 timerfd_gettime64 timerfd_settime64 utimensat_time64 pselect6_time64 ppoll_time64 - io_pgetevents_time64 recvmmsg_time64
	mq_timedsend_time64 mq_timedreceive_time64 semtimedop_time64 rt_sigtimedwait_time64 futex_time64 sched_rr_get_interval_time64`)

// put enters names at consecutive numbers.
func put(m map[string]int, from int, names ...string) {
	for i, n := range names {
		if n != "-" {
			m[n] = from + i
		}
	}
}

// n32 is mips64le from 6000 on, with calls of its own between, which shift those behind them. From 403 on all ABIs have the same numbers.
func n32(mips64 map[string]int) map[string]int {
	m := map[string]int{}
	for n, v := range mips64 {
		v -= 5000
		switch {
		case v < 212 || v >= 403:
		case v < 216:
			v++
		case v < 295 || v > 308:
			v += 4
		case v < 308:
			v += 5
		default:
			v = 299 // getdents64
		}
		m[n] = 6000 + v
	}
	put(m, 6212, "fcntl64")
	put(m, 6217, "statfs64", "fstatfs64", "sendfile64")
	put(m, 6403, time64...)
	return m
}

// s390 is s390x with the 16-bit ids, the 32-bit file sizes and the times of old. The list is closed: kernels since 6.19 do not run such programs.
func s390(s390x map[string]int) map[string]int {
	m := map[string]int{}
	for n, v := range s390x {
		if v < 470 {
			m[n] = v
		}
	}
	for _, n := range strings.Fields("newfstatat select semtimedop") {
		delete(m, n)
	}
	for n, v := range map[string]int{
		"time": 13, "lchown": 16, "setuid": 23, "getuid": 24, "stime": 25, "setgid": 46, "getgid": 47, "geteuid": 49, "getegid": 50, "setreuid": 70,
		"setregid": 71, "getrlimit": 76, "getgroups": 80, "setgroups": 81, "fchown": 95, "ioperm": 101, "setfsuid": 138, "setfsgid": 139,
		"_llseek": 140, "_newselect": 142, "setresuid": 164, "getresuid": 165, "setresgid": 170, "getresgid": 171, "chown": 182,
		"ugetrlimit": 191, "mmap2": 192, "truncate64": 193, "ftruncate64": 194, "stat64": 195, "lstat64": 196, "fstat64": 197,
		"fcntl64": 221, "sendfile64": 223, "fadvise64_64": 264, "fstatat64": 293,
	} {
		m[n] = v
	}
	put(m, 198, strings.Fields(`lchown32 getuid32 getgid32 geteuid32 getegid32 setreuid32 setregid32 getgroups32 setgroups32 fchown32
		setresuid32 getresuid32 setresgid32 getresgid32 chown32 setuid32 setgid32 setfsuid32 setfsgid32`)...)
	put(m, 403, time64...)
	return m
}

// write makes one file in the directory out.
func write(out, goarch string, abis []abi, version, dir string) {
	columns := make([]map[string]int, len(abis))
	names := map[string]bool{}
	for i, a := range abis {
		columns[i] = numbers(dir, a.source)
		if a.derive != nil {
			columns[i] = a.derive(columns[i])
		}
		for n := range columns[i] {
			names[n] = true
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "// Code generated by gen_tables.go from golang.org/x/sys %s; DO NOT EDIT.\n\npackage seccomp\n\n", version)
	fmt.Fprintf(&b, "// hostABIs are the ABIs of a linux/%s kernel, the native one first; their order is that of the columns below.\n", goarch)
	fmt.Fprintf(&b, "var hostABIs = []abi{\n")
	for _, a := range abis {
		extra := a.extra
		if extra != "" {
			extra = ", " + extra
		}
		fmt.Fprintf(&b, "\t{name: %q, token: %s%s},\n", "SCMP_ARCH_"+a.name, a.token, extra)
	}
	fmt.Fprintf(&b, "}\n\n// tableText has a line for each system call: its name, and its number in each ABI (- where there is none).\nconst tableText = `")
	for _, n := range slices.Sorted(keys(names)) {
		b.WriteString(n)
		for _, c := range columns {
			if v, ok := c[n]; ok {
				fmt.Fprintf(&b, " %d", v)
			} else {
				b.WriteString(" -")
			}
		}
		b.WriteByte('\n')
	}
	b.WriteString("`\n")
	src, err := format.Source(b.Bytes())
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(out, "tables_"+goarch+".go"), src, 0o644); err != nil {
		log.Fatal(err)
	}
}

func keys(m map[string]bool) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
