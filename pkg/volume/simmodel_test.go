package volume

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// directory stands for a directory in the states of the names, where files have their index.
const directory = -1

// book is what one actor of a simulation knows of its own names: a moment, and what the bucket was seen to hold. The
// names of directories end with a slash.
type book struct {
	moment
	links map[int]string        // targets of the files that are symbolic links
	torn  map[int]bool          // files that a failing disk may have left half-written
	held  map[string]committed  // what the bucket has, by key
	alien map[string]*contested // names that a stranger writes, too
	cut   bool                  // power was lost since the last look
	// moving says that a directory was renamed since all was last in the bucket.
	moving bool
}

// committed is an object of the bucket: a version of a file, and the last state of the names, when the object came, in
// which the file had that name.
type committed struct {
	file, version, state int
}

// contested is a name that is written here once, and by a stranger.
type contested struct {
	ours, theirs []byte
	acked        bool // ours is there
	put          bool // the stranger's is in the bucket
	before       bool // ours was in the bucket under the name when the stranger's came
}

func newBook() *book {
	return &book{
		moment: moment{names: []map[string]int{{}}}, links: map[int]string{}, torn: map[int]bool{},
		held: map[string]committed{}, alien: map[string]*contested{},
	}
}

func (b *book) last() int               { return len(b.names) - 1 }
func (b *book) present() map[string]int { return b.names[b.last()] }
func (b *book) stateOf(key string, file int) int {
	for k := b.last(); k >= 0; k-- {
		if i, ok := b.names[k][key]; ok && i == file {
			return k
		}
	}
	return -1
}

// stored checks an object that the bucket has just got, and notes it.
func (b *book) stored(key string, content []byte) error {
	old, was := b.held[key]
	best, taken, reason := committed{file: -1}, committed{file: -1}, "are bytes that no file had"
	for i := range b.files {
		f := &b.files[i]
		state := b.stateOf(key, i)
		version := -1
		for v := len(f.versions) - 1; v >= 0 && version < 0; v-- {
			if bytes.Equal(f.versions[v], content) {
				version = v
			}
		}
		if version < 0 && b.torn[i] && f.explains(string(content), max(0, f.barrier)) {
			version = len(f.versions) - 1
		}
		switch {
		case version < 0:
		case state < 0 && b.moving:
			taken = committed{i, version, b.last()}
		case state < 0:
			reason = fmt.Sprintf("are those of file %d, which never had this name", i)
		case was && state < old.state:
			reason = fmt.Sprintf("are those of file %d, which lost the name to file %d", i, old.file)
		case was && i == old.file && version < old.version:
			reason = fmt.Sprintf("are version %d of file %d, and the name had version %d", version, i, old.version)
		case state > best.state || best.file < 0:
			best = committed{i, version, state}
		}
	}
	if best.file < 0 {
		best = taken // the move of a directory that was renamed back takes what came since along, for a while
	}
	if best.file < 0 {
		return fmt.Errorf("the bytes of %q%s\nknown are %s", key, describe(map[string]string{reason: string(content)}), b)
	}
	b.held[key] = best
	return nil
}

// holds says that the bucket has a version of a file, or a later one.
func (b *book) holds(file, version int) bool {
	for _, c := range b.held {
		if c.file == file && (c.version >= version || bytes.Equal(b.files[file].versions[c.version], b.files[file].versions[version])) {
			return true
		}
	}
	return false
}

// shows says that the bucket has these bytes under a key: after a loss of power one empty file is taken for another.
func (b *book) shows(key string, content []byte) bool {
	c, ok := b.held[key]
	return ok && bytes.Equal(b.files[c.file].versions[c.version], content)
}

// removed checks that an object might go.
func (b *book) removed(key string) error {
	old, was := b.held[key]
	if !was {
		return nil
	}
	delete(b.held, key)
	// A directory that was renamed twice goes both ways in the bucket: the file is under its name of meanwhile then.
	// So is a name that was replaced while its directory was on its way: its old object is removed with the move.
	if b.moving || b.holds(old.file, old.version) {
		return nil
	}
	for _, names := range b.names[old.state:] {
		if _, ok := names[key]; !ok {
			return nil
		}
	}
	return fmt.Errorf("%q was removed, and the name was never without a file since", key)
}

// look compares what the mount shows after a crash with what it may show, and takes it for the truth from then on.
func (b *book) look(found map[string]string) error {
	first := b.acked
	if b.cut {
		first = b.synced
	}
	for k := b.last(); k >= first; k-- {
		now, ok := b.fits(b.names[k], found)
		if !ok {
			continue
		}
		b.names = append(b.names, now)
		for name, i := range now {
			if i == directory {
				continue
			}
			f := &b.files[i]
			content := []byte(found[name])
			if link, is := b.links[i]; is {
				content = f.now()
				if found[name] != "-> "+link {
					return fmt.Errorf("%s is a link to %q", name, found[name])
				}
			}
			if !bytes.Equal(f.now(), content) {
				f.versions = append(f.versions, content)
			}
			delete(b.torn, i)
			f.acked = len(f.versions) - 1
			// A new file that is empty and that no fsync covered may go with the next loss of power.
			if b.cut && (len(content) > 0 || f.barrier >= 0) {
				f.barrier = f.acked
			}
		}
		b.acked = b.last()
		if b.cut {
			b.synced = b.acked
		}
		b.cut = false
		return nil
	}
	return fmt.Errorf("after the crash (power cut: %v) the mount shows%s\nmay be %s", b.cut, describe(found), b)
}

// fits is allows for one state of the names. It returns those that are there.
func (b *book) fits(names map[string]int, found map[string]string) (map[string]int, bool) {
	now := maps.Clone(names)
	for name := range found {
		if _, ok := names[name]; !ok {
			return nil, false
		}
	}
	for name, i := range names {
		content, ok := found[name]
		if i == directory {
			if !ok {
				return nil, false
			}
			continue
		}
		f := &b.files[i]
		from := f.acked
		if b.cut {
			from = max(0, f.barrier)
		}
		if link, is := b.links[i]; is {
			if !ok || content != "-> "+link {
				return nil, false
			}
			continue
		}
		if !ok && b.cut && f.barrier < 0 {
			delete(now, name)
			continue
		}
		if !ok || !f.explains(content, from) {
			return nil, false
		}
	}
	return now, true
}

// objects is what the bucket must hold in the end.
func (b *book) objects() map[string][]byte {
	all := map[string][]byte{}
	for name, i := range b.present() {
		if i == directory {
			continue
		}
		all[name] = b.files[i].now()
	}
	return all
}

// settled compares the bucket in the end: found are the objects whose keys are the actor's.
func (b *book) settled(found map[s3.Key][]byte) error {
	var wrong []string
	want := b.objects()
	for _, key := range slices.Sorted(maps.Keys(found)) {
		content, ok := want[string(key)]
		name, _, kept := strings.Cut(string(key), ".conflict-")
		a := b.alien[name]
		switch {
		case a != nil && kept && !bytes.Equal(found[key], a.ours):
			wrong = append(wrong, fmt.Sprintf("%q is not what was kept of %q", key, name))
		case a != nil:
		case strings.HasSuffix(string(key), "/"):
			if _, is := b.present()[string(key)]; !is {
				wrong = append(wrong, fmt.Sprintf("the directory %q is there", key))
			}
		case kept:
			wrong = append(wrong, fmt.Sprintf("%q is there: a conflict with itself", key))
		case !ok && b.unlinked(found[key]):
			wrong = append(wrong, fmt.Sprintf("%q outlives its file", key))
		case !ok:
			wrong = append(wrong, fmt.Sprintf("%q is there%s", key, describe(map[string]string{"": string(found[key])})))
		case !bytes.Equal(content, found[key]):
			wrong = append(wrong, fmt.Sprintf("%q has%s\n  instead of%s", key,
				describe(map[string]string{"": string(found[key])}), describe(map[string]string{"": string(content)})))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if _, ok := found[s3.Key(key)]; !ok {
			wrong = append(wrong, fmt.Sprintf("%q is not there", key))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.alien)) {
		if err := b.alien[name].settled(name, found); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	for name, i := range b.present() {
		if _, ok := found[s3.Key(name)]; i == directory && !ok {
			empty := true
			for other := range b.present() {
				empty = empty && (other == name || !strings.HasPrefix(other, name))
			}
			if empty {
				wrong = append(wrong, fmt.Sprintf("the empty directory %q is not there", name))
			} else {
				wrong = append(wrong, fmt.Sprintf("the directory %q is without its marker", name))
			}
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("in the end %s\n%s", strings.Join(wrong, "\nand "), b)
}

// unlinked says that content is a version of a file that has no name any more.
func (b *book) unlinked(content []byte) bool {
	named := map[int]bool{}
	for _, i := range b.present() {
		named[i] = true
	}
	for i := range b.files {
		if !named[i] && slices.ContainsFunc(b.files[i].versions, func(v []byte) bool { return bytes.Equal(v, content) }) {
			return true
		}
	}
	return false
}

// settled checks that neither of two writers of a name lost anything.
func (a *contested) settled(name string, found map[s3.Key][]byte) error {
	here, ok := found[s3.Key(name)]
	var kept int
	for key := range found {
		if strings.HasPrefix(string(key), name+".conflict-") {
			kept++
		}
	}
	switch {
	case a.put && !bytes.Equal(here, a.theirs):
		return fmt.Errorf("the stranger's object %q is gone", name)
	case a.put && a.acked && !a.before && kept == 0:
		return fmt.Errorf("of %q only the stranger's object is left", name)
	case kept > 1:
		return fmt.Errorf("%q was kept %d times", name, kept)
	case !a.put && a.acked && (!ok || !bytes.Equal(here, a.ours)):
		return fmt.Errorf("%q is not what was written", name)
	}
	return nil
}
