package main

import (
	"fmt"
	"strconv"
	"strings"
)

// fsType is the type under which the kernel lists our mounts.
const fsType = "fuse.csi-s3"

// mounted is one of our mounts in the mount namespace of this process.
type mounted struct {
	device string // major:minor, the same for all bind mounts of one volume
	dir    string
	root   bool // false: a bind mount of a subdirectory
}

// ourMounts parses /proc/self/mountinfo, see proc_pid_mountinfo(5). Of a volume that is mounted in several places (staging,
// targets of pods) it returns the first, preferring one that shows the volume's root.
func ourMounts(mountinfo string) ([]mounted, error) {
	var found []mounted
	at := map[string]int{} // device -> index in found
	for line := range strings.Lines(mountinfo) {
		// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
		left, right, ok := strings.Cut(line, " - ")
		fields := strings.Fields(left)
		if !ok || len(fields) < 6 {
			return nil, fmt.Errorf("mountinfo has a line of an unknown form: %q", line)
		}
		if kind, _, _ := strings.Cut(right, " "); kind != fsType {
			continue
		}
		m := mounted{device: fields[2], dir: unescapeMountinfo(fields[4]), root: fields[3] == "/"}
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

// unescapeMountinfo undoes the kernel's \ooo for space, tab, newline and backslash.
func unescapeMountinfo(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
