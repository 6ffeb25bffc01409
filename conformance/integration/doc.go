// Package integration holds the tests that drive the real daemon over its real socket with the kubelet's client
// library: pods that reach each other, daemons that are killed, disks that are full. Each test ends with the leak
// check of conformance/stage. They need root, and the binaries that `make` builds; the host is not touched.
package integration
