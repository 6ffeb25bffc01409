package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// imageBench measures pulls of one large image and its zstd twin by several programs, one pull of each in turn, all with their
// stores on the same disk, and then how long a container's root takes.
type imageBench struct {
	place   *stage.Stage
	refs    map[string]string // by compression
	bytes   int64             // of the layers, unpacked
	pullers []*puller
}

// puller is one program that pulls.
type puller struct {
	name string
	pull func(ctx context.Context, ref string) (cpu time.Duration, err error)
	drop func(ctx context.Context, ref string) error
	wall map[string]samples // by compression
	cpu  map[string]samples
}

// compressions are measured in this order.
var compressions = []string{"gzip", "zstd"}

const imageLayers = 5

// runImage measures pulls, with every store on a disk, and then roots.
func runImage(ctx context.Context, place *stage.Stage, rounds, megabytes int, containerd string) (err error) {
	back, err := onDisk(place)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, back()) }()
	b := &imageBench{place: place, refs: map[string]string{}}
	if err := b.push(ctx, megabytes); err != nil {
		return err
	}
	if err := b.addVitrine(ctx); err != nil {
		return err
	}
	if containerd != "" {
		daemon, err := startContainerd(ctx, place, peer{name: givenPeer, bin: containerd, crun: "true"})
		if err != nil {
			return fmt.Errorf("containerd: %w", err)
		}
		defer func() { err = errors.Join(err, daemon.stop()) }()
		if err := b.addContainerd(ctx, daemon); err != nil {
			return err
		}
	}
	b.addSkopeo()
	if err := b.measure(ctx, rounds); err != nil {
		return err
	}
	b.print()
	return measureRoots(ctx, place, rounds*10)
}

// push makes the image and its twin. The layers hold files of all sizes, whose text shrinks to about half.
func (b *imageBench) push(ctx context.Context, megabytes int) error {
	var layers [][]byte
	for i := range imageLayers {
		l, err := largeLayer(i, megabytes<<20/imageLayers)
		if err != nil {
			return err
		}
		b.bytes += int64(len(l))
		layers = append(layers, l)
	}
	for _, kind := range compressions {
		img, err := packed(kind, layers)
		if err != nil {
			return err
		}
		if b.refs[kind], err = b.place.Registry.Push(ctx, "bench/large", kind, img); err != nil {
			return err
		}
	}
	return nil
}

// largeLayer makes a tar of size bytes or a little more, the same one for the same seed.
func largeLayer(seed, size int) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	r := rand.New(rand.NewPCG(uint64(seed), 0))
	for n := 0; buf.Len() < size; n++ {
		body := make([]byte, 1<<(8+r.IntN(14))) // 256 bytes to 2 MiB
		for i := 0; i < len(body); i += 8 {
			word := r.Uint64() & 0x0f0f0f0f0f0f0f0f // half of what is in it
			for j := range min(8, len(body)-i) {
				body[i+j] = 'a' + byte(word>>(8*j))
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/lib%d/d%d/f%d", seed, n%50, n), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(body); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

// packed puts layers together to an image.
func packed(kind string, layers [][]byte) (*stage.Image, error) {
	img := &stage.Image{Blobs: map[string][]byte{}}
	add := func(mime string, data []byte) ocispec.Descriptor {
		d := digest.FromBytes(data)
		img.Blobs[d.String()] = data
		return ocispec.Descriptor{MediaType: mime, Digest: d, Size: int64(len(data))}
	}
	config := ocispec.Image{Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	manifest.SchemaVersion = 2
	for _, l := range layers {
		small, err := compress(kind, l)
		if err != nil {
			return nil, err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
		manifest.Layers = append(manifest.Layers, add(ocispec.MediaTypeImageLayer+"+"+kind, small))
	}
	text, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	manifest.Config = add(ocispec.MediaTypeImageConfig, text)
	img.Manifest, err = json.Marshal(manifest)
	return img, err
}

func compress(kind string, data []byte) ([]byte, error) {
	var buf bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&buf)
	if kind == "zstd" {
		var err error
		if w, err = zstd.NewWriter(&buf); err != nil {
			return nil, err
		}
	}
	_, err := w.Write(data)
	err = errors.Join(err, w.Close())
	return buf.Bytes(), err
}

func (b *imageBench) add(name string, pull func(context.Context, string) (time.Duration, error), drop func(context.Context, string) error) {
	b.pullers = append(b.pullers, &puller{name: name, pull: pull, drop: drop, wall: map[string]samples{}, cpu: map[string]samples{}})
}

func (b *imageBench) addVitrine(ctx context.Context) error {
	d, err := b.place.StartDaemon(ctx)
	if err != nil {
		return err
	}
	return b.addCRI(ctx, "vitrine", b.place, d.Pid())
}

func (b *imageBench) addContainerd(ctx context.Context, daemon *containerd) error {
	other := *b.place
	other.Socket = daemon.socket
	return b.addCRI(ctx, "containerd", &other, daemon.cmd.Process.Pid)
}

// addCRI adds a daemon that pulls by the CRI. Its children count when they have ended.
func (b *imageBench) addCRI(ctx context.Context, name string, place *stage.Stage, pid int) error {
	cri, err := place.Connect(ctx)
	if err != nil {
		return err
	}
	v, err := cri.Version(ctx, "")
	if err != nil {
		return err
	}
	b.add(name+" "+v.GetRuntimeVersion(), func(ctx context.Context, ref string) (time.Duration, error) {
		before := runtimeCPU(pid)
		_, err := cri.Pull(ctx, ref)
		return runtimeCPU(pid) - before, err
	}, func(ctx context.Context, ref string) error {
		return cri.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: ref})
	})
	return nil
}

// addSkopeo adds skopeo, where it is installed: into a store of its own with the library that ours has, unconfined.
func (b *imageBench) addSkopeo() {
	path, err := exec.LookPath("skopeo")
	if err != nil {
		fmt.Println("skopeo is not installed, and not measured")
		return
	}
	dir := filepath.Join(b.place.Scratch, "skopeo")
	b.add("skopeo", func(ctx context.Context, ref string) (time.Duration, error) {
		to := fmt.Sprintf("containers-storage:[overlay@%[1]s/root+%[1]s/run]%[2]s", dir, ref)
		cmd := exec.CommandContext(ctx, path, "--policy", b.place.Policy, "--registries-conf", b.place.RegistriesConf, "--tmpdir", b.place.Scratch,
			"copy", "--quiet", "docker://"+ref, to)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return 0, fmt.Errorf("%w: %s", err, out)
		}
		return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
	}, func(context.Context, string) error {
		_ = unix.Unmount(dir+"/root/overlay", unix.MNT_DETACH) // the library mounts its directory on itself
		return os.RemoveAll(dir)
	})
}

func (b *imageBench) measure(ctx context.Context, rounds int) error {
	const warmUp = 1
	for i := range rounds + warmUp {
		for _, kind := range compressions {
			for _, p := range b.pullers {
				unix.Sync() // what the one before has left to be written
				begin := time.Now()
				cpu, err := p.pull(ctx, b.refs[kind])
				if err != nil {
					return fmt.Errorf("%s, pull of %s: %w", p.name, kind, err)
				}
				if i >= warmUp {
					p.wall[kind], p.cpu[kind] = append(p.wall[kind], time.Since(begin)), append(p.cpu[kind], cpu)
				}
				if err := p.drop(ctx, b.refs[kind]); err != nil {
					return fmt.Errorf("%s, removal of %s: %w", p.name, kind, err)
				}
			}
		}
	}
	return nil
}

// print prints the table, and the ratios to containerd's medians.
func (b *imageBench) print() {
	mb := float64(b.bytes) / 1e6
	fmt.Printf("pull of %d layers, %.0f MB unpacked, %d rounds, interleaved\n\n%-34s %9s %9s %9s %9s\n", imageLayers, mb, len(b.pullers[0].wall["gzip"]), "", "s", "MB/s", "cpu s", "cpu ms/MB")
	for _, kind := range compressions {
		for _, p := range b.pullers {
			wall, cpu := p.wall[kind].quantile(0.5).Seconds(), p.cpu[kind].quantile(0.5).Seconds()
			fmt.Printf("%-5s %-28s %9.2f %9.1f %9.2f %9.2f\n", kind, p.name, wall, mb/wall, cpu, cpu*1000/mb)
		}
	}
	fmt.Println("\nmedians; cpu is that of the daemon and its children, or of skopeo and its children; MB are those of the tars")
	for _, p := range b.pullers[1:] {
		for _, kind := range compressions {
			ours := b.pullers[0]
			fmt.Printf("%s: vitrine / %s: %.2fx throughput (goal with containerd: 1.0x or more), %.2fx cpu per MB (1.0x or less)\n", kind, p.name,
				float64(p.wall[kind].quantile(0.5))/float64(ours.wall[kind].quantile(0.5)), float64(ours.cpu[kind].quantile(0.5))/float64(p.cpu[kind].quantile(0.5)))
		}
	}
	fmt.Println()
}
