package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// keptAttr is the attribute of a scope's directory with the limits that systemd
// writes over and cannot keep, a line "file=value" each. It goes with the scope,
// whatever becomes of the daemon and its records. Only root of the initial user
// namespace may write or see it.
const keptAttr = "trusted.vitrine.kept"

// kept puts limits back that systemd wrote over: a quota that it rounds when it reads
// its own unit files again, and memory.oom.group, which it sets to 0 because no
// property of ours says otherwise. systemd says nothing when it does that, which
// need not be at a daemon-reload: the kernel tells, by inotify, as of any file that
// somebody writes to.
//
// For the moment between the two writes the limit is systemd's. It is the same
// rounded up, or one that lets the other processes of a container live when one of
// them is killed for want of memory.
type kept struct {
	tree    *Tree
	in      *os.File // inotify
	fd      int      // of in, whose Fd would make it block
	repairs atomic.Uint64
	done    chan struct{} // closed at the end of the reader

	mu      sync.Mutex
	watches map[int32]keptFile
	scopes  map[string][]int32
}

type keptFile struct {
	path string // of the scope
	setting
}

// newKept starts the reader, which ends with close.
func newKept(t *Tree) (*kept, error) {
	n, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	k := &kept{tree: t, in: os.NewFile(uintptr(n), "inotify"), fd: n, done: make(chan struct{}),
		watches: map[int32]keptFile{}, scopes: map[string][]int32{}}
	go k.read()
	return k, nil
}

func (k *kept) close() error {
	err := k.in.Close()
	<-k.done
	return err
}

func (k *kept) read() {
	defer close(k.done)
	buf := make([]byte, 64*unix.SizeofInotifyEvent)
	for {
		n, err := k.in.Read(buf)
		if err != nil {
			return // closed: nothing else fails here
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(b))
			mask := binary.NativeEndian.Uint32(b[4:])
			b = b[unix.SizeofInotifyEvent+min(int(binary.NativeEndian.Uint32(b[12:])), len(b)-unix.SizeofInotifyEvent):]
			if mask&unix.IN_Q_OVERFLOW != 0 {
				k.checkAll()
				continue
			}
			k.mu.Lock()
			k.check(wd)
			k.mu.Unlock()
		}
	}
}

func (k *kept) checkAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for wd := range k.watches {
		k.check(wd)
	}
}

// check compares a file with what it should hold. Our own write is an event as well;
// it finds the file as it should be. Preconditions: k.mu is held; an Update has taken the watch away before it writes.
func (k *kept) check(wd int32) {
	f, ok := k.watches[wd]
	if !ok {
		return
	}
	dir, err := k.tree.Load(f.path).OpenDir()
	if err != nil {
		if gone(err) {
			k.dropLocked(f.path)
		}
		return
	}
	defer dir.Close()
	for range 4 { // systemd may be just between two writes of its own
		if wrote, err := restoreFile(dir.Int(), f.setting); !wrote || err != nil {
			return
		}
		k.repairs.Add(1)
	}
	k.forget(wd) // the kernel shows it in another way, and each write would be the reason of the next one
}

// restoreFile writes a setting if its file does not hold it.
func restoreFile(dir int, s setting) (wrote bool, err error) {
	content, err := readFile(dir, s.file)
	if err != nil {
		return false, err
	}
	if now, ok := valueIn(content, keyOf(s.file, s.value)); ok && same(s.file, s.value, now) {
		return false, nil
	}
	return true, writeFile(dir, s.file, s.value)
}

// set makes list what is kept of a scope, and remembers it with the scope. An empty
// one ends the keeping.
func (k *kept) set(path string, dir *sys.FD, list []setting) error {
	text := ""
	for _, s := range list {
		text += s.file + "=" + s.value + "\n"
	}
	var err error
	if text == "" {
		err = unix.Fremovexattr(dir.Int(), keptAttr)
		if errors.Is(err, unix.ENODATA) {
			err = nil
		}
	} else {
		err = unix.Fsetxattr(dir.Int(), keptAttr, []byte(text), 0)
	}
	if err != nil {
		return fmt.Errorf("set attribute %s: %w", keptAttr, err)
	}
	return k.watch(path, dir, list)
}

// watch takes the place of the watches of a scope, and looks at the files for the
// first time.
func (k *kept) watch(path string, dir *sys.FD, list []setting) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dropLocked(path)
	var all []int32
	var errs []error
	for _, s := range list {
		// By the descriptor: a path may be another's by now.
		wd, err := unix.InotifyAddWatch(k.fd, sys.ProcPath(dir.Int())+"/"+s.file, unix.IN_MODIFY)
		if err != nil {
			errs = append(errs, &os.PathError{Op: "watch", Path: path + "/" + s.file, Err: err})
			continue
		}
		k.watches[int32(wd)] = keptFile{path, s}
		all = append(all, int32(wd))
	}
	if len(all) > 0 {
		k.scopes[path] = all
	}
	for _, wd := range all {
		k.check(wd)
	}
	return errors.Join(errs...)
}

// drop ends the keeping of a scope until the next set or resume. A watch holds
// memory of the kernel, also that of a file whose cgroup is gone.
func (k *kept) drop(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dropLocked(path)
}

// dropLocked is drop. Preconditions: k.mu is held.
func (k *kept) dropLocked(path string) {
	for _, wd := range k.scopes[path] {
		k.forget(wd)
	}
	delete(k.scopes, path)
}

// forget ends the keeping of one file; the others of its scope stay. Preconditions: k.mu is held.
func (k *kept) forget(wd int32) {
	if _, ok := k.watches[wd]; ok {
		delete(k.watches, wd)
		_, _ = unix.InotifyRmWatch(k.fd, uint32(wd)) // gone already is fine
	}
}

// resume keeps what a scope's attribute says.
func (k *kept) resume(path string, dir *sys.FD) error {
	list, err := readKept(dir)
	if err != nil || len(list) == 0 {
		return err
	}
	return k.watch(path, dir, list)
}

// readKept returns what a scope's attribute says.
func readKept(dir *sys.FD) ([]setting, error) {
	buf := make([]byte, 4096)
	n, err := unix.Fgetxattr(dir.Int(), keptAttr, buf)
	if errors.Is(err, unix.ENODATA) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read attribute %s: %w", keptAttr, err)
	}
	var list []setting
	for line := range strings.Lines(string(buf[:n])) {
		file, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok || !slices.Contains(theirs, file) {
			return nil, fmt.Errorf("read attribute %s: %q: %w", keptAttr, line, fs.ErrInvalid)
		}
		list = append(list, setting{file: file, value: value})
	}
	return list, nil
}
