package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Geesefs is what flags of geesefs mean here.
type Geesefs struct {
	// Options are mount options for ParseMount. Those of the PV come after them.
	Options []string
	// These settings are the client's: see Apply.
	Region                string
	Insecure, VirtualHost bool
	// Ignored names the flags that change nothing here, each once, in order: geesefs's own tuning.
	Ignored []string
}

// Apply returns s with the settings that the flags have for the client, as geesefs lets its command line win.
func (g Geesefs) Apply(s Secret) Secret {
	if g.Region != "" {
		s.Region = g.Region
	}
	s.Insecure = s.Insecure || g.Insecure
	s.VirtualHost = s.VirtualHost || g.VirtualHost
	return s
}

// Of a flag of geesefs that changes nothing here.
const (
	ignoredSwitches = "cheap debug debug_fuse debug_grpc debug_s3 disable-xattr drop-patch-conflicts enable-mtime enable-patch " +
		"enable-perms enable-specials f fsync-on-close no-checksum no-detect no-dir-object no-expire-multipart no-implicit-dir " +
		"no-preload-dir no-specials no-systemd prefer-patch-uploads refresh-dirs symlink-zeroed use-enomem"
	ignoredValues = "cache cache-age-decrement cache-age-interval cache-file-mode cache-max-hits cache-popular-threshold " +
		"cache-to-disk-hits cold-min-size entry-limit gc-interval http-timeout large-read-cutoff list-type max-disk-cache-fd " +
		"max-flushers max-merge-copy max-parallel-copy max-parallel-parts memory-limit multipart-age multipart-copy-threshold " +
		"part-sizes print-stats read-ahead read-ahead-large read-ahead-parallel read-ahead-small read-merge refresh-attr " +
		"retry-interval sdk-max-retries sdk-max-retry-delay sdk-max-throttle-delay sdk-min-retry-delay sdk-min-throttle-delay " +
		"setgid setuid single-part small-read-count small-read-cutoff stat-cache-ttl"
)

// refusedFlags would store objects otherwise than asked for, or reach outside the volume.
func refusedFlags() map[string]string {
	const (
		outside     = "it reaches outside the volume"
		credentials = "endpoint and credentials come from the volume's secret only"
		stored      = "objects would not be stored as it asks; set it on the bucket"
		names       = "attributes have the names that geesefs gives them by default"
	)
	return map[string]string{
		"log-file": outside, "shared-config": outside, "profile": outside, "pprof": outside,
		"cluster": outside, "cluster-me": outside, "cluster-peer": outside, "grpc-reflection": outside,
		"endpoint": credentials, "iam": credentials, "iam-header": credentials, "iam-flavor": credentials, "iam-url": credentials,
		"project-id": credentials, "requester-pays": credentials,
		"sse": stored, "sse-kms": stored, "sse-c": stored, "acl": stored, "storage-class": stored, "use-content-type": stored,
		"uid-attr": names, "gid-attr": names, "mode-attr": names, "rdev-attr": names, "mtime-attr": names, "symlink-attr": names,
		"ignore-fsync": "fsync is never ignored",
	}
}

// ParseGeesefs translates flags of geesefs, as yandex-cloud/k8s-csi-s3 takes them in one string: words separated by
// white space, with double quotes around what holds some and a backslash before a quote or backslash within. A flag
// that is unknown, or would be unsafe to ignore, is an ErrOption that names it.
func ParseGeesefs(options string) (Geesefs, error) {
	words, err := splitWords(options)
	if err != nil {
		return Geesefs{}, err
	}
	var g Geesefs
	for len(words) > 0 {
		name, value, joined := strings.Cut(words[0], "=")
		flag := strings.TrimPrefix(strings.TrimPrefix(name, "-"), "-")
		words = words[1:]
		if flag == name || flag == "" || flag[0] == '-' {
			return Geesefs{}, fmt.Errorf("%w: %q is not a flag of geesefs: one begins with --", ErrOption, name)
		}
		if why := refusedFlags()[flag]; why != "" {
			return Geesefs{}, fmt.Errorf("%w %s of geesefs is refused: %s", ErrOption, name, why)
		}
		if isSwitch(flag) {
			on := true
			if joined {
				if on, err = strconv.ParseBool(value); err != nil {
					return Geesefs{}, fmt.Errorf("%w %s of geesefs is true or false", ErrOption, name)
				}
			}
			g.toggle(flag, on)
			continue
		}
		if !takesValue(flag) {
			return Geesefs{}, fmt.Errorf("%w %s is not one of geesefs that csi-s3 knows", ErrOption, name)
		}
		if !joined {
			if len(words) == 0 {
				return Geesefs{}, fmt.Errorf("%w %s of geesefs needs a value", ErrOption, name)
			}
			value, words = words[0], words[1:]
		}
		if err := g.set(flag, value); err != nil {
			return Geesefs{}, err
		}
	}
	if _, err := ParseMount(g.Options); err != nil {
		return Geesefs{}, err
	}
	return g, nil
}

func isSwitch(flag string) bool {
	return flag == "no-verify-ssl" || flag == "subdomain" || contains(ignoredSwitches, flag)
}

func takesValue(flag string) bool {
	return contains("dir-mode file-mode uid gid region o", flag) || contains(ignoredValues, flag)
}

func contains(list, word string) bool {
	return strings.Contains(" "+list+" ", " "+word+" ") && word != ""
}

func (g *Geesefs) toggle(flag string, on bool) {
	switch flag {
	case "no-verify-ssl":
		g.Insecure = on
	case "subdomain":
		g.VirtualHost = on
	default:
		g.ignore("--" + flag)
	}
}

func (g *Geesefs) set(flag, value string) error {
	switch flag {
	case "dir-mode", "file-mode", "uid", "gid":
		g.Options = append(g.Options, flag+"="+value)
	case "region":
		g.Region = value
	case "o":
		for o := range strings.SplitSeq(value, ",") {
			switch o {
			case "allow_other", "ro", "rw":
				g.Options = append(g.Options, o)
			case "", "default_permissions", "nodev", "nosuid":
				// So it is always.
			default:
				return fmt.Errorf("%w -o %s is not known; known are allow_other, ro and rw", ErrOption, o)
			}
		}
	default:
		g.ignore("--" + flag)
	}
	return nil
}

func (g *Geesefs) ignore(flag string) {
	for _, seen := range g.Ignored {
		if seen == flag {
			return
		}
	}
	g.Ignored = append(g.Ignored, flag)
}

// splitWords splits at white space outside double quotes.
func splitWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	begun, quoted, escaped := false, false, false
	for _, r := range s {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case quoted && r == '\\':
			escaped = true
		case r == '"':
			quoted, begun = !quoted, true
		case !quoted && strings.ContainsRune(" \t\n\r\f\v", r):
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	if quoted {
		return nil, errors.Join(ErrOption, errors.New("a double quote is not closed"))
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}
