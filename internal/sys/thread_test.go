package sys

import (
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLostThreadLeavesNoTrace changes namespaces on many threads at once, the
// main one's goroutine among them, and looks where the process stands.
func TestLostThreadLeavesNoTrace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: unshares a network namespace")
	}
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	sentinel := errors.New("seen")
	var wg sync.WaitGroup
	for range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			err := OnLostThread(func() error {
				if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
					return err
				}
				now, _ := os.Readlink("/proc/thread-self/ns/net")
				if now == before {
					return errors.New("not unshared")
				}
				return sentinel
			})
			if !errors.Is(err, sentinel) {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	for range 50 {
		for _, p := range []string{"/proc/self/ns/net", "/proc/thread-self/ns/net"} {
			if now, _ := os.Readlink(p); now != before {
				t.Fatalf("%s is %s, was %s", p, now, before)
			}
		}
	}
}
