package seccomp

import (
	"math"
	"slices"
)

// ruleSets are what a profile says about the numbers of one ABI. Numbers lie close together but for a few private ones.
type ruleSets struct {
	first uint32
	near  [nearNumbers]*ruleSet
	far   map[uint32]*ruleSet
}

const nearNumbers = 512

// get finds a number's rules, or nil.
func (s *ruleSets) get(n uint32) *ruleSet {
	if i := n - s.first; i < nearNumbers {
		return s.near[i]
	}
	return s.far[n]
}

// put enters a number that is not there.
func (s *ruleSets) put(n uint32, set *ruleSet) {
	if i := n - s.first; i < nearNumbers {
		s.near[i] = set
		return
	}
	if s.far == nil {
		s.far = map[uint32]*ruleSet{}
	}
	s.far[n] = set
}

// all goes through the numbers from the lowest to the highest.
func (s *ruleSets) all(yield func(uint32, *ruleSet) bool) {
	for i, set := range s.near {
		if set != nil && !yield(s.first+uint32(i), set) {
			return
		}
	}
	if len(s.far) == 0 {
		return
	}
	far := make([]uint64, 0, len(s.far)) // as others are: an instance of a sorting function is 5 KB
	for n := range s.far {
		far = append(far, uint64(n))
	}
	slices.Sort(far)
	for _, n64 := range far {
		n := uint32(n64)
		if !yield(n, s.far[n]) {
			return
		}
	}
}

// newRuleSets makes empty ones.
func (m *machine) newRuleSets() []ruleSets {
	sets := make([]ruleSets, len(m.abis))
	for i, a := range m.abis {
		lowest := math.MaxInt
		for _, c := range m.calls {
			if c.numbers[i] >= 0 {
				lowest = min(lowest, c.numbers[i])
			}
		}
		sets[i].first = a.base + uint32(lowest)
	}
	return sets
}

// set finds or makes the rules of one number. Numbers have one name, so the name says which arguments are narrow.
func (g *program) set(i int, n uint32, name string) *ruleSet {
	n += g.abis[i].base
	if s := g.rules[i].get(n); s != nil {
		return s
	}
	if len(g.spare) == 0 {
		g.spare = make([]ruleSet, 256)
	}
	s := &g.spare[0]
	g.spare = g.spare[1:]
	s.narrow = g.narrow[name]
	if g.abis[i].narrow {
		s.narrow = 1<<6 - 1
	}
	g.rules[i].put(n, s)
	return s
}
