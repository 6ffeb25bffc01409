package bundle

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/oci/seccomp"
)

// profileOf returns a profile that denies some calls, one rule for each.
func profileOf(names ...string) *specs.LinuxSeccomp {
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	for _, n := range names {
		s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: []string{n}, Action: specs.ActErrno})
	}
	return s
}

// get asks for a filter and keeps it; found says that it was there.
func get(t *testing.T, r *Runtime, s *specs.LinuxSeccomp) (code []byte, found bool) {
	t.Helper()
	code, flags, keep, err := r.filter(s)
	if err != nil {
		t.Fatal(err)
	}
	f, err := seccomp.CompileWith(s, seccomp.Options{Notify: true})
	if err != nil || !bytes.Equal(code, f.Bytes()) || flags != f.Flags {
		t.Fatalf("%d instructions, flags %#x, want %s, flags %#x, %v", len(code)/8, flags, f, f.Flags, err)
	}
	if keep != nil {
		keep()
	}
	return code, keep == nil
}

func TestFiltersAreKept(t *testing.T) {
	r := &Runtime{Root: t.TempDir()}
	notify := profileOf("mkdir")
	notify.Syscalls[0].Action, notify.ListenerPath = specs.ActNotify, "/run/agent"
	none := profileOf()
	none.Flags = []specs.LinuxSeccompFlag{}
	for _, s := range []*specs.LinuxSeccomp{profileOf("mkdir"), profileOf("mkdir", "rmdir"), profileOf(), none, notify} {
		if _, found := get(t, r, s); found {
			t.Errorf("%v was there", s)
		}
		if _, found := get(t, r, s); !found {
			t.Errorf("%v was not kept", s)
		}
	}
	if _, _, _, err := r.filter(&specs.LinuxSeccomp{DefaultAction: "?"}); err == nil {
		t.Error("a profile that is none")
	}
	if code, _, keep, err := r.filter(nil); code != nil || keep != nil || err != nil {
		t.Error(code, err)
	}
	code, _, keep, err := (*Runtime)(nil).filter(profileOf("mkdir")) // to explain
	if len(code) == 0 || keep != nil || err != nil {
		t.Error(code, err)
	}
	entries, err := os.ReadDir(filepath.Join(r.Root, filterDir))
	if err != nil || len(entries) == 0 || len(entries) > filterSlots {
		t.Errorf("%d files, %v", len(entries), err)
	}
	r.forgetFilters()
	if left, err := os.ReadDir(r.Root); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	get(t, r, none)
	if err := os.Mkdir(filepath.Join(r.Root, "container"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.forgetFilters()
	if _, found := get(t, r, none); !found {
		t.Error("forgotten while there is a container")
	}
}

// Two profiles of one slot have it in turn: those that are of one length, and those of which one
// begins with the other.
func TestFiltersOfOneSlot(t *testing.T) {
	r := &Runtime{Root: t.TempDir()}
	key := func(s *specs.LinuxSeccomp) *kept { return r.keepFor(s, seccomp.Options{Notify: true}) }
	for name, other := range map[string]func(i int) (a, b *specs.LinuxSeccomp){
		"alike": func(i int) (a, b *specs.LinuxSeccomp) {
			return profileOf("mkdir", "nothing0000"), profileOf("rmdir", fmt.Sprintf("nothing%04d", i))
		},
		"beginning": func(i int) (a, b *specs.LinuxSeccomp) {
			return profileOf("mkdir"), profileOf("mkdir", fmt.Sprintf("nothing99%04d", i))
		},
	} {
		i := 0
		a, b := other(i)
		for ; key(a).slot() != key(b).slot(); i++ {
			a, b = other(i)
		}
		if (len(key(a).head)-len(key(b).head))%8 != 0 {
			t.Fatalf("%s: lengths %d, %d tell them apart", name, len(key(a).head), len(key(b).head))
		}
		for range 3 {
			for _, s := range []*specs.LinuxSeccomp{a, b} {
				if _, found := get(t, r, s); found {
					t.Errorf("%s: found the other's", name)
				}
			}
		}
	}
}

// Nothing is believed of a file that is not whole, is of another binary, or lies where others write.
func TestFiltersAreNotBelieved(t *testing.T) {
	r := &Runtime{Root: t.TempDir()}
	s := profileOf("mkdir")
	get(t, r, s)
	k := r.keepFor(s, seccomp.Options{Notify: true})
	file := filepath.Join(r.Root, filterDir, k.slot())
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, b []byte) {
		t.Helper()
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _ := k.load(); code != nil {
			t.Errorf("%s: believed", what)
		}
	}
	for i := range whole {
		b := slices.Clone(whole)
		b[i] ^= 0x10
		try(fmt.Sprint("byte ", i), b)
		try(fmt.Sprint("length ", i), whole[:i])
	}
	try("longer", append(slices.Clone(whole), make([]byte, 8)...))
	try("huge", append(slices.Clone(whole), make([]byte, 8*seccomp.MaxLen)...))
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _ := k.load(); code == nil {
		t.Fatal("the whole file is not believed")
	}
	k.head[8]++ // the binary's inode
	if code, _ := k.load(); code != nil {
		t.Error("another binary's is believed")
	}
	k.head[8]--
	dir := filepath.Join(r.Root, filterDir)
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if code, _ := k.load(); code != nil {
		t.Error("believed of a directory that others read")
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, 1000, 0); err != nil {
			t.Fatal(err)
		}
		if code, _ := k.load(); code != nil {
			t.Error("believed of somebody else's directory")
		}
		if err := os.Chown(dir, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(dir, dir+"2"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filterDir+"2", dir); err != nil {
		t.Fatal(err)
	}
	if code, _ := k.load(); code != nil {
		t.Error("believed of a symlink")
	}
	k.store(make([]byte, 8), 0)
	if entries, err := os.ReadDir(dir + "2"); err != nil || len(entries) != 1 {
		t.Errorf("stored through a symlink: %v, %v", entries, err)
	}
}
