package seccomp

import (
	"embed"
	"encoding/binary"
	"go/ast"
	"go/parser"
	"go/token"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The compiler of one build knows one machine. What the others would make is tested here all the same: their tables are Go source, and are read as such.

//go:embed tables_*.go
var tableFiles embed.FS

// machines are all that there are tables for, by GOARCH.
var machines = sync.OnceValue(func() map[string]*machine {
	files, err := tableFiles.ReadDir(".")
	if err != nil {
		panic(err)
	}
	all := map[string]*machine{}
	for _, f := range files {
		goarch := strings.TrimSuffix(strings.TrimPrefix(f.Name(), "tables_"), ".go")
		if goarch == "test" {
			continue // this package's tests
		}
		src, err := tableFiles.ReadFile(f.Name())
		if err != nil {
			panic(err)
		}
		all[goarch] = readMachine(goarch, src)
	}
	return all
})

// readMachine reads a table file.
func readMachine(goarch string, src []byte) *machine {
	file, err := parser.ParseFile(token.NewFileSet(), "", src, 0)
	if err != nil {
		panic(err)
	}
	var abis []abi
	var text string
	for _, d := range file.Decls {
		for _, s := range d.(*ast.GenDecl).Specs {
			v := s.(*ast.ValueSpec)
			switch v.Names[0].Name {
			case "hostABIs":
				for _, e := range v.Values[0].(*ast.CompositeLit).Elts {
					abis = append(abis, readABI(e.(*ast.CompositeLit)))
				}
			case "tableText":
				text, err = strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					panic(err)
				}
			}
		}
	}
	return newMachine(goarch, abis, text)
}

func readABI(lit *ast.CompositeLit) (a abi) {
	number := func(e ast.Expr) uint32 {
		if id, ok := e.(*ast.Ident); ok && id.Name == "x32Bit" {
			return x32Bit
		}
		n, err := strconv.ParseUint(e.(*ast.BasicLit).Value, 0, 32)
		if err != nil {
			panic(err)
		}
		return uint32(n)
	}
	for _, e := range lit.Elts {
		kv := e.(*ast.KeyValueExpr)
		switch field := kv.Key.(*ast.Ident).Name; field {
		case "name":
			name, err := strconv.Unquote(kv.Value.(*ast.BasicLit).Value)
			if err != nil {
				panic(err)
			}
			a.name = specs.Arch(name)
		case "token":
			a.token = number(kv.Value)
		case "base":
			a.base = number(kv.Value)
		case "private":
			a.private = number(kv.Value)
		case "narrow":
			a.narrow = true
		case "mux":
			a.mux = true
		case "zeroUnknown":
			a.zeroUnknown = true
		default:
			panic(field)
		}
	}
	return a
}

// order is the machine's byte order.
func (m *machine) order() binary.ByteOrder {
	if m.bigEndian {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

func TestMachines(t *testing.T) {
	for goarch, m := range machines() {
		names := []string{}
		for _, a := range m.abis {
			names = append(names, string(a.name))
		}
		t.Logf("%s: %d calls, %v", goarch, len(m.calls), names)
		if !slices.IsSortedFunc(m.calls, func(a, b callNumbers) int { return strings.Compare(a.name, b.name) }) {
			t.Errorf("%s: lookup searches by halves", goarch)
		}
		// A number has one name: a second would speak for the first (arm's call 0 was named syscall_mask, too), or disagree on what is narrow.
		for i := range m.abis {
			seen := map[int]string{}
			for _, c := range m.calls {
				n := c.numbers[i]
				if other, ok := seen[n]; ok && n >= 0 && c.name != "sync_file_range2" {
					t.Errorf("%s: %s and %s", goarch, other, c.name)
				}
				seen[n] = c.name
			}
		}
	}
	if m := machines()[runtime.GOARCH]; m == nil || m.order() != orderOf(binary.NativeEndian.Uint16([]byte{0, 1})) || !slices.Equal(m.abis, host().abis) {
		t.Error("the host's table was read wrongly")
	}
}

func orderOf(n uint16) binary.ByteOrder {
	if n == 1 {
		return binary.BigEndian
	}
	return binary.LittleEndian
}
