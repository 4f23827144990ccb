package chaos_test

import (
	"errors"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/test/mountns"
)

// requests are the named points of failure at the server: each kind of request that a mount makes for its changes.
var requests = []trap{
	{kind: "Put", when: before}, {kind: "Put", when: during}, {kind: "Put", when: after},
	{kind: "CreateUpload", when: before}, {kind: "CreateUpload", when: after},
	{kind: "UploadPart", when: before}, {kind: "UploadPart", when: during}, {kind: "UploadPart", when: after},
	{kind: "CompleteUpload", when: before}, {kind: "CompleteUpload", when: after},
	{kind: "Copy", when: before}, {kind: "Copy", when: after},
	{kind: "UploadPartCopy", when: before}, {kind: "UploadPartCopy", when: after},
	{kind: "Delete", when: before}, {kind: "Delete", when: after},
	{kind: "DeleteObjects", when: before}, {kind: "DeleteObjects", when: after},
	{kind: "Head", when: before}, {kind: "Head", when: after},
	{kind: "List", when: after},
	{kind: "ListUploads", when: before},
}

// changes are the named points of failure at the cache's disk.
var changes = []change{
	{"journal written", unix.IN_MODIFY, "journal", "journal"},
	{"data file made", unix.IN_CREATE, "data", ""},
	{"data file written", unix.IN_MODIFY, "data", ""},
	{"bytes kept for an upload", unix.IN_CREATE, "snap", ""},
}

// ends are those at the orderly end of a mount.
var ends = []change{
	{"checkpoint begun", unix.IN_CREATE, "journal", "journal.new"},
	{"checkpoint in place", unix.IN_MOVED_TO, "journal", "journal"},
}

// starts are the points while a process starts.
var (
	startRequests = []trap{{kind: "List", when: before}, {kind: "Get", when: before}, {kind: "Get", when: after}}
	startChanges  = []change{{"journal written at the start", unix.IN_MODIFY, "journal", "journal"}}
)

const (
	randomly   = "at a random time"
	whileStart = "at a random time of the start"
)

// blow is one point of failure: its name, and how a round with it goes. It reports whether the point was hit.
type blow struct {
	name string
	run  func() bool
}

// atRequest strikes when a request passes the gate.
func (r *rig) atRequest(x trap) blow {
	return blow{x.String(), func() bool {
		armed := x
		if x.kind != "CreateUpload" && x.kind != "CompleteUpload" { // these come once
			armed.skip = r.rnd.IntN(3)
		}
		armed.hit = r.striker()
		r.work(func() { r.gate.set(&armed) }, func(w *world) error { return r.provoke(x.kind, w) }, r.await)
		r.gate.set(nil)
		hit := r.blown.Load()
		r.finish()
		return hit
	}}
}

// atChange strikes when a file of the cache changes.
func (r *rig) atChange(c change) blow {
	return blow{c.name, func() bool {
		var stop func()
		aim := func() {
			skip := 0
			if c.event == unix.IN_MODIFY {
				skip = r.rnd.IntN(200)
			}
			stop = watch(r.t, r.cache, c, skip, r.striker())
		}
		provoke := func(w *world) error {
			if c.dir == "snap" {
				return errors.Join(w.removeBig(), w.newBig(false), pause(), w.changeBig(0), w.changeBig(0), w.changeBig(0))
			}
			return nil
		}
		r.work(aim, provoke, r.await)
		stop()
		hit := r.blown.Load()
		r.finish()
		return hit
	}}
}

// atEnd tells the process to end, and kills it when a file of its cache changes.
func (r *rig) atEnd(c change) blow {
	return blow{c.name, func() bool {
		hit := make(chan struct{})
		var stop func()
		aim := func() {
			stop = watch(r.t, r.cache, c, 0, func() {
				r.signal(syscall.SIGKILL)
				close(hit)
			})
		}
		r.work(aim, func(*world) error { return nil }, func() {
			time.Sleep(r.span(100 * time.Millisecond))
			r.dirty = r.status().Dirty
			r.blown.Store(true)
			r.signal(syscall.SIGTERM)
		})
		for _, w := range r.worlds {
			w.abandon() // an end waits for open files
		}
		ok := false
		select {
		case <-hit:
			ok = true
		case <-time.After(hitWait):
		}
		stop()
		r.finish()
		return ok
	}}
}

// atRandom strikes after a random time.
func (r *rig) atRandom() blow {
	return blow{randomly, func() bool {
		r.work(func() {}, func(*world) error { return nil }, func() {
			time.Sleep(r.span(300 * time.Millisecond))
			r.striker()()
		})
		r.finish()
		return true
	}}
}

// finish ends a round under the workload: if the point was not hit, with a blow at this moment.
func (r *rig) finish() {
	r.striker()()
	r.signal(syscall.SIGKILL)
	r.bury()
	if r.dirty > 0 {
		r.dirtyBlows++
	}
	r.workBlows++
}

// atStart strikes under the workload, and again while the next process starts: when aim's hit is called, or in the end.
// aim returns what ends it.
func (r *rig) atStart(name string, aim func(hit func()) (stop func())) blow {
	return blow{name, func() bool {
		r.atRandom().run()
		hit := make(chan struct{})
		strike := r.striker()
		var once sync.Once
		begin := time.Now()
		r.spawn()
		stop := aim(func() {
			once.Do(func() {
				strike()
				close(hit)
			})
		})
		// Ends when all is read, or with the process; this call waits for it.
		read := make(chan struct{})
		go func() {
			defer close(read)
			for time.Since(begin) < hitWait && mountns.Type(r.t, r.dir) == "" {
				select {
				case <-hit:
					return
				case <-time.After(2 * time.Millisecond):
				}
			}
			for _, w := range r.worlds {
				w.readAll()
			}
		}()
		ok := false
		select {
		case <-hit:
			ok = true
		case <-read:
			// What was read may be the last thing before the blow.
			select {
			case <-hit:
				ok = true
			case <-time.After(50 * time.Millisecond):
			}
		}
		stop()
		strike()
		<-read
		r.bury()
		return ok
	}}
}

func (r *rig) atStartRequest(x trap) blow {
	return r.atStart(x.String()+" at the start", func(hit func()) func() {
		armed := x
		armed.hit = hit
		r.gate.set(&armed)
		return func() { r.gate.set(nil) }
	})
}

func (r *rig) atStartChange(c change) blow {
	return r.atStart(c.name, func(hit func()) func() { return watch(r.t, r.cache, c, 0, hit) })
}

func (r *rig) atStartTime() blow {
	return r.atStart(whileStart, func(hit func()) func() {
		late := time.AfterFunc(r.span(2*startTime), hit)
		return func() { late.Stop() }
	})
}

// startTime is about what a start takes.
const startTime = 100 * time.Millisecond

// span is a random time.
func (r *rig) span(most time.Duration) time.Duration { return time.Duration(r.rnd.Int64N(int64(most))) }

// points are all blows of a cycle, the random ones more than once.
func (r *rig) points() (all []blow) {
	for _, x := range requests {
		all = append(all, r.atRequest(x))
	}
	for _, c := range changes {
		all = append(all, r.atChange(c))
	}
	for _, c := range ends {
		all = append(all, r.atEnd(c))
	}
	for _, x := range startRequests {
		all = append(all, r.atStartRequest(x))
	}
	for _, c := range startChanges {
		all = append(all, r.atStartChange(c))
	}
	for range 4 {
		all = append(all, r.atStartTime(), r.atRandom())
	}
	return all
}

// figures are how long a run is: at least blows, and each point hit so often. After the time of box, least blows suffice.
type figures struct {
	blows, hits, least int
	box                time.Duration
}

// figuresOr are the figures of a suite; CSI_S3_CHAOS_BLOWS and CSI_S3_CHAOS_HITS replace those of a soak.
func figuresOr(short, long figures) figures {
	if !soak() {
		return short
	}
	long.blows, long.hits = figure("CSI_S3_CHAOS_BLOWS", long.blows), figure("CSI_S3_CHAOS_HITS", long.hits)
	long.least = long.blows
	return long
}

// run goes on until there were enough blows and every point was hit often enough, or misses are too many.
func (r *rig) run(points []blow, f figures) {
	r.t.Helper()
	r.begin()
	blows, hits, end := f.blows, f.hits, time.Now().Add(f.box)
	for _, p := range points {
		r.hits[p.name] = 0
	}
	var cycle []blow
	for r.blows < f.least || time.Now().Before(end) && (r.blows < blows || slices.ContainsFunc(points, func(p blow) bool { return r.hits[p.name] < hits })) {
		if len(cycle) == 0 {
			cycle = slices.Clone(points)
			if r.blows >= blows {
				cycle = slices.DeleteFunc(cycle, func(p blow) bool { return r.hits[p.name] >= hits })
			}
			r.rnd.Shuffle(len(cycle), func(i, j int) { cycle[i], cycle[j] = cycle[j], cycle[i] })
		}
		p := cycle[0]
		cycle = cycle[1:]
		r.round++
		begin := time.Now()
		hit := p.run()
		if hit {
			r.hits[p.name]++
		} else if r.misses++; r.misses > blows {
			r.t.Fatalf("points of failure are not hit: %v", r.hits)
		}
		struck := time.Since(begin)
		r.recovered()
		r.t.Logf("round %d: %s, hit: %v, after %v; in all %v", r.round, p.name, hit, struck.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
		if r.round%checkEvery == 0 {
			r.checkBucket()
		}
		if r.round%(4*checkEvery) == 0 {
			r.checkEmptyCache()
		}
		if r.t.Failed() {
			return
		}
	}
	r.checkBucket()
	r.checkEmptyCache()
	r.report()
}

// checkEvery is after how many rounds the bucket alone is compared.
const checkEvery = 10

// TestKill: whatever the process was doing when it was killed, everything that had returned is in the next mount, and
// after a flush in the bucket.
func TestKill(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	nothingLeft(t)
	r := newRig(t, "settle=20ms")
	r.run(r.points(), figuresOr(figures{200, 1, 200, 7 * time.Minute}, figures{1000, 12, 0, 2 * time.Hour}))
}
