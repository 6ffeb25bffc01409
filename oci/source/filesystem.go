package source

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// Limits of the kernel's two ways to configure a filesystem.
const (
	maxFSValue = 255  // of fsconfig(2), without the NUL
	maxData    = 4095 // of mount(2), all options together
)

// newFilesystem makes a filesystem and returns its mount. What is a property of the
// mount alone is left to the program; only ro is also the filesystem's, since a
// device may be read-only too.
//
// Values that fsconfig does not take for their length (the layers of an overlay)
// go through mount(2), in a mount namespace that lives for this call.
func newFilesystem(fstype, source string, o program.MountOptions) (*sys.FD, error) {
	if source == "" {
		source = fstype
	}
	if strings.ContainsRune(fstype+source, 0) {
		return nil, named("NUL in type or source", program.ErrInvalid)
	}
	options := append(slices.Clone(o.Super), o.Data...)
	if o.Set&unix.MOUNT_ATTR_RDONLY != 0 {
		options = append(options, "ro")
	}
	long := func(s string) bool { return len(s) > maxFSValue }
	if long(source) || slices.ContainsFunc(options, long) {
		return mountOld(fstype, source, options)
	}
	ctx, err := sys.FSOpen(fstype)
	if err != nil {
		return nil, err
	}
	defer ctx.Close()
	if err := configure(ctx, source, options); err != nil {
		return nil, withKernelLog(ctx, err)
	}
	return sys.FSMount(ctx, 0)
}

func configure(ctx *sys.FD, source string, options []string) error {
	if err := sys.FSConfigString(ctx, "source", source); err != nil {
		return err
	}
	for _, opt := range options {
		k, v, has := strings.Cut(opt, "=")
		err := error(nil)
		if has {
			err = sys.FSConfigString(ctx, k, v)
		} else {
			err = sys.FSConfigFlag(ctx, k)
		}
		if err != nil {
			return err
		}
	}
	return sys.FSConfigCreate(ctx)
}

// withKernelLog adds what the kernel wrote into the context: the errno alone is
// EINVAL for nearly everything.
func withKernelLog(ctx *sys.FD, err error) error {
	buf := make([]byte, 512)
	if n, e := unix.Read(ctx.Int(), buf); e == nil && n > 2 {
		return fmt.Errorf("%w (%s)", err, strings.TrimSpace(string(buf[2:n])))
	}
	return err
}

// oldFlags are the flags of mount(2) for those of a superblock.
var oldFlags = map[string]uintptr{
	"sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC, "lazytime": unix.MS_LAZYTIME, "mand": unix.MS_MANDLOCK, "ro": unix.MS_RDONLY,
	"async": 0, "nolazytime": 0, "nomand": 0,
}

// mountOld mounts with mount(2) in a namespace of its own and takes a copy out.
func mountOld(fstype, source string, options []string) (fd *sys.FD, err error) {
	var flags uintptr
	var data []string
	for _, opt := range options {
		if f, ok := oldFlags[opt]; ok {
			flags |= f
		} else {
			data = append(data, opt)
		}
	}
	text := strings.Join(data, ",")
	if len(text) > maxData {
		return nil, fmt.Errorf("%d bytes of options: %w", len(text), program.ErrInvalid)
	}
	err = inScratch(func() error {
		if err := unix.Mount(source, "/", fstype, flags, text); err != nil {
			return named("mount "+fstype, err)
		}
		// "/" is still what is below it; ".." of it is what is on top.
		fd, err = clone(unix.AT_FDCWD, "/..", false)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	return fd, nil
}

// inScratch runs f on a thread in a private copy of the mount namespace.
func inScratch(f func() error) error {
	return sys.OnLostThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return named("unshare mount namespace", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return named("make mounts private", err)
		}
		return f()
	})
}
