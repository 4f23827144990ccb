package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/csi-s3/csi-s3/pkg/cache"
	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Remains is a cache directory that is opened without its bucket, to see and to save what only the cache has. It holds
// the directory's lock, so no mount can use it meanwhile. Nothing on its disk is changed, but by Discard.
type Remains struct {
	Dir       string // the cache directory
	Volume    string // volume ID
	Undrained bool   // a node plugin's mark keeps the volume from being unstaged
	Remnants  []Remnant

	core *core
	view *disk.Overlay
}

// State says what is wrong with a Remnant.
type State string

// States. Of the last three the cache holds no byte that the bucket does not hold: there is nothing to save.
const (
	StateNew         State = "new"         // the bucket has nothing of it
	StateChanged     State = "changed"     // the bucket has older bytes
	StateUnnamed     State = "unnamed"     // it was removed, or never named, and open when the mount ended
	StateQuarantined State = "quarantined" // a loss of power came before any fsync of it
	StateAttributes  State = "attributes"  // the bucket has older attributes
	StateMoved       State = "moved"       // the bucket has it under another name
	StateRemoved     State = "removed"     // it was removed here and not yet there
)

// Remnant is what a cache holds of one file, directory or symbolic link. Sizes and offsets are bytes.
type Remnant struct {
	Name       string            `json:"name"` // in the volume; empty when it has none
	OtherNames []string          `json:"otherNames,omitempty"`
	State      State             `json:"state"`
	Kind       string            `json:"kind"` // file, directory, symlink or special
	Size       int64             `json:"size"`
	Local      int64             `json:"localBytes"`        // that the bucket does not have
	Missing    []Span            `json:"missing,omitempty"` // only the bucket had these; they are holes in what is saved
	Stored     []string          `json:"objects,omitempty"` // keys under which the bucket has some state of it
	Mode       string            `json:"mode,omitempty"`    // octal
	Uid        uint32            `json:"uid"`
	Gid        uint32            `json:"gid"`
	Mtime      time.Time         `json:"mtime,omitzero"`
	Target     string            `json:"target,omitempty"` // of a symlink
	Xattrs     map[string][]byte `json:"xattrs,omitempty"`
	SavedAs    string            `json:"savedAs,omitempty"`    // below the directory that it was saved to
	Unreadable []Span            `json:"unreadable,omitempty"` // the cache's disk failed to read these
	Error      string            `json:"error,omitempty"`      // why it could not be saved, or not as a whole

	id   cache.ID
	mode uint32
}

// Span is a range of bytes.
type Span struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// Saveable says that the cache has something of it that the bucket does not have.
func (r *Remnant) Saveable() bool {
	switch r.State {
	case StateAttributes, StateMoved, StateRemoved:
		return false
	}
	return r.Kind != kindSpecial
}

const (
	kindFile      = "file"
	kindDirectory = "directory"
	kindSymlink   = "symlink"
	kindSpecial   = "special"
)

// FindCaches returns the cache directories at or below dir, which may be one itself, a directory of caches of the driver
// or of csi-s3 mount, or of one volume. ErrCacheDir when there is none.
func FindCaches(dir string) ([]string, error) {
	// CACHE-DIR/volumes/VOLUME/ENDPOINT is the deepest.
	found, err := findCaches(dir, 3)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%w: %s is not one of csi-s3, and holds none", ErrCacheDir, dir)
	}
	return found, err
}

func findCaches(dir string, depth int) ([]string, error) {
	_, err := os.Lstat(filepath.Join(dir, identityFile))
	if err == nil {
		return []string{dir}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrCacheDir, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCacheDir, err)
	}
	var found []string
	for _, e := range entries {
		if depth == 0 || !e.IsDir() || strings.HasSuffix(e.Name(), goneSuffix) {
			continue
		}
		below, err := findCaches(filepath.Join(dir, e.Name()), depth-1)
		if err != nil {
			return nil, err
		}
		found = append(found, below...)
	}
	return found, nil
}

// OpenRemains opens a cache directory. disk.ErrLocked when a process uses it, ErrCacheDir when it is none, or one that
// this version does not know, journal.ErrCorrupt when it is damaged. The caller closes it.
func OpenRemains(dir string, log *slog.Logger) (_ *Remains, err error) {
	view, err := disk.OpenOverlay(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCacheDir, err)
	}
	r := &Remains{Dir: dir, view: view}
	if err := r.open(log); err != nil {
		return nil, errors.Join(fmt.Errorf("open the cache in %s: %w", dir, err), view.Close())
	}
	return r, nil
}

func (r *Remains) open(log *slog.Logger) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	text, err := r.view.ReadFile(identityFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: there is no %s, it is not one of csi-s3", ErrCacheDir, identityFile)
	}
	if err != nil {
		return err
	}
	var id identity
	if err := json.Unmarshal(text, &id); err != nil {
		return fmt.Errorf("%w: %s is damaged: %w", ErrCacheDir, identityFile, err)
	}
	r.Volume = id.Volume
	bucket, rest, _ := strings.Cut(id.Volume, "/")
	prefix := s3.Key(rest)
	if rest != "" {
		prefix += "/"
	}
	_, err = os.Lstat(r.mark())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	r.Undrained = err == nil
	r.core, err = openOn(r.view, boot, Spec{
		ID: id.Volume, Bucket: goneBucket{name: bucket}, Prefix: prefix, Options: config.DefaultMount(), Log: log,
	})
	if err != nil {
		return err
	}
	if err := r.look(); err != nil {
		return errors.Join(err, r.core.close(context.Background()))
	}
	return nil
}

func (r *Remains) mark() string { return filepath.Clean(r.Dir) + undrainedSuffix }

// goneBucket has a name and nothing else. Nobody asks it: a core that is not started sends no request.
type goneBucket struct {
	s3.Bucket
	name string
}

// Name implements s3.Bucket.
func (b goneBucket) Name() string { return b.name }

// look finds out what there is.
func (r *Remains) look() error {
	for _, u := range r.core.tree.Unsaved() {
		if x, ok := r.remnant(u); ok {
			r.Remnants = append(r.Remnants, x)
		}
	}
	kept, err := r.view.ReadDir(quarantineDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range kept {
		id, err := strconv.ParseUint(e.Name(), 16, 64)
		if err != nil || e.IsDir() {
			continue // not of package cache
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		x := Remnant{State: StateQuarantined, Kind: kindFile, Size: st.Size(), Local: st.Size(), id: cache.ID(id), mode: 0o600, Mtime: st.ModTime()}
		x.Name = strings.TrimPrefix(string(r.core.lost[x.id]), string(r.core.prefix))
		r.Remnants = append(r.Remnants, x)
	}
	return nil
}

func (r *Remains) remnant(u namespace.Unsaved) (x Remnant, ok bool) {
	a := u.Attr
	x = Remnant{
		Size: a.Size, Uid: a.Uid, Gid: a.Gid, Mtime: a.Mtime, Mode: fmt.Sprintf("%04o", a.Mode&inode.ModePerm), Target: u.Target, Xattrs: u.Xattrs,
		id: cache.ID(a.Ino), mode: a.Mode & inode.ModePerm,
	}
	if len(u.Paths) > 0 {
		x.Name, x.OtherNames = u.Paths[0], u.Paths[1:]
	}
	for _, key := range u.Stored {
		x.Stored = append(x.Stored, string(key))
	}
	switch {
	case a.IsDir():
		x.Kind, x.Size = kindDirectory, 0
		if u.Below != "" {
			x.Stored = append(x.Stored, string(u.Below))
		}
	case a.IsSymlink():
		x.Kind = kindSymlink
	case a.IsRegular():
		x.Kind = kindFile
	default:
		x.Kind = kindSpecial
	}
	switch {
	case len(u.Paths) == 0 && u.Bytes:
		x.State = StateUnnamed
	case len(u.Paths) == 0:
		x.State = StateRemoved
	case u.New:
		x.State = StateNew
	case u.Bytes:
		x.State = StateChanged
	case u.Moved:
		x.State = StateMoved
	case u.Attributes:
		x.State = StateAttributes
	default:
		return x, false // a directory above something else
	}
	if f := r.core.store.Lookup(x.id); f != nil && x.Kind == kindFile {
		x.Size, x.Local = f.Size(), f.Dirty().Bytes
		for _, m := range f.Missing(0, x.Size) {
			x.Missing = append(x.Missing, Span{m.Off, m.Len()})
		}
	} else if x.Kind == kindFile && len(u.Stored) > 0 && x.Size > 0 {
		x.Missing = []Span{{0, x.Size}}
	}
	return x, a.Ino != inode.Root
}

// Bytes is how many bytes there are to save.
func (r *Remains) Bytes() int64 {
	var n int64
	for i := range r.Remnants {
		if r.Remnants[i].Saveable() {
			n += r.Remnants[i].Local
		}
	}
	return n
}

// Saveable is how many remnants Save saves.
func (r *Remains) Saveable() int {
	n := 0
	for i := range r.Remnants {
		if r.Remnants[i].Saveable() {
			n++
		}
	}
	return n
}

// ErrUnsaved: Discard is refused, since not everything was saved, or another volume was named.
var ErrUnsaved = errors.New("the cache is kept")

// Discard gives the cache up: the node plugin's mark goes, so that an unstage succeeds, and the directory gets a name under
// which no mount finds it. What it holds stays on the disk; of a node plugin the next sweep removes it. volume confirms
// which volume is meant. On return the new state is durable. ErrUnsaved when volume is not Volume, or Save was not called,
// or did not save all.
func (r *Remains) Discard(volume string, saved *Report) error {
	switch {
	case volume != r.Volume:
		return fmt.Errorf("%w: it is of volume %q, not of %q", ErrUnsaved, r.Volume, volume)
	case saved == nil || !saved.Complete || saved.Volume != r.Volume || saved.Cache != r.Dir:
		return fmt.Errorf("%w: not everything that it holds was saved", ErrUnsaved)
	}
	// In this order a crash leaves a cache that is drained as far as an unstage can see.
	if err := os.Remove(r.mark()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard: %w", err)
	}
	gone := filepath.Clean(r.Dir) + goneSuffix
	for i := 1; ; i++ {
		_, err := os.Lstat(gone)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("discard: %w", err)
		}
		gone = fmt.Sprintf("%s.%d%s", filepath.Clean(r.Dir), i, goneSuffix)
	}
	if err := errors.Join(os.Rename(r.Dir, gone), syncDir(filepath.Dir(gone))); err != nil {
		return fmt.Errorf("discard: %w", err)
	}
	r.Dir, r.Undrained = gone, false
	return nil
}

// Close gives the lock back.
func (r *Remains) Close() error {
	return errors.Join(r.core.close(context.Background()), r.view.Close())
}

// directories returns the tracked directories, parents first, for their attributes.
func (r *Remains) directories() map[string]Remnant {
	found := map[string]Remnant{}
	for _, u := range r.core.tree.Unsaved() {
		if u.Attr.IsDir() && u.Known && len(u.Paths) > 0 {
			x, _ := r.remnant(u)
			found[x.Name] = x
		}
	}
	return found
}

// parents lists the directories above name, the topmost first.
func parents(name string) []string {
	var above []string
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		above = append(above, dir)
	}
	slices.Reverse(above)
	return above
}
