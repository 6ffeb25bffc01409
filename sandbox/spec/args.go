package spec

import (
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// applyArgs decides what is executed. The rule is Kubernetes': command replaces the image's entrypoint,
// args replace the image's cmd, and a command without args runs without the image's cmd too.
func applyArgs(in *Input, s *specs.Spec) error {
	command, args := in.Container.GetCommand(), in.Container.GetArgs()
	if len(command) == 0 {
		if len(args) == 0 {
			args = in.Image.Cmd
		}
		command = in.Image.Entrypoint
	}
	all := append(append([]string{}, command...), args...)
	if len(all) == 0 {
		return Invalid("command", "", "no command: the request and the image have neither command nor args")
	}
	if all[0] == "" {
		return Invalid("command", "", "the program to run has an empty name")
	}
	for _, a := range all {
		if strings.IndexByte(a, 0) >= 0 {
			return Invalid("command", a, "an argument holds a NUL byte")
		}
	}
	s.Process.Args = all
	return nil
}
