package cache_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/disk"
)

// on is a store on a real disk.
func on(b *testing.B) *box {
	b.Helper()
	fs, err := disk.OpenOS(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	x := mustOpen(b, fs, false)
	b.Cleanup(func() {
		_, _ = x.j.Close(), x.Close() // the directory goes
		_ = fs.Close()
	})
	return x
}

// Reads at random places of what was fetched and is in the page cache.
func BenchmarkWarmRead(b *testing.B) {
	const size = 64 << 20
	for _, n := range []int64{4 << 10, 128 << 10} {
		b.Run(fmt.Sprint(n>>10, "KiB"), func(b *testing.B) {
			f := on(b).File(1, size)
			body := pattern(1, 0, size)
			for off := int64(0); off < size; off += 1 << 20 {
				if err := f.Fill(body[off:off+1<<20], off, 0); err != nil {
					b.Fatal(err)
				}
			}
			p := make([]byte, n)
			b.SetBytes(n)
			for b.Loop() {
				if _, missing, err := f.ReadAt(p, rand.Int64N(size/n)*n); err != nil || !missing.Empty() {
					b.Fatal(missing, err)
				}
			}
		})
	}
}

// The first read of each block after it was fetched, by 4 KiB.
func BenchmarkFirstRead(b *testing.B) {
	const block, size = 32 << 10, 64 << 20
	f := on(b).File(1, size)
	body := pattern(1, 0, size)
	p := make([]byte, 4<<10)
	b.SetBytes(int64(len(p)))
	off := int64(size)
	for b.Loop() {
		if off += block; off >= size {
			b.StopTimer()
			if err := f.Truncate(0, stamp(1)); err != nil {
				b.Fatal(err)
			}
			if err := f.WriteAt(body, 0, stamp(1)); err != nil {
				b.Fatal(err)
			}
			off = 0
			b.StartTimer()
		}
		if _, missing, err := f.ReadAt(p, off); err != nil || !missing.Empty() {
			b.Fatal(missing, err)
		}
	}
}

// What is fetched is stored.
func BenchmarkFill(b *testing.B) {
	const size, n = 64 << 20, 1 << 20
	x := on(b)
	f := x.File(1, size)
	body := pattern(1, 0, n)
	b.SetBytes(n)
	off := int64(0)
	for b.Loop() {
		if off == size {
			b.StopTimer()
			x.Evict(size)
			off = 0
			b.StartTimer()
		}
		if err := f.Fill(body, off, 0); err != nil {
			b.Fatal(err)
		}
		off += n
	}
}

// Writes to a file that grows, and over what is dirty already.
func BenchmarkWrite(b *testing.B) {
	const size = 64 << 20
	for _, n := range []int64{4 << 10, 128 << 10} {
		for _, over := range []bool{false, true} {
			b.Run(fmt.Sprintf("%dKiB/over=%v", n>>10, over), func(b *testing.B) {
				f := on(b).File(1, 0)
				body := pattern(1, 0, size)
				if over {
					if err := f.WriteAt(body, 0, stamp(1)); err != nil {
						b.Fatal(err)
					}
				}
				b.SetBytes(n)
				off := int64(0)
				for b.Loop() {
					at := off % size
					if over {
						at = rand.Int64N(size/n) * n
					}
					if err := f.WriteAt(body[off%size:off%size+n], at, stamp(1)); err != nil {
						b.Fatal(err)
					}
					if off += n; off%size == 0 && !over {
						b.StopTimer()
						if err := f.Truncate(0, stamp(1)); err != nil {
							b.Fatal(err)
						}
						b.StartTimer()
					}
				}
			})
		}
	}
}
