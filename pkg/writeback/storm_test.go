package writeback_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
)

// find is the inode of a name that exists, in the tree or in the bucket alone.
func (r *rig) find(name string) inode.Ino {
	r.t.Helper()
	res, err := r.tree.Resolve(inode.Root, name)
	r.ok(err)
	if res.Found {
		return res.Node.Attr.Ino
	}
	if res.Absent {
		r.t.Fatalf("%q was acknowledged and is gone", name)
	}
	return r.learn(name)
}

// Many writers, a bucket that fails at random, and kills: at the end the bucket has exactly what was acknowledged.
func TestStorm(t *testing.T) {
	r := newRig(t, small)
	r.names.Settle = time.Millisecond
	r.kill()
	random := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	chance := func(n int) bool { return rand.IntN(n) == 0 }
	r.faulty(func(op s3fault.Op) s3fault.Action {
		switch {
		case !chance(6):
		case chance(3):
			return s3fault.FailAfter(nil)
		case chance(3) && (op.Name == "Put" || op.Name == "UploadPart" || op.Name == "Get"):
			return s3fault.CorruptBody()
		case chance(3):
			return s3fault.Delay(5 * time.Millisecond)
		default:
			return s3fault.FailBefore(nil)
		}
		return s3fault.Action{}
	})
	want := map[string][]byte{}
	inos := map[string]inode.Ino{}
	for round := range 3 {
		for step := range 80 {
			name := fmt.Sprint("file-", random.IntN(12))
			ino, exists := inos[name]
			switch what := random.IntN(10); {
			case !exists:
				inos[name] = r.create(name)
				want[name] = nil
			case what < 6:
				off := random.IntN(150 << 10)
				p := noise(1 + random.IntN(40<<10))
				r.write(ino, int64(off), p)
				body := want[name]
				if end := off + len(p); end > len(body) {
					body = append(body, make([]byte, end-len(body))...)
				}
				copy(body[off:], p)
				want[name] = body
			case what == 6:
				size := random.IntN(len(want[name]) + 1)
				r.change(ino, func(f *cache.File, now time.Time) error { return f.Truncate(int64(size), now) })
				want[name] = want[name][:size:size]
			case what == 7:
				r.ok(r.tree.Unlink(namespace.Op{}, inode.Root, name))
				delete(want, name)
				delete(inos, name)
			case what == 8:
				other := fmt.Sprint("file-", random.IntN(12))
				if other == name {
					continue
				}
				r.ok(r.tree.Rename(namespace.Op{}, inode.Root, name, inode.Root, other, 0))
				want[other], inos[other] = want[name], inos[name]
				delete(want, name)
				delete(inos, name)
			default:
				time.Sleep(time.Duration(random.IntN(3)) * time.Millisecond)
			}
			if step == 79 && round < 2 {
				r.kill()
				for name := range inos {
					inos[name] = r.find(name)
				}
			}
		}
	}
	r.faulty(nil)
	r.flush()
	for name, body := range want {
		r.holds(name, body)
	}
	var names []string
	for name := range want {
		names = append(names, name)
	}
	r.wantKeys(names...)
	r.settled()
}
