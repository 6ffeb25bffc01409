package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
	"github.com/vitrine-runtime/vitrine/image"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// rootsBench measures how long it takes until a container's root is mounted, beside the bare system calls for the same
// overlay, one of each in turn, with few and with many containers present.
type rootsBench struct {
	store  *image.Store
	dir    string
	id     string
	layers []string // directories, the top one first
	held   []*sys.FD
}

const (
	rootLayers          = 20
	fewRoots, manyRoots = 5, 500
)

func measureRoots(ctx context.Context, place *stage.Stage, rounds int) (err error) {
	b := &rootsBench{dir: filepath.Join(place.Scratch, "roots")}
	if err := b.open(ctx, place); err != nil {
		return err
	}
	defer func() {
		for _, fd := range b.held {
			err = errors.Join(err, fd.Close())
		}
		err = errors.Join(err, b.store.Close())
	}()
	fmt.Printf("container root from %d layers until it is mounted, %d rounds, interleaved\n\n%-34s %9s %9s %9s\n", rootLayers, rounds, "", "median", "p10", "p95")
	medians := map[int][2]time.Duration{}
	for _, present := range []int{fewRoots, manyRoots} {
		if err := b.fill(ctx, present); err != nil {
			return err
		}
		ours, bare, err := b.measure(ctx, rounds)
		if err != nil {
			return err
		}
		for i, s := range []samples{ours, bare} {
			name := []string{"vitrine", "bare"}[i]
			fmt.Printf("%-10s %3d containers present %11.3f %9.3f %9.3f\n", name, present, millis(s.quantile(0.5)), millis(s.quantile(0.1)), millis(s.quantile(0.95)))
		}
		medians[present] = [2]time.Duration{ours.quantile(0.5), bare.quantile(0.5)}
	}
	few, many := medians[fewRoots], medians[manyRoots]
	fmt.Printf("\nmilliseconds; bare are the system calls of mkdir, open, fsopen, fsconfig and fsmount\n"+
		"vitrine %.3f ms (goal 1 ms or less), %.2fx bare (1.5x or less), %.2fx with %d containers as with %d (1.25x or less)\n",
		millis(few[0]), float64(few[0])/float64(few[1]), float64(many[0])/float64(few[0]), manyRoots, fewRoots)
	return nil
}

// open makes a store of its own with the image in it.
func (b *rootsBench) open(ctx context.Context, place *stage.Stage) (err error) {
	var layers [][]byte
	for i := range rootLayers {
		l, err := largeLayer(i, 1<<16)
		if err != nil {
			return err
		}
		layers = append(layers, l)
	}
	img, err := packed("gzip", layers)
	if err != nil {
		return err
	}
	ref, err := place.Registry.Push(ctx, "bench/deep", "1", img)
	if err != nil {
		return err
	}
	if err := os.Mkdir(b.dir, 0o700); err != nil {
		return err
	}
	b.store, err = image.Open(image.Config{Root: b.dir + "/root", RunRoot: b.dir + "/run", Containers: b.dir + "/containers", RegistriesConf: place.RegistriesConf, PolicyPath: place.Policy})
	if err != nil {
		return err
	}
	b.id, err = b.store.Pull(ctx, ref, nil)
	return err
}

// fill mounts roots until so many are there.
func (b *rootsBench) fill(ctx context.Context, present int) error {
	for len(b.held) < present {
		fd, err := b.mount(ctx, fmt.Sprintf("held-%d", len(b.held)))
		if err != nil {
			return err
		}
		b.held = append(b.held, fd)
	}
	text, err := os.ReadFile(b.dir + "/containers/held-0/rootfs.json")
	if err != nil {
		return err
	}
	var record struct{ Layers []string }
	if err := json.Unmarshal(text, &record); err != nil {
		return err
	}
	b.layers = nil
	for _, l := range record.Layers {
		b.layers = append(b.layers, b.dir+"/root/overlay/"+l+"/diff")
	}
	if len(b.layers) != rootLayers {
		return fmt.Errorf("the image has %d layers", len(b.layers))
	}
	return nil
}

func (b *rootsBench) mount(ctx context.Context, name string) (*sys.FD, error) {
	if err := b.store.NewRootfs(ctx, name, b.id); err != nil {
		return nil, err
	}
	return b.store.Mount(ctx, name, image.View{})
}

func (b *rootsBench) measure(ctx context.Context, rounds int) (ours, bare samples, err error) {
	unix.Sync() // a mkdir waits for the journal while what was pulled is written
	const warmUp = 3
	for i := range rounds + warmUp {
		begin := time.Now()
		fd, err := b.mount(ctx, "measured")
		wall := time.Since(begin)
		if err != nil {
			return nil, nil, err
		}
		if err := errors.Join(fd.Close(), b.store.RemoveRootfs(ctx, "measured")); err != nil {
			return nil, nil, err
		}
		begin = time.Now()
		n, err := bareMount(b.layers, b.dir+"/bare")
		other := time.Since(begin)
		if err != nil {
			return nil, nil, fmt.Errorf("bare mount: %w", err)
		}
		if err := errors.Join(unix.Close(n), os.RemoveAll(b.dir+"/bare")); err != nil {
			return nil, nil, err
		}
		if i >= warmUp {
			ours, bare = append(ours, wall), append(bare, other)
		}
	}
	return ours, bare, nil
}

// bareMount makes the same overlay by raw system calls, and nothing else. Lower layers are given by descriptor, as ours are,
// or by path where the kernel does not take them so.
func bareMount(layers []string, dir string) (int, error) {
	for _, d := range []string{dir, dir + "/upper", dir + "/work"} {
		if err := unix.Mkdir(d, 0o700); err != nil {
			return -1, err
		}
	}
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(ctx)
	var errs []error
	set := func(key, path string) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			if err = unix.FsconfigSetFd(ctx, key, fd); err != nil {
				err = unix.FsconfigSetString(ctx, key, fmt.Sprintf("/proc/self/fd/%d", fd))
			}
			defer unix.Close(fd)
		}
		errs = append(errs, err)
	}
	for _, l := range layers {
		set("lowerdir+", l)
	}
	set("upperdir", dir+"/upper")
	set("workdir", dir+"/work")
	for _, o := range strings.Fields("index=off xino=off nfs_export=off metacopy=off redirect_dir=nofollow") {
		key, value, _ := strings.Cut(o, "=")
		errs = append(errs, unix.FsconfigSetString(ctx, key, value))
	}
	errs = append(errs, unix.FsconfigSetFlag(ctx, "volatile"))
	if err := errors.Join(append(errs, unix.FsconfigCreate(ctx))...); err != nil {
		return -1, err
	}
	return unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
}
