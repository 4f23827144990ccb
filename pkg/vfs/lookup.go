package vfs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// maxRounds bounds how often a look-up starts over because the directory changed meanwhile. From the second round on
// the answer comes from memory, so it is never reached unless something is broken.
const maxRounds = 1000

// Lookup resolves name in dir and counts one lookup of the inode (see Forget). A name that does not exist is
// ErrNotExist, with a negative Entry whose EntryTimeout may be used.
func (fs *FS) Lookup(ctx context.Context, _ Request, dir inode.Ino, name string) (Entry, error) {
	f, err := fs.resolve(ctx, dir, name)
	if err != nil {
		return Entry{}, err
	}
	if !f.ok {
		return Entry{EntryTimeout: fs.timeout()}, fmt.Errorf("%q: %w", name, namespace.ErrNotExist)
	}
	return fs.entry(f.node), nil
}

// Forget drops n lookups of ino (FUSE_FORGET). It does no I/O: the kernel has no way to hear an error.
func (fs *FS) Forget(ino inode.Ino, n uint64) { fs.tree.Forget(ino, n) }

// entry is the answer that makes the kernel refer to a node.
func (fs *FS) entry(n namespace.Node) Entry {
	fs.tree.Looked(n.Attr.Ino, 1)
	return Entry{Attr: n.Attr, AttrTimeout: fs.timeout(), EntryTimeout: fs.timeout()}
}

// found is what is known of a name without doubt.
type found struct {
	node    namespace.Node // valid when ok; Known
	ok      bool           // the name exists
	version uint64         // of the directory, for the mutations of the tree
}

// resolve finds out whether a name exists, and what it is. Whatever it returns without an error is certain.
func (fs *FS) resolve(ctx context.Context, dir inode.Ino, name string) (found, error) {
	if !namespace.ValidName(name) || fs.own(dir, name) {
		if len(name) > maxName {
			return found{}, ErrNameTooLong
		}
		return found{}, nil
	}
	for range maxRounds {
		res, err := fs.tree.Resolve(dir, name)
		if err != nil {
			return found{}, fmt.Errorf("look up %q: %w", name, err)
		}
		if res.Absent {
			return found{version: res.Version}, nil
		}
		node := res.Node
		if !res.Found || !node.Tracked && !fs.remote.forever() {
			node, err = fs.ask(ctx, dir, name, res)
			switch {
			case errors.Is(err, namespace.ErrChanged):
				continue
			case errors.Is(err, namespace.ErrNotExist):
				return found{version: res.Version}, nil
			case err != nil:
				return found{}, fmt.Errorf("look up %q: %w", name, err)
			}
		}
		node, err = fs.known(ctx, node)
		switch {
		case errors.Is(err, s3.ErrNotExist):
			// A listing showed the object, and now it is gone: the next round finds out what is there instead.
			if err := fs.vanished(dir, name, res); err != nil {
				return found{}, fmt.Errorf("look up %q: %w", name, err)
			}
			continue
		case err != nil:
			return found{}, fmt.Errorf("look up %q: %w", name, err)
		}
		return found{node: node, ok: true, version: res.Version}, nil
	}
	return found{}, fmt.Errorf("look up %q: %w", name, namespace.ErrChanged)
}

// own says that the name is the volume's own.
func (fs *FS) own(dir inode.Ino, name string) bool { return dir == inode.Root && name == reserved }

// split takes a name's key apart.
func split(key s3.Key, name string) (prefix s3.Key) { return key[:len(key)-len(name)] }

// ask looks a name up in the bucket. ErrNotExist is certain; ErrChanged asks for another round.
func (fs *FS) ask(ctx context.Context, dir inode.Ino, name string, res namespace.Resolution) (namespace.Node, error) {
	if len(res.Key) > maxKey {
		return namespace.Node{}, namespace.ErrNotExist // no bucket holds such a key
	}
	e, err := fs.remote.lookup(ctx, split(res.Key, name), name, res.Found)
	if err != nil {
		return namespace.Node{}, err
	}
	if e.absent() {
		// Also where the tree knows nothing of the name: the place that was asked may not be the directory's any more.
		if err := fs.tree.Unlearn(dir, name, res.Version); err != nil {
			return namespace.Node{}, err
		}
		return namespace.Node{}, namespace.ErrNotExist
	}
	r := namespace.Remote{IsDir: e.dir}
	switch {
	case !e.dir:
		r.Info, r.Known = *e.file, e.known
	case e.marker != nil:
		r.Info, r.Known = *e.marker, true
	}
	return fs.tree.Learn(dir, name, res.Version, r)
}

// vanished forgets a name whose object was found missing.
func (fs *FS) vanished(dir inode.Ino, name string, res namespace.Resolution) error {
	if res.Key != "" {
		fs.remote.doubt(split(res.Key, name), name)
	}
	err := fs.tree.Unlearn(dir, name, res.Version)
	if errors.Is(err, namespace.ErrChanged) {
		return nil
	}
	return err
}

// known makes sure that a node's attributes are the real ones. s3.ErrNotExist: the object of a file is gone.
func (fs *FS) known(ctx context.Context, n namespace.Node) (namespace.Node, error) {
	ino := n.Attr.Ino
	for range maxRounds {
		if n.Known {
			return n, nil
		}
		key, err := fs.tree.AttrKey(ino)
		if err != nil {
			return n, err
		}
		info, err := fs.remote.bucket.head(ctx, key)
		absent := errors.Is(err, s3.ErrNotExist)
		switch now, kerr := fs.tree.AttrKey(ino); {
		case err != nil && !absent:
			return n, err
		case kerr != nil:
			return n, kerr
		case now != key:
			continue // a directory above it was moved
		case absent && !n.Attr.IsDir():
			return n, err
		}
		if !absent && !n.Attr.IsDir() {
			fs.remote.note(key, info)
		}
		found := &info
		if absent {
			found = nil
		}
		if n, err = fs.tree.LearnAttr(ino, key, found); !errors.Is(err, namespace.ErrChanged) {
			return n, err
		}
	}
	return n, namespace.ErrChanged
}

// get is Tree.Get with real attributes. A file whose object is gone is ErrStale.
func (fs *FS) get(ctx context.Context, ino inode.Ino) (namespace.Node, error) {
	n, err := fs.tree.Get(ino)
	if err != nil {
		return n, err
	}
	n, err = fs.known(ctx, n)
	if errors.Is(err, s3.ErrNotExist) {
		return n, fmt.Errorf("inode %d: object is gone: %w", ino, namespace.ErrStale)
	}
	return n, err
}

// checkName says whether a name may be made in a directory; isDir says what for.
func (fs *FS) checkName(dir inode.Ino, name string, isDir bool) error {
	switch {
	case fs.own(dir, name):
		return fmt.Errorf("%q: %w", name, ErrPermission)
	case len(name) > maxName:
		return fmt.Errorf("%d bytes: %w", len(name), ErrNameTooLong)
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("%q: %w", name, namespace.ErrInvalid)
	case !utf8.ValidString(name):
		return fmt.Errorf("%q: %w", name, ErrIllegalName)
	}
	key, err := fs.tree.Place(dir, name)
	if err != nil {
		return err
	}
	n := len(key)
	if isDir {
		n++
	}
	if n > maxKey {
		return fmt.Errorf("%q: key of %d bytes: %w", name, n, ErrNameTooLong)
	}
	return nil
}
