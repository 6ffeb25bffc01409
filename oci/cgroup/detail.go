package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Detail is what a cgroup counts beside Stats. Few ask for it, and it costs a file
// each.
type Detail struct {
	MemoryPeak Number // the most that was charged, in bytes; since Linux 5.19
	MemoryHits Number // how often more was wanted than memory.max allows
	OOMKills   Number // processes that the OOM killer took

	Threads    Number // tasks of all processes
	MaxThreads Number // the limit of them; 0, and Known, where there is none

	HugePages []HugePages // by size, as the kernel orders its files
	Disks     []DiskStats // nil without the controller
}

// HugePages is what is used of the huge pages of one size.
type HugePages struct {
	Size  string // 2MB, 1GB
	Usage Number // in bytes
}

// detailFiles are what a Ledger reads beside those of huge pages.
var detailFiles = [...]struct {
	name  string
	parse func(*Detail, []byte)
}{
	{"memory.peak", func(d *Detail, b []byte) { d.MemoryPeak = parseNumber(b) }},
	{"memory.events", func(d *Detail, b []byte) {
		d.MemoryHits, d.OOMKills = parseKey(b, "max"), parseKey(b, "oom_kill")
	}},
	{"pids.current", func(d *Detail, b []byte) { d.Threads = parseNumber(b) }},
	{"pids.max", func(d *Detail, b []byte) {
		if d.MaxThreads = parseNumber(b); string(b) == "max\n" {
			d.MaxThreads = Number{0, true}
		}
	}},
	// A last line without an end was cut off.
	{"io.stat", func(d *Detail, b []byte) { d.Disks = parseDisks(string(b[:bytes.LastIndexByte(b, '\n')+1])) }},
}

// detailFile returns the parser of a file, nil if it is none of a Ledger's.
func detailFile(name string) func(*Detail, []byte) {
	for _, f := range detailFiles {
		if f.name == name {
			return f.parse
		}
	}
	if size, ok := pageSize(name); ok {
		return func(d *Detail, b []byte) { d.HugePages = append(d.HugePages, HugePages{size, parseNumber(b)}) }
	}
	return nil
}

// Parse takes in the content of one of the files that a Ledger reads, by its name.
// Others are passed over.
func (d *Detail) Parse(name string, content []byte) {
	if parse := detailFile(name); parse != nil {
		parse(d, content)
	}
}

// Parse takes in the content of one of the files that a Meter reads, by its name.
// Others are passed over.
func (s *Stats) Parse(name string, content []byte) {
	for _, f := range meterFiles {
		if f.name == name {
			f.parse(s, content)
		}
	}
}

// pageSize returns the size in hugetlb.<size>.current; hugetlb.<size>.rsvd.current
// counts something else.
func pageSize(name string) (string, bool) {
	size, ok := strings.CutPrefix(name, "hugetlb.")
	size, end := strings.CutSuffix(size, ".current")
	return size, ok && end && !strings.Contains(size, ".")
}

// Ledger reads the Detail of one cgroup again and again, and is as a Meter in all.
type Ledger struct {
	path  string
	dir   *sys.FD
	files []ledgerFile
	tried time.Time // when files were looked for
}

type ledgerFile struct {
	name  string
	parse func(*Detail, []byte)
	fd    *sys.FD
}

// Ledger opens what the scope's Detail is read from. A scope that is gone is
// fs.ErrNotExist. The caller closes the Ledger.
func (s *Scope) Ledger() (*Ledger, error) {
	dir, err := s.OpenDir()
	if err != nil {
		return nil, fmt.Errorf("measure cgroup %s: %w", s.path, err)
	}
	l := &Ledger{path: s.path, dir: dir, tried: time.Now()}
	if err := l.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("measure cgroup %s: %w", s.path, vanished(err)), l.Close())
	}
	return l, nil
}

// open opens the files that are there: which, the controllers and the kernel decide.
func (l *Ledger) open() error {
	names, err := l.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		fd, err := sys.OpenAt2(l.dir.Int(), name, unix.O_RDONLY, beneath)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return err
		}
		l.files = append(l.files, ledgerFile{name, detailFile(name), fd})
	}
	return nil
}

// names lists the files in the cgroup's directory that are ours.
func (l *Ledger) names() (names []string, err error) {
	own, err := sys.OpenAt2(l.dir.Int(), ".", unix.O_DIRECTORY, beneath)
	if err != nil {
		return nil, err
	}
	f := own.File("cgroup")
	defer f.Close()
	all, err := f.Readdirnames(-1)
	for _, name := range all {
		if detailFile(name) != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, err
}

// Files is how many descriptors the Ledger holds.
func (l *Ledger) Files() int { return 1 + len(l.files) }

// Stale says that files were missing when the Ledger was opened, and that it is time
// to open a new one: controllers are switched on late where systemd has not realized
// a slice yet.
func (l *Ledger) Stale() bool {
	return len(l.files) < len(detailFiles) && time.Since(l.tried) > lookAgain
}

// Read takes the present figures into d, which is overwritten. Any error means that
// the cgroup or a controller is gone, and the Ledger of no more use.
func (l *Ledger) Read(d *Detail) error {
	*d = Detail{}
	buf := scratch.Get().(*[16 << 10]byte)
	defer scratch.Put(buf)
	for _, f := range l.files {
		n, err := pread(f.fd, buf[:])
		if err != nil {
			return fmt.Errorf("measure cgroup %s: %w", l.path, vanished(&os.PathError{Op: "read", Path: f.name, Err: err}))
		}
		f.parse(d, buf[:n])
	}
	return nil
}

// Close closes the Ledger's files. It may be called again.
func (l *Ledger) Close() error {
	errs := []error{l.dir.Close()}
	for _, f := range l.files {
		errs = append(errs, f.fd.Close())
	}
	return errors.Join(errs...)
}

// Pids appends the processes of the cgroup and of those below it to list, in the
// numbers of our own PID namespace, and not more than most: all says whether these
// are all. A cgroup that is gone is fs.ErrNotExist.
func (c *Census) Pids(list []int, most int) (pids []int, all bool, err error) {
	buf := scratch.Get().(*[16 << 10]byte)
	defer scratch.Put(buf)
	all = true
	err = c.each(buf[:], func(f *sys.FD, buf []byte) error {
		whole, err := appendPids(&list, f, buf, most)
		all = all && whole
		return err
	})
	if err != nil {
		return list, false, fmt.Errorf("list processes of cgroup %s: %w", c.path, vanished(err))
	}
	return list, all, nil
}

// appendPids reads one cgroup.procs. A process that our PID namespace does not see
// is 0 there, and left out. What a read cuts in two is read again as a whole.
func appendPids(list *[]int, procs *sys.FD, buf []byte, most int) (all bool, err error) {
	for at := int64(0); ; {
		n, err := unix.Pread(procs.Int(), buf, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false, os.NewSyscallError("pread", err)
		}
		part := buf[:n]
		for {
			line, rest, ok := cutLine(part)
			if !ok {
				break
			}
			at, part = at+int64(len(line))+1, rest
			pid := parseNumber(line)
			if !pid.Known || pid.Value == 0 {
				continue
			}
			if len(*list) >= most {
				return false, nil
			}
			*list = append(*list, int(pid.Value))
		}
		if n == len(part) {
			return true, nil // nothing more, or no line in it
		}
	}
}
