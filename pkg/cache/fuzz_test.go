package cache_test

import (
	"errors"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

// realRecords are records of each kind that a store writes.
func realRecords(t failer) []journal.Record {
	mem := diskmem.New()
	b := mustOpen(t, mem, false)
	f, g := b.File(1, 100), b.File(300, 0)
	must(t, f.WriteAt([]byte("x"), 5, stamp(1)))
	must(t, f.WriteAt([]byte("x"), 500, stamp(1)))
	must(t, f.Sync())
	must(t, f.Truncate(50, stamp(2)))
	must(t, g.WriteAt([]byte("y"), 0, stamp(3)))
	s, err := f.Snapshot()
	must(t, err)
	must(t, f.WriteAt([]byte("z"), 7, stamp(4)))
	must(t, s.Commit())
	s.Release()
	must(t, b.Remove(300))
	var recs []journal.Record
	_, err = journal.Open(mem.Clone(), "journal", journal.Options{}, func(frame []journal.Record) error {
		recs = append(recs, frame...)
		return nil
	})
	must(t, err)
	must(t, b.Dump(func(r ...journal.Record) error { recs = append(recs, r...); return nil }))
	return recs
}

// FuzzReplay: records from a damaged or foreign journal are refused or replayed, and never end the process.
func FuzzReplay(f *testing.F) {
	for _, rec := range realRecords(failNow{f}) {
		f.Add(byte(rec.Kind), rec.Data, byte(rec.Kind), rec.Data)
	}
	f.Add(byte(0x15), []byte{1, 0, 0, 0, 0, 0, 0, 0}, byte(0x16), []byte{1, 1, 0})
	f.Add(byte(0x11), []byte{1, 5, 9, 2, 2, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, 1}, byte(0x12), []byte{1, 1})
	f.Fuzz(func(t *testing.T, k1 byte, d1 []byte, k2 byte, d2 []byte) {
		for _, powerCut := range []bool{false, true} {
			mem := diskmem.New()
			s := cache.New(mem, cache.Options{})
			for _, rec := range []journal.Record{{Kind: journal.Kind(k1), Data: d1}, {Kind: journal.Kind(k2), Data: d2}, {Kind: 0x13, Data: []byte{1, 1}}} {
				if err := s.Replay(rec); err != nil && !errors.Is(err, journal.ErrCorrupt) {
					t.Fatalf("%v is not ErrCorrupt", err)
				}
			}
			j, err := journal.Open(mem, "journal", journal.Options{}, func([]journal.Record) error { return nil })
			must(t, err)
			rec, err := s.Recover(j, powerCut)
			must(t, err)
			for _, d := range rec.Dirty {
				// There is no data file: a file with dirty bytes must not have survived.
				if d.Bytes > 0 {
					t.Fatalf("%+v without a byte on the disk", d)
				}
				if got, _, err := s.Lookup(d.ID).ReadAt(make([]byte, 10), 0); err != nil {
					t.Fatal(got, err)
				}
			}
			must(t, s.Dump(func(recs ...journal.Record) error {
				for _, r := range recs {
					if err := cache.New(mem, cache.Options{}).Replay(r); err != nil && len(recs) == 1 {
						return err
					}
				}
				return nil
			}))
		}
	})
}

// failNow makes a *testing.F a failer.
type failNow struct{ *testing.F }

// Every cut-off or prolonged record of our own is refused, except where it is a shorter record of its own kind.
func TestReplayCutRecords(t *testing.T) {
	kinds := map[journal.Kind]int{}
	for _, rec := range realRecords(t) {
		kinds[rec.Kind]++
		s := cache.New(diskmem.New(), cache.Options{})
		for n := range len(rec.Data) {
			if err := s.Replay(journal.Record{Kind: rec.Kind, Data: rec.Data[:n]}); !errors.Is(err, journal.ErrCorrupt) {
				t.Errorf("kind %#x cut to %d of %d bytes: %v", rec.Kind, n, len(rec.Data), err)
			}
		}
		if err := s.Replay(journal.Record{Kind: rec.Kind, Data: append(append([]byte{}, rec.Data...), 1)}); !errors.Is(err, journal.ErrCorrupt) {
			t.Errorf("kind %#x with a byte too much: %v", rec.Kind, err)
		}
	}
	if len(kinds) < 5 {
		t.Errorf("only %d kinds were seen", len(kinds))
	}
	s := cache.New(diskmem.New(), cache.Options{})
	for name, data := range map[string][]byte{
		"base beyond the size": {1, 9, 5, 2, 2, 0},
		"negative size":        {1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 2, 0},
		"ranges out of order":  {1, 0, 9, 2, 2, 2, 1, 1, 0, 1},
	} {
		if err := s.Replay(journal.Record{Kind: journal.OwnerCache | 1, Data: data}); !errors.Is(err, journal.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Replay(journal.Record{Kind: journal.OwnerCache | 1, Data: []byte{1, 5, 9, 2, 2, 0}}); err != nil {
		t.Errorf("a right record: %v", err)
	}
	if err := s.Replay(journal.Record{Kind: journal.OwnerCache | 15}); !errors.Is(err, journal.ErrCorrupt) {
		t.Errorf("an unknown kind: %v", err)
	}
}
