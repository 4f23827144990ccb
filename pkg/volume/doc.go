// Package volume assembles one mounted volume (Volume: it opens the cache directory and its journal, recovers, connects
// to the bucket, serves FUSE, drains and closes), owns the staging and target mounts of a node (Set), and saves what a
// cache holds when its bucket is gone (Remains).
//
// # A Set
//
// Stage: look at the bucket, mark the cache, seal the staging directory, mount. Publish: bind the staging mount to the
// target, by descriptor, and look whether what is seen there is the volume. Unpublish: unmount, remove the directory.
// Unstage: refuse while a target is bound, drain, unmount, unseal, take the mark away.
//
// What is mounted is asked of the kernel (/proc/self/mountinfo), never remembered: a superblock's number tells one
// mount of a volume from the next. A mount of ours that answers ENOTCONN is dead and may be detached; one that is of
// another type, or is served by somebody else, is never touched. No path of a mount is opened or looked at in a way
// that its server would have to answer, but for the question whether it lives, which has a time limit.
//
// The mark says that the cache may hold what the bucket does not, and how the volume is mounted. It is durable before the
// mount and goes when all is drained, so that after a crash an unstage cannot be taken for done. The next stage or
// publish makes the mount again and so finishes the upload; an unstage, which carries no credentials, does it with those
// that the cluster knows (Set.Secret).
//
// Below CacheDir:
//
//	volumes/HASH(volume ID)/HASH(endpoint)/            cache and journal of one volume
//	volumes/HASH(volume ID)/HASH(endpoint).undrained   its mark
//	volumes/HASH(volume ID)/HASH(endpoint).gone        a cache that Sweep removes
//
// Lock order: a volume's lock (locks) first, held through a whole call, S3 and drain included; then nests or mu, held
// for moments. Nobody holds the locks of two volumes. Stats and Status take mu only, so they never wait for a call.
//
// Credentials are exchanged in a living mount: the bucket that a Volume gets (current) passes each request to the
// client of the day.
//
// # Remains
//
// A bucket may be gone for good while a cache holds what it never got. OpenRemains opens a cache without its bucket, on
// an overlay that keeps every change of the recovery in memory, and lists what the bucket does not show as the mount
// did; Save writes it to a directory. Only Discard touches the cache: it takes the mark away and renames the cache to
// NAME.gone.
package volume
