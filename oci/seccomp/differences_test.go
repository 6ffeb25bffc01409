package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vitrine-runtime/vitrine/oci/seccomp/profile"
)

// What libseccomp makes of a profile, call by call beside what we make of it. There are differences, and this is the whole list of them.
//
// Those that we mean are modelled: the evaluator, asked to take the profile as libseccomp does (judge.scmp), must say exactly what libseccomp's program does.
//
//   - A number that is newer than the profile: we answer ENOSYS, as runc does in front of libseccomp's program.
//   - Widths: we compare what the kernel declares as 32 bits as 32 bits. libseccomp compares 64 bits on 64-bit ABIs, so that AF_VSOCK | 1<<32 is not
//     AF_VSOCK; and on the others, x32 and n32 among them, it also cuts the rule's value to 32 bits, and takes a test away whose mask then is empty.
//   - Multiplexers: of a rule for socket with arguments libseccomp keeps for socketcall the action and the tests of all arguments but the first,
//     which there look at the wrong things. See the package comment for what we do. Where two rules become the same by that, it refuses the profile.
//     For ipc it compares the version in the upper half too.
//
// The others are libseccomp's faults. They are recognised by what they do, and only where the profile is such that they can occur:
const (
	// Its program says what no rule that matches says, or not what the only one that matches says: rules with several tests lose their way in its tree,
	// and on 64-bit ABIs GT and LT share nodes for the upper word (GHSA-4q85-33p6-j5g6 is one such case).
	fault = "libseccomp follows no rule that matches"
	// Its program never loads the number of a call, and compares something else. A profile with a name that an ABI has only behind a multiplexer or not
	// at all can lead to this.
	blind = "libseccomp does not look at the number"
	// Of two rules that match it follows the other one. LE 5 and GT 5, GE 5 and LT 5, and upper words share a node, and then one takes the place of the
	// other, which one depends on what else there is.
	swapped = "libseccomp has another order among rules with several tests, or with LT, LE, GE and GT"
	// Rules that differ are taken for the same.
	merged = "libseccomp refuses rules with several tests as contradictions, which are none"
)

// asked is a profile on a machine, at both.
type asked struct {
	*testing.T
	o            *oracle
	ours, theirs *Filter
	j, like      *judge
	rnd          *rand.Rand
	tests        map[string][]specs.LinuxSeccompArg
	meant        int // calls with differences that we mean
	calls        int
	faults       map[string]int // calls with others, by name
}

// ask compares a profile, for all numbers.
func ask(t *testing.T, o *oracle, m *machine, p *specs.LinuxSeccomp, numbers []uint32, rnd *rand.Rand) *asked {
	t.Helper()
	a := &asked{T: t, o: o, rnd: rnd, j: newJudge(m, p), like: newJudge(m, p), tests: map[string][]specs.LinuxSeccompArg{}, faults: map[string]int{}}
	a.like.scmp = true
	var err, theirErr error
	a.ours, err = m.compile(p, Options{Notify: true})
	a.theirs, theirErr = o.filter(m, p)
	switch {
	case err != nil && theirErr == nil:
		a.fail("we refuse the profile: %v", err)
	case err != nil:
		return a
	case theirErr != nil:
		a.refused(theirErr)
		return a
	}
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			a.tests[n] = append(a.tests[n], s.Args...)
		}
	}
	for _, token := range tokens(m) {
		for _, n := range numbers {
			a.number(token, n)
		}
	}
	return a
}

func (a *asked) fail(format string, args ...any) {
	a.Helper()
	b, err := json.Marshal(a.j.p)
	if err != nil {
		a.Fatal(err)
	}
	a.Errorf(format, args...)
	a.Fatalf("%s: %s", a.j.m.abis[0].name, b)
}

// refused finds out why libseccomp does not take a profile that we take.
func (a *asked) refused(err error) {
	many := false
	for i := range a.j.m.abis {
		for n := range a.like.names[i] {
			list := a.like.about(i, n)
			for x, one := range list {
				for _, two := range list[:x] {
					if one.action != two.action && slices.Equal(plainArgs(one.args), plainArgs(two.args)) {
						a.meant++ // a contradiction, after what it does to multiplexed calls
						return
					}
				}
			}
			many = many || a.manyTests(list)
		}
	}
	if !many {
		a.fail("refused without a reason that we know: %v", err)
	}
	a.faults[merged]++
}

// manyTests says whether a rule has more than one.
func (a *asked) manyTests(list []clause) bool {
	return slices.ContainsFunc(list, func(c clause) bool { return len(c.args) > 1 })
}

// number tries one number with many arguments.
func (a *asked) number(token, n uint32) {
	name := a.j.called(token, n)
	c := Call{Number: n, Arch: token}
	if abi := a.j.abi(c); abi >= 0 {
		for _, name := range a.j.names[abi][n] {
			if a.o.number(scmpArch(a.j.m.abis[abi]), name) < 0 {
				return // this libseccomp is older than the call
			}
		}
	}
	a.try(c)
	if name == "socketcall" || name == "ipc" {
		for v := range uint64(26) {
			c.Args = [6]uint64{v}
			a.try(c)
			c.Args = [6]uint64{v | 1<<16}
			a.try(c)
		}
	}
	tests := a.tests[name]
	for range 6 * min(len(tests), 25) {
		for _, t := range tests {
			e := argEdges(t)
			c.Args[t.Index] = e[a.rnd.IntN(len(e))]
		}
		a.try(c)
	}
	for _, t := range tests {
		for _, v := range argEdges(t) {
			c.Args[t.Index] = v
			a.try(c)
		}
	}
}

func (a *asked) try(c Call) {
	a.calls++
	ours, _ := a.ours.run(c, a.j.m.order())
	theirs, _ := a.theirs.run(c, a.j.m.order())
	if ours == theirs {
		return
	}
	if theirs == a.like.answer(c) {
		a.meant++
		return
	}
	abi := a.j.abi(c)
	if abi < 0 {
		a.fail("%#x of %#x, an ABI that is not included: %v, libseccomp %v", c.Number, c.Arch, ours, theirs)
	}
	list := a.like.about(abi, c.Number)
	var matching []Action
	for i := range list {
		if a.like.matches(abi, a.like.names[abi][c.Number], &list[i], c.Args) {
			matching = append(matching, list[i].action)
		}
	}
	orders := slices.ContainsFunc(list, func(c clause) bool {
		return slices.ContainsFunc(c.args, func(a specs.LinuxSeccompArg) bool { return weight(a)%100 != 3 })
	})
	many, wide := a.manyTests(list), a.like.words(abi)
	switch {
	case !asks(a.theirs, c, a.j.m.order()):
		a.faults[blind]++
	case slices.Contains(matching, theirs) && (many || orders):
		a.faults[swapped]++
	case !slices.Contains(matching, theirs) && (many || wide && orders):
		a.faults[fault]++
	default:
		a.fail("%s (%#x of %#x) with %#x: %v, libseccomp %v, matching %v", a.j.called(c.Arch, c.Number), c.Number, c.Arch, c.Args, ours, theirs, matching)
	}
}

// asks says whether a program looks at the number at all before it answers a call.
func asks(f *Filter, c Call, order binary.ByteOrder) bool {
	for n := 1; n < len(f.Insns); n++ {
		if f.Insns[n].Code == codeLoad && f.Insns[n].K == offNumber && runs(f, n, c, order) {
			return true
		}
	}
	return false
}

// runs says whether a call gets to an instruction.
func runs(f *Filter, n int, c Call, order binary.ByteOrder) bool {
	const mark = 0xbad
	marked := Filter{Insns: slices.Clone(f.Insns)}
	marked.Insns[n] = Insn{Code: codeReturn, K: mark}
	a, _ := marked.run(c, order)
	return a == mark
}

// TestProfilesAgainstLibseccomp: profiles as people write them make no difference but those that we mean.
func TestProfilesAgainstLibseccomp(t *testing.T) {
	o := newOracle(t)
	for goarch, m := range machines() {
		if o.number(m.abis[0].token, "read") < 0 {
			t.Logf("%s: this libseccomp does not know it", goarch)
			continue
		}
		profiles := readProfiles(t)
		for name, caps := range capSets {
			p, err := profile.Default(caps, goarch)
			if err != nil {
				t.Fatal(err)
			}
			profiles["default, capabilities "+name] = p
		}
		numbers := allNumbers(m)
		for _, name := range slices.Sorted(maps.Keys(profiles)) {
			o.tree = !o.tree
			a := ask(t, o, m, profiles[name], numbers, rand.New(rand.NewPCG(4, 4)))
			if len(a.faults) > 0 {
				t.Errorf("%s, %s: %v", goarch, name, a.faults)
			}
			if a.theirs != nil {
				t.Logf("%s, %s: %d calls, %d differ as we mean it; %d instructions, libseccomp %d", goarch, name, a.calls, a.meant, len(a.ours.Insns), len(a.theirs.Insns))
			}
		}
	}
}

// readProfiles reads testdata/profiles, and the directory that VITRINE_SECCOMP_DIR names.
func readProfiles(t testing.TB) map[string]*specs.LinuxSeccomp {
	files, err := filepath.Glob("testdata/profiles/*.json")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	if dir := os.Getenv("VITRINE_SECCOMP_DIR"); dir != "" {
		more, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, more...)
	}
	all := map[string]*specs.LinuxSeccomp{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		p := &specs.LinuxSeccomp{}
		if err := json.Unmarshal(b, p); err != nil {
			t.Fatal(f, err)
		}
		all[filepath.Base(f)] = p
	}
	return all
}

// TestRandomProfilesAgainstLibseccomp: random profiles on three machines, with all their ABIs, and all numbers.
func TestRandomProfilesAgainstLibseccomp(t *testing.T) {
	o := newOracle(t)
	for _, goarch := range []string{"amd64", "arm64", "s390x"} {
		m := machines()[goarch]
		numbers := allNumbers(m)
		calls, meant, profiles, refused := 0, 0, 0, 0
		faults := map[string]int{} // profiles
		for seed := uint64(0); profiles-refused < profileCount(170); seed++ {
			rnd := rand.New(rand.NewPCG(seed, 77))
			g := newGenerator(m, rnd)
			g.indexes = min(g.indexes, 4)
			p := g.profile()
			for i := range p.Syscalls {
				s := &p.Syscalls[i]
				s.Args = s.Args[:min(len(s.Args), []int{1, 1, 2, 4}[seed%4])]
			}
			o.tree = seed%3 == 0
			a := ask(t, o, m, p, numbers, rnd)
			calls, meant, profiles = calls+a.calls, meant+a.meant, profiles+1
			if a.theirs == nil {
				refused++
			}
			for f := range a.faults {
				faults[f]++
			}
		}
		t.Logf("%s: %d profiles, of which libseccomp refuses %d; %d calls, %d differ as we mean it", goarch, profiles, refused, calls, meant)
		for _, f := range slices.Sorted(maps.Keys(faults)) {
			t.Logf("%s: %d profiles: %s", goarch, faults[f], f)
		}
	}
}
