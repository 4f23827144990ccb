package volume_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/s3"
	"github.com/csi-s3/csi-s3/pkg/s3/s3fault"
	"github.com/csi-s3/csi-s3/pkg/s3/s3mem"
	"github.com/csi-s3/csi-s3/pkg/volume"
)

func TestStageChecksBucket(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	r := n.request(t)
	for _, c := range []struct{ fault, want error }{
		{s3.ErrNoBucket, volume.ErrNotFound}, {s3.ErrAuth, volume.ErrDenied}, {s3.ErrUnavailable, volume.ErrUnavailable},
	} {
		b := s3fault.New(s3mem.New("bucket"))
		b.Fault = func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(c.fault) }
		n.buckets["bucket the-access-key"] = b
		mustBe(t, n.Stage(t.Context(), r), c.want)
		mustBe(t, n.Stage(t.Context(), r), c.fault)
	}
	// What was never mounted holds no data.
	must(t, n.Unstage(t.Context(), r.ID, r.Dir))

	n.Connect = nil // the real client
	r.Secret.Endpoint = "http://127.0.0.1:1"
	start := time.Now()
	mustBe(t, n.Stage(t.Context(), r), volume.ErrUnavailable)
	if took := time.Since(start); took > n.Patience+5*time.Second {
		t.Errorf("an endpoint that is down took %s", took)
	}
	r.Secret.Endpoint = "not a URL"
	mustBe(t, n.Stage(t.Context(), r), volume.ErrSecret)
}

// New credentials take over in a living mount; ones that do not work, or are for another server, leave it as it is.
func TestRenewCredentials(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	n := newNode(t)
	ctx := t.Context()
	r := n.request(t)
	put := func(b s3.Bucket, key s3.Key) {
		t.Helper()
		_, err := b.Put(ctx, key, s3.Body{R: strings.NewReader(""), Size: 0}, s3.Attributes{}, s3.Condition{})
		must(t, err)
	}
	first, second, refused := s3mem.New("bucket"), s3mem.New("bucket"), s3fault.New(s3mem.New("bucket"))
	refused.Fault = func(s3fault.Op) s3fault.Action { return s3fault.FailBefore(s3.ErrAuth) }
	put(first, "first")
	put(second, "second")
	n.buckets["bucket the-access-key"] = first
	n.buckets["bucket second"] = second
	n.buckets["bucket refused"] = refused
	var heard []volume.Incident
	n.Incident = func(i volume.Incident) { heard = append(heard, i) }
	must(t, n.Stage(ctx, r))
	b := n.last(r.ID).spec.Bucket
	sees := func(key s3.Key) {
		t.Helper()
		_, err := b.Head(ctx, key)
		must(t, err)
	}
	sees("first")
	p := volume.PublishRequest{StageRequest: r, Target: filepath.Join(n.dir, "target")}
	p.Pod = volume.Pod{Namespace: "ns", Name: "pod", UID: "uid"}
	refusal := func(says string) {
		t.Helper()
		sees("first")
		if len(heard) != 1 || heard[0].Volume != r.ID || heard[0].Reason != volume.ReasonSecret || !strings.Contains(heard[0].Message, says) || !slices.Equal(heard[0].Pods, []volume.Pod{p.Pod}) {
			t.Errorf("told is %+v, want %q", heard, says)
		}
		for _, i := range heard {
			if strings.Contains(i.Message, "the-secret-key") || strings.Contains(i.Message, "the-access-key") {
				t.Errorf("a secret is told: %s", i.Message)
			}
		}
		heard = nil
	}
	p.Secret.AccessKeyID = "refused"
	must(t, n.Publish(ctx, p))
	refusal("denied")
	bad := p
	bad.Secret, bad.SecretErr = config.Secret{}, errors.New("no endpoint")
	must(t, n.Publish(ctx, bad))
	refusal("no endpoint")
	p.Secret.AccessKeyID, p.Secret.Endpoint = "second", "https://elsewhere.example"
	must(t, n.Publish(ctx, p))
	refusal("another endpoint")
	p.Secret.Endpoint = r.Secret.Endpoint
	must(t, n.Publish(ctx, p))
	sees("second")
	if n.mounts(r.ID) != 1 || len(heard) != 0 {
		t.Errorf("mounted %d times, told is %+v", n.mounts(r.ID), heard)
	}
	must(t, n.Unpublish(ctx, r.ID, p.Target))
	must(t, n.Unstage(ctx, r.ID, r.Dir))
}
