package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/conformance/vm/link"
)

// portName is the name that the harness gives to the virtio-serial port.
const portName = "vitrine.agent"

// serve runs as a service; systemd starts it again when it ends.
func serve() error {
	cgroup, err := settle()
	if err != nil {
		return err
	}
	port, err := openPort(10 * time.Second)
	if err != nil {
		return err
	}
	defer port.Close()
	g := link.Greeting{Nonce: rand.Text(), Kernel: kernel()}
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		g.BootID = strings.TrimSpace(string(b))
	}
	a := &agent{cgroup: cgroup}
	err = link.Serve(port, g, a.start)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the host closed the port")
	}
	return err
}

// openPort finds the port by its name in sysfs, so that it works before udev does.
func openPort(patience time.Duration) (*os.File, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == portName {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("find port %s: none of %d ports has that name", portName, len(names))
		}
	}
}

// settle moves the agent into a leaf of its service's cgroup, so that each command can have one beside it, and keeps the
// guest's OOM killer away: without an agent the guest is lost.
func settle() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	_, path, _ := strings.Cut(strings.TrimSpace(string(b)), "::")
	dir := filepath.Join("/sys/fs/cgroup", strings.TrimSuffix(path, "/agent"))
	if err := os.MkdirAll(dir+"/agent", 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(dir+"/agent/cgroup.procs", []byte("0"), 0); err != nil {
		return "", fmt.Errorf("settle in a leaf: %w", err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0); err != nil {
		return "", fmt.Errorf("write oom_score_adj: %w", err)
	}
	return dir, nil
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
