package cache

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"
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

// held is what cannot be evicted.
func (u usage) held() int64 { return u.total() - u.clean }

func (u *usage) add(d usage) {
	u.dirty += d.dirty
	u.clean += d.clean
	u.trash += d.trash
	u.saved += d.saved
	u.reserved += d.reserved
	u.dirtyFiles += d.dirtyFiles
}

// Budget is the space of the stores that share a file system. Its zero value works, and is safe for concurrent use.
//
// Half of the space is shared out equally, to each store and one more that may come: what bytes that cannot be evicted take
// there is guaranteed. The rest is for who comes first. So a store whose bucket is away fills what is left when the others
// have their shares, and never those. Clean bytes may be anywhere; they go where others need the place, from the store that is
// furthest above its share first.
type Budget struct {
	// Capacity is how many bytes all stores may use; 0: what the file system has, less a reserve. Set it before the first use.
	Capacity int64

	own bool // of one store alone

	mu      sync.Mutex
	members []*space  // guarded by mu
	total   int64     // guarded by mu: bytes for all members
	checked time.Time // guarded by mu: when total was computed from the file system
}

// space is one store's part of a budget.
type space struct {
	budget *Budget
	store  *Store
	used   usage          // guarded by budget.mu
	busy   sync.WaitGroup // evictions for others; begun with budget.mu held, by members only
}

func (s *space) join(b *Budget, store *Store) {
	s.budget, s.store = b, store
	b.mu.Lock()
	defer b.mu.Unlock()
	b.members = append(b.members, s)
}

// leave ends the store's part of the budget: from here on what it has on the disk is somebody else's. Nobody evicts its
// bytes any more.
func (s *space) leave() {
	b := s.budget
	b.mu.Lock()
	b.members = slices.DeleteFunc(b.members, func(m *space) bool { return m == s })
	b.mu.Unlock()
	s.busy.Wait()
}

// refresh computes the total. The caller holds mu.
func (b *Budget) refresh(s *Store) error {
	if b.Capacity > 0 {
		b.total = b.Capacity
		return nil
	}
	now := s.opt.Now()
	if !b.checked.IsZero() && now.Sub(b.checked) < limitAge && !now.Before(b.checked) {
		return nil
	}
	total, free, err := s.fs.Space()
	if err != nil {
		return fmt.Errorf("space of the cache disk: %w", err)
	}
	for _, m := range b.members {
		free += m.used.total() - m.used.reserved
	}
	b.total = max(0, free-min(maxReserve, total/20))
	b.checked = now
	return nil
}

// share is what each store is guaranteed. The caller holds mu.
func (b *Budget) share() int64 {
	if b.own {
		return b.total
	}
	return b.total / 2 / int64(len(b.members)+1)
}

// limit is how many bytes a store may have that cannot be evicted. The caller holds mu.
func (b *Budget) limit(s *space) int64 {
	if b.own {
		return b.total
	}
	share := b.share()
	left, rest := b.total-share, b.total
	for _, m := range b.members {
		if m != s {
			left -= max(share, m.used.held())
			rest -= m.used.held()
		}
	}
	return max(0, left, min(share, rest))
}

// room is how many more bytes the disk takes before some must be evicted. The caller holds mu.
func (b *Budget) room() int64 {
	n := b.total
	for _, m := range b.members {
		n -= m.used.total()
	}
	return n
}

func (s *space) add(d usage) {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	s.used.add(d)
}

// get is what the store uses, what of it may be such that it cannot be evicted, and how many bytes more it may take.
func (s *space) get() (u usage, limit, free int64) {
	b := s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	// The last total known is better than none.
	_ = b.refresh(s.store)
	limit = b.limit(s)
	return s.used, limit, max(0, min(limit-s.used.held(), b.room()))
}

// take reserves n bytes, if they are within the store's limit and there is room; evict is how many bytes of room are lacking.
func (s *space) take(n int64) (ok bool, evict int64, err error) {
	b := s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refresh(s.store); err != nil {
		return false, 0, err
	}
	evict = max(0, n-b.room())
	if evict > 0 || s.used.held()+n > b.limit(s) {
		return false, evict, nil
	}
	s.used.reserved += n
	return true, 0, nil
}

// evict makes room for n bytes: first what stores have above their shares, then of the store's own, then of all.
func (s *space) evict(n int64) {
	b := s.budget
	b.mu.Lock()
	n += b.total / 100 // a little more than needed, so that not every write evicts
	share := b.share()
	over := func(m *space) int64 { return m.used.total() - share }
	victims := slices.Clone(b.members)
	slices.SortStableFunc(victims, func(x, y *space) int { return cmp.Compare(over(y), over(x)) })
	most := make([]int64, len(victims))
	for i, m := range victims {
		most[i] = over(m)
		m.busy.Add(1)
	}
	b.mu.Unlock()
	for i, m := range victims {
		if most[i] > 0 && n > 0 {
			n -= m.store.Evict(min(n, most[i]))
		}
	}
	if n > 0 {
		n -= s.store.Evict(n)
	}
	for _, m := range victims {
		if n > 0 {
			n -= m.store.Evict(n)
		}
		m.busy.Done()
	}
}

// reserve makes room for n more bytes, evicting if need be. The caller gives them back with release when they are
// accounted to a file. It holds no lock of a file.
func (s *Store) reserve(n int64) error {
	if n == 0 {
		return nil
	}
	ok, evict, err := s.space.take(n)
	if ok || err != nil {
		return err
	}
	if err := s.Reap(); err != nil {
		return err
	}
	if evict > 0 {
		s.space.evict(evict)
	}
	if ok, _, err = s.space.take(n); ok || err != nil {
		return err
	}
	return fmt.Errorf("%d bytes do not fit: %w", n, ErrFull)
}

func (s *Store) release(n int64) { s.space.add(usage{reserved: -n}) }
