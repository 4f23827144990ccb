package chaos_test

import (
	"testing"
	"time"
)

// TestCredentials: the server does not take the keys for a while, in the ways in which servers say that. No program notices,
// the server is not stormed, and all is uploaded when the keys are good again.
func TestCredentials(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	nothingLeft(t)
	spell := 10 * time.Second
	if soak() {
		spell = time.Minute
	}
	// most is how many requests a second a server without keys for us may see: a few of each kind at once.
	const most = 100
	wire := newWire(t)
	r := newRig(t, "")
	r.endpoint = wire.url
	wire.lead(t, r.server.Endpoint, r.seed)
	s := newShelf(t, r.mounted, r.seed)
	r.begin()
	s.start()
	for _, code := range []string{"InvalidAccessKeyId", "ExpiredToken"} {
		time.AfterFunc(spell/4, func() { wire.fail(denied, code) })
		over := time.AfterFunc(spell, wire.clear)
		x := r.load(s, spell*5/4)
		over.Stop()
		t.Logf("%s: %v", code, x)
	}
	counts, _ := wire.tally()
	rate := float64(counts[denied]) / (2 * spell * 3 / 4).Seconds()
	t.Logf("%d requests were denied, %.1f a second, %d in the worst one", counts[denied], rate, wire.worst())
	if wire.worst() > most {
		t.Errorf("%d requests in a second to a server that denies them, should be below %d", wire.worst(), most)
	}
	r.checkBucket()
	r.checkEmptyCache()
	s.stop()
	wire.report(t, denied, "Put", "Get")
}
