package seccomp

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestTableAgainstKernelHeaders compares the numbers with the machine's own headers, for all ABIs that x86 has. Headers may be older
// than the table, not the other way round.
func TestTableAgainstKernelHeaders(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("needs the headers of an x86 kernel: those of its three ABIs are compared")
	}
	dir := "/usr/include/x86_64-linux-gnu/asm"
	for i, file := range []string{"unistd_64.h", "unistd_32.h", "unistd_x32.h"} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Skip("needs Debian's linux-libc-dev: " + err.Error())
		}
		n := 0
		seen := map[int]bool{}
		for _, m := range regexp.MustCompile(`#define __NR_(\w+) \(?(?:__X32_SYSCALL_BIT \+ )?(\d+)`).FindAllStringSubmatch(string(b), -1) {
			want, err := strconv.Atoi(m[2])
			if err != nil {
				t.Fatal(err)
			}
			got := host().lookup(m[1])
			if got == nil || got[i] != want {
				t.Errorf("%s: %s is %v, header says %d", file, m[1], got, want)
			}
			seen[want] = true
			n++
		}
		for _, c := range host().calls {
			if v := c.numbers[i]; v >= 0 && v <= 440 && !seen[v] && v != 335 && v != 336 {
				t.Errorf("%s has no %s (%d)", file, c.name, v)
			}
		}
		t.Logf("%s: %d numbers agree", file, n)
	}
}

func TestTableIsSorted(t *testing.T) {
	if !slices.IsSortedFunc(host().calls, func(a, b callNumbers) int { return strings.Compare(a.name, b.name) }) {
		t.Error("lookup searches by halves")
	}
	for _, name := range append(slices.Collect(keysOf(ipcCalls)), socketCalls[1:]...) {
		if _, ok := multiplexed()[name]; !ok {
			t.Error(name)
		}
	}
}

func keysOf[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// TestTablesAreGenerated runs the generator and wants the committed files.
func TestTablesAreGenerated(t *testing.T) {
	if testing.Short() {
		t.Skip("needs time: runs the go command")
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	bin := filepath.Join(tmp, "gen")
	if out, err := exec.Command("go", "build", "-o", bin, "gen_tables.go").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(bin, tmp)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	made, err := filepath.Glob(filepath.Join(tmp, "tables_*.go"))
	if err != nil || len(made) < 9 {
		t.Fatal(made, err)
	}
	for _, m := range made {
		got, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Base(m))
		if err != nil || string(got) != string(want) {
			t.Errorf("%s is not what the generator makes (%v)", filepath.Base(m), err)
		}
	}
}
