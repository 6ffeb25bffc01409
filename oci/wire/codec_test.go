package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// samples has one message of every type, with every field set to something
// that is not its zero value, and those that have none empty.
func samples() []Body {
	status := Status{Code: 3, Signal: 9, OOMKilled: true, At: 1700000000123456789, OOMKills: 3}
	return []Body{
		&Hello{Lowest: 1, Highest: 7},
		&GetPod{},
		&Create{ID: "c1", LogName: "0.log", UID: 1000, Stdin: true, StdinOnce: true, TTY: true, Cgroup: true, SetOOM: true, OOMScore: -997, Table: 4, PodCgroup: true, Listener: "agent.sock", Output: true, OwnPID: true, Target: "c0"},
		NewStart("c1"),
		&Signal{ID: "c1", Signal: 15},
		&List{},
		&Exec{ID: "c1", Cgroup: true, Stdio: 5, Table: 2, Listener: "agent.sock"},
		NewReopenLog("c1"),
		NewRemove("c1"),
		&Stop{},
		&Attach{ID: "c1", Stdin: true, Stdout: true, Stderr: true},
		NewStdin("c1"),
		&Detach{Attach: 77},
		&Welcome{Version: 1, Pid: 4242, Pod: "p1", Pause: 4243},
		&PodInfo{Started: 17, Note: "n"},
		&Created{Pid: 77, OOMScore: 1000, Note: "clamped"},
		&Done{},
		&States{List: []State{
			{ID: "c1", Phase: Dead, Pid: 5, Created: 1, Started: 2, Status: status, LogLost: 6},
			{ID: "c2", Phase: Running, Pid: 6, Created: 3, Started: 4},
		}},
		&ExecStarted{Pid: 78},
		&Failure{Code: CodeStep, Step: 17, Errno: 2, Text: "execve /bin/sh: no such file or directory"},
		&Attached{Stdin: true, TTY: true, Lost: 1 << 40},
		&Exited{ID: "c1", Status: status},
		&ExecExited{Status: status},
	}
}

// reserved are the requests that have a number only.
var reserved = map[Type]bool{TypeResize: true, TypeTTY: true, TypeUpdate: true, TypeStats: true}

// decode takes a whole message apart on the side that it is meant for.
func decode(b []byte) (Header, Body, error) {
	h, err := ParseHeader(b)
	if err != nil {
		return h, nil, err
	}
	f := DecodeRequest
	if h.Type >= TypeWelcome {
		f = DecodeReply
	}
	m, err := f(h, b[HeaderSize:])
	return h, m, err
}

func TestRoundTrip(t *testing.T) {
	seen := map[Type]bool{}
	for _, m := range samples() {
		seen[m.Type()] = true
		b, err := Encode(Highest, 42, m)
		if err != nil {
			t.Fatalf("%T: %v", m, err)
		}
		h, got, err := decode(b)
		if err != nil {
			t.Fatalf("%T: %v", m, err)
		}
		if h.ID != 42 || h.Version != Highest || h.Type != m.Type() || h.Files != m.Files() {
			t.Errorf("%T: header %+v", m, h)
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("%T:\n got %+v\nwant %+v", m, got, m)
		}
	}
	for first, end := range map[Type]Type{TypeHello: endRequests, TypeWelcome: endReplies, TypeExited: endEvents} {
		for typ := first; typ < end; typ++ {
			if !seen[typ] && !reserved[typ] {
				t.Errorf("no sample of type %#x (%s)", uint16(typ), typ)
			}
		}
	}
}

// A decoder must notice every message that ends too early, and, but for the two
// that agree on a version, every message that ends too late.
func TestWrongLength(t *testing.T) {
	for _, m := range samples() {
		whole, err := Encode(Highest, 1, m)
		if err != nil {
			t.Fatal(err)
		}
		for cut := HeaderSize; cut < len(whole); cut++ {
			b := bytes.Clone(whole[:cut])
			order.PutUint32(b[16:], uint32(cut-HeaderSize))
			if _, _, err := decode(b); !errors.Is(err, ErrMalformed) {
				t.Errorf("%T cut to %d of %d bytes: %v", m, cut, len(whole), err)
			}
		}
		b := append(bytes.Clone(whole), 0)
		order.PutUint32(b[16:], uint32(len(b)-HeaderSize))
		_, _, err = decode(b)
		if tail := m.Type() == TypeHello || m.Type() == TypeWelcome; tail != (err == nil) {
			t.Errorf("%T with a byte too many: %v", m, err)
		}
	}
}

func TestHeaderRefusals(t *testing.T) {
	whole, err := Encode(Highest, 1, NewStart("c1"))
	if err != nil {
		t.Fatal(err)
	}
	for name, breakIt := range map[string]func(b []byte) []byte{
		"empty":             func([]byte) []byte { return nil },
		"half a header":     func(b []byte) []byte { return b[:HeaderSize-1] },
		"magic":             func(b []byte) []byte { b[0]++; return b },
		"length too small":  func(b []byte) []byte { b[16]--; return b },
		"length too large":  func(b []byte) []byte { b[16]++; return b },
		"unknown flag":      func(b []byte) []byte { b[20] |= 2; return b },
		"memfd with inline": func(b []byte) []byte { b[20] |= 1; return b },
		"too many files":    func(b []byte) []byte { b[22] = MaxFiles + 1; return b },
		"files unasked for": func(b []byte) []byte { b[22] = 1; return b },
		"type zero":         func(b []byte) []byte { b[6] = 0; return b },
		"unknown reply":     func(b []byte) []byte { b[6], b[7] = 0xff, 0x80; return b },
	} {
		if _, _, err := decode(breakIt(bytes.Clone(whole))); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Neither side accepts the other's column.
func TestColumns(t *testing.T) {
	for _, m := range samples() {
		b, err := Encode(Highest, 1, m)
		if err != nil {
			t.Fatal(err)
		}
		h, err := ParseHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		wrong := DecodeReply
		if h.Type >= TypeWelcome {
			wrong = DecodeRequest
		}
		if _, err := wrong(h, b[HeaderSize:]); !errors.Is(err, ErrMalformed) {
			t.Errorf("%T accepted by the side that sends it: %v", m, err)
		}
	}
}

// What has a number but no meaning yet, and what only a newer daemon knows,
// arrives whole, so that it can be answered by name.
func TestReserved(t *testing.T) {
	for typ := TypeAttach; typ < endRequests+3; typ++ {
		if !reserved[typ] && typ < endRequests {
			continue
		}
		want := &Reserved{Of: typ, Raw: []byte{1, 2, 3}}
		b, err := Encode(Highest, 9, want)
		if err != nil {
			t.Fatal(err)
		}
		_, got, err := decode(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v", typ, got, err)
		}
	}
	if s := TypeResize.String() + " " + (endRequests + 1).String(); s != "resize unknown" {
		t.Errorf("names: %s", s)
	}
}

// A length that promises more than the message holds allocates nothing.
func TestListLength(t *testing.T) {
	b := order.AppendUint32(nil, 1<<31)
	var m States
	r := &reader{b: b}
	if n := testing.AllocsPerRun(10, func() { r.b, r.bad = b, false; m.decode(r) }); n != 0 || !r.bad {
		t.Errorf("%v allocations, bad %v", n, r.bad)
	}
}

// The bytes of version 1 are frozen: a daemon must be able to talk to monitors
// that were started by the one before it.
func TestFrozenV1(t *testing.T) {
	for want, m := range map[string]Body{
		"5654524e0100010002000000000000000400000000000000" + "01000100":                                                            &Hello{Lowest: 1, Highest: 1},
		"5654524e0100008002000000000000000e00000000000000" + "0100" + "07000000" + "0200" + "7031" + "08000000":                    &Welcome{Version: 1, Pid: 7, Pod: "p1", Pause: 8},
		"5654524e0100040002000000000000000400000000000000" + "0200" + "6331":                                                       NewStart("c1"),
		"5654524e0100050002000000000000000800000000000000" + "0200" + "6331" + "0f000000":                                          &Signal{ID: "c1", Signal: 15},
		"5654524e01000380020000000000000000000000" + "00000000":                                                                    &Done{},
		"5654524e010000c002000000000000001500000000000000" + "0200" + "6331" + "03000000" + "09000000" + "01" + "0500000000000000": &Exited{ID: "c1", Status: Status{Code: 3, Signal: 9, OOMKilled: true, At: 5}},
	} {
		b, err := Encode(1, 2, m)
		if err != nil || hex.EncodeToString(b) != want {
			t.Errorf("%T:\n got %x, %v\nwant %s", m, b, err, want)
		}
	}
}

// TestListenerSinceV4: who speaks version 3 is sent neither name nor descriptors,
// and refuses nothing.
func TestListenerSinceV4(t *testing.T) {
	for _, m := range []Body{&Create{ID: "c", Table: 1, PodCgroup: true}, &Exec{ID: "c", Table: 1}} {
		three, four := must(Encode(3, 1, m))[HeaderSize:], must(Encode(4, 1, m))[HeaderSize:]
		if !bytes.Equal(append(three[:len(three):len(three)], 0, 0), four) {
			t.Errorf("%T: %x and %x", m, three, four)
		}
		if _, got, err := decode(must(Encode(3, 1, m))); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%T: %+v, %v", m, got, err)
		}
	}
}

// TestPIDNamespacesSinceV7: who speaks version 6 is sent nothing of them.
func TestPIDNamespacesSinceV7(t *testing.T) {
	m := &Create{ID: "c", Table: 1, PodCgroup: true, OwnPID: true, Target: "t"}
	six, seven := must(Encode(6, 1, m))[HeaderSize:], must(Encode(7, 1, m))[HeaderSize:]
	if !bytes.Equal(append(six[:len(six):len(six)], 1, 1, 0, 't'), seven) {
		t.Errorf("%x and %x", six, seven)
	}
	if _, got, err := decode(must(Encode(6, 1, m))); err != nil || got.(*Create).OwnPID || got.(*Create).Target != "" {
		t.Errorf("%+v, %v", got, err)
	}
}

// And what a monitor or daemon of version 1 says is understood, and answered without what it does not know.
func TestV1(t *testing.T) {
	count := Status{Signal: 9, OOMKills: 7}
	for _, m := range []Body{
		&Create{ID: "c", Table: 1, PodCgroup: true}, &States{List: []State{{ID: "c", Status: count}}},
		&Exited{ID: "c", Status: count}, &ExecExited{Status: count},
	} {
		old, err := Encode(1, 1, m)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(old[HeaderSize:], must(Encode(2, 1, m))[HeaderSize:]) {
			t.Errorf("%T: both versions are the same", m)
		}
		if c, ok := m.(*Create); ok {
			c.PodCgroup = false // who speaks version 1 does not send the descriptor
			old = must(Encode(1, 1, m))
		}
		_, got, err := decode(old)
		if err != nil {
			t.Fatalf("%T: %v", m, err)
		}
		if b := must(Encode(1, 1, got)); !bytes.Equal(b, old) {
			t.Errorf("%T: %x became %x", m, old, b)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestLimits(t *testing.T) {
	if b, err := Encode(1, 1, &Failure{Text: strings.Repeat("x", 1<<20)}); err != nil || len(b) > HeaderSize+MaxInline {
		t.Errorf("an endless text makes %d bytes, %v", len(b), err)
	}
	if _, err := Encode(1, 1, &Create{ID: "c", Table: MaxFiles}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too many files: %v", err)
	}
	if _, err := Encode(1, 1, &States{List: make([]State, MaxBody/stateSize+1)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a body without end: %v", err)
	}
}

func TestSetup(t *testing.T) {
	want := &Setup{
		Pod: "p", Hostname: "h", HostNet: true, HostIPC: true, HostPID: true, SharedPID: true, Cgroup: true,
		Sysctls: []Sysctl{{"net.ipv4.ip_forward", "1"}, {"kernel.sem", "1 2 3 4"}},
	}
	b := want.Encode()
	got, err := ParseSetup(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
	for cut := range b {
		if _, err := ParseSetup(b[:cut]); err == nil {
			t.Errorf("accepted when cut to %d of %d bytes", cut, len(b))
		}
	}
	b[4]++
	if _, err := ParseSetup(b); err == nil || errors.Is(err, ErrMalformed) {
		t.Errorf("other version: %v", err)
	}
}
