package main

import (
	"fmt"
	"io"

	"github.com/moby/sys/mountinfo"
)

// fsType is the type under which the kernel lists our mounts.
const fsType = "fuse.csi-s3"

// mounted is one of our mounts in the mount namespace of this process.
type mounted struct {
	device string // major:minor, the same for all bind mounts of one volume
	dir    string
	root   bool // false: a bind mount of a subdirectory
}

// ourMounts picks our mounts out of /proc/self/mountinfo, see proc_pid_mountinfo(5). Of a volume that is mounted in several
// places (staging, targets of pods) it returns the first, preferring one that shows the volume's root.
func ourMounts(text io.Reader) ([]mounted, error) {
	all, err := mountinfo.GetMountsFromReader(text, mountinfo.FSTypeFilter(fsType))
	if err != nil {
		return nil, err
	}
	var found []mounted
	at := map[string]int{} // device -> index in found
	for _, info := range all {
		m := mounted{device: fmt.Sprintf("%d:%d", info.Major, info.Minor), dir: info.Mountpoint, root: info.Root == "/"}
		i, seen := at[m.device]
		switch {
		case !seen:
			at[m.device] = len(found)
			found = append(found, m)
		case m.root && !found[i].root:
			found[i] = m
		}
	}
	return found, nil
}
