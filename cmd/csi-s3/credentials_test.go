package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoadAWS(t *testing.T) {
	dir := t.TempDir()
	credentials := filepath.Join(dir, "credentials")
	config := filepath.Join(dir, "config")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(credentials, `
# a comment
[default]
aws_access_key_id = DEFAULTKEY
aws_secret_access_key = default/secret+with=equals

[ work ]
aws_access_key_id=WORKKEY
aws_secret_access_key=worksecret
aws_session_token=worktoken
`)
	write(config, `
[default]
region = eu-west-1
s3 =
  max_concurrent_requests = 20
[profile work]
region = us-west-2 # here
endpoint_url = https://s3.work.test
ca_bundle = /etc/ca.pem
[profile sso]
sso_session = corp
`)
	files := map[string]string{"AWS_SHARED_CREDENTIALS_FILE": credentials, "AWS_CONFIG_FILE": config}

	for _, c := range []struct {
		name string
		env  map[string]string
		want awsSettings
		fail string // part of the error
	}{
		{"files", files, awsSettings{accessKeyID: "DEFAULTKEY", secretAccessKey: "default/secret+with=equals", region: "eu-west-1"}, ""},
		{"profile", with(files, "AWS_PROFILE", "work"), awsSettings{accessKeyID: "WORKKEY", secretAccessKey: "worksecret", sessionToken: "worktoken", region: "us-west-2", endpoint: "https://s3.work.test", caBundle: "/etc/ca.pem"}, ""},
		{"environment wins", with(files, "AWS_PROFILE", "work", "AWS_ACCESS_KEY_ID", "E", "AWS_SECRET_ACCESS_KEY", "S", "AWS_REGION", "R"),
			awsSettings{accessKeyID: "E", secretAccessKey: "S", region: "R", endpoint: "https://s3.work.test", caBundle: "/etc/ca.pem"}, ""},
		{"S3's own endpoint first", map[string]string{"AWS_ACCESS_KEY_ID": "E", "AWS_SECRET_ACCESS_KEY": "S", "AWS_SESSION_TOKEN": "T", "AWS_ENDPOINT_URL": "a", "AWS_ENDPOINT_URL_S3": "b"},
			awsSettings{accessKeyID: "E", secretAccessKey: "S", sessionToken: "T", endpoint: "b"}, ""},
		{"unknown profile", with(files, "AWS_PROFILE", "gone"), awsSettings{}, `profile "gone" is in neither`},
		{"indirect", with(files, "AWS_PROFILE", "sso"), awsSettings{}, "takes its keys from sso_session"},
		{"half a pair", map[string]string{"AWS_ACCESS_KEY_ID": "E"}, awsSettings{}, "AWS_SECRET_ACCESS_KEY is not"},
		{"other half", map[string]string{"AWS_SECRET_ACCESS_KEY": "E"}, awsSettings{}, "AWS_ACCESS_KEY_ID is not"},
		{"nothing", map[string]string{"HOME": dir}, awsSettings{}, "set AWS_ACCESS_KEY_ID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := loadAWS(func(k string) string { return c.env[k] })
			if c.fail != "" {
				if err == nil || !strings.Contains(err.Error(), c.fail) {
					t.Fatalf("error %v, want one with %q", err, c.fail)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}

	write(config, "[default]\nthis is not a setting\n")
	if _, err := loadAWS(func(k string) string { return files[k] }); err == nil || !strings.Contains(err.Error(), "KEY = VALUE") {
		t.Errorf("a broken file: %v", err)
	}
}

func with(m map[string]string, kv ...string) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		out[k] = v
	}
	for i := 0; i < len(kv); i += 2 {
		out[kv[i]] = kv[i+1]
	}
	return out
}
