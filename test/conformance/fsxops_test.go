package conformance_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The operations of fsx. Each says what it did, for the log of a failure.

func (x *fsx) read(f int) string {
	off, end := x.beyond(f)
	got := x.pread(x.fd[f], make([]byte, end-off), off)
	x.same(f, off, got, x.model[f][min(off, x.len(f)):min(end, x.len(f))], "read")
	return span(off, end)
}

func span(off, end int64) string { return fmt.Sprintf("[%#x, %#x)", off, end) }

func (x *fsx) write(f int) string {
	off, end := x.beyond(f)
	p := x.fill(end - off)
	x.pwrite(x.fd[f], p, off)
	x.put(f, off, p)
	return span(off, end)
}

func (x *fsx) append(f int) string {
	off := x.len(f)
	p := x.fill(min(x.size-off, 1+x.random.Int64N(x.op)))
	if len(p) == 0 {
		return "nothing"
	}
	var fd int
	x.must("open", again(func() (err error) {
		fd, err = unix.Open(x.path[f], unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
		return err
	}))
	for rest := p; len(rest) > 0; {
		var n int
		x.must("write", again(func() (err error) { n, err = unix.Write(fd, rest); return err }))
		rest = rest[n:]
	}
	x.must("close", unix.Close(fd))
	x.put(f, off, p)
	return span(off, x.len(f))
}

// mapped maps the pages of a range and calls use with the range's bytes and the mapping.
func (x *fsx) mapped(f int, off, end int64, prot int, use func(p, pages []byte)) {
	x.t.Helper()
	page := int64(os.Getpagesize())
	start := off / page * page
	pages, err := unix.Mmap(x.fd[f], start, int(end-start), prot, unix.MAP_SHARED)
	x.must("mmap", err)
	use(pages[off-start:], pages)
	x.must("munmap", unix.Munmap(pages))
}

func (x *fsx) mapRead(f int) string {
	off, end, ok := x.within(f)
	if !ok {
		return "nothing"
	}
	x.mapped(f, off, end, unix.PROT_READ, func(p, _ []byte) { x.same(f, off, p, x.model[f][off:end], "mmap read") })
	return span(off, end)
}

// mapWrite leaves it to the kernel when the bytes are sent.
func (x *fsx) mapWrite(f int) string {
	x.unsync[f] = true
	return x.store(f, func([]byte) {})
}

func (x *fsx) mapSync(f int) string {
	return x.store(f, func(pages []byte) { x.must("msync", unix.Msync(pages, unix.MS_SYNC)) })
}

func (x *fsx) store(f int, after func(pages []byte)) string {
	off, end, ok := x.within(f)
	if !ok {
		return "nothing"
	}
	data := x.fill(end - off)
	x.mapped(f, off, end, unix.PROT_READ|unix.PROT_WRITE, func(p, pages []byte) {
		copy(p, data)
		after(pages)
	})
	x.put(f, off, data)
	return span(off, end)
}

func (x *fsx) truncateDown(f int) string {
	if x.len(f) == 0 {
		return "nothing"
	}
	size := x.random.Int64N(x.len(f))
	if x.random.IntN(4) > 0 { // mostly not far: else files would be small all the time
		size = x.len(f) - 1 - x.random.Int64N(min(x.len(f), x.op))
	}
	x.must("ftruncate", again(func() error { return unix.Ftruncate(x.fd[f], size) }))
	x.model[f] = x.model[f][:size:size] // grow brings zeros again
	return fmt.Sprintf("to %#x", size)
}

func (x *fsx) truncateUp(f int) string {
	size := x.len(f) + x.random.Int64N(x.size-x.len(f)+1)
	x.must("ftruncate", again(func() error { return unix.Ftruncate(x.fd[f], size) }))
	x.grow(f, size)
	return fmt.Sprintf("to %#x", size)
}

func (x *fsx) fallocate(f int, mode uint32, off, end int64) string {
	x.t.Helper()
	x.must("fallocate", again(func() error { return unix.Fallocate(x.fd[f], mode, off, end-off) }))
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		x.grow(f, end)
	}
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		clear(x.model[f][min(off, x.len(f)):min(end, x.len(f))])
	}
	return span(off, end)
}

func (x *fsx) allocate(f int) string {
	off, end := x.beyond(f)
	return x.fallocate(f, 0, off, end)
}

func (x *fsx) allocateKeep(f int) string {
	off, end := x.beyond(f)
	return x.fallocate(f, unix.FALLOC_FL_KEEP_SIZE, off, end)
}

func (x *fsx) punch(f int) string {
	off, end := x.beyond(f)
	return x.fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, end)
}

func (x *fsx) zero(f int) string {
	off, end := x.beyond(f)
	return x.fallocate(f, unix.FALLOC_FL_ZERO_RANGE, off, end)
}

func (x *fsx) zeroKeep(f int) string {
	off, end := x.beyond(f)
	return x.fallocate(f, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, end)
}

func (x *fsx) copyRange(from, to int, in, out, n int64) {
	x.t.Helper()
	data := bytes.Clone(x.model[from][in : in+n])
	for at := int64(0); at < n; {
		var k int
		x.must("copy_file_range", again(func() (err error) {
			i, o := in+at, out+at
			k, err = unix.CopyFileRange(x.fd[from], &i, x.fd[to], &o, int(n-at), 0)
			return err
		}))
		if k == 0 {
			x.fatalf("copy_file_range: 0 bytes of %d", n-at)
		}
		at += int64(k)
	}
	x.put(to, out, data)
}

// copyWithin copies to a place that does not overlap.
func (x *fsx) copyWithin(f int) string {
	in, end, ok := x.within(f)
	out, _ := x.beyond(f)
	n := min(end-in, x.size-out)
	if n = min(n, max(in-out, out-in)); !ok || n == 0 {
		return "nothing"
	}
	x.copyRange(f, f, in, out, n)
	return span(in, in+n) + " to " + span(out, out+n)
}

func (x *fsx) copyBetween(f int) string {
	in, end, ok := x.within(1 - f)
	out, _ := x.beyond(f)
	n := min(end-in, x.size-out)
	if !ok {
		return "nothing"
	}
	x.copyRange(1-f, f, in, out, n)
	return "from the other " + span(in, in+n) + " to " + span(out, out+n)
}

func (x *fsx) directRead(f int) string {
	off, end := x.beyond(f)
	off, end = off/direct*direct, (end+direct-1)/direct*direct
	got := x.pread(x.direct[f], x.buffer[:end-off], off)
	x.same(f, off, got, x.model[f][min(off, x.len(f)):min(end, x.len(f))], "direct read")
	return span(off, end)
}

func (x *fsx) directWrite(f int) string {
	off, end := x.beyond(f)
	off, end = off/direct*direct, min((end+direct-1)/direct*direct, x.size/direct*direct)
	if off >= end {
		return "nothing"
	}
	p := x.buffer[:end-off]
	copy(p, x.fill(end-off))
	x.pwrite(x.direct[f], p, off)
	x.put(f, off, p)
	return span(off, end)
}

func (x *fsx) advise(f int) string {
	off, end := x.beyond(f)
	advice := []int{unix.FADV_NORMAL, unix.FADV_RANDOM, unix.FADV_SEQUENTIAL, unix.FADV_WILLNEED, unix.FADV_DONTNEED}[x.random.IntN(5)]
	x.must("fadvise", again(func() error { return unix.Fadvise(x.fd[f], off, end-off, advice) }))
	return fmt.Sprintf("%d %s", advice, span(off, end))
}

func (x *fsx) readahead(f int) string {
	off, end := x.beyond(f)
	x.must("readahead", again(func() error {
		if _, _, errno := unix.Syscall(unix.SYS_READAHEAD, uintptr(x.fd[f]), uintptr(off), uintptr(end-off)); errno != 0 {
			return errno
		}
		return nil
	}))
	return span(off, end)
}

// seek asks for data or a hole at or behind a place. The server is asked and does not see what a mapping has changed.
func (x *fsx) seek(f, whence int) (off, pos int64, err error) {
	if x.unsync[f] {
		x.must("fdatasync", again(func() error { return unix.Fdatasync(x.fd[f]) }))
		x.unsync[f] = false
	}
	off, _ = x.beyond(f)
	err = again(func() (err error) { pos, err = unix.Seek(x.fd[f], off, whence); return err })
	return off, pos, err
}

// seekData: what is skipped is zeros.
func (x *fsx) seekData(f int) string {
	off, pos, err := x.seek(f, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		pos = max(off, x.len(f))
	case err != nil || pos < off || pos >= x.len(f):
		x.fatalf("SEEK_DATA file %d from %d of %d: %d, %v", f, off, x.len(f), pos, err)
	}
	if skipped := x.model[f][min(off, x.len(f)):min(pos, x.len(f))]; len(bytes.Trim(skipped, "\x00")) > 0 {
		x.fatalf("SEEK_DATA file %d from %d of %d skips data: %d, %v", f, off, x.len(f), pos, err)
	}
	return fmt.Sprintf("%#x: %#x %v", off, pos, err)
}

// seekHole: a hole is zeros, or the end.
func (x *fsx) seekHole(f int) string {
	off, pos, err := x.seek(f, unix.SEEK_HOLE)
	switch {
	case errors.Is(err, unix.ENXIO) && off >= x.len(f):
	case err != nil || off >= x.len(f) || pos < off || pos > x.len(f):
		x.fatalf("SEEK_HOLE file %d from %d of %d: %d, %v", f, off, x.len(f), pos, err)
	case pos < x.len(f) && x.model[f][pos] != 0:
		x.fatalf("SEEK_HOLE file %d from %d of %d: %d, where there is data", f, off, x.len(f), pos)
	}
	return fmt.Sprintf("%#x: %#x %v", off, pos, err)
}

func (x *fsx) sync(f int) string {
	x.must("fsync", again(func() error { return unix.Fsync(x.fd[f]) }))
	x.unsync[f] = false
	return ""
}

func (x *fsx) dataSync(f int) string {
	x.must("fdatasync", again(func() error { return unix.Fdatasync(x.fd[f]) }))
	x.unsync[f] = false
	return ""
}

func (x *fsx) reopen(f int) string {
	x.close(f)
	x.open(f)
	return ""
}
