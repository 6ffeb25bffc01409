// Package netdev moves network devices into the network namespace of a container
// (linux.netDevices of runtime-spec).
//
//	host's namespace                          container's namespace
//	  look: device, addresses                   look: is the name free?
//	  RTM_SETLINK ── namespace, name, index ──► device, down, without addresses
//	                                            RTM_NEWADDR ... as they were
//	                                            RTM_SETLINK up
//
// Moved are devices, with what the kernel keeps of them and with their permanent
// addresses of global scope; not routes, and nothing is made or configured. What
// becomes of a device when its namespace ends is the kernel's: physical ones come
// back to the first namespace, virtual ones are gone.
//
// All goes by index: a name may change hands meanwhile. It is done while the
// container waits at step.GateNet, in a namespace in which nothing runs yet,
// unless the namespace is a joined one.
package netdev

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// ErrInvalid is wrapped by an error about a name that no device can have.
var ErrInvalid = errors.New("invalid")

// Check says whether the names can be names of devices. It looks at no device.
func Check(devices map[string]specs.LinuxNetDevice) error {
	taken := map[string]string{}
	for _, host := range slices.Sorted(maps.Keys(devices)) {
		name := target(host, devices[host])
		if !valid(host) || !valid(strings.Replace(name, "%d", "0", 1)) {
			return fmt.Errorf("linux.netDevices[%.100q]: %.100q: %w", host, name, ErrInvalid)
		}
		if other, twice := taken[name]; twice && !strings.Contains(name, "%d") {
			return fmt.Errorf("linux.netDevices[%.100q]: %q as for %q: %w", host, name, other, ErrInvalid)
		}
		taken[name] = host
	}
	return nil
}

// target is the name inside.
func target(host string, d specs.LinuxNetDevice) string {
	if d.Name == "" {
		return host
	}
	return d.Name
}

// valid follows the kernel's dev_valid_name.
func valid(name string) bool {
	return name != "" && len(name) < unix.IFNAMSIZ && name != "." && name != ".." && !strings.ContainsAny(name, "/:% \t\n\v\f\r\x00") &&
		strings.IndexByte(name, 0xa0) < 0 // a space to the kernel
}

// Move moves devices from one network namespace to another: from and to are
// descriptors of the namespaces, or pidfds of processes in them; from may be -1
// for the namespace of the calling process. Both stay the caller's. After an
// error the devices are back where they were as far as that could be done, with
// their addresses, without routes.
func Move(devices map[string]specs.LinuxNetDevice, from, to int) error {
	if err := Check(devices); err != nil {
		return err
	}
	src, dst, err := ends(from, to)
	if err != nil {
		return err
	}
	defer src.close()
	defer dst.close()
	var moved []move
	for _, host := range slices.Sorted(maps.Keys(devices)) {
		m, err := take(src, dst, host, target(host, devices[host]))
		if m.moved {
			moved = append(moved, m)
		}
		if err != nil {
			err = fmt.Errorf("linux.netDevices[%q]: %w", host, err)
			for _, m := range slices.Backward(moved) {
				err = errors.Join(err, m.back(src, dst))
			}
			return err
		}
	}
	return nil
}

// ends opens a socket in each namespace, from a thread that ends after it.
func ends(from, to int) (src, dst *end, err error) {
	err = sys.OnLostThread(func() error {
		if from >= 0 {
			if err := unix.Setns(from, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace to take from: %w", err)
			}
		}
		if src, err = open(); err != nil {
			return err
		}
		if err = unix.Setns(to, unix.CLONE_NEWNET); err != nil {
			src.close()
			return fmt.Errorf("enter network namespace of the container: %w", err)
		}
		if dst, err = open(); err != nil {
			src.close()
		}
		return err
	})
	return src, dst, err
}

// move is one device on its way.
type move struct {
	was       link
	index     int32 // in the other namespace
	addresses []address
	moved     bool
}

// take moves one device.
func take(src, dst *end, host, name string) (move, error) {
	here, err := src.links()
	if err != nil {
		return move{}, fmt.Errorf("list devices: %w", err)
	}
	there, err := dst.links()
	if err != nil {
		return move{}, fmt.Errorf("list devices of the container: %w", err)
	}
	i := slices.IndexFunc(here, func(l link) bool { return l.name == host })
	if i < 0 {
		return move{}, unix.ENODEV
	}
	if slices.ContainsFunc(there, func(l link) bool { return l.name == name }) {
		return move{}, fmt.Errorf("name %s in the container: %w", name, unix.EEXIST)
	}
	m := move{was: here[i], index: freeIndex(here[i].index, there)}
	if m.addresses, err = src.addresses(m.was.index); err != nil {
		return m, fmt.Errorf("list addresses: %w", err)
	}
	ns, err := dst.namespace()
	if err != nil {
		return m, err
	}
	defer ns.Close()
	if err := src.send(m.was.index, ns.Int(), m.index, name); err != nil {
		// The kernel moves first and renames then.
		there, lost := dst.links()
		m.moved = lost == nil && slices.ContainsFunc(there, func(l link) bool { return l.index == m.index })
		return m, fmt.Errorf("move it: %w", err)
	}
	m.moved = true
	return m, arrive(dst, m.index, m.addresses, name != host, true)
}

// freeIndex is the device's own, if that is not taken, or one above all.
func freeIndex(own int32, there []link) int32 {
	highest, taken := int32(0), false
	for _, l := range there {
		highest, taken = max(highest, l.index), taken || l.index == own
	}
	if taken {
		return highest + 1
	}
	return own
}

// arrive gives a device its addresses back and sets it up, if it is to be.
func arrive(e *end, index int32, list []address, renamed, up bool) error {
	for _, a := range list {
		if err := e.add(index, a, renamed); err != nil {
			return fmt.Errorf("add address: %w", err)
		}
	}
	if !up {
		return nil
	}
	if err := e.up(index); err != nil {
		return fmt.Errorf("set it up: %w", err)
	}
	return nil
}

// back undoes a move.
func (m move) back(src, dst *end) error {
	ns, err := src.namespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := dst.send(m.index, ns.Int(), m.was.index, m.was.name); err != nil {
		return fmt.Errorf("move %s back: %w", m.was.name, err)
	}
	if err := arrive(src, m.was.index, m.addresses, false, m.was.up); err != nil {
		return fmt.Errorf("restore %s: %w", m.was.name, err)
	}
	return nil
}
