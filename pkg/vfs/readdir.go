package vfs

import (
	"cmp"
	"context"
	"hash/fnv"
	"slices"
	"sort"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
)

// Cookies of the names that every directory has. Those of all others are larger.
const (
	cookieSelf   = 1
	cookieParent = 2
)

// unknownIno is the inode number of a name that nobody has looked up yet, as libfuse has it.
const unknownIno = 0xffffffff

// dirRecord is a name of a directory as one handle lists it.
type dirRecord struct {
	cookie uint64
	name   string
	ino    inode.Ino // 0: not known
	typ    uint32    // as DirEntry.Type
}

// OpenDir opens a directory for ReadDir.
func (fs *FS) OpenDir(_ context.Context, _ Request, ino inode.Ino) (HandleID, error) {
	n, err := fs.tree.Get(ino)
	switch {
	case err != nil:
		return 0, err
	case !n.Attr.IsDir():
		return 0, namespace.ErrNotDir
	}
	if err := fs.tree.Opened(ino); err != nil {
		return 0, err
	}
	return fs.handles.add(&handle{ino: ino, dir: true}), nil
}

// ReleaseDir closes a directory handle. An unknown one is ignored.
func (fs *FS) ReleaseDir(h HandleID) {
	if d := fs.handles.remove(h); d != nil {
		fs.tree.Released(d.ino)
	}
}

// ReadDir calls emit for each entry after cookie offset until emit returns false; "." and ".." are included. With plus
// set the entries carry attributes: emit's Entry is then valid (Attr.Ino 0 where it is not known without asking S3) and
// each emitted one with attributes, except "." and "..", counts a lookup.
//
// A handle lists what there was at its first call or at its last one with offset 0. Cookies depend on the names alone,
// so that they hold in a handle whose list is lost.
func (fs *FS) ReadDir(ctx context.Context, _ Request, ino inode.Ino, h HandleID, offset uint64, plus bool, emit func(DirEntry, Entry) bool) error {
	entries, err := fs.entries(ctx, ino, h, offset == 0)
	if err != nil {
		return err
	}
	i := sort.Search(len(entries), func(i int) bool { return entries[i].cookie > offset })
	for _, r := range entries[i:] {
		d := DirEntry{Name: r.name, Ino: r.ino, Type: r.typ, Offset: r.cookie}
		if d.Ino == 0 {
			d.Ino = unknownIno
		}
		var e Entry
		if plus && r.ino != 0 && r.cookie > cookieParent {
			if n, err := fs.tree.Get(r.ino); err == nil && n.Known {
				e = Entry{Attr: n.Attr, AttrTimeout: fs.timeout(), EntryTimeout: fs.timeout()}
			}
		}
		if !emit(d, e) {
			return nil
		}
		if e.Attr.Ino != 0 {
			fs.tree.Looked(r.ino, 1)
		}
	}
	return nil
}

// entries is the list of a handle, made if there is none or a fresh one is asked for.
func (fs *FS) entries(ctx context.Context, ino inode.Ino, id HandleID, rewind bool) ([]dirRecord, error) {
	h := fs.handles.get(id, ino, true)
	if h == nil {
		return fs.list(ctx, ino)
	}
	h.mu.Lock()
	entries, listed := h.entries, h.listed
	h.mu.Unlock()
	if listed && !rewind {
		return entries, nil
	}
	entries, err := fs.list(ctx, ino)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.entries, h.listed = entries, true
	return entries, nil
}

// list merges what the tree knows of a directory with what the bucket has, in the order of the cookies.
func (fs *FS) list(ctx context.Context, ino inode.Ino) ([]dirRecord, error) {
	for range maxRounds {
		before, err := fs.tree.List(ino)
		if err != nil {
			return nil, err
		}
		if !before.Remote {
			return fs.merge(ino, namespace.Listing{}, before, nil), nil
		}
		remote, err := fs.remote.readDir(ctx, before.Prefix)
		if err != nil {
			return nil, err
		}
		after, err := fs.tree.List(ino)
		if err != nil {
			return nil, err
		}
		if after.Remote && after.Prefix == before.Prefix { // else it was moved or removed meanwhile
			return fs.merge(ino, before, after, remote), nil
		}
	}
	return nil, namespace.ErrChanged
}

// merge makes one list of what the tree said before and after the bucket was asked. Both count: what the bucket did not
// hold yet, or still held, when it was asked may be settled by now, and the tree does not decide it any more.
func (fs *FS) merge(ino inode.Ino, before, after namespace.Listing, remote []named) []dirRecord {
	entries := make([]dirRecord, 0, 2+len(after.Names)+len(remote))
	listed := make(map[string]bool, len(remote))
	for _, r := range remote {
		c, known := after.Names[r.name]
		if !known && (!fs.shows(ino, before, r.name) || !fs.shows(ino, after, r.name)) {
			continue
		}
		listed[r.name] = true
		if known {
			entries = append(entries, dirRecord{name: r.name, ino: c.Ino, typ: c.Type})
		} else {
			entries = append(entries, dirRecord{name: r.name, typ: r.fileType()})
		}
	}
	for name, c := range after.Names {
		b, was := before.Names[name]
		// A name that was learned from the bucket and is no more in its listing is gone.
		if !listed[name] && (c.Tracked || !was || b.Tracked) {
			entries = append(entries, dirRecord{name: name, ino: c.Ino, typ: c.Type})
		}
	}
	for i := range entries {
		entries[i].cookie = cookie(entries[i].name)
	}
	slices.SortFunc(entries, func(a, b dirRecord) int {
		return cmp.Or(cmp.Compare(a.cookie, b.cookie), cmp.Compare(a.name, b.name))
	})
	entries = slices.Insert(entries, 0,
		dirRecord{cookie: cookieSelf, name: ".", ino: ino, typ: inode.ModeDir},
		dirRecord{cookie: cookieParent, name: "..", typ: inode.ModeDir})
	for i := 1; i < len(entries); i++ {
		// Two names of one hash: the second takes the next number.
		entries[i].cookie = max(entries[i].cookie, entries[i-1].cookie+1)
	}
	return entries
}

// fileType is what a listing tells of the type. An empty object may also be a symbolic link, a FIFO or a device.
func (e entry) fileType() uint32 {
	switch {
	case e.dir:
		return inode.ModeDir
	case e.file.Size > 0:
		return inode.ModeRegular
	}
	return 0
}

// cookie is the place of a name in its directory: a hash of 63 bits, since some programs take cookies for signed.
func cookie(name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	return max(h.Sum64()>>1, cookieParent+1)
}
