package specjson

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// fill sets v to something random.
func fill(r *rand.Rand, v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Pointer:
		if depth < 12 && r.IntN(3) > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(r, v.Elem(), depth+1)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i), depth+1)
		}
	case reflect.Slice:
		if n := r.IntN(4); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n-1, n-1))
			for i := range n - 1 {
				fill(r, v.Index(i), depth+1)
			}
		}
	case reflect.Map:
		if n := r.IntN(4); n > 0 {
			v.Set(reflect.MakeMap(v.Type()))
			for range n - 1 {
				k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
				fill(r, k, depth+1)
				fill(r, e, depth+1)
				v.SetMapIndex(k, e)
			}
		}
	case reflect.String:
		v.SetString([]string{"", "plain", "\"q\\\n\t\x01\x7f", "Käse ☃ 𝄞", "<&>"}[r.IntN(5)])
	case reflect.Bool:
		v.SetBool(r.IntN(2) > 0)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(int32(r.Uint32())))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		v.SetUint(r.Uint64() >> (64 - v.Type().Bits()))
	}
}

// Random specs are the same to both libraries, in both directions.
func TestSpecs(t *testing.T) {
	for seed := range uint64(300) {
		want := &specs.Spec{}
		fill(rand.New(rand.NewPCG(seed, 1)), reflect.ValueOf(want).Elem(), 0)
		theirs, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		indented, err := MarshalIndent(want)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range [][]byte{theirs, ours, indented} {
			a, b := &specs.Spec{}, &specs.Spec{}
			if err := json.Unmarshal(text, a); err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, text)
			}
			if err := Unmarshal(text, b); err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, text)
			}
			if !reflect.DeepEqual(a, b) {
				t.Fatalf("seed %d: read differently\n%s", seed, text)
			}
		}
	}
}

type sample struct {
	A string            `json:"a"`
	B *int32            `json:"b,omitempty"`
	C []uint8           `json:"-"`
	D map[string]*bool  `json:"d,omitempty"`
	E []sample          `json:"e,omitempty"`
	F any               `json:"f"`
	G uint64            `json:"g,omitempty"`
	H map[string]string `json:"h"`
	inner
	I string
}

type inner struct {
	J int `json:"j"`
}

// both reads a text with both libraries, and says whether they agree about what is
// right and what it means. Where a name comes twice in an object nobody has to agree.
func both(t *testing.T, text []byte) {
	t.Helper()
	var a, b sample
	theirs, ours := json.Unmarshal(text, &a), Unmarshal(text, &b)
	if (theirs == nil) != (ours == nil) {
		t.Fatalf("%q: theirs %v, ours %v", text, theirs, ours)
	}
	a.clean()
	if ours == nil && !reflect.DeepEqual(a, b) {
		t.Fatalf("%q: theirs %+v, ours %+v", text, a, b)
	}
}

// clean takes out what is not read here.
func (s *sample) clean() {
	s.F = nil
	for i := range s.E {
		s.E[i].clean()
	}
}

var texts = []string{
	`{}`, ` {"a" : "x" } `, `{"a":null,"b":null,"d":null,"e":null}`, `{"A":"fold","i":"x"}`, `{"b":1.0}`, `{"b":1e2}`, `{"b":2147483648}`, `{"b":-2147483648}`, `{"b":01}`,
	`{"g":-1}`, `{"g":18446744073709551615}`, `{"g":18446744073709551616}`, `{"d":{"x":true,"y":null}}`, `{"e":[{"a":"1"},{"e":[]}]}`, `{"f":[1,2.5e-3,{"x":[null,"y"]}]}`,
	`{"a":"\u00e9\ud834\udd1e\ud834x\udd1e\"\\\/\b\f\n\r\t"}`, `{"a":"\x"}`, `{"a":"\u12"}`, "{\"a\":\"\xff\xc3\"}", "{\"a\":\"\n\"}", `{"a":"x"`, `{"a"}`, `{"a":}`, `{,}`, `{"a":"x",}`,
	`[1]`, `"x"`, `5`, `true`, `nul`, `null`, ``, `{} {}`, `{"e":[,]}`, `{"e":[{}`, `{"unknown":{"deep":[[[{}]]]}}`, `{"j":7,"h":{"k":"v"}}`, `{"b":"1"}`, `{"a":1}`, `{"d":[]}`, `{"e":{}}`, `{"b":-}`, `{"b":+1}`, `{"f":.5}`, `{"f":1.}`, `{"f":1e}`, `{"f":tru}`,
}

func TestTexts(t *testing.T) {
	for _, s := range texts {
		both(t, []byte(s))
	}
	deep := strings.Repeat("[", 1200) + strings.Repeat("]", 1200)
	if err := Unmarshal([]byte(`{"f":`+deep+`}`), &sample{}); err == nil {
		t.Error("a text of any depth is read")
	}
	if err := Unmarshal([]byte(`{}`), sample{}); err == nil {
		t.Error("a value that is no pointer is accepted")
	}
	err := Unmarshal([]byte(`{"process":{"user":{"uid":-1}}}`), &specs.Spec{})
	if err == nil || !strings.HasPrefix(err.Error(), "process: user: uid: byte 28: number -1") {
		t.Errorf("an error does not say where it is: %v", err)
	}
}

func FuzzUnmarshal(f *testing.F) {
	for _, s := range texts {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if twice(text) || strings.Count(string(text), "[")+strings.Count(string(text), "{") > maxDepth {
			return // nothing that the two have to agree about
		}
		both(t, text)
	})
}

// twice says whether a name comes twice in one object, with upper and lower case the
// same: what becomes of the first is nobody's business.
func twice(text []byte) bool {
	var v any
	if json.Unmarshal(text, &v) != nil {
		return false
	}
	// Every name of the text is a key of v, unless one comes twice.
	names, d := 0, json.NewDecoder(strings.NewReader(string(text)))
	var open []json.Delim
	key := false // whether a string is a name now
	for {
		t, err := d.Token()
		if err != nil {
			return names != keys(v)
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			open = append(open, t.(json.Delim))
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		default:
			if key {
				names++
				key = false
				continue
			}
		}
		key = len(open) > 0 && open[len(open)-1] == '{'
	}
}

// keys counts the names in a value, those that differ in upper and lower case only
// once.
func keys(v any) (n int) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			n += keys(e)
		}
	case map[string]any:
		seen := map[string]bool{}
		for k, e := range v {
			seen[strings.ToLower(strings.ToUpper(k))] = true
			n += keys(e)
		}
		n += len(seen)
	}
	return n
}

func BenchmarkSpec(b *testing.B) {
	spec := &specs.Spec{}
	fill(rand.New(rand.NewPCG(1, 1)), reflect.ValueOf(spec).Elem(), 0)
	text, err := json.Marshal(spec)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(text)))
	b.Run("ours", func(b *testing.B) {
		for b.Loop() {
			if err := Unmarshal(text, &specs.Spec{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("theirs", func(b *testing.B) {
		for b.Loop() {
			if err := json.Unmarshal(text, &specs.Spec{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
