package vfs

import (
	"context"
	"errors"
	"syscall"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// Errors of the core that no lower package has.
var (
	ErrReadOnly     = errors.New("read-only file system")
	ErrNameTooLong  = errors.New("name or key too long")
	ErrIllegalName  = errors.New("name is not valid UTF-8")
	ErrPermission   = errors.New("operation not permitted")
	ErrFileTooBig   = errors.New("file larger than an object may be")
	ErrCapacity     = errors.New("volume is full")
	ErrNotSupported = errors.New("operation not supported")
	ErrNoAttr       = errors.New("no such attribute")
	ErrNoData       = errors.New("no data or hole behind the offset")
)

// errnos is the one table from errors to what the kernel is told. The first match counts. What is not in it is EIO:
// notably s3.ErrUnavailable, s3.ErrCorrupt and every failure of the cache disk.
var errnos = [...]struct {
	err   error
	errno syscall.Errno
}{
	{context.Canceled, syscall.EINTR},

	{ErrReadOnly, syscall.EROFS},
	{ErrNameTooLong, syscall.ENAMETOOLONG},
	{ErrIllegalName, syscall.EILSEQ},
	{ErrPermission, syscall.EPERM},
	{ErrFileTooBig, syscall.EFBIG},
	{ErrCapacity, syscall.ENOSPC},
	{ErrNotSupported, syscall.ENOTSUP},
	{ErrNoAttr, syscall.ENODATA},
	{ErrNoData, syscall.ENXIO},

	{namespace.ErrStale, syscall.ESTALE},
	{namespace.ErrNotExist, syscall.ENOENT},
	{namespace.ErrExist, syscall.EEXIST},
	{namespace.ErrNotDir, syscall.ENOTDIR},
	{namespace.ErrIsDir, syscall.EISDIR},
	{namespace.ErrNotEmpty, syscall.ENOTEMPTY},
	{namespace.ErrInvalid, syscall.EINVAL},
	{namespace.ErrTooMany, syscall.ENOSPC},
	{namespace.ErrTooManyLinks, syscall.EMLINK},

	{writeback.ErrConflict, syscall.ESTALE},
	{writeback.ErrHalted, syscall.EIO},

	{cache.ErrPoisoned, syscall.EIO},
	{cache.ErrNoSpace, syscall.ENOSPC},

	// An object that vanished or changed under an open file. A name that does not exist is namespace.ErrNotExist.
	{s3.ErrNotExist, syscall.ESTALE},
	{s3.ErrPrecondition, syscall.ESTALE},
	{s3.ErrAuth, syscall.EACCES},
	{s3.ErrFull, syscall.ENOSPC},
}

// Errno maps any error of the core to what the kernel is told. Unknown errors are EIO; nil is 0.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	return syscall.EIO
}
