//go:build race

package oci

// The race detector brings a C library, which registers an rseq area with the
// kernel in memory that the executor hides from its children; the kernel would
// kill them for it. The binaries that we ship have no C library.
func init() { monitorEnv = append(monitorEnv, "GLIBC_TUNABLES=glibc.pthread.rseq=0") }
