// Package volmeta reads and writes the records that csi-s3 keeps in a volume, below .csi-s3/ at its root: invisible in
// the mount, and gone with the volume.
//
// The ownership record, PREFIX.csi-s3/volume.json, says which volume the keys below PREFIX are, who made it, and
// whether the bucket too was made for it. Nothing destructive is done to a volume without it. It is one JSON object:
//
//	{"version":1, "volume":"shared/pvc-1", "name":"pvc-1", "driver":"csi-s3.dev", "created":"2026-01-02T03:04:05Z", ...}
//
// A record of a version that this program does not know, or with a field that it does not know, is ErrFormat: to write
// it back would lose what a newer program put there. A record is made with Create, which fails when there is one, and
// changed with Replace, which fails when it has changed since it was read; so of two writers one learns of the other.
//
// The lease, PREFIX.csi-s3/lease, says which cache directory of which node may write to a volume that one node writes to.
// It is one JSON object, too:
//
//	{"version":1, "epoch":7, "holder":"node-1", "cache":"x7...", "serial":3, "state":"dirty", "dirtyBytes":4096, "ttlSeconds":60, ...}
//
// The epoch grows each time that it is acquired, the serial with each renewal; cache, epoch and serial together name one
// write of it, so that a holder whose answer was lost finds its own. No time in it is ever compared with a clock. What a
// lease means is the business of package volume.
package volmeta
