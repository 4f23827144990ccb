package writeback

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/journal"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Kinds of records. Each begins with the upload's number; integers are varints, strings and lists have their length
// before them.
//
//	begun    inode, key, content type, metadata (key value)*, alone (0 or 1), uploads of others (ID)*, since and until (Unix
//	         milliseconds, 0 if unknown; records of older versions end before them): it is about to be created, or was not answered
//	created  ID
//	sent     part number, offset, end, ETag, CRC-32C, key and ETag of what it was copied from
//	over     nothing: it was completed or aborted
const (
	kindBegun   = journal.OwnerWriteback | 1
	kindCreated = journal.OwnerWriteback | 2
	kindSent    = journal.OwnerWriteback | 3
	kindOver    = journal.OwnerWriteback | 4
)

// errRecord: a record is not one that this package wrote.
var errRecord = fmt.Errorf("write-back record: %w", journal.ErrCorrupt)

// upload is a multipart upload of this cache directory. Its fields belong to the task that has it (busy), or to who holds
// the ledger's mutex.
type upload struct {
	number uint64
	ino    inode.Ino
	key    s3.Key
	attr   s3.Attributes
	// others were open on the key before. With alone set, what else is open on it and was begun between since and until,
	// by the server's clock, is this upload: its ID is not known when the answer to its creation was lost.
	others       []s3.UploadID
	alone        bool
	since, until time.Time // zero: the server did not say, or the record is of an older version
	id           s3.UploadID
	sent         map[int]sentPart // guarded by the ledger's mutex
	busy         bool
}

// sentPart is a part that the server has, and what it was made of.
type sentPart struct {
	s3.Part
	off, end int64
	from     s3.Key
	fromETag s3.ETag
}

// ledger knows the uploads that may be open on the server, in memory and in the journal.
type ledger struct {
	mu   sync.Mutex
	j    *journal.Journal
	open map[uint64]*upload // guarded by mu
	last uint64             // guarded by mu: the highest number
}

// add enters an upload that is about to be created, durably.
func (l *ledger) add(u *upload) error {
	l.mu.Lock()
	if u.number == 0 {
		l.last++
		u.number = l.last
	}
	l.open[u.number] = u
	recs := []journal.Record{u.begun()}
	l.mu.Unlock()
	if err := l.j.Append(recs...); err != nil {
		return err
	}
	return l.j.Sync()
}

// unanswered enters when, by the server's clock, the creation of an upload was given up.
func (l *ledger) unanswered(u *upload, at time.Time) error {
	l.mu.Lock()
	u.until = at
	rec := u.begun()
	l.mu.Unlock()
	return l.j.Append(rec)
}

func (l *ledger) created(u *upload, id s3.UploadID) error {
	l.mu.Lock()
	u.id = id
	rec := u.created()
	l.mu.Unlock()
	return l.j.Append(rec)
}

func (l *ledger) note(u *upload, p sentPart) error {
	l.mu.Lock()
	u.sent[p.Number] = p
	rec := u.part(p)
	l.mu.Unlock()
	if err := l.j.Room(room); errors.Is(err, disk.ErrNoSpace) {
		return nil // a restart sends the part again
	}
	return l.j.Append(rec)
}

// find takes the upload of a key that no task has, nil if there is none. One that was answered comes first.
func (l *ledger) find(key s3.Key) *upload {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found *upload
	for _, u := range l.open {
		if u.key == key && !u.busy && (found == nil || found.id == "" && (u.id != "" || u.number > found.number)) {
			found = u
		}
	}
	if found != nil {
		found.busy = true
	}
	return found
}

// idle are the uploads that no task has at the moment; take says whether that is still so.
func (l *ledger) idle() []*upload {
	l.mu.Lock()
	defer l.mu.Unlock()
	var free []*upload
	for _, n := range slices.Sorted(maps.Keys(l.open)) {
		if u := l.open[n]; !u.busy {
			free = append(free, u)
		}
	}
	return free
}

// take takes an upload unless a task has it or it is over.
func (l *ledger) take(u *upload) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u.busy || l.open[u.number] != u {
		return false
	}
	u.busy = true
	return true
}

// leave gives an upload back.
func (l *ledger) leave(u *upload) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u.busy = false
}

// over forgets an upload. A record that a crash undoes costs one needless abort.
func (l *ledger) over(u *upload) error {
	l.mu.Lock()
	delete(l.open, u.number)
	l.mu.Unlock()
	return l.j.Append(numbered(kindOver, u.number))
}

// strange leaves out of the uploads that are open on u's key those that were before u, and those that are in the ledger.
// later says that another upload is in it, begun after u and without an ID yet, which may be one of the rest.
func (l *ledger) strange(u *upload, open []s3.Upload) (rest []s3.Upload, later bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := map[s3.UploadID]bool{}
	for _, o := range l.open {
		known[o.id] = true
		later = later || o.key == u.key && o.number > u.number && o.id == ""
	}
	for _, o := range open {
		if o.Key == u.key && !known[o.ID] && !slices.Contains(u.others, o.ID) {
			rest = append(rest, o)
		}
	}
	return rest, later
}

func (l *ledger) part(u *upload, number int) (sentPart, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, ok := u.sent[number]
	return p, ok
}

// dump emits records that rebuild the ledger.
func (l *ledger) dump(emit func(...journal.Record) error) error {
	l.mu.Lock()
	var recs []journal.Record
	for _, n := range slices.Sorted(maps.Keys(l.open)) {
		u := l.open[n]
		recs = append(recs, u.begun())
		if u.id != "" {
			recs = append(recs, u.created())
		}
		for _, p := range u.sent {
			recs = append(recs, u.part(p))
		}
	}
	l.mu.Unlock()
	for _, r := range recs {
		if err := emit(r); err != nil {
			return err
		}
	}
	return nil
}

func numbered(kind journal.Kind, number uint64) journal.Record {
	return journal.Record{Kind: kind, Data: binary.AppendUvarint(nil, number)}
}

func appendString[S ~string](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0)
	}
	return binary.AppendUvarint(b, uint64(t.UnixMilli()))
}

func (u *upload) begun() journal.Record {
	rec := numbered(kindBegun, u.number)
	b := binary.AppendUvarint(rec.Data, uint64(u.ino))
	b = appendString(appendString(b, u.key), u.attr.ContentType)
	b = binary.AppendUvarint(b, uint64(len(u.attr.Meta)))
	for k, v := range u.attr.Meta {
		b = appendString(appendString(b, k), v)
	}
	var alone uint64
	if u.alone {
		alone = 1
	}
	b = binary.AppendUvarint(b, alone)
	b = binary.AppendUvarint(b, uint64(len(u.others)))
	for _, id := range u.others {
		b = appendString(b, id)
	}
	rec.Data = appendTime(appendTime(b, u.since), u.until)
	return rec
}

func (u *upload) created() journal.Record {
	rec := numbered(kindCreated, u.number)
	rec.Data = appendString(rec.Data, u.id)
	return rec
}

func (u *upload) part(p sentPart) journal.Record {
	rec := numbered(kindSent, u.number)
	for _, n := range []uint64{uint64(p.Number), uint64(p.off), uint64(p.end)} {
		rec.Data = binary.AppendUvarint(rec.Data, n)
	}
	rec.Data = appendString(appendString(rec.Data, p.ETag), p.CRC32C)
	rec.Data = appendString(appendString(rec.Data, p.from), p.fromETag)
	return rec
}

// reader takes a record apart. bad is sticky.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) string() string {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

func (r *reader) time() time.Time {
	if ms := r.uint(); ms > 0 {
		return time.UnixMilli(int64(ms))
	}
	return time.Time{}
}

// replay takes one record. What follows the end of an upload, or is of one that is not known, says nothing.
func (l *ledger) replay(rec journal.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := reader{b: rec.Data}
	number := r.uint()
	l.last = max(l.last, number)
	u := l.open[number]
	switch rec.Kind {
	case kindBegun:
		u = &upload{number: number, ino: inode.Ino(r.uint()), key: s3.Key(r.string()), sent: map[int]sentPart{}}
		u.attr = s3.Attributes{ContentType: r.string(), Meta: map[string]string{}}
		for n := r.uint(); n > 0 && !r.bad; n-- {
			k := r.string()
			u.attr.Meta[k] = r.string()
		}
		u.alone = r.uint() == 1
		for n := r.uint(); n > 0 && !r.bad; n-- {
			u.others = append(u.others, s3.UploadID(r.string()))
		}
		if len(r.b) > 0 {
			u.since, u.until = r.time(), r.time()
		}
		if !r.bad {
			l.open[number] = u
		}
	case kindCreated:
		if id := s3.UploadID(r.string()); u != nil {
			u.id = id
		}
	case kindSent:
		var p sentPart
		p.Number, p.off, p.end = int(r.uint()), int64(r.uint()), int64(r.uint())
		p.ETag, p.CRC32C = s3.ETag(r.string()), r.string()
		p.from, p.fromETag = s3.Key(r.string()), s3.ETag(r.string())
		if p.Size = p.end - p.off; u != nil && !r.bad {
			u.sent[p.Number] = p
		}
	case kindOver:
		delete(l.open, number)
	default:
		return fmt.Errorf("kind %#x: %w", rec.Kind, errRecord)
	}
	if r.bad || len(r.b) > 0 {
		return fmt.Errorf("kind %#x: %w", rec.Kind, errRecord)
	}
	return nil
}
