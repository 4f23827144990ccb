package namespace

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Record kinds. All are idempotent: the newest record of an inode is its state.
const (
	kindNode    = journal.OwnerNamespace | 1 // whole state of a tracked inode
	kindForget  = journal.OwnerNamespace | 2 // the inode is tracked no more
	kindLimit   = journal.OwnerNamespace | 3 // inode numbers below this one may have been given out
	kindOutcome = journal.OwnerNamespace | 4 // a kernel request was carried out
)

// errRecord: a record that passed the journal's checksum is not one that this package wrote.
var errRecord = fmt.Errorf("namespace record: %w", journal.ErrCorrupt)

// nodeVersion is of the records that are written. Version 2, which knows no spills, is read too.
const nodeVersion = 3

// Flags of a node record, and of an object in it.
const (
	flagKnown = 1 << iota
	flagLocal
	flagMarker
	flagKept
)
const (
	flagContent = 1 << iota
	flagMeta
	flagUnsure
	flagSpill
)

// reader consumes a record. bad is sticky.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes() []byte {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) string() string  { return string(r.bytes()) }
func (r *reader) time() time.Time { return time.Unix(0, r.int()) }

func appendBytes(b, v []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendString(b []byte, v string) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendTime(b []byte, t time.Time) []byte { return binary.AppendVarint(b, t.UnixNano()) }

// encode is the node's record:
//
//	version ino flags mode uid gid rdev size atime mtime ctime target contentType
//	n (name value)*            xattrs
//	n (key value)*             metadata of others
//	n (dir name)*              links
//	origin heading             of a directory: where its children lie, where a Move copies them
//	n (src dst)*               and what must be emptied
//	n (key etag size flags [spill at])*  objects
//
// All integers are varints, times are nanoseconds since the epoch.
func (n *node) encode() []byte {
	b := make([]byte, 0, 192)
	b = append(b, nodeVersion)
	b = binary.AppendUvarint(b, uint64(n.attr.Ino))
	var flags uint64
	if n.known {
		flags |= flagKnown
	}
	if n.local {
		flags |= flagLocal
	}
	if n.wantMarker {
		flags |= flagMarker
	}
	if n.kept {
		flags |= flagKept
	}
	b = binary.AppendUvarint(b, flags)
	for _, v := range []uint32{n.attr.Mode, n.attr.Uid, n.attr.Gid, n.attr.Rdev} {
		b = binary.AppendUvarint(b, uint64(v))
	}
	b = binary.AppendVarint(b, n.attr.Size)
	b = appendTime(appendTime(appendTime(b, n.attr.Atime), n.attr.Mtime), n.attr.Ctime)
	b = appendString(b, n.target)
	b = appendString(b, n.contentType)
	b = appendBytes(b, encodeXattrs(n.xattrs))
	b = binary.AppendUvarint(b, uint64(len(n.extra)))
	for k, v := range n.extra {
		b = appendString(appendString(b, k), v)
	}
	b = binary.AppendUvarint(b, uint64(len(n.links)))
	for _, l := range n.links {
		b = binary.AppendUvarint(b, uint64(l.dir.attr.Ino))
		b = appendString(b, l.name)
	}
	b = appendString(appendString(b, string(n.origin)), string(n.heading))
	b = binary.AppendUvarint(b, uint64(len(n.purges)))
	for _, p := range n.purges {
		b = appendString(appendString(b, string(p.src)), string(p.dst))
	}
	base := n.baseGen()
	b = binary.AppendUvarint(b, uint64(len(n.objs)))
	for _, o := range n.objs {
		b = appendString(b, string(o.key))
		b = appendString(b, string(o.etag))
		b = binary.AppendVarint(b, o.size)
		var f uint64
		if base > 0 && o.contGen == base {
			f |= flagContent
		}
		if o.metaGen == n.metaGen {
			f |= flagMeta
		}
		if o.unsure {
			f |= flagUnsure
		}
		if o.spill != 0 {
			f |= flagSpill
		}
		b = binary.AppendUvarint(b, f)
		if o.spill != 0 {
			b = binary.AppendVarint(binary.AppendUvarint(b, o.spill), o.at)
		}
	}
	return b
}

// savedLink is a link whose directory is not resolved yet: records may name a directory before its own record.
type savedLink struct {
	dir  inode.Ino
	name string
}

// decodeNode is the inverse of encode. The generations start anew: bytes are taken for clean until the cache says
// otherwise (Recovered).
func decodeNode(data []byte) (*node, []savedLink, error) {
	if len(data) == 0 || data[0] < 2 || data[0] > nodeVersion {
		return nil, nil, fmt.Errorf("node: %w", errRecord)
	}
	r := reader{b: data[1:]}
	n := &node{tracked: true, metaGen: 2, contGen: 2}
	n.attr.Ino = inode.Ino(r.uint())
	flags := r.uint()
	n.known, n.local, n.wantMarker, n.kept = flags&flagKnown != 0, flags&flagLocal != 0, flags&flagMarker != 0, flags&flagKept != 0
	for _, p := range []*uint32{&n.attr.Mode, &n.attr.Uid, &n.attr.Gid, &n.attr.Rdev} {
		*p = uint32(r.uint())
	}
	n.attr.Size = r.int()
	n.attr.Atime, n.attr.Mtime, n.attr.Ctime = r.time(), r.time(), r.time()
	n.target, n.contentType = r.string(), r.string()
	n.xattrs = decodeXattrs(r.bytes())
	for c := r.uint(); c > 0 && !r.bad; c-- {
		if n.extra == nil {
			n.extra = map[string]string{}
		}
		k := r.string()
		n.extra[k] = r.string()
	}
	var links []savedLink
	for c := r.uint(); c > 0 && !r.bad; c-- {
		links = append(links, savedLink{inode.Ino(r.uint()), r.string()})
	}
	n.origin = s3.Key(r.string())
	n.heading = s3.Key(r.string())
	for c := r.uint(); c > 0 && !r.bad; c-- {
		n.purges = append(n.purges, purge{s3.Key(r.string()), s3.Key(r.string())})
	}
	for c := r.uint(); c > 0 && !r.bad; c-- {
		o := object{key: s3.Key(r.string()), etag: s3.ETag(r.string()), size: r.int(), contGen: 1, metaGen: 1}
		f := r.uint()
		if f&flagContent != 0 {
			o.contGen = n.contGen
		}
		if f&flagMeta != 0 {
			o.metaGen = n.metaGen
		}
		if f&flagUnsure != 0 {
			o.unsure, o.contGen, o.metaGen = true, 0, 0
		}
		if f&flagSpill != 0 {
			o.spill, o.at, o.contGen, o.metaGen = r.uint(), r.int(), 0, 0
		}
		n.objs = append(n.objs, o)
	}
	if r.bad {
		return nil, nil, fmt.Errorf("node: %w", errRecord)
	}
	if n.isDir() {
		n.children = map[string]*node{}
	}
	return n, links, nil
}
