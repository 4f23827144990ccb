package s3

// Feature is something that S3 servers differ in: some refuse it, some accept it and do nothing, which nobody notices.
type Feature string

// Conditions. Each guards one field of one request.
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
