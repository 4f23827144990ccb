package conformance_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fsxSeed names the one seed that is to run: what a failure prints.
const fsxSeed = "CSI_S3_FSX_SEED"

// An exercise is what one seed does to two files of its own.
type exercise struct {
	seed uint64
	size int64 // the most bytes that a file has
	op   int64 // the most bytes that one operation touches
	ops  int
	wipe int // operations between two looks at the bucket alone
}

// TestFsx: random operations on files, and after each of them the bytes are those that a plain array has, also after a
// kill and when only the bucket is left of them.
func TestFsx(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	var all []exercise
	for seed := range uint64(scale(7, 40)) {
		all = append(all, exercise{seed: seed, size: 256 << 10 << (seed % 4), op: 64 << 10, ops: 14400, wipe: 1800})
	}
	// Parts of 8 MiB: a multipart upload whose unchanged parts are copied on the server.
	for seed := range uint64(scale(1, 8)) {
		all = append(all, exercise{seed: 1000 + seed, size: 36 << 20, op: 1 << 20, ops: 600, wipe: 60})
	}
	runExercises(t, "settle=200ms", all)
}

func runExercises(t *testing.T, options string, all []exercise) {
	t.Helper()
	whole := true
	if text := os.Getenv(fsxSeed); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		all = slices.DeleteFunc(all, func(e exercise) bool { return e.seed != seed })
		whole = false
	}
	m := newMounted(t, options)
	counts, wipes, kills, total := map[string]int{}, 0, 0, 0
	for _, e := range all {
		begin := time.Now()
		x := newFsx(t, m, e)
		x.run()
		for _, o := range x.operations() {
			counts[o.name] += x.counts[o.name]
			total += x.counts[o.name]
		}
		wipes += x.wipes
		kills += x.kills
		t.Logf("seed %d: %d operations, %d wipes, %d kills, at most %d KiB, %v", e.seed, e.ops, x.wipes, x.kills, e.size>>10, time.Since(begin).Round(time.Millisecond))
	}
	var parts []string
	for _, o := range new(fsx).operations() {
		parts = append(parts, fmt.Sprintf("%s %d", o.name, counts[o.name]))
		if counts[o.name] == 0 && whole {
			t.Errorf("%s was never done", o.name)
		}
	}
	t.Logf("%d operations, %d looks at the bucket alone, %d kills: %s", total, wipes, kills, strings.Join(parts, ", "))
	if wipes == 0 || kills == 0 || whole && total < 100_000 {
		t.Errorf("%d operations, %d looks at the bucket alone and %d kills prove nothing", total, wipes, kills)
	}
}

// fsx is one run of an exercise. Files have the content of model, byte for byte.
type fsx struct {
	exercise
	t      *testing.T
	m      *mounted
	random *rand.Rand
	path   [2]string
	model  [2][]byte
	fd     [2]int
	direct [2]int // of the same file, opened with O_DIRECT
	unsync [2]bool
	log    []string
	counts map[string]int
	wipes  int
	kills  int
	buffer []byte // aligned for O_DIRECT
}

// fsxOp is one kind of operation with its share of all.
type fsxOp struct {
	name  string
	share int
	do    func(f int) string // what it did, for the log
}

func newFsx(t *testing.T, m *mounted, e exercise) *fsx {
	t.Helper()
	x := &fsx{exercise: e, t: t, m: m, random: rand.New(rand.NewPCG(e.seed, 0)), counts: map[string]int{}}
	space := make([]byte, e.size+2*direct)
	x.buffer = space[direct-int64(uintptr(unsafe.Pointer(&space[0])))%direct:]
	for f := range x.path {
		x.path[f] = filepath.Join(m.dir, fmt.Sprintf("fsx-%d-%d", e.seed, f))
		if err := os.WriteFile(x.path[f], nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	x.open(0)
	x.open(1)
	return x
}

// direct is what O_DIRECT is aligned to, in bytes.
const direct = 4096

func (x *fsx) operations() []fsxOp {
	return []fsxOp{
		{"read", 12, x.read},
		{"write", 12, x.write},
		{"append", 4, x.append},
		{"mmap-read", 6, x.mapRead},
		{"mmap-write", 6, x.mapWrite},
		{"msync", 4, x.mapSync},
		{"truncate-down", 3, x.truncateDown},
		{"truncate-up", 3, x.truncateUp},
		{"fallocate", 2, x.allocate},
		{"fallocate-keep", 2, x.allocateKeep},
		{"punch", 5, x.punch},
		{"zero", 3, x.zero},
		{"zero-keep", 2, x.zeroKeep},
		{"copy-within", 4, x.copyWithin},
		{"copy-between", 4, x.copyBetween},
		{"direct-read", 4, x.directRead},
		{"direct-write", 4, x.directWrite},
		{"fadvise", 2, x.advise},
		{"readahead", 2, x.readahead},
		{"seek-data", 3, x.seekData},
		{"seek-hole", 3, x.seekHole},
		{"fsync", 1, x.sync},
		{"fdatasync", 1, x.dataSync},
		{"reopen", 3, x.reopen},
	}
}

func (x *fsx) run() {
	x.t.Helper()
	defer func() {
		for f := range x.fd {
			x.close(f)
		}
	}()
	operations := x.operations()
	sum := 0
	for _, o := range operations {
		sum += o.share
	}
	for i := 1; i <= x.ops; i++ {
		pick := x.random.IntN(sum)
		k := 0
		for ; pick >= operations[k].share; k++ {
			pick -= operations[k].share
		}
		f := x.random.IntN(8) / 7 // mostly the first
		said := operations[k].do(f)
		x.counts[operations[k].name]++
		x.note("%d %s file %d %s", i, operations[k].name, f, said)
		var st unix.Stat_t
		if err := again(func() error { return unix.Fstat(x.fd[f], &st) }); err != nil || st.Size != x.len(f) {
			x.fatalf("file %d has %d bytes, want %d (%v)", f, st.Size, x.len(f), err)
		}
		switch {
		case i%x.wipe == 0 || i == x.ops:
			x.note("flush, wipe")
			x.anew("out of the bucket", func() { x.m.flush(); x.m.restart(true) })
			x.wipes++
		case i%x.wipe == x.wipe/2:
			x.note("kill")
			x.anew("after a kill", func() { x.m.kill(); x.m.detach(); x.m.start() })
			x.kills++
		}
	}
}

// anew compares both files, closes them, ends the mount and begins another, and compares again.
func (x *fsx) anew(when string, remount func()) {
	x.t.Helper()
	for f := range x.path {
		x.verify(f, "in the mount")
		x.close(f)
	}
	remount()
	for f := range x.path {
		x.open(f)
		x.verify(f, when)
	}
}

func (x *fsx) note(format string, args ...any) { x.log = append(x.log, fmt.Sprintf(format, args...)) }

func (x *fsx) fatalf(format string, args ...any) {
	x.t.Helper()
	last := x.log[max(0, len(x.log)-30):]
	x.t.Fatalf("seed %d: %s\nthe last operations:\n%s\nagain: %s=%d", x.seed, fmt.Sprintf(format, args...), strings.Join(last, "\n"), fsxSeed, x.seed)
}

func (x *fsx) must(what string, err error) {
	x.t.Helper()
	if err != nil {
		x.fatalf("%s: %v", what, err)
	}
}

func (x *fsx) same(f int, off int64, got, want []byte, how string) {
	x.t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		x.fatalf("%s file %d at %d: %d bytes, want %d", how, f, off, len(got), len(want))
	}
	first, last, wrong := -1, 0, 0
	for i := range got {
		if got[i] != want[i] {
			if first < 0 {
				first = i
			}
			last = i
			wrong++
		}
	}
	x.fatalf("%s file %d: %d bytes wrong from %d to %d\n got %x\nwant %x", how, f, wrong, off+int64(first), off+int64(last),
		got[first:min(first+32, len(got))], want[first:min(first+32, len(got))])
}

func (x *fsx) len(f int) int64 { return int64(len(x.model[f])) }

// verify compares a whole file.
func (x *fsx) verify(f int, when string) {
	x.t.Helper()
	got := x.pread(x.fd[f], make([]byte, x.len(f)+1), 0)
	x.same(f, 0, got, x.model[f], when+":")
}

func (x *fsx) open(f int) {
	x.t.Helper()
	for _, o := range []struct {
		fd    *int
		flags int
	}{{&x.fd[f], 0}, {&x.direct[f], unix.O_DIRECT}} {
		x.must("open", again(func() (err error) {
			*o.fd, err = unix.Open(x.path[f], unix.O_RDWR|unix.O_CLOEXEC|o.flags, 0)
			return err
		}))
	}
}

func (x *fsx) close(f int) {
	x.t.Helper()
	for _, fd := range []*int{&x.fd[f], &x.direct[f]} {
		if *fd > 0 {
			x.must("close", unix.Close(*fd))
		}
		*fd = 0
	}
	x.unsync[f] = false // a close sends what a mapping has changed
}

// again repeats a call that a signal of Go's scheduler has interrupted.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// pread reads into p, as much as there is.
func (x *fsx) pread(fd int, p []byte, off int64) []byte {
	x.t.Helper()
	n := 0
	for n < len(p) {
		var k int
		x.must("pread", again(func() (err error) { k, err = unix.Pread(fd, p[n:], off+int64(n)); return err }))
		if k == 0 {
			break
		}
		n += k
	}
	return p[:n]
}

func (x *fsx) pwrite(fd int, p []byte, off int64) {
	x.t.Helper()
	for n := 0; n < len(p); {
		var k int
		x.must("pwrite", again(func() (err error) { k, err = unix.Pwrite(fd, p[n:], off+int64(n)); return err }))
		n += k
	}
}

// within is a range of a file that has bytes; ok says that there is one.
func (x *fsx) within(f int) (off, end int64, ok bool) {
	if x.len(f) == 0 {
		return 0, 0, false
	}
	off = x.random.Int64N(x.len(f))
	return off, off + 1 + x.random.Int64N(min(x.op, x.len(f)-off)), true
}

// beyond is a range that may reach beyond the end of a file.
func (x *fsx) beyond(int) (off, end int64) {
	off = x.random.Int64N(x.size)
	return off, off + 1 + x.random.Int64N(min(x.op, x.size-off))
}

// fill makes n bytes that say who wrote them.
func (x *fsx) fill(n int64) []byte {
	p := make([]byte, n)
	seed := x.random.Uint64()
	for i := int64(0); i < n; i += 8 {
		seed = seed*6364136223846793005 + 1442695040888963407
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], seed)
		copy(p[i:], word[:])
	}
	return p
}

// put changes the model.
func (x *fsx) put(f int, off int64, p []byte) {
	x.grow(f, off+int64(len(p)))
	copy(x.model[f][off:], p)
}

func (x *fsx) grow(f int, size int64) {
	if size > x.len(f) {
		x.model[f] = append(x.model[f], make([]byte, size-x.len(f))...)
	}
}

// TestFsxShared: several descriptors of one file, each with a region of its own, at the same time.
func TestFsxShared(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	m := newMounted(t, "settle=200ms")
	path := filepath.Join(m.dir, "shared")
	const (
		writers = 3
		region  = 256 << 10
	)
	model := make([]byte, writers*region)
	if err := os.WriteFile(path, model, 0o600); err != nil {
		t.Fatal(err)
	}
	ops := 0
	for round := range scale(6, 60) {
		errs := make(chan error, writers)
		for w := range writers {
			go func() { // ends with its operations; its answer is waited for
				errs <- shareFile(path, model[w*region:(w+1)*region], int64(w*region), scale(1500, 3000),
					rand.New(rand.NewPCG(uint64(round), uint64(w))))
			}()
		}
		for range writers {
			if err := <-errs; err != nil {
				t.Error(err)
			}
			ops += scale(1500, 3000)
		}
		for _, wipe := range []bool{false, true} {
			if wipe {
				m.flush()
				m.restart(true)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, model) {
				t.Errorf("round %d, wiped %v: not what was written (%v)", round, wipe, err)
			}
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d operations of %d descriptors, %d looks at the bucket alone", ops, writers, scale(6, 60))
}

// shareFile works on the region of a file that begins at base and has the content of model.
func shareFile(path string, model []byte, base int64, ops int, random *rand.Rand) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	for i := range ops {
		off := random.IntN(len(model))
		end := off + 1 + random.IntN(min(32<<10, len(model)-off))
		at := base + int64(off)
		what := ""
		switch random.IntN(10) {
		case 0, 1, 2:
			what = "write"
			for i := off; i < end; i++ {
				model[i] = byte(random.Uint32())
			}
			_, err = f.WriteAt(model[off:end], at)
		case 3, 4, 5, 6:
			what = "read"
			got := make([]byte, end-off)
			if _, err = f.ReadAt(got, at); err == nil && !bytes.Equal(got, model[off:end]) {
				err = errors.New("not what was written")
			} else if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
		case 7:
			what = "punch"
			clear(model[off:end])
			err = again(func() error {
				return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(end-off))
			})
		case 8:
			what = "mmap write"
			page := int64(os.Getpagesize())
			var pages []byte
			if pages, err = unix.Mmap(int(f.Fd()), at/page*page, int(at%page)+end-off, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
				for i := off; i < end; i++ {
					model[i] = byte(random.Uint32())
				}
				copy(pages[at%page:], model[off:end])
				err = errors.Join(unix.Msync(pages, unix.MS_SYNC), unix.Munmap(pages))
			}
		case 9:
			what = "reopen"
			if random.IntN(4) == 0 {
				what = "fsync, reopen"
				err = f.Sync()
			}
			g, gerr := os.OpenFile(path, os.O_RDWR, 0)
			if gerr != nil {
				return gerr
			}
			err = errors.Join(err, f.Close())
			f = g
		}
		if err != nil {
			return fmt.Errorf("operation %d, %s %s: %w", i, what, span(at, base+int64(end)), err)
		}
	}
	return nil
}
