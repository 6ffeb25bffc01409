package main

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// notifier tells the service manager about this process (sd_notify(3)). The zero
// value tells nobody.
type notifier struct{ addr string }

// newNotifier reads NOTIFY_SOCKET and takes it out of the environment: the plugins
// that the daemon runs must not speak for it.
func newNotifier() notifier {
	addr := os.Getenv("NOTIFY_SOCKET")
	_ = os.Unsetenv("NOTIFY_SOCKET")
	return notifier{addr}
}

// send sends one state, such as READY=1. A leading @ is an abstract socket, to net
// as to systemd.
func (n notifier) send(state string) error {
	if n.addr == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.addr, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	_, err = c.Write([]byte(state))
	if err = errors.Join(err, c.Close()); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}
