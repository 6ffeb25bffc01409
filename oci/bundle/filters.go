package bundle

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/seccomp"
)

// Filters are kept in the directory of all states, for as long as there is a container: to compile
// one takes longer than anything else that we do ourselves for a container, and nearly all have one of two
// or three profiles. A file is for a profile as it was, word for word, and for the binary that compiled it; of what cannot be
// read, is not whole or not ours only, nothing is believed.
//
//	.filters/<slot>   sum │ flags │ length of head │ head: binary, options, profile │ instructions
const filterDir = ".filters"

// filterSlots is how many filters are kept. Where one lies is told by a sum of its profile; another profile with the same takes its place.
const filterSlots = 32

// kept is a filter in the making: what its file begins with.
type kept struct {
	root string
	head []byte // binary, options and profile
}

// keepFor looks for what identifies the filter of a profile; nil where filters cannot be kept.
func (r *Runtime) keepFor(s *specs.LinuxSeccomp, o seccomp.Options) *kept {
	var st unix.Stat_t
	if r == nil || unix.Stat("/proc/self/exe", &st) != nil {
		return nil
	}
	k := &kept{root: r.Root, head: make([]byte, 0, 16<<10)}
	for _, n := range []int64{int64(st.Dev), int64(st.Ino), st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec} {
		k.head = binary.NativeEndian.AppendUint64(k.head, uint64(n))
	}
	k.head = seccomp.AppendProfile(k.head, s, o)
	return k
}

func (k *kept) slot() string { return strconv.Itoa(int(sum(k.head) % filterSlots)) }

// sum is FNV-1a of 64-bit words: it tells a torn file from a whole one, not a forged one.
func sum(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for ; len(b) >= 8; b = b[8:] {
		h = (h ^ binary.NativeEndian.Uint64(b)) * 1099511628211
		h ^= h >> 32
	}
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h ^ h>>29
}

// open opens the directory, which nobody else may have made or write to.
func (k *kept) open() (*sys.FD, error) {
	n, err := unix.Open(filepath.Join(k.root, filterDir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	dir := sys.NewFD(n)
	var st unix.Stat_t
	if err := unix.Fstat(n, &st); err != nil || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		dir.Close()
		return nil, unix.EPERM
	}
	return dir, nil
}

// fixed is what stands before the head: a profile's may begin with all of another's, so its length is there, too.
const fixed = 24

// load returns the filter as bytes and its flags, or nil.
func (k *kept) load() (code []byte, flags uint64) {
	dir, err := k.open()
	if err != nil {
		return nil, 0
	}
	defer dir.Close()
	n, err := unix.Openat(dir.Int(), k.slot(), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0
	}
	defer unix.Close(n)
	begin := fixed + len(k.head)
	var st unix.Stat_t
	if err := unix.Fstat(n, &st); err != nil || st.Size <= int64(begin) || st.Size > int64(begin+8*seccomp.MaxLen) {
		return nil, 0
	}
	b := make([]byte, st.Size)
	m, err := unix.Read(n, b)
	if err != nil || m < len(b) || (m-begin)%8 != 0 || binary.NativeEndian.Uint64(b) != sum(b[8:m]) ||
		binary.NativeEndian.Uint64(b[16:]) != uint64(len(k.head)) || !bytes.Equal(b[fixed:begin], k.head) {
		return nil, 0
	}
	return b[begin:m], binary.NativeEndian.Uint64(b[8:])
}

// store keeps a filter. That it could not is nobody's loss.
func (k *kept) store(code []byte, flags uint64) {
	path := filepath.Join(k.root, filterDir)
	if err := unix.Mkdir(path, 0o700); err != nil && err != unix.EEXIST {
		return
	}
	dir, err := k.open()
	if err != nil {
		return
	}
	defer dir.Close()
	b := make([]byte, 8, fixed+len(k.head)+len(code))
	b = binary.NativeEndian.AppendUint64(b, flags)
	b = binary.NativeEndian.AppendUint64(b, uint64(len(k.head)))
	b = append(append(b, k.head...), code...)
	binary.NativeEndian.PutUint64(b, sum(b[8:]))
	tmp := ".new-" + strconv.Itoa(os.Getpid())
	n, err := unix.Openat(dir.Int(), tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return
	}
	defer unix.Close(n)
	if m, err := unix.Write(n, b); err != nil || m < len(b) || unix.Renameat(dir.Int(), tmp, dir.Int(), k.slot()) != nil {
		_ = unix.Unlinkat(dir.Int(), tmp, 0)
	}
}

// forgetFilters removes the filters where no container is left.
func (r *Runtime) forgetFilters() {
	f, err := sys.OpenFile(r.Root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if names, err := f.Readdirnames(2); err == nil && len(names) == 1 && names[0] == filterDir {
		_ = os.RemoveAll(filepath.Join(r.Root, filterDir)) // somebody may make a container at this moment, and loses time
	}
}

// filter compiles a seccomp section, or finds what came of that before. The second result, if not nil, keeps the filter once
// there is a container.
func (r *Runtime) filter(s *specs.LinuxSeccomp) (code []byte, flags uint64, keep func(), err error) {
	if s == nil {
		return nil, 0, nil, nil
	}
	o := seccomp.Options{Notify: true}
	k := r.keepFor(s, o)
	if k != nil {
		if code, flags = k.load(); code != nil {
			return code, flags, nil, nil
		}
	}
	f, err := seccomp.CompileWith(s, o)
	if err != nil {
		return nil, 0, nil, fmt.Errorf("linux.seccomp: %w", err)
	}
	code = f.Bytes()
	if k != nil && len(code) > 0 {
		keep = func() { k.store(code, f.Flags) }
	}
	return code, f.Flags, keep, nil
}
