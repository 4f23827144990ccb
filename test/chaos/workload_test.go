package chaos_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	maxNames   = 24       // of a world; more are removed again
	maxSmall   = 96 << 10 // bytes of one write
	bigFile    = 17 << 20 // more than what is sent by one PUT
	bigWrite   = 1 << 20
	lastPart   = 16 << 20 // a big file of which only the bytes behind it changed is uploaded in parts, the others copied
	maxHandles = 3
)

// entry is what a name of a world stands for.
type entry struct {
	mode   fs.FileMode // the type
	file   int         // index in world.files
	target string      // of a symbolic link
}

// state is all names of a world, relative to it, after one change.
type state struct {
	names map[string]entry
	// A rename over a name that exists makes the file durable first, as its version was then. -1: it was none.
	settled, version int
}

// version is a file's content after one change. A write may be seen in part.
type version struct {
	content
	write bool
}

// file is the history of a file since the last blow. acked is the last version whose change returned, barrier the last
// that an fsync which returned has covered, -1 for none.
type file struct {
	versions       []version
	acked, barrier int
}

// String is the history, as it is needed to understand a failure.
func (f *file) String() string {
	var out strings.Builder
	fmt.Fprintf(&out, "of its versions, %d was acknowledged and %d covered by an fsync:", f.acked, f.barrier)
	for i, v := range f.versions {
		fmt.Fprintf(&out, "\n\t%d:", i)
		for _, x := range v.content {
			fmt.Fprintf(&out, " [%d,%d)", x.off, x.end)
			if x.read != nil {
				out.WriteString(" of several writes")
			} else {
				fmt.Fprintf(&out, " of write %d", x.gen)
			}
		}
	}
	return out.String()
}

func (f *file) now() content { return f.versions[len(f.versions)-1].content }

// tally counts what a world was told.
type tally struct {
	ops    int   // changes that returned
	bytes  int64 // of writes that returned
	fsyncs int   // of files with content, that returned
	dirs   int   // fsyncs of directories
	lost   int   // acknowledged changes of names or bytes that were not there after a loss of power, as was allowed
	mixed  int   // files in which old and new bytes stood side by side after a blow, as was allowed
}

// world is a directory that one worker fills, and what is known of it. It knows nothing of other worlds: they share the
// mount alone.
type world struct {
	dir    string // below the mount
	root   string
	rnd    *rand.Rand
	files  []*file
	states []state
	acked  int // the last of states whose change returned
	synced int // the last of states that survives a loss of power for sure
	open   map[int]*os.File
	last   uint64   // generation of the last write
	serial int      // of the last name
	past   []string // what was done to names, for who has to understand a failure
	tally  tally
	dark   func() bool // a loss of power has begun
}

func newWorld(mount, dir string, dark func() bool) *world {
	return &world{
		dir: dir, root: filepath.Join(mount, dir), open: map[int]*os.File{}, dark: dark,
		states: []state{{names: map[string]entry{}, settled: -1}},
	}
}

func (w *world) names() map[string]entry { return w.states[len(w.states)-1].names }
func (w *world) path(name string) string { return filepath.Join(w.root, name) }

// rename runs a call that changes names.
func (w *world) rename(what string, change func(names map[string]entry), call func() error) error {
	names := maps.Clone(w.names())
	change(names)
	w.states = append(w.states, state{names: names, settled: -1})
	w.note("%d: %s", len(w.states)-1, what)
	if err := call(); err != nil {
		w.note("failed: %v", err)
		return err
	}
	w.acked = len(w.states) - 1
	w.tally.ops++
	return nil
}

// note remembers what happened.
func (w *world) note(format string, args ...any) {
	const most = 2000
	if len(w.past) >= 2*most {
		w.past = append(w.past[:0], w.past[most:]...)
	}
	w.past = append(w.past, fmt.Sprintf(format, args...))
}

// change runs a call that changes the bytes of a file.
func (w *world) change(i int, v version, call func() error) error {
	f := w.files[i]
	f.versions = append(f.versions, v)
	if err := call(); err != nil {
		return err
	}
	f.acked = len(f.versions) - 1
	w.tally.ops++
	return nil
}

// barrier is an fsync of a file that returned. One that returns while the power is being lost proves nothing: ext4 answers
// 0 to an fdatasync that was past its check for a shutdown when the transaction that it waits for was given up
// (jbd2_complete_transaction knows only living ones). Of a node without power nobody would have heard that answer.
func (w *world) barrier(i int) {
	if w.dark() {
		return
	}
	f := w.files[i]
	f.barrier, w.synced = f.acked, w.acked
	if f.now().size() > 0 {
		w.tally.fsyncs++
	}
}

// durable says that nothing of now may be lost any more: a flush returned.
func (w *world) durable() {
	w.synced = w.acked
	for _, f := range w.files {
		f.barrier = f.acked
	}
}

// abandon closes what is open in a dead mount.
func (w *world) abandon() {
	for i := range w.open {
		_ = w.close(i) // the server is dead
	}
}

// seen is what the mount shows of a name.
type seen struct {
	mode   fs.FileMode
	target string
	ino    uint64
}

// walk returns all names below the world as the mount shows them.
func (w *world) walk() (map[string]seen, error) {
	found := map[string]seen{}
	err := filepath.WalkDir(w.root, func(at string, d fs.DirEntry, err error) error {
		if err != nil || at == w.root {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) && d.IsDir() {
			return fs.SkipDir // the server lists a prefix without a key, and the look-up found out
		}
		if err != nil {
			return err
		}
		s := seen{mode: d.Type(), ino: info.Sys().(*syscall.Stat_t).Ino}
		if s.mode&fs.ModeSymlink != 0 {
			s.target, err = os.Readlink(at)
		}
		found[at[len(w.root)+1:]] = s
		return err
	})
	return found, err
}

// look reads a file and explains it by its versions from floor on.
func (w *world) look(at string, f *file, floor int) (content, error) {
	r, err := os.Open(at)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return nil, err
	}
	c, err := f.explain(r, info.Size(), floor)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; %s", at, err, f)
	}
	return c, nil
}

// readAll reads the world as far as its server lives, and does not compare.
func (w *world) readAll() {
	_ = filepath.WalkDir(w.root, func(at string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			_, err = os.ReadFile(at)
		}
		return err
	})
}

// errWorld: a world is not as it may be.
var errWorld = errors.New("the world is not what was acknowledged")

// compare looks at the world after a blow and takes what it sees for the truth from then on. After a kill all that
// returned must be there, after a loss of power (cut) all that was synced.
func (w *world) compare(cut bool) error {
	found, err := w.walk()
	if err != nil {
		return err
	}
	first := w.acked
	if cut {
		first = w.synced
	}
	var why []error
	for k := len(w.states) - 1; k >= first; k-- {
		floors := w.floors(k, cut)
		if err := w.fits(k, found, floors); err != nil {
			why = append(why, fmt.Errorf("names %d: %w", k, err))
			continue
		}
		contents, err := w.contents(k, found, floors)
		if err == nil {
			w.settle(k, found, contents)
			return nil
		}
		why = append(why, fmt.Errorf("names %d: %w", k, err))
	}
	if len(why) > 4 {
		why = append(why[:2:2], why[len(why)-2:]...)
	}
	return fmt.Errorf("%s: %w: names %d to %d are allowed:\n%w\nseen: %v\nbefore:\n%s", w.dir, errWorld, first, len(w.states)-1, errors.Join(why...),
		slices.Sorted(maps.Keys(found)), strings.Join(w.past, "\n"))
}

// floors are the oldest versions that may be seen of each file while the names are those of state k; -1: it may be gone.
func (w *world) floors(k int, cut bool) []int {
	floors := make([]int, len(w.files))
	for i, f := range w.files {
		floors[i] = f.acked
		if cut {
			floors[i] = f.barrier
		}
	}
	for _, s := range w.states[:k+1] {
		if s.settled >= 0 {
			floors[s.settled] = max(floors[s.settled], s.version)
		}
	}
	return floors
}

// fits compares names. A new file that no fsync covered may be gone.
func (w *world) fits(k int, found map[string]seen, floors []int) error {
	names := w.states[k].names
	for name, s := range found {
		e, ok := names[name]
		if !ok {
			return fmt.Errorf("%s is there and should not be", name)
		}
		if e.mode != s.mode || e.target != s.target {
			return fmt.Errorf("%s is %v %q, should be %v %q", name, s.mode, s.target, e.mode, e.target)
		}
	}
	for name, e := range names {
		if _, ok := found[name]; !ok && !(e.mode.IsRegular() && floors[e.file] < 0) {
			return fmt.Errorf("%s is gone", name)
		}
	}
	return nil
}

func (w *world) contents(k int, found map[string]seen, floors []int) (map[string]content, error) {
	contents := map[string]content{}
	for name, e := range w.states[k].names {
		if _, ok := found[name]; !ok || !e.mode.IsRegular() {
			continue
		}
		c, err := w.look(w.path(name), w.files[e.file], max(floors[e.file], 0))
		if err != nil {
			return nil, err
		}
		contents[name] = c
	}
	return contents, nil
}

// settle begins a new history with what is seen now: names k, without those that are gone.
func (w *world) settle(k int, found map[string]seen, contents map[string]content) {
	if k < w.acked {
		w.tally.lost++
	}
	names := map[string]entry{}
	var files []*file
	inodes := map[uint64]int{} // hard links are files of their own once the bucket has them
	for name, e := range w.states[k].names {
		if _, ok := found[name]; !ok {
			w.tally.lost++
			continue
		}
		if e.mode.IsRegular() {
			old, c := w.files[e.file], contents[name]
			if !c.same(old.versions[old.acked].content) {
				w.tally.lost++
			}
			if c.mixed() {
				w.tally.mixed++
			}
			// What was recovered is durable. An empty file without an fsync is but a name.
			barrier := 0
			if c.size() == 0 && old.barrier < 0 {
				barrier = -1
			}
			i, linked := inodes[found[name].ino]
			if !linked {
				i = len(files)
				inodes[found[name].ino] = i
				files = append(files, &file{versions: []version{{content: c}}, barrier: barrier})
			}
			e.file = i
		}
		names[name] = e
	}
	w.note("a blow; names %d were seen", k)
	w.files, w.states, w.acked, w.synced = files, []state{{names: names, settled: -1}}, 0, 0
}

// isGone says that an error is that of a mount whose server died, or of what is below it.
func isGone(err error) bool {
	for _, e := range []syscall.Errno{syscall.ENOTCONN, syscall.ECONNABORTED, syscall.EIO, syscall.EROFS, syscall.ENOENT, syscall.ENODEV, syscall.EBADF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return errors.Is(err, io.ErrUnexpectedEOF)
}
