package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

// thing is an inode as the model knows it. It never changes: a change makes another one.
type thing struct {
	mode   uint32 // type and permissions
	data   []byte
	target string
	xattr  string // name=value, sorted
}

// world is a volume as the model knows it.
type world struct {
	names  map[string]int // by path, without the root
	things map[int]thing
}

func (w *world) clone() *world { return &world{maps.Clone(w.names), maps.Clone(w.things)} }

func (w *world) at(name string) (thing, bool) {
	i, ok := w.names[name]
	return w.things[i], ok
}

func (w *world) is(name string, kind uint32) bool {
	if name == "." {
		return kind == inode.ModeDir
	}
	x, ok := w.at(name)
	return ok && x.mode&inode.ModeType == kind
}

// free says that name can be made.
func (w *world) free(name string) bool {
	_, taken := w.names[name]
	return !taken && w.is(path.Dir(name), inode.ModeDir)
}

// below are the names below a directory.
func (w *world) below(dir string) []string {
	var out []string
	for name := range w.names {
		if strings.HasPrefix(name, dir+"/") {
			out = append(out, name)
		}
	}
	return out
}

func (w *world) edit(i int, do func(x *thing)) bool {
	x, ok := w.things[i]
	if !ok {
		return false
	}
	do(&x)
	w.things[i] = x
	return true
}

// rename moves a name and all below it.
func (w *world) rename(from, to string) {
	for _, name := range append(w.below(from), from) {
		i := w.names[name]
		delete(w.names, name)
		w.names[to+name[len(from):]] = i
	}
}

// seen is what a walk through a volume found, by path. Of a thing that is a directory or a link the data is empty.
type seen map[string]thing

func (s seen) String() string {
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s)) {
		x := s[name]
		fmt.Fprintf(&out, "\n    %s %o %s%s%s", name, x.mode, x.target, x.xattr, describe(map[string]string{"": string(x.data)}))
	}
	return out.String()
}

func (w *world) String() string {
	s := seen{}
	for name, i := range w.names {
		s[name] = w.things[i]
	}
	return s.String()
}

func (x thing) equal(y thing) bool {
	return x.mode == y.mode && x.target == y.target && x.xattr == y.xattr && bytes.Equal(x.data, y.data)
}

// shows says that a walk found exactly this world, but for what blurred of content lets pass.
func (w *world) shows(found seen, blurred func(i int, content []byte) bool) bool {
	if len(found) != len(w.names) {
		return false
	}
	for name, i := range w.names {
		x, y := w.things[i], found[name]
		if blurred != nil && x.mode&inode.ModeType == inode.ModeRegular && blurred(i, y.data) {
			x.data = y.data
		}
		if !x.equal(y) {
			return false
		}
	}
	return true
}

// look walks through a volume.
func look(ctx context.Context, c *core) (seen, error) {
	found := seen{}
	var walk func(dir inode.Ino, at string) error
	walk = func(dir inode.Ino, at string) error {
		var names []string
		err := c.fs.ReadDir(ctx, who, dir, 0, 0, false, func(e vfs.DirEntry, _ vfs.Entry) bool {
			if e.Name != "." && e.Name != ".." {
				names = append(names, e.Name)
			}
			return true
		})
		if err != nil {
			return fmt.Errorf("list %q: %w", at, err)
		}
		for _, name := range names {
			e, err := c.fs.Lookup(ctx, who, dir, name)
			if err != nil || e.Attr.Ino == 0 {
				return fmt.Errorf("look up %q: inode %d: %w", path.Join(at, name), e.Attr.Ino, errors.Join(err, errHalf))
			}
			x := thing{mode: e.Attr.Mode}
			if err = c.inspect(ctx, e.Attr, &x); err == nil && e.Attr.IsDir() {
				err = walk(e.Attr.Ino, path.Join(at, name))
			}
			c.fs.Forget(e.Attr.Ino, 1)
			if err != nil {
				return fmt.Errorf("%q: %w", path.Join(at, name), err)
			}
			found[path.Join(at, name)] = x
		}
		return nil
	}
	return found, walk(inode.Root, "")
}

var errHalf = errors.New("listed and not there")

// inspect reads all of an inode.
func (c *core) inspect(ctx context.Context, attr inode.Attr, x *thing) error {
	var err error
	switch {
	case attr.IsSymlink():
		x.target, err = c.fs.Readlink(ctx, who, attr.Ino)
	case attr.IsRegular():
		x.data, err = c.readAll(ctx, attr.Ino)
	}
	names, xerr := c.fs.ListXattr(ctx, who, attr.Ino)
	if err = errors.Join(err, xerr); err != nil {
		return err
	}
	for _, name := range names {
		v, err := c.fs.GetXattr(ctx, who, attr.Ino, name)
		if err != nil {
			return err
		}
		x.xattr += fmt.Sprintf("%s=%s;", name, v)
	}
	return nil
}

func (c *core) readAll(ctx context.Context, ino inode.Ino) ([]byte, error) {
	attr, _, err := c.fs.GetAttr(ctx, who, ino)
	if err != nil {
		return nil, err
	}
	p := make([]byte, attr.Size)
	n, err := c.fs.Read(ctx, who, ino, 0, p, 0)
	return p[:n], err
}
