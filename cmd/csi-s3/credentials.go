package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// awsSettings is what the standard AWS environment variables and shared files say.
type awsSettings struct {
	accessKeyID, secretAccessKey, sessionToken string
	region, endpoint, caBundle                 string
}

// indirect are settings of a profile that name another source of credentials. This program does not follow them, and
// says so instead of going on with nothing.
var indirect = [...]string{"role_arn", "credential_process", "sso_session", "sso_start_url", "web_identity_token_file", "login_session"}

// loadAWS reads the environment, then the profile (AWS_PROFILE, else "default") of the shared credentials and config
// files; the environment wins. There is no metadata service behind it: without keys it is an error that says where
// they are looked for.
func loadAWS(getenv func(string) string) (awsSettings, error) {
	first := func(names ...string) string {
		for _, n := range names {
			if v := getenv(n); v != "" {
				return v
			}
		}
		return ""
	}
	profile := first("AWS_PROFILE", "AWS_DEFAULT_PROFILE")
	named := profile != ""
	if !named {
		profile = "default"
	}
	home := getenv("HOME")
	credentialsFile := first("AWS_SHARED_CREDENTIALS_FILE")
	if credentialsFile == "" {
		credentialsFile = filepath.Join(home, ".aws", "credentials")
	}
	configFile := first("AWS_CONFIG_FILE")
	if configFile == "" {
		configFile = filepath.Join(home, ".aws", "config")
	}
	section := "profile " + profile
	if profile == "default" {
		section = profile
	}
	config, err := readProfile(configFile, section)
	if err != nil {
		return awsSettings{}, err
	}
	secrets, err := readProfile(credentialsFile, profile)
	if err != nil {
		return awsSettings{}, err
	}
	if named && config == nil && secrets == nil {
		return awsSettings{}, fmt.Errorf("profile %q is in neither %s nor %s", profile, credentialsFile, configFile)
	}
	setting := func(name string) string {
		if v := secrets[name]; v != "" {
			return v
		}
		return config[name]
	}

	s := awsSettings{
		region:   first("AWS_REGION", "AWS_DEFAULT_REGION"),
		endpoint: first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
		caBundle: first("AWS_CA_BUNDLE"),
	}
	if s.region == "" {
		s.region = setting("region")
	}
	if s.endpoint == "" {
		s.endpoint = setting("endpoint_url")
	}
	if s.caBundle == "" {
		s.caBundle = setting("ca_bundle")
	}

	s.accessKeyID, s.secretAccessKey = first("AWS_ACCESS_KEY_ID"), first("AWS_SECRET_ACCESS_KEY")
	switch {
	case s.accessKeyID != "" && s.secretAccessKey != "":
		s.sessionToken = first("AWS_SESSION_TOKEN")
		return s, nil
	case s.accessKeyID != "":
		return awsSettings{}, errors.New("AWS_ACCESS_KEY_ID is set but AWS_SECRET_ACCESS_KEY is not")
	case s.secretAccessKey != "":
		return awsSettings{}, errors.New("AWS_SECRET_ACCESS_KEY is set but AWS_ACCESS_KEY_ID is not")
	}
	s.accessKeyID, s.secretAccessKey = setting("aws_access_key_id"), setting("aws_secret_access_key")
	s.sessionToken = setting("aws_session_token")
	if s.accessKeyID != "" && s.secretAccessKey != "" {
		return s, nil
	}
	for _, name := range indirect {
		if setting(name) != "" {
			return awsSettings{}, fmt.Errorf("profile %q takes its keys from %s, which csi-s3 does not follow; run: eval \"$(aws configure export-credentials --profile %s --format env)\"", profile, name, profile)
		}
	}
	return awsSettings{}, fmt.Errorf("no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or put them into profile %q of %s", profile, credentialsFile)
}

// readProfile returns the settings of one section of a shared file, nil if file or section does not exist. Nested
// settings (indented below a key without a value) are not ours and left out.
func readProfile(file, section string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var found map[string]string
	within := false
	for raw := range strings.Lines(string(text)) {
		line := strings.TrimSpace(raw)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			name, _, _ := strings.Cut(line[1:], "]")
			within = strings.Join(strings.Fields(name), " ") == section
			if within && found == nil {
				found = map[string]string{}
			}
		case within && raw[0] != ' ' && raw[0] != '\t':
			key, value, ok := strings.Cut(line, "=")
			if !ok {
				return nil, fmt.Errorf("%s: a line in [%s] is not KEY = VALUE", file, section)
			}
			value, _, _ = strings.Cut(value, " #")
			found[strings.ToLower(strings.TrimSpace(key))] = strings.TrimSpace(value)
		}
	}
	return found, nil
}
