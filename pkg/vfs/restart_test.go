package vfs_test

import (
	"errors"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/vfs"
)

func TestWhatWasAcknowledgedSurvivesAKill(t *testing.T) {
	v := newVolume(t, config{})
	v.put("x/y", "foreign")
	v.mkdir("d")
	v.write("d/f", "hello")
	v.wantFile("x/y", "foreign")
	v.ok(v.rename("x/y", "d/z", 0))
	v.wantObjects("x/y", "foreign")
	v.kill()
	v.wantFile("d/f", "hello")
	v.wantFile("d/z", "foreign")
	v.wantNames("", "d", "x")
	v.wantNames("x")
	v.flush()
	v.wantObjects("d/", "", "d/f", "hello", "d/z", "foreign", "x/", "")
}

// TestResentRequests: a request that was carried out before a kill, and whose answer was lost with it, gets that answer.
func TestResentRequests(t *testing.T) {
	for _, checkpoint := range []bool{false, true} {
		v := newVolume(t, config{})
		v.write("f", "x")
		v.write("g", "y")
		v.mkdir("d")
		f := v.ino("f")
		do := func(resent bool) (vfs.Entry, error) {
			req := root
			req.Resent = resent
			var errs []error
			req.Unique = 11
			errs = append(errs, v.Unlink(ctx, req, 1, "g"))
			req.Unique = 12
			errs = append(errs, v.Rmdir(ctx, req, 1, "d"))
			req.Unique = 13
			errs = append(errs, v.Rename(ctx, req, 1, "f", 1, "h", 0))
			req.Unique = 14
			_, err := v.Link(ctx, req, f, 1, "l")
			errs = append(errs, err)
			req.Unique = 15
			errs = append(errs, v.SetXattr(ctx, req, f, "user.a", []byte("1"), 1))
			req.Unique = 16
			_, err = v.Symlink(ctx, req, 1, "s", "target")
			errs = append(errs, err)
			req.Unique = 17
			e, err := v.Mkdir(ctx, req, 1, "n", 0o755)
			errs = append(errs, err)
			req.Unique = 18
			c, h, err := v.Create(ctx, req, 1, "c", 0o644, 0x80)
			if err == nil {
				v.Release(c.Attr.Ino, h)
			}
			return e, errors.Join(append(errs, err)...)
		}
		first, err := do(false)
		v.ok(err)
		if checkpoint {
			v.ok(v.checkpoint())
		}
		v.kill()
		again, err := do(true)
		v.ok(err)
		if again.Attr.Ino != first.Attr.Ino {
			t.Errorf("the directory was inode %d and is now %d", first.Attr.Ino, again.Attr.Ino)
		}
		v.wantNames("", "c", "h", "l", "n", "s")
		// A number that was never carried out is carried out, and one that is not resent is a new request.
		req := root
		req.Unique, req.Resent = 99, true
		v.ok(v.Unlink(ctx, req, 1, "l"))
		req.Resent = false
		if err := v.Unlink(ctx, req, 1, "l"); !errors.Is(err, namespace.ErrNotExist) {
			t.Errorf("second unlink: %v", err)
		}
	}
}

func TestKillWhileTheBucketIsDown(t *testing.T) {
	v := newVolume(t, config{settle: 1})
	v.put("old", "old")
	v.wantFile("old", "old")
	v.down()
	v.write("new", "new")
	v.ok(v.rename("old", "older", 0))
	v.kill()
	v.faulty(nil)
	v.flush()
	v.wantObjects("new", "new", "older", "old")
	if n := v.faults.Count("Put"); n > 3 {
		t.Errorf("%d PUTs for one file", n)
	}
}
