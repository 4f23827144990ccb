package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/csi-s3/csi-s3/pkg/disk"
)

// load replays a journal file and cuts off its torn tail.
func (j *Journal) load(f disk.File, replay func([]Record) error) error {
	size, err := f.Size()
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	r := bufio.NewReaderSize(io.NewSectionReader(f, 0, size), int(min(size, 1<<20)))
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("journal: header: %w", err)
	}
	// The file got its name only when it was whole and durable.
	if string(h[:8]) != magic {
		return fmt.Errorf("journal: header: %w", ErrCorrupt)
	}
	if binary.LittleEndian.Uint32(h[16:]) != crc32.Checksum(h[:16], castagnoli) {
		return fmt.Errorf("journal: header checksum: %w", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(h[8:]); v != version {
		return fmt.Errorf("journal: version %d, this program knows %d: %w", v, version, ErrVersion)
	}
	j.f, j.epoch, j.off = f, binary.LittleEndian.Uint32(h[12:]), headerSize
	for {
		frame, err := readFrame(r, j.epoch, size-j.off)
		if err != nil {
			return fmt.Errorf("journal: read at %d: %w", j.off, err)
		}
		if frame == nil || binary.LittleEndian.Uint64(frame[8:]) != j.seq+1 {
			break
		}
		recs, ok := decode(frame[frameHeader:])
		if !ok {
			return fmt.Errorf("journal: frame at %d: %w", j.off, ErrCorrupt)
		}
		if err := replay(recs); err != nil {
			return err
		}
		j.seq++
		j.off += int64(len(frame))
	}
	if err := j.checkTail(size); err != nil {
		return err
	}
	if j.off < size {
		if err := f.Truncate(j.off); err != nil {
			return fmt.Errorf("journal: cut: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("journal: cut: %w", err)
	}
	j.durable, j.base = j.seq, headerSize
	return nil
}

// readFrame returns the next frame, or nil when it is short or damaged.
func readFrame(r io.Reader, epoch uint32, left int64) ([]byte, error) {
	if left < frameHeader {
		return nil, nil
	}
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	length := int64(binary.LittleEndian.Uint32(h[:]))
	if length > left-frameHeader || length > maxPayload {
		return nil, nil
	}
	frame := make([]byte, frameHeader+length)
	copy(frame, h[:])
	if _, err := io.ReadFull(r, frame[frameHeader:]); err != nil {
		return nil, err
	}
	if checksum(epoch, frame) != binary.LittleEndian.Uint32(frame[4:]) {
		return nil, nil
	}
	return frame, nil
}

// decode splits a payload into its records.
func decode(b []byte) ([]Record, bool) {
	var recs []Record
	for len(b) > 0 {
		n, w := binary.Uvarint(b[1:])
		if w <= 0 || n > uint64(len(b)-1-w) {
			return nil, false
		}
		data := b[1+w : 1+w+int(n)]
		recs = append(recs, Record{Kind(b[0]), data[:n:n]})
		b = b[1+w+int(n):]
	}
	return recs, true
}

// checkTail looks behind the end of the journal for a whole frame that proves the frame at the end to have been durable:
// then it was not torn by a crash but lost by the disk.
func (j *Journal) checkTail(size int64) error {
	tail := make([]byte, size-j.off)
	if len(tail) == 0 {
		return nil
	}
	if _, err := j.f.ReadAt(tail, j.off); err != nil {
		return fmt.Errorf("journal: read at %d: %w", j.off, err)
	}
	for i := 1; i+frameHeader <= len(tail); i++ {
		length := int64(binary.LittleEndian.Uint32(tail[i:]))
		seq := binary.LittleEndian.Uint64(tail[i+8:])
		durable := binary.LittleEndian.Uint64(tail[i+16:])
		if durable <= j.seq || durable >= seq || seq-j.seq > uint64(len(tail)) || length > int64(len(tail)-i-frameHeader) {
			continue
		}
		frame := tail[i : i+frameHeader+int(length)]
		if checksum(j.epoch, frame) == binary.LittleEndian.Uint32(frame[4:]) {
			return fmt.Errorf("journal: frame %d at %d is damaged, but frame %d says that %d were durable: %w", j.seq+1, j.off, seq, durable, ErrCorrupt)
		}
	}
	return nil
}
