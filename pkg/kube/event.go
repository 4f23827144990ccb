package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/csi-s3/csi-s3/pkg/config"
)

// Occurrence is what an Event is to say.
type Occurrence struct {
	Volume  config.VolumeID
	Reason  string // one word, in CamelCase
	Message string // for a person; cut to 1 KB
	Pods    []Pod  // that get an Event each, beside the volume's claim
}

// Pod names a pod.
type Pod struct{ Namespace, Name, UID string }

const (
	// quietTime is how long what happens again is only counted.
	quietTime = time.Minute
	// eventLife is how long an Event is counted on; the API server forgets it after an hour.
	eventLife = 50 * time.Minute
	// maxKinds is how many different things may be known or wait at once; more of them are dropped, and counted.
	maxKinds = 256
	// refLife is how long the claim of a volume is believed.
	refLife = 10 * time.Minute
	// maxAttempts is how often a delivery is tried, once in each quietTime.
	maxAttempts = 5
	// maxName is how much of an object's name is in that of its Event.
	maxName = 200
	// maxMessage is what the API server takes.
	maxMessage = 1024
)

// Events posts warnings about volumes, for Run to deliver: on the volume's PersistentVolumeClaim, or on the
// PersistentVolume where it has none, and on the pods. What happens again within a minute is counted and delivered as one.
// Requests share a limit of their own, one a second after the first twenty, so that a storm neither floods the API server
// nor holds up a question for a secret. What cannot be delivered is logged and forgotten.
type Events struct {
	client *Client
	node   string
	log    *slog.Logger
	now    func() time.Time
	wake   chan struct{}
	refs   map[config.VolumeID]reference // of Run alone

	mu      sync.Mutex
	known   map[kind]*happening // guarded by mu
	dropped int                 // guarded by mu
}

// kind is what counts as the same: an object and a reason.
type kind struct {
	volume config.VolumeID
	pod    Pod // zero: the volume's claim
	reason string
}

// happening is one Event. It is guarded by Events.mu.
type happening struct {
	message     string
	count       int32 // in the life of the Event
	posted      int32 // as the API server knows it
	failed      int   // attempts since
	first, last time.Time
	sent        time.Time            // the last attempt
	name        types.NamespacedName // of the Event, zero: not made yet
	made        time.Time
}

// reference is what the cluster calls a volume.
type reference struct {
	object corev1.ObjectReference
	at     time.Time
}

// Events returns a recorder for the node of this name. Nothing is posted before Run.
func (c *Client) Events(node string, log *slog.Logger) *Events {
	return &Events{
		client: c, node: node, log: log, now: time.Now, wake: make(chan struct{}, 1),
		refs: map[config.VolumeID]reference{}, known: map[kind]*happening{},
	}
}

// Record takes an occurrence for delivery. It never blocks.
func (e *Events) Record(o Occurrence) {
	now := e.now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, pod := range append([]Pod{{}}, o.Pods...) {
		k := kind{o.Volume, pod, o.Reason}
		h := e.known[k]
		if h == nil {
			if len(e.known) >= maxKinds {
				e.dropped++
				continue
			}
			h = &happening{first: now}
			e.known[k] = h
		}
		h.message, h.last = o.Message, now
		h.count++
	}
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Run delivers until ctx ends.
func (e *Events) Run(ctx context.Context) {
	tick := time.NewTicker(quietTime / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		case <-tick.C:
		}
		e.deliver(ctx)
	}
}

// deliver posts what is due.
func (e *Events) deliver(ctx context.Context) {
	now := e.now()
	due := map[kind]happening{}
	e.mu.Lock()
	for k, h := range e.known {
		switch {
		case h.count > h.posted && now.Sub(h.sent) >= quietTime:
			h.sent = now
			due[k] = *h
		case h.count == h.posted && now.Sub(h.last) >= eventLife:
			delete(e.known, k)
		}
	}
	dropped := e.dropped
	e.dropped = 0
	e.mu.Unlock()
	if dropped > 0 {
		e.log.Warn("too much happens at once: events were not posted", "events", dropped)
	}
	for k, h := range due {
		if ctx.Err() != nil {
			return
		}
		name, err := e.post(ctx, k, h)
		e.mu.Lock()
		known := e.known[k]
		switch {
		case err == nil && known.name == name:
			known.posted, known.failed = h.count, 0
		case err == nil: // a new Event, which counts from its first
			known.name, known.made = name, now
			known.count, known.posted, known.failed = known.count-h.posted, h.count-h.posted, 0
		case errors.Is(err, ErrForbidden), errors.Is(err, ErrNotFound), known.failed >= maxAttempts-1:
			// Given up. What lasts happens again.
			known.posted, known.failed = h.count, 0
		default:
			known.failed++
		}
		e.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			e.log.Warn("event not posted", "volume", k.volume.String(), "reason", k.reason, "message", h.message, "err", err)
		}
	}
}

// post makes an Event, or counts on in the one that was made before, and returns its name.
func (e *Events) post(ctx context.Context, k kind, h happening) (types.NamespacedName, error) {
	if h.name.Name != "" && e.now().Sub(h.made) < eventLife {
		err := e.recount(ctx, k, h)
		if err == nil || !errors.Is(err, ErrNotFound) {
			return h.name, err
		}
		// The API server has forgotten it.
	}
	object := corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: k.pod.Namespace, Name: k.pod.Name, UID: types.UID(k.pod.UID)}
	if k.pod == (Pod{}) {
		var err error
		if object, err = e.reference(ctx, k.volume); err != nil {
			return types.NamespacedName{}, err
		}
	}
	namespace := object.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // as for every object without one
	}
	first, last := metav1.NewTime(h.first), metav1.NewTime(h.last)
	event := corev1.Event{
		// As client-go names them: the same object may have several.
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%.*s.%x", maxName, object.Name, e.now().UnixNano())},
		InvolvedObject: object,
		Reason:         k.reason, Message: e.text(k, h),
		Type: corev1.EventTypeWarning, Count: h.count - h.posted, FirstTimestamp: first, LastTimestamp: last,
		Source:              corev1.EventSource{Component: e.client.driver, Host: e.node},
		ReportingController: e.client.driver, ReportingInstance: e.node,
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := e.client.events.Post().Namespace(namespace).Resource("events").Body(&event).Do(ctx).Error(); err != nil {
		return types.NamespacedName{}, fmt.Errorf("create Event for %s %s/%s: %w", object.Kind, namespace, object.Name, classify(err))
	}
	return types.NamespacedName{Namespace: namespace, Name: event.Name}, nil
}

// recount brings an Event up to date.
func (e *Events) recount(ctx context.Context, k kind, h happening) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"count": h.count, "lastTimestamp": metav1.NewTime(h.last), "message": e.text(k, h)})
	if err != nil {
		return fmt.Errorf("update Event %s: %w", h.name, err)
	}
	err = e.client.events.Patch(types.MergePatchType).Namespace(h.name.Namespace).Resource("events").Name(h.name.Name).Body(patch).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("update Event %s: %w", h.name, classify(err))
	}
	return nil
}

// text is the message of an Event, no longer than the API server takes.
func (e *Events) text(k kind, h happening) string {
	text := fmt.Sprintf("volume %s on node %s: %s", k.volume, e.node, h.message)
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage-3], "") + "..."
	}
	return text
}

// reference returns the volume's claim, or its PersistentVolume.
func (e *Events) reference(ctx context.Context, id config.VolumeID) (corev1.ObjectReference, error) {
	if r, ok := e.refs[id]; ok && e.now().Sub(r.at) < refLife {
		return r.object, nil
	}
	pv, err := e.client.volume(ctx, id)
	if err != nil {
		return corev1.ObjectReference{}, err
	}
	object := corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolume", Name: pv.Name, UID: pv.UID}
	if c := pv.Spec.ClaimRef; c != nil && c.Name != "" {
		object = corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID}
	}
	if len(e.refs) >= maxKinds {
		clear(e.refs)
	}
	e.refs[id] = reference{object, e.now()}
	return object, nil
}
