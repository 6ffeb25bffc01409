package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrInUse: more is in use than the new limit allows. Nothing was changed.
var ErrInUse = errors.New("more is in use")

// Update changes the limits that r names and leaves the others alone: all of
// them or, after an error, none. It reads what each file holds, writes in an order
// that passes through no state worse than the old and the new one, and after a
// failure writes the old values back, last one first. What could not be written
// back, because the cgroup is gone or the kernel refuses, the error says as well.
//
// A memory limit below what is used is ErrInUse: the kernel would take it and
// kill. Files that do not exist are ErrUnenforced as in Create. Devices cannot be
// changed. The caller sees to it that there is one Update of a scope at a time;
// between two of them the values would mix.
func (s *Scope) Update(ctx context.Context, r *specs.LinuxResources) error {
	return s.UpdateThen(ctx, r, nil)
}

// UpdateThen is Update with a last step: commit is given what ReadBack returns of
// the new limits, and the old ones come back if it fails.
func (s *Scope) UpdateThen(ctx context.Context, r *specs.LinuxResources, commit func(took *specs.LinuxResources) error) error {
	defer s.changing()()
	u := updater{write: writeFile, tell: s.publish, commit: commit}
	if err := u.update(ctx, s, r); err != nil {
		return fmt.Errorf("update cgroup %s: %w", s.path, err)
	}
	return nil
}

// updater is the way of an update, with its hands. tell says limits that the files hold already to the service manager, so that it does not
// write its own there at the next occasion; the cgroupfs driver has nobody to tell. commit may be nil.
type updater struct {
	write  func(dir int, file, value string) error
	tell   func(context.Context, []setting) error
	commit func(took *specs.LinuxResources) error
}

func (u *updater) update(ctx context.Context, s *Scope, r *specs.LinuxResources) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r != nil && len(r.Devices) > 0 {
		return fmt.Errorf("devices cannot be changed: %w", ErrInvalid)
	}
	fd, err := s.OpenDir()
	if err != nil {
		return err
	}
	defer fd.Close()
	dir := fd.Int()
	limits, err := plan(keepQuota(dir, r))
	if err != nil {
		return err
	}
	todo, missing, err := changes(dir, limits)
	if err != nil {
		return err
	}
	if err := errors.Join(s.accept(missing, nil), checkUsage(dir, todo)); err != nil {
		return err
	}
	if err := u.apply(dir, todo); err != nil {
		return err
	}
	if err := u.finish(ctx, dir, r, limits); err != nil {
		// The service manager may have heard of it, so it hears of the old limits, too; and what it cannot keep is kept no more.
		s.letGo()
		err = errors.Join(err, u.restore(dir, todo))
		limits = nil
		for _, c := range todo {
			limits = append(limits, c.undo...)
		}
		return errors.Join(err, u.tell(context.WithoutCancel(ctx), limits))
	}
	return nil
}

// finish does what follows when the files are written. What they hold is read before the service manager hears of it: it answers first and
// writes afterwards, and what it rounds would for that moment be taken for the kernel's word.
func (u *updater) finish(ctx context.Context, dir int, r *specs.LinuxResources, limits []setting) error {
	took, err := readBack(dir, r)
	if err == nil {
		err = u.tell(ctx, limits)
	}
	if err != nil || u.commit == nil {
		return err
	}
	return u.commit(took)
}

// change is a setting that has an effect, and what takes it back.
type change struct {
	setting
	key  string
	rank int
	undo []setting
	// all is what the cpuset had from above, if it had no members of its own.
	all string
}

// changes compares limits with what the files hold and returns what is to be
// written, in the order in which to write it, and the files that do not exist.
func changes(dir int, limits []setting) (todo []change, missing []string, err error) {
	for _, l := range merge(limits) {
		content, err := readFile(dir, l.file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if !l.optional && !slices.Contains(missing, l.file) {
				missing = append(missing, l.file)
			}
			continue
		case err != nil:
			return nil, nil, err
		}
		c := change{setting: l, key: keyOf(l.file, l.value)}
		have, found := valueIn(content, c.key)
		if found && same(l.file, l.value, have) {
			continue
		}
		if !found {
			have = unset(l.file, c.key)
		}
		if have == "" && strings.HasPrefix(l.file, "cpuset.") {
			all, err := fields(dir, l.file+".effective")
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, nil, err
			}
			c.all = strings.Join(all, "")
		}
		c.rank = rank(l.file, l.value, have)
		if c.undo, err = undo(dir, l, have); err != nil {
			return nil, nil, err
		}
		todo = append(todo, c)
	}
	for i := range todo { // a dozen at most, and the order of equals stays
		for j := i; j > 0 && todo[j].rank < todo[j-1].rank; j-- {
			todo[j], todo[j-1] = todo[j-1], todo[j]
		}
	}
	return todo, missing, nil
}

// merge leaves one setting for each file and key. The last one counts, as it would
// if all were written; what lines say about different things is joined.
func merge(limits []setting) (out []setting) {
	for _, l := range limits {
		key := keyOf(l.file, l.value)
		i := slices.IndexFunc(out, func(o setting) bool { return o.file == l.file && keyOf(o.file, o.value) == key })
		switch {
		case i < 0:
			out = append(out, l)
		case l.file == "io.max" || l.file == "rdma.max":
			out[i].value += strings.TrimPrefix(l.value, key)
		default:
			out[i] = l
		}
	}
	return out
}

// steps is the order of writing, for the files where it matters whether a value
// grows (+) or shrinks (-). Both the old and the new limits have
//
//	memory.min <= memory.low <= memory.high <= memory.max
//	cpu.max.burst <= the quota in cpu.max, or the kernel refuses
//	no weight for an idle group, or the kernel refuses
//
// and so has every state between, for that matter on the way back as well. What
// makes room comes first, and memory.max shrinks while there is still all the swap
// that there was or will be. Sets come last, because they cannot be undone: where there
// are processes the kernel does not let them become empty again.
var steps = []string{
	"cpu.idle-", "memory.min-", "memory.low-", "cpu.max.burst-",
	"memory.max+", "memory.high+", "memory.swap.max+", "memory.swap.high+",
	"", // all others
	"memory.high-", "memory.max-", "memory.swap.high-", "memory.swap.max-",
	"memory.low+", "memory.min+", "cpu.max.burst+", "cpu.idle+",
	"cpuset.cpus", "cpuset.mems",
}

func rank(file, want, have string) int {
	w, wok := bytesOf(want)
	h, hok := bytesOf(have)
	sign := "+"
	if wok && hok && w < h {
		sign = "-"
	}
	if strings.HasPrefix(file, "cpuset.") {
		sign = ""
	}
	if i := slices.Index(steps, file+sign); i >= 0 {
		return i
	}
	return slices.Index(steps, "")
}

// undo returns what takes a write of l back, where the file holds have.
func undo(dir int, l setting, have string) ([]setting, error) {
	if have == "" {
		have = "\n" // a write of nothing is none
	}
	back := []setting{{file: l.file, value: have}}
	if l.file != "cpu.weight" && l.file != "cpu.weight.nice" && l.file != "cpu.idle" {
		return back, nil
	}
	// An idle group has a weight of the kernel's choice, which cannot be written. It
	// loses its own when it becomes idle, and gets the default one when it ends that.
	idle, err := fields(dir, "cpu.idle")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	wasIdle := len(idle) == 1 && idle[0] == "1"
	switch {
	case wasIdle && l.file == "cpu.idle":
		return back, nil
	case wasIdle:
		return nil, nil
	}
	weight, err := fields(dir, "cpu.weight") // nice is a coarser view of it
	if err != nil {
		return nil, err
	}
	restored := setting{file: "cpu.weight", value: strings.Join(weight, " ")}
	if l.file == "cpu.idle" {
		return append(back, restored), nil
	}
	return []setting{restored}, nil
}

// apply writes todo, or takes back what it wrote.
func (u *updater) apply(dir int, todo []change) error {
	for i, c := range todo {
		if err := u.write(dir, c.file, c.value); err != nil {
			return errors.Join(refusal(c.file, err), u.restore(dir, todo[:i+1]))
		}
	}
	return nil
}

// restore writes the old values back, last one first, and goes on after a failure:
// the more of the old state, the better. A file that holds its old value, as the
// one does whose write failed, is not touched.
func (u *updater) restore(dir int, done []change) error {
	var errs []error
	for _, c := range slices.Backward(done) {
		for _, old := range c.undo {
			content, err := readFile(dir, old.file)
			if now, _ := valueIn(content, keyOf(old.file, old.value)); err == nil && same(old.file, old.value, now) {
				continue
			}
			if err == nil {
				err = u.write(dir, old.file, old.value)
			}
			if errors.Is(err, unix.ENOSPC) && c.all != "" {
				err = u.write(dir, old.file, c.all) // does the same, until there are more above
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("restore the old limit: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// refusal says whose fault it is that the kernel does not take a value.
func refusal(file string, err error) error {
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.EOVERFLOW),
		strings.HasPrefix(file, "io.") && errors.Is(err, unix.ENODEV): // no such disk
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", err, ErrInUse)
	}
	return err
}

// checkUsage refuses a lower memory.max that is below what is used. It sees page
// cache as used, as the kubelet and the other runtimes do.
func checkUsage(dir int, todo []change) error {
	i := slices.IndexFunc(todo, func(c change) bool { return c.file == "memory.max" })
	if i < 0 || todo[i].rank != slices.Index(steps, "memory.max-") {
		return nil
	}
	limit, ok := bytesOf(todo[i].value)
	now, err := fields(dir, "memory.current")
	if err != nil || len(now) != 1 || !ok {
		return err
	}
	if used, err := strconv.ParseUint(now[0], 10, 64); err == nil && used > limit {
		return fmt.Errorf("set memory.max to %s while %s bytes are used: %w", todo[i].value, now[0], ErrInUse)
	}
	return nil
}

// keepQuota fills in the quota where an update has only a period; the kernel
// takes none without the other.
func keepQuota(dir int, r *specs.LinuxResources) *specs.LinuxResources {
	if r == nil || r.CPU == nil || r.CPU.Period == nil || r.CPU.Quota != nil && *r.CPU.Quota != 0 {
		return r
	}
	now, err := fields(dir, "cpu.max")
	if err != nil || len(now) == 0 {
		return r
	}
	quota, err := strconv.ParseInt(now[0], 10, 64)
	if err != nil {
		return r // max
	}
	c, cpu := *r, *r.CPU
	cpu.Quota, c.CPU = &quota, &cpu
	return &c
}
