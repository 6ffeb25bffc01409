package seccomp

import (
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vitrine-runtime/vitrine/oci/seccomp/profile"
	"golang.org/x/sys/unix"
)

// kernelTakes asks the kernel whether it would load a program, without loading it: with TSYNC the program is checked first and then refused with
// the id of a thread that has another filter. keepApart makes such a thread.
func kernelTakes(program []byte) error {
	keepApart()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(program) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	r, _, e := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	switch {
	case e != 0:
		return e
	case r == 0:
		return errors.New("loaded over all threads")
	}
	return nil
}

// keepApart leaves one thread of this process with a filter that allows everything.
var keepApart = sync.OnceFunc(func() {
	ready := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		allow := Filter{Insns: []Insn{{Code: codeReturn, K: uint32(Allow)}}}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			panic(err)
		}
		if e := load(0, allow.Bytes()); e != 0 {
			panic(e)
		}
		close(ready)
		select {} // until the process ends
	}()
	<-ready
})

// TestKernelOracleWorks: the question above is answered with no for what is wrong, and yes for what is right.
func TestKernelOracleWorks(t *testing.T) {
	good := Filter{Insns: []Insn{{Code: codeLoad}, {Code: codeReturn}}}
	bad := Filter{Insns: []Insn{{Code: codeLoad, K: 2}, {Code: codeReturn}}}
	if err := kernelTakes(good.Bytes()); err != nil {
		t.Errorf("good program: %v", err)
	}
	if err := kernelTakes(bad.Bytes()); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("bad program: %v", err)
	}
}

// FuzzProfile: any JSON is refused with an error, or gives a program that our checker and the kernel accept and that answers as the evaluator does.
func FuzzProfile(f *testing.F) {
	for _, caps := range capSets {
		p, err := profile.Default(caps, "")
		if err != nil {
			f.Fatal(err)
		}
		add(f, p)
	}
	for seed := range uint64(20) {
		add(f, newGenerator(host(), rand.New(rand.NewPCG(seed, 5))).profile())
	}
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["socket"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":40,"op":"SCMP_CMP_EQ"}]}]}`))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_NOTIFY"}`))
	for _, p := range readProfiles(f) {
		add(f, p)
	}
	names := slices.Sorted(maps.Keys(machines()))
	o := Options{Notify: true}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p specs.LinuxSeccomp
		if json.Unmarshal(b, &p) != nil {
			return
		}
		key := string(AppendProfile(nil, &p, o))
		start := time.Now()
		filter, err := CompileWith(&p, o)
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%v for %d bytes", took, len(b))
		}
		if key != string(AppendProfile(nil, &p, o)) {
			t.Error("the profile was changed")
		}
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("a refusal without a word")
			}
			return
		}
		if err := Check(filter.Insns); err != nil {
			t.Fatal(err)
		}
		if err := kernelTakes(filter.Bytes()); err != nil {
			t.Fatalf("kernel: %v", err)
		}
		spotCheck(t, host(), &p, filter)
		other := machines()[names[len(b)%len(names)]]
		if filter, err = other.compile(&p, o); err != nil {
			return // a contradiction in an ABI that the host has not, or too long there
		}
		if err := Check(filter.Insns); err != nil {
			t.Fatal(err)
		}
		spotCheck(t, other, &p, filter)
	})
}

func add(f *testing.F, p *specs.LinuxSeccomp) {
	b, err := json.Marshal(p)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
}

// decisions is a source of random numbers that a fuzzer can steer: its bytes, and then a sequence that depends on nothing.
type decisions struct {
	bytes []byte
	rest  *rand.PCG
}

func (d *decisions) Uint64() uint64 {
	if len(d.bytes) == 0 {
		return d.rest.Uint64()
	}
	v := uint64(d.bytes[0]) << 56 // bounded numbers are made of the upper bits
	d.bytes = d.bytes[1:]
	return v | v>>8 | v>>16 | v>>24
}

// FuzzGenerated: profiles of the generator, whose decisions the fuzzer takes. Each is valid JSON of valid words, so all of the work goes into what rules do to
// each other, on one of the machines.
func FuzzGenerated(f *testing.F) {
	for seed := range uint64(30) {
		b := make([]byte, 100+20*seed)
		src := rand.NewPCG(seed, 9)
		for i := range b {
			b[i] = byte(src.Uint64())
		}
		f.Add(b)
	}
	names := slices.Sorted(maps.Keys(machines()))
	f.Fuzz(func(t *testing.T, b []byte) {
		rnd := rand.New(&decisions{bytes: b, rest: rand.NewPCG(1, 2)})
		m := machines()[names[rnd.IntN(len(names))]]
		p := newGenerator(m, rnd).profile()
		filter, err := m.compile(p, Options{Notify: true})
		if err != nil {
			return
		}
		if err := Check(filter.Insns); err != nil {
			t.Fatal(err)
		}
		spotCheck(t, m, p, filter)
	})
}

// spotCheck compares the calls that a profile names, at the borders of its tests, with the evaluator.
func spotCheck(t *testing.T, m *machine, p *specs.LinuxSeccomp, f *Filter) {
	j := newJudge(m, p)
	budget := 2000
	for _, s := range p.Syscalls {
		for _, name := range append(slices.Clone(s.Names), "socketcall", "ipc", "getpid") {
			for i, number := range m.lookup(name) {
				if number < 0 {
					continue
				}
				c := Call{Arch: m.abis[i].token, Number: uint32(number) + m.abis[i].base}
				for _, a := range append([]specs.LinuxSeccompArg{{}}, s.Args...) {
					for _, v := range argEdges(a) {
						c.Args[a.Index] = v
						if budget--; budget < 0 {
							return
						}
						if got, _ := f.run(c, m.order()); got != j.answer(c) {
							t.Fatalf("%s in %s with %#x: %v, want %v", name, m.abis[i].name, c.Args, got, j.answer(c))
						}
					}
				}
			}
		}
	}
}
