package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/seccomp"
)

// bound is the C program, serving.
type bound struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   io.Reader
	files map[string]uint32 // number of a program by its case, and of a filter by its name
}

// Verbs of the C program.
const (
	boundRun    = 'r'
	boundKeep   = 'k'
	boundExec   = 'x'
	boundFilter = 'f'
)

// startBound gives the C program what the executor was given: the programs of containers as Create has left them in their
// directories, and those of an exec as Exec makes them.
func (w *worker) startBound() error {
	w.bound = &bound{files: map[string]uint32{}}
	args := []string{"serve", filepath.Join(w.dir, "rootfs"), fmt.Sprintf("/sys/fs/cgroup/%s/bound", w.name)}
	if err := os.Mkdir(args[2], 0o755); err != nil {
		return err
	}
	add := func(name string, code []byte) error {
		n := len(args) - 3 // behind the verb and two directories
		path := filepath.Join(w.dir, fmt.Sprintf("file%d", n))
		w.bound.files[name] = uint32(n)
		args = append(args, path)
		return os.WriteFile(path, code, 0o600)
	}
	for _, name := range []string{caseE1, caseE3, "target", caseExec} {
		code, err := w.programOf(name)
		if err == nil {
			err = add(name, code)
		}
		if err != nil {
			return err
		}
	}
	w.bound.files[caseE4] = w.bound.files[caseE3]
	filters, err := w.filterPrograms()
	if err != nil {
		return err
	}
	for _, f := range filters {
		if err := add(f.name, f.code); err != nil {
			return err
		}
		w.who[caseFilter] = append(w.who[caseFilter], f.name)
	}
	w.bound.cmd = exec.Command(w.Bound, args...)
	w.bound.cmd.Stderr = os.Stderr
	if w.bound.in, err = w.bound.cmd.StdinPipe(); err != nil {
		return err
	}
	if w.bound.out, err = w.bound.cmd.StdoutPipe(); err != nil {
		return err
	}
	if err := w.bound.cmd.Start(); err != nil {
		return fmt.Errorf("start bound: %w", err)
	}
	_, err = w.bound.ask(boundKeep, "target")
	return err
}

// programOf returns the encoded program of a case.
func (w *worker) programOf(name string) ([]byte, error) {
	args := []string{"true"}
	if name == "target" {
		args = []string{"sleep", "100000"}
	}
	s, err := w.spec(name, args...)
	if err != nil {
		return nil, err
	}
	if name == caseExec {
		f, err := seccomp.Compile(s.Linux.Seccomp)
		if err != nil {
			return nil, err
		}
		p, err := program.CompileExec(program.ExecInput{Process: s.Process, Seccomp: f.Bytes(), SeccompFlags: f.Flags, CgroupNS: true})
		if err != nil {
			return nil, err
		}
		return p.Encode()
	}
	id := "model-" + name
	c, err := w.config(w.pod, id, s)
	if err != nil {
		return nil, err
	}
	p, err := w.pod.Create(w.ctx, c)
	if err != nil {
		return nil, err
	}
	code, err := os.ReadFile(filepath.Join(c.Dir, "program"))
	if err != nil {
		return nil, err
	}
	if err := p.Signal(w.ctx, unix.SIGKILL); err != nil {
		return nil, err
	}
	<-w.pod.Events()
	return code, p.Remove(w.ctx)
}

// ask has the C program do one thing.
func (b *bound) ask(verb uint32, file string) (sample, error) {
	var order [8]byte
	var a [24]byte
	binary.NativeEndian.PutUint32(order[:], verb)
	binary.NativeEndian.PutUint32(order[4:], b.files[file])
	if _, err := b.in.Write(order[:]); err != nil {
		return sample{}, fmt.Errorf("ask bound: %w", err)
	}
	if _, err := io.ReadFull(b.out, a[:]); err != nil {
		return sample{}, fmt.Errorf("hear bound: %w", err)
	}
	if code := int32(binary.NativeEndian.Uint32(a[16:])); code != 0 {
		return sample{}, fmt.Errorf("bound: %c %s ends with %d", verb, file, code)
	}
	return sample{Wall: time.Duration(binary.NativeEndian.Uint64(a[:])), CPU: time.Duration(binary.NativeEndian.Uint64(a[8:]))}, nil
}

func (w *worker) boundOnce(name string) (sample, error) {
	if name == caseExec {
		return w.bound.ask(boundExec, name)
	}
	return w.bound.ask(boundRun, name)
}

func (w *worker) boundFilter(name string) (sample, error) { return w.bound.ask(boundFilter, name) }

func (b *bound) close() {
	if b.in == nil {
		return
	}
	b.in.Close()
	_ = b.cmd.Wait()
}
