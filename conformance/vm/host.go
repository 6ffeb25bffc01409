package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/conformance/vm/link"
	"github.com/vitrine-runtime/vitrine/conformance/vm/machine"
)

// guest is a way to a running guest: over the socket of the process that holds it. The holder may be this process.
type guest struct {
	client *link.Client
	own    bool // it was booted for this use alone
}

// host holds one guest per release and lets others use it through a socket in the cache directory.
type host struct {
	m        *machine.Machine
	listener net.Listener
	mu       sync.Mutex // held over an order
	users    atomic.Int64
	idleFrom atomic.Int64 // Unix nanoseconds since when nobody is connected
	stop     chan struct{}
	once     sync.Once
}

// errNobody means that no guest is up.
var errNobody = errors.New("no guest is up")

// socketName is another one for a guest with more packages, or with a name: it is not what the others mean.
func (o *options) socketName() string {
	name := "guest-" + o.debian
	for _, part := range []string{strings.ReplaceAll(o.more, ",", "-"), o.name} {
		if part != "" {
			name += "-" + part
		}
	}
	return name + ".sock"
}

func (o *options) packages() []string {
	if o.more == "" {
		return nil
	}
	return strings.Split(o.more, ",")
}

// viaFD runs f with a path of the socket that is short however long the cache's is: socket addresses have 107 bytes.
func (o *options) viaFD(f func(path string) error) error {
	dir, err := unix.Open(o.cache, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open cache: %w", err)
	}
	defer unix.Close(dir)
	return f("/proc/self/fd/" + strconv.Itoa(dir) + "/" + o.socketName())
}

// dial reaches the guest that is up.
func (o *options) dial() (g *guest, err error) {
	err = o.viaFD(func(path string) error {
		c, err := net.Dial("unix", path)
		if err != nil {
			return errNobody
		}
		g = &guest{client: link.NewClient(c)}
		return nil
	})
	return g, err
}

// with runs f on the guest that is up, or on one that is booted for it and ended after it.
func (o *options) with(ctx context.Context, f func(*guest) error) error {
	g, err := o.dial()
	if err == nil {
		defer g.client.Close()
		return f(g)
	}
	return o.withOwn(ctx, f)
}

// withOwn runs f on a guest that is booted for it and ended after it. One that is up is no such guest, and is in its place.
func (o *options) withOwn(ctx context.Context, f func(*guest) error) error {
	h, err := o.host(ctx)
	if err != nil {
		return err
	}
	defer h.close()
	g, err := o.dial()
	if err != nil {
		return err
	}
	defer g.client.Close()
	g.own = true
	return f(g)
}

// host boots a guest, waits until systemd is ready and serves the socket. close is due.
func (o *options) host(ctx context.Context) (*host, error) {
	agent := o.agent
	if agent == "" {
		var err error
		if agent, err = agentPath(); err != nil {
			return nil, err
		}
	}
	if g, err := o.dial(); err == nil {
		g.client.Close()
		return nil, fmt.Errorf("boot guest: %s is in use: end that guest by `vm down`, or give this one another -name", o.socketName())
	}
	began := time.Now()
	m, err := machine.New(ctx, machine.Config{Debian: o.debian, Packages: o.packages(), Agent: agent, Cache: o.cache, Accel: o.accel, Memory: o.memory,
		CPUs: o.cpus, Nice: o.nice, Kernel: o.kernel, Name: o.name, Progress: os.Stderr})
	if err != nil {
		return nil, err
	}
	h := &host{m: m, stop: make(chan struct{})}
	prepared := time.Since(began)
	if err = m.Boot(ctx); err == nil {
		if err = machine.Ready(ctx, m.Client()); err != nil {
			err = fmt.Errorf("%w; the serial log ends so:\n%s", err, m.SerialTail(30))
		}
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	g, took := m.Greeting()
	fmt.Fprintf(os.Stderr, "Debian %s, Linux %s: prepared in %.1f s, agent after %.1f s, systemd ready after %.1f s\n",
		o.debian, g.Kernel, prepared.Seconds(), took.Seconds(), (time.Since(began) - prepared).Seconds())
	if err := o.listen(h); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return h, nil
}

// listen serves the socket; its goroutines end with close.
func (o *options) listen(h *host) error {
	err := o.viaFD(func(path string) (err error) {
		_ = os.Remove(path) // nobody answered there
		h.listener, err = net.Listen("unix", path)
		return err
	})
	if err != nil {
		return fmt.Errorf("serve guest: %w", err)
	}
	h.listener.(*net.UnixListener).SetUnlinkOnClose(false) // its path is one of this process's descriptors
	h.idleFrom.Store(time.Now().UnixNano())
	socket := filepath.Join(o.cache, o.socketName())
	ours, err := os.Lstat(socket)
	if err != nil {
		return errors.Join(fmt.Errorf("serve guest: %w", err), h.listener.Close())
	}
	go func() {
		defer removeSame(socket, ours)
		for {
			c, err := h.listener.Accept()
			if err != nil {
				return
			}
			h.users.Add(1)
			go func() {
				link.Relay(c, h.m.Client, h.order)
				h.idleFrom.Store(time.Now().UnixNano())
				h.users.Add(-1)
			}()
		}
	}()
	return nil
}

// removeSame removes a socket that is still the same file: another holder may have come in between.
func removeSame(path string, ours os.FileInfo) {
	if now, err := os.Lstat(path); err == nil && os.SameFile(now, ours) {
		_ = os.Remove(path)
	}
}

// order carries out what only the owner of QEMU can do.
func (h *host) order(o link.Order) link.Order {
	h.mu.Lock()
	defer h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	var err error
	switch o.Verb {
	case "down":
		h.once.Do(func() { close(h.stop) })
	case "reboot":
		err = h.m.Reboot(ctx)
	case "powercut":
		h.m.PowerCut()
		err = h.m.Boot(ctx)
	case "jump":
		var d time.Duration
		if d, err = time.ParseDuration(o.Text); err == nil {
			err = machine.JumpClock(ctx, h.m.Client(), d)
		}
	case "pause":
		err = h.m.Pause()
	case "resume":
		err = h.m.Resume()
	case "log":
		o.Text = h.m.SerialTail(200)
	default:
		err = fmt.Errorf("unknown order %q", o.Verb)
	}
	if err == nil && (o.Verb == "reboot" || o.Verb == "powercut") {
		if err = machine.Ready(ctx, h.m.Client()); err == nil {
			_, took := h.m.Greeting()
			o.Text = fmt.Sprintf("agent after %.1f s", took.Seconds())
		}
	}
	if err != nil {
		o.Error = err.Error()
	}
	return o
}

func (h *host) close() {
	_ = h.listener.Close() // nobody is to come any more
	if err := h.m.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
	}
}

// hold is the background process of up: it ends when it is told to, when the guest is gone, or when nobody came for the idle time.
func (o *options) hold(ctx context.Context) error {
	h, err := o.host(ctx)
	if err != nil {
		return err
	}
	defer h.close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.stop:
			return nil
		case <-time.After(time.Second):
		}
		if h.users.Load() == 0 && time.Since(time.Unix(0, h.idleFrom.Load())) > o.idle {
			return nil
		}
		if h.gone() {
			return fmt.Errorf("the guest is gone; its serial log ends so:\n%s", h.m.SerialTail(30))
		}
	}
}

// gone reports whether QEMU has ended while no order is at work.
func (h *host) gone() bool {
	if !h.mu.TryLock() {
		return false
	}
	defer h.mu.Unlock()
	select {
	case <-h.m.Done():
		return true
	default:
		return false
	}
}
