package bundle

import (
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// Hooks of the runtime's namespaces are to run where the caller is, not in the namespace that we
// have entered (Enter): there is no way back for a process. So who waits outside is asked, over a
// socket that has one message for each hook and one for its end.

// asking is the number of that socket inside, and maxMessage what fits one message at least.
const (
	asking     = step.FirstFD
	maxMessage = 200 << 10
)

// errand is a hook to be run outside.
type errand struct {
	Bundle string     `json:"bundle"`
	State  string     `json:"state"`
	Hook   specs.Hook `json:"hook"`
}

// askOutside has a hook run outside.
func askOutside(e errand) error {
	b, err := specjson.Marshal(e)
	if err == nil && len(b) > maxMessage {
		err = fmt.Errorf("%d bytes of hook and state: %w", len(b), unix.EMSGSIZE)
	}
	if err != nil {
		return err
	}
	if _, err := sys.SendMessage(asking, b, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("ask for it outside: %w", err)
	}
	answer := make([]byte, maxHookOutput+1024)
	n, _, _, err := sys.ReceiveMessage(asking, answer, nil, 0)
	switch {
	case err != nil || n == 0: // who waits has been killed
		return fmt.Errorf("wait for it outside: %w", errors.Join(unix.EPIPE, err))
	case n > 1:
		return errors.New(string(answer[1:n]))
	}
	return nil
}

// answer runs the hook that is asked for, if there is one, and says whether more may come.
func answer(to *sys.FD) bool {
	b := make([]byte, maxMessage)
	n, _, _, err := sys.ReceiveMessage(to.Int(), b, nil, unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EAGAIN) {
		return true
	}
	if err != nil || n == 0 {
		return false
	}
	var e errand
	if err = specjson.Unmarshal(b[:n], &e); err == nil {
		err = runHook(&e.Hook, []byte(e.State), hostHookOf(e.Bundle))
	}
	said := []byte{0}
	if err != nil {
		said = append(said, err.Error()...)
	}
	_, err = sys.SendMessage(to.Int(), said[:min(len(said), maxHookOutput+1024)], nil, unix.MSG_NOSIGNAL)
	return err == nil
}

// ofTerminal are the signals that a terminal sends to everybody in front of it, and so to both of us.
var ofTerminal = []unix.Signal{unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGHUP, unix.SIGCONT, unix.SIGTTIN, unix.SIGTTOU, unix.SIGWINCH}

// passedOn says whether who waits outside passes a signal on to who is inside and in the same process group.
func passedOn(s unix.Signal) bool {
	if !slices.Contains(ofTerminal, s) {
		return true
	}
	for fd := range 3 {
		if group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err == nil {
			return group != unix.Getpgrp()
		}
	}
	return true
}
