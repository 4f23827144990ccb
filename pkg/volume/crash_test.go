package volume

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

// recovered opens a disk that a crash left, uploads all and returns what the bucket has then.
func recovered(t *testing.T, d disk.FS, boot string, b *s3mem.Bucket) map[string]string {
	t.Helper()
	c := running(t, d, boot, spec(b))
	drained(t, c)
	// The bytes of a file that ended with the drain go just after it.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s := c.executor.Status()
		if s.DirtyBytes == 0 && s.DirtyFiles == 0 && s.Queue == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after the drain: %+v", s)
		}
	}
	closed(t, c)
	return contents(t, b)
}

func describe(found map[string]string) string {
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(found)) {
		fmt.Fprintf(&out, " %s:", name)
		content := found[name]
		for i := 0; i < len(content); {
			j := i + 1
			for j < len(content) && content[j] == content[i] {
				j++
			}
			fmt.Fprintf(&out, " %dx%d", j-i, content[i])
			i = j
		}
	}
	return out.String()
}

// crash is a disk that a crash left, with what the model knew.
type crash struct {
	n        int64
	op       diskfault.Op
	powerCut bool
	disk     *diskmem.FS
	moment   *moment
}

func (c *crash) boot() string {
	if c.powerCut {
		return "second"
	}
	return "first"
}

func (c *crash) String() string {
	kind := "kill"
	if c.powerCut {
		kind = "power cut"
	}
	return fmt.Sprintf("%s before call %d (%s %s) in %q", kind, c.n, c.op.Name, c.op.Path, c.moment.step)
}

// crashes runs a life and crashes it at each call of the disk.
func crashes(t *testing.T, seed uint64, run func(x *tale)) []*crash {
	t.Helper()
	x := newTale(t, objects)
	var all []*crash
	n := int64(0)
	x.watch = func(op diskfault.Op) {
		n++
		m := x.now()
		all = append(all, &crash{n, op, false, x.disk.Clone(), &m}, &crash{n, op, true, x.disk.CrashClone(rand.New(rand.NewPCG(uint64(n), seed))), &m})
	}
	x.open("first")
	run(x)
	x.watch(diskfault.Op{Name: "the end"})
	return all
}

// check opens what a crash left and compares. It returns what the bucket has in the end, and whether something was
// given up.
func (c *crash) check(t *testing.T) (found map[string]string, lost bool) {
	t.Helper()
	found = recovered(t, c.disk, c.boot(), c.moment.bucket.thaw(t))
	if !c.moment.allows(found, c.powerCut) {
		t.Fatalf("%s: the bucket got%s\nmay be %s", c, describe(found), c.moment)
	}
	kept, err := c.disk.ReadDir(quarantineDir)
	lost = err == nil && len(kept) > 0
	if lost && !c.powerCut {
		t.Fatalf("%s: %d files in quarantine", c, len(kept))
	}
	return found, lost
}

// TestCrashAnywhere crashes a volume at each call of its disk. After a kill the bucket gets everything that was
// acknowledged; after a power cut all that an fsync covered; and never a file with bytes that nobody wrote there.
func TestCrashAnywhere(t *testing.T) {
	t.Parallel()
	var files, changes int
	all := crashes(t, 1, (*tale).run)
	for _, c := range all {
		found, lost := c.check(t)
		if lost {
			files++
		}
		if c.powerCut && !c.moment.allows(found, false) {
			changes++
		}
	}
	if files == 0 || changes == 0 {
		t.Errorf("the test tested nothing: of %d crashes %d cost a file, %d something acknowledged", len(all), files, changes)
	}
	t.Logf("%d crashes, %d cost a file that no fsync covered, %d something acknowledged", len(all), files, changes)
}

// TestCrashRandom does the same in lives of another kind each.
func TestCrashRandom(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			for _, c := range crashes(t, seed, func(x *tale) { x.wander(rand.New(rand.NewPCG(seed, 5)), 25) }) {
				c.check(t)
			}
		})
	}
}

// TestCrashInRecovery crashes the recovery from a crash, too, at each of its calls, and once more the recovery from that.
func TestCrashInRecovery(t *testing.T) {
	t.Parallel()
	all := crashes(t, 3, (*tale).run)
	rnd := rand.New(rand.NewPCG(3, 3))
	tried := 0
	for i, first := range all {
		if i%61 != 0 && first.op.Name != "the end" {
			continue
		}
		boots := []string{"first", "second", "third"}
		boot := 0
		if first.powerCut {
			boot++
		}
		type again struct {
			disk  *diskmem.FS
			boot  string
			cut   bool
			found string
		}
		var left []again
		watched := diskfault.New(first.disk, func(op diskfault.Op) error {
			left = append(left, again{first.disk.Clone(), boots[boot], first.powerCut, fmt.Sprint(op)},
				again{first.disk.CrashClone(rnd), boots[boot+1], true, fmt.Sprint(op)})
			return nil
		})
		c, err := openOn(watched, boots[boot], spec(first.moment.bucket.thaw(t)))
		if err != nil {
			t.Fatal(err)
		}
		for _, second := range left {
			found := recovered(t, second.disk, second.boot, first.moment.bucket.thaw(t))
			if !first.moment.allows(found, second.cut) {
				t.Fatalf("%s, then before %s in boot %s: the bucket got%s\nmay be %s", first, second.found, second.boot, describe(found), first.moment)
			}
			tried++
		}
		abandoned(c)
	}
	if tried < 100 {
		t.Errorf("only %d crashes within a recovery", tried)
	}
}

// TestFaultInRecovery fails each call of a recovery: that is an error, and the next attempt succeeds.
func TestFaultInRecovery(t *testing.T) {
	t.Parallel()
	all := crashes(t, 4, (*tale).run)
	failed := 0
	for i, first := range all {
		if i%83 != 0 {
			continue
		}
		for n := int64(1); ; n++ {
			d := first.disk.Clone()
			var refused diskfault.Op
			faulty := diskfault.New(d, func(op diskfault.Op) error {
				if op.N == n {
					refused = op
					return fmt.Errorf("%w in %v", errInjected, op)
				}
				return nil
			})
			c, err := openOn(faulty, first.boot(), spec(first.moment.bucket.thaw(t)))
			calls := faulty.Calls()
			if err == nil {
				abandoned(c)
				if calls < n {
					break
				}
				// A file whose bytes the disk does not take says so itself, at each fsync; the others go on.
				if refused.Name != "Sync" || !strings.HasPrefix(refused.Path, "data/") {
					t.Fatalf("%s: %+v of the recovery failed, and nobody said so", first, refused)
				}
			} else if !errors.Is(err, errInjected) {
				t.Fatalf("%s: call %d of the recovery failed: %v", first, n, err)
			}
			failed++
			found := recovered(t, d, first.boot(), first.moment.bucket.thaw(t))
			if !first.moment.allows(found, first.powerCut) {
				t.Fatalf("%s, then %v: the bucket got%s\nmay be %s", first, err, describe(found), first.moment)
			}
		}
	}
	if failed < 100 {
		t.Errorf("only %d faults", failed)
	}
}
