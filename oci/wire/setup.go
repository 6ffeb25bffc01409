package wire

import "fmt"

// Setup is what a monitor is told when it is started: the one message that
// comes as a file and not over the socket.
type Setup struct {
	Pod       string
	Hostname  string // "" leaves it; the uts namespace must then be the host's
	HostNet   bool
	HostIPC   bool
	HostPID   bool
	SharedPID bool
	Cgroup    bool   // a descriptor of the pause's cgroup was handed over
	UserNS    bool   // the pod's namespaces belong to a user namespace of the pod, and a pid namespace has to as well
	Label     string // SELinux's, of the files that the monitor makes for containers; "" for none
	Sysctls   []Sysctl
}

// Sysctl is one kernel setting in its dotted or slashed form.
type Sysctl struct {
	Key, Value string
}

// Encode returns the setup as bytes, with its version in front.
func (s *Setup) Encode() []byte {
	b := order.AppendUint16(order.AppendUint32(nil, Magic), Highest)
	b = appendString(appendString(b, s.Pod), s.Hostname)
	for _, v := range []bool{s.HostNet, s.HostIPC, s.HostPID, s.SharedPID, s.Cgroup, s.UserNS} {
		b = appendBool(b, v)
	}
	b = appendString(b, s.Label)
	b = order.AppendUint32(b, uint32(len(s.Sysctls)))
	for _, c := range s.Sysctls {
		b = appendString(appendString(b, c.Key), c.Value)
	}
	return b
}

// ParseSetup returns the setup that b encodes. The daemon and the monitor that
// it starts come from one build: any other version is refused.
func ParseSetup(b []byte) (*Setup, error) {
	r := &reader{b: b}
	magic, version := r.u32(), r.u16()
	s := &Setup{Pod: r.str(), Hostname: r.str()}
	for _, v := range []*bool{&s.HostNet, &s.HostIPC, &s.HostPID, &s.SharedPID, &s.Cgroup, &s.UserNS} {
		*v = r.boolean()
	}
	s.Label = r.str()
	for range r.count(4) {
		s.Sysctls = append(s.Sysctls, Sysctl{Key: r.str(), Value: r.str()})
	}
	if r.bad || len(r.b) > 0 || magic != Magic {
		return nil, fmt.Errorf("decode setup: %w", ErrMalformed)
	}
	if version != Highest {
		return nil, fmt.Errorf("decode setup: version %d instead of %d", version, Highest)
	}
	return s, nil
}
