package cache_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
)

// faultRun is a random script with one fault at the n-th disk call.
type faultRun struct {
	r     *rig
	syncs []int64 // numbers of the calls that sync a data file
	mem   *diskmem.FS
	fs    *diskfault.FS
	fired diskfault.Op // N is 0: not yet
	in    string       // the operation that it hit
	armed bool
}

func newFaultRun(t *testing.T, n int64, err error, short bool) *faultRun {
	x := &faultRun{mem: diskmem.New()}
	x.r = &rig{t: t, lenient: true}
	x.fs = diskfault.New(x.mem, func(op diskfault.Op) error {
		if x.armed && op.Name == "Sync" && strings.HasPrefix(op.Path, "data/") {
			x.syncs = append(x.syncs, op.N)
		}
		if !x.armed || x.fired.N > 0 || op.N < n {
			return nil
		}
		x.fired, x.in = op, x.r.now
		if short && op.Len > 1 {
			return &diskfault.Partial{N: int(op.Len / 2), Err: err}
		}
		return err
	})
	x.r.box = mustOpen(t, x.fs, false)
	x.r.add(maxFile)
	return x
}

// dead says that the journal takes nothing any more: the volume has to be opened anew.
func (x *faultRun) dead() bool { return x.r.box.j.Sync() != nil }

func (x *faultRun) run(seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 21))
	for range 40 {
		x.armed = true
		failed := len(x.r.failed)
		fired := x.fired.N
		x.r.random(rnd)
		x.armed = false
		if fired == 0 && x.fired.N > 0 && len(x.r.failed) == failed && !x.silent() {
			x.r.fatalf("%s: the fault at %+v did not surface", x.in, x.fired)
		}
		x.r.live()
		if x.dead() {
			return
		}
	}
}

// silent are the faults that lose nothing and that nobody can be told of: Evict returns what it freed, a side file that
// stays is thrown away at the next start, and a checkpoint on a full disk reserves no room.
func (x *faultRun) silent() bool {
	return x.fired.Name == "Reserve" || strings.Contains(x.in, " evict ") || strings.HasPrefix(x.fired.Path, "snap/") && x.fired.Name == "Remove"
}

// TestFaultAtAnyCall fails one disk call, drawn at random, in each run of one of a few random scripts.
func TestFaultAtAnyCall(t *testing.T) {
	const least, box, scripts = 200, 6 * time.Second, 8
	faults := []error{fmt.Errorf("injected: %w", disk.ErrIO), fmt.Errorf("injected: %w", disk.ErrNoSpace)}
	var calls [scripts]int64
	var syncs [scripts][]int64
	start := time.Now()
	rnd := rand.New(rand.NewPCG(uint64(start.UnixNano()), 1))
	runs, surfaced, poisoned, dead := 0, 0, 0, 0
	for ; runs < least || time.Since(start) < box && runs < 20000; runs++ {
		script := rnd.Uint64N(scripts)
		if calls[script] == 0 {
			count := newFaultRun(t, 1<<62, nil, false)
			count.run(script)
			calls[script], syncs[script] = count.fs.Calls(), count.syncs
		}
		n, err, short := rnd.Int64N(calls[script])+1, faults[rnd.IntN(2)], rnd.IntN(2) == 0
		if s := syncs[script]; len(s) > 0 && rnd.IntN(6) == 0 {
			n = s[rnd.IntN(len(s))] // few calls, and the worst to fail
		}
		x := newFaultRun(t, n, err, short)
		x.run(script)
		for _, e := range x.r.failed {
			if !errors.Is(e, err) && !errors.Is(e, cache.ErrPoisoned) {
				x.r.fatalf("the fault %v came back as %v", err, e)
			}
		}
		surfaced += min(1, len(x.r.failed))
		if x.dead() {
			dead++
		} else {
			poisoned += x.settle()
		}
		// Whatever failed: what was acknowledged is there.
		x.r.now = fmt.Sprintf("the end of script %d, after %+v failed", script, x.fired)
		x.r.lenient = false
		killed := mustOpen(t, x.mem.Clone(), false)
		if x.dead() && len(killed.foreign) > len(x.r.commits) {
			x.r.commits = killed.foreign // the record of a Commit that failed may have come through
		}
		x.r.recovered(killed, false)
		x.r.recovered(mustOpen(t, x.mem.CrashClone(rnd), true), true)
	}
	if surfaced < runs/2 || poisoned == 0 || dead == 0 {
		t.Errorf("of %d faults %d surfaced, %d poisoned a file, %d ended the journal", runs, surfaced, poisoned, dead)
	}
	t.Logf("%d faults: %d surfaced, %d poisoned a file, %d ended the journal", runs, surfaced, poisoned, dead)
}

// settle syncs all files after the fault is over. It returns how many are poisoned.
func (x *faultRun) settle() (poisoned int) {
	for _, m := range x.r.files {
		if m.gone {
			continue
		}
		x.r.step("last sync %d", m.id)
		err := m.f.Sync()
		if errors.Is(err, cache.ErrPoisoned) {
			poisoned++
			continue
		}
		x.r.lenient = false
		x.r.synced(m, err)
		x.r.lenient = true
	}
	return poisoned
}

// A store whose disk fails during Recover says so; the next start finds everything.
func TestFaultInRecover(t *testing.T) {
	mem := diskmem.New()
	r := &rig{t: t, box: mustOpen(t, mem, false)}
	a, b := r.add(5000), r.add(0)
	r.write(a, 100, 6000)
	r.sync(a)
	r.truncate(a, 3000)
	r.write(b, 4096, 100)
	r.sync(b)
	surfaced := 0
	for _, powerCut := range []bool{false, true} {
		for n := int64(1); ; n++ {
			disk1 := mem.Clone()
			if powerCut {
				disk1 = mem.CrashClone(rand.New(rand.NewPCG(uint64(n), 6)))
			}
			fired := false
			fs := diskfault.New(disk1, func(op diskfault.Op) error {
				if op.N != n {
					return nil
				}
				fired = true
				return disk.ErrIO
			})
			box, err := openBox(fs, cache.Options{}, powerCut)
			if !fired {
				break
			}
			r.now = fmt.Sprintf("recovery with call %d failing", n)
			switch {
			case err == nil:
				// A data file that cannot be synced is poisoned and the others are served.
				failing := 0
				for _, d := range box.DirtyFiles() {
					if e := box.Lookup(d.ID).Sync(); errors.Is(e, cache.ErrPoisoned) {
						failing++
					}
				}
				if failing != 1 && !powerCut {
					t.Errorf("call %d failed and nobody was told", n)
				}
			case errors.Is(err, disk.ErrIO):
				surfaced++
			default:
				t.Errorf("call %d: %v", n, err)
			}
			r.recovered(mustOpen(t, disk1.Clone(), powerCut), powerCut)
		}
	}
	if surfaced < 10 {
		t.Errorf("only %d faults surfaced", surfaced)
	}
}
