package writeback_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// author changes the files of one directory and knows what they must hold in the end.
type author struct {
	*rig
	random *rand.Rand
	name   string // of the directory
	bodies map[string][]byte
	next   int // number of the next new name
}

func newAuthor(r *rig, seed uint64, name string) *author {
	a := &author{rig: r, random: rand.New(rand.NewPCG(seed, 7)), name: name, bodies: map[string][]byte{}}
	// Half of the directories are the bucket's, with objects of their own.
	if a.random.IntN(2) == 0 {
		r.make(inode.Root, name, inode.ModeDir|0o755)
		return a
	}
	for range 4 {
		file := fmt.Sprint("file-", a.next)
		a.next++
		a.bodies[file] = a.noise(a.size())
		r.put(name+"/"+file, a.bodies[file])
	}
	return a
}

// at looks a name up as the core does: what the tree does not know, the bucket decides.
func (a *author) at(dir inode.Ino, name string, isDir bool) inode.Ino {
	for {
		res, err := a.tree.Resolve(dir, name)
		a.ok(err)
		if res.Found {
			return res.Node.Attr.Ino
		}
		if res.Absent {
			a.t.Errorf("%q is gone", name)
			runtime.Goexit()
		}
		remote := namespace.Remote{IsDir: isDir, Known: true}
		key := res.Key
		if isDir {
			key += "/"
		}
		remote.Info, err = a.bucket.Head(a.t.Context(), key)
		if absent := errors.Is(err, s3.ErrNotExist); absent && !isDir && errors.Is(a.tree.Unlearn(dir, name, res.Version), namespace.ErrChanged) {
			continue // it is elsewhere by now: its directory has moved
		} else if !absent || !isDir {
			a.ok(err)
		}
		n, err := a.tree.Learn(dir, name, res.Version, remote)
		if errors.Is(err, namespace.ErrChanged) {
			continue
		}
		a.ok(err)
		return n.Attr.Ino
	}
}

func (a *author) dir() inode.Ino { return a.at(inode.Root, a.name, true) }

func (a *author) inode(name string) inode.Ino { return a.at(a.dir(), name, false) }

func (a *author) noise(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(a.random.Uint32())
	}
	return p
}

// size is that of a small file, or of one that is uploaded in parts.
func (a *author) size() int {
	if a.random.IntN(3) == 0 {
		return 64<<10 + a.random.IntN(100<<10)
	}
	return a.random.IntN(3000)
}

func (a *author) pick() string {
	// In order, so that the same seed does the same.
	return sorted(a.bodies)[a.random.IntN(len(a.bodies))]
}

func sorted(m map[string][]byte) []string { return slices.Sorted(maps.Keys(m)) }

// step makes one change.
func (a *author) step() {
	if len(a.bodies) == 0 || a.random.IntN(6) == 0 {
		name := fmt.Sprint("file-", a.next)
		a.next++
		a.make(a.dir(), name, inode.ModeRegular|0o644)
		a.bodies[name] = []byte{}
		a.overwrite(name, 0, a.size())
		return
	}
	name := a.pick()
	body := a.bodies[name]
	switch a.random.IntN(9) {
	case 0, 1:
		a.overwrite(name, a.random.IntN(len(body)+100), 1+a.random.IntN(500))
	case 2:
		a.overwrite(name, a.random.IntN(len(body)+1), a.size())
	case 3:
		size := a.random.IntN(len(body) + 40<<10)
		if size < len(body) {
			body = body[:size:size]
		} else {
			body = append(body[:len(body):len(body)], make([]byte, size-len(body))...)
		}
		a.change(a.inode(name), func(f *cache.File, now time.Time) error { return f.Truncate(int64(size), now) })
		a.bodies[name] = body
	case 4:
		to := fmt.Sprint("file-", a.random.IntN(a.next))
		if to == name {
			return
		}
		a.inode(name)
		if a.bodies[to] != nil {
			a.inode(to)
		}
		a.ok(a.tree.Rename(namespace.Op{}, a.dir(), name, a.dir(), to, 0))
		a.bodies[to] = body
		delete(a.bodies, name)
	case 5:
		a.inode(name)
		a.ok(a.tree.Unlink(namespace.Op{}, a.dir(), name))
		delete(a.bodies, name)
	case 6:
		mode := uint32(0o600 + a.random.IntN(0o100))
		_, err := a.tree.SetAttr(namespace.Op{}, a.inode(name), namespace.Patch{Mode: &mode})
		a.ok(err)
	case 7:
		ino := a.inode(name)
		a.ok(a.tree.Opened(ino))
		a.overwrite(name, a.random.IntN(len(body)+1), 40<<10+a.random.IntN(60<<10))
		a.tree.Relieve(func(of inode.Ino) bool { return of == ino })
		time.Sleep(time.Duration(a.random.IntN(10)) * time.Millisecond)
		a.overwrite(name, a.random.IntN(len(body)+1), 1+a.random.IntN(10<<10))
		a.tree.Released(ino)
	case 8:
		ino := a.inode(name)
		a.ok(a.tree.Opened(ino))
		for range 2 + a.random.IntN(4) {
			more := a.noise(20<<10 + a.random.IntN(150<<10))
			body = append(a.bodies[name][:len(a.bodies[name]):len(a.bodies[name])], more...)
			a.grow(ino, body, len(body)-len(more), len(body))
			a.bodies[name] = body
			if a.random.IntN(2) == 0 {
				a.overwrite(name, a.random.IntN(len(body)), 1+a.random.IntN(20<<10))
			}
		}
		a.tree.Released(ino)
	}
}

func (a *author) overwrite(name string, off, n int) {
	if n == 0 {
		return
	}
	p := a.noise(n)
	a.write(a.inode(name), int64(off), p)
	body := append([]byte{}, a.bodies[name]...)
	if len(body) < off+n {
		body = append(body, make([]byte, off+n-len(body))...)
	}
	copy(body[off:], p)
	a.bodies[name] = body
}

// retitle renames the author's directory.
func (a *author) retitle() {
	name := fmt.Sprintf("%s-%d", strings.SplitN(a.name, "-", 2)[0], a.random.IntN(3))
	if name == a.name {
		return
	}
	a.dir()
	a.ok(a.tree.Rename(namespace.Op{}, inode.Root, a.name, inode.Root, name, 0))
	a.name = name
}

// bad is a server on which one request in so many fails, in every way that a transient failure can.
func bad(seed uint64, one int) func(s3fault.Op) s3fault.Action {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 11))
	return func(op s3fault.Op) s3fault.Action {
		mu.Lock()
		defer mu.Unlock()
		if random.IntN(one) > 0 {
			return s3fault.Action{}
		}
		switch random.IntN(6) {
		case 0:
			return s3fault.FailBefore(nil)
		case 1:
			return s3fault.ShortBody(int64(random.IntN(2000)))
		case 2:
			if op.Name == "Get" || op.Name == "Put" || op.Name == "UploadPart" {
				return s3fault.CorruptBody()
			}
			if op.Name == "ListUploads" {
				return s3fault.FailBefore(nil) // keys that may not list uploads may leave one behind
			}
			return s3fault.FailBefore(s3.ErrAuth)
		case 3:
			return s3fault.Delay(time.Duration(random.IntN(20)) * time.Millisecond)
		default:
			return s3fault.FailAfter(nil)
		}
	}
}

// Writers, an Executor that uploads as soon as something changed, a server that fails now and then, and kills between:
// in the end the bucket holds what was written and nothing else, under the names that it was given.
func TestRandom(t *testing.T) {
	seeds := []uint64{1, 2, 5, 6, 8, 120}
	for i := range 2 * len(seeds) {
		seed, own := seeds[i/2], i%2 == 1
		t.Run(fmt.Sprint(seed, own), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, small)
			r.bucket.OwnTags = own
			r.names.Settle, r.names.MaxAge = time.Millisecond, 20*time.Millisecond
			r.kill()
			random := rand.New(rand.NewPCG(seed, 3))
			var authors []*author
			for i := range 3 {
				authors = append(authors, newAuthor(r, seed*10+uint64(i), fmt.Sprint(string(rune('a'+i)), "-0")))
			}
			for range 4 {
				r.faulty(bad(random.Uint64(), 6))
				var wg sync.WaitGroup
				for _, a := range authors {
					wg.Go(func() {
						for range 12 {
							a.step()
							if a.random.IntN(4) == 0 {
								time.Sleep(time.Duration(a.random.IntN(8)) * time.Millisecond)
							}
						}
						if a.random.IntN(2) == 0 {
							a.retitle()
						}
					})
				}
				wg.Wait()
				if t.Failed() {
					return
				}
				switch random.IntN(3) {
				case 0:
					r.kill()
				case 1:
					r.faulty(nil)
					r.flush()
				}
			}
			r.faulty(nil)
			r.flush()
			want := map[string][]byte{}
			for _, a := range authors {
				for name, body := range a.bodies {
					want[a.name+"/"+name] = body
				}
			}
			for _, key := range r.keys() {
				if strings.HasSuffix(key, "/") {
					continue // markers
				}
				if _, ok := want[key]; !ok {
					t.Errorf("the bucket has %q, which nobody made", key)
				}
			}
			for _, key := range sorted(want) {
				r.holds(key, want[key])
			}
			r.settled()
			r.noUploads()
		})
	}
}
