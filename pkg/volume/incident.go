package volume

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/writeback"
)

// Reason names a kind of incident, in the form of a Kubernetes Event's reason.
type Reason string

// Reasons.
const (
	ReasonConflict    Reason = "WriteConflict"     // others changed an object that was changed here too, or made one where a directory was moved to; both are kept
	ReasonLost        Reason = "ChangesLost"       // changes that no fsync covered did not survive a loss of power
	ReasonSecret      Reason = "SecretRefused"     // a new secret does not work; the mount goes on with the old one
	ReasonMountLost   Reason = "MountLost"         // the mount is gone; pods must restart
	ReasonCacheFailed Reason = "CacheFailed"       // the node's disk fails the cache
	ReasonUnavailable Reason = "BucketUnavailable" // changes wait for more than a minute for a server that does not answer
	ReasonUndelivered Reason = "UploadsFailing"    // the same, for a server that refuses them
	ReasonHeld        Reason = "HeldElsewhere"     // the volume is not mounted here, since another node has changes of it
	ReasonUnguarded   Reason = "LeaseLapsed"       // changes are taken while the server is away, and the lease does not say so
	ReasonLeaseLost   Reason = "LeaseLost"         // another node took the volume over; what is not in the bucket stays in the cache
)

// Incident is what a person should hear of a volume although no call of theirs failed. There is no secret in it.
type Incident struct {
	Volume  config.VolumeID
	Reason  Reason
	Message string
	Pods    []Pod // that use the volume on this node, as far as is known
}

// Pod is a pod that a volume is published to. The zero value is one that nobody named.
type Pod struct{ Namespace, Name, UID string }

// tell passes an incident on.
func (s *Set) tell(id config.VolumeID, reason Reason, message string) {
	if s.Incident == nil {
		return
	}
	s.mu.Lock()
	pods := slices.Collect(maps.Values(s.pods[id]))
	s.mu.Unlock()
	slices.SortFunc(pods, func(a, b Pod) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	s.Incident(Incident{Volume: id, Reason: reason, Message: message, Pods: slices.Compact(pods)})
}

// seat notes which pod a target belongs to; the zero Pod ends that.
func (s *Set) seat(id config.VolumeID, target string, pod Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pod == (Pod{}) {
		delete(s.pods[id], target)
		if len(s.pods[id]) == 0 {
			delete(s.pods, id)
		}
		return
	}
	if s.pods == nil {
		s.pods = map[config.VolumeID]map[string]Pod{}
	}
	if s.pods[id] == nil {
		s.pods[id] = map[string]Pod{}
	}
	s.pods[id][target] = pod
}

// tell passes an incident on.
func (c *core) tell(reason Reason, format string, args ...any) {
	if c.incident != nil {
		c.incident(reason, fmt.Sprintf(format, args...))
	}
}

// tellLost names the changes that the last loss of power made unusable.
func (c *core) tellLost() {
	const most = 5
	names := make([]string, 0, len(c.lost))
	for _, key := range c.lost {
		names = append(names, string(key))
	}
	if len(names) == 0 {
		return
	}
	slices.Sort(names)
	more := ""
	if n := len(names) - most; n > 0 {
		names, more = names[:most], fmt.Sprintf(" and %d more", n)
	}
	c.tell(ReasonLost, "changes that no fsync had covered did not survive the node's loss of power; what is left of them is in the cache's directory quarantine on the node: %q%s", names, more)
}

// alarm decides when a trouble that lasts is worth a word.
type alarm struct {
	class string    // of the trouble
	since time.Time // it lasts
	told  time.Time // zero: not yet
}

const (
	patience   = time.Minute // a shorter trouble is nobody's business
	repetition = 10 * time.Minute
)

// look returns the reason of an incident, or "". err is the present trouble of changes that wait, nil when there is none.
func (a *alarm) look(now time.Time, err error) Reason {
	if err == nil {
		*a = alarm{}
		return ""
	}
	// The class may change while it lasts: a server that restarts refuses, resets and is silent in turn.
	a.class = class(err)
	if a.since.IsZero() {
		a.since = now
	}
	wait := patience
	if a.class == classDisk {
		wait = 0 // it does not pass
	}
	if now.Sub(a.since) < wait || !a.told.IsZero() && now.Sub(a.told) < repetition {
		return ""
	}
	a.told = now
	switch a.class {
	case classDisk:
		return ReasonCacheFailed
	case classAway:
		return ReasonUnavailable
	case classLost:
		return ReasonLeaseLost
	}
	return ReasonUndelivered
}

// guard tells of trouble that lasts, until ctx ends.
func (c *core) guard(ctx context.Context) {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	var a alarm
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		w := c.executor.Status()
		reason := a.look(time.Now(), c.waiting(w))
		if reason == "" {
			continue
		}
		c.log.Warn("changes do not get into the bucket", "volume", c.id, "bytes", w.DirtyBytes, "since", a.since, "reason", string(reason), "err", a.class)
		c.tell(reason, "%d changes with %d bytes wait since %s and do not get into the bucket: %v", w.Queue, w.DirtyBytes, w.Oldest.UTC().Format(time.RFC3339), c.waiting(w))
	}
}

// waiting is the trouble of changes that wait, or can never be made any more: nil when there are none.
func (c *core) waiting(w writeback.Status) error {
	if w.Queue == 0 && c.sick.Load() == nil {
		return nil
	}
	return c.trouble(w)
}
