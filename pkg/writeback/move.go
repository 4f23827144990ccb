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
	return each(ctx, objs, func(ctx context.Context, o s3.Info) (s3.Info, error) {
		return e.bring(ctx, k, o, there[destination(k, o.Key)])
	})
}

// errStays: an object is left where it is.
var errStays = errors.New("it stays where it is")

// each calls do for some objects, moveParallel at once, and returns the copies that it found or made by their source keys.
// Objects that are gone by now or stay are left out.
func each(ctx context.Context, objs []s3.Info, do func(context.Context, s3.Info) (s3.Info, error)) (map[s3.Key]s3.Info, error) {
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
			info, err := do(ctx, o)
			switch {
			case errors.Is(err, s3.ErrNotExist), errors.Is(err, errStays):
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

// bring copies one object to its destination, where there is what the listing showed (nil: nothing), unless that is its copy.
func (e *Executor) bring(ctx context.Context, k *namespace.Task, o s3.Info, there *s3.Info) (s3.Info, error) {
	made, err := e.madeOf(ctx, o, there)
	switch {
	case err != nil:
		return s3.Info{}, err
	case made:
		return *there, nil
	}
	return e.place(ctx, k, o, there)
}

// place is bring where what is there is not the copy: it is put aside first, so nothing of others is overwritten.
func (e *Executor) place(ctx context.Context, k *namespace.Task, o s3.Info, there *s3.Info) (s3.Info, error) {
	dst := destination(k, o.Key)
	if there == nil {
		return e.duplicate(ctx, o, dst, s3.Condition{IfNoneMatch: true, Compared: true})
	}
	aside := dst + s3.Key(fmt.Sprintf(".conflict-%.8s", there.ETag))
	if err := e.setAside(ctx, *there, aside); err != nil {
		return s3.Info{}, err
	}
	return e.duplicate(ctx, o, dst, s3.Condition{IfMatch: there.ETag, Compared: true})
}

// madeOf says that of an object and what stands at its destination (nil: nothing) one is the copy of the other, as both
// were listed: after a Move that turned back the original is at the destination. Where the ETags differ, what a copy is
// marked with is looked for. All objects without bytes have one ETag, and what they are is in their attributes: where a
// symbolic link points to.
func (e *Executor) madeOf(ctx context.Context, o s3.Info, there *s3.Info) (bool, error) {
	switch {
	case there == nil || o.Size != there.Size:
		return false, nil
	case o.ETag == there.ETag && o.Size > 0:
		return true, nil
	}
	src, err := e.asListed(ctx, o)
	if err != nil {
		return false, err
	}
	dst, err := e.asListed(ctx, *there)
	if err != nil {
		return false, err
	}
	same := func() bool {
		a, b := s3.Attributes{Meta: src.Meta, ContentType: src.ContentType}, s3.Attributes{Meta: dst.Meta, ContentType: dst.ContentType}
		return o.ETag == there.ETag && sameAttributes(a, b)
	}
	return same() || e.bearsMark(dst, src) || e.bearsMark(src, dst), nil
}

// asListed looks up all of an object that a listing showed. One that changed or went since has to be listed anew.
func (e *Executor) asListed(ctx context.Context, o s3.Info) (s3.Info, error) {
	info, err := persist(ctx, func() (s3.Info, error) { return e.bucket.Head(ctx, o.Key) })
	if errors.Is(err, s3.ErrNotExist) || err == nil && info.ETag != o.ETag {
		err = fmt.Errorf("%q changed since it was listed: %w", string(o.Key), s3.ErrUnavailable)
	}
	return info, err
}

// bearsMark says that an object has the write-id of a copy of src.
func (e *Executor) bearsMark(o, src s3.Info) bool {
	id := e.tree.Marked(src).Meta[namespace.MetaWriteID]
	return id != "" && o.Meta[namespace.MetaWriteID] == id
}

// duplicate copies an object with its attributes. A condition that an unacknowledged attempt of its own breaks is an
// error like any other: the next attempt of the task finds the copy.
//
// A copy that has another ETag than its source is marked by a write-id, so that it is known as ours also when it is found
// before this request has returned, or after a crash. That is each copy which is made of parts or of an object of parts, and
// on some servers each copy (with SSE-KMS an ETag is no sum of the bytes). So all are marked until one has shown that the
// server keeps ETags, and from the first on that shows that it does not keep all. Where objects are encrypted in different
// ways that one may come without a mark, and is made again with one. A crash in between leaves it as a conflict copy, and so
// does metadata without room for the mark.
func (e *Executor) duplicate(ctx context.Context, o s3.Info, dst s3.Key, cond s3.Condition) (s3.Info, error) {
	var attr *s3.Attributes
	whole := o.Size <= e.opt.MaxCopy && !strings.Contains(string(o.ETag), "-")
	if !whole || !e.tagsKept.Load() || e.tagsLost.Load() {
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
	info, err := persist(ctx, func() (s3.Info, error) { return e.bucket.Copy(ctx, o.Key, o.ETag, dst, attr, cond) })
	info.Size = o.Size
	switch {
	case err != nil || !whole:
	case info.ETag != o.ETag:
		e.tagsLost.Store(true)
		if attr == nil {
			return e.duplicate(ctx, o, dst, s3.Condition{IfMatch: info.ETag, Compared: true})
		}
	case o.Size > 0: // without bytes there is nothing to encrypt
		e.tagsKept.Store(true)
	}
	return info, err
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
