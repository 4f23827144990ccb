package journal_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"path"
	"slices"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

func rnd(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }

var errInjected = errors.New("injected")

// put makes a file with a content on a disk that may not have it.
func put(t *testing.T, d disk.FS, name string, b []byte) {
	t.Helper()
	if err := d.MkdirAll(path.Dir(name)); err != nil {
		t.Fatal(err)
	}
	f, err := d.OpenFile(name, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(int64(len(b))), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, d disk.FS) []byte {
	t.Helper()
	b, err := d.ReadFile("j/journal")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// header is a well-formed header.
func header(version uint32) []byte {
	b := append([]byte("CSIS3JNL"), 0, 0, 0, 0, 1, 2, 3, 4)
	binary.LittleEndian.PutUint32(b[8:], version)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// TestHeaders opens files that no crash can have left: each is refused with the right error, and stays as it is for
// whoever looks into it.
func TestHeaders(t *testing.T) {
	flipped := header(1)
	flipped[13] ^= 1
	for name, tt := range map[string]struct {
		content []byte
		want    error
	}{
		"good":          {header(1), nil},
		"empty":         {nil, journal.ErrCorrupt},
		"short":         {header(1)[:19], journal.ErrCorrupt},
		"zeros":         {make([]byte, 4096), journal.ErrCorrupt},
		"another magic": {append([]byte("ANOTHER!"), header(1)[8:]...), journal.ErrCorrupt},
		"wrong epoch":   {flipped, journal.ErrCorrupt},
		"newer version": {header(2), journal.ErrVersion},
		"version zero":  {header(0), journal.ErrVersion},
		// Of the version the checksum decides first: what is damaged is not taken for new.
		"damaged version": {append(append(slices.Clone(header(1)[:8]), 9), header(1)[9:]...), journal.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			mem := diskmem.New()
			put(t, mem, "j/journal", tt.content)
			j, err := journal.Open(mem, "j", journal.Options{}, (&state{}).replay)
			if !errors.Is(err, tt.want) {
				t.Fatalf("%v, want %v", err, tt.want)
			}
			if tt.want == nil {
				if err := j.Close(); err != nil {
					t.Fatal(err)
				}
				return
			}
			if j != nil {
				t.Error("a journal beside the error")
			}
			if errors.Is(err, journal.ErrVersion) && errors.Is(err, journal.ErrCorrupt) {
				t.Errorf("two reasons at once: %v", err)
			}
			if got := read(t, mem); !bytes.Equal(got, tt.content) {
				t.Errorf("the refused file was changed: %d bytes were %d", len(got), len(tt.content))
			}
		})
	}
}

// A whole frame whose payload makes no sense was not left by a crash.
func TestMalformedPayload(t *testing.T) {
	for name, payload := range map[string][]byte{
		"kind only":       {0x11},
		"length too long": {0x11, 5, 'a'},
		"length unending": {0x11, 0x80, 0x80, 0x80},
	} {
		t.Run(name, func(t *testing.T) {
			h := header(1)
			frame := make([]byte, 24, 64)
			frame = append(frame, payload...)
			binary.LittleEndian.PutUint32(frame, uint32(len(payload)))
			binary.LittleEndian.PutUint64(frame[8:], 1)
			sum := crc32.Checksum(slices.Concat(h[12:16], frame[:4], frame[8:]), crc32.MakeTable(crc32.Castagnoli))
			binary.LittleEndian.PutUint32(frame[4:], sum)
			mem := diskmem.New()
			put(t, mem, "j/journal", append(h, frame...))
			if _, err := journal.Open(mem, "j", journal.Options{}, (&state{}).replay); !errors.Is(err, journal.ErrCorrupt) {
				t.Fatalf("open: %v", err)
			}
		})
	}
}

// What is too large is refused before a byte of it is written, by Append and within a dump.
func TestTooLarge(t *testing.T) {
	mem := diskmem.New()
	j, _ := open(t, mem)
	if err := j.Append(pair(1, 0)...); err != nil {
		t.Fatal(err)
	}
	before := read(t, mem)
	full := journal.Record{Kind: 0x11, Data: make([]byte, journal.MaxRecord)}
	for name, recs := range map[string][]journal.Record{
		"record": {{Kind: 0x11, Data: make([]byte, journal.MaxRecord+1)}},
		"frame":  slices.Repeat([]journal.Record{full}, 64),
	} {
		if err := j.Append(recs...); !errors.Is(err, journal.ErrTooLarge) {
			t.Fatalf("%s: %v", name, err)
		}
		if err := j.Checkpoint(func(emit func(...journal.Record) error) error { return emit(recs...) }); !errors.Is(err, journal.ErrTooLarge) {
			t.Fatalf("checkpoint with a %s: %v", name, err)
		}
		if !bytes.Equal(read(t, mem), before) {
			t.Fatalf("%s: the journal has changed", name)
		}
		if _, err := mem.ReadFile("j/journal.new"); err == nil {
			t.Fatalf("%s: the broken checkpoint left its file", name)
		}
	}
	if err := errors.Join(j.Append(pair(2, 0)...), j.Sync(), j.Close()); err != nil {
		t.Fatal(err)
	}
	if _, s := open(t, mem); !slices.Equal(s.seen, []uint64{1, 2}) {
		t.Fatalf("replayed %v", s.seen)
	}
	// The limit itself is allowed.
	j, err := journal.Open(mem, "j", journal.Options{}, func([]journal.Record) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.Append(full), j.Close()); err != nil {
		t.Fatal(err)
	}
	largest := 0
	if _, err := journal.Open(mem, "j", journal.Options{}, func(recs []journal.Record) error {
		largest = max(largest, len(recs[0].Data))
		return nil
	}); err != nil || largest != journal.MaxRecord {
		t.Fatalf("the largest record came back with %d bytes: %v", largest, err)
	}
}

// Size and NeedsCheckpoint say how long the file is, and when it has grown enough since the last checkpoint.
func TestAccounting(t *testing.T) {
	mem := diskmem.New()
	j, s := open(t, mem) // a checkpoint after 2000 bytes
	check := func(needs bool) {
		t.Helper()
		if got, want := j.Size(), int64(len(read(t, mem))); got != want {
			t.Fatalf("Size is %d, the file has %d", got, want)
		}
		if j.NeedsCheckpoint() != needs {
			t.Fatalf("NeedsCheckpoint is %v at %d bytes", !needs, j.Size())
		}
	}
	check(false)
	start := j.Size()
	for n := uint64(1); j.Size()-start <= 2000; n++ {
		check(false)
		if err := j.Append(pair(n, 100)...); err != nil {
			t.Fatal(err)
		}
		s.seen = append(s.seen, n)
	}
	check(true)
	if err := j.Checkpoint(func(func(...journal.Record) error) error { return errInjected }); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	check(true) // nothing was shortened
	if err := j.Checkpoint(s.dump); err != nil {
		t.Fatal(err)
	}
	check(false)
	// A dump larger than the limit does not ask for the next checkpoint at once.
	long := func(emit func(...journal.Record) error) error { return emit(pair(1, 5000)...) }
	if err := j.Checkpoint(long); err != nil {
		t.Fatal(err)
	}
	check(false)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	// After a reopen it is not known how much of the file was the dump: it is shortened once more.
	j, _ = open(t, mem)
	check(true)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j.NeedsCheckpoint() {
		t.Error("a closed journal wants a checkpoint")
	}
}

func TestClosed(t *testing.T) {
	mem := diskmem.New()
	j, s := open(t, mem)
	if err := errors.Join(j.Append(pair(1, 0)...), j.Close()); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"Append": j.Append(pair(2, 0)...), "Sync": j.Sync(), "Checkpoint": j.Checkpoint(s.dump), "Close": j.Close(),
	} {
		if !errors.Is(err, journal.ErrClosed) {
			t.Errorf("%s of a closed journal: %v", name, err)
		}
	}
	// Close made it durable.
	if _, s := open(t, mem.CrashClone(rnd(3))); !slices.Equal(s.seen, []uint64{1}) {
		t.Fatalf("replayed %v", s.seen)
	}
}

// An error of replay is the caller's own; the file is not touched, and can be opened by who understands it.
func TestReplayError(t *testing.T) {
	mem := diskmem.New()
	j, _ := open(t, mem)
	if err := errors.Join(j.Append(pair(1, 0)...), j.Close()); err != nil {
		t.Fatal(err)
	}
	before := read(t, mem)
	if _, err := journal.Open(mem, "j", journal.Options{}, func([]journal.Record) error { return errInjected }); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, mem), before) {
		t.Error("the file was changed")
	}
	open(t, mem)
}

// A read error of the disk is no torn tail: Open says so and cuts nothing off.
func TestReadErrorIsNoTail(t *testing.T) {
	mem := diskmem.New()
	j, _ := open(t, mem)
	if err := errors.Join(j.Append(pair(1, 3000)...), j.Append(pair(2, 10)...), j.Close()); err != nil {
		t.Fatal(err)
	}
	before := read(t, mem)
	for _, name := range []string{"OpenFile", "Size", "ReadAt", "Truncate", "Sync", "MkdirAll", "SyncDir", "Remove"} {
		for n := 1; ; n++ {
			torn := mem.Clone()
			put(t, torn, "j/journal", append(slices.Clone(before), 1, 2, 3))
			put(t, torn, "j/journal.new", []byte("of a checkpoint that a crash broke off"))
			calls := 0
			_, err := journal.Open(diskfault.New(torn, func(op diskfault.Op) error {
				if op.Name != name {
					return nil
				}
				if calls++; calls == n {
					return errInjected
				}
				return nil
			}), "j", journal.Options{}, (&state{}).replay)
			if err == nil && calls < n {
				if n == 1 {
					t.Fatalf("%s was never called", name)
				}
				break
			}
			if !errors.Is(err, errInjected) || errors.Is(err, journal.ErrCorrupt) {
				t.Fatalf("%s %d failed: %v", name, n, err)
			}
			if !bytes.HasPrefix(read(t, torn), before) {
				t.Fatalf("%s %d failed: whole frames were cut off", name, n)
			}
			if _, s := open(t, torn); !slices.Equal(s.seen, []uint64{1, 2}) {
				t.Fatalf("%s %d failed: then replayed %v", name, n, s.seen)
			}
		}
	}
}

// TestSticky: after an error of the disk in Append, Sync, or a checkpoint's rename, no later call may pretend that all is
// well; after one in the part of a checkpoint that only writes the new file, the old one goes on.
func TestSticky(t *testing.T) {
	for _, tt := range []struct {
		op     string
		during string
		sticky bool
	}{
		{"WriteAt", "Append", true},
		{"Sync", "Sync", true},
		{"OpenFile", "Checkpoint", false},
		{"Truncate", "Checkpoint", false},
		{"WriteAt", "Checkpoint", false},
		{"Sync", "Checkpoint", false},
		{"Rename", "Checkpoint", true},
		{"SyncDir", "Checkpoint", true},
		{"Sync", "Close", true},
	} {
		t.Run(tt.op+" in "+tt.during, func(t *testing.T) {
			mem := diskmem.New()
			armed := false
			j, s := open(t, diskfault.New(mem, func(op diskfault.Op) error {
				if armed && op.Name == tt.op {
					armed = false
					return errInjected
				}
				return nil
			}))
			if err := errors.Join(j.Append(pair(1, 0)...), j.Sync(), j.Append(pair(2, 0)...)); err != nil {
				t.Fatal(err)
			}
			s.seen = []uint64{1, 2}
			armed = true
			var err error
			switch tt.during {
			case "Append":
				err = j.Append(pair(3, 0)...)
			case "Sync":
				err = j.Sync()
			case "Checkpoint":
				err = j.Checkpoint(s.dump)
			case "Close":
				err = j.Close()
			}
			if !errors.Is(err, errInjected) {
				t.Fatalf("%s: %v", tt.during, err)
			}
			if armed {
				t.Fatal("the fault was not met")
			}
			later := map[string]error{"Append": j.Append(pair(4, 0)...), "Sync": j.Sync(), "Checkpoint": j.Checkpoint(func(emit func(...journal.Record) error) error {
				return emit(pair(5, 0)...)
			})}
			for name, err := range later {
				if tt.sticky != errors.Is(err, errInjected) || !tt.sticky && err != nil {
					t.Errorf("%s after it: %v", name, err)
				}
			}
			if tt.sticky && j.NeedsCheckpoint() {
				t.Error("a poisoned journal wants a checkpoint")
			}
			if err := j.Close(); tt.sticky != errors.Is(err, errInjected) {
				t.Errorf("Close: %v", err)
			}
			if _, s := open(t, mem.CrashClone(rnd(4))); tt.sticky && (len(s.seen) == 0 || s.seen[0] != 1) || !tt.sticky && !slices.Equal(s.seen, []uint64{5}) {
				t.Errorf("replayed %v", s.seen)
			}
		})
	}
}

// What Room has promised can be appended on a disk that others have filled since, and a checkpoint does not lose it.
func TestRoom(t *testing.T) {
	mem := diskmem.New()
	j, err := journal.Open(mem, "j", journal.Options{}, (&state{}).replay)
	if err != nil {
		t.Fatal(err)
	}
	rec := journal.Record{Kind: journal.OwnerCache, Data: make([]byte, 1000)}
	const promised = 1 << 20
	if err := j.Room(promised); err != nil {
		t.Fatal(err)
	}
	total, free, err := mem.Space()
	if err != nil {
		t.Fatal(err)
	}
	mem.SetCapacity(total - free) // not one byte is left
	before := j.Size()
	for j.Size()+1100 < before+promised {
		if err := j.Append(rec); err != nil {
			t.Fatalf("append after %d bytes: %v", j.Size()-before, err)
		}
	}
	if err := j.Room(promised); !errors.Is(err, disk.ErrNoSpace) {
		t.Errorf("a full disk: %v", err)
	}
	if err := j.Checkpoint(func(func(...journal.Record) error) error { return nil }); !errors.Is(err, disk.ErrNoSpace) {
		t.Errorf("checkpoint on a full disk: %v", err)
	}
	if err := j.Append(journal.Record{Kind: journal.OwnerCache}); err != nil {
		t.Errorf("append after a checkpoint that failed: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, now, err := mem.Space(); err != nil || now == 0 {
		t.Errorf("Close gave nothing back: %d, %v", now, err)
	}
}
