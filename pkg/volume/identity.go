package volume

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/disk"
)

// ErrCacheDir: the cache directory cannot be used for this volume.
var ErrCacheDir = errors.New("cache directory")

const (
	identityFile   = "identity.json"
	identityFormat = 1
	lockFile       = "lock"
	journalDir     = "journal"
)

// bootIDFile changes with each boot of the node; see random(4).
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// identity says whose cache directory it is. The file is there before anything else is written.
type identity struct {
	Format int    `json:"format"`
	Volume string `json:"volume"`
	Writer string `json:"writer"`           // random, marks the objects that this cache directory wrote
	Boot   string `json:"boot"`             // in which the journal was last recovered
	Leased bool   `json:"leased,omitempty"` // the cache has held the lease of its volume
}

// loadIdentity reads the identity of a cache directory, or makes one for a new directory.
func loadIdentity(fsys disk.FS, volume, boot string) (id identity, err error) {
	text, err := fsys.ReadFile(identityFile)
	if errors.Is(err, fs.ErrNotExist) {
		id = identity{Format: identityFormat, Volume: volume, Writer: strings.ToLower(rand.Text()), Boot: boot}
		return id, id.store(fsys)
	}
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal(text, &id); err != nil {
		return id, fmt.Errorf("%w: %s is damaged: %w", ErrCacheDir, identityFile, err)
	}
	if id.Format < 1 || id.Volume == "" || id.Writer == "" {
		return id, fmt.Errorf("%w: %s is damaged: %q", ErrCacheDir, identityFile, text)
	}
	if id.Format != identityFormat {
		return id, fmt.Errorf("%w was written by a newer version (format %d); use that version", ErrCacheDir, id.Format)
	}
	if id.Volume != volume {
		return id, fmt.Errorf("%w belongs to volume %q, not to %q; use another one", ErrCacheDir, id.Volume, volume)
	}
	return id, nil
}

// store makes the identity durable.
func (id identity) store(fsys disk.FS) (err error) {
	text, err := json.Marshal(id)
	if err != nil {
		return err
	}
	const tmp = identityFile + ".new"
	if err := fsys.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fsys.OpenFile(tmp, true)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(append(text, '\n'), 0); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, identityFile); err != nil {
		return err
	}
	return fsys.SyncDir(".")
}

// bootID names the running boot.
func bootID() (string, error) {
	text, err := os.ReadFile(bootIDFile)
	return string(bytes.TrimSpace(text)), err
}
