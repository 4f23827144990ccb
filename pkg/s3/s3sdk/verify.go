package s3sdk

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/s3"
)

// proof is what a body must amount to.
type proof struct {
	hash.Hash
	want   string // base64 of the sum
	nested bool   // the sum is of the sum of the only part
}

// stored returns the proof that an answer with the whole object carries: of the checksums that the writer of the object
// had stored, the cheapest. It is nil when there is none, or only one that is made of several parts' sums: where
// the parts begin is not known.
func stored(out *sdk.GetObjectOutput) *proof {
	for _, c := range []struct {
		value *string
		hash  func() hash.Hash
	}{
		{out.ChecksumCRC32C, func() hash.Hash { return crc32.New(castagnoli()) }},
		{out.ChecksumCRC32, func() hash.Hash { return crc32.NewIEEE() }},
		{out.ChecksumCRC64NVME, func() hash.Hash { return crc64.New(nvme()) }},
		{out.ChecksumSHA1, sha1.New},
		{out.ChecksumSHA256, sha256.New},
		{out.ChecksumSHA512, sha512.New},
		{out.ChecksumMD5, md5.New},
	} {
		sum, parts, composite := strings.Cut(aws.ToString(c.value), "-")
		if sum != "" && (!composite || parts == "1") {
			return &proof{Hash: c.hash(), want: sum, nested: composite}
		}
	}
	return nil
}

// holds says whether all that was written is what was announced.
func (p *proof) holds() bool {
	sum := p.Sum(nil)
	if p.nested {
		p.Reset()
		_, _ = p.Write(sum) // a hash never fails
		sum = p.Sum(nil)
	}
	return base64.StdEncoding.EncodeToString(sum) == p.want
}

// nvme is the table of CRC-64/NVME, which the AWS tools of today store by default.
var nvme = sync.OnceValue(func() *crc64.Table { return crc64.MakeTable(0x9a6c9329ac4bc9b5) })
