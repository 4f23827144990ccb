package fuse

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-s3/csi-s3/pkg/inode"
)

// many is more names than fit into one answer.
const many = 5000

func manyNames() []string {
	var names []string
	for i := range many {
		names = append(names, fmt.Sprintf("name-%05d-%s", i, strings.Repeat("x", i%50)))
	}
	return names
}

// dirent is an entry as getdents64 returns it.
type dirent struct {
	ino    uint64
	offset int64
	kind   byte
	name   string
}

// dirents reads entries from an open directory, up to its end or so many bytes.
func (a *actor) dirents(fd, size int) []dirent {
	p := make([]byte, size)
	n, err := unix.Getdents(fd, p)
	a.ok(err)
	var got []dirent
	for p = p[:n]; len(p) > 0; {
		length := binary.LittleEndian.Uint16(p[16:])
		name, _, _ := strings.Cut(string(p[19:length]), "\x00")
		d := dirent{ino: binary.LittleEndian.Uint64(p), offset: int64(binary.LittleEndian.Uint64(p[8:])), kind: p[18], name: name}
		if name != "." && name != ".." {
			got = append(got, d)
		}
		p = p[length:]
	}
	return got
}

// list returns the whole of a directory; each, if not nil, sees its entries in the meantime.
func (a *actor) list(name string, each func(dirent)) []dirent {
	fd := a.open(name, unix.O_DIRECTORY, 0)
	defer a.close(fd)
	var all []dirent
	for {
		got := a.dirents(fd, 4<<10)
		if len(got) == 0 {
			return all
		}
		all = append(all, got...)
		for _, d := range got {
			if each != nil {
				each(d)
			}
		}
	}
}

// actList lists as ls -l does, which asks for each entry's attributes, and then as ls does.
func actList(a *actor) {
	names := manyNames()
	first := a.list("d", func(d dirent) {
		var st unix.Stat_t
		a.ok(unix.Lstat(a.path("d/"+d.name), &st))
		a.check(st.Ino == d.ino && names[st.Size] == d.name, "attributes", d, st.Ino, st.Size)
	})
	a.check(len(first) == many, "entries", len(first))
	for i, d := range first {
		a.check(d.name == names[i] && d.kind == unix.DT_REG && d.ino != 0, "entry", i, d)
	}
	a.check(slices.Equal(first, a.list("d", nil)), "the second listing differs")
}

// actSeek goes back to an entry's offset, while entries vanish.
func actSeek(a *actor) {
	fd := a.open("d", unix.O_DIRECTORY, 0)
	first := a.dirents(fd, 4<<10)
	rest := a.dirents(fd, 4<<10)
	a.check(len(first) > 10 && len(rest) > 10, "entries", len(first), len(rest))
	a.ok(unix.Unlink(a.path("d/" + first[0].name)))
	_, err := unix.Seek(fd, first[len(first)-1].offset, unix.SEEK_SET)
	a.ok(err)
	again := a.dirents(fd, 4<<10)
	a.check(slices.Equal(rest, again), "after the seek", rest[0], again[0])
	a.close(fd)
}

func withMany(core *memory) inode.Ino {
	d := core.add(inode.Root, "d", unix.S_IFDIR|0o755, 0)
	for i, name := range manyNames() {
		core.add(d, name, unix.S_IFREG|0o644, int64(i))
	}
	return d
}

// A listing of thousands of names is complete, in a stable order, and brings the attributes along when they are used.
func TestReadDir(t *testing.T) {
	core := newMemory()
	core.ttl = time.Hour
	d := withMany(core)
	m := serveCore(t, core)
	run(t, "list", m.dir)
	calls := map[string]int{}
	for _, c := range core.take() {
		op, rest, _ := strings.Cut(c, " ")
		if strings.HasPrefix(rest, fmt.Sprint(d)) {
			calls[op]++
		}
	}
	// The kernel goes on with attributes while somebody asks for them.
	if calls["readdirplus"] < 20 || calls["readdir"] < 5 || calls["opendir"] != 2 {
		t.Errorf("calls of the directory: %v", calls)
	}
	if calls["lookup"] > many/10 {
		t.Errorf("%d of %d lookups in spite of the listing's attributes", calls["lookup"], many)
	}
	eventually(t, "both handles are released", func() bool {
		core.mu.Lock()
		defer core.mu.Unlock()
		return len(core.handles) == 0
	})
}

func TestSeekDir(t *testing.T) {
	core := newMemory()
	withMany(core)
	run(t, "seek", serveCore(t, core).dir)
}

func TestReadEmptyDir(t *testing.T) {
	run(t, "empty", serveCore(t, newMemory()).dir)
}
