package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/csi-s3/csi-s3/test/e2e/cluster"
)

// endpoint is where pods find the S3 server.
const endpoint = "http://" + cluster.Addr + ":9000"

// gate passes connections of the cluster on to the S3 server, while it is open.
type gate struct {
	closed atomic.Bool
	mu     sync.Mutex
	conns  map[net.Conn]bool // guarded by mu
}

var front struct {
	once sync.Once
	gate *gate
	err  error
}

// serve makes the S3 server appear in the cluster.
func serve(t *testing.T) *gate {
	t.Helper()
	front.once.Do(func() {
		l, err := suite.Listen(9000)
		front.gate, front.err = &gate{conns: map[net.Conn]bool{}}, err
		if err == nil {
			go front.gate.serve(l) // ends with the process
		}
	})
	if front.err != nil {
		t.Fatal(front.err)
	}
	return front.gate
}

func (g *gate) serve(l net.Listener) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go g.pass(in)
	}
}

func (g *gate) pass(in net.Conn) {
	defer in.Close()
	g.mu.Lock()
	g.conns[in] = true
	g.mu.Unlock()
	defer func() { g.mu.Lock(); delete(g.conns, in); g.mu.Unlock() }()
	if g.closed.Load() {
		return
	}
	out, err := net.Dial("tcp", strings.TrimPrefix(suite.s3.Endpoint, "http://"))
	if err != nil {
		return
	}
	defer out.Close()
	done := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() { _, _ = io.Copy(pair[0], pair[1]); done <- struct{}{} }()
	}
	<-done
}

// set opens or closes the gate. A closed one resets all connections.
func (g *gate) set(open bool) {
	g.closed.Store(!open)
	if open {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		_ = c.Close() // that is the point
	}
}

// bucket is another client of the S3 server.
func bucket(t *testing.T) *minio.Client {
	t.Helper()
	c, err := minio.New(strings.TrimPrefix(suite.s3.Endpoint, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(suite.s3.AccessKey, suite.s3.SecretKey, ""),
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// object returns an object's content.
func object(t *testing.T, name, key string) (string, error) {
	t.Helper()
	o, err := bucket(t).GetObject(t.Context(), name, key, minio.GetObjectOptions{})
	if err != nil {
		return "", err
	}
	defer o.Close()
	var b bytes.Buffer
	_, err = io.Copy(&b, o)
	return b.String(), err
}

// holds waits until an object has a content.
func holds(t *testing.T, name, key, want string) {
	t.Helper()
	eventually(t, func() error {
		if got, err := object(t, name, key); err != nil || got != want {
			return fmt.Errorf("object %s of bucket %s is %q (%w), want %q", key, name, got, err, want)
		}
		return nil
	})
}

// noBucket waits until a bucket is gone.
func noBucket(t *testing.T, name string) {
	t.Helper()
	eventually(t, func() error {
		if there, err := bucket(t).BucketExists(t.Context(), name); err != nil || there {
			return errors.Join(fmt.Errorf("bucket %s is there", name), err)
		}
		return nil
	})
}

// put writes an object, in a bucket that is made where it is missing.
func put(t *testing.T, name, key, content string) {
	t.Helper()
	c := bucket(t)
	there, err := c.BucketExists(t.Context(), name)
	if err == nil && !there {
		err = c.MakeBucket(t.Context(), name, minio.MakeBucketOptions{})
	}
	if err == nil {
		_, err = c.PutObject(t.Context(), name, key, strings.NewReader(content), int64(len(content)), minio.PutObjectOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// list returns the keys of a bucket below a prefix.
func list(t *testing.T, name, prefix string) (keys []string) {
	t.Helper()
	for o := range bucket(t).ListObjects(t.Context(), name, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		keys = append(keys, o.Key)
	}
	return keys
}
