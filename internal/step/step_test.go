package step

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func sample() *Program {
	return &Program{
		Clone: 0x2000_0000, Wait: 1, Files: []string{"root", "a volume"},
		Steps: []Step{
			{Nr: 39, Result: NoResult, Name: "first", Then: 1},
			{Nr: 0, Result: 3, Args: [6]Arg{{Const, 4}, {Addr, 8}, {Reg, 63}, {Mem8, 15}, {Mem32, 12}, {Mem64, 8}},
				OnErr: []Branch{{Errno: 2, Skip: 1}, {Errno: 13}}, Name: "second"},
			{Nr: OpSet, Result: NoResult, Args: [6]Arg{{Const, ^uint64(0)}}},
			{Nr: OpStore, Result: NoResult, Args: [6]Arg{{Reg, 3}, {Addr, 12}, {Const, 4}}},
		},
		Data: make([]byte, 16), Relocs: []Reloc{{At: 8, To: 1}},
	}
}

func TestEncodingKeepsEverything(t *testing.T) {
	want := sample()
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("decoded\n%+v\nwant\n%+v", got, want)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*Program){
		"no steps":           func(p *Program) { p.Steps = nil },
		"wait behind end":    func(p *Program) { p.Wait = 4 },
		"register":           func(p *Program) { p.Steps[1].Result = 64 },
		"report register":    func(p *Program) { p.Steps[1].Result = ReportRegister },
		"pseudo call":        func(p *Program) { p.Steps[2].Nr = OpHand + 1 },
		"store over the end": func(p *Program) { p.Steps[3].Args[1].Val = 13 },
		"store of 3 bytes":   func(p *Program) { p.Steps[3].Args[2].Val = 3 },
		"store anywhere":     func(p *Program) { p.Steps[3].Args[1].Kind = Const },
		"store to a result":  func(p *Program) { p.Steps[3].Args[1].Kind = Reg },
		"store of any size":  func(p *Program) { p.Steps[3].Args[2].Kind = Reg },
		"call number":        func(p *Program) { p.Steps[2].Nr = ^uint32(0) },
		"expect no errno":    func(p *Program) { p.Steps[2].Nr = OpExpect },
		"expect errno 4096":  func(p *Program) { p.Steps[2] = Step{Nr: OpExpect, Args: [6]Arg{2: {Const, 4096}}} },
		"expect from memory": func(p *Program) { p.Steps[2] = Step{Nr: OpExpect, Args: [6]Arg{2: {Mem8, 1}}} },
		"branch on 4096":     func(p *Program) { p.Steps[1].OnErr[0].Errno = 4096 },
		"clone of memory":    func(p *Program) { p.Clone = 0x100 }, // CLONE_VM
		"argument register":  func(p *Program) { p.Steps[1].Args[2].Val = 64 },
		"address":            func(p *Program) { p.Steps[1].Args[1].Val = 16 },
		"word over the end":  func(p *Program) { p.Steps[1].Args[5].Val = 9 },
		"kind":               func(p *Program) { p.Steps[1].Args[0].Kind = kinds },
		"skip":               func(p *Program) { p.Steps[0].Then = 4 },
		"branch":             func(p *Program) { p.Steps[1].OnErr[0].Skip = 3 },
		"branch on success":  func(p *Program) { p.Steps[1].OnErr[0].Errno = 0 },
		"too many branches":  func(p *Program) { p.Steps[1].OnErr = make([]Branch, MaxBranches+1) },
		"relocation odd":     func(p *Program) { p.Relocs[0].At = 4 },
		"relocation outside": func(p *Program) { p.Relocs[0].To = 16 },
	} {
		p := sample()
		change(p)
		if _, err := p.Encode(); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: Encode = %v", name, err)
		}
	}
}

// TestDecodeIsBounded: names that overlap must not multiply a small file.
func TestDecodeIsBounded(t *testing.T) {
	p := &Program{Wait: NoWait, Steps: make([]Step, 1000)}
	for i := range p.Steps {
		p.Steps[i].Result = NoResult
	}
	p.Steps[0].Name = strings.Repeat("x", 60_000)
	b, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for i := range p.Steps { // all have the first one's name
		at := headerSize + i*Size
		order.PutUint16(b[at+offNameLen:], 60_000)
		order.PutUint32(b[at+offName:], 0)
	}
	if _, err := Decode(b); !errors.Is(err, ErrFormat) {
		t.Errorf("Decode = %v", err)
	}
	// What arrives is held against the same rules as what is sent.
	for name, change := range map[string]func(b []byte){
		"pseudo call": func(b []byte) { order.PutUint32(b[headerSize:], OpSet+1) },
		"expectation": func(b []byte) { order.PutUint32(b[headerSize:], OpExpect) },
		"clone flags": func(b []byte) { order.PutUint64(b[48:], 0x100) },
		"register":    func(b []byte) { b[headerSize+offResult] = byte(ReportRegister) },
	} {
		b, _ := sample().Encode()
		change(b)
		if _, err := Parse(b); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: Parse = %v", name, err)
		}
	}
}

// FuzzParse: whatever arrives is refused or can be walked, and what Decode
// takes encodes to a program that decodes to the same.
func FuzzParse(f *testing.F) {
	b, _ := sample().Encode()
	f.Add(b)
	f.Add(b[:headerSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Parse(b)
		if err != nil {
			return
		}
		for i := range v.N {
			v.Name(i)
		}
		p, err := Decode(b)
		if err != nil {
			return
		}
		again, err := p.Encode()
		if err != nil {
			t.Fatalf("decoded program does not encode: %v", err)
		}
		q, err := Decode(again)
		if err != nil || !reflect.DeepEqual(p, q) {
			t.Fatalf("second decode differs: %v", err)
		}
	})
}
