package writeback

import (
	"context"
	"fmt"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/extent"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// spill sends a part of a file that is being written to an object of its own, so that the cache can do without it. The
// file's own object is made of such parts in the end, by the server.
func (e *Executor) spill(ctx context.Context, k *namespace.Task) (result, error) {
	if err := e.tree.Prepare(k); err != nil {
		return result{}, err
	}
	f, err := e.file(k)
	if err != nil {
		return result{}, err
	}
	snap, err := f.Snapshot()
	if err != nil {
		return result{}, fmt.Errorf("snapshot of inode %d: %w", k.Ino, err)
	}
	r := e.spillable(snap, k.Early)
	if r.Empty() {
		snap.Release()
		return result{}, nil
	}
	info, err := e.sendSpill(ctx, k, &content{exec: e, file: f, snap: snap, ino: k.Ino}, r)
	if err != nil {
		snap.Release()
		return result{}, err
	}
	k.At = r.Off
	return result{info: info, snap: snap, spill: r}, nil
}

func (e *Executor) sendSpill(ctx context.Context, k *namespace.Task, c *content, r extent.Range) (s3.Info, error) {
	if r.Len() <= e.opt.SinglePut {
		return e.putBody(ctx, k, s3.Body{R: c.section(ctx, r.Off, r.End), Size: r.Len()})
	}
	var parts []part
	for off := r.Off; off < r.End; off += e.opt.Part {
		parts = append(parts, part{number: len(parts) + 1, off: off, end: min(r.End, off+e.opt.Part)})
	}
	return e.multipart(ctx, k, c, r.Len(), parts)
}

// spillable is what of a file is sent at once: whole parts of the object that the file will be, dirty from end to end,
// and not more than a share of the cache, so that the first room is made soon. Early it is of the end of the file, and
// less, since it holds up the upload of the whole file when that is due meanwhile.
func (e *Executor) spillable(snap *cache.Snapshot, early bool) extent.Range {
	run := snap.Longest()
	most := max(e.store.Usage().Capacity/spillShare, e.opt.Part)
	if early {
		run = snap.Tail()
		most = min(most, streamMost*e.opt.Part)
	}
	parts, err := layout(run.End+1, e.opt.Part)
	if err != nil {
		return extent.Range{}
	}
	var r extent.Range
	for _, p := range parts[:len(parts)-1] { // the last one is not whole
		switch {
		case p.off < run.Off:
		case r.Empty():
			r = extent.Range{Off: p.off, End: p.end}
		case p.end-r.Off <= most:
			r.End = p.end
		}
	}
	return r
}

// spillShare is the inverse of the part of the cache that one spill takes at most.
const spillShare = 8

// A file that grows is sent while it is written: from streamLeast parts on, at most streamMost parts at once.
const (
	streamLeast = 8
	streamMost  = 16
)

// Grew hears, after each write that made a file longer, of the sizes before and after it. When the end of an open file is
// new over a long way, it goes to the bucket ahead of the rest, by a spill that is begun early: how the file was written
// is seen by what is dirty, and a file that is written to and fro has no long end. What is overwritten later is sent
// again. It is cheap and waits for nothing.
func (e *Executor) Grew(ino inode.Ino, before, after int64) {
	if before/e.opt.Part == after/e.opt.Part {
		return
	}
	if f := e.store.Lookup(cache.ID(ino)); f != nil && f.Tail().Len() >= max(streamLeast*e.opt.Part, 2*partAt(after, e.opt.Part)) {
		e.tree.Stream(ino)
	}
}

// relieve makes all that is dirty due, unless that was done since anything changed, and lets files that have as much to
// send as a spill takes spill it.
func (e *Executor) relieve() {
	seq := e.tree.Seq()
	e.mu.Lock()
	now := seq + e.done
	fresh := now != e.relieved
	e.relieved = now
	e.mu.Unlock()
	if !fresh {
		return
	}
	least := max(e.store.Usage().Capacity/spillShare, 2*e.opt.Part)
	e.tree.Relieve(func(ino inode.Ino) bool {
		f := e.store.Lookup(cache.ID(ino))
		return f != nil && f.Dirty().Bytes >= least
	})
}
