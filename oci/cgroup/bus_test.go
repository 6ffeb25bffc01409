package cgroup

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vitrine-runtime/vitrine/internal/dbus"
)

// TestEndOfAJob: jobs of one unit are told apart. That of a start which timed out ends while its stop is waited for.
func TestEndOfAJob(t *testing.T) {
	l := &line{conn: new(dbus.Conn), watches: map[*watch]bool{}}
	removed := func(job, unit, result string) { l.signal(manager, "JobRemoved", []any{uint32(1), job, unit, result}) }
	start, stop, other := l.watch("u.scope"), l.watch("u.scope"), l.watch("v.scope")
	removed("/job/7", "u.scope", "canceled")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for job, w := range map[string]*watch{"/job/8": stop, "/job/7": other} {
		if r, err := l.await(ctx, w, job); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s of %s has not ended: %q, %v", job, w.unit, r, err)
		}
	}
	if r, err := l.await(t.Context(), start, "/job/7"); err != nil || r != "canceled" {
		t.Errorf("/job/7: %q, %v", r, err)
	}
	go removed("/job/8", "u.scope", "done")
	if r, err := l.await(t.Context(), stop, "/job/8"); err != nil || r != "done" {
		t.Errorf("/job/8: %q, %v", r, err)
	}
	for _, w := range []*watch{start, stop, other} {
		l.unwatch(w)
	}
	if len(l.watches) != 0 {
		t.Errorf("%d watches are left", len(l.watches))
	}
}
