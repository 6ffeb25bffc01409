package program

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// MountOptions are the options of one mount, sorted by what they act on:
//
//	Set, Clear         the mount itself (ro, nosuid, noatime, …)
//	SetAll, ClearAll   the mount and all below it (rro, rnosuid, …)
//	Super, Data        the filesystem: flags that each one knows, and its own options
//	Propagation        how mounts made below it spread
//
// Some words are accepted and change nothing, because there is nothing to
// change: silent and loud speak of the kernel's log; iversion is on wherever a
// filesystem has it, and its switch is not part of the mount calls used here;
// norelatime leaves the kernel's default, which is relatime; and those of fstab
// (auto, _netdev, x-…) are for those who read an fstab.
type MountOptions struct {
	Bind      bool // bind, rbind, or the type is bind
	Recursive bool // rbind
	Remount   bool // changes what is mounted at the destination already

	Set, Clear       uint64 // MOUNT_ATTR_*
	SetAll, ClearAll uint64

	// Propagation has MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE in the order of
	// the spec: slave and then shared is a mount that is both. On a bind each applies to the
	// whole tree, with or without the r: a part of it that stayed with its peers of
	// the host would be a surprise.
	Propagation []uint64

	Super []string // sync, dirsync, lazytime, … as fsconfig(2) knows them
	Data  []string // key or key=value

	IDMap  bool // idmap, ridmap, or a mapping without either
	IDTree bool // ridmap: with all that is below
	CopyUp bool // tmpcopyup
}

// attribute is what an option of mount(8) does to the mount.
type attribute struct {
	bits  uint64
	clear bool
}

const atime = unix.MOUNT_ATTR__ATIME

var attributes = map[string]attribute{
	"ro": {unix.MOUNT_ATTR_RDONLY, false}, "rw": {unix.MOUNT_ATTR_RDONLY, true},
	"nosuid": {unix.MOUNT_ATTR_NOSUID, false}, "suid": {unix.MOUNT_ATTR_NOSUID, true},
	"nodev": {unix.MOUNT_ATTR_NODEV, false}, "dev": {unix.MOUNT_ATTR_NODEV, true},
	"noexec": {unix.MOUNT_ATTR_NOEXEC, false}, "exec": {unix.MOUNT_ATTR_NOEXEC, true},
	"nodiratime": {unix.MOUNT_ATTR_NODIRATIME, false}, "diratime": {unix.MOUNT_ATTR_NODIRATIME, true},
	"nosymfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, false}, "symfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, true},
}

// Access-time modes are one field, not bits: its old value has to be cleared.
var atimes = map[string]uint64{
	"relatime": unix.MOUNT_ATTR_RELATIME, "noatime": unix.MOUNT_ATTR_NOATIME, "strictatime": unix.MOUNT_ATTR_STRICTATIME,
}

// notAtimes take one mode back, which leaves the kernel's default (relatime).
var notAtimes = map[string]uint64{
	"atime": unix.MOUNT_ATTR_NOATIME, "nostrictatime": unix.MOUNT_ATTR_STRICTATIME,
}

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE,
}

// superFlags are flags of a superblock that fsconfig(2) takes for every
// filesystem. Those that are true are what a superblock has anyway.
var superFlags = map[string]bool{
	"sync": false, "dirsync": false, "lazytime": false, "mand": false,
	"async": true, "nolazytime": true, "nomand": true,
}

// emptyOptions change nothing; see MountOptions.
var emptyOptions = []string{
	"defaults", "silent", "loud", "iversion", "noiversion", "norelatime", "rnorelatime",
	"auto", "noauto", "nouser", "_netdev", "X-mount.mkdir",
}

// impliedOptions are words of fstab with a meaning for the mount.
var impliedOptions = map[string][]string{
	"user": {"noexec", "nosuid", "nodev"}, "users": {"noexec", "nosuid", "nodev"}, "owner": {"nosuid", "nodev"}, "group": {"nosuid", "nodev"},
}

// refusedOptions are words of mount(8) which it does work for itself, and which
// would otherwise be taken for data of the filesystem.
var refusedOptions = []string{"nofail", "loop", "offset", "sizelimit", "encryption"}

// ParseMount sorts the options of a mount. field names it in errors.
func ParseMount(field string, m *specs.Mount) (MountOptions, error) {
	o := MountOptions{Bind: m.Type == "bind"}
	for _, entry := range m.Options {
		if strings.ContainsRune(entry, 0) || len(entry) > 1<<16 {
			return o, fmt.Errorf("%s.options: %.256q: %w", field, entry, ErrInvalid)
		}
		for _, opt := range splitOptions(entry) {
			key, _, _ := strings.Cut(opt, "=")
			if slices.Contains(refusedOptions, key) || strings.HasPrefix(opt, "X-") && !slices.Contains(emptyOptions, opt) {
				return o, fmt.Errorf("%s.options: %q: %w", field, opt, ErrUnsupported)
			}
			o.add(opt)
		}
	}
	if err := o.mapping(field, m); err != nil {
		return o, err
	}
	switch {
	case o.Bind && !o.Remount:
		if err := o.onBind(field); err != nil {
			return o, err
		}
	case o.Bind && len(o.Data) > 0:
		return o, fmt.Errorf("%s.options: %q on a bind mount: %w", field, o.Data[0], ErrUnsupported)
	case !o.Remount:
		o.Set |= o.SetAll // a new mount has nothing below it
	}
	return o, nil
}

// onBind refuses what a bind mount cannot have, and keeps what its source
// forbids.
func (o *MountOptions) onBind(field string) error {
	if o.CopyUp {
		return fmt.Errorf("%s.options: tmpcopyup on a bind mount: %w", field, ErrInvalid)
	}
	if len(o.Data) > 0 {
		return fmt.Errorf("%s.options: %q on a bind mount: %w", field, o.Data[0], ErrUnsupported)
	}
	for _, f := range o.Super {
		if !superFlags[f] {
			return fmt.Errorf("%s.options: %q, which is the filesystem's, on a bind mount: %w", field, f, ErrUnsupported)
		}
	}
	// "rw" on a bind only says that "ro" was not asked for; clearing the flag would
	// make a read-only source writable. Who means it says rrw, or remounts.
	o.Clear &^= unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	return nil
}

// mapping looks at the mappings of the mount's ids.
func (o *MountOptions) mapping(field string, m *specs.Mount) error {
	if (len(m.UIDMappings) > 0) != (len(m.GIDMappings) > 0) {
		return fmt.Errorf("%s.uidMappings and gidMappings: one without the other: %w", field, ErrInvalid)
	}
	o.IDMap = o.IDMap || len(m.UIDMappings) > 0
	if o.IDMap && o.Remount {
		return fmt.Errorf("%s.options: idmap of what is mounted already: %w", field, ErrUnsupported)
	}
	return nil
}

// add takes one option in.
func (o *MountOptions) add(opt string) {
	if p, ok := propagations[opt]; ok {
		o.Propagation = append(o.Propagation, p)
		return
	}
	if apply(&o.Set, &o.Clear, opt) {
		return
	}
	if r, ok := strings.CutPrefix(opt, "r"); ok && apply(&o.SetAll, &o.ClearAll, r) {
		return
	}
	if _, ok := superFlags[opt]; ok {
		o.Super = append(o.Super, opt)
		return
	}
	switch {
	case opt == "bind":
		o.Bind = true
	case opt == "rbind":
		o.Bind, o.Recursive = true, true
	case opt == "remount":
		o.Remount = true
	case opt == "tmpcopyup":
		o.CopyUp = true
	case opt == "idmap":
		o.IDMap = true
	case opt == "ridmap":
		o.IDMap, o.IDTree = true, true
	case impliedOptions[opt] != nil:
		for _, i := range impliedOptions[opt] {
			apply(&o.Set, &o.Clear, i)
		}
	case opt == "", slices.Contains(emptyOptions, opt), strings.HasPrefix(opt, "x-"), strings.HasPrefix(opt, "comment="):
	default:
		o.Data = append(o.Data, opt)
	}
}

// apply sets or clears the attribute that opt names; the last option wins.
func apply(set, clr *uint64, opt string) bool {
	if v, ok := atimes[opt]; ok {
		*set = *set&^atime | v
		*clr |= atime
		return true
	}
	if v, ok := notAtimes[opt]; ok {
		if *clr&atime == 0 || *set&atime == v {
			*set &^= atime
			*clr |= atime
		}
		return true
	}
	a, ok := attributes[opt]
	if !ok {
		return false
	}
	if a.clear {
		*set &^= a.bits
		*clr |= a.bits
	} else {
		*set |= a.bits
		*clr &^= a.bits
	}
	return true
}

// splitOptions takes an entry apart as mount(8) does: at commas that are not in
// double quotes and not behind a backslash. The quotes, which only guard commas, go.
func splitOptions(entry string) []string {
	if !strings.ContainsAny(entry, `,"`) {
		return []string{entry}
	}
	var out []string
	var cur strings.Builder
	quoted, escaped := false, false
	for _, r := range []byte(entry) {
		switch {
		case escaped:
			escaped = false
			cur.WriteByte(r)
		case r == '"':
			quoted = !quoted
		case r == ',' && !quoted:
			out = append(out, cur.String())
			cur.Reset()
		default:
			escaped = r == '\\'
			cur.WriteByte(r)
		}
	}
	return append(out, cur.String())
}
