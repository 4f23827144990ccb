package namespace

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Metadata keys. The first group is geesefs's vocabulary, in its forms; the second is ours, base64url values only.
const (
	metaMode    = "mode" // decimal st_mode
	metaUid     = "uid"
	metaGid     = "gid"
	metaMtime   = "mtime" // decimal seconds
	metaRdev    = "rdev"
	metaSymlink = "--symlink-target"

	metaTimes   = "csi-s3-times"    // 8 bytes mtime, 8 bytes ctime: big-endian nanoseconds since the epoch
	metaXattrs  = "csi-s3-xattrs"   // pairs of length-prefixed name and value
	MetaWriteID = "csi-s3-write-id" // WRITER-INO-SEQ or, of copies, WRITER-0-ETAG; plain ASCII
)

// maxMeta is what S3 allows for the user metadata of an object: bytes of all keys and values. Some servers (MinIO) count
// the prefix that the keys have on the wire, too.
const (
	maxMeta    = 2048
	metaPrefix = "x-amz-meta-"
)

// codecDefaults stand in for attributes that an object does not carry.
type codecDefaults struct {
	uid, gid, fileMode, dirMode uint32
}

// decodeAttr reads the attributes of an object. Forms of geesefs, s3fs and rclone are understood; what cannot be
// parsed falls back to the defaults and is kept as unknown metadata.
func decodeAttr(info s3.Info, isDir bool, d codecDefaults) (attr inode.Attr, target string, xattrs map[string][]byte, extra map[string]string) {
	attr = inode.Attr{Uid: d.uid, Gid: d.gid, Size: info.Size, Nlink: 1}
	attr.Mode = inode.ModeRegular | d.fileMode
	if isDir {
		attr.Mode, attr.Size, attr.Nlink = inode.ModeDir|d.dirMode, 4096, 2
	}
	attr.Mtime, attr.Ctime = info.Modified, info.Modified
	for k, v := range info.Meta {
		switch k {
		case metaMode:
			if m, ok := parseMode(v); ok {
				attr.Mode = withType(m, attr.Mode, isDir)
				continue
			}
		case metaUid, metaGid, metaRdev:
			if n, err := strconv.ParseUint(v, 10, 32); err == nil {
				switch k {
				case metaUid:
					attr.Uid = uint32(n)
				case metaGid:
					attr.Gid = uint32(n)
				default:
					attr.Rdev = uint32(n)
				}
				continue
			}
		case metaMtime:
			if ts, ok := parseTime(v); ok {
				attr.Mtime = ts
				continue
			}
		case metaSymlink:
			if s, err := url.PathUnescape(v); err == nil && !isDir {
				target = s
				attr.Mode = inode.ModeSymlink | 0o777
				continue
			}
		case metaTimes, metaXattrs, MetaWriteID:
			continue
		}
		if extra == nil {
			extra = map[string]string{}
		}
		extra[k] = v
	}
	if target != "" {
		attr.Mode, attr.Size = inode.ModeSymlink|0o777, int64(len(target))
	}
	if b, err := base64.RawURLEncoding.DecodeString(info.Meta[metaTimes]); err == nil && len(b) == 16 {
		m := time.Unix(0, int64(binary.BigEndian.Uint64(b)))
		attr.Ctime = time.Unix(0, int64(binary.BigEndian.Uint64(b[8:])))
		// Another tool that set mtime did not know our key: its newer second wins.
		if _, ok := info.Meta[metaMtime]; !ok || m.Unix() == attr.Mtime.Unix() {
			attr.Mtime = m
		}
	}
	attr.Atime = attr.Mtime
	if b, err := base64.RawURLEncoding.DecodeString(info.Meta[metaXattrs]); err == nil {
		xattrs = decodeXattrs(b)
	}
	return attr, target, xattrs, extra
}

// withType takes the type bits of a parsed mode only where they make sense for what the key says.
func withType(m, def uint32, isDir bool) uint32 {
	switch {
	case isDir:
		return inode.ModeDir | m&inode.ModePerm
	case m&inode.ModeType == 0 || m&inode.ModeType == inode.ModeDir:
		return def&inode.ModeType | m&inode.ModePerm
	default:
		return m & (inode.ModeType | inode.ModePerm)
	}
}

// parseMode reads the decimal form of geesefs and s3fs and the octal one of rclone and FSx.
func parseMode(v string) (uint32, bool) {
	if !strings.HasPrefix(v, "0") {
		if n, err := strconv.ParseUint(v, 10, 32); err == nil && n <= 0o177777 {
			switch n & inode.ModeType {
			case inode.ModeFIFO, inode.ModeChar, inode.ModeDir, inode.ModeBlock, inode.ModeRegular, inode.ModeSymlink, inode.ModeSocket:
				return uint32(n), true
			}
		}
	}
	n, err := strconv.ParseUint(v, 8, 32)
	if err != nil || n > 0o177777 {
		return 0, false
	}
	return uint32(n), true
}

// parseTime reads seconds since the epoch with an optional decimal fraction.
func parseTime(v string) (time.Time, bool) {
	sec, frac, _ := strings.Cut(v, ".")
	s, err := strconv.ParseInt(sec, 10, 64)
	if err != nil || s > 1<<40 || s < -(1<<40) {
		return time.Time{}, false
	}
	var ns int64
	if frac != "" {
		frac = (frac + "000000000")[:9]
		if ns, err = strconv.ParseInt(frac, 10, 64); err != nil || ns < 0 {
			return time.Time{}, false
		}
	}
	return time.Unix(s, ns), true
}

// encodeAttr is the inverse: the metadata that goes with an object. ErrTooMany when it would exceed S3's limit.
func encodeAttr(attr inode.Attr, target string, xattrs map[string][]byte, extra map[string]string, writeID string) (map[string]string, error) {
	m := make(map[string]string, 8+len(extra))
	for k, v := range extra {
		m[k] = v
	}
	m[metaMode] = strconv.FormatUint(uint64(attr.Mode), 10)
	m[metaUid] = strconv.FormatUint(uint64(attr.Uid), 10)
	m[metaGid] = strconv.FormatUint(uint64(attr.Gid), 10)
	m[metaMtime] = strconv.FormatInt(attr.Mtime.Unix(), 10)
	if t := attr.Mode & inode.ModeType; t == inode.ModeChar || t == inode.ModeBlock {
		m[metaRdev] = strconv.FormatUint(uint64(attr.Rdev), 10)
	}
	if attr.IsSymlink() {
		m[metaSymlink] = escapeTarget(target)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(attr.Mtime.UnixNano()))
	binary.BigEndian.PutUint64(b[8:], uint64(attr.Ctime.UnixNano()))
	m[metaTimes] = base64.RawURLEncoding.EncodeToString(b[:])
	if len(xattrs) > 0 {
		m[metaXattrs] = base64.RawURLEncoding.EncodeToString(encodeXattrs(xattrs))
	}
	m[MetaWriteID] = writeID
	size := 0
	for k, v := range m {
		size += len(metaPrefix) + len(k) + len(v)
	}
	if size > maxMeta {
		return nil, fmt.Errorf("%d bytes of metadata, S3 takes %d: %w", size, maxMeta, ErrTooMany)
	}
	return m, nil
}

// escapeTarget is geesefs's escaping: a header value must be printable ASCII, and '%' introduces the escape.
func escapeTarget(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func encodeXattrs(x map[string][]byte) []byte {
	names := make([]string, 0, len(x))
	for k := range x {
		names = append(names, k)
	}
	sort.Strings(names)
	var b []byte
	for _, k := range names {
		b = appendBytes(b, []byte(k))
		b = appendBytes(b, x[k])
	}
	return b
}

func decodeXattrs(b []byte) map[string][]byte {
	r := reader{b: b}
	x := map[string][]byte{}
	for len(r.b) > 0 {
		k, v := r.bytes(), r.bytes()
		if r.bad {
			return nil
		}
		x[string(k)] = v
	}
	return x
}
