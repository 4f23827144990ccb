// Package fetch brings bytes of remote objects into the cache: range reads, readahead, one request per missing range.
//
// It promises:
//   - A body enters the cache only when all of it has arrived with the length that was asked for, and the bucket has judged
//     its checksum.
//   - Bytes of an object enter a file only while that object is the one behind the file's missing ranges. The order is:
//     read File.Generation, ask Locate for the source, GET pinned to its ETag, File.Fill with the generation. A commit or
//     a truncation in between changes the generation, and the fetch starts over with the new source.
//   - A range is on its way at most once: readers of the same bytes wait for the same request (a flight). A reader that
//     gives up leaves the flight to the others; a flight that nobody waits for any more is broken off.
//   - Readahead takes only what the demand of readers leaves of the budget, never waits for it, and never repeats a
//     failed request.
//
// Lock order: a file's queue, then the cache's file (queue.flights and File.Missing must agree). Fetcher.mu and the
// budget's lock are leaves. No lock is held over a request or a File.Fill. Locate is called with a file's
// queue locked: it may lock the tree or the cache.
//
// Start reading in ensure.go.
package fetch
