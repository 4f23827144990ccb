package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies are the directories that a control group has: one for each controller where they are of the first
// version, else one.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		return []string{cgroupRoot}, nil
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() { // the others are links to them
			dirs = append(dirs, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	return dirs, nil
}

func makeCgroups() error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if filepath.Base(d) == "unified" {
			continue
		}
		group := filepath.Join(d, cgroup)
		if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(d, f))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(group, f), value, 0o644)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// removeCgroups removes the groups, which processes that are being killed may still be in for a moment.
func removeCgroups() error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	var left []string
	for range 50 {
		left = nil
		for _, d := range dirs {
			group := filepath.Join(d, cgroup)
			var all []string
			err := filepath.WalkDir(group, func(p string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					all = append(all, p)
				}
				return nil // it is going
			})
			if err != nil {
				return err
			}
			for _, p := range slices.Backward(all) {
				_ = os.Remove(p) // looked at below
			}
			if _, err := os.Stat(group); err == nil {
				left = append(left, group)
			}
		}
		if len(left) == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("control groups are left: %q", left)
}
