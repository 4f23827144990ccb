package chaos_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/fuse"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

const (
	worlds = 3
	// hitWait is how long the workload may take to come to a point of failure.
	hitWait = 5 * time.Second
	// settledWait is how long what a flush does not wait for may take to leave the bucket.
	settledWait = 10 * time.Second
)

// rig is a mount under a checked workload that is struck down again and again.
type rig struct {
	*mounted
	gate   *gate
	worlds []*world
	seed   uint64
	rnd    *rand.Rand
	round  int

	// fell is the blow itself, beside the death of the process, and heal what makes all ready for the next start. cut says
	// that the blow is a loss of power.
	fell, heal func()
	cut        bool

	blown atomic.Bool // the blow has begun: from here on operations may fail
	mu    sync.Mutex
	life  int   // guarded by mu: how many processes died
	dirty int64 // guarded by mu: bytes that were not in the bucket at the last blow

	recoveries []time.Duration
	blows      int
	workBlows  int            // under the workload
	dirtyBlows int            // of these, with dirty bytes
	hits       map[string]int // by point
	misses     int
	checks     int // comparisons with the bucket alone
}

// seedFrom is the seed of a run: that of CSI_S3_CHAOS_SEED, or a new one.
func seedFrom(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64N(1 << 32)
	if text := os.Getenv("CSI_S3_CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CSI_S3_CHAOS_SEED=%d", seed)
	return seed
}

// newRig makes a mount with a gate before its server. Nothing is mounted yet.
func newRig(t *testing.T, options string) *rig {
	t.Helper()
	m := newMounted(t, options)
	r := &rig{mounted: m, gate: newGate(t, m.server.Endpoint), seed: seedFrom(t), hits: map[string]int{}, fell: func() {}, heal: func() {}}
	r.endpoint = r.gate.url
	// Before the gate goes: an orderly end uploads through it.
	t.Cleanup(func() {
		if r.cmd == nil {
			return
		}
		if !t.Failed() {
			r.stop()
			return
		}
		r.signal(syscall.SIGKILL)
		r.reap()
		r.detach()
	})
	r.rnd = rand.New(rand.NewPCG(r.seed, 0))
	for i := range worlds {
		r.worlds = append(r.worlds, newWorld(m.dir, fmt.Sprintf("w%d", i), func() bool { return r.cut && r.blown.Load() }))
	}
	return r
}

// striker returns the blow to the process that runs now. It may be called in any goroutine; when that process is dead
// already it does nothing.
func (r *rig) striker() func() {
	life := r.life
	return func() {
		dirty := r.status().Dirty
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.life != life || r.blown.Load() {
			return
		}
		r.dirty = dirty
		r.blown.Store(true)
		r.fell()
		r.signal(syscall.SIGKILL)
	}
}

// begin is the first start.
func (r *rig) begin() {
	r.t.Helper()
	r.start()
	for _, w := range r.worlds {
		if err := os.Mkdir(w.root, 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	r.flush()
}

// work lets a worker in each world make files of which some are synced, and then, when aim has returned, do random things
// until the blow; the first one does provoke before. It returns when all workers have ended. Without a blow in time the
// work just ends.
func (r *rig) work(aim func(), provoke func(w *world) error, fire func()) {
	r.t.Helper()
	var running, ready sync.WaitGroup
	aimed, stop := make(chan struct{}), make(chan struct{})
	for i, w := range r.worlds {
		w.rnd = rand.New(rand.NewPCG(r.seed, uint64(r.round)<<8|uint64(i)+1))
		ready.Add(1)
		// Ends with the blow, or with stop; this call waits for it.
		running.Go(func() {
			err := errors.Join(w.newFile(true), w.newFile(false))
			ready.Done()
			<-aimed
			if err == nil && i == 0 {
				err = provoke(w)
			}
			for err == nil {
				select {
				case <-stop:
					return
				default:
				}
				err = w.step()
			}
			if errors.Is(err, errContent) || !r.blown.Load() || !isGone(err) {
				r.t.Errorf("round %d, %s: %v", r.round, w.dir, err)
			}
		})
	}
	ready.Wait()
	aim()
	close(aimed)
	fire()
	if !r.blown.Load() {
		close(stop)
	}
	running.Wait() // while the dead mount is there: below it is another directory
}

// await waits for the blow, or for hitWait.
func (r *rig) await() {
	for end := time.Now().Add(hitWait); !r.blown.Load() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// bury ends what the blow left.
func (r *rig) bury() {
	r.t.Helper()
	for _, w := range r.worlds {
		w.abandon()
	}
	r.mu.Lock()
	r.life++
	r.mu.Unlock()
	r.reap()
	r.detach()
	r.blows++
	r.heal()
	r.blown.Store(false)
}

// recovered starts the mount and compares all worlds.
func (r *rig) recovered() {
	r.t.Helper()
	r.recoveries = append(r.recoveries, r.start())
	r.compare(r.cut)
}

func (r *rig) compare(cut bool) {
	r.t.Helper()
	for _, w := range r.worlds {
		if err := w.compare(cut); err != nil {
			r.t.Fatalf("round %d: %v\nrequests:\n%s", r.round, err, r.gate.history())
		}
	}
}

// own are the keys below .csi-s3/ that a volume may have for good.
var own = []s3.Key{".csi-s3/root", ".csi-s3/usage", ".csi-s3/volume.json", ".csi-s3/lease", ".csi-s3/probe.json"}

// scratch is where probes of the server work. One that a kill broke off leaves small objects there, which one of the next day
// removes.
const scratch = ".csi-s3/probe/"

// checkBucket uploads everything and compares the bucket, and nothing else, with the worlds. Nobody works meanwhile.
func (r *rig) checkBucket() {
	r.t.Helper()
	r.flush()
	r.checks++
	for _, w := range r.worlds {
		w.durable()
	}
	want := map[s3.Key]bool{}
	for _, w := range r.worlds {
		want[s3.Key(w.dir+"/")] = true
		for name, e := range w.names() {
			key := s3.Key(w.dir + "/" + name)
			if e.mode.IsDir() {
				key += "/"
			}
			want[key] = true
			if err := r.checkObject(w, key, e); err != nil {
				r.t.Fatalf("round %d: the bucket, %s: %v", r.round, key, err)
			}
		}
	}
	for _, key := range r.keys() {
		if !want[key] && !slices.Contains(own, key) && !strings.HasPrefix(string(key), scratch) {
			r.t.Fatalf("round %d: the bucket has %q, which nobody made", r.round, key)
		}
	}
	var left []s3.Upload
	for end := time.Now().Add(settledWait); ; time.Sleep(20 * time.Millisecond) {
		var err error
		if left, _, err = r.objects().ListUploads(r.t.Context(), ""); err != nil {
			r.t.Fatal(err)
		}
		left = slices.DeleteFunc(left, func(u s3.Upload) bool { return strings.HasPrefix(string(u.Key), scratch) })
		if len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			r.t.Fatalf("round %d: uploads are left: %v", r.round, left)
		}
	}
}

func (r *rig) keys() (keys []s3.Key) {
	r.t.Helper()
	for in := (s3.ListInput{}); ; {
		page, err := r.objects().List(r.t.Context(), in)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, o := range page.Objects {
			keys = append(keys, o.Key)
		}
		if in.Token = page.Token; in.Token == "" {
			return keys
		}
	}
}

// checkObject compares the object of a name.
func (r *rig) checkObject(w *world, key s3.Key, e entry) error {
	body, info, err := r.objects().Get(r.t.Context(), key, nil, "")
	if err != nil {
		return err
	}
	text, err := io.ReadAll(body)
	if err = errors.Join(err, body.Close()); err != nil {
		return err
	}
	if !e.mode.IsRegular() {
		if len(text) > 0 || e.mode&fs.ModeSymlink != 0 && info.Meta["--symlink-target"] != e.target {
			return fmt.Errorf("%d bytes, metadata %v, is to be %v %q", len(text), info.Meta, e.mode, e.target)
		}
		return nil
	}
	f := w.files[e.file]
	_, err = f.explain(strings.NewReader(string(text)), int64(len(text)), len(f.versions)-1)
	return err
}

// checkEmptyCache ends the mount in order, throws the cache away, and compares what the next mount shows.
func (r *rig) checkEmptyCache() {
	r.t.Helper()
	for _, w := range r.worlds {
		w.abandon()
		w.durable()
	}
	r.stop()
	for _, name := range []string{"mounts"} {
		if err := os.RemoveAll(filepath.Join(r.cache, name)); err != nil {
			r.t.Fatal(err)
		}
	}
	r.start()
	r.compare(false)
	r.checks++
}

// sum is the tally of all worlds.
func (r *rig) sum() (sum tally) {
	for _, w := range r.worlds {
		sum.ops += w.tally.ops
		sum.bytes += w.tally.bytes
		sum.fsyncs += w.tally.fsyncs
		sum.dirs += w.tally.dirs
		sum.lost += w.tally.lost
		sum.mixed += w.tally.mixed
	}
	return sum
}

// report prints the figures and fails for those that prove nothing.
func (r *rig) report() {
	r.t.Helper()
	sum := r.sum()
	slices.Sort(r.recoveries)
	r.t.Logf("%d blows, %d under the workload, %d of these with dirty bytes; %d changes and %d MiB acknowledged, %d fsyncs of files, %d of directories; %d comparisons with the bucket alone",
		r.blows, r.workBlows, r.dirtyBlows, sum.ops, sum.bytes>>20, sum.fsyncs, sum.dirs, r.checks)
	r.t.Logf("%d changes that nothing had synced were lost, %d files had old and new bytes side by side", sum.lost, sum.mixed)
	r.t.Logf("recovery: median %v, worst %v", r.recoveries[len(r.recoveries)/2], r.recoveries[len(r.recoveries)-1])
	var hits []string
	for point, n := range r.hits {
		hits = append(hits, fmt.Sprintf("%s: %d", point, n))
	}
	slices.Sort(hits)
	r.t.Logf("points of failure hit:\n\t%s", strings.Join(hits, "\n\t"))
	if sum.ops == 0 || sum.fsyncs == 0 || r.dirtyBlows*2 < r.workBlows || r.checks == 0 {
		r.t.Error("the suite proved nothing: too little was acknowledged, synced or dirty")
	}
	if r.cut && sum.lost == 0 {
		r.t.Error("the suite proved nothing: no loss of power lost anything")
	}
}

// flushed is csi-s3 flush in a worker.
func (r *rig) flushed() error { return fuse.Flush(r.t.Context(), r.dir, nil) }

// Prologues: what the first world does so that a request of a kind comes soon.
func (r *rig) provoke(kind string, w *world) error {
	switch kind {
	case "CreateUpload", "UploadPart", "CompleteUpload", "ListUploads", "ListParts":
		return errors.Join(w.removeBig(), w.newBig(false))
	case "AbortUpload":
		// Unlinked while the parts are under way, or changed.
		return errors.Join(w.removeBig(), w.newBig(false), pause(), w.removeBig())
	case "UploadPartCopy":
		return errors.Join(w.newBig(false), r.flushed(), w.changeBig(lastPart))
	case "Copy", "Head":
		return errors.Join(w.newFile(false), r.flushed(), w.renameAny(false), w.renameAny(false))
	case "Delete":
		return errors.Join(w.newFile(false), r.flushed(), w.unlinkAny(), w.unlinkAny())
	case "DeleteObjects":
		return errors.Join(w.mkdir(), w.fill(), r.flushed(), w.renameDir(), w.renameDir())
	}
	return nil
}

func pause() error {
	time.Sleep(150 * time.Millisecond)
	return nil
}

// fill puts a few files into each directory.
func (w *world) fill() error {
	for name, e := range w.names() {
		if !e.mode.IsDir() {
			continue
		}
		for range 2 {
			i, f, err := w.create(w.name(name, "f"), 0)
			if err != nil {
				return err
			}
			if err := errors.Join(w.write(i, f, 0, 1000), w.close(i)); err != nil {
				return err
			}
		}
	}
	return nil
}
