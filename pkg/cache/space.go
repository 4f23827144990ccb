package cache

import (
	"fmt"
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk"
)

const (
	maxReserve = 2 << 30 // bytes of the file system that are left to others, at most
	// limitAge is how long the limit of a store without a capacity of its own is believed: others fill the disk too.
	limitAge = time.Second
)

// usage is what files take up, in bytes.
type usage struct {
	dirty, clean int64
	trash        int64 // on the disk, no longer needed, not yet freed
	saved        int64 // by snapshots
	reserved     int64 // for operations under way
	dirtyFiles   int
}

func (u usage) total() int64 { return u.dirty + u.clean + u.trash + u.saved + u.reserved }

func (u *usage) add(d usage) {
	u.dirty += d.dirty
	u.clean += d.clean
	u.trash += d.trash
	u.saved += d.saved
	u.reserved += d.reserved
	u.dirtyFiles += d.dirtyFiles
}

// space counts what the store uses and refuses what does not fit.
type space struct {
	fs       disk.FS
	capacity int64
	now      func() time.Time

	mu      sync.Mutex
	used    usage
	limit   int64
	checked time.Time // when limit was computed from the file system
}

func (s *space) init(fs disk.FS, opt Options) {
	s.fs, s.capacity, s.now, s.limit = fs, opt.Capacity, opt.Now, opt.Capacity
}

// refresh computes the limit. The caller holds mu.
func (s *space) refresh() error {
	if s.capacity > 0 {
		return nil
	}
	now := s.now()
	if !s.checked.IsZero() && now.Sub(s.checked) < limitAge && !now.Before(s.checked) {
		return nil
	}
	total, free, err := s.fs.Space()
	if err != nil {
		return fmt.Errorf("space of the cache disk: %w", err)
	}
	s.limit = max(0, s.used.total()-s.used.reserved+free-min(maxReserve, total/20))
	s.checked = now
	return nil
}

func (s *space) add(d usage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used.add(d)
}

func (s *space) get() (u usage, limit int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The last limit known is better than none.
	_ = s.refresh()
	return s.used, s.limit
}

// take reserves n bytes; short is how many are lacking.
func (s *space) take(n int64) (short int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refresh(); err != nil {
		return 0, err
	}
	if short = s.used.total() + n - s.limit; short > 0 {
		return short, nil
	}
	s.used.reserved += n
	return 0, nil
}

// reserve makes room for n more bytes, evicting if need be. The caller gives them back with release when they are
// accounted to a file. It holds no lock of a file.
func (s *Store) reserve(n int64) error {
	if n == 0 {
		return nil
	}
	short, err := s.space.take(n)
	if err != nil || short <= 0 {
		return err
	}
	if err := s.Reap(); err != nil {
		return err
	}
	_, limit := s.space.get()
	s.Evict(short + limit/100)
	if short, err = s.space.take(n); err != nil {
		return err
	}
	if short > 0 {
		return fmt.Errorf("%d bytes do not fit: %w", n, ErrFull)
	}
	return nil
}

func (s *Store) release(n int64) { s.space.add(usage{reserved: -n}) }
