package driver

import (
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// inFlight is what calls are at work on. The zero value is ready.
type inFlight struct {
	mu   sync.Mutex
	busy map[string]struct{} // guarded by mu
}

// enter claims one thing of a kind until done is called. While another call has it the error is Aborted.
func (f *inFlight) enter(kind, name string) (done func(), err error) {
	key := kind + " " + name
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, taken := f.busy[key]; taken {
		return nil, status.Errorf(codes.Aborted, "another call is at work on %s %s", kind, name)
	}
	if f.busy == nil {
		f.busy = map[string]struct{}{}
	}
	f.busy[key] = struct{}{}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.busy, key)
	}, nil
}
