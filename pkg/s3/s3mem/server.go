package s3mem

import (
	"sync"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

// Server is a server of buckets by name. At first none exists: CreateBucket makes it. It is safe for concurrent use.
type Server struct {
	mu      sync.Mutex
	buckets map[string]*Bucket // guarded by mu: every name that was asked for
}

// NewServer returns a server without buckets.
func NewServer() *Server { return &Server{buckets: map[string]*Bucket{}} }

// Bucket returns the bucket of that name, whether it exists or not: always the same one. It is a *Bucket.
func (s *Server) Bucket(name string) s3.Bucket {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[name]
	if b == nil {
		b = New(name)
		b.absent = true
		s.buckets[name] = b
	}
	return b
}

// Close does nothing: the buckets stay.
func (s *Server) Close() {}
