package machine

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
)

// Recipe says how a root is made. Its digest names the cached result: whatever is changed here makes a new root.
type Recipe struct {
	Version  int // raised when the code that follows the recipe changes its result
	Debian   string
	Suite    string
	Packages []string
	Exclude  []string // paths that dpkg leaves out
	Files    []File
	DiskMiB  int
}

// File is written into the root. Content "" with Link makes a symbolic link.
type File struct {
	Path, Content, Link string
}

// suites are the releases that we promise to run on.
var suites = map[string]string{"12": "bookworm", "13": "trixie"}

// NewRecipe returns the recipe of a Debian release, "12" or "13", with more packages than a test of ours needs.
func NewRecipe(debian string, more ...string) (Recipe, error) {
	suite, ok := suites[debian]
	if !ok {
		return Recipe{}, fmt.Errorf("choose recipe: Debian %q is neither 12 nor 13", debian)
	}
	files := rootFiles()
	if slices.Contains(more, "selinux-policy-default") {
		// Permissive, since the files of a root that is made on a machine without SELinux have no labels.
		files = append(files, File{Path: "/etc/selinux/config", Content: "SELINUX=permissive\nSELINUXTYPE=default\n"})
	}
	return Recipe{
		Version: 1, Debian: debian, Suite: suite, DiskMiB: 8192,
		// What a node has: an init, its bus, names of devices, a network and its filters. e2fsprogs and util-linux are for tests of mounts.
		Packages: append([]string{"linux-image-cloud-amd64", "systemd-sysv", "dbus", "udev", "kmod", "procps", "iproute2", "iptables", "nftables",
			"conntrack", "ethtool", "socat", "e2fsprogs", "xz-utils", "ca-certificates", "apparmor", "busybox-static", "strace", "uidmap"}, more...),
		Exclude: []string{"/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*", "/boot/initrd*"},
		Files:   files,
	}, nil
}

// rootFiles are the few differences from a plain Debian. They save time at boot, which emulation makes dear: nothing that
// first-boot services or timers would do is of use in a machine that lives for minutes. AppArmor itself is on; its service would
// compile the distribution's profiles for six seconds, and a test that wants profiles loads its own.
func rootFiles() []File {
	files := []File{
		{Path: "/etc/hostname", Content: "vitrine-vm\n"},
		{Path: "/etc/hosts", Content: "127.0.0.1 localhost vitrine-vm\n::1 localhost\n"},
		{Path: "/etc/machine-id", Content: "76697472696e652d766d2d3030303031\n"},
		{Path: "/etc/fstab", Content: "# the root comes with the kernel's command line\n"},
		{Path: "/etc/.updated", Content: "\n"}, {Path: "/var/.updated", Content: "\n"},
		{Path: "/etc/profile.d/vitrine.sh", Content: "PS1='vm:\\w# '\n"},
		{Path: "/etc/modprobe.d/vitrine-vm.conf", Content: "blacklist kvm_amd\nblacklist kvm_intel\nblacklist powernow_k8\nblacklist psmouse\nblacklist ata_piix\nblacklist aesni_intel\n"},
	}
	for _, unit := range []string{"getty@.service", "serial-getty@.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
		"apparmor.service", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "systemd-tmpfiles-clean.timer", "systemd-pstore.service", "logrotate.timer", "man-db.timer"} {
		files = append(files, File{Path: "/etc/systemd/system/" + unit, Link: "/dev/null"})
	}
	return files
}

// Digest names the root that the recipe makes.
func (r Recipe) Digest() string {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and numbers only
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
