package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
	"github.com/vitrine-runtime/vitrine/oci/bundle"
)

func preparePause(c *call) ([]option, func([]string) (int, error)) {
	return nil, func(args []string) (int, error) {
		return c.with(args, func(ctr *bundle.Container) error { return ctr.Pause(untilInterrupted()) })
	}
}

func prepareResume(c *call) ([]option, func([]string) (int, error)) {
	return nil, func(args []string) (int, error) { return c.with(args, (*bundle.Container).Resume) }
}

func preparePs(c *call) ([]option, func([]string) (int, error)) {
	format := "table"
	return []option{text("format,f", "FORM", "table or json", &format)}, func(args []string) (int, error) {
		if len(args) > 1 {
			return 1, fmt.Errorf("ps: options of ps(1) are not supported: %w", errUsage)
		}
		ctr, err := c.look(args)
		if err != nil {
			return 1, err
		}
		pids, err := ctr.Processes()
		switch {
		case err != nil:
			return 1, err
		case format == "json":
			return 0, printLine(c.out, pids)
		case format != "table":
			return 1, fmt.Errorf("format %q: table or json: %w", format, errUsage)
		}
		rows := [][]string{{"UID", "PID", "PPID", "CMD"}}
		for _, pid := range pids {
			if r := processRow(pid); r != nil {
				rows = append(rows, r)
			}
		}
		table(c.out, rows)
		return 0, nil
	}
}

// processRow describes a process, or is nil if it has ended meanwhile.
func processRow(pid int) []string {
	dir := "/proc/" + strconv.Itoa(pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return nil
	}
	field := func(name string) string {
		for line := range strings.Lines(string(status)) {
			if v, ok := strings.CutPrefix(line, name+":"); ok {
				if f := strings.Fields(v); len(f) > 0 {
					return f[0]
				}
			}
		}
		return "?"
	}
	cmd, err := os.ReadFile(dir + "/cmdline")
	text := strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
	if err != nil || text == "" {
		text = "[" + field("Name") + "]"
	}
	// It is the container's, and may be written to somebody's terminal.
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, text)
	return []string{field("Uid"), strconv.Itoa(pid), field("PPid"), text}
}

func prepareUpdate(c *call) ([]option, func([]string) (int, error)) {
	var file string
	r := &specs.LinuxResources{}
	cpu, mem := &specs.LinuxCPU{}, &specs.LinuxMemory{}
	options := []option{
		text("resources,r", "FILE", "take the limits from this file, as linux.resources in config.json; - is stdin", &file),
		{"blkio-weight", "N", "10 to 1000", func(v string) error {
			n, err := strconv.ParseUint(v, 10, 16)
			w := uint16(n)
			r.BlockIO = &specs.LinuxBlockIO{Weight: &w}
			return err
		}},
		unsigned("cpu-period", "US", "period of the quota", &cpu.Period), signed("cpu-quota", "US", "time in each period; -1: no limit", &cpu.Quota),
		unsigned("cpu-burst", "US", "time that may be saved up", &cpu.Burst), unsigned("cpu-share", "N", "share, 2 to 262144", &cpu.Shares),
		signed("cpu-idle", "N", "1: runs when nobody else does", &cpu.Idle),
		text("cpuset-cpus", "LIST", "processors", &cpu.Cpus), text("cpuset-mems", "LIST", "memory nodes", &cpu.Mems),
		size("memory", "BYTES", "limit of memory; -1: no limit", &mem.Limit), size("memory-reservation", "BYTES", "memory.low", &mem.Reservation),
		size("memory-swap", "BYTES", "limit of memory and swap; -1: no limit", &mem.Swap),
		{"pids-limit", "N", "limit of processes; -1: no limit", func(v string) error {
			n, err := strconv.ParseInt(v, 10, 64)
			r.Pids = &specs.LinuxPids{Limit: &n}
			return err
		}},
		refused("cpu-rt-period", "US", "cgroup2 has no realtime limits"), refused("cpu-rt-runtime", "US", "cgroup2 has no realtime limits"),
		refused("kernel-memory", "BYTES", "cgroup2 counts it as memory"), refused("kernel-memory-tcp", "BYTES", "cgroup2 counts it as memory"),
	}
	return options, func(args []string) (int, error) {
		if *cpu != (specs.LinuxCPU{}) {
			r.CPU = cpu
		}
		if *mem != (specs.LinuxMemory{}) {
			r.Memory = mem
		}
		if file != "" {
			if err := c.readJSON(file, r); err != nil {
				return 1, err
			}
		}
		return c.with(args, func(ctr *bundle.Container) error { return ctr.Update(untilInterrupted(), r) })
	}
}

// readJSON reads a file, or stdin for -.
func (c *call) readJSON(file string, v any) (err error) {
	var b []byte
	if file == "-" {
		b, err = io.ReadAll(io.LimitReader(c.in, 1<<20))
	} else {
		b, err = os.ReadFile(file)
	}
	if err == nil {
		err = specjson.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}

func signed(name, arg, help string, to **int64) option {
	return option{name, arg, help, func(v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		*to = &n
		return err
	}}
}

func unsigned(name, arg, help string, to **uint64) option {
	return option{name, arg, help, func(v string) error {
		n, err := strconv.ParseUint(v, 10, 64)
		*to = &n
		return err
	}}
}

// size takes a number of bytes, also with one of the suffixes k, m, g.
func size(name, arg, help string, to **int64) option {
	return option{name, arg, help, func(v string) error {
		digits, shift := strings.ToLower(strings.TrimRight(v, "bB")), 0
		for i, suffix := range []string{"k", "m", "g", "t"} {
			if d, ok := strings.CutSuffix(digits, suffix); ok {
				digits, shift = d, 10*(i+1)
				break
			}
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err == nil && n > 1<<62>>shift {
			err = strconv.ErrRange
		}
		n <<= shift
		*to = &n
		return err
	}}
}
