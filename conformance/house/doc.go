// Package house holds the rules that the source tree itself must keep, as tests: which package may import which
// (the floors), how much the small binary may weigh, how long a function may be, that every exported name has its
// comment and every direct module its reason, that nothing was left open in the code, and that nothing built lies in it.
//
//	5  cmd/vitrine                                     cmd/vitrine-oci
//	4  server                                              |
//	3  sandbox  sandbox/spec                               |
//	2  oci (the daemon's handle on a monitor)          oci/monitor  oci/source
//	1  oci/program oci/executor oci/wire oci/crilog oci/seccomp oci/cgroup   image  cni
//	0  internal/sys  internal/atomicfile  internal/step
//
// Each rule is a function from what it looks at (a list of packages, a parsed file) to complaints, so that the
// tests can show it a bad example and see it complain before they apply it to the tree. The limits themselves are
// in conformance/BUDGET.md.
package house
