package s3mem

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// A continuation token is "k" or "p" and the last key or common prefix of the page before, in base64.

// List returns one page, in byte order.
func (b *Bucket) List(ctx context.Context, in s3.ListInput) (s3.Page, error) {
	const op = "list"
	if err := b.ended(ctx, op, in.Prefix); err != nil {
		return s3.Page{}, err
	}
	after, skip := in.StartAfter, s3.Key("")
	if in.Token != "" {
		raw, err := base64.RawURLEncoding.DecodeString(in.Token)
		if err != nil || len(raw) == 0 {
			return s3.Page{}, b.failf(op, in.Prefix, s3.ErrInvalid, "continuation token")
		}
		if after = s3.Key(raw[1:]); raw[0] == 'p' {
			skip = after
		}
	}
	size := in.MaxKeys
	if size <= 0 || size > maxPage {
		size = maxPage
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.existsLocked(op, in.Prefix); err != nil {
		return s3.Page{}, err
	}
	var page s3.Page
	last := ""
	keys := b.keys
	if in.Delimiter != "" && len(b.removed) > 0 {
		keys = slices.Concat(keys, b.removed)
		slices.Sort(keys)
	}
	i, _ := slices.BinarySearch(keys, max(in.Prefix, after))
	for ; i < len(keys) && strings.HasPrefix(string(keys[i]), string(in.Prefix)); i++ {
		key := keys[i]
		if key <= after || skip != "" && strings.HasPrefix(string(key), string(skip)) {
			continue
		}
		if len(page.Objects)+len(page.Prefixes) == size {
			page.Token = base64.RawURLEncoding.EncodeToString([]byte(last))
			break
		}
		if in.Delimiter != "" {
			rest := string(key[len(in.Prefix):])
			if j := strings.Index(rest, in.Delimiter); j >= 0 {
				skip = in.Prefix + s3.Key(rest[:j+len(in.Delimiter)])
				page.Prefixes = append(page.Prefixes, skip)
				last = "p" + string(skip)
				continue
			}
		}
		if b.objects[key] == nil || last == "k"+string(key) {
			continue // it was removed, and here twice if it was made again
		}
		info := b.objects[key].info
		info.Meta, info.ContentType = nil, ""
		page.Objects = append(page.Objects, info)
		last = "k" + string(key)
	}
	return page, nil
}

// ListVersions reports each object once: the bucket has no versioning.
func (b *Bucket) ListVersions(ctx context.Context, prefix s3.Key, token string) ([]s3.Version, string, error) {
	page, err := b.List(ctx, s3.ListInput{Prefix: prefix, Token: token})
	if err != nil {
		return nil, "", err
	}
	versions := make([]s3.Version, len(page.Objects))
	for i, o := range page.Objects {
		versions[i].Key = o.Key
	}
	return versions, page.Token, nil
}

// DeleteVersions removes the objects of versions without an ID; a version with one does not exist, which is success.
func (b *Bucket) DeleteVersions(ctx context.Context, versions []s3.Version) (map[s3.Version]error, error) {
	var keys []s3.Key
	for _, v := range versions {
		if v.VersionID == "" || v.VersionID == "null" {
			keys = append(keys, v.Key)
		}
	}
	failedKeys, err := b.DeleteMany(ctx, keys)
	if len(failedKeys) == 0 {
		return nil, err
	}
	failed := map[s3.Version]error{}
	for _, v := range versions {
		if ferr := failedKeys[v.Key]; ferr != nil {
			failed[v] = ferr
		}
	}
	return failed, err
}
