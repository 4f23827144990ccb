package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// Type is the file system type that a mount shows in /proc/self/mountinfo.
const Type = "fuse.csi-s3"

const (
	device = "/dev/fuse"
	// background is how many reads of files (all are readahead to the kernel) and writes of mapped memory the kernel
	// sends at once. When as many wait for S3, the mount's others wait too, even for what the cache holds. The writes
	// hold up to maxIO bytes each.
	background = 128
	// readahead is what the kernel reads ahead, in KiB; what FUSE negotiates ends at 128.
	readahead = maxIO >> 10
	// lazyWait is how long a detached mount may go on while programs still use it.
	lazyWait = time.Second
	// answerWait is how long requests that were cancelled may hold up Unmount.
	answerWait = 5 * time.Second
)

// Core is the file system that a mount shows: see the methods of vfs.FS.
type Core interface {
	Lookup(ctx context.Context, req vfs.Request, dir inode.Ino, name string) (vfs.Entry, error)
	Forget(ino inode.Ino, n uint64)
	GetAttr(ctx context.Context, req vfs.Request, ino inode.Ino) (inode.Attr, time.Duration, error)
	SetAttr(ctx context.Context, req vfs.Request, ino inode.Ino, h vfs.HandleID, set vfs.SetAttr) (inode.Attr, time.Duration, error)
	Create(ctx context.Context, req vfs.Request, dir inode.Ino, name string, mode uint32, flags int) (vfs.Entry, vfs.HandleID, error)
	Tmpfile(ctx context.Context, req vfs.Request, dir inode.Ino, mode uint32, flags int) (vfs.Entry, vfs.HandleID, error)
	Mkdir(ctx context.Context, req vfs.Request, dir inode.Ino, name string, mode uint32) (vfs.Entry, error)
	Mknod(ctx context.Context, req vfs.Request, dir inode.Ino, name string, mode, rdev uint32) (vfs.Entry, error)
	Symlink(ctx context.Context, req vfs.Request, dir inode.Ino, name, target string) (vfs.Entry, error)
	Link(ctx context.Context, req vfs.Request, ino, dir inode.Ino, name string) (vfs.Entry, error)
	Readlink(ctx context.Context, req vfs.Request, ino inode.Ino) (string, error)
	Unlink(ctx context.Context, req vfs.Request, dir inode.Ino, name string) error
	Rmdir(ctx context.Context, req vfs.Request, dir inode.Ino, name string) error
	Rename(ctx context.Context, req vfs.Request, oldDir inode.Ino, oldName string, newDir inode.Ino, newName string, flags uint32) error
	Open(ctx context.Context, req vfs.Request, ino inode.Ino, flags int) (h vfs.HandleID, keepCache bool, err error)
	Read(ctx context.Context, req vfs.Request, ino inode.Ino, h vfs.HandleID, p []byte, off int64) (int, error)
	Write(ctx context.Context, req vfs.Request, ino inode.Ino, h vfs.HandleID, p []byte, off int64) (int, error)
	Flush(ctx context.Context, req vfs.Request, ino inode.Ino, h vfs.HandleID) error
	Release(ino inode.Ino, h vfs.HandleID)
	Fsync(ctx context.Context, req vfs.Request, ino inode.Ino, h vfs.HandleID, dataOnly bool) error
	Fallocate(ctx context.Context, req vfs.Request, ino inode.Ino, h vfs.HandleID, off, length int64, mode uint32) error
	Lseek(ctx context.Context, req vfs.Request, ino inode.Ino, off int64, whence int) (int64, error)
	OpenDir(ctx context.Context, req vfs.Request, ino inode.Ino) (vfs.HandleID, error)
	ReadDir(ctx context.Context, req vfs.Request, ino inode.Ino, h vfs.HandleID, offset uint64, plus bool, emit func(vfs.DirEntry, vfs.Entry) bool) error
	ReleaseDir(h vfs.HandleID)
	FsyncDir(ctx context.Context, req vfs.Request, ino inode.Ino) error
	Statfs(ctx context.Context) (vfs.Statfs, error)
	GetXattr(ctx context.Context, req vfs.Request, ino inode.Ino, name string) ([]byte, error)
	ListXattr(ctx context.Context, req vfs.Request, ino inode.Ino) ([]string, error)
	SetXattr(ctx context.Context, req vfs.Request, ino inode.Ino, name string, value []byte, flags int) error
	RemoveXattr(ctx context.Context, req vfs.Request, ino inode.Ino, name string) error
	FlushTree(ctx context.Context, ino inode.Ino, progress func(left int64)) error
}

// Options of a mount. Dir is required.
type Options struct {
	Dir        string // mount point, an existing directory, without symbolic links
	Name       string // what is mounted, shown as the source; empty: csi-s3
	ReadOnly   bool
	AllowOther bool          // other users may enter; permissions are always checked
	Status     func() []byte // answers the status ioctl with a JSON object; nil: {}
	Log        *slog.Logger  // nil: slog.Default
}

// Server serves one mount. It implements vfs.Invalidator.
type Server struct {
	core   Core
	opt    Options
	log    *slog.Logger
	pool   *pool
	proto  *fuse.ProtocolServer
	dev    *os.File
	raw    syscall.RawConn
	ctx    context.Context // of all requests: ends with the mount
	cancel context.CancelFunc

	point mountID

	bufs      buffers
	wg        sync.WaitGroup // requests under way
	notifying sync.RWMutex   // held for reading by notifications: no close of the device ends one that waits
	done      chan struct{}
}

// Mount mounts core on a directory and serves it. It returns when the kernel has agreed on the protocol. It needs
// CAP_SYS_ADMIN in the mount's namespace, and /dev/fuse.
func Mount(core Core, opt Options) (*Server, error) {
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	if opt.Name == "" {
		opt.Name = "csi-s3" // the kernel takes no mount without a source
	}
	p, err := sharedPool()
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w; is the kernel module fuse loaded, and the device in this container?", device, err)
	}
	if err := mount(fd, opt); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	s := newServer(core, opt, p)
	// Only now: a device without a mount is in a state that the poller takes for broken for ever.
	s.dev = os.NewFile(uintptr(fd), device)
	if s.raw, err = s.dev.SyscallConn(); err == nil {
		err = s.init()
	}
	if err == nil {
		s.point, err = mountAt(opt.Dir)
	}
	if err != nil {
		s.cancel()
		return nil, errors.Join(fmt.Errorf("agree with the kernel on the mount of %s: %w", opt.Dir, err), unix.Unmount(opt.Dir, unix.MNT_DETACH), s.dev.Close())
	}
	if err := s.point.setReadahead(); err != nil {
		// Reads are slower without it, nothing else.
		s.log.Debug("cannot raise the readahead of the mount", "dir", opt.Dir, "err", err)
	}
	// Ends with the mount; Done tells.
	go s.serve()
	return s, nil
}

// newServer makes a server that has no device yet.
func newServer(core Core, opt Options, p *pool) *Server {
	s := &Server{core: core, opt: opt, log: opt.Log, pool: p, bufs: buffers{large: p.large}, done: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.proto = fuse.NewProtocolServer(&filesystem{RawFileSystem: fuse.NewDefaultRawFileSystem(), core: core, s: s}, &fuse.MountOptions{
		MaxBackground:            background,
		MaxWrite:                 maxIO,
		MaxReadAhead:             maxIO,
		ExplicitDataCacheControl: true,
		EnableSymlinkCaching:     true,
		// Not ASYNC_DIO: with it a program cannot be killed that waits for a direct read or write.
		ExtraCapabilities:    fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_IOCTL_DIR | fuse.CAP_HAS_RESEND,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_NO_OPEN_SUPPORT,
		Logger:               slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		PanicHandler:         s.panicked,
	})
	return s
}

func mount(fd int, opt Options) error {
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if opt.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,max_read=%d,default_permissions", fd, os.Geteuid(), os.Getegid(), maxIO)
	if opt.AllowOther {
		data += ",allow_other"
	}
	err := unix.Mount(opt.Name, opt.Dir, Type, flags, data)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mount on %s: %w; mounting needs root (CAP_SYS_ADMIN)", opt.Dir, err)
	}
	if err != nil {
		return fmt.Errorf("mount on %s: %w", opt.Dir, err)
	}
	return nil
}

// panicked is what a request is answered with whose method panicked.
func (s *Server) panicked(what any) fuse.Status {
	s.log.Error("a request panicked", "dir", s.opt.Dir, "panic", fmt.Sprint(what), "stack", string(debug.Stack()))
	return fuse.EIO
}

// mountID tells a mount from all others. Without STATX_MNT_ID_UNIQUE (Linux 6.8) the numbers of mounts that ended are
// used again.
type mountID struct {
	id           uint64
	major, minor uint32
}

// mountAt returns the mount that dir lies in.
func mountAt(dir string) (mountID, error) {
	var st unix.Statx_t
	// Without AT_STATX_DONT_SYNC the question would come to ourselves.
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID|unix.STATX_MNT_ID_UNIQUE, &st)
	if err != nil {
		return mountID{}, &os.PathError{Op: "statx", Path: dir, Err: err}
	}
	return mountID{id: st.Mnt_id, major: st.Dev_major, minor: st.Dev_minor}, nil
}

// setReadahead raises what the kernel reads ahead on the mount.
func (m mountID) setReadahead() error {
	number := fmt.Sprintf("%d:%d", m.major, m.minor)
	return os.WriteFile(filepath.Join("/sys/class/bdi", number, "read_ahead_kb"), []byte(strconv.Itoa(readahead)), 0)
}

// Done is closed when the mount is gone, for whatever reason, and no more requests come. Some may still be under way:
// see Wait.
func (s *Server) Done() <-chan struct{} { return s.done }

// Wait returns when no request is under way any more. Call it after Done.
func (s *Server) Wait() {
	<-s.done
	s.wg.Wait()
}

// Unmount ends the mount. Without lazy it fails with unix.EBUSY while programs use the mount, which then goes on. With
// lazy it detaches the mount point at once; programs that still use the mount after a second find it broken (ENOTCONN).
// On return without an error no more requests come, and the mount point is free. A mount that is gone is success, and so
// is one that was aborted, whose mount point is detached in any case. Another mount on the directory is left alone. os.ErrDeadlineExceeded means that a request
// which was cancelled keeps the kernel waiting: the mount point is detached, and the mount ends when that request does.
func (s *Server) Unmount(lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	select {
	case <-s.done:
		lazy = true
	default:
	}
	if lazy {
		flags |= unix.MNT_DETACH
	}
	switch at, err := mountAt(s.opt.Dir); {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR): // gone with the directory above
	case err != nil:
		return err
	case at == s.point:
		// EINVAL: gone in the meantime.
		if err := unix.Unmount(s.opt.Dir, flags); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	select {
	case <-s.done:
		return nil
	case <-time.After(lazyWait):
	}
	// Ends with the notifications, which end with the requests that they wait for.
	go s.hangUp()
	select {
	case <-s.done:
		return nil
	case <-time.After(answerWait):
		return fmt.Errorf("requests of the mount on %s do not end: %w", s.opt.Dir, os.ErrDeadlineExceeded)
	}
}

// hangUp makes the server end a mount that is still in use.
func (s *Server) hangUp() {
	s.cancel()
	// A notification may wait in the kernel for the answer to a request. Until none does, requests are read and
	// answered, with errors now; later ones see that the mount ended.
	s.notifying.Lock()
	defer s.notifying.Unlock()
	// The reader stops. Of a device that is closed it knows already.
	if err := s.dev.SetReadDeadline(time.Unix(1, 0)); err != nil {
		s.log.Debug("the device is closed already", "dir", s.opt.Dir, "err", err)
	}
}
