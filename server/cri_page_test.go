package server

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// These tests hold docs/cri.md against the descriptors of cri-api and against the tree. Whether what a row says is true, its
// tests show.

// criRow is one field or call on the page.
type criRow struct {
	state, how string
	tests      []string
}

var criQuoted = regexp.MustCompile("`([^`]+)`")

func criWords(cell string) (words []string) {
	for _, m := range criQuoted.FindAllStringSubmatch(cell, -1) {
		words = append(words, m[1])
	}
	return words
}

// criPage returns the rows by "Message.field" or call, and the tests that the table of traps names.
func criPage(t *testing.T) (rows map[string]criRow, traps [][]string) {
	t.Helper()
	b, err := os.ReadFile("../docs/cri.md")
	if err != nil {
		t.Fatal(err)
	}
	rows = map[string]criRow{}
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		switch {
		case len(cells) == 5 && !strings.HasPrefix(cells[1], " trap") && !strings.HasPrefix(cells[1], " ---"):
			traps = append(traps, append([]string{cells[1], strings.TrimSpace(cells[3])}, criWords(cells[3])...))
		case len(cells) == 6 && strings.HasPrefix(cells[1], " `"):
			row := criRow{strings.TrimSpace(cells[2]), strings.TrimSpace(cells[3]), criWords(cells[4])}
			if of := strings.TrimSpace(cells[4]); of != "-" && len(row.tests) == 0 {
				t.Errorf("%s: %q is neither tests nor a dash", cells[1], of)
			}
			names := criWords(cells[1])
			for _, n := range names {
				if strings.HasPrefix(n, ".") { // of the same message as the first one
					n = names[0][:strings.IndexByte(names[0], '.')] + n
				}
				if _, twice := rows[n]; twice {
					t.Errorf("%s: two rows", n)
				}
				rows[n] = row
			}
		}
	}
	return rows, traps
}

// criReach returns the messages that a request, or else an answer, may hold.
func criReach(requests bool) map[protoreflect.FullName]bool {
	seen := map[protoreflect.FullName]bool{}
	var walk func(m protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		if m == nil || seen[m.FullName()] {
			return
		}
		seen[m.FullName()] = !m.IsMapEntry()
		for i := range m.Fields().Len() {
			walk(m.Fields().Get(i).Message())
		}
	}
	services := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			if m := services.Get(i).Methods().Get(j); requests {
				walk(m.Input())
			} else {
				walk(m.Output())
			}
		}
	}
	return seen
}

// criNames returns what the page must have: the calls, and the fields by whether a client sets them. Messages of Windows
// are one name each.
func criNames() (calls, asked, told []string) {
	file := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto
	for i := range file.Services().Len() {
		for j := range file.Services().Get(i).Methods().Len() {
			calls = append(calls, string(file.Services().Get(i).Methods().Get(j).Name()))
		}
	}
	requests := criReach(true)
	for i := range file.Messages().Len() {
		m := file.Messages().Get(i)
		var names []string
		for j := range m.Fields().Len() {
			names = append(names, string(m.Name())+"."+string(m.Fields().Get(j).Name()))
		}
		if strings.HasPrefix(string(m.Name()), "Windows") {
			names = []string{string(m.Name()) + ".*"}
		}
		if requests[m.FullName()] {
			asked = append(asked, names...)
		} else {
			told = append(told, names...)
		}
	}
	return calls, asked, told
}

// criCounts are the calls, messages and fields of the CRI, and of them what is for Windows; what maps are made of is not counted.
func criCounts() (calls, messages, fields, windows, ofWindows int) {
	file := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto
	for i := range file.Services().Len() {
		calls += file.Services().Get(i).Methods().Len()
	}
	for i := range file.Messages().Len() {
		m := file.Messages().Get(i)
		messages, fields = messages+1, fields+m.Fields().Len()
		if strings.HasPrefix(string(m.Name()), "Windows") {
			windows, ofWindows = windows+1, ofWindows+m.Fields().Len()
		}
	}
	return calls, messages, fields, windows, ofWindows
}

// TestCRIPageCounts: the head of the page has the numbers of this cri-api, and so has this test: another version of it is to be read.
func TestCRIPageCounts(t *testing.T) {
	calls, messages, fields, windows, ofWindows := criCounts()
	got := fmt.Sprintf("%d calls, %d messages, %d fields; of these, %d messages with %d fields are for Windows", calls, messages, fields, windows, ofWindows)
	if want := "43 calls, 175 messages, 478 fields; of these, 15 messages with 49 fields are for Windows"; got != want {
		t.Errorf("cri-api has %s; it had %s", got, want)
	}
	b, err := os.ReadFile("../docs/cri.md")
	if err != nil {
		t.Fatal(err)
	}
	if words := strings.Join(strings.Fields(string(b)), " "); !strings.Contains(words, got+" ") {
		t.Errorf("the page does not say %q", got)
	}
	_, asked, told := criNames()
	if rows := fields - ofWindows + windows; len(asked)+len(told) != rows || len(asked) != 232 || len(told) != 212 {
		t.Errorf("%d rows for what a client sets and %d for answers, want 232 and 212, together %d", len(asked), len(told), rows)
	}
}

// criState says what is wrong with a row's state.
func criState(r criRow, asked bool) string {
	state, code, _ := strings.Cut(r.state, " ")
	var c codes.Code
	switch {
	case asked && state == "honoured" || !asked && state == "filled":
	case asked && state == "refused" && c.UnmarshalJSON([]byte(`"`+criCode(code)+`"`)) == nil:
	case asked && state == "ignored" && r.how != "", !asked && state == "empty": // the reason stands beside it
		return ""
	default:
		return "the state is " + r.state
	}
	if len(r.tests) == 0 {
		return "no test"
	}
	if state != "refused" && code != "" {
		return "the state is " + r.state
	}
	return ""
}

// criCode writes a code as grpc's JSON has it: InvalidArgument is INVALID_ARGUMENT.
func criCode(name string) string {
	return strings.ToUpper(strings.TrimPrefix(regexp.MustCompile(`[A-Z]`).ReplaceAllString(name, "_$0"), "_"))
}

// TestCRIPage: each call and field has one row, each row is of a call or field that there is, has a state that it can have, and
// names tests (that they exist is a rule of the house). Nothing that a client sets is without a word, and what is ignored has a reason.
func TestCRIPage(t *testing.T) {
	rows, traps := criPage(t)
	calls, asked, told := criNames()
	if want := len(calls) + len(asked) + len(told); len(rows) != want || len(traps) < 30 {
		t.Errorf("%d rows for %d calls and fields, %d traps", len(rows), want, len(traps))
	}
	for _, name := range slices.Concat(calls, asked, told) {
		r, ok := rows[name]
		if !ok {
			t.Errorf("%s: no row", name)
			continue
		}
		if wrong := criState(r, !slices.Contains(told, name)); wrong != "" {
			t.Errorf("%s: %s", name, wrong)
		}
	}
	for name, r := range rows {
		if !slices.Contains(calls, name) && !slices.Contains(asked, name) && !slices.Contains(told, name) {
			t.Errorf("%s: cri-api has no such call or field", name)
		}
		for _, f := range r.tests {
			if !strings.HasPrefix(f, "Test") {
				t.Errorf("%s: %q is no test", name, f)
			}
		}
	}
	for _, row := range traps {
		if len(row) == 2 && !strings.HasPrefix(row[1], "none") {
			t.Errorf("the trap%s: %q is neither tests nor none", row[0], row[1])
		}
	}
	// What the server says it will serve later is what the page says is refused.
	for _, call := range calls {
		if _, not := later[call]; not != strings.HasPrefix(rows[call].state, "refused ") {
			t.Errorf("%s: the page says %q", call, rows[call].state)
		}
	}
}
