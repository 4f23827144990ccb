package config

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
)

// ErrFlag is wrapped by every error about a flag of csi-s3 driver; the text names the flag.
var ErrFlag = errors.New("flag")

// Process is the flags of csi-s3 driver. See ProcessFlags for the names.
type Process struct {
	Mode         string // controller, node or all: which services are served
	Endpoint     string // absolute path of the unix socket; the flag's value is unix://PATH
	DriverName   string // the name that PVs carry
	NodeID       string // name of this node; required where the node's service runs
	CacheDir     string // directory of caches and journals; required where the node's service runs
	KeeperSocket string // absolute path of the keeper's socket; empty: mounts end with the process
	MetricsAddr  string // HOST:PORT that serves GET /metrics; empty: none
	Memory       int64  // budget of the whole process in bytes
	ClusterID    string // of the cluster, such as the UID of its namespace kube-system; empty: not checked
}

// ProcessFlag describes one flag for help texts and for whoever binds it.
type ProcessFlag struct {
	Name    string // without --
	Form    string // the values, or the kind of value in capitals
	Default string // empty for none
	Help    string

	set func(p *Process, value string) error
}

// Set gives the flag its value in p. A value that cannot be is an ErrFlag.
func (f ProcessFlag) Set(p *Process, value string) error {
	if err := f.set(p, value); err != nil {
		return fmt.Errorf("%w --%s: %q is not valid: %w", ErrFlag, f.Name, value, err)
	}
	return nil
}

// ProcessFlags is every flag of csi-s3 driver but --log-level, which all commands have, in the order of help texts.
func ProcessFlags() []ProcessFlag {
	return []ProcessFlag{
		{"mode", "controller|node|all", "all", "which services are served",
			func(p *Process, v string) error {
				if v != "controller" && v != "node" && v != "all" {
					return errors.New("it is controller, node or all")
				}
				p.Mode = v
				return nil
			}},
		{"endpoint", "unix://PATH", "unix:///csi/csi.sock", "socket of the Container Storage Interface", socket(func(p *Process) *string { return &p.Endpoint })},
		{"driver-name", "NAME", "csi-s3.dev", "name that the driver registers under and that PVs carry",
			func(p *Process, v string) error {
				if !driverName(v) {
					return errors.New("it has at most 63 letters, digits, '-' and '.', a letter or digit first and last")
				}
				p.DriverName = v
				return nil
			}},
		{"node-id", "NAME", "", "name of this node", text(func(p *Process) *string { return &p.NodeID })},
		{"cache-dir", "DIR", "", "directory of the node's disk for caches and journals; it must survive a reboot",
			path(func(p *Process) *string { return &p.CacheDir })},
		{"keeper-socket", "PATH", "", "socket of csi-s3-keeper; without it mounts end with this process", path(func(p *Process) *string { return &p.KeeperSocket })},
		{"metrics-addr", "HOST:PORT", "", "address that serves GET /metrics; without it there are none",
			func(p *Process, v string) error {
				if v != "" {
					if _, _, err := net.SplitHostPort(v); err != nil {
						return errors.New("it is HOST:PORT, such as 0.0.0.0:9810")
					}
				}
				p.MetricsAddr = v
				return nil
			}},
		{"memory", "SIZE", "256Mi", "memory budget of this process",
			func(p *Process, v string) error {
				n, err := ParseSize(v)
				if err != nil {
					return err
				}
				if n < minMemory {
					return fmt.Errorf("it is at least %s", FormatSize(minMemory))
				}
				p.Memory = n
				return nil
			}},
		{"cluster-id", "ID", "", "names the cluster in the records of volumes: a volume of another cluster is not deleted here",
			text(func(p *Process) *string { return &p.ClusterID })},
	}
}

// minMemory in bytes holds the runtime and a few parts under way.
const minMemory = 32 << 20

// DefaultProcess is a driver without flags.
func DefaultProcess() Process {
	return Process{Mode: "all", Endpoint: "/csi/csi.sock", DriverName: "csi-s3.dev", Memory: 256 << 20}
}

// Controller reports whether the controller's service runs.
func (p Process) Controller() bool { return p.Mode != "node" }

// Node reports whether the node's service runs.
func (p Process) Node() bool { return p.Mode != "controller" }

// Validate returns an ErrFlag for a flag that is missing where another asks for it.
func (p Process) Validate() error {
	if p.Node() && p.NodeID == "" {
		return fmt.Errorf("%w --node-id is missing: with --mode=%s give the name of the node", ErrFlag, p.Mode)
	}
	if p.Node() && p.CacheDir == "" {
		return fmt.Errorf("%w --cache-dir is missing: with --mode=%s give a directory of the node's disk", ErrFlag, p.Mode)
	}
	return nil
}

func text(field func(*Process) *string) func(*Process, string) error {
	return func(p *Process, v string) error {
		*field(p) = v
		return nil
	}
}

func path(field func(*Process) *string) func(*Process, string) error {
	return func(p *Process, v string) error {
		if v != "" && !filepath.IsAbs(v) {
			return errors.New("it is an absolute path")
		}
		*field(p) = v
		return nil
	}
}

func socket(field func(*Process) *string) func(*Process, string) error {
	return func(p *Process, v string) error {
		file, ok := strings.CutPrefix(v, "unix://")
		if !ok || !filepath.IsAbs(file) {
			return errors.New("it is unix:// and an absolute path, such as unix:///csi/csi.sock")
		}
		*field(p) = file
		return nil
	}
}

// driverName has the rule of CSI's GetPluginInfo.
func driverName(name string) bool {
	if name == "" || len(name) > 63 || !alphanumeric(rune(name[0])) || !alphanumeric(rune(name[len(name)-1])) {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return !alphanumeric(r) && r != '-' && r != '.' })
}
