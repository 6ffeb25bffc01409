package source

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// maxLinks is how many symbolic links the kernel follows in one path.
const maxLinks = 40

// inRoot is how paths are resolved inside the root filesystem.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// settle looks whether a directory's destination leads over a symlink that leads
// to nothing (/var/run -> /run in an image without /run). A program cannot make a
// directory behind it, since steps cannot follow what they read; so the place where
// the link wants it to be is read here and handed on. It is resolved again when
// the program runs, inside the root: an image that changes meanwhile misleads only
// itself. Where an earlier mount hides what the image has, nothing is known, and
// nothing is said.
func (s *Set) settle(i int, dest string, dir bool) {
	if s.guess || !dir || s.hidden(dest) {
		return
	}
	fd, err := sys.OpenAt2(s.files[0].Int(), dest, unix.O_PATH, inRoot)
	if err == nil {
		fd.Close()
		return
	}
	if place, ok := follow(s.files[0], dest); ok && place != dest && place != "" && !s.hidden(place) {
		s.input.Targets[i] = place
	}
}

// hidden says whether an earlier mount lies on the path.
func (s *Set) hidden(p string) bool {
	for _, c := range s.covered {
		if p == c || strings.HasPrefix(p, c+"/") {
			return true
		}
	}
	return false
}

// follow resolves the links of a path of which the last part may be missing, one
// component at a time, below root. The result has no leading slash.
func follow(root *sys.FD, p string) (place string, ok bool) {
	rest := strings.Split(p, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			place = strings.TrimPrefix(path.Dir("/"+place), "/")
			continue
		}
		next := path.Join(place, name)
		target, isLink := readLink(root, next)
		if !isLink {
			place = next
			continue
		}
		if links++; links > maxLinks {
			return "", false
		}
		if path.IsAbs(target) {
			place = ""
		}
		rest = append(strings.Split(target, "/"), rest...)
		if len(rest) > unix.PathMax {
			return "", false
		}
	}
	return place, len(place) < unix.PathMax
}

// readLink returns what the link at p says.
func readLink(root *sys.FD, p string) (target string, ok bool) {
	fd, err := sys.OpenAt2(root.Int(), p, unix.O_PATH|unix.O_NOFOLLOW, inRoot)
	if err != nil {
		return "", false
	}
	defer fd.Close()
	var st unix.Stat_t
	if unix.Fstat(fd.Int(), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", false
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd.Int(), "", buf)
	if err != nil || n == len(buf) {
		return "", false
	}
	return string(buf[:n]), true
}
