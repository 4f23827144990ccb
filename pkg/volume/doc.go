// Package volume assembles one mounted volume: it opens the cache directory and its journal, recovers, connects to
// the bucket, serves FUSE, drains and closes. It also owns the staging and target mounts of a node.
package volume
