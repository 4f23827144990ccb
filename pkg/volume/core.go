package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/fetch"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3probe"
	"github.com/csi-s3/csi-s3/pkg/vfs"
	"github.com/csi-s3/csi-s3/pkg/volmeta"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

const (
	// tendEvery is how often bytes that nothing needs are freed and the journal is looked at. What was not synced by
	// anybody survives a power cut after about as long.
	tendEvery = 5 * time.Second
	// maxAge is how long a file that is written again and again keeps its changes from the bucket.
	maxAge = 30 * time.Second
)

// views is what the process remembers of all buckets.
var views = sync.OnceValue(func() *vfs.Views { return vfs.NewViews(0) })

// tuning makes a volume small enough for a simulation; its zero value is what is mounted.
type tuning struct {
	views     *vfs.Views // nil: those of the process
	cache     cache.Options
	writeback writeback.Options
	clock     func() time.Duration // of the lease; nil: sinceBoot
}

// core is a volume without its mount: everything between the kernel's requests and the bucket.
type core struct {
	id       string
	disk     disk.FS
	owned    []io.Closer // in order
	journal  *journal.Journal
	store    *cache.Store
	tree     *namespace.Tree
	fetcher  *fetch.Fetcher
	executor *writeback.Executor
	remote   *vfs.Remote
	fs       *vfs.FS
	usage    *vfs.Usage
	policy   vfs.Policy
	bucket   s3.Bucket
	server   string // URL of the endpoint, or ""
	prefix   s3.Key
	log      *slog.Logger
	lost     map[cache.ID]s3.Key // changes that the last loss of power made unusable, and the keys that their files had
	health   *health
	identity identity
	lease    *lease               // nil: the volume needs none
	incident func(Reason, string) // nil: nobody listens

	conditions *s3probe.Guard // the bucket, too
	asked      s3.Bucket      // the bucket without it, for what the server supports

	sick        atomic.Pointer[error] // why the journal takes no more changes
	conflicts   atomic.Int64          // files for whose names there were others' objects
	damages     atomic.Int64          // blocks of the cache that its disk has changed
	quarantined int                   // files in the cache's quarantine

	stop context.CancelFunc // of the background work
	wg   sync.WaitGroup
}

// open opens the volume's cache directory and recovers what a crash left in it. The caller closes the core.
func open(spec Spec) (*core, error) {
	if err := os.MkdirAll(spec.CacheDir, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCacheDir, err)
	}
	fsys, err := disk.OpenOS(spec.CacheDir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCacheDir, err)
	}
	boot, err := bootID()
	if err != nil {
		return nil, errors.Join(err, fsys.Close())
	}
	c, err := openOn(fsys, boot, spec)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the cache in %s: %w", spec.CacheDir, err), fsys.Close())
	}
	c.owned = append(c.owned, fsys)
	return c, nil
}

// openOn opens the volume on a disk. boot names the running boot of the node: the page cache of another one is gone.
func openOn(fsys disk.FS, boot string, spec Spec) (*core, error) {
	lock, err := fsys.Lock(lockFile)
	if errors.Is(err, disk.ErrLocked) {
		return nil, fmt.Errorf("%w is in use: the volume is mounted already: %w", ErrCacheDir, err)
	}
	if err != nil {
		return nil, err
	}
	id, err := loadIdentity(fsys, spec.ID, boot)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	c := assemble(fsys, id, spec)
	c.owned = []io.Closer{lock}
	if err := c.recover(boot); err != nil {
		err = errors.Join(err, c.store.Close())
		if c.journal != nil {
			err = errors.Join(err, c.journal.Close())
		}
		return nil, errors.Join(err, lock.Close())
	}
	if c.lease != nil {
		c.lease.stale = id.Leased && slices.ContainsFunc(c.tree.Unsaved(), namespace.Unsaved.Due)
	}
	return c, nil
}

// assemble wires the parts; nothing runs yet.
func assemble(fsys disk.FS, id identity, spec Spec) *core {
	o := spec.Options
	policy := vfs.Policy{
		Access: vfs.Access(o.Access), FsyncBucket: o.Fsync == "bucket", Exclusive: o.Exclusive, Immutable: o.Immutable,
		ReadOnly: o.ReadOnly, Capacity: o.Size, IOTimeout: o.IOTimeout,
	}
	c := &core{
		id: spec.ID, disk: fsys, policy: policy, usage: &vfs.Usage{}, server: spec.Server, prefix: spec.Prefix, log: spec.Log,
		lost: map[cache.ID]s3.Key{}, health: &health{now: time.Now}, identity: id, incident: spec.Incident, stop: func() {},
	}
	c.asked = watched{spec.Bucket, c.health}
	c.conditions = s3probe.NewGuard(c.asked)
	c.bucket = c.conditions
	var admit, announce func(context.Context) error
	var drained func(context.Context)
	sent := c.bucket
	if policy.Access != vfs.ReadWriteMany && policy.Access != vfs.ReadOnlyMany && !policy.ReadOnly {
		c.lease = c.newLease(spec)
		admit, announce, drained = c.lease.admit, c.lease.announce, c.lease.drained
		sent = fenced{Bucket: c.bucket, lease: c.lease}
		c.asked = fenced{Bucket: c.asked, lease: c.lease, aside: true}
	}
	dirMode := uint32(o.DirMode.Perm())
	if o.DirMode&os.ModeSetgid != 0 {
		dirMode |= syscall.S_ISGID
	}
	remembered := spec.tuning.views
	if remembered == nil {
		remembered = views()
	}
	c.remote = vfs.NewRemote(c.bucket, remembered, policy.TTL())
	bytes := spec.tuning.cache
	bytes.Damaged, bytes.Budget = c.damaged, spec.Budget
	c.store = cache.New(fsys, bytes)
	c.tree = namespace.New(namespace.Options{
		Prefix: spec.Prefix, Uid: o.Uid, Gid: o.Gid, FileMode: uint32(o.FileMode.Perm()), DirMode: dirMode,
		Overwrite: o.Conflict == "overwrite", WriterID: id.Writer, Settle: o.Settle, MaxAge: max(maxAge, o.Settle),
		Settled: c.remote.Settled,
		Gone:    func(ino inode.Ino) { c.fs.Gone(ino) },
	})
	c.fetcher = fetch.New(c.bucket, fetch.Options{})
	w := spec.tuning.writeback
	w.Shared, w.Log, w.Patience = policy.Access == vfs.ReadWriteMany, spec.Log, policy.IOTimeout
	w.Conflict, w.Aside = c.conflict, c.aside
	c.executor = writeback.New(c.tree, c.store, c.fetcher, sent, w)
	c.fs = vfs.New(vfs.Options{
		Tree: c.tree, Store: c.store, Fetcher: c.fetcher, Executor: c.executor, Remote: c.remote,
		Policy: policy, Admit: admit, Announce: announce, Drained: drained, Usage: c.usage, Log: spec.Log,
	})
	return c
}

// newLease makes the lease of the volume; it is not held yet.
func (c *core) newLease(spec Spec) *lease {
	l := &lease{
		volume: c.id, node: spec.Node, cache: c.identity.Writer, dir: spec.CacheDir, bucket: c.bucket, prefix: c.prefix, log: c.log,
		afterTTL: spec.Options.Takeover == "after-ttl", now: spec.tuning.clock, sightings: spec.sightings,
		dirty: func() (int, int64) {
			s := c.executor.Status()
			if s.Queue > 0 && !c.tree.AnyUnsaved() {
				// What a recovery found waits for a look at it, though nothing may be to do. So does what was removed and is open.
				s.Queue = 0
			}
			return s.Queue, s.DirtyBytes
		},
		remember: func() error {
			if c.identity.Leased {
				return nil
			}
			id := c.identity
			id.Leased = true
			if err := id.store(c.disk); err != nil {
				return err
			}
			c.identity = id
			return nil
		},
		forfeit: c.forfeit, unguarded: c.unguarded,
	}
	l.init()
	return l
}

// forfeit hears that the volume is another node's now: nothing of this cache may go to the bucket any more.
func (c *core) forfeit(why error) {
	c.executor.Halt(why)
	w := c.executor.Status()
	c.log.Error("the volume takes no more changes and uploads nothing more", "volume", c.id, "changes", w.Queue, "bytes", w.DirtyBytes, "err", why)
	if w.Queue == 0 {
		c.tell(ReasonLeaseLost, "%v: the mount on this node takes no more changes; the bucket has all that was made here", why)
		return
	}
	c.tell(ReasonLeaseLost, "%v: the mount on this node takes no more changes, and %d changes with %d bytes stay in its cache; stop it and save them with 'csi-s3 recover %s --to DIRECTORY'",
		why, w.Queue, w.DirtyBytes, c.lease.dir)
}

// unguarded hears that changes are taken though the lease in the bucket does not say so, and not for want of time.
func (c *core) unguarded(why error) {
	c.log.Warn("changes are taken while the lease of the volume cannot be had: a node that reaches the bucket may take the volume over without them",
		"volume", c.id, "err", why)
	c.tell(ReasonUnguarded, "the bucket could not be told that this node has changes again: they are kept here, but a node that does reach it may take the volume over without them, and then they stay in the cache %s for 'csi-s3 recover'", c.lease.dir)
}

// conflict hears that somebody else's object took a file's name.
func (c *core) conflict(ino inode.Ino, kept string) {
	c.log.Warn("another client changed an object that was changed here too; ours is kept beside it",
		"volume", c.id, "inode", uint64(ino), "kept", kept)
	c.conflicts.Add(1)
	c.tell(ReasonConflict, "another client changed an object that was changed here too; both are kept, ours as %q in the same directory", kept)
	c.fs.Conflict(ino, kept)
}

// aside hears that somebody else's object was put aside for one of ours.
func (c *core) aside(key, kept s3.Key) {
	c.log.Warn("another client made an object where a directory was moved to; it is kept beside it",
		"volume", c.id, "key", string(key), "kept", string(kept))
	c.conflicts.Add(1)
	c.tell(ReasonConflict, "another client made an object where a directory was moved to; both are kept, theirs as %q", strings.TrimPrefix(string(kept), string(c.prefix)))
}

// damaged hears that the cache's disk gives back other bytes than it was given.
func (c *core) damaged(id cache.ID, off, end int64, dirty bool) {
	c.damages.Add(1)
	if !dirty {
		c.log.Error("the cache's disk has changed bytes that the bucket has; they are fetched again",
			"volume", c.id, "inode", uint64(id), "offset", off, "bytes", end-off)
		return
	}
	c.log.Error("the cache's disk has changed bytes that only it had; the file is not uploaded any more",
		"volume", c.id, "inode", uint64(id), "offset", off, "bytes", end-off)
	c.tell(ReasonCacheFailed, "the cache's disk on the node has changed bytes that were not in the bucket yet: inode %d at %d is lost, and the file is not uploaded any more", uint64(id), off)
}

// recover replays the journal and takes up what it holds.
func (c *core) recover(boot string) (err error) {
	powerCut := c.identity.Boot != boot
	c.journal, err = journal.Open(c.disk, journalDir, journal.Options{}, c.replay)
	if err != nil {
		return err
	}
	found, err := c.store.Recover(c.journal, powerCut)
	if err != nil {
		return err
	}
	if err := c.tree.Recover(c.journal); err != nil {
		return err
	}
	c.executor.Recover(c.journal)
	for _, d := range found.Dirty {
		if c.tree.Recovered(inode.Ino(d.ID), d.Size, d.Mtime) {
			continue
		}
		// The file was removed for good, or its upload is committed: the tree's record of it was the later one.
		if err := c.store.Remove(d.ID); err != nil {
			return err
		}
	}
	for _, lost := range found.Lost {
		name := c.tree.Lost(inode.Ino(lost))
		c.lost[lost] = s3.Key(name)
		c.log.Warn("changes that no fsync had covered did not survive the loss of power; what is left of them is in the cache's directory quarantine",
			"volume", c.id, "key", name, "file", fmt.Sprintf("%x", uint64(lost)))
	}
	if err := c.store.Forget(found.Lost); err != nil {
		return err
	}
	kept, err := c.disk.ReadDir(quarantineDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c.quarantined = len(kept)
	c.tellLost()
	if n := len(found.Dirty); n > 0 {
		c.log.Info("files with changes that are not in the bucket were recovered", "volume", c.id, "files", n, "powerCut", powerCut)
	}
	if !powerCut {
		return nil
	}
	if err := c.checkpoint(); err != nil {
		return err
	}
	// From here on the page cache of this boot counts.
	c.identity.Boot = boot
	return c.identity.store(c.disk)
}

// acquire takes the volume's lease, if it needs one, before anything is served.
func (c *core) acquire(ctx context.Context, patience time.Duration) error {
	if c.lease == nil {
		return nil
	}
	return c.lease.acquire(ctx, patience, c.identity.Leased)
}

func (c *core) replay(frame []journal.Record) error {
	for _, rec := range frame {
		var err error
		switch rec.Kind.Owner() {
		case journal.OwnerCache:
			err = c.store.Replay(rec)
		case journal.OwnerNamespace:
			err = c.tree.Replay(rec)
		case journal.OwnerWriteback:
			err = c.executor.Replay(rec)
		default:
			err = fmt.Errorf("record of kind %#x: %w", rec.Kind, journal.ErrVersion)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkpoint replaces the journal by the present state.
func (c *core) checkpoint() error {
	return c.journal.Checkpoint(func(emit func(...journal.Record) error) error {
		if err := errors.Join(c.tree.Dump(emit), c.executor.Dump(emit)); err != nil {
			return err
		}
		return c.store.Dump(emit)
	})
}

// start begins the work in the background. It ends with ctx, or with close.
func (c *core) start(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	c.stop = stop
	var held namespace.Held
	if c.policy.Capacity > 0 {
		held = c.hold()
	}
	if c.lease != nil {
		c.lease.start(ctx)
	}
	c.executor.Start()
	c.wg.Go(func() { c.tend(ctx) })
	c.wg.Go(func() { c.guard(ctx) })
	if c.server != "" && !c.policy.ReadOnly {
		c.wg.Go(func() { c.conditions.Learn(ctx, c.asked, c.prefix+volmeta.Dir, c.server, c.log) })
	}
	if c.policy.Capacity > 0 {
		c.wg.Go(func() { c.count(ctx, held) })
	}
}

// tend keeps the journal short and the disk free of what nothing needs.
func (c *core) tend(ctx context.Context) {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := c.journal.Sync(); err != nil {
			c.log.Error("the journal cannot be written: the volume takes no more changes", "volume", c.id, "err", err)
			err = fmt.Errorf("%w: %w", errJournal, err)
			c.sick.Store(&err)
			continue
		}
		if err := c.store.Reap(); err != nil {
			c.log.Error("cannot free space in the cache", "volume", c.id, "err", err)
		}
		if c.journal.NeedsCheckpoint() {
			if err := c.checkpoint(); err != nil {
				c.log.Error("cannot shorten the journal", "volume", c.id, "err", err)
			}
		}
	}
}

// hitRate is which part of the bytes that were read did not have to be waited for.
func (c *core) hitRate() float64 {
	read := c.fs.BytesRead()
	if read == 0 {
		return 0
	}
	f := c.fetcher.Stats()
	return max(0, 1-float64(f.Bytes-f.Ahead)/float64(read))
}

// drain waits until the bucket has all that was written before the call, and the lease says so.
func (c *core) drain(ctx context.Context) error {
	err := c.fs.FlushTree(ctx, inode.Root, nil)
	if w := c.executor.Status(); err != nil && w.LastError == nil {
		// Write-back does not know yet that the server is silent.
		if why := c.trouble(w); why != nil {
			err = fmt.Errorf("%w; %w", err, why)
		}
	}
	return err
}

// close stops all work and makes what is left durable. No request may come any more.
func (c *core) close(ctx context.Context) error {
	c.stop()
	c.wg.Wait()
	var errs []error
	// Requests that ctx does not wait for are broken off; what they were for is in the journal.
	if err := c.executor.Stop(ctx); err != nil && ctx.Err() == nil {
		errs = append(errs, err)
	}
	if c.lease != nil {
		c.lease.close(ctx)
	}
	c.fs.Close()
	c.fetcher.Close()
	c.remote.Close()
	for _, d := range c.store.DirtyFiles() {
		if f := c.store.Lookup(d.ID); f != nil {
			if err := f.Sync(); err != nil && !errors.Is(err, cache.ErrRemoved) {
				errs = append(errs, err)
			}
		}
	}
	errs = append(errs, c.checkpoint(), c.journal.Close(), c.store.Close())
	for _, x := range c.owned {
		errs = append(errs, x.Close())
	}
	return errors.Join(errs...)
}
