package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "crypto/sha512" // digests of blobs
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
)

// recipe is what a manifest and a config say about an image, checked.
type recipe struct {
	id       string        // the config's digest, encoded
	top      digest.Digest // of what the registry served under the name
	instance digest.Digest // of the manifest; top, unless that is an index
	list     []byte        // the index, if there was one
	raw      []byte        // the manifest
	config   []byte
	layers   []layerRef     // bottom first
	files    []artifactFile // of an artifact: its layer is made of them
}

// layerRef is one layer as manifest and config have it.
type layerRef struct {
	id, parent string // in the store: chain ids, encoded
	blob       types.BlobInfo
	diffID     digest.Digest // of the uncompressed tar
}

// manifestKeys are the names that mean something in a manifest or an index. Go's
// decoder takes "Layers" for "layers", others do not: whoever sends both shows
// one image to a scanner and another to us.
var manifestKeys = keySet("schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers", "blobs", "subject",
	"artifactType", "annotations", "digest", "size", "urls", "data", "platform", "architecture", "os", "os.version", "os.features", "variant")

// configKeys are those of a config that decide what runs.
var configKeys = keySet("rootfs", "diff_ids", "config", "architecture", "os", "history")

// freeKeys hold what an image's author names as he likes.
var freeKeys = map[string]bool{"annotations": true, "Labels": true, "Volumes": true, "ExposedPorts": true, "OnBuild": true}

func keySet(names ...string) map[string]string {
	set := map[string]string{}
	for _, n := range names {
		set[strings.ToLower(n)] = n
	}
	return set
}

// maxNesting is far above that of a manifest or a config.
const maxNesting = 32

// checkJSON refuses what two readers could understand differently: a name twice in
// one object, or one of known in other letters. It returns the names at the top.
func checkJSON(raw []byte, known map[string]string) (map[string]bool, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	tok, err := dec.Token()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if tok != json.Delim('{') {
		return nil, fmt.Errorf("%w: not a JSON object", ErrUnsupported)
	}
	top, err := checkObject(dec, known, false, 1)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: there is more behind the JSON object", ErrUnsupported)
	}
	return top, nil
}

func checkObject(dec *json.Decoder, known map[string]string, free bool, depth int) (map[string]bool, error) {
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key, _ := tok.(string)
		if seen[key] {
			return nil, fmt.Errorf("ambiguous: %q is there twice", key)
		}
		seen[key] = true
		if name, ok := known[strings.ToLower(key)]; ok && !free && name != key {
			return nil, fmt.Errorf("ambiguous: %q could mean %q", key, name)
		}
		if err := checkValue(dec, known, free || freeKeys[key], depth); err != nil {
			return nil, err
		}
	}
	_, err := dec.Token()
	return seen, err
}

func checkValue(dec *json.Decoder, known map[string]string, free bool, depth int) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	if depth > maxNesting {
		return errors.New("nested too deep")
	}
	switch tok {
	case json.Delim('{'):
		_, err = checkObject(dec, known, free, depth+1)
		return err
	case json.Delim('['):
		for dec.More() {
			if err := checkValue(dec, known, free, depth+1); err != nil {
				return err
			}
		}
		_, err = dec.Token()
	}
	return err
}

// kindOf returns the media type of a manifest by its content. said is the one that
// came with it over HTTP; it may be of no kind at all, but not of another.
func kindOf(raw []byte, said string) (string, error) {
	keys, err := checkJSON(raw, manifestKeys)
	if err != nil {
		return "", err
	}
	var own struct {
		MediaType     string `json:"mediaType"`
		SchemaVersion int    `json:"schemaVersion"`
	}
	if err := json.Unmarshal(raw, &own); err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if keys["fsLayers"] || own.SchemaVersion != 2 {
		return "", fmt.Errorf("%w: manifest of schema version %d", ErrUnsupported, own.SchemaVersion)
	}
	if keys["manifests"] == (keys["layers"] || keys["config"]) {
		return "", fmt.Errorf("%w: ambiguous: it is both or neither of manifest and index", ErrUnsupported)
	}
	said, _, _ = mime.ParseMediaType(said)
	if own.MediaType == "" {
		own.MediaType = ocispec.MediaTypeImageManifest
		if keys["manifests"] {
			own.MediaType = ocispec.MediaTypeImageIndex
		}
		if knownKind(said) {
			own.MediaType = said // Docker's name for the same
		}
	}
	switch {
	case !knownKind(own.MediaType):
		return "", fmt.Errorf("%w: manifest of type %.100q", ErrUnsupported, own.MediaType)
	case manifest.MIMETypeIsMultiImage(own.MediaType) != keys["manifests"]:
		return "", fmt.Errorf("%w: ambiguous: it is called %s and is none", ErrUnsupported, own.MediaType)
	case said != own.MediaType && (knownKind(said) || strings.Contains(said, "manifest")):
		return "", fmt.Errorf("%w: ambiguous: it is called %s inside and %.100q outside", ErrUnsupported, own.MediaType, said)
	}
	return own.MediaType, nil
}

func knownKind(mime string) bool {
	switch mime {
	case manifest.DockerV2ListMediaType, ocispec.MediaTypeImageIndex, manifest.DockerV2Schema2MediaType, ocispec.MediaTypeImageManifest:
		return true
	}
	return false
}

// chooseInstance finds the build for this platform in an index.
func chooseInstance(raw []byte, kind string, sys *types.SystemContext) (digest.Digest, error) {
	list, err := manifest.ListFromBlob(raw, kind)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if n := len(list.Instances()); n > maxInstances {
		return "", limitError("builds in the index", maxInstances, "")
	}
	d, err := list.ChooseInstance(sys)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return d, checkDigest(d)
}

// checkDigest: text that becomes part of a URL and of paths.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%w: digest %.100q: %w", ErrUnsupported, string(d), err)
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return fmt.Errorf("%w: digest of algorithm %s", ErrUnsupported, a)
	}
	return nil
}

// checkDescriptor checks what a manifest says about a blob.
func checkDescriptor(what string, b types.BlobInfo, most int64) error {
	if err := checkDigest(b.Digest); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if b.Size < 0 {
		return fmt.Errorf("%w: %s: size %d", ErrUnsupported, what, b.Size)
	}
	if b.Size > most {
		return limitError(what, most, "bytes")
	}
	return nil
}

// readManifest fills in what the manifest says. The config comes later.
func (r *recipe) readManifest(kind string, most int64) (config types.BlobInfo, layers []types.BlobInfo, err error) {
	if manifest.MIMETypeIsMultiImage(kind) {
		return config, nil, fmt.Errorf("%w: an index in an index", ErrUnsupported)
	}
	m, err := manifest.FromBlob(r.raw, kind)
	if err != nil {
		return config, nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	config = m.ConfigInfo()
	artifact := !isImageConfig(config.MediaType)
	if artifact && kind != ocispec.MediaTypeImageManifest {
		return config, nil, fmt.Errorf("%w: an artifact of type %.100q, not an image", ErrUnsupported, config.MediaType)
	}
	if err := checkDescriptor("config", config, maxConfig); err != nil {
		return config, nil, err
	}
	if !artifact && config.Digest.Algorithm() != digest.SHA256 {
		return config, nil, fmt.Errorf("%w: the config has a digest of algorithm %s", ErrUnsupported, config.Digest.Algorithm())
	}
	infos := m.LayerInfos()
	if len(infos) > maxLayers {
		return config, nil, limitError("layers", maxLayers, "")
	}
	var sum int64
	for i, l := range infos {
		if err := checkDescriptor(fmt.Sprintf("layer %d", i+1), l.BlobInfo, most); err != nil {
			return config, nil, err
		}
		if sum += l.Size; sum > most {
			return config, nil, limitError("layers", most, "bytes")
		}
		if strings.HasSuffix(l.MediaType, "+encrypted") {
			return config, nil, fmt.Errorf("%w: layer %d is encrypted", ErrUnsupported, i+1)
		}
		// Neither addresses nor annotations of a stranger are used: the one would
		// have us ask other hosts, the other are settings of some store.
		layers = append(layers, types.BlobInfo{Digest: l.Digest, Size: l.Size, MediaType: l.MediaType})
	}
	if artifact {
		r.files, err = artifactFiles(infos)
		return config, nil, err
	}
	r.id = config.Digest.Encoded()
	return config, layers, nil
}

// readConfig checks the config and gives each layer its id.
func (r *recipe) readConfig(raw []byte, layers []types.BlobInfo) error {
	if _, err := checkJSON(raw, configKeys); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	var c ocispec.Image
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("%w: decode config: %w", ErrUnsupported, err)
	}
	if c.OS != "" && c.OS != runtime.GOOS {
		return fmt.Errorf("%w: it is for %.30q", ErrUnsupported, c.OS)
	}
	if len(c.RootFS.DiffIDs) != len(layers) {
		return fmt.Errorf("%w: the manifest has %d layers, the config %d", ErrUnsupported, len(layers), len(c.RootFS.DiffIDs))
	}
	parent := ""
	for i, d := range c.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return fmt.Errorf("config: layer %d: %w", i+1, err)
		}
		if d.Algorithm() != digest.SHA256 {
			return fmt.Errorf("%w: config: layer %d has a digest of algorithm %s", ErrUnsupported, i+1, d.Algorithm())
		}
		id := chainID(parent, d)
		r.layers = append(r.layers, layerRef{id: id, parent: parent, blob: layers[i], diffID: d})
		parent = id
	}
	r.config = raw
	return nil
}

// chainID names a layer by its own content and by all below it, in the library's
// way, so that a store that another version filled is of use.
func chainID(parent string, diffID digest.Digest) string {
	if parent == "" {
		return diffID.Encoded()
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(parent+"+"+diffID.Encoded())))
}

// topLayer returns the id of the image's uppermost layer, or "".
func (r *recipe) topLayer() string {
	if len(r.layers) == 0 {
		return ""
	}
	return r.layers[len(r.layers)-1].id
}

// readAll reads a blob of known size and digest into memory. It never takes more
// than one byte too many.
func readAll(ctx context.Context, body io.Reader, b types.BlobInfo) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(body, b.Size+1))
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, err
	case int64(len(data)) != b.Size:
		return nil, fmt.Errorf("%w: %s has %d bytes or more, the manifest says %d", ErrCorrupt, b.Digest, len(data), b.Size)
	case b.Digest.Algorithm().FromBytes(data) != b.Digest:
		return nil, fmt.Errorf("%w: the data of %s has another digest", ErrCorrupt, b.Digest)
	}
	return data, nil
}
