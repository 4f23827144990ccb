package provision_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/config"
	"github.com/csi-s3/csi-s3/pkg/provision"
	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
)

// FuzzErrorsHoldNoSecret: whatever is wrong with a secret, and however much a server says of what it was sent, no
// error of the package holds a credential.
func FuzzErrorsHoldNoSecret(f *testing.F) {
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		said := r.Header.Get("Authorization") + r.Header.Get("X-Amz-Security-Token")
		key, _, _ := strings.Cut(strings.TrimPrefix(said, "AWS4-HMAC-SHA256 Credential="), "/")
		w.Header().Set("X-Amz-Request-Id", key)
		w.WriteHeader(http.StatusForbidden)
		if _, err := fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message><AWSAccessKeyId>%s</AWSAccessKeyId></Error>", key, said, key); err != nil {
			f.Log(err)
		}
	}))
	f.Cleanup(echo.Close)
	transports := new(s3sdk.Transports)

	f.Add("", "AKIDAKIDAKID", "sekritsekrit", "tokentoken", "eu-1", "")
	f.Add("http://sekritsekrit@host", "AKIDAKIDAKID", "sekritsekrit", "", "", "")
	f.Add("http://%zz/sekritsekrit", "AKIDAKIDAKID", "sekritsekrit", "", "", "sekritsekrit")
	f.Add("sekritsekrit", "AKID AKID AKID", "sekrit\nsekrit", "tök€n tök€n", "a b", "")
	f.Fuzz(func(t *testing.T, endpoint, access, secret, token, region, ca string) {
		if strings.HasPrefix(endpoint, "http") && !strings.Contains(endpoint, "@") && !strings.Contains(endpoint, "%") {
			endpoint = "" // this test speaks to its own server only
		}
		if endpoint == "" {
			endpoint = echo.URL
		}
		s, err := config.ParseSecret(map[string]string{
			"endpoint": endpoint, "accessKeyID": access, "secretAccessKey": secret, "sessionToken": token, "region": region, "caBundle": ca,
		})
		if err == nil {
			if endpoint != echo.URL {
				if _, err = provision.SDK(transports)(s); err == nil {
					return // a URL after all, of a host that is none of ours
				}
			} else {
				p := provision.New(provision.SDK(transports), provision.Options{Driver: "d"})
				_, err = p.Exists(t.Context(), config.VolumeID{Bucket: "bucket"}, s)
				if err == nil {
					t.Fatal("exists")
				}
			}
		}
		const words = `volume "bucket": access denied: invalid request: secret: secretAccessKey accessKeyID sessionToken endpoint caBundle region`
		for _, value := range []string{access, secret, token} {
			v := strings.TrimSpace(value)
			if len(v) >= 8 && !strings.Contains(words, v) && !strings.Contains(endpoint+region, v) && strings.Contains(err.Error(), v) {
				t.Fatalf("printed %q: %v", v, err)
			}
		}
		if v := strings.TrimSpace(secret); len(v) >= 8 && strings.Contains(endpoint, v) && strings.Contains(err.Error(), v) && !strings.Contains(words, v) {
			t.Fatalf("printed %q of the endpoint: %v", v, err)
		}
	})
}

// The settings of a secret reach the client.
func TestSDK(t *testing.T) {
	var got *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		w.WriteHeader(http.StatusForbidden)
	}))
	defer server.Close()
	secret := config.Secret{Endpoint: server.URL, Region: "eu-9", AccessKeyID: "AK", SecretAccessKey: "SK", SessionToken: "TOK"}
	p := provision.New(provision.SDK(nil), provision.Options{Driver: "d"})
	_, err := p.Exists(t.Context(), config.VolumeID{Bucket: "bucket"}, secret)
	refuse(t, err, provision.ErrDenied)
	auth := got.Header.Get("Authorization")
	if !strings.Contains(auth, "AK/") || !strings.Contains(auth, "/eu-9/") || got.Header.Get("X-Amz-Security-Token") != "TOK" || got.URL.Path != "/bucket/.csi-s3/volume.json" {
		t.Errorf("%s %v", got.URL, got.Header)
	}
	for name, change := range map[string]func(*config.Secret){
		"endpoint":        func(s *config.Secret) { s.Endpoint = "minio:9000" },
		"accessKeyID":     func(s *config.Secret) { s.AccessKeyID = "" },
		"secretAccessKey": func(s *config.Secret) { s.SecretAccessKey = "a b" },
		"caBundle":        func(s *config.Secret) { s.CABundle = "x" },
	} {
		wrong := secret
		change(&wrong)
		_, err := p.Exists(t.Context(), config.VolumeID{Bucket: "bucket"}, wrong)
		refuse(t, err, provision.ErrSecret)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named: %v", name, err)
		}
	}
}
