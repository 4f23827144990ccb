package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrVolumeID is wrapped by every error about a volume ID.
var ErrVolumeID = errors.New("volume ID")

// maxPrefix is the most bytes of a prefix. A key has 1024: what is left is for the files.
const maxPrefix = 512

// reserved is the directory at the root of every volume that is the driver's own.
const reserved = ".csi-s3"

// VolumeID says which keys of which bucket are a volume. The zero value is none. It is comparable.
type VolumeID struct {
	Bucket string
	Prefix string // "" or a prefix that ends with a slash
}

// String is the volume ID as Kubernetes knows it: BUCKET or BUCKET/PREFIX, without the slash at the end.
func (v VolumeID) String() string {
	if v.Prefix == "" {
		return v.Bucket
	}
	return v.Bucket + "/" + strings.TrimSuffix(v.Prefix, "/")
}

// ParseVolumeID reads BUCKET or BUCKET/PREFIX, where one slash at the end changes nothing. A bucket's name is taken by
// the old rules, which let more pass than what a server makes today. An ErrVolumeID is what could be another volume
// than it seems: empty components, . and .., control characters, invalid UTF-8, and the driver's own directory.
func ParseVolumeID(id string) (VolumeID, error) {
	bucket, prefix, _ := strings.Cut(id, "/")
	if err := checkBucket(bucket); err != nil {
		return VolumeID{}, fmt.Errorf("%w %q: bucket: %w", ErrVolumeID, id, err)
	}
	prefix, err := cleanPrefix(prefix)
	if err != nil {
		return VolumeID{}, fmt.Errorf("%w %q: prefix: %w", ErrVolumeID, id, err)
	}
	return VolumeID{Bucket: bucket, Prefix: prefix}, nil
}

// checkBucket accepts the names that any S3 server has ever given.
func checkBucket(name string) error {
	switch {
	case len(name) < 3 || len(name) > 255:
		return errors.New("a name has 3 to 255 characters")
	case !alphanumeric(rune(name[0])):
		return errors.New("a name begins with a letter or digit")
	case strings.Contains(name, ".."):
		return errors.New("a name has no two dots in a row")
	}
	if i := strings.IndexFunc(name, func(r rune) bool { return !alphanumeric(r) && !strings.ContainsRune("-._", r) }); i >= 0 {
		return errors.New("a name has only letters, digits, '-', '.' and '_'")
	}
	return nil
}

func alphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// cleanPrefix returns the prefix with its slash at the end, or "".
func cleanPrefix(prefix string) (string, error) {
	if prefix == "" {
		return "", nil
	}
	prefix = strings.TrimSuffix(prefix, "/")
	switch {
	case len(prefix) > maxPrefix:
		return "", fmt.Errorf("it has %d bytes, the most is %d", len(prefix), maxPrefix)
	case !utf8.ValidString(prefix):
		return "", errors.New("it is not UTF-8")
	case strings.ContainsFunc(prefix, unicode.IsControl):
		return "", errors.New("it holds a control character")
	}
	for component := range strings.SplitSeq(prefix, "/") {
		switch component {
		case "":
			return "", errors.New("it has an empty component: no two slashes in a row, none in front")
		case ".", "..":
			return "", fmt.Errorf("%q is not a name", component)
		case reserved:
			return "", fmt.Errorf("%s is the driver's own", reserved)
		}
	}
	return prefix + "/", nil
}

// bucketName returns name if every server takes it for a new bucket, else one that is derived from it: always the
// same, and no other's.
func bucketName(name string) string {
	if newBucket(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "csi-s3-" + hex.EncodeToString(sum[:20])
}

// newBucket knows the rules that Amazon S3 has for new buckets.
func newBucket(name string) bool {
	if len(name) < 3 || len(name) > 63 || strings.Contains(name, "..") {
		return false
	}
	for _, r := range name {
		if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.') {
			return false
		}
	}
	if !alphanumeric(rune(name[0])) || !alphanumeric(rune(name[len(name)-1])) {
		return false
	}
	for _, taken := range []string{"xn--", "sthree-", "amzn-s3-demo-"} {
		if strings.HasPrefix(name, taken) {
			return false
		}
	}
	for _, taken := range []string{"-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"} {
		if strings.HasSuffix(name, taken) {
			return false
		}
	}
	_, err := netip.ParseAddr(name)
	return err != nil // an IP address is not a name
}
