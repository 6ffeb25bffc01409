package image

import (
	"context"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

func TestIDIsTheSameInAllCalls(t *testing.T) {
	e := newEnv(t)
	img := image(t, "id", func(c *v1.Config) { c.Env = []string{"A=b"}; c.Entrypoint = []string{"/x"} }, layer(t, file("x", "y")))
	e.reg.push(t, "repo:1", img)

	id := e.pull("registry.example/repo:1")
	equal(t, "id", id, configID(t, img))
	st := e.status("registry.example/repo:1")
	equal(t, "Status", st.ID, id)
	list, err := e.List(soon(t), "")
	must(t, err)
	equal(t, "images", len(list), 1)
	equal(t, "List", list[0].ID, id)
	res, err := e.Resolve(soon(t), id)
	must(t, err)
	equal(t, "Resolve", res.ID, id)
	equalSlices(t, "RepoTags", st.RepoTags, []string{"registry.example/repo:1"})
	equalSlices(t, "RepoDigests", st.RepoDigests, []string{"registry.example/repo@" + digestOf(t, img)})
	equalSlices(t, "Env", st.Config.Env, []string{"A=b"})
	equalSlices(t, "Entrypoint", st.Config.Entrypoint, []string{"/x"})
	equal(t, "Created", st.Created.Unix(), 1700000000)
	if st.Size == 0 {
		t.Fatal("size is 0")
	}
	equal(t, "second pull", e.pull("registry.example/repo:1"), id)
}

func TestPullByDigest(t *testing.T) {
	e := newEnv(t)
	img := simple(t, "digest")
	e.reg.push(t, "repo:1", img)
	ref := "registry.example/repo@" + digestOf(t, img)
	id := e.pull(ref)
	st := e.status(id)
	equalSlices(t, "RepoTags", st.RepoTags, nil)
	equalSlices(t, "RepoDigests", st.RepoDigests, []string{ref})
	equal(t, "by the reference", e.status(ref).ID, id)

	// With a tag beside it the digest decides, and the tag is not taken on.
	equal(t, "tag and digest", e.pull("registry.example/repo:whatever@"+digestOf(t, img)), id)
	st = e.status("registry.example/repo:whatever@" + digestOf(t, img))
	equalSlices(t, "RepoTags", st.RepoTags, nil)
	equalSlices(t, "RepoDigests", st.RepoDigests, []string{ref})
}

// index makes a multi-arch index: img for this platform and another one.
func index(t *testing.T, img v1.Image, salt string) v1.ImageIndex {
	t.Helper()
	foreign := simple(t, "foreign "+salt)
	return mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
	)
}

func TestPullIndex(t *testing.T) {
	e := newEnv(t)
	img := simple(t, "multi")
	idx := index(t, img, "one")
	e.reg.pushIndex(t, "multi:1", idx)
	e.reg.pushIndex(t, "again:1", index(t, img, "two"))

	id := e.pull("registry.example/multi:1")
	equal(t, "id", id, configID(t, img))
	want := []string{"registry.example/multi@" + digestOf(t, idx)}
	equalSlices(t, "RepoDigests", e.status(id).RepoDigests, want)
	equal(t, "by the platform's digest", e.status("registry.example/multi@"+digestOf(t, img)).ID, id)

	// Again, and by digest of the index: nothing changes.
	e.pull("registry.example/multi:1")
	e.pull("registry.example/multi@" + digestOf(t, idx))
	equalSlices(t, "RepoDigests", e.status(id).RepoDigests, want)

	// The same image in another repository's other index, and plain in a third:
	// each repository is credited with what it served.
	e.reg.push(t, "plain:1", img)
	e.pull("other.example/again:1")
	e.pull("other.example/again:1")
	e.pull("other.example/plain:1")
	want = []string{
		"other.example/again@" + digestOf(t, index(t, img, "two")),
		"other.example/plain@" + digestOf(t, img),
		want[0],
	}
	equalSlices(t, "RepoDigests", e.status(id).RepoDigests, want)
}

func TestTagsOfOneImage(t *testing.T) {
	e := newEnv(t)
	img := simple(t, "tags")
	for _, tag := range []string{"1", "2", "3"} {
		e.reg.push(t, "tags:"+tag, img)
		equal(t, "id", e.pull("registry.example/tags:"+tag), configID(t, img))
	}
	e.reg.push(t, "bystander", simple(t, "bystander"))
	e.pull("registry.example/bystander")
	st := e.status("registry.example/tags:2")
	equalSlices(t, "RepoTags", st.RepoTags, []string{"registry.example/tags:1", "registry.example/tags:2", "registry.example/tags:3"})
	equal(t, "digests", len(st.RepoDigests), 1)

	e.remove("registry.example/tags:2")
	for _, ref := range []string{"registry.example/tags:1", "registry.example/tags:3", st.ID, st.RepoDigests[0]} {
		if e.status(ref) != nil {
			t.Fatalf("%s is still there", ref)
		}
	}
	list, err := e.List(soon(t), "")
	must(t, err)
	equal(t, "images left", len(list), 1)
	e.wantLayers(1)
	e.remove("registry.example/tags:2") // unknown now
}

func TestOneImageFromTwoRegistries(t *testing.T) {
	e := newEnv(t)
	img := simple(t, "pause")
	e.reg.push(t, "pause:3.9", img)
	a, b := e.pull("registry.example/pause:3.9"), e.pull("other.example/pause:3.9")
	equal(t, "id", a, b)
	st := e.status(a)
	equalSlices(t, "RepoTags", st.RepoTags, []string{"other.example/pause:3.9", "registry.example/pause:3.9"})
	equalSlices(t, "RepoDigests", st.RepoDigests, []string{"other.example/pause@" + digestOf(t, img), "registry.example/pause@" + digestOf(t, img)})
	e.remove("other.example/pause:3.9")
	if e.status("registry.example/pause:3.9") != nil || e.status(a) != nil {
		t.Fatal("the other registry's name is still there")
	}
	e.wantLayers(0)
}

func TestTagMoves(t *testing.T) {
	e := newEnv(t)
	old, next := simple(t, "old"), simple(t, "new")
	e.reg.push(t, "app", old)
	first := e.pull("registry.example/app")
	e.reg.push(t, "app", next)
	second := e.pull("registry.example/app")
	equal(t, "tag", e.status("registry.example/app").ID, second)
	st := e.status(first)
	equalSlices(t, "RepoTags of the old image", st.RepoTags, nil)
	equalSlices(t, "RepoDigests of the old image", st.RepoDigests, []string{"registry.example/app@" + digestOf(t, old)})
}

func TestFindForms(t *testing.T) {
	e := newEnv(t)
	img := simple(t, "forms")
	e.reg.push(t, "library/forms", img)
	id := e.pull("docker.io/forms")
	hex := strings.TrimPrefix(id, "sha256:")
	for _, ref := range []string{
		id, hex, hex[:12], "sha256:" + hex[:12], hex[:4],
		"docker.io/library/forms:latest", "docker.io/library/forms", "docker.io/forms:latest",
		"docker.io/library/forms@" + digestOf(t, img), "docker.io/library/forms:x@" + digestOf(t, img),
	} {
		if st := e.status(ref); st == nil || st.ID != id {
			t.Errorf("%s: %+v", ref, st)
		}
		list, err := e.List(soon(t), ref)
		must(t, err)
		equal(t, "List of "+ref, len(list), 1)
	}
	for _, ref := range []string{
		"forms", "docker.io/library/forms:2", hex[:3], "sha256:" + strings.Repeat("0", 64), "UPPER", "a b", "docker://x", "-x",
		"a@sha256:" + hex[:63], strings.Repeat("a", 5000), hex + "0",
	} {
		if st := e.status(ref); st != nil {
			t.Errorf("%.80s found %s", ref, st.ID)
		}
		e.remove(ref)
	}
	for name, err := range map[string]error{
		"Status":  second(e.Status(soon(t), "")),
		"Resolve": second(e.Resolve(soon(t), "")),
		"Remove":  e.Remove(soon(t), ""),
	} {
		wantErr(t, name+" of nothing", err, ErrInvalidReference)
	}
	_, err := e.Resolve(soon(t), "docker.io/nothing")
	wantErr(t, "Resolve", err, ErrNotFound)
	if e.status(id) == nil {
		t.Fatal("the image was removed by a reference that does not name it")
	}
}

func TestAmbiguousID(t *testing.T) {
	v := &view{byID: map[string]*entry{}}
	for _, key := range []string{"abcd1" + strings.Repeat("0", 59), "abcd2" + strings.Repeat("0", 59)} {
		e := &entry{key: key}
		v.images = append(v.images, e)
		v.byID[key] = e
	}
	all := func(string) bool { return true }
	_, err := v.find("abcd", nil, all)
	wantErr(t, "abcd", err, ErrInvalidReference)
	e, err := v.find("abcd2", nil, all)
	must(t, err)
	equal(t, "abcd2", e, v.images[1])
	e, err = v.find("abcd", nil, func(id string) bool { return id[4] == '1' })
	must(t, err)
	equal(t, "abcd with one invisible", e, v.images[0])
}

func TestShortNames(t *testing.T) {
	e := newEnv(t)
	img := simple(t, "short")
	e.reg.push(t, "short", img)
	id := e.pull("short") // one search registry
	equalSlices(t, "RepoTags", e.status("short").RepoTags, []string{"search.example/short:latest"})
	equal(t, "Status", e.status("short:latest").ID, id)

	// An alias in a drop-in that appears while the store is open.
	must(t, mkdir(e.conf.RegistriesConf+".d"))
	e.write(e.conf.RegistriesConf+".d/alias.conf", "[aliases]\n\"nick\" = \"other.example/short\"\n")
	e.pull("nick")
	equal(t, "alias", e.status("nick").ID, id)
	equal(t, "tags", len(e.status(id).RepoTags), 2)

	// Several search registries need a person in the mode enforcing, and are
	// tried in order in the mode permissive.
	several := strings.Replace(registriesConf(e.reg.host), `["search.example"]`, `["none.example", "search.example"]`, 1)
	e.write(e.conf.RegistriesConf, several)
	_, err := e.Pull(soon(t), "short", nil)
	wantErr(t, "enforcing", err, ErrInvalidReference)
	e.write(e.conf.RegistriesConf, strings.Replace(several, "enforcing", "permissive", 1))
	equal(t, "permissive", e.pull("short"), id)

	// None: docker.io is not assumed.
	e.write(e.conf.RegistriesConf, strings.Replace(several, `["none.example", "search.example"]`, `[]`, 1))
	_, err = e.Pull(soon(t), "short", nil)
	wantErr(t, "no search registry", err, ErrInvalidReference)
	if e.status("short") != nil {
		t.Fatal("a short name means something without a search registry")
	}
}

func TestUsers(t *testing.T) {
	e := newEnv(t)
	for user, want := range map[string]struct {
		uid  int64 // -1: none
		name string
	}{
		"": {-1, ""}, ":5": {-1, ""}, "0": {0, ""}, "00": {0, ""}, "1002": {1002, ""}, "1003:1004": {1003, ""}, "1003:group": {1003, ""},
		"www-data": {-1, "www-data"}, "www-data:1004": {-1, "www-data"}, "2147483647": {2147483647, ""},
		// Out of range, or a number only to somebody's parser: never a uid.
		"2147483648": {-1, "2147483648"}, "4294967295": {-1, "4294967295"}, "4294967296": {-1, "4294967296"},
		"4294968298": {-1, "4294968298"}, "18446744073709551616": {-1, "18446744073709551616"},
		"-1": {-1, "-1"}, "+0": {-1, "+0"}, "0x0": {-1, "0x0"}, " 0": {-1, " 0"}, "1e3": {-1, "1e3"}, "١": {-1, "١"},
	} {
		uid, name := splitUser(user)
		got := int64(-1)
		if uid != nil {
			got = *uid
		}
		equal(t, "uid of "+user, got, want.uid)
		equal(t, "name of "+user, name, want.name)
	}
	for repo, user := range map[string]string{"num": "1003:1004", "name": "www-data"} {
		e.reg.push(t, repo, image(t, repo, func(c *v1.Config) { c.User = user }, layer(t, file("x", repo))))
		e.pull("registry.example/" + repo)
	}
	num, name := e.status("registry.example/num"), e.status("registry.example/name")
	equal(t, "uid", *num.UID, 1003)
	equal(t, "username", num.Username, "")
	equal(t, "user", num.User, "1003:1004")
	equal(t, "username", name.Username, "www-data")
	if name.UID != nil {
		t.Fatal("a uid beside a name")
	}
}

func TestSharedLayerIsStoredOnce(t *testing.T) {
	e := newEnv(t)
	base := layer(t, file("base", strings.Repeat("b", 1<<20)))
	for _, l := range []string{"a", "b"} {
		e.reg.push(t, l, image(t, l, nil, base, layer(t, file(l, l))))
	}
	e.reg.setHook(nil)
	e.pull("registry.example/a")
	e.pull("registry.example/b")
	e.wantLayers(3)
	h, err := base.Digest()
	must(t, err)
	equal(t, "fetches of the shared layer", e.reg.requests("GET /v2/b/blobs/"+h.String())+e.reg.requests("GET /v2/a/blobs/"+h.String()), 1)
	e.remove("registry.example/a")
	e.wantLayers(2)
	e.remove("registry.example/b")
	e.wantLayers(0)
}

func TestImagesSurviveRestart(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	id := e.pull("registry.example/x")
	before := *e.status(id)
	e.restart()
	after := e.status(id)
	if after == nil {
		t.Fatal("the image is gone")
	}
	equalSlices(t, "RepoTags", after.RepoTags, before.RepoTags)
	equalSlices(t, "RepoDigests", after.RepoDigests, before.RepoDigests)
	equal(t, "size", after.Size, before.Size)
	e.remove(id)
	e.restart()
	if e.status(id) != nil {
		t.Fatal("the removed image is back")
	}
	e.wantLayers(0)
}

// second returns the error of a call's two results.
func second[T any](_ T, err error) error { return err }

func TestPullIsWhatContextAllows(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := e.Pull(ctx, "registry.example/x", nil)
	wantErr(t, "cancelled before", err, context.Canceled)
}
