package cache_test

import (
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
)

// TestModel does random things to a store and to a plain array of bytes, and shrinks what differs.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mem := diskmem.New()
		r := &rig{t: t, box: mustOpen(t, mem, false)}
		r.add(rapid.Int64Range(0, maxFile).Draw(t, "size"))
		r.add(0)
		offset := rapid.OneOf(rapid.Int64Range(0, maxFile), rapid.SampledFrom([]int64{0, 1, 4095, 4096, 4097, 8192, maxFile}))
		file := func() *modelFile {
			var in []*modelFile
			for _, m := range r.files {
				if !m.gone {
					in = append(in, m)
				}
			}
			if len(in) == 0 {
				return r.add(5000)
			}
			return in[rapid.IntRange(0, len(in)-1).Draw(t, "file")]
		}
		span := func() (off, end int64) {
			a, b := offset.Draw(t, "from"), offset.Draw(t, "to")
			return min(a, b), max(a, b)
		}
		crash := func(powerCut bool) {
			if powerCut {
				mem = mem.CrashClone(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)))
			} else {
				mem = mem.Clone()
			}
			r.step("crash, power cut: %v", powerCut)
			b := mustOpen(t, mem, powerCut)
			r.recovered(b, powerCut)
			r.adopt(b)
		}
		withSnap := func(do func(*modelFile)) func(*rapid.T) {
			return func(t *rapid.T) {
				m := file()
				if m.snap == nil {
					r.snapshot(m)
				}
				do(m)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) {
				r.live()
				for _, m := range r.files {
					if m.snap != nil {
						r.checkSnap(m, false)
					}
				}
			},
			"write": func(*rapid.T) {
				if off, end := span(); off < end {
					r.write(file(), off, end-off)
				}
			},
			"overwrite": func(*rapid.T) { // short, so that ranges split
				off := offset.Draw(t, "off")
				r.write(file(), off, rapid.Int64Range(1, 20).Draw(t, "n"))
			},
			"punch":      func(*rapid.T) { off, end := span(); r.punch(file(), off, end) },
			"truncate":   func(*rapid.T) { r.truncate(file(), offset.Draw(t, "size")) },
			"fill":       func(*rapid.T) { off, end := span(); r.fill(file(), off, end) },
			"evict":      func(*rapid.T) { r.evict(rapid.SampledFrom([]int64{1, 3000, 1 << 40}).Draw(t, "n")) },
			"sync":       func(*rapid.T) { r.sync(file()) },
			"snapshot":   withSnap(func(*modelFile) {}),
			"commit":     withSnap(func(m *modelFile) { r.commit(m, rapid.Bool().Draw(t, "fill")) }),
			"release":    withSnap(func(m *modelFile) { r.release(m) }),
			"checkpoint": func(*rapid.T) { r.checkpoint() },
			"reap":       func(*rapid.T) { r.reap() },
			"kill":       func(*rapid.T) { crash(false) },
			"power cut":  func(*rapid.T) { crash(true) },
			"remove": func(*rapid.T) {
				if m := file(); m.snap == nil {
					r.remove(m)
				}
			},
		})
	})
}
