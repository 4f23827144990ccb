package cache_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
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

// readAll reads a file as a caller with the remote object at hand does, without filling the cache.
func readAll(f *cache.File, remote []byte) ([]byte, error) {
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
		case missing.End > int64(len(remote)):
			return nil, fmt.Errorf("missing %v, but the remote object has %d bytes", missing, len(remote))
		default:
			pos += int64(copy(out[pos:missing.End], remote[missing.Off:]))
		}
	}
	return out, nil
}

// readSnap reads a snapshot; what is missing comes from the remote object, through Fill when fill is set.
func readSnap(f *cache.File, s *cache.Snapshot, remote []byte, fill bool) ([]byte, error) {
	out := make([]byte, s.Size())
	generation := f.Generation()
	missing := s.Missing(0, s.Size())
	for _, r := range missing {
		if r.End > int64(len(remote)) {
			return nil, fmt.Errorf("the snapshot misses %v, but the remote object has %d bytes", r, len(remote))
		}
		if fill {
			if err := f.Fill(remote[r.Off:r.End], r.Off, generation); err != nil {
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
		copy(out[r.Off:r.End], remote[r.Off:])
		pos = r.End
	}
	return out, read(s.Size())
}

// What a byte of a model image is.
const (
	remoteByte = iota // the remote object has it
	dirtyByte
	holeByte // made here, zero
)

// maxFile bounds the files of random scripts, in bytes: a few pages.
const maxFile = 3 * 4096
