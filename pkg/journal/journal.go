package journal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path"
	"sync"

	"github.com/csi-s3/csi-s3/pkg/disk"
)

// Kind says who replays a record. The high nibble is the owner (see the constants of each owner's package).
type Kind uint8

// Owners of record kinds: a kind k belongs to k & 0xf0.
const (
	OwnerCache     Kind = 0x10
	OwnerNamespace Kind = 0x20
	OwnerWriteback Kind = 0x30
)

// Owner is the package that replays records of this kind.
func (k Kind) Owner() Kind { return k & 0xf0 }

// Record is one entry. Data is opaque to the journal, at most MaxRecord bytes.
type Record struct {
	Kind Kind
	Data []byte
}

// MaxRecord is the largest Data of one Record, in bytes.
const MaxRecord = 1 << 20

const (
	fileName    = "journal"
	newName     = "journal.new"
	magic       = "CSIS3JNL"
	version     = 1
	headerSize  = 20
	frameHeader = 24
	maxPayload  = 64 << 20
)

// Errors of Open and Append.
var (
	// ErrCorrupt: a frame that had been durable is damaged. The journal refuses to open: nothing is guessed.
	ErrCorrupt = errors.New("journal is corrupt")
	// ErrVersion: the journal was written by a newer version.
	ErrVersion = errors.New("journal has an unknown version")
	// ErrTooLarge: a record or frame exceeds its limit. The journal is unharmed.
	ErrTooLarge = errors.New("journal record is too large")
	// ErrClosed: the journal was closed.
	ErrClosed = errors.New("journal is closed")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Options configure Open. The zero value works.
type Options struct {
	// CheckpointBytes is how many bytes of records after a checkpoint make NeedsCheckpoint true. 0 means 16 MiB.
	CheckpointBytes int64
}

// Journal is safe for concurrent use.
type Journal struct {
	fs  disk.FS
	dir string
	opt Options

	mu      sync.Mutex
	changed sync.Cond // of syncing, frozen, durable
	f       disk.File
	epoch   uint32
	off     int64  // end of the last frame
	base    int64  // off after the last checkpoint
	room    int64  // up to where the disk has space for sure
	seq     uint64 // of the last frame
	durable uint64 // highest seq known to be on the disk
	syncing bool   // one caller is in fdatasync
	frozen  bool   // a checkpoint is running
	err     error  // sticky
}

// Open opens or creates the journal in dir of fs and replays it: replay is called for every complete frame, in order,
// from the newest checkpoint on (a frame is atomic: all of its records or none; their Data is valid for ever). A torn
// tail, left by a crash during Append, is cut off. An error of replay is returned as it is.
func Open(fsys disk.FS, dir string, opt Options, replay func(frame []Record) error) (*Journal, error) {
	if opt.CheckpointBytes == 0 {
		opt.CheckpointBytes = 16 << 20
	}
	j := &Journal{fs: fsys, dir: dir, opt: opt}
	j.changed.L = &j.mu
	if err := fsys.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := fsys.SyncDir(path.Dir(dir)); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := fsys.Remove(path.Join(dir, newName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("journal: %w", err)
	}
	f, err := fsys.OpenFile(path.Join(dir, fileName), false)
	if errors.Is(err, fs.ErrNotExist) {
		return j, j.rotate(func(func(...Record) error) error { return nil })
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	// A kill may have come between a checkpoint's rename and its SyncDir: then what is appended to this file now must
	// not be lost to the old one, which a power cut would bring back.
	if err := fsys.SyncDir(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %w", err), f.Close())
	}
	if err := j.load(f, replay); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

// Append adds the records as one atomic frame. On return they are in the page cache: they survive a kill of the
// process and not a power cut. After an error of the disk the journal is poisoned: every later Append and Sync returns
// it, because what lies on disk behind the failed frame is unknown.
func (j *Journal) Append(recs ...Record) error {
	buf, err := encode(make([]byte, frameHeader, frameHeader+256), recs)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.frozen {
		j.changed.Wait()
	}
	if j.err != nil {
		return j.err
	}
	seal(buf, j.epoch, j.seq+1, j.durable)
	if _, err := j.f.WriteAt(buf, j.off); err != nil {
		return j.poison(fmt.Errorf("journal: append: %w", err))
	}
	j.off += int64(len(buf))
	j.seq++
	return nil
}

// step is how many bytes Room reserves at once beyond what it is asked for.
const step = 256 << 10

// Room makes sure that the disk has space for n more bytes of records: disk.ErrNoSpace when it has not. It is asked
// before a change is begun whose record must not fail. What follows from earlier changes (that they are in the bucket
// now) uses what was left, so that a full disk can be emptied.
func (j *Journal) Room(n int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.frozen {
		j.changed.Wait()
	}
	if j.err != nil || j.off+n <= j.room {
		return j.err
	}
	for _, end := range []int64{j.off + n + step, j.off + n} {
		err := j.f.Reserve(end)
		switch {
		case err == nil:
			j.room = end
			return nil
		case !errors.Is(err, disk.ErrNoSpace) || end == j.off+n:
			return fmt.Errorf("journal: room for %d bytes: %w", n, err)
		}
	}
	return nil
}

// encode appends the records' payload to a frame whose header is still empty.
func encode(buf []byte, recs []Record) ([]byte, error) {
	for _, r := range recs {
		if len(r.Data) > MaxRecord {
			return nil, fmt.Errorf("%d bytes, limit %d: %w", len(r.Data), MaxRecord, ErrTooLarge)
		}
		buf = append(buf, byte(r.Kind))
		buf = binary.AppendUvarint(buf, uint64(len(r.Data)))
		buf = append(buf, r.Data...)
	}
	if len(buf)-frameHeader > maxPayload {
		return nil, fmt.Errorf("frame of %d bytes: %w", len(buf), ErrTooLarge)
	}
	return buf, nil
}

// seal fills a frame's header.
func seal(frame []byte, epoch uint32, seq, durable uint64) {
	binary.LittleEndian.PutUint32(frame, uint32(len(frame)-frameHeader))
	binary.LittleEndian.PutUint64(frame[8:], seq)
	binary.LittleEndian.PutUint64(frame[16:], durable)
	binary.LittleEndian.PutUint32(frame[4:], checksum(epoch, frame))
}

func checksum(epoch uint32, frame []byte) uint32 {
	var e [8]byte
	binary.LittleEndian.PutUint32(e[:], epoch)
	copy(e[4:], frame[:4])
	return crc32.Update(crc32.Update(0, castagnoli, e[:]), castagnoli, frame[8:])
}

func (j *Journal) poison(err error) error {
	if j.err == nil {
		j.err = err
	}
	j.changed.Broadcast()
	return j.err
}

// Err is why the journal is poisoned, nil while it is not.
func (j *Journal) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// Sync makes every Append that returned before the call durable. Concurrent calls share one fdatasync.
func (j *Journal) Sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	target, f := j.seq, j.f
	for {
		switch {
		case j.err != nil:
			return j.err
		case j.f != f || j.durable >= target:
			return nil // a checkpoint since then has made everything durable
		case j.syncing || j.frozen:
			j.changed.Wait()
			continue
		}
		at := j.seq
		j.syncing = true
		j.mu.Unlock()
		err := f.Sync()
		j.mu.Lock()
		j.syncing = false
		if err != nil {
			return j.poison(fmt.Errorf("journal: sync: %w", err))
		}
		j.durable = max(j.durable, at)
		j.changed.Broadcast()
	}
}

// NeedsCheckpoint says that enough was appended since the last checkpoint.
func (j *Journal) NeedsCheckpoint() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err == nil && j.off-j.base > j.opt.CheckpointBytes
}

// Checkpoint replaces the journal's history by a dump of the present state. dump is called with an emit function
// for records; no Append runs meanwhile (they wait), so the dump is consistent if dump takes no lock that is held
// across Append. On return the new journal is durable and the old one is gone; after an error of dump or of writing the
// new file the old one is in use.
func (j *Journal) Checkpoint(dump func(emit func(...Record) error) error) error {
	j.mu.Lock()
	for j.frozen || j.syncing {
		j.changed.Wait()
	}
	if j.err != nil {
		defer j.mu.Unlock()
		return j.err
	}
	j.frozen = true
	j.mu.Unlock()
	err := j.rotate(dump)
	j.mu.Lock()
	j.frozen = false
	j.changed.Broadcast()
	j.mu.Unlock()
	return err
}

// rotate writes a new journal file from a dump and makes it the current one. The caller has stopped all appends.
func (j *Journal) rotate(dump func(emit func(...Record) error) error) error {
	tmp := path.Join(j.dir, newName)
	f, err := j.fs.OpenFile(tmp, true)
	if err != nil {
		return fmt.Errorf("journal: checkpoint: %w", err)
	}
	w := &writer{f: f}
	err = w.write(dump)
	if err == nil {
		if err = f.Reserve(w.off + step); err == nil {
			w.room = w.off + step
		} else if errors.Is(err, disk.ErrNoSpace) && j.room <= j.off {
			err = nil // the old file had no room either
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		err = errors.Join(err, f.Close())
		if e := j.fs.Remove(tmp); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
		return fmt.Errorf("journal: checkpoint: %w", err)
	}
	if err = j.fs.Rename(tmp, path.Join(j.dir, fileName)); err == nil {
		err = j.fs.SyncDir(j.dir)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		// Which of the two files a power cut would leave is unknown now.
		return errors.Join(j.poison(fmt.Errorf("journal: checkpoint: %w", err)), f.Close())
	}
	old := j.f
	j.f, j.epoch, j.off, j.base, j.room = f, w.epoch, w.off, w.off, w.room
	j.seq, j.durable = w.seq, w.seq
	if old != nil {
		if err := old.Close(); err != nil {
			return fmt.Errorf("journal: close of the old file: %w", err)
		}
	}
	return nil
}

// writer fills a new journal file.
type writer struct {
	f     disk.File
	epoch uint32
	off   int64
	room  int64
	seq   uint64
	buf   []byte
}

func (w *writer) write(dump func(emit func(...Record) error) error) error {
	var e [4]byte
	if _, err := rand.Read(e[:]); err != nil {
		return err
	}
	w.epoch = binary.LittleEndian.Uint32(e[:])
	if err := w.f.Truncate(0); err != nil {
		return err
	}
	w.buf = append(w.buf, magic...)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, version)
	w.buf = append(w.buf, e[:]...)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, crc32.Checksum(w.buf, castagnoli))
	if err := dump(w.emit); err != nil {
		return err
	}
	return w.flush()
}

func (w *writer) emit(recs ...Record) error {
	frame, err := encode(make([]byte, frameHeader), recs)
	if err != nil {
		return err
	}
	w.seq++
	seal(frame, w.epoch, w.seq, w.seq-1)
	if w.buf = append(w.buf, frame...); len(w.buf) > 1<<20 {
		return w.flush()
	}
	return nil
}

func (w *writer) flush() error {
	_, err := w.f.WriteAt(w.buf, w.off)
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
	return err
}

// Size is the length of the live journal in bytes.
func (j *Journal) Size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.off
}

// Close syncs and closes. The journal may not be used afterwards.
func (j *Journal) Close() error {
	err := j.Sync()
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.syncing || j.frozen {
		j.changed.Wait()
	}
	if j.f == nil {
		return err
	}
	if err == nil {
		err = j.f.Truncate(j.off) // gives back what Room took
	}
	err = errors.Join(err, j.f.Close())
	j.f = nil
	if j.err == nil {
		j.err = ErrClosed
	}
	return err
}
