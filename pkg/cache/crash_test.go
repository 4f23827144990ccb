package cache_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

// crasher ends the process or the power at disk calls.
type crasher struct {
	r          *rig
	mem        *diskmem.FS
	rnd        *rand.Rand
	kills      int
	cuts, lost int
	nested     int
}

// at checks what both crashes leave when they come now.
func (c *crasher) at() {
	killed := c.mem.Clone()
	b := mustOpen(c.r.t, killed, false)
	c.r.recovered(b, false)
	c.kills++
	// What was recovered counts as a barrier.
	c.second(killed, false)
	cut := c.mem.CrashClone(c.rnd)
	b = mustOpen(c.r.t, cut.Clone(), true)
	c.r.recovered(b, true)
	c.cuts++
	c.lost += len(b.rec.Lost)
	c.interrupted(cut)
}

// changes says that the disk may differ after the call: a crash before a call that changes nothing is the one before the
// next call.
func changes(op diskfault.Op) bool {
	switch op.Name {
	case "ReadAt", "ReadFile", "ReadDir", "Size", "Space":
		return false
	}
	return true
}

// second cuts the power after a recovery from a kill: nothing that was recovered may be lost.
func (c *crasher) second(killed *diskmem.FS, powerCut bool) {
	if c.rnd.IntN(3) > 0 {
		return
	}
	c.nested++
	now := c.r.now
	c.r.now += ", recovery, power cut"
	b := mustOpen(c.r.t, killed.CrashClone(c.rnd), true)
	if len(b.rec.Lost) > 0 {
		c.r.fatalf("%s: lost %v, which had been recovered", c.r.now, b.rec.Lost)
	}
	b.rec.Lost = nil
	c.r.recovered(b, powerCut)
	c.r.now = now
}

// interrupted crashes within the recovery from a power cut and recovers again.
func (c *crasher) interrupted(cut *diskmem.FS) {
	if c.rnd.IntN(4) > 0 {
		return
	}
	c.nested++
	stop := 1 + c.rnd.Int64N(30)
	again := cut
	fs := diskfault.New(cut, func(op diskfault.Op) error {
		if op.N == stop {
			again = cut.CrashClone(c.rnd)
		}
		return nil
	})
	mustOpen(c.r.t, fs, true)
	now := c.r.now
	c.r.now += fmt.Sprintf(", power cut at call %d of the recovery", stop)
	c.r.recovered(mustOpen(c.r.t, again, true), true)
	c.r.now = now
}

// TestCrashAtEveryCall runs random scripts, and at each disk call looks at what a kill and what a power cut would leave.
func TestCrashAtEveryCall(t *testing.T) {
	const least, box = 10, 8 * time.Second
	start := time.Now()
	var total crasher
	scripts := 0
	for seed := uint64(1); scripts < least || time.Since(start) < box && scripts < 300; seed++ {
		scripts++
		c := &crasher{mem: diskmem.New(), rnd: rand.New(rand.NewPCG(seed, 7))}
		c.r = &rig{t: t}
		fs := diskfault.New(c.mem, func(op diskfault.Op) error {
			if c.r.box != nil && changes(op) {
				c.at()
			}
			return nil
		})
		c.r.box = mustOpen(t, fs, false)
		c.r.add(maxFile)
		rnd := rand.New(rand.NewPCG(seed, 8))
		for range 35 {
			c.r.random(rnd)
			c.r.live()
		}
		total.kills += c.kills
		total.cuts += c.cuts
		total.lost += c.lost
		total.nested += c.nested
	}
	if total.lost == 0 || total.kills < 500 {
		t.Errorf("the test tested too little: %+v", total)
	}
	t.Logf("%d scripts: %d kills, %d power cuts that lost %d unsynced files, %d crashes in or after a recovery",
		scripts, total.kills, total.cuts, total.lost, total.nested)
}

// TestCrashAndGoOn crashes, recovers, and goes on with what was recovered, many times over on one disk.
func TestCrashAndGoOn(t *testing.T) {
	const least, box = 20, 4 * time.Second
	start := time.Now()
	runs, crashes := 0, 0
	for seed := uint64(1); runs < least || time.Since(start) < box && runs < 1000; seed++ {
		runs++
		rnd := rand.New(rand.NewPCG(seed, 9))
		mem := diskmem.New()
		r := &rig{t: t, box: mustOpen(t, mem, false)}
		r.add(maxFile / 2)
		for range 5 {
			for range rnd.IntN(40) {
				r.random(rnd)
			}
			r.live()
			crashes++
			powerCut := rnd.IntN(2) == 0
			if powerCut {
				mem = mem.CrashClone(rnd)
			} else {
				mem = mem.Clone()
			}
			r.step("crash, power cut: %v", powerCut)
			b := mustOpen(t, mem, powerCut)
			r.recovered(b, powerCut)
			r.adopt(b)
			r.live()
		}
	}
	t.Logf("%d runs, %d crashes", runs, crashes)
}

// Bytes that a barrier covers must not be freed before the record that makes them needless is durable.
func TestFreedTooEarly(t *testing.T) {
	const size = 9000
	free := map[string]func(*rig, *modelFile){
		"evicted after a commit": func(r *rig, m *modelFile) {
			r.snapshot(m)
			r.commit(m, false)
			r.evict(1 << 40)
		},
		"written, committed, evicted and filled": func(r *rig, m *modelFile) {
			r.snapshot(m)
			r.commit(m, false)
			r.evict(1 << 40)
			r.fill(m, 0, size)
		},
		"cut and reaped": func(r *rig, m *modelFile) {
			r.truncate(m, 100)
			r.reap()
		},
		"cut, grown and reaped": func(r *rig, m *modelFile) {
			r.truncate(m, 100)
			r.truncate(m, size)
			r.reap()
		},
		"cut and committed": func(r *rig, m *modelFile) {
			r.truncate(m, 100)
			r.snapshot(m)
			r.commit(m, false)
			r.evict(1 << 40)
		},
		"removed": func(r *rig, m *modelFile) { r.remove(m); r.reap() },
		"committed and removed": func(r *rig, m *modelFile) {
			r.snapshot(m)
			r.commit(m, false)
			r.remove(m)
		},
	}
	for name, do := range free {
		t.Run(name, func(t *testing.T) {
			mem := diskmem.New()
			c := &crasher{mem: mem, rnd: rand.New(rand.NewPCG(3, 3))}
			c.r = &rig{t: t}
			fs := diskfault.New(mem, func(op diskfault.Op) error {
				if c.r.box != nil && changes(op) {
					for range 8 {
						c.at()
					}
				}
				return nil
			})
			c.r.box = mustOpen(t, fs, false)
			m := c.r.add(0)
			c.r.write(m, 0, size)
			c.r.sync(m)
			do(c.r, m)
			for range 20 {
				c.at()
			}
		})
	}
}

// TestKilledStateIsBarrier: what a recovery from a kill has returned survives a power cut, without any Sync.
func TestKilledStateIsBarrier(t *testing.T) {
	mem := diskmem.New()
	b := mustOpen(t, mem, false)
	if err := b.File(1, 0).WriteAt(pattern(1, 0, 10000), 0, stamp(1)); err != nil {
		t.Fatal(err)
	}
	mem = mem.Clone()
	mustOpen(t, mem, false)
	for seed := range uint64(20) {
		b = mustOpen(t, mem.CrashClone(rand.New(rand.NewPCG(seed, 1))), true)
		if len(b.rec.Lost) > 0 || len(b.rec.Dirty) != 1 {
			t.Fatalf("%+v", b.rec)
		}
		got, err := readAll(b.Lookup(1), nil)
		if err != nil || difference(got, pattern(1, 0, 10000)) >= 0 {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
}

// TestQuarantine: what no barrier covered is kept for a human, and is not uploaded.
func TestQuarantine(t *testing.T) {
	mem := diskmem.New()
	b := mustOpen(t, mem, false)
	f := b.File(0xab12, 0)
	if err := f.WriteAt(pattern(1, 0, 10000), 0, stamp(1)); err != nil {
		t.Fatal(err)
	}
	old := b.File(7, 500)
	if err := old.WriteAt(pattern(2, 0, 1000), 0, stamp(2)); err != nil {
		t.Fatal(err)
	}
	// The journal and the names are durable by chance, the barrier is missing.
	if err := b.j.Sync(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"data", "data/12", "data/07"} {
		if err := mem.SyncDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	mem = mem.CrashClone(rand.New(rand.NewPCG(1, 1)))
	// A crash of the recovery before Forget changes nothing: they are lost once more.
	early := cache.New(mem, cache.Options{})
	j, err := journal.Open(mem, "journal", journal.Options{}, func(frame []journal.Record) error { return early.Replay(frame[0]) })
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := early.Recover(j, true); err != nil || len(rec.Lost) != 2 {
		t.Fatalf("%+v, %v", rec, err)
	}
	mem = mem.Clone()
	b = mustOpen(t, mem, true)
	if len(b.rec.Dirty) != 0 || len(b.rec.Lost) != 2 || b.rec.Lost[0] != 7 || b.rec.Lost[1] != 0xab12 {
		t.Fatalf("%+v", b.rec)
	}
	if b.Lookup(7) != nil || b.Lookup(0xab12) != nil {
		t.Fatal("a lost file is known")
	}
	if _, err := mem.ReadFile("quarantine/ab12"); err != nil {
		t.Fatal(err)
	}
	// It stays so: the next start has nothing to say about it, and the quarantine survives a power cut.
	for seed := range uint64(20) {
		again := mem.CrashClone(rand.New(rand.NewPCG(seed, 2)))
		b = mustOpen(t, again, true)
		if len(b.rec.Dirty) != 0 || len(b.rec.Lost) != 0 {
			t.Fatalf("%+v", b.rec)
		}
		if _, err := again.ReadFile("quarantine/ab12"); err != nil {
			t.Fatal(err)
		}
	}
	if f := b.File(7, 500); f.Size() != 500 || f.Dirty().Bytes != 0 {
		t.Fatalf("%+v", f.Dirty())
	}
}

// TestLeftovers: files on the disk that no record names go away at the start, and so do side files.
func TestLeftovers(t *testing.T) {
	mem := diskmem.New()
	b := mustOpen(t, mem, false)
	f := b.File(1, 0)
	if err := f.WriteAt([]byte("old"), 0, stamp(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Snapshot(); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteAt([]byte("new"), 0, stamp(2)); err != nil {
		t.Fatal(err)
	}
	if err := b.File(2, 3).Fill([]byte("abc"), 0, 0); err != nil {
		t.Fatal(err)
	}
	mem = mem.Clone()
	for _, name := range []string{"snap/1", "data/02/2"} {
		if _, err := mem.ReadFile(name); err != nil {
			t.Fatalf("the test leaves no %s: %v", name, err)
		}
	}
	b = mustOpen(t, mem, false)
	for _, name := range []string{"snap/1", "data/02/2"} {
		if _, err := mem.ReadFile(name); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if got, err := readAll(b.Lookup(1), nil); err != nil || string(got) != "new" {
		t.Fatalf("%q, %v", got, err)
	}
	if b.Lookup(2) != nil {
		t.Fatal("a clean file is known after a restart")
	}
}

// TestCrashInRecovery: a crash during a recovery from a kill is recovered from, too.
func TestCrashInRecovery(t *testing.T) {
	for stop := int64(1); ; stop++ {
		mem := diskmem.New()
		r := &rig{t: t, box: mustOpen(t, mem, false)}
		a, b := r.add(5000), r.add(0)
		r.write(a, 100, 6000)
		r.sync(a)
		r.truncate(a, 3000)
		r.write(b, 4096, 100)
		r.punch(a, 10, 200)
		mem = mem.Clone()
		var killed, cut *diskmem.FS
		fs := diskfault.New(mem, func(op diskfault.Op) error {
			if op.N == stop {
				killed, cut = mem.Clone(), mem.CrashClone(rand.New(rand.NewPCG(uint64(stop), 4)))
			}
			return nil
		})
		if _, err := openBox(fs, cache.Options{}, false); err != nil {
			t.Fatal(err)
		}
		if killed == nil {
			if stop < 10 {
				t.Fatalf("the recovery had only %d calls", stop)
			}
			return
		}
		r.now = fmt.Sprintf("call %d of the recovery", stop)
		r.recovered(mustOpen(t, killed, false), false)
		r.recovered(mustOpen(t, cut, true), true)
	}
}
