// Command vitrine-oci is the small one of the two binaries: the monitor behind
// each pod, and the looking glass for programs.
//
//	vitrine-oci monitor                   started by the daemon, never by people
//	vitrine-oci explain --program FILE    print what a container was made with
//	vitrine-oci explain --bundle DIR      compile DIR/config.json and print that
//	vitrine-oci version
//
// The verbs of the OCI runtime command line are known and answered "not yet".
package main

import (
	"io"
	"os"
	"slices"

	"github.com/vitrine-runtime/vitrine/oci/monitor"
)

// version is set by the linker (-X main.version=...).
var version = "devel"

// notYet are the other verbs of an OCI runtime. A caller that needs one must
// hear that it is missing, and not that it was misspelt.
var notYet = []string{
	"create", "start", "state", "kill", "delete", "run", "exec", "list", "ps", "update",
	"pause", "resume", "events", "spec", "features", "checkpoint", "restore",
}

const usage = `usage: vitrine-oci VERB
  explain --program FILE   print an encoded program, one system call a line
  explain --bundle DIR     compile DIR/config.json and print the program
  version                  print the version
  monitor                  run as the monitor of a pod (started by vitrine)
`

// say writes for people; there is nobody to tell that it could not.
func say(w io.Writer, text string) { _, _ = io.WriteString(w, text) }

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes the command line and returns the exit code: 0, 1 for a failure,
// 2 for a command line that makes no sense.
func run(args []string, out, errs io.Writer) int {
	if len(args) == 0 {
		say(errs, usage)
		return 2
	}
	switch verb := args[0]; {
	case verb == "monitor" && len(args) == 1:
		return monitor.Main()
	case verb == "explain":
		return explain(args[1:], out, errs)
	case verb == "version" || verb == "--version" || verb == "-v":
		say(out, "vitrine-oci "+version+"\n")
		return 0
	case verb == "help" || verb == "--help" || verb == "-h":
		say(out, usage)
		return 0
	case slices.Contains(notYet, verb):
		say(errs, "vitrine-oci: "+verb+": not yet\n")
		return 1
	}
	say(errs, usage)
	return 2
}
