package vfs

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// one asks for one name: a HEAD of the object and a LIST of one key of the directory. Where shown, a fresh listing's
// entry, is not sure of a directory, only that is asked for.
func (r *Remote) one(ctx context.Context, prefix s3.Key, name string, shown entry) (entry, error) {
	key := prefix + s3.Key(name)
	for {
		r.mu.Lock()
		fl := r.depart(prefix, oneName)
		r.mu.Unlock()
		at := r.now()
		var e entry
		var err error
		if shown.unsure() {
			e, err = r.confirm(ctx, key, shown)
		} else {
			e, err = r.probe(ctx, key)
		}
		r.mu.Lock()
		stale := slices.ContainsFunc(fl.changes, func(c change1) bool { return c.name == name })
		l := r.index[prefix]
		if err == nil && !stale && l == nil {
			r.mu.Unlock()
			r.keep(&listing{remote: r, prefix: prefix, names: map[string]single{name: {entry: e, at: at}}}, fl)
			return e, nil
		}
		r.land(prefix, fl)
		if err == nil && !stale && !fl.void && l != nil {
			r.enter(l, name, single{entry: e, at: at})
		}
		r.mu.Unlock()
		switch {
		case err != nil:
			return entry{}, err
		case stale:
			shown = entry{}
			continue // the answer may be from before our own change
		}
		return e, nil
	}
}

func (r *Remote) probe(ctx context.Context, key s3.Key) (e entry, err error) {
	type dirAnswer struct {
		dir bool
		err error
	}
	answers := make(chan dirAnswer, 1)
	// Ends with its request; probe waits for it.
	go func() {
		page, err := r.bucket.list(ctx, s3.ListInput{Prefix: key + "/", MaxKeys: 1})
		answers <- dirAnswer{len(page.Objects)+len(page.Prefixes) > 0, err}
	}()
	info, err := r.bucket.head(ctx, key)
	a := <-answers
	switch {
	case a.err != nil:
		return entry{}, a.err
	case err == nil:
		e.file, e.known = &info, true
	case !errors.Is(err, s3.ErrNotExist):
		return entry{}, err
	}
	e.dir, e.sure = a.dir, true
	return e, nil
}

// confirm finds out whether a directory that a listing showed has a key: its marker, whose attributes will be asked for
// next, or any other.
func (r *Remote) confirm(ctx context.Context, key s3.Key, e entry) (entry, error) {
	info, err := r.bucket.head(ctx, key+"/")
	switch {
	case err == nil:
	case !errors.Is(err, s3.ErrNotExist):
		return entry{}, err
	default:
		info = s3.Info{}
		page, err := r.bucket.list(ctx, s3.ListInput{Prefix: key + "/", MaxKeys: 1})
		if err != nil {
			return entry{}, err
		}
		e.dir = len(page.Objects) > 0
	}
	e.sure, e.marker = true, &info
	return e, nil
}

// confirmed leaves out what is no directory after all, if it does not take many requests. What it asks for a look-up
// need not ask again.
func (r *Remote) confirmed(ctx context.Context, prefix s3.Key, names []named) []named {
	var unsure []int
	for i := range names {
		if names[i].unsure() {
			unsure = append(unsure, i)
		}
	}
	if len(unsure) == 0 || len(unsure) > maxUnsure {
		return names
	}
	names = slices.Clone(names) // they may be shared
	var wg sync.WaitGroup
	for _, i := range unsure {
		n := &names[i]
		// Ends with its requests; this call waits for it.
		wg.Go(func() {
			if e, err := r.one(ctx, prefix, n.name, n.entry); err == nil {
				n.entry = e
			} // else it is shown as it was listed: a look-up has to ask again
		})
	}
	wg.Wait()
	return slices.DeleteFunc(names, func(n named) bool { return n.absent() })
}

// any says whether a name below a prefix counts. It believes its memory only where that holds for ever. count must not
// call the tree.
func (r *Remote) any(ctx context.Context, prefix s3.Key, count func(name string) bool) (bool, error) {
	var unsure []named
	// counts looks at some names.
	counts := func(names []named) bool {
		for _, n := range names {
			switch {
			case !count(n.name):
			case n.file == nil && n.unsure():
				unsure = append(unsure, n)
			default:
				return true
			}
		}
		return false
	}
	r.mu.Lock()
	var names []named
	l := r.index[prefix]
	kept := l != nil && l.complete && r.forever()
	if kept {
		names = l.all()
	}
	r.mu.Unlock()
	if kept && counts(names) {
		return true, nil
	}
	for in := (s3.ListInput{Prefix: prefix, Delimiter: "/"}); !kept; {
		page, err := r.bucket.list(ctx, in)
		if err != nil {
			return false, err
		}
		l := &listing{prefix: prefix, names: map[string]single{}}
		if l.add(page); counts(l.all()) {
			return true, nil
		}
		if in.Token = page.Token; in.Token == "" {
			break
		}
	}
	for _, n := range unsure {
		if e, err := r.one(ctx, prefix, n.name, n.entry); err != nil || !e.absent() {
			return err == nil, err
		}
	}
	return false, nil
}
