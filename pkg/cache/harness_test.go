package cache_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

// failer is what *testing.T and *rapid.T have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// box is an opened store with its journal, as package volume opens them.
type box struct {
	*cache.Store
	j   *journal.Journal
	rec cache.Recovery
	// foreign are the records of other owners that the journal held.
	foreign []string
}

const foreignKind = journal.OwnerNamespace | 1

func openBox(fs disk.FS, opt cache.Options, powerCut bool) (*box, error) {
	b := &box{Store: cache.New(fs, opt)}
	var err error
	b.j, err = journal.Open(fs, "journal", journal.Options{}, func(frame []journal.Record) error {
		for _, rec := range frame {
			if rec.Kind.Owner() != journal.OwnerCache {
				b.foreign = append(b.foreign, string(rec.Data))
				continue
			}
			if err := b.Replay(rec); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		b.rec, err = b.Recover(b.j, powerCut)
	}
	if err == nil {
		err = b.Forget(b.rec.Lost)
	}
	return b, err
}

func mustOpen(t failer, fs disk.FS, powerCut bool) *box {
	t.Helper()
	b, err := openBox(fs, cache.Options{}, powerCut)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return b
}

// checkpoint keeps the records of other owners, too.
func (b *box) checkpoint() error {
	return b.j.Checkpoint(func(emit func(...journal.Record) error) error {
		for _, s := range b.foreign {
			if err := emit(journal.Record{Kind: foreignKind, Data: []byte(s)}); err != nil {
				return err
			}
		}
		return b.Dump(emit)
	})
}

// stamp is the mtime of the n-th change.
func stamp(n int) time.Time { return time.Unix(1_700_000_000, int64(n)) }

// pattern is n bytes of the op-th change for offset off: none is zero, and they tell the change and the offset.
func pattern(op int, off, n int64) []byte {
	p := make([]byte, n)
	for i := range p {
		x := uint64(op)*0x9e3779b97f4a7c15 + uint64(off+int64(i))*0xbf58476d1ce4e5b9
		p[i] = byte((x>>32)%255) + 1
	}
	return p
}

// spilled are the objects of a file's spills, by number: each byte at its offset in the file.
type spilled map[uint64][]byte

// fetch copies what the objects hold of r to p. at is File.Spilled or Snapshot.Spilled.
func (s spilled) fetch(p []byte, r extent.Range, remote []byte, at func(int64) (uint64, int64)) error {
	for pos := r.Off; pos < r.End; {
		n, end := at(pos)
		object := remote
		if n != 0 {
			object = s[n]
		}
		if end = min(end, r.End); end <= pos || end > int64(len(object)) {
			return fmt.Errorf("missing %v: [%d,%d) is said to be in object %d of %d bytes", r, pos, end, n, len(object))
		}
		copy(p[pos-r.Off:end-r.Off], object[pos:end])
		pos = end
	}
	return nil
}

// readAll reads a file as a caller with the remote objects at hand does, without filling the cache.
func readAll(f *cache.File, remote []byte, apart ...spilled) ([]byte, error) {
	apart = append(apart, nil)
	out := make([]byte, f.Size())
	for pos := int64(0); pos < int64(len(out)); {
		n, missing, err := f.ReadAt(out[pos:], pos)
		pos += int64(n)
		switch {
		case err != nil:
			return nil, err
		case missing.Empty() && pos < int64(len(out)):
			return nil, fmt.Errorf("read stopped at %d of %d for no reason", pos, len(out))
		case missing.Empty():
		case missing.Off != pos || missing.End > int64(len(out)):
			return nil, fmt.Errorf("read stopped at %d, says that %v is missing", pos, missing)
		default:
			if err := apart[0].fetch(out[pos:missing.End], missing, remote, f.Spilled); err != nil {
				return nil, err
			}
			pos = missing.End
		}
	}
	return out, nil
}

// readSnap reads a snapshot; what is missing comes from the remote objects, through Fill when fill is set.
func readSnap(f *cache.File, s *cache.Snapshot, remote []byte, fill bool, apart ...spilled) ([]byte, error) {
	apart = append(apart, nil)
	out := make([]byte, s.Size())
	generation := f.Generation()
	missing := s.Missing(0, s.Size())
	for _, r := range missing {
		if err := apart[0].fetch(out[r.Off:r.End], r, remote, s.Spilled); err != nil {
			return nil, fmt.Errorf("snapshot: %w", err)
		}
		if fill {
			if err := f.Fill(out[r.Off:r.End], r.Off, generation); err != nil {
				return nil, err
			}
		}
	}
	if fill {
		if m := s.Missing(0, s.Size()); len(m) > 0 {
			return nil, fmt.Errorf("the snapshot misses %v after they were filled", m)
		}
		missing = nil
	}
	pos := int64(0)
	read := func(to int64) error {
		if n, err := s.ReadAt(out[pos:to], pos); int64(n) < to-pos {
			return fmt.Errorf("snapshot read of [%d,%d): %d bytes, %w", pos, to, n, err)
		}
		return nil
	}
	for _, r := range missing {
		if err := read(r.Off); err != nil {
			return nil, err
		}
		if _, err := s.ReadAt(make([]byte, 1), r.Off); !errors.Is(err, cache.ErrMissing) {
			return nil, fmt.Errorf("snapshot read of the missing byte %d: %w", r.Off, err)
		}
		pos = r.End
	}
	return out, read(s.Size())
}

// What a byte of a model image is.
const (
	remoteByte = iota // the remote object has it
	dirtyByte
	holeByte // made here, zero
	spilledByte
)

// maxFile bounds the files of random scripts, in bytes: a few pages.
const maxFile = 3 * 4096
