package seccomp

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Filter is a compiled profile. It is not changed after Compile, and may be shared.
type Filter struct {
	Insns    []Insn    // at most MaxLen
	Flags    uint64    // for the second argument of seccomp(2)
	Listener *Listener // who is to get what seccomp(2) returns; nil: Flags do not ask for a listener
	Warnings []string  // what of the profile has no effect, each once, for people
}

// Listener says where the descriptor goes that seccomp(2) returns for a filter which notifies.
type Listener struct {
	Path     string // of a unix socket, as the profile has it
	Metadata string // for the message beside it; may be empty
}

// Options say what those who load a filter are able to do beyond loading it. The zero value is the least.
type Options struct {
	// Notify: the descriptor of Filter.Listener will be passed on. Profiles with SCMP_ACT_NOTIFY are refused with ErrNotify otherwise.
	Notify bool
}

// Compile is CompileWith for a loader that passes on no listener.
func Compile(p *specs.LinuxSeccomp) (*Filter, error) { return CompileWith(p, Options{}) }

// CompileWith translates a profile for the machine that it runs on. See the package comment for what a profile means. Errors name the
// member of the profile; ErrNotify and ErrTooLong can be asked for. The profile is not changed and not kept.
func CompileWith(p *specs.LinuxSeccomp, o Options) (*Filter, error) { return host().compile(p, o) }

// compile translates a profile for one machine.
func (m *machine) compile(p *specs.LinuxSeccomp, o Options) (*Filter, error) {
	var w warnings
	g, err := m.resolve(p, o, &w)
	if err != nil {
		return nil, err
	}
	var nodes graph
	root := g.graph(&nodes)
	if len(nodes.nodes) >= maxNodes {
		return nil, ErrTooLong
	}
	f := &Filter{}
	if f.Insns, err = assemble(root); err != nil {
		return nil, err
	}
	if slices.Contains(f.Insns, Insn{Code: codeReturn, K: uint32(Notify)}) {
		f.Listener = &Listener{Path: p.ListenerPath, Metadata: p.ListenerMetadata}
	} else if p.ListenerPath != "" {
		w.add("listenerPath has no effect: no call leads to SCMP_ACT_NOTIFY")
	}
	if f.Flags, err = resolveFlags(p, f.Listener != nil, &w); err != nil {
		return nil, err
	}
	f.Warnings = w.list
	return f, nil
}

// Bytes is the program as seccomp(2) reads it: 8 bytes for each instruction, in the machine's byte order.
func (f *Filter) Bytes() []byte {
	b := make([]byte, 0, 8*len(f.Insns))
	for _, i := range f.Insns {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}

// String names the size, for logs.
func (f *Filter) String() string {
	return fmt.Sprintf("seccomp filter of %d instructions", len(f.Insns))
}

// badArch is the answer to calls of ABIs that are not included. libseccomp kills the thread only, which leaves the rest of a process in a
// state that nobody wrote.
const badArch = KillProcess

// graph makes the whole filter: first by architecture, then by number.
func (g *program) graph(nodes *graph) *node {
	root := nodes.ret(badArch)
	var done []uint32
	for i, a := range slices.Backward(g.abis) {
		if !g.in[i] || slices.Contains(done, a.token) {
			continue
		}
		done = append(done, a.token)
		numbers := nodes.load(offNumber, nodes.search(g.spans(nodes, a.token)))
		root = nodes.make(node{code: codeEqual, k: a.token, yes: numbers, no: root})
	}
	return nodes.load(offArch, root)
}

// spans covers all numbers that can come with one audit architecture.
func (g *program) spans(nodes *graph, token uint32) []span {
	var spans []span
	for i, a := range g.abis {
		if a.token != token || a.base != 0 {
			continue
		}
		spans = g.fill(make([]span, 0, 1024), nodes, i)
	}
	for i, a := range g.abis {
		if a.token != token || a.base == 0 {
			continue
		}
		// This ABI's numbers are the upper part of the other's. -1 is no number, but a tracer's way to skip a call.
		last := spans[len(spans)-1].to
		spans = slices.DeleteFunc(spans, func(s span) bool { return s.from >= a.base })
		if g.in[i] {
			spans = g.fill(spans, nodes, i)
		} else {
			spans = append(spans, span{a.base, nodes.ret(badArch)}, span{math.MaxUint32, last})
		}
	}
	return spans
}

// fill appends the spans of one ABI.
func (g *program) fill(spans []span, nodes *graph, i int) []span {
	a := g.abis[i]
	deflt := nodes.ret(g.deflt)
	unknown := deflt
	if !g.deflt.lenient() && g.top[i] >= 0 {
		unknown = nodes.ret(Errno | enosys)
	}
	put := func(from uint32, to *node) {
		if last := len(spans) - 1; last >= 0 && spans[last].from == from {
			spans[last].to = to
			return
		}
		spans = append(spans, span{from, to})
	}
	put(a.base, deflt)
	if a.zeroUnknown {
		put(0, unknown)
		put(1, deflt)
	}
	other := func(n uint32) *node {
		if int(n-a.base) <= g.top[i] {
			return deflt
		}
		return unknown
	}
	for n, set := range g.rules[i].all {
		rest := deflt
		if !set.named {
			rest = other(n)
		}
		put(n, lowerer{graph: nodes, narrow: set.narrow, bigEndian: g.bigEndian}.lower(set, rest))
		put(n+1, other(n+1))
	}
	return spans
}
