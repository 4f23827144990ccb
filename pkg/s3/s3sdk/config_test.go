package s3sdk_test

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/csi-s3/csi-s3/pkg/s3/s3sdk"
)

func certificate(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		field  string // empty: valid
		change func(c *s3sdk.Config)
	}{
		{"", func(*s3sdk.Config) {}},
		{"", func(c *s3sdk.Config) { c.Endpoint = "http://[::1]:9000/base" }},
		{"", func(c *s3sdk.Config) { c.Credentials.SessionToken = "" }},
		{"endpoint", func(c *s3sdk.Config) { c.Endpoint = "" }},
		{"endpoint", func(c *s3sdk.Config) { c.Endpoint = "minio:9000" }},
		{"endpoint", func(c *s3sdk.Config) { c.Endpoint = "ftp://minio" }},
		{"endpoint", func(c *s3sdk.Config) { c.Endpoint = "https://" }},
		{"endpoint", func(c *s3sdk.Config) { c.Endpoint = "https://user:hunter2@minio" }},
		{"endpoint", func(c *s3sdk.Config) { c.Endpoint = "https://user:hunter2@minio:port" }},
		{"endpoint", func(c *s3sdk.Config) { c.Endpoint = "https://minio?hunter2" }},
		{"endpoint", func(c *s3sdk.Config) { c.Endpoint = "https://minio/#hunter2" }},
		{"accessKeyID", func(c *s3sdk.Config) { c.Credentials.AccessKeyID = "" }},
		{"accessKeyID", func(c *s3sdk.Config) { c.Credentials.AccessKeyID = "hunter2\n" }},
		{"secretAccessKey", func(c *s3sdk.Config) { c.Credentials.SecretAccessKey = "" }},
		{"secretAccessKey", func(c *s3sdk.Config) { c.Credentials.SecretAccessKey = "hunter2 " }},
		{"sessionToken", func(c *s3sdk.Config) { c.Credentials.SessionToken = "hunter2\r" }},
		{"region", func(c *s3sdk.Config) { c.Region = "eu central" }},
		{"attempts", func(c *s3sdk.Config) { c.Attempts = -1 }},
		{"caBundle", func(c *s3sdk.Config) { c.CABundle = []byte("hunter2") }},
	} {
		cfg := config("https://minio.example:9000")
		c.change(&cfg)
		err := cfg.Validate()
		_, newErr := s3sdk.New(cfg)
		if (err == nil) != (newErr == nil) {
			t.Errorf("Validate says %v, New %v", err, newErr)
		}
		if c.field == "" {
			if err != nil {
				t.Errorf("%+v: %v", cfg, err)
			}
			continue
		}
		if err == nil || !strings.HasPrefix(err.Error(), c.field+" ") {
			t.Errorf("%+v: %v, want %s to be named", cfg, err, c.field)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("shows a secret: %v", err)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	cfg := config("http://minio")
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%10s", "%08b"} {
		fmt.Fprintf(&out, verb, cfg.Credentials.SecretAccessKey)
		fmt.Fprintf(&out, verb, &cfg.Credentials)
		fmt.Fprintf(&out, verb, cfg)
	}
	if err := json.NewEncoder(&out).Encode(cfg.Credentials); err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "s", cfg.Credentials.SecretAccessKey, "c", cfg.Credentials)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "s", cfg.Credentials.SecretAccessKey, "c", cfg.Credentials)
	c, err := s3sdk.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(&out, "%v %+v %#v", c, c, c)
	fmt.Fprintf(&out, "%v %+v %#v", c.Bucket("b"), c.Bucket("b"), c.Bucket("b"))
	for _, secret := range []string{accessKey, secretKey, token} {
		for _, form := range []string{secret, fmt.Sprintf("%x", secret)} {
			if strings.Contains(out.String(), form) {
				t.Errorf("%s is in:\n%s", form, out.String())
			}
		}
	}
	if !strings.Contains(out.String(), "***") {
		t.Error("nothing was printed")
	}
}
