package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Image is a container image that is made of files of this machine.
type Image struct {
	Names      []string          // full references, such as docker.io/library/nginx:1.27
	Files      map[string]string // path in the image, without a slash at its start, to a file or directory here
	Texts      map[string]string // path in the image to content
	Links      map[string]string // path in the image to a symbolic link's target
	Dirs       []string          // directories beside those of the files, writable for everybody
	Entrypoint []string
	Cmd        []string
}

// Pack writes the image as a docker-archive.
func (im Image) Pack(name string) (err error) {
	layer, err := im.layer()
	if err != nil {
		return fmt.Errorf("image %s: %w", im.Names, err)
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{
			"Env":        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			"Entrypoint": im.Entrypoint, "Cmd": im.Cmd, "WorkingDir": "/",
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
		"history": []map[string]string{{"created_by": "csi-s3 e2e"}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": digest(config) + ".json", "RepoTags": im.Names, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	for _, part := range []struct {
		name string
		data []byte
	}{{"manifest.json", manifest}, {digest(config) + ".json", config}, {"layer.tar", layer}} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: part.name, Mode: 0o644, Size: int64(len(part.data))}))
		_, werr := w.Write(part.data)
		err = errors.Join(err, werr)
	}
	return errors.Join(err, w.Close(), f.Close())
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// layer is the image's one layer.
func (im Image) layer() ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	made := map[string]bool{".": true}
	var mkdir func(name string, mode int64) error
	mkdir = func(name string, mode int64) error {
		if name = path.Clean(name); made[name] {
			return nil
		}
		made[name] = true
		if err := mkdir(path.Dir(name), 0o755); err != nil {
			return err
		}
		return w.WriteHeader(&tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: mode})
	}
	for _, d := range im.Dirs {
		if err := mkdir(d, 0o1777); err != nil {
			return nil, err
		}
	}
	for _, name := range sortedKeys(im.Files) {
		root := im.Files[name]
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			in := path.Join(name, filepath.ToSlash(rel))
			st, err := os.Stat(p)
			if err != nil {
				return err
			}
			if st.IsDir() {
				return mkdir(in, 0o755)
			}
			if err := mkdir(path.Dir(in), 0o755); err != nil {
				return err
			}
			if err := w.WriteHeader(&tar.Header{Name: in, Mode: int64(st.Mode().Perm()), Size: st.Size()}); err != nil {
				return err
			}
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			defer f.Close() //nolint:errcheck // it was only read
			_, err = io.Copy(w, f)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	for _, name := range sortedKeys(im.Texts) {
		text := im.Texts[name]
		if err := mkdir(path.Dir(name), 0o755); err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text))}); err != nil {
			return nil, err
		}
		if _, err := w.Write([]byte(text)); err != nil {
			return nil, err
		}
	}
	for _, name := range sortedKeys(im.Links) {
		if err := mkdir(path.Dir(name), 0o755); err != nil {
			return nil, err
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: im.Links[name], Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// fileName is a file name that says which image it is.
func (im Image) fileName() string {
	return strings.NewReplacer("/", "_", ":", "_").Replace(im.Names[0]) + ".tar"
}
