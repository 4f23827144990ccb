package journal_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/disk"
	"github.com/csi-s3/csi-s3/pkg/disk/diskfault"
	"github.com/csi-s3/csi-s3/pkg/disk/diskmem"
	"github.com/csi-s3/csi-s3/pkg/journal"
)

// state is what the records of these tests add up to: the numbers seen, in order. A checkpoint dumps them.
type state struct{ seen []uint64 }

func (s *state) replay(frame []journal.Record) error {
	// Each frame carries a number twice; a frame is atomic.
	if len(frame)%2 != 0 {
		return fmt.Errorf("frame of %d records", len(frame))
	}
	for i := 0; i < len(frame); i += 2 {
		a, b := binary.BigEndian.Uint64(frame[i].Data), binary.BigEndian.Uint64(frame[i+1].Data)
		if a != b || frame[i].Kind != 0x11 || frame[i+1].Kind != 0x21 {
			return fmt.Errorf("records %d and %d do not belong together", a, b)
		}
		s.seen = append(s.seen, a)
	}
	return nil
}

func pair(n uint64, pad int) []journal.Record {
	data := binary.BigEndian.AppendUint64(nil, n)
	return []journal.Record{{Kind: 0x11, Data: data}, {Kind: 0x21, Data: append(slices.Clone(data), make([]byte, pad)...)}}
}

func (s *state) dump(emit func(...journal.Record) error) error {
	for _, n := range s.seen {
		if err := emit(pair(n, 0)...); err != nil {
			return err
		}
	}
	return nil
}

func open(t *testing.T, fs disk.FS) (*journal.Journal, *state) {
	t.Helper()
	s := &state{}
	j, err := journal.Open(fs, "j", journal.Options{CheckpointBytes: 2000}, s.replay)
	if err != nil {
		t.Fatal(err)
	}
	return j, s
}

// TestCrash kills and cuts the power at random moments. After a kill everything appended is there; after a power cut a
// prefix that holds all that was synced.
func TestCrash(t *testing.T) {
	var kills, cuts, lost int
	for seed := range uint64(400) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		mem := diskmem.New()
		var want []uint64
		var synced int
		next := uint64(0)
		for range 6 {
			j, s := open(t, mem)
			if !slices.Equal(s.seen, want) {
				t.Fatalf("seed %d: replayed %v, want %v", seed, s.seen, want)
			}
			synced = len(want)
			for range rnd.IntN(40) {
				switch rnd.IntN(8) {
				case 0:
					if err := j.Sync(); err != nil {
						t.Fatal(err)
					}
					synced = len(s.seen)
				case 1:
					if j.NeedsCheckpoint() {
						if err := j.Checkpoint(s.dump); err != nil {
							t.Fatal(err)
						}
						synced = len(s.seen)
					}
				default:
					next++
					if err := j.Append(pair(next, rnd.IntN(3000))...); err != nil {
						t.Fatal(err)
					}
					s.seen = append(s.seen, next)
				}
			}
			if rnd.IntN(2) == 0 {
				kills++
				mem = mem.Clone()
				want = s.seen
				continue
			}
			cuts++
			mem = mem.CrashClone(rnd)
			after := &state{}
			j2, err := journal.Open(mem.Clone(), "j", journal.Options{}, after.replay)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err := j2.Close(); err != nil {
				t.Fatal(err)
			}
			if len(after.seen) < synced || !slices.Equal(after.seen, s.seen[:len(after.seen)]) {
				t.Fatalf("seed %d: after the power cut %v, appended %v, synced %d", seed, after.seen, s.seen, synced)
			}
			lost += len(s.seen) - len(after.seen)
			want = after.seen
		}
	}
	if kills == 0 || cuts == 0 || lost == 0 {
		t.Fatalf("the test tested nothing: %d kills, %d cuts, %d frames lost", kills, cuts, lost)
	}
	t.Logf("%d kills, %d power cuts, %d unsynced frames lost", kills, cuts, lost)
}

// TestEveryCall fails, and separately cuts the power at, each disk call of a script with a checkpoint.
func TestEveryCall(t *testing.T) {
	errDisk := errors.New("injected")
	script := func(fs disk.FS, acked *[]uint64, synced *int) error {
		s := &state{}
		j, err := journal.Open(fs, "j", journal.Options{}, s.replay)
		if err != nil {
			return err
		}
		for n := uint64(1); n <= 12; n++ {
			if err := j.Append(pair(n, 100)...); err != nil {
				return err
			}
			s.seen = append(s.seen, n)
			*acked = s.seen
			if n%3 == 0 {
				if err := j.Sync(); err != nil {
					return err
				}
				*synced = len(s.seen)
			}
			if n == 6 || n == 10 {
				if err := j.Checkpoint(s.dump); err != nil {
					return err
				}
				*synced = len(s.seen)
			}
		}
		return j.Close()
	}
	count := diskfault.New(diskmem.New(), nil)
	if err := script(count, new([]uint64), new(int)); err != nil {
		t.Fatal(err)
	}
	for n := int64(1); n <= count.Calls(); n++ {
		for _, short := range []bool{false, true} {
			mem := diskmem.New()
			var acked []uint64
			var synced int
			err := script(diskfault.New(mem, func(op diskfault.Op) error {
				if op.N != n {
					return nil
				}
				if short && op.Len > 1 {
					return &diskfault.Partial{N: int(op.Len / 2), Err: errDisk}
				}
				return errDisk
			}), &acked, &synced)
			if err != nil && !errors.Is(err, errDisk) {
				t.Fatalf("call %d: %v", n, err)
			}
			for i, crashed := range []*diskmem.FS{mem.Clone(), mem.CrashClone(rand.New(rand.NewPCG(uint64(n), 3)))} {
				s := &state{}
				if _, err := journal.Open(crashed, "j", journal.Options{}, s.replay); err != nil {
					t.Fatalf("call %d: reopen: %v", n, err)
				}
				least := synced
				if i == 0 {
					least = len(acked)
				}
				// A failed append may be there in whole: it was not refused for good, only not acknowledged.
				if len(s.seen) < least || len(s.seen) > len(acked)+1 || !slices.Equal(s.seen[:min(len(s.seen), len(acked))], acked[:min(len(s.seen), len(acked))]) {
					t.Fatalf("call %d, crash %d: %v, acknowledged %v, synced %d", n, i, s.seen, acked, synced)
				}
			}
		}
	}
}

func TestPoisoned(t *testing.T) {
	fail := false
	j, _ := open(t, diskfault.New(diskmem.New(), func(op diskfault.Op) error {
		if fail && op.Name == "WriteAt" {
			return disk.ErrNoSpace
		}
		return nil
	}))
	fail = true
	if err := j.Append(pair(1, 0)...); !errors.Is(err, disk.ErrNoSpace) {
		t.Fatalf("append: %v", err)
	}
	fail = false
	if err := j.Append(pair(2, 0)...); !errors.Is(err, disk.ErrNoSpace) {
		t.Fatalf("append after a failed one: %v", err)
	}
	if err := j.Sync(); !errors.Is(err, disk.ErrNoSpace) {
		t.Fatalf("sync after a failed append: %v", err)
	}
}

// TestDamage flips a byte in each synced frame: none may be passed over in silence.
func TestDamage(t *testing.T) {
	mem := diskmem.New()
	j, _ := open(t, mem)
	for n := uint64(1); n <= 5; n++ {
		if err := errors.Join(j.Append(pair(n, 10)...), j.Sync()); err != nil {
			t.Fatal(err)
		}
	}
	b, err := mem.ReadFile("j/journal")
	if err != nil {
		t.Fatal(err)
	}
	caught := 0
	for i := range b {
		c := mem.Clone()
		f, err := c.OpenFile("j/journal", false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{b[i] ^ 0x40}, int64(i)); err != nil {
			t.Fatal(err)
		}
		s := &state{}
		_, err = journal.Open(c, "j", journal.Options{}, s.replay)
		switch {
		case errors.Is(err, journal.ErrCorrupt), errors.Is(err, journal.ErrVersion):
			caught++
		case err != nil:
			t.Fatalf("byte %d: %v", i, err)
		case len(s.seen) < 4:
			// The last frame alone cannot be told from a torn one: no later frame says that it was durable.
			t.Fatalf("byte %d: only %v came back without an error", i, s.seen)
		}
	}
	if caught == 0 {
		t.Fatal("no damage was caught")
	}
}

func TestConcurrentSync(t *testing.T) {
	j, _ := open(t, diskmem.New())
	done := make(chan error)
	for g := range uint64(8) {
		go func() {
			for i := range uint64(50) {
				if err := errors.Join(j.Append(pair(g*100+i, 0)...), j.Sync()); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 3 {
		if err := j.Checkpoint((&state{}).dump); err != nil {
			t.Fatal(err)
		}
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Append(journal.Record{Data: make([]byte, journal.MaxRecord+1)}); !errors.Is(err, journal.ErrTooLarge) {
		t.Fatalf("too large a record: %v", err)
	}
}

func FuzzReplay(f *testing.F) {
	mem := diskmem.New()
	j, err := journal.Open(mem, "j", journal.Options{}, func([]journal.Record) error { return nil })
	if err != nil {
		f.Fatal(err)
	}
	if err := j.Append(pair(1, 5)...); err != nil {
		f.Fatal(err)
	}
	b, err := mem.ReadFile("j/journal")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		mem := diskmem.New()
		if err := mem.MkdirAll("j"); err != nil {
			t.Fatal(err)
		}
		h, err := mem.OpenFile("j/journal", true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		j, err := journal.Open(mem, "j", journal.Options{}, func([]journal.Record) error { return nil })
		if err != nil {
			return
		}
		if err := errors.Join(j.Append(pair(1, 0)...), j.Close()); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	fs, err := disk.OpenOS(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	j, err := journal.Open(fs, "j", journal.Options{}, func([]journal.Record) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	recs := pair(1, 200)
	for b.Loop() {
		if err := j.Append(recs...); err != nil {
			b.Fatal(err)
		}
	}
}

// TestKillInCheckpoint kills at each disk call of a checkpoint: what the next process syncs survives a power cut, whichever
// of the two files it found.
func TestKillInCheckpoint(t *testing.T) {
	mem := diskmem.New()
	var killed []*diskmem.FS
	watch := false
	j, s := open(t, diskfault.New(mem, func(diskfault.Op) error {
		if watch {
			killed = append(killed, mem.Clone())
		}
		return nil
	}))
	if err := errors.Join(j.Append(pair(1, 10)...), j.Append(pair(2, 10)...)); err != nil {
		t.Fatal(err)
	}
	s.seen = []uint64{1, 2}
	watch = true
	if err := j.Checkpoint(s.dump); err != nil {
		t.Fatal(err)
	}
	if len(killed) < 4 {
		t.Fatalf("only %d calls", len(killed))
	}
	for i, mem := range killed {
		j, _ := open(t, mem)
		if err := errors.Join(j.Append(pair(3, 10)...), j.Sync()); err != nil {
			t.Fatal(err)
		}
		for seed := range uint64(20) {
			if _, s := open(t, mem.CrashClone(rand.New(rand.NewPCG(seed, 4)))); !slices.Equal(s.seen, []uint64{1, 2, 3}) {
				t.Fatalf("killed at call %d of the checkpoint, seed %d: %v", i+1, seed, s.seen)
			}
		}
	}
}

// TestPowerCutAtEachCall cuts the power before each disk call of a life with checkpoints, and again in the life after
// it: what was synced is there, in order, and what the second life syncs is too.
func TestPowerCutAtEachCall(t *testing.T) {
	mem := diskmem.New()
	type cut struct {
		op     string
		disk   *diskmem.FS
		synced int
		most   int // frames that were appended or about to be
	}
	var cuts []cut
	var synced, most int
	watched := diskfault.New(mem, func(op diskfault.Op) error {
		for seed := range uint64(8) {
			cuts = append(cuts, cut{op.Name, mem.CrashClone(rnd(uint64(op.N)<<8 | seed)), synced, most})
		}
		return nil
	})
	j, s := open(t, watched)
	for n := uint64(1); n <= 12; n++ {
		most = int(n)
		if err := j.Append(pair(n, 5000)...); err != nil { // more than a page: it can be torn
			t.Fatal(err)
		}
		s.seen = append(s.seen, n)
		if n%4 == 2 {
			if err := j.Sync(); err != nil {
				t.Fatal(err)
			}
			synced = len(s.seen)
		}
		if n%4 == 0 {
			if err := j.Checkpoint(s.dump); err != nil {
				t.Fatal(err)
			}
			synced = len(s.seen)
		}
	}
	torn, renames := 0, 0
	for i, c := range cuts {
		if c.op == "SyncDir" && c.synced > 0 {
			renames++ // between a checkpoint's rename and its SyncDir
		}
		j, got := open(t, c.disk)
		if len(got.seen) < c.synced || len(got.seen) > c.most || !slices.Equal(got.seen, s.seen[:len(got.seen)]) {
			t.Fatalf("cut %d, at %s: %v, synced %d", i, c.op, got.seen, c.synced)
		}
		if len(got.seen) < c.most {
			torn++
		}
		if err := errors.Join(j.Append(pair(100, 10)...), j.Sync(), j.Append(pair(101, 6000)...)); err != nil {
			t.Fatal(err)
		}
		want := append(slices.Clone(got.seen), 100)
		_, again := open(t, c.disk.CrashClone(rnd(uint64(i))))
		if n := len(want); len(again.seen) < n || !slices.Equal(again.seen[:n], want) || len(again.seen) > n+1 {
			t.Fatalf("cut %d, at %s, and again: %v, want %v", i, c.op, again.seen, want)
		}
	}
	if torn == 0 || renames == 0 {
		t.Fatalf("the test tested nothing: %d of %d cuts lost something, %d came within a rename", torn, len(cuts), renames)
	}
}
