package cache_test

import (
	"errors"
	"fmt"
	"slices"

	"github.com/csi-s3/csi-s3/pkg/cache"
)

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
	got, err := readAll(f, m.remote, m.apart)
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
	up, err := readSnap(f, s, m.remote, false, m.apart)
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
		m.f, m.needed = b.File(m.id, int64(len(m.remote))), m.apart
		got, err := readAll(m.f, m.remote, m.apart)
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
				if n, _ := s.Spilled(int64(i)); n != 0 {
					a.kind[i] = spilledByte
				} else if at, ok := m.f.SeekData(int64(i), true); ok && at == int64(i) {
					a.kind[i] = holeByte
				}
			}
		}
		s.Release()
		m.alts, m.past, m.barriered, m.fresh = []image{a}, []image{a.clone()}, a.changed, false
	}
}
