package image

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// twoFaced makes a tar with one harmless file which is gzip as well: the first entry's name is the beginning of a gzip header, whose
// extra field is the rest of the tar header, and its data is the compressed inner tar.
func twoFaced(t *testing.T, inner []byte) []byte {
	t.Helper()
	var squeezed bytes.Buffer
	w, err := flate.NewWriter(&squeezed, flate.BestCompression)
	must(t, err)
	_, err = w.Write(inner)
	must(t, errors.Join(err, w.Close()))
	squeezed.Write(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(inner)), uint32(len(inner))))
	head := make([]byte, 512)
	copy(head, []byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0, 500 & 0xff, 500 >> 8})
	copy(head[100:], "0000644\x000000000\x000000000\x00")
	copy(head[124:], fmt.Sprintf("%011o\x00%011o\x00", squeezed.Len(), 0))
	copy(head[148:], "        0")
	sum := 0
	for _, c := range head {
		sum += int(c)
	}
	copy(head[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(head, squeezed.Bytes()...)
}

// TestLayerOfTwoFaces: a tar that is compressed data as well is not unpacked as that, outside of the confinement and of all limits. IM-05.
func TestLayerOfTwoFaces(t *testing.T) {
	h := newHostile(t)
	outer := twoFaced(t, tarOf(t, file("inner", "never looked at")))
	h.offer("faces", h.image([][]byte{outer}, gzipped))
	if text := h.refuse("faces", ErrUnsupported); !strings.Contains(text, "looks like compressed data") {
		t.Error(text)
	}
	h.offer("plain", h.image([][]byte{tarOf(t, file("BZ", "a name that is allowed")), tarOf(t)}, gzipped))
	h.remove(h.pull("registry.example/plain"))
	h.clean("plain")
}

// TestTimeToUnpack: the time begins when the blob is here, so that a slow one has all the time that its rate gives it; and when it is over the
// error says so.
func TestTimeToUnpack(t *testing.T) {
	h := newHostile(t)
	noise := func(n int) string {
		b := make([]byte, n)
		r := rand.New(rand.NewPCG(1, uint64(n)))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return string(b)
	}
	p := h.image([][]byte{tarOf(t, file("slow", noise(1<<20)))}, gzipped)
	d := p.layers[0].Digest.String()
	whole := h.blobs[d]
	h.blobs[d] = func(w http.ResponseWriter, r *http.Request) { whole(&dribble{w}, r) }
	h.offer("slow", p)
	h.limits.unpack = time.Second
	h.remove(h.pull("registry.example/slow"))
	h.offer("late", h.image([][]byte{tarOf(t, file("late", strings.Repeat("x", 50<<20)))}, gzipped))
	h.limits.unpack = time.Millisecond
	if text := h.refuse("late", ErrLimit); !strings.Contains(text, "time to unpack a layer") {
		t.Error(text)
	}
}

// dribble takes two seconds for a blob.
type dribble struct{ http.ResponseWriter }

// Write passes a sixteenth on at a time.
func (s *dribble) Write(p []byte) (total int, err error) {
	for part := len(p)/16 + 1; len(p) > 0 && err == nil; {
		n := 0
		n, err = s.ResponseWriter.Write(p[:min(part, len(p))])
		s.ResponseWriter.(http.Flusher).Flush()
		time.Sleep(125 * time.Millisecond)
		total, p = total+n, p[n:]
	}
	return total, err
}

// TestSameLayerAgainAndAgain: layers that are copied, or are here already, count as well. IM-05.
func TestSameLayerAgainAndAgain(t *testing.T) {
	h := newHostile(t)
	one := tarOf(t, file("zeros", strings.Repeat("\x00", 1<<20)))
	h.limits.image = int64(3*len(one) + 100)
	three := h.image([][]byte{one, one, one}, gzipped)
	h.offer("three", three)
	h.pull("registry.example/three")
	h.offer("four", h.image([][]byte{one, one, one, one}, gzipped))
	_, err := h.Pull(soon(t), "registry.example/four", nil)
	wantErr(t, "a fourth copy", err, ErrLimit)
	h.limits.image = int64(2*len(one) + 100)
	_, err = h.Pull(soon(t), "registry.example/three", nil)
	h.remove("registry.example/three")
	h.refuse("three", ErrLimit)
	if err != nil { // it is here as a whole: nothing is made
		wantErr(t, "one that is here", err, ErrLimit)
	}
}

// TestRoomForBlobs: downloads, and what is put together on the way, leave the disk its reserve. IM-19.
func TestRoomForBlobs(t *testing.T) {
	h := newHostile(t)
	full := limitError("free space", 0, "")
	h.Store.blobs.room = func() error { return full }
	b := make([]byte, 3*freeEvery)
	r := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	h.offer("noise", h.image([][]byte{tarOf(t, file("noise", string(b)))}, plainTar))
	h.refuse("noise", ErrLimit)
	if _, err := h.Store.blobs.spool(soon(t), bytes.NewReader(b)); !errors.Is(err, full) {
		t.Errorf("spool: %v", err)
	}
}

// TestLoadOfCompressedArchive: what a docker archive unpacks to has bounds, too, and a compressed one loads.
func TestLoadOfCompressedArchive(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "library/app", simple(t, "one"))
	id := e.pull("registry.example/library/app")
	path := filepath.Join(t.TempDir(), "a.tar")
	must(t, e.Save(soon(t), path, false, "registry.example/library/app"))
	raw, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path+".gz", gzipped(t, raw), 0o600))
	e.remove("registry.example/library/app")
	loaded, err := e.Load(soon(t), path+".gz")
	must(t, err)
	if len(loaded) != 1 || loaded[0].ID != id {
		t.Errorf("loaded %+v, want %s", loaded, id)
	}
	must(t, os.WriteFile(path+".gz", gzipped(t, append(raw, make([]byte, 64<<20)...)), 0o600))
	e.Store.blobs.room = func() error { return limitError("free space", 0, "") }
	if _, err := e.Load(soon(t), path+".gz"); !errors.Is(err, ErrLimit) {
		t.Errorf("without room: %v", err)
	}
}

// TestRemoveBesideALostLayer: an image whose layer has no record any more does not keep others from being removed, nor the store from opening.
func TestRemoveBesideALostLayer(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "library/lost", simple(t, "lost"))
	e.reg.push(t, "library/app", image(t, "app", nil, layer(t, file("app", "x"))))
	e.pull("registry.example/library/lost")
	e.pull("registry.example/library/app")
	imgs, err := e.store.Images()
	must(t, err)
	lost := ""
	for i := range imgs {
		if strings.Contains(strings.Join(imgs[i].Names, " "), "lost") {
			lost = imgs[i].TopLayer
		}
	}
	list := filepath.Join(e.conf.Root, "overlay-layers", "layers.json")
	raw, err := os.ReadFile(list)
	must(t, err)
	must(t, os.WriteFile(list, []byte(strings.Replace(string(raw), `"id":"`+lost+`"`, `"id":"`+strings.Repeat("0", 64)+`"`, 1)), 0o600))
	if _, err := e.store.Layer(lost); err == nil {
		t.Fatal("the layer is not lost")
	}
	if _, err := e.layersInUse(); err != nil {
		t.Errorf("what is in use: %v", err)
	}
}

// filterProbe is what a copy of this program tries under the filter of the children.
func filterProbe() int {
	if err := allowCalls(append([]uintptr{unix.SYS_GETPPID}, runtimeCalls...)); err != nil {
		fmt.Println(err)
		return 1
	}
	tries := map[string]func() syscall.Errno{
		"fork": func() syscall.Errno {
			_, _, e := syscall.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
			return e
		},
		"namespace": func() syscall.Errno {
			_, _, e := syscall.RawSyscall(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0)
			return e
		},
		"signal to the parent": func() syscall.Errno {
			p := uintptr(os.Getppid())
			_, _, e := syscall.RawSyscall(unix.SYS_TGKILL, p, p, 0)
			return e
		},
		"limits of the parent": func() syscall.Errno {
			_, _, e := syscall.RawSyscall6(unix.SYS_PRLIMIT64, uintptr(os.Getppid()), unix.RLIMIT_NOFILE, 0, 0, 0, 0)
			return e
		},
	}
	for name, try := range tries {
		if e := try(); e != unix.EPERM {
			fmt.Printf("%s: %v\n", name, e)
			return 1
		}
	}
	done := make(chan struct{}) // threads, and signals to oneself, are the runtime's own
	for range 20 {
		go func() { syscall.Getpid(); done <- struct{}{} }()
		<-done
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_TGKILL, uintptr(os.Getpid()), uintptr(os.Getpid()), 0); e != 0 {
		fmt.Println("signal to oneself:", e)
		return 1
	}
	return 0
}

// TestChildrenStayAlone: a child that was taken over makes no process and no namespace, and reaches no other process.
func TestChildrenStayAlone(t *testing.T) {
	needRoot(t)
	cmd := helperCommand("filter", "")
	if out, err := cmd.Output(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
