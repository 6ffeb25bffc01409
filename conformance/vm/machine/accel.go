package machine

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// probeTime is how long a kernel may take under KVM from its start to the panic that ends the probe; a healthy one needs about a second.
const probeTime = 10 * time.Second

// chooseAccel says whether KVM can be used. That /dev/kvm opens says nothing: there are machines whose nested KVM runs a
// small program and hangs with a real kernel. So the guest's own kernel is booted without a disk until it panics, with a deadline. The answer
// is kept in the cache for as long as the host runs.
func chooseAccel(want, cache, kernel string) (accel, why string) {
	if want == "kvm" || want == "tcg" {
		return want, "as asked"
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", "no usable /dev/kvm"
	}
	f.Close()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "tcg", err.Error()
	}
	sum := sha256.Sum256([]byte(kernel + string(boot)))
	memo := filepath.Join(cache, "kvm-"+hex.EncodeToString(sum[:8]))
	if b, err := os.ReadFile(memo); err == nil {
		accel, why, _ = strings.Cut(string(b), " ")
		return accel, why
	}
	accel, why = "kvm", "a kernel booted under KVM"
	if err := probeKVM(cache, kernel); err != nil {
		accel, why = "tcg", "KVM is there and does not work: "+err.Error()
	}
	_ = os.WriteFile(memo, []byte(accel+" "+why), 0o644) // without the memo the next boot asks again
	return accel, why
}

// tcgThreads says whether each emulated CPU may have a thread of its own. Before QEMU 8.1 one CPU may translate code that another is just
// changing, and keeps a breakpoint that Linux removed long ago: the guest then dies of "Oops: int3" in whatever the kernel had
// patched, here in the scheduler, since each change of cpu.max between a quota and none patches it. A guest that did little else
// lived two seconds, and now and then one died of an ordinary test. With one thread for all CPUs that cannot happen; it costs what
// a second core would have given.
func tcgThreads() string {
	out, err := exec.Command(qemuProgram, "--version").Output()
	if err == nil && patchesSafely(string(out)) {
		return "multi"
	}
	return "single"
}

// patchesSafely reads the first line of qemu --version.
func patchesSafely(version string) bool {
	var major, minor int
	_, err := fmt.Sscanf(version, "QEMU emulator version %d.%d", &major, &minor)
	return err == nil && (major > 8 || major == 8 && minor >= 1)
}

func probeKVM(cache, kernel string) error {
	log := filepath.Join(cache, fmt.Sprintf("kvm-probe-%d.log", os.Getpid()))
	defer os.Remove(log)
	q, err := launch{accel: "kvm", kernel: kernel, serial: log, append: "console=ttyS0 panic=-1", memory: 512, cpus: 2}.start()
	if err != nil {
		return err
	}
	defer q.kill()
	if err := q.wait(probeTime); err != nil {
		return err
	}
	if b, err := os.ReadFile(log); err != nil || !bytes.Contains(b, []byte("Kernel panic")) {
		return fmt.Errorf("%w after %d bytes of console", q.why(), len(b))
	}
	return nil
}
