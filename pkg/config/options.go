package config

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ErrOption is wrapped by every error about a mount option; the text names the option and what it may be.
var ErrOption = errors.New("mount option")

// MountOption describes one mount option for help texts.
type MountOption struct {
	Name string
	// Form is what follows the name: empty for a switch, else the values, or the kind of value in capitals.
	Form    string
	Default string // as it would be written, or words
	Help    string

	set func(m *Mount, value string) error
}

// String is the option as it is written: name or name=FORM.
func (o MountOption) String() string {
	if o.Form == "" {
		return o.Name
	}
	return o.Name + "=" + o.Form
}

// MountOptions is the whole vocabulary, in the order of help texts.
func MountOptions() []MountOption {
	return []MountOption{
		{"access", "rwo|rwx|rox", "rwo", "who mounts the volume: one node, many nodes, or many readers; CSI sets it from the access mode",
			choice(func(m *Mount) *string { return &m.Access }, "rwo", "rwx", "rox")},
		{"ro", "", "off", "nothing can be changed through this mount",
			toggle(func(m *Mount) *bool { return &m.ReadOnly })},
		{"fsync", "node|bucket", "node; with access=rwx bucket", "what fsync waits for: the node's disk, or the bucket too",
			choice(func(m *Mount) *string { return &m.Fsync }, "node", "bucket")},
		{"conflict", "keep-both|overwrite", "keep-both", "when another client changed an object that was changed here too: keep its object and store ours under another name, or replace it",
			choice(func(m *Mount) *string { return &m.Conflict }, "keep-both", "overwrite")},
		{"takeover", "manual|after-ttl", "manual", "when another node holds changes that are not in the bucket: refuse to mount (csi-s3 lease gives them up), or take over when it has been silent for a minute",
			choice(func(m *Mount) *string { return &m.Takeover }, "manual", "after-ttl")},
		{"exclusive", "", "off", "nobody else writes to the volume: what is known of it never expires",
			toggle(func(m *Mount) *bool { return &m.Exclusive })},
		{"immutable", "", "off", "nothing in the volume ever changes; implies ro",
			toggle(func(m *Mount) *bool { return &m.Immutable })},
		{"size", "SIZE", "unlimited", "capacity of the volume, such as 100Mi or 2Gi",
			func(m *Mount, v string) (err error) { m.Size, err = ParseSize(v); return err }},
		{"uid", "NUMBER", "0", "owner of objects that carry no attributes",
			number(func(m *Mount) *uint32 { return &m.Uid })},
		{"gid", "NUMBER", "0", "group of objects that carry no attributes",
			number(func(m *Mount) *uint32 { return &m.Gid })},
		{"file-mode", "OCTAL", "0644", "permissions of files whose objects carry no attributes",
			mode(func(m *Mount) *os.FileMode { return &m.FileMode })},
		{"dir-mode", "OCTAL", "0755", "permissions of directories whose objects carry no attributes",
			mode(func(m *Mount) *os.FileMode { return &m.DirMode })},
		{"allow_other", "", "off; in Kubernetes on", "other users than the one who mounts may enter; permissions are always checked",
			toggle(func(m *Mount) *bool { return &m.AllowOther })},
		{"settle", "DURATION", "1s", "how long a closed file rests before its upload begins",
			duration(func(m *Mount) *time.Duration { return &m.Settle })},
		{"io-timeout", "DURATION", "0", "how long a read, an fsync, or a write to a full cache waits for S3 before it fails; 0 waits for ever",
			duration(func(m *Mount) *time.Duration { return &m.IOTimeout })},
	}
}

// DefaultMount is a mount without options.
func DefaultMount() Mount {
	return Mount{
		Access: "rwo", Fsync: "node", Conflict: "keep-both", Takeover: "manual",
		FileMode: 0o644, DirMode: 0o755,
		Settle: time.Second,
	}
}

// ParseMount reads mount options in order; a later one wins. Each is NAME or NAME=VALUE of MountOptions; rw is the
// opposite of ro, and the empty string is nothing. An option that is unknown or has a wrong value is an ErrOption that
// names it.
func ParseMount(options []string) (Mount, error) {
	m := DefaultMount()
	m.Fsync = ""
	vocabulary := MountOptions()
	for _, o := range options {
		name, value, given := strings.Cut(o, "=")
		if o == "" {
			continue
		}
		if o == "rw" {
			m.ReadOnly = false
			continue
		}
		i := slices.IndexFunc(vocabulary, func(known MountOption) bool { return known.Name == name })
		if i < 0 {
			return Mount{}, fmt.Errorf("%w %q is unknown; known are %s", ErrOption, name, names(vocabulary))
		}
		known := vocabulary[i]
		if given != (known.Form != "") {
			return Mount{}, fmt.Errorf("%w %q must be written %s", ErrOption, name, known)
		}
		if err := known.set(&m, value); err != nil {
			return Mount{}, fmt.Errorf("%w %s: %q is not valid: %w", ErrOption, known, value, err)
		}
	}
	if m.Fsync == "" {
		m.Fsync = "node"
		if m.Access == "rwx" {
			m.Fsync = "bucket"
		}
	}
	m.ReadOnly = m.ReadOnly || m.Immutable || m.Access == "rox"
	return m, nil
}

// ParseSize reads a count of bytes: digits with an optional k, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti, Pi (powers
// of 1024), as Kubernetes writes it.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "kKMGTPi")
	var unit int64
	switch s[len(digits):] {
	case "":
		unit = 1
	case "k":
		unit = 1e3
	case "M":
		unit = 1e6
	case "G":
		unit = 1e9
	case "T":
		unit = 1e12
	case "Ki":
		unit = 1 << 10
	case "Mi":
		unit = 1 << 20
	case "Gi":
		unit = 1 << 30
	case "Ti":
		unit = 1 << 40
	case "Pi":
		unit = 1 << 50
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || unit == 0 || int64(n) > math.MaxInt64/unit {
		return 0, errors.New("a size is a number of bytes, such as 1048576, 100Mi or 2Gi")
	}
	return int64(n) * unit, nil
}

// FormatSize writes n bytes in the largest unit of 1024 that leaves at least one: exact where it divides, else with one
// decimal.
func FormatSize(n int64) string {
	const units = "KMGTP"
	i, unit := -1, int64(1)
	for i < len(units)-1 && n/unit >= 1024 {
		unit *= 1024
		i++
	}
	switch {
	case i < 0:
		return fmt.Sprintf("%d bytes", n)
	case n%unit == 0:
		return fmt.Sprintf("%d%ci", n/unit, units[i])
	}
	return fmt.Sprintf("%.1f%ci", float64(n)/float64(unit), units[i])
}

func names(options []MountOption) string {
	all := make([]string, len(options))
	for i, o := range options {
		all[i] = o.Name
	}
	return strings.Join(all, ", ")
}

func choice(field func(*Mount) *string, values ...string) func(*Mount, string) error {
	return func(m *Mount, v string) error {
		if !slices.Contains(values, v) {
			return fmt.Errorf("it is one of %s", strings.Join(values, ", "))
		}
		*field(m) = v
		return nil
	}
}

func toggle(field func(*Mount) *bool) func(*Mount, string) error {
	return func(m *Mount, _ string) error {
		*field(m) = true
		return nil
	}
}

func number(field func(*Mount) *uint32) func(*Mount, string) error {
	return func(m *Mount, v string) error {
		n, err := strconv.ParseUint(v, 10, 32)
		// The last number means "unchanged" to chown(2).
		if err != nil || n == math.MaxUint32 {
			return errors.New("it is a decimal number below 4294967295")
		}
		*field(m) = uint32(n)
		return nil
	}
}

func mode(field func(*Mount) *os.FileMode) func(*Mount, string) error {
	return func(m *Mount, v string) error {
		n, err := strconv.ParseUint(v, 8, 32)
		if err != nil || n > 0o777 {
			return errors.New("permissions are octal, from 0 to 0777")
		}
		*field(m) = os.FileMode(n)
		return nil
	}
}

func duration(field func(*Mount) *time.Duration) func(*Mount, string) error {
	return func(m *Mount, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return errors.New("a duration is a number with a unit, such as 500ms, 30s or 5m")
		}
		*field(m) = d
		return nil
	}
}
