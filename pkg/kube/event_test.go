package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/csi-s3/csi-s3/pkg/config"
)

// server is an API server that keeps events.
type server struct {
	t       *testing.T
	volumes []corev1.PersistentVolume
	refuse  int // status for all that concerns events
	lists   int
	posts   int
	patches int
	events  map[string]*corev1.Event // by path
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(code int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(body); err != nil {
			s.t.Error(err)
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Error(err)
	}
	failed := func(code int, reason metav1.StatusReason) {
		answer(code, metav1.Status{Status: metav1.StatusFailure, Code: int32(code), Reason: reason})
	}
	switch {
	case r.URL.Path == "/api/v1/persistentvolumes":
		s.lists++
		answer(http.StatusOK, corev1.PersistentVolumeList{Items: s.volumes})
	case s.refuse == http.StatusForbidden:
		s.posts++
		failed(s.refuse, metav1.StatusReasonForbidden)
	case s.refuse != 0:
		s.posts++
		failed(s.refuse, metav1.StatusReasonInternalError)
	case r.Method == http.MethodPost:
		s.posts++
		event := &corev1.Event{}
		if err := json.Unmarshal(body, event); err != nil {
			s.t.Errorf("%v in %s", err, body)
		}
		if r.URL.Path != "/api/v1/namespaces/"+event.Namespace+"/events" || event.Namespace != event.InvolvedObject.Namespace && event.InvolvedObject.Namespace != "" {
			s.t.Errorf("posted to %s: %s", r.URL.Path, body)
		}
		s.events[r.URL.Path+"/"+event.Name] = event
		answer(http.StatusCreated, event)
	case r.Method == http.MethodPatch && s.events[r.URL.Path] != nil:
		s.patches++
		if err := json.Unmarshal(body, s.events[r.URL.Path]); err != nil {
			s.t.Errorf("%v in %s", err, body)
		}
		answer(http.StatusOK, s.events[r.URL.Path])
	default:
		failed(http.StatusNotFound, metav1.StatusReasonNotFound)
	}
}

// recorder is Events with a clock of its own, and its server.
type recorder struct {
	*Events
	server *server
	clock  time.Time
	text   bytes.Buffer // log
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	claimed := corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-a", UID: "uid-pv-a"}}
	claimed.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "csi-s3.dev", VolumeHandle: "bucket/a"}
	claimed.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: "claim", UID: "uid-claim"}
	static := corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-b", UID: "uid-pv-b"}}
	static.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "csi-s3.dev", VolumeHandle: "bucket/b"}
	r := &recorder{server: &server{t: t, volumes: []corev1.PersistentVolume{claimed, static}, events: map[string]*corev1.Event{}}, clock: time.Unix(1_700_000_000, 0)}
	srv := httptest.NewServer(r.server)
	t.Cleanup(srv.Close)
	c, err := New("csi-s3.dev", &rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	r.Events = c.Events("node-1", slog.New(slog.NewTextHandler(&r.text, nil)))
	r.now = func() time.Time { return r.clock }
	return r
}

func (r *recorder) event(t *testing.T, kind string) *corev1.Event {
	t.Helper()
	var found *corev1.Event
	for _, e := range r.server.events {
		if e.InvolvedObject.Kind == kind {
			if found != nil {
				t.Fatalf("two events of a %s: %+v and %+v", kind, found, e)
			}
			found = e
		}
	}
	if found == nil {
		t.Fatalf("no event of a %s; log: %s", kind, &r.text)
	}
	return found
}

var volumeA = config.VolumeID{Bucket: "bucket", Prefix: "a/"}

// An Event says what happened to which volume on which node, on the claim and on the pods.
func TestEvent(t *testing.T) {
	r := newRecorder(t)
	r.Record(Occurrence{Volume: volumeA, Reason: "WriteConflict", Message: "both are kept", Pods: []Pod{{"ns", "pod", "uid-pod"}}})
	r.Record(Occurrence{Volume: config.VolumeID{Bucket: "bucket", Prefix: "b/"}, Reason: "MountLost", Message: strings.Repeat("ä", maxMessage)})
	r.deliver(t.Context())
	claim := r.event(t, "PersistentVolumeClaim")
	object := corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: "ns", Name: "claim", UID: "uid-claim"}
	if claim.InvolvedObject != object || claim.Namespace != "ns" || claim.Reason != "WriteConflict" || claim.Type != corev1.EventTypeWarning || claim.Count != 1 ||
		claim.Message != "volume bucket/a on node node-1: both are kept" || claim.Source != (corev1.EventSource{Component: "csi-s3.dev", Host: "node-1"}) ||
		!claim.FirstTimestamp.Time.Equal(r.clock) || !claim.LastTimestamp.Time.Equal(r.clock) || claim.Kind != "Event" || claim.APIVersion != "v1" {
		t.Errorf("%+v", claim)
	}
	pod := r.event(t, "Pod")
	if pod.InvolvedObject != (corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "ns", Name: "pod", UID: "uid-pod"}) || pod.Message != claim.Message {
		t.Errorf("%+v", pod)
	}
	pv := r.event(t, "PersistentVolume")
	if pv.InvolvedObject.Name != "pv-b" || pv.Namespace != "default" || len(pv.Message) > maxMessage || !strings.HasSuffix(pv.Message, "ä...") {
		t.Errorf("%+v", pv)
	}
}

// A storm is one Event with a count. An Event that the API server has forgotten is made anew.
func TestEventStorm(t *testing.T) {
	r := newRecorder(t)
	for minute := range 10 {
		for i := range 1000 {
			r.Record(Occurrence{Volume: volumeA, Reason: "WriteConflict", Message: fmt.Sprintf("number %d-%d", minute, i)})
			r.deliver(t.Context())
		}
		r.clock = r.clock.Add(quietTime)
		r.deliver(t.Context())
	}
	if e := r.event(t, "PersistentVolumeClaim"); e.Count != 10_000 || !strings.HasSuffix(e.Message, "number 9-999") {
		t.Errorf("%d of %q", e.Count, e.Message)
	}
	if r.server.posts != 1 || r.server.patches > 20 || r.server.lists != 1 {
		t.Errorf("%d posts, %d patches, %d questions for the volume", r.server.posts, r.server.patches, r.server.lists)
	}
	clear(r.server.events)
	r.Record(Occurrence{Volume: volumeA, Reason: "WriteConflict", Message: "again"})
	r.clock = r.clock.Add(quietTime)
	r.deliver(t.Context())
	if e := r.event(t, "PersistentVolumeClaim"); e.Count != 1 || r.server.posts != 2 {
		t.Errorf("a forgotten event: count %d, %d posts", e.Count, r.server.posts)
	}
	for i := range 10 * maxKinds {
		r.Record(Occurrence{Volume: config.VolumeID{Bucket: fmt.Sprint("bucket-", i)}, Reason: "WriteConflict"})
	}
	if n := len(r.known); n > maxKinds {
		t.Errorf("%d things are known", n)
	}
	r.clock = r.clock.Add(2 * eventLife)
	r.known = map[kind]*happening{{volume: volumeA}: {first: r.clock, last: r.clock.Add(-2 * eventLife)}}
	r.deliver(t.Context())
	if n := len(r.known); n != 0 || !strings.Contains(r.text.String(), "too much happens at once") {
		t.Errorf("%d old things are known; log: %s", n, &r.text)
	}
}

// What cannot be delivered is logged, tried again where that can help, and given up at last. Record never waits.
func TestEventRefused(t *testing.T) {
	for _, c := range []struct{ refuse, posts int }{{http.StatusForbidden, 1}, {http.StatusInternalServerError, maxAttempts}} {
		r := newRecorder(t)
		r.server.refuse = c.refuse
		r.Record(Occurrence{Volume: volumeA, Reason: "WriteConflict", Message: "m"})
		for range 3 * maxAttempts {
			r.deliver(t.Context())
			r.clock = r.clock.Add(quietTime)
		}
		if r.server.posts != c.posts || !strings.Contains(r.text.String(), "event not posted") {
			t.Errorf("%d: %d attempts, log: %s", c.refuse, r.server.posts, &r.text)
		}
	}
	r := newRecorder(t)
	r.Record(Occurrence{Volume: config.VolumeID{Bucket: "unknown"}, Reason: "WriteConflict"})
	r.deliver(t.Context())
	if len(r.server.events) != 0 || !strings.Contains(r.text.String(), "unknown") {
		t.Errorf("a volume without a PersistentVolume: %s", &r.text)
	}
}

// Run delivers what is recorded while it runs, and a server that hangs holds nobody up.
func TestEventRun(t *testing.T) {
	release := make(chan struct{})
	asked := make(chan struct{}, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	defer close(release)
	c, err := New("csi-s3.dev", &rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	e := c.Events("node-1", slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); e.Run(ctx) }()
	e.Record(Occurrence{Volume: volumeA, Reason: "MountLost"})
	<-asked
	begin := time.Now()
	for range 10_000 {
		e.Record(Occurrence{Volume: volumeA, Reason: "MountLost"})
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("recording took %v", took)
	}
	cancel()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("Run goes on")
	}
}
