package bundle

import (
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
)

// pipes makes the two FIFOs of a container and opens both ends of each.
func (d *directory) pipes() (p *executor.Pipes, err error) {
	p = &executor.Pipes{}
	defer func() {
		if err != nil {
			for _, f := range []*sys.FD{p.Report, p.Start, p.ChildReport, p.ChildStart} {
				f.Close()
			}
		}
	}()
	for _, name := range []string{reportName, startName} {
		if err := unix.Mkfifoat(int(d.Fd()), name, 0o600); err != nil {
			return nil, &fs.PathError{Op: "mkfifo", Path: filepath.Join(d.path, name), Err: err}
		}
	}
	for _, o := range []struct {
		fd    **sys.FD
		name  string
		flags int
	}{
		{&p.Report, reportName, unix.O_RDONLY | unix.O_NONBLOCK}, // or it would wait for the next line
		{&p.ChildReport, reportName, unix.O_WRONLY},
		{&p.ChildStart, startName, unix.O_RDWR}, // its own writer, so that our end is not its start
		{&p.Start, startName, unix.O_WRONLY},
	} {
		if *o.fd, err = d.fifo(o.name, o.flags); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// fifo opens an end of a FIFO. Descriptors that were opened without waiting block
// from here on.
func (d *directory) fifo(name string, flags int) (*sys.FD, error) {
	n, err := unix.Openat(int(d.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(d.path, name), Err: err}
	}
	f := sys.NewFD(n)
	if flags&unix.O_NONBLOCK != 0 {
		if err := unix.SetNonblock(n, false); err != nil {
			f.Close()
			return nil, &fs.PathError{Op: "fcntl", Path: filepath.Join(d.path, name), Err: err}
		}
	}
	return f, nil
}
