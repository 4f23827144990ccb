package vfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

// slow is a bucket whose answers can be held back: they are old when they arrive.
type slow struct {
	*s3mem.Bucket
	lists, heads atomic.Int64
	answered     func(op string) // called between the operation and its answer
}

func (b *slow) List(ctx context.Context, in s3.ListInput) (s3.Page, error) {
	b.lists.Add(1)
	page, err := b.Bucket.List(ctx, in)
	if b.answered != nil {
		b.answered("List")
	}
	return page, err
}

func (b *slow) Head(ctx context.Context, key s3.Key) (s3.Info, error) {
	b.heads.Add(1)
	info, err := b.Bucket.Head(ctx, key)
	if b.answered != nil {
		b.answered("Head")
	}
	return info, err
}

func (b *slow) put(t *testing.T, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if _, err := b.Put(t.Context(), s3.Key(key), s3.Body{R: strings.NewReader("x"), Size: 1}, s3.Attributes{}, s3.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
}

func newView(t *testing.T, cost int64, ttl time.Duration) (*slow, *Remote) {
	t.Helper()
	b := &slow{Bucket: s3mem.New("bucket")}
	views := NewViews(cost)
	t.Cleanup(views.Close)
	r := NewRemote(b, views, ttl)
	t.Cleanup(r.Close)
	return b, r
}

func names(t *testing.T, r *Remote, prefix s3.Key) []string {
	t.Helper()
	list, err := r.readDir(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range list {
		names = append(names, n.name)
	}
	slices.Sort(names)
	return names
}

func exists(t *testing.T, r *Remote, prefix s3.Key, name string) bool {
	t.Helper()
	e, err := r.lookup(t.Context(), prefix, name, false)
	if err != nil {
		t.Fatal(err)
	}
	return !e.absent()
}

// TestChangesDuringARequest: what the tree reports while an answer is on its way counts, whichever is the older.
func TestChangesDuringARequest(t *testing.T) {
	for _, large := range []bool{false, true} {
		for _, kept := range []bool{false, true} {
			b, r := newView(t, 0, time.Minute)
			b.put(t, "d/gone", "d/stays")
			if large {
				for i := range 1200 {
					b.put(t, fmt.Sprintf("d/%04d", i))
				}
			}
			if kept {
				exists(t, r, "d/", "anything")
				r.ttl = time.Nanosecond // what is kept has expired
			}
			var once sync.Once // two questions may be asked at a time
			b.answered = func(string) {
				once.Do(func() {
					b.put(t, "d/new")
					r.Settled("d/", "new", false, &s3.Info{Key: "d/new", ETag: "e", Size: 1})
					if err := b.Delete(t.Context(), "d/gone"); err != nil {
						t.Error(err)
					}
					r.Settled("d/", "gone", false, nil)
				})
			}
			want := map[string]bool{"new": true, "gone": false, "stays": true}
			if large {
				// One name at a time: the one that changes while it is asked for is asked for again.
				if exists(t, r, "d/", "gone") {
					t.Errorf("kept %v: a name that was removed meanwhile exists", kept)
				}
			} else if got := names(t, r, "d/"); !slices.Equal(got, []string{"new", "stays"}) {
				t.Errorf("kept %v: %q are listed", kept, got)
			}
			r.ttl = time.Minute
			for name, there := range want {
				if exists(t, r, "d/", name) != there {
					t.Errorf("large %v, kept %v: %q exists: %v", large, kept, name, !there)
				}
			}
		}
	}
}

// TestMoveDuringARequest: a listing of what a directory has left, or has come to, is not kept.
func TestMoveDuringARequest(t *testing.T) {
	for _, info := range []*s3.Info{nil, {Key: "d/"}} {
		b, r := newView(t, 0, 0)
		b.put(t, "d/a", "d/sub/", "d/sub/b")
		names(t, r, "d/sub/")
		var once sync.Once
		b.answered = func(string) {
			once.Do(func() {
				r.Settled("", "d", true, info)
			})
		}
		names(t, r, "d/")
		lists := b.lists.Load()
		names(t, r, "d/")
		names(t, r, "d/sub/")
		if n := b.lists.Load() - lists; n != 2 {
			t.Errorf("%d of 2 listings were asked for again", n)
		}
		// A marker alone changes nothing below it.
		r.Settled("", "d", true, &s3.Info{Key: "d/", ETag: "e"})
		names(t, r, "d/")
		if n := b.lists.Load() - lists; n != 2 {
			t.Errorf("a marker made %d listings void", n-2)
		}
	}
}

// TestOneListForMany: callers that want the same at the same time share a request; one that gives up takes none with it.
func TestOneListForMany(t *testing.T) {
	b, r := newView(t, 0, time.Minute)
	b.put(t, "d/a")
	hold := make(chan struct{})
	b.answered = func(string) { <-hold }
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error)
	go func() {
		_, err := r.readDir(ctx, "d/")
		first <- err
	}()
	for b.lists.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	results := make(chan []string)
	for range 10 {
		go func() {
			list, err := r.readDir(t.Context(), "d/")
			if err != nil {
				t.Error(err)
			}
			var names []string
			for _, n := range list {
				names = append(names, n.name)
			}
			results <- names
		}()
	}
	time.Sleep(10 * time.Millisecond)
	cancel()
	close(hold)
	if err := <-first; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for range 10 {
		if got := <-results; !slices.Equal(got, []string{"a"}) {
			t.Errorf("%q", got)
		}
	}
	if n := b.lists.Load(); n > 2 {
		t.Errorf("%d LISTs", n)
	}
}

// TestMemoryOfViews: what does not fit is asked for again and never wrong, however little memory there is.
func TestMemoryOfViews(t *testing.T) {
	b, r := newView(t, 1000, time.Minute)
	var want []string
	for i := range 1500 {
		want = append(want, fmt.Sprintf("%04d", i))
		b.put(t, "d/"+want[i])
	}
	for range 20 {
		if got := names(t, r, "d/"); !slices.Equal(got, want) {
			t.Fatalf("%d names, want %d", len(got), len(want))
		}
		if !exists(t, r, "d/", "0007") || exists(t, r, "d/", "none") {
			t.Fatal("a look-up is wrong")
		}
	}
	for i := range 200 {
		b.put(t, fmt.Sprintf("%d/x", i))
		if !exists(t, r, s3.Key(fmt.Sprintf("%d/", i)), "x") {
			t.Fatal("a look-up is wrong")
		}
	}
	r.views.cache.Wait()
	r.mu.Lock()
	kept := len(r.index)
	r.mu.Unlock()
	if kept > 5 {
		t.Errorf("%d listings are kept in 1000 bytes", kept)
	}
}

// TestDoubt: what is in doubt is asked for before it is believed, and is listed until something is known.
func TestDoubt(t *testing.T) {
	b, r := newView(t, 0, 0)
	b.put(t, "d/a", "d/b")
	names(t, r, "d/")
	r.doubtKey("d/a")
	if got := names(t, r, "d/"); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%q are listed", got)
	}
	if err := b.Delete(t.Context(), "d/a"); err != nil {
		t.Fatal(err)
	}
	heads := b.heads.Load()
	if exists(t, r, "d/", "a") || !exists(t, r, "d/", "b") {
		t.Error("the wrong one is gone")
	}
	if n := b.heads.Load() - heads; n != 1 {
		t.Errorf("%d HEADs for one name in doubt", n)
	}
	if got := names(t, r, "d/"); !slices.Equal(got, []string{"b"}) {
		t.Errorf("%q are listed", got)
	}
}

// TestFileForADirectory: a file of ours under a name that was listed as a directory's is looked at before it is believed.
func TestFileForADirectory(t *testing.T) {
	for _, gone := range []bool{false, true} {
		b, r := newView(t, 0, 0)
		b.put(t, "d/a", "e")
		names(t, r, "")
		if gone {
			if err := b.Delete(t.Context(), "d/a"); err != nil {
				t.Fatal(err)
			}
		}
		b.put(t, "d")
		r.Settled("", "d", false, &s3.Info{Key: "d", ETag: "e", Size: 1})
		e, err := r.lookup(t.Context(), "", "d", false)
		if err != nil || e.file == nil || e.dir == gone {
			t.Errorf("gone %v: %+v, %v", gone, e, err)
		}
	}
}

// TestExpiry: answers hold for the time that was given, and for ever with 0.
func TestExpiry(t *testing.T) {
	for _, ttl := range []time.Duration{0, time.Minute} {
		b, r := newView(t, 0, ttl)
		var skew atomic.Int64
		r.now = func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
		b.put(t, "d/a")
		for range 5 {
			names(t, r, "d/")
			exists(t, r, "d/", "a")
			exists(t, r, "d/", "none")
		}
		if n := b.lists.Load(); n != 1 || b.heads.Load() != 0 {
			t.Errorf("ttl %v: %d LISTs, %d HEADs", ttl, n, b.heads.Load())
		}
		b.put(t, "d/none")
		skew.Store(int64(2 * time.Minute))
		if exists(t, r, "d/", "none") != (ttl > 0) {
			t.Errorf("ttl %v: what others made is seen: %v", ttl, ttl == 0)
		}
	}
}
