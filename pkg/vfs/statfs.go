package vfs

import "context"

const (
	blockSize      = 4096
	unlimitedSpace = 1 << 50 // bytes that a volume without a limit shows as its size, beyond what it holds
	unlimitedFiles = 1 << 32
)

// Statfs reports capacity and use. It asks nobody: what it shows is counted, not walked.
func (fs *FS) Statfs(context.Context) (Statfs, error) {
	bytes, inodes := fs.usage.Get()
	s := Statfs{
		Total: bytes + unlimitedSpace, Free: unlimitedSpace,
		Files: uint64(inodes) + unlimitedFiles, Ffree: unlimitedFiles,
		BlockSize: blockSize, NameMax: maxName,
	}
	if c := fs.policy.Capacity; c > 0 {
		s.Total, s.Free = c, max(0, c-bytes)
	}
	return s, nil
}
