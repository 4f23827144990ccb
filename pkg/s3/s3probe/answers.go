package s3probe

import (
	"maps"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Answer is what is known of a server and a feature.
type Answer string

const (
	Unknown  Answer = ""        // nobody asked, or no answer came
	Honoured Answer = "yes"     // it does what it shall, and nothing else
	Ignored  Answer = "ignored" // it answers with success and does not do it
	Refused  Answer = "refused" // it answers with an error, also where it should not
)

// Answers are by feature. What is not in it is Unknown.
type Answers map[s3.Feature]Answer

func (a Answers) clone() Answers { return maps.Clone(a) }

// All answers every feature alike.
func All(answer Answer) Answers {
	a := Answers{}
	for _, f := range Features() {
		a[f] = answer
	}
	return a
}

// merge takes over what b knows and a does not.
func (a Answers) merge(b Answers) Answers {
	all := Answers{}
	maps.Copy(all, b)
	maps.Copy(all, a)
	return all
}

// lacking names what the server is known not to do.
func (a Answers) lacking() []string {
	var names []string
	for _, f := range Features() {
		if a[f] == Ignored || a[f] == Refused {
			names = append(names, string(f))
		}
	}
	return names
}

// Features are all that a probe asks for, in the order in which a report names them.
func Features() []s3.Feature {
	return []s3.Feature{
		s3.PutIfNoneMatch, s3.PutIfMatch, s3.CompleteIfNoneMatch, s3.CompleteIfMatch, s3.CopyIfNoneMatch, s3.CopyIfMatch,
		s3.CopySourceIfMatch, s3.CopyPartIfMatch, s3.DeleteIfMatch,
		s3.StoredChecksum, s3.MultipartChecksum, s3.MultipartRange, s3.EncodedKeys, s3.MultiDelete,
	}
}
