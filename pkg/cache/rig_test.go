package cache_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

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
	m := &modelFile{id: cache.ID(len(r.files) + 1), remote: remote, apart: spilled{}, needed: spilled{}}
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
	for _, x := range m.f.Missing(off, end) {
		p := make([]byte, x.Len())
		if r.result(m.needed.fetch(p, x, m.remote, m.f.Spilled)) {
			r.result(m.f.Fill(p, x.Off, generation))
		}
	}
}

// spill uploads a part of the snapshot to an object of its own.
func (r *rig) spill(m *modelFile, cut int64) {
	whole := m.snap.Longest()
	if whole.Empty() {
		return
	}
	off := whole.Off + cut%whole.Len()
	r.step("spill %d [%d,%d) as %d", m.id, off, whole.End, r.ops+1)
	number := uint64(r.ops)
	m.apart[number], m.needed[number] = m.snap.content, m.snap.content
	with := fmt.Sprintf("spill %d", r.ops)
	r.underWay = with
	ok := r.change(m, func(a *image) { a.spill(off, whole.End) }, func() error {
		return m.snap.Spill(number, off, whole.End, journal.Record{Kind: foreignKind, Data: []byte(with)})
	})
	if ok {
		r.commits = append(r.commits, with)
		r.box.foreign = append(r.box.foreign, with)
	}
	r.underWay = ""
	r.release(m)
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

func (r *rig) snapshot(m *modelFile) {
	r.step("snapshot %d", m.id)
	mtime := m.f.Dirty().Mtime
	s, err := m.f.Snapshot()
	if !r.result(err) {
		return
	}
	content, err := readAll(m.f, m.remote, m.needed)
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
	got, err := readSnap(m.f, m.snap.Snapshot, m.remote, fill, m.needed)
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
		m.needed = spilled{}
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
		got, err := readAll(m.f, m.remote, m.needed)
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
		} else if rnd.IntN(2) == 0 {
			r.spill(m, off)
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
