package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Operations that are treated in a special way here, and the sizes of the protocol's headers. See linux/fuse.h.
const (
	opForget      = 2
	opRead        = 15
	opGetXattr    = 22
	opListXattr   = 23
	opInit        = 26
	opReadDir     = 28
	opInterrupt   = 36
	opIoctl       = 39
	opBatchForget = 42
	opReadDirPlus = 44

	inHeader  = 40
	outHeader = 16

	// resentBit marks the number of a request that the kernel sends again.
	resentBit = 1 << 63
)

// serve reads requests until the mount is gone.
func (s *Server) serve() {
	for {
		slot, n, err := s.read()
		if err != nil {
			if !orderly(err) {
				s.log.Error("the mount broke", "dir", s.opt.Dir, "err", err)
			}
			break
		}
		s.dispatch(slot, n)
	}
	s.cancel()
	close(s.done)
	// With the device the kernel ends what is left of the mount. Closed before, it fails, and nobody is left to tell.
	_ = s.dev.Close()
}

// orderly says that a read ended because the mount did: the kernel has no mount any more, or had none when it was about
// to hand over a request (ECONNABORTED), or Unmount wants no more requests, or the device is closed.
func orderly(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ECONNABORTED) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed)
}

// read waits for a request and reads it into a slot of the pool.
func (s *Server) read() (slot []byte, n int, err error) {
	for {
		wait := s.raw.Read(readable)
		if errors.Is(wait, os.ErrDeadlineExceeded) {
			return nil, 0, wait
		}
		// Of a mount that ended the poller says only that it cannot wait for it: the read tells why.
		slot = s.pool.get()
		if n, err = s.onDevice(unix.Read, slot); err == nil {
			return slot, n, nil
		}
		s.pool.put(slot)
		switch {
		case errors.Is(err, unix.EAGAIN):
			if wait != nil {
				return nil, 0, fmt.Errorf("wait for requests: %w", wait)
			}
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOENT): // the request was interrupted before it was read
		default:
			return nil, 0, err
		}
	}
}

// readable says whether a read would not block.
func readable(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return n != 0 || err != nil && !errors.Is(err, unix.EINTR)
}

// dispatch begins to carry a request out.
func (s *Server) dispatch(slot []byte, n int) {
	op := binary.LittleEndian.Uint32(slot[4:])
	switch op {
	case opForget, opBatchForget, opInterrupt:
		// Short, and better done in the order in which they come.
		s.handle(slot[:n])
		s.pool.put(slot)
		return
	}
	s.wg.Add(1)
	if n <= smallBuffer || s.pool.scarce() {
		req := s.bufs.get(n)
		copy(req, slot[:n])
		s.pool.put(slot)
		go func() {
			defer s.wg.Done()
			s.handle(req)
			s.bufs.put(req)
		}()
		return
	}
	go func() {
		defer s.wg.Done()
		s.handle(slot[:n])
		s.pool.put(slot)
	}()
}

// handle carries a request out and answers it.
func (s *Server) handle(req []byte) {
	if len(req) < inHeader {
		s.log.Error("malformed request", "dir", s.opt.Dir, "bytes", len(req))
		return
	}
	out := s.bufs.get(outSize(req))
	defer s.bufs.put(out)
	n := s.answer(req, out)
	if n == 0 {
		return
	}
	if err := s.write(out[:n]); err != nil && !s.ending(err) {
		s.log.Error("cannot answer a request", "dir", s.opt.Dir, "op", binary.LittleEndian.Uint32(req[4:]), "err", err)
	}
}

// answer carries a request out and returns the length of its answer in out, 0 for a request that has none.
func (s *Server) answer(req, out []byte) (n int) {
	defer func() {
		// Of the parser: the methods' panics end in it.
		if what := recover(); what != nil {
			n = refuse(req, out, s.panicked(what))
		}
	}()
	n, st := s.proto.HandleRequest([][]byte{req}, [][]byte{out})
	if st != fuse.OK {
		s.log.Error("malformed request", "dir", s.opt.Dir, "op", binary.LittleEndian.Uint32(req[4:]), "bytes", len(req))
		if n == 0 {
			n = refuse(req, out, st)
		}
	}
	return n
}

// refuse makes the answer to a request that failed.
func refuse(req, out []byte, st fuse.Status) int {
	binary.LittleEndian.PutUint32(out, outHeader)
	binary.LittleEndian.PutUint32(out[4:], uint32(-int32(st)))
	copy(out[8:outHeader], req[8:])
	return outHeader
}

// outSize is the room that the answer to a request may need.
func outSize(req []byte) int {
	at := 0 // of the size in the request's arguments
	switch binary.LittleEndian.Uint32(req[4:]) {
	case opRead, opReadDir, opReadDirPlus:
		at = inHeader + 16
	case opGetXattr, opListXattr:
		at = inHeader
	case opIoctl:
		at = inHeader + 28
	}
	const headers = 4 << 10
	if at == 0 || len(req) < at+4 {
		return smallBuffer
	}
	return headers + int(min(binary.LittleEndian.Uint32(req[at:]), maxIO))
}

// write sends an answer or a notification. That the kernel waits for it no more is no error.
func (s *Server) write(p []byte) error {
	_, err := s.onDevice(unix.Write, p)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// onDevice makes a system call with the device, which is not closed in the meantime.
func (s *Server) onDevice(call func(fd int, p []byte) (int, error), p []byte) (n int, err error) {
	if e := s.raw.Control(func(fd uintptr) { n, err = call(int(fd), p) }); e != nil {
		return 0, fmt.Errorf("%w: %w", os.ErrClosed, e) // the one reason, for which os has no sentinel here
	}
	return n, err
}

// ending says that a write failed, or may have, because the mount ends.
func (s *Server) ending(err error) bool { return s.ctx.Err() != nil || orderly(err) }

// init answers the first request, in which the kernel and we agree on the protocol.
func (s *Server) init() error {
	slot, n, err := s.read()
	if err != nil {
		return err
	}
	defer s.pool.put(slot)
	if op := binary.LittleEndian.Uint32(slot[4:]); n < inHeader || op != opInit {
		return fmt.Errorf("first request is %d of %d bytes", op, n)
	}
	out := s.bufs.get(smallBuffer)
	defer s.bufs.put(out)
	n = s.answer(slot[:n], out)
	if e := int32(binary.LittleEndian.Uint32(out[4:])); e != 0 {
		return fmt.Errorf("the kernel's protocol is not ours: %w", unix.Errno(-e))
	}
	return s.write(out[:n])
}
