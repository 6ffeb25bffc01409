package ready

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newSet(t *testing.T) *Set {
	t.Helper()
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func pipe(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	return p[0], p[1]
}

// read waits and reads until something comes, as users of a Set do.
func read(s *Set, fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EAGAIN {
			return n, err
		}
		if err := s.Wait(fd); err != nil {
			return 0, err
		}
	}
}

// TestWaits has many goroutines wait for bytes and for the end, more than come with
// one look at the set, and with numbers that are used again at once.
func TestWaits(t *testing.T) {
	s := newSet(t)
	var all sync.WaitGroup
	for i := range 40 {
		all.Add(1)
		go func() {
			defer all.Done()
			for round := range 50 {
				r, w := pipe(t)
				go func() {
					if (i+round)%3 == 0 {
						time.Sleep(time.Duration(i) * 10 * time.Microsecond)
					}
					_, _ = unix.Write(w, []byte{byte(i)})
					_, _ = unix.Write(w, []byte{byte(round)})
					unix.Close(w)
				}()
				var got []byte
				for b := make([]byte, 1); ; {
					n, err := read(s, r, b)
					if err != nil {
						t.Error(err)
					}
					if n == 0 || err != nil {
						break
					}
					got = append(got, b[0])
				}
				if len(got) != 2 || got[0] != byte(i) || got[1] != byte(round) {
					t.Errorf("pipe %d of %d: %v", round, i, got)
				}
				unix.Close(r)
			}
		}()
	}
	all.Wait()
	if len(s.waiting) != 0 {
		t.Errorf("%d still wait", len(s.waiting))
	}
}

// TestWaitForDeath waits for a process.
func TestWaitForDeath(t *testing.T) {
	s := newSet(t)
	c, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "read x"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil}})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(c.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := s.Wait(fd); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestCloseEndsWaits ends the set under somebody who waits, and before somebody else does.
func TestCloseEndsWaits(t *testing.T) {
	s := newSet(t)
	r, w := pipe(t)
	defer unix.Close(r)
	defer unix.Close(w)
	done := make(chan error)
	go func() { done <- s.Wait(r) }()
	time.Sleep(20 * time.Millisecond)
	s.Close()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("still waits")
	}
	if err := s.Wait(r); !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.EBADF) {
		t.Errorf("wait in a closed set: %v", err)
	}
}

// TestWaitForNothing says so of what cannot be waited for.
func TestWaitForNothing(t *testing.T) {
	if err := newSet(t).Wait(1 << 20); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
}
