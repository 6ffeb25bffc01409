package image

import (
	"archive/tar"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/internal/userns"
)

// idMap is a user namespace of n ids from host on.
func idMap(t *testing.T, host, n uint32) IDMap {
	t.Helper()
	line := []sys.IDMap{{Inside: 0, Outside: host, Count: n}}
	ns, err := userns.Make(sys.IDMaps{UIDs: line, GIDs: line}, 0)
	must(t, err)
	t.Cleanup(ns.Close)
	return IDMap{UserNS: ns.User, UIDs: line, GIDs: line}
}

// eachIDMapMode runs f for every way of stacking layers with every way of mapping them.
func eachIDMapMode(t *testing.T, f func(t *testing.T, e *env)) {
	for name, mode := range map[string]overlayMode{"by descriptor": layersByFD, "by path": layersByPath, "by mount(2)": layersByMount} {
		for how, maps := range map[string]idmapMode{"detached": idmapDetached, "attached": idmapAttached} {
			t.Run(name+" "+how, func(t *testing.T) {
				e := newEnv(t)
				if e.overlay > mode || e.idmap > maps || e.idmap == idmapNever {
					t.Skipf("needs a newer kernel: it takes layers by mode %d and with ids by mode %d", e.overlay, e.idmap)
				}
				e.overlay, e.idmap = mode, maps
				f(t, e)
			})
		}
	}
}

// wantOwner finds who a file belongs to on the host.
func wantOwner(t *testing.T, root *sys.FD, name string, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstatat(root.Int(), name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH))
	equal(t, "owner of "+name, [2]uint32{st.Uid, st.Gid}, [2]uint32{uid, gid})
}

// unmapped is who the kernel shows for an id without a mapping (kernel.overflowuid).
const unmapped = 65534

// TestRootfsIDMapped: the ids of the image are those of the namespace; what is written is the writer's and survives another
// mount; and neither a layer nor another container notices.
func TestRootfsIDMapped(t *testing.T) {
	const host = 300000
	eachIDMapMode(t, func(t *testing.T, e *env) {
		e.reg.push(t, "owned", image(t, "owned", nil,
			layer(t, tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o751, Uid: 7, Gid: 8}, file("zero", "0"),
				tar.Header{Typeflag: tar.TypeReg, Name: "few", Mode: 0o644, Uid: 33, Gid: 34},
				tar.Header{Typeflag: tar.TypeReg, Name: "many", Mode: 0o644, Uid: 2000, Gid: 2000}),
			layer(t, tar.Header{Typeflag: tar.TypeReg, Name: "zero", Mode: 0o644, Uid: 1, Gid: 1}, file("low", "low"))))
		id := e.pull("registry.example/owned")
		m := idMap(t, host, 1000)
		must(t, e.NewRootfs(soon(t), "c1", id))
		for range 2 { // and again, as a create that is tried again
			root, err := e.Mount(soon(t), "c1", View{IDs: &m})
			must(t, err)
			wantOwner(t, root, "", host+7, host+8)
			wantOwner(t, root, "zero", host+1, host+1)
			wantOwner(t, root, "low", host, host)
			wantOwner(t, root, "few", host+33, host+34)
			wantOwner(t, root, "many", unmapped, unmapped)
			wantFile(t, root, "low", "low")
			must(t, unix.Fchownat(root.Int(), "low", host+5, host+6, 0)) // copies it up
			wantOwner(t, root, "low", host+5, host+6)
			must(t, unix.Fchownat(root.Int(), "low", host, host, 0))
			writeAt(t, root, "mine", "x")
			wantFile(t, root, "mine", "x")
			must(t, root.Close())
		}
		wantOwner(t, e.rootfs("c2", id), "few", 33, 34)
		wantOwner(t, e.rootfs("c3", id), "", 7, 8)
		other := idMap(t, 2*host, 1000)
		must(t, e.NewRootfs(soon(t), "c4", id))
		root, err := e.Mount(soon(t), "c4", View{IDs: &other})
		must(t, err)
		defer root.Close()
		wantOwner(t, root, "few", 2*host+33, 2*host+34)
		wantNoFile(t, root, "mine")
	})
}

// TestVolumeIDMapped: the same of an image that is a volume, whole and by a sub path.
func TestVolumeIDMapped(t *testing.T) {
	const host = 300000
	eachIDMapMode(t, func(t *testing.T, e *env) {
		e.reg.push(t, "ways", ways(t))
		e.reg.push(t, "own", simple(t, "own"))
		vol, own := e.pull("registry.example/ways"), e.pull("registry.example/own")
		e.withVolumes("c", own, vol, own)
		m := idMap(t, host, 1000)
		for _, of := range []struct {
			id, sub, name string
			uid, gid      uint32
		}{{vol, "", "", host + 7, host + 8}, {vol, "", "d/one", host, host}, {vol, "data/sub", "f", host, host}, {own, "", "file", host, host}} {
			fd, err := e.MountVolume(soon(t), "c", of.id, of.sub, View{IDs: &m})
			must(t, err)
			wantOwner(t, fd, of.name, of.uid, of.gid)
			wantVolumeFlags(t, fd)
			must(t, fd.Close())
		}
		wantOwner(t, e.volume("c", vol, ""), "", 7, 8)
	})
}

// TestIDMapRefused: what cannot be mapped says why, and a root that was refused can be mounted once it can.
func TestIDMapRefused(t *testing.T) {
	e := newEnv(t)
	if e.idmap == idmapNever {
		t.Skip("needs a filesystem whose ids can be mapped")
	}
	e.reg.push(t, "layered", layered(t))
	id := e.pull("registry.example/layered")
	must(t, e.NewRootfs(soon(t), "c", id))
	must(t, e.NewRootfs(soon(t), "v", id, id))
	short := idMap(t, 300000, 7) // "/" belongs to 7:8
	_, err := e.Mount(soon(t), "c", View{IDs: &short})
	wantErr(t, "no id for the root directory", err, errUnmapped)
	wantErr(t, "no id for the root directory", err, ErrUnsupported)

	m, mode := idMap(t, 300000, 65536), e.idmap
	e.idmap = idmapNever
	equal(t, "IDMaps", e.IDMaps(), false)
	_, err = e.Mount(soon(t), "c", View{IDs: &m})
	wantErr(t, "a root where nothing can be mapped", err, ErrNoIDMaps)
	_, err = e.MountVolume(soon(t), "v", id, "", View{IDs: &m})
	wantErr(t, "a volume where nothing can be mapped", err, ErrNoIDMaps)
	e.idmap = mode
	root, err := e.Mount(soon(t), "c", View{IDs: &m})
	must(t, err)
	defer root.Close()
	wantOwner(t, root, "", 300007, 300008)
}

// TestProbeIDMap: what is found works for a root, which the other tests use, and a filesystem that cannot is found, too.
func TestProbeIDMap(t *testing.T) {
	e := newEnv(t)
	found := e.idmap
	if e.IDMaps() != (found != idmapNever) {
		t.Errorf("mode %d, and IDMaps says %v", found, e.IDMaps())
	}
	for dir, want := range map[string]idmapMode{e.conf.Root + "/empty": found, "/proc/fs": idmapNever} {
		equal(t, fmt.Sprint("mode of ", dir), e.probeIDMap(dir, e.conf.tmp()), want)
	}
}
