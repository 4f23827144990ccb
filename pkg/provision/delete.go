package provision

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
)

// Delete removes the volume: its objects in all versions, its open uploads, and its bucket if that was made for it and
// holds nothing else. With onDelete=retain in its record it removes nothing and marks the record, so that the next
// volume of the same ID finds the objects. A volume that is not there is success, so a call that broke off is finished
// by calling again.
//
// ErrNotOwned: there are objects, but no record says that csi-s3 made the volume. ErrBusy: somebody still writes to it.
func (p *Provisioner) Delete(ctx context.Context, id config.VolumeID, secret config.Secret) error {
	b, release, err := p.open(ctx, id, secret)
	if err != nil {
		return err
	}
	defer release()
	err = p.remove(ctx, b, id)
	if errors.Is(err, s3.ErrNoBucket) {
		return nil
	}
	if err != nil {
		return p.fail(id, err)
	}
	return nil
}

func (p *Provisioner) remove(ctx context.Context, b s3.Bucket, id config.VolumeID) error {
	prefix := s3.Key(id.Prefix)
	record, tag, err := volmeta.Read(ctx, b, prefix)
	if errors.Is(err, s3.ErrNotExist) {
		return p.removeRest(ctx, b, id)
	}
	if err != nil {
		return err
	}
	if err := p.owns(id, record); err != nil {
		return err
	}
	if record.OnDelete == "retain" {
		if record.State == volmeta.Released {
			return nil
		}
		record.State = volmeta.Released
		if err := volmeta.Replace(ctx, b, prefix, record, tag); err != nil {
			return err
		}
		p.opt.Log.Info("volume released, its objects are kept", "volume", id.String())
		return nil
	}
	if record.State != volmeta.Deleting {
		record.State = volmeta.Deleting
		if err := volmeta.Replace(ctx, b, prefix, record, tag); err != nil {
			return err
		}
	}
	if err := abortUploads(ctx, b, prefix); err != nil {
		return err
	}
	objects, err := removeObjects(ctx, b, prefix, volmeta.Key(prefix))
	if err != nil {
		return err
	}
	if _, err := removeVersions(ctx, b, volmeta.Key(prefix), func(v s3.Version) bool { return v.Key == volmeta.Key(prefix) }); err != nil {
		return err
	}
	if record.MadeBucket && prefix == "" {
		err := b.DeleteBucket(ctx)
		if errors.Is(err, s3.ErrBucketNotEmpty) {
			// Without its record the bucket could never be removed.
			if err := volmeta.Create(ctx, b, prefix, record); err != nil {
				return err
			}
			return fmt.Errorf("%w: objects were written to it while it was deleted", ErrBusy)
		}
		if err != nil {
			return err
		}
	}
	p.opt.Log.Info("volume deleted", "volume", id.String(), "objects", objects)
	return nil
}

// removeRest deletes what is left of a volume whose record is gone: nothing, or the empty bucket that was made for it.
func (p *Provisioner) removeRest(ctx context.Context, b s3.Bucket, id config.VolumeID) error {
	versions, _, err := b.ListVersions(ctx, s3.Key(id.Prefix), "")
	if err != nil {
		return err
	}
	if len(versions) > 0 {
		switch _, err := b.Head(ctx, volmeta.Key(s3.Key(id.Prefix))); {
		case err == nil:
			return fmt.Errorf("%w: it is being created", ErrBusy)
		case !errors.Is(err, s3.ErrNotExist):
			return err
		}
		return fmt.Errorf("%w: it holds objects, such as %q, but no %s; delete them by hand, or set the PV's reclaim policy to Retain", ErrNotOwned, string(versions[0].Key), volmeta.Key(""))
	}
	if id.Prefix != "" || !provisioned.MatchString(id.Bucket) {
		return nil
	}
	return b.DeleteBucket(ctx)
}

func abortUploads(ctx context.Context, b s3.Bucket, prefix s3.Key) error {
	uploads, _, err := b.ListUploads(ctx, prefix)
	if errors.Is(err, s3.ErrNotSupported) {
		return nil // no uploads, then
	}
	if err != nil {
		return err
	}
	for _, u := range uploads {
		if !strings.HasPrefix(string(u.Key), string(prefix)) {
			continue
		}
		if err := b.AbortUpload(ctx, u.Key, u.ID); err != nil {
			return err
		}
	}
	return nil
}

// removeObjects removes everything below prefix but the record and returns how many it were. It passes over the
// listing until it finds nothing: on MinIO the object a hides those below a/.
func removeObjects(ctx context.Context, b s3.Bucket, prefix, record s3.Key) (int, error) {
	total := 0
	for {
		n, err := removeVersions(ctx, b, prefix, func(v s3.Version) bool {
			return v.Key != record && strings.HasPrefix(string(v.Key), string(prefix))
		})
		total += n
		if err != nil || n == 0 {
			return total, err
		}
	}
}

// removeVersions removes the versions below prefix that doomed picks, a page at a time, in one pass.
func removeVersions(ctx context.Context, b s3.Bucket, prefix s3.Key, doomed func(s3.Version) bool) (int, error) {
	const most = 1000 // of one DeleteVersions
	total := 0
	for token := ""; ; {
		page, next, err := b.ListVersions(ctx, prefix, token)
		if err != nil {
			return total, err
		}
		batch := page[:0]
		for _, v := range page {
			if doomed(v) {
				batch = append(batch, v)
			}
		}
		for len(batch) > 0 {
			n := min(len(batch), most)
			failed, err := b.DeleteVersions(ctx, batch[:n])
			for v, ferr := range failed {
				return total, fmt.Errorf("%q: %w", string(v.Key), ferr)
			}
			if err != nil {
				return total, err
			}
			total += n
			batch = batch[n:]
		}
		if next == "" {
			return total, nil
		}
		token = next
	}
}
