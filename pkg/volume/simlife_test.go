package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/vfs"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// drainLimit is how long a volume may take, after everything is well again, until the bucket has all.
const drainLimit = 3 * time.Hour

// errDead: the process does not run any more.
var errDead = errors.New("the process is gone")

// life is a volume with all its processes, from a seed.
type life struct {
	seed    uint64
	rnd     *rand.Rand // of the life as a whole
	bucket  *s3mem.Bucket
	weather *weather
	options config.Mount
	tuning  tuning
	badDisk int // one call of the disk in so many fails, 0: none
	actors  []*actor

	mu     sync.Mutex
	quiet  bool // guarded by mu: nothing goes wrong any more
	failed error
	tally  map[string]int
	hash   uint64
	begun  time.Time
	lines  []string // all that happened
}

func (l *life) healed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.quiet
}

// count, trace and broke need the mutex.
func (l *life) count(what string) { l.tally[what]++ }

func (l *life) trace(format string, args ...any) {
	line := fmt.Sprintf("%v ", time.Since(l.begun)) + fmt.Sprintf(format, args...)
	h := fnv.New64a()
	fmt.Fprintf(h, "%x %s", l.hash, line)
	l.hash = h.Sum64()
	l.lines = append(l.lines, line)
}

// logged enters what the volume logs into the trace.
type logged struct{ life *life }

func (w logged) Write(line []byte) (int, error) {
	w.life.mu.Lock()
	defer w.life.mu.Unlock()
	w.life.trace("%s", bytes.TrimSpace(line))
	return len(line), nil
}

func (l *life) broke(err error) {
	if l.failed == nil {
		l.failed = fmt.Errorf("after %v: %w", time.Since(l.begun), err)
		l.trace("BROKEN: %v", err)
	}
}

func (l *life) broken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed != nil
}

func (l *life) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broke(err)
}

func (l *life) bookOf(key string) *book {
	for _, a := range l.actors {
		if strings.HasPrefix(key, a.name) {
			return a.book
		}
	}
	return nil
}

// process is one run of the volume.
type process struct {
	life   *life
	disk   *diskmem.FS
	core   *core
	ctx    context.Context
	cancel context.CancelFunc

	// All guarded by the life's mutex.
	dead     bool
	powerCut bool        // how it ended
	left     *diskmem.FS // what it left
	calls    int         // of the disk
	requests int
	dieCall  int // the process dies at this call, 0: never
	dieReq   int
	rnd      *rand.Rand // of the crash
}

// die ends a process. The life's mutex is held.
func (p *process) die(why string) {
	if p.dead {
		return
	}
	p.dead = true
	p.life.trace("CRASH at %s, power cut: %v", why, p.powerCut)
	if p.powerCut {
		p.left = p.disk.CrashClone(p.rnd)
		p.life.count("power cut")
		for _, a := range p.life.actors {
			a.book.cut = true
		}
	} else {
		p.left = p.disk.Clone()
		p.life.count("kill")
	}
	p.cancel()
}

func (p *process) requested() {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	if p.requests++; p.requests == p.dieReq {
		p.die("a request")
	}
}

// called decides about one call of the disk.
func (p *process) called(op diskfault.Op) error {
	l := p.life
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.calls++; p.calls == p.dieCall {
		p.die(op.Name + " " + op.Path)
	}
	if p.dead {
		return errDead
	}
	if l.badDisk == 0 || l.quiet || p.core == nil || p.rnd.IntN(l.badDisk) > 0 {
		return nil
	}
	l.count("disk fault")
	l.trace("disk fault in %s %s", op.Name, op.Path)
	err := disk.ErrIO
	if p.rnd.IntN(2) == 0 {
		err = disk.ErrNoSpace
	}
	if op.Name == "WriteAt" && p.rnd.IntN(2) == 0 {
		return &diskfault.Partial{N: p.rnd.IntN(int(op.Len) + 1), Err: err}
	}
	return err
}

func (p *process) gone() bool {
	p.life.mu.Lock()
	defer p.life.mu.Unlock()
	return p.dead
}

// newLife makes a bucket with some objects, and decides what kind of life it will be.
func newLife(seed uint64) *life {
	rnd := rand.New(rand.NewPCG(seed, 1))
	l := &life{
		seed: seed, rnd: rnd, bucket: s3mem.New("bucket"), tally: map[string]int{}, begun: time.Now(),
		options: config.DefaultMount(),
	}
	l.bucket.MinPart = 1 << 10
	if rnd.IntN(3) == 0 {
		l.bucket.Quirks = s3mem.NoCopyConditions()
	}
	l.bucket.OwnTags = rnd.IntN(3) == 0
	l.weather = &weather{seed: seed, calls: map[string]uint64{}, oneIn: []int{0, 3, 5, 8, 15, 40}[rnd.IntN(6)]}
	for at := l.begun; rnd.IntN(2) == 0; {
		at = at.Add(time.Duration(rnd.Int64N(int64(2 * time.Minute))))
		o := outage{from: at, to: at.Add(time.Duration(rnd.Int64N(int64(5 * time.Minute)))), kind: rnd.IntN(outageKinds)}
		l.weather.outages = append(l.weather.outages, o)
		at = o.to
	}
	if rnd.IntN(5) == 0 {
		l.badDisk = []int{20, 60, 200, 600}[rnd.IntN(4)]
	}
	l.options.Settle = []time.Duration{20 * time.Millisecond, time.Second, 10 * time.Second}[rnd.IntN(3)]
	if rnd.IntN(4) == 0 {
		l.options.Fsync = "bucket"
	}
	l.tuning = tuning{
		views:     vfs.NewViews(1 << 20),
		clock:     clock(),
		writeback: writeback.Options{SinglePut: 8 << 10, Part: 4 << 10, MaxCopy: 16 << 10},
	}
	if rnd.IntN(4) == 0 {
		l.tuning.cache = cache.Options{Capacity: 150 << 10}
	}
	for i := range 1 + rnd.IntN(2) {
		l.actors = append(l.actors, newActor(l, string(rune('a'+i)), rnd.Uint64()))
	}
	return l
}

func (l *life) spec(p *process) Spec {
	b := s3fault.New(server{l.bucket, l, p})
	b.Fault = func(op s3fault.Op) s3fault.Action {
		l.mu.Lock()
		defer l.mu.Unlock()
		if p.dead {
			return s3fault.FailBefore(nil)
		}
		if l.quiet {
			return s3fault.Action{}
		}
		return l.weather.fault(op, l.weather.draw("fault of "+op.Name, op.Key), func(what string) {
			l.count(what)
			l.trace("%s of %s %q", what, op.Name, string(op.Key))
		})
	}
	return Spec{ID: "bucket", Bucket: b, Node: "node-1", Options: l.options, Log: slog.New(slog.NewTextHandler(logged{l}, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})), tuning: l.tuning}
}

// process starts on a disk. When it dies before it serves, it is returned without a core.
func (l *life) process(d *diskmem.FS, boot string, mortal bool) *process {
	p := &process{life: l, disk: d, rnd: rand.New(rand.NewPCG(l.seed, l.rnd.Uint64()))}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if mortal {
		// A volume whose disk failed may be good for nothing any more.
		age := time.AfterFunc(time.Duration(l.rnd.Int64N(int64([]time.Duration{10 * time.Second, 5 * time.Minute, time.Hour}[l.rnd.IntN(3)]))), func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			p.die("its time")
		})
		context.AfterFunc(p.ctx, func() { age.Stop() })
		p.powerCut = l.rnd.IntN(2) == 0
		switch l.rnd.IntN(3) {
		case 0:
			p.dieCall = 1 + l.rnd.IntN([]int{30, 300, 1500}[l.rnd.IntN(3)])
		case 1:
			p.dieReq = 1 + l.rnd.IntN([]int{10, 60, 200}[l.rnd.IntN(3)])
		}
	}
	c, err := openOn(diskfault.New(d, p.called), boot, l.spec(p))
	if err != nil {
		if !p.gone() {
			l.fail(fmt.Errorf("open: %w", err))
		}
		return p
	}
	for _, a := range l.actors {
		if err := a.look(p, c); err != nil && !p.gone() {
			l.fail(err)
		}
	}
	c.start(context.Background())
	l.mu.Lock()
	p.core = c
	l.mu.Unlock()
	return p
}

// run lives the life.
func (l *life) run() {
	d := diskmem.New()
	boot := 1
	id := identity{Format: identityFormat, Volume: "bucket", Writer: "0123456789abcdef", Boot: "1"}
	if err := id.store(d); err != nil {
		l.fail(err)
	}
	for crashes := l.rnd.IntN(4); !l.broken(); crashes-- {
		mortal := crashes > 0
		if !mortal {
			l.mu.Lock()
			l.badDisk = 0
			l.mu.Unlock()
		}
		p := l.process(d, fmt.Sprint(boot), mortal)
		if p.core == nil {
			if !p.gone() {
				return
			}
		} else {
			l.work(p)
			if !mortal && !l.broken() {
				l.end(p)
			}
			if !mortal || l.broken() {
				l.over(p)
				return
			}
			l.over(p)
		}
		if p.powerCut {
			boot++
		}
		d = p.left
	}
}

// work lets the actors do things until they have had enough, or the process dies.
func (l *life) work(p *process) {
	var wg sync.WaitGroup
	for _, a := range l.actors {
		n := 3 + l.rnd.IntN(25)
		wg.Go(func() {
			for range n {
				if err := a.step(p); err != nil {
					if !p.gone() && !a.excused(p, err) {
						l.fail(fmt.Errorf("%s: %w", a.book.step, err))
					}
					return
				}
			}
		})
	}
	wg.Wait()
	for _, a := range l.actors {
		a.letGo(p)
	}
	rest := time.Duration(l.rnd.Int64N(int64(time.Minute)))
	if p.dieCall == 0 && p.dieReq == 0 {
		rest = time.Duration(l.rnd.Int64N(int64(10 * time.Second)))
	}
	_ = wait(p.ctx, rest)
}

// over ends what a process still does.
func (l *life) over(p *process) {
	l.mu.Lock()
	if p.left == nil {
		p.die("the end of its work")
	}
	l.mu.Unlock()
	abandoned(p.core)
}

// end makes all well and compares the bucket with what was written.
func (l *life) end(p *process) {
	l.mu.Lock()
	l.quiet = true
	l.trace("HEALED")
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	stuck := func(err error) {
		stacks := make([]byte, 1<<20)
		l.fail(fmt.Errorf("does not settle: %w; %+v\n%s", err, p.core.executor.Status(), stacks[:runtime.Stack(stacks, true)]))
	}
	if err := p.core.drain(ctx); err != nil {
		stuck(err)
		return
	}
	for {
		s := p.core.executor.Status()
		if s.DirtyBytes == 0 && s.DirtyFiles == 0 && s.Queue == 0 {
			break
		}
		if err := wait(ctx, 10*time.Millisecond); err != nil {
			stuck(err)
			return
		}
	}
	// Uploads that were broken off are given up now and then.
	if err := p.core.drain(ctx); err != nil {
		stuck(err)
		return
	}
	// The sweeper may have an abort under way.
	for range 60 {
		l.mu.Lock()
		open, _, err := l.bucket.ListUploads(ctx, "")
		l.mu.Unlock()
		if err != nil || len(open) == 0 || wait(ctx, time.Second) != nil {
			break
		}
	}
	l.compare()
	if err := p.core.close(ctx); err != nil {
		l.fail(fmt.Errorf("close: %w", err))
	}
	lease, _, err := volmeta.ReadLease(ctx, l.bucket, "")
	l.mu.Lock()
	never := errors.Is(err, s3.ErrNotExist) && l.tally["s3 Put"] == 0 // a life that had no time to get it
	l.mu.Unlock()
	if !never && (err != nil || lease.State != volmeta.LeaseReleased) {
		l.fail(fmt.Errorf("in the end the lease is not given back: %+v, %w", lease, err))
	}
	l.compare()
}

func (l *life) compare() {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := map[*book]map[s3.Key][]byte{}
	page, err := l.bucket.List(context.Background(), s3.ListInput{})
	if err != nil || page.Token != "" {
		l.broke(fmt.Errorf("list, one page: %w", err))
		return
	}
	for _, o := range page.Objects {
		if o.Key == volmeta.LeaseKey("") {
			continue
		}
		if strings.HasPrefix(string(o.Key), ".csi-s3/") {
			l.broke(fmt.Errorf("in the end %q is left", string(o.Key)))
			continue
		}
		content, err := stored(l.bucket, o.Key)
		if err != nil {
			l.broke(err)
		}
		l.trace("END %q %d bytes", string(o.Key), len(content))
		b := l.bookOf(string(o.Key))
		if found[b] == nil {
			found[b] = map[s3.Key][]byte{}
		}
		found[b][o.Key] = content
	}
	for _, a := range l.actors {
		if err := a.book.settled(found[a.book]); err != nil {
			l.broke(err)
		}
	}
	open, _, err := l.bucket.ListUploads(context.Background(), "")
	if err != nil || len(open) > 0 {
		l.broke(fmt.Errorf("in the end uploads are open: %v, %w", open, err))
	}
}
