package program_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// addBind adds a bind mount of sources[n] to the spec.
func (s *stage) addBind(source, dest string, dir bool, options ...string) {
	if s.in.Binds == nil {
		s.in.Binds = map[int]program.Bind{}
	}
	s.sources = append(s.sources, source)
	s.in.Binds[len(s.in.Spec.Mounts)] = program.Bind{File: len(s.sources), Dir: dir}
	s.in.Spec.Mounts = append(s.in.Spec.Mounts, specs.Mount{Destination: dest, Type: "bind", Options: append(options, "rbind")})
}

func newStage(root string, args ...string) *stage {
	return &stage{root: root, in: program.Input{Spec: testSpec(args...)}}
}

func (s *stage) tmpfs(dest string, options ...string) {
	s.in.Spec.Mounts = append(s.in.Spec.Mounts, specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: options})
}

// without takes the mount at dest out of the spec.
func (s *stage) without(dest string) {
	var m []specs.Mount
	for _, v := range s.in.Spec.Mounts {
		if v.Destination != dest && !strings.HasPrefix(v.Destination, dest+"/") {
			m = append(m, v)
		}
	}
	s.in.Spec.Mounts = m
}

// wants runs the stage and holds its end against want.
func (s *stage) wants(t *testing.T, want string) result {
	t.Helper()
	res := s.run(t)
	res.ends(t, want)
	return res
}

// ends holds the end of a run against want: "!" and a part of the error, or a
// part of the output.
func (r result) ends(t *testing.T, want string) {
	t.Helper()
	if e, fails := strings.CutPrefix(want, "!"); fails {
		if r.err == nil || !strings.Contains(r.err.Error(), e) {
			t.Errorf("run container: %v, want %q; output %q", r.err, e, r.out)
		}
	} else if r.err != nil || !strings.Contains(r.out, want) {
		t.Errorf("run container: %v, output %q; want %q", r.err, r.out, want)
	}
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	os.MkdirAll(filepath.Dir(name), 0o755)
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestManyMounts(t *testing.T) {
	root := rootTree(t)
	s := newStage(root, "sh", "-c", "mount | grep -c /volumes/; ls /proc/self/fd")
	for i := range 1000 {
		s.tmpfs(fmt.Sprintf("/var/lib/volumes/%d/deep/er", i))
	}
	for i := range 1024 {
		p := fmt.Sprintf("/etc/masked/%d", i)
		if i%2 == 0 {
			write(t, filepath.Join(root, p), "secret")
		} else {
			os.MkdirAll(filepath.Join(root, p), 0o755)
		}
		s.in.Spec.Linux.MaskedPaths = append(s.in.Spec.Linux.MaskedPaths, p)
	}
	var old unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &old)
	tight := old
	tight.Cur = 200 // a descriptor that is left open for each mount would show
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &tight, nil); err != nil {
		t.Fatal(err)
	}
	defer unix.Prlimit(0, unix.RLIMIT_NOFILE, &old, nil)
	s.wants(t, "1000\n0\n1\n2\n3\n")
}

func TestTooLargeIsTheSpecsFault(t *testing.T) {
	s := newStage("", "true")
	for i := range 9 {
		s.tmpfs(strings.Repeat("/a", 2000) + fmt.Sprint(i))
	}
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
		t.Errorf("deep paths: %v", err)
	}
	s = newStage("", "true", strings.Repeat("x", 17<<20))
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
		t.Errorf("17 MiB of arguments: %v", err)
	}
	s = newStage("", "true")
	var b strings.Builder
	for i := range 80_000 {
		fmt.Fprintf(&b, ":/%d", i)
	}
	s.in.Spec.Process.Env = []string{"PATH=" + b.String()}
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
		t.Errorf("PATH of 80,000 directories: %v", err)
	}
}

func TestBindsMustMatch(t *testing.T) {
	for name, b := range map[string]map[int]program.Bind{
		"the root as source":   {6: {File: 0}},
		"negative":             {6: {File: -1}},
		"beyond the table":     {6: {File: 2}},
		"no such mount":        {9: {File: 1}},
		"one file, two mounts": {5: {File: 1}, 6: {File: 1}},
	} {
		s := newStage("", "true")
		s.in.Spec.Mounts = append(s.in.Spec.Mounts, specs.Mount{Destination: "/x", Type: "bind"})
		s.in.Binds = b
		if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTargets mounts on everything that an image can have in the way.
func TestTargets(t *testing.T) {
	vol := t.TempDir()
	file := write(t, filepath.Join(vol, "file"), "content\n")
	write(t, filepath.Join(vol, "dir/in"), "inside\n")
	dir := filepath.Join(vol, "dir")
	for _, tt := range []struct {
		name   string
		image  func(root string)
		source string
		dest   string
		run    string
		want   string
	}{
		{"file on missing", nil, file, "/a/b/c", "cat /a/b/c", "content\n"},
		{"directory on missing", nil, dir, "/a/b/c", "cat /a/b/c/in", "inside\n"},
		{"file at the top", nil, file, "/c", "cat /c", "content\n"},
		{"file on file", func(r string) { write(t, r+"/c", "old") }, file, "/c", "cat /c", "content\n"},
		{"file on directory", func(r string) { os.Mkdir(r+"/c", 0o755) }, file, "/c", "true", "!bind /c"},
		{"directory on file", func(r string) { write(t, r+"/c", "old") }, dir, "/c", "true", "!find /c: not a directory"},
		{"file in the way", func(r string) { write(t, r+"/c", "old") }, dir, "/c/d/e", "true", "!find /c/d/e: not a directory"},
		{"loop", func(r string) { os.Symlink("c", r+"/c") }, file, "/c", "true", "!find /c: too many levels"},
		{"loop above", func(r string) { os.Symlink("d", r+"/c"); os.Symlink("c", r+"/d") }, file, "/c/x", "true", "!too many levels"},
		{"link", func(r string) { write(t, r+"/run/x", ""); os.Symlink("../run/x", r+"/etc/c") }, file, "/etc/c", "cat /run/x", "content\n"},
		{"link above", func(r string) {
			os.MkdirAll(r+"/run", 0o755)
			os.MkdirAll(r+"/var", 0o755)
			os.Symlink("/run", r+"/var/run")
		},
			dir, "/var/run/secrets/x", "cat /run/secrets/x/in", "inside\n"},
		{"dangling link to file", func(r string) { os.Symlink("../run/systemd/resolve/stub", r+"/etc/resolv.conf") },
			file, "/etc/resolv.conf", "cat /etc/resolv.conf; ls /run", "content\nls: /run: No such file"},
		{"dangling link that climbs", func(r string) { os.Symlink("../../../.."+vol+"/new", r+"/etc/c") }, file, "/etc/c", "cat /etc/c", "content\n"},
		{"dangling link to directory", func(r string) { os.Symlink("/nowhere", r+"/c") }, dir, "/c", "true", "!enter /c: no such file"},
		{"link to the root", func(r string) { os.Symlink("/", r+"/c") }, dir, "/c", "true", "!nothing mounted on the root itself"},
		{"link to /proc", func(r string) { os.Symlink("proc", r+"/c") }, dir, "/c", "true", "!find no file of a procfs behind /c"},
		{"link to /sys", func(r string) { os.Symlink("sys", r+"/c") }, dir, "/c", "true", "!find /sys uncovered"},
		{"lxcfs", nil, file, "/proc/meminfo", "cat /proc/meminfo", "content\n"},
		{"trailing dots", nil, file, "/a/../b/./c", "cat /b/c", "content\n"},
		{"more than a component may have", nil, file, "/" + strings.Repeat("x", 256), "true", "!file name too long"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := rootTree(t)
			if tt.image != nil {
				tt.image(root)
			}
			s := newStage(root, "sh", "-c", tt.run)
			s.addBind(tt.source, tt.dest, tt.source == dir)
			s.wants(t, tt.want)
			ents, _ := os.ReadDir(vol)
			if len(ents) != 2 {
				t.Errorf("the volume has changed: %v", ents)
			}
		})
	}
}

func TestStackedMounts(t *testing.T) {
	vol := t.TempDir()
	a, b := filepath.Join(vol, "a"), filepath.Join(vol, "b")
	write(t, a+"/one", "1")
	write(t, b+"/two", "2")
	root := rootTree(t)
	s := newStage(root, "sh", "-c", "ls /v /w /w/sub")
	s.addBind(a, "/v", true)
	s.addBind(b, "/v", true) // the same place
	s.addBind(b, "/w/sub", true)
	s.addBind(a, "/w", true) // covers the one below it ...
	s.addBind(b, "/w/sub", true)
	s.wants(t, "/v:\ntwo\n\n/w:\none\nsub\n\n/w/sub:\ntwo\n")
}

// TestRootIsPrivate: a root that is a clone of a shared mount must not show its
// siblings what a container mounts.
func TestRootIsPrivate(t *testing.T) {
	root := rootTree(t)
	fd := make(chan *sys.FD)
	quit, table := make(chan struct{}), make(chan string)
	go func() {
		runtime.LockOSThread()
		unix.Unshare(unix.CLONE_NEWNS)
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		unix.Mount(root, root, "", unix.MS_BIND, "")
		unix.Mount("", root, "", unix.MS_SHARED, "")
		f, err := sys.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE)
		if err != nil {
			t.Error(err)
		}
		fd <- f
		<-quit
		b, _ := os.ReadFile("/proc/thread-self/mountinfo")
		table <- string(b)
	}()
	s := newStage(root, "true")
	s.detached = <-fd
	s.tmpfs("/leak")
	s.wants(t, "")
	close(quit)
	if m := <-table; strings.Contains(m, "/leak") {
		t.Errorf("mounts of the container have come to the host:\n%s", m)
	}
}

// TestBindOptions: what "ro" and "rro" reach, and that nothing is loosened.
func TestBindOptions(t *testing.T) {
	for _, tt := range []struct {
		options []string
		top     string // options of the mount itself
		below   string // and of the one below it, which is nosuid from the start
	}{
		{[]string{"ro"}, "ro,relatime", "rw,nosuid,relatime"},
		{[]string{"rro"}, "ro,relatime", "ro,nosuid,relatime"},
		{[]string{"ro", "rw"}, "rw,relatime", "rw,nosuid,relatime"},
		{[]string{"nosuid", "nodev", "noexec"}, "rw,nosuid,nodev,noexec,relatime", "rw,nosuid,relatime"},
		{[]string{"rnosuid", "rnodev", "rnoexec"}, "rw,nosuid,nodev,noexec,relatime", "rw,nosuid,nodev,noexec,relatime"},
		{[]string{"suid", "exec", "dev"}, "rw,relatime", "rw,nosuid,relatime"},
		{[]string{"noatime"}, "rw,noatime", "rw,nosuid,relatime"},
		{[]string{"noatime", "strictatime"}, "rw", "rw,nosuid,relatime"},
		{[]string{"rnoatime", "nodiratime"}, "rw,noatime,nodiratime", "rw,nosuid,noatime"},
		{[]string{"nosymfollow"}, "rw,relatime,nosymfollow", "rw,nosuid,relatime"},
		{[]string{"rslave"}, "rw,relatime", "rw,nosuid,relatime"},
	} {
		t.Run(strings.Join(tt.options, ","), func(t *testing.T) {
			vol := t.TempDir()
			os.Mkdir(vol+"/below", 0o755)
			s := newStage(rootTree(t), "sh", "-c", "grep -E '^([^ ]+ ){4}/v(/below)? ' /proc/self/mountinfo")
			s.prepare = func() error {
				if err := unix.Mount("tmpfs", vol, "tmpfs", 0, ""); err != nil {
					return err
				}
				os.Mkdir(vol+"/below", 0o755)
				return unix.Mount("tmpfs", vol+"/below", "tmpfs", unix.MS_NOSUID, "")
			}
			s.addBind(vol, "/v", true, tt.options...)
			res := s.run(t)
			var got []string
			for line := range strings.Lines(res.out) {
				if f := strings.Fields(line); len(f) > 5 {
					got = append(got, f[5])
				}
			}
			if res.err != nil || len(got) != 2 || got[0] != tt.top || got[1] != tt.below {
				t.Errorf("%v: %q, want %q and %q", res.err, got, tt.top, tt.below)
			}
		})
	}
}

// TestRecursiveOptionOfNewMount: a protection is not lost because it was asked
// for in its recursive form.
func TestRecursiveOptionOfNewMount(t *testing.T) {
	s := newStage(rootTree(t), "sh", "-c", "grep ' /t ' /proc/self/mountinfo")
	s.tmpfs("/t", "rro", "rnoexec")
	s.wants(t, " ro,noexec,")
}

func TestDevices(t *testing.T) {
	null := func(r string) {
		os.Mkdir(r+"/dev", 0o755)
		unix.Mknod(r+"/dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
	}
	for _, tt := range []struct {
		name  string
		image func(root string)
		stage func(s *stage)
		want  string
	}{
		{"image without /dev", nil, func(s *stage) { s.without("/dev") }, "null works\nptmx\n"},
		{"image with devices", null, func(s *stage) { s.without("/dev") }, "null works\n"},
		{"image with links", func(r string) { os.Mkdir(r+"/dev", 0o755); os.Symlink("/proc/self/fd", r+"/dev/fd") }, func(s *stage) { s.without("/dev") }, "null works\n"},
		{"file as /dev/null", func(r string) { write(t, r+"/dev/null", "x") }, func(s *stage) { s.without("/dev") }, "!find nothing but device /dev/null there: file exists"},
		{"link as /dev/null", func(r string) { os.Mkdir(r+"/dev", 0o755); os.Symlink("/etc/passwd", r+"/dev/null") }, func(s *stage) { s.without("/dev") },
			"!find nothing but device /dev/null there: file exists"},
		{"other device as /dev/null", func(r string) {
			os.Mkdir(r+"/dev", 0o755)
			unix.Mknod(r+"/dev/null", unix.S_IFBLK|0o666, int(unix.Mkdev(1, 3)))
		}, func(s *stage) { s.without("/dev") }, "!find nothing but device /dev/null there: file exists"},
		{"device bound over the tmpfs", nil, func(s *stage) { s.addBind("/dev/null", "/dev/null", false) }, "null works\n"},
		{"another bound there", nil, func(s *stage) { s.addBind("/dev/zero", "/dev/null", false) }, "!find nothing but device /dev/null there: file exists"},
		{"volume below /dev", nil, func(s *stage) { s.addBind(t.TempDir(), "/dev/shm", true) }, "null works\n"},
		{"/dev bound", nil, func(s *stage) { s.without("/dev"); s.addBind("/dev", "/dev", true) }, "null works\n"},
		{"own device", nil, func(s *stage) {
			id := uint32(7)
			s.in.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200, GID: &id}, {Path: "/dev/pipe", Type: "p"}}
			s.in.Spec.Process.Args[2] += "; stat -c '%g %t:%T %a' /dev/net/tun; stat -c %F /dev/pipe"
		}, "7 a:c8 666\nfifo\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := rootTree(t)
			if tt.image != nil {
				tt.image(root)
			}
			s := newStage(root, "sh", "-c", "echo x > /dev/null && test ! -s /dev/null && echo null works; ls /dev | grep ptmx")
			tt.stage(s)
			s.wants(t, tt.want)
		})
	}
}

func TestMasks(t *testing.T) {
	for _, tt := range []struct {
		name   string
		image  func(root string)
		masked []string
		ro     []string
		run    string
		want   string
	}{
		{"file", nil, []string{"/etc/secret"}, nil, "cat /etc/secret; echo $?; echo x > /etc/secret; cat /etc/secret; stat -c %t:%T /etc/secret", "0\n1:3\n"},
		{"directory", nil, []string{"/etc/dir"}, nil, "ls -A /etc/dir; touch /etc/dir/x 2>&1", "Read-only file system"},
		{"link to file", func(r string) { os.Symlink("secret", r+"/etc/link") }, []string{"/etc/link"}, nil, "cat /etc/secret; echo $?", "0\n"},
		{"link out", func(r string) { os.Symlink("../../../etc/secret", r+"/etc/link") }, []string{"/etc/link"}, nil, "cat /etc/secret; echo $?", "0\n"},
		{"dangling link", func(r string) { os.Symlink("none", r+"/etc/link") }, []string{"/etc/link"}, []string{"/etc/link"}, "echo fine", "fine\n"},
		{"loop", func(r string) { os.Symlink("loop", r+"/etc/loop") }, []string{"/etc/loop"}, nil, "echo fine", "!too many levels"},
		{"file above", nil, []string{"/etc/secret/x/y"}, []string{"/etc/secret/x"}, "echo fine", "fine\n"},
		{"twice", nil, []string{"/etc/secret", "/etc/secret", "/etc/dir", "/etc/dir"}, nil, "cat /etc/secret; ls -A /etc/dir; echo $?", "0\n"},
		{"below a masked one", nil, []string{"/etc/dir", "/etc/dir/in"}, nil, "ls -A /etc/dir; echo $?", "0\n"},
		{"masked below read-only", nil, []string{"/etc/dir/in"}, []string{"/etc", "/etc/dir"}, "cat /etc/dir/in; echo $?; touch /etc/dir/x 2>&1", "0\ntouch: /etc/dir/x: Read-only"},
		{"link to the root", func(r string) { os.Symlink("/", r+"/link") }, []string{"/link"}, nil, "echo fine", "!nothing mounted on the root itself"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := rootTree(t)
			write(t, root+"/etc/secret", "secret\n")
			write(t, root+"/etc/dir/in", "secret\n")
			if tt.image != nil {
				tt.image(root)
			}
			s := newStage(root, "sh", "-c", tt.run)
			s.in.Spec.Linux.MaskedPaths, s.in.Spec.Linux.ReadonlyPaths = tt.masked, tt.ro
			if res := s.wants(t, tt.want); strings.Contains(res.out, "secret\n") {
				t.Errorf("output %q", res.out)
			}
		})
	}
}

// TestReadonlyBelowBind: the copy keeps what the bind was restricted by.
func TestReadonlyBelowBind(t *testing.T) {
	vol := t.TempDir()
	write(t, vol+"/sub/file", "x")
	s := newStage(rootTree(t), "sh", "-c", "grep /v/sub /proc/self/mountinfo; touch /v/sub/file 2>&1; touch /v/ok && echo written")
	s.addBind(vol, "/v", true, "nosuid", "nodev")
	s.in.Spec.Linux.ReadonlyPaths = []string{"/v/sub"}
	res := s.wants(t, "written\n")
	if !strings.Contains(res.out, " ro,nosuid,nodev,") || !strings.Contains(res.out, "/v/sub/file: Read-only") {
		t.Errorf("output %q", res.out)
	}
}

// TestHierarchyFlags: a cgroup mount from outside of a cgroup namespace sets
// the flags of the one hierarchy; they must be named, or they are cleared.
func TestHierarchyFlags(t *testing.T) {
	s := newStage("", "true")
	s.in.Spec.Linux.Namespaces = s.in.Spec.Linux.Namespaces[:5] // without cgroup
	p, err := program.Compile(s.in)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	program.Explain(&b, p)
	if !strings.Contains(b.String(), "with nsdelegate") || !strings.Contains(b.String(), "with memory_recursiveprot") {
		t.Error("the hierarchy's flags are cleared")
	}
}
