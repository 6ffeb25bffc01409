package machine

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"
)

// agentUnit starts the agent as soon as there are devices and file systems: a boot that hangs later can then be looked at.
const agentUnit = `[Unit]
Description=Agent of the test harness
DefaultDependencies=no
Requires=-.mount
After=systemd-remount-fs.service systemd-tmpfiles-setup-dev.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/run/vitrine-vm/agent
Delegate=yes
Restart=always
RestartSec=200ms
OOMScoreAdjust=-1000
TasksMax=infinity
LimitNOFILE=1048576
LimitCORE=infinity
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
`

// writeInitrd makes the initial RAM disk: an uncompressed cpio archive (newc) with the agent as /init, the modules and the unit.
func writeInitrd(to, agent, modules string) error {
	var c cpio
	program, err := os.ReadFile(agent)
	if err != nil {
		return err
	}
	c.add("init", 0o100755, program)
	for _, d := range []string{"dev", "proc", "newroot", "modules", "units"} {
		c.add(d, 0o040755, nil)
	}
	c.add("units/vitrine-agent.service", 0o100644, []byte(agentUnit))
	files, err := filepath.Glob(modules + "/*")
	if err != nil {
		return err
	}
	sort.Strings(files)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		c.add("modules/"+filepath.Base(f), 0o100644, b)
	}
	c.add("TRAILER!!!", 0, nil)
	return os.WriteFile(to, c.buf.Bytes(), 0o644)
}

// cpio writes the one format that the kernel reads; see the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
type cpio struct {
	buf   bytes.Buffer
	inode int
}

func (c *cpio) add(name string, mode int, body []byte) {
	c.inode++
	fmt.Fprintf(&c.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", c.inode, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name)+1, 0)
	c.buf.WriteString(name + "\x00")
	c.pad()
	c.buf.Write(body)
	c.pad()
}

func (c *cpio) pad() {
	for c.buf.Len()%4 != 0 {
		c.buf.WriteByte(0)
	}
}
