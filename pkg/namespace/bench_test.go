package namespace_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

var ctx = context.Background()

// failure is what a bench panics with: lives are many, and most of what can go wrong is found deep in a call.
type failure struct{ error }

// bench is a tree with an executor of which a test makes single steps, on a bucket and a disk in memory. Bytes of files
// are in cached as long as the bucket need not have them.
type bench struct {
	rnd     *rand.Rand
	faults  int // one request in so many is not answered, 0: none
	bucket  *s3mem.Bucket
	disk    *diskmem.FS
	journal *journal.Journal
	tree    *namespace.Tree
	now     time.Time
	running []*running
	cached  map[inode.Ino]string
	changed func(key s3.Key, content string, there bool) // hears of each change of the bucket
	trace   []string
}

// running is a task that Next handed out, as far as it is done.
type running struct {
	task *namespace.Task
	step func() (struct{}, bool) // makes one request, or takes its answer
	stop func()
}

func newBench(seed uint64) *bench {
	b := &bench{
		rnd: rand.New(rand.NewPCG(seed, 3)), bucket: s3mem.New("bucket"), disk: diskmem.New(), now: time.Unix(1_000_000_000, 0),
		cached: map[inode.Ino]string{}, changed: func(s3.Key, string, bool) {},
	}
	b.open()
	return b
}

func (b *bench) log(format string, args ...any) {
	b.trace = append(b.trace, fmt.Sprintf(format, args...))
}

func (b *bench) fail(format string, args ...any) {
	panic(failure{fmt.Errorf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(b.trace, "\n"))})
}

func (b *bench) ok(err error) {
	if err != nil {
		b.fail("%v", err)
	}
}

func (b *bench) open() {
	b.tree = namespace.New(namespace.Options{
		WriterID: "0123456789abcdef", Settle: 5 * time.Millisecond, MaxAge: 50 * time.Millisecond,
		Now:  func() time.Time { return b.now },
		Gone: func(ino inode.Ino) { delete(b.cached, ino) },
	})
	var err error
	b.journal, err = journal.Open(b.disk, "journal", journal.Options{}, func(frame []journal.Record) error {
		for _, rec := range frame {
			if err := b.tree.Replay(rec); err != nil {
				return err
			}
		}
		return nil
	})
	b.ok(err)
	b.ok(b.tree.Recover(b.journal))
	for _, ino := range slices.Sorted(maps.Keys(b.cached)) {
		if !b.tree.Recovered(ino, int64(len(b.cached[ino])), b.now) {
			delete(b.cached, ino)
		}
	}
}

// kill ends the process: of the requests under way some are still carried out.
func (b *bench) kill() {
	b.log("KILL")
	for _, r := range b.running {
		if b.rnd.IntN(2) == 0 {
			r.step()
		}
		r.stop()
	}
	b.running = nil
	next := b.disk.Clone()
	b.ok(b.journal.Close())
	b.disk = next
	b.open()
}

// begin hands out a task, if one is due.
func (b *bench) begin() bool {
	k, _ := b.tree.Next(b.now)
	if k == nil {
		return false
	}
	b.log("task %d of %d: %q %q to %q, attempt %d, source %v", k.Verb, k.Ino, k.Key, k.SrcPrefix, k.DstPrefix, k.Attempts, k.Source)
	if src, dst := string(k.SrcPrefix), string(k.DstPrefix); dst != "" && (strings.HasPrefix(src, dst) || strings.HasPrefix(dst, src)) {
		b.fail("task %d of %d has no end: %q lies in %q, or the reverse\n%s", k.Verb, k.Ino, src, dst, b.tree.Waiting())
	}
	r := &running{task: k}
	r.step, r.stop = iter.Pull(func(yield func(struct{}) bool) { b.perform(k, func() bool { return yield(struct{}{}) }) })
	b.running = append(b.running, r)
	return true
}

// advance makes one step of some task that runs.
func (b *bench) advance() {
	if len(b.running) == 0 {
		return
	}
	i := b.rnd.IntN(len(b.running))
	if _, more := b.running[i].step(); !more {
		b.running = slices.Delete(b.running, i, i+1)
	}
}

// drain brings all to the bucket, without any more faults.
func (b *bench) drain() {
	b.faults = 0
	for range 100_000 {
		b.now = b.now.Add(time.Second)
		b.tree.Urge()
		if !b.begin() && len(b.running) == 0 {
			if n, err := b.tree.Pending(0, ^uint64(0)); n > 0 {
				b.fail("stuck: %d changes wait for each other: %v\n%s", n, err, b.tree.Waiting())
			}
			return
		}
		b.advance()
	}
	b.fail("does not come to rest: %d tasks run", len(b.running))
}

// errStopped: the process was killed.
var errStopped = errors.New("killed")

// request sends one request and waits for its answer; other things happen before and between.
func request[T any](b *bench, pause func() bool, what string, key s3.Key, call func() (T, error)) (T, error) {
	var zero T
	if !pause() {
		return zero, errStopped
	}
	fate := 9
	if b.faults > 0 && b.rnd.IntN(b.faults) == 0 {
		fate = b.rnd.IntN(3)
	}
	if fate == 0 {
		b.log("%s %q is lost", what, key)
		return zero, s3.ErrUnavailable
	}
	v, err := call()
	b.log("%s %q: %v", what, key, err)
	if what != "Head" && what != "List" && err == nil {
		content, herr := b.stored(key)
		if herr != nil && !errors.Is(herr, s3.ErrNotExist) {
			b.fail("%v", herr)
		}
		b.changed(key, content, herr == nil)
	}
	if !pause() {
		return zero, errStopped
	}
	if fate < 3 {
		return zero, fmt.Errorf("%s %q: its answer is lost: %w", what, key, s3.ErrUnavailable)
	}
	return v, err
}

func (b *bench) stored(key s3.Key) (string, error) {
	body, _, err := b.bucket.Get(ctx, key, nil, "")
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(body)
	return string(text), errors.Join(err, body.Close())
}

func (b *bench) head(pause func() bool, key s3.Key) (*s3.Info, error) {
	info, err := request(b, pause, "Head", key, func() (s3.Info, error) { return b.bucket.Head(ctx, key) })
	switch {
	case errors.Is(err, s3.ErrNotExist):
		return nil, nil //nolint:nilnil // that there is no object is an answer
	case err != nil:
		return nil, err
	}
	return &info, nil
}

func (b *bench) list(pause func() bool, prefix s3.Key) ([]s3.Info, error) {
	page, err := request(b, pause, "List", prefix, func() (s3.Page, error) { return b.bucket.List(ctx, s3.ListInput{Prefix: prefix}) })
	return page.Objects, err
}

// perform carries out a task as package writeback does, in short.
func (b *bench) perform(k *namespace.Task, pause func() bool) {
	var err error
	switch k.Verb {
	case namespace.Put:
		err = b.put(k, pause)
	case namespace.Copy:
		err = b.copy(k, pause)
	case namespace.Delete:
		err = b.delete(k, pause)
	case namespace.Move:
		err = b.move(k, pause)
	case namespace.Purge:
		err = b.purge(k, pause)
	default:
		b.fail("task of verb %d", k.Verb)
	}
	if err != nil && !errors.Is(err, errStopped) {
		b.log("task of %d fails: %v", k.Ino, err)
		b.tree.Fail(k, err, b.now)
	}
}

func (b *bench) put(k *namespace.Task, pause func() bool) error {
	if err := b.tree.Prepare(k); err != nil {
		return err
	}
	content := string(k.Body)
	if k.Content {
		var err error
		if content, err = b.read(k.Ino); err != nil {
			return err
		}
	}
	info, err := request(b, pause, "Put", k.Key, func() (s3.Info, error) {
		return b.bucket.Put(ctx, k.Key, s3.Body{R: strings.NewReader(content), Size: int64(len(content))}, k.Attr, k.Cond)
	})
	info.Size = int64(len(content))
	return b.settle(k, pause, info, err)
}

func (b *bench) copy(k *namespace.Task, pause func() bool) error {
	if err := b.tree.Prepare(k); err != nil {
		return err
	}
	if k.Key != k.Source.Key {
		found, err := b.head(pause, k.Key)
		if err != nil {
			return err
		}
		if done, err := b.taken(k, found); done || err != nil {
			return err
		}
	}
	_, err := b.duplicate(pause, k.Source.Key, k.Source.ETag, k.Key, &k.Attr, k.Cond)
	switch {
	case errors.Is(err, errStopped):
		return err
	case err == nil:
		err = s3.ErrUnavailable // look at it
	case errors.Is(err, s3.ErrNotExist), errors.Is(err, s3.ErrPrecondition):
		found, herr := b.head(pause, k.Source.Key)
		if herr != nil {
			return herr
		}
		again, rerr := b.tree.Recheck(k.Ino, k.Source, found)
		if rerr == nil && !again && (found == nil || found.ETag != k.Source.ETag) {
			b.fail("the bytes of %d are gone: %v is not at %v", k.Ino, found, k.Source)
		}
	}
	return b.settle(k, pause, s3.Info{}, err)
}

func (b *bench) duplicate(pause func() bool, src s3.Key, match s3.ETag, dst s3.Key, attr *s3.Attributes, cond s3.Condition) (s3.Info, error) {
	return request(b, pause, "Copy", dst, func() (s3.Info, error) { return b.bucket.Copy(ctx, src, match, dst, attr, cond) })
}

// settle ends a Put or Copy, or says why it has to be tried again.
func (b *bench) settle(k *namespace.Task, pause func() bool, info s3.Info, err error) error {
	if errors.Is(err, errStopped) {
		return err
	}
	if err != nil {
		found, herr := b.head(pause, k.Key)
		switch {
		case herr != nil:
			return herr
		case found != nil && k.Same(*found):
			info = *found
		case errors.Is(err, s3.ErrUnavailable):
			return err
		default:
			done, terr := b.taken(k, found)
			if done || terr != nil {
				return terr
			}
			return err
		}
	}
	return b.commit(k, info, nil)
}

// taken ends a task whose condition an earlier attempt of ours has broken. There is nobody else.
func (b *bench) taken(k *namespace.Task, found *s3.Info) (done bool, err error) {
	switch {
	case found == nil && k.Cond.IfMatch == "", found != nil && k.Cond.IfMatch == found.ETag, found != nil && k.Cond == (s3.Condition{}):
		return false, nil
	case found != nil && b.tree.Ours(k, *found):
		b.log("task of %d: %q is ours", k.Ino, k.Key)
		b.tree.Adopt(k, *found)
		return true, nil
	case found == nil:
		_, err := b.tree.Conflict(k, nil)
		return true, err
	}
	b.fail("task of %d: a conflict with itself at %q: %+v, %+v", k.Ino, k.Key, *found, k.Cond)
	return true, nil
}

func (b *bench) commit(k *namespace.Task, info s3.Info, moved map[s3.Key]s3.Info) error {
	b.ok(b.tree.Commit(k, info, moved, nil))
	if n, err := b.tree.Get(k.Ino); k.Content && err == nil && !n.Dirty {
		delete(b.cached, k.Ino)
	}
	return nil
}

func (b *bench) delete(k *namespace.Task, pause func() bool) error {
	found, err := b.head(pause, k.Key)
	switch {
	case err != nil:
		return err
	case found == nil:
		return b.commit(k, s3.Info{}, nil)
	case (k.Unsure || found.ETag != k.Source.ETag) && !b.tree.Ours(k, *found):
		return b.commit(k, *found, nil)
	}
	if err := b.remove(pause, k.Key); err != nil {
		return err
	}
	return b.commit(k, s3.Info{}, nil)
}

func (b *bench) remove(pause func() bool, key s3.Key) error {
	_, err := request(b, pause, "Delete", key, func() (struct{}, error) { return struct{}{}, b.bucket.Delete(ctx, key) })
	return err
}

func (b *bench) unowned(k *namespace.Task, objs []s3.Info) []s3.Info {
	return slices.DeleteFunc(objs, func(o s3.Info) bool { return b.tree.Skip(k, o.Key) })
}

func (b *bench) move(k *namespace.Task, pause func() bool) error {
	objs, err := b.list(pause, k.SrcPrefix)
	if err != nil {
		return err
	}
	moved, err := b.bring(k, pause, b.unowned(k, objs))
	if err != nil {
		return err
	}
	there, err := b.list(pause, k.DstPrefix)
	if err != nil {
		return err
	}
	for src, m := range moved {
		if !slices.ContainsFunc(there, func(o s3.Info) bool { return o.Key == m.Key && o.Size == m.Size }) {
			return fmt.Errorf("the copy of %q is not there: %w", src, s3.ErrUnavailable)
		}
	}
	return b.commit(k, s3.Info{}, moved)
}

// bring copies objects below a task's source to its destination, or takes the copies of an earlier attempt. Where something
// else is, that has to be the business of a tracked inode, and only a Purge meets it.
func (b *bench) bring(k *namespace.Task, pause func() bool, objs []s3.Info) (map[s3.Key]s3.Info, error) {
	there, err := b.list(pause, k.DstPrefix)
	if err != nil {
		return nil, err
	}
	moved := map[s3.Key]s3.Info{}
	for _, o := range objs {
		dst := k.DstPrefix + o.Key[len(k.SrcPrefix):]
		src, err := b.head(pause, o.Key)
		if err != nil {
			return nil, err
		}
		if src == nil || src.ETag != o.ETag {
			return nil, fmt.Errorf("%q changed: %w", o.Key, s3.ErrUnavailable)
		}
		if i := slices.IndexFunc(there, func(o s3.Info) bool { return o.Key == dst }); i >= 0 {
			found, err := b.head(pause, dst)
			switch {
			case err != nil:
				return nil, err
			case found == nil || found.ETag != there[i].ETag:
				return nil, fmt.Errorf("%q changed: %w", dst, s3.ErrUnavailable)
			case found.ETag == o.ETag || b.marked(*src, *found) || b.marked(*found, *src):
				moved[o.Key] = there[i]
			case k.Verb == namespace.Move || !b.tree.Skip(k, dst):
				b.fail("%q stands where %q moves to", dst, o.Key)
			}
			continue
		}
		if k.Verb == namespace.Purge && b.tree.Skip(k, dst) {
			continue
		}
		var attr *s3.Attributes
		if b.bucket.OwnTags {
			attr = b.tree.Marked(*src)
		}
		info, err := b.duplicate(pause, o.Key, o.ETag, dst, attr, s3.Condition{IfNoneMatch: true})
		switch {
		case errors.Is(err, s3.ErrNotExist):
		case err != nil:
			return nil, err
		default:
			info.Key, info.Size = dst, o.Size
			moved[o.Key] = info
		}
	}
	return moved, nil
}

// marked says that an object has the write-id of a copy of another.
func (b *bench) marked(src, o s3.Info) bool {
	id := b.tree.Marked(src).Meta[namespace.MetaWriteID]
	return id != "" && id == o.Meta[namespace.MetaWriteID]
}

func (b *bench) purge(k *namespace.Task, pause func() bool) error {
	for {
		objs, err := b.list(pause, k.SrcPrefix)
		if err != nil {
			return err
		}
		objs = b.unowned(k, objs)
		if k.DstPrefix == "" || len(objs) == 0 { // there is no key without a name
			return b.commit(k, s3.Info{}, nil)
		}
		moved, err := b.bring(k, pause, objs)
		if err != nil {
			return err
		}
		for _, key := range slices.Sorted(maps.Keys(moved)) {
			if err := b.remove(pause, key); err != nil {
				return err
			}
		}
		if len(moved) == 0 {
			return b.commit(k, s3.Info{}, nil)
		}
	}
}

// read returns a file's bytes, wherever they are.
func (b *bench) read(ino inode.Ino) (string, error) {
	for range 10 {
		if content, ok := b.cached[ino]; ok {
			return content, nil
		}
		src, ok, err := b.tree.Source(ino)
		if err != nil {
			return "", err
		}
		if !ok {
			b.fail("no object has the bytes of %d", ino)
		}
		body, _, err := b.bucket.Get(ctx, src.Key, nil, src.ETag)
		if err == nil {
			text, err := io.ReadAll(body)
			return string(text), errors.Join(err, body.Close())
		}
		var found *s3.Info
		if info, err := b.bucket.Head(ctx, src.Key); err == nil {
			found = &info
		}
		if again, rerr := b.tree.Recheck(ino, src, found); rerr != nil || !again {
			b.fail("the bytes of %d are gone: %v, %v: %v, now %+v", ino, src, err, rerr, found)
		}
	}
	b.fail("the bytes of %d are nowhere", ino)
	return "", nil
}
