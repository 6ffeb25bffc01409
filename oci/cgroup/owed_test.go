package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"
	"time"
)

// A scope that is removed while PID 1 is away, which never learns then that it became empty, leaves no unit.
func TestUnitOfAbsence(t *testing.T) {
	if os.Getenv("VITRINE_OWN_GUEST") == "" {
		t.Skip("needs a machine of its own: restarts PID 1; set VITRINE_OWN_GUEST=1 there")
	}
	r := managed(t)
	ctx := context.Background()
	var all []*Scope
	for i := range 10 {
		s, _ := r.place(t, fmt.Sprintf("absent%d", i), nil)
		all = append(all, s)
	}
	r.tree.patience = time.Microsecond // nobody answers so fast
	again := make(chan struct{})
	go func() { defer close(again); systemctl(t, "daemon-reexec") }()
	for _, s := range all { // some before it, some under it
		if err := errors.Join(s.Kill(), s.WaitEmpty(ctx), s.Remove(ctx)); err != nil {
			t.Error(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	<-again
	for _, s := range all {
		if r.waitNoUnit(t, s); t.Failed() {
			break // a minute each
		}
	}
}

// What is owed is asked for until there is an answer, each once, and the end of the tree is the end of the asking.
func TestOwedUnits(t *testing.T) {
	asked := make(chan string)
	answer := make(chan error)
	o := newOwed(func(ctx context.Context, name string) error {
		select {
		case asked <- name:
			return <-answer
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
	})
	o.add("a.scope")
	for _, step := range []struct {
		name string
		err  error
	}{{"a.scope", ErrUnavailable}, {"a.scope", nil}, {"b.scope", fs.ErrInvalid}, {"c.scope", nil}} {
		if got := <-asked; got != step.name {
			t.Fatalf("asked for %s, want %s", got, step.name)
		}
		if step.err != nil && step.name == "a.scope" {
			o.add("b.scope")
			o.add("a.scope") // owed already
			o.add("c.scope")
		}
		answer <- step.err
	}
	o.add("d.scope")
	if got := <-asked; got != "d.scope" {
		t.Errorf("asked for %s after all was paid", got)
	}
	answer <- ErrUnavailable
	o.close()
}
