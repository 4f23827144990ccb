package config

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
)

// ErrSecret is wrapped by every error about a Secret; the text names the key and what to do, and never holds a value.
var ErrSecret = errors.New("secret")

// Hidden is a string that prints as *** in every format, log and encoding. Convert it with string(h) to use it.
type Hidden string

const hidden = "***"

// String returns ***.
func (Hidden) String() string { return hidden }

// GoString returns ***.
func (Hidden) GoString() string { return hidden }

// Format prints *** for every verb: fmt shows the string itself for a verb that does not fit it.
func (Hidden) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, hidden) // fmt.State keeps the error of its writer
}

// LogValue returns ***.
func (Hidden) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText returns ***.
func (Hidden) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// Secret is what the Secret of a volume says: which server, and as whom. It is comparable: two of the same bytes are
// equal, so it may be the key of a map of clients.
type Secret struct {
	Endpoint string // URL of the server; its scheme decides about TLS
	Region   string // empty is the client's default

	AccessKeyID     Hidden
	SecretAccessKey Hidden
	SessionToken    Hidden // empty for long-lived keys

	CABundle    string // PEM certificates to trust beside the system's
	Insecure    bool   // accept any certificate of the server
	VirtualHost bool   // the bucket goes into the host name instead of the path
}

// ParseSecret reads the data of a Secret. Keys: endpoint, accessKeyID (or accessKey), secretAccessKey (or secretKey),
// and optionally region, sessionToken, caBundle, insecure and pathStyle (true or false). White space around a value is
// not part of it, since files and shells like to end one with a newline. Other keys belong to others and are let be.
//
// A missing, contradicting or malformed key is an ErrSecret. Whether the endpoint is a URL is for the client to say.
func ParseSecret(data map[string]string) (Secret, error) {
	r := reader{data: data}
	s := Secret{
		Endpoint:        r.text("endpoint"),
		Region:          r.text("region"),
		AccessKeyID:     Hidden(r.text("accessKeyID", "accessKey")),
		SecretAccessKey: Hidden(r.text("secretAccessKey", "secretKey")),
		SessionToken:    Hidden(r.text("sessionToken")),
		CABundle:        r.text("caBundle"),
		Insecure:        r.flag("insecure", false),
		VirtualHost:     !r.flag("pathStyle", true),
	}
	switch {
	case r.err != nil:
		return Secret{}, r.err
	case s.Endpoint == "":
		return Secret{}, missing("endpoint", "the URL of the S3 server, such as https://minio.example:9000")
	case s.AccessKeyID == "":
		return Secret{}, missing("accessKeyID", "the access key of the S3 account")
	case s.SecretAccessKey == "":
		return Secret{}, missing("secretAccessKey", "the secret key that belongs to the access key")
	}
	if s.CABundle != "" {
		if block, _ := pem.Decode([]byte(s.CABundle)); block == nil || block.Type != "CERTIFICATE" {
			return Secret{}, fmt.Errorf("%w: caBundle holds no PEM certificate: it must have a BEGIN CERTIFICATE block", ErrSecret)
		}
	}
	return s, nil
}

func missing(key, what string) error {
	return fmt.Errorf("%w: %s is missing: add %s", ErrSecret, key, what)
}

// reader takes values out of a Secret and keeps the first error.
type reader struct {
	data map[string]string
	err  error
}

// text is the value of the first of names that has one. Two names with different values are an error.
func (r *reader) text(names ...string) string {
	value, from := "", ""
	for _, name := range names {
		v := strings.TrimSpace(r.data[name])
		switch {
		case v == "" || v == value:
		case from == "":
			value, from = v, name
		case r.err == nil:
			r.err = fmt.Errorf("%w: %s and %s are one setting and differ: keep one of them", ErrSecret, from, name)
		}
	}
	return value
}

func (r *reader) flag(name string, otherwise bool) bool {
	v := r.text(name)
	if v == "" {
		return otherwise
	}
	yes, err := strconv.ParseBool(v)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%w: %s must be true or false", ErrSecret, name)
	}
	return yes
}
