package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

// cgroupUse is what a cgroup uses, and how fast it uses CPU time.
type cgroupUse struct {
	cgroup.Stats
	nanoCores cgroup.Number // CPU nanoseconds per second, over the time since base or longer

	base   cgroup.Number // CPU usage at baseAt
	baseAt int64
}

// rateWindow is the shortest time over which a rate is told. Between two callers who ask one right after the other,
// both see the same rate, and not one of the microseconds between them.
const rateWindow = int64(time.Second)

// meterSource reads a cgroup.
type meterSource struct{ *cgroup.Meter }

func (meterSource) files() int { return cgroup.MeterFiles }

func (m meterSource) Read(u *cgroupUse, _, now int64) error {
	if err := m.Meter.Read(&u.Stats); err != nil {
		return err
	}
	u.observe(now)
	return nil
}

// observe takes the CPU usage at now into the rate.
func (u *cgroupUse) observe(now int64) {
	use, took := u.CPUUsage, now-u.baseAt
	switch {
	case !use.Known, !u.base.Known, use.Value < u.base.Value, took <= 0:
		// The first reading, or a clock or cgroup that is another one.
		u.nanoCores, u.base, u.baseAt = cgroup.Number{}, use, now
	case took >= rateWindow:
		rate := float64(use.Value-u.base.Value) / float64(took) * float64(time.Second)
		u.nanoCores = cgroup.Number{Value: uint64(min(rate, math.MaxInt64)), Known: true}
		u.base, u.baseAt = use, now
	}
}

// censusSource counts processes.
type censusSource struct{ *cgroup.Census }

func (censusSource) files() int { return cgroup.CensusFiles }

func (c censusSource) Read(n *uint64, _, _ int64) error { return c.Census.Read(n) }

// ledgerSource reads what a cgroup counts beside its use.
type ledgerSource struct{ *cgroup.Ledger }

func (l ledgerSource) files() int { return l.Files() }

func (l ledgerSource) Read(d *cgroup.Detail, _, _ int64) error {
	if l.Stale() {
		return errStale
	}
	return l.Ledger.Read(d)
}

// errStale has a gauge open its source again.
var errStale = errors.New("files may be there that were not")

// netInterface is the traffic of one interface since it was made.
type netInterface struct {
	name                                    string
	rxBytes, rxPackets, rxErrors, rxDropped uint64
	txBytes, txPackets, txErrors, txDropped uint64
}

// netSource reads the interfaces of one network namespace from /proc/<pid>/net/dev of a process in it. The open file
// holds the namespace, whatever becomes of the process: nobody has to enter it.
type netSource struct{ fd *sys.FD }

func (netSource) files() int { return 1 }

func (s netSource) Close() error { return s.fd.Close() }

// openNetwork opens the interfaces of the namespace that is pinned at pin, by a process that should be in it. That it
// is, is looked at afterwards: its pid might be another one's by now.
func openNetwork(pid int, pin string) (source[[]netInterface], error) {
	proc := "/proc/" + strconv.Itoa(pid)
	fd, err := sys.OpenAt2(unix.AT_FDCWD, proc+"/net/dev", unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	var is, want unix.Stat_t
	if err = unix.Stat(proc+"/ns/net", &is); err == nil {
		err = unix.Stat(pin, &want)
	}
	if err == nil && (is.Dev != want.Dev || is.Ino != want.Ino) {
		err = fmt.Errorf("process %d is in another network namespace than %s: %w", pid, pin, fs.ErrNotExist)
	}
	if err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	return netSource{fd}, nil
}

// maxInterfaces bounds what is read, in bytes: some ten thousand interfaces.
const maxInterfaces = 2 << 20

var netBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// Read replaces the interfaces; the slice before is somebody else's by now.
func (s netSource) Read(v *[]netInterface, _, _ int64) error {
	buf := netBuffers.Get().(*bytes.Buffer)
	defer netBuffers.Put(buf)
	buf.Reset()
	if _, err := buf.ReadFrom(io.LimitReader(&preader{fd: s.fd}, maxInterfaces)); err != nil {
		return fmt.Errorf("read network interfaces: %w", err)
	}
	list, err := parseInterfaces(buf.Bytes(), *v)
	if err != nil {
		return err
	}
	*v = list
	return nil
}

// preader reads a file of the kernel's from its beginning, wherever its offset is.
type preader struct {
	fd *sys.FD
	at int64
}

func (p *preader) Read(b []byte) (int, error) {
	for {
		n, err := unix.Pread(p.fd.Int(), b, p.at)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return 0, os.NewSyscallError("pread", err)
		case n == 0:
			return 0, io.EOF
		}
		p.at += int64(n)
		return n, nil
	}
}

// parseInterfaces reads /proc/net/dev: two lines of heading, and for each interface its name, a colon and sixteen
// numbers, of which the first four and the ninth to the twelfth are ours. The loopback interface is left out: what a pod says
// to itself is not its traffic, and whoever adds the interfaces up would count it. Names are taken from before where
// they are the same.
func parseInterfaces(b []byte, before []netInterface) ([]netInterface, error) {
	out := make([]netInterface, 0, max(len(before), 1))
	for n := 0; len(b) > 0; n++ {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		b = rest
		if n < 2 {
			continue
		}
		name, text, ok := bytes.Cut(line, []byte(":"))
		i := netInterface{}
		if ok = ok && whole; ok {
			ok = i.parse(text)
		}
		name = bytes.TrimLeft(name, " ")
		if !ok || len(name) == 0 {
			return nil, fmt.Errorf("read network interfaces: line %d is not understood: %.120q", n+1, line)
		}
		if string(name) == "lo" {
			continue
		}
		if at := len(out); at < len(before) && before[at].name == string(name) { // none that is escaped
			i.name = before[at].name
		} else {
			i.name = interfaceName(name)
		}
		out = append(out, i)
	}
	return out, nil
}

// interfaceName is a name as text. The kernel takes nearly any bytes for one, from a container that may make interfaces,
// and one that is not UTF-8 would keep the whole answer from being sent: what is not is escaped, and so is the backslash,
// so that no two are the same.
func interfaceName(name []byte) string {
	if utf8.Valid(name) && !bytes.ContainsRune(name, '\\') {
		return string(name)
	}
	return strings.Trim(strconv.QuoteToASCII(string(name)), `"`)
}

// parse reads the sixteen numbers.
func (i *netInterface) parse(text []byte) bool {
	field := 0
	for {
		text = bytes.TrimLeft(text, " ")
		if len(text) == 0 {
			return field >= 16
		}
		var v uint64
		end := 0
		for ; end < len(text) && text[end] != ' '; end++ {
			d := uint64(text[end] - '0')
			if d > 9 || v > (math.MaxUint64-d)/10 {
				return false
			}
			v = v*10 + d
		}
		switch field {
		case 0:
			i.rxBytes = v
		case 1:
			i.rxPackets = v
		case 2:
			i.rxErrors = v
		case 3:
			i.rxDropped = v
		case 8:
			i.txBytes = v
		case 9:
			i.txPackets = v
		case 10:
			i.txErrors = v
		case 11:
			i.txDropped = v
		}
		field++
		text = text[end:]
	}
}
