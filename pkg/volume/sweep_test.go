package volume_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/volume"
)

// Caches of volumes that left the node go after a while; those in use, with data, or with something in quarantine stay.
func TestSweep(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	caches := map[string]string{}
	n.before = func(spec volume.Spec) error {
		caches[spec.ID] = spec.CacheDir
		must(t, os.MkdirAll(filepath.Join(spec.CacheDir, "data"), 0o700))
		return os.WriteFile(filepath.Join(spec.CacheDir, "data", "f"), []byte("x"), 0o600)
	}
	stage := func(prefix string) volume.StageRequest {
		r := n.request(t)
		r.ID.Prefix, r.Dir = prefix+"/", n.path(t, "staging-"+prefix)
		must(t, n.Stage(ctx, r))
		return r
	}
	there := func() (names []string) {
		for id, dir := range caches {
			if _, err := os.Stat(dir); err == nil {
				names = append(names, id)
			}
		}
		slices.Sort(names)
		return names
	}
	must(t, n.Sweep(0)) // nothing yet
	gone, used, left, precious := stage("gone"), stage("used"), stage("left"), stage("precious")
	must(t, os.MkdirAll(filepath.Join(caches["bucket/precious"], "quarantine"), 0o700))
	must(t, os.WriteFile(filepath.Join(caches["bucket/precious"], "quarantine", "1"), nil, 0o600))
	must(t, n.Unstage(ctx, gone.ID, gone.Dir))
	must(t, n.Unstage(ctx, precious.ID, precious.Dir))
	n.last(left.ID).lose(t)

	must(t, n.Sweep(time.Hour))
	if got := there(); len(got) != 4 {
		t.Errorf("too early: %q are left", got)
	}
	must(t, n.Sweep(0))
	if got := there(); !slices.Equal(got, []string{"bucket/left", "bucket/precious", "bucket/used"}) {
		t.Errorf("%q are left", got)
	}
	// What a sweep that broke off left behind.
	must(t, n.Unstage(ctx, used.ID, used.Dir))
	must(t, os.Rename(caches["bucket/used"], caches["bucket/used"]+".gone"))
	must(t, n.Sweep(time.Hour))
	if _, err := os.Stat(filepath.Dir(caches["bucket/used"])); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	must(t, n.Stage(ctx, gone))
	must(t, n.Unstage(ctx, gone.ID, gone.Dir))
	must(t, n.Unstage(ctx, left.ID, left.Dir))
}
