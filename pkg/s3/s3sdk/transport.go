package s3sdk

import (
	"context"
	"crypto/sha256"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	dialTimeout   = 3 * time.Second
	tlsTimeout    = 5 * time.Second
	headerTimeout = 15 * time.Second
	// Complete, Copy and UploadPartCopy answer after the server has moved the bytes.
	longHeaderTimeout = 120 * time.Second
	silenceTimeout    = 30 * time.Second
	// Below the 60 s after which proxies usually drop an idle connection.
	idleTimeout  = 55 * time.Second
	idlePerHost  = 128
	writeBuffer  = 64 << 10
	tcpKeepAlive = 15 * time.Second
)

// Transports shares connection pools between the clients of one endpoint and CA. The zero value is ready. It is safe
// for concurrent use.
type Transports struct {
	mu    sync.Mutex
	pools map[poolKey]*pool // guarded by mu
}

type poolKey struct {
	endpoint string
	ca       [sha256.Size]byte
	insecure bool
}

// pool is what the clients of one endpoint share. It has a transport for requests that are answered at once and one for those that are not: the time to wait for
// the first byte of an answer is a property of a transport.
type pool struct {
	short, long *http.Transport
	users       int
	limits      [kinds]*limiter
	budget      budget
	pace        pace

	corrupt, compared atomic.Int64 // see Stats
}

func (t *Transports) open(c Config) (*pool, func()) {
	key := poolKey{endpoint: c.Endpoint, ca: sha256.Sum256(c.CABundle), insecure: c.Insecure}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.pools[key]
	if p == nil {
		p = &pool{short: newTransport(c, headerTimeout), long: newTransport(c, longHeaderTimeout), budget: budget{tokens: maxTokens}}
		for k := range p.limits {
			p.limits[k] = newLimiter()
		}
		if t.pools == nil {
			t.pools = map[poolKey]*pool{}
		}
		t.pools[key] = p
	}
	p.users++
	return p, sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if p.users--; p.users == 0 {
			delete(t.pools, key)
			p.short.CloseIdleConnections()
			p.long.CloseIdleConnections()
		}
	})
}

func newTransport(c Config, wait time.Duration) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: tcpKeepAlive}
	silence := max(silenceTimeout, wait+tlsTimeout)
	return &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &conn{Conn: nc, silence: silence}, nil
		},
		TLSClientConfig:       c.tls(),
		TLSHandshakeTimeout:   tlsTimeout,
		ResponseHeaderTimeout: wait,
		Protocols:             http1(),
		DisableCompression:    true,
		MaxIdleConnsPerHost:   idlePerHost,
		IdleConnTimeout:       idleTimeout,
		WriteBufferSize:       writeBuffer,
	}
}

// conn fails when nothing moves for a while in either direction. Bytes written put the deadline of a pending read off
// too: the transport always has one, waiting for an answer while it still sends.
type conn struct {
	net.Conn
	silence time.Duration
	set     atomic.Int64 // Unix nanoseconds of the last SetDeadline
}

func (c *conn) moved() error {
	now := time.Now()
	// Timers cost; a deadline that is an eighth early or late is as good.
	if last := c.set.Load(); now.UnixNano()-last < int64(c.silence/8) {
		return nil
	}
	c.set.Store(now.UnixNano())
	return c.SetDeadline(now.Add(c.silence))
}

func (c *conn) Read(p []byte) (int, error) {
	if err := c.moved(); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *conn) Write(p []byte) (int, error) {
	if err := c.moved(); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
