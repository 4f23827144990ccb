package vfs

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
)

// Flags of SetXattr, as setxattr(2).
const (
	xattrCreate  = 1
	xattrReplace = 2
)

// checkXattr admits the user namespace only: security and trusted attributes would give power to whoever may write to
// the bucket.
func checkXattr(name string) error {
	if rest, ok := strings.CutPrefix(name, "user."); !ok || rest == "" {
		return fmt.Errorf("attribute %q: %w", name, ErrNotSupported)
	}
	return nil
}

func (fs *FS) xattrs(ctx context.Context, ino inode.Ino) (map[string][]byte, error) {
	if _, err := fs.get(ctx, ino); err != nil {
		return nil, err
	}
	return fs.tree.Xattrs(ino)
}

// GetXattr returns the value of a user.* attribute, or ErrNoAttr; other namespaces are ErrNotSupported.
func (fs *FS) GetXattr(ctx context.Context, _ Request, ino inode.Ino, name string) ([]byte, error) {
	if err := checkXattr(name); err != nil {
		return nil, err
	}
	x, err := fs.xattrs(ctx, ino)
	if err != nil {
		return nil, err
	}
	v, ok := x[name]
	if !ok {
		return nil, fmt.Errorf("attribute %q: %w", name, ErrNoAttr)
	}
	return v, nil
}

// ListXattr returns the names, sorted.
func (fs *FS) ListXattr(ctx context.Context, _ Request, ino inode.Ino) ([]string, error) {
	x, err := fs.xattrs(ctx, ino)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(x))
	for name := range x {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// SetXattr sets a user.* attribute; flags as setxattr(2). What does not fit into the object's metadata (2 KB with all
// other attributes) is namespace.ErrTooMany.
func (fs *FS) SetXattr(ctx context.Context, req Request, ino inode.Ino, name string, value []byte, flags int) error {
	if err := fs.writable(ctx); err != nil {
		return err
	}
	if err := checkXattr(name); err != nil {
		return err
	}
	if flags&^(xattrCreate|xattrReplace) != 0 {
		return namespace.ErrInvalid
	}
	if out, ok := fs.done(req); ok {
		return out.Err
	}
	if _, err := fs.get(ctx, ino); err != nil {
		return err
	}
	defer fs.lockInode(ino).Unlock() // nobody sets it between the check and the change
	x, err := fs.tree.Xattrs(ino)
	if err != nil {
		return err
	}
	switch _, ok := x[name]; {
	case ok && flags&xattrCreate != 0:
		return fmt.Errorf("attribute %q: %w", name, namespace.ErrExist)
	case !ok && flags&xattrReplace != 0:
		return fmt.Errorf("attribute %q: %w", name, ErrNoAttr)
	}
	if value == nil {
		value = []byte{} // nil would remove it
	}
	return fs.tree.SetXattr(req.op(), ino, name, value)
}

// RemoveXattr removes an attribute, or is ErrNoAttr.
func (fs *FS) RemoveXattr(ctx context.Context, req Request, ino inode.Ino, name string) error {
	if err := fs.writable(ctx); err != nil {
		return err
	}
	if err := checkXattr(name); err != nil {
		return err
	}
	if out, ok := fs.done(req); ok {
		return out.Err
	}
	if _, err := fs.get(ctx, ino); err != nil {
		return err
	}
	defer fs.lockInode(ino).Unlock() // nobody sets it between the check and the change
	x, err := fs.tree.Xattrs(ino)
	if err != nil {
		return err
	}
	if _, ok := x[name]; !ok {
		return fmt.Errorf("attribute %q: %w", name, ErrNoAttr)
	}
	return fs.tree.SetXattr(req.op(), ino, name, nil)
}
