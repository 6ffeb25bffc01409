package program_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/oci/program"
)

// specOptions is the table "Linux mount options" of the runtime spec, with what
// mountinfo shows for the mount and for the superblock of a tmpfs that has the option.
var specOptions = []struct{ option, mount, super string }{
	{"async", "rw,relatime", "rw"}, {"atime", "rw,relatime", "rw"}, {"defaults", "rw,relatime", "rw"}, {"dev", "rw,relatime", "rw"},
	{"diratime", "rw,relatime", "rw"}, {"dirsync", "rw,relatime", "rw,dirsync"}, {"exec", "rw,relatime", "rw"}, {"iversion", "rw,relatime", "rw"},
	{"lazytime", "rw,relatime", "rw,lazytime"}, {"loud", "rw,relatime", "rw"}, {"mand", "rw,relatime", "rw,mand"}, {"noatime", "rw,noatime", "rw"},
	{"nodev", "rw,nodev,relatime", "rw"}, {"nodiratime", "rw,nodiratime,relatime", "rw"}, {"noexec", "rw,noexec,relatime", "rw"},
	{"noiversion", "rw,relatime", "rw"}, {"nolazytime", "rw,relatime", "rw"}, {"nomand", "rw,relatime", "rw"}, {"norelatime", "rw,relatime", "rw"},
	{"nostrictatime", "rw,relatime", "rw"}, {"nosuid", "rw,nosuid,relatime", "rw"}, {"nosymfollow", "rw,relatime,nosymfollow", "rw"},
	{"private", "rw,relatime", "rw"}, {"relatime", "rw,relatime", "rw"}, {"ro", "ro,relatime", "rw"}, {"rprivate", "rw,relatime", "rw"},
	{"rshared", "rw,relatime", "rw"}, {"rslave", "rw,relatime", "rw"}, {"runbindable", "rw,relatime", "rw"}, {"rw", "rw,relatime", "rw"},
	{"shared", "rw,relatime", "rw"}, {"silent", "rw,relatime", "rw"}, {"slave", "rw,relatime", "rw"}, {"strictatime", "rw", "rw"},
	{"suid", "rw,relatime", "rw"}, {"symfollow", "rw,relatime", "rw"}, {"sync", "rw,relatime", "rw,sync"}, {"unbindable", "rw,relatime", "rw"},
	{"ratime", "rw,relatime", "rw"}, {"rdev", "rw,relatime", "rw"}, {"rdiratime", "rw,relatime", "rw"}, {"rexec", "rw,relatime", "rw"},
	{"rnoatime", "rw,noatime", "rw"}, {"rnodiratime", "rw,nodiratime,relatime", "rw"}, {"rnodev", "rw,nodev,relatime", "rw"},
	{"rnoexec", "rw,noexec,relatime", "rw"}, {"rnorelatime", "rw,relatime", "rw"}, {"rnostrictatime", "rw,relatime", "rw"},
	{"rnosuid", "rw,nosuid,relatime", "rw"}, {"rnosymfollow", "rw,relatime,nosymfollow", "rw"}, {"rrelatime", "rw,relatime", "rw"},
	{"rro", "ro,relatime", "rw"}, {"rrw", "rw,relatime", "rw"}, {"rstrictatime", "rw", "rw"}, {"rsuid", "rw,relatime", "rw"}, {"rsymfollow", "rw,relatime", "rw"},
	// not in the table, but in mount(8)
	{"user", "rw,nosuid,nodev,noexec,relatime", "rw"}, {"users,exec", "rw,nosuid,nodev,relatime", "rw"}, {"owner", "rw,nosuid,nodev,relatime", "rw"},
	{"noauto,_netdev,x-systemd.automount,comment=none", "rw,relatime", "rw"}, {"X-mount.mkdir", "rw,relatime", "rw"},
	{"noatime,atime", "rw,relatime", "rw"}, {"strictatime,atime", "rw", "rw"}, {"noatime,nostrictatime", "rw,noatime", "rw"}, {"noatime,norelatime", "rw,noatime", "rw"},
	{"ro,size=64k,noexec", "ro,noexec,relatime", "rw,size=64k"},
}

func sameWords(a, b string) bool {
	x, y := strings.Split(a, ","), strings.Split(b, ",")
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// mountLine returns the options of the mount, the optional fields and the
// options of the superblock that mountinfo has for a place.
func mountLine(table, at string) (mount, optional, super string) {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 9 || f[4] != at {
			continue
		}
		sep := slices.Index(f, "-")
		mount, optional, super = f[5], strings.Join(f[6:sep], " "), f[len(f)-1]
	}
	return mount, optional, super
}

func TestEveryOptionOfTheSpec(t *testing.T) {
	s := newStage(rootTree(t), "cat", "/proc/self/mountinfo")
	for i, o := range specOptions {
		s.tmpfs(fmt.Sprintf("/t/%d", i), o.option)
	}
	res := s.run(t)
	if res.err != nil {
		t.Fatal(res.err)
	}
	for i, o := range specOptions {
		mount, optional, super := mountLine(res.out, fmt.Sprintf("/t/%d", i))
		super = strings.TrimSuffix(strings.ReplaceAll(super, ",inode64", ""), ",")
		if !sameWords(mount, o.mount) || !sameWords(super, o.super) {
			t.Errorf("%s: mount %q and superblock %q, want %q and %q", o.option, mount, super, o.mount, o.super)
		}
		shared := strings.TrimPrefix(o.option, "r") == "shared"
		if strings.HasPrefix(optional, "shared:") != shared || (optional == "unbindable") != (strings.TrimPrefix(o.option, "r") == "unbindable") {
			t.Errorf("%s: propagation %q", o.option, optional)
		}
	}
}

// TestEveryOptionOnBind: what the filesystem would have to do for a bind mount
// is refused; everything else leaves the source's restrictions alone, but for the
// recursive forms, which are meant as they stand.
func TestEveryOptionOnBind(t *testing.T) {
	refused := []string{"dirsync", "lazytime", "mand", "sync", "ro,size=64k,noexec"}
	dir := t.TempDir()
	s := newStage(rootTree(t), "cat", "/proc/self/mountinfo")
	s.prepare = func() error {
		return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	for i, o := range specOptions {
		_, err := program.ParseMount("m", &specs.Mount{Type: "bind", Options: []string{o.option}})
		if slices.Contains(refused, o.option) {
			if !errors.Is(err, program.ErrUnsupported) {
				t.Errorf("%s on a bind: %v", o.option, err)
			}
			continue
		}
		s.addBind(dir, fmt.Sprintf("/t/%d", i), true, o.option)
	}
	res := s.run(t)
	if res.err != nil {
		t.Fatal(res.err)
	}
	loosens := map[string]string{"rsuid": "nosuid", "rdev": "nodev", "rexec": "noexec"}
	for i, o := range specOptions {
		if slices.Contains(refused, o.option) {
			continue
		}
		mount, _, _ := mountLine(res.out, fmt.Sprintf("/t/%d", i))
		for _, f := range []string{"nosuid", "nodev", "noexec"} {
			if has := slices.Contains(strings.Split(mount, ","), f); has == (loosens[o.option] == f) {
				t.Errorf("%s: %q, and the source is %s", o.option, mount, f)
			}
		}
	}
}

func TestOptionsOfOnesOwn(t *testing.T) {
	for _, tt := range []struct {
		typ     string
		options []string
		want    string // of the error, or data and flags
		cause   error
	}{
		{"tmpfs", []string{"size=1k,mode=755", "nr_inodes=3"}, "size=1k mode=755 nr_inodes=3", nil},
		{"tmpfs", []string{`context="system_u:object_r:x:s0:c1,c2",mode=700`}, "context=system_u:object_r:x:s0:c1,c2 mode=700", nil},
		{"overlay", []string{`lowerdir=/a\,b:/c,volatile`}, `lowerdir=/a\,b:/c volatile`, nil},
		{"tmpfs", []string{"a\x00b"}, "m.options", program.ErrInvalid},
		{"tmpfs", []string{"nofail"}, `m.options: "nofail"`, program.ErrUnsupported},
		{"tmpfs", []string{"loop=/dev/loop0"}, `m.options: "loop=/dev/loop0"`, program.ErrUnsupported},
		{"tmpfs", []string{"X-mount.owner=5"}, `m.options: "X-mount.owner=5"`, program.ErrUnsupported},
		{"bind", []string{"tmpcopyup"}, "m.options: tmpcopyup on a bind", program.ErrInvalid},
		{"bind", []string{"z"}, `m.options: "z" on a bind`, program.ErrUnsupported},
		{"", []string{"remount", "bind", "size=5"}, `m.options: "size=5" on a bind`, program.ErrUnsupported},
		{"", []string{"remount", "idmap"}, "m.options: idmap", program.ErrUnsupported},
	} {
		o, err := program.ParseMount("m", &specs.Mount{Type: tt.typ, Options: tt.options})
		switch {
		case tt.cause == nil && (err != nil || strings.Join(o.Data, " ") != tt.want):
			t.Errorf("%q: %q, %v", tt.options, o.Data, err)
		case tt.cause != nil && (!errors.Is(err, tt.cause) || !strings.HasPrefix(err.Error(), tt.want)):
			t.Errorf("%q: %v, want %q", tt.options, err, tt.want)
		}
	}
	if _, err := program.ParseMount("m", &specs.Mount{UIDMappings: []specs.LinuxIDMapping{{Size: 1}}}); !errors.Is(err, program.ErrInvalid) {
		t.Errorf("uids without gids: %v", err)
	}
}

func (s *stage) remount(dest string, options ...string) {
	s.in.Spec.Mounts = append(s.in.Spec.Mounts, specs.Mount{Destination: dest, Options: append(options, "remount")})
}

// TestRemount changes what is named and nothing else.
func TestRemount(t *testing.T) {
	vol := t.TempDir()
	for _, tt := range []struct {
		name         string
		stage        func(s *stage)
		at           string
		mount, super string
	}{
		{"attributes are added", func(s *stage) { s.tmpfs("/t", "nosuid", "noexec"); s.remount("/t", "nodev", "noatime") }, "/t", "rw,nosuid,nodev,noexec,noatime", "rw"},
		{"and taken away by name", func(s *stage) { s.tmpfs("/t", "nosuid", "noexec"); s.remount("/t", "exec") }, "/t", "rw,nosuid,relatime", "rw"},
		{"read-only with its filesystem", func(s *stage) { s.tmpfs("/t", "nosuid"); s.remount("/t", "ro") }, "/t", "ro,nosuid,relatime", "ro"},
		{"and back", func(s *stage) { s.tmpfs("/t"); s.remount("/t", "ro"); s.remount("/t", "rw") }, "/t", "rw,relatime", "rw"},
		{"only the mount", func(s *stage) { s.tmpfs("/t"); s.remount("/t", "bind", "ro") }, "/t", "ro,relatime", "rw"},
		{"options of the filesystem", func(s *stage) { s.tmpfs("/t", "size=64k"); s.remount("/t", "size=128k", "sync") }, "/t", "rw,relatime", "rw,sync,size=128k"},
		{"a bind keeps its filesystem", func(s *stage) { s.addBind(vol, "/t", true, "nosuid"); s.remount("/t", "ro") }, "/t", "ro,nosuid,relatime", ""},
		{"the root", func(s *stage) { s.remount("/", "nodev", "bind") }, "/", "rw,nodev,relatime", ""},
		{"recursively", func(s *stage) { s.tmpfs("/t"); s.tmpfs("/t/u"); s.remount("/t", "bind", "rro") }, "/t/u", "ro,relatime", "rw"},
		{"of proc", func(s *stage) { s.remount("/proc", "hidepid=invisible") }, "/proc", "rw,nosuid,nodev,noexec,relatime", "rw,hidepid=invisible"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(rootTree(t), "cat", "/proc/self/mountinfo")
			tt.stage(s)
			res := s.run(t)
			mount, _, super := mountLine(res.out, tt.at)
			super = strings.ReplaceAll(super, ",inode64", "")
			if res.err != nil || !sameWords(mount, tt.mount) || tt.super != "" && !sameWords(super, tt.super) {
				t.Errorf("%v: %q and %q, want %q and %q", res.err, mount, super, tt.mount, tt.super)
			}
		})
	}
	for name, stage := range map[string]func(s *stage){
		`mounts[6].options: "size=5" of a filesystem`:   func(s *stage) { s.remount("/sys", "size=5") },
		`mounts[6].options: "sync" of a filesystem`:     func(s *stage) { s.remount("/sys/fs/cgroup", "sync") },
		`mounts[7].options: "lazytime" of a filesystem`: func(s *stage) { s.addBind(vol, "/t", true); s.remount("/t", "lazytime") },
	} {
		s := newStage("", "true")
		stage(s)
		if _, err := program.Compile(s.in); !errors.Is(err, program.ErrUnsupported) || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
	}
	s := newStage(rootTree(t), "true")
	os.Mkdir(s.root+"/plain", 0o755)
	s.remount("/plain", "ro")
	s.wants(t, "!change the attributes of /plain: invalid argument")
}

// TestRemountMeetsItsOwn: a link of the image has a volume mounted on top of what is
// remounted. Its filesystem is the host's, and what makes it read-only is not the
// container's business; nor is a volume writable because something else is to be.
func TestRemountMeetsItsOwn(t *testing.T) {
	for _, option := range []string{"ro", "rw"} {
		vol, root := t.TempDir(), rootTree(t)
		if err := os.Symlink("own", root+"/link"); err != nil {
			t.Fatal(err)
		}
		s := hostile(root, newCanary(t), "cat", "/proc/self/mountinfo")
		s.prepare = func() error { return unix.Mount("volume", vol, "tmpfs", 0, "") } // the only one that may be harmed
		s.tmpfs("/own")
		s.addBind(vol, "/link", true, map[string]string{"ro": "nosuid", "rw": "ro"}[option])
		s.remount("/own", option)
		res := s.lay(t)
		res.ends(t, "!find the mount on /own again: device or resource busy")
		s.weaken = nullify(named("find the mount on /own again"))
		res = s.lay(t)
		if harm := map[string]string{"ro": " - tmpfs volume ro", "rw": " rw,relatime - tmpfs volume "}[option]; res.err != nil || !strings.Contains(res.out, harm) {
			t.Errorf("without the look: %v, %q", res.err, res.out)
		}
	}
	root := rootTree(t)
	if err := errors.Join(os.Mkdir(root+"/own", 0o755), os.Symlink("own", root+"/link")); err != nil {
		t.Fatal(err)
	}
	s := newStage(root, "cat", "/proc/self/mountinfo") // and what is legal works
	s.tmpfs("/link")
	s.remount("/link", "ro", "size=64k")
	if res := s.wants(t, "/own ro,"); !strings.Contains(res.out, "size=64k") {
		t.Errorf("%s", res.out)
	}
	p, err := program.Compile(s.in)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := program.Explain(&b, p); err != nil || !strings.Contains(b.String(), "RECONFIGURE") {
		t.Errorf("%v, no reconfiguration is explained", err)
	}
}

func TestRelativeDestination(t *testing.T) {
	s := newStage(rootTree(t), "sh", "-c", "mount | grep -c ' /a/b '; ls -d /a/b/../b")
	s.tmpfs("a/./b")
	s.wants(t, "1\n/a/b/../b\n")
	s = newStage("", "true")
	s.tmpfs("")
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
		t.Errorf("no destination: %v", err)
	}
}
