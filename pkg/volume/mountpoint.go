package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// fsType is the type under which the kernel lists our mounts.
const fsType = "fuse.csi-s3"

// device is a superblock: the same for a mount and all that is bound from it, another for each new mount.
type device struct{ major, minor int }

func deviceOf(m *mountinfo.Info) device { return device{m.Major, m.Minor} }
func isOurs(m *mountinfo.Info) bool     { return m.FSType == fsType }

func isReadOnly(m *mountinfo.Info) bool {
	return slices.Contains(strings.Split(m.Options, ","), "ro")
}

// resolve returns path without symbolic links in its parents. It touches the parents only: a stat of the path itself
// may wait for whoever serves a mount there.
func resolve(path string) (string, error) {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) || slices.Contains(strings.Split(path, "/"), "..") || filepath.Clean(path) == "/" {
		return "", fmt.Errorf("%q: %w: it must be absolute, without \"..\", and not the root", path, ErrPath)
	}
	path = filepath.Clean(path)
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrPath, err)
	}
	return filepath.Join(parent, filepath.Base(path)), nil
}

// mountsAt lists what is mounted exactly there, the visible one last. path is resolved.
func mountsAt(path string) ([]*mountinfo.Info, error) {
	return mounts(func(m *mountinfo.Info) bool { return m.Mountpoint == path })
}

// ourMounts lists the mounts of our type.
func ourMounts() ([]*mountinfo.Info, error) { return mounts(isOurs) }

// boundOf lists where else than at dir the superblock is mounted.
func boundOf(d device, dir string) ([]string, error) {
	found, err := mounts(func(m *mountinfo.Info) bool { return deviceOf(m) == d && m.Mountpoint != dir })
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(found))
	for i, m := range found {
		paths[i] = m.Mountpoint
	}
	return paths, nil
}

func mounts(want func(*mountinfo.Info) bool) ([]*mountinfo.Info, error) {
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return !want(m), false })
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return found, nil
}

// clearDead detaches the mounts at path that nobody serves any more. ErrForeign when another one is there.
func clearDead(ctx context.Context, path string) error {
	for {
		on, err := mountsAt(path)
		if err != nil || len(on) == 0 {
			return err
		}
		if err := detachDead(ctx, on[len(on)-1]); err != nil {
			return err
		}
	}
}

// detachDead detaches m if it is ours and dead, else it is ErrForeign.
func detachDead(ctx context.Context, m *mountinfo.Info) error {
	switch {
	case !isOurs(m):
		return fmt.Errorf("%s: %w (%s)", m.Mountpoint, ErrForeign, m.FSType)
	case !dead(ctx, m.Mountpoint):
		return fmt.Errorf("%s: %w: another process serves it, or another volume is there", m.Mountpoint, ErrForeign)
	}
	return detach(m.Mountpoint)
}

// answerTime is how long a mount has to show that it lives.
const answerTime = 3 * time.Second

// dead reports whether the mount at path has lost its server for good. One that does not answer in time is not dead:
// its server may be busy, or about to be replaced.
func dead(ctx context.Context, path string) bool {
	answer := make(chan error, 1)
	// Ends when the mount answers or loses its server; nobody waits for it longer than answerTime.
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(path, &st)
	}()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	case <-ctx.Done():
		return false
	}
}

func detach(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	return nil
}

// openDir opens a directory for naming it only; the server of a mount there is not asked. ErrPath for a symbolic link
// and for what is no directory.
func openDir(path string) (fd int, err error) {
	fd, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%w: %w", ErrPath, &os.PathError{Op: "open", Path: path, Err: err})
	}
	return fd, nil
}

// closeDir closes what openDir opened. Nothing was written through it, so nothing can be lost.
func closeDir(fd int) { _ = unix.Close(fd) }

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// bind shows the mount at source, which is of the superblock want, at target too. Both are taken by descriptor, so that
// neither can be exchanged for a link meanwhile, and the result is looked at: an empty directory of the node's disk is
// never left at target.
func bind(source, target string, want device, readOnly bool) (err error) {
	from, err := openDir(source)
	if err != nil {
		return err
	}
	defer closeDir(from)
	to, err := openDir(target)
	if err != nil {
		return err
	}
	defer closeDir(to)
	if err := unix.Mount(fdPath(from), fdPath(to), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, detach(target))
		}
	}()
	on, err := mountsAt(target)
	if err != nil {
		return err
	}
	if len(on) == 0 {
		return errors.New("the kernel does not show the new mount at its path")
	}
	got := on[len(on)-1]
	if deviceOf(got) != want {
		return fmt.Errorf("%w: what is bound is %s and not the volume", ErrNotStaged, got.FSType)
	}
	if !readOnly || isReadOnly(got) {
		return nil
	}
	// Through the target's new descriptor: the old one still names what is below the mount.
	over, err := openDir(target)
	if err != nil {
		return err
	}
	defer closeDir(over)
	if err := unix.Mount("", fdPath(over), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flagsOf(got), ""); err != nil {
		return fmt.Errorf("make read-only: %w", err)
	}
	return nil
}

// flagsOf returns the flags that a remount must repeat in order not to clear them.
func flagsOf(m *mountinfo.Info) uintptr {
	var flags uintptr
	for option := range strings.SplitSeq(m.Options, ",") {
		switch option {
		case "nosuid":
			flags |= unix.MS_NOSUID
		case "nodev":
			flags |= unix.MS_NODEV
		case "noexec":
			flags |= unix.MS_NOEXEC
		case "noatime":
			flags |= unix.MS_NOATIME
		case "nodiratime":
			flags |= unix.MS_NODIRATIME
		case "relatime":
			flags |= unix.MS_RELATIME
		}
	}
	return flags
}

// immutable is FS_IMMUTABLE_FL of ioctl_iflags(2): nothing can be made below the directory, not even by root.
const immutable = 0x10

// seal makes an empty directory refuse every write while nothing is mounted on it: immutable where its file system has
// that, else without permissions.
func seal(dir string) error {
	return withDir(dir, func(fd int) error {
		flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
		if err == nil {
			if flags&immutable != 0 {
				return nil
			}
			err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|immutable)
		}
		if err == nil {
			return nil
		}
		return unix.Fchmod(fd, 0)
	})
}

// unseal undoes seal. A directory that is gone is success.
func unseal(dir string) error {
	err := withDir(dir, func(fd int) error {
		flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
		if err == nil && flags&immutable != 0 {
			return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^immutable)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&0o777 != 0 {
			return err
		}
		return unix.Fchmod(fd, 0o750)
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// withDir calls do with a directory on which nothing is mounted.
func withDir(dir string, do func(fd int) error) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPath, &os.PathError{Op: "open", Path: dir, Err: err})
	}
	defer closeDir(fd)
	if err := do(fd); err != nil {
		return fmt.Errorf("seal of staging path: %w", &os.PathError{Op: "set flags", Path: dir, Err: err})
	}
	return nil
}
