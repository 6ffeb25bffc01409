// Package cdi finds the devices that the specs of the Container Device Interface describe: files of JSON or YAML that
// vendors and drivers write into directories of the node.
//
//	/etc/cdi          administrators'    a.yaml ── vendor.com/gpu ─┬─ all
//	/var/run/cdi      drivers'           b.json ── vendor.com/gpu ─┴─ 0   of later directories, they win
//
// Nobody watches the directories. Whoever asks for a device has them listed, and files that have changed read again, so what
// is found is what is there, and nothing has to be kept going for nodes without devices. A file that cannot be
// used is its own devices' trouble.
package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	specs "tags.cncf.io/container-device-interface/specs-go"
)

// maxSpec bounds a file, in bytes. Those of a large GPU node have some hundred KiB.
const maxSpec = 16 << 20

// maxFiles bounds the files of all directories.
const maxFiles = 4096

// maxReasons is how many bytes of reasons an error has before the rest is only counted.
const maxReasons = 512

// Registry knows the devices of some directories. It is safe for concurrent use, holds nothing open, and needs no
// closing. A nil one knows no device.
type Registry struct {
	dirs []string

	mu    sync.Mutex
	files map[string]*file // guarded by mu: by path, as of the last look
}

// file is what was read from one file.
type file struct {
	stamp stamp
	read  time.Time
	spec  *cdi.Spec // nil if it cannot be used, which is what err says
	err   error
	prio  int
}

// stamp tells whether a file has changed.
type stamp struct {
	dev, ino uint64
	size     int64
	changed  unix.Timespec // the inode's, which nobody sets
}

// settled is how old a change has to be for the stamp to tell it from a later one: clocks of filesystems are coarse.
const settled = 2 * time.Second

// New returns a Registry of directories, which need not exist. A device in a later one counts more.
func New(dirs []string) *Registry {
	return &Registry{dirs: slices.Clone(dirs), files: map[string]*file{}}
}

// UnknownError says of a device that was asked for why there is none.
type UnknownError struct {
	Index         int // in the list that was asked for
	Name, Problem string
}

// Error returns the name and the problem.
func (e *UnknownError) Error() string { return fmt.Sprintf("CDI device %.256q: %s", e.Name, e.Problem) }

// Resolve returns what a container gets for devices, by their full names: for each the edits of the spec that it is in, once,
// and then its own, in this order. What it has had for others before, it does not get again. The result belongs to the
// Registry, and is not written to.
//
// A device that is unknown, or that two files of one directory describe, is an [UnknownError].
func (r *Registry) Resolve(names []string, had ...string) (*specs.ContainerEdits, error) {
	if r == nil {
		r = New(nil)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.look()
	all := &cdi.ContainerEdits{ContainerEdits: &specs.ContainerEdits{}}
	done := map[*cdi.Spec]bool{}
	for _, name := range had {
		if s, _, problem := r.find(name); problem == "" { // else its spec has gone meanwhile
			done[s] = true
		}
	}
	for i, name := range names {
		if slices.Contains(had, name) {
			continue
		}
		s, d, problem := r.find(name)
		if problem != "" {
			return nil, &UnknownError{i, name, problem}
		}
		if !done[s] {
			done[s] = true
			all.Append(&cdi.ContainerEdits{ContainerEdits: &s.ContainerEdits})
		}
		all.Append(&cdi.ContainerEdits{ContainerEdits: &d.ContainerEdits})
	}
	return all.ContainerEdits, nil
}

// find looks for a device. Preconditions: r.mu is held.
func (r *Registry) find(name string) (s *cdi.Spec, d *cdi.Device, problem string) {
	vendor, class, device := parser.ParseDevice(name)
	var at []string // who have it in the directory that counts most
	prio := -1
	for _, path := range slices.Sorted(maps.Keys(r.files)) {
		f := r.files[path]
		if f.spec == nil || f.spec.GetVendor() != vendor || f.spec.GetClass() != class || f.spec.GetDevice(device) == nil || f.prio < prio {
			continue
		}
		if f.prio > prio {
			prio, at = f.prio, nil
		}
		at = append(at, path)
		s, d = f.spec, f.spec.GetDevice(device)
	}
	switch len(at) {
	case 0:
		return nil, nil, "no such device in " + strings.Join(r.dirs, ", ") + r.unusable()
	case 1:
		return s, d, ""
	}
	return nil, nil, "described by both " + at[0] + " and " + at[1]
}

// unusable tells of files that could not be used, one of which may have the device. Preconditions: r.mu is held.
func (r *Registry) unusable() string {
	text, more := "", 0
	for _, path := range slices.Sorted(maps.Keys(r.files)) {
		switch err := r.files[path].err; {
		case err == nil:
		case len(text) < maxReasons:
			text += fmt.Sprintf("; %s cannot be used: %v", path, err)
		default:
			more++
		}
	}
	if more > 0 {
		text += fmt.Sprintf("; nor can %d more", more)
	}
	return text
}

// look lists the directories and reads what has changed. Preconditions: r.mu is held.
func (r *Registry) look() {
	found := map[string]*file{}
	for prio, dir := range r.dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			found[dir+"/"] = &file{err: err, prio: prio}
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if ext := filepath.Ext(path); e.IsDir() || ext != ".json" && ext != ".yaml" {
				continue
			}
			if len(found) == maxFiles {
				found[dir+"/"] = &file{err: fmt.Errorf("more than %d files", maxFiles), prio: prio}
				break
			}
			if f := r.readFile(path, prio); f != nil {
				found[path] = f
			}
		}
	}
	r.files = found
}

// readFile reads a file unless it is the one that was read before; nil is one that has gone.
func (r *Registry) readFile(path string, prio int) *file {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	f := &file{read: time.Now(), prio: prio, err: err}
	f.stamp = stamp{st.Dev, st.Ino, st.Size, st.Ctim}
	if old := r.files[path]; old != nil && err == nil && old.stamp == f.stamp && old.prio == prio && old.read.Sub(time.Unix(st.Ctim.Unix())) > settled {
		return old
	}
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG: // a FIFO, say, which nobody ever writes to
		f.err = errors.New("not a regular file")
	case st.Size > maxSpec:
		f.err = fmt.Errorf("%d bytes are more than %d", st.Size, maxSpec)
	default:
		f.spec, f.err = cdi.ReadSpec(path, prio)
	}
	if errors.Is(f.err, fs.ErrNotExist) {
		return nil
	}
	return f
}

// State is what there is, for whoever wants to know.
type State struct {
	Dirs     []string          `json:"dirs"`
	Devices  []string          `json:"devices"`            // full names
	Unusable map[string]string `json:"unusable,omitempty"` // why, by path
}

// State looks and tells.
func (r *Registry) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.look()
	s := State{Dirs: r.dirs, Devices: []string{}, Unusable: map[string]string{}}
	for path, f := range r.files {
		if f.err != nil {
			s.Unusable[path] = f.err.Error()
			continue
		}
		for _, d := range f.spec.Devices {
			s.Devices = append(s.Devices, parser.QualifiedName(f.spec.GetVendor(), f.spec.GetClass(), d.Name))
		}
	}
	slices.Sort(s.Devices)
	s.Devices = slices.Compact(s.Devices)
	return s
}
