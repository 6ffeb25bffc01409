package cgroup

import "math"

// The parsers here read what the kernel writes: lines of keys and decimal numbers.
// They allocate nothing, since they run for every container of a node every few
// seconds, and believe nothing: whatever does not look as expected is unknown.

// digits reads a decimal number at the beginning of b. ok is false if there is
// none or if it does not fit.
func digits(b []byte) (n uint64, rest []byte, ok bool) {
	i := 0
	for ; i < len(b) && b[i] >= '0' && b[i] <= '9'; i++ {
		d := uint64(b[i] - '0')
		if n > (math.MaxUint64-d)/10 {
			return 0, b, false
		}
		n = n*10 + d
	}
	return n, b[i:], i > 0
}

// nanoseconds turns microseconds into them; unknown where that does not fit.
func (n Number) nanoseconds() Number {
	if !n.Known || n.Value > math.MaxUint64/1000 {
		return Number{}
	}
	return Number{n.Value * 1000, true}
}

// parseNumber reads a file of one number. "max" is none.
func parseNumber(b []byte) Number {
	n, rest, ok := digits(b)
	if !ok || len(rest) > 1 || len(rest) == 1 && rest[0] != '\n' {
		return Number{}
	}
	return Number{n, true}
}

// cutLine returns the first line without its end, and what follows it. A last line
// without an end was cut off by the reader, who may have lost its last digits: it
// is dropped.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	for i, c := range b {
		if c == '\n' {
			return b[:i], b[i+1:], true
		}
	}
	return nil, nil, false
}

// keyValue splits a line "key number".
func keyValue(line []byte) (key []byte, n Number) {
	for i, c := range line {
		if c != ' ' {
			continue
		}
		v, rest, ok := digits(line[i+1:])
		if !ok || len(rest) != 0 {
			return nil, Number{}
		}
		return line[:i], Number{v, true}
	}
	return nil, Number{}
}

// parseKey returns the number behind one key.
func parseKey(b []byte, key string) Number {
	for {
		line, rest, ok := cutLine(b)
		if !ok {
			return Number{}
		}
		if k, n := keyValue(line); string(k) == key {
			return n
		}
		b = rest
	}
}

func parseCPUStat(s *Stats, b []byte) {
	for {
		line, rest, ok := cutLine(b)
		if !ok {
			return
		}
		b = rest
		key, n := keyValue(line)
		switch string(key) {
		case "usage_usec":
			s.CPUUsage = n.nanoseconds()
		case "user_usec":
			s.CPUUser = n.nanoseconds()
		case "system_usec":
			s.CPUSystem = n.nanoseconds()
		case "nr_periods":
			s.Periods = n
		case "nr_throttled":
			s.Throttled = n
		case "throttled_usec":
			s.ThrottledTime = n.nanoseconds()
		}
	}
}

// parseMemoryStat stops where it has all that it looks for, in whatever order: some
// sixty lines are nobody's.
func parseMemoryStat(s *Stats, b []byte) {
	for found := 0; found < 7; {
		line, rest, ok := cutLine(b)
		if !ok {
			return
		}
		b = rest
		key, n := keyValue(line)
		if to := s.ofMemory(key); to != nil {
			*to = n
			found++
		}
	}
}

// ofMemory returns where the number behind a key of memory.stat goes.
func (s *Stats) ofMemory(key []byte) *Number {
	switch string(key) {
	case "anon":
		return &s.Anonymous
	case "file":
		return &s.Cached
	case "kernel":
		return &s.Kernel
	case "file_mapped":
		return &s.Mapped
	case "inactive_file":
		return &s.InactiveFile
	case "pgfault":
		return &s.PageFaults
	case "pgmajfault":
		return &s.MajorPageFaults
	}
	return nil
}

// parsePressure reads a pressure file. Kernels before 5.13 had no line "full" for
// the CPU.
func parsePressure(b []byte) Pressure {
	var p Pressure
	for {
		line, rest, ok := cutLine(b)
		if !ok {
			return p
		}
		b = rest
		if l, ok := pressureLine(line, "some "); ok {
			p.Some, p.Known = l, true
		} else if l, ok := pressureLine(line, "full "); ok {
			p.Full = l
		}
	}
}

func pressureLine(b []byte, word string) (l PressureLine, ok bool) {
	if b, ok = after(b, word); !ok {
		return l, false
	}
	for _, f := range []struct {
		key string
		to  *float64
	}{{"avg10=", &l.Avg10}, {" avg60=", &l.Avg60}, {" avg300=", &l.Avg300}} {
		if b, ok = after(b, f.key); !ok {
			return l, false
		}
		if *f.to, b, ok = hundredths(b); !ok {
			return l, false
		}
	}
	if b, ok = after(b, " total="); !ok {
		return l, false
	}
	n, rest, ok := digits(b)
	ns := Number{n, ok}.nanoseconds()
	l.Total = ns.Value
	return l, ns.Known && len(rest) == 0
}

// after returns what follows the prefix of b.
func after(b []byte, prefix string) ([]byte, bool) {
	if len(b) < len(prefix) || string(b[:len(prefix)]) != prefix {
		return b, false
	}
	return b[len(prefix):], true
}

// hundredths reads a number with two decimals, the form of all averages.
func hundredths(b []byte) (v float64, rest []byte, ok bool) {
	whole, rest, ok := digits(b)
	if !ok || len(rest) == 0 || rest[0] != '.' {
		return 0, rest, false
	}
	part, after, ok := digits(rest[1:])
	if !ok || len(rest)-1-len(after) != 2 || whole > 1000 {
		return 0, rest, false
	}
	return float64(whole*100+part) / 100, after, true
}
