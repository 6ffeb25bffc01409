package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// volumeOpener opens the sources of bind mounts as detached trees, in the host's mount namespace. A source
// on a dead server makes the calling thread hang, and nothing can be done about it before the server is back;
// so the thread is left alone with it after a deadline. There is never more than one such thread for one
// path: a retry waits for the one that is there.
type volumeOpener struct {
	limit time.Duration
	mu    sync.Mutex
	stuck map[string]chan struct{} // guarded by mu: paths being opened; closed at the end of that
}

func newVolumeOpener(limit time.Duration) *volumeOpener {
	return &volumeOpener{limit: limit, stuck: map[string]chan struct{}{}}
}

// openers open the sources of a container that are not strangers' paths.
type openers struct {
	own   string                                                    // the pod's directory: what is below it is ours and on no server
	user  *sys.FD                                                   // the user namespace whose ids mapped volumes get, nil without
	image func(ctx context.Context, m specs.Mount) (*sys.FD, error) // of image volumes
	there map[string]bool                                           // sources that are not made where they are missing
	asked map[place]bool                                            // mounts of the request; others are of plugins, devices, and our own
}

// refuse gives an error about the source of a mount its kind. Of a mount that the request does not name the caller can change nothing.
func (o openers) refuse(m specs.Mount, err error) error {
	if o.asked[place{m.Source, m.Destination}] {
		return hostPathError("config.mounts.host_path", m.Source, err)
	}
	err = hostPathError("source", m.Source, err)
	var f *spec.FieldError
	if errors.As(err, &f) {
		return fmt.Errorf("%s: %w", f.Problem, ErrState)
	}
	return err
}

// place is where a path of the host is mounted in a container.
type place struct{ source, destination string }

// volumeOf is the place of a mount of a request.
func volumeOf(r *runtimeapi.Mount) place {
	return place{path.Clean(r.GetHostPath()), path.Clean(r.GetContainerPath())}
}

// byVolume finds mounts of the host's paths by their places.
func byVolume(mounts []specs.Mount) map[place]int {
	at := map[place]int{}
	for i, m := range mounts {
		if m.Type == "bind" && spec.OnHost(m) {
			at[place{m.Source, m.Destination}] = i
		}
	}
	return at
}

// openAll opens the sources of all bind mounts, by their index. The caller closes them. On an error
// nothing stays open. What is of the openers is opened without the precautions.
func (v *volumeOpener) openAll(ctx context.Context, op *operation, o openers, mounts []specs.Mount) (map[int]*sys.FD, error) {
	out := map[int]*sys.FD{}
	for i, m := range mounts {
		if m.Type != "bind" {
			continue
		}
		op.at("open volume " + m.Source)
		fd, err := v.openOne(ctx, o, m)
		if err != nil {
			for _, fd := range out {
				fd.Close()
			}
			return nil, fmt.Errorf("open volume %.256q: %w", m.Source, err)
		}
		out[i] = fd
	}
	return out, nil
}

// openOne opens the source of one mount, with the ids that it is to have.
func (v *volumeOpener) openOne(ctx context.Context, o openers, m specs.Mount) (*sys.FD, error) {
	if !spec.OnHost(m) {
		return o.image(ctx, m)
	}
	open := v.open
	if strings.HasPrefix(m.Source, o.own+"/") {
		open = func(_ context.Context, m specs.Mount, made bool) (*sys.FD, error) { return openVolume(m, made) }
	}
	fd, err := open(ctx, m, !o.there[m.Source])
	if err != nil {
		return nil, o.refuse(m, err)
	}
	if err := mapVolume(fd, m, o.user); err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	return fd, nil
}

// open opens one source, within the limit; made says whether one that is missing is.
func (v *volumeOpener) open(ctx context.Context, m specs.Mount, made bool) (*sys.FD, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, v.limit, fmt.Errorf("it does not answer within %v: %w", v.limit, ErrUnavailable))
	defer cancel()
	mine, err := v.claim(ctx, m.Source)
	if err != nil {
		return nil, err
	}
	type result struct {
		fd  *sys.FD
		err error
	}
	answer := make(chan result)
	go func() { // ends when the kernel answers, which on a dead server may be never
		fd, err := openVolume(m, made)
		v.mu.Lock()
		delete(v.stuck, m.Source)
		v.mu.Unlock()
		close(mine)
		select {
		case answer <- result{fd, err}:
		case <-ctx.Done():
			fd.Close()
		}
	}()
	select {
	case r := <-answer:
		return r.fd, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// claim waits until nobody else opens the path.
func (v *volumeOpener) claim(ctx context.Context, path string) (chan struct{}, error) {
	for {
		v.mu.Lock()
		other := v.stuck[path]
		if other == nil {
			mine := make(chan struct{})
			v.stuck[path] = mine
			v.mu.Unlock()
			return mine, nil
		}
		v.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// openVolume takes a copy of the tree of mounts at the source. Symbolic links on the way are the host's and
// are followed. A missing source becomes a directory, as every runtime does it, unless it is not to be made.
func openVolume(m specs.Mount, made bool) (*sys.FD, error) {
	prop, err := propagation(m)
	if err != nil {
		return nil, err
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE)
	if slices.Contains(m.Options, "bind") {
		flags &^= unix.AT_RECURSIVE // the host's /sys, without what is mounted in it
	}
	fd, err := sys.OpenTree(unix.AT_FDCWD, m.Source, flags)
	if errors.Is(err, unix.ENOENT) && !made {
		return nil, fmt.Errorf("the spec of a device of CDI_devices mounts it: %w: %w", err, ErrState)
	}
	if errors.Is(err, unix.ENOENT) {
		if err := os.MkdirAll(m.Source, 0o755); err != nil {
			return nil, err
		}
		fd, err = sys.OpenTree(unix.AT_FDCWD, m.Source, flags)
	}
	if err != nil {
		return nil, err
	}
	if err := sys.MountSetattr(fd.Int(), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: prop}); err != nil {
		return nil, errors.Join(err, fd.Close())
	}
	return fd, nil
}

// propagation returns the flag for the mount, and refuses a sharing that the source cannot give: a mount
// that is private on the host would be cut off in silence.
func propagation(m specs.Mount) (uint64, error) {
	switch {
	case slices.Contains(m.Options, "rshared"):
		return unix.MS_SHARED, checkShared(m.Source, "shared:")
	case slices.Contains(m.Options, "rslave"):
		return unix.MS_SLAVE, checkShared(m.Source, "shared:", "master:")
	}
	return unix.MS_PRIVATE, nil
}

// checkShared looks the mount of path up and wants one of the marks among its optional fields.
func checkShared(path string, marks ...string) error {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st)
	if errors.Is(err, unix.ENOENT) {
		return spec.Invalid("config.mounts.host_path", path, "does not exist, so nothing can propagate from it")
	}
	if err != nil {
		return &os.PathError{Op: "statx", Path: path, Err: err}
	}
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		found := uint64(i.ID) == st.Mnt_id
		return !found, found
	})
	if err != nil {
		return err
	}
	if len(mounts) == 0 {
		return fmt.Errorf("find the mount of %s: not in mountinfo", path)
	}
	for _, mark := range marks {
		if strings.Contains(mounts[0].Optional, mark) {
			return nil
		}
	}
	return spec.Invalid("config.mounts.propagation", path, "is on the mount %q, which is private on the host", mounts[0].Mountpoint)
}
