package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
)

const (
	// leaseTTL is for how long others must have seen a lease unchanged before they may take it over.
	leaseTTL = time.Minute
	// leaseMargin is how long before the end of its lease a holder sends nothing more: a server may apply as late what it
	// was sent in time.
	leaseMargin = 15 * time.Second
	// leaseRenew is how often a lease is renewed while something is dirty.
	leaseRenew = 15 * time.Second
	// leaseCalm is for how long nothing was changed or sent before a lease that says dirty is made to say clean. A database that
	// syncs every millisecond is never calm for so long: its lease says dirty all the time, and no sync waits or pays for a
	// record, which one that follows each upload at once would ask of it, twice. Whoever saves a file once a minute pays
	// for two records, as without it, and leaves a dirty lease for these seconds only when its node dies. The worst is a change
	// a little less often than this: two records each time, beside at least one request for the change itself.
	leaseCalm = 2 * time.Second
	// lateWrites is how many earlier writes of ours, the answers of which were lost, may come between a look at the record and
	// a write of it.
	lateWrites = 3
	// leaseTry bounds one request for the lease.
	leaseTry = 10 * time.Second
	// leaseWait is how long a mount waits for the clean lease of another node, unless Spec.LeaseWait says otherwise.
	leaseWait = 10 * time.Second
	// minPause and maxPause are between attempts that fail.
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
	// leasePoll is how often it looks meanwhile.
	leasePoll = time.Second
	// admitWait is how long a change waits for a lease that had lapsed, and an fsync for one that says clean.
	admitWait = 5 * time.Second
)

// Errors of the lease.
var (
	// ErrHeld: another node has changes of the volume that are not in the bucket. It does not end by itself.
	ErrHeld = errors.New("another node holds unsaved changes of the volume")
	// ErrLeased: another node may write to the volume still, or did a moment ago. Retrying is right.
	ErrLeased = errors.New("another node used the volume a moment ago")
	// ErrGivenUp: the cache has changes that the bucket does not have, and another node wrote to the volume since.
	ErrGivenUp = errors.New("unsaved changes on this node were given up")

	errLeaseLost = errors.New("the lease of the volume is lost")
	errUnleased  = errors.New("the lease of the volume is not held")
)

// lease is the right of one cache directory to write to a volume that one node writes to, and the fence before all that
// it sends. Time is that of a clock that never jumps; no clock of another machine counts.
//
//   - Nothing that changes the bucket is sent unless the lease in the bucket is ours and says dirty, and not later than
//     leaseTTL-leaseMargin after the request was sent that last made it so. What runs then is broken off.
//   - The lease is renewed while there are changes that the bucket does not have, and says clean once there are none for
//     leaseCalm, or none after a drain. Then it lapses, and others may take it over; what is changed after that waits for it
//     to be acquired again.
//   - One write of the record comes after the other, each under the condition that the record is the one before it. So no
//     clean one that is late replaces a dirty one. An fsync returns once the record that its changes are in says dirty.
//   - Once the lease in the bucket is another's it is lost for good.
type lease struct {
	volume, node string
	cache, dir   string // identity and path of the cache directory
	bucket       s3.Bucket
	prefix       s3.Key
	afterTTL     bool // a dirty lease of another may be taken over, too
	log          *slog.Logger
	now          func() time.Duration
	sightings    *sightings
	dirty        func() (changes int, bytes int64) // that the bucket does not have
	remember     func() error                      // makes it durable that the cache has held the lease
	forfeit      func(error)                       // hears that the lease is lost
	unguarded    func(error)                       // hears that changes are taken that another node may overtake

	ending <-chan struct{} // closed when the mount begins to end
	noted  bool            // remember has succeeded; of the attempts, which come one after the other
	stale  bool            // the cache had changes when it was opened, and it has held the lease before
	stop   context.CancelFunc
	kicked chan struct{} // room for one
	done   chan struct{} // closed when the loop has ended; nil: there was none

	mu      sync.Mutex
	serving bool                               // guarded by mu: the loop runs, or did
	tried   chan struct{}                      // guarded by mu: closed when an attempt is over
	epoch   uint64                             // guarded by mu: of the last attempt
	serial  uint64                             // guarded by mu: of the last attempt
	tag     s3.ETag                            // guarded by mu: of the record in the bucket; empty: not known
	held    bool                               // guarded by mu: it was ours
	marked  bool                               // guarded by mu: it says dirty, and nothing is under way that makes it say clean
	says    volmeta.LeaseState                 // guarded by mu: the record, when that was last known
	until   time.Duration                      // guarded by mu: something may be sent
	renewAt time.Duration                      // guarded by mu
	retryAt time.Duration                      // guarded by mu
	wanted  bool                               // guarded by mu: it is to say dirty, and did not when that was found
	stirs   uint64                             // guarded by mu: counts what was changed or synced
	stirred time.Duration                      // guarded by mu: when something was last changed, synced or sent
	failed  int                                // guarded by mu: attempts in a row
	vain    bool                               // guarded by mu: the last of these was to make it say dirty, and got no answer to that
	err     error                              // guarded by mu: of the last attempt
	lost    error                              // guarded by mu
	gone    bool                               // guarded by mu: forfeit has returned
	closed  bool                               // guarded by mu
	warned  bool                               // guarded by mu: unguarded was called since the lease was last held
	request uint64                             // guarded by mu: number of the last request
	running map[uint64]context.CancelCauseFunc // guarded by mu
	sending int                                // guarded by mu: of those that run, how many send changes
	lapse   *time.Timer                        // guarded by mu: breaks off what runs; nil before the lease was held
}

// init makes a lease of which the fields above are set.
func (l *lease) init() {
	l.kicked, l.tried = make(chan struct{}, 1), make(chan struct{})
	l.running = map[uint64]context.CancelCauseFunc{}
	if l.now == nil {
		l.now = sinceBoot
	}
	if l.sightings == nil {
		l.sightings = &sightings{}
	}
}

// sinceBoot is a clock that nobody sets and that goes on while the machine sleeps.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // every kernel has it
	}
	return time.Duration(t.Nano())
}

// acquire takes the lease before the volume is mounted. It waits at most patience for a clean one of another node. When
// the server is away and the cache has held the lease before, it is success: the fence stays closed until the loop has
// the lease. ErrHeld, ErrLeased, ErrGivenUp, or what the bucket says.
func (l *lease) acquire(ctx context.Context, patience time.Duration, again bool) error {
	if patience == 0 {
		patience = leaseWait
	}
	end := l.now() + patience
	for told := false; ; {
		err := l.attempt(ctx)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, s3.ErrPrecondition) && l.now() < end:
			// Who was faster is seen now.
			if serr := sleep(ctx, minPause); serr != nil {
				return errors.Join(err, serr)
			}
			continue
		case errors.Is(err, s3.ErrUnavailable) && again && ctx.Err() == nil:
			l.log.Warn("the lease of the volume cannot be had yet: nothing is uploaded until then", "volume", l.volume, "err", err)
			return nil
		case !errors.Is(err, ErrLeased) || l.now() >= end:
			return err
		}
		if !told {
			told = true
			l.log.Info("waiting for the lease of the volume", "volume", l.volume, "err", err)
		}
		if serr := sleep(ctx, leasePoll); serr != nil {
			return errors.Join(err, serr)
		}
	}
}

// start begins to keep the lease. It ends with close; from the end of ctx on nobody waits for it aside.
func (l *lease) start(ctx context.Context) {
	l.ending = ctx.Done()
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx)) // it is kept until close, since what is sent until then needs it
	l.stop, l.done = stop, make(chan struct{})
	n, _ := l.dirty()
	l.mu.Lock()
	l.serving, l.wanted = true, n > 0
	l.mu.Unlock()
	go l.loop(ctx)
}

// close ends the keeping and gives the lease back if nothing is dirty; otherwise the lease says dirty, or a person hears that
// it may not. Nothing may be sent any more. With an ended ctx the server is not told.
func (l *lease) close(ctx context.Context) {
	if l.done != nil {
		l.stop()
		<-l.done
	}
	l.mu.Lock()
	if l.lapse != nil {
		l.lapse.Stop()
	}
	l.closed = true
	marked, ours, warned := l.marked, l.held && l.lost == nil, l.warned
	l.beatLocked()
	l.mu.Unlock()
	n, _ := l.dirty()
	if !ours || n > 0 && marked {
		return
	}
	state := volmeta.LeaseReleased
	if n > 0 {
		state = volmeta.LeaseDirty // the attempt that was to say so was cut off above, failed, or had not begun
	}
	err := ctx.Err()
	if err == nil {
		err = l.write(ctx, state)
	}
	switch {
	case err == nil, errors.Is(err, errLeaseLost):
	case n == 0:
		l.log.Warn("the lease of the volume was not given back: the next node waits until it lapses", "volume", l.volume, "err", err)
	case !warned:
		l.unguarded(err)
	}
}

func (l *lease) loop(ctx context.Context) {
	defer close(l.done)
	for ctx.Err() == nil {
		wait, due := l.due()
		if due && wait <= 0 {
			_ = l.attempt(ctx) // noted, and repeated
			continue
		}
		if rest := l.rest(); !due || rest < wait {
			wait = rest
		}
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-l.kicked:
		case <-timer.C:
			l.look()
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// rest is how long the loop sleeps before it looks.
func (l *lease) rest() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.marked {
		return leaseRenew
	}
	if rest := l.stirred + leaseCalm - l.now(); rest > 0 {
		return rest
	}
	return leaseCalm
}

// look finds what nobody tells the lease: that nothing is left to send, or changes that got into the journal so long after
// admit that the lease says clean again.
func (l *lease) look() {
	l.mu.Lock()
	busy := l.marked && !l.calmLocked()
	l.mu.Unlock()
	if busy {
		return
	}
	n, _ := l.dirty()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case n > 0 && !l.marked:
		l.wanted = true
	case n == 0 && l.marked && l.calmLocked():
		l.renewAt = l.now()
	}
}

// calmLocked says that nothing is sent, and nothing was changed for a while.
func (l *lease) calmLocked() bool { return l.sending == 0 && l.now()-l.stirred >= leaseCalm }

// stirLocked notes that something was changed or synced.
func (l *lease) stirLocked() {
	l.stirs++
	l.stirred = l.now()
}

// drained is told that a drain has found all in the bucket. If that is so and nothing is changed meanwhile, the lease says it
// when drained returns, unless its write fails, which is noted and repeated, or takes too long.
func (l *lease) drained(ctx context.Context) {
	timer := time.NewTimer(admitWait)
	defer timer.Stop()
	l.mu.Lock()
	stirs := l.stirs
	l.mu.Unlock()
	for {
		n, _ := l.dirty()
		l.mu.Lock()
		// What was changed since may be in no look yet, also not in that of an attempt under way.
		if n > 0 || l.stirs != stirs || l.sending > 0 || l.says != volmeta.LeaseDirty || l.failed > 0 || l.lost != nil || l.closed || !l.serving {
			l.mu.Unlock()
			return
		}
		if l.marked {
			l.stirred, l.renewAt = l.now()-leaseCalm, l.now()
		}
		tried := l.tried
		l.mu.Unlock()
		l.kick()
		select {
		case <-tried:
		case <-timer.C:
			l.log.Warn("the lease of the volume does not say yet that nothing is left to send", "volume", l.volume)
			return
		case <-ctx.Done():
			return
		}
	}
}

// due says in what time the next attempt is, if one is to come.
func (l *lease) due() (wait time.Duration, due bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.lost != nil:
		return 0, false
	case l.failed > 0 || !l.held || l.wanted && !l.openLocked():
		return l.retryAt - l.now(), true
	case l.marked:
		return l.renewAt - l.now(), true
	}
	return 0, false
}

// attempt makes the lease in the bucket say what is the case, and notes how that ended.
func (l *lease) attempt(ctx context.Context) error {
	l.mu.Lock()
	stirs := l.stirs
	l.mu.Unlock()
	n, _ := l.dirty()
	l.mu.Lock()
	state := volmeta.LeaseClean
	// What was changed or synced since the look may not be in it, however long ago that was by now.
	if n > 0 || l.sending > 0 || l.wanted || l.marked && (!l.calmLocked() || l.stirs != stirs) {
		state = volmeta.LeaseDirty
	}
	l.wanted = false
	if state == volmeta.LeaseClean {
		l.marked = false // from here on no change is sent, and no fsync acknowledged
	}
	l.mu.Unlock()
	err := l.write(ctx, state)
	if err == nil && !l.noted {
		// Without the note a later start could neither go on while the server is away nor see that another node followed.
		if err = l.remember(); err != nil {
			err = fmt.Errorf("cannot note in the cache that it has held the lease of the volume: %w", err)
		}
		l.noted = err == nil
	}
	l.note(ctx, err, state)
	return err
}

// note takes the end of an attempt up that was to make the lease say state.
func (l *lease) note(ctx context.Context, err error, state volmeta.LeaseState) {
	l.mu.Lock()
	l.err = err
	// One that found the record changed knows the server to answer: the next finds out who it was.
	l.vain = err != nil && state == volmeta.LeaseDirty && !errors.Is(err, s3.ErrPrecondition)
	if err == nil {
		l.failed = 0
		l.beatLocked()
		l.mu.Unlock()
		return
	}
	l.wanted = l.wanted || state == volmeta.LeaseDirty
	l.retryAt = l.now() + min(maxPause, minPause<<min(l.failed, 10)) + rand.N(minPause)
	if l.failed++; l.failed == 1 && ctx.Err() == nil && l.serving {
		l.log.Warn("the lease of the volume cannot be had now: nothing is uploaded until then", "volume", l.volume, "err", err)
	}
	// A mount that began without the server, and finds the volume in other hands, stops as one that lost the lease.
	lost := l.lost == nil && (errors.Is(err, errLeaseLost) || l.serving && refusal(err))
	if lost {
		l.lost = err
		l.breakLocked()
		l.mu.Unlock()
		l.forfeit(err) // before anybody who waits hears of it
		l.mu.Lock()
		l.gone = true
	}
	l.beatLocked()
	l.mu.Unlock()
}

// refusal says that the volume is in other hands.
func refusal(err error) bool {
	return errors.Is(err, ErrHeld) || errors.Is(err, ErrLeased) || errors.Is(err, ErrGivenUp)
}

func (l *lease) beatLocked() {
	close(l.tried)
	l.tried = make(chan struct{})
}

// write makes the lease in the bucket say state. Who knows what is there, and has just begun, does not ask first.
func (l *lease) write(ctx context.Context, state volmeta.LeaseState) error {
	began := l.now()
	_, bytes := l.dirty()
	l.mu.Lock()
	next := volmeta.Lease{
		Epoch: l.epoch, Holder: l.node, Cache: l.cache, State: state, DirtyBytes: bytes, TTLSeconds: int(leaseTTL / time.Second), Renewed: time.Now(),
	}
	tag := l.tag
	sure := tag != "" && l.held && !l.marked && began < l.until
	l.mu.Unlock()
	if !sure {
		was, found, err := l.read(ctx)
		if err == nil {
			next.Epoch, err = l.follow(was, found != "")
		}
		if err != nil {
			return err
		}
		if found == "" && state == volmeta.LeaseReleased {
			return nil // the volume is gone
		}
		tag, began = found, l.now()
	}
	l.mu.Lock()
	l.serial++
	next.Serial, l.epoch = l.serial, next.Epoch
	l.mu.Unlock()
	written, err := l.put(ctx, next, tag)
	for late := 0; err != nil; late++ {
		// It may have been applied all the same.
		was, found, rerr := l.read(ctx)
		if rerr != nil {
			break
		}
		if found != "" && was.Same(next) {
			written, err = found, nil
			break
		}
		if found == tag {
			break
		}
		if found == "" || was.Cache != next.Cache || was.Epoch != next.Epoch || late == lateWrites {
			err = fmt.Errorf("the lease was changed just now: %w: %w", s3.ErrPrecondition, err)
			break
		}
		tag, began = found, l.now() // it is an earlier one of ours
		written, err = l.put(ctx, next, tag)
	}
	l.took(next, written, began, err)
	return err
}

// took notes what a write of the record did.
func (l *lease) took(r volmeta.Lease, tag s3.ETag, began time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tag = tag
	if err != nil {
		l.tag = ""
		if errors.Is(err, s3.ErrPrecondition) || errors.Is(err, s3.ErrNotExist) {
			l.until = 0 // somebody else has written it
			l.breakLocked()
		}
		return
	}
	l.held, l.warned, l.says, l.marked = true, false, r.State, r.State == volmeta.LeaseDirty
	l.wanted = l.wanted && !l.marked
	l.until, l.renewAt = began+leaseTTL-leaseMargin, began+leaseRenew
	if l.lapse == nil {
		l.lapse = time.AfterFunc(l.until-l.now(), l.lapsed)
	} else {
		l.lapse.Reset(l.until - l.now())
	}
	l.sightings.forget(l.volume)
}

func (l *lease) put(ctx context.Context, r volmeta.Lease, tag s3.ETag) (s3.ETag, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTry)
	defer cancel()
	return volmeta.WriteLease(ctx, l.bucket, l.prefix, r, tag)
}

// read returns the record, with an empty tag when there is none.
func (l *lease) read(ctx context.Context) (volmeta.Lease, s3.ETag, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTry)
	defer cancel()
	r, tag, err := volmeta.ReadLease(ctx, l.bucket, l.prefix)
	if errors.Is(err, s3.ErrNotExist) {
		return volmeta.Lease{}, "", nil
	}
	return r, tag, err
}

// follow returns the epoch in which the record may be replaced by one of ours, or why it may not.
func (l *lease) follow(r volmeta.Lease, exists bool) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch ours := r.Cache == l.cache; {
	case !exists:
		return l.epoch + 1, nil
	case ours && (r.Epoch == l.epoch && l.epoch > 0):
		return r.Epoch, nil
	case ours && !l.held:
		return r.Epoch + 1, nil // of an earlier process
	case l.held:
		return 0, fmt.Errorf("%w: %s", errLeaseLost, l.taken(r))
	case l.stale:
		return 0, fmt.Errorf("%w: %s; what is in the cache can be saved with 'csi-s3 recover %s --to DIRECTORY --discard %s', then the volume can be mounted here again",
			ErrGivenUp, l.taken(r), l.dir, l.volume)
	case r.State == volmeta.LeaseReleased:
		return r.Epoch + 1, nil
	case r.State == volmeta.LeaseDirty && !l.afterTTL:
		return 0, fmt.Errorf("%w: node %s had %s of it when it last said so (lease epoch %d), and uploads them when it is back; 'csi-s3 lease s3://%s --break' gives them up for good",
			ErrHeld, r.Holder, config.FormatSize(r.DirtyBytes), r.Epoch, l.volume)
	}
	if left := r.TTL() - l.sightings.age(l.volume, r, l.now()); left > 0 {
		return 0, fmt.Errorf("%w: %s, lease epoch %d; its lease lapses in %v unless it is renewed", ErrLeased, holder(r), r.Epoch, left.Round(time.Second))
	}
	return r.Epoch + 1, nil
}

func (l *lease) taken(r volmeta.Lease) string {
	if r.Holder == "" {
		return fmt.Sprintf("somebody gave up what this node had by 'csi-s3 lease --break' (epoch %d)", r.Epoch)
	}
	return fmt.Sprintf("node %s took the volume over (epoch %d)", r.Holder, r.Epoch)
}

func holder(r volmeta.Lease) string {
	if r.Holder == "" {
		return "a lease was broken"
	}
	return "node " + r.Holder
}

func (l *lease) kick() {
	select {
	case l.kicked <- struct{}{}:
	default:
	}
}

// openLocked says that something may be sent now.
func (l *lease) openLocked() bool { return l.marked && l.now() < l.until }

// state is for Status.
func (l *lease) state() (epoch uint64, state string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.lost != nil:
		return l.epoch, "lost"
	case !l.held || l.failed > 0:
		return l.epoch, "waiting"
	case l.marked:
		return l.epoch, string(volmeta.LeaseDirty)
	}
	return l.epoch, string(volmeta.LeaseClean)
}

// sightings knows for how long this process has seen the leases of others unchanged.
type sightings struct {
	mu   sync.Mutex
	seen map[string]sighting // guarded by mu: by volume
}

type sighting struct {
	lease volmeta.Lease
	since time.Duration
}

// age is how long ago the lease of a volume was first seen as it is.
func (s *sightings) age(volume string, r volmeta.Lease, now time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = map[string]sighting{}
	}
	x, ok := s.seen[volume]
	if !ok || !x.lease.Same(r) {
		x = sighting{r, now}
		s.seen[volume] = x
	}
	return now - x.since
}

// forget drops what is not needed any more.
func (s *sightings) forget(volume string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.seen, volume)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
