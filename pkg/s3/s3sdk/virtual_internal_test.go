package s3sdk

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
)

// virtual returns a client of a server in the same bubble of time: connections are pipes.
func virtual(t *testing.T, answer http.HandlerFunc) *Client {
	t.Helper()
	c, err := New(Config{Endpoint: "https://virtual", Credentials: Credentials{AccessKeyID: "accesskey", SecretAccessKey: "secretkey"}})
	if err != nil {
		t.Fatal(err)
	}
	l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	server := &http.Server{Handler: answer, ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan struct{})
	go func() { // ends with the server
		defer close(served)
		_ = server.Serve(l)
	}()
	for _, tr := range []*http.Transport{c.pool.short, c.pool.long} {
		tr.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx) }
	}
	t.Cleanup(func() {
		c.Close()
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		<-served
	})
	return c
}

type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipes) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.closed:
		return nil, errors.New("the server is gone")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipes) Addr() net.Addr { return &net.UnixAddr{} }
