package sandbox

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// How much of a container's processes is looked at, and how often. No file of a cgroup counts descriptors and sockets:
// each process's have to be looked at. Beyond the bounds a number is unknown rather than wrong.
const (
	crowdProcesses = 1024
	crowdFDs       = 1 << 16 // counting them costs little
	crowdLinks     = 1 << 14 // what is behind each costs about a microsecond
	crowdAge       = time.Second
	crowdPatch     = 20 // the age at which processes are looked at again, in times that it took
)

// crowd is what the processes of a container have together.
type crowd struct {
	took      time.Duration
	processes cgroup.Number
	threads   cgroup.Number
	fds       cgroup.Number
	sockets   cgroup.Number
	openFiles cgroup.Number // RLIMIT_NOFILE of the main process, the soft one
}

// crowdSource looks at them. A pid that ends between the list and the look, and comes to another process at once, is
// counted in its place: a moment's mistake of one reading.
type crowdSource struct {
	*cgroup.Census
	main int
}

func (crowdSource) files() int { return cgroup.CensusFiles }

func (s crowdSource) Read(v *crowd, _, _ int64) error {
	begin := time.Now()
	var n uint64
	if err := s.Census.Read(&n); err != nil {
		return err
	}
	pids, all, err := s.Pids(nil, crowdProcesses)
	if err != nil {
		return err
	}
	*v = crowd{processes: cgroup.Number{Value: n, Known: true}}
	sum := tally{fds: crowdFDs, links: crowdLinks, whole: all}
	for _, pid := range pids {
		proc := "/proc/" + strconv.Itoa(pid)
		sum.process(proc)
		if pid == s.main {
			v.openFiles = openFilesLimit(proc)
		}
	}
	if sum.whole {
		v.threads = cgroup.Number{Value: sum.threads, Known: true}
		v.fds = cgroup.Number{Value: uint64(crowdFDs - sum.fds), Known: sum.fds >= 0}
		v.sockets = cgroup.Number{Value: sum.sockets, Known: sum.fds >= 0 && sum.links >= 0}
	}
	v.took = time.Since(begin)
	return nil
}

// crowdIsOld says whether the processes should be looked at again.
func (c *Container) crowdIsOld() bool {
	last := c.stats.crowd.last.Load()
	if last == nil {
		return true
	}
	age := time.Duration(now() - last.at)
	return age < 0 || age >= max(crowdAge, crowdPatch*last.value.took)
}

// tally adds processes up.
type tally struct {
	fds, links       int // left of the bounds; negative once there was more
	threads, sockets uint64
	whole            bool // all could be looked at
}

func (t *tally) process(proc string) {
	var st unix.Stat_t
	err := unix.Stat(proc+"/task", &st)
	if err == nil {
		t.threads += st.Nlink - 2 // each is a directory in it
		err = t.descriptors(proc + "/fd")
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		t.whole = false
	}
}

var dirBuffers = sync.Pool{New: func() any { return new([16 << 10]byte) }}

// descriptors counts the links of /proc/PID/fd, and those to sockets. None is followed: what is behind may hang.
func (t *tally) descriptors(dir string) error {
	fd, err := sys.OpenAt2(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer fd.Close()
	buf := dirBuffers.Get().(*[16 << 10]byte)
	defer dirBuffers.Put(buf)
	var names []string
	for t.fds >= 0 {
		n, err := unix.Getdents(fd.Int(), buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names[:0])
		t.fds -= len(names)
		for _, name := range names {
			if t.links--; t.links < 0 {
				break
			}
			if isSocket(fd.Int(), name) {
				t.sockets++
			}
		}
	}
	return nil
}

func isSocket(dir int, name string) bool {
	const prefix = "socket:["
	var link [len(prefix)]byte
	n, err := unix.Readlinkat(dir, name, link[:])
	return err == nil && string(link[:n]) == prefix
}

// maxLimits bounds what is read of /proc/PID/limits, which has sixteen lines.
const maxLimits = 8 << 10

// openFilesLimit reads the soft limit of descriptors from /proc/PID/limits, which unlike prlimit(2) needs no rights over
// the process.
func openFilesLimit(proc string) cgroup.Number {
	f, err := os.Open(proc + "/limits")
	if err != nil {
		return cgroup.Number{}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxLimits))
	if err != nil {
		return cgroup.Number{}
	}
	return parseOpenFiles(b)
}

func parseOpenFiles(b []byte) cgroup.Number {
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte("Max open files ")); ok {
			if f := bytes.Fields(rest); len(f) >= 2 {
				n, err := strconv.ParseUint(string(f[0]), 10, 64)
				return cgroup.Number{Value: n, Known: err == nil}
			}
		}
	}
	return cgroup.Number{}
}

// deviceName returns the name of a block device, as /dev/sda, or its numbers where it has none. It is not remembered: a
// number goes to another device once the first was pulled out.
func deviceName(major, minor uint64) string {
	number := strconv.FormatUint(major, 10) + ":" + strconv.FormatUint(minor, 10)
	to, err := os.Readlink("/sys/dev/block/" + number)
	if err != nil {
		return number
	}
	return "/dev/" + filepath.Base(to)
}
