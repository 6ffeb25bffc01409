package seccomp

import (
	"encoding/binary"
	"slices"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Cache keeps the filters that were compiled last. Nearly all containers of a node have one of two or three profiles. Safe for use by several
// goroutines at once.
//
// The key is the profile itself in a compact encoding and not a digest of it: 10 KB for a default profile, a handful of entries,
// and no collision to think about where the wrong answer is another container's filter.
type Cache struct {
	size int

	mu      sync.Mutex
	entries []cacheEntry // the last used first
}

type cacheEntry struct {
	key    string
	filter *Filter
}

// NewCache makes a cache of at most size filters; size is at least 1.
func NewCache(size int) *Cache { return &Cache{size: max(size, 1)} }

// Compile is CompileWith for a loader that passes on no listener.
func (c *Cache) Compile(p *specs.LinuxSeccomp) (*Filter, error) { return c.CompileWith(p, Options{}) }

// CompileWith is like the function of that name, and remembers. Filters are shared between callers. Errors are not remembered.
func (c *Cache) CompileWith(p *specs.LinuxSeccomp, o Options) (*Filter, error) {
	room := keys.Get().(*[]byte)
	key := AppendProfile((*room)[:0], p, o)
	defer func() { *room = key; keys.Put(room) }()
	if f := c.find(key); f != nil {
		return f, nil
	}
	f, err := CompileWith(p, o)
	if err != nil {
		return nil, err
	}
	if other := c.find(key); other != nil {
		return other, nil // somebody else was faster
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= c.size {
		c.entries = c.entries[:c.size-1]
	}
	c.entries = slices.Insert(c.entries, 0, cacheEntry{string(key), f})
	return f, nil
}

// find looks up a key and moves it to the front.
func (c *Cache) find(key []byte) *Filter {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, e := range c.entries {
		if e.key == string(key) {
			copy(c.entries[1:i+1], c.entries[:i])
			c.entries[0] = e
			return e.filter
		}
	}
	return nil
}

// keys are buffers for a key that is looked for.
var keys = sync.Pool{New: func() any { return new([]byte) }}

// AppendProfile appends everything that Compile looks at to b. Lengths stand before strings and lists, so that no two profiles look the same; one may begin with another.
func AppendProfile(b []byte, p *specs.LinuxSeccomp, o Options) []byte {
	str := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	num := func(n uint64) { b = binary.AppendUvarint(b, n) }
	opt := func(n *uint) {
		if n == nil {
			num(0)
		} else {
			num(1)
			num(uint64(*n))
		}
	}
	num(map[bool]uint64{true: 1}[o.Notify])
	str(string(p.DefaultAction))
	opt(p.DefaultErrnoRet)
	str(p.ListenerPath)
	str(p.ListenerMetadata)
	num(uint64(len(p.Architectures)))
	for _, a := range p.Architectures {
		str(string(a))
	}
	if p.Flags == nil {
		num(0)
	} else {
		num(uint64(len(p.Flags)) + 1)
	}
	for _, f := range p.Flags {
		str(string(f))
	}
	for _, s := range p.Syscalls {
		num(uint64(len(s.Names)))
		for _, n := range s.Names {
			str(n)
		}
		str(string(s.Action))
		opt(s.ErrnoRet)
		num(uint64(len(s.Args)))
		for _, a := range s.Args {
			num(uint64(a.Index))
			num(a.Value)
			num(a.ValueTwo)
			str(string(a.Op))
		}
	}
	return b
}
