package disk_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
)

// look is all that lies below dir, with the times.
func look(t *testing.T, dir string) string {
	t.Helper()
	var all bytes.Buffer
	must(t, filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&all, name, st.Mode(), st.ModTime().UnixNano())
		if e.IsDir() {
			return nil
		}
		text, err := os.ReadFile(name)
		fmt.Fprintf(&all, "%d %x\n", len(text), text)
		return err
	}))
	return all.String()
}

// An Overlay does with a directory what a disk does, seen through any number of random changes, and the directory never
// changes.
func TestOverlay(t *testing.T) {
	changes := 0
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 2))
		dir := t.TempDir()
		model := diskmem.New()
		must(t, model.MkdirAll("d"), os.Mkdir(filepath.Join(dir, "d"), 0o700))
		names := []string{"a", "b", "d/a", "d/b"}
		for _, name := range names[:3] {
			text := make([]byte, r.IntN(40000))
			for i := range text {
				text[i] = byte(r.Uint32())
			}
			must(t, os.WriteFile(filepath.Join(dir, name), text, 0o400), create(t, model, name, string(text)).Close())
		}
		before := look(t, dir)
		o, err := disk.OpenOverlay(dir)
		must(t, err)
		for range 60 {
			name, other := names[r.IntN(len(names))], names[r.IntN(len(names))]
			spare := r.IntN(4) > 0
			verb, off, n := r.IntN(6), r.Int64N(50000), r.Int64N(20000)
			piece := bytes.Repeat([]byte{byte(r.Uint32())}, int(n))
			var errs [2]error
			for i, d := range []disk.FS{o, model} {
				errs[i] = func() error {
					switch verb {
					case 0:
						return d.Rename(name, other)
					case 1:
						if spare {
							return nil
						}
						return d.Remove(name)
					}
					f, err := d.OpenFile(name, verb == 2)
					if err != nil {
						return err
					}
					switch verb {
					case 2, 3:
						_, err = f.WriteAt(piece, off)
					case 4:
						err = f.Truncate(off)
					case 5:
						err = f.PunchHole(off, off+n)
					}
					return errors.Join(err, f.Close())
				}()
			}
			if (errs[0] == nil) != (errs[1] == nil) || errors.Is(errs[0], fs.ErrNotExist) != errors.Is(errs[1], fs.ErrNotExist) {
				t.Fatalf("seed %d: verb %d of %s: %v, the model %v", seed, verb, name, errs[0], errs[1])
			}
			if errs[0] == nil {
				changes++
			}
			for _, name := range names {
				got, err := o.ReadFile(name)
				want, werr := model.ReadFile(name)
				if (err == nil) != (werr == nil) || !bytes.Equal(got, want) {
					t.Fatalf("seed %d: %s after verb %d: %d bytes, %v; the model %d bytes, %v", seed, name, verb, len(got), err, len(want), werr)
				}
			}
			for _, dir := range []string{".", "d"} {
				got, err := o.ReadDir(dir)
				must(t, err)
				want, err := model.ReadDir(dir)
				must(t, err)
				if len(got) != len(want) {
					t.Fatalf("seed %d: %d names in %s, the model has %d", seed, len(got), dir, len(want))
				}
				for i, e := range got {
					st, err := e.Info()
					must(t, err)
					model, err := want[i].Info()
					must(t, err)
					if e.Name() != want[i].Name() || e.IsDir() != want[i].IsDir() || !e.IsDir() && st.Size() != model.Size() {
						t.Fatalf("seed %d: %s of %d bytes, the model %s of %d", seed, e.Name(), st.Size(), want[i].Name(), model.Size())
					}
				}
			}
		}
		must(t, o.Close())
		if after := look(t, dir); after != before {
			t.Fatalf("seed %d: the directory changed from\n%s\nto\n%s", seed, before, after)
		}
	}
	if changes < 500 {
		t.Fatalf("only %d changes", changes)
	}
}

// What is locked on the disk is locked in an Overlay, and the reverse.
func TestOverlayLock(t *testing.T) {
	dir := t.TempDir()
	lower, err := disk.OpenOS(dir)
	must(t, err)
	defer lower.Close()
	o, err := disk.OpenOverlay(dir)
	must(t, err)
	defer o.Close()
	if _, err := o.Lock("owner"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a lock that nobody ever took: %v", err)
	}
	held, err := lower.Lock("owner")
	must(t, err)
	if _, err := o.Lock("owner"); !errors.Is(err, disk.ErrLocked) {
		t.Fatalf("a lock that is held: %v", err)
	}
	must(t, held.Close())
	held, err = o.Lock("owner")
	must(t, err)
	if _, err := lower.Lock("owner"); !errors.Is(err, disk.ErrLocked) {
		t.Fatalf("a lock that the overlay holds: %v", err)
	}
	must(t, held.Close())
}
