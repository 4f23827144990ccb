package config_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/config"
)

const pemCertificate = "-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----"

func secretData(change map[string]string) map[string]string {
	data := map[string]string{"endpoint": "http://minio:9000", "accessKeyID": "AKEY", "secretAccessKey": "SKEY"}
	maps.Copy(data, change)
	return data
}

func TestParseSecret(t *testing.T) {
	base := config.Secret{Endpoint: "http://minio:9000", AccessKeyID: "AKEY", SecretAccessKey: "SKEY"}
	for _, c := range []struct {
		data map[string]string
		want func(*config.Secret)
	}{
		{nil, func(*config.Secret) {}},
		{map[string]string{"region": "eu-1\n", "accessKeyID": " AKEY\n"}, func(s *config.Secret) { s.Region = "eu-1" }},
		{map[string]string{"accessKeyID": "", "accessKey": "AKEY", "secretAccessKey": "", "secretKey": "SKEY"}, func(*config.Secret) {}},
		{map[string]string{"accessKey": "AKEY"}, func(*config.Secret) {}},
		{map[string]string{"sessionToken": "tok"}, func(s *config.Secret) { s.SessionToken = "tok" }},
		{map[string]string{"insecure": "true"}, func(s *config.Secret) { s.Insecure = true }},
		{map[string]string{"insecure": "false", "pathStyle": "true"}, func(*config.Secret) {}},
		{map[string]string{"pathStyle": "false"}, func(s *config.Secret) { s.VirtualHost = true }},
		{map[string]string{"caBundle": pemCertificate + "\n"}, func(s *config.Secret) { s.CABundle = pemCertificate }},
		{map[string]string{"password-of-another": "x"}, func(*config.Secret) {}},
	} {
		want := base
		c.want(&want)
		got, err := config.ParseSecret(secretData(c.data))
		if err != nil || got != want {
			t.Errorf("%v: %+v, %v", c.data, got, err)
		}
	}
}

func TestParseSecretRefuses(t *testing.T) {
	for _, c := range []struct {
		data map[string]string
		name string
	}{
		{map[string]string{"endpoint": " "}, "endpoint"},
		{map[string]string{"accessKeyID": ""}, "accessKeyID"},
		{map[string]string{"secretAccessKey": "\n"}, "secretAccessKey"},
		{map[string]string{"accessKey": "other"}, "accessKey "},
		{map[string]string{"secretKey": "other"}, "secretKey "},
		{map[string]string{"insecure": "maybe"}, "insecure"},
		{map[string]string{"pathStyle": "auto"}, "pathStyle"},
		{map[string]string{"caBundle": "/etc/ca.pem"}, "caBundle"},
		{map[string]string{"caBundle": "-----BEGIN PRIVATE KEY-----\nTUlJ\n-----END PRIVATE KEY-----"}, "caBundle"},
	} {
		s, err := config.ParseSecret(secretData(c.data))
		if !errors.Is(err, config.ErrSecret) || !strings.Contains(err.Error(), c.name) || s != (config.Secret{}) {
			t.Errorf("%v: %v, %v", c.data, s, err)
		}
	}
	if _, err := config.ParseSecret(nil); !errors.Is(err, config.ErrSecret) {
		t.Error(err)
	}
}

// A credential prints in no format, alone or within its Secret.
func TestHiddenNeverPrints(t *testing.T) {
	const value = "topsecretvalue"
	s := config.Secret{AccessKeyID: value, SecretAccessKey: value, SessionToken: value}
	var texts []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T %v", "%10s"} {
		texts = append(texts, fmt.Sprintf(verb, s), fmt.Sprintf(verb, s.SecretAccessKey), fmt.Sprintf(verb, &s), fmt.Sprintf(verb, []config.Hidden{value}))
	}
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", s, "key", s.AccessKeyID)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "key", s.AccessKeyID)
	for _, text := range append(texts, string(raw), log.String(), s.AccessKeyID.String(), fmt.Sprint(errors.Join(fmt.Errorf("%v", s)))) {
		if strings.Contains(text, value) || strings.Contains(text, fmt.Sprintf("%x", value)) {
			t.Errorf("printed: %s", text)
		}
	}
}

func FuzzParseSecret(f *testing.F) {
	f.Add("http://minio:9000", "AKIDAKID", "sekritsekrit", "tokentoken", "true", "false", pemCertificate)
	f.Add("", "AKIDAKID", "sekritsekrit", "", "x", "", "")
	f.Add("http://u:sekritsekrit@h", "AKIDAKID", "sekritsekrit", "", "", "", "sekritsekrit")
	f.Fuzz(func(t *testing.T, endpoint, access, secret, token, insecure, style, ca string) {
		s, err := config.ParseSecret(map[string]string{
			"endpoint": endpoint, "accessKeyID": access, "secretAccessKey": secret, "secretKey": token, "sessionToken": token,
			"insecure": insecure, "pathStyle": style, "caBundle": ca,
		})
		if err == nil {
			if s.Endpoint == "" || s.AccessKeyID == "" || s.SecretAccessKey == "" {
				t.Fatal("accepted without a required key")
			}
			return
		}
		if !errors.Is(err, config.ErrSecret) {
			t.Fatalf("no sentinel: %v", err)
		}
		const known = "secret: endpoint accessKeyID accessKey secretAccessKey secretKey caBundle insecure pathStyle"
		for _, value := range []string{access, secret, token} {
			if v := strings.TrimSpace(value); len(v) > 8 && !strings.Contains(known, v) && strings.Contains(err.Error(), v) {
				t.Fatalf("printed %q: %v", v, err)
			}
		}
	})
}
