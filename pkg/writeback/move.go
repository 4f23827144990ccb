package writeback

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// moveParallel is how many objects of one directory are copied at once.
const moveParallel = 16

// errOverlap: a directory cannot be moved into itself object by object.
var errOverlap = errors.New("source and destination overlap")

// move copies what is below the task's source prefix, and returns the copies by their source keys. It keeps no state: a
// second attempt finds the copies of the first and takes them.
func (e *Executor) move(ctx context.Context, k *namespace.Task) (map[s3.Key]s3.Info, error) {
	if overlap(k.SrcPrefix, k.DstPrefix) {
		return nil, fmt.Errorf("move %q to %q: %w", string(k.SrcPrefix), string(k.DstPrefix), errOverlap)
	}
	moved := map[s3.Key]s3.Info{}
	err := e.pages(ctx, k.SrcPrefix, func(objs []s3.Info) error {
		copies, err := e.copyAll(ctx, k, e.unowned(k, objs))
		for key, info := range copies {
			moved[key] = info
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return moved, e.verify(ctx, k, moved)
}

func overlap(a, b s3.Key) bool {
	return strings.HasPrefix(string(a), string(b)) || strings.HasPrefix(string(b), string(a))
}

// pages calls do for each page of the objects below a prefix.
func (e *Executor) pages(ctx context.Context, prefix s3.Key, do func([]s3.Info) error) error {
	in := s3.ListInput{Prefix: prefix}
	for {
		page, err := persist(ctx, func() (s3.Page, error) { return e.bucket.List(ctx, in) })
		if err != nil {
			return err
		}
		if err := do(page.Objects); err != nil {
			return err
		}
		if page.Token == "" {
			return nil
		}
		in.Token = page.Token
	}
}

// unowned leaves out what a tracked inode decides.
func (e *Executor) unowned(k *namespace.Task, objs []s3.Info) []s3.Info {
	var free []s3.Info
	for _, o := range objs {
		if !e.tree.Skip(k, o.Key) {
			free = append(free, o)
		}
	}
	return free
}

// destination is where an object goes.
func destination(k *namespace.Task, key s3.Key) s3.Key {
	return k.DstPrefix + key[len(k.SrcPrefix):]
}

// copyAll brings the objects of one page to the task's destination and returns the copies by their source keys.
// Objects that are gone by now are left out.
func (e *Executor) copyAll(ctx context.Context, k *namespace.Task, objs []s3.Info) (map[s3.Key]s3.Info, error) {
	there, err := e.present(ctx, k, objs)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	copies := map[s3.Key]s3.Info{}
	slots := newSlots(moveParallel)
	for _, o := range objs {
		if slots.acquire(ctx) != nil {
			break
		}
		wg.Add(1)
		// Ends with its requests, or soon after ctx does; this call waits for it.
		go func() {
			defer wg.Done()
			defer slots.release()
			info, err := e.bring(ctx, k, o, there[destination(k, o.Key)])
			switch {
			case errors.Is(err, s3.ErrNotExist):
			case err != nil:
				cancel(fmt.Errorf("move %q: %w", string(o.Key), err))
			default:
				mu.Lock()
				defer mu.Unlock()
				copies[o.Key] = info
			}
		}()
	}
	wg.Wait()
	return copies, context.Cause(ctx)
}

// present looks up which of the objects' destinations exist. One that a server without order hides from it only means
// that the object is copied again.
func (e *Executor) present(ctx context.Context, k *namespace.Task, objs []s3.Info) (map[s3.Key]*s3.Info, error) {
	there := map[s3.Key]*s3.Info{}
	if len(objs) == 0 {
		return there, nil
	}
	first, last := objs[0].Key, objs[0].Key
	for _, o := range objs {
		first, last = min(first, o.Key), max(last, o.Key)
		there[destination(k, o.Key)] = nil
	}
	in := s3.ListInput{Prefix: k.DstPrefix, StartAfter: before(destination(k, first))}
	for {
		page, err := persist(ctx, func() (s3.Page, error) { return e.bucket.List(ctx, in) })
		if err != nil {
			return nil, err
		}
		past := page.Token == ""
		for _, o := range page.Objects {
			if _, asked := there[o.Key]; asked {
				there[o.Key] = &o
			}
			past = past || o.Key > destination(k, last)
		}
		if past {
			return there, nil
		}
		in.Token = page.Token
	}
}

// before is a key that sorts before key, with little or nothing between them.
func before(key s3.Key) s3.Key {
	if key == "" {
		return ""
	}
	return key[:len(key)-1]
}

// bring copies one object to its destination, where there is what the listing showed (nil: nothing). Another object
// that stands there is put aside first: nothing of others is overwritten.
func (e *Executor) bring(ctx context.Context, k *namespace.Task, o s3.Info, there *s3.Info) (s3.Info, error) {
	dst := destination(k, o.Key)
	if there == nil {
		return e.duplicate(ctx, o, dst, s3.Condition{IfNoneMatch: true, Compared: true})
	}
	made, err := e.madeOf(ctx, o, *there)
	switch {
	case errors.Is(err, s3.ErrNotExist):
		// One of the two went meanwhile: the next attempt lists them anew.
		return s3.Info{}, fmt.Errorf("%q or its source went: %w", string(dst), s3.ErrUnavailable)
	case err != nil:
		return s3.Info{}, err
	case made:
		return *there, nil
	}
	aside := dst + s3.Key(fmt.Sprintf(".conflict-%.8s", there.ETag))
	e.log.Warn("an object stands where a directory moves to", "key", string(dst), "kept", string(aside))
	if _, err := e.duplicate(ctx, *there, aside, s3.Condition{}); err != nil && !errors.Is(err, s3.ErrNotExist) {
		return s3.Info{}, err
	}
	return e.duplicate(ctx, o, dst, s3.Condition{IfMatch: there.ETag, Compared: true})
}

// madeOf says that an object at a destination is the copy of its source as both were listed. Where the ETags differ,
// what a copy of the source would be marked with is looked for.
func (e *Executor) madeOf(ctx context.Context, o, there s3.Info) (bool, error) {
	if o.Size != there.Size || o.ETag == there.ETag {
		return o.Size == there.Size, nil
	}
	src, err := persist(ctx, func() (s3.Info, error) { return e.bucket.Head(ctx, o.Key) })
	if err != nil {
		return false, err
	}
	found, err := persist(ctx, func() (s3.Info, error) { return e.bucket.Head(ctx, there.Key) })
	if err != nil {
		return false, err
	}
	if src.ETag != o.ETag || found.ETag != there.ETag {
		return false, nil
	}
	id := e.tree.Marked(src).Meta[namespace.MetaWriteID]
	return id != "" && found.Meta[namespace.MetaWriteID] == id, nil
}

// duplicate copies an object with its attributes. A condition that an unacknowledged attempt of its own breaks is an
// error like any other: the next attempt of the task finds the copy.
func (e *Executor) duplicate(ctx context.Context, o s3.Info, dst s3.Key, cond s3.Condition) (s3.Info, error) {
	var attr *s3.Attributes
	// The copy of an object that was made of parts, and one that is made of parts, has another ETag than its source. It
	// is known as ours by a write-id, also when it is found before this request has returned, or after a crash.
	if strings.Contains(string(o.ETag), "-") || o.Size > e.opt.MaxCopy {
		src, err := persist(ctx, func() (s3.Info, error) { return e.bucket.Head(ctx, o.Key) })
		if err != nil {
			return s3.Info{}, err
		}
		attr = e.tree.Marked(src)
	}
	if o.Size > e.opt.MaxCopy {
		cond.Compared = false // that will be long ago
		k := &namespace.Task{
			Key: dst, Cond: cond, Attr: *attr,
			Source: namespace.Source{Key: o.Key, ETag: o.ETag, Size: o.Size},
		}
		return e.multipart(ctx, k, nil, o.Size, ranges(k.Source, min(copyStep, e.opt.MaxCopy)))
	}
	return persist(ctx, func() (s3.Info, error) {
		info, err := e.bucket.Copy(ctx, o.Key, o.ETag, dst, attr, cond)
		info.Size = o.Size
		return info, err
	})
}

// verify looks at the copies once more, all of them by a listing.
func (e *Executor) verify(ctx context.Context, k *namespace.Task, moved map[s3.Key]s3.Info) error {
	good := 0
	err := e.pages(ctx, k.DstPrefix, func(objs []s3.Info) error {
		for _, o := range objs {
			src := k.SrcPrefix + o.Key[len(k.DstPrefix):]
			m, ok := moved[src]
			if !ok || m.Size != o.Size {
				continue
			}
			m.Key, m.ETag = o.Key, o.ETag
			moved[src] = m
			good++
		}
		return nil
	})
	if err == nil && good != len(moved) {
		err = fmt.Errorf("%d of %d copies below %q are there: %w", good, len(moved), string(k.DstPrefix), s3.ErrUnavailable)
	}
	return err
}
