package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func link(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
}

func hard(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
}

func withXattr(h tar.Header, name string) tar.Header {
	h.PAXRecords = map[string]string{"SCHILY.xattr." + name: "y"}
	h.Format = tar.FormatPAX
	return h
}

// snapshot describes a tree in so far as an unpacked layer could change it.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		names := make([]byte, 1024)
		n, _ := unix.Llistxattr(path, names)
		data, _ := os.ReadFile(path)
		fmt.Fprintf(&all, "%s %o %d:%d %d %v %q %q\n", path, st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim, names[:max(n, 0)], data)
		return nil
	}))
	return all.String()
}

// IM-02, IM-14: no entry of a layer reaches anything outside of the layer, be it
// the first layer or one on top of another that prepares the ground.
func TestIM02PathsStayInTheLayer(t *testing.T) {
	h := newHostile(t)
	outside := filepath.Join(filepath.Dir(h.conf.Root), "canary")
	must(t, os.MkdirAll(filepath.Join(outside, "sub"), 0o700))
	h.write(filepath.Join(outside, "file"), "untouched")
	h.write(filepath.Join(outside, "sub", "file"), "untouched")
	before := snapshot(t, outside)
	up := strings.Repeat("../", 20)
	evil := func(path string) tar.Header { return file(path, "evil") }

	corpus := map[string][]tar.Header{
		"parent":            {evil("../canary/file")},
		"many parents":      {evil(up[:len(up)-1] + outside + "/file")},
		"absolute":          {evil(outside + "/file")},
		"inner parent":      {dir("a"), evil("a/../.." + outside + "/file")},
		"link to directory": {link("l", outside), evil("l/file"), evil("l/new")},
		"relative link":     {link("l", up+outside), evil("l/file")},
		"file over link":    {link("l", outside+"/file"), evil("l")},
		"two hops":          {dir("a"), dir("a/b"), link("a/b/c", "../.."), link("a/b/c/d", ".."), evil("a/b/c/d/canary/file")},
		"hops upwards":      {link("a", "."), link("a/b", ".."), link("a/b/c", ".."), evil("a/b/c/" + outside + "/file")},
		"hard via parent":   {hard("l", up+outside+"/file"), evil("l")},
		"hard via link":     {link("d", outside), hard("l", "d/file"), evil("l")},
		"hard absolute":     {hard("l", outside+"/file"), evil("l")},
		"hard to link":      {link("d", outside+"/file"), hard("l", "d"), evil("l")},
		"sibling prefix":    {evil("../diff-evil/file"), hard("l", "../diff-evil/file")},
		"root is a link":    {link(".", outside), evil("file")},
		"root is a link 2":  {link("./", outside), evil("file")},
		"root is empty":     {link("", outside), evil("file")},
		"root is a file":    {evil(".")},
		"directory through": {link("l", outside), dir("l/sub"), tar.Header{Typeflag: tar.TypeDir, Name: "l/sub/", Mode: 0o777, ModTime: time.Unix(1, 0)}},
		"directory swapped": {tar.Header{Typeflag: tar.TypeDir, Name: "l", Mode: 0o777, ModTime: time.Unix(1, 0)}, link("l", outside)},
		"xattr through":     {link("l", outside+"/file"), withXattr(link("l", outside+"/file"), "user.evil")},
		"mode of a link":    {tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: outside + "/file", Mode: 0o4777, Uid: 7, Gid: 7}},
		"device through":    {link("l", outside), tar.Header{Typeflag: tar.TypeChar, Name: "l/null", Devmajor: 1, Devminor: 3}},
		"fifo through":      {link("l", outside), tar.Header{Typeflag: tar.TypeFifo, Name: "l/file"}},
		"whiteout through":  {link("l", outside), file("l/.wh.file", ""), file("l/.wh..wh..opq", "")},
		"whiteout of up":    {file("../canary/.wh.file", ""), file(up+outside+"/.wh.sub", "")},
		"plink":             {file(".wh..wh.plnk/1", "evil"), hard("l", ".wh..wh.plnk/../../"+outside+"/file"), evil("l")},
		"magic link":        {link("l", "/proc/self/root"), evil("l" + outside + "/file"), link("m", "/proc/1/cwd"), evil("m" + outside + "/file")},
	}
	n := 0
	for name, entries := range corpus {
		t.Run(name, func(t *testing.T) {
			half := len(entries) - 1
			for _, tars := range [][][]byte{
				{tarOf(t, entries...)},
				{tarOf(t, entries[:half]...), tarOf(t, entries[half:]...)},
			} {
				n++
				repo := fmt.Sprintf("im02-%d", n)
				h.offer(repo, h.image(tars, squeezes[n%len(squeezes)]))
				id, err := h.Pull(soon(t), "registry.example/"+repo, nil)
				if after := snapshot(t, outside); after != before {
					t.Fatalf("the canary has changed:\n%s\n%s", before, after)
				}
				if stray, _ := filepath.Glob(filepath.Join(h.conf.Root, "overlay", "*", "diff-evil")); len(stray) > 0 {
					t.Fatalf("outside of the layer: %v", stray)
				}
				if err == nil {
					h.remove(id)
				}
				h.clean(name)
			}
		})
	}
}

// The same shapes as far as decent images have them.
func TestIM02LegalLinksWork(t *testing.T) {
	h := newHostile(t)
	first := tarOf(t, dir("run"), dir("var"), link("var/run", "/run"), link("abs", "/run"), file("run/old", "1"), hard("run/hard", "run/old"),
		link("dangling", "/nowhere"), link("up", "../../run"))
	second := tarOf(t, file("a/../b", "2"), file("/c", "3"), file("./d", "4"), tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o751},
		tar.Header{Typeflag: tar.TypeReg, Name: "setuid", Mode: 0o4755, Uid: 5, Gid: 6}, withXattr(file("x", ""), "user.mine"),
		tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}, tar.Header{Typeflag: tar.TypeFifo, Name: "fifo"})
	for i, squeeze := range squeezes {
		repo := fmt.Sprintf("legal-%d", i)
		h.offer(repo, h.image([][]byte{first, second}, squeeze))
		id := h.pull("registry.example/" + repo)
		root := h.rootfs(repo, id)
		for path, want := range map[string]string{"var/run/old": "1", "abs/hard": "1", "up/old": "1", "b": "2", "c": "3", "d": "4"} {
			wantFile(t, root, path, want)
		}
		var st unix.Stat_t
		must(t, unix.Fstatat(root.Int(), "setuid", &st, 0))
		equal(t, "setuid", fmt.Sprintf("%o %d:%d", st.Mode&0o7777, st.Uid, st.Gid), "4755 5:6")
		must(t, unix.Fstatat(root.Int(), "null", &st, 0))
		equal(t, "null", st.Rdev, unix.Mkdev(1, 3))
		must(t, root.Close())
		h.removeRootfs(repo)
		h.remove(id)
		h.clean(repo)
	}
}

// IM-03: what means something to overlayfs is made by us alone.
func TestIM03Whiteouts(t *testing.T) {
	h := newHostile(t)
	for name, entries := range map[string][]tar.Header{
		"dot":          {file("a/.wh..", "")},
		"dotdot":       {file("a/.wh...", "")},
		"nothing":      {file("a/.wh.", "")},
		"device":       {{Typeflag: tar.TypeChar, Name: "gone"}},
		"trusted":      {withXattr(dir("d"), "trusted.overlay.opaque")},
		"redirect":     {withXattr(dir("d"), "trusted.overlay.redirect")},
		"user overlay": {withXattr(dir("d"), "user.overlay.opaque")},
	} {
		repo := "im03-" + strings.ReplaceAll(name, " ", "-")
		h.offer(repo, h.image([][]byte{tarOf(t, entries...)}, gzipped))
		h.refuse(repo, ErrUnsupported)
	}
	// A whiteout of a link takes the link, one of .wh..wh.plnk is none.
	h.offer("good", h.image([][]byte{tarOf(t, file("kept", "1"), link("l", "kept")), tarOf(t, file(".wh.l", ""), file(".wh..wh.plnk", ""))}, gzipped))
	root := h.rootfs("c", h.pull("registry.example/good"))
	wantFile(t, root, "kept", "1")
	wantNoFile(t, root, "l")
}

// IM-04: what describes a file may not be larger than files are.
func TestIM04Headers(t *testing.T) {
	h := newHostile(t)
	pax := func(size int) []byte {
		var b strings.Builder
		value := strings.Repeat("v", size)
		record := " comment=" + value + "\n"
		length := len(record) + len(fmt.Sprint(len(record)+8))
		for len(fmt.Sprint(length))+len(record) != length {
			length = len(fmt.Sprint(length)) + len(record)
		}
		fmt.Fprintf(&b, "%d%s", length, record)
		head := tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "x"})[:512]
		head[156] = 'x'
		copy(head[124:136], fmt.Sprintf("%011o\x00", b.Len()))
		copy(head[148:156], "        ")
		sum := 0
		for _, c := range head {
			sum += int(c)
		}
		copy(head[148:156], fmt.Sprintf("%06o\x00 ", sum))
		body := append([]byte(b.String()), make([]byte, 512-b.Len()%512)...)
		return append(append(head, body...), tarOf(t, file("x", "y"))...)
	}
	many := pax(500 << 10)
	many = many[:len(many)-len(tarOf(t, file("x", "y")))]
	chain := []byte{}
	for range 20 {
		chain = append(chain, many...)
	}
	chain = append(chain, tarOf(t, file("x", "y"))...)
	huge := tarOf(t, file("x", "y"))
	copy(huge[124:136], []byte{0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}) // size 2^63-1
	for name, c := range map[string]struct {
		tar  []byte
		want error
	}{
		"record of 3 MiB":     {pax(3 << 20), ErrCorrupt},
		"many records":        {chain, ErrLimit},
		"size of 2^63":        {huge, ErrCorrupt},
		"path of 1 MiB":       {tarOf(t, file(strings.Repeat("p/", 500<<10)+"x", "")), ErrLimit},
		"path of 5000":        {tarOf(t, file(strings.Repeat("p/", 2500)+"x", "")), ErrLimit},
		"owner":               {tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", Uid: 1<<32 - 1, Format: tar.FormatGNU}), ErrUnsupported},
		"negative owner":      {tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "x", Gid: -1, Format: tar.FormatGNU}), ErrUnsupported},
		"device out of range": {tarOf(t, tar.Header{Typeflag: tar.TypeBlock, Name: "x", Devmajor: 1 << 20}), ErrUnsupported},
		"noise":               {[]byte(strings.Repeat("no tar at all", 1000)), ErrCorrupt},
		"sparse":              {sparse(t), ErrUnsupported},
	} {
		repo := "im04-" + strings.Map(func(r rune) rune {
			if r == ' ' || r == '^' {
				return '-'
			}
			return r
		}, strings.ToLower(name))
		h.offer(repo, h.image([][]byte{c.tar}, gzipped))
		before := forgetPeak(t)
		text := h.refuse(repo, c.want)
		if p := peak(t) - before; p > 100<<20 {
			t.Errorf("%s: %d MiB", name, p>>20)
		}
		t.Logf("%s: %s", name, text)
	}
	h.limits.entries = 1000
	empty := make([]tar.Header, 1001)
	for i := range empty {
		empty[i] = file(fmt.Sprintf("f%d", i), "")
	}
	h.offer("entries", h.image([][]byte{tarOf(t, empty...)}, gzipped))
	if text := h.refuse("entries", ErrLimit); !strings.Contains(text, "at most 1000") {
		t.Errorf("the bound is not named: %s", text)
	}
	h.offer("fewer", h.image([][]byte{tarOf(t, empty[:1000]...)}, gzipped))
	h.pull("registry.example/fewer")
}

// sparse is a file of 1 TiB with one region, in GNU's format 1.0.
func sparse(t *testing.T) []byte {
	t.Helper()
	regions := "1\n1099511627776\n0\n"
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: 512, Mode: 0o644, Format: tar.FormatPAX, PAXRecords: map[string]string{
		"VIT.sparse.major": "1", "VIT.sparse.minor": "0", "VIT.sparse.realsize": "1099511627776", "VIT.sparse.name": "x",
	}}))
	_, err := w.Write([]byte(regions + strings.Repeat("\x00", 512-len(regions))))
	must(t, err)
	must(t, w.Close())
	return bytes.ReplaceAll(buf.Bytes(), []byte("VIT.sparse"), []byte("GNU.sparse"))
}

// CD-19: opaque markers, as many as files, cost no more than the files.
func TestCD19OpaqueMarkers(t *testing.T) {
	h := newHostile(t)
	same := []tar.Header{dir("d")}
	for i := range 1000 {
		same = append(same, file(fmt.Sprintf("d/%d", i), ""), file("d/.wh..wh..opq", ""))
	}
	h.offer("same", h.image([][]byte{tarOf(t, same...)}, gzipped))
	h.refuse("same", ErrUnsupported) // no path may be there twice
	var with, without []tar.Header
	for i := range 2000 {
		d := fmt.Sprintf("d%d", i)
		with = append(with, dir(d), file(d+"/a", ""), file(d+"/.wh..wh..opq", ""))
		without = append(without, dir(d), file(d+"/a", ""), file(d+"/b", ""))
	}
	took := func(repo string, entries []tar.Header) time.Duration {
		h.offer(repo, h.image([][]byte{tarOf(t, entries...)}, gzipped))
		start := time.Now()
		id := h.pull("registry.example/" + repo)
		d := time.Since(start)
		h.remove(id)
		return d
	}
	plain, marked := took("plain", without), took("marked", with)
	t.Logf("%v with markers, %v with files instead", marked, plain)
	if marked > 2*plain+time.Second {
		t.Fatalf("%v with markers, %v with files instead", marked, plain)
	}
}

// What the children may do, looked at while they are at work.
func TestChildrenAreConfined(t *testing.T) {
	h := newHostile(t)
	big := tarOf(t, file("big", strings.Repeat("x", 4<<20)))
	p := h.image([][]byte{big}, plainTar)
	open, arrived := make(chan struct{}), make(chan struct{}, 1)
	h.blobs[p.layers[0].Digest.String()] = func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(big[:3<<20])
		w.(http.Flusher).Flush()
		arrived <- struct{}{}
		<-open
		_, _ = w.Write(big[3<<20:])
	}
	h.offer("slow", p)
	done := h.pullLater(soon(t), "registry.example/slow", nil)
	<-arrived
	var keep uint64
	for _, c := range unpackCapabilities {
		keep |= 1 << c
	}
	for name, want := range map[string]map[string]string{
		inflateName: {"Seccomp": "2", "NoNewPrivs": "1", "CapEff": "0000000000000000", "CapPrm": "0000000000000000", "Uid": "65534", "root": "empty"},
		unpackName:  {"Seccomp": "2", "NoNewPrivs": "1", "CapEff": fmt.Sprintf("%016x", keep), "root": "layer"},
	} {
		got := childStatus(t, name)
		for key, v := range want {
			if key == "root" && strings.Contains(got[key], v) {
				continue
			}
			if strings.Fields(got[key])[0] != v {
				t.Errorf("%s: %s is %q, want %q", name, key, got[key], v)
			}
		}
		for _, limit := range []string{"Max data size", "Max cpu time", "Max open files", "Max core file size", "Max file size"} {
			if f := strings.Fields(strings.TrimPrefix(got[limit], limit)); len(f) == 0 || f[0] == "unlimited" {
				t.Errorf("%s: %s", name, got[limit])
			}
		}
	}
	close(open)
	must(t, (<-done).err)
}

// childStatus waits for a child of this process with that name, and reads what
// /proc says about it once it is confined.
func childStatus(t *testing.T, name string) map[string]string {
	t.Helper()
	host, err := os.Stat("/")
	must(t, err)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		pids, err := filepath.Glob("/proc/[0-9]*")
		must(t, err)
		for _, pid := range pids {
			cmd, _ := os.ReadFile(pid + "/cmdline")
			status, _ := os.ReadFile(pid + "/status")
			if !strings.HasPrefix(string(cmd), name+"\x00") || !strings.Contains(string(status), fmt.Sprintf("PPid:\t%d\n", os.Getpid())) {
				continue
			}
			got := map[string]string{}
			for line := range strings.Lines(string(status)) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
				got[key] = value
			}
			limits, _ := os.ReadFile(pid + "/limits")
			for line := range strings.Lines(string(limits)) {
				if f := strings.SplitN(line, "  ", 2); len(f) == 2 {
					got[f[0]] = line
				}
			}
			got["root"], _ = os.Readlink(pid + "/root")
			if root, err := os.Stat(pid + "/root"); err == nil && name == unpackName && !os.SameFile(root, host) {
				got["root"] = "layer" // a mount that is attached nowhere: it has no path
			}
			if strings.TrimSpace(got["Seccomp"]) == "2" && got["root"] != "/" {
				return got
			}
		}
	}
	t.Fatalf("no confined child %s", name)
	return nil
}
