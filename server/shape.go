package server

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// shape checks what holds for every field of every request, whatever it means:
//
//   - an enum has a value that api.proto knows,
//   - a string holds no NUL: behind it the kernel would see another string,
//   - strings, lists and maps are not longer than anything could need.
//
// Being generic, it also covers the fields of later CRI versions on the day they
// appear. Only the fields that are set are visited, which is about a microsecond
// for the requests of a kubelet. Windows messages are not read by anybody here.
func shape(m proto.Message) error { return shapeOf(m.ProtoReflect()) }

// Limits of shape, for fields that have none in limits.
const (
	maxString = 4096 // PATH_MAX: nearly every long string of CRI is a path
	maxList   = 1024
	noLimit   = 1 << 30 // bounded by the message, and by a check of its own
)

// limits has the fields that may be longer than the defaults: for a string its
// bytes, for a list or map its entries and for the strings inside it their bytes.
var limits = map[protoreflect.FullName]struct{ bytes, entries int }{
	// The kernel decides about arguments and environment, with E2BIG at start.
	"runtime.v1.ContainerConfig.command": {noLimit, 1 << 16},
	"runtime.v1.ContainerConfig.args":    {noLimit, 1 << 16},
	"runtime.v1.ExecSyncRequest.cmd":     {noLimit, 1 << 16},
	"runtime.v1.ExecRequest.cmd":         {noLimit, 1 << 16},
	"runtime.v1.ContainerConfig.envs":    {noLimit, 1 << 16},
	"runtime.v1.KeyValue.key":            {1 << 17, 0},
	// NGROUPS_MAX.
	"runtime.v1.LinuxSandboxSecurityContext.supplemental_groups":   {0, 1 << 16},
	"runtime.v1.LinuxContainerSecurityContext.supplemental_groups": {0, 1 << 16},
	// One for each port there is.
	"runtime.v1.PodSandboxConfig.port_mappings": {maxString, 1 << 16},
	// Measured together, by checkLabels.
	"runtime.v1.PodSandboxConfig.labels":      {noLimit, noLimit},
	"runtime.v1.PodSandboxConfig.annotations": {noLimit, noLimit},
	"runtime.v1.ContainerConfig.labels":       {noLimit, noLimit},
	"runtime.v1.ContainerConfig.annotations":  {noLimit, noLimit},
	"runtime.v1.ImageSpec.annotations":        {noLimit, noLimit},
	// Tokens of some registries are long, and a secret must not be quoted:
	// checkAuth has their limit.
	"runtime.v1.AuthConfig.username":       {noLimit, 0},
	"runtime.v1.AuthConfig.password":       {noLimit, 0},
	"runtime.v1.AuthConfig.auth":           {noLimit, 0},
	"runtime.v1.AuthConfig.identity_token": {noLimit, 0},
	"runtime.v1.AuthConfig.registry_token": {noLimit, 0},
}

// secret fields are never repeated in an error.
func secret(fd protoreflect.FieldDescriptor) bool {
	return strings.HasPrefix(string(fd.FullName()), "runtime.v1.AuthConfig.")
}

func limitsOf(fd protoreflect.FieldDescriptor) (bytes, entries int) {
	if l, ok := limits[fd.FullName()]; ok {
		return l.bytes, l.entries
	}
	return maxString, maxList
}

func shapeOf(m protoreflect.Message) (err error) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.Name() == "windows" {
			return true
		}
		err = at(string(fd.Name()), shapeOfField(fd, v))
		return err == nil
	})
	return err
}

func shapeOfField(fd protoreflect.FieldDescriptor, v protoreflect.Value) error {
	bytes, entries := limitsOf(fd)
	switch {
	case fd.IsList():
		l := v.List()
		if l.Len() > entries {
			return badInt("", int64(l.Len()), "has too many entries")
		}
		for i := range l.Len() {
			if err := shapeOfValue(fd, l.Get(i), bytes); err != nil {
				return atIndex("", i, err)
			}
		}
		return nil
	case fd.IsMap():
		return shapeOfMap(fd, v.Map(), bytes, entries)
	default:
		return shapeOfValue(fd, v, bytes)
	}
}

func shapeOfMap(fd protoreflect.FieldDescriptor, m protoreflect.Map, bytes, entries int) (err error) {
	if m.Len() > entries {
		return badInt("", int64(m.Len()), "has too many entries")
	}
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if err = shapeOfString(k.String(), bytes, false); err != nil {
			return false
		}
		err = atKey("", k.String(), shapeOfValue(fd.MapValue(), v, bytes))
		return err == nil
	})
	return err
}

func shapeOfValue(fd protoreflect.FieldDescriptor, v protoreflect.Value, bytes int) error {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		return shapeOf(v.Message())
	case protoreflect.EnumKind:
		if fd.Enum().Values().ByNumber(v.Enum()) == nil {
			return badInt("", int64(v.Enum()), "must be a value of "+string(fd.Enum().Name()))
		}
	case protoreflect.StringKind:
		return shapeOfString(v.String(), bytes, secret(fd))
	}
	return nil
}

func shapeOfString(s string, limit int, hide bool) error {
	must := ""
	switch {
	case len(s) > limit:
		must = atMost(limit)(s)
	case strings.IndexByte(s, 0) >= 0:
		must = "must not hold a NUL"
	default:
		return nil
	}
	if hide {
		return wrong("", must)
	}
	return bad("", s, must)
}
