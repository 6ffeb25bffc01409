package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/vitrine-runtime/vitrine/conformance/vm/link"
)

// Config says what machine is wanted. The zero value of each field but Agent has a default.
type Config struct {
	Debian   string    // "13", the default, or "12"
	Packages []string  // more of Debian's than a test of ours needs
	Agent    string    // path of the built agent
	Cache    string    // directory for roots; CacheDir() by default
	Dir      string    // where disk and log of this machine live; a new directory below Cache by default
	Keep     bool      // keep Dir at Close
	Accel    string    // tcg, kvm; default: kvm where a probe shows that it works
	Memory   int       // MiB; 3072
	CPUs     int       // 2
	Nice     int       // of QEMU; 15
	Kernel   string    // more kernel arguments
	Name     string    // of one of several guests of a release; its last log has it
	Progress io.Writer // lines for people; discarded by default
}

// Machine is a guest with its disk. Its verbs are not for concurrent use, except Run, Put, Get and Client, which are. After an
// error of Boot the machine is off; Close is always due.
type Machine struct {
	config Config
	root   *Root
	accel  string
	mu     sync.Mutex // guards what a boot replaces
	qemu   *qemu
	client *link.Client
	boots  int
	greet  link.Greeting
	took   time.Duration
}

// Deadlines of the verbs. Under emulation on a busy machine a boot takes up to two minutes.
const (
	bootTime     = 5 * time.Minute
	kvmBootTime  = 90 * time.Second // a healthy one needs three; after it the machine is emulated
	readyTime    = 5 * time.Minute
	shutdownTime = 2 * time.Minute
)

// CacheDir is where roots and running machines are kept: $XDG_CACHE_HOME/vitrine/vm or its usual default.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "vitrine", "vm"), nil
}

func (c *Config) fill() (err error) {
	if c.Cache == "" {
		if c.Cache, err = CacheDir(); err != nil {
			return err
		}
	}
	if c.Debian == "" {
		c.Debian = "13"
	}
	if c.Progress == nil {
		c.Progress = io.Discard
	}
	c.Memory, c.CPUs, c.Nice = orElse(c.Memory, 3072), orElse(c.CPUs, 2), orElse(c.Nice, 15)
	return nil
}

func orElse(n, d int) int {
	if n == 0 {
		return d
	}
	return n
}

// New makes a machine that is off: root from the cache (built if need be), disk, initrd.
func New(ctx context.Context, c Config) (*Machine, error) {
	if err := c.fill(); err != nil {
		return nil, err
	}
	recipe, err := NewRecipe(c.Debian, c.Packages...)
	if err != nil {
		return nil, err
	}
	root, err := BuildRoot(ctx, c.Cache, recipe, c.Progress)
	if err != nil {
		return nil, err
	}
	if root.Fresh {
		fmt.Fprintf(c.Progress, "root of Debian %s built in %.1f s: %s\n", c.Debian, root.Took.Seconds(), root.Dir)
	}
	if _, err := exec.LookPath(qemuProgram); err != nil {
		if err := needTools(ctx, c.Progress); err != nil {
			return nil, err
		}
	}
	m := &Machine{config: c, root: root}
	if err := m.makeDir(); err != nil {
		return nil, err
	}
	accel, why := chooseAccel(c.Accel, c.Cache, root.kernel())
	m.accel = accel
	fmt.Fprintf(c.Progress, "accelerator %s: %s\n", accel, why)
	return m, nil
}

// makeDir makes the machine's own directory with a copy of the root's disk.
func (m *Machine) makeDir() (err error) {
	if m.config.Dir == "" {
		if m.config.Dir, err = newDir(m.config.Cache); err != nil {
			return err
		}
	} else if err := errors.Join(os.MkdirAll(m.config.Dir, 0o755), claim(m.config.Dir)); err != nil {
		return err
	}
	if err = copySparse(m.root.image(), m.disk()); err == nil {
		err = writeInitrd(m.path("initrd"), m.config.Agent, filepath.Join(m.root.Dir, "modules"))
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(m.config.Dir))
	}
	return nil
}

func (m *Machine) path(name string) string { return filepath.Join(m.config.Dir, name) }
func (m *Machine) disk() string            { return m.path("disk.img") }

// SerialLog is the path of the log of the serial console, over all boots.
func (m *Machine) SerialLog() string { return m.path("serial.log") }

// LastLog is where Close keeps the serial log.
func (m *Machine) LastLog() string {
	name := "serial-" + m.config.Debian
	if m.config.Name != "" {
		name += "-" + m.config.Name
	}
	return filepath.Join(m.config.Cache, name+".log")
}

// Boot switches the machine on and returns when the agent answers. The end of the serial log is in its error. KVM that was chosen
// here, and not asked for, gets one try: a probe may succeed where a whole boot does not.
func (m *Machine) Boot(ctx context.Context) error {
	limit := bootTime
	guarded := m.accel == "kvm" && m.config.Accel != "kvm"
	if guarded {
		limit = kvmBootTime
	}
	err := m.boot(ctx, limit)
	if err == nil || !guarded || ctx.Err() != nil {
		return err
	}
	fmt.Fprintf(m.config.Progress, "no boot under KVM, so it is emulated: %v\n", err)
	m.accel = "tcg"
	if m.boots == 0 { // nothing of worth is on the disk, and what is may be half written
		if err := copySparse(m.root.image(), m.disk()); err != nil {
			return err
		}
	}
	return m.boot(ctx, bootTime)
}

func (m *Machine) boot(ctx context.Context, limit time.Duration) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	q, err := launch{accel: m.accel, kernel: m.root.kernel(), initrd: m.path("initrd"), disk: m.disk(), serial: m.SerialLog(),
		append: baseArguments + " " + m.config.Kernel, memory: m.config.Memory, cpus: m.config.CPUs, nice: m.config.Nice}.start()
	if err != nil {
		return err
	}
	client := link.NewClient(q.port)
	go func() { // ends with QEMU: a dead guest ends every wait for its agent
		<-q.done
		client.Close()
	}()
	g, err := client.Greeting(ctx)
	if err != nil {
		q.kill()
		return fmt.Errorf("boot: %w (%w); the serial log ends so:\n%s", err, q.why(), m.SerialTail(30))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.qemu, m.client, m.greet, m.took = q, client, g, time.Since(began)
	m.boots++
	return nil
}

// Greeting returns what the agent said of the last boot, and how long it took from power on to that.
func (m *Machine) Greeting() (link.Greeting, time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.greet, m.took
}

// Client returns the way to the agent of the last boot; nil before the first.
func (m *Machine) Client() *link.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.client
}

// Done is closed when the present QEMU has ended.
func (m *Machine) Done() <-chan struct{} { return m.qemu.done }

// SerialTail returns the last lines of the serial console.
func (m *Machine) SerialTail(lines int) string {
	b, err := os.ReadFile(m.SerialLog())
	if err != nil {
		return err.Error()
	}
	return tail(b, lines)
}

// PowerCut kills QEMU: the guest loses what it had not written to the disk. Boot brings it back.
func (m *Machine) PowerCut() {
	if m.qemu != nil {
		m.qemu.kill()
	}
}

// Shutdown lets systemd end the guest in order.
func (m *Machine) Shutdown(ctx context.Context) error {
	// The answer may be cut off by what it asks for; what counts is that QEMU ends.
	_, _ = m.Client().Run(ctx, link.Command{Args: []string{"systemctl", "--no-block", "poweroff"}}, link.Streams{})
	if err := m.qemu.wait(shutdownTime); err != nil {
		m.qemu.kill()
		return fmt.Errorf("shut down: %w; the serial log ends so:\n%s", err, m.SerialTail(30))
	}
	return nil
}

// Reboot ends the guest in order and boots it again on the same disk.
func (m *Machine) Reboot(ctx context.Context) error {
	if err := m.Shutdown(ctx); err != nil {
		return err
	}
	return m.Boot(ctx)
}

// Pause stops all of the guest's CPUs, as a host does that suspends it; its clocks jump at Resume. Its commands see nothing of it.
func (m *Machine) Pause() error { return m.qemu.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (m *Machine) Resume() error { return m.qemu.signal(syscall.SIGCONT) }

// Close kills QEMU and removes the machine's directory unless Config.Keep is set. The serial log is kept in the cache, one per release.
func (m *Machine) Close() error {
	m.PowerCut()
	if b, err := os.ReadFile(m.SerialLog()); err == nil {
		_ = os.WriteFile(m.LastLog(), b, 0o644) // for people; what cannot be kept is no failure of what ran
	}
	if m.config.Keep {
		return nil
	}
	return os.RemoveAll(m.config.Dir)
}
