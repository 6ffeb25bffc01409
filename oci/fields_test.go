package oci

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/oci/cgroup"
	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/seccomp"
)

// These tests hold docs/runtime-spec.md against the Go types of the runtime
// spec, against the tree, and against what the compilers do.

// fieldRow is one field of docs/runtime-spec.md.
type fieldRow struct {
	state, by string
	tests     []string
}

// readFields returns the rows by field.
func readFields(t *testing.T) map[string]fieldRow {
	t.Helper()
	f, err := os.Open("../docs/runtime-spec.md")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows := map[string]fieldRow{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		cells := strings.Split(sc.Text(), "|")
		if len(cells) != 7 || !strings.Contains(cells[1], "`") {
			continue
		}
		names := quoted(cells[1])
		for _, n := range names {
			if strings.HasPrefix(n, ".") { // of the same section as the first one
				n = names[0][:strings.LastIndexByte(names[0], '.')] + n
			}
			if _, twice := rows[n]; twice {
				t.Errorf("%s: two rows", n)
			}
			rows[n] = fieldRow{strings.TrimSpace(cells[2]), strings.TrimSpace(cells[3]), quoted(cells[5])}
		}
	}
	return rows
}

// quoted returns what stands in backquotes.
func quoted(cell string) (out []string) {
	for i, s := range strings.Split(cell, "`") {
		if i%2 == 1 {
			out = append(out, s)
		}
	}
	return out
}

// specFields walks the types of the runtime spec and returns each field of its
// Linux part, "mounts[].type" for one in a list or a map.
func specFields(t reflect.Type, at string) (out []string) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		if e := t.Elem(); t.Kind() != reflect.Pointer && e.Kind() == reflect.Struct {
			at += "[]"
		}
		return specFields(t.Elem(), at)
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			if p := f.Tag.Get("platform"); p != "" && !slices.Contains(strings.Split(p, ","), "linux") {
				continue
			}
			out = append(out, specFields(f.Type, under(at, f))...)
		}
		return out
	}
	return []string{at}
}

func under(at string, f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	switch {
	case f.Anonymous:
		return at
	case at == "":
		return name
	}
	return at + "." + name
}

// TestFieldsAreInTheTable: each field has a row, each row a field, a state and
// tests (that they exist is a rule of the house).
func TestFieldsAreInTheTable(t *testing.T) {
	rows := readFields(t)
	fields := specFields(reflect.TypeFor[specs.Spec](), "")
	if len(fields) < 150 {
		t.Errorf("%d fields found in the runtime spec", len(fields))
	}
	for _, f := range fields {
		if _, ok := rows[f]; !ok {
			t.Errorf("%s: no row", f)
		}
	}
	for f, r := range rows {
		if !slices.Contains(fields, f) {
			t.Errorf("%s: no such field in the Linux part of the runtime spec", f)
		}
		if r.state != "honoured" && r.state != "refused" {
			t.Errorf("%s: %q is neither honoured nor refused", f, r.state)
		}
		if !slices.Contains([]string{"program", "seccomp", "cgroup", "door", "data"}, r.by) {
			t.Errorf("%s: nobody is called %q", f, r.by)
		}
		if len(r.tests) == 0 {
			t.Errorf("%s: no test", f)
		}
		for _, name := range r.tests {
			if !strings.HasPrefix(name, "Test") {
				t.Errorf("%s: %q is no test", f, name)
			}
		}
	}
}

// fieldBase is a spec in which the sections that fields are tried in are there.
func fieldBase() *specs.Spec {
	ten, quota, period, one := int64(10), int64(50000), uint64(100000), uint16(20)
	disk := []specs.LinuxThrottleDevice{{Rate: 1000}}
	disk[0].Major, disk[0].Minor = 8, 16
	handles := uint32(2)
	caps := []string{"CAP_CHOWN", "CAP_KILL"}
	return &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"}, Hostname: "glass",
		Process: &specs.Process{
			Args: []string{"true"}, Env: []string{"PATH=/bin"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps[:1], Ambient: caps[:1]},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}},
		},
		Mounts: []specs.Mount{
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid"}},
			{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs"},
		},
		Linux: &specs.Linux{
			Namespaces:  []specs.LinuxNamespace{{Type: "pid"}, {Type: "mount"}, {Type: "ipc"}, {Type: "uts"}, {Type: "network"}, {Type: "cgroup"}},
			MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
			Devices: []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}},
			Seccomp: &specs.LinuxSeccomp{
				DefaultAction: specs.ActErrno,
				Syscalls: []specs.LinuxSyscall{{Names: []string{"chmod"}, Action: specs.ActErrno,
					Args: []specs.LinuxSeccompArg{{Index: 1, Value: 7, ValueTwo: 3, Op: specs.OpMaskedEqual}}}},
			},
			Resources: &specs.LinuxResources{
				CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}, Memory: &specs.LinuxMemory{Limit: &ten}, Pids: &specs.LinuxPids{Limit: &ten},
				BlockIO: &specs.LinuxBlockIO{Weight: &one, ThrottleReadBpsDevice: disk, ThrottleWriteBpsDevice: disk, ThrottleReadIOPSDevice: disk,
					ThrottleWriteIOPSDevice: disk},
				HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1 << 21}},
				Rdma:           map[string]specs.LinuxRdma{"mlx": {HcaHandles: &handles}},
			},
		},
	}
}

// fieldSamples are values to try a field with, as JSON, where the base's value
// and a bit more would not do: because nothing or everything is meant by it, or
// to get further than to a check of syntax.
var fieldSamples = map[string]string{
	"ociVersion": `"2.0.0"`, "domainname": `"glass.example"`, "process.cwd": `"/work"`, "mounts[].type": `"sysfs"`, "mounts[].destination": `"/other"`,
	"process.terminal": `true`, "process.user.umask": `63`, "process.user.additionalGids": `[7]`,
	"process.capabilities.bounding": `["CAP_CHOWN"]`, "process.capabilities.permitted": `["CAP_CHOWN"]`, "process.capabilities.effective": `["CAP_CHOWN"]`,
	"process.capabilities.inheritable": `["CAP_CHOWN","CAP_KILL"]`, "process.capabilities.ambient": `[]`,
	"process.rlimits[].type": `"RLIMIT_CORE"`, "mounts[].options": `["noexec"]`,
	"process.execCPUAffinity.initial": `"x"`, "process.execCPUAffinity.final": `"x"`, // an init has none, but they are looked at
	"process.ioPriority.class": `"IOPRIO_CLASS_RT"`, "process.scheduler.policy": `"SCHED_BATCH"`, "process.scheduler.flags": `["SCHED_FLAG_RESET_ON_FORK"]`,
	"linux.memoryPolicy.mode": `"MPOL_BIND"`, "linux.memoryPolicy.nodes": `"0"`, "linux.memoryPolicy.flags": `["MPOL_F_STATIC_NODES"]`,
	"linux.personality.domain": `"LINUX32"`, "linux.sysctl": `{"net.ipv4.ip_forward":"1"}`,
	"linux.maskedPaths": `["/proc/keys"]`, "linux.readonlyPaths": `["/proc/bus"]`, "linux.rootfsPropagation": `"shared"`,
	"linux.namespaces[].type": `"time"`, "linux.namespaces[].path": `"/proc/1/ns/pid"`,
	"linux.devices[].path": `"/dev/other"`, "linux.devices[].type": `"b"`, "linux.devices[].fileMode": `384`, "linux.devices[].uid": `5`, "linux.devices[].gid": `5`,
	"linux.seccomp.defaultAction": `"SCMP_ACT_ALLOW"`, "linux.seccomp.architectures": `["SCMP_ARCH_X86"]`, "linux.seccomp.flags": `["SECCOMP_FILTER_FLAG_LOG"]`,
	"linux.seccomp.defaultErrnoRet": `2`, "linux.seccomp.syscalls[].names": `["fchmod"]`, "linux.seccomp.syscalls[].action": `"SCMP_ACT_ALLOW"`, "linux.seccomp.syscalls[].args[].op": `"SCMP_CMP_GT"`,
	"linux.seccomp.syscalls[].args[].index": `2`, "linux.seccomp.syscalls[].args[].valueTwo": `2`,
	"linux.resources.memory.useHierarchy": `false`, "linux.resources.memory.disableOOMKiller": `true`, "linux.resources.memory.swap": `20`,
	"linux.resources.memory.reservation": `5`, "linux.resources.memory.kernel": `5`, "linux.resources.memory.kernelTCP": `5`,
	"linux.resources.cpu.shares": `100`, "linux.resources.cpu.burst": `1000`, "linux.resources.cpu.cpus": `"0"`, "linux.resources.cpu.mems": `"0"`, "linux.resources.cpu.idle": `1`,
	"linux.resources.unified": `{"memory.high":"5"}`, "linux.resources.hugepageLimits[].pageSize": `"1GB"`, "linux.resources.rdma[].hcaObjects": `3`,
	"linux.resources.network.classID": `3`, "linux.resources.blockIO.leafWeight": `30`,
}

// fieldSections are what a field is tried in addition to, as JSON over the base.
var fieldSections = map[string]string{
	"process.scheduler.policy": `{"process":{"scheduler":{"policy":"SCHED_OTHER"}}}`, "process.scheduler.nice": `{"process":{"scheduler":{"policy":"SCHED_OTHER"}}}`,
	"process.scheduler.priority": `{"process":{"scheduler":{"policy":"SCHED_RR","priority":3}}}`,
	"process.scheduler.flags":    `{"process":{"scheduler":{"policy":"SCHED_OTHER"}}}`,
	"process.scheduler.runtime":  `{"process":{"scheduler":{"policy":"SCHED_DEADLINE"}}}`,
	"process.scheduler.deadline": `{"process":{"scheduler":{"policy":"SCHED_DEADLINE"}}}`,
	"process.scheduler.period":   `{"process":{"scheduler":{"policy":"SCHED_DEADLINE"}}}`,
	"process.ioPriority.class":   `{"process":{"ioPriority":{"class":"IOPRIO_CLASS_BE"}}}`, "process.ioPriority.priority": `{"process":{"ioPriority":{"class":"IOPRIO_CLASS_BE"}}}`,
	"linux.memoryPolicy.mode":  `{"linux":{"memoryPolicy":{"mode":"MPOL_INTERLEAVE","nodes":"0"}}}`,
	"linux.memoryPolicy.nodes": `{"linux":{"memoryPolicy":{"mode":"MPOL_BIND"}}}`, "linux.memoryPolicy.flags": `{"linux":{"memoryPolicy":{"mode":"MPOL_BIND"}}}`,
	"linux.personality.domain": `{"linux":{"personality":{"domain":"LINUX"}}}`, "linux.personality.flags": `{"linux":{"personality":{"domain":"LINUX"}}}`,
	"linux.seccomp.defaultErrnoRet":         `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}}`,
	"linux.seccomp.listenerMetadata":        `{"linux":{"seccomp":{"listenerPath":"/run/x","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_NOTIFY"}]}}}`,
	"linux.seccomp.syscalls[].action":       `{"linux":{"seccomp":{"syscalls":[{"names":["chmod"],"action":"SCMP_ACT_LOG"}]}}}`,
	"linux.seccomp.syscalls[].errnoRet":     `{"linux":{"seccomp":{"syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO","errnoRet":3}]}}}`,
	"linux.seccomp.syscalls[].names":        `{"linux":{"seccomp":{"syscalls":[{"names":["chmod"],"action":"SCMP_ACT_LOG"}]}}}`,
	"process.consoleSize.height":            `{"process":{"terminal":true}}`,
	"process.consoleSize.width":             `{"process":{"terminal":true}}`,
	"linux.seccomp.syscalls[].args[].index": logged, "linux.seccomp.syscalls[].args[].value": logged, "linux.seccomp.syscalls[].args[].valueTwo": logged,
	"linux.seccomp.syscalls[].args[].op": logged,
}

const logged = `{"linux":{"seccomp":{"syscalls":[{"names":["chmod"],"action":"SCMP_ACT_LOG","args":[{"index":1,"value":1,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"}]}]}}}`

// TestNoFieldIsIgnored sets each field alone. Either the result differs, or an
// error names the field. A refused field is an error.
func TestNoFieldIsIgnored(t *testing.T) {
	for field, row := range readFields(t) {
		result := fieldResults[row.by]
		if result == nil {
			continue // shown by its own tests
		}
		base, varied := fieldBase(), fieldBase()
		for _, s := range []*specs.Spec{base, varied} {
			if over, ok := fieldSections[field]; ok {
				if err := json.Unmarshal([]byte(over), s); err != nil {
					t.Fatal(field, err)
				}
			}
		}
		v := reach(reflect.ValueOf(varied).Elem(), strings.Split(field, "."))
		if sample, ok := fieldSamples[field]; ok {
			v.SetZero()
			if err := json.Unmarshal([]byte(sample), v.Addr().Interface()); err != nil {
				t.Fatal(field, err)
			}
		} else {
			vary(v)
		}
		before, refused := result(base)
		after, err := result(varied)
		if refused != nil { // what it is tried in is refused as a whole
			err = refused
		}
		switch {
		case err != nil && refused == nil && !names(err, field):
			t.Errorf("%s: the error does not name it: %v", field, err)
		case row.state == "refused" && err == nil:
			t.Errorf("%s: not refused", field)
		case err == nil && bytes.Equal(before, after):
			t.Errorf("%s: makes no difference", field)
		}
		if testing.Verbose() && err != nil && row.state == "honoured" {
			t.Logf("%s: %v", field, err)
		}
	}
}

// fieldResults are what becomes of a spec, by who answers for it.
var fieldResults = map[string]func(s *specs.Spec) ([]byte, error){
	"program": func(s *specs.Spec) ([]byte, error) {
		s.Linux.Seccomp = nil
		in := program.Input{Spec: s}
		if s.Process.Terminal {
			in.ConsoleSocket = 1
		}
		b, err := program.Encode(in, nil)
		return b, errors.Join(err, sameFromCache(in, b, err))
	},
	"seccomp": func(s *specs.Spec) ([]byte, error) {
		f, err := seccomp.Compile(s.Linux.Seccomp)
		if err != nil {
			return nil, err
		}
		return fmt.Appendf(f.Bytes(), "%d %+v %q", f.Flags, f.Listener, f.Warnings), nil
	},
	"cgroup": func(s *specs.Spec) ([]byte, error) {
		f, err := cgroup.Files(s.Linux.Resources)
		return fmt.Appendf(nil, "%q", f), err
	},
}

// sameFromCache says whether the cache answers as the compiler does, when it has seen the
// spec's neighbours and when it has seen this one.
func sameFromCache(in program.Input, want []byte, refused error) error {
	for range 2 {
		c, err := encodeContainer(in)
		if !bytes.Equal(c.code, want) || fmt.Sprint(err) != fmt.Sprint(refused) {
			return fmt.Errorf("the cache says something else: %w", err)
		}
		c.done()
	}
	return nil
}

// reach returns the field behind a path, and makes what is on the way.
func reach(v reflect.Value, path []string) reflect.Value {
	switch {
	case v.Kind() == reflect.Pointer && (len(path) > 0 || v.Type().Elem().Kind() == reflect.Struct):
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return reach(v.Elem(), path)
	case len(path) == 0:
		return v
	}
	name, list := strings.CutSuffix(path[0], "[]")
	f, ok := member(v, name)
	if !ok {
		panic("no field " + name + " in " + v.Type().String())
	}
	if !list {
		return reach(f, path[1:])
	}
	if f.Kind() == reflect.Map { // its elements are no places: a new one is set when it is done
		return reachMap(f, path[1:])
	}
	if f.Len() == 0 {
		f.Set(reflect.MakeSlice(f.Type(), 1, 1))
	}
	return reach(f.Index(0), path[1:])
}

// reachMap puts an element into a map that path leads on from. Elements of maps
// in the spec have fields without further maps, so that one level is enough.
func reachMap(f reflect.Value, path []string) reflect.Value {
	e := reflect.New(f.Type().Elem()).Elem()
	v := reach(e, path)
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		vary(v.Elem())
	} else {
		vary(v)
	}
	if f.IsNil() {
		f.Set(reflect.MakeMap(f.Type()))
	}
	f.SetMapIndex(reflect.ValueOf("other"), e)
	return reflect.New(v.Type()).Elem() // the rest is for nothing
}

func member(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous {
			if m, ok := member(v.Field(i), name); ok {
				return m, true
			}
		}
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// vary changes a value a little.
func vary(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		vary(v.Elem())
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Slice:
		e := reflect.New(v.Type().Elem()).Elem()
		vary(e)
		v.Set(reflect.Append(v, e))
	case reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		vary(e)
		m := reflect.MakeMap(v.Type())
		m.SetMapIndex(reflect.ValueOf("x"), e)
		v.Set(m)
	default:
		if v.CanInt() {
			v.SetInt(v.Int() + 1)
		} else {
			v.SetUint(v.Uint() + 1)
		}
	}
}

// names says whether an error names the field, or the section that it is in.
func names(err error, field string) bool {
	field = strings.TrimPrefix(strings.ReplaceAll(field, "[]", ""), "linux.")
	field = strings.TrimPrefix(strings.TrimPrefix(field, "resources."), "seccomp.")
	text := regexp.MustCompile(`\[[^]]*\]`).ReplaceAllString(err.Error(), "")
	parts := strings.Split(field, ".")
	if parts[0] == "process" && len(parts) > 1 {
		parts[1] = "process." + parts[1]
		parts = parts[1:]
	}
	return strings.Contains(text, parts[0])
}

// TestAnnotationsChangeNothing: they are data.
func TestAnnotationsChangeNothing(t *testing.T) {
	s := fieldBase()
	before, err := fieldResults["program"](s)
	if err != nil {
		t.Fatal(err)
	}
	s.Annotations = map[string]string{"org.example/privileged": "true", "run.oci.hooks.stderr": "/x"}
	after, err := fieldResults["program"](s)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("an annotation changed the program (%v)", err)
	}
}
