package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Number is a figure of the kernel's. It is not Known where the file is missing
// (a controller that is not enabled), where a limit says "max", and where the
// content made no sense. Then Value is 0 and means nothing.
type Number struct {
	Value uint64
	Known bool
}

// Stats is what a cgroup and everything below it use, as Meter.Read found it.
// All of it is cumulative since the cgroup was made, unless it says otherwise.
type Stats struct {
	// CPUUsage is the CPU time of all cores in nanoseconds. The kernel counts it
	// without any controller.
	CPUUsage Number
	// CPUUser and CPUSystem are the parts of it, in nanoseconds as well.
	CPUUser, CPUSystem Number
	// Periods of the CPU quota in which something ran, those of them in which it
	// was held back, and for how many nanoseconds. They need the controller, and
	// are 0 without a quota.
	Periods, Throttled, ThrottledTime Number

	// What follows is in bytes, and of this moment.
	MemoryUsage  Number // all that is charged, page cache and kernel memory included
	MemoryLimit  Number // not Known without a limit
	InactiveFile Number // page cache that the kernel would take back first
	Anonymous    Number // anonymous memory, huge pages included
	Cached       Number // page cache, tmpfs included
	Mapped       Number // page cache that processes have mapped
	Kernel       Number // stacks, page tables, slabs and more; since Linux 5.18
	SwapUsage    Number
	SwapLimit    Number // not Known without a limit; of swap alone, as cgroup2 has it

	// PageFaults counts all faults, as cAdvisor and the other runtimes do although
	// the CRI says "minor". MajorPageFaults are those that had to read.
	PageFaults, MajorPageFaults Number

	// CPU, Memory and IO are the pressures (Documentation/accounting/psi.rst).
	// They need no controller, but a kernel with PSI switched on.
	CPU, Memory, IO Pressure
}

// WorkingSet is the memory that cannot be taken back easily: what the kubelet
// evicts by.
func (s *Stats) WorkingSet() Number {
	if !s.MemoryUsage.Known || !s.InactiveFile.Known {
		return Number{}
	}
	// The two were read one after the other and may cross.
	return Number{s.MemoryUsage.Value - min(s.InactiveFile.Value, s.MemoryUsage.Value), true}
}

// Pressure says for how long tasks waited for a resource.
type Pressure struct {
	Some, Full PressureLine // at least one task waited; all of them did
	Known      bool
}

// PressureLine is one line of a pressure file.
type PressureLine struct {
	Avg10, Avg60, Avg300 float64 // percent of the last 10, 60 and 300 seconds
	Total                uint64  // nanoseconds since the cgroup was made
}

// meterFiles are what a Meter reads, in this order: each with the parser that
// takes its content in, and what to do with Stats where there is no content.
var meterFiles = [...]struct {
	name  string
	parse func(*Stats, []byte)
}{
	{"cpu.stat", parseCPUStat}, // first: it exists as long as the cgroup does
	{"memory.current", func(s *Stats, b []byte) { s.MemoryUsage = parseNumber(b) }},
	{"memory.max", func(s *Stats, b []byte) { s.MemoryLimit = parseNumber(b) }},
	{"memory.stat", parseMemoryStat},
	{"memory.swap.current", func(s *Stats, b []byte) { s.SwapUsage = parseNumber(b) }},
	{"memory.swap.max", func(s *Stats, b []byte) { s.SwapLimit = parseNumber(b) }},
	{"cpu.pressure", func(s *Stats, b []byte) { s.CPU = parsePressure(b) }},
	{"memory.pressure", func(s *Stats, b []byte) { s.Memory = parsePressure(b) }},
	{"io.pressure", func(s *Stats, b []byte) { s.IO = parsePressure(b) }},
}

// MeterFiles is how many descriptors an open Meter holds at the most.
const MeterFiles = len(meterFiles) + 1

// lookAgain is how long a Meter believes that a file is missing. Controllers are
// switched on late where systemd has not realized a slice yet.
const lookAgain = 30 * time.Second

// Meter reads the use of one cgroup again and again. Its files are opened once: a
// read of one is 0.4 us then instead of 2.1, and does not walk a path that somebody
// may have changed. It keeps nobody from removing the cgroup.
//
// A Meter is not for concurrent use. Its owner closes it.
type Meter struct {
	path  string
	dir   *sys.FD
	files [len(meterFiles)]*sys.FD // nil where there is none
	tried time.Time                // when files were looked for
}

// Meter opens what the scope's use is read from. A scope that is gone is
// fs.ErrNotExist. The caller closes the Meter.
func (s *Scope) Meter() (*Meter, error) {
	dir, err := s.OpenDir()
	if err != nil {
		return nil, fmt.Errorf("measure cgroup %s: %w", s.path, err)
	}
	m := &Meter{path: s.path, dir: dir}
	if err := m.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("measure cgroup %s: %w", s.path, vanished(err)), m.Close())
	}
	return m, nil
}

// vanished gives the errors of a cgroup that is gone one kind.
func vanished(err error) error {
	if gone(err) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

// open opens the files that are not open. One that is not there is no error,
// except the first.
func (m *Meter) open() error {
	m.tried = time.Now()
	for i := range m.files {
		if m.files[i] != nil {
			continue
		}
		fd, err := sys.OpenAt2(m.dir.Int(), meterFiles[i].name, unix.O_RDONLY, beneath)
		switch {
		case err == nil:
			m.files[i] = fd
		case i == 0:
			return err
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		default:
			return err
		}
	}
	return nil
}

// scratch are buffers for the content of one file: memory.stat has about 2 KB, and
// grows by a line in each kernel.
var scratch = sync.Pool{New: func() any { return new([16 << 10]byte) }}

// Read takes the present figures into s, which is overwritten. One read of each
// file: the figures are of moments that lie microseconds apart. A cgroup that is
// gone is fs.ErrNotExist, and the Meter then of no more use.
//
// The kernel adds up the counters of all CPUs for memory.stat, which takes long in
// a large machine or under contention, and cannot be interrupted.
func (m *Meter) Read(s *Stats) error {
	*s = Stats{}
	buf := scratch.Get().(*[16 << 10]byte)
	defer scratch.Put(buf)
	missing := false
	for i := range m.files {
		if m.files[i] == nil {
			missing = true
			continue
		}
		n, err := pread(m.files[i], buf[:])
		switch {
		case err == nil:
			meterFiles[i].parse(s, buf[:n])
		case i == 0 && gone(err):
			return fmt.Errorf("measure cgroup %s: %w", m.path, vanished(err))
		case i != 0 && (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP)):
			// The controller, or PSI, was switched off.
			m.files[i].Close()
			m.files[i] = nil
		default:
			return fmt.Errorf("measure cgroup %s: read %s: %w", m.path, meterFiles[i].name, err)
		}
	}
	if missing && time.Since(m.tried) > lookAgain {
		if err := m.open(); err != nil && !gone(err) {
			return fmt.Errorf("measure cgroup %s: %w", m.path, err)
		}
	}
	return nil
}

// Close closes the Meter's files. It may be called again.
func (m *Meter) Close() error {
	errs := []error{m.dir.Close()}
	for _, f := range m.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// pread reads a file of the kernel's from its beginning.
func pread(f *sys.FD, buf []byte) (int, error) {
	for {
		n, err := unix.Pread(f.Int(), buf, 0)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// Census counts the processes of one cgroup and of those below it. Like a Meter it
// keeps its files open, keeps nobody from anything, is not for concurrent use, and
// has an owner who closes it.
type Census struct {
	path             string
	dir, procs, stat *sys.FD
}

// CensusFiles is how many descriptors an open Census holds.
const CensusFiles = 3

// maxCensus bounds how many cgroups a Census looks into: a container with a
// cgroup of its own to write may fill it.
const maxCensus = 256

// Census opens what the scope's processes are counted by. A scope that is gone is
// fs.ErrNotExist. The caller closes the Census.
func (s *Scope) Census() (*Census, error) {
	dir, err := s.OpenDir()
	if err != nil {
		return nil, fmt.Errorf("count processes of cgroup %s: %w", s.path, err)
	}
	c := &Census{path: s.path, dir: dir}
	if c.procs, err = sys.OpenAt2(dir.Int(), "cgroup.procs", unix.O_RDONLY, beneath); err == nil {
		c.stat, err = sys.OpenAt2(dir.Int(), "cgroup.stat", unix.O_RDONLY, beneath)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("count processes of cgroup %s: %w", s.path, vanished(err)), c.Close())
	}
	return c, nil
}

// Read counts processes, not threads, into n. A cgroup that is gone is
// fs.ErrNotExist.
func (c *Census) Read(n *uint64) error {
	buf := scratch.Get().(*[16 << 10]byte)
	defer scratch.Put(buf)
	*n = 0
	err := c.each(buf[:], func(f *sys.FD, buf []byte) error {
		lines, err := countLines(f, buf)
		*n += lines
		return err
	})
	if err != nil {
		return fmt.Errorf("count processes of cgroup %s: %w", c.path, vanished(err))
	}
	return nil
}

// each calls take for the cgroup.procs of the cgroup and of those below it.
func (c *Census) each(buf []byte, take func(procs *sys.FD, buf []byte) error) error {
	got, err := pread(c.stat, buf)
	if err != nil {
		return err
	}
	below := parseKey(buf[:got], "nr_descendants")
	if !below.Known || below.Value == 0 {
		return take(c.procs, buf)
	}
	left := maxCensus
	return walk(c.dir, func(dir int) error {
		if left--; left < 0 {
			return nil
		}
		f, err := sys.OpenAt2(dir, "cgroup.procs", unix.O_RDONLY, beneath)
		if err == nil {
			err = take(f, buf)
			f.Close()
		}
		// A threaded cgroup below, or one that has just gone, has no processes of
		// its own to show.
		if gone(err) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		return err
	})
}

// countLines counts the lines of a file from its beginning to its end, with a
// bound that no limit on pids allows to be reached.
func countLines(f *sys.FD, buf []byte) (lines uint64, err error) {
	for at := int64(0); at < 64<<20; {
		n, err := unix.Pread(f.Int(), buf, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("pread", err)
		}
		if n == 0 {
			break
		}
		for _, b := range buf[:n] {
			if b == '\n' {
				lines++
			}
		}
		at += int64(n)
	}
	return lines, nil
}

// Close closes the Census's files. It may be called again.
func (c *Census) Close() error {
	return errors.Join(c.dir.Close(), c.procs.Close(), c.stat.Close())
}
