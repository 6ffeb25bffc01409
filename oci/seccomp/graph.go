package seccomp

import "slices"

// The instructions of classic BPF that a filter is made of (linux/bpf_common.h).
const (
	codeLoad   = 0x20 // ld [k]
	codeAnd    = 0x54 // and #k
	codeJump   = 0x05 // ja k
	codeEqual  = 0x15 // jeq #k
	codeGreat  = 0x25 // jgt #k
	codeAtLow  = 0x35 // jge #k
	codeSet    = 0x45 // jset #k
	codeReturn = 0x06 // ret #k
)

// node is one instruction whose successors are nodes. Equal nodes are one node (graph.make), so equal parts of a filter, also those of
// different ABIs, exist once. Loads and ands go on to yes only.
//
// A graph has one register, A. What makes sharing safe is that a node does to A's value whatever it does, regardless of what was
// loaded; what makes joining safe is that every branch target outside of one search begins with a load or a return.
type node struct {
	code    uint16
	k       uint32
	yes, no *node
}

// graph makes nodes.
type graph struct {
	nodes   map[node]*node
	returns []*node // those of nodes that are returns: a few, which are asked for a thousand times
}

func (g *graph) make(n node) *node {
	if n.yes != nil && n.yes == n.no {
		return n.yes
	}
	if old := g.nodes[n]; old != nil {
		return old
	}
	if g.nodes == nil {
		g.nodes = make(map[node]*node, 512)
	}
	kept := new(node) // not n itself, which would then be on the heap also where nothing is kept
	*kept = n
	g.nodes[n] = kept
	return kept
}

func (g *graph) ret(a Action) *node {
	for _, n := range g.returns {
		if n.k == uint32(a) {
			return n
		}
	}
	n := g.make(node{code: codeReturn, k: uint32(a)})
	g.returns = append(g.returns, n)
	return n
}

// load reads a word of seccomp_data, unless what follows does not look at it.
func (g *graph) load(offset uint32, next *node) *node {
	if next.code == codeReturn || next.code == codeLoad {
		return next
	}
	return g.make(node{code: codeLoad, k: offset, yes: next})
}

// span says that values from one number up to the next span's lead to a node.
type span struct {
	from uint32
	to   *node
}

// search makes the tests that bring A to the span it lies in. The first span begins at 0.
func (g *graph) search(spans []span) *node {
	s := search{spans: merge(spans)}
	if n := len(s.spans); n <= maxPriced {
		s.costs = make([]uint16, n*(n+1))
	}
	return s.branch(g, 0, len(s.spans))
}

// maxPriced bounds the spans of a search for which the cheapest tree is looked for. A profile's numbers make about 150.
const maxPriced = 256

// search is one search in the making.
type search struct {
	spans []span
	costs []uint16 // of branch(i, j), at i*(n+1)+j; 0: not known yet. nil: nobody asks
}

// merge joins neighbours with the same target, in place.
func merge(spans []span) []span {
	return slices.CompactFunc(spans, func(a, b span) bool { return a.to == b.to })
}

// maxHoles is how many single numbers are asked for one by one before the search is split. More would save an instruction each, and lengthen paths.
const maxHoles = 2

// branch searches spans[i:j].
func (s *search) branch(g *graph, i, j int) *node {
	if j-i == 1 {
		return s.spans[i].to
	}
	if f, ok := s.singles(i, j); ok {
		n := f.rest
		for _, h := range slices.Backward(f.holes[:f.count]) {
			n = g.make(node{code: codeEqual, k: h.from, yes: h.to, no: n})
		}
		return n
	}
	_, m := s.split(i, j)
	return g.make(node{code: codeAtLow, k: s.spans[m].from, yes: s.branch(g, m, j), no: s.branch(g, i, m)})
}

// few is one target for all of some spans, but for a few single numbers.
type few struct {
	rest  *node
	holes [maxHoles]span
	count int
}

// singles finds out whether spans[i:j] are such.
func (s *search) singles(i, j int) (few, bool) {
	spans := s.spans
	if j-i > 2*maxHoles+1 {
		return few{}, false
	}
	for _, background := range spans[i:min(j, i+2)] {
		f := few{rest: background.to}
		for k := i; k < j; k++ {
			if spans[k].to == f.rest {
				continue
			}
			if k+1 == len(spans) || spans[k+1].from != spans[k].from+1 || f.count == maxHoles {
				f.count = -1
				break
			}
			f.holes[f.count] = spans[k]
			f.count++
		}
		if f.count >= 0 {
			return f, true
		}
	}
	return few{}, false
}

// split says where to divide spans[i:j] and how many instructions that makes. It tries the places around the middle, which keeps paths short.
func (s *search) split(i, j int) (cost, at int) {
	middle := (i + j) / 2
	if s.costs == nil {
		return 0, middle
	}
	cost = -1
	for m := max(i+1, middle-2); m <= min(j-1, middle+2); m++ {
		if c := 1 + s.price(i, m) + s.price(m, j); cost < 0 || c < cost {
			cost, at = c, m
		}
	}
	return cost, at
}

// price counts the instructions of branch(i, j).
func (s *search) price(i, j int) int {
	if j-i == 1 {
		return 0
	}
	known := &s.costs[i*(len(s.spans)+1)+j]
	if *known == 0 {
		if f, ok := s.singles(i, j); ok {
			*known = uint16(f.count)
		} else {
			c, _ := s.split(i, j)
			*known = uint16(c)
		}
	}
	return int(*known)
}
