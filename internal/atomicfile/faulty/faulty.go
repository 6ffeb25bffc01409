// Package faulty is a disk that misbehaves on request: the second
// implementation of atomicfile.FS, for the tests of whoever keeps state.
//
// Two kinds of fault are told apart. An error (FailAt) is a call that the
// program sees fail and has to undo. A power cut (Crashes) is what the disk may
// hold afterwards, given everything that the program had not synced:
//
//	calls so far      what may be left of it
//	write             nothing, half, or all of the bytes, until Sync of the file
//	create, rename    done or not done, until SyncDir of the directory
//	unlink, mkdir     done or not done, until SyncDir of the directory
package faulty

import (
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vitrine-runtime/vitrine/internal/atomicfile"
)

// Disk is an FS in memory, so that a test may cut the power at every call and
// look at every state that could be left. The zero value is an empty disk with
// all directories present.
type Disk struct {
	// FailAt is the number of the call that fails with Err; calls are counted
	// from 1 and 0 means never. A failing Write first writes half of its data.
	FailAt int
	// Err is the error of the failing call.
	Err error

	mu    sync.Mutex
	calls int
	files map[string]*node // what a program sees now
	disk  map[string]*node // what is certain to survive
	log   []change         // what may or may not survive, in order
}

// node is the content of one file: data is what a reader sees, synced is what
// is certain to survive.
type node struct{ data, synced []byte }

// change is one directory entry's not yet durable change; a nil node removes.
type change struct {
	dir, path string
	node      *node
	from      string // of a rename: the entry that goes at the same moment
}

// Calls returns how many calls were made so far, which is the upper bound for
// FailAt in a test that runs through all of them.
func (d *Disk) Calls() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls
}

// Files returns what a program sees: the content of every file by its path.
func (d *Disk) Files() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[string]string{}
	for p, n := range d.files {
		out[p] = string(n.data)
	}
	return out
}

// Put stores a file durably, as a starting point.
func (d *Disk) Put(path, data string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.init()
	n := &node{data: []byte(data), synced: []byte(data)}
	d.files[path], d.disk[path] = n, n
}

// Crashes returns every state that a power cut at this moment may leave. Changes
// to directories survive in any combination, as they do on a disk that orders
// nothing between two syncs; what was written to a file and not synced is gone,
// torn or there.
func (d *Disk) Crashes() []map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.init()
	var out []map[string]string
	for pick := range 1 << len(d.log) {
		state := maps.Clone(d.disk)
		for i, c := range d.log {
			if pick&(1<<i) != 0 {
				apply(state, c)
			}
		}
		for _, keep := range []func(*node) []byte{
			func(n *node) []byte { return n.synced },
			func(n *node) []byte { return n.data[:(len(n.synced)+len(n.data))/2] },
			func(n *node) []byte { return n.data },
		} {
			files := map[string]string{}
			for p, n := range state {
				files[p] = string(keep(n))
			}
			out = append(out, files)
		}
	}
	return out
}

// Create implements atomicfile.FS.
func (d *Disk) Create(path string, _ fs.FileMode) (atomicfile.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call("create", path); err != nil {
		return nil, err
	}
	if d.files[path] != nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	n := &node{}
	d.change(change{dir: filepath.Dir(path), path: path, node: n})
	return &file{d, n, path}, nil
}

// Rename implements atomicfile.FS.
func (d *Disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call("rename", from); err != nil {
		return err
	}
	n := d.files[from]
	if n == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	d.change(change{dir: filepath.Dir(to), path: to, node: n, from: from})
	return nil
}

// SyncDir implements atomicfile.FS.
func (d *Disk) SyncDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call("sync", dir); err != nil {
		return err
	}
	d.log = slices.DeleteFunc(d.log, func(c change) bool {
		if c.dir != dir {
			return false
		}
		apply(d.disk, c)
		return true
	})
	return nil
}

// Unlink implements atomicfile.FS.
func (d *Disk) Unlink(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call("unlink", path); err != nil {
		return err
	}
	if d.files[path] == nil {
		return &fs.PathError{Op: "unlink", Path: path, Err: fs.ErrNotExist}
	}
	d.change(change{dir: filepath.Dir(path), path: path})
	return nil
}

// Mkdir implements atomicfile.FS. Directories hold nothing here and all of them
// are present, so only the call is counted.
func (d *Disk) Mkdir(path string, _ fs.FileMode) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.call("mkdir", path)
}

// call counts a call and says whether it is the one that fails.
// Preconditions: d.mu is held.
func (d *Disk) call(op, path string) error {
	d.init()
	d.calls++
	if d.calls == d.FailAt {
		return &fs.PathError{Op: op, Path: path, Err: d.Err}
	}
	return nil
}

func (d *Disk) init() {
	if d.files == nil {
		d.files, d.disk = map[string]*node{}, map[string]*node{}
	}
}

func (d *Disk) change(c change) {
	apply(d.files, c)
	d.log = append(d.log, c)
}

func apply(state map[string]*node, c change) {
	if c.node == nil {
		delete(state, c.path)
		return
	}
	delete(state, c.from)
	state[c.path] = c.node
}

type file struct {
	d    *Disk
	n    *node
	path string
}

func (f *file) Write(p []byte) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.call("write", f.path); err != nil {
		f.n.data = append(f.n.data, p[:len(p)/2]...)
		return len(p) / 2, err
	}
	f.n.data = append(f.n.data, p...)
	return len(p), nil
}

func (f *file) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if err := f.d.call("fsync", f.path); err != nil {
		return err
	}
	f.n.synced = slices.Clone(f.n.data)
	return nil
}

func (f *file) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.d.call("close", f.path)
}
