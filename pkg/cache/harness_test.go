package cache_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
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

// image is a file as the model sees it.
type image struct {
	b       []byte
	kind    []byte
	changed bool // since it was last clean
	// Since the snapshot: which offsets were overwritten, the smallest size, whether there was a change at all.
	over     []bool
	smallest int64
	touched  bool
}

func remoteImage(remote []byte) image {
	return image{b: slices.Clone(remote), kind: make([]byte, len(remote))}
}

func (m image) clone() image {
	m.b, m.kind, m.over = slices.Clone(m.b), slices.Clone(m.kind), slices.Clone(m.over)
	return m
}

func (m *image) resize(size int64) {
	m.changed, m.touched, m.smallest = true, true, min(m.smallest, size)
	n := int64(len(m.b))
	if size <= n {
		m.b, m.kind = m.b[:size], m.kind[:size]
		return
	}
	m.b = append(m.b, make([]byte, size-n)...)
	m.kind = append(m.kind, bytes.Repeat([]byte{holeByte}, int(size-n))...)
}

func (m *image) write(p []byte, off int64) {
	m.changed, m.touched = true, true
	if end := off + int64(len(p)); end > int64(len(m.b)) {
		m.resize(end)
	}
	copy(m.b[off:], p)
	for int64(len(m.over)) < off+int64(len(p)) {
		m.over = append(m.over, false)
	}
	for i := off; i < off+int64(len(p)); i++ {
		m.kind[i], m.over[i] = dirtyByte, true
	}
}

func (m *image) punch(off, end int64) {
	if end = min(end, int64(len(m.b))); off < end {
		m.write(make([]byte, end-off), off)
	}
}

func (m *image) count(kind byte) (n int64) {
	return int64(bytes.Count(m.kind, []byte{kind}))
}

// freeze begins a snapshot, commit makes it the remote object.
func (m *image) freeze() { m.over, m.smallest, m.touched = nil, int64(len(m.b)), false }

func (m *image) commit(size int64) {
	for i := range min(size, m.smallest, int64(len(m.b))) {
		if i >= int64(len(m.over)) || !m.over[i] {
			m.kind[i] = remoteByte
		}
	}
	m.changed = m.touched
}

// modelSnap is what the model knows of a live snapshot.
type modelSnap struct {
	*cache.Snapshot
	content []byte
	mtime   time.Time
	synced  bool // a Sync returned since, after a change
}

// modelFile is a file beside what it must be.
type modelFile struct {
	id     cache.ID
	f      *cache.File
	remote []byte
	// alts are what the file may be, byte by byte: one, but for changes that are under way or failed.
	alts []image
	// past are what a power cut may leave: all since the last barrier that returned.
	past      []image
	barriered bool // a Sync returned since the file was last clean
	fresh     bool // it was changed since the last Sync
	snap      *modelSnap
	mtimes    []time.Time
	gone      bool // Remove was called
	removed   bool // and returned
}

// rig runs changes on a store and on its model.
type rig struct {
	t     failer
	box   *box
	files []*modelFile
	ops   int
	// now is what runs, for messages.
	now string
	log []string
	// lenient: an injected fault makes errors legal.
	lenient bool
	failed  []error
	commits []string // foreign records whose Commit returned
	// underWay is the foreign record of the Commit that runs.
	underWay string
}

func (r *rig) fatalf(format string, args ...any) {
	r.t.Helper()
	r.t.Fatalf("%s\nscript:\n%s", fmt.Sprintf(format, args...), strings.Join(r.log, "\n"))
}

func (r *rig) step(format string, args ...any) {
	r.ops++
	r.now = fmt.Sprintf("%3d ", r.ops) + fmt.Sprintf(format, args...)
	r.log = append(r.log, r.now)
}

// result judges an operation's error and says whether it succeeded.
func (r *rig) result(err error) bool {
	r.t.Helper()
	if err == nil {
		return true
	}
	r.log = append(r.log, "    = "+err.Error())
	if !r.lenient {
		r.fatalf("%s: %v", r.now, err)
	}
	r.failed = append(r.failed, err)
	return false
}

// add makes a file with a remote object of size bytes.
func (r *rig) add(size int64) *modelFile {
	r.step("file %d with %d bytes", len(r.files)+1, size)
	remote := pattern(1000+len(r.files), 0, size)
	m := &modelFile{id: cache.ID(len(r.files) + 1), remote: remote}
	m.alts = []image{remoteImage(remote)}
	m.past = []image{remoteImage(remote)}
	m.f = r.box.File(m.id, size)
	r.files = append(r.files, m)
	return m
}

// change runs op on the file and next on its model.
func (r *rig) change(m *modelFile, next func(*image), op func() error) bool {
	r.t.Helper()
	old, past := m.alts, len(m.past)
	var changed []image
	for _, a := range old {
		c := a.clone()
		next(&c)
		changed = append(changed, c)
	}
	m.alts = append(slices.Clone(old), changed...)
	m.past = append(m.past, changed...)
	err := op()
	if r.result(err) {
		m.alts = changed
		return true
	}
	if errors.Is(err, cache.ErrPoisoned) {
		m.alts, m.past = old, m.past[:past]
	}
	return false
}

func (r *rig) write(m *modelFile, off, n int64) {
	r.step("write %d [%d,%d)", m.id, off, off+n)
	p, at := pattern(r.ops, off, n), stamp(r.ops)
	m.mtimes, m.fresh = append(m.mtimes, at), true
	r.change(m, func(a *image) { a.write(p, off) }, func() error { return m.f.WriteAt(p, off, at) })
}

func (r *rig) punch(m *modelFile, off, end int64) {
	r.step("punch %d [%d,%d)", m.id, off, end)
	at := stamp(r.ops)
	if off >= min(end, m.f.Size()) {
		r.result(m.f.PunchHole(off, end, at))
		return
	}
	m.mtimes, m.fresh = append(m.mtimes, at), true
	r.change(m, func(a *image) { a.punch(off, end) }, func() error { return m.f.PunchHole(off, end, at) })
}

func (r *rig) truncate(m *modelFile, size int64) {
	r.step("truncate %d to %d", m.id, size)
	at := stamp(r.ops)
	m.mtimes, m.fresh = append(m.mtimes, at), true
	r.change(m, func(a *image) { a.resize(size) }, func() error { return m.f.Truncate(size, at) })
}

// fill fetches what is missing in [off, end), like package fetch.
func (r *rig) fill(m *modelFile, off, end int64) {
	r.step("fill %d [%d,%d)", m.id, off, end)
	generation := m.f.Generation()
	if end = min(end, int64(len(m.remote))); off < end {
		r.result(m.f.Fill(m.remote[off:end], off, generation))
	}
}

func (r *rig) sync(m *modelFile) {
	r.step("sync %d", m.id)
	r.synced(m, m.f.Sync())
}

func (r *rig) synced(m *modelFile, err error) {
	r.t.Helper()
	if !r.result(err) || !m.fresh {
		return // without a change a Sync has nothing to do: it does not make a Commit durable
	}
	m.past, m.fresh = nil, false
	m.barriered = true
	for _, a := range m.alts {
		m.past = append(m.past, a.clone())
		m.barriered = m.barriered && a.changed
	}
	if m.snap != nil {
		m.snap.synced = m.touched()
	}
}

// touched says that the file was surely changed since its snapshot.
func (m *modelFile) touched() bool {
	return !slices.ContainsFunc(m.alts, func(a image) bool { return !a.touched })
}

func (r *rig) snapshot(m *modelFile) {
	r.step("snapshot %d", m.id)
	mtime := m.f.Dirty().Mtime
	s, err := m.f.Snapshot()
	if !r.result(err) {
		return
	}
	content, err := readAll(m.f, m.remote)
	if !r.result(err) {
		s.Release()
		return
	}
	m.snap = &modelSnap{Snapshot: s, content: content, mtime: mtime}
	for i := range m.alts {
		m.alts[i].freeze()
	}
}

// checkSnap compares a live snapshot with what the file was.
func (r *rig) checkSnap(m *modelFile, fill bool) bool {
	r.t.Helper()
	got, err := readSnap(m.f, m.snap.Snapshot, m.remote, fill)
	if !r.result(err) {
		return false
	}
	if i := difference(got, m.snap.content); i >= 0 {
		r.fatalf("%s: the snapshot of file %d shows another byte at %d than the file had", r.now, m.id, i)
	}
	if !m.snap.Mtime().Equal(m.snap.mtime) {
		r.fatalf("%s: the snapshot of file %d has mtime %v, want %v", r.now, m.id, m.snap.Mtime(), m.snap.mtime)
	}
	return true
}

// difference is the first offset in which a and b differ, -1 when they are equal.
func difference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	return -1
}

// commit uploads the snapshot and commits it. What is sent was behind a barrier before.
func (r *rig) commit(m *modelFile, fill bool) {
	r.step("upload and commit %d (fill %v)", m.id, fill)
	if !r.checkSnap(m, fill) {
		return
	}
	err := m.f.Sync()
	if r.synced(m, err); err != nil {
		return
	}
	m.remote = m.snap.content
	with := fmt.Sprintf("commit %d", r.ops)
	r.underWay = with
	ok := r.change(m, func(a *image) { a.commit(int64(len(m.remote))) }, func() error {
		return m.snap.Commit(journal.Record{Kind: foreignKind, Data: []byte(with)})
	})
	if ok {
		r.commits = append(r.commits, with)
		m.barriered = m.snap.synced && m.touched()
		r.box.foreign = append(r.box.foreign, with)
	}
	r.underWay = ""
	if ok {
		r.release(m)
	}
}

func (r *rig) release(m *modelFile) {
	r.step("release %d", m.id)
	m.snap.Release()
	m.snap.Release()
	m.snap = nil
}

func (r *rig) remove(m *modelFile) {
	r.step("remove %d", m.id)
	m.gone = true
	if r.result(r.box.Remove(m.id)) {
		m.removed = true
	}
}

func (r *rig) checkpoint() {
	r.step("checkpoint")
	r.result(r.box.checkpoint())
}

func (r *rig) reap() {
	r.step("reap")
	r.result(r.box.Reap())
}

func (r *rig) evict(n int64) {
	r.step("evict %d", n)
	r.box.Evict(n)
}

// live checks every file that is in use, and the store's counts.
func (r *rig) live() {
	r.t.Helper()
	for _, m := range r.files {
		if m.gone {
			continue
		}
		got, err := readAll(m.f, m.remote)
		if !r.result(err) {
			continue
		}
		if err := among(got, m.alts, false); err != nil {
			r.fatalf("%s: file %d: %v", r.now, m.id, err)
		}
		d := m.f.Dirty()
		if d.Bytes > 0 && d.Since.IsZero() {
			r.fatalf("%s: file %d has %d dirty bytes and counts as clean", r.now, m.id, d.Bytes)
		}
		if len(m.alts) > 1 {
			continue
		}
		a := m.alts[0]
		if d.Bytes != a.count(dirtyByte) || d.Since.IsZero() == a.changed || d.Size != int64(len(a.b)) {
			r.fatalf("%s: file %d: %+v, want %d dirty bytes of %d, changed %v", r.now, m.id, d, a.count(dirtyByte), len(a.b), a.changed)
		}
		if n := m.f.Allocated(); n != int64(len(a.b))-a.count(holeByte) {
			r.fatalf("%s: file %d: %d bytes allocated, want %d", r.now, m.id, n, int64(len(a.b))-a.count(holeByte))
		}
		if err := seeks(m.f, a); err != nil {
			r.fatalf("%s: file %d: %v", r.now, m.id, err)
		}
	}
	u := r.box.Usage()
	dirty, clean, dirtyFiles := r.box.Recount()
	if u.Dirty != dirty || u.Clean != clean || u.DirtyFiles != dirtyFiles || dirtyFiles != len(r.box.DirtyFiles()) {
		r.fatalf("%s: usage %+v, recounted %d dirty bytes in %d files, %d clean", r.now, u, dirty, dirtyFiles, clean)
	}
	if total, reserved := r.box.Accounted(); reserved != 0 || total < dirty+clean {
		r.fatalf("%s: %d bytes accounted, %d reserved, %d in files", r.now, total, reserved, dirty+clean)
	}
}

// seeks compares SeekData with the image at every border.
func seeks(f *cache.File, m image) error {
	for pos := range int64(len(m.kind)) {
		if pos > 0 && (m.kind[pos] == holeByte) == (m.kind[pos-1] == holeByte) {
			continue
		}
		data, hole := int64(-1), int64(len(m.kind))
		for i := pos; i < int64(len(m.kind)) && (data < 0 || hole == int64(len(m.kind))); i++ {
			if m.kind[i] != holeByte && data < 0 {
				data = i
			} else if m.kind[i] == holeByte && hole == int64(len(m.kind)) {
				hole = i
			}
		}
		if got, ok := f.SeekData(pos, false); ok != (data >= 0) || ok && got != data {
			return fmt.Errorf("SeekData(%d): %d %v, want %d", pos, got, ok, data)
		}
		if got, ok := f.SeekData(pos, true); !ok || got != hole {
			return fmt.Errorf("SeekHole(%d): %d %v, want %d", pos, got, ok, hole)
		}
	}
	if got, ok := f.SeekData(int64(len(m.kind)), true); ok {
		return fmt.Errorf("SeekHole at the end: %d", got)
	}
	return nil
}

// among says whether content is, byte by byte, one of the images, and of the size of one. zeros allows zeros where one of
// them ended before.
func among(got []byte, images []image, zeros bool) error {
	if !slices.ContainsFunc(images, func(m image) bool { return len(m.b) == len(got) }) {
		sizes := map[int]bool{}
		for _, m := range images {
			sizes[len(m.b)] = true
		}
		return fmt.Errorf("size is %d, may be %v", len(got), sizes)
	}
	if last := images[len(images)-1]; bytes.Equal(last.b, got) {
		return nil
	}
next:
	for i, c := range got {
		for _, m := range images {
			if i < len(m.b) && m.b[i] == c || zeros && c == 0 && i >= len(m.b) {
				continue next
			}
		}
		return fmt.Errorf("byte %d of %d is %#x, which none of %d states has", i, len(got), c, len(images))
	}
	return nil
}

// dirtyAmong checks that the snapshot's dirty ranges hold all bytes that no object has and none that nobody wrote.
func dirtyAmong(s *cache.Snapshot, images []image, cut bool) error {
	size := s.Size()
	is, must, may := make([]bool, size), make([]bool, size), make([]bool, size)
	dirty := s.Dirty()
	for _, r := range dirty.Ranges() {
		for i := r.Off; i < r.End; i++ {
			is[i] = true
		}
	}
	for n, m := range images {
		kind := m.kind[:min(len(m.kind), len(is))]
		for i, k := range kind {
			must[i] = (must[i] || n == 0) && k != remoteByte
			may[i] = may[i] || k != remoteByte
		}
		for i := len(kind); i < len(is); i++ {
			must[i], may[i] = false, may[i] || cut
		}
	}
	for i := range is {
		if is[i] && !may[i] || !is[i] && must[i] {
			return fmt.Errorf("byte %d dirty: %v, must be %v, may be %v", i, is[i], must[i], may[i])
		}
	}
	return nil
}

// recovered checks a store that was opened after a crash. With powerCut the model's past is allowed, else only what was
// acknowledged.
func (r *rig) recovered(b *box, powerCut bool) {
	r.t.Helper()
	what := "after a kill in " + r.now
	if powerCut {
		what = "after a power cut in " + r.now
	}
	if !powerCut {
		want := slices.Clone(r.commits)
		if n := len(want); len(b.foreign) > n && b.foreign[n] == r.underWay {
			want = append(want, r.underWay)
		}
		if !slices.Equal(b.foreign, want) {
			r.fatalf("%s: the journal has the commits %v, want %v", what, b.foreign, want)
		}
		if len(b.rec.Lost) > 0 {
			r.fatalf("%s: lost %v", what, b.rec.Lost)
		}
	}
	dirty := b.DirtyFiles()
	slices.SortFunc(dirty, func(a, b cache.Dirty) int { return int(a.ID) - int(b.ID) })
	if !slices.Equal(dirty, b.rec.Dirty) {
		r.fatalf("%s: Recover reported %+v, dirty are %+v", what, b.rec.Dirty, dirty)
	}
	for _, m := range r.files {
		if err := r.recoveredFile(b, m, powerCut); err != nil {
			r.fatalf("%s: file %d: %v", what, m.id, err)
		}
	}
}

func (r *rig) recoveredFile(b *box, m *modelFile, powerCut bool) error {
	lost := slices.Contains(b.rec.Lost, m.id)
	images := m.alts
	if powerCut {
		images = append(slices.Clone(m.past), m.alts...)
	}
	f := b.Lookup(m.id)
	if m.removed && f != nil && !powerCut {
		return errors.New("is back after it was removed")
	}
	if lost && m.barriered {
		return errors.New("lost, though a barrier covered it")
	}
	if m.gone && f == nil {
		return nil
	}
	if f == nil {
		f = b.File(m.id, int64(len(m.remote)))
	}
	got, err := readAll(f, m.remote)
	if err != nil {
		return err
	}
	if err := among(got, images, powerCut); err != nil {
		return err
	}
	d := f.Dirty()
	always, ever := true, false
	for _, a := range images {
		always, ever = always && a.changed, ever || a.changed
	}
	if d.Since.IsZero() && always && !lost || !d.Since.IsZero() && !ever {
		return fmt.Errorf("dirty since %v, was so in all states: %v, in one: %v", d.Since, always, ever)
	}
	if !d.Since.IsZero() && !slices.ContainsFunc(m.mtimes, d.Mtime.Equal) {
		return fmt.Errorf("mtime %v was never given", d.Mtime)
	}
	s, err := f.Snapshot()
	if err != nil {
		return err
	}
	defer s.Release()
	if !lost {
		if err := dirtyAmong(s, images, powerCut); err != nil {
			return err
		}
	}
	up, err := readSnap(f, s, m.remote, false)
	if err != nil {
		return err
	}
	if i := difference(up, got); i >= 0 {
		return fmt.Errorf("an upload would send another byte at %d than a reader sees", i)
	}
	return nil
}

// adopt makes a recovered store the one that the script goes on with, and what it holds the truth.
func (r *rig) adopt(b *box) {
	r.box = b
	r.commits = slices.Clone(b.foreign)
	for _, m := range r.files {
		m.snap = nil
		if m.gone {
			m.removed = true
			if b.Lookup(m.id) != nil {
				r.result(b.Remove(m.id))
			}
			continue
		}
		m.f = b.File(m.id, int64(len(m.remote)))
		got, err := readAll(m.f, m.remote)
		r.result(err)
		s, err := m.f.Snapshot()
		if !r.result(err) {
			continue
		}
		a := remoteImage(got)
		a.changed = !m.f.Dirty().Since.IsZero()
		dirty := s.Dirty()
		for i := range a.kind {
			if dirty.Contains(int64(i), int64(i)+1) {
				a.kind[i] = dirtyByte
				if at, ok := m.f.SeekData(int64(i), true); ok && at == int64(i) {
					a.kind[i] = holeByte
				}
			}
		}
		s.Release()
		m.alts, m.past, m.barriered, m.fresh = []image{a}, []image{a.clone()}, a.changed, false
	}
}

// maxFile bounds the files of random scripts, in bytes: a few pages.
const maxFile = 3 * 4096

// random does one random step.
func (r *rig) random(rnd *rand.Rand) {
	r.t.Helper()
	var files []*modelFile
	for _, m := range r.files {
		if !m.gone {
			files = append(files, m)
		}
	}
	if len(files) == 0 || len(files) < 3 && rnd.IntN(8) == 0 {
		r.add([]int64{0, 1, 5000, maxFile / 2, maxFile}[rnd.IntN(5)])
		return
	}
	m := files[rnd.IntN(len(files))]
	off := rnd.Int64N(maxFile)
	if rnd.IntN(4) == 0 {
		off = off / 4096 * 4096
	}
	n := 1 + rnd.Int64N([]int64{10, 500, 6000}[rnd.IntN(3)])
	switch k := rnd.IntN(100); {
	case k < 30:
		r.write(m, off, min(n, maxFile-off))
	case k < 38:
		r.punch(m, off, off+n)
	case k < 48:
		r.truncate(m, off)
	case k < 58:
		r.fill(m, off, off+n)
	case k < 64:
		r.evict([]int64{1, 5000, 1 << 40}[rnd.IntN(3)])
	case k < 74:
		r.sync(m)
	case k < 84:
		if m.snap == nil {
			r.snapshot(m)
		} else if rnd.IntN(3) == 0 {
			r.checkSnap(m, false)
		} else if rnd.IntN(5) == 0 {
			r.release(m)
		} else {
			r.commit(m, rnd.IntN(2) == 0)
		}
	case k < 90:
		if m.snap != nil {
			r.commit(m, rnd.IntN(2) == 0)
		} else {
			r.snapshot(m)
		}
	case k < 93:
		r.checkpoint()
	case k < 96:
		r.reap()
	case k < 97:
		if m.snap == nil {
			r.remove(m)
		}
	default:
		r.step("journal sync")
		r.result(r.box.j.Sync())
	}
}
