package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	goneSuffix    = ".gone"
	quarantineDir = "quarantine" // see package cache
)

// Sweep removes the caches of volumes that were unstaged longer ago than age: they hold nothing that the bucket does
// not have, and no volume that is mounted can evict what they take of the disk. The cache of a volume that is mounted,
// or was not drained, or holds what a power cut left of unsynced files, is not touched.
func (s *Set) Sweep(age time.Duration) error {
	base := filepath.Join(s.CacheDir, "volumes")
	// Beneath it nothing is mounted, and no link leads out of it.
	root, err := os.OpenRoot(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep caches: %w", err)
	}
	defer root.Close() //nolint:errcheck // nothing was written through it
	volumes, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return fmt.Errorf("sweep caches: %w", err)
	}
	var errs []error
	for _, v := range volumes {
		if err := s.sweepVolume(root, v.Name(), age); err != nil {
			errs = append(errs, fmt.Errorf("sweep caches: %w", err))
		}
	}
	return errors.Join(errs...)
}

// sweepVolume looks at the directory of one volume ID.
func (s *Set) sweepVolume(root *os.Root, dir string, age time.Duration) error {
	// The mark that comes and goes with each mount sets the time of the directory.
	st, err := root.Stat(dir)
	if err != nil {
		return err
	}
	left, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range left {
		name := dir + "/" + e.Name()
		switch {
		case strings.HasSuffix(name, undrainedSuffix):
			continue
		case strings.HasSuffix(name, goneSuffix): // of a sweep that was broken off
		case time.Since(st.ModTime()) < age:
			continue
		default:
			gone, err := s.abandon(root, name)
			if err != nil {
				errs = append(errs, err)
			}
			if !gone {
				continue
			}
			s.Log.Info("cache of an unstaged volume removed", "dir", name)
			name += goneSuffix
		}
		errs = append(errs, root.RemoveAll(name))
	}
	s.nests.Lock()
	defer s.nests.Unlock()
	if err := root.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// abandon gives a cache a name under which no mount finds it, unless it is in use or holds something of worth.
func (s *Set) abandon(root *os.Root, name string) (bool, error) {
	s.nests.Lock()
	defer s.nests.Unlock()
	if _, err := root.Stat(name + undrainedSuffix); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	kept, err := fs.ReadDir(root.FS(), name+"/"+quarantineDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if len(kept) > 0 {
		return false, nil
	}
	if err := root.Rename(name, name+goneSuffix); err != nil {
		return false, err
	}
	return true, nil
}
