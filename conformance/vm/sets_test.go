package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Who holds a guest for `vm up` means the guest that `vm up` was asked for, or it takes another one's socket.
func TestHolderMeansTheSameGuest(t *testing.T) {
	asked, args, err := parse([]string{"-debian", "12", "-accel", "tcg", "-memory", "2048", "-cpus", "1", "-nice", "3", "-idle", "5m", "-kernel", "quiet",
		"-cache", t.TempDir(), "-with", "iptables,sudo", "-name", "other", "up"})
	if err != nil || !slices.Equal(args, []string{"up"}) {
		t.Fatal(args, err)
	}
	holds, args, err := parse(asked.holder())
	if err != nil || !slices.Equal(args, []string{"hold"}) || !reflect.DeepEqual(holds, asked) {
		t.Errorf("asked %+v\nholds %+v, %v, %v", asked, holds, args, err)
	}
}

// Each pass of a set is run once, whichever guest comes first.
func TestQueue(t *testing.T) {
	for name, passes := range sets {
		q := &queue{left: slices.Clone(passes)}
		var mu sync.Mutex
		var got []string
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				for p, ok := q.next(); ok; p, ok = q.next() {
					mu.Lock()
					got = append(got, p.name)
					mu.Unlock()
				}
			})
		}
		all.Wait()
		var want []string
		for _, p := range passes {
			want = append(want, p.name)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) || q.drop() != 0 {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// A command and a copy end by themselves unless another time was asked for; the other verbs have deadlines of their own, and a shell has none.
func TestDeadlines(t *testing.T) {
	for _, tt := range []struct {
		verb    string
		timeout time.Duration
		want    time.Duration
	}{
		{"run", 0, 45 * time.Minute}, {"put", 0, 45 * time.Minute}, {"run", 3 * time.Hour, 3 * time.Hour}, {"put", time.Minute, time.Minute},
		{"shell", 0, 0}, {"shell", time.Minute, time.Minute}, {"test", 0, 0}, {"exec", 0, 0}, {"hold", 0, 0}, {"up", 0, 0}, {"build", 0, 0},
	} {
		if got := (&options{timeout: tt.timeout}).deadline(tt.verb); got != tt.want {
			t.Errorf("%s -timeout %v: %v, want %v", tt.verb, tt.timeout, got, tt.want)
		}
	}
}

// Each name in the choice of a pass is that of a test which is there.
func TestChosenTestsExist(t *testing.T) {
	isTest := regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	for name, passes := range sets {
		for _, p := range passes {
			var there []string
			for _, pkg := range p.packages {
				files, err := filepath.Glob(filepath.Join("../..", strings.TrimSuffix(pkg, "..."), "*_test.go"))
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range files {
					b, err := os.ReadFile(f)
					if err != nil {
						t.Fatal(err)
					}
					for _, m := range isTest.FindAllSubmatch(b, -1) {
						there = append(there, string(m[1]))
					}
				}
			}
			for _, choice := range []string{p.run, p.skip} {
				list, ok := strings.CutPrefix(choice, "^Test(")
				if !ok {
					continue
				}
				for _, one := range strings.Split(strings.TrimSuffix(list, ")$"), "|") {
					if !slices.ContainsFunc(there, regexp.MustCompile("^Test"+one+"$").MatchString) {
						t.Errorf("%s, %s: no test is called Test%s", name, p.name, one)
					}
				}
			}
		}
	}
}
