package spec

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultPath is the search path of a container whose image and request name none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// applyEnv merges, weakest first: PATH, HOSTNAME, TERM and HOME as we set them; the image's; the
// request's. A name that comes again takes the place of the earlier one, so that the program never sees
// a name twice (libc's getenv takes the first, shells the last).
func applyEnv(in *Input, s *specs.Spec) error {
	env := newEnviron()
	env.set("PATH", defaultPath)
	if in.Pod.Hostname != "" {
		env.set("HOSTNAME", in.Pod.Hostname)
	}
	if in.Container.GetTty() {
		env.set("TERM", "xterm")
	}
	if in.User.Home != "" {
		env.set("HOME", in.User.Home)
	}
	for _, kv := range in.Image.Env {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" || strings.IndexByte(kv, 0) >= 0 {
			continue // an image's mistake is not the caller's: drop the entry, as every runtime does
		}
		env.set(k, v)
	}
	for i, e := range in.Container.GetEnvs() {
		field := fmt.Sprintf("envs[%d]", i)
		if err := checkEnv(field, e.GetKey(), string(e.GetValue())); err != nil {
			return err
		}
		env.set(e.GetKey(), string(e.GetValue()))
	}
	s.Process.Env = env.list
	return nil
}

func checkEnv(field, key, value string) error {
	switch {
	case key == "":
		return Invalid(field+".key", "", "empty name")
	case strings.ContainsAny(key, "=\x00"):
		return Invalid(field+".key", key, "a name holds neither = nor NUL")
	case strings.IndexByte(value, 0) >= 0:
		return Invalid(field+".value", value, "holds a NUL byte")
	case key == "HOME" && strings.ContainsAny(value, "\n\r:"):
		// Programs copy HOME into passwd lines; runtimes did too (CVE-2022-4318).
		return Invalid(field+".value", value, "HOME holds neither newline nor colon")
	}
	return nil
}

// environ is an ordered set of variables.
type environ struct {
	list  []string
	index map[string]int
}

func newEnviron() *environ { return &environ{index: map[string]int{}} }

func (e *environ) set(k, v string) {
	if i, ok := e.index[k]; ok {
		e.list[i] = k + "=" + v
		return
	}
	e.index[k] = len(e.list)
	e.list = append(e.list, k+"="+v)
}
