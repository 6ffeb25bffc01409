package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// single is a configuration file that needs no list.
const single = `{"cniVersion":"1.0.0","name":%q,"type":"fake"}`

func TestConfigurationIsPickedUp(t *testing.T) {
	n := newNetwork(t)
	n.script("fake", "")
	ready := func(want string) {
		t.Helper()
		err := n.Status(t.Context())
		list, _ := n.confs.current()
		if want == "" {
			if !errors.Is(err, ErrNotReady) {
				t.Fatalf("status: %v", err)
			}
			return
		}
		if err != nil || list.Name != want {
			t.Fatalf("network %v, %v; want %s", list, err, want)
		}
	}
	path := func(name string) string { return n.dir + "/conf/" + name }
	ready("")
	n.conf("50-a.conf", fmt.Sprintf(single, "a"))
	ready("a")
	n.conf("10-b.json", fmt.Sprintf(single, "b"))
	ready("b")
	n.conf("00-broken.conflist", `{"name":`)
	n.conf("01-empty.conf", "")
	n.conf("02-other.txt", fmt.Sprintf(single, "other"))
	n.conf("03-directory.conf/x.conf", fmt.Sprintf(single, "deep"))
	must(t, os.Symlink("/nowhere", path("04-dangling.conf")), unix.Mkfifo(path("05-fifo.conf"), 0o600))
	must(t, os.WriteFile(path("06-big.conf"), make([]byte, maxConf+1), 0o600))
	ready("b")
	must(t, os.WriteFile(n.dir+"/elsewhere", []byte(fmt.Sprintf(single, "link")), 0o600), os.Symlink("../elsewhere", path("07-link.conf")))
	ready("link")
	must(t, os.WriteFile(n.dir+"/elsewhere", []byte(fmt.Sprintf(single, "lonk")), 0o600))
	ready("lonk")
	must(t, os.Rename(path("50-a.conf"), path("06-a.conf")))
	ready("a")
	must(t, os.RemoveAll(n.dir+"/conf"))
	ready("")
	must(t, os.Mkdir(n.dir+"/conf", 0o755))
	ready("")
	n.conf("1.conf", fmt.Sprintf(single, "again"))
	ready("again")
	must(t, os.Remove(n.dir+"/bin/fake"))
	ready("")
}

// A file with the size and the date of the one before it is another one.
func TestReplacedConfiguration(t *testing.T) {
	n := newNetwork(t)
	date := time.Unix(1_700_000_000, 0)
	for i := range 10 {
		name := fmt.Sprint("net", i)
		n.conf("new", fmt.Sprintf(single, name))
		must(t, os.Chtimes(n.dir+"/conf/new", date, date), os.Rename(n.dir+"/conf/new", n.dir+"/conf/1.conf"))
		list, err := n.confs.current()
		must(t, err)
		if list.Name != name {
			t.Fatalf("%s is still %s", name, list.Name)
		}
	}
}

// What would fail for every pod makes the node not ready, with the reason.
func TestRefusedConfiguration(t *testing.T) {
	for name, tt := range map[string]struct{ file, text, want string }{
		"not JSON":             {"a.conflist", `hello`, "invalid character"},
		"no name":              {"a.conflist", `{"cniVersion":"1.0.0","plugins":[{"type":"fake"}]}`, "no name"},
		"no name in a single":  {"a.conf", `{"cniVersion":"1.0.0","type":"fake"}`, "name"},
		"name with a path":     {"a.conflist", `{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"fake"}]}`, "name"},
		"name too long":        {"a.conf", fmt.Sprintf(single, strings.Repeat("n", 101)), "too long"},
		"no plugins":           {"a.conflist", `{"cniVersion":"1.0.0","name":"x"}`, "no plugins"},
		"empty plugins":        {"a.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[]}`, "no plugins"},
		"no type":              {"a.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{}]}`, "type"},
		"null plugin":          {"a.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[null]}`, "type"},
		"type with a path":     {"a.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"../../bin/sh"}]}`, `plugin type "`},
		"type of 4 KiB":        {"a.conf", `{"cniVersion":"1.0.0","name":"x","type":"` + strings.Repeat("t", 4096) + `"}`, `plugin type "`},
		"type of dots":         {"a.conf", `{"cniVersion":"1.0.0","name":"x","type":".."}`, `plugin type "`},
		"version of letters":   {"a.conflist", `{"cniVersion":"one","name":"x","plugins":[{"type":"fake"}]}`, "cniVersion"},
		"version of four":      {"a.conf", `{"cniVersion":"1.0.0.0","name":"x","type":"fake"}`, "cniVersion"},
		"plugin not installed": {"a.conf", `{"cniVersion":"1.0.0","name":"x","type":"missing"}`, "missing"},
		"too big":              {"a.conf", strings.Repeat(" ", maxConf) + fmt.Sprintf(single, "x"), "more than"},
		"empty":                {"a.conf", "", "a.conf"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			n.script("fake", "")
			n.conf(tt.file, tt.text)
			err := n.Status(t.Context())
			if !errors.Is(err, ErrNotReady) {
				t.Fatalf("status: %v", err)
			}
			has(t, err.Error(), tt.want)
			if _, err := n.Add(t.Context(), pod("p", "/nowhere")); !errors.Is(err, ErrNotReady) {
				t.Errorf("Add: %v", err)
			}
			n.nothingLeft()
		})
	}
}

// Two changes within one step of the kernel's clock, which the dates do not tell apart, and a look between them: the second one counts.
func TestConfChangedTwiceAtOnce(t *testing.T) {
	n := newNetwork(t)
	n.script("fake", "")
	for i := range 200 {
		version := []string{"1.0.0", "1.1.0"}[i%2]
		n.list(version, "fake")
		list, err := n.confs.current()
		must(t, err)
		if list.CNIVersion != version {
			t.Fatalf("after change %d the version is %s", i, list.CNIVersion)
		}
	}
	time.Sleep(2 * tick)
	_, err := n.confs.current()
	must(t, err)
	if n.confs.seen == nil {
		t.Error("a file that does not change is read each time")
	}
}

// Version 1.1 has a question for it; older versions do not.
func TestStatusOfPlugin(t *testing.T) {
	n := newNetwork(t)
	n.script("fake", `test $CNI_COMMAND = STATUS && { echo '{"cniVersion":"1.1.0","code":50,"msg":"agent is starting"}'; exit 1; }`)
	n.list("1.0.0", "fake")
	must(t, n.Status(t.Context()))
	n.list("1.1.0", "fake")
	err := n.Status(t.Context())
	if !errors.Is(err, ErrNotReady) {
		t.Fatal(err)
	}
	has(t, err.Error(), "agent is starting", "test")
	n.script("fake", `test $CNI_COMMAND = STATUS && exit 0`)
	must(t, n.Status(t.Context()))
	n.script("fake", `sleep 1000`)
	if err := n.Status(within(t, 100*time.Millisecond)); !errors.Is(err, ErrNotReady) {
		t.Fatal(err)
	}
}

// Plugins of a directory that belongs to the list are part of it, and of DEL when
// the directory is gone.
func TestPluginsBesideTheList(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	body := `echo "$(basename $0) $CNI_COMMAND" >> $DIR/order; test $CNI_COMMAND = ADD && answer "$(ip 10.0.0.1/8)"; exit 0`
	n.script("first", body)
	n.script("second", body)
	n.list("1.0.0", "first")
	must(t, n.Status(t.Context()))
	n.conf("test/10-second.conf", `{"type":"second"}`)
	_, err := n.Add(t.Context(), pod("p", ns))
	must(t, err, os.RemoveAll(n.dir+"/conf"))
	n.restart()
	must(t, n.Del(t.Context(), "p"))
	order, _ := os.ReadFile(n.dir + "/order")
	if want := "first ADD\nsecond ADD\nsecond DEL\nfirst DEL\n"; string(order) != want {
		t.Errorf("order %q", order)
	}
	n.nothingLeft()
}

// Running pods leave by the list that brought them.
func TestOtherNetworkSince(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.fake(`answer "$(ip 10.0.0.1/8)"`, "")
	_, err := n.Add(t.Context(), pod("p", ns))
	must(t, err)
	n.script("other", "exit 1")
	n.list("1.0.0", "other")
	must(t, n.Del(t.Context(), "p"))
	if want := "ADD p ns=" + ns + "\nDEL p ns=" + ns + "\n"; n.calls() != want {
		t.Errorf("calls %q, want %q", n.calls(), want)
	}
	n.nothingLeft()
}

// FuzzConfiguration reads any file: no panic, and what is accepted makes the same
// list when it is read back from an intent.
func FuzzConfiguration(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"fake"}]}`, `{"cniVersions":["1.0.0",null],"name":"x","plugins":[{"type":"fake"}]}`,
		`{"name":"x","plugins":[null]}`, `{"name":"x","plugins":null}`, `null`, `{"cniVersion":"1.0.0","name":"x","type":"fake","plugins":[{"type":"y"}]}`,
		`{"name":"x","loadOnlyInlinedPlugins":"true","plugins":[{"type":"a","capabilities":null}]}`,
	} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, name := range []string{"a.conf", "a.conflist"} {
			if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
				t.Fatal(err)
			}
			list, err := loadFile(dir, name)
			if err != nil {
				continue
			}
			it := newIntent(pod("p", "/x"), list)
			again, err := it.list()
			if err != nil || again.Name != list.Name || again.CNIVersion != list.CNIVersion || len(again.Plugins) != len(list.Plugins) {
				t.Fatalf("%q makes %+v, and then %+v, %v", raw, list, again, err)
			}
		}
	})
}
