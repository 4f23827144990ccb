package volume

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
)

// workload is a sequence of calls, each followed by a persistence point, after a setup.
type workload struct {
	setup aceStep
	steps []aceStep
}

type aceStep struct {
	name string
	run  func(p *player)
	file string // that the persistence point is for
}

func (w workload) String() string {
	s := w.setup.name
	for _, x := range w.steps {
		s += ", " + x.name
	}
	return s
}

// setups are the states of the volume that a workload begins with: everything of it is only here, or durable here, or
// only in the bucket.
var setups = []aceStep{
	{name: "new", run: func(p *player) { p.start(); aceFiles(p) }},
	{name: "synced", run: func(p *player) { p.start(); aceFiles(p); p.syncAll() }},
	{name: "remote", run: func(p *player) {
		p.object("foo", 6000)
		p.object("A/foo", 3000)
		p.object("B/foo", 5000)
		p.object("A/old", 10)
		p.start()
		p.mkdir("E")
		p.setxattr("A/foo", "old")
		p.drain()
	}},
}

func aceFiles(p *player) {
	p.mkdir("A")
	p.mkdir("B")
	p.mkdir("E")
	for _, f := range []struct {
		name string
		size int
	}{{"foo", 6000}, {"A/foo", 3000}, {"B/foo", 5000}, {"A/old", 10}} {
		p.create(f.name)
		p.write(f.name, 0, f.size)
	}
	p.setxattr("A/foo", "old")
}

// alphabet is every call with the arguments of ACE.
func alphabet() []aceStep {
	var all []aceStep
	add := func(file, name string, run func(p *player)) {
		all = append(all, aceStep{name + " " + file, run, file})
	}
	for _, f := range []string{"bar", "A/bar", "B/bar"} {
		add(f, "create", func(p *player) { p.create(f) })
		add(f, "create and write", func(p *player) { p.create(f); p.write(f, 0, 4500) })
		add(f, "symlink", func(p *player) { p.symlink(f, "foo") })
		add(f, "link foo to", func(p *player) { p.link("foo", f) })
		add(f, "rename A/foo to", func(p *player) { p.rename("A/foo", f) })
	}
	for _, d := range []string{"C", "A/C"} {
		add(d, "mkdir", func(p *player) { p.mkdir(d) })
		add(d, "rename E to", func(p *player) { p.rename("E", d) })
	}
	for _, f := range []string{"foo", "A/foo"} {
		add(f, "append", func(p *player) { p.write(f, len(p.now.things[p.now.names[f]].data), 700) })
		add(f, "overwrite the start of", func(p *player) { p.write(f, 0, 600) })
		add(f, "overwrite the middle of", func(p *player) { p.write(f, 1000, 1500) })
		add(f, "overwrite the end of", func(p *player) { p.write(f, max(0, len(p.now.things[p.now.names[f]].data)-300), 300) })
		add(f, "write behind the end of", func(p *player) { p.write(f, 9000, 500) })
		add(f, "fallocate", func(p *player) { p.fallocate(f, 0, 2000, 6000) })
		add(f, "fallocate keep size", func(p *player) { p.fallocate(f, keepSize, 2000, 6000) })
		add(f, "punch hole", func(p *player) { p.fallocate(f, punchHole, 500, 2000) })
		add(f, "zero range", func(p *player) { p.fallocate(f, zeroRange, 2500, 5000) })
		add(f, "zero range keep size", func(p *player) { p.fallocate(f, zeroRange|keepSize, 2500, 5000) })
		add(f, "truncate to nothing", func(p *player) { p.truncate(f, 0) })
		add(f, "truncate", func(p *player) { p.truncate(f, 1234) })
		add(f, "truncate up", func(p *player) { p.truncate(f, 8000) })
		add(f, "setxattr", func(p *player) { p.setxattr(f, "new") })
		add(f, "removexattr", func(p *player) { p.removexattr(f) })
		add(f, "chmod", func(p *player) { p.chmod(f, 0o600) })
		add(f, "unlink", func(p *player) { p.unlink(f) })
		add(f, "rename B/foo to", func(p *player) { p.rename("B/foo", f) })
		add(f, "exchange B/foo and", func(p *player) { p.exchange("B/foo", f) })
	}
	add("E", "rmdir", func(p *player) { p.rmdir("E") })
	add("E", "rename A to", func(p *player) { p.rename("A", "E") })
	add("C", "rename A to", func(p *player) { p.rename("A", "C") })
	add("B", "exchange A and", func(p *player) { p.exchange("A", "B") })
	return all
}

// persistence makes a step of each way to make a call durable.
func persistence(x aceStep) []aceStep {
	sync := func(datasync bool) func(p *player) {
		return func(p *player) {
			x.run(p)
			p.datasync = datasync
			if _, ok := p.now.names[x.file]; ok {
				p.fsync(x.file)
			} else {
				p.fsyncDir(".")
			}
		}
	}
	return []aceStep{
		{x.name + ", fsync", sync(false), x.file},
		{x.name + ", fdatasync", sync(true), x.file},
		{x.name + ", fsync of the directory", func(p *player) { x.run(p); p.fsyncDir(".") }, x.file},
		{x.name + ", sync", func(p *player) { x.run(p); p.syncAll() }, x.file},
	}
}

// crashPoint is a disk at a moment, with what the model knew then.
type crashPoint struct {
	op            diskfault.Op
	step          string
	disk          *diskmem.FS
	worlds        []*world
	acked, synced int
	barrier       map[int]int
}

// aceTally is what workloads were good for.
type aceTally struct{ workloads, states, cuts, lost, drained int }

// losses are the ways to crash; the kill is the first.
var losses = []diskmem.Loss{-1, diskmem.Drop, diskmem.Keep, diskmem.Tear, diskmem.Chance}

// run records a workload and looks at every state in which a crash may leave it. Of the ways to crash, a run that is no
// soak takes a kill and one power cut at each point, in turns.
func (w workload) run(t *testing.T, seed uint64, sum *aceTally) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := newPlayer(t, w.String())
		defer func() {
			if p.stop != nil {
				p.stop()
			}
		}()
		w.setup.run(p)
		synctest.Wait()
		var points []crashPoint
		watch := func(op diskfault.Op) error {
			if changes(op) { // before other calls the disk is as before the next that counts
				points = append(points, crashPoint{op, p.step, p.disk.Clone(), p.worlds, p.acked, p.synced, maps.Clone(p.barrier)})
			}
			return nil
		}
		p.mu.Lock()
		p.fault = watch
		p.mu.Unlock()
		for _, s := range w.steps {
			s.run(p)
		}
		p.mu.Lock()
		p.fault = nil
		_ = watch(diskfault.Op{Name: "the end"})
		p.mu.Unlock()
		sum.workloads++
		for i, c := range points {
			for k, loss := range losses {
				if !soak && k > 0 && (i+int(seed))%4 != k-1 {
					continue
				}
				c.check(t, p, loss, rand.New(rand.NewPCG(seed, uint64(i))), sum)
			}
		}
	})
}

// check recovers from one crash and compares.
func (c crashPoint) check(t *testing.T, from *player, loss diskmem.Loss, rnd *rand.Rand, sum *aceTally) {
	t.Helper()
	cut := loss >= 0
	p := newPlayer(t, fmt.Sprintf("%s: crash of kind %d before %s %s in %q", from.name, loss, c.op.Name, c.op.Path, c.step))
	p.bucket, p.spec, p.files = from.bucket, from.spec, from.files
	p.worlds, p.acked, p.synced, p.barrier = slices.Clip(c.worlds), c.acked, c.synced, maps.Clone(c.barrier)
	p.now = c.worlds[c.acked]
	p.disk = c.disk.Clone()
	if cut {
		p.disk, p.boot = c.disk.CrashCloneAs(loss, rnd), "second"
		sum.cuts++
	}
	sum.states++
	drain := sum.states%16 == 0
	if drain {
		p.bucket = freeze(t, from.bucket).thaw(t)
		p.bucket.MinPart = 1
	}
	defer func() { p.stop() }()
	p.start()
	p.settle(cut)
	if p.lost && cut {
		sum.lost++
	}
	if drain {
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		defer cancel()
		if err := p.core.drain(ctx); err != nil {
			p.fatalf("drain: %v", err)
		}
		p.compare()
		sum.drained++
	}
}

// TestACE1 crashes all workloads of one call.
func TestACE1(t *testing.T) {
	views()
	for _, setup := range setups {
		t.Run(setup.name, func(t *testing.T) {
			t.Parallel()
			var sum aceTally
			for _, x := range alphabet() {
				for _, s := range persistence(x) {
					workload{setup, []aceStep{s}}.run(t, uint64(sum.workloads), &sum)
					if t.Failed() {
						return
					}
				}
			}
			if sum.workloads < 200 || sum.lost == 0 || sum.drained == 0 {
				t.Errorf("the test tested too little: %+v", sum)
			}
			t.Logf("%+v", sum)
		})
	}
}

// TestACE2 crashes a sample of the workloads of two calls.
func TestACE2(t *testing.T) {
	t.Parallel()
	views()
	seed := uint64(2)
	states := 5000
	if soak {
		seed, states = rand.Uint64(), 100_000
	}
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	all := alphabet()
	var sum aceTally
	pick := func() aceStep { return persistence(all[rnd.IntN(len(all))])[rnd.IntN(4)] }
	for sum.states < states {
		workload{setups[rnd.IntN(len(setups))], []aceStep{pick(), pick()}}.run(t, rnd.Uint64()>>1, &sum)
		if t.Failed() {
			return
		}
	}
	if sum.lost == 0 || sum.drained == 0 {
		t.Errorf("the test tested too little: %+v", sum)
	}
	t.Logf("%+v", sum)
}
