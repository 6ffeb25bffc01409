package main

import (
	"reflect"
	"slices"
	"sync"
	"testing"
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
