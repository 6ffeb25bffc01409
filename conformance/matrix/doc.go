// Package matrix makes bad requests out of good ones: it walks the descriptor of a CRI request and changes one leaf at a
// time. Beside it stands the reviewed list of what a runtime may accept all the same, with a reason each. The tests of server send
// the matrix to a server with a fake behind it, those of conformance/integration to the real daemon.
package matrix
