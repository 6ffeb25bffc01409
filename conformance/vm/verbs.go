package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/conformance/vm/link"
	"github.com/vitrine-runtime/vitrine/conformance/vm/machine"
)

// up starts a holder in a session of its own and returns when the guest can be used.
func (o *options) up(ctx context.Context) error {
	if g, err := o.dial(); err == nil {
		g.client.Close()
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, upTime)
	defer cancel()
	logPath := filepath.Join(o.cache, "holder-"+strings.TrimSuffix(o.socketName(), ".sock")+".log")
	log, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, o.holder()...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start holder: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the holder, at the latest with this process
	for {
		select {
		case err := <-ended:
			b, _ := os.ReadFile(logPath) // what cannot be read cannot be shown
			return fmt.Errorf("holder ended: %w\n%s", orEnded(err), b)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), cmd.Process.Signal(syscall.SIGTERM))
		case <-time.After(200 * time.Millisecond):
		}
		if g, err := o.dial(); err == nil {
			b, _ := os.ReadFile(logPath) // what cannot be read cannot be shown
			fmt.Printf("%s", b)
			g.client.Close()
			return nil
		}
	}
}

// holder are the arguments of a process that holds the guest which these options mean.
func (o *options) holder() []string {
	return []string{"-debian", o.debian, "-accel", o.accel, "-memory", strconv.Itoa(o.memory), "-cpus", strconv.Itoa(o.cpus), "-nice", strconv.Itoa(o.nice),
		"-idle", o.idle.String(), "-kernel", o.kernel, "-cache", o.cache, "-with", o.more, "-name", o.name, "hold"}
}

// orEnded is err, or that a process ended before its time.
func orEnded(err error) error {
	if err == nil {
		return errors.New("before anybody could use the guest")
	}
	return err
}

// order asks the holder for something.
func (o *options) order(ctx context.Context, verb, text string) error {
	g, err := o.dial()
	if errors.Is(err, errNobody) && verb == "down" {
		return nil
	}
	if err != nil {
		return err
	}
	defer g.client.Close()
	answer, err := g.client.Ask(ctx, link.Order{Verb: verb, Text: text})
	if err == nil && answer.Text != "" && answer.Text != text {
		fmt.Println(answer.Text)
	}
	return err
}

// runCommand runs a command with our stdio.
func runCommand(ctx context.Context, g *guest, args []string) error {
	if len(args) == 0 {
		return errors.New("run: what?")
	}
	var stdin io.Reader
	if fi, err := os.Stdin.Stat(); err == nil && fi.Mode()&os.ModeCharDevice == 0 {
		stdin = os.Stdin
	}
	res, err := g.client.Run(ctx, link.Command{Args: args}, link.Streams{Stdin: stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	if err == nil && res.Code != 0 {
		err = exitCode(res.Code)
	}
	return err
}

// putFiles copies files, not directories, below a directory of the guest.
func putFiles(ctx context.Context, g *guest, args []string) error {
	if len(args) < 2 {
		return errors.New("put: a directory and files")
	}
	r, w := io.Pipe()
	go func() { // ends with the reader, which Put closes below
		t := tar.NewWriter(w)
		var err error
		for _, f := range args[1:] {
			if err = addFile(t, f, filepath.Base(f)); err != nil {
				break
			}
		}
		w.CloseWithError(errors.Join(err, t.Close()))
	}()
	defer func() { _ = r.Close() }() // lets the packer end
	return machine.Put(ctx, g.client, args[0], r)
}

// addFile writes one regular file into a tar.
func addFile(t *tar.Writer, path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: int64(fi.Mode().Perm()), Size: fi.Size(), ModTime: fi.ModTime(), Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

// shell gives the guest our terminal.
func shell(ctx context.Context, g *guest) error {
	cmd := link.Command{Args: []string{"bash", "-l"}, TTY: true, Env: []string{"TERM=" + orEnv("TERM", "xterm")}}
	old, err := unix.IoctlGetTermios(0, unix.TCGETS)
	if err != nil { // no terminal: a shell that reads commands
		return runCommand(ctx, g, []string{"bash", "-l"})
	}
	raw := *old
	raw.Iflag &^= unix.BRKINT | unix.ICRNL | unix.INLCR | unix.IGNCR | unix.ISTRIP | unix.IXON | unix.PARMRK
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(0, unix.TCSETS, &raw); err != nil {
		return fmt.Errorf("set terminal: %w", err)
	}
	defer func() { _ = unix.IoctlSetTermios(0, unix.TCSETS, old) }() // the terminal may be gone
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	defer signal.Stop(changed)
	sizes := make(chan [2]uint16, 1)
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			if w, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil {
				select {
				case sizes <- [2]uint16{w.Row, w.Col}:
				case <-over:
					return
				}
			}
			select {
			case <-changed:
			case <-over:
				return
			}
		}
	}()
	res, err := g.client.Run(ctx, cmd, link.Streams{Stdin: os.Stdin, Stdout: os.Stdout, Resize: sizes})
	if err == nil && res.Code != 0 {
		err = exitCode(res.Code)
	}
	return err
}
