// Package s3sdk is the real s3.Bucket: an S3 server spoken to through aws-sdk-go-v2. It is the only importer of the
// SDK, and it uses the SDK for what it is good at (signing, serialising, deserialising); everything that decides about
// data is here.
//
// What it adds, and why:
//   - Retries are its own (retry.go): the SDK's share one budget between all callers, never retry a name that does
//     not resolve, and hide that an earlier attempt may have been applied. A conditional write whose first attempt
//     got no answer and whose second finds the condition broken is ErrUnavailable: it may have met itself. A budget
//     keeps repetitions to a part of what succeeds; beyond it the caller, who pauses longer, repeats.
//   - As many requests are under way to an endpoint as it bears (limit.go), of look-ups, reads and writes each: one more
//     after a round of successes, half after a round with a 503, a 429 or a timeout.
//   - A small read whose first byte is late is asked for a second time, one in twenty at most (hedge.go).
//   - Requests that are denied one after the other go slowly, each operation of a bucket by itself (brake.go).
//   - Every upload carries a CRC-32C of its body in a header, computed before the request: without one, some servers
//     commit a truncated body when the client dies. No trailers and no chunked encoding.
//   - 404 is believed only from an S3 server: from an error code in the answer, or from a HEAD that carries a request
//     ID while the bucket is known to exist. A load balancer's 404 is ErrUnavailable.
//   - A body is checked while it is read: its length always, and its checksum when all of the object was asked for and
//     one is stored with it (verify.go). Over plain HTTP all others are asked for twice and compared (twin.go). A wrong
//     checksum, or a copy that differs, withholds the end of the body.
//   - Every listing asks for URL-encoded keys and decodes them when the server says that it encoded.
//   - Connections are HTTP/1.1 without proxy or redirects, with deadlines for dialling, TLS, the first byte of the
//     answer and for silence; no deadline for a whole transfer.
//   - Each Client has its own signer: the SDK's signer caches the derived key by access key ID, so a shared one would
//     go on signing with the old secret after a rotation.
//
// Credentials, the access key ID included, are secrets: they print as *** and no error holds them, nor any text of
// a server beside its error code and request ID.
//
// Locks: those of Transports, bucket, limiter, brake, budget and pace are leaves, upload.mu is held across a read of the
// caller's body; none is held across a request.
//
// Start reading at Client (client.go), then retry.go and errors.go.
package s3sdk
