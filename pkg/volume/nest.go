package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/config"
)

const (
	undrainedSuffix = ".undrained"
	newSuffix       = ".new" // of a mark that is being written
)

// nest is where a volume's cache and mark are; doc.go draws it. The names are hashes, since neither IDs nor endpoints are
// fit for a path. The server is part of the name, so that an ID that is used again with another one never meets the
// data of the first.
type nest struct{ dir, cache, mark string }

func (s *Set) nest(r StageRequest) nest {
	dir := s.volumeDir(r.ID)
	cache := filepath.Join(dir, hashName(r.Secret.Endpoint))
	return nest{dir: dir, cache: cache, mark: cache + undrainedSuffix}
}

func (s *Set) volumeDir(id config.VolumeID) string {
	return filepath.Join(s.CacheDir, "volumes", hashName(id.String()))
}

func hashName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}

// mark is what the mark of a volume says: how it is mounted, without the secret.
type mark struct {
	Volume  string       `json:"volume"`
	Options config.Mount `json:"options"`
}

// occupy makes the mark durable. fresh is false when a dead process left one.
func (s *Set) occupy(n nest, r StageRequest) (fresh bool, err error) {
	s.nests.Lock()
	defer s.nests.Unlock()
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return false, fmt.Errorf("cache directory: %w", err)
	}
	_, err = os.Lstat(n.mark)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("cache directory: %w", err)
	}
	fresh = err != nil
	text, err := json.Marshal(mark{Volume: r.ID.String(), Options: r.Options})
	if err != nil {
		return false, fmt.Errorf("cache directory: %w", err)
	}
	// Replaced as a whole: one that cannot be read would keep the volume from being drained.
	if err := errors.Join(writeFile(n.mark+newSuffix, text), os.Rename(n.mark+newSuffix, n.mark), syncDir(n.dir)); err != nil {
		return false, errors.Join(fmt.Errorf("cache directory: %w", err), n.vacate(fresh))
	}
	return fresh, nil
}

func writeFile(name string, text []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// vacate takes the mark away, if it may.
func (n nest) vacate(may bool) error {
	if !may {
		return nil
	}
	if err := os.Remove(n.mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cache directory: %w", err)
	}
	return syncDir(n.dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// marks returns what processes that mounted the volume and died before it was drained left, by the path of the mark.
func (s *Set) marks(id config.VolumeID) (map[string]mark, error) {
	dir := s.volumeDir(id)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cache directory: %w", err)
	}
	found := map[string]mark{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), undrainedSuffix) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		var m mark
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &m)
		}
		if err != nil {
			return nil, fmt.Errorf("mark %s of the cache directory: %w", path, err)
		}
		found[path] = m
	}
	return found, nil
}
