// Package seccomp compiles the seccomp section of an OCI runtime spec into a classic BPF program, without libseccomp and without cgo.
//
//	specs.LinuxSeccomp
//	   |  profile.go   validate; names to numbers for each ABI of this machine; one ordered rule list per number
//	   v
//	rules per (ABI, number)
//	   |  lower.go     argument tests become searches over value ranges
//	   |  enosys.go    numbers newer than the profile become ENOSYS
//	   v
//	graph of shared tests and returns (graph.go)
//	   |  assemble.go  laid out backwards, so that every jump goes forward and every distance is known
//	   v
//	Filter: at most 4096 instructions for seccomp(2), Flags for its second argument
//
// The program loads the architecture once and the number once, then finds the number's range in a binary search. Neighbouring numbers
// with the same answer are one range. This matters twice: the kernel runs a new filter once for every number to learn which calls
// it always allows (that is most of the load time), and every call that is not always allowed runs it again.
//
// # What a profile means
//
// The OCI text leaves the meaning of several rules for one call open. Profiles are written against libseccomp, so its order holds here
// (testdata/libseccomp.jsonl keeps measurements of it, and where libseccomp-dev is installed, the tests ask the library itself, about random profiles;
// differences_test.go has the list of all differences):
//
//   - A rule whose action equals the default action, errno included, is skipped. It neither wins nor loses against another.
//   - A rule without arguments beats all rules with arguments for that call, in either order. Of two without, the first wins.
//     The losing rule is named in Filter.Warnings if its action was another.
//   - The same arguments with two actions are an error.
//   - Of several rules with arguments that match, the one wins that comes first in this order, which looks at the first test of each
//     rule, by argument index, then at the second and so on: a higher argument index first; then EQ, NE and MASKED_EQ before LT and LE before GE
//     and GT; then the larger value (LT, LE: the smaller); then the profile's order. A rule whose tests are the beginning of another's comes before it.
//     Where words have 64 bits, EQ, NE and MASKED_EQ are ordered by their upper words first; if these are equal, then those with the same upper half of the
//     mask (EQ and NE: no mask) stay together, in the place of the first of them, ordered by their lower words.
//   - The tests of a rule all have to hold (AND); rules for one call are alternatives (OR).
//   - Two tests of one argument index in one rule split the rule: each test is a rule of its own (OR, as runc and crun do), and there is a warning.
//   - MASKED_EQ is arg & value == valueTwo & value.
//   - The native architecture is always included. A call of an ABI that is not included kills the process, and so does an x32 number where
//     x32 is not included. Architectures of other machines are ignored with a warning, since no call can come from them.
//   - Names that this machine has in none of its ABIs are ignored with a warning; an unknown architecture, action, operator
//     or flag is an error.
//   - SCMP_ACT_NOTIFY is for those who can pass a listener on (Options.Notify), needs listenerPath, and is not the default.
//
// # Numbers that are newer than the profile
//
// A C library probes for a new call and falls back when it gets ENOSYS, and gives up when it gets EPERM. So, if the default action is
// neither ALLOW, LOG nor TRACE, a number that no rule names and that is higher than the highest number which any rule names in that ABI is
// answered with ENOSYS. Private ranges (x32 from 512, arm from 0xf0000) do not count as highest. This is what runc does, and it includes
// number -1, by which a tracer skips a call. s390's kernel shows filters a number that it does not know as 0.
//
// # 32-bit arguments
//
// The kernel cuts an int argument to 32 bits after the filter ran. A 64-bit comparison is then a hole: socket(AF_VSOCK|1<<32) passes every
// "EQ AF_VSOCK: deny" and "NE AF_VSOCK: allow". Arguments that the kernel declares as int (narrow.go) are therefore compared as their low
// word, against the value of the rule as a number; a value that is a negative number written in 64 bits is cut to 32.
// All arguments of 32-bit ABIs are narrow.
//
// # Multiplexed calls
//
// Where an ABI has socketcall(2) and ipc(2), a rule for socket or semop must reach them too, or a deny rule is no rule. A rule without
// arguments is copied to the multiplexer's call number. A rule with arguments cannot see through the pointer: it is copied without them if its
// action is at most as permissive as the default action, and not copied otherwise. A rule for socketcall itself without arguments beats the copies.
package seccomp
