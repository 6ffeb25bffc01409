package seccomp

import (
	"math"
	"slices"
)

// Offsets in seccomp_data (linux/seccomp.h). Arguments are 64 bits each, in the machine's byte order.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
	dataSize  = 64
)

// maxNodes bounds the work for profiles that can only be too long.
const maxNodes = 1 << 16

// lowerer turns the rules of one number into nodes.
type lowerer struct {
	*graph
	narrow    uint8 // the arguments of which only the low word is looked at
	bigEndian bool
}

func (l lowerer) offLow(arg int) uint32 {
	if l.bigEndian {
		return uint32(offArgs + 8*arg + 4)
	}
	return uint32(offArgs + 8*arg)
}

func (l lowerer) offHigh(arg int) uint32 { return l.offLow(arg) ^ 4 }

// lower gives the node that decides a call: the first rule that matches, or else deflt.
func (l lowerer) lower(s *ruleSet, deflt *node) *node {
	if s.settled {
		return l.ret(s.always)
	}
	if len(s.rules) == 0 {
		return deflt
	}
	next := deflt
	for j := len(s.rules); j > 0 && len(l.nodes) < maxNodes; {
		i := j - 1
		if !s.rules[i].plain() {
			next = l.all(s.rules[i].tests, l.ret(s.rules[i].action), next)
			j = i
			continue
		}
		for i > 0 && s.rules[i-1].plain() && s.rules[i-1].tests[0].arg == s.rules[i].tests[0].arg {
			i--
		}
		next = l.ranges(s.rules[i:j], next)
		j = i
	}
	return next
}

// plain rules test one argument for being in a range, so that neighbouring plain rules of one argument can be one search.
func (r rule) plain() bool { return len(r.tests) == 1 && r.tests[0].op != opMaskedEQ }

// all tests one after the other.
func (l lowerer) all(tests []test, yes, no *node) *node {
	for _, t := range slices.Backward(tests) {
		if t.op == opMaskedEQ {
			yes = l.masked(t, yes, no)
		} else {
			yes = l.span64(t.arg, no, []piece{{t, yes}})
		}
	}
	return yes
}

// ranges makes one search of plain rules of one argument.
func (l lowerer) ranges(rules []rule, no *node) *node {
	pieces := make([]piece, len(rules))
	for i, r := range rules {
		pieces[i] = piece{r.tests[0], l.ret(r.action)}
	}
	return l.span64(rules[0].tests[0].arg, no, pieces)
}

// piece is a test and where it leads.
type piece struct {
	test test
	to   *node
}

// edge says that argument values from here up to the next edge lead to a node.
type edge struct {
	from uint64
	to   *node
}

// span64 makes the search over an argument in which the first piece that matches decides, and otherwise base.
func (l lowerer) span64(arg int, base *node, pieces []piece) *node {
	limit := uint64(math.MaxUint64)
	narrow := l.narrow&(1<<arg) != 0
	if narrow {
		limit = math.MaxUint32
	}
	starts := []uint64{0}
	for i := range pieces {
		t := &pieces[i].test
		if narrow {
			t.value = shorten(t.value)
		}
		// The answer can change at the value and behind it, nowhere else.
		if t.value <= limit {
			starts = append(starts, t.value)
		}
		if t.value < limit {
			starts = append(starts, t.value+1)
		}
	}
	slices.Sort(starts)
	var edges []edge
	for _, from := range slices.Compact(starts) {
		to := base
		if i := slices.IndexFunc(pieces, func(p piece) bool { return p.test.holds(from) }); i >= 0 {
			to = pieces[i].to
		}
		edges = append(edges, edge{from, to})
	}
	edges = slices.CompactFunc(edges, func(a, b edge) bool { return a.to == b.to })
	if narrow {
		return l.load(l.offLow(arg), l.words(edges))
	}
	return l.load(l.offHigh(arg), l.high(arg, edges))
}

// words searches edges that differ in their low words only.
func (l lowerer) words(edges []edge) *node {
	spans := make([]span, len(edges))
	for i, e := range edges {
		spans[i] = span{uint32(e.from), e.to}
	}
	spans[0].from = 0
	return l.search(spans)
}

// high searches the upper word; where the answer changes within one of its values, the low word is searched in turn.
func (l lowerer) high(arg int, edges []edge) *node {
	var spans []span
	for i := 0; i < len(edges); {
		h := edges[i].from >> 32
		j := i
		for j < len(edges) && edges[j].from>>32 == h {
			j++
		}
		inner := edges[i:j]
		if uint32(inner[0].from) != 0 {
			inner = slices.Insert(slices.Clone(inner), 0, edge{h << 32, edges[i-1].to})
		}
		spans = append(spans, span{uint32(h), l.load(l.offLow(arg), l.words(inner))})
		last := edges[j-1]
		if len(inner) > 1 && h < math.MaxUint32 && (j == len(edges) || edges[j].from>>32 > h+1) {
			spans = append(spans, span{uint32(h) + 1, last.to})
		}
		i = j
	}
	return l.search(spans)
}

// holds says whether a plain test holds for a value of its argument.
func (t test) holds(v uint64) bool {
	switch t.op {
	case opEQ:
		return v == t.value
	case opNE:
		return v != t.value
	case opLT:
		return v < t.value
	case opLE:
		return v <= t.value
	case opGE:
		return v >= t.value
	default:
		return v > t.value
	}
}

// shorten cuts a negative int that was written in 64 bits. Any other value keeps its size, and is then one that no 32-bit argument has.
func shorten(v uint64) uint64 {
	if v >= 0xffffffff80000000 {
		return v & math.MaxUint32
	}
	return v
}

// masked tests arg & mask == value, word by word.
func (l lowerer) masked(t test, yes, no *node) *node {
	if l.narrow&(1<<t.arg) != 0 {
		t.value = shorten(t.value)
		if t.value > math.MaxUint32 {
			return no
		}
		t.mask &= math.MaxUint32
	}
	yes = l.maskedWord(l.offLow(t.arg), uint32(t.mask), uint32(t.value), yes, no)
	return l.maskedWord(l.offHigh(t.arg), uint32(t.mask>>32), uint32(t.value>>32), yes, no)
}

func (l lowerer) maskedWord(offset, mask, value uint32, yes, no *node) *node {
	var n *node
	switch {
	case mask == 0:
		return yes
	case value == 0:
		n = l.make(node{code: codeSet, k: mask, yes: no, no: yes})
	case mask == math.MaxUint32:
		n = l.make(node{code: codeEqual, k: value, yes: yes, no: no})
	case mask == value && mask&(mask-1) == 0:
		n = l.make(node{code: codeSet, k: mask, yes: yes, no: no})
	default:
		n = l.make(node{code: codeEqual, k: value, yes: yes, no: no})
		if yes != no {
			n = l.make(node{code: codeAnd, k: mask, yes: n})
		}
	}
	return l.load(offset, n)
}
