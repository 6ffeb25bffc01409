package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vitrine-runtime/vitrine/conformance/vm/link"
	"github.com/vitrine-runtime/vitrine/conformance/vm/machine"
)

// TestVerbs boots one guest in a cache directory of its own, as `vm up` would, and tries on it what only the owner of QEMU can do. It is
// one test, since each boot costs up to twenty seconds.
func TestVerbs(t *testing.T) {
	if os.Getenv("VITRINE_VM_VERBS") == "" {
		t.Skip("needs QEMU to itself, and minutes: `make vm-verbs` runs it")
	}
	h := hold(t)
	t.Run("TwoUsersAtOnce", h.twoUsers)
	t.Run("CommandThatHangs", h.hangs)
	t.Run("ClockJump", h.jump)
	t.Run("Pause", h.pause)
	t.Run("PowerCut", h.powerCut)
	t.Run("Reboot", h.reboot)
	t.Run("IdleGuestGoesAway", h.idle)
}

// held is a guest with a holder in this process.
type held struct {
	*options
	user *guest // keeps the guest from being idle
	over chan error
}

// hold starts the holder. The root is that of the user's cache, so that it is built once; all else is in a directory beside it.
func hold(t *testing.T) *held {
	t.Helper()
	common, err := machine.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	o, _, err := parse([]string{"-debian", orEnv("DEBIAN", "13"), "-idle", "2s", "-nice", "5", "build"})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.cache = filepath.Join(common, "verbs-"+strconv.Itoa(os.Getpid())) // a disk takes no cache=none everywhere that tests have their files
	if err := os.Mkdir(o.cache, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(o.cache) })
	roots, err := filepath.Glob(filepath.Join(common, "*"))
	for _, r := range roots {
		if base := filepath.Base(r); strings.HasPrefix(base, "debian") && !strings.HasSuffix(base, ".lock") || strings.HasPrefix(base, "kvm-") {
			err = errors.Join(err, os.Symlink(r, filepath.Join(o.cache, base)))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	o.agent = filepath.Join(t.TempDir(), "agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-tags", tags, "-o", o.agent, "./agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build agent: %v\n%s", err, out)
	}
	h := &held{options: o, over: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	began := time.Now()
	go func() { h.over <- o.hold(ctx) }()
	for h.user == nil {
		select {
		case err := <-h.over:
			t.Fatal("the holder ended:", err)
		case <-time.After(100 * time.Millisecond):
		}
		h.user, _ = o.dial()
	}
	t.Logf("up after %.1f s", time.Since(began).Seconds())
	return h
}

// output runs a command in the guest by a connection of its own, as another process would.
func (h *held) output(t *testing.T, script string) string {
	t.Helper()
	g, err := h.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer g.client.Close()
	out, err := machine.Output(t.Context(), g.client, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (h *held) ask(t *testing.T, verb, text string) {
	t.Helper()
	began := time.Now()
	if _, err := h.user.client.Ask(t.Context(), link.Order{Verb: verb, Text: text}); err != nil {
		t.Fatalf("%s: %v", verb, err)
	}
	t.Logf("%s %s: %.1f s", verb, text, time.Since(began).Seconds())
}

// Two clients stream at the same time, and each gets its own bytes.
func (h *held) twoUsers(t *testing.T) {
	var both sync.WaitGroup
	for _, letter := range []string{"a", "b"} {
		both.Go(func() {
			g, err := h.dial()
			if err != nil {
				t.Error(err)
				return
			}
			defer g.client.Close()
			in, out := bytes.Repeat([]byte(letter), 3<<20), bytes.Buffer{}
			r, err := g.client.Run(t.Context(), link.Command{Args: []string{"cat"}}, link.Streams{Stdin: bytes.NewReader(in), Stdout: &out})
			if err != nil || r.Code != 0 || !bytes.Equal(in, out.Bytes()) {
				t.Errorf("%s: %+v, %v, %d of %d bytes", letter, r, err, out.Len(), len(in))
			}
		})
	}
	both.Wait()
}

// A command that hangs ends at its deadline, with its children, and the guest lives on.
func (h *held) hangs(t *testing.T) {
	g, err := h.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer g.client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	began := time.Now()
	_, err = g.client.Run(ctx, link.Command{Args: []string{"sh", "-c", `trap "" TERM INT; sleep 4242 & sleep 4242`}}, link.Streams{})
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > 2*time.Second+20*time.Second {
		t.Errorf("%v after %v", err, took)
	}
	if left := h.output(t, `pgrep -fx "sleep 4242" || true`); left != "" {
		t.Errorf("left behind: %s", left)
	}
	if tail, err := g.client.Ask(t.Context(), link.Order{Verb: "log"}); err != nil || tail.Text == "" {
		t.Errorf("serial log: %q, %v", tail.Text, err)
	}
}

// The wall clock jumps, the monotonic one does not.
func (h *held) jump(t *testing.T) {
	const clocks = "date +%s; cut -d. -f1 /proc/uptime"
	before := numbers(t, h.output(t, clocks))
	h.ask(t, "jump", "36h")
	after := numbers(t, h.output(t, clocks))
	wall, steady := after[0]-before[0], after[1]-before[1]
	if off := wall - steady - 36*3600; off < -5 || off > 5 || steady > 600 {
		t.Errorf("the wall clock went on by %d s, the monotonic one by %d s", wall, steady)
	}
	h.ask(t, "jump", "-36h")
}

func numbers(t *testing.T, text string) (n []int) {
	t.Helper()
	for _, f := range strings.Fields(text) {
		i, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		n = append(n, i)
	}
	return n
}

// A guest that is paused answers nothing until it goes on.
func (h *held) pause(t *testing.T) {
	h.ask(t, "pause", "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	g, err := h.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer g.client.Close()
	answered := make(chan error, 1)
	go func() {
		_, err := g.client.Run(t.Context(), link.Command{Args: []string{"true"}}, link.Streams{})
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Errorf("a paused guest has answered: %v", err)
	case <-ctx.Done():
	}
	h.ask(t, "resume", "")
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// What was synced is there after a power cut, what was only written is not: the disk has no cache but the guest's own.
func (h *held) powerCut(t *testing.T) {
	h.output(t, `sysctl -q vm.dirty_writeback_centisecs=0
		echo kept >/var/kept && sync /var/kept && sync -f /var && head -c 1048576 /dev/zero | tr '\0' x >/var/lost`)
	before := h.output(t, "cat /proc/sys/kernel/random/boot_id")
	h.ask(t, "powercut", "")
	if kept := h.output(t, "cat /var/kept"); kept != "kept" {
		t.Errorf("what was synced: %q", kept)
	}
	if lost := h.output(t, `tr -d '\0' </var/lost 2>/dev/null | wc -c`); lost != "0" {
		t.Errorf("of what was not synced %s bytes are there", lost)
	}
	if after := h.output(t, "cat /proc/sys/kernel/random/boot_id"); after == before {
		t.Errorf("the boot id is still %s", after)
	}
}

// A reboot keeps what was written, synced or not, and changes the boot id; a command that runs meanwhile ends with ErrGone.
func (h *held) reboot(t *testing.T) {
	before := h.output(t, "echo written >/var/written; cat /proc/sys/kernel/random/boot_id")
	g, err := h.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer g.client.Close()
	gone := make(chan error, 1)
	go func() {
		r, err := g.client.Run(t.Context(), link.Command{Args: []string{"sleep", "1000"}}, link.Streams{})
		if err == nil {
			err = fmt.Errorf("exit code %d", r.Code)
		}
		gone <- err
	}()
	h.ask(t, "reboot", "")
	t.Log("the command that ran meanwhile:", <-gone)
	if after := h.output(t, "cat /var/written /proc/sys/kernel/random/boot_id"); !strings.HasPrefix(after, "written\n") || strings.Contains(after, before) {
		t.Errorf("boot id before %s, after the reboot: %q", before, after)
	}
}

// When the last user has left, the guest ends after the idle time, and the serial log is what remains.
func (h *held) idle(t *testing.T) {
	h.user.client.Close()
	select {
	case err := <-h.over:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the guest is still there")
	}
	if _, err := h.dial(); !errors.Is(err, errNobody) {
		t.Errorf("dial after the end: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(h.cache, "machine-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if log, err := os.ReadFile(filepath.Join(h.cache, "serial-"+h.debian+".log")); err != nil || len(log) == 0 {
		t.Errorf("serial log: %d bytes, %v", len(log), err)
	}
}
