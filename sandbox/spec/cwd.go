package spec

import (
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// pathMax is the kernel's PATH_MAX: longer paths cannot be opened at all.
const pathMax = 4096

// applyCwd takes the working directory of the request, else the image's, else the root. The program
// makes a missing one inside the container and checks after chdir that it is below the root.
func applyCwd(in *Input, s *specs.Spec) error {
	if wd := in.Container.GetWorkingDir(); wd != "" {
		if err := checkAbsolute("working_dir", wd); err != nil {
			return err
		}
		s.Process.Cwd = path.Clean(wd)
		return nil
	}
	wd := in.Image.WorkingDir
	if strings.ContainsAny(wd, "\x00\n\r") || len(wd) >= pathMax {
		return Invalid("image.working_dir", wd, "the image's working directory is no path")
	}
	// Image builders write relative ones; they are meant from the root.
	s.Process.Cwd = path.Join("/", wd)
	return nil
}

// checkAbsolute refuses what is not a plain absolute path. Newlines are refused because paths end in
// line-based files and logs (CVE-2026-15809 was a working directory with one).
func checkAbsolute(field, p string) error {
	switch {
	case p == "":
		return Invalid(field, "", "empty path")
	case strings.ContainsAny(p, "\x00\n\r"):
		return Invalid(field, p, "a path holds neither NUL nor newline")
	case len(p) >= pathMax:
		return Invalid(field, p, "longer than %d bytes", pathMax-1)
	case p[0] != '/':
		return Invalid(field, p, "not an absolute path")
	}
	return nil
}
