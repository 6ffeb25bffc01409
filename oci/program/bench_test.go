package program_test

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// BenchmarkContainer runs whole containers, one after the other: fork, six
// namespaces, mounts, pivot, busybox true, reaping. Compilation is outside, as
// it is the daemon's work.
func BenchmarkContainer(b *testing.B) { benchmarkContainer(b, false) }

// BenchmarkContainerInPod is the same without a network namespace of its own.
func BenchmarkContainerInPod(b *testing.B) { benchmarkContainer(b, true) }

func benchmarkContainer(b *testing.B, pod bool) {
	root := rootTree(b)
	s := testSpec("true")
	in := program.Input{Spec: s}
	if pod {
		in.Inherit = append(in.Inherit, "network", "ipc", "uts")
	}
	p, err := program.Compile(in)
	if err != nil {
		b.Fatal(err)
	}
	enc, err := p.Encode()
	if err != nil {
		b.Fatal(err)
	}
	proc, err := os.Open("/proc")
	if err != nil {
		b.Fatal(err)
	}
	defer proc.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	if err := executor.HideMemory(); err != nil {
		b.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() error {
			mounts, err := tinyNamespace(root, nil, nil)
			if err != nil {
				return err
			}
			rootFD := mounts[0]
			defer rootFD.Close()
			n := int(null.Fd())
			for b.Loop() {
				// A detached tree is attached once: each container gets a copy.
				fd, err := unix.OpenTree(rootFD.Int(), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
				if err != nil {
					return err
				}
				c, err := executor.Start(executor.Attr{Program: enc, CgroupFD: -1, PIDNS: -1, ProcFD: int(proc.Fd()),
					Stdio: [3]int{n, n, n}, Files: []int{fd}})
				unix.Close(fd)
				if err != nil {
					return err
				}
				if err := c.Ready(); err != nil {
					return err
				}
				if err := c.Release(); err != nil {
					return err
				}
				var ws unix.WaitStatus
				if _, err := unix.Wait4(c.Pid(), &ws, 0, nil); err != nil {
					return err
				}
				c.Close()
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCompile is the daemon's work for each container: compile, check, encode.
func BenchmarkCompile(b *testing.B) {
	in := program.Input{Spec: testSpec("true"), Seccomp: make([]byte, 8*400)}
	b.ReportAllocs()
	var code []byte
	for b.Loop() {
		var err error
		if code, err = program.Encode(in, code[:0]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkParse is the monitor's look at a program before it runs it.
func BenchmarkParse(b *testing.B) {
	code, err := program.Encode(program.Input{Spec: testSpec("true"), Seccomp: make([]byte, 8*400)}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := step.Parse(code); err != nil {
			b.Fatal(err)
		}
	}
}
