package s3

// Feature is something that S3 servers differ in: some refuse it, some accept it and do nothing, which nobody notices.
type Feature string

// Conditions. Each guards one kind of request.
const (
	PutIfNoneMatch      Feature = "put if-none-match"
	PutIfMatch          Feature = "put if-match"
	CompleteIfNoneMatch Feature = "complete if-none-match"
	CompleteIfMatch     Feature = "complete if-match"
	CopyIfNoneMatch     Feature = "copy if-none-match"
	CopyIfMatch         Feature = "copy if-match"
	CopySourceIfMatch   Feature = "copy source if-match"
	CopyPartIfMatch     Feature = "copy part source if-match"
	DeleteIfMatch       Feature = "delete if-match"
)

// What else a client may need.
const (
	StoredChecksum    Feature = "stored checksum"          // of an object that was put: Info.Checked
	MultipartChecksum Feature = "stored checksum of parts" // of one that was uploaded in parts
	MultipartRange    Feature = "range of a part"          // a GET of some bytes of such an object
	EncodedKeys       Feature = "keys of any characters"   // a listing gives back what was put
	MultiDelete       Feature = "delete many"
)
