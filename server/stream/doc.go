// Package stream is the HTTP server of exec, attach and port-forward. The CRI socket only hands out
// addresses: the client that comes to one is the kubelet, which passes bytes on for
// somebody far away, or crictl.
//
//	kubelet ── Exec{id, cmd} ──► server ── Add ──► tickets: token -> request, one minute
//	        ◄─ http://127.0.0.1:port/exec/<token> ──┘          │
//	                                                           │ once
//	kubelet ══ GET, Upgrade: SPDY/3.1 ══► stream.Server ───────┘
//	              stdin, stdout, stderr, resize, error ══► Runtime (package sandbox)
//
// A token has 128 random bits, is good for one request on its own path, and is never logged. It is all the
// authorization there is; so the server listens on a loopback address, or with TLS.
//
// The protocol on the connection is that of k8s.io/cri-streaming. The rest of that package is not
// used: its tokens have 48 bits, and it does not notice when a client is gone. Here each
// connection knows, by its own reads, by keep-alives, and where nobody reads it because a container does
// not want what it carries, by looking now and then. What runs for a client that has gone then ends.
package stream
