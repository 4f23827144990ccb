package namespace

import (
	"container/heap"
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

const (
	inoBlock     = 1 << 16 // inode numbers reserved by one record
	keepIdle     = 1 << 16 // volatile nodes kept although the kernel forgot them
	keepOutcomes = 1 << 13
)

// tree is the state behind Tree.
type tree struct {
	opt Options

	// recMu guards what a checkpoint writes: the newest record of each tracked node and the outcomes of requests. It
	// reads them while mu may be held by a mutation that waits for the checkpoint to end; so it is a lock of its own,
	// below mu, never held over an Append.
	recMu    sync.Mutex
	recs     map[inode.Ino][]byte
	limit    inode.Ino
	outcomes map[uint64]inode.Ino
	order    []uint64 // ring of outcomes' numbers
	orderPos int

	mu     sync.Mutex // guards all below and every node
	j      *journal.Journal
	broken error // of the journal: no mutation any more
	nodes  map[inode.Ino]*node
	root   *node
	next   inode.Ino
	seq    uint64
	writes uint64 // numbers write-ids

	lastSpill uint64

	owner  map[s3.Key]*node           // objects of tracked nodes
	under  map[s3.Key]int             // directory prefix -> owned keys below it
	beside map[s3.Key]map[s3.Key]bool // directory prefix -> owned keys directly in it
	moved  map[*node]struct{}         // directories with origin or purge set
	busy   map[s3.Key]*node           // keys of running tasks

	queue     dueHeap
	waiting   map[*node]struct{} // blocked by others
	unsettled map[*node]struct{}
	wake      chan struct{}
	lastErr   error
	honest    [ToUpload + 1]bool // by what has named an ETag: a condition on it has held

	idle *list.List  // of *node
	gone []inode.Ino // to be told once mu is released

	replayed map[inode.Ino]saved // until Recover
}

// saved is a replayed node record.
type saved struct {
	n     *node
	links []savedLink
}

// New makes an empty tree with a root directory. Replay, then Recover, then use.
func New(opt Options) *Tree {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.FileMode == 0 {
		opt.FileMode = 0o644
	}
	if opt.DirMode == 0 {
		opt.DirMode = 0o755
	}
	t := &Tree{tree{
		opt: opt, recs: map[inode.Ino][]byte{}, nodes: map[inode.Ino]*node{}, next: inode.Root + 1,
		owner: map[s3.Key]*node{}, under: map[s3.Key]int{}, beside: map[s3.Key]map[s3.Key]bool{}, moved: map[*node]struct{}{},
		busy: map[s3.Key]*node{}, waiting: map[*node]struct{}{}, wake: make(chan struct{}, 1), idle: list.New(),
		outcomes: map[uint64]inode.Ino{}, order: make([]uint64, keepOutcomes), replayed: map[inode.Ino]saved{},
		unsettled: map[*node]struct{}{},
	}}
	now := opt.Now()
	t.root = &node{children: map[string]*node{}, heapIndex: -1, metaGen: 1, contGen: 1}
	t.root.attr = inode.Attr{Ino: inode.Root, Mode: inode.ModeDir | opt.DirMode, Uid: opt.Uid, Gid: opt.Gid, Size: 4096, Atime: now, Mtime: now, Ctime: now}
	t.nodes[inode.Root] = t.root
	return t
}

// Replay takes one record of the namespace's kinds.
func (t *Tree) Replay(rec journal.Record) error {
	r := reader{b: rec.Data}
	switch rec.Kind {
	case kindNode:
		n, links, err := decodeNode(rec.Data)
		if err != nil {
			return err
		}
		n.heapIndex = -1
		t.replayed[n.attr.Ino] = saved{n, links}
		t.recs[n.attr.Ino] = rec.Data
	case kindForget:
		ino := inode.Ino(r.uint())
		delete(t.replayed, ino)
		delete(t.recs, ino)
	case kindLimit:
		t.limit = max(t.limit, inode.Ino(r.uint()))
	case kindOutcome:
		t.remember(r.uint(), inode.Ino(r.uint()))
	default:
		return fmt.Errorf("kind %#x: %w", rec.Kind, errRecord)
	}
	if r.bad {
		return fmt.Errorf("kind %#x: %w", rec.Kind, errRecord)
	}
	return nil
}

// Recover ends the replay; j takes the tree's records from here on.
func (t *Tree) Recover(j *journal.Journal) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.j = j
	t.next = max(t.next, t.limit)
	for ino, s := range t.replayed {
		if ino == inode.Root {
			s.n.children = t.root.children
			t.root = s.n
		}
		t.nodes[ino] = s.n
		t.next = max(t.next, ino+1)
	}
	now := t.opt.Now()
	for ino, s := range t.replayed {
		for _, l := range s.links {
			d := t.nodes[l.dir]
			if d == nil || !d.isDir() || d.children[l.name] != nil {
				return fmt.Errorf("inode %d %q in directory %d: %w", ino, l.name, l.dir, journal.ErrCorrupt)
			}
			d.children[l.name] = s.n
			d.below++
			s.n.links = append(s.n.links, link{d, l.name})
		}
		for _, o := range s.n.objs {
			t.claim(o.key, s.n)
		}
		if s.n.origin != "" || len(s.n.purges) > 0 {
			t.moved[s.n] = struct{}{}
		}
	}
	for _, s := range t.replayed {
		if s.n.hasContent() && s.n.baseGen() == 0 {
			s.n.contGen++ // never uploaded: no object has any state of the bytes
		}
		t.touch(s.n, now)
	}
	t.replayed = nil
	return nil
}

// Recovered says what the cache holds of a file after recovery: its bytes are dirty. It returns false when the tree
// does not know the inode: its data can go.
func (t *Tree) Recovered(ino inode.Ino, size int64, mtime time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[ino]
	if n == nil || !n.tracked || !n.hasContent() {
		return false
	}
	n.attr.Size = size
	// An mtime that was set after the last write is in the tree's record, which is younger than that write.
	if mtime.After(n.attr.Ctime) {
		n.attr.Mtime, n.attr.Ctime = mtime, mtime
	}
	n.contGen++
	n.metaGen++
	t.touch(n, t.opt.Now())
	return true
}

// Keep makes a file that the bucket does not have, and of which the cache holds nothing, outlive the loss of changes to
// come: it is empty again then, as it was made, and not gone. Journaled; Sync makes it survive a power cut.
func (t *Tree) Keep(ino inode.Ino) error {
	t.mu.Lock()
	defer t.unlock()
	n, err := t.get(ino)
	if err != nil {
		return err
	}
	if !n.tracked || !n.hasContent() || n.kept || n.base() != nil {
		return nil
	}
	if err := t.ready(); err != nil {
		return err
	}
	n.kept = true
	return t.append(n)
}

// Lost says that a file's changes did not survive a power cut: it goes back to its remote object. One that has none ends,
// or is empty again if it was kept so (see Keep). The name that it had is returned for the report.
func (t *Tree) Lost(ino inode.Ino) (name string) {
	t.mu.Lock()
	defer t.unlock()
	n := t.nodes[ino]
	if n == nil || !n.hasContent() {
		return ""
	}
	if len(n.links) > 0 {
		name = string(t.wantKeys(n)[0])
	}
	n.unspill()
	if b := n.base(); b != nil {
		n.contGen = b.contGen
		n.attr.Size = b.size
		t.touch(n, t.opt.Now())
		t.broken = errors.Join(t.broken, t.append(n))
		return name
	}
	if n.kept {
		n.attr.Size = 0
		t.touch(n, t.opt.Now())
		t.broken = errors.Join(t.broken, t.append(n))
		return name
	}
	for len(n.links) > 0 {
		t.unlink(n.links[0].dir, n.links[0].name)
	}
	t.broken = errors.Join(t.broken, t.append(n))
	return name
}

// Dump emits records that rebuild the present state.
func (t *Tree) Dump(emit func(...journal.Record) error) error {
	t.recMu.Lock()
	recs := make([]journal.Record, 0, len(t.recs)+1)
	recs = append(recs, limitRecord(t.limit))
	for _, b := range t.recs {
		recs = append(recs, journal.Record{Kind: kindNode, Data: b})
	}
	for i := range t.order { // the oldest first
		unique := t.order[(t.orderPos+i)%len(t.order)]
		if ino, ok := t.outcomes[unique]; ok && unique != 0 {
			recs = append(recs, outcomeRecord(unique, ino))
		}
	}
	t.recMu.Unlock()
	for _, r := range recs {
		if err := emit(r); err != nil {
			return err
		}
	}
	return nil
}

func limitRecord(l inode.Ino) journal.Record {
	return journal.Record{Kind: kindLimit, Data: binary.AppendUvarint(nil, uint64(l))}
}

// save computes the records of nodes as they are now, enters them for the next checkpoint, and returns them.
func (t *tree) save(nodes ...*node) []journal.Record {
	recs := make([]journal.Record, 0, len(nodes)+2)
	t.recMu.Lock()
	defer t.recMu.Unlock()
	if t.next > t.limit {
		t.limit = t.next + inoBlock
		recs = append(recs, limitRecord(t.limit))
	}
	for _, n := range nodes {
		ino := n.attr.Ino
		if n.tracked {
			b := n.encode()
			t.recs[ino] = b
			recs = append(recs, journal.Record{Kind: kindNode, Data: b})
		} else if _, ok := t.recs[ino]; ok {
			delete(t.recs, ino)
			recs = append(recs, journal.Record{Kind: kindForget, Data: binary.AppendUvarint(nil, uint64(ino))})
		}
	}
	return recs
}

// room is what must be left in the journal, in bytes, for a mutation to begin, most of which take a few hundred, and
// roomChange what must be left for each inode that the bucket does not hold yet: the records of the steps that bring it
// there.
const (
	room       = 256 << 10
	roomChange = 1 << 10
)

// ready is asked before a mutation begins: its records must find space, since memory has changed when they are written.
func (t *tree) ready() error {
	if t.broken != nil {
		return t.broken
	}
	return t.j.Room(room + roomChange*int64(len(t.unsettled)))
}

// append journals the present state of nodes as one frame. An error poisons the tree: memory and journal differ from
// then on.
func (t *tree) append(nodes ...*node) error { return t.appendOp(Op{}, 0, nodes...) }

func (t *tree) appendOp(op Op, ino inode.Ino, nodes ...*node) error {
	if t.broken != nil {
		return t.broken
	}
	recs := t.save(nodes...)
	if op.Unique != 0 {
		recs = append(recs, outcomeRecord(op.Unique, ino))
		t.remember(op.Unique, ino) // before the Append: a checkpoint that drops the record has it then
	}
	if len(recs) == 0 {
		return nil
	}
	if err := t.j.Append(recs...); err != nil {
		t.broken = fmt.Errorf("journal: %w", err)
		return t.broken
	}
	return nil
}

func outcomeRecord(unique uint64, ino inode.Ino) journal.Record {
	return journal.Record{Kind: kindOutcome, Data: binary.AppendUvarint(binary.AppendUvarint(nil, unique), uint64(ino))}
}

func (t *tree) remember(unique uint64, ino inode.Ino) {
	t.recMu.Lock()
	defer t.recMu.Unlock()
	delete(t.outcomes, t.order[t.orderPos])
	t.order[t.orderPos] = unique
	t.orderPos = (t.orderPos + 1) % len(t.order)
	t.outcomes[unique] = ino
}

// Done returns the recorded outcome of a mutation, by the request's number.
func (t *Tree) Done(unique uint64) (Outcome, bool) {
	t.recMu.Lock()
	defer t.recMu.Unlock()
	ino, ok := t.outcomes[unique]
	return Outcome{Ino: ino}, ok
}

// Err is why the tree takes no mutation any more: the journal failed. It is nil while all is well.
func (t *Tree) Err() error {
	t.mu.Lock()
	err, j := t.broken, t.j
	t.mu.Unlock()
	if err != nil || j == nil {
		return err
	}
	return j.Err()
}

// Sync makes every mutation that returned before the call survive a power cut.
func (t *Tree) Sync() error {
	t.mu.Lock()
	err, j := t.broken, t.j
	t.mu.Unlock()
	if err != nil {
		return err
	}
	return j.Sync()
}

// Stats is O(1) but for the age of the oldest change.
func (t *Tree) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Stats{Known: len(t.nodes), Unsettled: len(t.unsettled), LastError: t.lastErr}
	t.recMu.Lock()
	s.Tracked = len(t.recs)
	t.recMu.Unlock()
	for n := range t.unsettled {
		if s.Oldest.IsZero() || n.first.Before(s.Oldest) {
			s.Oldest = n.first
		}
	}
	return s
}

// unlock releases mu and then reports the inodes that ended.
func (t *tree) unlock() {
	gone := t.gone
	t.gone = nil
	t.mu.Unlock()
	if t.opt.Gone != nil {
		for _, ino := range gone {
			t.opt.Gone(ino)
		}
	}
}

// newNode gives a node a number.
func (t *tree) newNode() *node {
	n := &node{heapIndex: -1, metaGen: 1, contGen: 1}
	n.attr.Ino = t.next
	t.next++
	t.nodes[n.attr.Ino] = n
	return n
}

// track makes a node and the directories above it tracked, and returns all that were not: their records belong into
// the same frame.
func (t *tree) track(n *node) []*node {
	if n.tracked {
		return nil
	}
	n.tracked = true
	if n.idle != nil {
		t.idle.Remove(n.idle)
		n.idle = nil
	}
	for _, o := range n.objs {
		t.claim(o.key, n)
	}
	t.claimCopies(n)
	if n.isDir() && len(n.objs) > 0 {
		n.wantMarker = true
		if n != t.root && len(n.links) > 0 && (len(n.objs) > 1 || n.objAt(t.wantKeys(n)[0]) == nil) {
			t.touch(n, t.opt.Now()) // a directory above it was renamed, and its move passes tracked markers over
		}
	}
	fresh := []*node{n}
	for _, l := range n.links {
		l.dir.below++
		fresh = append(fresh, t.track(l.dir)...)
	}
	return fresh
}

// touch notes a change that the bucket has to follow.
func (t *tree) touch(n *node, now time.Time) {
	t.seq++
	n.last = now
	if n.changed == 0 {
		n.changed, n.first = t.seq, now
		t.unsettled[n] = struct{}{}
	} else if n.aimed && n.nextChanged == 0 {
		n.nextChanged, n.nextFirst = t.seq, now
	}
	t.schedule(n, t.dueAt(n))
}

// dueAt is when a node's changes should go to the bucket.
func (t *tree) dueAt(n *node) time.Time {
	due := n.last.Add(t.opt.Settle)
	if limit := n.first.Add(t.opt.MaxAge); due.After(limit) || (n.opens > 0 && len(n.links) > 0 && n.hasContent() && n.contGen > n.baseGen()) {
		due = limit
	}
	if n.urgent || n.spilling {
		due = time.Time{}
	}
	if due.Before(n.retry) {
		due = n.retry
	}
	return due
}

func (t *tree) schedule(n *node, due time.Time) {
	if n.running != nil || n.changed == 0 {
		return
	}
	delete(t.waiting, n)
	n.due = due
	if n.heapIndex >= 0 {
		heap.Fix(&t.queue, n.heapIndex)
	} else {
		heap.Push(&t.queue, n)
	}
	if n.heapIndex == 0 {
		t.signal()
	}
}

func (t *tree) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// unblock lets every node that waited for others try again.
func (t *tree) unblock() {
	for n := range t.waiting {
		t.schedule(n, t.dueAt(n))
	}
}

// dueHeap orders nodes by due.
type dueHeap []*node

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heapIndex, h[j].heapIndex = i, j
}
func (h *dueHeap) Push(x any) {
	n := x.(*node)
	n.heapIndex = len(*h)
	*h = append(*h, n)
}
func (h *dueHeap) Pop() any {
	old := *h
	n := old[len(old)-1]
	*h = old[:len(old)-1]
	n.heapIndex = -1
	return n
}

// ValidName says that POSIX can name a path component: not empty, not "." or "..", no slash or NUL, at most 255 bytes,
// valid UTF-8.
func ValidName(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > 255 || !utf8.ValidString(name) {
		return false
	}
	for i := 0; i < len(name); i++ {
		if name[i] == '/' || name[i] == 0 {
			return false
		}
	}
	return true
}

func itoa(v uint64) string { return strconv.FormatUint(v, 10) }
