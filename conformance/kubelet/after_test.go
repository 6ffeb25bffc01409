package main

import "testing"

// A daemon that is not there is a reason for a complaint, and what a daemon that is there cannot do is none.
func TestReason(t *testing.T) {
	const log = `E1130 12:00:00.123456    1234 remote_runtime.go:633] "ContainerStatus from runtime service failed" err="rpc error: code = `
	for _, tt := range []struct{ text, why string }{
		{`Unavailable desc = connection error: desc = \"transport: Error while dialing: dial unix /run/vitrine/vitrine.sock: connect: connection refused\""`, "a service is restarting"},
		{`Unavailable desc = connection error: desc = \"transport: Error while dialing: dial unix /run/vitrine/vitrine.sock: connect: no such file or directory\""`, "a service is restarting"},
		{`Unavailable desc = connection error: desc = \\\"transport: Error while dialing: dial unix /run/vitrine/vitrine.sock: connect: connection refused\\\"\""`, "a service is restarting"},
		{`Unavailable desc = last connection error: connection error: desc = \"transport: Error while dialing: dial unix: connection refused\""`, "a service is restarting"},
		{`Unavailable desc = error reading from server: EOF"`, "a service is restarting"},
		{`Unavailable desc = connection error: desc = \"error reading from server: read unix @->/run/vitrine/vitrine.sock: read: connection reset by peer\""`, "a service is restarting"},
		{`Unavailable desc = closing transport due to: connection error: desc = \"error reading from server: EOF\", received prior goaway: code: NO_ERROR, debug data: \"graceful_stop\""`, "a service is restarting"},
		{`Unavailable desc = connection error: desc = \"received goaway and there are no active streams\""`, "a service is restarting"},
		{`Unavailable desc = transport is closing"`, "a service is restarting"},
		{`Unavailable desc = the connection is draining"`, "a service is restarting"},
		{`Unavailable desc = create container c: the daemon is stopping: unavailable"`, "a service is restarting"},
		{`Unavailable desc = events: the daemon is ending"`, "a service is restarting"},
		{`Canceled desc = context canceled"`, "a service is restarting"},
		{`Unavailable desc = measure /var/lib/vitrine: disk usage not known: the first measuring goes on"`, "a daemon that just started has not measured the disk"},

		{`Unavailable desc = create container c: unavailable: start unit vitrine-0.scope: systemd does not answer: context deadline exceeded"`, ""},
		{`Unavailable desc = create container c: unavailable: start unit vitrine-0.scope: systemd does not answer: dial unix /run/systemd/private: connect: connection refused"`, ""},
		{`Unavailable desc = container c: the monitor does not answer: unavailable: dial unix: connect: connection refused"`, ""},
		{`Unavailable desc = measure /var/lib/vitrine: disk usage not known: read /var/lib/vitrine: input/output error"`, ""},
		{`Unavailable desc = RegistryUnavailable: registry unavailable: error reading from server: EOF"`, ""},
		{`Unavailable desc = run pod p: unavailable: plugin: it does not answer within 10s"`, ""},
		{`Unknown desc = transport is closing"`, ""},
		{`Internal desc = error reading from server: EOF"`, ""},
	} {
		if why := reason(log + tt.text); why != tt.why {
			t.Errorf("%s: %q, want %q", tt.text, why, tt.why)
		}
	}
}
