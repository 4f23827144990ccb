package s3sdk

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/csi-s3/csi-s3/pkg/s3"
)

func TestTransportSettings(t *testing.T) {
	var transports Transports
	p, release := transports.open(Config{Endpoint: "http://minio"})
	defer release()
	for _, tr := range []struct {
		name string
		got  any
		want any
	}{
		{"proxy", p.short.Proxy == nil && p.long.Proxy == nil, true},
		{"compression off", p.short.DisableCompression && p.long.DisableCompression, true},
		{"HTTP/2", p.short.Protocols.HTTP2() || p.long.Protocols.HTTP2(), false},
		{"idle connections", p.short.MaxIdleConnsPerHost >= 64, true},
		{"header wait", p.short.ResponseHeaderTimeout, 15 * time.Second},
		{"long header wait", p.long.ResponseHeaderTimeout, 120 * time.Second},
		{"TLS handshake", p.short.TLSHandshakeTimeout, 5 * time.Second},
	} {
		if tr.got != tr.want {
			t.Errorf("%s: %v, want %v", tr.name, tr.got, tr.want)
		}
	}
}

func TestSilenceEndsAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		c := &conn{Conn: near, silence: 30 * time.Second}
		defer c.Close()
		start := time.Now()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 30*time.Second {
			t.Errorf("ended after %v", d)
		}
	})
}

func TestSendingPutsTheReadDeadlineOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := &conn{Conn: near, silence: 30 * time.Second}
		defer c.Close()
		go func() { // ends with the pipe
			buf := make([]byte, 10)
			for {
				if _, err := far.Read(buf); err != nil {
					return
				}
			}
		}()
		defer far.Close()
		start := time.Now()
		ended := make(chan time.Duration)
		go func() { // the transport waits for an answer while it sends
			_, err := c.Read(make([]byte, 1))
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			ended <- time.Since(start)
		}()
		for range 12 {
			time.Sleep(10 * time.Second)
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		if d := <-ended; d != 150*time.Second {
			t.Errorf("the read ended after %v, want 30 s after the last of 120 s of writes", d)
		}
	})
}

func TestNamesThatDoNotResolveAreUnavailable(t *testing.T) {
	c, err := New(Config{Endpoint: "http://minio", Credentials: Credentials{AccessKeyID: "a", SecretAccessKey: "b"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := c.Bucket("bkt").(*bucket)
	dns := &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "minio", IsNotFound: true}}
	e := b.failure(t.Context(), "head", "k", &exchange{sent: true, err: dns}, dns)
	if !errors.Is(e, s3.ErrUnavailable) || !e.refused {
		t.Errorf("%v, certainly not applied: %v", e, e.refused)
	}
}

func TestCreateUploadDeclaresItsChecksumToAmazonOnly(t *testing.T) {
	for endpoint, want := range map[string]bool{
		"https://s3.eu-central-1.amazonaws.com": true, "https://bucket.vpce-1.s3.cn-north-1.vpce.amazonaws.com.cn": true,
		"https://minio.example:9000": false, "https://amazonaws.com.evil.example": false,
	} {
		if got := (Config{Endpoint: endpoint}).amazon(); got != want {
			t.Errorf("%s: %v", endpoint, got)
		}
	}
}
