package vfs

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"

	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Views is the memory for what was learned from buckets, shared by all mounts of a process. Everything in it may be
// forgotten at any moment.
type Views struct {
	cache *ristretto.Cache[uint64, *listing]
	ids   atomic.Uint64
}

const (
	defaultViews = 64 << 20 // bytes
	costListing  = 256      // bytes of an empty listing
	costName     = 192      // bytes of a name in it, beside the name's own
	maxUnsure    = 16       // directories that are looked at before a listing that has no more of them is shown
	maxSingles   = 4096     // names kept of a directory that was never listed as a whole
)

// NewViews makes a memory of about cost bytes; 0 means 64 MiB. Close ends it.
func NewViews(cost int64) *Views {
	if cost <= 0 {
		cost = defaultViews
	}
	c, err := ristretto.NewCache(&ristretto.Config[uint64, *listing]{
		NumCounters: max(1024, cost/256), MaxCost: cost, BufferItems: 64, IgnoreInternalCost: true,
		OnExit: func(l *listing) {
			if l != nil {
				l.remote.dropped(l)
			}
		},
	})
	if err != nil {
		panic(err) // only for numbers that are not positive
	}
	return &Views{cache: c}
}

// Close drops everything.
func (v *Views) Close() { v.cache.Close() }

// entry is what a bucket has under a name: an object, or a directory, or both (then the directory is what counts).
type entry struct {
	file  *s3.Info // nil: no object of that name
	known bool     // file came from a HEAD: it has the metadata
	dir   bool     // a marker or keys below it
	// sure: one of these was found, or made by us. Else a listing showed a common prefix: MinIO goes on to show one for a
	// while when no key is left below it, so that alone does not make a directory.
	sure   bool
	marker *s3.Info // of a directory, from a HEAD: without an ETag when it has none; nil: not asked for
}

func (e entry) absent() bool { return e.file == nil && !e.dir }
func (e entry) unsure() bool { return e.dir && !e.sure }

// single is an entry with the time when it was true.
type single struct {
	entry
	at    time.Time
	doubt bool // something spoke against it: ask again
}

// listing is what is known of the names directly below one prefix. All fields but the first line's are guarded by
// Remote.mu.
type listing struct {
	id     uint64
	remote *Remote
	prefix s3.Key

	complete bool              // names has all names that the bucket had at at
	large    bool              // the bucket has more than one page of names
	at       time.Time         // of the LIST's start
	names    map[string]single // nil once the listing was dropped
	hidden   int               // keys that have no name
	cost     int64             // what it was admitted with, in bytes
	grown    int64             // bytes since
}

// flight is a LIST or HEAD on its way. Changes of the bucket that the tree reports meanwhile may or may not be in its
// answer: they are recorded and applied to it.
type flight struct {
	kind    flightKind
	changes []change1 // guarded by Remote.mu
	void    bool      // guarded by Remote.mu: its answer is not to be kept
	done    chan struct{}
	// Valid once done is closed. names are those of allPages: the listing itself may be evicted at any moment.
	l     *listing
	names []named
	err   error
}

type flightKind int

const (
	onePage flightKind = iota
	allPages
	oneName // never shared
)

// change1 is one change of the bucket, as Tree's Options.Settled tells it.
type change1 struct {
	name  string
	isDir bool
	info  *s3.Info
}

// Remote is the forgettable view of one volume's bucket: listings and the answers of HEAD. Safe for concurrent use. Its
// lock is a leaf.
type Remote struct {
	bucket patient
	views  *Views
	ttl    time.Duration
	now    func() time.Time

	mu      sync.Mutex
	index   map[s3.Key]*listing  // guarded by mu: what views keeps of this volume
	flights map[s3.Key][]*flight // guarded by mu
	hidden  map[s3.Key]int       // guarded by mu: keys without a name, by prefix, where there are any
}

// NewRemote makes the view of a volume in bucket. ttl is how long an answer of the bucket holds, 0 is for ever: see
// Policy.TTL.
func NewRemote(bucket s3.Bucket, views *Views, ttl time.Duration) *Remote {
	return &Remote{
		bucket: patient{bucket: bucket}, views: views, ttl: ttl, now: time.Now,
		index: map[s3.Key]*listing{}, flights: map[s3.Key][]*flight{}, hidden: map[s3.Key]int{},
	}
}

// Close drops what views keeps of this volume.
func (r *Remote) Close() {
	r.mu.Lock()
	var ids []uint64
	for _, l := range r.index {
		ids = append(ids, l.id)
		l.names = nil
	}
	clear(r.index)
	r.mu.Unlock()
	for _, id := range ids {
		r.views.cache.Del(id)
	}
}

// forever says that what was learned holds for ever.
func (r *Remote) forever() bool { return r.ttl == 0 }

func (r *Remote) fresh(at time.Time) bool { return r.ttl == 0 || r.now().Sub(at) < r.ttl }

// Settled hears that the bucket now holds (info) or no longer holds (nil) a name of a directory, and lets the cached
// listing and all requests in flight follow. It is namespace.Options.Settled.
func (r *Remote) Settled(dir s3.Key, name string, isDir bool, info *s3.Info) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := change1{name, isDir, info}
	for _, fl := range r.flights[dir] {
		fl.changes = append(fl.changes, c)
	}
	if l := r.index[dir]; l != nil {
		l.apply(c)
		if l.grown > l.cost {
			r.discard(l) // it was admitted as something smaller
		}
	}
	if isDir && (info == nil || info.ETag == "") {
		// More than a marker came or went: all that is below it.
		r.forgetBelow(dir + s3.Key(name) + "/")
	}
}

// forgetBelow drops what is known and asked of a prefix and of all below it. The caller holds mu.
func (r *Remote) forgetBelow(prefix s3.Key) {
	for p, l := range r.index {
		if strings.HasPrefix(string(p), string(prefix)) {
			r.discard(l)
		}
	}
	for p, fls := range r.flights {
		if strings.HasPrefix(string(p), string(prefix)) {
			for _, fl := range fls {
				fl.void = true
			}
		}
	}
}

// apply lets a listing follow a change. The caller holds Remote.mu.
func (l *listing) apply(c change1) {
	if !l.complete {
		delete(l.names, c.name) // its other form is not known
		return
	}
	s, ok := l.names[c.name]
	if !ok {
		s.at = l.at
		l.grown += int64(costName + len(c.name))
	}
	if c.isDir {
		s.dir, s.sure, s.marker = c.info != nil, true, nil
	} else {
		s.file, s.known = c.info, false
		if s.dir && c.info != nil {
			// We put a file where a directory was listed: most likely the last of its keys went unnoticed.
			s.dir, s.doubt = false, true
		}
	}
	l.names[c.name] = s
}

// discard takes a listing out of the index. Its entry in views is an empty shell until it is evicted. The caller holds
// Remote.mu.
func (r *Remote) discard(l *listing) {
	if r.index[l.prefix] == l {
		delete(r.index, l.prefix)
	}
	l.names = nil
}

// dropped hears from views that a listing was evicted.
func (r *Remote) dropped(l *listing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.discard(l)
}

// keep enters a listing and lands the flight that brought it. The caller holds no lock.
func (r *Remote) keep(l *listing, fl *flight) {
	l.id = r.views.ids.Add(1)
	l.cost = costListing
	for name := range l.names {
		l.cost += int64(costName + len(name))
	}
	r.mu.Lock()
	for _, c := range fl.changes {
		l.apply(c)
	}
	if fl.kind == allPages {
		fl.names = l.all()
	}
	r.land(l.prefix, fl)
	if fl.void {
		l.names = nil
		r.mu.Unlock()
		return
	}
	old := r.index[l.prefix]
	if old != nil {
		r.discard(old)
	}
	r.index[l.prefix] = l
	if delete(r.hidden, l.prefix); l.hidden > 0 {
		r.hidden[l.prefix] = l.hidden
	}
	r.mu.Unlock()
	if old != nil {
		r.views.cache.Del(old.id)
	}
	if !r.views.cache.Set(l.id, l, l.cost) {
		r.dropped(l)
	}
}

// depart registers a request for names below prefix.
func (r *Remote) depart(prefix s3.Key, kind flightKind) *flight {
	fl := &flight{kind: kind, done: make(chan struct{})}
	r.flights[prefix] = append(r.flights[prefix], fl)
	return fl
}

// land ends it. Both need Remote.mu.
func (r *Remote) land(prefix s3.Key, fl *flight) {
	fls := slices.DeleteFunc(r.flights[prefix], func(o *flight) bool { return o == fl })
	if len(fls) == 0 {
		delete(r.flights, prefix)
	} else {
		r.flights[prefix] = fls
	}
}

// answer is what the view says without asking.
type answer int

const (
	yes  answer = iota // the entry is certain
	ask                // a listing would tell, and more
	ask1               // only a look at this one name tells
)

// cached looks a name up in memory. With ask1, entry is what a listing says of it.
func (r *Remote) cached(prefix s3.Key, name string) (entry, answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.index[prefix]
	if l == nil {
		return entry{}, ask
	}
	s, ok := l.names[name]
	switch {
	case ok && s.doubt:
		return entry{}, ask1
	case ok && r.fresh(s.at), l.complete && r.fresh(l.at):
		if s.unsure() {
			return s.entry, ask1
		}
		return s.entry, yes
	case l.large:
		return entry{}, ask1
	}
	return entry{}, ask
}

// lookup says what the bucket has under a name of the directory prefix. alone says that nothing but this name is of
// interest: then no listing is fetched for it. An error says nothing about the name.
func (r *Remote) lookup(ctx context.Context, prefix s3.Key, name string, alone bool) (entry, error) {
	e, how := r.cached(prefix, name)
	if how == yes {
		r.used(prefix)
		return e, nil
	}
	if how == ask && !alone {
		fl, err := r.list(ctx, prefix, onePage)
		if err != nil {
			return entry{}, err
		}
		r.mu.Lock()
		complete := fl.l.complete && fl.l.names != nil
		s := fl.l.names[name]
		r.mu.Unlock()
		switch {
		case complete && !s.doubt && !s.unsure():
			return s.entry, nil
		case complete && !s.doubt:
			e = s.entry
		}
	}
	return r.one(ctx, prefix, name, e)
}

// used tells the eviction policy that a listing is worth its memory.
func (r *Remote) used(prefix s3.Key) {
	r.mu.Lock()
	l := r.index[prefix]
	r.mu.Unlock()
	if l != nil {
		r.views.cache.Get(l.id)
	}
}

// enter notes an answer about one name. The caller holds mu.
func (r *Remote) enter(l *listing, name string, s single) {
	if _, ok := l.names[name]; !ok {
		if !l.complete && len(l.names) >= maxSingles {
			clear(l.names)
			l.grown = 0
		}
		l.grown += int64(costName + len(name))
	}
	l.names[name] = s
	if l.complete && l.grown > l.cost+costName {
		r.discard(l)
	}
}

// note enters what a HEAD of a file said.
func (r *Remote) note(key s3.Key, info s3.Info) {
	prefix, name := parent(key)
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.index[prefix]
	if l == nil {
		return
	}
	if s, ok := l.names[name]; ok && s.file != nil && !s.doubt {
		s.file, s.known = &info, true
		l.names[name] = s
	}
}

// doubt makes the next look-up of a name ask the bucket.
func (r *Remote) doubt(prefix s3.Key, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.index[prefix]; l != nil {
		s := l.names[name]
		s.doubt = true // a listing goes on to show the name: nothing says that it is gone
		l.names[name] = s
	}
}

func (r *Remote) doubtKey(key s3.Key) { r.doubt(parent(key)) }

// parent splits a file's key.
func parent(key s3.Key) (prefix s3.Key, name string) {
	i := strings.LastIndexByte(string(key), '/') + 1
	return key[:i], string(key[i:])
}

// list fetches the names below a prefix: all of them, or with onePage all of them if they fit into one page. Callers
// that want the same share one request.
func (r *Remote) list(ctx context.Context, prefix s3.Key, kind flightKind) (*flight, error) {
	for {
		r.mu.Lock()
		var fl *flight
		for _, o := range r.flights[prefix] {
			if o.kind == kind && !o.void {
				fl = o
			}
		}
		lead := fl == nil
		if lead {
			fl = r.depart(prefix, kind)
		}
		r.mu.Unlock()
		if lead {
			fl.l, fl.err = r.fetch(ctx, prefix, kind)
			if fl.err == nil {
				r.keep(fl.l, fl)
			} else {
				r.mu.Lock()
				r.land(prefix, fl)
				r.mu.Unlock()
			}
			close(fl.done)
			return fl, fl.err
		}
		select {
		case <-fl.done:
		case <-ctx.Done():
			return nil, errors.Join(s3.ErrUnavailable, ctx.Err())
		}
		// When the one who asked gave up, it says nothing about us.
		if fl.err == nil || !errors.Is(fl.err, context.Canceled) && !errors.Is(fl.err, context.DeadlineExceeded) {
			return fl, fl.err
		}
	}
}

// fetch lists a prefix.
func (r *Remote) fetch(ctx context.Context, prefix s3.Key, kind flightKind) (*listing, error) {
	l := &listing{remote: r, prefix: prefix, complete: true, at: r.now(), names: map[string]single{}}
	in := s3.ListInput{Prefix: prefix, Delimiter: "/"}
	for {
		page, err := r.bucket.list(ctx, in)
		if err != nil {
			return nil, err
		}
		l.add(page)
		if page.Token == "" {
			break
		}
		l.large = true
		if in.Token = page.Token; kind == onePage {
			l.complete = false
			clear(l.names)
			return l, nil
		}
	}
	for _, s := range l.names {
		if s.dir && s.file != nil {
			l.hidden++
		}
	}
	return l, nil
}

// add enters a page.
func (l *listing) add(page s3.Page) {
	for i := range page.Objects {
		info := &page.Objects[i]
		name := string(info.Key[len(l.prefix):])
		switch {
		case name == "": // the directory's own marker; content in it has no name
			if info.Size > 0 {
				l.hidden++
			}
		case !namespace.ValidName(name):
			l.hidden++
		default:
			s := l.names[name]
			s.file, s.at = info, l.at
			l.names[name] = s
		}
	}
	for _, p := range page.Prefixes {
		name := strings.TrimSuffix(string(p[len(l.prefix):]), "/")
		if !namespace.ValidName(name) {
			l.hidden++
			continue
		}
		s := l.names[name]
		s.dir, s.at = true, l.at
		l.names[name] = s
	}
}

// named is an entry with its name.
type named struct {
	name string
	entry
}

// readDir returns all names below a prefix, from memory if they are fresh there. Of many directories some may be shown
// that only a look-up finds to be none.
func (r *Remote) readDir(ctx context.Context, prefix s3.Key) ([]named, error) {
	r.mu.Lock()
	l := r.index[prefix]
	if l != nil && l.complete && r.fresh(l.at) {
		names := l.all()
		r.mu.Unlock()
		r.used(prefix)
		return r.confirmed(ctx, prefix, names), nil
	}
	r.mu.Unlock()
	fl, err := r.list(ctx, prefix, allPages)
	if err != nil {
		return nil, err
	}
	return r.confirmed(ctx, prefix, fl.names), nil
}

// all copies the names that exist. The caller holds mu.
func (l *listing) all() []named {
	out := make([]named, 0, len(l.names))
	for name, s := range l.names {
		if !s.absent() {
			out = append(out, named{name, s.entry})
		}
	}
	return out
}

func (r *Remote) hiddenKeys() (n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.hidden {
		n += int64(k)
	}
	return n
}
