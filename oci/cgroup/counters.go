package cgroup

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// What follows is read by who looks once, such as the command line; whoever looks
// again and again has a Meter.

// Counters returns the lines of a file of names and numbers, such as cpu.stat. It is
// fs.ErrNotExist where the controller is missing.
func (s *Scope) Counters(file string) (map[string]uint64, error) {
	text, err := s.text(file)
	if err != nil {
		return nil, err
	}
	all := map[string]uint64{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			all[name] = n
		}
	}
	return all, nil
}

// text reads a file of the scope.
func (s *Scope) text(file string) (string, error) {
	dir, err := s.OpenDir()
	if err != nil {
		return "", err
	}
	defer dir.Close()
	text, err := readFile(dir.Int(), file)
	if err != nil {
		return "", fmt.Errorf("read cgroup %s: %w", s.path, err)
	}
	return text, nil
}

// DiskStats is what was read from and written to one device since the cgroup was
// made.
type DiskStats struct {
	Major, Minor           uint64
	ReadBytes, WriteBytes  uint64
	ReadOps, WriteOps      uint64
	DiscardBytes, Discards uint64
}

// Disks returns io.stat. It is fs.ErrNotExist where the controller is missing.
func (s *Scope) Disks() ([]DiskStats, error) {
	text, err := s.text("io.stat")
	if err != nil {
		return nil, err
	}
	return parseDisks(text), nil
}

func parseDisks(text string) (list []DiskStats) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		var d DiskStats
		major, minor, _ := strings.Cut(f[0], ":")
		var errs [2]error
		d.Major, errs[0] = strconv.ParseUint(major, 10, 32)
		d.Minor, errs[1] = strconv.ParseUint(minor, 10, 32)
		if errors.Join(errs[:]...) != nil {
			continue // a device without a number has no place in anybody's list
		}
		for _, kv := range f[1:] {
			name, value, _ := strings.Cut(kv, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			to := map[string]*uint64{"rbytes": &d.ReadBytes, "wbytes": &d.WriteBytes, "rios": &d.ReadOps, "wios": &d.WriteOps,
				"dbytes": &d.DiscardBytes, "dios": &d.Discards}[name]
			if err == nil && to != nil {
				*to = n
			}
		}
		list = append(list, d)
	}
	return list
}

// Amounts returns what is used of something, and its limit, from the two files of one
// number each. A limit of max is none, and not Known. It is fs.ErrNotExist where the
// controller is missing.
func (s *Scope) Amounts(current, limit string) (now, most Number, err error) {
	for _, f := range []struct {
		name string
		to   *Number
	}{{current, &now}, {limit, &most}} {
		text, err := s.text(f.name)
		if err != nil {
			return Number{}, Number{}, err
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64); err == nil {
			*f.to = Number{Value: n, Known: true}
		}
	}
	return now, most, nil
}
