package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/volmeta"
)

// leased is a server with one bucket that holds a lease, or nothing.
type leased struct {
	ignores bool // it takes no notice of conditions

	mu   sync.Mutex
	text string // guarded by mu
	next string // guarded by mu: not empty: what its holder makes of it before it is looked at once more
}

func (s *leased) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodHead && s.next != "" {
		s.text, s.next = s.next, ""
	}
	tag := fmt.Sprintf("%q", fmt.Sprint(len(s.text)))
	switch {
	case r.URL.Query().Has("list-type"):
		fmt.Fprint(w, "<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>")
	case r.URL.Path != "/b/p/.csi-s3/lease" || s.text == "" && r.Method != http.MethodPut:
		w.WriteHeader(http.StatusNotFound)
		if r.Method == http.MethodGet {
			fmt.Fprint(w, "<Error><Code>NoSuchKey</Code></Error>")
		}
	case r.Method == http.MethodPut:
		if r.Header.Get("If-Match") != tag && !s.ignores {
			w.WriteHeader(http.StatusPreconditionFailed)
			fmt.Fprint(w, "<Error><Code>PreconditionFailed</Code></Error>")
			return
		}
		body, _ := io.ReadAll(r.Body) // short: the lease is not one then
		s.text = string(body)
		w.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprint(len(s.text))))
	default:
		w.Header().Set("ETag", tag)
		w.Header().Set("Content-Length", fmt.Sprint(len(s.text)))
		if r.Method == http.MethodGet {
			fmt.Fprint(w, s.text)
		}
	}
}

// What the lease says is said in words, and --break takes it from who has it, loudly, and from nobody else.
func TestLease(t *testing.T) {
	const dirty = `{"version":1,"epoch":7,"holder":"node-1","cache":"c","serial":3,"state":"dirty","dirtyBytes":4096,"ttlSeconds":60,"renewed":"2026-01-02T03:04:05Z"}`
	released := strings.Replace(dirty, `"state":"dirty","dirtyBytes":4096`, `"state":"released"`, 1)
	for _, c := range []struct {
		name, lease string
		args        []string
		say         []string
		epoch       uint64 // after it
	}{
		{"none", "", nil, []string{"has no lease"}, 0},
		{"none to break", "", []string{"--break"}, []string{"has no lease"}, 0},
		{"dirty", dirty, nil, []string{"epoch 7", "held by node node-1", "4Ki", "2026-01-02T03:04:05Z"}, 7},
		{"dirty by names", strings.Replace(dirty, "4096", "0", 1), nil, []string{"held by node node-1, with changes that are not in the bucket", "2026-01-02T03:04:05Z"}, 7},
		{"broken", dirty, []string{"--break"}, []string{"GIVEN UP: what node node-1 has", "4Ki", "(epoch 8)", "1m0s"}, 8},
		{"given back", released, []string{"--break"}, []string{"given back by node node-1"}, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &leased{text: c.lease}
			srv := httptest.NewServer(s)
			defer srv.Close()
			p := testProcess(map[string]string{"AWS_ACCESS_KEY_ID": "AKtest", "AWS_SECRET_ACCESS_KEY": "secret-of-test", "HOME": t.TempDir()})
			var out strings.Builder
			p.stdout = &out
			if err := p.run(t.Context(), append([]string{"lease", "--endpoint", srv.URL, "s3://b/p"}, c.args...)); err != nil {
				t.Fatal(err)
			}
			for _, say := range c.say {
				if !strings.Contains(out.String(), say) {
					t.Errorf("%q does not say %q", &out, say)
				}
			}
			if c.epoch == 0 {
				return
			}
			l, err := volmeta.DecodeLease([]byte(s.text))
			if err != nil || l.Epoch != c.epoch || (l.Holder == "") != (c.epoch == 8) {
				t.Errorf("the lease is %q, %v", s.text, err)
			}
		})
	}
}

// A holder that renews its lease between our look and our write is alive: nothing is taken from it, whether the server honours
// conditions or ignores them.
func TestBreakOfALeaseThatIsRenewed(t *testing.T) {
	const dirty = `{"version":1,"epoch":7,"holder":"node-1","cache":"c","serial":9,"state":"dirty","dirtyBytes":4096,"ttlSeconds":60,"renewed":"2026-01-02T03:04:05Z"}`
	renewed := strings.Replace(dirty, `"serial":9`, `"serial":10`, 1)
	for name, ignores := range map[string]bool{"honoured": false, "ignored": true} {
		t.Run(name, func(t *testing.T) {
			s := &leased{text: dirty, next: renewed, ignores: ignores}
			srv := httptest.NewServer(s)
			defer srv.Close()
			p := testProcess(map[string]string{"AWS_ACCESS_KEY_ID": "AKtest", "AWS_SECRET_ACCESS_KEY": "secret-of-test", "HOME": t.TempDir()})
			p.stdout = io.Discard
			err := p.run(t.Context(), []string{"lease", "--endpoint", srv.URL, "s3://b/p", "--break"})
			if err == nil || !strings.Contains(err.Error(), "node node-1 is alive") || s.text != renewed {
				t.Errorf("%v; the lease is %s", err, s.text)
			}
		})
	}
}
