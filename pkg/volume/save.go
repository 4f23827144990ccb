package volume

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where Save puts what it saves, and the report.
const (
	savedFiles       = "files"       // under the names of the volume
	savedUnnamed     = "unnamed"     // by inode number, in hex
	savedQuarantined = "quarantined" // the same
	reportFile       = "recover-report.json"
)

// Report is what Save did. It is written as JSON too.
type Report struct {
	Volume   string    `json:"volume"`
	Cache    string    `json:"cache"`
	Time     time.Time `json:"time"`
	Complete bool      `json:"complete"` // all that the cache holds and the bucket does not was saved
	Files    int       `json:"filesSaved"`
	Bytes    int64     `json:"bytesSaved"`
	Partial  int       `json:"filesWithMissingRanges"` // saved, but only the bucket had some of their bytes
	Failed   int       `json:"filesFailed"`
	Remnants []Remnant `json:"remnants"`
}

// Save writes all that the bucket does not have below the directory to, which is made, or must be empty: files and
// symbolic links under their names in to/files, what has no name in to/unnamed and to/quarantined. Ranges that are not in
// the cache become holes. What exists is never written to. A file that cannot be saved is in the report with the reason,
// and the others are saved. progress, if not nil, hears of each.
//
// On return without an error everything is durable, the file recover-report.json, which is written last, included. When
// ctx ends it stops with ctx's error, and leaves what it wrote until then, without a report.
func (r *Remains) Save(ctx context.Context, to string, progress func(Remnant)) (*Report, error) {
	root, err := openTarget(to, r.Dir)
	if err != nil {
		return nil, err
	}
	s := &saver{remains: r, ctx: ctx, root: root, made: map[string]bool{".": true}, attributes: r.directories()}
	report, err := s.save(progress)
	if err = errors.Join(err, root.Close()); err != nil {
		return nil, fmt.Errorf("save to %s: %w", to, err)
	}
	return report, nil
}

// ErrTarget: the directory to save to cannot be used.
var ErrTarget = errors.New("directory to save to")

// openTarget opens an empty directory outside of the cache, making it if it is missing.
func openTarget(to, cacheDir string) (*os.Root, error) {
	place, err := settled(to)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTarget, err)
	}
	cache, err := settled(cacheDir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCacheDir, err)
	}
	if rel, err := filepath.Rel(cache, place); err != nil || rel != ".." && !strings.HasPrefix(rel, "../") {
		return nil, fmt.Errorf("%w: %s lies in the cache", ErrTarget, to)
	}
	if err := os.MkdirAll(place, 0o700); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTarget, err)
	}
	entries, err := os.ReadDir(place)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTarget, err)
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("%w: %s is not empty: nothing that exists is written to", ErrTarget, to)
	}
	root, err := os.OpenRoot(place)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTarget, err)
	}
	return root, nil
}

// settled is an absolute path without symbolic links, of which the end need not exist yet.
func settled(name string) (string, error) {
	name, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	missing := ""
	for dir := name; ; dir = filepath.Dir(dir) {
		there, err := filepath.EvalSymlinks(dir)
		if err == nil {
			return filepath.Join(there, missing), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return "", err
		}
		missing = filepath.Join(filepath.Base(dir), missing)
	}
}

// saver is one run of Save.
type saver struct {
	remains    *Remains
	ctx        context.Context
	root       *os.Root
	made       map[string]bool    // directories that were made
	attributes map[string]Remnant // of directories, by their names in the volume
}

func (s *saver) save(progress func(Remnant)) (*Report, error) {
	r := s.remains
	report := &Report{Volume: r.Volume, Cache: r.Dir, Time: time.Now(), Complete: true}
	for _, x := range r.Remnants {
		if x.Saveable() {
			err := s.one(&x)
			switch {
			case s.ctx.Err() != nil:
				return nil, context.Cause(s.ctx)
			case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EROFS):
				return nil, err // so would be every other
			case err != nil:
				x.Error = err.Error()
			}
			if x.Error != "" {
				report.Complete = false
				report.Failed++
			} else {
				report.Files++
				report.Bytes += x.Local
			}
			if len(x.Missing) > 0 {
				report.Partial++
			}
			if progress != nil {
				progress(x)
			}
		}
		report.Remnants = append(report.Remnants, x)
	}
	if err := s.finish(); err != nil {
		return nil, err
	}
	return report, s.write(report)
}

// one saves one remnant. What is wrong with a part of it is in its Error.
func (s *saver) one(x *Remnant) error {
	switch x.State {
	case StateQuarantined:
		x.SavedAs = fmt.Sprintf("%s/%x", savedQuarantined, uint64(x.id))
	case StateUnnamed:
		x.SavedAs = fmt.Sprintf("%s/%x", savedUnnamed, uint64(x.id))
	default:
		x.SavedAs = path.Join(savedFiles, x.Name)
	}
	if x.Kind == kindDirectory {
		return s.mkdirAll(x.SavedAs)
	}
	if err := s.mkdirAll(path.Dir(x.SavedAs)); err != nil {
		return err
	}
	if err := s.make(x); err != nil {
		return err
	}
	for _, name := range x.OtherNames {
		other := path.Join(savedFiles, name)
		if err := errors.Join(s.mkdirAll(path.Dir(other)), s.root.Link(x.SavedAs, other)); err != nil {
			return fmt.Errorf("its other name: %w", err)
		}
	}
	return nil
}

func (s *saver) make(x *Remnant) error {
	if x.Kind == kindSymlink {
		if err := s.root.Symlink(x.Target, x.SavedAs); err != nil {
			return err
		}
		return s.own(x)
	}
	out, err := s.root.OpenFile(x.SavedAs, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = s.fill(x, out)
	if err == nil {
		for name, value := range x.Xattrs {
			if e := unix.Fsetxattr(int(out.Fd()), name, value, 0); e != nil && !errors.Is(e, unix.EOPNOTSUPP) {
				err = errors.Join(err, fmt.Errorf("attribute %s: %w", name, e))
			}
		}
	}
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	return s.own(x)
}

// own gives what was made its owner, mode and time. Set-ID bits are in the report only: they would make programs of a
// tenant run as somebody else.
func (s *saver) own(x *Remnant) error {
	if os.Geteuid() == 0 {
		if err := s.root.Lchown(x.SavedAs, int(x.Uid), int(x.Gid)); err != nil {
			return err
		}
	}
	if x.Kind == kindSymlink {
		return nil
	}
	if err := s.root.Chmod(x.SavedAs, fs.FileMode(x.mode&0o777)); err != nil {
		return err
	}
	if x.Mtime.IsZero() {
		return nil
	}
	return s.root.Chtimes(x.SavedAs, x.Mtime, x.Mtime)
}

// piece is how many bytes are read at once; block is what is tried one by one where the disk fails, and what is left out
// when it is all zeros.
const (
	piece = 1 << 20
	block = 4096
)

// fill writes the bytes that are here.
func (s *saver) fill(x *Remnant, out *os.File) error {
	read, next, done, err := s.source(x)
	if err != nil {
		return err
	}
	buf, zeros := make([]byte, piece), make([]byte, block)
	step := int64(piece)
	for off := int64(0); off < x.Size; {
		if err := s.ctx.Err(); err != nil {
			return errors.Join(err, done())
		}
		if off = next(off); off >= x.Size {
			break
		}
		n, skip, err := read(buf[:min(step, x.Size-off)], off)
		for at := 0; at < n; at += block {
			p := buf[at:min(at+block, n)]
			if bytes.Equal(p, zeros[:len(p)]) {
				continue
			}
			if _, err := out.WriteAt(p, off+int64(at)); err != nil {
				return errors.Join(err, done())
			}
		}
		off += int64(n)
		switch {
		case err == nil:
			off, step = off+skip, piece
		case step > block:
			step = block
		default:
			x.Error = err.Error()
			bad := min(block, x.Size-off)
			if i := len(x.Unreadable) - 1; i >= 0 && x.Unreadable[i].Offset+x.Unreadable[i].Length == off {
				x.Unreadable[i].Length += bad
			} else {
				x.Unreadable = append(x.Unreadable, Span{off, bad})
			}
			off += bad
		}
	}
	return errors.Join(out.Truncate(x.Size), done())
}

// source opens the bytes of a remnant. next skips what is known to be a hole; read returns how many bytes it has read
// and how many that follow are not here.
func (s *saver) source(x *Remnant) (read func(p []byte, off int64) (n int, skip int64, err error), next func(off int64) int64, done func() error, err error) {
	nothing := func() error { return nil }
	if x.State == StateQuarantined {
		f, err := s.remains.view.OpenFile(fmt.Sprintf("%s/%x", quarantineDir, uint64(x.id)), false)
		if err != nil {
			return nil, nil, nil, err
		}
		return func(p []byte, off int64) (int, int64, error) {
			n, err := f.ReadAt(p, off)
			if errors.Is(err, io.EOF) && n == len(p) {
				err = nil
			}
			return n, 0, err
		}, func(off int64) int64 { return off }, f.Close, nil
	}
	f := s.remains.core.store.Lookup(x.id)
	if f == nil { // no byte of it is here
		return nil, func(int64) int64 { return x.Size }, nothing, nil
	}
	return func(p []byte, off int64) (int, int64, error) {
			n, missing, err := f.ReadAt(p, off)
			if err == nil && n < len(p) && missing.Empty() {
				err = io.ErrUnexpectedEOF
			}
			return n, missing.Len(), err
		}, func(off int64) int64 {
			if data, ok := f.SeekData(off, false); ok {
				return data
			}
			return x.Size
		}, nothing, nil
}

// mkdirAll makes a directory and those above it, for nobody but the caller until finish.
func (s *saver) mkdirAll(name string) error {
	for _, dir := range append(parents(name), name) {
		if s.made[dir] {
			continue
		}
		if err := s.root.Mkdir(dir, 0o700); err != nil {
			return err
		}
		s.made[dir] = true
	}
	return nil
}

// finish gives the directories their attributes, the innermost first, and makes them durable.
func (s *saver) finish() error {
	dirs := slices.Sorted(maps.Keys(s.made))
	slices.Reverse(dirs)
	for _, dir := range dirs {
		if name, ok := strings.CutPrefix(dir, savedFiles+"/"); ok {
			x := Remnant{mode: 0o755, Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
			if a, ok := s.attributes[name]; ok {
				x = a
			}
			x.SavedAs, x.Kind = dir, kindDirectory
			if err := s.own(&x); err != nil {
				return err
			}
		}
		d, err := s.root.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}

// write makes the report durable.
func (s *saver) write(report *Report) error {
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	f, err := s.root.OpenFile(reportFile+newSuffix, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := s.root.Rename(reportFile+newSuffix, reportFile); err != nil {
		return err
	}
	d, err := s.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
