package chaos_test

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// The operations. Each returns nil when it was acknowledged or there was nothing to do.

func (w *world) name(dir, kind string) string {
	w.serial++
	return path.Join(dir, fmt.Sprintf("%s%d", kind, w.serial))
}

// pick is a random name of those that suit, "" when there is none.
func (w *world) pick(suits func(name string, e entry) bool) string {
	var all []string
	for name, e := range w.names() {
		if suits(name, e) {
			all = append(all, name)
		}
	}
	if len(all) == 0 {
		return ""
	}
	slices.Sort(all)
	return all[w.rnd.IntN(len(all))]
}

// anyDir is a directory of the world, or the world itself.
func (w *world) anyDir() string {
	if w.rnd.IntN(2) == 0 {
		return ""
	}
	return w.pick(func(_ string, e entry) bool { return e.mode.IsDir() })
}

func isFile(_ string, e entry) bool { return e.mode.IsRegular() }

func (w *world) big(name string, e entry) bool {
	return isFile(name, e) && w.files[e.file].now().size() >= bigFile
}

func (w *world) small(name string, e entry) bool {
	return isFile(name, e) && w.files[e.file].now().size() < bigFile
}

// handle is an open file of a name.
func (w *world) handle(name string) (i int, f *os.File, err error) {
	i = w.names()[name].file
	if f := w.open[i]; f != nil {
		return i, f, nil
	}
	f, err = os.OpenFile(w.path(name), os.O_RDWR, 0)
	if err == nil {
		w.open[i] = f
	}
	return i, f, err
}

// write writes n bytes of a new generation at off.
func (w *world) write(i int, f *os.File, off, n int64) error {
	w.last++
	p := make([]byte, n)
	part := part{off: off, end: off + n, gen: w.last}
	part.fill(p, off)
	err := w.change(i, version{w.files[i].now().overlay(part), true}, func() error {
		_, err := f.WriteAt(p, off)
		return err
	})
	if err == nil {
		w.tally.bytes += n
	}
	return err
}

func (w *world) create(name string, flags int) (i int, f *os.File, err error) {
	i = len(w.files)
	w.files = append(w.files, &file{versions: []version{{}}, barrier: -1})
	err = w.rename("create "+name, func(names map[string]entry) { names[name] = entry{file: i} }, func() (err error) {
		f, err = os.OpenFile(w.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL|flags, 0o644)
		return err
	})
	if err == nil {
		w.open[i] = f
	}
	return i, f, err
}

func (w *world) fsync(i int, f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	w.barrier(i)
	return nil
}

func (w *world) close(i int) error {
	f := w.open[i]
	delete(w.open, i)
	return f.Close()
}

// newFile makes a small file by one to three writes.
func (w *world) newFile(sync bool) error {
	flags := 0
	if w.rnd.IntN(8) == 0 {
		flags = os.O_SYNC
	}
	i, f, err := w.create(w.name(w.anyDir(), "f"), flags)
	if err != nil {
		return err
	}
	off := int64(0)
	for range 1 + w.rnd.IntN(3) {
		n := 1 + w.rnd.Int64N(maxSmall)
		if err := w.write(i, f, off, n); err != nil {
			return err
		}
		if flags != 0 {
			w.barrier(i)
		}
		off += n
	}
	if sync {
		if err := w.fsync(i, f); err != nil {
			return err
		}
	}
	// The other handles stay until something closes them.
	if w.rnd.IntN(3) > 0 || flags != 0 {
		return w.close(i)
	}
	return nil
}

// newBig makes a file that is uploaded in parts, unless there is one.
func (w *world) newBig(sync bool) error {
	if w.pick(w.big) != "" {
		return nil
	}
	i, f, err := w.create(w.name("", "big"), 0)
	if err != nil {
		return err
	}
	for off := int64(0); off < bigFile; off += bigWrite {
		if err := w.write(i, f, off, bigWrite+w.rnd.Int64N(2)); err != nil {
			return err
		}
	}
	if sync {
		if err := w.fsync(i, f); err != nil {
			return err
		}
	}
	return w.close(i)
}

func (w *world) removeBig() error {
	name := w.pick(w.big)
	if name == "" {
		return nil
	}
	return w.unlink(name)
}

// changeBig changes a few bytes of a file of many parts, behind off.
func (w *world) changeBig(off int64) error {
	name := w.pick(w.big)
	if name == "" {
		return nil
	}
	i, f, err := w.handle(name)
	if err != nil {
		return err
	}
	if err := w.write(i, f, off+w.rnd.Int64N(bigFile-off), 1+w.rnd.Int64N(4096)); err != nil {
		return err
	}
	return w.close(i)
}

// overwrite changes bytes of a file, or appends.
func (w *world) overwrite() error {
	name := w.pick(w.small)
	if name == "" {
		return nil
	}
	i, f, err := w.handle(name)
	if err != nil {
		return err
	}
	size := w.files[i].now().size()
	off := size
	switch w.rnd.IntN(4) {
	case 0: // append
	case 1: // behind a hole
		off += w.rnd.Int64N(8192)
	default:
		off = w.rnd.Int64N(size + 1)
	}
	n := 1 + w.rnd.Int64N(maxSmall/4)
	if size > 8*maxSmall {
		off, n = w.rnd.Int64N(size-n), min(n, 1024)
	}
	return w.write(i, f, off, n)
}

func (w *world) truncate() error {
	name := w.pick(w.small)
	if name == "" {
		return nil
	}
	i := w.names()[name].file
	now := w.files[i].now()
	size := w.rnd.Int64N(now.size() + 4096)
	if w.rnd.IntN(4) == 0 {
		size = 0
	}
	return w.change(i, version{now.resize(size), false}, func() error { return os.Truncate(w.path(name), size) })
}

func (w *world) fsyncAny() error {
	name := w.pick(isFile)
	if name == "" {
		return nil
	}
	i, f, err := w.handle(name)
	if err != nil {
		return err
	}
	return w.fsync(i, f)
}

func (w *world) fsyncDir() error {
	d, err := os.Open(w.path(w.anyDir()))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return err
	}
	if w.dark() {
		return nil // as of barrier
	}
	w.synced = w.acked
	w.tally.dirs++
	return nil
}

func (w *world) closeAny() error {
	for i := range w.open {
		return w.close(i)
	}
	return nil
}

func (w *world) unlink(name string) error {
	return w.rename("remove "+name, func(names map[string]entry) { delete(names, name) }, func() error { return os.Remove(w.path(name)) })
}

func (w *world) unlinkAny() error {
	name := w.pick(func(_ string, e entry) bool { return !e.mode.IsDir() })
	if name == "" {
		return nil
	}
	return w.unlink(name)
}

// renameAny gives a file or a symbolic link a new name, or that of another file.
func (w *world) renameAny(over bool) error {
	from := w.pick(func(_ string, e entry) bool { return !e.mode.IsDir() })
	to := w.name(w.anyDir(), "r")
	if over {
		to = w.pick(isFile)
	}
	if from == "" || to == "" {
		return nil
	}
	a, b := w.names()[from], w.names()[to]
	_, taken := w.names()[to]
	if taken && a.mode.IsRegular() && a.file == b.file {
		return nil // two names of one file: rename does nothing
	}
	return w.rename("rename "+from+" to "+to, func(names map[string]entry) {
		names[to] = names[from]
		delete(names, from)
	}, func() error {
		if last := &w.states[len(w.states)-1]; taken && a.mode.IsRegular() {
			last.settled, last.version = a.file, w.files[a.file].acked
		}
		return os.Rename(w.path(from), w.path(to))
	})
}

func isUnder(name, dir string) bool { return strings.HasPrefix(name, dir+"/") }

func (w *world) renameDir() error {
	from := w.pick(func(_ string, e entry) bool { return e.mode.IsDir() })
	to := w.name(w.anyDir(), "m")
	if from == "" || isUnder(to, from) {
		return nil
	}
	return w.rename("rename directory "+from+" to "+to, func(names map[string]entry) {
		for name, e := range maps.Clone(names) {
			if name == from || isUnder(name, from) {
				delete(names, name)
				names[to+name[len(from):]] = e
			}
		}
	}, func() error { return os.Rename(w.path(from), w.path(to)) })
}

func (w *world) mkdir() error {
	dir := w.anyDir()
	if strings.Count(dir, "/") > 2 {
		return nil
	}
	name := w.name(dir, "d")
	return w.rename("mkdir "+name, func(names map[string]entry) { names[name] = entry{mode: fs.ModeDir} }, func() error { return os.Mkdir(w.path(name), 0o755) })
}

func (w *world) rmdir() error {
	name := w.pick(func(name string, e entry) bool {
		for other := range w.names() {
			if isUnder(other, name) {
				return false
			}
		}
		return e.mode.IsDir()
	})
	if name == "" {
		return nil
	}
	return w.unlink(name)
}

func (w *world) symlink() error {
	name := w.name(w.anyDir(), "s")
	target := fmt.Sprintf("nowhere/%d", w.rnd.Uint64())
	return w.rename("symlink "+name, func(names map[string]entry) { names[name] = entry{mode: fs.ModeSymlink, target: target} },
		func() error { return os.Symlink(target, w.path(name)) })
}

func (w *world) link() error {
	from := w.pick(w.small)
	to := w.name(w.anyDir(), "l")
	if from == "" {
		return nil
	}
	return w.rename("link "+from+" to "+to, func(names map[string]entry) { names[to] = names[from] },
		func() error { return os.Link(w.path(from), w.path(to)) })
}

// readAny reads a file and compares: what was written is seen at once.
func (w *world) readAny() error {
	name := w.pick(w.small)
	if name == "" {
		return nil
	}
	i := w.names()[name].file
	_, err := w.look(w.path(name), w.files[i], len(w.files[i].versions)-1)
	return err
}

// step does one thing at random.
func (w *world) step() error {
	for len(w.open) > maxHandles {
		if err := w.closeAny(); err != nil {
			return err
		}
	}
	if len(w.names()) > maxNames {
		return w.thin()
	}
	switch n := w.rnd.IntN(100); {
	case n < 16:
		return w.newFile(w.rnd.IntN(2) == 0)
	case n < 36:
		return w.overwrite()
	case n < 42:
		return w.truncate()
	case n < 52:
		return w.fsyncAny()
	case n < 55:
		return w.fsyncDir()
	case n < 61:
		return w.closeAny()
	case n < 66:
		return w.unlinkAny()
	case n < 71:
		return w.renameAny(false)
	case n < 76:
		return w.renameAny(true)
	case n < 80:
		return w.renameDir()
	case n < 84:
		return w.mkdir()
	case n < 86:
		return w.rmdir()
	case n < 89:
		return w.symlink()
	case n < 92:
		return w.link()
	case n < 97:
		return w.readAny()
	case n < 99:
		return w.changeBig(0)
	}
	return w.removeBig()
}

// thin removes a name of a world that has many.
func (w *world) thin() error {
	if w.rnd.IntN(3) == 0 {
		return w.rmdir()
	}
	return w.unlinkAny()
}
