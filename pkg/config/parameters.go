package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// ErrParameter is wrapped by every error about parameters or volumeAttributes; the text names the key.
var ErrParameter = errors.New("parameter")

// Keys of parameters and volumeAttributes.
const (
	keyBucket      = "bucket"
	keyPrefix      = "prefix"
	keyOnDelete    = "onDelete"
	keyMounter     = "mounter"
	keyOptions     = "options"
	keyCapacity    = "capacity"
	keyProvisioned = "csi-s3.dev/provisioned"

	// Kubernetes adds keys below these.
	keysOfCSI     = "csi.storage.k8s.io/"
	keysOfStorage = "storage.kubernetes.io/"
)

// Parameters is what a StorageClass asks for, and for whom.
type Parameters struct {
	Bucket   string // template of the bucket that the volume is a prefix of; empty: a bucket of its own
	Prefix   string // template of the prefix; empty: derived from the volume's name
	OnDelete string // delete or retain: what becomes of the objects when the volume is deleted
	Options  string // flags of geesefs, as given; ParseParameters has seen that they can be translated

	// The names that csi-provisioner adds with --extra-create-metadata.
	PVCNamespace, PVCName, PVName string
}

// ParseParameters reads the parameters of CreateVolume. Keys: bucket, prefix, onDelete, mounter (geesefs, or nothing),
// options (flags of geesefs), and those that csi-provisioner adds below csi.storage.k8s.io/. Any other key is an
// ErrParameter that names it: a typing error must not decide where data goes. So are templates that cannot be filled.
func ParseParameters(parameters map[string]string) (Parameters, error) {
	p := Parameters{OnDelete: "delete"}
	for _, key := range slices.Sorted(maps.Keys(parameters)) {
		value := parameters[key]
		switch key {
		case keyBucket:
			p.Bucket = value
		case keyPrefix:
			p.Prefix = value
		case keyOnDelete:
			if value != "" {
				p.OnDelete = value
			}
		case keyMounter:
			if err := checkMounter(value); err != nil {
				return Parameters{}, err
			}
		case keyOptions:
			if _, err := ParseGeesefs(value); err != nil {
				return Parameters{}, fmt.Errorf("%w %s: %w", ErrParameter, key, err)
			}
			p.Options = value
		case keysOfCSI + "pvc/namespace":
			p.PVCNamespace = value
		case keysOfCSI + "pvc/name":
			p.PVCName = value
		case keysOfCSI + "pv/name":
			p.PVName = value
		default:
			if !strings.HasPrefix(key, keysOfCSI) {
				return Parameters{}, fmt.Errorf("%w %q is unknown; known are %s, %s, %s, %s and %s", ErrParameter, key, keyBucket, keyPrefix, keyOnDelete, keyMounter, keyOptions)
			}
		}
	}
	if p.OnDelete != "delete" && p.OnDelete != "retain" {
		return Parameters{}, fmt.Errorf("%w %s: %q is not valid: it is delete or retain", ErrParameter, keyOnDelete, p.OnDelete)
	}
	if p.Prefix != "" && p.Bucket == "" {
		return Parameters{}, fmt.Errorf("%w %s needs %s: without it each volume is a bucket of its own", ErrParameter, keyPrefix, keyBucket)
	}
	// Any name will do to see whether the templates can be filled.
	if _, err := p.VolumeID("pvc"); err != nil {
		return Parameters{}, err
	}
	return p, nil
}

// checkMounter: values of other mounters would mean objects in another layout.
func checkMounter(name string) error {
	if name != "" && name != "geesefs" {
		return fmt.Errorf("%w %s: %q is not supported: csi-s3 mounts by itself and lays objects out as geesefs does; remove it", ErrParameter, keyMounter, name)
	}
	return nil
}

// VolumeID is the ID of the volume that CreateVolume calls name: the same for every call of that name.
//
//	no bucket                 NAME
//	bucket                    BUCKET/NAME
//	bucket and prefix         BUCKET/PREFIX
//
// A name that servers refuse for a bucket is replaced by one derived from it. In the templates ${pvc.namespace},
// ${pvc.name} and ${pv.name} are filled in; an unknown variable, or one that csi-provisioner did not send, is an
// ErrParameter.
func (p Parameters) VolumeID(name string) (VolumeID, error) {
	if name == "" {
		return VolumeID{}, fmt.Errorf("%w: the name of the volume is empty", ErrVolumeID)
	}
	if p.Bucket == "" {
		return VolumeID{Bucket: bucketName(name)}, nil
	}
	if p.PVName == "" {
		p.PVName = name
	}
	bucket, err := p.fill(keyBucket, p.Bucket)
	if err != nil {
		return VolumeID{}, err
	}
	if bucket != p.Bucket {
		bucket = bucketName(bucket) // a name of a claim may be longer than one of a bucket
	}
	prefix := bucketName(name)
	if p.Prefix != "" {
		if prefix, err = p.fill(keyPrefix, p.Prefix); err != nil {
			return VolumeID{}, err
		}
	}
	if err := checkBucket(bucket); err != nil {
		return VolumeID{}, fmt.Errorf("%w %s: %q: %w", ErrParameter, keyBucket, bucket, err)
	}
	clean, err := cleanPrefix(prefix)
	if err == nil && clean == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		return VolumeID{}, fmt.Errorf("%w %s: %q: %w", ErrParameter, keyPrefix, prefix, err)
	}
	return VolumeID{Bucket: bucket, Prefix: clean}, nil
}

// fill replaces the variables of a template.
func (p Parameters) fill(key, template string) (string, error) {
	var out strings.Builder
	for rest := template; ; {
		before, after, found := strings.Cut(rest, "${")
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		variable, tail, closed := strings.Cut(after, "}")
		if !closed {
			return "", fmt.Errorf("%w %s: %q has a ${ without its }", ErrParameter, key, template)
		}
		var value string
		switch variable {
		case "pvc.namespace":
			value = p.PVCNamespace
		case "pvc.name":
			value = p.PVCName
		case "pv.name":
			value = p.PVName
		default:
			return "", fmt.Errorf("%w %s: ${%s} is unknown; known are ${pvc.namespace}, ${pvc.name} and ${pv.name}", ErrParameter, key, variable)
		}
		switch {
		case value == "":
			return "", fmt.Errorf("%w %s: ${%s} is not known: csi-provisioner must run with --extra-create-metadata", ErrParameter, key, variable)
		case strings.Contains(value, "/"):
			return "", fmt.Errorf("%w %s: ${%s} is %q, which holds a slash", ErrParameter, key, variable, value)
		}
		out.WriteString(value)
		rest = tail
	}
}

// Attributes returns the volumeAttributes of a volume that was created with these parameters, for ParseAttributes on
// the node. They hold no credential.
func (p Parameters) Attributes(capacity int64) map[string]string {
	a := map[string]string{keyProvisioned: "true"}
	if capacity > 0 {
		a[keyCapacity] = strconv.FormatInt(capacity, 10)
	}
	if p.Options != "" {
		a[keyOptions] = p.Options
	}
	return a
}

// Attributes is what the volumeAttributes of a PV say: ours, or those of yandex-cloud/k8s-csi-s3.
type Attributes struct {
	Capacity    int64   // bytes; 0 is unlimited
	Provisioned bool    // a driver of ours created the volume: nobody else writes to it
	Geesefs     Geesefs // what its options ask for
	// Ignored names the keys that mean nothing here, sorted. They are not refused: they cannot be changed any more.
	Ignored []string
}

// ParseAttributes reads the volume context of NodeStageVolume and NodePublishVolume. Values that are known and wrong
// are an ErrParameter.
func ParseAttributes(attributes map[string]string) (Attributes, error) {
	var a Attributes
	for _, key := range slices.Sorted(maps.Keys(attributes)) {
		value := attributes[key]
		var err error
		switch key {
		case keyCapacity:
			a.Capacity, err = ParseSize(value)
		case keyOptions:
			a.Geesefs, err = ParseGeesefs(value)
		case keyProvisioned:
			a.Provisioned, err = strconv.ParseBool(value)
		case keyMounter:
			if err := checkMounter(value); err != nil {
				return Attributes{}, err
			}
		case keyBucket, keyPrefix, keyOnDelete:
			// The volume ID has decided.
		default:
			if !strings.HasPrefix(key, keysOfCSI) && !strings.HasPrefix(key, keysOfStorage) {
				a.Ignored = append(a.Ignored, key)
			}
		}
		if err != nil {
			return Attributes{}, fmt.Errorf("%w %s: %w", ErrParameter, key, err)
		}
	}
	return a, nil
}
