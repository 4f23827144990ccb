// Package cache owns the bytes of files on the local disk: which ranges are dirty, which are clean copies of the
// remote object, and which are missing. It knows neither S3 nor FUSE: fetch fills it, writeback empties it, and both
// call the cache, never the reverse.
package cache
