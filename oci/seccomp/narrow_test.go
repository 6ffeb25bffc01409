package seccomp

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// narrowTypes are the kernel's names for types of 32 bits and less that it declares arguments with.
var narrowTypes = regexp.MustCompile(`^(const )?(int|unsigned int|unsigned|u32|__u32|__s32|pid_t|uid_t|gid_t|umode_t|mqd_t|key_t|key_serial_t|qid_t|clockid_t|timer_t|rwf_t|enum \w+) \w+$`)

// TestNarrowIsTheKernels compares narrow.go with what the running kernel says of its own calls, for those where it has trace events.
func TestNarrowIsTheKernels(t *testing.T) {
	const dir = "/sys/kernel/tracing/events/syscalls"
	files, err := filepath.Glob(filepath.Join(dir, "sys_enter_*", "format"))
	if err != nil || len(files) == 0 {
		t.Skip("needs a kernel that shows its system calls in " + dir)
	}
	// Events are named after functions, which are not always named after the calls.
	renamed := map[string]string{"newstat": "stat", "newlstat": "lstat", "newfstat": "fstat", "newuname": "uname", "umount": "umount2", "sendfile64": "sendfile"}
	field := regexp.MustCompile(`(?m)^\tfield:(.*?);\s*offset:(\d+);`)
	checked := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(filepath.Base(filepath.Dir(f)), "sys_enter_")
		if n, ok := renamed[name]; ok {
			name = n
		}
		var want uint8
		for i, m := range argumentFields(field.FindAllStringSubmatch(string(b), -1)) {
			if narrowTypes.MatchString(m) {
				want |= 1 << i
			}
		}
		got := host().narrow[name]
		if name == "clone" {
			got = 0 // declared long, and cut
		}
		if host().lookup(name) != nil && got != want {
			t.Errorf("%s: narrow arguments %06b, the kernel says %06b", name, got, want)
		}
		checked++
	}
	t.Logf("%d calls checked", checked)
}

// argumentFields are the fields behind those that all events have and the number.
func argumentFields(fields [][]string) (list []string) {
	for _, m := range fields {
		if !strings.Contains(m[1], " common_") && m[1] != "int __syscall_nr" {
			list = append(list, m[1])
		}
	}
	return list
}

// TestNarrowKnowsItsCalls: every name is one that some machine has.
func TestNarrowKnowsItsCalls(t *testing.T) {
	for name := range host().narrow {
		known := false
		for _, m := range machines() {
			known = known || m.lookup(name) != nil
		}
		if !known {
			t.Errorf("narrow.go has %s, no table has", name)
		}
	}
	for goarch, m := range machines() {
		want := uint8(1)
		if goarch == "s390x" {
			want = 2 // the new stack comes before the flags
		}
		if m.narrow["clone"] != want {
			t.Errorf("%s: clone %b", goarch, m.narrow["clone"])
		}
	}
	if host().bigEndian != (runtime.GOARCH == "s390x") {
		t.Error("byte order")
	}
}
