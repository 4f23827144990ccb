package namespace_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/inode"
	"github.com/csi-s3/csi-s3/pkg/namespace"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
)

// entry is a file or directory of the model.
type entry struct {
	dir     bool
	content string
	mine    map[string]bool // contents that it has, or had
	names   map[string]bool // that it has, or had
}

// world is a bench with what programs have done to it.
type world struct {
	*bench
	names    map[string]*entry // by path; those of directories have a slash at their end
	all      []*entry
	open     map[inode.Ino]*entry // one handle each
	version  int
	restless bool // its directories go to and fro
}

func newWorld(seed uint64) *world {
	w := &world{bench: newBench(seed), names: map[string]*entry{}, open: map[inode.Ino]*entry{}}
	if w.rnd.IntN(3) == 0 {
		w.bucket.Quirks = s3mem.NoCopyConditions()
	}
	w.bucket.OwnTags = w.rnd.IntN(2) == 0
	w.faults = []int{0, 3, 10}[w.rnd.IntN(3)]
	w.changed = w.check
	w.restless = w.rnd.IntN(2) == 0
	for _, dir := range []string{"a/", "b/", "a/c/"}[:w.rnd.IntN(4)] {
		if w.rnd.IntN(2) == 0 || dir == "a/" {
			w.there(dir, "")
		}
		w.make(dir, true)
		for i := range w.rnd.IntN(3) {
			name := fmt.Sprint(dir, "f", i)
			w.there(name, w.change(w.make(name, false), "from before"))
		}
	}
	// A directory that is only a prefix of keys exists when there are some.
	for _, dir := range []string{"a/c/", "b/"} {
		if _, err := w.stored(s3.Key(dir)); err != nil && w.names[dir] != nil && !w.filled(dir) {
			delete(w.names, dir)
		}
	}
	return w
}

func (w *world) there(key, content string) {
	_, err := w.bucket.Put(ctx, s3.Key(key), s3.Body{R: strings.NewReader(content), Size: int64(len(content))}, s3.Attributes{}, s3.Condition{})
	w.ok(err)
}

func (w *world) make(name string, dir bool) *entry {
	e := &entry{dir: dir, mine: map[string]bool{"": true}, names: map[string]bool{name: true}}
	w.all = append(w.all, e)
	w.names[name] = e
	return e
}

// change gives a file bytes that no other has, after some that it has.
func (w *world) change(e *entry, keep string) string {
	w.version++
	e.content = fmt.Sprint(keep, "+", w.version)
	if w.rnd.IntN(4) == 0 {
		e.content = strings.Repeat("x", w.rnd.IntN(3)) + e.content // so that sizes differ
	}
	e.mine[e.content] = true
	return e.content
}

func (w *world) filled(dir string) bool {
	for name := range w.names {
		if name != dir && strings.HasPrefix(name, dir) {
			return true
		}
	}
	return false
}

// check looks at an object when it changed: it is a state that its file had, and no file has lost its bytes.
func (w *world) check(key s3.Key, content string, there bool) {
	name := string(key)
	if there && !strings.HasPrefix(name, ".csi-s3/") && !strings.HasSuffix(name, "/") &&
		!slices.ContainsFunc(w.all, func(e *entry) bool { return !e.dir && e.names[name] && e.mine[content] }) {
		w.fail("%q has the bytes %q, which no file of this name had", name, content)
	}
}

// split takes a path apart.
func split(name string) (dir, base string) {
	name = strings.TrimSuffix(name, "/")
	i := strings.LastIndexByte(name, '/') + 1
	return name[:i], name[i:]
}

// lookup finds an inode as package vfs does, and compares with the model.
func (w *world) lookup(name string) (inode.Ino, bool) {
	ino := inode.Root
	at := ""
	for part := range strings.SplitSeq(strings.TrimSuffix(name, "/"), "/") {
		if part == "" {
			break
		}
		at += part
		n, ok := w.find(ino, part)
		file, dir := w.names[at], w.names[at+"/"]
		if ok != (file != nil || dir != nil) || ok && n.Attr.IsDir() != (dir != nil) {
			res, err := w.tree.Resolve(ino, part)
			w.fail("look up %q: found %v %+v, file %v, directory %v; %+v, %v\n%s", at, ok, n, file != nil, dir != nil, res, err, w.tree.Waiting())
		}
		if !ok {
			return 0, false
		}
		ino = n.Attr.Ino
		at += "/"
	}
	return ino, true
}

func (w *world) find(dir inode.Ino, name string) (namespace.Node, bool) {
	res, err := w.tree.Resolve(dir, name)
	w.ok(err)
	if res.Found || res.Absent {
		return res.Node, res.Found
	}
	page, err := w.bucket.List(ctx, s3.ListInput{Prefix: res.Key + "/", MaxKeys: 1})
	w.ok(err)
	r := namespace.Remote{IsDir: len(page.Objects) > 0, Known: true}
	key := res.Key
	if r.IsDir {
		key += "/"
	}
	info, err := w.bucket.Head(ctx, key)
	switch {
	case err == nil:
		r.Info = info
	case !errors.Is(err, s3.ErrNotExist):
		w.fail("%v", err)
	case !r.IsDir:
		return namespace.Node{}, false
	}
	n, err := w.tree.Learn(dir, name, res.Version, r)
	w.ok(err)
	return n, true
}

// place finds the directory of a name that is to be made, and its version.
func (w *world) place(name string) (dir inode.Ino, base string, version uint64, ok bool) {
	parent, base := split(name)
	dir, ok = w.lookup(parent)
	if !ok {
		return 0, "", 0, false
	}
	res, err := w.tree.Resolve(dir, base)
	w.ok(err)
	return dir, base, res.Version, true
}

// everything looks up all names that there ever were.
func (w *world) everything() {
	names := map[string]bool{}
	for _, e := range w.all {
		for name := range e.names {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		behind := false // a file
		for dir, _ := split(name); dir != ""; dir, _ = split(dir) {
			behind = behind || w.names[strings.TrimSuffix(dir, "/")] != nil
		}
		if !behind {
			w.lookup(name)
		}
	}
}

// pick chooses a name that exists, of a kind; "" when there is none.
func (w *world) pick(want func(name string, e *entry) bool) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(w.names)) {
		if want(name, w.names[name]) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return names[w.rnd.IntN(len(names))]
}

func file(_ string, e *entry) bool      { return !e.dir }
func directory(_ string, e *entry) bool { return e.dir }

// fresh is a name that does not exist, in some directory.
func (w *world) fresh(dir bool) string {
	parent := w.pick(directory)
	if w.rnd.IntN(3) == 0 || strings.Count(parent, "/") > 4 {
		parent = ""
	}
	name := fmt.Sprint(parent, string("abf"[w.rnd.IntN(3)]))
	if !dir && w.rnd.IntN(4) > 0 {
		name = fmt.Sprint(parent, "f", w.rnd.IntN(3))
	}
	if w.names[name] != nil || w.names[name+"/"] != nil {
		return ""
	}
	return name
}

// mutate does one thing that programs do.
func (w *world) mutate() {
	f, d := w.pick(file), w.pick(directory)
	k := w.rnd.IntN(30)
	if w.restless && w.rnd.IntN(2) == 0 {
		k = 18 + w.rnd.IntN(8)
	}
	switch {
	case k < 5:
		w.create(w.fresh(false))
	case k < 9 && f != "":
		w.write(f)
	case k < 11 && f != "":
		w.unlink(f)
	case k < 15 && f != "":
		w.rename(f, w.fresh(false))
	case k < 18 && f != "":
		w.rename(f, w.pick(file))
	case k < 20 && d != "":
		w.rename(d, w.fresh(true))
	case k < 21 && d != "":
		w.rename(d, w.pick(func(name string, e *entry) bool { return e.dir && !w.filled(name) }))
	case k < 23 && len(w.names) > 1:
		w.exchange(w.pick(func(string, *entry) bool { return true }), w.pick(func(string, *entry) bool { return true }))
	case k < 25:
		w.mkdir(w.fresh(true))
	case k < 26 && d != "":
		w.rmdir(d)
	case k < 27 && f != "":
		w.link(f, w.fresh(false))
	case k < 28 && f != "":
		w.chmod(f)
	case k < 29 && f != "":
		w.hold(f)
	case len(w.open) > 0:
		w.letGo()
	}
}

func (w *world) create(name string) {
	dir, base, version, ok := w.place(name)
	if name == "" || !ok {
		return
	}
	w.lookup(name)
	n, err := w.tree.Create(namespace.Op{}, dir, base, version, inode.Attr{Mode: inode.ModeRegular | 0o644, Mtime: w.now, Ctime: w.now}, "")
	w.ok(err)
	w.log("create %q: %d", name, n.Attr.Ino)
	w.cached[n.Attr.Ino] = ""
	w.make(name, false)
	if w.rnd.IntN(3) > 0 {
		w.write(name)
	}
}

func (w *world) write(name string) {
	ino, _ := w.lookup(name)
	old, err := w.read(ino)
	w.ok(err)
	e := w.names[name]
	if old != e.content {
		w.fail("%q has the bytes %q, not %q", name, old, e.content)
	}
	w.ok(w.tree.BeginWrite(ino))
	w.cached[ino] = w.change(e, old[max(0, len(old)-8):])
	w.log("write %q (%d): %q", name, ino, e.content)
	w.ok(w.tree.Written(ino, int64(len(e.content)), w.now))
}

func (w *world) unlink(name string) {
	w.lookup(name)
	parent, base := split(name)
	dir, _ := w.lookup(parent)
	w.log("unlink %q", name)
	w.ok(w.tree.Unlink(namespace.Op{}, dir, base))
	delete(w.names, name)
}

func (w *world) mkdir(name string) {
	dir, base, version, ok := w.place(name)
	if name == "" || !ok {
		return
	}
	w.lookup(name)
	n, err := w.tree.Create(namespace.Op{}, dir, base, version, inode.Attr{Mode: inode.ModeDir | 0o755, Mtime: w.now, Ctime: w.now}, "")
	w.ok(err)
	w.log("mkdir %q: %d", name, n.Attr.Ino)
	w.make(name+"/", true)
}

func (w *world) rmdir(name string) {
	if w.filled(name) {
		return
	}
	w.lookup(name)
	parent, base := split(name)
	dir, _ := w.lookup(parent)
	w.log("rmdir %q", name)
	w.ok(w.tree.Rmdir(namespace.Op{}, dir, base))
	delete(w.names, name)
}

// rename moves a name, to a free one or over another.
func (w *world) rename(from, to string) {
	e := w.names[from]
	if e.dir {
		to = strings.TrimSuffix(to, "/") + "/"
	}
	over := w.names[to]
	if strings.TrimSuffix(to, "/") == "" || over == e || e.dir && strings.HasPrefix(to, from) {
		return
	}
	w.relabel(from, to, 0, func() {
		w.shift(w.take(from), to)
	})
}

// relabel renames in the tree and, by then, in the model.
func (w *world) relabel(from, to string, flags uint32, then func()) {
	w.lookup(from)
	w.lookup(to)
	dir1, base1 := split(from)
	dir2, base2 := split(to)
	ino1, _ := w.lookup(dir1)
	ino2, ok := w.lookup(dir2)
	if !ok {
		return
	}
	w.log("rename %q %q, flags %d", from, to, flags)
	w.ok(w.tree.Rename(namespace.Op{}, ino1, base1, ino2, base2, flags))
	then()
}

// take removes a name and all below it from the model; what follows the name is the key.
func (w *world) take(name string) map[string]*entry {
	out := map[string]*entry{}
	for other, e := range w.names {
		if other == name || strings.HasSuffix(name, "/") && strings.HasPrefix(other, name) {
			out[other[len(name):]] = e
			delete(w.names, other)
		}
	}
	return out
}

func (w *world) shift(what map[string]*entry, to string) {
	for rest, e := range what {
		w.names[to+rest] = e
		e.names[to+rest] = true
	}
}

func (w *world) exchange(one, other string) {
	if w.names[one] == w.names[other] || strings.HasPrefix(one, other) && strings.HasSuffix(other, "/") || strings.HasPrefix(other, one) && strings.HasSuffix(one, "/") {
		return
	}
	w.relabel(one, other, 2, func() {
		to := func(name string, e *entry) string {
			if name = strings.TrimSuffix(name, "/"); e.dir {
				name += "/"
			}
			return name
		}
		e, x := w.names[one], w.names[other]
		a, b := w.take(one), w.take(other)
		w.shift(a, to(other, e))
		w.shift(b, to(one, x))
	})
}

func (w *world) link(name, to string) {
	dir, base, _, ok := w.place(to)
	if to == "" || !ok {
		return
	}
	ino, _ := w.lookup(name)
	w.lookup(to)
	res, err := w.tree.Resolve(dir, base)
	w.ok(err)
	w.log("link %q %q", name, to)
	_, err = w.tree.Link(namespace.Op{}, ino, dir, base, res.Version)
	w.ok(err)
	w.names[to] = w.names[name]
	w.names[to].names[to] = true
}

func (w *world) chmod(name string) {
	ino, _ := w.lookup(name)
	mode := uint32(w.rnd.IntN(0o777))
	w.log("chmod %q", name)
	_, err := w.tree.SetAttr(namespace.Op{}, ino, namespace.Patch{Mode: &mode})
	w.ok(err)
}

func (w *world) hold(name string) {
	ino, _ := w.lookup(name)
	if w.open[ino] == nil {
		w.log("open %q: %d", name, ino)
		w.ok(w.tree.Opened(ino))
		w.open[ino] = w.names[name]
	}
}

func (w *world) letGo() {
	ino := slices.Sorted(maps.Keys(w.open))[0]
	if content, err := w.read(ino); err != nil || content != w.open[ino].content {
		w.fail("%d is open and has the bytes %q, not %q: %v", ino, content, w.open[ino].content, err)
	}
	w.log("close %d", ino)
	delete(w.open, ino)
	w.tree.Released(ino)
}

// live does many things in any order, and then compares the bucket with the model.
func (w *world) live() {
	for range 20 + w.rnd.IntN(400) {
		w.now = w.now.Add(time.Duration(w.rnd.IntN(4)) * time.Millisecond)
		switch k := w.rnd.IntN(100); {
		case k < 35:
			w.mutate()
		case k < 55:
			w.begin()
		case k < 99:
			w.advance()
		default:
			clear(w.open)
			w.kill()
			w.everything()
		}
	}
	for len(w.open) > 0 {
		w.letGo()
	}
	w.drain()
	found := map[string]string{}
	objs, err := w.bucket.List(ctx, s3.ListInput{})
	w.ok(err)
	for _, o := range objs.Objects {
		content, err := w.stored(o.Key)
		w.ok(err)
		found[string(o.Key)] = content
	}
	for name, e := range w.names {
		content, ok := found[name]
		if !ok && !(e.dir && w.filled(name)) || content != e.content {
			w.fail("in the end %q has the bytes %q (there: %v), not %q", name, content, ok, e.content)
		}
		delete(found, name)
	}
	if len(found) > 0 {
		w.fail("in the end there is %q beside %q", found, slices.Sorted(maps.Keys(w.names)))
	}
	for _, name := range slices.Sorted(maps.Keys(w.names)) {
		if ino, ok := w.lookup(name); ok && !w.names[name].dir {
			if content, err := w.read(ino); err != nil || content != w.names[name].content {
				w.fail("in the end %q reads as %q, %v", name, content, err)
			}
		}
	}
}

// lives says how a seed's life ended.
func lives(seed uint64) (err error) {
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(failure)
			if !ok {
				panic(r)
			}
			err = f
		}
	}()
	newWorld(seed).live()
	return nil
}

// TestPlan lives many lives of a tree whose executor makes one request at a time, in any order with what programs do, with
// lost requests and answers and with kills. At each change of the bucket each object is a state that a file of its name
// had; bytes that only the bucket has are there when they are read; in the end the bucket is what was made of it.
// CSI_S3_PLAN_SEED=N lives one life, CSI_S3_PLAN_SEEDS=N lives so many.
func TestPlan(t *testing.T) {
	first, seeds := uint64(0), uint64(5000)
	for name, v := range map[string]*uint64{"CSI_S3_PLAN_SEED": &first, "CSI_S3_PLAN_SEEDS": &seeds} {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			*v = n
		}
	}
	if first > 0 && os.Getenv("CSI_S3_PLAN_SEEDS") == "" {
		seeds = 1
	}
	bad := 0
	for seed := first; seed < first+seeds && bad < 5; seed++ {
		if err := lives(seed); err != nil {
			t.Errorf("seed %d: %v", seed, err)
			bad++
		}
	}
}
